"""What every finetuning run is made of, whatever its task: settings, optimizer, experiment."""

import dataclasses
import math
from typing import Any

from official.core import config_definitions
from official.nlp.configs import encoders

from official_bert import devices, optimization, trainer
from tfrecords.errors import UserError

OPTIMIZERS = ("block_normalized_adamw", "adamw", "lans", "lamb")
# Layer-wise methods set each block's step as a share of its weights, Adam-like ones in absolute
# terms. No published values exist for these; sweep --learning_rates for your model.
LEARNING_RATES = {"block_normalized_adamw": 1e-4, "adamw": 1e-4, "lans": 2e-3, "lamb": 2e-3}
# What seeds of TensorFlow, NumPy and the order of rows have in common.
MAX_SEED = 2**31 - 1
_NO_DECAY = ["layer_norm", "bias"]
# Steps between looks at a run: a fiftieth of it, within these bounds.
_SHORTEST_LOOP, _LONGEST_LOOP = 10, 100


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """One finetuning run, but for what its task adds.

    Attributes:
        model_dir: folder of the run.
        init_checkpoint: where the encoder comes from, as `starting_point.find` takes it.
        config_file: recipe or `params.yaml` with the encoder's size; empty: the checkpoint's.
        vocab_file: WordPiece vocabulary; empty: the checkpoint's.
        lower_case: casing of the text; None: the checkpoint's.
        optimizer: one of `OPTIMIZERS`.
        learning_rate: the peak; None: `LEARNING_RATES` of the optimizer.
        warmup_ratio: the share of the steps over which the rate rises.
        weight_decay: on all but biases and norms.
        epochs: passes over the training data.
        train_steps: steps, in place of `epochs`.
        batch_size: rows of a global batch.
        seq_length: word pieces in a row; None: the task's own choice.
        seed: draws new weights, dropout and the data's order.
        distribution_strategy: as in training.
        num_gpus: as in training.
        mixed_precision_dtype: as in training.

    Raises:
        UserError: a number that no run can be made of; names the flag.
    """

    model_dir: str
    init_checkpoint: str = ""
    config_file: str = ""
    vocab_file: str = ""
    lower_case: bool | None = None
    optimizer: str = OPTIMIZERS[0]
    learning_rate: float | None = None
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    epochs: float = 2.0
    train_steps: int | None = None
    batch_size: int = 32
    seq_length: int | None = None
    seed: int = 0
    distribution_strategy: str = "one_device"
    num_gpus: int = 0
    mixed_precision_dtype: str = "float32"

    def __post_init__(self) -> None:
        for name in ("batch_size", "train_steps", "seq_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"--{name} is {value}; expected at least 1")
        for name in ("epochs", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"--{name} is {value}; expected a number above 0")
        if not 0 <= self.weight_decay < math.inf:
            raise UserError(f"--weight_decay is {self.weight_decay}; expected at least 0")
        if not 0 <= self.seed <= MAX_SEED:
            raise UserError(f"--seed is {self.seed}; expected 0 to {MAX_SEED}")
        if not 0 <= self.warmup_ratio <= 1:
            raise UserError(f"--warmup_ratio is {self.warmup_ratio}; expected 0 to 1")

    @property
    def peak_learning_rate(self) -> float:
        """The rate asked for, or the optimizer's default."""
        if self.learning_rate is None:
            return LEARNING_RATES[self.optimizer]
        return self.learning_rate

    def steps(self, num_rows: int) -> int:
        """Steps of the run over `num_rows` training rows."""
        return self.train_steps or max(1, round(self.epochs * num_rows / self.batch_size))


def row_length(
    settings: Settings, encoder: encoders.EncoderConfig, default: int, flag: str = "--seq_length"
) -> int:
    """Word pieces of a row: what was asked for, or `default`, or all that the encoder has.

    Raises:
        UserError: more was asked for than the encoder has positions.
    """
    positions = encoder.get().max_position_embeddings
    if settings.seq_length is None:
        return min(default, positions)
    if settings.seq_length > positions:
        raise UserError(
            f"{flag} is {settings.seq_length}, the encoder has max_position_embeddings "
            f"{positions}; lower it"
        )
    return settings.seq_length


def optimization_config(settings: Settings) -> optimization.OptimizationConfig:
    """An optimizer with linear warmup over a share of the run, then linear decay to 0."""
    decay_field = "weight_decay_rate" if settings.optimizer == "adamw" else "weight_decay"
    fields: dict[str, Any] = {
        "exclude_from_weight_decay": _NO_DECAY,
        decay_field: settings.weight_decay,
    }
    schedule = {
        "peak_learning_rate": settings.peak_learning_rate,
        "warmup_ratio": settings.warmup_ratio,
    }
    return optimization.OptimizationConfig(
        {
            "optimizer": {"type": settings.optimizer, settings.optimizer: fields},
            "learning_rate": {
                "type": "warmup_constant_decay",
                "warmup_constant_decay": schedule,
            },
        }
    )


def runtime(settings: Settings) -> devices.RuntimeConfig:
    """Where a run takes place."""
    return devices.RuntimeConfig(
        distribution_strategy=settings.distribution_strategy,
        num_gpus=settings.num_gpus,
        mixed_precision_dtype=settings.mixed_precision_dtype,
    )


def experiment(
    settings: Settings, task: config_definitions.TaskConfig, train_steps: int
) -> config_definitions.ExperimentConfig:
    """The whole config of a run of `train_steps`, evaluated at its end."""
    loop = min(_LONGEST_LOOP, max(_SHORTEST_LOOP, train_steps // 50))
    return config_definitions.ExperimentConfig(
        runtime=runtime(settings),
        task=task,
        trainer=trainer.TrainerConfig(
            train_steps=train_steps,
            steps_per_loop=loop,
            summary_interval=loop,
            # Nothing is saved inside of a loop.
            checkpoint_interval=max(loop, train_steps // 5),
            validation_interval=train_steps,
            max_to_keep=2,
            recovery_max_trials=-1,
            optimizer_config=optimization_config(settings),
        ),
    )
