"""What every field of an experiment may be, beyond its type, and which fields nothing reads.

Model Garden accepts any number anywhere: `max_to_keep: 0` fails at the first save, a dropout rate
of 1.5 in the first step, and `best_checkpoint_export_subdir` never.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from official.core import config_definitions

from official_bert import devices, optimization
from official_bert.input import PretrainDataConfig
from tfrecords import reader

# What each strategy can be told about its all-reduce; the others have one way only.
ALL_REDUCE = {
    "mirrored": ("nccl", "hierarchical_copy"),
    "multi_worker_mirrored": ("nccl", "ring"),
}
TRAIN, EVAL = "train", "eval"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Range:
    """The values of one field.

    Attributes:
        allows: whether a value of the field's type will do. None, where the type has it, always
            does.
        expected: the same in words, after "expected".
        example: a value that will do, for the way out.
        mode: "train" or "eval" where only that part of a run reads the field, otherwise "".
    """

    allows: Callable[[Any], bool]
    expected: str
    example: Any
    mode: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unread:
    """A field that Model Garden's configs have and no run of ours reads.

    Attributes:
        accepted: the values that ask for nothing.
        instead: what there is in its place, a clause; "" where there is nothing.
    """

    accepted: tuple[Any, ...]
    instead: str = ""


def _at_least(minimum: int, example: int, mode: str = "") -> Range:
    return Range(
        allows=lambda value: value >= minimum,
        expected=f"at least {minimum}",
        example=example,
        mode=mode,
    )


def _one_of(*choices: str) -> Range:
    return Range(
        allows=lambda value: value in choices,
        expected=f"one of {', '.join(choices)}",
        example=choices[0],
    )


_POSITIVE = Range(
    allows=lambda value: value > 0 and math.isfinite(value), expected="more than 0", example=0.02
)
_NON_NEGATIVE = Range(
    allows=lambda value: value >= 0 and math.isfinite(value), expected="at least 0", example=0.01
)
_DROPOUT = Range(
    allows=lambda value: 0 <= value < 1, expected="at least 0 and less than 1", example=0.1
)
_DECAY_RATE = dataclasses.replace(_DROPOUT, example=0.9)

TRAINER = {
    "train_steps": _at_least(1, 1000, TRAIN),
    "steps_per_loop": _at_least(1, 10),
    "summary_interval": _at_least(1, 10),
    "checkpoint_interval": _at_least(1, 100),
    "validation_interval": _at_least(1, 100),
    "validation_steps": Range(
        allows=lambda value: value == -1 or value >= 1,
        expected="at least 1, or -1 for the whole split",
        example=-1,
    ),
    "max_to_keep": _at_least(1, 5),
    "max_skipped_steps": _at_least(1, 20),
}
TASK = {
    "micro_batch_size": _at_least(0, 0, TRAIN),
    "seed": Range(
        allows=lambda value: 0 <= value < 2**32, expected="at least 0 and below 2**32", example=0
    ),
}
DATA = {
    "global_batch_size": _at_least(1, 512),
    "seq_length": _at_least(1, 128),
    "seed": Range(
        allows=lambda value: -(2**63) <= value < 2**63, expected="a 64-bit integer", example=0
    ),
    "masked_lm_prob": Range(
        allows=lambda value: 0 < value <= 1, expected="above 0 and up to 1", example=0.15
    ),
    "max_predictions_per_seq": _at_least(1, 20),
    "on_corrupt": _one_of(reader.RAISE, reader.SKIP),
    "corrupt_budget": _at_least(0, 0),
}
ENCODER = {
    "vocab_size": _at_least(1, 30522),
    "hidden_size": _at_least(1, 768),
    "num_layers": _at_least(1, 12),
    "num_attention_heads": _at_least(1, 12),
    "intermediate_size": _at_least(1, 3072),
    "max_position_embeddings": _at_least(1, 512),
    "type_vocab_size": _at_least(1, 2),
    "embedding_size": _at_least(1, 768),
    "dropout_rate": _DROPOUT,
    "attention_dropout_rate": _DROPOUT,
    "initializer_range": _POSITIVE,
}
MODEL = {"mlm_initializer_range": _POSITIVE}
HEAD = {
    "inner_dim": _at_least(1, 768),
    "num_classes": _at_least(2, 2),
    "dropout_rate": _DROPOUT,
    "cls_token_idx": _at_least(0, 0),
}
RUNTIME = {
    "num_gpus": _at_least(0, 0),
    "bytes_per_pack": _at_least(0, 0),
    "num_packs": _at_least(0, 1),
    "task_index": _at_least(-1, 0),
    "num_workers": _at_least(1, 2),
    "mixed_precision_dtype": _one_of(*filter(None, devices.PRECISIONS)),
    "distribution_strategy": dataclasses.replace(
        _one_of(*devices.STRATEGIES),
        allows=lambda value: value.lower() in devices.STRATEGIES,
    ),
    "all_reduce_alg": _one_of("nccl", "hierarchical_copy", "ring"),
    "loss_scale": Range(
        allows=lambda value: (
            value == "dynamic" if isinstance(value, str) else value > 0 and math.isfinite(value)
        ),
        expected='"dynamic" or a number above 0',
        example="dynamic",
    ),
}
# Of Model Garden's own optimizers; ours check themselves, with words of their own.
OPTIMIZER = {
    "beta_1": _DECAY_RATE,
    "beta_2": _DECAY_RATE,
    "momentum": _DECAY_RATE,
    "epsilon": _NON_NEGATIVE,
    "weight_decay": _NON_NEGATIVE,
    "weight_decay_rate": _NON_NEGATIVE,
    "gradient_clip_norm": _NON_NEGATIVE,
    "clipnorm": _POSITIVE,
    "clipvalue": _POSITIVE,
    "global_clipnorm": _POSITIVE,
}
EMA = {"average_decay": _DECAY_RATE, "start_step": _at_least(0, 0)}

_OFF, _UNSET = (False,), (None,)
_RECOVERY = "the optimizer skips a step that is not finite (skip_nonfinite)"
_ORDER = "every epoch is read in a full permutation drawn by its seed"
_KEPT = "trainer.max_to_keep says how many of the newest are kept"
UNREAD_TRAINER = {
    "train_tf_while_loop": Unread(accepted=(True,)),
    "train_tf_function": Unread(accepted=(True,)),
    "allow_tpu_summary": Unread(accepted=_OFF),
    "continuous_eval_timeout": Unread(accepted=(3600,), instead="--mode has no continuous_eval"),
    "best_checkpoint_export_subdir": Unread(accepted=("",), instead=_KEPT),
    "best_checkpoint_eval_metric": Unread(accepted=("",), instead=_KEPT),
    "best_checkpoint_metric_comp": Unread(accepted=("higher",), instead=_KEPT),
    "loss_upper_bound": Unread(accepted=(1e6,), instead=_RECOVERY),
    "recovery_begin_steps": Unread(accepted=(0,), instead=_RECOVERY),
    "recovery_max_trials": Unread(accepted=(0, -1), instead=_RECOVERY),
    "preemption_on_demand_checkpoint": Unread(
        accepted=(True,), instead="a run always saves when it is told to end"
    ),
}
UNREAD_RUNTIME = {
    "run_eagerly": Unread(accepted=_OFF),
    "gpu_thread_mode": Unread(accepted=_UNSET),
    "per_gpu_thread_count": Unread(accepted=(0,)),
    "dataset_num_private_threads": Unread(accepted=_UNSET),
    "batchnorm_spatial_persistent": Unread(accepted=_OFF),
    "num_cores_per_replica": Unread(accepted=(1,)),
    "default_shard_dim": Unread(accepted=(-1,)),
    "use_tpu_mp_strategy": Unread(accepted=_OFF),
    "tpu_enable_xla_dynamic_padder": Unread(accepted=_UNSET),
}
UNREAD_TASK = {
    "differential_privacy_config": Unread(accepted=_UNSET),
    "allow_image_summary": Unread(accepted=_OFF),
    "scale_loss": Unread(accepted=_OFF, instead="the loss is that of the global batch"),
}
UNREAD_MODEL = {"mlm_output_weights_use_proj": Unread(accepted=_OFF)}
UNREAD_DATA = {
    "tfds_name": Unread(accepted=("",), instead="python -m tfrecords.build writes the shards"),
    "tfds_split": Unread(accepted=("",)),
    "tfds_data_dir": Unread(accepted=("",)),
    "tfds_as_supervised": Unread(accepted=_OFF),
    "tfds_skip_decoding_feature": Unread(accepted=("",)),
    "shuffle_buffer_size": Unread(accepted=(100,), instead=_ORDER),
    "deterministic": Unread(accepted=(None, True), instead=_ORDER),
    "sharding": Unread(accepted=(True,), instead="every worker owns its shards"),
    "cache": Unread(accepted=_OFF),
    "cycle_length": Unread(accepted=_UNSET),
    "block_length": Unread(accepted=(1,)),
    "ram_budget": Unread(accepted=_UNSET),
    "prefetch_buffer_size": Unread(accepted=_UNSET),
    "autotune_algorithm": Unread(accepted=_UNSET),
    "enable_tf_data_service": Unread(accepted=_OFF),
    "tf_data_service_address": Unread(accepted=_UNSET),
    "tf_data_service_job_name": Unread(accepted=_UNSET),
    "enable_shared_tf_data_service_between_parallel_trainers": Unread(accepted=_OFF),
    "apply_tf_data_service_before_batching": Unread(accepted=_OFF),
    "drop_remainder": Unread(accepted=(True,), instead="an evaluation reads every example"),
    "trainer_id": Unread(accepted=_UNSET),
}


def problems(params: config_definitions.ExperimentConfig, mode: str) -> dict[str, str]:
    """Every field whose value no run can use: what is said of it, by dotted name.

    Args:
        params: the config, types checked.
        mode: `train`, `eval` or `train_and_eval`: fields that it does not read may be anything.

    Example:
        >>> problems(params, "train")
        {'trainer.max_to_keep': 'trainer.max_to_keep is 0; expected at least 1: set it in ...'}
    """
    found = {}
    for path, config, table, part in _sections(params):
        for name, allowed in table.items():
            value = getattr(config, name, None)
            is_read = part in mode and allowed.mode in mode
            if value is None or not is_read or allowed.allows(value):
                continue
            field, way_out = f"{path}.{name}", _way_out(path, name, allowed)
            found[field] = f"{field} is {value!r}; expected {allowed.expected}: {way_out}"
    return found


def unread(params: config_definitions.ExperimentConfig, mode: str) -> Iterator[str]:
    """Every field that was set although nothing reads it, a line each.

    Args:
        params: the config, types checked.
        mode: as in `problems`.
    """
    task = params.task
    sections: list[tuple[str, Any, Mapping[str, Unread], str]] = [
        ("trainer", params.trainer, UNREAD_TRAINER, ""),
        ("runtime", params.runtime, UNREAD_RUNTIME, ""),
        ("task", task, UNREAD_TASK, ""),
        ("task.model", task.model, UNREAD_MODEL, ""),
    ]
    for name, part in (("train_data", TRAIN), ("validation_data", EVAL)):
        if isinstance(getattr(task, name), PretrainDataConfig):
            sections.append((f"task.{name}", getattr(task, name), UNREAD_DATA, part))
    for path, config, table, part in sections:
        for name, field in table.items():
            value = getattr(config, name, field.accepted[0])
            if part in mode and value not in field.accepted:
                instead = f" ({field.instead})" if field.instead else ""
                yield (
                    f"{path}.{name} is {value!r}, which nothing here reads{instead}; expected "
                    f"{field.accepted[0]!r}: leave it out"
                )
    train, evaluation = task.train_data, task.validation_data
    labelled = "use_next_sentence_label"
    if EVAL in mode and getattr(train, labelled, False) > getattr(evaluation, labelled, True):
        yield (
            f"task.validation_data.{labelled} is False and task.train_data's True, which decides "
            "for both; expected the same: leave it out, or set both to False"
        )
    chosen = params.trainer.optimizer_config
    if chosen.ema is not None:
        yield (
            "trainer.optimizer_config.ema is set, which no step here reads; expected null: leave "
            "it out"
        )


def _sections(
    params: config_definitions.ExperimentConfig,
) -> Iterator[tuple[str, Any, Mapping[str, Range], str]]:
    """(path, config, its table, the mode that reads it), section by section."""
    yield "trainer", params.trainer, TRAINER, ""
    chosen = params.trainer.optimizer_config
    if chosen.optimizer.type not in (None, *optimization.OPTIMIZERS):
        path = f"trainer.optimizer_config.optimizer.{chosen.optimizer.type}"
        yield path, chosen.optimizer.get(), OPTIMIZER, TRAIN
    yield "trainer.optimizer_config.ema", chosen.ema, EMA, TRAIN
    yield "runtime", params.runtime, RUNTIME, ""
    task = params.task
    yield "task", task, TASK, ""
    yield "task.train_data", task.train_data, DATA, TRAIN
    yield "task.validation_data", task.validation_data, DATA, EVAL
    model = task.model
    yield "task.model", model, MODEL, ""
    encoder = getattr(model, "encoder", None)
    if encoder is not None and encoder.type is not None:
        yield f"task.model.encoder.{encoder.type}", encoder.get(), ENCODER, ""
    for index, head in enumerate(getattr(model, "cls_heads", None) or []):
        yield f"task.model.cls_heads[{index}]", head, HEAD, ""


def _way_out(path: str, name: str, allowed: Range) -> str:
    if "[" in path:  # a part of a list has no dotted name
        return f"set it to {allowed.example} in the config file"
    return f"set it in the config file, or --params_override={path}.{name}={allowed.example}"
