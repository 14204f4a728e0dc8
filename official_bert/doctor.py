r"""Says what a machine and a recipe are, and what will not work, before anything is built.

Example::

  python -m official_bert.doctor --config_file=bert_large_phase1.yaml \
    --params_override=task.train_data.input_path=shards --model_dir=run/phase1

Prints versions, devices, the numbers that follow from the recipe, an estimate of the memory, and
every problem that a run would stop at, not the first alone. Exits with 0 where there is none, and
with 2 otherwise. The flags are those of official_bert.train.
"""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence

import tensorflow as tf
from absl import flags
from official.core import config_definitions

import tfrecords
from official_bert import (
    cluster,
    configuration,
    continuation,
    devices,
    doctor_report,
    estimates,
    experiments,
    preflight,
    ranges,
    run_data,
    runner,
    versions,
)
from official_bert.machine import Machine, device_problems, probe
from official_bert.pretraining_task import LargeBatchPretrainConfig
from tfrecords import command, schema
from tfrecords.errors import UserError

_ALONE, _TOGETHER = ("one_device", "mirrored"), "multi_worker_mirrored"

FLAGS = flags.FlagValues()
configuration.define_flags(FLAGS, experiments.PRETRAINING)
flags.DEFINE_enum("mode", "train_and_eval", runner.MODES, "What is to be run.", flag_values=FLAGS)
flags.DEFINE_string(
    "model_dir", "", "Folder of the run, whose disk and gradient norms are looked at.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_integer(
    "num_workers", None, "Workers of the run; unset: those of the cluster that training would "
    "find, or one.", lower_bound=1, flag_values=FLAGS,
)  # fmt: skip

run_data.define_flags(FLAGS)


def runtime_problems(
    runtime: config_definitions.RuntimeConfig, seen: Mapping[str, int]
) -> Iterator[str]:
    """A strategy that this machine cannot run, or none can.

    Args:
        runtime: `runtime`.
        seen: what TensorFlow sees, a count by type: "GPU", "TPU".
    """
    name = runtime.distribution_strategy.lower()
    yield from filter(None, [devices.unused_gpus(runtime)])
    if runtime.num_gpus > seen["GPU"]:
        yield (
            f"runtime.num_gpus is {runtime.num_gpus}, TensorFlow sees {seen['GPU']}; lower it, or "
            "pip install '.[cuda]' in a clone and check nvidia-smi"
        )
    if name == "tpu" and not runtime.tpu and not seen["TPU"]:
        yield (
            "runtime.distribution_strategy is tpu, TensorFlow sees no TPU and runtime.tpu names "
            "none: run this on the TPU's machine, or set runtime.tpu"
        )


def runtime_warnings(
    params: config_definitions.ExperimentConfig, machine: Machine, on_cpu: bool
) -> Iterator[str]:
    """A precision that the device computes in slowly."""
    dtype = params.runtime.mixed_precision_dtype
    if on_cpu and (dtype == "float16" or (dtype == "bfloat16" and not machine.bfloat16)):
        yield (
            f"runtime.mixed_precision_dtype is {dtype}, for which this processor has no "
            "instructions: float32 is faster here"
        )


def replicas_of_worker(runtime: config_definitions.RuntimeConfig, seen: Mapping[str, int]) -> int:
    """The replicas that `devices.build_strategy` makes of each worker.

    Args:
        runtime: `runtime`, its fields in their ranges.
        seen: what TensorFlow sees, a count by type: "GPU", "TPU" and the logical "CPU"s. A TPU
            that is not here counts as one replica.
    """
    name = runtime.distribution_strategy.lower()
    if name == "mirrored":
        return runtime.num_gpus or seen["CPU"]
    if name == _TOGETHER:
        return runtime.num_gpus or seen["GPU"] or 1
    return max(1, seen["TPU"]) if name == "tpu" else 1


def count_workers(runtime: config_definitions.RuntimeConfig) -> int:
    """The workers of the cluster that training would find.

    Raises:
        UserError: the strategy spans several, and nothing says how many.
    """
    if runtime.distribution_strategy.lower() != _TOGETHER:
        return 1
    resolver = cluster.find_resolver(runtime.worker_hosts, runtime.task_index)
    jobs = resolver.cluster_spec().as_dict()
    return sum(len(jobs.get(job, [])) for job in ("chief", "worker"))


