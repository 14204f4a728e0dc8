"""A plan in words: the tables that are printed, and the comment at the head of a recipe."""

import textwrap
from collections.abc import Sequence

from official_bert import doctor_report, estimates, plan_time
from official_bert.plan_result import Planned
from official_bert.plan_time import Cluster, Point, duration, three_digits

_WIDTH = 96

Rows = list[tuple[str, str]]


def schedule_rows(planned: Planned) -> Rows:
    """Steps, rates and the cut of the batch."""
    phase, start = planned.phase, planned.start
    cut = phase.cut
    warmup, constant = phase.warmup_and_constant_steps
    epochs = "unknown: no size of the corpus"
    if phase.epochs is not None and phase.examples is not None:
        epochs = f"{phase.epochs:.4g} over {phase.examples:,} examples"
    capped = "the cap" if phase.rate == start.max_rate else f"below the cap {start.max_rate:g}"
    rule = f"{start.rate:g} x sqrt({cut.global_batch} / {start.rate_batch}), {capped}"
    warmup_words = f"{warmup:,} ({phase.warmup_ratio:.2%})"
    if not warmup:
        warmup_words += ": the first step is at the peak; a longer run, or a smaller batch, has one"
    return [
        ("steps", f"{phase.steps:,}"),
        ("examples in all", f"{phase.examples_seen:,}"),
        ("epochs", epochs),
        ("learning rate", f"{phase.rate:g} ({rule})"),
        ("warmup steps", warmup_words),
        ("constant steps", f"{constant:,} ({phase.constant_ratio:.2%})"),
        ("global batch", f"{cut.global_batch:,}"),
        ("of a worker", f"{cut.per_worker:,} (workers: {cut.workers:,})"),
        ("of a device", f"{cut.per_replica:,} (devices: {cut.replicas:,})"),
        ("of a micro-batch", f"{cut.micro_batch:,} ({cut.micro_batches:,} a step)"),
        ("shards", f"{phase.shards:,}, {phase.shards // cut.workers:,} for each worker"),
    ]


def memory_rows(planned: Planned, cluster: Cluster) -> Rows:
    """What a device needs and has, estimated."""
    needed, limit = planned.memory.total, cluster.device.memory_bytes
    words = f"{estimates.in_words(needed)} of {estimates.in_words(limit)}"
    if needed > estimates.TIGHT * limit:
        fits = "will" if needed > limit else "may"
        words += f": it {fits} not fit, with what the framework adds; lower --micro_batch"
    return [("memory of a device", words)]


def time_rows(planned: Planned) -> Rows:
    """A step's time by part, and what binds."""
    step = planned.step
    rate = planned.phase.cut.global_batch / step.total
    return [
        (plan_time.COMPUTE, duration(step.compute)),
        (plan_time.UPDATE, duration(step.update)),
        (plan_time.ALL_REDUCE, duration(step.all_reduce)),
        (f"{plan_time.INPUT}, beside the rest", duration(step.input)),
        (
            "a step",
            f"{duration(step.total)}, {three_digits(rate)} examples a second; {step.limit} binds",
        ),
        ("the phase", duration(planned.phase.steps * step.total)),
    ]


def points(found: Sequence[Planned], cluster: Cluster) -> tuple[list[Point], Point]:
    """The run on 1, 2, 4, ... devices up to one example each, and on the plan's own."""
    phases = [(planned.work, planned.assumed) for planned in found]
    most = min(planned.phase.cut.global_batch for planned in found)
    (own,) = plan_time.curve(phases, cluster, [cluster.devices])
    return plan_time.curve(phases, cluster, plan_time.doublings(most)), own


