"""The same global batches cut into replicas and micro-batches: how far the weights come apart.

A small BERT trains for a few steps on the same rows from the same weights, on one replica with the
batch whole, then cut. Ours is the task of `official_bert`; stock is Model Garden's `MaskedLMTask`
with its `lamb`, which has no micro-batches. There is no dropout, whose masks no two cuts share.
Rows are as the reader gives them, with as many masked positions as their lengths ask for, so that
replicas have unequal numbers of them.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras
from official.core import exp_factory
from official.nlp.configs import pretraining_experiments  # noqa: F401 (registers bert/pretraining)
from official.nlp.tasks import masked_lm

import tfrecords
from benchmarks import exactness_data, exactness_error
from official_bert import configuration, experiments
from tests.bert import cut_batches
from tfrecords.errors import UserError
from tfrecords.manifest import Manifest

STEPS, BATCH = 10, 32
_RATE, _WARMUP_STEPS = 2.0**-6, 2
LAYERS = 2
_HIDDEN = 32
# Softmax ignores these, so that their gradient is rounding alone, which every method that divides
# by its own size turns into whole steps.
WITHOUT_GRADIENT = "key/bias:0"

Weights = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut:
    """How a batch is cut."""

    replicas: int = 1
    micro_batches: int = 1

    @property
    def title(self) -> str:
        """As the report names it."""
        words = [f"{self.replicas} replicas"] if self.replicas > 1 else []
        words += [f"{self.micro_batches} micro-batches"] if self.micro_batches > 1 else []
        return " of ".join(words) or "whole"


@dataclasses.dataclass(frozen=True, kw_only=True)
class System:
    """Who trains, and the cuts it is held against itself on."""

    name: str
    optimizer: str
    is_ours: bool
    cuts: tuple[Cut, ...]


_REPLICAS = (Cut(replicas=2), Cut(replicas=4))
SYSTEMS = (
    System(
        name="tf-lans LANS",
        optimizer="lans",
        is_ours=True,
        cuts=(*_REPLICAS, Cut(micro_batches=4), Cut(replicas=2, micro_batches=4)),
    ),
    System(name="tf-lans LAMB", optimizer="lamb", is_ours=True, cuts=_REPLICAS),
    System(name="Model Garden LAMB", optimizer="lamb", is_ours=False, cuts=_REPLICAS),
)
MOST_REPLICAS = max(cut.replicas for system in SYSTEMS for cut in system.cuts)


def prepare_devices(replicas: int) -> None:
    """Splits the CPU into as many logical ones, before TensorFlow starts.

    Raises:
        UserError: TensorFlow runs already, with fewer.
    """
    (cpu,) = tf.config.list_physical_devices("CPU")
    try:
        tf.config.set_logical_device_configuration(
            cpu, [tf.config.LogicalDeviceConfiguration()] * replicas
        )
    except RuntimeError as error:  # TensorFlow runs
        found = len(tf.config.list_logical_devices("CPU"))
        if found < replicas:
            raise UserError(
                f"TensorFlow runs with {found} logical CPUs, {replicas} are needed; "
                "start this in a process of its own"
            ) from error


def strategy(replicas: int) -> tf.distribute.Strategy:
    """One logical CPU, or several that mirror the weights."""
    if replicas == 1:
        return tf.distribute.OneDeviceStrategy("CPU:0")
    return tf.distribute.MirroredStrategy(
        [f"CPU:{number}" for number in range(replicas)],
        cross_device_ops=tf.distribute.ReductionToOneDevice(),
    )


def _model(manifest: Manifest) -> dict[str, Any]:
    (seq_length,) = manifest.seq_lengths
    words = pathlib.Path(manifest.vocabulary_file).read_text(encoding="utf-8").splitlines()
    encoder = {
        "vocab_size": len(words),
        "hidden_size": _HIDDEN,
        "num_layers": LAYERS,
        "num_attention_heads": 2,
        "intermediate_size": 2 * _HIDDEN,
        "max_position_embeddings": seq_length,
        "dropout_rate": 0.0,
        "attention_dropout_rate": 0.0,
    }
    head = {"inner_dim": _HIDDEN, "num_classes": 2, "dropout_rate": 0.0, "name": "next_sentence"}
    return {"encoder": {"type": "bert", "bert": encoder}, "cls_heads": [head]}


def our_config(manifest: Manifest, steps: int) -> Any:
    """The experiment of `official_bert`, small."""
    experiments.register()
    schedule = {"peak_learning_rate": _RATE, "warmup_steps": _WARMUP_STEPS, "constant_steps": 2}
    override = {
        "task": {"model": _model(manifest)},
        "trainer": {
            "train_steps": steps,
            "optimizer_config": {"learning_rate": {"warmup_constant_decay": schedule}},
        },
    }
    return configuration.load(experiments.PRETRAINING, params_override=json.dumps(override))


def stock_config(manifest: Manifest, steps: int) -> Any:
    """Model Garden's experiment with its `lamb`, as small."""
    params = exp_factory.get_exp_config("bert/pretraining")
    optimization = {
        "optimizer": {"type": "lamb", "lamb": {"weight_decay_rate": 0.01}},
        "learning_rate": {
            "polynomial": {"initial_learning_rate": _RATE, "decay_steps": steps},
        },
        "warmup": {"polynomial": {"warmup_steps": _WARMUP_STEPS, "power": 1.0}},
    }
    params.override(
        {
            "task": {"model": _model(manifest)},
            "trainer": {"train_steps": steps, "optimizer_config": optimization},
        },
        is_strict=True,
    )
    return params


