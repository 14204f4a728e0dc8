"""Fills [MASK] with the words that a pretrained BERT finds likeliest."""

import contextlib
import functools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from official.core import task_factory

from official_bert import checkpoints, prediction, starting_point
from official_bert.export import source
from official_bert.pretraining_task import LargeBatchPretrainConfig
from tfrecords.errors import UserError
from tfrecords.tokenization import Tokenizer
from tfrecords.vocabulary import CLS, CONTINUATION, MASK, SEP


def is_pretrained(saved: dict[str, Any]) -> bool:
    """Whether the task section of a `params.yaml` is that of a pretraining run."""
    return "cls_heads" in (saved.get("model") or {})


class MaskFiller(prediction.Predictor):
    """Fills every [MASK] of a text, each by itself, the others left masked.

    Text never yields a special token, with this one exception: [MASK], so written, is the token.

    Args:
        run: a pretraining run's folder, or one that `official_bert.convert` wrote.
        top_k: words for each [MASK].
        batch_size: texts that the model sees at once.

    Raises:
        UserError: the folder holds no checkpoint or no vocabulary, or the vocabulary has not so
            many words.

    Example:
        >>> filler = MaskFiller("run/phase2")
        >>> filler.predict([{"text": "Paris is the [MASK] of France."}])[0]["masks"][0][0]["word"]
        'capital'
    """

    does = "filling [MASK]"
    required = ("text",)

    def __init__(self, run: str, top_k: int = 5, batch_size: int = prediction.BATCH_SIZE) -> None:
        start = starting_point.find(run)
        self._config = LargeBatchPretrainConfig(model=source.pretrainer_config(run))
        self._checkpoint, self._vocabulary = start.checkpoint, start.vocabulary
        self._tokenizer = Tokenizer(start.vocabulary, start.lower_case)
        self._positions = start.encoder.get().max_position_embeddings
        self._top_k, self._batch_size = top_k, batch_size
        words = len(start.vocabulary.replacements)
        if top_k > words:
            raise UserError(f"--top_k is {top_k}; expected at most {words}, the vocabulary's words")

    def check(self, request: prediction.Request) -> None:
        """As for every predictor; there must be a [MASK], and room for all word pieces."""
        super().check(request)
        if MASK not in request["text"]:
            raise UserError(f"text has no {MASK} to fill: {request['text'][:60]!r}")
        pieces = len(self._row(request["text"]))
        if pieces > self._positions:
            raise UserError(
                f"text has {pieces} word pieces with {CLS} and {SEP}; the model takes "
                f"{self._positions}: cut it"
            )

    def load(self) -> None:
        """Builds and restores `model`."""
        assert self.model.built

    @functools.cached_property
    def model(self) -> tf_keras.Model:
        """Model Garden's pretrainer with the weights of the run's newest checkpoint."""
        # Not in half precision, which CPUs compute slowly: no evaluation is to be repeated here.
        with _quiet(), prediction.precision("float32"):
            model = task_factory.get_task(self._config).build_model()
        checkpoints.restore_model(self._checkpoint, model)
        return model

    def _row(self, text: str) -> np.ndarray:
        """[CLS] text [SEP] as ids, int32 (length,)."""
        ids = self._vocabulary.ids
        pieces, lengths = self._tokenizer.encode(text.split(MASK))
        parts = np.split(pieces, np.cumsum(lengths)[:-1])
        row = [np.array([ids[CLS]], np.int32), parts[0]]
        for part in parts[1:]:
            row += [np.array([ids[MASK]], np.int32), part]
        return np.concatenate([*row, [ids[SEP]]]).astype(np.int32)

    def inputs(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """The texts as the model takes them, padded to the longest; int32.

        Returns:
            `input_word_ids`, `input_mask`, `input_type_ids` (texts, length), and
            `masked_lm_positions` (texts, masks): the places of [MASK], 0 where a text has fewer.
        """
        rows = [self._row(text) for text in texts]
        shape = len(rows), max(map(len, rows))
        word_ids, mask = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        places = [np.flatnonzero(row == self._vocabulary.ids[MASK]) for row in rows]
        positions = np.zeros((len(rows), max(map(len, places))), np.int32)
        for index, (row, place) in enumerate(zip(rows, places, strict=True)):
            word_ids[index, : len(row)], mask[index, : len(row)] = row, 1
            positions[index, : len(place)] = place
        return {
            "input_word_ids": word_ids,
            "input_mask": mask,
            "input_type_ids": np.zeros(shape, np.int32),
            "masked_lm_positions": positions,
        }

    @functools.cached_property
    def _compiled(self) -> tf.types.experimental.PolymorphicFunction:
        words = tf.constant(self._vocabulary.replacements)

        def likeliest(features: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
            with _quiet():
                logits = self.model(features, training=False)["mlm_logits"]
            probabilities = tf.nn.softmax(tf.cast(logits, tf.float32))
            values, places = tf.math.top_k(tf.gather(probabilities, words, axis=-1), self._top_k)
            return values, tf.gather(words, places)

        return tf.function(likeliest, reduce_retracing=True)

    def predict(self, requests: Sequence[prediction.Request]) -> list[prediction.Result]:
        """Results of `text`, `filled`, the text with the likeliest words, and `masks`.

        `masks` has, for each [MASK] in order, the `top_k` likeliest words, each with its
        `probability`: a softmax over the whole vocabulary. Special tokens and [unused*] entries
        are no words.
        """
        self.load()
        results = []
        for part in prediction.chunks(requests, self._batch_size):
            features = self.inputs([each["text"] for each in part])
            features = {name: tf.constant(array) for name, array in features.items()}
            values, words = (tensor.numpy() for tensor in self._compiled(features))
            results += [
                prediction.with_id(request, self._result(request["text"], *found))
                for request, *found in zip(part, values, words, strict=True)
            ]
        return results

    def _result(self, text: str, values: np.ndarray, words: np.ndarray) -> prediction.Result:
        tokens = self._vocabulary.tokens
        masks = [
            [
                {"word": tokens[word], "probability": float(value)}
                for word, value in zip(words[index], values[index], strict=True)
            ]
            for index in range(text.count(MASK))
        ]
        return {"text": text, "filled": _filled(text, masks), "masks": masks}

    def readable(self, result: prediction.Result) -> str:
        """The filled text, and below it the likeliest words of each [MASK]."""
        lines = [result["filled"]]
        for number, words in enumerate(result["masks"], start=1):
            lines += [f"  {MASK} {number}"] if len(result["masks"]) > 1 else []
            lines += [f"  {each['probability']:.4f}  {each['word']}" for each in words]
        return "\n".join(lines)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Model Garden hands the encoder the masks' places too, and Keras would say so each time."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Input dict contained keys")
        yield


def _filled(text: str, masks: Sequence[Sequence[dict[str, Any]]]) -> str:
    first, *rest = text.split(MASK)
    for words, part in zip(masks, rest, strict=True):
        word = words[0]["word"]
        if word.startswith(CONTINUATION):  # it goes on with the word before it
            first = first.rstrip()
        first += word.removeprefix(CONTINUATION) + part
    return first
