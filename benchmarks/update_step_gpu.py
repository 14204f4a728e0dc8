"""The update step of tf_lans on JAX against what other libraries offer, on a GPU or a CPU.

    python -m benchmarks.update_step_gpu --model=bert_large --dtype=bfloat16 --output=gpu.json

Wants jax (jax[cuda12] on a GPU), keras, optax, absl-py; torch and timm where they are to be
compared. All contenders live in one process and take turns, so that all see the same machine.
"""

from __future__ import annotations

import os

os.environ["KERAS_BACKEND"] = "jax"
# PyTorch needs room beside JAX.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import dataclasses
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
from absl import app, flags

import tf_lans.keras3
from benchmarks import bert_shapes, machine, turns, whole_files
from tfrecords.errors import UserError

_MODEL = flags.DEFINE_enum("model", "bert_base", bert_shapes.MODELS, "Whose blocks to update.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of weights, gradients.")
_ROUNDS = flags.DEFINE_integer("rounds", 15, "Measurements of each contender.", lower_bound=5)
_STEPS = flags.DEFINE_integer(
    "steps", 0, "Steps in a measurement; 0 for 10 on a GPU, where launching them costs, else 1."
)
_OUTPUT = flags.DEFINE_string("output", None, "A JSON file for the figures.")

_RATE, _DECAY = 1e-3, 0.01
# x, m, v and the gradient are read, x, m and v written; m and v are float32.
_FLOOR_BYTES = {"float32": 28, "bfloat16": 22}
_PACKAGES = ("jax", "jaxlib", "keras", "optax", "torch", "timm", "numpy", "tf-lans")
_REFERENCE = "optax lamb"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A contender ready to run.

    Attributes:
        steps: takes so many steps and returns when they are done.
        compile_seconds: what preparing its program took; None where nothing is compiled ahead.
        temporary_bytes: what the program allocates beside weights, state and gradients.
        state_dtype: the dtype of its moments.
    """

    steps: Callable[[int], None]
    compile_seconds: float | None = None
    temporary_bytes: int | None = None
    state_dtype: str = "float32"


def _normal(shapes: Sequence[tuple[int, ...]], dtype: str, scale: float, seed: int) -> list[Any]:
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return [
        scale * jax.random.normal(key, shape, dtype)
        for key, shape in zip(keys, shapes, strict=True)
    ]


def _program(update: Callable[..., Any], weights: Any, state: Any, gradients: Any) -> Prepared:
    """An update `(weights, state, gradients) -> (weights, state)`, compiled, in place."""
    begin = time.perf_counter()
    jitted = jax.jit(update, donate_argnums=(0, 1))
    compiled = jitted.lower(weights, state, gradients).compile()
    seconds = time.perf_counter() - begin
    values = [weights, state]

    def steps(count: int) -> None:
        for _ in range(count):
            values[:] = compiled(*values, gradients)
        jax.block_until_ready(values)

    analysis = compiled.memory_analysis()
    return Prepared(
        steps=steps,
        compile_seconds=seconds,
        temporary_bytes=None if analysis is None else analysis.temp_size_in_bytes,
        state_dtype="+".join(
            sorted({str(each.dtype) for each in jax.tree.leaves(state) if each.ndim})
        ),
    )


def _ours(name: str, shapes: Sequence[tuple[int, ...]], dtype: str) -> Prepared:
    variables = [keras.Variable("zeros", shape=shape, dtype=dtype) for shape in shapes]
    optimizer = getattr(tf_lans.keras3, name)(_RATE, weight_decay=_DECAY)
    optimizer.build(variables)
    return _program(
        lambda weights, state, grads: optimizer.stateless_apply(state, grads, weights),
        _normal(shapes, dtype, 0.02, 0),
        [each.value for each in optimizer.variables],
        _normal(shapes, dtype, 0.01, 1),
    )


def _optax_lamb(shapes: Sequence[tuple[int, ...]], dtype: str) -> Prepared:
    import optax

    optimizer = optax.lamb(_RATE, weight_decay=_DECAY)

    def update(weights: Any, state: Any, gradients: Any) -> Any:
        updates, state = optimizer.update(gradients, state, weights)
        return optax.apply_updates(weights, updates), state

    weights = _normal(shapes, dtype, 0.02, 0)
    return _program(update, weights, optimizer.init(weights), _normal(shapes, dtype, 0.01, 1))


def _torch(
    make: Callable[[list[Any]], Any], shapes: Sequence[tuple[int, ...]], dtype: str, compiled: bool
) -> Prepared:
    import torch

    on_gpu = jax.default_backend() == "gpu"
    place = {"device": "cuda" if on_gpu else "cpu", "dtype": getattr(torch, dtype)}
    weights = [torch.nn.Parameter(0.02 * torch.randn(shape, **place)) for shape in shapes]
    for weight in weights:
        weight.grad = 0.01 * torch.randn_like(weight)
    optimizer = make(weights)
    step = torch.compile(optimizer.step) if compiled else optimizer.step

    def steps(count: int) -> None:
        for _ in range(count):
            step()
        if on_gpu:
            torch.cuda.synchronize()

    begin = time.perf_counter()
    # Twice: torch.compile makes another program once it sees the step's number change.
    steps(2)
    seconds = time.perf_counter() - begin
    held = optimizer.state[weights[0]]
    dtypes = {str(each.dtype).removeprefix("torch.") for each in held.values() if each.ndim}
    return Prepared(
        steps=steps,
        compile_seconds=seconds if compiled else None,
        state_dtype="+".join(sorted(dtypes)),
    )


def _torch_adamw(shapes: Sequence[tuple[int, ...]], dtype: str) -> Prepared:
    import torch

    def make(weights: list[Any]) -> Any:
        return torch.optim.AdamW(weights, _RATE, weight_decay=_DECAY, fused=True)

    return _torch(make, shapes, dtype, compiled=False)


def _timm_lamb(shapes: Sequence[tuple[int, ...]], dtype: str) -> Prepared:
    import timm.optim

    def make(weights: list[Any]) -> Any:
        return timm.optim.Lamb(weights, _RATE, weight_decay=_DECAY)

    return _torch(make, shapes, dtype, compiled=True)


def contenders(shapes: Sequence[tuple[int, ...]], dtype: str) -> dict[str, Prepared | str]:
    """Each contender by name: ready to run, or why it is not."""

    def prepared(needs: Sequence[str], prepare: Callable[[], Prepared]) -> Prepared | str:
        missing = [each for each in needs if importlib.util.find_spec(each) is None]
        if missing:
            return f"not installed: {', '.join(missing)}"
        if "torch" in needs and jax.default_backend() == "gpu":
            import torch

            if not torch.cuda.is_available():
                return "not measured: this torch sees no GPU"
        return prepare()

    return {
        **{
            f"tf_lans {name}": prepared([], lambda name=name: _ours(name, shapes, dtype))
            for name in ("LANS", "LAMB", "BlockNormalizedAdamW")
        },
        _REFERENCE: prepared(["optax"], lambda: _optax_lamb(shapes, dtype)),
        "timm Lamb, torch.compile": prepared(["torch", "timm"], lambda: _timm_lamb(shapes, dtype)),
        "torch AdamW, fused": prepared(["torch"], lambda: _torch_adamw(shapes, dtype)),
    }


def _copy(bytes_held: int) -> Prepared:
    """A copy within the device's memory, far larger than its caches."""
    count = bytes_held // 4
    # The target is kept though unused, or every copy would go to memory just allocated.
    program = jax.jit(lambda source, target: source + 1.0, donate_argnums=1, keep_unused=True)
    source, held = jnp.ones(count), [jnp.zeros(count)]

    def steps(times: int) -> None:
        for _ in range(times):
            held[0] = program(source, held[0])
        jax.block_until_ready(held)

    return Prepared(steps=steps)


