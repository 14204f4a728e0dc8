"""Model Garden's question-answering task on SQuAD files, for our runner.

Model Garden wants its training data converted by another program and throws the predictions
away after scoring them; here the task reads both files itself, starts at any step of its data,
and leaves the predictions beside the scores.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from official.core import task_factory
from official.nlp.data import question_answering_dataloader
from official.nlp.tasks import question_answering

from official_bert import (
    checkpoints,
    cluster,
    global_batch,
    packed_rows,
    squad,
    squad_answers,
    squad_rows,
)
from official_bert.input import replica_batches
from tfrecords import files, hashing

PREDICTIONS, NBEST, METRICS = "predictions.json", "nbest_predictions.json", "eval_metrics.json"
NULL_ODDS = "null_odds.json"

Tensors = Mapping[str, tf.Tensor]


@dataclasses.dataclass
class SquadConfig(question_answering.QuestionAnsweringConfig):
    """Model Garden's fields; `train_data.input_path` is a SQuAD file here, as for validation.

    Whether they are SQuAD v2.0 is seen from the files; `version_2_with_negative` of both data
    configs records it.

    Attributes:
      seed: draws the new weights; `train_data.seed` draws the order of the rows.
      train_file_sha256: of the file that is trained on, which a begun run may not exchange.
      strict: whether answers that do not stand where they say are refused.
      micro_batch_size: rows of a replica of one forward and backward pass, whose gradients are
        summed; 0 takes its whole share at once.
    """

    seed: int = 0
    train_file_sha256: str = ""
    strict: bool = False
    micro_batch_size: int = 0
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
    features = packed_rows.features_of(windows.word_ids, windows.question_lengths, windows.lengths)
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
    # Small numbers are weak keys of that shuffle: with zeros it leaves rows nearly where they are.
    drawn = [hashing.mix_tensors(seed, epochs, tf.constant(word, tf.int64)) for word in range(3)]
    seeds = tf.stack([tf.cast(bits, tf.uint32) for bits in drawn], axis=1)
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
    features = packed_rows.features_of(windows.word_ids, windows.question_lengths, windows.lengths)
    unique_ids = tf.constant(windows.unique_ids)

    def batch(step: tf.Tensor) -> tuple[dict[str, tf.Tensor], dict[str, tf.Tensor]]:
        first = step * global_batch_size + pipeline * share
        rows = (first + tf.range(share, dtype=tf.int64)) % len(windows)
        return {**features(rows), "unique_ids": tf.gather(unique_ids, rows)}, {}

    return tf.data.Dataset.range(count).map(batch).prefetch(2)


@task_factory.register_task_cls(SquadConfig)
class SquadTask(question_answering.QuestionAnsweringTask):
    """Extractive question answering: finetunes on one SQuAD file and predicts on another.

    Args:
        params: the task's config; both `input_path`s are SQuAD files of one version.
        logging_dir: the run's folder, which gets `predictions.json`, `nbest_predictions.json`,
            `eval_metrics.json` and, of SQuAD v2.0, `null_odds.json` after every evaluation; None
            writes nothing.
        loaded: both files, where the caller has read them already.
        cut: turns them into rows; one that several runs share does so once.
        keep: called once the weights to start from are restored, before the first step.

    Attributes:
        step_settings: how the step is carried out; the runner sets it from `runtime`.

    Raises:
        UserError: a file is missing or not what it should be.
    """

    step_settings = global_batch.StepSettings()

    def __init__(
        self,
        params: SquadConfig,
        logging_dir: str | None = None,
        name: str | None = None,
        loaded: tuple[squad.Squad, squad.Squad] | None = None,
        cut: squad_rows.Cutter | None = None,
        keep: Callable[[], None] | None = None,
    ) -> None:
        self._keep = keep
        pair = loaded or squad.load_pair(
            params.train_data.input_path, params.validation_data.input_path, params.strict
        )
        self.train_squad, self.dev_squad = pair
        cut = cut or squad_rows.Cutter()
        self.rows = cut(pair, params.train_data, params.validation_data)
        super().__init__(params, logging_dir, name=name)

    def _preprocess_eval_data(
        self, params: question_answering_dataloader.QADataConfig
    ) -> tuple[str, list[Any], list[Any]]:
        """Model Garden's hook; the rows stay in memory, so there is no file to name."""
        del params
        return "", self.rows.examples, self.rows.features

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
                self.rows.train, size, seed=params.seed or 0, start_step=start_step, **place
            )
        else:
            dataset = evaluation_batches(self.rows.dev, size, **place)
        return replica_batches(dataset, size, input_context, params.is_training)

    def initialize(self, model: tf_keras.Model) -> None:
        """Restores the whole encoder, pooler included, from `init_checkpoint` where it is set."""
        if self.task_config.init_checkpoint:
            encoder = model.checkpoint_items["encoder"]
            checkpoints.restore_encoder(self.task_config.init_checkpoint, encoder)
        if self._keep is not None:
            self._keep()

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
        inputs: tuple[Tensors, Tensors],
        model: tf_keras.Model,
        optimizer: tf_keras.optimizers.Optimizer,
        metrics: Sequence[tf_keras.metrics.Metric] | None = None,
    ) -> dict[str, tf.Tensor]:
        """One update from the global batch, in a replica's context.

        The loss is the mean over the rows of half the cross entropies of the answer's first and
        last word piece.

        Returns:
            `loss`, `start_accuracy` and `end_accuracy` of the global batch.
        """
        del metrics
        features, labels = inputs
        variables = self.trained_variables(model)
        size = self.task_config.train_data.global_batch_size

        def share(
            batch: Tensors, shared: Tensors, loss_scale: tf.Tensor
        ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
            del shared
            part = batch["start_positions"].shape[0] / size
            with tf.GradientTape() as tape:
                outputs = model({name: batch[name] for name in features}, training=True)
                loss = self.build_losses(batch, outputs) * part
                scaled = loss_scale * loss
            scalars = [loss]
            for name, logits in zip(("start", "end"), outputs, strict=True):
                guesses = tf.argmax(logits, axis=-1, output_type=tf.int32)
                hits = tf.cast(guesses == batch[f"{name}_positions"], tf.float32)
                scalars.append(tf.reduce_mean(hits) * part)
            return tape.gradient(scaled, variables), scalars

        summed = global_batch.summed(
            share,
            {**features, **labels},
            {},
            variables,
            num_scalars=3,
            micro_batch_size=self.task_config.micro_batch_size,
            settings=self.step_settings,
        )
        global_batch.apply(optimizer, summed.gradients, variables, self.step_settings.loss_scale)
        names = (self.loss, "start_accuracy", "end_accuracy")
        return dict(zip(names, summed.scalars, strict=True))

    def validation_step(
        self,
        inputs: tuple[dict[str, tf.Tensor], Tensors],
        model: tf_keras.Model,
        metrics: Sequence[tf_keras.metrics.Metric] | None = None,
    ) -> dict[str, tf.Tensor]:
        """The logits of the rows of all replicas of all workers, float32, on each of them.

        Model Garden leaves each worker with its own, and so with answers to a part only.
        """
        logs = super().validation_step(inputs, model, metrics)
        logs |= {name: tf.cast(logs[name], tf.float32) for name in ("start_logits", "end_logits")}
        return {name: global_batch.of_all_replicas(tensor) for name, tensor in logs.items()}

    def aggregate_logs(
        self,
        state: dict[int, tuple[np.ndarray, np.ndarray]] | None = None,
        step_outputs: Mapping[str, Sequence[tf.Tensor]] | None = None,
    ) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Collects the logits of every row, once, by its unique id."""
        assert step_outputs is not None
        results = {} if state is None else state
        # Any replica has all rows.
        ids, starts, ends = (
            step_outputs[name][0].numpy() for name in ("unique_ids", "start_logits", "end_logits")
        )
        for unique_id, start, end in zip(ids.tolist(), starts, ends, strict=True):
            # A row comes again where it filled up the last batch.
            results.setdefault(unique_id, (start, end))
        return results

    def reduce_aggregated_logs(
        self,
        aggregated_logs: squad_answers.Logits,
        global_step: tf.Tensor | None = None,
    ) -> dict[str, float]:
        """Turns logits into answers, which the chief writes, and scores them.

        Returns:
            What `squad_answers.score` does.
        """
        answers = squad_answers.form(
            self._eval_examples,
            self._eval_features,
            aggregated_logs,
            answer_settings(self.task_config, self.dev_squad.version_2),
        )
        null_odds = answers.null_odds if self.dev_squad.version_2 else None
        scores = squad_answers.score(self.dev_squad.articles, answers.predictions, null_odds)
        if self.logging_dir and cluster.this_worker(tf.distribute.get_strategy()).is_chief:
            step = {} if global_step is None else {"step": int(global_step.numpy())}
            self._write(PREDICTIONS, answers.predictions)
            self._write(NBEST, answers.nbest)
            if null_odds is not None:
                self._write(NULL_ODDS, null_odds)
            self._write(METRICS, {**scores, **step, "questions": self.dev_squad.num_questions})
        return scores

    def _write(self, name: str, content: Any) -> None:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        files.write_text(os.path.join(self.logging_dir, name), text)


def answer_settings(config: SquadConfig, version_2: bool) -> squad_answers.AnswerSettings:
    """How a config chooses answers."""
    return squad_answers.AnswerSettings(
        n_best=config.n_best_size,
        max_answer_length=config.max_answer_length,
        lower_case=config.validation_data.do_lower_case,
        version_2=version_2,
        null_score_diff_threshold=config.null_score_diff_threshold,
    )
