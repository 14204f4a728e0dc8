"""One optimizer in a process of its own: it prepares, then updates whenever it is told to.

Started by `benchmarks.update_step`, also under the Python of another environment. Each line on
standard input asks for updates; each is answered by a line of JSON on standard output.
"""

from __future__ import annotations

import concurrent.futures
import importlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import bert_shapes, machine

FLOOR = "floor"
MAIN = "main"
# What those environments are made for, and what they need for it.
PACKAGES = {
    MAIN: (),
    "tfa": ("tensorflow", "tensorflow-addons", "keras", "numpy"),
    "jax": ("jax", "jaxlib", "optax", "numpy"),
    "torch": ("torch", "numpy"),
}
RATE, DECAY = 1e-3, 0.01

Shapes = Sequence[tuple[int, ...]]
Update = Callable[[], None]


class Contender(NamedTuple):
    """How one optimizer is run.

    Attributes:
        environment: whose Python runs it, a key of `PACKAGES`.
        module: what must be importable there.
        tensors: from shapes and a generator to variables and gradients.
        start: from those to a function that takes one whole update, its slots included.
    """

    environment: str
    module: str
    tensors: Callable[[Shapes, np.random.Generator], tuple[list[Any], list[Any]]]
    start: Callable[[list[Any], list[Any]], Update]


def _arrays(shapes: Shapes, generator: np.random.Generator, scale: float) -> Any:
    return (
        np.float32(scale) * generator.standard_normal(shape, dtype=np.float32) for shape in shapes
    )


def _tensorflow(shapes: Shapes, generator: np.random.Generator) -> tuple[list[Any], list[Any]]:
    import tensorflow as tf

    variables = [tf.Variable(each) for each in _arrays(shapes, generator, 0.02)]
    return variables, [tf.constant(each) for each in _arrays(shapes, generator, 0.01)]


def _keras3(shapes: Shapes, generator: np.random.Generator) -> tuple[list[Any], list[Any]]:
    import keras
    import tensorflow as tf

    variables = [keras.Variable(each) for each in _arrays(shapes, generator, 0.02)]
    return variables, [tf.constant(each) for each in _arrays(shapes, generator, 0.01)]


def _keras_update(optimizer: Any, variables: list, gradients: list, jit: bool) -> Update:
    import tensorflow as tf

    if hasattr(optimizer, "_create_all_weights"):  # Model Garden's are legacy tf_keras optimizers
        optimizer._create_all_weights(variables)
    else:
        optimizer.build(variables)

    @tf.function(jit_compile=jit)
    def update() -> None:
        optimizer.apply_gradients(zip(gradients, variables, strict=True))

    return update


def _in_tensorflow(
    module: str, name: str, *, jit: bool = False, environment: str = MAIN, **arguments: Any
) -> Contender:
    def start(variables: list, gradients: list) -> Update:
        make = getattr(importlib.import_module(module), name)
        return _keras_update(make(RATE, **arguments), variables, gradients, jit)

    of_keras3 = module in ("keras.optimizers", "tf_lans.keras3")
    return Contender(environment, module, _keras3 if of_keras3 else _tensorflow, start)


def _jax(shapes: Shapes, generator: np.random.Generator) -> tuple[list[Any], list[Any]]:
    import jax.numpy as jnp

    variables = [jnp.array(each) for each in _arrays(shapes, generator, 0.02)]
    return variables, [jnp.array(each) for each in _arrays(shapes, generator, 0.01)]


def _optax_lamb(variables: list, gradients: list) -> Update:
    import jax
    import optax

    optimizer = optax.lamb(RATE, weight_decay=DECAY)
    held = [variables, jax.jit(optimizer.init)(variables)]

    def step(weights: Any, state: Any, grads: Any) -> Any:
        updates, state = optimizer.update(grads, state, weights)
        return optax.apply_updates(weights, updates), state

    jitted = jax.jit(step, donate_argnums=(0, 1))

    def update() -> None:
        held[:] = jitted(*held, gradients)
        jax.block_until_ready(held)

    return update


def _torch(shapes: Shapes, generator: np.random.Generator) -> tuple[list[Any], list[Any]]:
    import torch

    def tensors(scale: float) -> list[Any]:
        return [torch.from_numpy(np.asarray(each)) for each in _arrays(shapes, generator, scale)]

    return [torch.nn.Parameter(each) for each in tensors(0.02)], tensors(0.01)


