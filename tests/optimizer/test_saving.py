"""State and configuration leave the optimizer and come back, in every form that Keras knows."""

import copy
import os
import pathlib
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from tests.optimizer import harness
from tests.optimizer.harness import both_kerases, each_row, keras3_row

START = harness.single_values()
GRADIENTS = harness.gradient_steps(START, 4)
# Keras 3 does not load a SavedModel as a model.
SAVED = [(which, name, ".keras") for name in harness.ALGORITHMS for which in harness.KERASES]
SAVED += [("tf_keras", "LANS", "")]
# All the state there is, averages and skipped steps too.
STATEFUL = {"use_ema": True, "ema_momentum": 0.75, "ema_overwrite_frequency": 3}


def trained(which: str, name: str, **arguments: Any) -> harness.Run:
    run = harness.Run(which, name, START, **STATEFUL, **arguments)
    run.step([np.full_like(value, np.nan) for value in START])
    for gradients in GRADIENTS[:2]:
        run.step(gradients)
    return run


def fresh(which: str, name: str, like: harness.Run, **arguments: Any) -> harness.Run:
    """The weights of another run under an optimizer that has no state yet."""
    return harness.Run(which, name, like.values(), **STATEFUL, **arguments)


def assert_goes_on_alike(one: harness.Run, other: harness.Run) -> None:
    for gradients in GRADIENTS[2:]:
        one.step(gradients)
        other.step(gradients)
    harness.assert_equal(one.state(), other.state())
    assert harness.number(one.optimizer.skipped_steps) == 1
    assert harness.number(other.optimizer.skipped_steps) == 1


@each_row
def test_state_is_set_by_position(which: str, name: str) -> None:
    run = trained(which, name)
    weights = [np.array(each.numpy()) for each in run.optimizer.variables]
    other = fresh(which, name, run)
    other.optimizer.set_weights(weights)
    third = fresh(which, name, run)
    for variable, value in zip(third.optimizer.variables, weights, strict=True):
        variable.assign(value)
    harness.assert_equal(other.state(), third.state())
    assert_goes_on_alike(run, other)
    with pytest.raises(ValueError, match="not compatible with provided"):
        other.optimizer.set_weights([*weights[:-1], weights[-1].reshape(-1)[:1]])
    with pytest.raises(ValueError, match="has not yet been built"):
        harness.make(which, name).set_weights(weights)


