"""Serialised records to features, a whole batch at a time, as operations of TensorFlow.

A decoder has `filler`, a record that is none (it decodes to a row of zeros), and `decode`, which
takes a batch of records with the epochs that they are read in.
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import tensorflow as tf

from tfrecords import graph_masking, hashing, schema
from tfrecords.errors import UserError
from tfrecords.manifest import Manifest
from tfrecords.masking import Masking
from tfrecords.vocabulary import CLS, SEP, Vocabulary

# What a hash is for: its last word.
MASKS = 2


class Decoder(Protocol):
    """Turns records of one kind into features."""

    @property
    def filler(self) -> bytes:
        """A record that decodes to zeros."""

    def decode(self, serialized: tf.Tensor, epochs: tf.Tensor) -> dict[str, tf.Tensor]:
        """The features of `schema.features` by name, int32 and float32 [N, size].

        Args:
            serialized: string [N], N static.
            epochs: int64 [N], the epoch that each record is read in.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class MaskingChoice:
    """What a reader may choose of the masks of dynamic records; None takes the manifest's.

    Attributes:
        masked_lm_prob: the share of tokens to guess.
        max_predictions_per_seq: the most masked positions of a row; where only the share is given,
            what a full row can need.
        whole_word_mask: whether the pieces of a word are masked together.
    """

    masked_lm_prob: float | None = None
    max_predictions_per_seq: int | None = None
    whole_word_mask: bool | None = None

    def __post_init__(self) -> None:
        if self.masked_lm_prob is not None and not 0 < self.masked_lm_prob <= 1:
            raise UserError(
                f"masked_lm_prob is {self.masked_lm_prob}; expected a number above 0 and up to 1"
            )
        if self.max_predictions_per_seq is not None and self.max_predictions_per_seq < 1:
            raise UserError(
                f"max_predictions_per_seq is {self.max_predictions_per_seq}; expected 1 or more"
            )

    def check_unused(self, manifest: Manifest, seq_length: int) -> None:
        """Checks that nothing else is chosen than what is written.

        Raises:
            UserError: something is.
        """
        written = {
            "masked_lm_prob": manifest.masked_lm_prob,
            "max_predictions_per_seq": manifest.max_predictions_per_seq(seq_length),
            "whole_word_mask": manifest.whole_word_mask,
        }
        for name, value in written.items():
            chosen = getattr(self, name)
            if chosen is not None and chosen != value:
                raise UserError(
                    f"{name} is {chosen}, but {manifest.directory} has {manifest.records} records, "
                    f"masked when they were written with {value}; leave it out, or build with "
                    "--records=dynamic"
                )

    def max_predictions(self, manifest: Manifest, seq_length: int) -> int:
        """M: the most masked positions of a row."""
        if self.max_predictions_per_seq is not None:
            return self.max_predictions_per_seq
        if self.masked_lm_prob is not None:
            return schema.default_max_predictions(seq_length, self.masked_lm_prob)
        return manifest.max_predictions_per_seq(seq_length)

    def masking(self, manifest: Manifest, seq_length: int, vocabulary: Vocabulary) -> Masking:
        """How to mask rows of `seq_length` tokens."""
        prob, whole_word = self.masked_lm_prob, self.whole_word_mask
        return Masking.of(
            vocabulary,
            masked_lm_prob=manifest.masked_lm_prob if prob is None else prob,
            max_predictions_per_seq=self.max_predictions(manifest, seq_length),
            whole_word=manifest.whole_word_mask if whole_word is None else whole_word,
        )


def decoder(manifest: Manifest, seq_length: int, seed: int, choice: MaskingChoice) -> Decoder:
    """What decodes the records of a folder.

    Args:
        manifest: of the folder.
        seq_length: tokens in a row.
        seed: of the masks of dynamic records.
        choice: what to change of them.

    Raises:
        UserError: a choice is given for stored records, or the folder's vocabulary is not the one
            it was written with.
    """
    if manifest.records == schema.STORED:
        choice.check_unused(manifest, seq_length)
        features = schema.features(seq_length, manifest.max_predictions_per_seq(seq_length))
        names = schema.V1_NAMES if manifest.feature_names == schema.V1 else {}
        return StoredDecoder(features, names)
    vocabulary = Vocabulary.load(manifest.vocabulary_file)
    manifest.check_vocabulary(vocabulary)
    return DynamicDecoder(
        vocabulary, choice.masking(manifest, seq_length, vocabulary), seq_length, seed
    )


