"""The blocks of BERT pretraining, as the Model Garden shapes them; no framework is imported."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

_VOCABULARY = 30522
_POSITIONS = 512
_SEGMENTS = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Encoder:
    layers: int
    hidden: int
    heads: int

    @property
    def dim(self) -> int:
        return self.hidden // self.heads

    @property
    def intermediate(self) -> int:
        return 4 * self.hidden


_ENCODERS = {
    "bert_tiny": _Encoder(layers=2, hidden=128, heads=2),
    "bert_base": _Encoder(layers=12, hidden=768, heads=12),
    "bert_large": _Encoder(layers=24, hidden=1024, heads=16),
}

MODELS = tuple(_ENCODERS)


def block_shapes(model: str) -> list[tuple[int, ...]]:
    """The shape of each trainable variable of a BERT with both pretraining heads.

    Attention kernels are three-dimensional, (hidden, heads, dim) and (heads, dim, hidden), as in
    the Model Garden: one block each. The masked-LM head shares the word embeddings.

    Args:
        model: one of `MODELS`.

    Returns:
        206 shapes of 110 million parameters for "bert_base", in the order of the model.

    Raises:
        ValueError: an unknown model.

    Example:
        >>> len(block_shapes("bert_base")), parameters(block_shapes("bert_base"))
        (206, 110106428)
    """
    if model not in _ENCODERS:
        raise ValueError(f"block_shapes() got {model!r}: expected one of {', '.join(MODELS)}")
    encoder = _ENCODERS[model]
    hidden = encoder.hidden
    embeddings = [(rows, hidden) for rows in (_VOCABULARY, _POSITIONS, _SEGMENTS)]
    pooler = _dense(hidden, hidden)
    masked_lm = [*_dense(hidden, hidden), *_layer_norm(hidden), (_VOCABULARY,)]
    next_sentence = _dense(hidden, 2)
    return [
        *embeddings,
        *_layer_norm(hidden),
        *(_layer(encoder) * encoder.layers),
        *pooler,
        *masked_lm,
        *next_sentence,
    ]


def parameters(shapes: Sequence[tuple[int, ...]]) -> int:
    """The number of elements in all blocks together."""
    return sum(math.prod(shape) for shape in shapes)


def _layer(encoder: _Encoder) -> list[tuple[int, ...]]:
    hidden, heads, dim = encoder.hidden, encoder.heads, encoder.dim
    projection: list[tuple[int, ...]] = [(hidden, heads, dim), (heads, dim)]
    return [
        *(projection * 3),
        (heads, dim, hidden),
        (hidden,),
        *_layer_norm(hidden),
        *_dense(hidden, encoder.intermediate),
        *_dense(encoder.intermediate, hidden),
        *_layer_norm(hidden),
    ]


def _dense(inputs: int, outputs: int) -> list[tuple[int, ...]]:
    return [(inputs, outputs), (outputs,)]


def _layer_norm(hidden: int) -> list[tuple[int, ...]]:
    return [(hidden,), (hidden,)]
