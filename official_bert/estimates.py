"""What follows from a config before anything is built: parameters, bytes, batches, rates.

Pure functions of a config and numbers. The parameters are exact; the memory is an estimate.
"""

import dataclasses
from typing import Any

from official.core import config_definitions
from official.nlp.configs import bert, encoders

from official_bert import optimization
from tfrecords import decoding, schema
from tfrecords.manifest import Manifest

# The share of a device's memory from which an estimate, which knows no temporary buffers, is tight.
TIGHT = 0.5
# BERT's share of tokens to guess, where neither shards nor a recipe say another.
MASKED_LM_PROB = 0.15

_FLOAT32 = 4
# Model Garden's optimizers that keep fewer than the two float32 moments of Adam and its family.
_SLOTS = {"sgd": 1, "sgd_experimental": 1, "lars": 1, "adagrad": 1}
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parameters:
    """How many weights a pretrainer has.

    Attributes:
        model: all of them, what a checkpoint holds.
        trained: those that the loss depends on, which have moments: without the encoder's own
            pooler, and without the next-sentence head where no labels train it.
    """

    model: int
    trained: int


def is_bert(task: config_definitions.TaskConfig) -> bool:
    """Whether a task's encoder is one whose size there is a formula for here."""
    encoder = getattr(getattr(task, "model", None), "encoder", None)
    return getattr(encoder, "type", None) in ("bert", "bert_v2")


def parameters(model: bert.PretrainerConfig, next_sentence: bool = True) -> Parameters:
    """The weights of Model Garden's `BertPretrainerV2` over a BERT encoder, by formula.

    With V `vocab_size`, P `max_position_embeddings`, T `type_vocab_size`, E `embedding_size` (H
    where it is None), H `hidden_size`, I `intermediate_size`, L `num_layers`::

        embeddings   (V + P + T) E + 2 E, and E H + H where E is not H
        layer        4 (H^2 + H) + (H I + I) + (I H + H) + 4 H
        pooler       H^2 + H
        masked LM    H E + E + 2 E + V
        head         D H + D + D C + C    for inner_dim D and num_classes C

    Args:
        model: `task.model`, its encoder of type bert or bert_v2.
        next_sentence: whether labels train the heads: `train_data.use_next_sentence_label`.

    Example:
        >>> parameters(large_batch_pretraining().task.model).model
        110697020
    """
    encoder = model.encoder.get()
    hidden, inner = encoder.hidden_size, encoder.intermediate_size
    embedding = _embedding_size(encoder)
    tables = encoder.vocab_size + encoder.max_position_embeddings + encoder.type_vocab_size
    embeddings = tables * embedding + 2 * embedding
    if embedding != hidden:
        embeddings += embedding * hidden + hidden
    layer = 4 * (hidden**2 + hidden) + 2 * hidden * inner + inner + hidden + 4 * hidden
    pooler = hidden**2 + hidden
    masked_lm = hidden * embedding + 3 * embedding + encoder.vocab_size
    heads = sum(_head(head, hidden) for head in model.cls_heads)
    every = embeddings + encoder.num_layers * layer + pooler + masked_lm + heads
    return Parameters(model=every, trained=every - pooler - (0 if next_sentence else heads))


def _head(head: bert.ClsHeadConfig, hidden: int) -> int:
    width = head.inner_dim or hidden
    pooler = hidden * head.inner_dim + head.inner_dim
    return pooler + width * head.num_classes + head.num_classes


def _embedding_size(encoder: encoders.BertEncoderConfig) -> int:
    return encoder.hidden_size if encoder.embedding_size is None else encoder.embedding_size


def predictions(data: config_definitions.DataConfig, manifest: Manifest | None = None) -> int:
    """The masked positions of a row: the config's, the shards', or what BERT's rate of masks makes.

    Args:
        data: `task.train_data`.
        manifest: of its shards; None where there are none yet.
    """
    rate, most = data.masked_lm_prob, data.max_predictions_per_seq
    if manifest is not None and data.seq_length in manifest.seq_lengths:
        choice = decoding.MaskingChoice(masked_lm_prob=rate, max_predictions_per_seq=most)
        return choice.max_predictions(manifest, data.seq_length)
    if most is not None:
        return most
    return schema.default_max_predictions(data.seq_length, MASKED_LM_PROB if rate is None else rate)


