r"""Plans a pretraining run: writes its recipe, and says how long it takes and what binds it.

Example::

  python -m official_bert.plan --model=large --shards=shards --seq_lengths=128,512 \
    --batch=98304,33792 --micro_batch=64,22 --device=v100 --num_devices=1536 \
    --output=plan --chart=plan.png
  python -m official_bert.pretrain --phase1=plan/phase1.yaml --phase2=plan/phase2.yaml \
    --model_dir=run

One sequence length writes one file, `--output=plan.yaml`, for official_bert.train. The table of
published devices, and published runs beside what this command says of them, are printed by
`--published`. A rate measured on one's own device, `--examples_per_second`, is worth more than the
table. How the numbers come about, and what is assumed, is below, and on top of that:

- A corpus given in tokens or words fills every row, three of its tokens being special ones.
- Shards are a multiple of the workers, with at most 262,144 examples each.
- Memory is the estimate of official_bert.doctor: what a framework keeps for itself comes on top.
- More devices stop paying where twice as many save less than a quarter of the time. The curve
  looks at 1, 2, 4, ... devices up to one example each, whether they divide the batch or not.
"""

import math
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from absl import flags

import tfrecords
from official_bert import (
    device_table,
    plan_chart,
    plan_published,
    plan_recipe,
    plan_report,
    plan_result,
    plan_steps,
    plan_time,
)
from official_bert.plan_result import Planned
from official_bert.plan_steps import Cut
from official_bert.plan_time import Assumptions, Cluster
from tfrecords import command, files, schema, sharding
from tfrecords.errors import UserError

# --help explains every assumption, in the words of the modules that make it.
__doc__ = "\n".join(filter(None, [__doc__, plan_steps.__doc__, plan_time.__doc__]))

_PHASES = 2
_CORPUS = ("corpus_examples", "corpus_tokens", "corpus_words", "shards")
_ASSUMED = Assumptions()

FLAGS = flags.FlagValues()


def _string(name: str, default: str | None, words: str) -> None:
    flags.DEFINE_string(name, default, words, flag_values=FLAGS)


def _number(name: str, default: float | None, words: str) -> None:
    flags.DEFINE_float(name, default, words, flag_values=FLAGS)


def _count(name: str, default: int | None, words: str) -> None:
    flags.DEFINE_integer(name, default, words, lower_bound=1, flag_values=FLAGS)


def _each(name: str, default: str, words: str) -> None:
    flags.DEFINE_list(name, default, f"{words} One for each length.", flag_values=FLAGS)


def _switch(name: str, words: str) -> None:
    flags.DEFINE_bool(name, False, words, flag_values=FLAGS)


_string(
    "model", "large", f"Model: one of {', '.join(plan_recipe.SIZES)}, a packaged recipe, or a file."
)
_count("vocab_size", None, "Entries of the vocabulary; unset: a recipe's, the shards', or BERT's.")
_string("optimizer", None, "lans or lamb; unset: the recipe's, or lans.")
_each("seq_lengths", "128", "Tokens of a row: one length, or two for two phases.")
_each("batch", "", "Target batch: examples of a step over all devices.")
_each("micro_batch", "", "Examples of one forward and backward pass of one device.")
_string("device", None, f"The devices: {', '.join(device_table.DEVICES)}.")
_count("num_devices", 1, "How many: GPUs, TPU v3 cores, other TPUs' chips, CPU sockets.")
_count("devices_per_worker", None, "Devices of one machine; unset: the table's.")
_number("network_gbits", None, "Gigabits a second that a machine can send; unset: the table's.")
_number("utilisation", _ASSUMED.utilisation, "The model's flops over the peak's.")
_each("examples_per_second", "", "Measured on one of your devices, in place of peak and share.")
_each("step_seconds", "", "Measured: a step of one of your devices with one micro-batch.")
_number(
    "input_tokens_per_second", _ASSUMED.input_tokens_per_second,
    "Tokens of rows that a worker reads and masks.",
)  # fmt: skip
_each("corpus_examples", "", "Size of the corpus, in rows.")
_number("corpus_tokens", None, "Size of the corpus, in word pieces; every row is taken as full.")
_number("corpus_words", None, "Size of the corpus, in words.")
_number("tokens_per_word", 1.3, "Word pieces of a word, assumed; depends on text and vocabulary.")
_string("shards", "", "Folder that tfrecords.build wrote; its manifest says the corpus's size.")
_each("epochs", "", "Passes over the corpus; unset: as many examples as the published run saw.")
_each("reference_rate", "", "Your own peak rate to scale from, by the square root of the batch.")
_each("reference_batch", "", "The batch of --reference_rate.")
_each("max_rate", "", "The cap of the rate; unset: the published one, or yours if higher.")
_string("output", "", "The YAML file to write; a folder for two lengths.")
_string("chart", "", "A PNG file to draw time against devices in.")
_switch("overwrite", "Whether --output and --chart may replace what is there.")
_switch("published", "Print published runs beside the estimates, as Markdown, and end.")


