"""The examples run as their users would run them, and do what they say."""

import concurrent.futures
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator

import keras_hub
import nbclient
import nbformat
import numpy as np
import pytest
import tensorflow as tf

import tfrecords
from tests.examples import BATCH, EXAMPLES, read

NOTEBOOK = EXAMPLES / "tour.ipynb"
REPORTED = 40
# Processes that import TensorFlow and compile, on a busy machine.
TIMEOUT = 900

PRETRAINING = {
    "bert": ["--steps=160", "--output={run}"],
    "mirrored": ["--steps=160", "--distribution=mirrored", "--cpu_devices=2"],
    "jax": ["--steps=160", "--distribution=data_parallel", "--output={run}"],
    "roformer_v2": ["--steps=160", "--model=roformer_v2", "--output={run}"],
}
ENVIRONMENT = {
    "jax": {"KERAS_BACKEND": "jax", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
}
LOOP_STEPS, LOOP_CHECKPOINT = 7, 4

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def unigram(example_shards: pathlib.Path) -> float:
    """The held-out cross entropy of the best answer that does not look at the sentence."""

    def answers(split: str) -> np.ndarray:
        batches = read(example_shards, split, training=False).as_numpy_iterator()
        return np.concatenate([y[weight > 0] for _, y, weight in batches])

    vocab_size = tfrecords.Manifest.load(example_shards).vocab_size
    counts = np.bincount(answers("train"), minlength=vocab_size) + 1.0
    entropy = -np.log(counts / counts.sum())[answers("eval")].mean()
    assert 1 < entropy < math.log(vocab_size)
    return float(entropy)


def example(name: str, *arguments: str, **environment: str) -> str:
    """What the example prints."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments],
        env={**os.environ, "KERAS_BACKEND": "tensorflow", "TF_CPP_MIN_LOG_LEVEL": "2"}
        | environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def pretrained(name: str, shards: pathlib.Path, run: pathlib.Path) -> str:
    sizes = ["--num_layers=2", "--hidden_dim=64", "--num_heads=2", "--dropout=0"]
    training = [f"--batch_size={BATCH}", f"--report_every={REPORTED}", "--learning_rate=0.02"]
    chosen = [argument.format(run=run) for argument in PRETRAINING[name]]
    arguments = [f"--input_dir={shards}", *sizes, *training, *chosen]
    return example("keras_hub_pretrain", *arguments, **ENVIRONMENT.get(name, {}))


def looped(shards: pathlib.Path, run: pathlib.Path, micro_batch_size: int) -> str:
    options = {
        "input_dir": shards,
        "model_dir": run,
        "steps": LOOP_STEPS,
        "batch_size": BATCH,
        "micro_batch_size": micro_batch_size,
        "checkpoint_every": LOOP_CHECKPOINT,
        "hidden_dim": 32,
        "learning_rate": 0.02,
    }
    return example("custom_loop", *(f"--{name}={value}" for name, value in options.items()))


def resumed(shards: pathlib.Path, run: pathlib.Path, before: pathlib.Path) -> str:
    """The same command in a folder that looks as if it was killed after its first checkpoint."""
    run.mkdir()
    for path in before.glob("ckpt-1.*"):
        shutil.copy(path, run)
    (run / "checkpoint").write_text('model_checkpoint_path: "ckpt-1"\n')
    return looped(shards, run, BATCH // 4)


def executed(folder: pathlib.Path) -> nbformat.NotebookNode:
    folder.mkdir()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client = nbclient.NotebookClient(
        notebook, timeout=TIMEOUT, resources={"metadata": {"path": str(folder)}}
    )
    return client.execute(env={**os.environ, "TMPDIR": str(folder), "IPYTHONDIR": str(folder)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Where the runs are."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def started(
    example_shards: pathlib.Path, folder: pathlib.Path
) -> Iterator[dict[str, concurrent.futures.Future]]:
    """Every example, two at a time, while the tests wait for one after the other."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        runs = {"notebook": pool.submit(executed, folder / "notebook")}
        for name in PRETRAINING:
            runs[name] = pool.submit(pretrained, name, example_shards, folder / name)
        for name, micro_batch_size in (("loop", BATCH // 4), ("whole", BATCH)):
            runs[name] = pool.submit(looped, example_shards, folder / name, micro_batch_size)
        yield runs
        pool.shutdown(cancel_futures=True)


def reported(output: str, name: str) -> list[float]:
    """A metric of each of Keras's epochs."""
    return [float(value) for value in re.findall(rf"\b{name}: ([\d.]+)", output.split("held")[0])]


def held_out(output: str) -> float:
    (value,) = re.findall(r"held out: cross entropy ([\d.]+)", output)
    return float(value)


@slow
@pytest.mark.parametrize("name", PRETRAINING)
def test_pretraining_learns_from_the_context(
    name: str, started: dict[str, concurrent.futures.Future], unigram: float
) -> None:
    output = started[name].result()
    losses = reported(output, "loss")
    assert losses == sorted(losses, reverse=True) and len(losses) == 160 // REPORTED
    assert losses[0] > unigram
    assert held_out(output) < unigram - 0.1
    devices = 2 if name in ("mirrored", "jax") else 1
    assert f": {devices} devices, {BATCH // devices} examples each" in output


@slow
def test_the_loss_is_that_of_the_words_alone(
    started: dict[str, concurrent.futures.Future],
) -> None:
    """The metric is sum(w l) / sum(w) over an epoch; the loss is that of each step, averaged."""
    output = started["bert"].result()
    # The masked words of a batch vary by a few in a hundred.
    np.testing.assert_allclose(
        reported(output, "loss"), reported(output, "cross_entropy"), rtol=2e-3
    )


@slow
def test_two_replicas_train_as_one(started: dict[str, concurrent.futures.Future]) -> None:
    one, two = (started[name].result() for name in ("bert", "mirrored"))
    # Two orders of summation, float32, and printed to four places.
    np.testing.assert_allclose(reported(two, "loss"), reported(one, "loss"), atol=5e-3)
    assert held_out(two) == pytest.approx(held_out(one), abs=5e-3)


@slow
@pytest.mark.parametrize("name", ["bert", "jax", "roformer_v2"])
def test_the_preset_is_the_trained_model(
    name: str,
    started: dict[str, concurrent.futures.Future],
    example_shards: pathlib.Path,
    folder: pathlib.Path,
) -> None:
    """Also that of the JAX backend, loaded here on TensorFlow."""
    output = started[name].result()
    model = keras_hub.models.MaskedLM.from_preset(str(folder / name))
    weights = sum(path.stat().st_size for path in (folder / name).glob("*.weights.h5"))
    # Float32 and some room for HDF5's own tables; with the moments it would be three times as much.
    assert weights < 1.5 * 4 * model.count_params()
    tokenizer = model.preprocessor.tokenizer
    assert tokenizer.vocabulary_size() == tfrecords.Manifest.load(example_shards).vocab_size
    np.testing.assert_array_equal(tokenizer("Thé CLASS"), tokenizer("the class"))
    model.preprocessor = None
    total = words = 0.0
    for x, y, weight in read(example_shards, "eval"):
        logits = model({name: tf.cast(x[name], each.dtype) for name, each in model.input.items()})
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
        total += float(tf.reduce_sum(losses * weight))
        words += float(tf.reduce_sum(weight))
    # Printed to four places, and JAX's sums are not TensorFlow's.
    assert total / words == pytest.approx(held_out(output), abs=2e-4)


def steps_and_losses(output: str) -> dict[str, str]:
    return dict(re.findall(r"^step (\d+): loss ([\d.]+)$", output, flags=re.MULTILINE))


@slow
def test_the_loop_accumulates_the_whole_batch(
    started: dict[str, concurrent.futures.Future],
) -> None:
    parts, whole = (steps_and_losses(started[name].result()) for name in ("loop", "whole"))
    assert list(parts) == list(whole) == [str(step) for step in range(1, LOOP_STEPS + 1)]
    losses = [float(value) for value in parts.values()]
    assert losses[-1] < losses[0]
    # Two orders of summation, float32, a few updates.
    np.testing.assert_allclose(losses, [float(value) for value in whole.values()], rtol=1e-5)


@slow
def test_the_loop_goes_on_where_it_stopped(
    started: dict[str, concurrent.futures.Future],
    example_shards: pathlib.Path,
    folder: pathlib.Path,
) -> None:
    straight = steps_and_losses(started["loop"].result())
    output = resumed(example_shards, folder / "resumed", folder / "loop")
    assert f"resumed after step {LOOP_CHECKPOINT}\n" in output
    rest = list(straight.items())[LOOP_CHECKPOINT:]
    assert list(steps_and_losses(output).items()) == rest  # every digit of a float32


@slow
def test_the_notebook_runs_from_top_to_bottom(
    started: dict[str, concurrent.futures.Future],
) -> None:
    cells = [cell for cell in started["notebook"].result().cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    printed = "".join(output.text for output in outputs if output.get("name") == "stdout")
    before, after = re.search(r"cross entropy: ([\d.]+), then ([\d.]+)", printed).groups()
    assert float(after) < float(before) - 1.5
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert len(re.findall(r"\[MASK\].*\n    (?:\S+ 0\.\d\d(?:, |\n)){5}", printed)) == 3


def test_the_notebook_is_kept_without_outputs() -> None:
    assert NOTEBOOK.stat().st_size < 100_000
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
