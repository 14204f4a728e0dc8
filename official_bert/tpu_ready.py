r"""Shows what of a recipe can be shown of TPUs where there is none.

Example::

  python -m official_bert.tpu_ready --config_file=bert_large_phase1_tpu.yaml \
    --compiler=.venv-tpu/bin/python

For each recipe, or for all that come with the package: the whole step of one core is lowered to
one XLA program and looked through for what a TPU cannot run or emulates; the memory of a core is
estimated. A small model is also traced under TensorFlow's own TPUStrategy, and run, compiled
against operation by operation. With --compiler, a Python that has jax and libtpu, recipes for
TPUs are compiled by the TPU's own compiler, which says what memory a core needs. Exits with 2
where anything is found.
"""

import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from absl import flags
from official.core import config_definitions

from official_bert import configuration, estimates, experiments, hlo, tpu_program
from official_bert.pretraining_task import LargeBatchPretrainConfig
from tfrecords import command
from tfrecords.errors import UserError

# Cores of the slices that recipes are looked at for: those for TPUs, and all others.
TPU_RECIPE_CORES, OTHER_CORES = 256, 8
# https://cloud.google.com/tpu/docs/v5e, one core a chip.
V5E_TOPOLOGIES = {
    4: "v5e:2x2",
    8: "v5e:2x4",
    16: "v5e:4x4",
    32: "v5e:4x8",
    64: "v5e:8x8",
    128: "v5e:8x16",
    256: "v5e:16x16",
}
# A model of fewer weights is run, too.
SMALL_MODEL = 20_000_000
# Largest differences between compiled and plain steps of a small model: float32 rounding, and
# what the optimizer's division by tiny gradients makes of it.
LOGS_TOLERANCE, WEIGHTS_TOLERANCE = 1e-5, 1e-2

