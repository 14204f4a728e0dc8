"""The examples run as their users would run them, and do what they say."""

import concurrent.futures
import importlib.util
import math
import os
import pathlib
import pydoc_data.topics
import re
import shlex
import shutil
import subprocess
import sys
import types
from collections.abc import Callable, Iterator

import keras
import keras_hub
import nbclient
import nbformat
import numpy as np
import pytest
import tensorflow as tf

import tf_lans
import tfrecords
import tfrecords.build
import tfrecords.vocabulary

ROOT = pathlib.Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "tour.ipynb"
LENGTH, BATCH, REPORTED = 32, 64, 40
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


def load(name: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """CPython's language reference, masked when it is read."""
    root = tmp_path_factory.mktemp("examples")
    topics = "\n".join(text for _, text in sorted(pydoc_data.topics.topics.items()))
    lines = [line.strip() for line in topics.split("\n") if line.strip()]
    documents = ["\n".join(lines[start : start + 15]) for start in range(0, len(lines), 15)]
    text, vocabulary, folder = root / "text.txt", root / "vocab.txt", root / "shards"
    text.write_text("\n\n".join(documents), encoding="utf-8")
    assert not tfrecords.vocabulary.main(
        [f"--input={text}", "--vocab_size=1024", f"--output={vocabulary}"]
    )
    options = {
        "input": text,
        "vocab_file": vocabulary,
        "output_dir": folder,
        "seq_lengths": LENGTH,
        "records": "dynamic",
        "num_shards": 4,
        "num_processes": 1,
        "eval_fraction": 0.1,
    }
    assert not tfrecords.build.main([f"--{name}={value}" for name, value in options.items()])
    return folder


def read(shards: pathlib.Path, split: str, **options: object) -> tf.data.Dataset:
    options = {"seq_length": LENGTH, "global_batch_size": BATCH, **options}
    return tfrecords.read(shards, split=split, features="keras_hub", **options)


@pytest.fixture(scope="module")
def unigram(shards: pathlib.Path) -> float:
    """The held-out cross entropy of the best answer that does not look at the sentence."""

    def answers(split: str) -> np.ndarray:
        batches = read(shards, split, training=False).as_numpy_iterator()
        return np.concatenate([y[weight > 0] for _, y, weight in batches])

    vocab_size = tfrecords.Manifest.load(shards).vocab_size
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
    shards: pathlib.Path, folder: pathlib.Path
) -> Iterator[dict[str, concurrent.futures.Future]]:
    """Every example, two at a time, while the tests wait for one after the other."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        runs = {"notebook": pool.submit(executed, folder / "notebook")}
        for name in PRETRAINING:
            runs[name] = pool.submit(pretrained, name, shards, folder / name)
        for name, micro_batch_size in (("loop", BATCH // 4), ("whole", BATCH)):
            runs[name] = pool.submit(looped, shards, folder / name, micro_batch_size)
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
    shards: pathlib.Path,
    folder: pathlib.Path,
) -> None:
    """Also that of the JAX backend, loaded here on TensorFlow."""
    output = started[name].result()
    model = keras_hub.models.MaskedLM.from_preset(str(folder / name))
    weights = sum(path.stat().st_size for path in (folder / name).glob("*.weights.h5"))
    # Float32 and some room for HDF5's own tables; with the moments it would be three times as much.
    assert weights < 1.5 * 4 * model.count_params()
    tokenizer = model.preprocessor.tokenizer
    assert tokenizer.vocabulary_size() == tfrecords.Manifest.load(shards).vocab_size
    np.testing.assert_array_equal(tokenizer("Thé CLASS"), tokenizer("the class"))
    model.preprocessor = None
    total = words = 0.0
    for x, y, weight in read(shards, "eval"):
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
    started: dict[str, concurrent.futures.Future], shards: pathlib.Path, folder: pathlib.Path
) -> None:
    straight = steps_and_losses(started["loop"].result())
    output = resumed(shards, folder / "resumed", folder / "loop")
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


@pytest.fixture(scope="module")
def pretraining() -> types.ModuleType:
    return load("keras_hub_pretrain")


def tiny(shards: pathlib.Path) -> keras.Model:
    """A model without biases: that of attention's keys has no gradient but rounding noise."""
    keras.utils.set_random_seed(0)
    vocabulary_size = tfrecords.Manifest.load(shards).vocab_size
    backbone = keras_hub.models.RoformerV2Backbone(
        vocabulary_size, 1, 2, 16, 32, head_size=8, dropout=0.0
    )
    return keras_hub.models.RoformerV2MaskedLM(backbone)


def compiled(model: keras.Model, **loss_arguments: str) -> keras.Model:
    model.compile(
        optimizer=tf_lans.LANS(0.02),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True, **loss_arguments),
        weighted_metrics=[],
        jit_compile=False,
    )
    return model


