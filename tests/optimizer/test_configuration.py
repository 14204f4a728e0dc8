"""Arguments validated, patterns matched, tables printed, imports lazy, recipes as published."""

import os
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import tensorflow as tf

import tf_lans
from tests.optimizer import harness
from tests.optimizer.harness import both_kerases, each_row
from tf_lans import block_selection, recipes


@both_kerases
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"learning_rate": -1.0}, ValueError, "learning_rate=-1.0 is negative"),
        ({"learning_rate": "0.1"}, TypeError, "is a str"),
        ({"learning_rate": None}, TypeError, "is a NoneType"),
        ({"beta_1": 1.0}, ValueError, r"beta_1=1.0: expected a number in \[0, 1\)"),
        ({"beta_2": True}, TypeError, "beta_2=True is a bool"),
        ({"beta_2": -0.1}, ValueError, "beta_2=-0.1"),
        ({"epsilon": 0.0}, ValueError, "epsilon=0.0"),
        ({"epsilon": None}, TypeError, "epsilon=None"),
        ({"weight_decay": float("nan")}, ValueError, "not finite"),
        ({"weight_decay": -0.01}, ValueError, "weight_decay=-0.01"),
        ({"exclude_from_weight_decay": "bias"}, TypeError, "a list of regular expressions"),
        ({"exclude_from_weight_decay": ["["]}, ValueError, "no regular expression"),
        ({"exclude_from_layer_adaptation": [""]}, ValueError, "matches every block"),
        ({"exclude_from_layer_adaptation": [1]}, TypeError, "holds 1, no string"),
        ({"weight_norm_bounds": (2, 1)}, ValueError, "lower <= upper"),
        ({"weight_norm_bounds": 1.0}, TypeError, "weight_norm_bounds=1.0"),
        ({"nesterov": 1}, TypeError, "expected True or False"),
        ({"skip_nonfinite": "yes"}, TypeError, "expected True or False"),
        ({"nonsense": 1}, (TypeError, ValueError), "nonsense"),
        ({"lr": 1.0}, TypeError, "lr=1.0: expected learning_rate="),
        ({"weight_decay_rate": 0.1}, TypeError, "weight_decay_rate=0.1: expected weight_decay="),
        ({"weight_norm_bounds": (0, np.inf)}, ValueError, "an upper one of 1e38 leave .* open"),
        ({"weight_norm_bounds": np.ones(3)}, TypeError, r"=\[1.0, 1.0, 1.0\]: expected None or"),
        ({"clipnorm": np.nan}, ValueError, "clipnorm=nan is not finite: expected a number above"),
        ({"clipvalue": np.nan}, ValueError, "clipvalue=nan is not finite"),
        ({"global_clipnorm": np.inf}, ValueError, "global_clipnorm=inf is not finite"),
        ({"ema_momentum": np.nan, "use_ema": True}, ValueError, "ema_momentum=nan is not finite"),
        ({"loss_scale_factor": np.nan}, ValueError, "loss_scale_factor=nan is not finite"),
        ({"gradient_accumulation_steps": 2.5}, TypeError, "=2.5 is a float: expected an integer"),
    ],
)
def test_bad_arguments_are_refused(which: str, arguments: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        harness.PACKAGES[which].LANS(**arguments)


@both_kerases
def test_a_rate_that_would_not_be_followed_is_refused(which: str) -> None:
    make = harness.PACKAGES[which].LANS
    for rate in (tf.Variable(0.1), harness.variable("keras3", np.float32(0.1), "rate")):
        with pytest.raises(TypeError, match="Variable: expected a number of at least 0"):
            make(rate)
    other = harness.PACKAGES["tf_keras" if which == "keras3" else "keras3"]
    with pytest.raises(TypeError, match="expected a schedule of .*, whose optimizer this is"):
        make(other.WarmupConstantDecay(0.5, 20, 2))


@both_kerases
@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    ("rate", "error", "message"),
    [
        (-1, ValueError, "learning_rate=-1.0 is negative"),
        (float("nan"), ValueError, "learning_rate=nan is not finite"),
        (np.float32(np.inf), ValueError, "learning_rate=inf is not finite"),
        (np.array(-0.5), ValueError, "learning_rate=-0.5 is negative"),
        ("0.1", TypeError, "is a str"),
        (True, TypeError, "is a bool"),
        (None, TypeError, "is a NoneType"),
    ],
    ids=repr,
)
def test_bad_rates_cannot_be_assigned(
    which: str, wrapped: bool, rate: object, error: type, message: str
) -> None:
    optimizer = harness.make(which, learning_rate=0.25)
    if wrapped:
        optimizer = harness.BASES[which].mixed_precision.LossScaleOptimizer(optimizer)
    with pytest.raises(error, match=message):
        optimizer.learning_rate = rate
    assert float(optimizer.learning_rate.numpy()) == 0.25


