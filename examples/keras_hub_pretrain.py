r"""Pretrains a masked language model of KerasHub with plain Keras: compile, fit, evaluate, save.

    python examples/keras_hub_pretrain.py --input_dir=shards --steps=1000 --output=preset
    python examples/keras_hub_pretrain.py --input_dir=shards --distribution=mirrored
    KERAS_BACKEND=jax python examples/keras_hub_pretrain.py --input_dir=shards \
        --distribution=data_parallel

--input_dir is a folder that `python -m tfrecords.build` wrote, --output a preset for KerasHub's
`from_preset`. "Epoch" in what Keras prints is --report_every steps.
"""

import contextlib
import math
import pathlib
import sys
import tempfile
from collections.abc import Sequence

import keras
import keras_hub
import tensorflow as tf
from absl import flags

import tf_lans
import tfrecords
from tfrecords import command, reader, schema

if keras.backend.backend() == "jax":
    import jax

    tf.config.set_visible_devices([], "GPU")  # TensorFlow only reads; it would take JAX's memory

Batch = tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]

BERT, ROFORMER_V2 = "bert", "roformer_v2"
NONE, MIRRORED, DATA_PARALLEL = "none", "mirrored", "data_parallel"
BACKEND_OF = {MIRRORED: "tensorflow", DATA_PARALLEL: "jax"}

FLAGS = flags.FlagValues()


def _define() -> None:
    def integer(name: str, default: int, text: str, least: int = 1) -> None:
        flags.DEFINE_integer(name, default, text, lower_bound=least, flag_values=FLAGS)

    def number(name: str, default: float, text: str, most: float | None = None) -> None:
        flags.DEFINE_float(name, default, text, 0.0, upper_bound=most, flag_values=FLAGS)

    def string(name: str, default: str | None, text: str) -> None:
        flags.DEFINE_string(name, default, text, required=default is None, flag_values=FLAGS)

    def choice(name: str, choices: Sequence[str], text: str) -> None:
        flags.DEFINE_enum(name, choices[0], choices, text, flag_values=FLAGS)

    string("input_dir", None, "Shards.")
    string("output", "", "The preset to write: a new or empty folder; empty: write none.")
    choice("model", (BERT, ROFORMER_V2), "The architecture.")
    integer("seq_length", 0, "Tokens in a row; 0: the shortest there is.", least=0)
    integer("num_layers", 4, "Transformer layers.")
    integer("hidden_dim", 256, "Width of the encoder.")
    integer("num_heads", 4, "Attention heads, a divisor of --hidden_dim.")
    integer("intermediate_dim", 0, "Width of the feedforward part; 0: 4 hidden_dim.", least=0)
    number("dropout", 0.1, "Dropout rate.", most=0.9)
    integer("steps", 1000, "Updates.")
    integer("batch_size", 256, "Examples of an update, over all devices.")
    integer("report_every", 100, "Steps in what Keras calls an epoch; a divisor of --steps.")
    number("learning_rate", 0.00675, "The schedule's peak.")
    number("warmup_ratio", 0.4265, "The share of the steps in which the rate rises.", most=1.0)
    number("constant_ratio", 0.2735, "The share of the steps at the peak.", most=1.0)
    number("weight_decay", 0.01, "Weight decay.")
    integer("seed", 0, "Of weights, dropout and the order of the data.", least=0)
    choice("distribution", (NONE, MIRRORED, DATA_PARALLEL), "How devices share a batch.")
    integer("cpu_devices", 1, "Split the CPU in so many, to try a distribution without others.")


_define()


def split_cpu(count: int) -> None:
    """Makes `count` devices of the CPU."""
    if keras.backend.backend() == "jax":
        jax.config.update("jax_num_cpu_devices", count)
    else:
        cpu = tf.config.list_physical_devices("CPU")[0]
        parts = [tf.config.LogicalDeviceConfiguration()] * count
        tf.config.set_logical_device_configuration(cpu, parts)