def per_phase(
    flag_values: flags.FlagValues, name: str, convert: Callable[[str], Any], count: int
) -> list[Any]:
    """A flag with one number above 0 for each phase; Nones where it is not given.

    Raises:
        UserError: another number of them, or no such numbers.
    """
    given = [part for part in flag_values[name].value or [] if part]
    if not given:
        return [None] * count
    if len(given) != count:
        raise UserError(
            f"--{name} has {len(given)} values and --seq_lengths {count}; expected one for each"
        )
    found = []
    for part in given:
        try:
            value = convert(part)
        except ValueError:
            value = math.nan
        if not (value > 0 and math.isfinite(value)):
            kind = "whole number" if convert is int else "number"
            raise UserError(f"--{name} has {part!r}; expected a {kind} above 0, such as 64")
        found.append(value)
    return found


def positive(flag_values: flags.FlagValues, name: str) -> float | None:
    """A flag's number.

    Raises:
        UserError: it is given, and not a number above 0.
    """
    value = flag_values[name].value
    if value is not None and not (value > 0 and math.isfinite(value)):
        raise UserError(f"--{name} is {value}; expected a number above 0")
    return value


def find_cluster(flag_values: flags.FlagValues) -> Cluster:
    """The devices that the flags name.

    Raises:
        UserError: none, an unknown one, or workers that are not full.
    """
    if flag_values.device is None:
        raise UserError(f"--device is missing; give one of {', '.join(device_table.DEVICES)}")
    device = device_table.find(flag_values.device)
    per_worker = flag_values.devices_per_worker or device.devices_per_worker
    if device.platform == device_table.CPU and per_worker > 1:
        raise UserError(
            f"--devices_per_worker is {per_worker}; expected 1, since a worker on CPUs is one "
            "replica"
        )
    plan_steps.count_workers(flag_values.num_devices, per_worker)
    network = positive(flag_values, "network_gbits")
    return Cluster(
        device=device,
        devices=flag_values.num_devices,
        devices_per_worker=per_worker,
        network_bandwidth=device.network_bandwidth if network is None else network * 1e9 / 8,
    )


def corpus(
    flag_values: flags.FlagValues, seq_lengths: Sequence[int]
) -> tuple[list[int | None], tfrecords.Manifest | None]:
    """The examples of each length, None where nothing tells them, and the shards' manifest.

    Raises:
        UserError: more than one size, or shards without a length.
    """
    given = [name for name in _CORPUS if flag_values[name].value]
    if len(given) > 1:
        raise UserError(f"--{given[0]} and --{given[1]} both say the corpus's size; give one")
    if flag_values.shards:
        manifest = tfrecords.Manifest.load(flag_values.shards)
        for seq_length in seq_lengths:
            if seq_length not in manifest.seq_lengths:
                lengths = ", ".join(map(str, manifest.seq_lengths))
                raise UserError(
                    f"--seq_lengths has {seq_length}, {flag_values.shards} holds {lengths}; take "
                    "one of those, or build shards of that length"
                )
        return [manifest.num_examples(schema.TRAIN, length) for length in seq_lengths], manifest
    tokens, words = (positive(flag_values, name) for name in ("corpus_tokens", "corpus_words"))
    if words is not None:
        tokens = words * (positive(flag_values, "tokens_per_word") or 1.0)
    if tokens is not None:
        return [plan_steps.examples_of_text(tokens, length) for length in seq_lengths], None
    return per_phase(flag_values, "corpus_examples", int, len(seq_lengths)), None


def measured(flag_values: flags.FlagValues, micro_batches: Sequence[int]) -> list[float | None]:
    """Examples a second of one device in each phase, where the user measured them.

    Raises:
        UserError: both ways of saying it.
    """
    count = len(micro_batches)
    rates = per_phase(flag_values, "examples_per_second", float, count)
    seconds = per_phase(flag_values, "step_seconds", float, count)
    if rates[0] is not None and seconds[0] is not None:
        raise UserError("--examples_per_second and --step_seconds say the same; give one")
    if seconds[0] is None:
        return rates
    return [micro / each for micro, each in zip(micro_batches, seconds, strict=True)]


def plan(flag_values: flags.FlagValues) -> tuple[list[Planned], Cluster]:
    """Every phase that the flags ask for.

    Raises:
        UserError: the first thing that does not fit.
    """
    count = len(flag_values.seq_lengths)
    if not 1 <= count <= _PHASES:
        raise UserError(f"--seq_lengths has {count} values; expected one or two")
    seq_lengths = per_phase(flag_values, "seq_lengths", int, count)
    cluster = find_cluster(flag_values)
    cuts = find_cuts(flag_values, cluster, count)
    examples, manifest = corpus(flag_values, seq_lengths)
    base = plan_recipe.find_model(
        flag_values.model,
        flag_values.vocab_size,
        max(seq_lengths),
        default_vocab_size=manifest.vocab_size if manifest else plan_recipe.VOCAB_SIZE,
    )
    optimizer = flag_values.optimizer or plan_recipe.optimizer_of(base)
    starts = references(flag_values, optimizer, seq_lengths)
    epochs = per_phase(flag_values, "epochs", float, count)
    speeds = measured(flag_values, [batch_cut.micro_batch for batch_cut in cuts])
    shards = _shards(manifest, cluster.workers)
    found = []
    for number, start in enumerate(starts):
        phase = plan_steps.plan_phase(
            start,
            cuts[number],
            seq_length=seq_lengths[number],
            examples=examples[number],
            epochs=epochs[number],
            shards=shards,
        )
        assumed = Assumptions(
            utilisation=flag_values.utilisation,
            input_tokens_per_second=flag_values.input_tokens_per_second,
            examples_per_second=speeds[number],
        )
        recipe = plan_recipe.fill(base, phase, cluster.device, optimizer, flag_values.shards)
        found.append(
            plan_result.complete(
                phase, start, recipe, cluster=cluster, assumed=assumed, manifest=manifest
            )
        )
    return found, cluster


