"""Pretraining against random weights: the statistics, the table, and one small run of it all."""

import json
import pathlib
import pydoc_data.topics
import statistics

import numpy as np
import pytest
import yaml

from benchmarks import markdown_part, transfer, transfer_report
from benchmarks.transfer_report import PRETRAINED, RANDOM, Arm, Task
from official_bert import demo
from tests.bert.conftest import TINY
from tests.bert.test_finetune import questions
from tfrecords.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "transfer.json"


def arm(starting_point: str, **scores: list[float]) -> Arm:
    by_rate = {rate: dict(enumerate(values)) for rate, values in scores.items()}
    return Arm(starting_point=starting_point, scores=by_rate)


def test_the_interval_is_welchs() -> None:
    """Against the formula, with t's quantile for its degrees of freedom from a table."""
    a, b = [80.0, 82.0, 84.0], [70.0, 71.0, 75.0]
    task = Task(name="t", title="T", pretrained=arm(PRETRAINED, r=a), random=arm(RANDOM, r=b))
    variances = [statistics.variance(each) / 3 for each in (a, b)]
    freedom = sum(variances) ** 2 / sum(each**2 / 2 for each in variances)
    assert freedom == pytest.approx(3.7, abs=0.05)
    quantile = 2.867  # two-sided 95 % at 3.7, between 3.182 at 3 and 2.776 at 4
    mean, low, high = task.difference()
    assert mean == pytest.approx(10.0)
    assert (high - low) / 2 == pytest.approx(quantile * sum(variances) ** 0.5, rel=0.02)
    assert (low + high) / 2 == pytest.approx(mean)


def test_the_best_rate_is_that_of_the_best_median_not_of_the_best_run() -> None:
    chosen = arm(RANDOM, slow=[50.0, 51.0, 52.0], fast=[10.0, 20.0, 99.0])
    assert chosen.best_rate == "slow" and chosen.best == [50.0, 51.0, 52.0]


def test_one_seed_has_no_interval() -> None:
    task = Task(name="t", title="T", pretrained=arm(PRETRAINED, r=[2]), random=arm(RANDOM, r=[1]))
    mean, low, high = task.difference()
    assert mean == 1.0 and np.isnan([low, high]).all()


def test_a_folder_without_finished_runs_is_named(tmp_path) -> None:
    with pytest.raises(UserError, match="no finished run"):
        transfer.read_arm(tmp_path, RANDOM, "f1")


def test_starting_points_have_the_same_tries_or_are_refused(tmp_path) -> None:
    def score(arm: str, rate: str, seed: int) -> pathlib.Path:
        folder = tmp_path / f"sst2_{arm}" / f"rate-{rate}-seed-{seed}"
        folder.mkdir(parents=True)
        (folder / "eval_metrics.json").write_text(json.dumps({"accuracy": 50.0 + seed}))
        return folder / "eval_metrics.json"

    layout = demo.Layout(root=str(tmp_path))
    for starting_point in (PRETRAINED, RANDOM):
        for rate in ("0.001", "3e-05"):
            for seed in (0, 1):
                last = score(starting_point, rate, seed)
    (task,) = transfer.read_tasks(layout)
    assert task.random.scores == {rate: {0: 50.0, 1: 51.0} for rate in ("0.001", "3e-05")}
    last.unlink()  # as a run that diverged has none
    with pytest.raises(UserError, match="no score of rate-3e-05-seed-1 from random") as refused:
        transfer.read_tasks(layout)
    assert "rates 3e-05,0.001 and --seeds=0,1, or" in str(refused.value)
    score(RANDOM, "0.01", 0)
    with pytest.raises(UserError, match="rate-0.01-seed-0 from pretrained") as refused:
        transfer.read_tasks(layout)
    assert "\n" not in str(refused.value)


