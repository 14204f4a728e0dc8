"""The large-batch study: its steps, its data, its queue and its figures; quick runs end to end."""

import dataclasses
import json
import math
import os
import pathlib
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import (
    large_batch,
    large_batch_data,
    large_batch_methods,
    large_batch_model,
    large_batch_optimizers,
    large_batch_variance,
    markdown_part,
)
from benchmarks.large_batch_data import Rows
from benchmarks.large_batch_methods import METHODS
from benchmarks.large_batch_run import Laboratory
from benchmarks.large_batch_settings import ModelSizes
from benchmarks.large_batch_step_tensorflow import Trainer
from tests.large_batch_samples import SIZES, STUDY, run_of, text_of
from tfrecords import corpus
from tfrecords.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_the_shared_text_is_taken_whole_or_not_at_all(tmp_path: pathlib.Path) -> None:
    for name in ("novels/emma.txt", "wikitext-2/all.sentences.txt"):
        assert not large_batch.shared_text(tmp_path)
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("text\n")
    patterns = large_batch.shared_text(tmp_path)
    found = {pathlib.Path(file.path).name for file in corpus.find(patterns)}
    assert found == {"emma.txt", "all.sentences.txt"}


@pytest.fixture(scope="module")
def laboratory() -> Laboratory:
    return Laboratory(STUDY, text_of(100), micro_batch=4)


# The model and the step


def reference_logits(model: keras.Model, rows: Rows) -> np.ndarray:
    """BERT in float64 NumPy, one row at a time."""
    w = {each.path: np.asarray(each, np.float64) for each in model.trainable_variables}

    def normalize(x: np.ndarray, name: str) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * w[f"{name}/gamma"] + w[f"{name}/beta"]

    def gelu(x: np.ndarray) -> np.ndarray:
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def dense(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}_kernel"] + w[f"{name}_bias"]

    words = w["embeddings/word_embeddings"]
    outputs = []
    for ids, positions in zip(rows.word_ids, rows.positions, strict=True):
        x = words[ids] + w["embeddings/position_embeddings"]
        x = normalize(x, "embeddings_layer_norm")
        query, key, value = (dense(x, f"layer_0_attention/{n}") for n in ("query", "key", "value"))
        scores = np.exp(query @ key.T / math.sqrt(query.shape[1]))
        context = scores / scores.sum(1, keepdims=True) @ value
        x = normalize(
            x + dense(context, "layer_0_attention/output"), "layer_0_attention_layer_norm"
        )
        inner = gelu(dense(x, "layer_0_feed_forward/intermediate"))
        x = normalize(x + dense(inner, "layer_0_feed_forward/output"), "layer_0_output_layer_norm")
        x = gelu(dense(x[positions], "masked_lm/transform"))
        x = normalize(x, "masked_lm/layer_norm")
        outputs.append(x @ words.T + w["masked_lm/output_bias"])
    return np.array(outputs)


def test_the_model_is_bert(laboratory: Laboratory) -> None:
    laboratory.begin(3)
    model = laboratory.model
    random = np.random.default_rng(0)
    for variable in model.trainable_variables:  # so that no gain is 1 and no bias 0
        variable.assign(np.asarray(variable) + random.normal(0, 0.3, variable.shape))
    rows = laboratory.text.examples(SIZES, 0, 0, 5)
    expected = reference_logits(model, rows)
    logits = np.asarray(model([rows.word_ids, rows.positions]))
    # A dozen float32 roundings of numbers of size 10.
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_accumulated_micro_batches_are_the_whole_batch(laboratory: Laboratory) -> None:
    laboratory.begin(0)
    rows = laboratory.text.examples(SIZES, 0, 0, 32)
    weights = np.random.default_rng(0).random(rows.weights.shape).astype(np.float32)
    rows = rows._replace(weights=weights)  # unequal, so that a mean of means is another number
    whole = Trainer(laboratory.model, 32)
    for name, cut, one in zip(
        (each.path for each in laboratory.trainer.variables),
        laboratory.trainer.gradient(rows),
        whole.gradient(rows),
        strict=True,
    ):
        # Sums of 32 rows' float32 gradients in two orders.
        np.testing.assert_allclose(cut, one, rtol=1e-4, atol=1e-7, err_msg=name)
    assert laboratory.trainer.evaluate(rows) == pytest.approx(whole.evaluate(rows), rel=1e-6)
    logits = np.asarray(laboratory.model([rows.word_ids, rows.positions]), np.float64)
    chosen = np.take_along_axis(logits, rows.ids[..., None], 2)[..., 0]
    losses = np.log(np.exp(logits).sum(-1)) - chosen
    expected = float((weights * losses).sum() / weights.sum())
    laboratory.trainer.use(
        large_batch_optimizers.create(run_of("AdamW"), 10, laboratory.trainer.variables)
    )
    assert laboratory.trainer.step(rows) == pytest.approx(expected, rel=1e-5)
    assert laboratory.trainer.evaluate(rows) < expected


