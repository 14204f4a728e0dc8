"""What is trained by whom: the workload, the contenders, and whom each is held against."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

FLOAT32, BFLOAT16 = "float32", "bfloat16"
_HEAD_SIZE = 64
_ENCODERS = {
    "bert_tiny": (2, 128),
    "bert_mini": (4, 256),
    "bert_small": (4, 512),
    "bert_base": (12, 768),
}
MODELS = tuple(_ENCODERS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """One step of one piece; the same for every contender.

    Attributes:
        layers: of the encoder.
        hidden: its width, a multiple of 64, the size of a head.
        vocab_size: rows of the embedding table.
        batch_size: examples of a forward and backward pass.
        seq_length: tokens of an example.
        max_predictions: masked positions of an example.

    Raises:
        ValueError: the width is no multiple of a head's, or there is not a token a prediction.
    """

    layers: int
    hidden: int
    vocab_size: int
    batch_size: int
    seq_length: int
    max_predictions: int

    def __post_init__(self) -> None:
        if self.hidden % _HEAD_SIZE:
            raise ValueError(f"hidden is {self.hidden}; expected a multiple of {_HEAD_SIZE}")
        if self.max_predictions >= self.seq_length:
            raise ValueError(
                f"max_predictions is {self.max_predictions}; expected less than the "
                f"{self.seq_length} tokens of an example"
            )

    @classmethod
    def of_model(cls, model: str, **sizes: int) -> Workload:
        """The workload of one of `MODELS`; `sizes` are the other attributes."""
        layers, hidden = _ENCODERS[model]
        return cls(layers=layers, hidden=hidden, **sizes)

    @property
    def heads(self) -> int:
        """Attention heads."""
        return self.hidden // _HEAD_SIZE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contender:
    """Who trains, and how.

    Attributes:
        is_ours: `official_bert`, else Model Garden as it is.
        optimizer: LANS or LAMB; Model Garden has only its own LAMB.
        precision: what forward and backward compute in; weights are float32.
        is_deterministic: whether TensorFlow's op determinism is on, as `official_bert.train` has
            it on CPUs unless `runtime.deterministic_ops` says otherwise.
        is_compiled: whether forward and backward are one XLA program, `runtime.enable_xla`.
        micro_batches: pieces of the workload's batch size that a step accumulates.
    """

    is_ours: bool = True
    optimizer: str = "LANS"
    precision: str = FLOAT32
    is_deterministic: bool = True
    is_compiled: bool = False
    micro_batches: int = 1

    @property
    def name(self) -> str:
        """What the report calls it."""
        words = ["tf-lans" if self.is_ours else "Model Garden", self.optimizer, self.precision]
        if self.is_ours and self.is_deterministic:
            words.append("deterministic")
        if self.is_compiled:
            words.append("XLA")
        if self.micro_batches > 1:
            words.append(f"{self.micro_batches} micro-batches")
        return " ".join(words)

    @property
    def bases(self) -> tuple[Contender, ...]:
        """Whom its throughput is held against, the closest first."""
        if self.micro_batches > 1:
            return (dataclasses.replace(self, micro_batches=1),)
        others = (_stock(self.precision), _stock(FLOAT32))
        return tuple(each for each in dict.fromkeys(others) if each != self)


def _stock(precision: str) -> Contender:
    # Never deterministic: official.nlp.train has no such switch.
    return Contender(is_ours=False, optimizer="LAMB", precision=precision, is_deterministic=False)


STOCK, STOCK_BFLOAT16 = _stock(FLOAT32), _stock(BFLOAT16)
OURS, OURS_BFLOAT16 = Contender(), Contender(precision=BFLOAT16)
FOUR, SIXTEEN = Contender(micro_batches=4), Contender(micro_batches=16)

MODEL_GARDEN, MICRO_BATCHES = "model_garden", "micro_batches"
COMPARISONS: dict[str, tuple[Contender, ...]] = {
    MODEL_GARDEN: (
        STOCK,
        OURS,
        Contender(is_deterministic=False),
        Contender(is_compiled=True),
        Contender(optimizer="LAMB"),
        STOCK_BFLOAT16,
        OURS_BFLOAT16,
        Contender(precision=BFLOAT16, is_deterministic=False),
        Contender(precision=BFLOAT16, is_compiled=True),
    ),
    MICRO_BATCHES: (OURS, FOUR, SIXTEEN),
}
CONTENDERS = {each.name: each for group in COMPARISONS.values() for each in group}


def chosen(comparison: str, only: Sequence[str]) -> list[Contender]:
    """Those of a comparison whose names contain one of `only`, and whom they are held against.

    Args:
        comparison: a key of `COMPARISONS`.
        only: parts of names; all if empty.

    Returns:
        In the order of the comparison.

    Raises:
        ValueError: one of `only` is in no name.

    Example:
        >>> [each.name for each in chosen(MICRO_BATCHES, ["4"])]
        ['tf-lans LANS float32 deterministic', 'tf-lans LANS float32 deterministic 4 micro-batches']
    """
    group = COMPARISONS[comparison]
    for part in only:
        if not any(part in each.name for each in group):
            names = ", ".join(each.name for each in group)
            raise ValueError(f"--only names {part!r}; expected a part of one of {names}")
    wanted = {
        found
        for each in group
        if not only or any(part in each.name for part in only)
        for found in (each, *each.bases)
    }
    return [each for each in group if each in wanted]