@both_kerases
def test_rates_of_every_kind_can_be_assigned(which: str) -> None:
    optimizer = harness.make(which, learning_rate=0.25)
    rates = (0.5, 0, np.float64(0.5), np.array(0.125), tf.constant(0.5), tf.Variable(2.0))
    for rate in rates:
        optimizer.learning_rate = rate
        assert float(optimizer.learning_rate.numpy()) == float(rate)
    other = harness.PACKAGES["tf_keras" if which == "keras3" else "keras3"]
    with pytest.raises(TypeError, match="expected a schedule of .*, whose optimizer this is"):
        optimizer.learning_rate = other.WarmupConstantDecay(0.5, 20, 2)
    optimizer.learning_rate = harness.PACKAGES[which].WarmupConstantDecay(0.5, 20, 2)
    variable = harness.variable(which, np.float32([1]), "block")
    optimizer.apply_gradients([(tf.ones(1), variable)])
    # The warmup's first rate is 0.25, and a step as long as it times the weight.
    np.testing.assert_allclose(variable.numpy(), [0.75], rtol=1e-6)


@both_kerases
def test_callbacks_set_the_rate(which: str) -> None:
    callbacks = harness.BASES[which].callbacks
    model = harness.make_model(which, learning_rate=0.5)
    halved = callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    inputs, targets = harness.data()
    model.fit(inputs, targets, epochs=2, verbose=0, callbacks=[halved])
    assert float(model.optimizer.learning_rate.numpy()) == 0.125
    plateau = callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1e9)
    model.fit(inputs, targets, epochs=2, verbose=0, callbacks=[plateau])
    assert float(model.optimizer.learning_rate.numpy()) == 0.0625


@both_kerases
def test_the_patterns_are_not_lost_by_an_assignment(which: str) -> None:
    variable = harness.variable(which, np.ones(2, np.float32), "block")
    optimizer = harness.make(which, exclude_from_layer_adaptation=["gamma"])
    assert optimizer.exclude_from_layer_adaptation == ("gamma",)
    with pytest.raises(TypeError, match="a list of regular expressions"):
        optimizer.exclude_from_layer_adaptation = "block"
    with pytest.raises(AttributeError, match=r"give the patterns to the constructor, or call"):
        optimizer.exclude_from_weight_decay = ["block"]
    optimizer.exclude_from_layer_adaptation = ["block"]
    assert optimizer.get_config()["exclude_from_layer_adaptation"] == ["block"]
    optimizer.build([variable])
    assert optimizer.trust_ratios() == {}
    with pytest.raises(ValueError, match="assigned after the optimizer was built: assign it befo"):
        optimizer.exclude_from_layer_adaptation = None
    assert optimizer.exclude_from_layer_adaptation == ("block",)
    with pytest.raises(AttributeError, match="BlockNormalizedAdamW has no .*: it adapts no block"):
        harness.make(which, "BlockNormalizedAdamW").exclude_from_layer_adaptation = ["block"]


@both_kerases
def test_a_lone_variable_is_no_list(which: str) -> None:
    variable = harness.variable(which, np.ones(2, np.float32), "block")
    optimizer = harness.make(which)
    for act in (
        lambda: optimizer.exclude_from_weight_decay(var_list=variable),
        lambda: tf_lans.describe(optimizer, variable),
    ):
        with pytest.raises(TypeError, match=r"got the variable 'block': expected a list, \[variab"):
            act()
    assert optimizer.hyperparameters.exclude_from_weight_decay is None


@both_kerases
def test_whole_numbers_and_numpy_numbers_are_numbers(which: str) -> None:
    optimizer = harness.PACKAGES[which].LANS(1, np.float32(0.5), weight_decay=0)
    assert float(optimizer.learning_rate.numpy()) == 1.0
    assert (optimizer.beta_1, optimizer.weight_decay) == (0.5, 0.0)
    bounded = harness.make(which, weight_norm_bounds=np.array([0, 1e38]), clipnorm=np.float32(2))
    assert (bounded.weight_norm_bounds, bounded.clipnorm) == ((0.0, 1e38), 2.0)


