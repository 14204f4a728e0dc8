"""The launcher with real workers: one is killed, and the result is that of an undisturbed job."""

import json
import logging
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import tensorflow as tf

import tfrecords
from official_bert import interruption, metrics_log, run_data, runner
from official_bert.input import PretrainDataLoader
from official_bert.pretraining_task import LargeBatchPretrainTask
from tests.bert import acting_job
from tests.bert.conftest import SHORT
from tests.bert.resumed_runs import arguments, assert_same_run, keep_oldest
from tfrecords.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEADLINE_S = 300


def launch(
    model_dir: pathlib.Path,
    tiny_arguments,
    *flags: str,
    override: Sequence[str] = (),
    act: Mapping[str, object] | None = None,
) -> subprocess.Popen:
    """A job of two workers, one of which acts as `acting_job` says."""
    module = "tests.bert.acting_job" if act else "official_bert.launch"
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            module,
            "--num_workers=2",
            "--max_restarts=1",
            "--",
            *arguments(model_dir, tiny_arguments, *override),
            *flags,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=os.environ | {acting_job.ACT: json.dumps(act)},
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_arguments) -> pathlib.Path:
    """A job that nothing disturbed."""
    model_dir = tmp_path_factory.mktemp("launched") / "whole"
    said = ended(launch(model_dir, tiny_arguments))
    assert f"[worker 0] {model_dir}: step 12" in said
    return model_dir


def ended(job: subprocess.Popen) -> str:
    """What a job said until it ended well."""
    try:
        said, _ = job.communicate(timeout=DEADLINE_S)
    finally:
        job.kill()
    assert job.returncode == 0, said
    return said


def test_an_evaluation_on_two_workers_is_of_all_examples(whole, tiny, tiny_arguments) -> None:
    job = launch(whole, tiny_arguments, "--mode=eval", override=["trainer.validation_steps=-1"])
    said = ended(job)
    rate = "task__model__encoder__bert__"
    params = tiny(
        trainer__validation_steps=-1,
        **{f"{rate}dropout_rate": 0.1, f"{rate}attention_dropout_rate": 0.1},
    )
    alone = runner.run(params, str(whole), "eval").evaluation
    assert len(alone) == 4
    for name, value in alone.items():
        printed = re.search(rf"\[worker 0\]\s+{name} (\S+)", said)
        assert printed, said
        # Sums in another order, and four digits.
        assert float(printed[1]) == pytest.approx(value, abs=2e-4)


def noted_partitions(monkeypatch) -> list[tuple[int, run_data.Partition]]:
    """The step that training data are opened at, and where their epochs are counted from."""
    seen, build = [], LargeBatchPretrainTask.build_inputs

    def noted(self, params, context=None, start_step=0):
        if params.is_training:
            seen.append((start_step, self.partition))
        return build(self, params, context, start_step)

    monkeypatch.setattr(LargeBatchPretrainTask, "build_inputs", noted)
    return seen