def _stock_model(task: masked_lm.MaskedLMTask) -> tf_keras.Model:
    """The task's model with every variable created; its heads have none before a first call."""
    model = task.build_model()
    model({symbol.name: symbol for symbol in tf.nest.flatten(model.inputs)})
    return model


def train_stock(
    params: Any,
    batches: Sequence[cut_batches.Batch],
    devices: tf.distribute.Strategy,
    weights: Sequence[np.ndarray],
) -> Weights:
    """The weights after one stock step a batch, as Model Garden's trainer takes them."""
    with devices.scope():
        task = masked_lm.MaskedLMTask(params.task)
        model = _stock_model(task)
        model.set_weights(weights)
        optimizer = task.create_optimizer(params.trainer.optimizer_config, params.runtime)
        metrics = task.build_metrics(training=True)

    @tf.function
    def step(values: Any) -> Any:
        return devices.run(lambda each: task.train_step(each, model, optimizer, metrics), (values,))

    for batch in batches:
        parts = cut_batches.split(batch, devices.num_replicas_in_sync)
        step(
            devices.experimental_distribute_values_from_function(
                lambda context, parts=parts: {
                    name: tf.constant(values)
                    for name, values in parts[context.replica_id_in_sync_group].items()
                }
            )
        )
    return {each.name: each.numpy() for each in model.trainable_variables}


def train(
    system: System,
    params: Any,
    batches: Sequence[cut_batches.Batch],
    cut: Cut,
    weights: Sequence[np.ndarray],
) -> Weights:
    """The weights, by name, after the batches were trained on in a cut."""
    devices = strategy(cut.replicas)
    if not system.is_ours:
        return train_stock(params, batches, devices, weights)
    found, _, _ = cut_batches.train(
        params, batches, devices, cut.micro_batches, weights, kind=system.optimizer
    )
    return found


def difference(found: Weights, whole: Weights, start: Weights, names: Sequence[str]) -> float:
    """||found - whole|| / ||whole - start|| over the named blocks."""
    return exactness_error.relative_error(
        *([weights[name] for name in names] for weights in (found, whole, start))
    )


def masked_share(batches: Sequence[cut_batches.Batch], replicas: int) -> float:
    """Over batches, the mean share of its masked positions that the fullest replica has."""
    shares = []
    for batch in batches:
        held = [part["masked_lm_weights"].sum() for part in cut_batches.split(batch, replicas)]
        shares.append(max(held) / sum(held))
    return float(np.mean(shares))


def measure_system(
    system: System,
    manifest: Manifest,
    batches: Sequence[cut_batches.Batch],
    cuts: Sequence[Cut],
) -> list[dict[str, Any]]:
    """The report's rows of one system: each cut against the whole batch on one replica."""
    configure = our_config if system.is_ours else stock_config
    params = configure(manifest, len(batches))
    tf_keras.utils.set_random_seed(0)
    config = masked_lm.MaskedLMConfig(model=params.task.model)
    model = _stock_model(masked_lm.MaskedLMTask(config))
    weights = model.get_weights()
    start = {each.name: each.numpy() for each in model.trainable_variables}
    whole = train(system, params, batches, Cut(), weights)
    rows = []
    for cut in cuts:
        found = train(system, params, batches, cut, weights)
        known = [name for name in whole if not name.endswith(WITHOUT_GRADIENT)]
        rows.append(
            {
                "system": system.name,
                "is_ours": system.is_ours,
                "cut": cut.title,
                **dataclasses.asdict(cut),
                "relative_l2_difference": difference(found, whole, start, known),
                "with_key_biases": difference(found, whole, start, list(whole)),
            }
        )
    return rows


def read_batches(manifest: Manifest, steps: int) -> list[cut_batches.Batch]:
    """The first batches that our reader gives."""
    (seq_length,) = manifest.seq_lengths
    dataset = tfrecords.read(manifest.directory, seq_length=seq_length, global_batch_size=BATCH)
    return list(itertools.islice(dataset.as_numpy_iterator(), steps))


def measure(
    text: exactness_data.Corpus, folder: pathlib.Path, steps: int = STEPS
) -> dict[str, Any]:
    """The whole part.

    Args:
        text: what is trained on.
        folder: for the shards.
        steps: updates.
    """
    manifest = exactness_data.shards(text, folder / "shards-8", 8)
    batches = read_batches(manifest, steps)
    return {
        "text": text.source,
        "steps": steps,
        "global_batch_size": BATCH,
        "seq_length": text.seq_length,
        "masked_share_of_the_fullest": {
            str(cut.replicas): masked_share(batches, cut.replicas) for cut in _REPLICAS
        },
        "rows": [
            row
            for system in SYSTEMS
            for row in measure_system(system, manifest, batches, system.cuts)
        ],
    }
