"""The one table of BERT's weights: what each is called, and how it lies, in every format.

Model Garden and KerasHub keep an attention head's rows apart, kernels (inputs, outputs); Hugging
Face keeps matrices (outputs, inputs), as PyTorch does. Everything here is NumPy and pure: arrays
change their names and their axes, never a value, so the way there and back is bit-equal.
"""

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping

import numpy as np

Arrays = Mapping[str, np.ndarray]
# `vocabulary`, `positions`, `types`, `hidden`, `heads`, `head` (the size of one), `inner` and
# `labels` (of the next-sentence head).
Sizes = Mapping[str, int]

_PER_HEAD = ("heads", "head")
_HIDDEN = ("hidden",)

# The pooler that pretraining moves is the next-sentence head's; the encoder has one of its own
# beside it, and other formats have one for both.
POOLER_COPIES = {
    f"bert/next_sentence/pooler_dense/{part}": f"pooler_transform/{part}"
    for part in ("kernel", "bias")
}

# What the names of weights begin with that a published encoder may lack.
HEADS = ("pooler_transform/", "bert/")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """A weight.

    Attributes:
        model_garden: the variable's name in Model Garden's `BertPretrainerV2`, without `:0`.
        keras_hub: its path in KerasHub's `BertMaskedLM`; empty where that has no place for it.
        hugging_face: its name in `BertForPreTraining`.
        shape: its axes in Keras, as keys of `Sizes`.
        input_axes: of a kernel, how many leading axes are inputs: Hugging Face has them last. 0
            for embedding tables, biases and norms.
    """

    model_garden: str
    keras_hub: str
    hugging_face: str
    shape: tuple[str, ...]
    input_axes: int = 0

    def keras_shape(self, sizes: Sizes) -> tuple[int, ...]:
        """The shape in Model Garden and KerasHub."""
        return tuple(sizes[axis] for axis in self.shape)

    def hugging_face_shape(self, sizes: Sizes) -> tuple[int, ...]:
        """The shape in Hugging Face: heads side by side, a kernel's outputs first."""
        shape = self.keras_shape(sizes)
        if self.input_axes:
            inputs, outputs = shape[: self.input_axes], shape[self.input_axes :]
            return (math.prod(outputs), math.prod(inputs))
        return (math.prod(shape),) if self.shape == _PER_HEAD else shape

    def to_hugging_face(self, array: np.ndarray) -> np.ndarray:
        """The array as PyTorch keeps it.

        Example:
            >>> query = entries(1)[5]
            >>> query.to_hugging_face(np.zeros((256, 4, 64))).shape
            (256, 256)
        """
        if self.input_axes:
            inputs = math.prod(array.shape[: self.input_axes])
            return np.ascontiguousarray(array.reshape(inputs, -1).T)
        return array.reshape(-1) if self.shape == _PER_HEAD else array

    def from_hugging_face(self, array: np.ndarray, sizes: Sizes) -> np.ndarray:
        """The array as Keras keeps it.

        Raises:
            ValueError: its shape is not the one it should have there.
        """
        expected = self.hugging_face_shape(sizes)
        if array.shape != expected:
            raise ValueError(f"{self.hugging_face} is {array.shape}, expected {expected}")
        turned = array.T if self.input_axes else array
        return np.ascontiguousarray(turned).reshape(self.keras_shape(sizes))


def entries(num_layers: int, next_sentence: bool = True) -> tuple[Entry, ...]:
    """The weights of a BERT, each once: tied and copied ones are not listed again.

    Args:
        num_layers: transformer layers.
        next_sentence: whether the two logits of the next-sentence head are among them.
    """
    layers = [_layer(index) for index in range(num_layers)]
    heads = [*_POOLER, *_MASKED_LM, *(_NEXT_SENTENCE if next_sentence else [])]
    return (*_EMBEDDINGS, *(entry for layer in layers for entry in layer), *heads)


def to_hugging_face(arrays: Arrays, table: Iterable[Entry]) -> dict[str, np.ndarray]:
    """Model Garden's arrays by Hugging Face's names, in its shapes."""
    return {
        entry.hugging_face: entry.to_hugging_face(arrays[entry.model_garden]) for entry in table
    }


def from_hugging_face(
    tensors: Arrays, table: Iterable[Entry], sizes: Sizes
) -> dict[str, np.ndarray]:
    """Hugging Face's tensors by Model Garden's names; those that are not there are left out.

    Args:
        tensors: by canonical name; see `canonical`.
        table: the weights to look for.
        sizes: of the model.

    Raises:
        ValueError: a tensor has another shape than the sizes say.
    """
    return {
        entry.model_garden: entry.from_hugging_face(tensors[entry.hugging_face], sizes)
        for entry in table
        if entry.hugging_face in tensors
    }


