"""What the optimizers tell of a run, and the callback that watches it."""

import contextlib
import csv
import logging
import math
import sys

import numpy as np
import pytest
import tensorflow as tf
from absl import flags

import tf_lans
from tests.optimizer import harness
from tf_lans import diagnostics, schedule_plot

BOTH = pytest.mark.parametrize("which", harness.KERASES)


def watched(which: str, mode: str, **arguments) -> tuple[harness.Run, list[np.ndarray]]:
    start = [value.astype(np.float32) for value in harness.start_values()]
    run = harness.Run(which, "LANS", start, mode, learning_rate=0.01, **arguments)
    run.optimizer.watch_gradients()
    return run, start


@BOTH
@pytest.mark.parametrize("mode", ["eager", "graph", "mirrored", "mirrored_eager"])
def test_gradient_norms_are_the_global_gradients_before_clipping(which: str, mode: str) -> None:
    run, start = watched(which, mode, clipnorm=0.1)
    for gradients in harness.gradient_steps(start, 2):
        run.step(gradients)
        wanted = [np.linalg.norm(gradient) for gradient in gradients]
        norms = run.optimizer.gradient_norms()
        assert list(norms) == [f"block_{index}" for index in range(len(start))]
        np.testing.assert_allclose(list(norms.values()), wanted, rtol=1e-5)
    found = run.optimizer.diagnostics()
    np.testing.assert_allclose(found.gradient_norm, np.linalg.norm(wanted), rtol=1e-5)
    norm = math.hypot(*(np.linalg.norm(value) for value in run.values()))
    np.testing.assert_allclose(found.weight_norm, norm, rtol=1e-5)
    ratios = sorted(float(ratio) for ratio in run.optimizer.trust_ratios().values())
    scalars = found.scalars()
    assert scalars["trust_ratio_min"] == ratios[0]
    assert scalars["trust_ratio_median"] == ratios[2]
    assert scalars["trust_ratio_max"] == ratios[4]
    assert (found.iterations, found.skipped_steps, found.skipped_in_a_row) == (2, 0, 0)
    np.testing.assert_allclose(found.learning_rate, 0.01, rtol=1e-6)


@BOTH
@pytest.mark.parametrize("mode", harness.MODES)
def test_the_last_gradient_norm_is_that_of_all_blocks_together(which: str, mode: str) -> None:
    run, start = watched(which, mode, clipnorm=0.1)
    compiled = tf.function(run.optimizer.last_gradient_norm)
    for gradients in harness.gradient_steps(start, 3):
        run.step(gradients)
        wanted = np.linalg.norm(np.concatenate([np.ravel(each) for each in gradients]))
        # A sum of 70 squares rounds by 6e-8 at most 72 times, of which the root halves; two
        # replicas' parts, up to three times the gradient, add 4e-7.
        for norm in (run.optimizer.last_gradient_norm(), compiled()):
            assert norm.dtype == tf.float32
            np.testing.assert_allclose(norm, wanted, rtol=3e-6)


@BOTH
@pytest.mark.parametrize("mode", ["graph", "mirrored"])
def test_skipped_steps_in_a_row_are_counted_and_their_blocks_known(which: str, mode: str) -> None:
    run, start = watched(which, mode)
    good, bad = harness.gradient_steps(start, 2)
    bad[2] = np.full_like(bad[2], np.nan)
    counted = []
    for gradients in (good, bad, bad, good, bad):
        run.step(gradients)
        counted.append(run.optimizer.skipped_in_a_row())
    assert counted == [0, 1, 2, 0, 1]
    assert diagnostics.nonfinite_blocks(run.optimizer.gradient_norms()) == ["block_2"]
    assert run.optimizer.diagnostics().skipped_steps == 3


@BOTH
def test_a_block_without_gradient_has_norm_zero(which: str) -> None:
    run, start = watched(which, "eager")
    gradients = [tf.constant(each) for each in harness.gradient_steps(start, 1)[0]]
    run._apply([gradients[0], None, *gradients[2:]])
    norms = list(run.optimizer.gradient_norms().values())
    assert norms[1] == 0.0
    assert norms[0] > 0.0


def test_accumulated_gradients_are_seen_whole() -> None:
    run, start = watched("keras3", "graph", gradient_accumulation_steps=2)
    first, second = harness.gradient_steps(start, 2)
    run.step(first)
    assert set(run.optimizer.gradient_norms().values()) == {0.0}
    run.step(second)
    wanted = [np.linalg.norm((one + two) / 2) for one, two in zip(first, second, strict=True)]
    norms = list(run.optimizer.gradient_norms().values())
    np.testing.assert_allclose(norms, wanted, rtol=1e-5)


