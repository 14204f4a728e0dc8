"""A run may be lengthened as long as none of its steps would have had another rate."""

import json
import pathlib
import shutil

import pytest

from official_bert import interruption, metrics_log, run_files, runner
from tests.bert.resumed_runs import SCHEDULE, tensors
from tfrecords.errors import UserError

# The one decays from step 5 on, the other from step 9 on; both have warmed up after step 2.
SHORT = {"trainer__train_steps": 6, f"{SCHEDULE}constant_steps": 2}
LONG = {"trainer__train_steps": 10, f"{SCHEDULE}constant_steps": 6}


@pytest.fixture(scope="module")
def planned(tmp_path_factory, tiny) -> pathlib.Path:
    """A run that was as long from the start."""
    model_dir = tmp_path_factory.mktemp("planned")
    runner.run(tiny(**LONG), str(model_dir), "train")
    return model_dir


def stop_at(step: int, model_dir: pathlib.Path, params, monkeypatch) -> None:
    """Runs until a step, as SIGTERM would end it there: the loop after the request is one step."""
    stop = interruption.StopRequest()
    add_steps = run_files.RunFiles.add_steps

    def then_ask(self, rows, seconds, summary):
        add_steps(self, rows, seconds, summary)
        if rows[-1]["step"] == step - 1:
            stop.set()

    if step == 1:
        stop.set()
    with monkeypatch.context() as patch, pytest.raises(interruption.Stopped):
        patch.setattr(run_files.RunFiles, "add_steps", then_ask)
        runner.run(params.replace(trainer=params.trainer.replace(steps_per_loop=1)),
                   str(model_dir), "train", stop=stop)  # fmt: skip
    assert [row["step"] for row in metrics_log.read(model_dir / metrics_log.METRICS)] == list(
        range(1, step + 1)
    )


@pytest.mark.parametrize("step", [1, 4])
def test_a_run_on_its_plateau_may_be_lengthened(
    tmp_path, tiny, planned, monkeypatch, step: int
) -> None:
    """Up to the plateau's last step; before it, too. It ends as one that was planned so."""
    run = tmp_path / "run"
    stop_at(step, run, tiny(**SHORT), monkeypatch)
    runner.run(tiny(**LONG), str(run), "train")
    assert (run / "metrics.jsonl").read_text().splitlines()[-1] == (
        planned / "metrics.jsonl"
    ).read_text().splitlines()[-1]
    found, expected = tensors(run), tensors(planned)
    for name, value in expected.items():
        assert found[name].tobytes() == value.tobytes(), name
    changes = [json.loads(line) for line in (run / "changes.jsonl").read_text().splitlines()]
    assert {(row["field"].split(".")[-1], row["was"], row["now"]) for row in changes} == {
        ("constant_steps", 2, 6), ("total_steps", 6, 10), ("train_steps", 6, 10)
    }  # fmt: skip
    assert {row["step"] for row in changes} == {step}


def test_a_run_that_decays_may_not_be_lengthened(tmp_path, tiny, planned, monkeypatch) -> None:
    """Its last step has had another rate than a longer plateau would have given it."""
    run = tmp_path / "run"
    stop_at(5, run, tiny(**SHORT), monkeypatch)
    with pytest.raises(UserError, match="constant_steps was 2, now 6.*gives step 5, of 5 done"):
        runner.run(tiny(**LONG), str(run), "train")
    finished = tmp_path / "finished"
    shutil.copytree(planned, finished)
    with pytest.raises(UserError, match="constant_steps was 6, now 8.*gives step 9"):
        longer = {"trainer__train_steps": 12, f"{SCHEDULE}constant_steps": 8}
        runner.run(tiny(**longer), str(finished), "train")
    steeper = {**LONG, f"{SCHEDULE}peak_learning_rate": 0.06}
    with pytest.raises(UserError, match="peak_learning_rate was 0.05, now 0.06"):
        runner.run(tiny(**steeper), str(finished), "train")