@each_row
def test_configuration_keeps_every_argument(which: str, name: str) -> None:
    package, base = harness.PACKAGES[which], harness.BASES[which]
    arguments = {
        "learning_rate": package.WarmupConstantDecay(0.5, 20, 2, 3),
        "beta_1": 0.8,
        "beta_2": 0.99,
        "epsilon": 1e-5,
        "weight_decay": 0.2,
        "exclude_from_weight_decay": ["bias", "gamma"],
        "skip_nonfinite": False,
        "jit_compile": False,
        "name": "mine",
        "clipnorm": 2.0,
        "use_ema": True,
        "ema_momentum": 0.5,
        "ema_overwrite_frequency": 7,
    }
    if which == "keras3":
        arguments |= {"gradient_accumulation_steps": 3, "loss_scale_factor": 8.0}
    if name != "BlockNormalizedAdamW":
        arguments |= {"exclude_from_layer_adaptation": [], "weight_norm_bounds": (0.0, 10.0)}
    if name == "LANS":
        arguments |= {"normalize_gradients": False, "nesterov": False}
    optimizer = getattr(package, name)(**arguments)
    for again in (
        type(optimizer).from_config(optimizer.get_config()),
        base.optimizers.deserialize(base.optimizers.serialize(optimizer)),
    ):
        assert type(again) is type(optimizer)
        assert again.get_config() == optimizer.get_config()
        assert again.hyperparameters == optimizer.hyperparameters
        config = again.get_config()
        for key in arguments.keys() - {"learning_rate", "weight_norm_bounds"}:
            assert config[key] == arguments[key], key


@both_kerases
def test_none_and_empty_lists_stay_what_they_are(which: str) -> None:
    make = harness.PACKAGES[which].LANS
    assert make().get_config()["exclude_from_weight_decay"] is None
    config = make(exclude_from_weight_decay=[], exclude_from_layer_adaptation=[]).get_config()
    assert config["exclude_from_weight_decay"] == config["exclude_from_layer_adaptation"] == []


@both_kerases
def test_the_inherited_exclusion_method_adds_to_the_patterns(which: str) -> None:
    package, start = harness.PACKAGES[which], harness.start_values()
    variables = [
        harness.variable(which, value.astype(np.float32), f"block_{index}")
        for index, value in enumerate(start)
    ]
    optimizer = package.LANS(exclude_from_weight_decay=["block_0"])
    optimizer.exclude_from_weight_decay(var_list=[variables[2]], var_names=["_3$"])
    again = package.LANS.from_config(optimizer.get_config())
    for each in (optimizer, again):
        table = tf_lans.describe(each, variables)
        assert [row.decays for row in table] == [False, True, False, False, True]
    with pytest.raises(TypeError, match="regular expressions in var_names"):
        optimizer.exclude_from_weight_decay(["bias"])
    optimizer.build(variables)
    with pytest.raises(ValueError, match="after the optimizer was built"):
        optimizer.exclude_from_weight_decay(var_names=["block_4"])


@both_kerases
def test_patterns_that_match_nothing_are_named_once(which: str, recwarn) -> None:
    arguments = {
        "exclude_from_weight_decay": ["block_1", "gamma", "beta"],
        "exclude_from_layer_adaptation": ["block"],
    }
    run = harness.Run(which, "LANS", [np.ones(2, np.float32)] * 2, **arguments)
    run.step([np.ones(2, np.float32)] * 2)
    messages = [str(each.message) for each in recwarn if "matches none" in str(each.message)]
    assert len(messages) == 1
    assert "'gamma', 'beta'" in messages[0]
    assert "block_1" not in messages[0]


@both_kerases
def test_blocks_of_one_path_are_told_apart(which: str) -> None:
    variables = [
        harness.variable(which, np.ones(2, np.float32), name) for name in ("tower", "head", "tower")
    ]
    optimizer = harness.PACKAGES[which].LANS(0.01)
    optimizer.exclude_from_weight_decay(var_list=variables[:1])
    optimizer.watch_gradients()
    names = ["tower", "head", "tower#2"]
    assert [row.block for row in tf_lans.describe(optimizer, variables)] == names
    gradients = [tf.fill([2], size) for size in (3.0, 4.0, 12.0)]
    with pytest.warns(UserWarning, match="2 blocks have the path 'tower', and all of them are"):
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
    found = optimizer.diagnostics()
    assert list(found.trust_ratios) == list(found.gradient_norms) == names
    assert found.gradient_norm == pytest.approx(13 * 2**0.5)


@both_kerases
def test_names_under_a_strategy_have_no_replica_suffix(which: str) -> None:
    run = harness.Run(which, "LANS", [np.ones(2, np.float32)], "mirrored")
    assert list(run.optimizer.trust_ratios()) == ["block_0"]
    assert block_selection.block_path(run.variables[0]) == "block_0"


