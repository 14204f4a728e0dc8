"""Stock Model Garden jobs that are killed and started again with the same command.

One worker: the restarted run is held against two that nothing interrupted, which must agree with
each other to the bit for that to say anything. Two workers: when one has died the other is killed,
as a launcher does, and both start again.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from benchmarks import exactness_error
from official_bert import launch
from tfrecords import schema
from tfrecords.manifest import Manifest

STEPS, LOOP = 8, 2
# Distinct kills of one worker: after each loop but the first, which no checkpoint comes before.
MOST_TRIALS = STEPS // LOOP - 1
_BATCH = 16
_SECONDS = 1800.0  # until a job that hangs is given up
_ROOT = pathlib.Path(__file__).resolve().parents[1]
_JOB = (sys.executable, "-m", "benchmarks.exactness_stock_job")
CRASHED, HUNG, ENDED = "crashed", "hung", "ended"
_OUTCOMES = {0: ENDED, None: HUNG}
_EXCEPTION = re.compile(r"^ *((?:\w+\.)*\w+(?:Error|Exception): .*)$", re.MULTILINE)
# Of a checkpoint, what only counts how often it was saved.
_SAVES = "save_counter"
_SLOT = ".OPTIMIZER_SLOT"


def arguments(manifest: Manifest, model_dir: pathlib.Path, workers: int) -> list[str]:
    """The flags of `official.nlp.train` for a small run of its pretraining experiment."""
    (seq_length,) = manifest.seq_lengths
    words = pathlib.Path(manifest.vocabulary_file).read_text(encoding="utf-8").splitlines()
    encoder = {
        "vocab_size": len(words),
        "hidden_size": 32,
        "num_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": seq_length,
    }
    head = {"inner_dim": 32, "num_classes": 2, "dropout_rate": 0.1, "name": "next_sentence"}
    data = {
        "input_path": str(pathlib.Path(manifest.directory, f"{schema.TRAIN}-seq*")),
        "global_batch_size": _BATCH,
        "seq_length": seq_length,
        "max_predictions_per_seq": manifest.max_predictions_per_seq(seq_length),
        "use_v2_feature_names": True,
        "seed": 1,
        "deterministic": True,
    }
    override = {
        "task": {
            "model": {"encoder": {"type": "bert", "bert": encoder}, "cls_heads": [head]},
            "train_data": data,
        },
        "trainer": {
            "train_steps": STEPS,
            "steps_per_loop": LOOP,
            "checkpoint_interval": LOOP,
            "summary_interval": LOOP,
            "optimizer_config": {
                "learning_rate": {"polynomial": {"decay_steps": STEPS}},
                "warmup": {"polynomial": {"warmup_steps": LOOP, "power": 1.0}},
            },
        },
        "runtime": {
            "distribution_strategy": "one_device" if workers == 1 else "multi_worker_mirrored",
            "num_gpus": 0,
        },
    }
    return [
        *("--experiment=bert/pretraining", "--mode=train", f"--model_dir={model_dir}"),
        # Else a kill soon after a save leaves no checkpoint, and the job begins anew.
        "--enable_async_checkpointing=false",
        f"--params_override={json.dumps(override)}",
    ]


def run(
    flags: Sequence[str],
    log_dir: pathlib.Path,
    workers: int,
    victim: int | None = None,
    loops: int = 0,
) -> int | None:
    """Runs all workers to their end, or until the first of them has ended otherwise.

    Args:
        flags: of each.
        log_dir: for worker-<i>.log.
        workers: how many.
        victim: which of them dies.
        loops: when.

    Returns:
        The exit code of the first worker that did not end well, 0 where all did, None where they
        were given up.
    """
    log_dir.mkdir(parents=True)
    environments: Sequence[dict[str, str]] = [{}]
    if workers > 1:
        environments = launch.cluster_environments(launch.free_ports(workers))
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(workers))
        waiting = []
        for number, environment in enumerate(environments):
            log = stack.enter_context(open(log_dir / f"worker-{number}.log", "w"))
            loops_here = loops if number == victim else 0
            process = subprocess.Popen(
                [*_JOB, str(loops_here), *flags],
                cwd=_ROOT,
                env=os.environ | environment,
                stdout=log,
                stderr=log,
            )
            stack.callback(process.kill)  # before the pool is left, which waits for it
            waiting.append(pool.submit(process.wait, _SECONDS))
        for each in concurrent.futures.as_completed(waiting):
            try:
                code = each.result()
            except subprocess.TimeoutExpired:
                return None
            if code:
                return code
    return 0


def last_error(log_dir: pathlib.Path) -> str:
    """The last exception in the log of the first worker that has one, cut to its first line."""
    for path in sorted(log_dir.glob("worker-*.log")):
        named = _EXCEPTION.findall(path.read_text(errors="replace"))
        if named:
            return named[-1][:300]
    return ""


def tensors(model_dir: pathlib.Path) -> dict[str, np.ndarray]:
    """All numbers in a run's last checkpoint, by name."""
    reader = tf.train.load_checkpoint(str(model_dir))
    found = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    return {
        name: np.asarray(each)
        for name, each in found.items()
        if not isinstance(each, bytes) and not name.startswith(_SAVES)
    }