def slots(config: optimization.OptimizationConfig) -> int:
    """The float32 numbers that an optimizer keeps for every trained weight.

    Two, the moments m and v, for ours and Adam's family; those of Model Garden that factor theirs
    count alike, and so too high.
    """
    return _SLOTS.get(config.optimizer.type, 2)


def checkpoint_bytes(count: Parameters, num_slots: int = 2, ema: bool = False) -> int:
    """The size of a checkpoint: float32 weights, moments and, where there is one, average.

    Names and the object graph come on top, less than 1 MiB for BERT-Base.

    Args:
        count: the weights.
        num_slots: numbers beside each trained weight.
        ema: whether an exponential moving average of the weights is kept.

    Example:
        >>> checkpoint_bytes(Parameters(model=110_697_020, trained=110_106_428))
        1323639504
    """
    averages = count.model if ema else 0
    return _FLOAT32 * (count.model + num_slots * count.trained + averages)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """The estimated bytes of one replica while it trains.

    Attributes:
        weights: float32 variables, and their copies in the type that is computed in.
        optimizer: moments and moving average.
        gradients: float32, twice while those of micro-batches are summed.
        activations: of the encoder's layers, kept for the backward pass of one micro-batch.
        logits: of the masked words, with their softmax and its gradient.
    """

    weights: int
    optimizer: int
    gradients: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """The sum."""
        return sum(dataclasses.astuple(self))


def layer_activation_bytes(
    encoder: encoders.BertEncoderConfig, examples: int, seq_length: int, width: int
) -> int:
    """An estimate of what one layer keeps for its backward pass, in bytes.

    With b examples of s tokens, H `hidden_size`, I `intermediate_size`, A heads, w bytes a number,
    and d = 1 for a dropout that is on, 0 for one that is off (its mask is a byte a number)::

        b s (w (8 H + 2 I) + 2 d H) + b A s^2 (w (1 + d) + d)

    the first term for the inputs of the matrix products, of the activation and of the norms, the
    second for the attention's probabilities. At w = 2, I = 4 H and dropout it is the
    s b h (34 + 5 a s / h) of Korthikanti, Casper, Lym et al., "Reducing Activation Recomputation
    in Large Transformer Models", arXiv 2205.05198, equation (1). A framework that does not fuse
    element-wise operations keeps more.

    Args:
        encoder: the encoder's fields.
        examples: b.
        seq_length: s.
        width: w, 2 in bfloat16 and float16, 4 in float32.
    """
    hidden_mask = 1 if encoder.dropout_rate else 0
    attention_mask = 1 if encoder.attention_dropout_rate else 0
    hidden = encoder.hidden_size
    numbers = 8 * hidden + 2 * encoder.intermediate_size
    tokens = examples * seq_length * (width * numbers + 2 * hidden_mask * hidden)
    pairs = examples * encoder.num_attention_heads * seq_length**2
    return tokens + pairs * (width * (1 + attention_mask) + attention_mask)


def memory(
    params: config_definitions.ExperimentConfig,
    *,
    examples: int,
    micro_batches: int,
    predictions: int,
) -> Memory:
    """An estimate of the memory of one replica while it trains.

    Weights 4 bytes (6 where a half-precision copy is computed with), each moment 4, gradients 4,
    or 8 where micro-batches are summed; `layer_activation_bytes` a layer; b M V x 4 x 3 bytes for
    the masked words' logits, softmax and gradient. What TensorFlow, cuDNN and XLA keep for
    themselves, and the fragments between buffers, come on top.

    Args:
        params: a pretraining config.
        examples: b, rows of one forward and backward pass.
        micro_batches: how many of them a step sums.
        predictions: M, masked positions of a row.
    """
    task = params.task
    encoder = task.model.encoder.get()
    count = parameters(task.model, task.train_data.use_next_sentence_label)
    width = compute_bytes(params.runtime.mixed_precision_dtype)
    chosen = params.trainer.optimizer_config
    layer = layer_activation_bytes(encoder, examples, task.train_data.seq_length, width)
    averages = 0 if chosen.ema is None else count.model
    return Memory(
        weights=(_FLOAT32 + (width if width < _FLOAT32 else 0)) * count.model,
        optimizer=_FLOAT32 * (slots(chosen) * count.trained + averages),
        gradients=_FLOAT32 * count.trained * (2 if micro_batches > 1 else 1),
        activations=encoder.num_layers * layer,
        logits=3 * _FLOAT32 * examples * predictions * encoder.vocab_size,
    )


