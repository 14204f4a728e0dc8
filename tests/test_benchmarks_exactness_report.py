"""The table and the chart of exactness, what is not measured again, and user mistakes."""

import json

import pytest

from benchmarks import (
    exactness,
    exactness_chart,
    exactness_coverage,
    exactness_cuts,
    exactness_data,
    exactness_error,
    exactness_kills,
    exactness_report,
    markdown_part,
)

MEASURED = {
    "date": "2020-01-02T03:04:05+00:00",
    "command": "python -m benchmarks.exactness",
    "processor": "one",
    "versions": {"tensorflow": "2.20.0"},
}
COVERAGE = {
    "cases": [
        {
            "examples": 6388,
            "case": "8 files, 4 workers, seed unset",
            "stock": {
                "mean_share": 0.6543,
                "lowest_share": 0.5,
                "highest_share": 0.75,
                "each_exactly_once": False,
            },
            "ours": {
                "mean_share": 1.0,
                "lowest_share": 1.0,
                "highest_share": 1.0,
                "each_exactly_once": True,
            },
        },
        {
            "examples": 6388,
            "case": "10 files, 4 workers, seed set",
            "stock": {
                "mean_share": 0.9,
                "lowest_share": 0.9,
                "highest_share": 0.9,
                "each_exactly_once": False,
            },
            "ours": {"refused": "10 shards for 4 workers"},
        },
    ],
    **MEASURED,
}
ERROR = {
    "steps": 100,
    "methods": [
        {
            "method": method,
            "is_ours": is_ours,
            "formula": "Algorithm 1",
            "relative_l2_error": error,
            "remark": remark,
        }
        for method, is_ours, error, remark in (
            ("tf-lans LAMB, Keras 3", True, 3.14e-7, ""),
            ("Keras Lamb", False, 0.0215, "decays outside"),
        )
    ],
    **MEASURED,
}
CUTS = {
    "steps": 10,
    "global_batch_size": 32,
    "rows": [
        {
            "system": system,
            "is_ours": is_ours,
            "cut": cut,
            "relative_l2_difference": difference,
            "with_key_biases": 2 * difference,
        }
        for system, is_ours, cut, difference in (
            ("tf-lans LANS", True, "2 replicas", 1e-6),
            ("tf-lans LANS", True, "4 micro-batches", 0.0),
            ("Model Garden LAMB", False, "2 replicas", 0.03),
        )
    ],
    **MEASURED,
}
KILLS = {
    "planned_kills": {"1": 7, "2": 3},
    "ours": [
        {"chain": "steps", "workers": 1, "kills": 6, "bit_equal": True},
        {"chain": "saves", "workers": 1, "kills": 1, "bit_equal": False},
        {"chain": "a peer", "workers": 2, "kills": 1, "bit_equal": True},
    ],
    "stock": [
        {"workers": 1, "restarted": "ended", "bit_equal": False},
        {"workers": 2, "restarted": "crashed", "bit_equal": False},
        {"workers": 2, "restarted": "hung", "bit_equal": False},
    ],
    **MEASURED,
}
FIGURES = {"coverage": COVERAGE, "error": ERROR, "cuts": CUTS, "kills": KILLS}


def test_the_table() -> None:
    assert exactness_report.table(FIGURES).splitlines() == [
        "| | Model Garden, Keras | tf-lans |",
        "| --- | --- | --- |",
        "| of 6,388 examples, an epoch draws: 8 files, 4 workers, seed unset "
        "| 65.4 % (50 % to 75 %) | 100 %, each once |",
        "| of 6,388 examples, an epoch draws: 10 files, 4 workers, seed set "
        "| 90 % (90 % to 90 %) | refused before training |",
        "| float32 LAMB (Algorithm 1): relative distance to float64 after 100 updates "
        "| Keras Lamb: 2.1e-2 (decays outside) | tf-lans LAMB, Keras 3: 3.1e-7 |",
        "| weights without key biases, 32 rows cut into 2 replicas against whole: relative "
        "distance after 10 updates "
        "| LAMB 3.0e-2 | LANS 1.0e-6 |",
        "| weights without key biases, 32 rows cut into 4 micro-batches against whole: relative "
        "distance after 10 updates "
        "| cannot | LANS 0 |",
        "| kills after which a restarted run ends bit-equal, one worker | 0 of 1, in 1 run "
        "| 6 of 7, in 2 runs |",
        "| kills after which a restarted run ends bit-equal, two workers "
        "| 0 of 2, in 2 runs; 1 restart crashed; 1 restart hung "
        "| 1 of 1, in 1 run, made so far; the sweep has 3 |",
        "",
        "Relative distances are L2 norms over all weights together, divided by how far the "
        "reference moved from its initial weights. Algorithms 1 and 2 are those of arXiv "
        "2006.13484.",
        "",
        "Those of a cut batch are without the attention's key biases. Softmax ignores those, so "
        "that their gradient is rounding alone, which LANS scales to whole steps; with them our "
        "largest difference is 2.0e-6, stock's 6.0e-2. The batch has 32 rows; stock's difference "
        "shrinks as it grows.",
        "",
        "Measured 2020-01-02 with tensorflow 2.20.0.",
    ]