@BOTH
def test_watching_changes_no_number_and_no_checkpointed_state(which: str) -> None:
    run, start = watched(which, "graph")
    plain = harness.Run(which, "LANS", start, "graph", learning_rate=0.01)
    for gradients in harness.gradient_steps(start, 3):
        run.step(gradients)
        plain.step(gradients)
    assert len(run.optimizer.variables) == len(plain.optimizer.variables)
    for one, other in zip(run.values(), plain.values(), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match=r"watch_gradients\(\)"):
        plain.optimizer.gradient_norms()


@BOTH
@pytest.mark.parametrize("mode", ["eager", "mirrored_eager"])
def test_an_optimizer_may_be_watched_before_it_is_built(which: str, mode: str) -> None:
    start = [value.astype(np.float32) for value in harness.start_values()]
    run = harness.Run(which, "LANS", start, mode, learning_rate=0.01)
    scope = harness.two_replicas().scope() if run.mirrored else contextlib.nullcontext()
    with scope:
        run.optimizer = harness.PACKAGES[which].LANS(0.01)
    run.optimizer.watch_gradients()
    gradients = harness.gradient_steps(start, 1)[0]
    run.step(gradients)
    wanted = [np.linalg.norm(gradient) for gradient in gradients]
    norms = list(run.optimizer.gradient_norms().values())
    np.testing.assert_allclose(norms, wanted, rtol=1e-5)


@BOTH
def test_the_rate_is_that_of_the_next_update(which: str) -> None:
    schedule = harness.PACKAGES[which].WarmupConstantDecay(0.02, 8, 4)
    start = [value.astype(np.float32) for value in harness.start_values()]
    run = harness.Run(which, "LANS", start, "graph", learning_rate=schedule)
    for number, gradients in enumerate(harness.gradient_steps(start, 2), start=1):
        run.step(gradients)
        rate = run.optimizer.diagnostics().learning_rate
        np.testing.assert_allclose(rate, float(schedule(number)), rtol=1e-6)


def fitted(which: str, batches: int, bad_from: int | None, **arguments):
    base, package = harness.BASES[which], harness.PACKAGES[which]
    model = base.Sequential([base.layers.Input((3,)), base.layers.Dense(1, name="dense")])
    model.compile(package.LANS(0.01), "mse")
    watch = package.LargeBatchDiagnostics(**arguments)
    inputs = np.ones((4 * batches, 3), np.float32)
    if bad_from is not None:
        inputs[4 * bad_from :] = np.inf
    targets = np.ones((4 * batches, 1), np.float32)
    history = model.fit(inputs, targets, 4, shuffle=False, verbose=0, callbacks=[watch])
    return model, watch, history


@BOTH
def test_the_callback_looks_at_its_interval(which: str, tmp_path) -> None:
    model, watch, history = fitted(which, 7, None, interval=3, log_dir=str(tmp_path))
    assert [row["step"] for row in watch.history] == [3, 6]
    row = watch.history[-1]
    assert row["gradient_norm"] > 0
    assert row["trust_ratio_min"] <= row["trust_ratio_median"] <= row["trust_ratio_max"]
    assert history.history["lans/weight_norm"] == [row["weight_norm"]]
    tags = set()
    for path in tmp_path.iterdir():
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            tags |= {value.tag for value in event.summary.value}
    assert {"lans/learning_rate", "lans/trust_ratios", "lans/gradient_norms"} <= tags
    model.fit(np.ones((12, 3)), np.ones((12, 1)), 4, verbose=0, callbacks=[watch])
    assert [row["step"] for row in watch.history] == [3, 6, 10]


