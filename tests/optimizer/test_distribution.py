"""The step does not depend on how the batch was cut: micro-steps, replicas, worker processes."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Iterator

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests import reference
from tests.optimizer import harness, multi_worker
from tests.optimizer.harness import both_kerases, keras3_row
from tests.reference import FLOAT32_TOLERANCE

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Two processes that import TensorFlow on a busy machine; they need about 20 s on an idle one.
WORKERS_TIMEOUT = 300


@keras3_row
def test_a_window_of_one_is_refused_as_keras_does(which: str, name: str) -> None:
    for make in (harness.PACKAGES[which].LANS, keras.optimizers.Adam):
        with pytest.raises(ValueError, match="an integer (>= 2|of at least 2)"):
            make(gradient_accumulation_steps=1)
    assert harness.make(which, name).gradient_accumulation_steps is None


@both_kerases
@pytest.mark.parametrize("mode", ["mirrored", "mirrored_eager"])
def test_slices_of_several_replicas_are_summed_before_the_norm(which: str, mode: str) -> None:
    start = [harness.single_values()[0]]
    run = harness.Run(which, "LANS", start, mode)
    single = harness.Run(which, "LANS", start)
    rows = harness.gradient_steps(start, 1)[0][0][:3]
    indices = ([4, 1, 4], [1, 1, 0])

    def step() -> None:
        replica = tf.distribute.get_replica_context().replica_id_in_sync_group
        slices = tf.IndexedSlices(
            tf.constant(rows), tf.gather(indices, replica), tf.constant([7, 5])
        )
        run._apply([slices])

    def distributed() -> None:
        harness.two_replicas().run(step)

    (tf.function(distributed) if mode == "mirrored" else distributed)()
    dense = np.zeros_like(start[0])
    for each in indices:
        np.add.at(dense, each, rows)
    single.step([dense])
    np.testing.assert_allclose(run.values()[0], single.values()[0], rtol=1e-6, atol=1e-7)


@both_kerases
def test_fit_on_two_replicas_is_fit_on_one(which: str) -> None:
    single = harness.make_model(which)
    with harness.two_replicas().scope():
        model = harness.make_model(which)
    for each in (single, model):
        harness.fit(each, 1)
    assert harness.number(model.optimizer.iterations) == 4
    for one, other in zip(single.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5)


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@pytest.fixture(scope="module", autouse=True)
def worker_processes(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[list[tuple[subprocess.Popen, pathlib.Path]]]:
    """Two workers, which train every case while the other tests of this file run."""
    folder = tmp_path_factory.mktemp("workers")
    addresses = [f"127.0.0.1:{port}" for port in free_ports(len(multi_worker.SHARES))]
    with contextlib.ExitStack() as stack:
        started = []
        for index in range(len(addresses)):
            task = {"type": "worker", "index": index}
            config = {"cluster": {"worker": addresses}, "task": task}
            result = folder / f"{index}.npz"
            log = stack.enter_context(result.with_suffix(".log").open("w"))
            process = subprocess.Popen(
                [sys.executable, "-m", multi_worker.__name__, str(result)],
                cwd=ROOT,
                env={**os.environ, "TF_CONFIG": json.dumps(config), "CUDA_VISIBLE_DEVICES": ""},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            started.append((process, result))
        yield started


@pytest.fixture(scope="module")
def workers(
    worker_processes: list[tuple[subprocess.Popen, pathlib.Path]],
) -> list[dict[str, np.ndarray]]:
    """What each worker ended with."""
    results = []
    for process, result in worker_processes:
        status = process.wait(WORKERS_TIMEOUT)
        assert status == 0, result.with_suffix(".log").read_text()[-4000:]
        results.append(dict(np.load(result)))
    return results


@pytest.mark.parametrize("case", multi_worker.CASES)
def test_two_worker_processes_are_one_replica(
    case: str, workers: list[dict[str, np.ndarray]]
) -> None:
    which, name, arguments = multi_worker.CASES[case]
    start = multi_worker.START
    run = harness.Run(which, name, start, "graph", learning_rate=0.01, **arguments)
    for step in range(len(multi_worker.STEPS)):
        parts = [multi_worker.part(worker, step) for worker in range(len(workers))]
        run.step([np.sum(each, axis=0, dtype=each[0].dtype) for each in zip(*parts, strict=True)])
    got = [[each[f"{case}/{index}"] for index in range(len(start) + 2)] for each in workers]
    harness.assert_equal(got[0], got[1])
    assert reference.relative_error(got[0][:-2], run.values(), start) <= FLOAT32_TOLERANCE
    optimizer = run.optimizer
    counts = [harness.number(each) for each in (optimizer.iterations, optimizer.skipped_steps)]
    assert [int(each) for each in got[0][-2:]] == counts
    assert counts == ([2, 1] if arguments else [5, 1])
