"""Published runs of BERT-Large, and what the formulas of `plan_time` say of them.

One set of assumptions, the defaults, for all; what differs from run to run is what was published
of it. The micro-batches of the two papers are not, and assumed to be the share of a device.
"""

import dataclasses

from official_bert import (
    configuration,
    device_table,
    estimates,
    experiments,
    plan_steps,
    plan_time,
)
from tfrecords import schema

_MODEL = "bert_large_phase1.yaml"
_LANS, _LAMB = plan_steps.RECIPES["lans"], plan_steps.RECIPES["lamb"]
_NVIDIA = (
    "NVIDIA DeepLearningExamples, TensorFlow2/LanguageModeling/BERT: README.md for batches, "
    "time and steady rate, run.sub for steps"
)
_NVIDIA_STEPS = (7038, 1564)
_ASSUMED = "micro-batches assumed, the whole share of a device"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What was published of a run.

    Attributes:
        name: who and on what.
        minutes: of both phases.
        device: the row of the table.
        devices: how many.
        batches: global batch of each phase.
        micro_batches: examples of a pass of a device, of each phase.
        steps: of each phase.
        source: where.
        optimizer: of the run.
        remarks: what of the row is not from there as it stands.
        devices_per_worker: where it differs from the row's.
        network_bandwidth: of a worker, where it differs from the row's.
        steady_rates: examples a second in each phase, where the source has them: without start,
            compilation and checkpoints.
    """

    name: str
    minutes: float
    device: str
    devices: int
    batches: tuple[int, int]
    micro_batches: tuple[int, int]
    steps: tuple[int, int]
    source: str
    optimizer: str
    remarks: tuple[str, ...] = ()
    devices_per_worker: int | None = None
    network_bandwidth: float | None = None
    steady_rates: tuple[float, float] | None = None

    @property
    def steady_minutes(self) -> float | None:
        """The run's examples at its own steady rates."""
        if self.steady_rates is None:
            return None
        phases = zip(self.steps, self.batches, self.steady_rates, strict=True)
        return sum(steps * batch / rate for steps, batch, rate in phases) / 60


SEQ_LENGTHS = (128, 512)
RUNS = (
    Run(
        name="LANS paper, 1536 V100",
        minutes=53.6,
        device="v100",
        devices=1536,
        batches=(_LANS.phase1.global_batch_size, _LANS.phase2.global_batch_size),
        micro_batches=(64, 22),
        steps=(_LANS.phase1.total_steps, _LANS.phase2.total_steps),
        source="arXiv 2006.13484: 192 p3dn.24xlarge",
        optimizer="lans",
        remarks=(_ASSUMED,),
    ),
    Run(
        name="LAMB paper, 1024 TPU v3",
        minutes=76.19,
        device="tpu-v3",
        devices=2048,
        batches=(_LAMB.phase1.global_batch_size, _LAMB.phase2.global_batch_size),
        micro_batches=(32, 16),
        steps=(_LAMB.phase1.total_steps, _LAMB.phase2.total_steps),
        source="arXiv 1904.00962, Table 1: 1024 chips of two cores",
        optimizer="lamb",
        remarks=(
            _ASSUMED,
            "the paper gives 8,599 steps in all and not how the phases share them; the split, "
            "which has two more, is that of NVIDIA DeepLearningExamples, "
            "PyTorch/LanguageModeling/BERT",
        ),
    ),
    Run(
        name="NVIDIA, 32 x 8 A100",
        minutes=2.02 * 60,
        device="a100",
        devices=256,
        batches=(312 * 256, 40 * 3 * 256),
        micro_batches=(312, 40),
        steps=_NVIDIA_STEPS,
        source=_NVIDIA,
        optimizer="lamb",
        steady_rates=(110_280.73, 22_506.23),
    ),
    Run(
        name="NVIDIA, 32 x 16 V100",
        minutes=2.67 * 60,
        device="v100",
        devices=512,
        batches=(56 * 2 * 512, 10 * 6 * 512),
        micro_batches=(56, 10),
        steps=_NVIDIA_STEPS,
        source=f"{_NVIDIA}; DGX-2H datasheet: 16 GPUs, 8 x 100 Gb/s",
        optimizer="lamb",
        remarks=(
            "its rate in phase 1 is published for micro-batches of 60, a batch of 61,440, alone; "
            "the run has 56, a batch of 57,344",
        ),
        devices_per_worker=16,
        network_bandwidth=8 * 100e9 / 8,
        steady_rates=(84_223.16, 18_786.93),
    ),
)