@each_row
def test_state_is_set_by_key(
    which: str, name: str, recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    run = trained(which, name)
    store: dict[str, np.ndarray] = {}
    run.optimizer.save_own_variables(store)
    assert sorted(store, key=int) == [str(key) for key in range(len(run.optimizer.variables))]
    other = fresh(which, name, run)
    other.optimizer.load_own_variables(dict(reversed(store.items())))
    assert_goes_on_alike(run, other)
    unbuilt = harness.make(which, name)
    unbuilt.load_own_variables(store)
    messages = [str(each.message) for each in recwarn] + caplog.messages
    assert any("Skipping variable loading for optimizer" in each for each in messages)
    assert harness.number(unbuilt.iterations) == 0


@keras3_row
@pytest.mark.parametrize("library", ["pickle", "cloudpickle", "copy"])
def test_a_copy_has_the_configuration(which: str, name: str, library: str) -> None:
    """As with Keras's Adam, unbuilt state comes along and built state does not."""
    optimizer = harness.make(which, name, learning_rate=0.25, exclude_from_weight_decay=["bias"])
    optimizer.iterations.assign(7)
    if library == "copy":
        again = copy.deepcopy(optimizer)
    else:
        pickler = pytest.importorskip(library, reason=f"the package {library} is not installed")
        again = pickler.loads(pickler.dumps(optimizer))
    assert type(again) is type(optimizer)
    assert again is not optimizer
    assert again.get_config() == optimizer.get_config()
    assert again.hyperparameters == optimizer.hyperparameters
    assert harness.number(again.iterations) == 7


def test_a_pickled_model_goes_on_with_its_state() -> None:
    model = harness.make_model("keras3")
    harness.fit(model, 1)
    again = pickle.loads(pickle.dumps(model))
    for one, other in zip(model.optimizer.variables, again.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())


def restored(which: str, model: Any, path: pathlib.Path) -> Any:
    """The model saved and loaded; load_model restores no optimizer's state from a SavedModel."""
    model.save(path)
    again = harness.BASES[which].models.load_model(path)
    if not path.suffix:
        again.optimizer.build(again.trainable_variables)
        status = tf.train.Checkpoint(again).restore(str(path / "variables" / "variables"))
        status.expect_partial()
    return again


@pytest.mark.parametrize(("which", "name", "suffix"), SAVED)
def test_a_saved_model_resumes_bit_for_bit(
    which: str, name: str, suffix: str, tmp_path: pathlib.Path
) -> None:
    straight, broken = harness.make_model(which, name), harness.make_model(which, name)
    harness.fit(straight, 2)
    harness.fit(broken, 1)
    again = restored(which, broken, tmp_path / f"model{suffix}")
    before, after = broken.optimizer, again.optimizer
    assert type(after) is type(before)
    assert after.get_config() == before.get_config()
    assert len(after.variables) == len(before.variables)
    harness.fit(again, 1)
    harness.assert_equal(again.get_weights(), straight.get_weights())
    assert harness.number(after.iterations) == harness.number(straight.optimizer.iterations) == 8


def test_a_new_process_knows_the_classes(tmp_path: pathlib.Path) -> None:
    """What was imported there has no part in it: there, nothing of the package is used before."""
    forms = {"keras3": (".keras",), "tf_keras": (".keras", "")}
    for which, suffixes in forms.items():
        base, package = harness.BASES[which], harness.PACKAGES[which]
        model = base.Sequential([base.layers.Input((2,)), base.layers.Dense(1)])
        model.compile(package.LANS(package.WarmupConstantDecay(0.1, 20, 2)), "mse")
        model.fit(np.ones((2, 2)), np.ones((2, 1)), verbose=0)
        for suffix in suffixes:
            model.save(tmp_path / f"{which}{suffix}")
    program = """
import sys, tensorflow, keras, tf_keras, tf_lans
for path in sys.argv[1:]:
    load = (tf_keras if "tf_keras" in path else keras).models.load_model
    print(type(load(path).optimizer).__name__)
"""
    paths = [tmp_path / f"{which}{suffix}" for which, each in forms.items() for suffix in each]
    completed = subprocess.run(
        [sys.executable, "-c", program, *map(str, paths)],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.stdout.splitlines()[-3:] == ["LANS"] * 3, completed.stderr[-2000:]


@both_kerases
def test_a_checkpoint_holds_all_state(which: str, tmp_path: pathlib.Path) -> None:
    trained, fresh = harness.make_model(which), harness.make_model(which)
    harness.fit(trained, 2)
    trained.optimizer.skipped_steps.assign(3)
    path = tf.train.Checkpoint(model=trained, optimizer=trained.optimizer).save(tmp_path / "c")
    harness.fit(fresh, 1)
    status = tf.train.Checkpoint(model=fresh, optimizer=fresh.optimizer).restore(path)
    status.assert_existing_objects_matched()
    for one, other in zip(trained.optimizer.variables, fresh.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    harness.fit(trained, 1)
    harness.fit(fresh, 1)
    harness.assert_equal(fresh.get_weights(), trained.get_weights())
    assert harness.number(fresh.optimizer.skipped_steps) == 3


@each_row
def test_a_checkpoint_of_a_bare_optimizer(which: str, name: str, tmp_path: pathlib.Path) -> None:
    """Also restored before it is built: the state waits for its variables, as with Adam."""
    run = trained(which, name)
    path = tf.train.Checkpoint(optimizer=run.optimizer).save(tmp_path / "checkpoint")
    other = fresh(which, name, run)
    tf.train.Checkpoint(optimizer=other.optimizer).restore(path).assert_consumed()
    optimizer = harness.make(which, name, **STATEFUL)
    status = tf.train.Checkpoint(optimizer=optimizer).restore(path)
    optimizer.build(other.variables)
    status.expect_partial()  # Keras 3 saves the model's variables too, and does not wait for them
    for one, two in zip(optimizer.variables, other.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), two.numpy())
    assert_goes_on_alike(run, other)


@pytest.mark.parametrize("form", ["checkpoint", "keys"])
def test_an_open_window_is_saved(form: str, tmp_path: pathlib.Path) -> None:
    """What is saved between micro-steps holds the gradients of those behind it, of all replicas."""
    arguments = {"gradient_accumulation_steps": 4, "mode": "mirrored_eager"}
    run = trained("keras3", "LANS", **arguments)
    other = fresh("keras3", "LANS", run, **arguments)
    assert harness.number(run.optimizer.iterations) == 0
    if form == "checkpoint":
        path = tf.train.Checkpoint(optimizer=run.optimizer).save(tmp_path / "checkpoint")
        tf.train.Checkpoint(optimizer=other.optimizer).restore(path).assert_consumed()
    else:
        store: dict[str, np.ndarray] = {}
        run.optimizer.save_own_variables(store)
        other.optimizer.load_own_variables(store)
    run.step(GRADIENTS[2])
    other.step(GRADIENTS[2])
    assert harness.number(other.optimizer.skipped_steps) == 1, "trained() began with a NaN"
    for gradients in GRADIENTS:
        run.step(gradients)
        other.step(gradients)
    assert harness.number(other.optimizer.iterations) == 1
    # the total is restored in equal parts, so that the sum over replicas is rounded otherwise
    for one, two in zip(run.values(), other.values(), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6, atol=1e-6)