FLAGS = flags.FlagValues()
flags.DEFINE_multi_string(
    "config_file", [], "A recipe, one or several; all that come with the package by default.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_string(
    "params_override", "", "YAML, JSON, a file, or a.b=1,c.d=x; wins over the files.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_integer(
    "num_replicas", 0, "Cores; 0: 256 for recipes of distribution_strategy tpu, 8 for others.",
    lower_bound=0, flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_string(
    "compiler", "", "A Python with jax and libtpu: recipes for TPUs are compiled for v5e.",
    flag_values=FLAGS,
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What was found of one recipe.

    Attributes:
      recipe: the file's name.
      cores: how many its step was lowered for.
      share: examples of a step on each.
      micro_batch: examples of one forward and backward pass.
      instructions: of the program.
      text_bytes: the length of its text.
      argument_bytes: weights, moments, counters and the batch.
      collectives: how often cores wait for one another in a step.
      collective_bytes: what they then sum.
      problems: what a TPU cannot run, or emulates; what TPUStrategy made several programs of;
        numbers that differ.
      estimate: of a core's memory, from the sizes of the model.
      clusters: programs a step under TPUStrategy, or None where it was not traced.
      difference: between compiled and plain steps, or None where they were not run.
      compiled: what the TPU's compiler said, or None where it was not asked.
    """

    recipe: str
    cores: int
    share: int
    micro_batch: int
    instructions: int
    text_bytes: int
    argument_bytes: int
    collectives: int
    collective_bytes: int
    problems: tuple[str, ...]
    estimate: estimates.Memory
    clusters: int | None = None
    difference: tpu_program.Difference | None = None
    compiled: dict[str, Any] | None = None


def examine(
    recipe: str, params: config_definitions.ExperimentConfig, cores: int, compiler: str = ""
) -> Report:
    """Lowers a recipe's step and looks at it; runs the step where the model is small.

    Args:
      recipe: its name, for the report.
      params: the config.
      cores: how many share a batch.
      compiler: a Python with jax and libtpu, or empty.

    Raises:
      UserError: cores cannot share the batch, or something in the step has no form in XLA.
    """
    share = tpu_program.share_of(params, cores)
    micro_batch = params.task.micro_batch_size or share
    stages = ("hlo", "hlo_serialized") if compiler else ("hlo",)
    try:
        text, *serialized = tpu_program.lower(params, cores, stages)
    except UserError:
        raise
    except (ValueError, tf.errors.OpError) as error:
        reason = " ".join(str(error).split())[:500]
        raise UserError(f"{recipe}: no XLA program holds its whole step: {reason}") from error
    program = hlo.parse(text)
    problems = [str(finding) for finding in hlo.findings(program)]
    found: dict[str, Any] = {}
    if estimates.parameters(params.task.model).model < SMALL_MODEL:
        found, differ = _run(params)
        problems += differ
    if compiler:
        found["compiled"] = compile_for_tpu(serialized[0], V5E_TOPOLOGIES[cores], compiler)
        if "error" in found["compiled"]:
            problems.append(f"the TPU's compiler: {found['compiled']['error']}")
    collectives = (count for code, count in program.opcodes.items() if code in hlo.COLLECTIVES)
    return Report(
        recipe=recipe,
        cores=cores,
        share=share,
        micro_batch=micro_batch,
        instructions=len(program.instructions),
        text_bytes=len(text),
        argument_bytes=program.argument_bytes,
        collectives=sum(collectives),
        collective_bytes=program.collective_bytes,
        problems=tuple(problems),
        estimate=estimates.memory(
            params,
            examples=micro_batch,
            micro_batches=share // micro_batch,
            predictions=tpu_program.predictions_of(params),
        ),
        **found,
    )


def _run(params: config_definitions.ExperimentConfig) -> tuple[dict[str, Any], list[str]]:
    clusters = tpu_program.traced_by_tpu_strategy(params)
    difference = tpu_program.compiled_against_plain(params)
    problems = []
    if clusters.programs != 1:
        problems.append(f"TPUStrategy makes {clusters.programs} programs of a step; expected 1")
    if difference.logs > LOGS_TOLERANCE or difference.weights > WEIGHTS_TOLERANCE:
        problems.append(f"compiled and plain steps differ: {difference}")
    return {"clusters": clusters.programs, "difference": difference}, problems


def compile_for_tpu(program: bytes, topology: str, compiler: str) -> dict[str, Any]:
    """What `official_bert/tpu_compile.py` says of a program, run by another Python.

    Raises:
      UserError: that Python cannot.
    """
    with tempfile.TemporaryDirectory() as folder:
        given, result = pathlib.Path(folder, "step.pb"), pathlib.Path(folder, "result.json")
        given.write_bytes(program)
        script = pathlib.Path(__file__).with_name("tpu_compile.py")
        call = [compiler, "-P", str(script), f"--program={given}", f"--topology={topology}"]
        try:
            done = subprocess.run(
                [*call, f"--output={result}"], capture_output=True, text=True, check=False
            )
        except OSError as error:
            raise UserError(f"--compiler is {compiler!r}: {error.strerror}") from error
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            raise UserError(
                f"--compiler is {compiler!r}, which ended with {done.returncode}: {last}; expected "
                "a Python that has jax and libtpu, such as the one that `make tpu-ready` makes"
            )
        return json.loads(result.read_text())


def lines(report: Report) -> list[str]:
    """A report as text."""
    size = estimates.in_words
    parts = dataclasses.asdict(report.estimate)
    rows = [
        ("program", f"one; {report.instructions:,} instructions, {size(report.text_bytes)} of HLO"),
        ("arguments", f"{size(report.argument_bytes)}: weights, moments, counters, the batch"),
        ("collectives", f"{report.collectives} of {size(report.collective_bytes)} in all"),
        (
            "estimate",
            f"{size(report.estimate.total)} a core ("
            + ", ".join(f"{name} {size(value)}" for name, value in parts.items())
            + ")",
        ),
    ]
    if report.clusters is not None:
        rows.append(("TPUStrategy", f"{report.clusters} program a step"))
    if report.difference is not None:
        rows.append(
            (
                "two steps run",
                f"compiled against plain: logs differ by {report.difference.logs:.1e}, weights by "
                f"{report.difference.weights:.1e} of what they moved ({report.difference.block})",
            )
        )
    compiled = report.compiled or {}
    if "peak" in compiled:
        rows.append(
            (
                "TPU compiler",
                f"{compiled['core']}: {size(compiled['peak'])} a core at peak "
                f"(arguments {size(compiled['arguments'])}, temporaries "
                f"{size(compiled['temporaries'])}); compiled in {compiled['seconds']:.0f} s",
            )
        )
    rows += [("PROBLEM", problem) for problem in report.problems] or [("problems", "none")]
    head = (
        f"{report.recipe}: {report.cores} cores, {report.share} examples a step on each, "
        f"{report.micro_batch} at a time"
    )
    return [head, *(f"  {name:<14}{value}" for name, value in rows)]


def recipes() -> list[str]:
    """The recipes of the package that pretrain: each is one phase."""
    return sorted(
        path.name for path in pathlib.Path(configuration.CONFIG_FOLDER).glob("*_phase*.yaml")
    )


def _examine_recipe(recipe: str, override: str, cores: int, compiler: str) -> Report | None:
    """One recipe in a process of its own, since TensorFlow gives memory back to none."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    experiments.register()
    params = configuration.load(experiments.PRETRAINING, [recipe], override)
    if not isinstance(params.task, LargeBatchPretrainConfig):
        return None
    for_tpus = params.runtime.distribution_strategy == "tpu"
    cores = cores or (TPU_RECIPE_CORES if for_tpus else OTHER_CORES)
    if compiler and cores not in V5E_TOPOLOGIES:
        raise UserError(
            f"--num_replicas is {cores}; v5e has slices of {', '.join(map(str, V5E_TOPOLOGIES))}"
        )
    return examine(os.path.basename(recipe), params, cores, compiler if for_tpus else "")


def body(flag_values: flags.FlagValues) -> None:
    """Examines each recipe, prints its report as it comes, and fails if any has a problem."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # for the processes to come
    names = flag_values.config_file or recipes()
    defects = []
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, spawn, max_tasks_per_child=1) as pool:
        for name in names:
            report = pool.submit(
                _examine_recipe,
                name,
                flag_values.params_override,
                flag_values.num_replicas,
                flag_values.compiler,
            ).result()
            if report is None:
                continue
            print("\n".join(lines(report)), flush=True)
            if report.problems:
                defects.append(name)
    if defects:
        raise UserError(f"not ready for TPUs: {', '.join(defects)}; the report says why")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    return command.run(body, FLAGS, argv)


if __name__ == "__main__":
    sys.exit(main())
