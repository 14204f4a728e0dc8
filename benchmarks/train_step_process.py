"""One contender in a process of its own, training whenever it is told to.

    python -m benchmarks.train_step_process CONTENDER WORKLOAD

Started by `benchmarks.train_step`. Each line on standard input is a number of steps; each is
answered by a line of JSON on standard output. Both kinds of contender are driven as their trainers'
own controller drives them, one `train(steps)` at a time within the strategy's scope, and both are
fed the same batches, which stay in memory, in place of their readers.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import tensorflow as tf
import tf_keras
from official.common import distribute_utils
from official.core import base_trainer, exp_factory, task_factory, train_utils
from official.modeling import performance
from official.nlp.configs import pretraining_experiments  # noqa: F401 (registers bert/pretraining)

from benchmarks import train_step_batches, update_contenders
from benchmarks.train_step_contenders import BFLOAT16, CONTENDERS, FLOAT32, Contender, Workload
from official_bert import configuration, devices, experiments
from official_bert.trainer import build_trainer

_BATCHES = 4
_DROPOUT = 0.1
_WEIGHT_DECAY = 0.01
_RATE, _WARMUP_STEPS = 1e-4, 10_000
_STEPS = 1_000_000  # never reached; schedules need a length


def dataset(contender: Contender, workload: Workload) -> tf.data.Dataset:
    """The contender's batches, made once and repeated."""
    size = workload.batch_size * contender.micro_batches
    rows = train_step_batches.rows(workload, _BATCHES * size)
    batches = {name: each.reshape(_BATCHES, size, -1) for name, each in rows.items()}
    return tf.data.Dataset.from_tensor_slices(batches).repeat()


def trainer(
    contender: Contender, workload: Workload
) -> contextlib.AbstractContextManager[base_trainer.Trainer]:
    """The contender's trainer, within the scope that its steps need."""
    make = _tf_lans if contender.is_ours else _model_garden
    return make(contender, workload)


@contextlib.contextmanager
def _tf_lans(contender: Contender, workload: Workload) -> Iterator[base_trainer.Trainer]:
    """As `official_bert.runner.run` sets a run up, files aside."""
    override = _common(contender, workload)
    if contender.micro_batches > 1:
        override["task"]["micro_batch_size"] = workload.batch_size
    override["runtime"] |= {
        "deterministic_ops": contender.is_deterministic,
        "enable_xla": contender.is_compiled,
    }
    kind = contender.optimizer.lower()
    schedule = {"peak_learning_rate": _RATE, "warmup_steps": _WARMUP_STEPS}
    override["trainer"] = {
        "train_steps": _STEPS,
        "optimizer_config": {
            "optimizer": {"type": kind, kind: {"weight_decay": _WEIGHT_DECAY}},
            "learning_rate": {"warmup_constant_decay": schedule},
        },
    }
    params = configuration.load(experiments.PRETRAINING, params_override=json.dumps(override))
    strategy = devices.build_strategy(params.runtime)
    performance.set_mixed_precision_policy(contender.precision)
    tf_keras.utils.set_random_seed(params.task.seed)
    with devices.determinism(params.runtime, strategy), strategy.scope():
        task = task_factory.get_task(params.task, logging_dir=None)
        task.build_inputs = _feed(contender, workload)
        settings = devices.step_settings(params.runtime, strategy)
        yield build_trainer(params, task, train=True, evaluate=False, settings=settings)