def distribution_scope(name: str, batch_size: int) -> contextlib.AbstractContextManager:
    """What model and optimizer are made and used in."""
    backend = keras.backend.backend()
    if BACKEND_OF.get(name, backend) != backend:
        raise tfrecords.UserError(
            f"--distribution={name} is for the {BACKEND_OF[name]} backend and this is {backend}; "
            f"set KERAS_BACKEND={BACKEND_OF[name]}"
        )
    replicas, scope = 1, contextlib.nullcontext()
    if name == MIRRORED:
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        replicas = len(devices)
        scope = tf.distribute.MirroredStrategy([each.name for each in devices]).scope()
    elif name == DATA_PARALLEL:
        replicas = len(keras.distribution.list_devices())
        scope = keras.distribution.DataParallel().scope()
    if batch_size % replicas:
        raise tfrecords.UserError(
            f"--batch_size={batch_size} on {replicas} devices; give a multiple of their number, "
            f"such as {math.ceil(batch_size / replicas) * replicas}"
        )
    print(f"{backend}: {replicas} devices, {batch_size // replicas} examples each")
    return scope


def make_model(flag_values: flags.FlagValues, manifest: tfrecords.Manifest) -> keras.Model:
    """A masked language model with random weights for the vocabulary of the shards."""
    if flag_values.hidden_dim % flag_values.num_heads:
        raise tfrecords.UserError(
            f"--hidden_dim={flag_values.hidden_dim} is no multiple of "
            f"--num_heads={flag_values.num_heads}; choose two that are"
        )
    sizes = {
        "vocabulary_size": manifest.vocab_size,
        "num_layers": flag_values.num_layers,
        "num_heads": flag_values.num_heads,
        "hidden_dim": flag_values.hidden_dim,
        "intermediate_dim": flag_values.intermediate_dim or 4 * flag_values.hidden_dim,
        "dropout": flag_values.dropout,
    }
    if flag_values.model == ROFORMER_V2:
        head_size = flag_values.hidden_dim // flag_values.num_heads
        backbone = keras_hub.models.RoformerV2Backbone(head_size=head_size, **sizes)
        return keras_hub.models.RoformerV2MaskedLM(backbone)
    longest = max(manifest.seq_lengths)
    backbone = keras_hub.models.BertBackbone(max_sequence_length=longest, **sizes)
    # Words do not train the pooler. TensorFlow has no gradient for it and JAX one of zeros, with
    # which weight decay alone would take LANS's whole step and shrink it away.
    backbone.pooled_dense.trainable = False
    return keras_hub.models.BertMaskedLM(backbone)


def for_model(model: keras.Model, batches: tf.data.Dataset) -> tf.data.Dataset:
    """The batches with the inputs that the model has, in the types that it declares.

    RoFormer has no padding mask, and under several replicas Keras's `fit` fails on one of bools.
    """

    def select(x: dict[str, tf.Tensor], y: tf.Tensor, sample_weight: tf.Tensor) -> Batch:
        kept = {name: tf.cast(x[name], each.dtype) for name, each in model.input.items()}
        return kept, y, sample_weight

    return batches.map(select)


def whole_batch_mean(x: dict[str, tf.Tensor], y: tf.Tensor, sample_weight: tf.Tensor) -> Batch:
    """Scales the weights w so that Keras's mean over all predictions is sum(w loss) / sum(w).

    Keras divides by the number of predictions, filling included. Its reduction
    "mean_with_sample_weight" does not, but takes the mean on each replica and then the mean of
    those, which counts a replica with fewer words as much as one with more. Here the sums are over
    the global batch, before it is cut. LANS would take the same step without it, since a positive
    scale on the gradient changes nothing; the printed loss and other optimizers would not.
    """
    count = tf.cast(tf.size(sample_weight), sample_weight.dtype)
    scale = tf.math.divide_no_nan(count, tf.reduce_sum(sample_weight))
    return x, y, sample_weight * scale


def compile_model(model: keras.Model, flag_values: flags.FlagValues) -> None:
    """LANS under its schedule, cross entropy, and what is reported of it."""
    schedule = tf_lans.WarmupConstantDecay.from_ratios(
        peak_learning_rate=flag_values.learning_rate,
        total_steps=flag_values.steps,
        warmup_ratio=flag_values.warmup_ratio,
        constant_ratio=flag_values.constant_ratio,
    )
    model.compile(
        optimizer=tf_lans.LANS(schedule, weight_decay=flag_values.weight_decay),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        weighted_metrics=[
            keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="cross_entropy"),
            keras.metrics.SparseCategoricalAccuracy(name="accuracy"),
        ],
        # A program for several replicas needs collectives that XLA has for GPUs only; LANS compiles
        # its update by itself in either case.
        jit_compile=flag_values.distribution != MIRRORED
        or bool(tf.config.list_logical_devices("GPU")),
    )