def test_only_the_marked_part_of_a_document_is_replaced() -> None:
    begin, end = markdown_part.marks("benchmarks.transfer")
    document = f"a\n{begin}\nold\n{end}\nb\n"
    once = markdown_part.replaced(document, "benchmarks.transfer", "new")
    assert once == markdown_part.replaced(once, "benchmarks.transfer", "new")
    assert once.startswith("a\n") and once.endswith("\nb\n")
    assert "old" not in once and "new" in once
    with pytest.raises(UserError, match="no part between"):
        markdown_part.replaced(document, "benchmarks.large_batch", "new")


@pytest.mark.parametrize("content", [None, "no marks"])
def test_a_document_that_cannot_take_the_table_is_refused_first(tmp_path, content, capfd) -> None:
    document = tmp_path / "document.md"
    if content is not None:
        document.write_text(content)
    work = tmp_path / "work"
    arguments = [f"--document={document}", f"--work_dir={work}", "--corpus=text.txt"]
    assert transfer.main(arguments) == 2
    assert "cannot take the table" in capfd.readouterr().err
    assert not work.exists()


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]"])
def test_figures_from_before_that_are_damaged_are_refused_first(tmp_path, content, capfd) -> None:
    (tmp_path / "out.json").write_bytes(content)
    work = tmp_path / "work"
    arguments = [f"--output={tmp_path / 'out'}", f"--work_dir={work}", "--corpus=text.txt"]
    assert transfer.main(arguments) == 2
    error = capfd.readouterr().err
    assert "out.json is not JSON of this command" in error and error.endswith("; move it away\n")
    assert not work.exists()


@pytest.mark.skipif(not RESULTS.exists(), reason="benchmarks/results/transfer.json is not there")
def test_the_document_shows_the_measured_figures() -> None:
    table = transfer_report.table(json.loads(RESULTS.read_text()))
    assert table in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_text_to_a_table(tmp_path, capfd) -> None:
    """Every stage as a process; then again, when nothing is left to do but the table."""
    text = "\n".join(topic for _, topic in sorted(pydoc_data.topics.topics.items()))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    (tmp_path / "squad.json").write_text(json.dumps(questions()))
    marks = markdown_part.marks("benchmarks.transfer")
    (tmp_path / "document.md").write_text("\n".join(marks))
    for number, length in enumerate(transfer.SEQ_LENGTHS, start=1):
        recipe = yaml.safe_load(TINY)
        for part in ("train_data", "validation_data"):
            recipe["task"][part] = {"seq_length": length, "global_batch_size": 8}
        recipe["task"]["model"]["encoder"]["bert"]["max_position_embeddings"] = 256
        recipe["trainer"] |= {"train_steps": 4, "summary_interval": 2}
        (tmp_path / f"phase{number}.yaml").write_text(yaml.safe_dump(recipe))
    arguments = [
        *(f"--work_dir={tmp_path / 'work'}", f"--corpus={tmp_path / 'text.txt'}"),
        *("--vocab_size=1024", "--seeds=2", "--squad_learning_rates=1e-3"),
        *(f"--phase{number}={tmp_path / f'phase{number}.yaml'}" for number in (1, 2)),
        *(f"--squad_{part}={tmp_path / 'squad.json'}" for part in ("train", "dev")),
        *(f"--output={tmp_path / 'out'}", f"--document={tmp_path / 'document.md'}"),
    ]
    assert transfer.main(arguments) == 0, capfd.readouterr().err
    first = json.loads((tmp_path / "out.json").read_text())
    assert [task["task"] for task in first["tasks"]] == ["squad", "squad_exact_match"]
    assert [phase["examples"] for phase in first["pretraining"]] == [32, 32]
    for task in first["tasks"]:
        assert all(len(task[each]["scores"]["0.001"]) == 2 for each in (PRETRAINED, RANDOM))
    assert str(tmp_path / "work") not in (tmp_path / "out.json").read_text()
    assert transfer.main(arguments) == 0
    second = json.loads((tmp_path / "out.json").read_text())
    assert second["tasks"] == first["tasks"] and second["pretraining"] == first["pretraining"]
    assert transfer_report.table(second) in (tmp_path / "document.md").read_text()
