"""What follows from a corpus, a batch and devices: steps, rates, ratios, the cut of a batch.

Pure functions of numbers. The rules start from a published run, the reference, and say how its
numbers move with the batch B. For LANS it is Table 1 of arXiv 2006.13484, for LAMB the run of
arXiv 1904.00962 at 65,536 and 32,768, both in `tf_lans.recipes`.

- The peak rate is the reference's times sqrt(B / B_reference), but no more than a cap, the
  published rate unless another is given: nothing above it was published to converge.
- The ratios of warmup and constant phase are the reference's times B / B_reference up to its
  batch, and the reference's above. This is the rule of arXiv 1904.00962 (its warmup takes as many
  updates at any batch, if the examples are the same, so epochs of warmup in proportion to the
  batch); LANS's phase 1 keeps it, 1.5 times the ratio of LAMB at 1.5 times the batch, its phase 2
  does not, 1.5 times the ratio at nearly the same batch. That it holds for the constant phase too,
  and for other batches than the published, is an assumption.
- Steps are the examples wanted over B, rounded up: the epochs asked for, or, where none are, as
  many examples as the reference saw.
"""

import dataclasses
import fractions
import math

from official_bert import device_table
from tf_lans import recipes, schedules
from tfrecords.errors import UserError

RECIPES = {"lans": recipes.LANS_96K_33K, "lamb": recipes.LAMB_64K_32K}
# Rows of up to so many tokens go by phase 1 of the reference, longer ones by phase 2.
LAST_OF_PHASE_1 = 256
# [CLS] and two [SEP].
_SPECIAL_TOKENS = 3
# About 60 MB of dynamic records of length 128.
EXAMPLES_OF_A_SHARD = 2**18
# More than that is a slip of the keyboard, and would overflow somewhere later.
_MOST_STEPS = 10**9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """The published phase that the rules start from.

    Attributes:
        batch: its global batch, which the ratios belong to.
        rate: the peak rate that the square-root rule starts from.
        rate_batch: the batch of `rate`: `batch`, unless the rate is one's own.
        max_rate: the cap of the square-root rule.
        warmup_ratio: its share of warmup.
        constant_ratio: its share at the peak.
        examples: how many it saw.
        source: where it is published.
    """

    batch: int
    rate: float
    rate_batch: int
    max_rate: float
    warmup_ratio: float
    constant_ratio: float
    examples: int
    source: str


def reference(
    optimizer: str,
    seq_length: int,
    *,
    rate: float | None = None,
    batch: int | None = None,
    max_rate: float | None = None,
) -> Reference:
    """The reference of an optimizer and a sequence length.

    Args:
        optimizer: "lans" or "lamb".
        seq_length: up to 256 it is the recipe's phase 1, above its phase 2.
        rate: a peak rate of one's own, that worked at `batch`; the ratios stay the published ones.
        batch: the batch of `rate`.
        max_rate: the cap; None for the published rate, or `rate` where that is higher.

    Raises:
        UserError: another optimizer, or only one of `rate` and `batch`.

    Example:
        >>> reference("lans", 128).examples
        345931776
    """
    if optimizer not in RECIPES:
        raise UserError(f"--optimizer is {optimizer!r}; expected one of {', '.join(RECIPES)}")
    if (rate is None) != (batch is None):
        raise UserError(
            "--reference_rate and --reference_batch belong together; give both, or neither for "
            "the published ones"
        )
    recipe = RECIPES[optimizer]
    phase = recipe.phase1 if seq_length <= LAST_OF_PHASE_1 else recipe.phase2
    published = phase.peak_learning_rate
    start = published if rate is None else rate
    return Reference(
        batch=phase.global_batch_size,
        rate=start,
        rate_batch=phase.global_batch_size if batch is None else batch,
        max_rate=max(published, start) if max_rate is None else max_rate,
        warmup_ratio=phase.warmup_ratio,
        constant_ratio=phase.constant_ratio,
        examples=phase.total_steps * phase.global_batch_size,
        source=recipe.source,
    )