class StoredDecoder:
    """Parses tf.train.Example messages.

    Args:
        features: what they hold.
        names: of those that are stored under another name.
    """

    def __init__(self, features: Sequence[schema.Feature], names: dict[str, str]) -> None:
        self._features = features
        self._names = {feature.name: names.get(feature.name, feature.name) for feature in features}
        self._spec = {
            self._names[feature.name]: tf.io.FixedLenFeature(
                (feature.size,), tf.float32 if feature.dtype == "float32" else tf.int64
            )
            for feature in features
        }

    @property
    def filler(self) -> bytes:
        """An example of nothing but zeros."""
        example = tf.train.Example()
        for feature in self._features:
            values = example.features.feature[self._names[feature.name]]
            if feature.dtype == "float32":
                values.float_list.value.extend([0.0] * feature.size)
            else:
                values.int64_list.value.extend([0] * feature.size)
        return example.SerializeToString(deterministic=True)

    def decode(self, serialized: tf.Tensor, epochs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Parses the batch at once, five times the speed of example by example."""
        del epochs  # the masks are written
        parsed = tf.io.parse_example(serialized, self._spec)
        return {
            feature.name: tf.cast(parsed[self._names[feature.name]], feature.dtype)
            for feature in self._features
        }


class DynamicDecoder:
    """Lays out and masks `dynamic` records; see `schema` for their bytes.

    The masks of a row are a function of (seed, epoch, example id) and the vocabulary.

    Args:
        vocabulary: where the special tokens are.
        masking: how to mask.
        seq_length: L.
        seed: of the masks.
    """

    def __init__(
        self, vocabulary: Vocabulary, masking: Masking, seq_length: int, seed: int
    ) -> None:
        self._dtype = tf.as_dtype(schema.dynamic_dtype(len(vocabulary)))
        self._special = (vocabulary.ids[CLS], vocabulary.ids[SEP])
        self._masking = masking
        self._seq_length = seq_length
        self._seed = seed

    @property
    def filler(self) -> bytes:
        """A header of zeros and no token."""
        return bytes(len(schema.DYNAMIC_HEADER) * self._dtype.size)

    def decode(self, serialized: tf.Tensor, epochs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Lays the batch out and masks it."""
        header = len(schema.DYNAMIC_HEADER)
        width = self._dtype.size
        words = tf.io.decode_raw(
            serialized, self._dtype, fixed_length=(header + self._seq_length) * width
        )
        words = tf.ensure_shape(tf.cast(words, tf.int32), (None, header + self._seq_length))
        fields = dict(
            zip(schema.DYNAMIC_HEADER, tf.unstack(words[:, :header], axis=1), strict=True)
        )
        word_ids = words[:, header:]
        num_tokens = tf.strings.length(serialized) // width - header
        columns = tf.range(self._seq_length)
        in_row = columns < num_tokens[:, tf.newaxis]
        in_second = in_row & (columns >= fields["first_length"][:, tf.newaxis] + 2)
        is_special = (word_ids == self._special[0]) | (word_ids == self._special[1])

        digits = tf.cast(tf.stack([fields[f"id_{place}"] for place in range(4)], 1), tf.int64)
        example_ids = tf.reduce_sum(digits * [1 << 16 * place for place in range(4)], axis=1)
        masked = graph_masking.mask(
            self._masking,
            word_ids,
            in_row & ~is_special,
            num_tokens,
            hashing.mix_tensors(self._seed, epochs, example_ids, MASKS),
        )
        return {
            schema.INPUT_WORD_IDS: masked.input_word_ids,
            schema.INPUT_MASK: tf.cast(in_row, tf.int32),
            schema.INPUT_TYPE_IDS: tf.cast(in_second, tf.int32),
            schema.MASKED_LM_POSITIONS: masked.positions,
            schema.MASKED_LM_IDS: masked.ids,
            schema.MASKED_LM_WEIGHTS: masked.weights,
            schema.NEXT_SENTENCE_LABELS: fields["next_sentence_label"][:, tf.newaxis],
        }
