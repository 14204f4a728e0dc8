"""Our optimizers as Model Garden configs."""

import dataclasses
import inspect

import numpy as np
import pytest
import tensorflow as tf
from official.modeling import optimization as model_garden
from official.modeling.optimization import lamb, optimizer_factory
from official.modeling.optimization.configs import optimizer_config

import tf_lans.tf_keras
from official_bert import optimization
from tfrecords.errors import UserError

BASE = {field.name for field in dataclasses.fields(optimizer_config.BaseOptimizerConfig)}


@pytest.mark.parametrize("kind", sorted(optimization.OPTIMIZERS))
def test_config_fields_are_the_constructors_arguments(kind: str) -> None:
    config = getattr(optimization.OptimizerConfig(), kind)
    signature = inspect.signature(optimization.OPTIMIZERS[kind]).parameters
    expected = {
        name: parameter.default
        for name, parameter in signature.items()
        if name not in ("learning_rate", "kwargs")
    }
    fields = {name: value for name, value in config.as_dict().items() if name not in BASE}
    assert fields == expected


def config(kind: str, **fields) -> optimization.OptimizationConfig:
    return optimization.OptimizationConfig(
        {
            "optimizer": {"type": kind, kind: fields},
            "learning_rate": {"type": "constant", "constant": {"learning_rate": 0.5}},
        }
    )


@pytest.mark.parametrize("kind", sorted(optimization.OPTIMIZERS))
def test_every_field_reaches_the_optimizer(kind: str) -> None:
    fields = {"beta_1": 0.8, "weight_decay": 0.2, "exclude_from_weight_decay": ["bias"]}
    fields |= {"global_clipnorm": 2.0, "skip_nonfinite": False}
    if kind != "block_normalized_adamw":
        fields |= {"weight_norm_bounds": [0.1, 10.0], "exclude_from_layer_adaptation": []}
    built = optimization.build_optimizer(config(kind, **fields), 10).get_config()
    for name, value in fields.items():
        found = built[name]
        assert (list(found) if isinstance(value, list) else found) == pytest.approx(value)


def test_adamw_stays_model_gardens() -> None:
    built = optimization.build_optimizer(config("adamw", weight_decay_rate=0.02), 10)
    assert type(built).__name__ == "AdamWeightDecay"


def test_registration_is_idempotent_and_leaves_model_gardens_lamb() -> None:
    optimization.register()
    optimization.register()
    assert optimizer_factory.LEGACY_OPTIMIZERS_CLS["lans"] is tf_lans.tf_keras.LANS
    assert optimizer_factory.LEGACY_OPTIMIZERS_CLS["lamb"] is lamb.LAMB
    # A stock factory, as other experiments use it, now builds ours from our config.
    factory = model_garden.OptimizerFactory(config("lans", beta_1=0.7))
    built = factory.build_optimizer(factory.build_learning_rate())
    assert isinstance(built, tf_lans.tf_keras.LANS)
    assert built.get_config()["beta_1"] == 0.7


def after_a_step(optimizer, variable: tf.Variable, gradient: float) -> np.ndarray:
    optimizer.apply_gradients(
        [(tf.fill(variable.shape, tf.cast(gradient, variable.dtype)), variable)]
    )
    return variable.numpy().astype(np.float64)


@pytest.mark.parametrize(
    ("dtype", "gradient"), [(tf.bfloat16, 1.0), (tf.float32, np.nan)], ids=["bfloat16", "nan"]
)
def test_model_gardens_lamb_makes_nan_where_ours_does_not(dtype, gradient: float) -> None:
    """In bfloat16 its 1 - 0.999^t is zero; a gradient that is not finite it takes as it comes."""
    theirs = after_a_step(lamb.LAMB(0.01), tf.Variable(tf.ones([4], dtype)), gradient)
    assert np.isnan(theirs).all()
    ours = after_a_step(tf_lans.tf_keras.LAMB(0.01), tf.Variable(tf.ones([4], dtype)), gradient)
    np.testing.assert_array_equal(ours < 1, np.isfinite(gradient))
    assert np.isfinite(ours).all()


def test_patterns_without_a_match_are_refused() -> None:
    paths = ["encoder/layer_norm/gamma", "encoder/dense/kernel"]
    optimization.check_patterns(config("lans", exclude_from_weight_decay=["layer_norm"]), paths)
    with pytest.raises(UserError, match="'LayerNorm' matches no variable"):
        optimization.check_patterns(config("lans", exclude_from_weight_decay=["LayerNorm"]), paths)


@pytest.mark.parametrize("name", ["adafactor", "slide"])
def test_names_without_an_optimizer_are_refused(name: str) -> None:
    chosen = optimization.OptimizationConfig(
        {"optimizer": {"type": name}, "learning_rate": {"type": "constant"}}
    )
    with pytest.raises(UserError, match=f"'{name}', a name that Model Garden has kept without"):
        optimization.build_optimizer(chosen, 10)


def test_model_gardens_warmup_is_refused_beside_ours() -> None:
    both = optimization.OptimizationConfig(
        {
            "optimizer": {"type": "lans"},
            "learning_rate": {
                "type": "warmup_constant_decay",
                "warmup_constant_decay": {"warmup_steps": 1},
            },
            "warmup": {"type": "linear"},
        }
    )
    with pytest.raises(UserError, match="remove optimizer_config.warmup"):
        optimization.build_learning_rate(both, 10)