def find_cuts(flag_values: flags.FlagValues, cluster: Cluster, count: int) -> list[Cut]:
    """How the devices share each phase's batch.

    Raises:
        UserError: a size is missing, or the batch no multiple.
    """
    sizes = []
    for name in ("batch", "micro_batch"):
        sizes.append(per_phase(flag_values, name, int, count))
        if sizes[-1][0] is None:
            raise UserError(f"--{name} is missing; give one for each of --seq_lengths")
    return [
        plan_steps.cut(
            batch, replicas=cluster.devices, workers=cluster.workers, micro_batch=micro_batch
        )
        for batch, micro_batch in zip(*sizes, strict=True)
    ]


def references(
    flag_values: flags.FlagValues, optimizer: str, seq_lengths: Sequence[int]
) -> list[plan_steps.Reference]:
    """Where the rules of each phase start.

    Raises:
        UserError: an unknown optimizer, or a rate without its batch.
    """
    names = (("reference_rate", float), ("reference_batch", int), ("max_rate", float))
    own = [per_phase(flag_values, name, kind, len(seq_lengths)) for name, kind in names]
    return [
        plan_steps.reference(optimizer, length, rate=rate, batch=batch, max_rate=cap)
        for length, rate, batch, cap in zip(seq_lengths, *own, strict=True)
    ]


def _shards(manifest: tfrecords.Manifest | None, workers: int) -> int | None:
    if manifest is None:
        return None
    shards = manifest.num_shards(schema.TRAIN)
    sharding.check_workers(shards, workers, 0)
    return shards


def write(flag_values: flags.FlagValues, found: Sequence[Planned], cluster: Cluster) -> list[str]:
    """Writes what `--output` and `--chart` ask for, each file atomically.

    Returns:
        Lines that say what was written, and how to run it.

    Raises:
        UserError: something is there already, or a name does not fit.
    """
    contents: dict[str, bytes] = {}
    flags_line = shlex.join(flag.serialize() for flag in _given(flag_values))
    names = _outputs(flag_values.output, len(found))
    run = plan_report.command(names, flag_values.shards) if names else ""
    for name, planned in zip(names, found, strict=bool(names)):
        head = plan_report.head(planned, cluster, flags=flags_line, run=run)
        contents[name] = plan_recipe.text(planned.recipe, head).encode()
    if flag_values.chart:
        if not flag_values.chart.endswith(".png"):
            raise UserError(f"--chart is {flag_values.chart}; expected a name that ends in .png")
        points, planned_point = plan_report.points(found, cluster)
        title = plan_report.title(found, cluster)
        contents[flag_values.chart] = plan_chart.draw(points, planned_point, title)
    for name in contents:
        if tf.io.gfile.exists(name) and (tf.io.gfile.isdir(name) or not flag_values.overwrite):
            raise UserError(f"{name} is there already; choose another name, or add --overwrite")
    for name, content in contents.items():
        files.write_bytes(name, content)
    written = [f"written: {name}" for name in contents]
    return [*written, f"run it: {run}"] if run else written


def _given(flag_values: flags.FlagValues) -> list[flags.Flag]:
    """The flags on the command line, but for those that say where to write."""
    left_out = ("output", "chart", "overwrite")
    found = [flag_values[name] for name in flag_values if name not in left_out]
    return [flag for flag in found if flag.present]


def _outputs(output: str, count: int) -> list[str]:
    if not output:
        return []
    if count == 1:
        if not output.endswith((".yaml", ".yml")):
            raise UserError(f"--output is {output}; expected a name that ends in .yaml")
        return [output]
    if tf.io.gfile.exists(output) and not tf.io.gfile.isdir(output):
        raise UserError(f"--output is the file {output}; expected a folder for two phases")
    return [os.path.join(output, f"phase{number}.yaml") for number in range(1, count + 1)]


def body(flag_values: flags.FlagValues) -> None:
    """Plans, prints and writes."""
    positive(flag_values, "input_tokens_per_second")
    if flag_values.published:
        print(plan_published.markdown(Assumptions()))
        return
    found, cluster = plan(flag_values)
    written = write(flag_values, found, cluster)
    for section in plan_report.sections(found, cluster):
        print(section)
    for line in written:
        print(line)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    return command.run(body, FLAGS, argv)


if __name__ == "__main__":
    sys.exit(main())
