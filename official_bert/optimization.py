"""Our optimizers and schedule as Model Garden configs, and what builds them.

`OptimizationConfig` is Model Garden's own with four more choices: the optimizers `lans`,
`lamb` and `block_normalized_adamw`, and the learning rate `warmup_constant_decay`. Inside our
experiments `lamb` is Algorithm 1 of arXiv 2006.13484 (decay inside the trust ratio, float32
moments); every other type stays Model Garden's.
"""

import dataclasses
from typing import Any

import tf_keras
from official.core import config_definitions
from official.modeling import optimization as model_garden
from official.modeling.hyperparams import base_config
from official.modeling.optimization import optimizer_factory
from official.modeling.optimization.configs import optimization_config, optimizer_config

import tf_lans.tf_keras as tf_lans
from tf_lans.block_selection import unmatched_patterns
from tfrecords.errors import UserError


@dataclasses.dataclass
class BlockNormalizedAdamWConfig(optimizer_config.BaseOptimizerConfig):
    """Fields of `tf_lans.BlockNormalizedAdamW` (learning rate aside)."""

    name: str = "BlockNormalizedAdamW"
    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-6
    weight_decay: float = 0.01
    exclude_from_weight_decay: list[str] | None = None
    skip_nonfinite: bool = True
    jit_compile: bool = True


@dataclasses.dataclass
class LAMBConfig(BlockNormalizedAdamWConfig):
    """Fields of `tf_lans.LAMB` (learning rate aside)."""

    name: str = "LAMB"
    exclude_from_layer_adaptation: list[str] | None = None
    weight_norm_bounds: list[float] | None = None


@dataclasses.dataclass
class LANSConfig(LAMBConfig):
    """Fields of `tf_lans.LANS` (learning rate aside)."""

    name: str = "LANS"
    normalize_gradients: bool = True
    nesterov: bool = True


@dataclasses.dataclass
class OptimizerConfig(optimization_config.OptimizerConfig):
    """Model Garden's choice of optimizer, with ours; `lamb` is ours here."""

    lans: LANSConfig = dataclasses.field(default_factory=LANSConfig)
    # Model Garden types the field as its own LAMBConfig; ours replaces it on purpose.
    lamb: LAMBConfig = dataclasses.field(default_factory=LAMBConfig)  # type: ignore[assignment]
    block_normalized_adamw: BlockNormalizedAdamWConfig = dataclasses.field(
        default_factory=BlockNormalizedAdamWConfig
    )


@dataclasses.dataclass
class WarmupConstantDecayConfig(base_config.Config):
    """Fields of `tf_lans.WarmupConstantDecay`: eq. (9), or eq. (8) with no constant phase.

    Give either `warmup_steps` (and `constant_steps`) or `warmup_ratio` (and `constant_ratio`).
    `total_steps` is `trainer.train_steps` when it is left None.
    """

    peak_learning_rate: float = 1e-3
    total_steps: int | None = None
    warmup_steps: int | None = None
    constant_steps: int | None = None
    warmup_ratio: float | None = None
    constant_ratio: float | None = None
    decay: str = "linear"
    final_learning_rate: float = 0.0


@dataclasses.dataclass
class LrConfig(optimization_config.LrConfig):
    """Model Garden's choice of learning rate, with ours."""

    warmup_constant_decay: WarmupConstantDecayConfig = dataclasses.field(
        default_factory=WarmupConstantDecayConfig
    )


@dataclasses.dataclass
class OptimizationConfig(optimization_config.OptimizationConfig):
    """Model Garden's `OptimizationConfig` over the extended choices."""

    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    learning_rate: LrConfig = dataclasses.field(default_factory=LrConfig)


OPTIMIZERS: dict[str, type[tf_keras.optimizers.Optimizer]] = {
    "lans": tf_lans.LANS,
    "lamb": tf_lans.LAMB,
    "block_normalized_adamw": tf_lans.BlockNormalizedAdamW,
}


def register() -> None:
    """Adds our names to Model Garden's tables, for experiments that are not ours.

    Idempotent. `lamb` is left alone: it is Model Garden's name, and other experiments in the
    same process must keep what they asked for.
    """
    for key in ("lans", "block_normalized_adamw"):
        optimizer_factory.LEGACY_OPTIMIZERS_CLS[key] = OPTIMIZERS[key]
        optimizer_factory.NEW_OPTIMIZERS_CLS[key] = OPTIMIZERS[key]
    optimizer_factory.LR_CLS["warmup_constant_decay"] = _schedule_from_fields


def schedule_fields(config: WarmupConstantDecayConfig, train_steps: int) -> dict[str, Any]:
    """The schedule's arguments with `total_steps` filled in.

    Args:
      config: the fields as the user gave them.
      train_steps: length of the run in steps, the default of `total_steps`.

    Raises:
      UserError: both steps and ratios are given, or neither.
    """
    fields = config.as_dict()
    if fields["total_steps"] is None:
        fields["total_steps"] = train_steps
    by_steps = fields["warmup_steps"] is not None or fields["constant_steps"] is not None
    by_ratio = fields["warmup_ratio"] is not None or fields["constant_ratio"] is not None
    if by_steps == by_ratio:
        raise UserError(
            f"warmup_constant_decay got {'both steps and ratios' if by_steps else 'no warmup'}: "
            "set warmup_steps and constant_steps, or warmup_ratio and constant_ratio"
        )
    kept, dropped = ("steps", "ratio") if by_steps else ("ratio", "steps")
    for phase in ("warmup", "constant"):
        del fields[f"{phase}_{dropped}"]
        if fields[f"{phase}_{kept}"] is None:
            fields[f"{phase}_{kept}"] = 0
    return fields


