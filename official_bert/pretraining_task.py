"""The pretraining task: Model Garden's masked-LM task with the loss of the global batch.

Model Garden normalises the masked-LM loss per replica, so the same batch cut differently gives
another gradient. Here the denominators are summed over all replicas before the loss is formed,
and micro-batches accumulate its gradient: the step depends on the global batch alone.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import tensorflow as tf
import tf_keras
from official.core import config_definitions, task_factory
from official.nlp.configs import bert, encoders
from official.nlp.tasks import masked_lm

import tfrecords
from official_bert import checkpoints, global_batch, run_data
from official_bert.input import PretrainDataConfig, PretrainDataLoader, replica_batches
from tfrecords.errors import UserError

Tensors = Mapping[str, tf.Tensor]

# What a batch contributes to the losses and accuracies, all sums over its examples.
_DENOMINATORS = ("masked_lm_weight", "examples")
_NUMERATORS = ("masked_lm_loss", "masked_lm_correct", "next_sentence_loss", "next_sentence_correct")


@dataclasses.dataclass
class LargeBatchPretrainConfig(masked_lm.MaskedLMConfig):
    """Model Garden's masked-LM task with our data and micro-batches.

    Attributes:
      micro_batch_size: examples per replica of one forward and backward pass; the gradients of a
        step's micro-batches are summed. 0 takes the replica's batch whole.
      seed: draws the initial weights and dropout; the order of the data has its own,
        `train_data.seed`.
    """

    model: bert.PretrainerConfig = dataclasses.field(
        default_factory=lambda: bert.PretrainerConfig(encoder=encoders.EncoderConfig(type="bert"))
    )
    train_data: PretrainDataConfig = dataclasses.field(default_factory=PretrainDataConfig)
    validation_data: PretrainDataConfig = dataclasses.field(
        default_factory=lambda: PretrainDataConfig(is_training=False)
    )
    micro_batch_size: int = 0
    seed: int = 0


def batch_sums(inputs: Tensors, outputs: Tensors) -> dict[str, tf.Tensor]:
    """Loss and accuracy numerators of a batch, float32 scalars.

    With w the `masked_lm_weights` (0 for empty slots), e = 1 for real rows and 0 for padding
    rows (whose `input_mask` is all zero), and CE the cross entropy in nats::

        masked_lm_loss        = sum_ij w_ij CE(mlm_logits_ij, masked_lm_ids_ij)
        masked_lm_correct     = sum_ij w_ij [argmax mlm_logits_ij = masked_lm_ids_ij]
        next_sentence_loss    = sum_i e_i CE(next_sentence_i, next_sentence_labels_i)
        next_sentence_correct = sum_i e_i [argmax next_sentence_i = next_sentence_labels_i]

    Args:
      inputs: a batch of `tfrecords.read`.
      outputs: what the model answers: `mlm_logits` (batch, predictions, vocabulary) and, where
        the model has that head, `next_sentence` (batch, 2).
    """
    weights = inputs["masked_lm_weights"]
    sums = _weighted_sums(outputs["mlm_logits"], inputs["masked_lm_ids"], weights)
    totals = dict(zip(_NUMERATORS[:2], sums, strict=True))
    if "next_sentence" in outputs:
        labels = inputs["next_sentence_labels"][:, 0]
        sums = _weighted_sums(outputs["next_sentence"], labels, example_weights(inputs))
    else:
        sums = (tf.zeros([]), tf.zeros([]))
    return totals | dict(zip(_NUMERATORS[2:], sums, strict=True))


def batch_denominators(inputs: Tensors) -> dict[str, tf.Tensor]:
    """Total masked-LM weight and number of real rows of a batch, float32 scalars."""
    sums = (tf.reduce_sum(inputs["masked_lm_weights"]), tf.reduce_sum(example_weights(inputs)))
    return dict(zip(_DENOMINATORS, sums, strict=True))


def example_weights(inputs: Tensors) -> tf.Tensor:
    """1.0 for every real row of a batch, 0.0 for the rows that pad the last one; (batch,)."""
    return tf.cast(tf.reduce_any(inputs["input_mask"] != 0, axis=1), tf.float32)


def _weighted_sums(
    logits: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    logits = tf.cast(logits, tf.float32)
    losses = _cross_entropies(logits, labels)
    correct = tf.cast(tf.argmax(logits, axis=-1, output_type=labels.dtype) == labels, tf.float32)
    return tf.reduce_sum(weights * losses), tf.reduce_sum(weights * correct)


def _cross_entropies(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Of each label, in nats.

    With op determinism on, `tf.nn` takes a slower way that holds the probabilities twice, for the
    sake of GPUs; the kernel of CPUs is deterministic.
    """
    if tf.config.list_physical_devices("GPU"):
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    losses, _ = tf.raw_ops.SparseSoftmaxCrossEntropyWithLogits(
        features=tf.reshape(logits, [-1, logits.shape[-1]]), labels=tf.reshape(labels, [-1])
    )
    return tf.reshape(losses, tf.shape(labels))


