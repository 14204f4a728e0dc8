"""What the doctor found out, in words: the tables that it prints."""

import os
from collections.abc import Mapping, Sequence

import tensorflow as tf
from official.core import config_definitions

from official_bert import disk_space, estimates, metrics_log, noise_scale
from official_bert.machine import Machine

Rows = Sequence[tuple[str, str]]


def table(title: str, rows: Rows) -> str:
    """A section of the report: a title and aligned rows.

    Example:
        >>> print(table("Batch", [("steps", "10"), ("epochs", "0.5")]))
        Batch
          steps   10
          epochs  0.5
    """
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join([title, *(f"  {name:<{width}}  {value}" for name, value in rows)])


def device_table(machine: Machine, seen: Mapping[str, int]) -> str:
    """The machine's devices, and how many of them TensorFlow sees."""
    memory = estimates.in_words(machine.memory_bytes) if machine.memory_bytes else "unknown"
    bfloat16 = " and ".join(machine.bfloat16) or "no instructions"
    gpus = "none"
    if machine.gpus:
        kinds = ", ".join(sorted(set(machine.gpus)))
        size = f", {estimates.in_words(machine.gpu_bytes)} each" if machine.gpu_bytes else ""
        gpus = f"{len(machine.gpus)} ({kinds}{size}), TensorFlow sees {seen['GPU']}"
    tpus = f"{machine.tpus} chips, TensorFlow sees {seen['TPU']}" if machine.tpus else "none"
    processors = f"logical processors: {machine.cores}; memory: {memory}; bfloat16: {bfloat16}"
    return table("Devices", [("CPU", processors), ("GPU", gpus), ("TPU", tpus)])


def batch_table(batches: estimates.Batches, workers: int, replicas: int) -> str:
    """How the run cuts its examples."""
    epochs = "unknown: no shards"
    if batches.epochs is not None:
        epochs = f"{batches.epochs:.4g} over {batches.split_examples:,} examples"
    passes = (
        f"1 of {batches.micro_batches:,} a step" if batches.micro_batches > 1 else "all at once"
    )
    rows = [
        ("steps", f"{batches.steps:,}"),
        ("examples in all", f"{batches.examples:,}"),
        ("epochs", epochs),
        ("global batch", f"{batches.global_batch:,}"),
        ("of a worker", f"{batches.per_worker:,} (workers: {workers:,})"),
        ("of a replica", f"{batches.per_replica:,} (replicas: {replicas:,})"),
        ("of a micro-batch", f"{batches.per_micro_batch:,} ({passes})"),
        ("tokens a step", f"{batches.tokens_per_step:,}"),
    ]
    return table("Training batches", rows)


def rate_table(params: config_definitions.ExperimentConfig) -> str:
    """The learning rate at the points that matter."""
    rates = estimates.learning_rates(params.trainer.optimizer_config, params.trainer.train_steps)
    rows = [(f"step {rate.step:,}", f"{rate.rate:.6g} ({rate.name})") for rate in rates]
    return table("Learning rate", rows)


def model_table(params: config_definitions.ExperimentConfig) -> str:
    """Weights, and what keeping them costs on disk."""
    task = params.task
    count = estimates.parameters(task.model, task.train_data.use_next_sentence_label)
    size = disk_space.checkpoint_bytes(params) or 0
    kept = params.trainer.max_to_keep
    rows = [
        ("parameters", f"{count.model:,}, of which {count.trained:,} are trained"),
        (
            "a checkpoint",
            f"{estimates.in_words(size)}; {kept} kept: {estimates.in_words(kept * size)}",
        ),
    ]
    return table("Model", rows)


def memory_table(memory: estimates.Memory, copies: int, limit: int | None) -> str:
    """The estimate by part, and the device it must fit in.

    Args:
        memory: of a replica.
        copies: replicas that share the device.
        limit: the device's bytes; None where they are not known.
    """
    rows = [(name, estimates.in_words(value)) for name, value in vars(memory).items()]
    of_all = f" for each of {copies} replicas on one CPU" if copies > 1 else ""
    size = estimates.in_words(limit) if limit else "unknown"
    total = estimates.in_words(memory.total) + of_all
    rows += [("total", total), ("the device has", size)]
    return table("Memory of a replica, estimated", rows)


def noise_table(model_dir: str, batches: estimates.Batches) -> str:
    """The gradient noise scale beside the batch; "" where no run has left its gradients' norms."""
    path = os.path.join(model_dir, metrics_log.METRICS)
    if not model_dir or not tf.io.gfile.exists(path):
        return ""
    rows = metrics_log.read(path)
    # Of the run as it was, whatever the recipe says now.
    pieces = rows[-1].get("pieces", batches.pieces) if rows else None
    found = noise_scale.from_rows(rows, batches.global_batch, pieces)
    if found is None:
        return ""
    lines = [
        ("noise scale", f"{found.rounded} examples, over the last {found.steps:,} steps"),
        ("is the batch too large?", found.verdict(batches.global_batch)),
    ]
    return table("Gradient noise", lines)