def measure(prepared: dict[str, Prepared], rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds of one step, of each contender in each round; a round before them warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in prepared}
    names = list(prepared)
    for number in range(rounds + 1):
        for name in turns.order(names, number):
            begin = time.perf_counter()
            prepared[name].steps(steps)
            if number:
                seconds[name].append((time.perf_counter() - begin) / steps)
    return seconds


def _row(prepared: Prepared, seconds: list[float], floor: float) -> dict[str, Any]:
    median, best = statistics.median(seconds), min(seconds)
    temporary = prepared.temporary_bytes
    return {
        "status": "measured",
        "median_ms": 1e3 * median,
        "best_ms": 1e3 * best,
        "median_over_floor": median / floor,
        "best_over_floor": best / floor,
        "compile_s": prepared.compile_seconds,
        "temporary_mb": None if temporary is None else temporary / 1e6,
        "state_dtype": prepared.state_dtype,
        "all_ms": [round(1e3 * each, 4) for each in seconds],
    }


def report(model: str, dtype: str, rounds: int, steps: int) -> dict[str, Any]:
    """Runs everything; the figures as they go into the JSON file."""
    heading = machine.heading("benchmarks.update_step_gpu")
    gpu = jax.default_backend() == "gpu"
    shapes = bert_shapes.block_shapes(model)
    parameters = bert_shapes.parameters(shapes)
    steps = steps or (10 if gpu else 1)
    found = contenders(shapes, dtype)
    ready = {name: each for name, each in found.items() if isinstance(each, Prepared)}
    copied = 2**30 if gpu else 2**28
    seconds = measure({**ready, "copy": _copy(copied)}, rounds, steps)
    bandwidth = 2 * copied / min(seconds.pop("copy"))
    floor = _FLOOR_BYTES[dtype] * parameters / bandwidth
    rows = {
        name: {"status": each} if isinstance(each, str) else _row(each, seconds[name], floor)
        for name, each in found.items()
    }
    if _REFERENCE in seconds:
        for name in seconds:
            for figure in ("median", "best"):
                other = rows[_REFERENCE][f"{figure}_ms"]
                rows[name][f"{figure}_over_optax"] = rows[name][f"{figure}_ms"] / other
    memory = jax.devices()[0].memory_stats() or {}
    return {
        "gpu": gpu,
        "device": jax.devices()[0].device_kind if gpu else machine.processor(),
        **heading,
        "versions": machine.versions(_PACKAGES),
        "model": model,
        "dtype": dtype,
        "blocks": len(shapes),
        "parameters": parameters,
        "rounds": rounds,
        "steps": steps,
        "copy_gb_per_s": bandwidth / 1e9,
        "floor_bytes_per_parameter": _FLOOR_BYTES[dtype],
        "floor_ms": 1e3 * floor,
        "jax_peak_mb_of_all_contenders": memory.get("peak_bytes_in_use", 0) / 1e6 or None,
        "contenders": rows,
    }