def batch_loss(sums: Tensors, totals: Tensors) -> tf.Tensor:
    """A batch's share of the global loss; the shares of all replicas add up to it.

    Args:
      sums: `batch_sums` of this batch.
      totals: `batch_denominators` of the GLOBAL batch.
    """
    return tf.math.divide_no_nan(
        sums["masked_lm_loss"], totals["masked_lm_weight"]
    ) + tf.math.divide_no_nan(sums["next_sentence_loss"], totals["examples"])


def losses_and_accuracies(
    sums: Tensors, totals: Tensors, next_sentence: bool
) -> dict[str, tf.Tensor]:
    """The means that are logged, of a global batch."""
    ratio = tf.math.divide_no_nan
    logs = {
        "loss": batch_loss(sums, totals),
        "masked_lm_loss": ratio(sums["masked_lm_loss"], totals["masked_lm_weight"]),
        "masked_lm_accuracy": ratio(sums["masked_lm_correct"], totals["masked_lm_weight"]),
    }
    if next_sentence:
        logs["next_sentence_loss"] = ratio(sums["next_sentence_loss"], totals["examples"])
        logs["next_sentence_accuracy"] = ratio(sums["next_sentence_correct"], totals["examples"])
    return logs


def with_heads_of_data(
    params: config_definitions.ExperimentConfig, mode: str
) -> config_definitions.ExperimentConfig:
    """The config without a next-sentence head where the shards have no labels for one.

    Args:
      params: the config.
      mode: `train`, `eval` or `train_and_eval`: whose shards are looked at.

    Raises:
      UserError: training shards have labels and those of the evaluation none, or the other way.
    """
    task = params.task
    if not isinstance(task, LargeBatchPretrainConfig):
        return params
    folders = {
        part: data.input_path
        for part, data in (("train", task.train_data), ("eval", task.validation_data))
        if part in mode and data.input_path
    }
    labelled = {part: tfrecords.Manifest.load(path).next_sentence for part, path in folders.items()}
    if len(set(labelled.values())) > 1:
        raise UserError(
            f"{folders['train']} and {folders['eval']} differ: one has next-sentence labels and "
            "the other none; expected shards of one kind for train_data and validation_data"
        )
    if all(labelled.values()):
        return params
    heads = [head for head in task.model.cls_heads if head.name != "next_sentence"]
    unlabelled = {"use_next_sentence_label": False}
    return params.replace(
        task=task.replace(
            model=task.model.replace(cls_heads=heads),
            train_data=task.train_data.replace(**unlabelled),
            validation_data=task.validation_data.replace(**unlabelled),
        )
    )


