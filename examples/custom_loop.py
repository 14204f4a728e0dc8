r"""A training loop by hand in tf_keras: large batches from micro-batches, checkpoints, resume.

    python examples/custom_loop.py --input_dir=shards --model_dir=run --steps=1000

The same command goes on from the last checkpoint in --model_dir. The model is a small masked
language model from layers of tf_keras; the loop asks nothing of it.
"""

import sys
from collections.abc import Callable, Sequence

import tensorflow as tf
import tf_keras
from absl import flags

import tf_lans.tf_keras
import tfrecords
from tfrecords import command, reader

FLAGS = flags.FlagValues()
for name, text in (("input_dir", "Shards."), ("model_dir", "The run's checkpoints.")):
    flags.DEFINE_string(name, None, text, required=True, flag_values=FLAGS)
for name, default, text in (
    ("steps", 1000, "Updates, those before a restart included."),
    ("batch_size", 1024, "Examples of an update."),
    ("micro_batch_size", 128, "Examples at a time, a divisor of --batch_size."),
    ("checkpoint_every", 100, "Steps between checkpoints."),
    ("hidden_dim", 128, "Width of the model."),
):
    flags.DEFINE_integer(name, default, text, lower_bound=1, flag_values=FLAGS)
flags.DEFINE_float("learning_rate", 0.00675, "The peak.", lower_bound=0.0, flag_values=FLAGS)

Features = dict[str, tf.Tensor]


class MaskedLM(tf_keras.Model):
    """One attention block under a softmax over the vocabulary, for the masked positions alone."""

    def __init__(self, vocab_size: int, seq_length: int, width: int) -> None:
        super().__init__()
        self.words = tf_keras.layers.Embedding(vocab_size, width, name="words")
        self.positions = tf_keras.layers.Embedding(seq_length, width, name="positions")
        self.attention = tf_keras.layers.MultiHeadAttention(2, width // 2, name="attention")
        self.norm = tf_keras.layers.LayerNormalization(name="norm")
        self.logits = tf_keras.layers.Dense(vocab_size, name="logits")

    def call(self, features: Features) -> tf.Tensor:
        """Logits [rows, predictions, vocabulary]."""
        words = features["input_word_ids"]
        x = self.words(words) + self.positions(tf.range(tf.shape(words)[1]))
        seen = tf.cast(features["input_mask"], tf.bool)[:, tf.newaxis]
        x = self.norm(x + self.attention(x, x, attention_mask=seen))
        return self.logits(tf.gather(x, features["masked_lm_positions"], batch_dims=1))


def summed_loss(model: tf_keras.Model, features: Features) -> tuple[tf.Tensor, tf.Tensor]:
    """The sums of the weighted losses and of the weights: sums add up over micro-batches."""
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
        labels=features["masked_lm_ids"], logits=model(features, training=True)
    )
    weights = features["masked_lm_weights"]
    return tf.reduce_sum(losses * weights), tf.reduce_sum(weights)


def make_train_step(
    model: tf_keras.Model, optimizer: tf_keras.optimizers.Optimizer, micro_batches: int
) -> Callable[[Features], tf.Tensor]:
    """A compiled step: the gradient of the whole batch, then one update.

    Args:
        model: built.
        optimizer: of any kind.
        micro_batches: k, the parts a batch is computed in; memory is needed for one of them.

    Returns:
        A function of a batch to its mean loss over masked tokens.
    """
    variables = model.trainable_variables

    @tf.function
    def train_step(batch: Features) -> tf.Tensor:
        parts = {
            name: tf.reshape(value, [micro_batches, -1, *value.shape[1:]])
            for name, value in batch.items()
        }
        loss, weight = tf.constant(0.0), tf.constant(0.0)
        gradients = [tf.zeros_like(variable) for variable in variables]
        for index in tf.range(micro_batches):
            with tf.GradientTape() as tape:
                part_loss, part_weight = summed_loss(
                    model, {name: value[index] for name, value in parts.items()}
                )
            loss, weight = loss + part_loss, weight + part_weight
            gradients = [
                total + tf.convert_to_tensor(gradient)  # dense: embeddings give slices
                for total, gradient in zip(
                    gradients, tape.gradient(part_loss, variables), strict=True
                )
            ]
        # LANS normalises each gradient by itself, so the division changes nothing for it; another
        # optimizer needs it.
        optimizer.apply_gradients(
            [
                (total / weight, variable)
                for total, variable in zip(gradients, variables, strict=True)
            ]
        )
        return loss / weight

    return train_step


def body(flag_values: flags.FlagValues) -> None:
    """Trains from where the last checkpoint stands to --steps."""
    try:
        train(flag_values)
    except tf.errors.OpError as error:
        raise reader.user_error(error) or error from error


def train(flag_values: flags.FlagValues) -> None:
    """What `body` does, with TensorFlow's errors for damaged records."""
    if flag_values.batch_size % flag_values.micro_batch_size:
        raise tfrecords.UserError(
            f"--batch_size={flag_values.batch_size} is no multiple of "
            f"--micro_batch_size={flag_values.micro_batch_size}"
        )
    tf_keras.utils.set_random_seed(0)
    manifest = tfrecords.Manifest.load(flag_values.input_dir)
    seq_length = min(manifest.seq_lengths)
    model = MaskedLM(manifest.vocab_size, seq_length, flag_values.hidden_dim)
    schedule = tf_lans.tf_keras.WarmupConstantDecay.from_ratios(
        peak_learning_rate=flag_values.learning_rate,
        total_steps=flag_values.steps,
        warmup_ratio=0.4265,
        constant_ratio=0.2735,
    )
    optimizer = tf_lans.tf_keras.LANS(schedule)
    # Batches, not updates: an update that is skipped for a non-finite gradient has used its batch.
    step = tf.Variable(0, dtype=tf.int64)
    manager = tf.train.CheckpointManager(
        tf.train.Checkpoint(model=model, optimizer=optimizer, step=step),
        flag_values.model_dir,
        max_to_keep=2,
    )
    restored = manager.latest_checkpoint and manager.checkpoint.restore(manager.latest_checkpoint)
    # The reader's position is a step number, so the examples go on where they stopped.
    dataset = tfrecords.read(
        flag_values.input_dir,
        seq_length=seq_length,
        global_batch_size=flag_values.batch_size,
        start_step=int(step),
    )
    model(next(iter(dataset)))
    optimizer.build(model.trainable_variables)
    if restored:
        restored.assert_consumed()
        print(f"resumed after step {int(step)}")
    micro_batches = flag_values.batch_size // flag_values.micro_batch_size
    train_step = make_train_step(model, optimizer, micro_batches)
    for batch in dataset.take(max(flag_values.steps - int(step), 0)):
        loss = train_step(batch)
        step.assign_add(1)
        print(f"step {int(step)}: loss {float(loss):.9g}")
        if int(step) % flag_values.checkpoint_every == 0 or int(step) == flag_values.steps:
            manager.save()


def main(argv: Sequence[str] | None = None) -> int:
    """The command; `argv` without the program's name, None for this process's own."""
    return command.run(body, FLAGS, argv)


if __name__ == "__main__":
    sys.exit(main())
