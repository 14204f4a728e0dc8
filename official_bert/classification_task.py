"""Model Garden's sentence-prediction task on texts in memory, for our runner.

Every group of rows of `classification_input` passes the model at its own length.
"""

import csv
import dataclasses
import functools
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from official.core import config_definitions, task_factory
from official.nlp.configs import encoders
from official.nlp.modeling import layers, models
from official.nlp.tasks import sentence_prediction

from official_bert import checkpoints, global_batch, guard, packed_rows
from official_bert import classification_scores as scores
from official_bert.classification_input import Cut, Labelled, batches, evaluation_batches
from official_bert.input import replica_batches
from tfrecords import files

PREDICTIONS, METRICS, LABELS = "predictions.tsv", "eval_metrics.json", "labels.json"
_HEAD = "sentence_prediction"
_FEATURES = ("input_word_ids", "input_mask", "input_type_ids")

Tensors = Mapping[str, tf.Tensor]


@dataclasses.dataclass
class ClassificationDataConfig(config_definitions.DataConfig):
    """Labelled texts.

    Attributes:
      input_path: the file or folder they come from, for the record.
      global_batch_size: rows of a batch over all replicas.
      is_training: whether batches never end.
      seq_length: word pieces of a row, at most.
      vocab_file: the vocabulary.
      do_lower_case: the casing.
      seed: draws the order of the rows.
    """

    input_path: str = ""
    global_batch_size: int = 32
    is_training: bool = True
    seq_length: int = 128
    vocab_file: str = ""
    do_lower_case: bool = True
    seed: int = 0


@dataclasses.dataclass
class ClassificationConfig(sentence_prediction.SentencePredictionConfig):
    """Model Garden's fields, and eight of ours.

    Attributes:
      seed: draws the new weights and dropout; `train_data.seed` draws the order of the rows.
      train_file_sha256: of the file that is trained on, which a begun run may not exchange.
      micro_batch_size: rows of each replica's share that have one length; 0 takes all of them.
      num_lengths: how many static lengths there are.
      new_pooler: whether the pooler is drawn anew, instead of restored with the encoder.
      labels: the classes by their numbers; None where a number is predicted.
      pairs: whether each row has a second text.
      metrics: what is scored, names of `classification_scores`.
    """

    seed: int = 0
    train_file_sha256: str = ""
    micro_batch_size: int = 0
    num_lengths: int = 4
    new_pooler: bool = False
    labels: list[str] | None = None
    pairs: bool = False
    metrics: list[str] = dataclasses.field(default_factory=lambda: [scores.ACCURACY])
    train_data: ClassificationDataConfig = dataclasses.field(
        default_factory=ClassificationDataConfig
    )
    validation_data: ClassificationDataConfig = dataclasses.field(
        default_factory=lambda: ClassificationDataConfig(is_training=False)
    )


