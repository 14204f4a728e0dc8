"""The page that compares runs: its tables against the runs' files, its pictures, its mistakes."""

import base64
import html.parser
import io
import os
import pathlib
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import image

from official_bert import charts, comparison, configuration, report, run_summary
from tests.bert import fake_runs
from tests.bert.conftest import SHORT

LAMB = {"trainer__optimizer_config__optimizer__type": "lamb"}


class Page(html.parser.HTMLParser):
    """The tables of a page, as lists of rows of cells, and its pictures by caption."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.pictures: dict[str, str] = {}
        self.captions: list[str] = []
        self._text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list) -> None:
        self._text = ""
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag == "img":
            self.pictures[dict(attributes)["alt"]] = dict(attributes)["src"]

    def handle_data(self, data: str) -> None:
        self._text += data

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.tables[-1][-1].append(self._text)
        elif tag == "caption":
            self.captions.append(self._text)

    def table(self, caption: str) -> dict[str, list[str]]:
        """The rows of a table by their first cell."""
        rows = self.tables[self.captions.index(caption)]
        return {name: values for name, *values in rows}


@pytest.fixture
def runs(tmp_path: pathlib.Path, tiny) -> list[pathlib.Path]:
    """A run with LANS, finished, and one with LAMB that goes on and tells nothing of its noise."""
    lans = tiny(task__micro_batch_size=4, trainer__train_steps=400)
    finished = fake_runs.write(tmp_path / "lans" / "phase1", lans, 400, pieces=8)
    fake_runs.finish(finished, accuracy=0.375)
    lamb = tiny(trainer__train_steps=400, task__train_data__seed=3, **LAMB)
    return [finished, fake_runs.write(tmp_path / "<lamb>" / "phase1", lamb, 40)]


def page_of(folder: pathlib.Path, *arguments: object) -> Page:
    path = folder / "report.html"
    assert report.main([*map(str, arguments), f"--output={path}"]) == 0
    return Page(path.read_text(encoding="utf-8"))


def test_the_tables(tmp_path, runs, capsys) -> None:
    page = page_of(tmp_path, *runs)
    assert "report.html" in capsys.readouterr().out
    summary = page.table("The runs")
    assert summary[""] == ["lans/phase1", "<lamb>/phase1"]
    expected = {
        "steps": ["400 of 400", "40 of 400"],
        "batch, examples": ["32", "32"],
        "optimizer": ["lans", "lamb"],
        "peak learning rate": ["0.05", "0.05"],
        # Of 399 losses the last 19, of steps 382 to 400; of 39 the last one.
        "training loss, mean of the last twentieth": ["6.09", "9.6"],
        "skipped steps": ["1", "1"],
        "examples a second, median": ["1,250.0", "not known"],
        "last evaluation, at step": ["8", "not known"],
        "last evaluation, masked_lm_accuracy": ["0.375", "not known"],
        "last evaluation, masked_lm_loss": ["7.5", "not known"],
    }
    assert expected.items() <= summary.items()
    # B (25 - 9) / (9 N - 25) with B = 32, N = 8 is 10.9.
    known, unknown = summary["gradient noise scale, examples"]
    assert known.startswith("11 +- ") and unknown == "not known"
    assert page.table("Changed on the way")["lans/phase1"] == [
        "5",
        "trainer.train_steps",
        "6",
        "20",
    ]


def test_the_settings_that_differ_and_no_others(tmp_path, runs) -> None:
    found = page_of(tmp_path, *runs).table("Settings that differ")
    settings = "trainer.optimizer_config.optimizer"
    assert found == {
        "field": ["lans/phase1", "<lamb>/phase1"],
        "task.micro_batch_size": ["4", "0"],
        "task.train_data.seed": ["0", "3"],
        f"{settings}.type": ["lans", "lamb"],
        f"{settings}.*.name": ["LANS", "LAMB"],
        f"{settings}.*.nesterov": ["true", "(absent)"],
        f"{settings}.*.normalize_gradients": ["true", "(absent)"],
    }


def test_the_pictures_are_in_the_page(tmp_path, runs) -> None:
    page = page_of(tmp_path, *runs)
    assert len(page.pictures) == 6
    for source in page.pictures.values():
        header, content = source.split(",")
        assert header == "data:image/png;base64"
        pixels = image.imread(io.BytesIO(base64.b64decode(content)), format="png")
        assert len(np.unique(pixels.reshape(-1, 4), axis=0)) > 10, "an empty picture"
    text = (tmp_path / "report.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)|url\(|@import|<script|<lamb>', text)


def test_one_run_alone_has_nothing_to_differ_from(tmp_path, runs) -> None:
    page = page_of(tmp_path, f"{runs[1]}/")
    assert page.captions == ["The runs"] and page.table("The runs")[""] == ["phase1"]
    assert not any("noise" in caption for caption in page.pictures)


def test_runs_of_different_tasks(tmp_path, runs, tiny) -> None:
    """What a run has not is left out of its charts and unknown in its table."""
    other = tmp_path / "other"
    configuration.save(tiny(), str(other))
    fake_runs.log(other, "metrics.jsonl", [{"step": 1, "loss": 2.0}])
    fake_runs.log(other, "evaluations.jsonl", [{"step": 1, "f1": 88.0}])
    page = page_of(tmp_path, runs[0], other)
    assert page.table("The runs")["last evaluation, f1"] == ["not known", "88"]
    assert page.table("The runs")["skipped steps"] == ["1", "not known"]


def test_the_baseline(tmp_path, runs, shards) -> None:
    found = page_of(tmp_path, "--baseline", *runs).table("The runs")
    expected = report.most_frequent_token_accuracy(str(shards), SHORT)
    name = "masked_lm_accuracy of the most frequent token"
    assert found[name] == [f"{expected:.4g}", "not known"]  # the second was never evaluated


def test_folders_and_flags_in_any_order(tmp_path, runs) -> None:
    path = tmp_path / "new" / "page.html"
    assert report.main([str(runs[0]), f"--output={path}", "--", str(runs[1])]) == 0
    assert len(Page(path.read_text()).table("The runs")[""]) == 2


def test_mistakes(tmp_path, runs, capsys) -> None:
    empty, untrained = tmp_path / "empty", tmp_path / "untrained"
    empty.mkdir()
    untrained.mkdir()
    (untrained / "params.yaml").write_bytes((runs[0] / "params.yaml").read_bytes())
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "params.yaml").write_bytes((runs[0] / "params.yaml").read_bytes())
    (damaged / "metrics.jsonl").write_text('{"step": 1}\n{"ste\n')
    output = tmp_path / "page.html"
    for arguments, words in (
        ([], "no MODEL_DIR is given"),
        ([empty], "empty holds no params.yaml"),
        ([tmp_path / "nowhere"], "nowhere holds no params.yaml"),
        ([untrained], "untrained holds no metrics.jsonl"),
        ([damaged], "metrics.jsonl is damaged"),
        ([runs[0], f"{runs[0]}/"], "is given twice"),
        ([runs[0], "--outptu=x"], "Unknown command line flag 'outptu'"),
    ):
        assert report.main([*map(str, arguments), f"--output={output}"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and words in error and error.count("\n") == 1
    assert not output.exists()


def test_other_commands_still_take_no_folders(capsys) -> None:
    from official_bert import train

    assert train.main(["--model_dir=run", "folder"]) == 2
    assert "unexpected argument 'folder'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["run"], ["run"]),
        (["a/run"], ["run"]),
        (["a/lans", "a/lamb"], ["lans", "lamb"]),
        (["a/lans/p", "a/lamb/p"], ["lans/p", "lamb/p"]),
        (["run", "a/run"], ["run", "a/run"]),
        (["gs://a/run", "gs://b/run"], ["a/run", "b/run"]),
    ],
)
def test_names_tell_runs_apart(folders: list[str], names: list[str]) -> None:
    assert comparison.names(folders) == names


def test_pieces_are_what_the_config_tells(tmp_path, tiny) -> None:
    for pieces, overrides in {
        1: {},
        8: {"task__micro_batch_size": 4},
        4: {"runtime__distribution_strategy": "mirrored", "runtime__num_gpus": 4},
        None: {"runtime__distribution_strategy": "mirrored"},
    }.items():
        folder = tmp_path / str(pieces)
        configuration.save(tiny(**overrides), os.fspath(folder))
        assert run_summary.Run.load(str(folder)).pieces == pieces


@given(st.lists(st.floats(-1e6, 1e6), max_size=200), st.integers(1, 50))
def test_thinned_curves_keep_their_mean_and_their_end(values: list[float], most: int) -> None:
    points = [(step + 1, value) for step, value in enumerate(values)]
    steps, means = charts.thinned(points, most)
    assert len(steps) == len(means) <= most
    assert list(steps) == sorted(set(steps))
    if len(values) <= most:
        assert list(zip(steps, means, strict=True)) == points
    else:
        assert steps[-1] == len(values)
        weights = np.diff(steps, prepend=0)
        assert np.average(means, weights=weights) == pytest.approx(np.mean(values), abs=1e-6)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60), st.integers(1, 20))
def test_the_running_mean(values: list[float], window: int) -> None:
    found = charts.running_mean(np.array(values), window)
    expected = [np.mean(values[max(0, end - window) : end]) for end in range(1, len(values) + 1)]
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-6)


def test_a_spike_is_forgotten_with_its_window() -> None:
    values = np.ones(100)
    values[3] = 1e30
    assert np.all(charts.running_mean(values, 5)[8:] == 1.0)


def test_many_runs_look_different() -> None:
    curves = [charts.Curve(name=str(number), points=[(1, 1.0), (2, 2.0)]) for number in range(20)]
    lines = charts.overlay(curves, "loss", smooth=False).axes[0].get_lines()
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 20


def test_a_run_without_a_quantity_keeps_its_look_for_the_others() -> None:
    full = charts.Curve(name="full", points=[(1, 1.0), (2, 2.0)])
    empty = charts.Curve(name="empty", points=[])
    (line,) = charts.overlay([empty, full], "loss", smooth=False).axes[0].get_lines()
    assert line.get_color() == "C1"