def test_a_run_starts_where_every_other_of_its_seed_does_and_repeats(
    laboratory: Laboratory,
) -> None:
    first = laboratory.train(run_of("LANS eq. (9)"))
    other = laboratory.train(run_of("AdamW", batch=8))
    again = laboratory.train(run_of("LANS eq. (9)"))
    assert first["curve"] == again["curve"] and first["run"] == again["run"] != other["run"]
    assert first["curve"][0] == other["curve"][0]
    assert first["curve"][0][2] == pytest.approx(math.log(64), abs=0.1)
    assert first["curve"][-1][0] == 4 and other["curve"][-1][0] == 8
    fresh = laboratory.train(run_of("AdamW", seed=1))
    assert fresh["curve"][0] != first["curve"][0]


def test_a_run_that_explodes_is_a_record_too(laboratory: Laboratory) -> None:
    record = laboratory.train(run_of("AdamW", learning_rate=1e30))
    assert record["diverged"]
    json.dumps(record, allow_nan=False)


def test_schedule_free_evaluates_its_average() -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1, use_bias=False)])
    run = run_of("ScheduleFreeAdamW, Keras mended", learning_rate=0.1, warmup_ratio=0.0)
    optimizer = large_batch_optimizers.create(run, 10, model.trainable_variables)
    optimizer.weight_decay = None
    z = x = np.asarray(model.trainable_variables[0], np.float64)
    v = np.zeros_like(z)
    for step in range(1, 6):
        gradient = np.full((3, 1), 0.1 * step, np.float32)
        optimizer.apply([gradient], model.trainable_variables)
        v = run.beta_2 * v + (1 - run.beta_2) * gradient.astype(np.float64) ** 2
        z = z - 0.1 * gradient / (np.sqrt(v / (1 - run.beta_2**step)) + 1e-6)
        x = (1 - 1 / step) * x + z / step
    averaged = large_batch_optimizers.averaged_weights(optimizer, model.trainable_variables)
    np.testing.assert_allclose(averaged[0], x, atol=1e-5)
    assert large_batch_optimizers.averages(run)
    assert not large_batch_optimizers.averages(run_of("AdamW"))


@pytest.mark.parametrize("name", METHODS)
def test_optimizers_are_as_their_papers_have_them(name: str, laboratory: Laboratory) -> None:
    optimizer = large_batch_optimizers.create(run_of(name), 100, laboratory.trainer.variables)
    config = optimizer.get_config()
    is_lans = METHODS[name].optimizer == "LANS"
    is_normalized = is_lans and "without normalisation" not in name
    is_block_normalized = name == "BlockNormalizedAdamW"
    assert config["global_clipnorm"] == (None if is_normalized or is_block_normalized else 1.0)
    assert config["weight_decay"] == 0.01 and optimizer.epsilon == 1e-6
    if METHODS[name].optimizer in ("LAMB", "LANS"):
        excluded = None if "every block" in name else large_batch_optimizers.UNDECAYED
        assert config["exclude_from_layer_adaptation"] == excluded
        assert config["exclude_from_weight_decay"] == excluded
    if is_lans:
        assert config["normalize_gradients"] == is_normalized
        assert config["nesterov"] == ("Nesterov" not in name)
    elif is_block_normalized:
        assert config["exclude_from_weight_decay"] == large_batch_optimizers.UNDECAYED
    elif METHODS[name].optimizer != "LAMB":
        decays = {
            each.path: optimizer._use_weight_decay(each) for each in laboratory.trainer.variables
        }
        assert not any(decays[path] for path in decays if path.endswith(("bias", "gamma", "beta")))
        assert all(decays[path] for path in decays if path.endswith(("kernel", "embeddings")))


def test_phases_are_those_of_equations_8_and_9() -> None:
    assert large_batch_methods.phases(METHODS["LAMB eq. (8)"], 3519, 0.4265) == (1500, 0)
    assert large_batch_methods.phases(METHODS["LANS eq. (9)"], 3519, 0.4265)[0] == 1500
    constant = large_batch_methods.phases(METHODS["LANS eq. (9)"], 3519, 0.4265)[1]
    assert constant == pytest.approx(963, abs=1)