@task_factory.register_task_cls(LargeBatchPretrainConfig)
class LargeBatchPretrainTask(masked_lm.MaskedLMTask):
    """BERT pretraining whose step depends on the global batch alone, however it was cut.

    Attributes:
      step_settings: how the step is carried out; the runner sets it from `runtime`.
      partition: where the epochs of training are counted from; the runner sets it.
    """

    step_settings = global_batch.StepSettings()
    partition = run_data.Partition()

    def build_inputs(
        self,
        params: PretrainDataConfig,
        input_context: tf.distribute.InputContext | None = None,
        start_step: int = 0,
    ) -> tf.data.Dataset:
        """One input pipeline's replica batches from `start_step` on.

        A worker's batch is cut into consecutive runs of `global_batch_size / replicas` rows, one
        for each of its replicas, as `tf.distribute` expects of a dataset function.
        """
        begin = self.partition if params.is_training else run_data.Partition()
        dataset = PretrainDataLoader(params).load(
            input_context, start_step, first_step=begin.step, first_epoch=begin.epoch
        )
        return replica_batches(dataset, params.global_batch_size, input_context, params.is_training)

    def build_model(self, params: bert.PretrainerConfig | None = None) -> tf_keras.Model:
        """Model Garden's pretrainer with every variable created, heads included."""
        model = super().build_model(params)
        model({symbol.name: symbol for symbol in tf.nest.flatten(model.inputs)})
        return model

    def initialize(self, model: tf_keras.Model) -> None:
        """Loads `init_checkpoint`, all model weights, the next-sentence layer included."""
        if self.task_config.init_checkpoint:
            checkpoints.restore_model(self.task_config.init_checkpoint, model)

    def build_metrics(self, training: bool | None = None) -> list[tf_keras.metrics.Metric]:
        """Evaluation means; a training step returns its own, so it has none to keep."""
        if training:
            return []
        names = ["masked_lm_loss", "masked_lm_accuracy"]
        if self.has_next_sentence:
            names += ["next_sentence_loss", "next_sentence_accuracy"]
        return [tf_keras.metrics.Mean(name=name) for name in names]

    def trained_variables(self, model: tf_keras.Model) -> list[tf.Variable]:
        """The model's variables that the loss depends on, in order.

        The encoder's own pooler is not among them: Model Garden's next-sentence head has its
        own, and a variable without a gradient must not reach the optimizer.
        """
        idle_layers = [model.encoder_network.pooler_layer]
        if not self.has_next_sentence:
            idle_layers += model.classification_heads
        idle = {id(variable) for layer in idle_layers for variable in layer.trainable_variables}
        return [variable for variable in model.trainable_variables if id(variable) not in idle]

    @property
    def has_next_sentence(self) -> bool:
        """Whether the model has a next-sentence head that the data trains."""
        return bool(self.task_config.model.cls_heads) and (
            self.task_config.train_data.use_next_sentence_label
        )

    def train_step(
        self,
        inputs: Tensors,
        model: tf_keras.Model,
        optimizer: tf_keras.optimizers.Optimizer,
        metrics: Sequence[tf_keras.metrics.Metric] | None = None,
    ) -> dict[str, tf.Tensor]:
        """One update from the global batch, in a replica's context.

        Args:
          inputs: this replica's share of the batch, a dict of `tfrecords.read`.
          model: the pretrainer.
          optimizer: applies the all-reduced sum of the replicas' gradients.
          metrics: unused; the logs are the step's own.

        Returns:
          Loss, its parts and the accuracies of the global batch, equal on every replica, and
          where the batch was cut, `piece_gradient_norm` of `global_batch.Summed`.
        """
        del metrics
        totals = global_batch.all_reduce_sum(batch_denominators(inputs))
        variables = self.trained_variables(model)

        def share(
            batch: Tensors, totals: Tensors, loss_scale: tf.Tensor
        ) -> tuple[list[tf.Tensor], list[tf.Tensor]]:
            with tf.GradientTape() as tape:
                sums = self._sums(batch, model, training=True)
                loss = loss_scale * batch_loss(sums, totals)
            return tape.gradient(loss, variables), list(sums.values())

        found = global_batch.summed(
            share,
            inputs,
            totals,
            variables,
            num_scalars=len(_NUMERATORS),
            micro_batch_size=self.task_config.micro_batch_size,
            settings=self.step_settings,
        )
        global_batch.apply(optimizer, found.gradients, variables, self.step_settings.loss_scale)
        totals |= dict(zip(_NUMERATORS, found.scalars, strict=True))
        logs = losses_and_accuracies(totals, totals, self.has_next_sentence)
        if found.piece_gradient_norm is not None:
            logs["piece_gradient_norm"] = found.piece_gradient_norm
        return logs

    def validation_step(
        self,
        inputs: Tensors,
        model: tf_keras.Model,
        metrics: Sequence[tf_keras.metrics.Metric] | None = None,
    ) -> dict[str, tf.Tensor]:
        """Adds a batch to the evaluation means, each weighted by its own denominator."""
        totals = batch_denominators(inputs)
        sums = self._sums(inputs, model, training=False)
        means = losses_and_accuracies(sums, totals, self.has_next_sentence)
        for metric in metrics or []:
            masked = metric.name.startswith("masked_lm")
            weight = totals["masked_lm_weight" if masked else "examples"]
            metric.update_state(means[metric.name], sample_weight=weight)
        return {}

    def _sums(self, batch: Tensors, model: tf_keras.Model, training: bool) -> dict[str, tf.Tensor]:
        outputs = model(batch, training=training)
        if not self.has_next_sentence:
            outputs = {"mlm_logits": outputs["mlm_logits"]}
        return batch_sums(batch, outputs)