def scaling_rows(found: Sequence[Planned], cluster: Cluster) -> Rows:
    """The whole run, half and twice the devices, and where more stop paying."""
    curve, own = points(found, cluster)
    last = plan_time.last_that_pays(curve)
    pays = "never, up to one example a device"
    if last is not None:
        pays = f"from {last.devices:,} on, where the run takes {duration(last.seconds)}"
    phases = [(planned.work, planned.assumed) for planned in found]
    others = [count for count in (cluster.devices // 2, 2 * cluster.devices) if count]
    rows = [
        (f"on {point.devices:,} devices", duration(point.seconds))
        for point in plan_time.curve(phases, cluster, others)
    ]
    saving = f"twice as many save less than {plan_time.LEAST_SAVING:.0%}"
    return [(f"on {own.devices:,} devices", duration(own.seconds)), *rows, (saving, pays)]


def assumptions(found: Sequence[Planned], cluster: Cluster) -> list[str]:
    """What the numbers stand on, a sentence each."""
    device, optimizer = cluster.device, found[0].work.optimizer
    speeds = [planned.assumed.examples_per_second for planned in found]
    compute = (
        f"compute: {found[0].assumed.utilisation:g} of the {device.peak_flops / 1e12:.4g} TFLOP/s "
        f"in {device.precision} of a {device.title}"
    )
    if speeds[0] is not None:
        measured = " and ".join(f"{speed:.4g}" for speed in speeds if speed is not None)
        compute = f"compute: {measured} examples a second of one device, as measured"
    return [
        f"rate, warmup and constant phase: scaled from {found[0].start.source}; an assumption "
        "away from its batches",
        compute,
        f"all-reduce: a ring in float32, once a step, at {cluster.ring_bandwidth / 1e9:.4g} GB/s "
        f"and {found[0].assumed.hop_seconds * 1e6:g} microseconds a turn",
        f"update: {plan_time.UPDATE_BYTES[optimizer]} bytes a weight for {optimizer.upper()}, at "
        f"{device.memory_bandwidth / 1e9:,.4g} GB/s of memory",
        f"input: {three_digits(found[0].assumed.input_tokens_per_second)} tokens a second of each "
        "worker",
        "overlap: input with everything, nothing else",
        "left out: start, compilation, checkpoints, evaluation, waiting for slow machines",
        f"source of the device's numbers: {device.source}",
    ]


def title(found: Sequence[Planned], cluster: Cluster) -> str:
    """What the plan is for, in a line."""
    lengths = ", then ".join(str(planned.phase.seq_length) for planned in found)
    batches = ", then ".join(f"{planned.phase.cut.global_batch:,}" for planned in found)
    return (
        f"{found[0].work.trained / 1e6:.0f} million weights, rows of {lengths} tokens at batch "
        f"{batches}, {cluster.devices:,} x {cluster.device.title}"
    )


def sections(found: Sequence[Planned], cluster: Cluster) -> list[str]:
    """The tables, in the order in which they are printed."""
    tables = [title(found, cluster)]
    for number, planned in enumerate(found, start=1):
        name = f"Phase {number}: rows of {planned.phase.seq_length} tokens"
        rows = [*schedule_rows(planned), *memory_rows(planned, cluster), *time_rows(planned)]
        tables.append(doctor_report.table(name, rows))
    tables.append(doctor_report.table("The whole run, estimated", scaling_rows(found, cluster)))
    lines = [f"  - {line}" for line in assumptions(found, cluster)]
    return [*tables, "\n".join(["Assumed", *lines])]


def command(names: Sequence[str], shards: str) -> str:
    """The command that runs a plan.

    Args:
        names: its files.
        shards: the folder of the examples, "" where the plan names none.
    """
    if len(names) == 1:
        line = f"python -m official_bert.train --config_file={names[0]} --model_dir=RUN"
        data = ",".join(
            f"task.{part}.input_path=SHARDS" for part in ("train_data", "validation_data")
        )
        return line if shards else f"{line} --params_override={data}"
    line = f"python -m official_bert.pretrain --phase1={names[0]} --phase2={names[1]}"
    return f"{line} --model_dir=RUN" if shards else f"{line} --input_path=SHARDS --model_dir=RUN"


def head(planned: Planned, cluster: Cluster, *, flags: str, run: str) -> list[str]:
    """The comment of a recipe's file: command, cost, result, whether it was ever run.

    Args:
        planned: the phase.
        cluster: the devices.
        flags: those that the plan was made with.
        run: the command that runs it.
    """
    phase = planned.phase
    seconds = phase.steps * planned.step.total
    facts = [
        f"Planned: python -m official_bert.plan {flags}",
        f"Cost:    {phase.examples_seen:,} examples; about {duration(seconds)} estimated, "
        f"{planned.step.limit} binds.",
        f"Data:    {phase.shards:,} shards, or another multiple of {phase.cut.workers:,} workers.",
        "Result:  none yet.",
        "Run:     never; planned.",
    ]
    wrapped = [
        textwrap.fill(
            fact, _WIDTH, subsequent_indent=" " * 9, break_long_words=False, break_on_hyphens=False
        )
        for fact in facts
    ]
    stands_on = [
        textwrap.fill(f"- {line}", _WIDTH, subsequent_indent="  ")
        for line in assumptions([planned], cluster)
    ]
    ways = f"Command: {run}".replace(" --", " \\\n           --").split("\n")
    words = [title([planned], cluster), "", *ways, *wrapped, "", "Assumed:", *stands_on]
    return "\n".join(words).split("\n")