def predicted(run: Run, assumed: plan_time.Assumptions) -> list[tuple[int, plan_time.StepTime]]:
    """The steps of each phase of a run and the time of one, by the formulas."""
    device = device_table.find(run.device)
    cluster = plan_time.Cluster(
        device=device,
        devices=run.devices,
        devices_per_worker=run.devices_per_worker or device.devices_per_worker,
        network_bandwidth=run.network_bandwidth or device.network_bandwidth,
    )
    return [(work.steps, plan_time.step_time(work, cluster, assumed)) for work in works(run)]


def works(run: Run) -> list[plan_time.Work]:
    """What BERT-Large computes in each phase."""
    experiments.register()
    model = configuration.load(experiments.PRETRAINING, [_MODEL]).task.model
    return [
        plan_time.Work(
            flops_per_example=plan_time.flops_per_example(
                model,
                seq_length,
                schema.default_max_predictions(seq_length, estimates.MASKED_LM_PROB),
            ),
            trained=estimates.parameters(model).trained,
            seq_length=seq_length,
            global_batch=run.batches[phase],
            micro_batch=run.micro_batches[phase],
            steps=run.steps[phase],
            optimizer=run.optimizer,
        )
        for phase, seq_length in enumerate(SEQ_LENGTHS)
    ]


def runs_markdown(assumed: plan_time.Assumptions) -> str:
    """The table of runs, published and predicted side by side, as Markdown."""
    lines = [
        "| run | batches | micro-batches | steps | published | at its own steady rate | predicted "
        "| error | compute | update | all-reduce | limit |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    errors = []
    for run in RUNS:
        steps = predicted(run, assumed)
        parts, minutes = plan_time.total_parts(steps), plan_time.run_seconds(steps) / 60
        errors.append(minutes / run.minutes - 1)
        steady = "unknown" if run.steady_minutes is None else f"{run.steady_minutes:.1f} min"
        limits = dict.fromkeys(step.limit for _, step in steps)
        cells = [
            *(run.name, _pair(run.batches), _pair(run.micro_batches), _pair(run.steps)),
            *(f"{run.minutes:.1f} min", steady, f"{minutes:.1f} min", f"{errors[-1]:+.0%}"),
            *(f"{part / 60:.1f} min" for part in (parts.compute, parts.update, parts.all_reduce)),
            ", then ".join(limits),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    sources = [f"- {run.name}: {'; '.join((run.source, *run.remarks))}." for run in RUNS]
    moved = ", ".join(
        f"{count} for {name.upper()}"
        for name, count in plan_time.UPDATE_BYTES.items()
        if name in {run.optimizer for run in RUNS}
    )
    mean = sum(map(abs, errors)) / len(errors)
    summary = (
        f"Utilisation {assumed.utilisation:g} of the peak for every row; errors from "
        f"{min(errors):+.0%} to {max(errors):+.0%}, {mean:.0%} in the mean. Bytes of a weight's "
        f"update: {moved}."
    )
    return "\n".join([*lines, "", summary, "", *sources])


def scaling_markdown(assumed: plan_time.Assumptions) -> str:
    """For the paper's two phases on each device: how many devices pay, as Markdown."""
    paper = RUNS[0]
    phases = [(work, assumed) for work in works(paper)]
    lines = [
        "| `--device` | one device | twice as many save less than a quarter from | the run there | "
        "on twice as many |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for device in device_table.DEVICES.values():
        cluster = plan_time.Cluster(
            device=device,
            devices=1,
            devices_per_worker=device.devices_per_worker,
            network_bandwidth=device.network_bandwidth,
        )
        points = plan_time.curve(phases, cluster, plan_time.doublings(min(paper.batches)))
        last = plan_time.last_that_pays(points)
        cells = ["none", "", ""]
        if last is not None:
            after = points[points.index(last) + 1]
            cells = [
                f"{last.devices:,}",
                plan_time.duration(last.seconds),
                plan_time.duration(after.seconds),
            ]
        first = plan_time.duration(points[0].seconds)
        lines.append(f"| `{device.name}` | {first} | {' | '.join(cells)} |")
    return "\n".join(lines)


def markdown(assumed: plan_time.Assumptions) -> str:
    """All that docs/planning.md holds of numbers."""
    return "\n\n".join(
        [
            "### Published runs",
            runs_markdown(assumed),
            "### How many devices pay",
            scaling_markdown(assumed),
            "### Devices",
            device_table.markdown(),
        ]
    )


def _pair(numbers: tuple[int, int]) -> str:
    return " / ".join(f"{number:,}" for number in numbers)
