"""A run killed with SIGKILL and started again ends, to the bit, as if nothing had happened.

A run outlives a chain of kills, one a start, and only the last start may end. `make test` runs
three kills; `make test-kill` runs all of them.
"""

import dataclasses
import os
import pathlib
import random
import time
from collections.abc import Callable

import pytest
import yaml

from tests.bert import kill_harness
from tests.bert.conftest import LONG, SHORT
from tests.bert.kill_harness import (
    After,
    AtTime,
    Before,
    HalfFile,
    HalfMerged,
    HalfRow,
    Job,
    KillPoint,
    Within,
)

SWEEP = "KILL_SWEEP"

ENCODER = "task.model.encoder.bert"
OVERRIDES = {
    f"{ENCODER}.num_layers": 1,
    f"{ENCODER}.dropout_rate": 0.1,
    f"{ENCODER}.attention_dropout_rate": 0.1,
    "trainer.train_steps": 16,
    "trainer.max_to_keep": 3,
}
CUT = {"task.micro_batch_size": 8}
ON_TWO = {"runtime.distribution_strategy": "multi_worker_mirrored"}

TRAINER = "official_bert.trainer:Trainer"
RUN_FILES = "official_bert.run_files:RunFiles"
CHECKPOINT = "tensorflow.python.checkpoint.checkpoint:Checkpoint"
MANAGEMENT = "tensorflow.python.checkpoint.checkpoint_management"
MANAGER = f"{MANAGEMENT}:CheckpointManager"
FILE_IO = "tensorflow.python.lib.io.file_io"
GFILE = "tfrecords.files:tf.io.gfile"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """A run that some chain of kills is for.

    Attributes:
      overrides: config fields beside `OVERRIDES`.
      workers: how many train.
      phases: 2 for `pretrain`, whose phases are cut short.
    """

    overrides: dict[str, object] = dataclasses.field(default_factory=dict)
    workers: int = 1
    phases: int = 1