def with_schedule_length(params: config_definitions.ExperimentConfig) -> Any:
    """The config with the schedule's `total_steps` written out, so that the run records it.

    A run that is continued with another `train_steps` must not change its schedule silently.
    """
    config = params.trainer.optimizer_config
    if config.learning_rate.type != "warmup_constant_decay":
        return params
    schedule = config.learning_rate.warmup_constant_decay
    if schedule.total_steps is not None:
        return params
    schedule = schedule.replace(total_steps=params.trainer.train_steps)
    learning_rate = config.learning_rate.replace(warmup_constant_decay=schedule)
    config = config.replace(learning_rate=learning_rate)
    return params.replace(trainer=params.trainer.replace(optimizer_config=config))


def _schedule_from_fields(**fields: Any) -> tf_keras.optimizers.schedules.LearningRateSchedule:
    fields = {key: value for key, value in fields.items() if value is not None}
    if "warmup_ratio" in fields:
        return tf_lans.WarmupConstantDecay.from_ratios(**fields)
    return tf_lans.WarmupConstantDecay(**fields)


def build_learning_rate(
    config: optimization_config.OptimizationConfig, train_steps: int
) -> float | tf_keras.optimizers.schedules.LearningRateSchedule:
    """The run's learning rate: a schedule of the optimizer's `iterations`, or a constant.

    Raises:
      UserError: the schedule is impossible, for example longer phases than the run.
    """
    if config.learning_rate.type != "warmup_constant_decay":
        return model_garden.OptimizerFactory(config).build_learning_rate()
    if config.warmup.type is not None:
        raise UserError(
            f"optimizer_config.warmup.type is {config.warmup.type!r}, but "
            "warmup_constant_decay has its own warmup: remove optimizer_config.warmup"
        )
    fields = schedule_fields(config.learning_rate.warmup_constant_decay, train_steps)
    try:
        schedule = _schedule_from_fields(**fields)
    except (TypeError, ValueError) as error:
        raise UserError(f"learning_rate.warmup_constant_decay: {error}") from error
    if fields["total_steps"] < train_steps:
        raise UserError(
            f"learning_rate.warmup_constant_decay.total_steps is {fields['total_steps']}, "
            f"shorter than trainer.train_steps {train_steps}: leave total_steps out, or make "
            "it at least as long as the run"
        )
    return schedule


def build_optimizer(
    config: optimization_config.OptimizationConfig, train_steps: int
) -> tf_keras.optimizers.Optimizer:
    """The optimizer a config describes, ours or Model Garden's.

    Args:
      config: `trainer.optimizer_config`.
      train_steps: `trainer.train_steps`, the default length of the schedule.

    Raises:
      UserError: no such type, or a hyper-parameter out of its range.
    """
    kind = config.optimizer.type
    if kind is None or not hasattr(config.optimizer, kind):
        raise UserError(
            f"optimizer_config.optimizer.type is {kind!r}; expected one of "
            f"{', '.join(OPTIMIZERS)} or adamw"
        )
    if isinstance(optimizer_factory.NEW_OPTIMIZERS_CLS.get(kind), str):
        raise UserError(
            f"optimizer_config.optimizer.type is {kind!r}, a name that Model Garden has kept "
            f"without an optimizer; expected one of {', '.join(OPTIMIZERS)} or adamw"
        )
    learning_rate = build_learning_rate(config, train_steps)
    if kind not in OPTIMIZERS:
        return model_garden.OptimizerFactory(config).build_optimizer(learning_rate)
    fields = config.optimizer.get().as_dict()
    for key in ("clipnorm", "clipvalue", "global_clipnorm"):
        if fields[key] is None:
            del fields[key]
    if fields.get("weight_norm_bounds") is not None:
        fields["weight_norm_bounds"] = tuple(fields["weight_norm_bounds"])
    try:
        return OPTIMIZERS[kind](learning_rate=learning_rate, **fields)
    except (TypeError, ValueError) as error:
        raise UserError(f"optimizer_config.optimizer.{kind}: {error}") from error


def check_patterns(
    config: optimization_config.OptimizationConfig, variable_paths: list[str]
) -> None:
    """Refuses an exclusion pattern that matches no variable of the model.

    A recipe knows its model: a pattern without effect is a typing mistake that would change
    the training silently.

    Raises:
      UserError: naming the pattern and some of the variables there are.
    """
    fields = config.optimizer.get().as_dict()
    for field in ("exclude_from_weight_decay", "exclude_from_layer_adaptation"):
        patterns = fields.get(field)
        unmatched = [] if patterns is None else unmatched_patterns(patterns, variable_paths)
        if unmatched:
            raise UserError(
                f"optimizer.{config.optimizer.type}.{field}: {unmatched[0]!r} matches no "
                f"variable of the model; expected a regular expression found in a name such as "
                f"{', '.join(variable_paths[:3])}"
            )


def current_learning_rate(optimizer: tf_keras.optimizers.Optimizer) -> Any:
    """Learning rate of the update that comes next, as a float32 scalar (tensor or float).

    tf_keras keeps the schedule behind `learning_rate` in new-style optimizers and hands it out
    as it is in legacy ones (Model Garden's AdamWeightDecay).
    """
    rate = getattr(optimizer, "_learning_rate", None)
    if rate is None:
        rate = optimizer.learning_rate
    return rate(optimizer.iterations) if callable(rate) else rate