def canonical(name: str) -> str:
    """The name in today's `BertForPreTraining` of a tensor as some checkpoint spells it.

    Encoders saved on their own lack `bert.` in front; old files say `gamma` and `beta`.

    Example:
        >>> canonical("embeddings.LayerNorm.gamma")
        'bert.embeddings.LayerNorm.weight'
    """
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
    return re.sub(r"^(?=(embeddings|encoder|pooler)\.)", "bert.", name)


def with_pooler_copies(arrays: Arrays) -> dict[str, np.ndarray]:
    """Adds the next-sentence head's pooler, which is the encoder's."""
    copies = {
        copy: arrays[original] for copy, original in POOLER_COPIES.items() if original in arrays
    }
    return {**arrays, **copies}


def _dense(
    model_garden: str,
    keras_hub: str,
    hugging_face: str,
    inputs: tuple[str, ...] = _HIDDEN,
    outputs: tuple[str, ...] = _HIDDEN,
) -> list[Entry]:
    return [
        Entry(
            model_garden=f"{model_garden}/kernel",
            keras_hub=keras_hub and f"{keras_hub}/kernel",
            hugging_face=f"{hugging_face}.weight",
            shape=inputs + outputs,
            input_axes=len(inputs),
        ),
        Entry(
            model_garden=f"{model_garden}/bias",
            keras_hub=keras_hub and f"{keras_hub}/bias",
            hugging_face=f"{hugging_face}.bias",
            shape=outputs,
        ),
    ]


def _norm(model_garden: str, keras_hub: str, hugging_face: str) -> list[Entry]:
    return [
        Entry(
            model_garden=f"{model_garden}/{keras_part}",
            keras_hub=f"{keras_hub}/{keras_part}",
            hugging_face=f"{hugging_face}.LayerNorm.{part}",
            shape=_HIDDEN,
        )
        for keras_part, part in (("gamma", "weight"), ("beta", "bias"))
    ]


def _table(model_garden: str, keras_hub: str, hugging_face: str, rows: str) -> Entry:
    return Entry(
        model_garden=f"{model_garden}/embeddings",
        keras_hub=f"{keras_hub}/embeddings",
        hugging_face=f"bert.embeddings.{hugging_face}.weight",
        shape=(rows, "hidden"),
    )


def _layer(index: int) -> list[Entry]:
    model_garden = f"transformer/layer_{index}"
    keras_hub = f"transformer_layer_{index}"
    hugging_face = f"bert.encoder.layer.{index}"
    attention = [
        entry
        for name in ("query", "key", "value")
        for entry in _dense(
            f"{model_garden}/self_attention/{name}",
            f"{keras_hub}/self_attention_layer/{name}",
            f"{hugging_face}.attention.self.{name}",
            outputs=_PER_HEAD,
        )
    ]
    return [
        *attention,
        *_dense(
            f"{model_garden}/self_attention/attention_output",
            f"{keras_hub}/self_attention_layer/attention_output",
            f"{hugging_face}.attention.output.dense",
            inputs=_PER_HEAD,
        ),
        *_norm(
            f"{model_garden}/self_attention_layer_norm",
            f"{keras_hub}/self_attention_layer_norm",
            f"{hugging_face}.attention.output",
        ),
        *_dense(
            f"{model_garden}/intermediate",
            f"{keras_hub}/feedforward_intermediate_dense",
            f"{hugging_face}.intermediate.dense",
            outputs=("inner",),
        ),
        *_dense(
            f"{model_garden}/output",
            f"{keras_hub}/feedforward_output_dense",
            f"{hugging_face}.output.dense",
            inputs=("inner",),
        ),
        *_norm(
            f"{model_garden}/output_layer_norm",
            f"{keras_hub}/feedforward_layer_norm",
            f"{hugging_face}.output",
        ),
    ]


_EMBEDDINGS = [
    _table("word_embeddings", "token_embedding", "word_embeddings", "vocabulary"),
    _table("position_embedding", "position_embedding", "position_embeddings", "positions"),
    _table("type_embeddings", "segment_embedding", "token_type_embeddings", "types"),
    *_norm("embeddings/layer_norm", "embeddings_layer_norm", "bert.embeddings"),
]
_POOLER = _dense("pooler_transform", "pooled_dense", "bert.pooler.dense")
_MASKED_LM = [
    *_dense(
        "bert/cls/predictions/transform/dense",
        "mlm_head/intermediate_dense",
        "cls.predictions.transform.dense",
    ),
    *_norm(
        "bert/cls/predictions/transform/LayerNorm",
        "mlm_head/intermediate_layer_norm",
        "cls.predictions.transform",
    ),
    Entry(
        model_garden="bert/cls/predictions/output_bias/bias",
        keras_hub="mlm_head/output_bias",
        hugging_face="cls.predictions.bias",
        shape=("vocabulary",),
    ),
]
_NEXT_SENTENCE = _dense(
    "bert/next_sentence/logits", "", "cls.seq_relationship", outputs=("labels",)
)