def compute_bytes(mixed_precision_dtype: str | None) -> int:
    """The bytes of a number in the type that layers compute in."""
    return 2 if mixed_precision_dtype in ("bfloat16", "float16") else _FLOAT32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batches:
    """How a run cuts its examples.

    Attributes:
        steps: updates of the run.
        global_batch: examples of a step.
        per_worker: of them, those of one worker.
        per_replica: of them, those of one replica.
        per_micro_batch: of them, those of one forward and backward pass.
        seq_length: tokens of an example.
        split_examples: examples of the training split; None where it is not known.
    """

    steps: int
    global_batch: int
    per_worker: int
    per_replica: int
    per_micro_batch: int
    seq_length: int
    split_examples: int | None = None

    @property
    def examples(self) -> int:
        """Examples of the whole run."""
        return self.steps * self.global_batch

    @property
    def epochs(self) -> float | None:
        """Passes over the training split."""
        return self.examples / self.split_examples if self.split_examples else None

    @property
    def micro_batches(self) -> int:
        """Forward and backward passes of a replica in a step."""
        return self.per_replica // self.per_micro_batch

    @property
    def pieces(self) -> int:
        """Parts into which a global batch is cut in all."""
        return self.global_batch // self.per_micro_batch

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a global batch, padding included."""
        return self.global_batch * self.seq_length


def batches(
    params: config_definitions.ExperimentConfig,
    *,
    workers: int,
    replicas: int,
    split_examples: int | None = None,
) -> Batches:
    """The cut of a config's training batch that `preflight.batch_problems` finds nothing in.

    Args:
        params: the config.
        workers: input pipelines.
        replicas: of all workers.
        split_examples: examples of the training split, where it is known.
    """
    data = params.task.train_data
    share = data.global_batch_size // replicas
    return Batches(
        steps=params.trainer.train_steps,
        global_batch=data.global_batch_size,
        per_worker=data.global_batch_size // workers,
        per_replica=share,
        per_micro_batch=getattr(params.task, "micro_batch_size", 0) or share,
        seq_length=data.seq_length,
        split_examples=split_examples,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rate:
    """The learning rate of one update.

    Attributes:
        step: the update, from 1.
        name: what is special about it.
        rate: the rate.
    """

    step: int
    name: str
    rate: float


def learning_rates(config: optimization.OptimizationConfig, train_steps: int) -> list[Rate]:
    """The learning rate at the points that tell a schedule from another, in order.

    For `warmup_constant_decay`: the first update, the ends of warmup and of the constant phase,
    half way down the decay and the last update; for other schedules the first, the last and
    three between. Phases that the run does not have, or does not reach, are left out.

    Args:
        config: `trainer.optimizer_config`.
        train_steps: updates of the run.

    Raises:
        UserError: the schedule is impossible.
    """
    schedule: Any = optimization.build_learning_rate(config, train_steps)
    if hasattr(schedule, "warmup_steps") and hasattr(schedule, "constant_steps"):
        top = schedule.warmup_steps + schedule.constant_steps
        points = {
            "first step": 1,
            "end of warmup": schedule.warmup_steps,
            "end of the constant phase": top if schedule.constant_steps else 0,
            "half way down": (top + schedule.total_steps) // 2,
            "last step": train_steps,
        }
    else:
        quarters = {f"{part}/4 of the run": part * train_steps // 4 for part in (1, 2, 3)}
        points = {"first step": 1, **quarters, "last step": train_steps}
    # Keras hands a schedule the updates done before.
    return [
        Rate(
            step=step, name=name, rate=float(schedule(step - 1) if callable(schedule) else schedule)
        )
        for name, step in points.items()
        if 1 <= step <= train_steps
    ]


def in_words(num_bytes: float) -> str:
    """A size with a unit.

    Example:
        >>> in_words(1_323_639_504)
        '1.2 GiB'
    """
    for unit in _UNITS:
        if abs(num_bytes) < 1024 or unit == _UNITS[-1]:
            break
        num_bytes /= 1024
    return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