def learning_rate(start: Reference, batch: int) -> float:
    """min(cap, rate sqrt(B / B_reference)), to four digits.

    Example:
        >>> learning_rate(reference("lans", 128), 8192)
        0.001949
    """
    return min(start.max_rate, _four_digits(start.rate * math.sqrt(batch / start.rate_batch)))


def ratios(start: Reference, batch: int) -> tuple[float, float]:
    """The shares of warmup and constant phase at batch B, to four digits.

    Example:
        >>> ratios(reference("lans", 128), 8192)
        (0.03554, 0.02279)
    """
    scale = min(1.0, batch / start.batch)
    return _four_digits(start.warmup_ratio * scale), _four_digits(start.constant_ratio * scale)


def _four_digits(value: float) -> float:
    return float(f"{value:.4g}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut:
    """How devices share a global batch: B = replicas x micro_batch x micro_batches.

    Attributes:
        global_batch: B.
        replicas: devices.
        workers: machines, each with one input pipeline.
        micro_batch: examples of one forward and backward pass of a replica.
    """

    global_batch: int
    replicas: int
    workers: int
    micro_batch: int

    @property
    def per_worker(self) -> int:
        """Examples of a worker."""
        return self.global_batch // self.workers

    @property
    def per_replica(self) -> int:
        """Examples of a replica."""
        return self.global_batch // self.replicas

    @property
    def micro_batches(self) -> int:
        """Passes of a replica in a step, whose gradients it sums."""
        return self.per_replica // self.micro_batch


def count_workers(replicas: int, devices_per_worker: int) -> int:
    """Machines that hold so many devices.

    Raises:
        UserError: more than one of them, and not all full.
    """
    if replicas <= devices_per_worker:
        return 1
    if replicas % devices_per_worker:
        raise UserError(
            f"--num_devices is {replicas}; expected at most {devices_per_worker}, or a multiple of "
            f"that, since a worker has {devices_per_worker}: take "
            f"{_near(replicas, devices_per_worker)}, or say --devices_per_worker"
        )
    return replicas // devices_per_worker


def cut(global_batch: int, *, replicas: int, workers: int, micro_batch: int) -> Cut:
    """The cut of a batch.

    Raises:
        UserError: B is no multiple of replicas x micro_batch; names the nearest that are.
    """
    unit = replicas * micro_batch
    if global_batch < unit or global_batch % unit:
        share, rest = divmod(global_batch, replicas)
        other = "" if rest or not share else f", or a --micro_batch that divides {share:,}"
        raise UserError(
            f"--batch is {global_batch}; expected a multiple of {replicas:,} devices x "
            f"micro-batch {micro_batch:,} = {unit}: take {_near(global_batch, unit)}{other}"
        )
    return Cut(
        global_batch=global_batch, replicas=replicas, workers=workers, micro_batch=micro_batch
    )


def _near(value: int, divisor: int) -> str:
    below = value // divisor * divisor
    return " or ".join(str(count) for count in (below, below + divisor) if count)


def examples_of_text(tokens: float, seq_length: int) -> int:
    """The rows that a text fills, read once: every row full, three of its tokens special.

    Example:
        >>> examples_of_text(1e6, 128)
        8000
    """
    if seq_length <= _SPECIAL_TOKENS:
        raise UserError(f"--seq_lengths has {seq_length}; expected more than {_SPECIAL_TOKENS}")
    return int(tokens // (seq_length - _SPECIAL_TOKENS))


def count_steps(
    start: Reference, global_batch: int, examples: int | None, epochs: float | None
) -> int:
    """The updates that see what is wanted, at least: ceil(examples wanted / B).

    Args:
        start: says how many examples where `epochs` does not.
        global_batch: B.
        examples: of the corpus; needed for `epochs`.
        epochs: passes over the corpus, or None.

    Raises:
        UserError: epochs of a corpus whose size is not known.
    """
    if epochs is None:
        return -(-start.examples // global_batch)
    if examples is None:
        raise UserError(
            "--epochs needs the size of the corpus; give --corpus_examples, --corpus_tokens, "
            "--corpus_words or --shards"
        )
    # Exactly, so that 40 epochs are never 40 and a rounding error.
    wanted = fractions.Fraction(str(epochs)) * examples
    return max(1, math.ceil(wanted / global_batch))


def count_shards(examples: int | None, workers: int) -> int:
    """K, a multiple of the workers W, with at most 2^18 examples in a shard.

    Args:
        examples: of the corpus; where it is not known each worker gets one shard.
        workers: W.

    Example:
        >>> count_shards(1_000_000, 3)
        6
    """
    of_a_worker = -(-(examples or 1) // (workers * EXAMPLES_OF_A_SHARD))
    return workers * of_a_worker


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase of the plan.

    Attributes:
        seq_length: tokens of a row.
        cut: how the batch is shared.
        steps: updates.
        rate: peak learning rate.
        warmup_ratio: share of warmup.
        constant_ratio: share at the peak.
        examples: of the corpus at this length; None where that is not known.
        shards: files of the training split.
    """

    seq_length: int
    cut: Cut
    steps: int
    rate: float
    warmup_ratio: float
    constant_ratio: float
    examples: int | None
    shards: int

    @property
    def warmup_and_constant_steps(self) -> tuple[int, int]:
        """T_w and T_c, by `WarmupConstantDecay.from_ratios`."""
        warmup, constant = schedules.phase_steps(self.steps, self.warmup_ratio, self.constant_ratio)
        return warmup, constant

    @property
    def examples_seen(self) -> int:
        """Examples of the whole phase."""
        return self.steps * self.cut.global_batch

    @property
    def epochs(self) -> float | None:
        """Passes over the corpus."""
        return self.examples_seen / self.examples if self.examples else None


def plan_phase(
    start: Reference,
    batch_cut: Cut,
    *,
    seq_length: int,
    examples: int | None = None,
    epochs: float | None = None,
    shards: int | None = None,
) -> Phase:
    """A phase by the rules of this module.

    Args:
        start: from `reference`.
        batch_cut: from `cut`.
        seq_length: tokens of a row.
        examples: of the corpus at this length, None where that is not known.
        epochs: passes over it; None for as many examples as the reference saw.
        shards: files there are; None for `count_shards`.

    Raises:
        UserError: fewer examples than a batch, which may hold none twice.

    Example:
        >>> whole = cut(98_304, replicas=1536, workers=192, micro_batch=64)
        >>> plan_phase(reference("lans", 128), whole, seq_length=128).steps
        3519
    """
    batch = batch_cut.global_batch
    if examples is not None and examples < batch:
        raise UserError(
            f"the corpus has {examples:,} examples of length {seq_length}, fewer than the batch of "
            f"{batch:,}, which may hold none twice: lower --batch, or take more text"
        )
    steps = count_steps(start, batch, examples, epochs)
    if steps > _MOST_STEPS:
        raise UserError(
            f"the plan has {steps:.3g} steps at batch {batch:,}; expected at most {_MOST_STEPS:,}: "
            "check --epochs, --batch and the size of the corpus"
        )
    warmup_ratio, constant_ratio = ratios(start, batch)
    return Phase(
        seq_length=seq_length,
        cut=batch_cut,
        steps=steps,
        rate=learning_rate(start, batch),
        warmup_ratio=warmup_ratio,
        constant_ratio=constant_ratio,
        examples=examples,
        shards=count_shards(examples, batch_cut.workers) if shards is None else shards,
    )


def strategy(device: device_table.Device, replicas: int, workers: int) -> dict[str, object]:
    """The fields of `runtime` that make so many replicas of a device.

    Example:
        >>> strategy(device_table.find("a100"), 8, 1)
        {'distribution_strategy': 'mirrored', 'num_gpus': 8}
    """
    if device.platform == device_table.TPU:
        return {"distribution_strategy": "tpu"}
    if workers > 1:  # all GPUs that each worker sees
        return {"distribution_strategy": "multi_worker_mirrored"}
    if device.platform == device_table.CPU:
        return {"distribution_strategy": "one_device"}
    name = "one_device" if replicas == 1 else "mirrored"
    return {"distribution_strategy": name, "num_gpus": replicas}