def test_one_worker_goes_on_where_two_were(tmp_path, whole, tiny, caplog, monkeypatch) -> None:
    """Only when asked; from a new epoch, and through a kill as without one."""
    rate = "task__model__encoder__bert__"
    params = tiny(
        trainer__train_steps=12,
        trainer__max_to_keep=3,
        **{f"{rate}dropout_rate": 0.1, f"{rate}attention_dropout_rate": 0.1},
    )
    begun, killed = tmp_path / "begun", tmp_path / "killed"
    shutil.copytree(whole, begun)
    (step,) = keep_oldest(begun, 1)
    with pytest.raises(UserError, match="num_workers was 2, now 1, .* give --repartition"):
        runner.run(params, str(begun))
    seen = noted_partitions(monkeypatch)
    with caplog.at_level(logging.WARNING, logger="absl"):
        assert runner.run(params, str(begun), repartition=True).global_step == 12
    shards = tfrecords.Manifest.load(params.task.train_data.input_path).shards("train", SHORT)
    total = sum(shard.examples for shard in shards)
    read = step * params.task.train_data.global_batch_size
    epoch = -(-read // total)
    said = f"workers: 2 up to step {step}, 1 from now on: epoch {epoch} begins, with "
    assert f"{said}{epoch * total - read} examples" in caplog.text
    known = run_data.read(str(begun)).partitions
    assert known == (
        run_data.Partition(num_workers=2),
        run_data.Partition(step=step, epoch=epoch, num_workers=1),
    )
    shutil.copytree(begun, killed)
    later = keep_oldest(killed, 2)[-1]
    runner.run(params, str(killed))
    assert_same_run(killed, begun)
    assert seen == [(step, known[-1]), (later, known[-1])] and later > step
    undisturbed, own = (metrics_log.read(run / metrics_log.METRICS) for run in (whole, begun))
    assert own[:step] == undisturbed[:step]


def test_two_workers_go_on_where_one_was(tmp_path, tiny, tiny_arguments, monkeypatch) -> None:
    """Their losses are those of one worker that is given what both are to read."""
    params = tiny(trainer__train_steps=12, trainer__max_to_keep=3)
    alone, launched = tmp_path / "alone", tmp_path / "launched"
    runner.run(params, str(alone))
    undisturbed = losses(alone)
    (step,) = keep_oldest(alone, 1)
    shutil.copytree(alone, launched)
    rates = ("dropout_rate=0", "attention_dropout_rate=0")
    without = [f"task.model.encoder.bert.{rate}" for rate in rates]
    ended(launch(launched, tiny_arguments, "--repartition", override=without))
    last = run_data.read(str(launched)).partitions[-1]
    assert (last.step, last.num_workers) == (step, 2)
    load = PretrainDataLoader.load

    def of_both(self, context=None, start_step=0, **begin):
        if not self._params.is_training:
            return load(self, context, start_step, **begin)
        begin = {"first_step": step, "first_epoch": last.epoch}
        shares = [
            load(self, tf.distribute.InputContext(2, worker, 1), start_step, **begin)
            for worker in range(2)
        ]
        return tf.data.Dataset.zip(tuple(shares)).map(
            lambda *parts: {name: tf.concat([part[name] for part in parts], 0) for name in parts[0]}
        )

    monkeypatch.setattr(PretrainDataLoader, "load", of_both)
    runner.run(params, str(alone))
    # Sums in another order, carried through four updates; other examples are 1e-2 away.
    np.testing.assert_allclose(losses(launched), losses(alone), rtol=1e-4)
    assert np.max(np.abs(losses(launched) / undisturbed - 1)[step:]) > 1e-3


def losses(model_dir: pathlib.Path) -> np.ndarray:
    rows = metrics_log.read(model_dir / metrics_log.METRICS)
    return np.array([row["loss"] for row in rows])


def test_a_killed_peer_leaves_no_trace_in_the_result(tmp_path, whole, tiny_arguments) -> None:
    disturbed, mark = tmp_path / "disturbed", tmp_path / "mark"
    act = {"worker": 1, "step": 4, "what": "die", "mark": str(mark)}
    said = ended(launch(disturbed, tiny_arguments, act=act))
    assert mark.exists() and said.count(f"[worker 1] {acting_job.SAID} 4") == 1
    assert "worker 1 was ended by signal 9 (SIGKILL); all workers start again (1 of 1" in said
    assert_same_run(disturbed, whole)
    left = {path.name.split("-")[0].split(".")[0] for path in disturbed.iterdir()}
    assert left == {
        "README", "checkpoint", "data", "ckpt", "evaluations", "logs", "metrics", "params",
        "speed", "tokenizer_config", "train", "validation", "vocab",
    }  # fmt: skip


def test_sigterm_ends_all_workers_at_one_step(tmp_path, tiny_arguments) -> None:
    """The launcher hands it on. The run is so long that it cannot end before the signal."""
    model_dir = tmp_path / "stopped"
    act = {"worker": 0, "step": 2, "what": "say", "mark": str(tmp_path / "mark")}
    job = launch(model_dir, tiny_arguments, override=("trainer.train_steps=100000",), act=act)
    assert job.stdout is not None
    # Ends the reading below, should the job hang.
    watchdog = threading.Timer(DEADLINE_S, job.kill)
    watchdog.start()
    try:
        said = ""
        for line in job.stdout:
            said += line
            if acting_job.SAID in line:
                job.send_signal(signal.SIGTERM)
        code = job.wait()
    finally:
        watchdog.cancel()
        job.kill()
    assert code == interruption.EXIT_RESTART, said
    steps = set(re.findall(r"stopped at step (\d+) as asked", said))
    assert len(steps) == 1 and said.count("as asked") == 2, said
    assert (model_dir / f"ckpt-{steps.pop()}.index").exists()