@contextlib.contextmanager
def _model_garden(contender: Contender, workload: Workload) -> Iterator[base_trainer.Trainer]:
    """As `official.nlp.train` and its train_lib set a run up, files aside."""
    params = exp_factory.get_exp_config("bert/pretraining")
    params.override(_common(contender, workload), is_strict=True)
    lamb = {
        "weight_decay_rate": _WEIGHT_DECAY,
        # As the experiment has it for adamw, so that LAMB neither decays nor adapts them.
        "exclude_from_weight_decay": ["LayerNorm", "layer_norm", "bias"],
    }
    optimization = {
        "optimizer": {"type": contender.optimizer.lower(), "lamb": lamb},
        "learning_rate": {
            "polynomial": {"initial_learning_rate": _RATE, "decay_steps": _STEPS},
        },
        "warmup": {"polynomial": {"warmup_steps": _WARMUP_STEPS, "power": 1.0}},
    }
    params.override({"trainer": {"optimizer_config": optimization}}, is_strict=True)
    strategy = distribute_utils.get_distribution_strategy(
        distribution_strategy=params.runtime.distribution_strategy,
        all_reduce_alg=params.runtime.all_reduce_alg,
        num_gpus=params.runtime.num_gpus,
    )
    performance.set_mixed_precision_policy(contender.precision)
    with strategy.scope():
        task = task_factory.get_task(params.task, logging_dir=None)
        task.build_inputs = _feed(contender, workload)
        yield train_utils.create_trainer(params, task, train=True, evaluate=False)


def _feed(contender: Contender, workload: Workload) -> Callable[..., tf.data.Dataset]:
    def build_inputs(
        params: Any,
        input_context: tf.distribute.InputContext | None = None,
        start_step: int = 0,
    ) -> tf.data.Dataset:
        del params, input_context, start_step
        return dataset(contender, workload)

    return build_inputs


def _common(contender: Contender, workload: Workload) -> dict[str, Any]:
    """What both kinds of config have in common: the model, the sizes, the device."""
    encoder = {
        "vocab_size": workload.vocab_size,
        "hidden_size": workload.hidden,
        "num_layers": workload.layers,
        "num_attention_heads": workload.heads,
        "intermediate_size": 4 * workload.hidden,
        "dropout_rate": _DROPOUT,
        "attention_dropout_rate": _DROPOUT,
    }
    head = {
        "inner_dim": workload.hidden,
        "num_classes": 2,
        "dropout_rate": _DROPOUT,
        "name": "next_sentence",
    }
    return {
        "task": {
            "model": {"encoder": {"type": "bert", "bert": encoder}, "cls_heads": [head]},
            "train_data": {
                "global_batch_size": workload.batch_size * contender.micro_batches,
                "seq_length": workload.seq_length,
            },
        },
        "runtime": {
            "distribution_strategy": "one_device",
            "num_gpus": 0,
            # Unset, as official.nlp.train has it, is float32.
            "mixed_precision_dtype": None if contender.precision == FLOAT32 else BFLOAT16,
        },
    }


def serve(
    contender: Contender,
    workload: Workload,
    questions: Iterable[str],
    answer: Callable[[dict[str, Any]], None],
) -> None:
    """Prepares the contender, then answers each question, a number of steps, by taking them.

    Args:
        contender: who trains.
        workload: what.
        questions: lines, each a number of steps.
        answer: sends figures to the parent: first "first_s", the time from nothing to the end of
            the first step, tracing and compiling included, and the model's "parameters"; then the
            "seconds" of the steps, their last or mean "loss", and "peak_bytes", the most memory
            while they were taken, beyond what the process held before there was a model.
    """
    before = update_contenders._status_kilobytes("VmRSS")
    begin = time.perf_counter()
    with trainer(contender, workload) as training:
        training.train(tf.constant(1))
        first = time.perf_counter() - begin
        variables = training.model.trainable_variables
        answer({"first_s": first, "parameters": sum(int(tf.size(each)) for each in variables)})
        for line in questions:
            steps = tf.constant(int(line))
            update_contenders._forget_peak()
            begin = time.perf_counter()
            logs = training.train(steps)
            loss = float(logs["loss" if contender.is_ours else "training_loss"])
            seconds = time.perf_counter() - begin
            peak = 1024 * (update_contenders._status_kilobytes("VmHWM") - before)
            answer({"seconds": seconds, "loss": loss, "peak_bytes": peak})


def main(name: str, workload: str) -> None:
    """Serves on a channel that no library's print can reach."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(figures: dict[str, Any]) -> None:
        channel.write(json.dumps(figures) + "\n")
        channel.flush()

    tf.config.set_visible_devices([], "GPU")
    serve(CONTENDERS[name], Workload(**json.loads(workload)), sys.stdin, answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