@BOTH
def test_an_epoch_shorter_than_the_interval_has_its_figures(which: str, tmp_path) -> None:
    base, package = harness.BASES[which], harness.PACKAGES[which]
    model = base.Sequential([base.layers.Dense(1)])
    model.compile(package.LANS(0.01), "mse")
    watch = package.LargeBatchDiagnostics(interval=5)
    log = base.callbacks.CSVLogger(str(tmp_path / "log.csv"))
    data = np.ones((12, 3)), np.ones((12, 1))
    history = model.fit(*data, 4, epochs=3, verbose=0, callbacks=[watch, log]).history
    assert [row["step"] for row in watch.history] == [3, 6, 9]
    rates = [row["learning_rate"] for row in watch.history]
    assert history["lans/learning_rate"] == rates
    with open(tmp_path / "log.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["lans/learning_rate"]) for row in rows] == pytest.approx(rates)


@BOTH
def test_a_run_that_only_skips_is_stopped_and_its_blocks_named(which: str, caplog) -> None:
    with caplog.at_level(logging.ERROR, "tf_lans"):
        model, watch, _ = fitted(which, 30, 2, max_skipped_steps=5)
    assert harness.number(model.optimizer.skipped_steps) == 5
    assert harness.number(model.optimizer.iterations) == 2
    assert "the last 5 steps were skipped" in caplog.text
    assert "dense/kernel" in caplog.text
    assert watch.history[-1]["skipped_steps"] == 5
    assert all(np.all(np.isfinite(weight)) for weight in model.get_weights())


@BOTH
def test_a_model_fitted_before_is_watched_too(which: str) -> None:
    base, package = harness.BASES[which], harness.PACKAGES[which]
    model = base.Sequential([base.layers.Dense(1)])
    model.compile(package.LAMB(0.01), "mse")
    data = np.ones((8, 3), np.float32), np.ones((8, 1), np.float32)
    model.fit(*data, 4, verbose=0)
    watch = package.LargeBatchDiagnostics(interval=1)
    model.fit(*data, 4, verbose=0, callbacks=[watch])
    assert [row["step"] for row in watch.history] == [3, 4]
    assert all(row["gradient_norm"] > 0 for row in watch.history)


@BOTH
def test_the_callback_refuses_what_it_cannot_watch(which: str) -> None:
    base, package = harness.BASES[which], harness.PACKAGES[which]
    model = base.Sequential([base.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(TypeError, match="expected an optimizer of tf_lans"):
        model.fit(np.ones((4, 1)), np.ones((4, 1)), callbacks=[package.LargeBatchDiagnostics()])
    with pytest.raises(ValueError, match="max_skipped_steps=0"):
        package.LargeBatchDiagnostics(max_skipped_steps=0)
    with pytest.raises(ValueError, match="interval=0"):
        package.LargeBatchDiagnostics(interval=0)


@BOTH
def test_the_callback_says_at_once_that_tensorboard_is_missing(
    which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    make = harness.PACKAGES[which].LargeBatchDiagnostics
    with pytest.raises(ImportError, match="log_dir='logs': .* pip install tensorboard"):
        make(log_dir="logs")
    assert make().log_dir is None


def test_the_callback_has_a_home_of_its_own() -> None:
    assert tf_lans.callbacks.LargeBatchDiagnostics is tf_lans.LargeBatchDiagnostics
    with pytest.raises(AttributeError, match="Nothing"):
        _ = tf_lans.callbacks.Nothing


def test_figure_1_of_the_paper() -> None:
    make = tf_lans.WarmupConstantDecay
    figure = tf_lans.plot_schedule(
        {
            "ideal": make(0.01, 3519, 1500),
            "eq. (8)": make(0.007, 3519, 1500),
            "eq. (9)": make(0.007, 3519, 1500, 963),
        }
    )
    texts = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert [text.split(", ")[-1] for text in texts[1:]] == ["5.28 less", "1.91 less"]
    lines = figure.axes[0].get_lines()
    assert [len(line.get_xdata()) for line in lines] == [3519] * 3
    assert max(lines[2].get_ydata()) == 0.007


def test_the_command_draws_it_and_leaves_other_flags_alone(tmp_path, capsys) -> None:
    picture = tmp_path / "schedule.png"
    schedule_plot.run([f"--plot={picture}"])
    assert capsys.readouterr().out.splitlines()[-1] == "eq. (9), peak 0.007: area 15.69, 1.91 less"
    assert picture.stat().st_size > 10_000
    schedule_plot.run(["--help"])
    assert "--warmup_steps" in capsys.readouterr().out
    for wrong, message in (
        ("--warmup_steps=4000", "error: warmup_steps=4000"),
        ("--warmup=1", "Unknown command line flag"),
        (f"--plot={tmp_path}/nowhere/a.png", "there is no folder"),
    ):
        with pytest.raises(SystemExit, match=message):
            schedule_plot.run(["--warmup_steps=1500", wrong])
    assert "warmup_steps" not in flags.FLAGS


@BOTH
def test_any_schedule_can_be_drawn(which: str) -> None:
    schedules = harness.BASES[which].optimizers.schedules
    falling = schedules.PiecewiseConstantDecay([1, 3], [0.3, 0.2, 0.1])
    np.testing.assert_allclose(
        schedule_plot.rates(falling, 5), [0.3, 0.3, 0.2, 0.2, 0.1], rtol=1e-6
    )
    ours = harness.PACKAGES[which].WarmupConstantDecay(0.5, 20, 4, 3, "1-sqrt", 0.1)
    np.testing.assert_allclose(
        schedule_plot.rates(ours, 20), [float(ours(step)) for step in range(20)], rtol=1e-6
    )
    with pytest.raises(TypeError, match="total_steps="):
        tf_lans.plot_schedule(falling)
    with pytest.raises(ValueError, match="no schedule"):
        tf_lans.plot_schedule({})
