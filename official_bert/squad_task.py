"""Model Garden's question-answering task on SQuAD files, for our runner.

Model Garden wants its training data converted by another program and throws the predictions
away after scoring them; here the task reads both files itself, starts at any step of its data,
and leaves the predictions beside the scores.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras
from official.core import task_factory
from official.nlp.data import question_answering_dataloader, squad_lib
from official.nlp.tasks import question_answering

from official_bert import checkpoints, global_batch, squad
from official_bert.input import replica_batches
from tfrecords import files

PREDICTIONS, NBEST, METRICS = "predictions.json", "nbest_predictions.json", "eval_metrics.json"


@dataclasses.dataclass
class SquadConfig(question_answering.QuestionAnsweringConfig):
    """Model Garden's fields; `train_data.input_path` is a SQuAD file here, as for validation.

    Attributes:
      seed: draws the new weights; `train_data.seed` draws the order of the rows.
    """

    seed: int = 0
    train_data: question_answering_dataloader.QADataConfig = dataclasses.field(
        default_factory=question_answering_dataloader.QADataConfig
    )
    validation_data: question_answering_dataloader.QADataConfig = dataclasses.field(
        default_factory=lambda: question_answering_dataloader.QADataConfig(is_training=False)
    )


def batches(
    windows: squad.Windows,
    global_batch_size: int,
    *,
    seed: int = 0,
    start_step: int = 0,
    num_pipelines: int = 1,
    pipeline: int = 0,
) -> tf.data.Dataset:
    """Endless training batches; the rows of step s are a function of (seed, s) alone.

    Position p = s * global_batch_size + i of the run is the (p mod N)-th row of epoch p // N,
    each epoch in an order of its own: nothing is dropped between epochs.

    Args:
        windows: the N rows.
        global_batch_size: rows of a step over all pipelines.
        seed: draws the permutations.
        start_step: the first step.
        num_pipelines: how many input pipelines share a step; divides `global_batch_size`.
        pipeline: which of them this is.

    Returns:
        A data set of (features, labels): `input_word_ids`, `input_mask`, `input_type_ids`
        (share, seq_length) and `start_positions`, `end_positions` (share,), all int32.
    """
    share = global_batch_size // num_pipelines
    features = _features_of(windows)
    labels = {
        "start_positions": tf.constant(windows.starts),
        "end_positions": tf.constant(windows.ends),
    }

    def batch(step: tf.Tensor) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        first = step * global_batch_size + pipeline * share
        rows = rows_at(first + tf.range(share, dtype=tf.int64), len(windows), seed)
        return features(rows), {name: tf.gather(column, rows) for name, column in labels.items()}

    return tf.data.Dataset.counter(start_step).map(batch).prefetch(2)


def rows_at(positions: tf.Tensor, num_rows: int, seed: int) -> tf.Tensor:
    """The rows that stand at `positions` of the endless sequence of shuffled epochs; int64.

    All in the graph: a Python generator inside an input pipeline can hang the interpreter's exit.
    """
    positions = tf.cast(positions, tf.int64)
    epochs = positions // num_rows
    drawn_by = tf.stack([tf.fill(tf.shape(epochs), tf.constant(seed, tf.int64)), epochs], axis=1)
    seeds = tf.pad(drawn_by, [[0, 0], [0, 1]])
    return tf.random_index_shuffle(positions % num_rows, seeds, tf.constant(num_rows - 1, tf.int64))


def evaluation_batches(
    windows: squad.Windows, global_batch_size: int, *, num_pipelines: int = 1, pipeline: int = 0
) -> tf.data.Dataset:
    """One pass over the rows in order, with `unique_ids`; full batches for every pipeline.

    The last batch is filled up from the first rows again: a row answered twice gets the same
    answer twice.
    """
    share = global_batch_size // num_pipelines
    count = -(-len(windows) // global_batch_size)
    features = _features_of(windows)
    unique_ids = tf.constant(windows.unique_ids)

    def batch(step: tf.Tensor) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        first = step * global_batch_size + pipeline * share
        rows = (first + tf.range(share, dtype=tf.int64)) % len(windows)
        return {**features(rows), "unique_ids": tf.gather(unique_ids, rows)}, {}

    return tf.data.Dataset.range(count).map(batch).prefetch(2)


def _features_of(windows: squad.Windows) -> Any:
    word_ids = tf.constant(windows.word_ids)
    question_lengths, lengths = map(tf.constant, (windows.question_lengths, windows.lengths))
    seq_length = word_ids.shape[1]

    def features(rows: tf.Tensor) -> dict[str, tf.Tensor]:
        question = tf.sequence_mask(tf.gather(question_lengths, rows), seq_length, tf.int32)
        filled = tf.sequence_mask(tf.gather(lengths, rows), seq_length, tf.int32)
        return {
            "input_word_ids": tf.gather(word_ids, rows),
            "input_mask": filled,
            "input_type_ids": filled - question,
        }

    return features


@task_factory.register_task_cls(SquadConfig)
class SquadTask(question_answering.QuestionAnsweringTask):
    """Extractive question answering: finetunes on one SQuAD file and predicts on another.

    Args:
        params: the task's config; both `input_path`s are SQuAD v1.1 files.
        logging_dir: the run's folder, which gets `predictions.json`, `nbest_predictions.json`
            and `eval_metrics.json` after every evaluation; None writes nothing.

    Raises:
        UserError: a file is missing or not what it should be.
    """

    def __init__(
        self, params: SquadConfig, logging_dir: str | None = None, name: str | None = None
    ) -> None:
        # Before the superclass reads the dev file, so that a bad train file is told at once.
        self.train_squad = squad.Squad.load(params.train_data.input_path)
        self.dev_squad = squad.Squad.load(params.validation_data.input_path)
        self.train_windows, self.skipped = squad.train_windows(
            self.train_squad, tokenizer(params.train_data), window_settings(params.train_data)
        )
        super().__init__(params, logging_dir, name=name)

    def _preprocess_eval_data(
        self, params: question_answering_dataloader.QADataConfig
    ) -> tuple[str, list[Any], list[Any]]:
        """Model Garden's hook; the rows stay in memory, so there is no file to name."""
        self.dev_windows, examples, features = squad.dev_windows(
            self.dev_squad, tokenizer(params), window_settings(params)
        )
        return "", examples, features

    def build_inputs(
        self,
        params: question_answering_dataloader.QADataConfig,
        input_context: tf.distribute.InputContext | None = None,
        start_step: int = 0,
    ) -> tf.data.Dataset:
        """One input pipeline's replica batches, from `start_step` on when training."""
        place = {}
        if input_context is not None:
            place["num_pipelines"] = input_context.num_input_pipelines
            place["pipeline"] = input_context.input_pipeline_id
        size = params.global_batch_size
        if params.is_training:
            dataset = batches(
                self.train_windows, size, seed=params.seed or 0, start_step=start_step, **place
            )
        else:
            dataset = evaluation_batches(self.dev_windows, size, **place)
        return replica_batches(dataset, size, input_context, params.is_training)

    def initialize(self, model: tf_keras.Model) -> None:
        """Restores the whole encoder, pooler included, from `init_checkpoint` where it is set."""
        if self.task_config.init_checkpoint:
            encoder = model.checkpoint_items["encoder"]
            checkpoints.restore_encoder(self.task_config.init_checkpoint, encoder)

    def trained_variables(self, model: tf_keras.Model) -> list[tf.Variable]:
        """The variables the loss depends on: all but the encoder's pooler."""
        pooler = model.checkpoint_items["encoder"].pooler_layer
        idle = {id(variable) for variable in pooler.trainable_variables}
        return [variable for variable in model.trainable_variables if id(variable) not in idle]

    def build_metrics(self, training: bool | None = None) -> list[tf_keras.metrics.Metric]:
        """None: a training step logs its own, and an evaluation scores whole texts."""
        del training
        return []

    def train_step(
        self,
        inputs: tuple[Mapping[str, tf.Tensor], Mapping[str, tf.Tensor]],
        model: tf_keras.Model,
        optimizer: tf_keras.optimizers.Optimizer,
        metrics: Sequence[tf_keras.metrics.Metric] | None = None,
    ) -> dict[str, tf.Tensor]:
        """One update from the global batch, in a replica's context.

        The loss is the mean over the rows of half the cross entropies of the answer's first and
        last word piece; replicas have equal shares, so their means' mean is the global one.

        Returns:
            `loss`, `start_accuracy` and `end_accuracy` of the global batch.
        """
        del metrics
        features, labels = inputs
        variables = self.trained_variables(model)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        with tf.GradientTape() as tape:
            outputs = model(features, training=True)
            loss = self.build_losses(labels, outputs)
            share = loss / replicas
        gradients = tape.gradient(share, variables)
        optimizer.apply_gradients(list(zip(gradients, variables, strict=True)))
        shares = {self.loss: share}
        for name, logits in zip(("start", "end"), outputs, strict=True):
            guesses = tf.argmax(logits, axis=-1, output_type=tf.int32)
            hits = tf.cast(guesses == labels[f"{name}_positions"], tf.float32)
            shares[f"{name}_accuracy"] = tf.reduce_mean(hits) / replicas
        return global_batch.all_reduce_sum(shares)

    def aggregate_logs(
        self,
        state: list[question_answering.RawAggregatedResult] | None = None,
        step_outputs: Mapping[str, Sequence[tf.Tensor]] | None = None,
    ) -> list[question_answering.RawAggregatedResult]:
        """Collects the logits of every row, as plain numbers that JSON can hold."""
        assert step_outputs is not None
        results = [] if state is None else state
        names = ("unique_ids", "start_logits", "end_logits")
        for replica in zip(*(step_outputs[name] for name in names), strict=True):
            for values in zip(*(tensor.numpy().tolist() for tensor in replica), strict=True):
                results.append(
                    question_answering.RawAggregatedResult(
                        **dict(zip(("unique_id", *names[1:]), values, strict=True))
                    )
                )
        return results

    def reduce_aggregated_logs(
        self,
        aggregated_logs: list[question_answering.RawAggregatedResult],
        global_step: tf.Tensor | None = None,
    ) -> dict[str, float]:
        """Turns logits into answers, writes them, and scores them.

        Returns:
            `exact_match` and `f1`, in percent.
        """
        config = self.task_config
        predictions, nbest, _ = squad_lib.postprocess_output(
            self._eval_examples,
            self._eval_features,
            aggregated_logs,
            config.n_best_size,
            config.max_answer_length,
            config.validation_data.do_lower_case,
        )
        scores = squad.score(self.dev_squad.articles, predictions)
        if self.logging_dir:
            step = {} if global_step is None else {"step": int(global_step.numpy())}
            self._write(PREDICTIONS, predictions)
            self._write(NBEST, nbest)
            self._write(METRICS, {**scores, **step, "questions": self.dev_squad.num_questions})
        return scores

    def _write(self, name: str, content: Any) -> None:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        files.write_text(os.path.join(self.logging_dir, name), text)


def tokenizer(params: question_answering_dataloader.QADataConfig) -> squad.Tokenizer:
    """The tokenizer that a data config describes."""
    return squad.Tokenizer(params.vocab_file, params.do_lower_case)


def window_settings(params: question_answering_dataloader.QADataConfig) -> squad.WindowSettings:
    """The windows that a data config describes."""
    return squad.WindowSettings(
        seq_length=params.seq_length,
        doc_stride=params.doc_stride,
        query_length=params.query_length,
    )