@task_factory.register_task_cls(ClassificationConfig)
class ClassificationTask(sentence_prediction.SentencePredictionTask):
    """Classes of texts, or numbers: finetunes on one set of rows and predicts on others.

    Args:
        params: the task's config.
        logging_dir: the run's folder, which gets `predictions.tsv` and `eval_metrics.json` after
            every evaluation; None writes nothing.
        train: what to train on; None for a task that only builds its model.
        dev: what to predict and score, in order; the first one's metrics have plain names.
        keep: called once the weights to start from are restored, before the first step.

    Attributes:
        step_settings: how the step is carried out; the runner sets it from `runtime`.
    """

    step_settings = global_batch.StepSettings()

    def __init__(
        self,
        params: ClassificationConfig,
        logging_dir: str | None = None,
        name: str | None = None,
        *,
        train: Labelled | None = None,
        dev: Sequence[Labelled] = (),
        keep: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(params, logging_dir, name=name)
        self._train, self._dev, self._keep = train, tuple(dev), keep

    @property
    def is_regression(self) -> bool:
        """Whether a number is predicted."""
        return self.task_config.labels is None

    def build_model(self) -> tf_keras.Model:
        """Model Garden's classifier over the encoder's own pooler, with one dropout before it."""
        config = self.task_config.model
        encoder = config.encoder.get()
        initializer = tf_keras.initializers.TruncatedNormal(stddev=encoder.initializer_range)
        head = layers.ClassificationHead(
            inner_dim=0,
            num_classes=config.num_classes,
            initializer=initializer,
            dropout_rate=0.0,
            name=_HEAD,
        )
        model = models.BertClassifier(
            network=encoders.build_encoder(config.encoder),
            num_classes=config.num_classes,
            initializer=initializer,
            dropout_rate=encoder.dropout_rate,
            use_encoder_pooler=True,
            head_name=_HEAD,
            cls_head=head,
        )
        model({symbol.name: symbol for symbol in tf.nest.flatten(model.inputs)})
        return model

    def build_inputs(
        self,
        params: ClassificationDataConfig,
        input_context: tf.distribute.InputContext | None = None,
        start_step: int = 0,
    ) -> tf.data.Dataset:
        """One input pipeline's replica batches, from `start_step` on when training."""
        place = {}
        replicas = 1
        if input_context is not None:
            replicas = input_context.num_replicas_in_sync
            place["num_pipelines"] = input_context.num_input_pipelines
            place["pipeline"] = input_context.input_pipeline_id
        cut = self._cut(params.is_training, replicas)
        if params.is_training:
            assert self._train is not None
            dataset = batches(
                self._train, cut, seed=params.seed or 0, start_step=start_step, **place
            )
        else:
            dataset = evaluation_batches(self._dev_rows, cut, **place)
        size = params.global_batch_size
        return replica_batches(dataset, size, input_context, params.is_training)

    @functools.lru_cache(maxsize=4)  # noqa: B019 - a task lives as long as its run
    def _cut(self, is_training: bool, replicas: int) -> Cut:
        config = self.task_config
        data = config.train_data if is_training else config.validation_data
        micro = config.micro_batch_size if is_training else 0
        groups = data.global_batch_size // (replicas * micro) if micro else 1
        if is_training:
            assert self._train is not None
            lengths = self._train.rows.lengths
        else:
            # The rows of an evaluation's batch are as good as equally long.
            lengths = self._dev_rows.lengths
        return Cut(
            batch_size=data.global_batch_size,
            replicas=replicas,
            groups=groups,
            lengths=packed_rows.group_lengths(
                lengths,
                batch_size=data.global_batch_size if is_training else 1,
                groups=groups,
                seq_length=data.seq_length,
                count=config.num_lengths,
            ),
        )

    @functools.cached_property
    def _dev_rows(self) -> packed_rows.Rows:
        """The rows of all dev sets, one after the other."""
        parts = [each.rows for each in self._dev]
        fields = [field.name for field in dataclasses.fields(packed_rows.Rows)]
        return packed_rows.Rows(
            **{name: np.concatenate([getattr(part, name) for part in parts]) for name in fields}
        )

    def initialize(self, model: tf_keras.Model) -> None:
        """Restores the encoder from `init_checkpoint` where it is set, its pooler if it may."""
        if self.task_config.init_checkpoint:
            encoder = model.checkpoint_items["encoder"]
            if self.task_config.new_pooler:
                drawn = encoder.pooler_layer.get_weights()
            checkpoints.restore_encoder(self.task_config.init_checkpoint, encoder)
            if self.task_config.new_pooler:
                encoder.pooler_layer.set_weights(drawn)
        if self._keep is not None:
            self._keep()

    def trained_variables(self, model: tf_keras.Model) -> list[tf.Variable]:
        """All of them: the class is read off the pooler."""
        return list(model.trainable_variables)

    def build_metrics(self, training: bool | None = None) -> list[tf_keras.metrics.Metric]:
        """None: a training step logs its own, and an evaluation scores all rows at once."""
        del training
        return []

    def losses(self, labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """The loss of each row, float32: cross entropy, or squared error of a number."""
        outputs = tf.cast(outputs, tf.float32)
        if self.is_regression:
            return tf.square(outputs[:, 0] - labels)
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels, outputs)

    def train_step(
        self,
        inputs: Tensors,
        model: tf_keras.Model,
        optimizer: tf_keras.optimizers.Optimizer,
        metrics: Sequence[tf_keras.metrics.Metric] | None = None,
    ) -> dict[str, tf.Tensor]:
        """One update from the mean loss of the global batch, in a replica's context.

        Returns:
            `loss` of the global batch, and the `accuracy` of classes.
        """
        del metrics
        variables = self.trained_variables(model)
        size = self.task_config.train_data.global_batch_size
        cut = self._cut(True, tf.distribute.get_strategy().num_replicas_in_sync)

        def share(
            batch: Tensors, shared: Tensors, loss_scale: tf.Tensor
        ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
            del shared

            def gradients(features: Tensors) -> list[tf.Tensor]:
                with tf.GradientTape() as tape:
                    outputs = model(features, training=True)
                    loss = tf.reduce_sum(self.losses(batch["label_ids"], outputs)) / size
                    scaled = loss_scale * loss
                found = tape.gradient(scaled, variables)
                hits = self._hits(batch["label_ids"], outputs) / size
                # Branches of a conditional return tensors, which an embedding's gradient is not.
                return [*map(tf.convert_to_tensor, found), loss, hits]

            *found, loss, hits = _at_length(gradients, batch, cut.lengths)
            return found, [loss, hits]

        summed = global_batch.summed(
            share,
            inputs,
            {},
            variables,
            num_scalars=2,
            micro_batch_size=self.task_config.micro_batch_size,
            settings=self.step_settings,
        )
        global_batch.apply(optimizer, summed.gradients, variables, self.step_settings.loss_scale)
        loss, hits = summed.scalars
        return {"loss": loss} if self.is_regression else {"loss": loss, scores.ACCURACY: hits}

    def _hits(self, labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        if self.is_regression:
            return tf.zeros([])
        guesses = tf.argmax(outputs, axis=-1, output_type=tf.int32)
        return tf.reduce_sum(tf.cast(guesses == labels, tf.float32))

    def validation_step(
        self,
        inputs: Tensors,
        model: tf_keras.Model,
        metrics: Sequence[tf_keras.metrics.Metric] | None = None,
    ) -> dict[str, tf.Tensor]:
        """The outputs of the global batch's rows, all of them on every replica."""
        del metrics
        cut = self._cut(False, tf.distribute.get_strategy().num_replicas_in_sync)
        (outputs,) = _at_length(
            lambda features: [tf.cast(model(features, training=False), tf.float32)],
            inputs,
            cut.lengths,
        )
        found = {"outputs": outputs, "row": inputs["row"]}
        return {name: global_batch.of_all_replicas(value) for name, value in found.items()}

    def aggregate_logs(
        self,
        state: list[tuple[np.ndarray, np.ndarray]] | None = None,
        step_outputs: Mapping[str, Sequence[tf.Tensor]] | None = None,
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Collects (rows, outputs) of every batch."""
        assert step_outputs is not None
        state = [] if state is None else state
        # Every replica, of every worker, has all of them.
        state.append((step_outputs["row"][0].numpy(), step_outputs["outputs"][0].numpy()))
        return state

    def reduce_aggregated_logs(
        self,
        aggregated_logs: list[tuple[np.ndarray, np.ndarray]],
        global_step: tf.Tensor | None = None,
    ) -> dict[str, float]:
        """Scores the predictions and writes them.

        Returns:
            The task's metrics in percent; those of further dev sets with their names behind.

        Raises:
            guard.Diverged: the outputs of a row are not finite.
        """
        rows, outputs = map(np.concatenate, zip(*aggregated_logs, strict=True))
        ordered = np.zeros((len(self._dev_rows), outputs.shape[1]), np.float32)
        real = rows < len(ordered)
        ordered[rows[real]] = outputs[real]
        lost = int((~np.isfinite(ordered)).any(axis=1).sum())
        if lost:
            lost_rows = f"the model's outputs for {lost} of {len(ordered)} rows are not finite"
            raise guard.Diverged(
                f"{lost_rows}: the training diverged; finetune again in another --model_dir with a "
                "lower --learning_rate",
                lost_rows,
            )
        values: dict[str, float] = {}
        begin = 0
        for number, dev in enumerate(self._dev):
            part = ordered[begin : begin + len(dev.rows)]
            begin += len(dev.rows)
            predicted = part[:, 0] if self.is_regression else part.argmax(axis=1)
            found = scores.score(
                self.task_config.metrics, dev.labels, predicted, self.task_config.model.num_classes
            )
            ending = f"_{dev.name}" if number else ""
            values |= {f"{name}{ending}": value for name, value in found.items()}
            if self.logging_dir:
                name, suffix = os.path.splitext(PREDICTIONS)
                path = os.path.join(self.logging_dir, f"{name}{ending}{suffix}")
                files.write_text(path, predictions_text(part, self.task_config.labels))
        if self.logging_dir:
            step = {} if global_step is None else {"step": int(global_step.numpy())}
            content = {**values, **step, "rows": len(ordered)}
            path = os.path.join(self.logging_dir, METRICS)
            files.write_text(path, json.dumps(content, indent=2) + "\n")
        return values


def probabilities(outputs: np.ndarray) -> np.ndarray:
    """Softmax over the last axis, in float64."""
    shifted = np.exp(outputs.astype(np.float64) - outputs.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def predictions_text(outputs: np.ndarray, labels: Sequence[str] | None) -> str:
    """`predictions.tsv`: a line a row with its index, its label and each class's probability.

    Args:
        outputs: (N, classes), logits; (N, 1), numbers.
        labels: the classes; None where numbers are predicted, which are the label then.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, "excel-tab", lineterminator="\n")
    if labels is None:
        writer.writerow(["index", "label"])
        writer.writerows([index, f"{value:.6f}"] for index, (value,) in enumerate(outputs))
        return stream.getvalue()
    writer.writerow(["index", "label", *(f"score_{label}" for label in labels)])
    for index, row in enumerate(probabilities(outputs)):
        writer.writerow([index, labels[int(row.argmax())], *(f"{value:.6f}" for value in row)])
    return stream.getvalue()


def _at_length(
    function: Callable[[Tensors], list[tf.Tensor]], batch: Tensors, lengths: Sequence[int]
) -> list[tf.Tensor]:
    """`function` of a batch's features, cut to the length that the batch names."""

    def at(length: int) -> list[tf.Tensor]:
        return function({name: batch[name][:, :length] for name in _FEATURES})

    if len(lengths) == 1:
        return at(lengths[0])
    branches = [functools.partial(at, length) for length in lengths]
    return tf.switch_case(batch["length_number"][0], branches)


def config_labels(labels: Sequence[str] | None) -> dict[str, Any]:
    """What `labels.json` holds: the classes by their numbers, null where a number is predicted."""
    return {"labels": None if labels is None else list(labels)}
