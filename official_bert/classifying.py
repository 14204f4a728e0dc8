"""Classifies texts, or predicts a number of them, with a run that was finetuned for it."""

import functools
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from official_bert import checkpoints, packed_rows, prediction, starting_point
from official_bert.classification_task import ClassificationConfig, ClassificationTask
from tfrecords.errors import UserError
from tfrecords.vocabulary import Vocabulary

_SECTIONS = ("model", "validation_data", "labels")


def is_finetuned(saved: dict[str, Any]) -> bool:
    """Whether the task section of a `params.yaml` is that of a run on labelled texts."""
    return "labels" in saved and "num_classes" in (saved.get("model") or {})


class Classifier(prediction.Predictor):
    """Classifies as the run's evaluation does: the same rows, cut at the same length.

    Args:
        run: the finetuned run's folder.
        batch_size: rows that the model sees at once.

    Raises:
        UserError: the folder holds no checkpoint or no vocabulary.

    Example:
        >>> Classifier("sst-2").predict([{"text": "a gripping film"}])[0]["label"]
        '1'
    """

    does = "classifying"
    required: tuple[str, ...] = ("text",)
    optional: tuple[str, ...] = ("text_pair",)

    def __init__(self, run: str, batch_size: int = prediction.BATCH_SIZE) -> None:
        saved = prediction.saved_task(run)
        self._config = ClassificationConfig()
        known = {name: saved[name] for name in _SECTIONS if name in saved}
        self._config.override(known, is_strict=True)
        self._vocabulary = Vocabulary.load(os.path.join(run, starting_point.VOCABULARY))
        self._precision = prediction.saved_precision(run)
        self._checkpoint = checkpoints.latest(run)
        self._batch_size = batch_size
        # Older runs do not say; they take a partner as optional.
        self._pairs: bool | None = saved.get("pairs")
        if self._pairs is not None:
            self.required = ("text", "text_pair") if self._pairs else ("text",)
            self.optional = ()

    def check(self, request: prediction.Request) -> None:
        """As for every predictor; a partner is refused where single texts were trained on."""
        super().check(request)
        if self._pairs is False and "text_pair" in request:
            raise UserError(
                "text_pair is given, but the run was finetuned on single texts; leave it out"
            )

    def load(self) -> None:
        """Builds and restores `model`."""
        assert self.model.built

    @functools.cached_property
    def model(self) -> tf_keras.Model:
        """The classifier with the weights of the run's newest checkpoint."""
        with prediction.precision(self._precision):
            model = ClassificationTask(self._config).build_model()
        checkpoints.restore_model(self._checkpoint, model)
        return model

    @functools.cached_property
    def _compiled(self) -> tf.types.experimental.PolymorphicFunction:
        def outputs(features: dict[str, tf.Tensor]) -> tf.Tensor:
            found = tf.cast(self.model(features, training=False), tf.float32)
            return found if self._config.labels is None else tf.nn.softmax(found)

        return tf.function(outputs, reduce_retracing=True)

    def predict(self, requests: Sequence[prediction.Request]) -> list[prediction.Result]:
        """Results of the texts with `label`, its `probability`, and the `probabilities` of all.

        A run that was finetuned for numbers gives a `score` instead.
        """
        self.load()
        outputs: list[np.ndarray] = [np.zeros(0)] * len(requests)
        # A row has its partner, or none: those with and without are different inputs.
        for paired in (False, True):
            places = [n for n, each in enumerate(requests) if ("text_pair" in each) == paired]
            for part in prediction.chunks(places, self._batch_size):
                found = self._outputs([requests[place] for place in part], paired)
                for place, values in zip(part, found, strict=True):
                    outputs[place] = values
        return [
            prediction.with_id(request, self._result(request, values))
            for request, values in zip(requests, outputs, strict=True)
        ]

    def _outputs(self, requests: Sequence[prediction.Request], paired: bool) -> np.ndarray:
        data = self._config.validation_data
        rows = packed_rows.pack(
            self._vocabulary,
            data.do_lower_case,
            [each["text"] for each in requests],
            [each["text_pair"] for each in requests] if paired else None,
            data.seq_length,
        )
        places = np.arange(rows.lengths.max())
        first = (places < rows.first_lengths[:, None]).astype(np.int32)
        filled = (places < rows.lengths[:, None]).astype(np.int32)
        features = {
            "input_word_ids": rows.word_ids[:, : len(places)],
            "input_mask": filled,
            "input_type_ids": filled - first,
        }
        tensors = {name: tf.constant(array) for name, array in features.items()}
        return self._compiled(tensors).numpy()

    def _result(self, request: prediction.Request, values: np.ndarray) -> prediction.Result:
        result = {name: request[name] for name in ("text", "text_pair") if name in request}
        if self._config.labels is None:
            return {**result, "score": float(values[0])}
        best = int(values.argmax())
        probabilities = dict(zip(self._config.labels, map(float, values), strict=True))
        return {
            **result,
            "label": self._config.labels[best],
            "probability": float(values[best]),
            "probabilities": probabilities,
        }

    def readable(self, result: prediction.Result) -> str:
        """The label, and below it the probabilities; or the number."""
        if "score" in result:
            return f"{result['score']:.4f}"
        ranked = sorted(result["probabilities"].items(), key=lambda item: -item[1])
        return "\n".join([result["label"], *(f"  {value:.4f}  {name}" for name, value in ranked)])