def test_parts_that_are_missing_are_left_out(tmp_path) -> None:
    assert "epoch" not in exactness_report.table({"cuts": CUTS})
    unbegun = exactness_report.table({"kills": KILLS | {"ours": [], "stock": []}})
    assert unbegun.count("| not measured | not measured |") == 2
    nothing = exactness_report.table({})
    assert len(nothing.splitlines()) == 2
    exactness_chart.chart({"cuts": CUTS}).savefig(tmp_path / "chart.png", dpi=20)


def test_the_chart_shows_every_value_and_is_small(tmp_path) -> None:
    figure = exactness_chart.chart(FIGURES)
    axes = [each for panel in figure.subfigs for each in panel.axes]
    shown = [{each.get_text() for each in one.texts} for one in axes]
    for expected in (
        {"65.4 %", "100 %", "90 %", "refused"},
        {"3.1e-7", "2.1e-2"},
        {"1.0e-6", "0", "3.0e-2"},
        {"0 of 1", "6 of 7", "0 of 2", "1 of 1"},
    ):
        assert expected in shown
    (titled,) = [each.get_suptitle() for each in figure.subfigs if "Weights" in each.get_suptitle()]
    assert "without key biases" in titled and "32 rows" in titled
    figure.savefig(tmp_path / "chart.png", dpi=exactness_chart.DPI)
    assert (tmp_path / "chart.png").stat().st_size < 300_000


@pytest.fixture
def calls(monkeypatch):
    """The parts that were measured, in place of their measurement."""
    found = []

    def measurer(part):
        figures = {name: FIGURES[part][name] for name in FIGURES[part] if name not in MEASURED}

        def measure(*_):
            found.append(part)
            return figures

        return measure

    for part, module in (
        ("coverage", exactness_coverage),
        ("error", exactness_error),
        ("cuts", exactness_cuts),
        ("kills", exactness_kills),
    ):
        monkeypatch.setattr(module, "measure", measurer(part))
    monkeypatch.setattr(exactness_cuts, "prepare_devices", lambda _: None)
    monkeypatch.setattr(exactness_data, "prepare", lambda *_: None)
    return found


def test_a_finished_part_is_not_measured_again(calls, tmp_path, capsys) -> None:
    output = f"--output={tmp_path / 'out'}"
    assert exactness.main([output, "--only=error,coverage"]) == 0
    assert calls == ["error", "coverage"]
    first = json.loads((tmp_path / "out.json").read_text())
    assert list(first) == ["coverage", "error"] and first["error"]["steps"] == 100
    assert exactness.main([output]) == 0
    assert calls == ["error", "coverage", "cuts", "kills"]
    second = json.loads((tmp_path / "out.json").read_text())
    assert list(second) == list(FIGURES)
    assert all(second[part] == first[part] for part in first)
    assert exactness.main([output, "--only=error", "--again"]) == 0
    assert calls[4:] == ["error"]
    assert "65.4 %" in capsys.readouterr().out
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_the_document_gets_the_table(calls, tmp_path) -> None:
    document = tmp_path / "document.md"
    document.write_text("before\n" + "\n".join(markdown_part.marks("benchmarks.exactness")))
    assert exactness.main([f"--document={document}"]) == 0
    assert exactness_report.table(FIGURES).splitlines()[2] in document.read_text()
    assert document.read_text().startswith("before\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only=speed"], "--only names 'speed'; expected some of coverage, error, cuts, kills"),
        (["--epochs=0"], "epochs"),
        (["--kills=some"], "kills"),
        (["--document={folder}/none.md"], "cannot take the table"),
        (["--document={folder}/plain.md"], "cannot take the table"),
        (["--output={folder}/damaged"], "is not JSON of this command"),
        (["--output={folder}/foreign"], "is not JSON of this command"),
    ],
)
def test_mistakes_are_refused_before_anything_is_measured(
    calls, tmp_path, capsys, arguments, message
) -> None:
    for name, content in (
        ("plain.md", "no marks"),
        ("damaged.json", '{"coverage"'),
        ("foreign.json", '{"contenders": []}'),
    ):
        (tmp_path / name).write_text(content)
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert exactness.main([each.format(folder=tmp_path) for each in arguments]) == 2
    assert message in capsys.readouterr().err
    assert not calls
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


def test_text_without_a_sentence_is_refused(tmp_path, capsys) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    assert exactness.main(["--only=coverage", f"--input={tmp_path / 'empty.txt'}"]) == 2
    assert "holds no sentence" in capsys.readouterr().err