def compared(found: pathlib.Path, expected: pathlib.Path) -> dict[str, Any]:
    """Whether two runs ended with the same bits, and how far apart their model weights are."""
    ours, theirs = tensors(found), tensors(expected)
    equal = ours.keys() == theirs.keys() and all(
        ours[name].tobytes() == theirs[name].tobytes() for name in theirs
    )
    names = [name for name in theirs if name.startswith("model/") and _SLOT not in name]
    parts = [np.subtract(ours[name], theirs[name], dtype=np.float64) for name in names]
    whole = exactness_error.norm([theirs[name] for name in names])
    return {
        "bit_equal": equal,
        "relative_l2_difference": exactness_error.norm(parts) / whole,
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kill:
    """Who of how many workers is killed, and after how many loops."""

    workers: int
    victim: int
    loops: int

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Kill:
        """That of a finished trial."""
        return cls(workers=row["workers"], victim=row["killed_worker"], loops=row["after_loop"])


def kills(workers: int, trials: int) -> list[Kill]:
    """So many kills of jobs of so many workers, no two alike: each worker in turn, loop by loop.

    A job is a deterministic program, so that the same kill again would only say the same again.
    """
    if trials > MOST_TRIALS:
        raise ValueError(f"kills() got {trials} trials: expected at most {MOST_TRIALS}")
    return [
        Kill(workers=workers, victim=trial % workers, loops=2 + trial // workers)
        for trial in range(trials)
    ]


def distinct(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Finished trials, the first of each kill."""
    found: dict[Kill, dict[str, Any]] = {}
    for row in rows:
        found.setdefault(Kill.of_row(row), row)
    return list(found.values())


def missing(known: Sequence[Mapping[str, Any]], workers: int, trials: int) -> list[Kill]:
    """Those of `kills` that are not among finished trials."""
    done = {Kill.of_row(row) for row in known}
    return [each for each in kills(workers, trials) if each not in done]


def one_trial(
    manifest: Manifest,
    folder: pathlib.Path,
    kill: Kill,
    control: Callable[[int], pathlib.Path],
) -> dict[str, Any]:
    """A job killed once, then started again.

    Args:
        manifest: what it reads.
        folder: for the run and its logs.
        kill: who is killed, and when.
        control: the folder of the run of so many workers that nothing interrupted.
    """
    workers = kill.workers
    flags = arguments(manifest, folder / "run", workers)
    died = run(flags, folder / "killed", workers, kill.victim, kill.loops)
    if died != -signal.SIGKILL:
        raise RuntimeError(f"the stock job ended with {died}: {last_error(folder / 'killed')}")
    checkpoint = tf.train.latest_checkpoint(str(folder / "run"))
    if checkpoint is None:
        raise RuntimeError("the stock job left no checkpoint to start again from")
    code = run(flags, folder / "restarted", workers)
    outcome = _OUTCOMES.get(code, CRASHED)
    row = {
        "workers": workers,
        "killed_worker": kill.victim,
        "after_loop": kill.loops,
        "restarted_from": pathlib.Path(checkpoint).name,
        "restarted": outcome,
    }
    if outcome != ENDED:
        return row | {"bit_equal": False, "error": last_error(folder / "restarted")}
    return row | compared(folder / "run", control(workers))


def measure(
    manifest: Manifest,
    folder: pathlib.Path,
    trials: int,
    known: Sequence[dict[str, Any]],
    keep: Callable[[list[dict[str, Any]]], None],
) -> list[dict[str, Any]]:
    """All trials of one and of two workers, those that are known already aside.

    Args:
        manifest: what is read.
        folder: for runs.
        trials: of each number of workers, at most `MOST_TRIALS`.
        known: rows of an earlier call; of the same kill the first counts.
        keep: is given all rows after each new one.
    """
    controls: dict[int, pathlib.Path] = {}

    def control(workers: int) -> pathlib.Path:
        if workers not in controls:
            runs = [folder / f"control-{workers}-{number}" for number in range(2)]
            for path in runs:
                flags = arguments(manifest, path / "run", workers)
                if run(flags, path / "log", workers):
                    raise RuntimeError(f"a stock job failed: {last_error(path / 'log')}")
            if not compared(runs[0] / "run", runs[1] / "run")["bit_equal"]:
                raise RuntimeError("two stock runs that nothing interrupted differ")
            controls[workers] = runs[0] / "run"
        return controls[workers]

    rows = distinct(known)
    for workers in (1, 2):
        for kill in missing(rows, workers, trials):
            control(workers)  # a crash after a kill counts only where the job ends without one
            place = folder / f"workers-{workers}-{kill.victim}-after-{kill.loops}"
            rows.append(one_trial(manifest, place, kill, control))
            keep(rows)
    return rows