KINDS = {
    "whole batches": Kind(),
    "micro-batches": Kind(overrides=CUT),
    "two phases": Kind(phases=2, overrides=CUT | {"trainer.train_steps": 4}),
    "two workers": Kind(workers=2, overrides=CUT | ON_TWO),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chain:
    """A run and all the kills that it has to outlive.

    Attributes:
      kind: a name in `KINDS`.
      kills: by name, one a start; the start after the last of them runs to its end.
    """

    kind: str
    kills: dict[str, KillPoint]


def in_a_step(loop: int, seed: int, worker: int = 0) -> KillPoint:
    """In a loop of two steps, at a time drawn by `seed`; the first two tell how long it takes."""
    fraction = random.Random(seed).random()
    return Within(owner=TRAINER, name="train", number=loop, fraction=fraction, worker=worker)


def any_time(seed: int, worker: int = 0) -> KillPoint:
    return AtTime(fraction=random.Random(seed).uniform(0.1, 0.8), worker=worker)


def half_file(name: str) -> KillPoint:
    return HalfFile(owner=GFILE, name="rename", argument=name)


def parts_written(save: int, worker: int = 0) -> KillPoint:
    """In a save: all is in the temporary folder, nothing beside it."""
    ops = "tensorflow.python.ops.gen_io_ops"
    return Before(owner=ops, name="merge_v2_checkpoints", number=save, worker=worker)


WHOLE, MICRO, PHASES, TWO = KINDS
CHAINS = {
    "a save and a step": Chain(
        kind=MICRO,
        kills={"in save 2, parts written": parts_written(2), "in loop 3": in_a_step(3, seed=9)},
    ),
    "a peer": Chain(kind=TWO, kills={"peer in loop 3": in_a_step(3, seed=5, worker=1)}),
    "the start": Chain(
        kind=WHOLE,
        kills={
            "params.yaml half-written": half_file("params.yaml"),
            "vocab.txt half-written": half_file("vocab.txt"),
            "tracing step 1": Before(owner="official_bert.global_batch", name="apply"),
            "in the first save": parts_written(1),
        },
    ),
    "steps": Chain(
        kind=MICRO,
        kills={
            "in loop 3": in_a_step(3, seed=3),
            "restored, before the first step": After(owner=RUN_FILES, name="begin"),
            "in loop 3 of the restart": in_a_step(3, seed=10),
            "half a row of metrics": HalfRow(file="metrics.jsonl", number=2),
            "half a row of speeds": HalfRow(file="speed.jsonl"),
            "in the last loop": in_a_step(3, seed=6),
        },
    ),
    "saves": Chain(
        kind=WHOLE,
        kills={
            "before save 2": Before(owner=CHECKPOINT, name="_write", number=2),
            "metrics.jsonl half cut back": half_file("metrics.jsonl"),
            "data merged, no index": HalfMerged(number=2),
            "whole, the list half-written": HalfFile(
                owner=FILE_IO, name="rename_v2", argument="checkpoint", number=3
            ),
            "listed, before the sweep": Before(owner=MANAGER, name="_sweep"),
            "in the sweep": After(owner=MANAGEMENT, name="_delete_file_if_exists"),
        },
    ),
    "evaluations": Chain(
        kind=WHOLE,
        kills={
            "between two batches": After(owner=TRAINER, name="eval_reduce"),
            "before its row": Before(owner=RUN_FILES, name="add_evaluation"),
            "half its row": HalfRow(file="evaluations.jsonl"),
            "in a batch": Within(owner=TRAINER, name="evaluate", number=3, fraction=0.3),
            "after its row": After(owner=RUN_FILES, name="add_evaluation"),
        },
    ),
    "the end": Chain(
        kind=MICRO,
        kills={
            "before the last save": Before(owner=CHECKPOINT, name="_write", argument="ckpt-16"),
            "in the last sweep": After(owner=MANAGEMENT, name="_delete_file_if_exists", number=1),
            "before the model card": Before(owner="official_bert.model_card", name="write"),
            "the model card half-written": half_file("README.md"),
        },
    ),
    "the last sweep done, not recorded": Chain(
        kind=MICRO, kills={"at save 8": After(owner=MANAGER, name="_sweep", number=8)}
    ),
    "phases": Chain(
        kind=PHASES,
        kills={
            "after phase 1's result": After(owner="official_bert.runner", name="run"),
            "phase 1 restored into phase 2": After(
                owner="official_bert.checkpoints", name="restore_model"
            ),
            "before phase 2's first save": Before(
                owner=CHECKPOINT, name="_write", argument="phase2"
            ),
        },
    ),
    "any time": Chain(kind=MICRO, kills={f"time {seed}": any_time(seed) for seed in range(11, 14)}),
    "any time of two phases": Chain(
        kind=PHASES, kills={f"time {seed}": any_time(seed) for seed in range(14, 17)}
    ),
    "two workers": Chain(
        kind=TWO,
        kills={
            "chief in loop 3": in_a_step(3, seed=21),
            "peer in save 1 of the restart": parts_written(1, worker=1),
            "peer between two batches": After(owner=TRAINER, name="eval_reduce", worker=1),
            "chief before an evaluation's row": Before(owner=RUN_FILES, name="add_evaluation"),
        },
    ),
    "two workers, others": Chain(
        kind=TWO,
        kills={
            "peer before the first step": Before(owner=TRAINER, name="train", worker=1),
            "chief in save 2": parts_written(2),
            "peer at any time": any_time(22, worker=1),
        },
    ),
}
FEW = ("a save and a step", "a peer")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished:
    """The uninterrupted run of a kind."""

    model_dir: pathlib.Path
    seconds: float


@pytest.fixture(scope="module")
def job(shards, tiny_yaml, tmp_path_factory) -> Callable[[Kind, pathlib.Path], Job]:
    """Makes the command of a kind of run."""
    kill_harness.start_server()
    root = tmp_path_factory.mktemp("recipes")
    recipes = []
    for number, length in enumerate((SHORT, LONG), start=1):
        recipe = yaml.safe_load(pathlib.Path(tiny_yaml).read_text())
        for name in ("train_data", "validation_data"):
            recipe["task"][name]["seq_length"] = length
        recipes.append(root / f"phase{number}.yaml")
        recipes[-1].write_text(yaml.safe_dump(recipe))

    def make(kind: Kind, model_dir: pathlib.Path) -> Job:
        data = {f"task.{name}.input_path": shards for name in ("train_data", "validation_data")}
        pairs = OVERRIDES | kind.overrides | data
        override = ",".join(f"{name}={value}" for name, value in pairs.items())
        arguments = [f"--params_override={override}", f"--model_dir={model_dir}"]
        if kind.phases == 1:
            return Job(
                command="train",
                arguments=(f"--config_file={recipes[0]}", *arguments),
                workers=kind.workers,
            )
        phases = [f"--phase{number}={path}" for number, path in enumerate(recipes, start=1)]
        return Job(command="pretrain", arguments=(*phases, *arguments), workers=kind.workers)

    return make


@pytest.fixture(scope="module")
def uninterrupted(job, tmp_path_factory) -> Callable[[str], Finished]:
    """Runs a kind of run without interruption, the first time that it is asked for."""
    known: dict[str, Finished] = {}

    def find(kind: str) -> Finished:
        if kind not in known:
            root = tmp_path_factory.mktemp("uninterrupted")
            started = time.monotonic()
            ends(job(KINDS[kind], root / "run"), root / "log")
            known[kind] = Finished(model_dir=root / "run", seconds=time.monotonic() - started)
        return known[kind]

    return find


def ends(job: Job, folder: pathlib.Path) -> None:
    """Runs to the end, which is a good one."""
    codes = kill_harness.run(job, folder)
    assert codes == [0] * job.workers, logs(job, folder)


def logs(job: Job, folder: pathlib.Path) -> str:
    paths = [kill_harness.log_path(folder, worker) for worker in range(job.workers)]
    return "\n".join(f"{path}:\n{path.read_text(errors='replace')[-4000:]}" for path in paths)


@pytest.mark.parametrize("name", CHAINS if os.environ.get(SWEEP) else FEW)
def test_a_killed_run_ends_as_the_uninterrupted_one(name, job, uninterrupted, tmp_path) -> None:
    chain = CHAINS[name]
    kind = KINDS[chain.kind]
    expected = uninterrupted(chain.kind)
    this = job(kind, tmp_path / "run")
    for number, (title, point) in enumerate(chain.kills.items(), start=1):
        if isinstance(point, AtTime):
            point = dataclasses.replace(point, seconds=expected.seconds)
        folder = tmp_path / f"start-{number}"
        codes = kill_harness.run(this, folder, point)
        assert codes[point.worker] == kill_harness.KILLED, f"{title}: {logs(this, folder)}"
        (where,) = kill_harness.killed_at(folder, point.worker)
        print(f"{name}: {title}: worker {point.worker} killed {where}")
    ends(this, tmp_path / "restart")
    for phase in ("",) if kind.phases == 1 else ("phase1", "phase2"):
        found = kill_harness.differences(tmp_path / "run" / phase, expected.model_dir / phase)
        assert not found, f"{phase}: {found}"