def evaluate(model: keras.Model, dataset: tf.data.Dataset) -> None:
    """Prints the masked words' cross entropy and accuracy, each example counted once."""
    # The weights are as they were stored, so that a batch counts by its words.
    results = model.evaluate(dataset, verbose=0, return_dict=True)
    print(
        f"held out: cross entropy {results['cross_entropy']:.4f}, "
        f"accuracy {results['accuracy']:.4f}, perplexity {math.exp(results['cross_entropy']):.1f}"
    )


def check_output(folder: str) -> None:
    """Refuses to write over anything, before time is spent on training."""
    path = pathlib.Path(folder)
    if folder and path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise tfrecords.UserError(f"--output={folder} is not empty; give a new folder")


def save(model: keras.Model, manifest: tfrecords.Manifest, seq_length: int, folder: str) -> None:
    """Writes a preset whose tokenizer and masking are the shards', whole or not at all."""
    tokenizer = model.preprocessor_cls.tokenizer_cls(
        vocabulary=manifest.vocabulary_file,
        lowercase=manifest.lower_case,
        strip_accents=manifest.lower_case,
    )
    model.preprocessor = model.preprocessor_cls(
        tokenizer,
        sequence_length=seq_length,
        mask_selection_rate=manifest.masked_lm_prob,
        mask_selection_length=manifest.max_predictions_per_seq(seq_length),
    )
    model.optimizer = None  # or its moments would be in the preset, twice the size of the weights
    path = pathlib.Path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f"{path.name}.partial-") as kept:
        preset = pathlib.Path(kept) / "preset"
        model.save_to_preset(str(preset))
        preset.replace(path)
    print(f"saved {folder}")


def body(flag_values: flags.FlagValues) -> None:
    """Trains, evaluates and saves as the flags say."""
    try:
        pretrain(flag_values)
    except tf.errors.OpError as error:
        raise reader.user_error(error) or error from error


def pretrain(flag_values: flags.FlagValues) -> None:
    """What `body` does, with TensorFlow's errors for damaged records."""
    if flag_values.warmup_ratio + flag_values.constant_ratio > 1:
        raise tfrecords.UserError(
            f"--warmup_ratio={flag_values.warmup_ratio} and "
            f"--constant_ratio={flag_values.constant_ratio} are more than all steps; lower one"
        )
    if flag_values.steps % flag_values.report_every:
        raise tfrecords.UserError(
            f"--steps={flag_values.steps} is no multiple of "
            f"--report_every={flag_values.report_every}"
        )
    check_output(flag_values.output)
    if flag_values.cpu_devices > 1:
        split_cpu(flag_values.cpu_devices)
    manifest = tfrecords.Manifest.load(flag_values.input_dir)
    seq_length = flag_values.seq_length or min(manifest.seq_lengths)
    options = {
        "seq_length": seq_length,
        "global_batch_size": flag_values.batch_size,
        "features": "keras_hub",
    }
    train = tfrecords.read(flag_values.input_dir, seed=flag_values.seed, **options)
    keras.utils.set_random_seed(flag_values.seed)
    with distribution_scope(flag_values.distribution, flag_values.batch_size):
        model = make_model(flag_values, manifest)
        compile_model(model, flag_values)
        model.fit(
            for_model(model, train.map(whole_batch_mean)),
            epochs=flag_values.steps // flag_values.report_every,
            steps_per_epoch=flag_values.report_every,
            shuffle=False,  # the reader has
            verbose=2,
        )
        splits = manifest.sequences[seq_length].splits
        if schema.EVAL in splits and splits[schema.EVAL].examples:
            held_out = tfrecords.read(flag_values.input_dir, split=schema.EVAL, **options)
            evaluate(model, for_model(model, held_out))
    if flag_values.output:
        save(model, manifest, seq_length, flag_values.output)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; `argv` without the program's name, None for this process's own."""
    return command.run(body, FLAGS, argv)


if __name__ == "__main__":
    sys.exit(main())