def _torch_adamw(variables: list, gradients: list) -> Update:
    import torch

    for variable, gradient in zip(variables, gradients, strict=True):
        variable.grad = gradient
    optimizer = torch.optim.AdamW(variables, RATE, weight_decay=DECAY, fused=True)
    return optimizer.step


def _triad(shapes: Shapes, generator: np.random.Generator) -> tuple[list[Any], list[Any]]:
    """Three arrays far larger than any cache."""
    del shapes, generator
    return [np.ones(2**25, np.float32) for _ in range(3)], []


def _stream(arrays: list, gradients: list) -> Update:
    """A = b + c on every core: the triad of the STREAM benchmark."""
    del gradients
    workers = os.cpu_count() or 1
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    parts = [np.array_split(array, workers) for array in arrays]

    def update() -> None:
        list(pool.map(lambda target, one, other: np.add(one, other, out=target), *parts))

    return update


TRIAD_BYTES = 3 * 4 * 2**25

_MODEL_GARDEN = "official.modeling.optimization"
CONTENDERS = {
    FLOOR: Contender(MAIN, "numpy", _triad, _stream),
    **{
        f"tf_lans {name}, {keras}": _in_tensorflow(f"tf_lans.{module}", name, weight_decay=DECAY)
        for keras, module in (("Keras 3", "keras3"), ("tf_keras", "tf_keras"))
        for name in ("LANS", "LAMB", "BlockNormalizedAdamW")
    },
    **{
        f"Keras {name}{', jit' if jit else ''}": _in_tensorflow(
            "keras.optimizers", name, jit=jit, weight_decay=DECAY
        )
        for name in ("Lamb", "AdamW")
        for jit in (False, True)
    },
    "Model Garden LAMB": _in_tensorflow(f"{_MODEL_GARDEN}.lamb", "LAMB", weight_decay_rate=DECAY),
    "Model Garden LAMB, jit": _in_tensorflow(
        f"{_MODEL_GARDEN}.lamb", "LAMB", jit=True, weight_decay_rate=DECAY
    ),
    "Model Garden adamw": _in_tensorflow(
        f"{_MODEL_GARDEN}.legacy_adamw",
        "AdamWeightDecay",
        weight_decay_rate=DECAY,
        gradient_clip_norm=0.0,
    ),
    "tensorflow-addons LAMB": _in_tensorflow(
        "tensorflow_addons.optimizers", "LAMB", environment="tfa", weight_decay=DECAY
    ),
    "optax lamb, jit": Contender("jax", "optax", _jax, _optax_lamb),
    "torch AdamW, fused": Contender("torch", "torch", _torch, _torch_adamw),
}


def _status_kilobytes(field: str) -> int:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":"))


def _forget_peak() -> None:
    pathlib.Path("/proc/self/clear_refs").write_text("5")


def serve(name: str, model: str, answer: Callable[[dict[str, Any]], None]) -> None:
    """Prepares the contender, then answers each line of standard input with a timed update.

    Args:
        name: a key of `CONTENDERS`.
        model: one of `bert_shapes.MODELS`.
        answer: sends figures to the parent: first "first_s", time to the first update, with the
            "versions" of what its environment is made of; then "seconds" of one update at a time,
            with the process's peak memory so far in bytes, over what it took before there were
            variables.
    """
    contender = CONTENDERS[name]
    importlib.import_module(contender.module)
    before = _status_kilobytes("VmRSS")
    tensors = contender.tensors(bert_shapes.block_shapes(model), np.random.default_rng(0))
    _forget_peak()
    begin = time.perf_counter()
    update = contender.start(*tensors)
    update()
    first = time.perf_counter() - begin
    answer({"first_s": first, "versions": machine.versions(PACKAGES[contender.environment])})
    for _ in sys.stdin:
        update()  # the caches are another process's still
        begin = time.perf_counter()
        update()
        seconds = time.perf_counter() - begin
        peak = 1024 * (_status_kilobytes("VmHWM") - before)
        answer({"seconds": seconds, "peak_bytes": peak})


def main(name: str, model: str) -> None:
    """Serves on a channel that no library's print can reach."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(figures: dict[str, Any]) -> None:
        channel.write(json.dumps(figures) + "\n")
        channel.flush()

    serve(name, model, answer)


if __name__ == "__main__":
    main(*sys.argv[1:])