@pytest.fixture
def uneven(pretraining: types.ModuleType, shards: pathlib.Path) -> Callable:
    """One batch whose second half has no word to guess; with or without the scaling."""

    def make(scaled: bool) -> tf.data.Dataset:
        def thin(x: dict, y: tf.Tensor, weight: tf.Tensor) -> tuple:
            keep = tf.concat([tf.ones([8, 1]), tf.zeros([24, 1])], 0)
            return x, y, weight * keep

        batch = read(shards, "train", global_batch_size=32).take(1).map(thin)
        batch = batch.map(pretraining.whole_batch_mean) if scaled else batch
        return pretraining.for_model(tiny(shards), batch)

    return make


def trained(model: keras.Model, batch: tf.data.Dataset) -> float:
    return model.fit(batch, epochs=1, shuffle=False, verbose=0).history["loss"][0]


def test_the_scaled_loss_is_the_mean_over_the_words_of_the_global_batch(
    uneven: Callable, shards: pathlib.Path
) -> None:
    ((x, y, weight),) = uneven(scaled=False)
    logits = np.asarray(tiny(shards)(x), np.float64)
    log_sums = np.log(np.exp(logits).sum(-1))
    losses = log_sums - np.take_along_axis(logits, y.numpy()[..., None], -1)[..., 0]
    expected = (losses * weight.numpy()).sum() / weight.numpy().sum()

    one = trained(compiled(tiny(shards)), uneven(scaled=True))
    keras_mean = trained(
        compiled(tiny(shards), reduction="mean_with_sample_weight"), uneven(scaled=False)
    )
    with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
        two = trained(compiled(tiny(shards)), uneven(scaled=True))
        keras_mean_of_two = trained(
            compiled(tiny(shards), reduction="mean_with_sample_weight"), uneven(scaled=False)
        )
    assert one == pytest.approx(expected, rel=1e-5)
    assert two == pytest.approx(expected, rel=1e-5)
    assert keras_mean == pytest.approx(expected, rel=1e-5)
    # The second replica has no words at all and counts as much as the first.
    assert keras_mean_of_two == pytest.approx(expected / 2, rel=1e-5)


def test_the_scale_of_the_loss_does_not_change_the_update(
    uneven: Callable, shards: pathlib.Path
) -> None:
    scaled, plain = compiled(tiny(shards)), compiled(tiny(shards))
    start = plain.get_weights()
    losses = [trained(scaled, uneven(scaled=True)), trained(plain, uneven(scaled=False))]
    assert losses[0] > 2 * losses[1]
    for first, one, other in zip(start, scaled.get_weights(), plain.get_weights(), strict=True):
        assert (one != first).any()
        # Float32: the gradients are rounded after different factors.
        np.testing.assert_allclose(one - first, other - first, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input_dir=nowhere"], "no manifest.json in nowhere"),
        (["--seq_length=48"], "48"),
        (["--steps=30", "--report_every=20"], "--steps=30 is no multiple of --report_every=20"),
        (["--warmup_ratio=0.8"], "--warmup_ratio=0.8 and --constant_ratio=0.2735 are more"),
        (["--hidden_dim=10", "--num_heads=4"], "--hidden_dim=10 is no multiple of --num_heads=4"),
        (["--model=gpt"], "--model=gpt"),
        (["--distribution=data_parallel"], "set KERAS_BACKEND=jax"),
        (["--distribution=mirrored", "--batch_size=33"], "a multiple of their number, such as 34"),
        (["--output={full}"], "is not empty"),
    ],
)
def test_pretraining_explains_what_it_cannot_do(
    arguments: list[str],
    message: str,
    pretraining: types.ModuleType,
    shards: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "kept").write_text("kept")
    given = [argument.format(full=tmp_path) for argument in arguments]
    assert pretraining.main([f"--input_dir={shards}", *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input_dir=nowhere"], "no manifest.json in nowhere"),
        (["--batch_size=64", "--micro_batch_size=48"], "--batch_size=64 is no multiple of"),
    ],
)
def test_the_loop_explains_what_it_cannot_do(
    arguments: list[str],
    message: str,
    shards: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    given = [f"--input_dir={shards}", f"--model_dir={run}", *arguments]
    assert load("custom_loop").main(given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert not run.exists()


def documented() -> list[tuple[str, list[str]]]:
    """The examples' commands in their docstrings and in the documents."""
    found = []
    for path in [*EXAMPLES.glob("*.py"), ROOT / "docs" / "keras.md"]:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        for name, arguments in re.findall(r"python examples/(\w+)\.py((?: +--\S+)+)", text):
            found.append((name, shlex.split(arguments)))
    return found


@pytest.mark.parametrize(("name", "arguments"), documented())
def test_documented_commands_have_the_flags(name: str, arguments: list[str]) -> None:
    if "--help" not in arguments:
        flag_values = load(name).FLAGS
        flag_values.unparse_flags()
        assert flag_values(["command", *arguments]) == ["command"]
