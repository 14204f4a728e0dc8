"""The same global batches trained whole and cut: replicas, workers, micro-batches.

As a program, one worker of two under MultiWorkerMirroredStrategy:
`TF_CONFIG=... python -m tests.bert.cut_batches FOLDER`, where FOLDER holds what `save` wrote.
"""

import json
import pathlib
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from official.core import config_definitions

from official_bert import optimization
from official_bert.global_batch import StepSettings
from official_bert.pretraining_task import LargeBatchPretrainTask

BATCH, STEPS = 64, 20
MICRO_BATCHES = (1, 4, 16)

Batch = Mapping[str, np.ndarray]


def split(batch: Batch, replicas: int) -> list[Batch]:
    """A batch's consecutive parts."""
    size = len(next(iter(batch.values()))) // replicas
    return [{k: v[i * size : (i + 1) * size] for k, v in batch.items()} for i in range(replicas)]


def train(
    params: config_definitions.ExperimentConfig,
    batches: Sequence[Batch],
    strategy: tf.distribute.Strategy,
    micro_batches: int,
    weights: Sequence[np.ndarray],
    kind: str = "lans",
    compiled: bool = False,
):
    """Weights by name, logs and model after one update per batch, from the same start."""
    replicas = strategy.num_replicas_in_sync
    size = len(next(iter(batches[0].values()))) // replicas // micro_batches
    with strategy.scope():
        micro = size if micro_batches > 1 else 0
        task = LargeBatchPretrainTask(params.task.replace(micro_batch_size=micro))
        task.step_settings = StepSettings(compiled=compiled)
        model = task.build_model()
        model.set_weights(weights)
        config = params.trainer.optimizer_config
        config = config.replace(optimizer=config.optimizer.replace(type=kind))
        optimizer = optimization.build_optimizer(config, len(batches))
        variables = task.trained_variables(model)
        if kind != "adamw":
            optimizer.build(variables)

    @tf.function
    def step(values):
        return strategy.run(lambda v: task.train_step(v, model, optimizer), args=(values,))

    logs = []
    for each in batches:
        parts = split(each, replicas)
        values = strategy.experimental_distribute_values_from_function(
            lambda context, parts=parts: {
                k: tf.constant(v) for k, v in parts[context.replica_id_in_sync_group].items()
            }
        )
        local = step(values)
        logs.append({k: strategy.experimental_local_results(v) for k, v in local.items()})
    return {v.name: v.numpy() for v in variables}, logs, model


def save(
    folder: pathlib.Path,
    overrides: Sequence[str],
    batches: Sequence[Batch],
    weights: Sequence[np.ndarray],
) -> None:
    """Writes what a worker reads: the config's arguments, the batches and the first weights."""
    (folder / "config.json").write_text(json.dumps(list(overrides)))
    for number, batch in enumerate(batches):
        np.savez(folder / f"batch{number:03}.npz", **batch)
    np.savez(folder / "weights.npz", *weights)


def main(folder: pathlib.Path) -> None:
    from official_bert import cluster, configuration, devices, experiments

    experiments.register()
    config_file, override = json.loads((folder / "config.json").read_text())
    params = configuration.load(experiments.PRETRAINING, [config_file], override)
    strategy = devices.build_strategy(
        params.runtime.replace(distribution_strategy="multi_worker_mirrored")
    )
    batches = [dict(np.load(path)) for path in sorted(folder.glob("batch*.npz"))]
    saved = np.load(folder / "weights.npz")
    weights = [saved[f"arr_{index}"] for index in range(len(saved.files))]
    for micro_batches in MICRO_BATCHES:
        found, logs, _ = train(params, batches, strategy, micro_batches, weights)
        if cluster.this_worker(strategy).is_chief:
            last = {f"log/{name}": value[0].numpy() for name, value in logs[-1].items()}
            np.savez(folder / f"result{micro_batches}.npz", **found, **last)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
