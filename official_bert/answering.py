"""Answers questions from their contexts, with a run that was finetuned on SQuAD files."""

import functools
import os
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tf_keras
from official.nlp.tasks import question_answering

from official_bert import (
    checkpoints,
    prediction,
    squad,
    squad_answers,
    squad_rows,
    squad_task,
    starting_point,
)
from tfrecords.errors import UserError
from tfrecords.vocabulary import Vocabulary

_SECTIONS = (
    "model", "validation_data", "n_best_size", "max_answer_length", "null_score_diff_threshold",
)  # fmt: skip


def is_finetuned(saved: dict) -> bool:
    """Whether the task section of a `params.yaml` is that of a run on SQuAD files."""
    return "n_best_size" in saved


class QuestionAnswerer(prediction.Predictor):
    """Answers as the run's evaluation does: the same windows, the same choice among spans.

    Args:
        run: the finetuned run's folder.
        top_k: answers in a result.
        batch_size: rows that the model sees at once.

    Raises:
        UserError: the folder holds no checkpoint or no vocabulary.

    Example:
        >>> answerer = QuestionAnswerer("finetuned")
        >>> request = {"question": "Where does it end?", "context": "It ends at Le Havre."}
        >>> answerer.predict([request])[0]["answer"]
        'Le Havre'
    """

    does = "answering a question"
    required = ("question", "context")

    def __init__(self, run: str, top_k: int = 5, batch_size: int = prediction.BATCH_SIZE) -> None:
        saved = prediction.saved_task(run)
        self._config = squad_task.SquadConfig()
        known = {name: saved[name] for name in _SECTIONS if name in saved}
        self._config.override(known, is_strict=True)
        data = self._config.validation_data
        # Seen from the folder that it is in now, and with no dev file to read.
        data.input_path, data.vocab_file = "", os.path.join(run, starting_point.VOCABULARY)
        Vocabulary.load(data.vocab_file)
        self._precision = prediction.saved_precision(run)
        self._checkpoint = checkpoints.latest(run)
        self._tokenizer = squad_rows.tokenizer(data)
        self._windows = squad_rows.window_settings(data)
        self._answers = squad_task.answer_settings(self._config, data.version_2_with_negative)
        self._top_k, self._batch_size = top_k, batch_size

    def check(self, request: prediction.Request) -> None:
        """As for every predictor; the context must hold a word besides."""
        super().check(request)
        if not any(map(self._tokenizer.tokenize, request["context"].split())):
            raise UserError("context holds no word; expected text to find the answer in")

    def load(self) -> None:
        """Builds and restores `model`."""
        assert self.model.built

    @functools.cached_property
    def model(self) -> tf_keras.Model:
        """The span labeler with the weights of the run's newest checkpoint."""
        with prediction.precision(self._precision):
            model = question_answering.QuestionAnsweringTask(self._config).build_model()
        checkpoints.restore_model(self._checkpoint, model)
        return model

    @functools.cached_property
    def _compiled(self) -> tf.types.experimental.PolymorphicFunction:
        def logits(features: dict[str, tf.Tensor]) -> list[tf.Tensor]:
            outputs = self.model(features, training=False)
            return [tf.cast(each, tf.float32) for each in outputs]

        return tf.function(logits, reduce_retracing=True)

    def predict(self, requests: Sequence[prediction.Request]) -> list[prediction.Result]:
        """Results of `question`, `answer`, its `probability` and the `top_k` best `answers`.

        Probabilities are a softmax over the run's n best answers of a question, as in
        `nbest_predictions.json`. Where none of them is a span of the context, `answer` is "" with
        probability 0, and `answers` is empty; `predictions.json` has the word "empty" there, as
        Model Garden writes it. A run on SQuAD v2.0 may answer "", and its results have
        `null_odds` besides: what speaks for no answer, less what speaks for the best.
        """
        self.load()
        asked = squad.unlabelled([(each["question"], each["context"]) for each in requests])
        windows, examples, features = squad.dev_windows(
            asked, self._tokenizer, self._windows, progress=False
        )
        answers = squad_answers.form(examples, features, self._logits(windows), self._answers)
        return [
            prediction.with_id(request, self._result(request, answers, str(index)))
            for index, request in enumerate(requests)
        ]

    def _logits(self, windows: squad.Windows) -> squad_answers.Logits:
        batches = -(-len(windows) // self._batch_size)
        found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for inputs, _ in squad_task.evaluation_batches(windows, -(-len(windows) // batches)):
            ids = inputs.pop("unique_ids").numpy().tolist()
            starts, ends = (logits.numpy() for logits in self._compiled(inputs))
            for unique_id, start, end in zip(ids, starts, ends, strict=True):
                found.setdefault(unique_id, (start, end))
        return found

    def _result(
        self, request: prediction.Request, answers: squad_answers.Answers, key: str
    ) -> prediction.Result:
        nbest, predicted = answers.nbest[key], answers.predictions[key]
        if not self._answers.version_2 and squad_answers.is_nonce(nbest):
            nothing = {"answer": "", "probability": 0.0, "answers": []}
            return {"question": request["question"], **nothing}
        probability = next(each["probability"] for each in nbest if each["text"] == predicted)
        result = {"question": request["question"], "answer": predicted, "probability": probability}
        if self._answers.version_2:
            result["null_odds"] = answers.null_odds[key]
        kept = ("text", "probability")
        result["answers"] = [{name: each[name] for name in kept} for each in nbest[: self._top_k]]
        return result

    def readable(self, result: prediction.Result) -> str:
        """The answer, and below it the best few with their probabilities."""
        if not result["answers"]:
            return "(nothing found: none of the n best is a span of the context)"
        lines = [result["answer"] or "(no answer)"]
        lines += [
            f"  {each['probability']:.4f}  {each['text'] or '(no answer)'}"
            for each in result["answers"]
        ]
        return "\n".join(lines)