@both_kerases
def test_describe_prints_a_table_and_refuses_strangers(which: str) -> None:
    base = harness.BASES[which]
    model = base.Sequential([base.layers.Dense(4, name="dense")])
    optimizer = harness.PACKAGES[which].LANS(exclude_from_layer_adaptation=["bias"])
    with pytest.raises(ValueError, match="build"):
        tf_lans.describe(optimizer, model)
    model.build((None, 3))
    table = tf_lans.describe(optimizer, model)
    assert [row[1:] for row in table] == [((3, 4), True, True), ((4,), True, False)]
    lines = str(table).splitlines()
    assert lines[0].split() == ["block", "shape", "decays", "adapts"]
    assert lines[2].split()[-2:] == ["yes", "no"]
    scaled = base.mixed_precision.LossScaleOptimizer(optimizer)
    assert tf_lans.describe(scaled, model) == table
    with pytest.raises(TypeError, match="SGD"):
        tf_lans.describe(base.optimizers.SGD(), model)


def built_without(variable: tf.Variable) -> None:
    optimizer = harness.make("tf_keras")
    optimizer.build([tf.Variable([1.0], name="known")])
    optimizer.apply_gradients([(tf.ones(1), variable)])


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (
            lambda variable: harness.make("tf_keras", mesh=object()),
            ValueError,
            "LANS got mesh=...: DTensor is not supported, use tf.distribute",
        ),
        (
            lambda variable: harness.make("tf_keras").apply_gradients(
                [(tf.ones(1), variable)], clip=1, scale=2
            ),
            TypeError,
            r"apply_gradients\(\) got unknown arguments: clip, scale$",
        ),
        (
            built_without,
            KeyError,
            r"LANS was built without the variable late:0: call build\(\) with all trainable",
        ),
    ],
    ids=["mesh", "unknown arguments", "unknown variable"],
)
def test_what_tf_keras_cannot_do_is_refused(act: Callable, error: type, message: str) -> None:
    variable = tf.Variable([1.0], name="late")
    with pytest.raises(error, match=message):
        act(variable)
    np.testing.assert_array_equal(variable.numpy(), [1.0])


def test_an_optimizer_without_a_name_steps() -> None:
    optimizer = harness.PACKAGES["tf_keras"].LANS(0.1, name=None)
    variable = tf.Variable([1.0])
    optimizer.apply_gradients([(tf.ones(1), variable)])
    assert variable.numpy() < 1


def start_python(code: str, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output_of(process: subprocess.Popen) -> str:
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    return output.strip()


def test_importing_the_package_imports_no_framework() -> None:
    code = (
        "import sys, tf_lans, tf_lans.recipes; tf_lans.describe\n"
        "print(sorted({'tensorflow', 'keras', 'tf_keras', 'official'} & set(sys.modules)))"
    )
    assert output_of(start_python(code)) == "[]"


def test_the_class_is_the_one_for_tf_keras() -> None:
    code = (
        "import tf_lans; first = tf_lans.LANS\n"
        "import tensorflow as tf\n"
        "assert tf_lans.LANS is first\n"
        "assert isinstance(tf_lans.LANS(), tf.keras.optimizers.Optimizer)\n"
        "schedules = tf.keras.optimizers.schedules\n"
        "assert issubclass(tf_lans.WarmupConstantDecay, schedules.LearningRateSchedule)\n"
        "print(first.__module__)"
    )
    started = [start_python(code, TF_USE_LEGACY_KERAS=legacy) for legacy in "01"]
    assert [output_of(each) for each in started] == ["tf_lans.keras3", "tf_lans.tf_keras"]


def test_unknown_names_are_no_attributes() -> None:
    with pytest.raises(AttributeError, match="LION"):
        _ = tf_lans.LION


def test_recipes_are_the_published_ones() -> None:
    lans, lamb = recipes.LANS_96K_33K, recipes.LAMB_64K_32K
    assert lans.phase1.schedule_arguments() == {
        "peak_learning_rate": 0.00675,
        "total_steps": 3519,
        "warmup_steps": 1500,
        "constant_steps": 963,
    }
    assert lans.phase2.schedule_arguments()["warmup_steps"] == 150
    assert lans.phase2.schedule_arguments()["constant_steps"] == 84
    assert (lans.phase1.global_batch_size, lans.phase2.global_batch_size) == (98_304, 33_792)
    assert lamb.phase1.schedule_arguments()["warmup_steps"] == 2000
    assert lamb.phase2.schedule_arguments()["warmup_steps"] == 200
    for recipe in (lans, lamb):
        optimizer = recipe.create_optimizer(recipe.phase2, exclude_from_weight_decay=["bias"])
        assert type(optimizer).__name__ == recipe.optimizer
        assert optimizer.get_config()["exclude_from_weight_decay"] == ["bias"]
        assert optimizer.weight_decay == 0.01