_COLUMNS = {
    "median_ms": "median ms",
    "best_ms": "best ms",
    "median_over_floor": "median/floor",
    "best_over_floor": "best/floor",
    "median_over_optax": "median/optax",
    "best_over_optax": "best/optax",
    "temporary_mb": "temporary MB",
    "compile_s": "compile s",
}


def table(figures: dict[str, Any]) -> str:
    """The report for a reader; its first line says whose figures these are."""
    where = figures["device"]
    lines = [
        where if figures["gpu"] else f"no GPU here: these are the figures of a CPU, {where}",
        f"{figures['date']}  {figures['command']}",
        "  ".join(f"{name} {version}" for name, version in figures["versions"].items()),
        f"{figures['model']}: {figures['blocks']} blocks, {figures['parameters']:,} parameters, "
        f"{figures['dtype']}; {figures['rounds']} rounds of {figures['steps']} steps, interleaved",
        f"copy {figures['copy_gb_per_s']:.1f} GB/s; floor {figures['floor_ms']:.3f} ms, "
        f"{figures['floor_bytes_per_parameter']} bytes a parameter",
    ]
    if figures["jax_peak_mb_of_all_contenders"]:
        peak = figures["jax_peak_mb_of_all_contenders"]
        lines.append(f"peak of JAX's memory, all contenders together: {peak:,.0f} MB")
    lines += ["", f"{'':28}" + "".join(f"{title:>14}" for title in _COLUMNS.values()) + "  moments"]
    for name, row in figures["contenders"].items():
        if row["status"] != "measured":
            lines.append(f"{name:28}  {row['status']}")
            continue
        cells = [row.get(key) for key in _COLUMNS]
        texts = ["-" if cell is None else f"{cell:.2f}" for cell in cells]
        lines.append(
            f"{name:28}" + "".join(f"{text:>14}" for text in texts) + f"  {row['state_dtype']}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Measures as the flags say, prints the table and writes the JSON file."""
    if len(arguments) > 1:
        raise app.UsageError(f"got {arguments[1]!r}: expected flags only, see --help")
    if _OUTPUT.value is not None:
        try:
            whole_files.check(_OUTPUT.value)
        except UserError as error:  # not by `tfrecords.command`, whose tqdm may not be here
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
    figures = report(_MODEL.value, _DTYPE.value, _ROUNDS.value, _STEPS.value)
    print(table(figures))
    if _OUTPUT.value is not None:
        whole_files.write_json(_OUTPUT.value, figures)


if __name__ == "__main__":
    app.run(main)