@pytest.mark.parametrize("seed", range(5))
def test_draws_leave_no_hole_however_many_are_made(seed: int) -> None:
    study = dataclasses.replace(STUDY, seed=seed)
    method = METHODS["AdamW"]
    draws = [large_batch_methods.drawn(study, method, number) for number in range(12)]
    low, high = np.log(method.rates)
    places = [(math.log(draw.learning_rate) - low) / (high - low) for draw in draws]
    warmups = [draw.warmup_ratio for draw in draws]
    assert min(warmups) >= 0.05 and max(warmups) <= 0.5
    # Halton's bases are 2, 3 and 5: each such part of a range has its share of the points.
    for count in (4, 8, 12):
        assert set(np.bincount([int(4 * place) for place in places[:count]])) == {count // 4}
    for count in (3, 6, 9, 12):
        found = [draw.beta_2 for draw in draws[:count]]
        assert {found.count(beta) for beta in large_batch_methods.BETAS_2} == {count // 3}
    fifths = np.bincount([int((warmup - 0.05) / 0.45 * 5 * (1 - 1e-9)) for warmup in warmups[:10]])
    assert set(fifths) == {2}


# Data


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(30, 90), batch=st.sampled_from([4, 16, 48, 100]), seed=st.integers(0, 5))
def test_examples_do_not_depend_on_the_batch(rows: int, batch: int, seed: int) -> None:
    text = text_of(rows)
    whole = text.examples(SIZES, seed, 0, 300)
    parts = [text.examples(SIZES, seed, at, batch) for at in range(0, 300 - batch, batch)]
    joined = Rows(*(np.concatenate(each) for each in zip(*parts, strict=True)))
    for one, two in zip(joined, whole, strict=True):
        np.testing.assert_array_equal(one, two[: len(one)])


def test_an_epoch_is_every_row_once_and_masks_are_new() -> None:
    text = text_of(70)
    rows = text.examples(SIZES, 0, 0, 140)
    restored = rows.word_ids.copy()
    np.put_along_axis(restored, rows.positions, rows.ids, 1)
    known = sorted(map(tuple, text.train.tolist()))
    for epoch in (slice(0, 70), slice(70, 140)):
        assert sorted(map(tuple, restored[epoch].tolist())) == known
    first = {
        tuple(row): set(at) for row, at in zip(restored[:70], rows.positions[:70], strict=True)
    }
    second = [
        first[tuple(row)] == set(at) for row, at in zip(restored, rows.positions, strict=True)
    ]
    assert sum(second[70:]) < 10 and not np.array_equal(restored[:70], restored[70:])


def test_masks_are_those_of_bert() -> None:
    rows = np.full((4000, 16), 40, np.uint16)
    found = large_batch_data.masked(rows, SIZES, 64, np.random.default_rng(0))
    assert found.positions.min() == 1 and found.positions.max() == 14
    assert (np.diff(found.positions, axis=1) > 0).all() and (found.ids == 40).all()
    shown = np.take_along_axis(found.word_ids, found.positions, 1)
    # 12,000 choices: a standard deviation of 0.4 %.
    assert (shown == large_batch_data.MASK_ID).mean() == pytest.approx(0.8, abs=0.015)
    assert (shown == 40).mean() == pytest.approx(0.1 + 0.1 / 59, abs=0.012)
    assert shown[shown != large_batch_data.MASK_ID].min() >= large_batch_data.FIRST_PIECE
    assert (found.word_ids != 40).sum() == (shown != 40).sum()


def test_frequencies_are_what_a_table_of_them_predicts() -> None:
    text = text_of(100)
    counts = dict.fromkeys(range(64), 1)
    for token in text.train[:, 1:-1].ravel().tolist():
        counts[token] += 1
    for part in ("validation", "test"):
        hidden = text.held_out(SIZES, part).ids.ravel().tolist()
        losses = [math.log(sum(counts.values())) - math.log(counts[token]) for token in hidden]
        assert text.frequency_loss(SIZES, part) == pytest.approx(sum(losses) / len(losses))


# Variance


def test_variance_follows_section_3_4() -> None:
    gradients = np.random.default_rng(0).normal(size=(256, 512))
    for row in large_batch_variance.measure(gradients, [4, 64, 256], seed=0):
        # Four standard errors, of 1 to 2 % each; an epoch without replacement has none at all.
        tolerance = 4 * row["standard_error"] + 1e-9
        assert row["standard_error"] < 0.025
        assert row["measured"] == pytest.approx(row["theory"], abs=tolerance), row
    assert large_batch_variance.factor(large_batch_variance.WITHOUT, 256, 256) == 0.0
    # Each of 8 files is read by each of 4 workers with probability 1/4.
    assert large_batch_variance.coverage(256, 0) == pytest.approx(1 - 0.75**4, abs=0.02)


def test_the_sketch_keeps_squared_norms_on_average() -> None:
    random = np.random.default_rng(0)
    vector = random.normal(size=5000)
    squares = []
    for _ in range(50):
        buckets, signs = random.integers(0, 256, 5000), random.choice([-1.0, 1.0], 5000)
        projected = large_batch_variance.sketch([vector[:2000], vector[2000:]], buckets, signs)
        squares.append(np.square(projected).sum())
    # One projection varies by sqrt(2 / 256) = 9 %, their mean by 1.3 %.
    assert np.mean(squares) == pytest.approx(np.square(vector).sum(), rel=0.05)


# The command


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("--batches=16,8", "ascending"),
        ("--batches=16,many", "expected positive integers"),
        ("--draws=5,5", "expected positive integers, ascending, such as 5,12"),
        ("--draws=0", "expected positive integers"),
        ("--batches=16,48", "no multiple of the batch 48"),
        ("--max_predictions=40", "expected less than 14"),
        ("--seq_length=32", "rows of --data are 16 long"),
        ("--vocab_size=512", "--data has 1024"),
        ("--held_out=4", "--data has 20"),
        ("--document=absent.md", "absent.md"),
    ],
)
def test_mistakes_are_told_in_one_line(
    argument: str, told: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "rows.npz"
    text = text_of(100)
    parts = {name: getattr(text, name) for name in ("train", "validation", "test")}
    # More than --quick asks for where nobody does.
    np.savez(data, vocab_size=1024, source="made up", **parts)
    results = tmp_path / "results.jsonl"
    common = ["--quick", f"--data={data}", f"--results={results}"]
    assert large_batch.main([*common, argument]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1
    assert not results.exists()


@pytest.mark.parametrize("name", ["nowhere:bert", "math", "math:tau", "math:absent", "os:getcwdb"])
def test_a_model_that_is_none_is_refused(name: str) -> None:
    with pytest.raises((UserError, TypeError)):
        Laboratory(dataclasses.replace(STUDY, model=name), text_of(100), 4)


def model_of_the_users(sizes: ModelSizes) -> keras.Model:
    return large_batch_model.bert(dataclasses.replace(sizes, width=8))


def test_a_model_of_the_users_is_trained() -> None:
    name = f"{__name__}:{model_of_the_users.__name__}"
    laboratory = Laboratory(dataclasses.replace(STUDY, model=name), text_of(100), 8)
    assert laboratory.trainer.variables[0].shape == (64, 8)
    assert not laboratory.train(run_of("LANS eq. (8)"))["diverged"]


@pytest.mark.slow
def test_quick_is_killed_goes_on_and_draws_everything(tmp_path: pathlib.Path) -> None:
    results, document = tmp_path / "results.jsonl", tmp_path / "results.md"
    document.write_text("\n".join(markdown_part.marks("benchmarks.large_batch")))
    command = [
        *(sys.executable, "-m", "benchmarks.large_batch", "--quick", "--draws=1", "--seeds=1"),
        # Given, for a target of its own wants a method that learns from context.
        "--target_loss=6",
        *(f"--results={results}", f"--data={tmp_path / 'rows.npz'}", f"--document={document}"),
    ]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if " 2/32 " in line:
            process.kill()
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    before = results.read_text()
    assert before.count('"kind": "run"') >= 2 and before.count('"kind": "variance"') == 1

    completed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    assert "examples/s in" in completed.stdout and "32 of 32 runs are done" in completed.stdout
    after = results.read_text()
    assert after.startswith(before) and after.count('"kind": "run"') == 32
    charts = {"loss_by_batch", "loss_by_rate", "best_of_n", "loss_curves", "steps_to_target"}
    for name in charts | {"variance"}:
        assert os.path.getsize(tmp_path / f"results_{name}.png") > 5_000
        assert f"results_{name}.png" in document.read_text()
    assert all(name in document.read_text() for name in METHODS)