def tensorflow_devices() -> dict[str, int]:
    """The GPUs, TPUs and logical CPUs that TensorFlow sees, a count by type."""
    seen = {kind: len(tf.config.list_physical_devices(kind)) for kind in ("GPU", "TPU")}
    # Nothing here needs a GPU, and a run may be using it: left visible, it would be taken.
    with contextlib.suppress(RuntimeError):
        tf.config.set_visible_devices([], "GPU")
    return seen | {"CPU": len(tf.config.list_logical_devices("CPU"))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What was found out about one recipe on one machine.

    Attributes:
        sections: text to print, a table each.
        problems: what will not work.
        warnings: what will work, but not as it might.
    """

    sections: tuple[str, ...]
    problems: tuple[str, ...]
    warnings: tuple[str, ...]


def examine(
    params: config_definitions.ExperimentConfig,
    mode: str,
    model_dir: str,
    machine: Machine,
    seen: Mapping[str, int],
    num_workers: int | None = None,
    *,
    repartition: bool = False,
) -> Report:
    """Derives a recipe's numbers and collects every problem; builds nothing, writes nothing.

    Args:
        params: the config, types checked.
        mode: `train`, `eval` or `train_and_eval`.
        model_dir: folder of the run; "" for none.
        machine: from `probe`.
        seen: from `tensorflow_devices`.
        num_workers: workers of the run; None means those of the cluster.
        repartition: whether the run may go on with another number of them.
    """
    params, workers, problems, warnings = _with_workers(params, num_workers)
    sections: list[str] = []
    replicas = workers * max(1, replicas_of_worker(params.runtime, seen))
    problems += runtime_problems(params.runtime, seen)
    problems += preflight.problems(params, mode, model_dir, workers=workers, replicas=replicas)
    out_of_range = ranges.problems(params, mode)
    if model_dir and not problems:
        # How many hosts a TPU has, training finds when it connects.
        is_unknown = num_workers is None and params.runtime.distribution_strategy.lower() == "tpu"
        problems += _folder_problems(
            params, mode, model_dir, workers, repartition=repartition or is_unknown
        )
    warnings += preflight.warnings(params, mode, model_dir)
    warnings += filter(None, [devices.idle_gpus(params.runtime, seen["GPU"])])
    is_cut = not any(preflight.batch_problems(params, mode, workers=workers, replicas=replicas))

    def is_sound(*parts: str) -> bool:
        return not any(field.startswith(parts) for field in out_of_range)

    trains = "train" in mode and is_sound("trainer.train_steps")
    is_bert = _is_bert(params.task)
    manifest = _manifest(params.task.train_data)
    batches = None
    if trains and is_cut and is_sound("task.", "runtime."):
        examples = _examples(manifest, params.task.train_data)
        batches = estimates.batches(
            params, workers=workers, replicas=replicas, split_examples=examples
        )
        sections.append(doctor_report.batch_table(batches, workers, replicas))
    if trains:
        with contextlib.suppress(UserError):  # it is among the problems
            sections.append(doctor_report.rate_table(params))
    if is_bert and is_sound("task.model."):
        sections.append(doctor_report.model_table(params))
    if batches is not None and is_bert:
        section, more = _memory(params, batches, machine, seen, replicas // workers, manifest)
        sections.append(section)
        warnings += more
    if batches is not None and (noise := doctor_report.noise_table(model_dir, batches)):
        sections.append(noise)
    return Report(
        sections=tuple(sections),
        problems=tuple(dict.fromkeys(problems)),
        warnings=tuple(dict.fromkeys(warnings)),
    )


def _with_workers(
    params: config_definitions.ExperimentConfig, num_workers: int | None
) -> tuple[config_definitions.ExperimentConfig, int, list[str], list[str]]:
    """The config as so many workers run it, their number, and the problems and warnings of it."""
    runtime = params.runtime
    if num_workers is None:
        try:
            return params, count_workers(runtime), [], []
        except UserError as error:
            return params, 1, [str(error)], []
    if num_workers == 1 or runtime.distribution_strategy.lower() not in _ALONE:
        return params, num_workers, [], []
    warning = (
        f"runtime.distribution_strategy is {runtime.distribution_strategy}, and --num_workers "
        f"{num_workers}: examined as {_TOGETHER}, as official_bert.launch starts it; elsewhere "
        "each worker would train alone"
    )
    return params.replace(runtime={"distribution_strategy": _TOGETHER}), num_workers, [], [warning]


def _folder_problems(
    params: config_definitions.ExperimentConfig,
    mode: str,
    model_dir: str,
    workers: int,
    *,
    repartition: bool,
) -> list[str]:
    """Why a sound config cannot go on in this folder."""
    try:
        params = runner.completed(params, mode, workers, model_dir)
        continuation.check(params, model_dir, mode, repartition=repartition)
    except UserError as error:
        return [str(error)]
    return []


def _memory(
    params: config_definitions.ExperimentConfig,
    batches: estimates.Batches,
    machine: Machine,
    seen: Mapping[str, int],
    replicas: int,
    manifest: tfrecords.Manifest | None,
) -> tuple[str, list[str]]:
    """The section about memory, and the warnings."""
    runtime = params.runtime
    name = runtime.distribution_strategy.lower()
    on_gpu = runtime.num_gpus > 0 or (name == _TOGETHER and seen["GPU"] > 0)
    on_cpu = not on_gpu and name != "tpu"
    memory = estimates.memory(
        params,
        examples=batches.per_micro_batch,
        micro_batches=batches.micro_batches,
        predictions=estimates.predictions(params.task.train_data, manifest),
    )
    copies = replicas if on_cpu else 1
    limit = machine.gpu_bytes if on_gpu else machine.memory_bytes if on_cpu else None
    warnings = list(runtime_warnings(params, machine, on_cpu))
    needed = copies * memory.total
    if limit is not None and needed > estimates.TIGHT * limit:
        warnings.append(
            f"training takes about {estimates.in_words(needed)} and what the framework keeps on "
            f"top, the device has {estimates.in_words(limit)}: it "
            f"{'will' if needed > limit else 'may'} not fit; lower task.micro_batch_size, now "
            f"{batches.per_micro_batch}"
        )
    return doctor_report.memory_table(memory, copies, limit), warnings


def _is_bert(task: config_definitions.TaskConfig) -> bool:
    return isinstance(task, LargeBatchPretrainConfig) and estimates.is_bert(task)


def _manifest(data: config_definitions.DataConfig) -> tfrecords.Manifest | None:
    try:
        return tfrecords.Manifest.load(data.input_path) if data.input_path else None
    except UserError:  # it is among the problems
        return None


def _examples(
    manifest: tfrecords.Manifest | None, data: config_definitions.DataConfig
) -> int | None:
    if manifest is None or data.seq_length not in manifest.seq_lengths:
        return None
    return manifest.num_examples(schema.TRAIN, data.seq_length)


def body(flag_values: flags.FlagValues) -> None:
    """Prints the report; a `UserError` at its end is the exit code."""
    machine, seen = probe(), tensorflow_devices()
    print(doctor_report.table("Versions", list(versions.installed().items())))
    print(doctor_report.device_table(machine, seen), flush=True)
    problems = [*device_problems(machine, seen, os.environ.get("CUDA_VISIBLE_DEVICES"))]
    warnings: Iterable[str] = ()
    experiments.register()
    try:
        params = configuration.load(
            flag_values.experiment, flag_values.config_file, flag_values.params_override
        )
    except UserError as error:
        problems.append(str(error))
    else:
        mode, model_dir = flag_values.mode, flag_values.model_dir
        report = examine(
            params,
            mode,
            model_dir,
            machine,
            seen,
            flag_values.num_workers,
            repartition=flag_values.repartition,
        )
        for section in report.sections:
            print(section)
        problems, warnings = [*problems, *report.problems], report.warnings
    _print_list("Worth knowing", warnings)
    _print_list("What will not work", problems or ["nothing found"])
    sys.stdout.flush()
    if problems:
        raise UserError(f"{len(problems)} of the checks failed; see 'What will not work'")


def _print_list(title: str, lines: Iterable[str]) -> None:
    if lines:
        print("\n".join([title, *(f"  - {line}" for line in lines)]))


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    return command.run(body, FLAGS, argv)


if __name__ == "__main__":
    sys.exit(main())
