"""An estimate of a run's wall time: compute, update, all-reduce, input, and which of them binds.

Pure functions of published rates and stated assumptions. A step of the global batch B on n
devices, each with B / n examples in k micro-batches, of a model with P trained weights::

    compute     (B / n) F / (peak u)          F flops of an example, u the utilisation
    update      P (c + 12 k [k > 1]) / memory bandwidth           c bytes by the optimizer
    all-reduce  2 (n - 1) / n 4 P / bandwidth + 2 (n - 1) l       once a step, in float32
    input       B s / (W tokens a second)     W workers, s tokens of a row

    step        max(compute + update + all-reduce, input)

Input overlaps with everything, since batches are read ahead. Nothing else overlaps: the gradient
is complete, and summed over the devices, after the last micro-batch, and updated with after that.

What is assumed:

- u, the model's flops over the peak's: 0.33 unless another is given, the mean of the four that
  arXiv 2204.02311 lists in its Table 3 for other large language models (21.3, 32.5, 30.2 and
  46.2 %, on V100, TPU v3, A100 and TPU v4), for every device and every micro-batch. A rate
  measured on one's own device takes the place of both u and peak.
- AdamW's update reads weight, two moments and gradient and writes all but the last, float32: c is
  28 bytes a weight. A norm must be known before what it scales is written. LAMB reads all four and
  writes the moments, then reads weight and moments again and writes the weight: 40. LANS reads the
  gradient before that, to normalise it, and again with the weight: 48. A gradient that is clipped
  by its norm is read once more, which is left out. Summing micro-batches reads a sum and a gradient
  and writes the sum, 12 bytes.
- The ring uses all the published bandwidth of its narrowest place: of the devices' own links
  within a worker or along a torus, otherwise of the network of a worker, if that is less. Each of
  its 2 (n - 1) turns has a latency l of 5 microseconds; a tree has fewer turns, so that beyond a
  thousand devices or so a ring is not what a library would choose.
- A worker reads and masks 20 million tokens a second, a little less than one core does by
  benchmarks/results/data.json.
- Left out: start, compilation, checkpoints, evaluation, slow machines, waiting for one another.
"""

import dataclasses
import math
from collections.abc import Sequence

from official.nlp.configs import bert

from official_bert.device_table import Device
from tfrecords.errors import UserError

COMPUTE, UPDATE, ALL_REDUCE, INPUT = "compute", "update", "all-reduce", "input"
# A doubling of the devices that saves less of the time than this does not pay.
LEAST_SAVING = 0.25

_FLOAT32 = 4
# Of a weight's update, by passes over it: what each reads, then what it writes.
UPDATE_BYTES = {
    "lans": _FLOAT32 * (len("g") + len("xmvg" + "mv") + len("xmvg" + "x")),
    "lamb": _FLOAT32 * (len("xmvg" + "mv") + len("xmv" + "x")),
    "adamw": _FLOAT32 * len("xmvg" + "xmv"),
}
# A sum reads itself and g, and writes itself.
_SUM_BYTES = 3 * _FLOAT32


def flops_per_example(
    model: bert.PretrainerConfig, seq_length: int, predictions: int, next_sentence: bool = True
) -> int:
    """The floating-point operations of matrix products, forward and backward, for one row.

    With s `seq_length`, M `predictions`, V `vocab_size`, E `embedding_size` (H where it is None),
    H `hidden_size`, I `intermediate_size`, L `num_layers`, and a multiply-add being two::

        layer        2 s (4 H^2 + 2 H I) + 4 s^2 H
        embeddings   2 s E H, where E is not H
        masked LM    2 M (H E + E V)
        head         2 (H D + D C) for inner_dim D and num_classes C, where labels train it

    In a layer the first term is for query, key, value, output and the two dense layers, the second
    for the attention's scores and its weighted sum, s x s products of H numbers each. Padding
    counts as text, since it is computed as text is. The backward pass has two products for each
    of the forward pass, one for the gradient of each factor: 3 times in all. Look-ups, norms,
    softmax, dropout and activations are left out, as is usual for a model's flops.

    Args:
        model: `task.model`, its encoder of type bert or bert_v2.
        seq_length: s.
        predictions: M, masked positions of a row.
        next_sentence: whether labels train the heads.

    Example:
        >>> flops_per_example(large_batch_pretraining().task.model, 128, 20)
        69928989696
    """
    encoder = model.encoder.get()
    hidden, inner = encoder.hidden_size, encoder.intermediate_size
    embedding = hidden if encoder.embedding_size is None else encoder.embedding_size
    layer = 2 * seq_length * (4 * hidden**2 + 2 * hidden * inner) + 4 * seq_length**2 * hidden
    forward = encoder.num_layers * layer
    if embedding != hidden:
        forward += 2 * seq_length * embedding * hidden
    forward += 2 * predictions * (hidden * embedding + embedding * encoder.vocab_size)
    if next_sentence:
        for head in model.cls_heads:
            width = head.inner_dim or hidden
            forward += 2 * (hidden * head.inner_dim + width * head.num_classes)
    return 3 * forward


@dataclasses.dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What no table tells; the module's docstring says why these.

    Attributes:
        utilisation: u, in (0, 1].
        hop_seconds: l, the latency of a turn of the ring.
        input_tokens_per_second: what a worker reads and masks.
        examples_per_second: of one device, measured; None for u times the peak.
    """

    utilisation: float = 0.33
    hop_seconds: float = 5e-6
    input_tokens_per_second: float = 20e6
    examples_per_second: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.utilisation <= 1:
            raise UserError(
                f"--utilisation is {self.utilisation}; expected a share of the peak above 0 and up "
                "to 1, such as 0.33"
            )
        rates = (self.input_tokens_per_second, self.examples_per_second)
        for rate in rates:
            if rate is not None and not (rate > 0 and math.isfinite(rate)):
                raise UserError(f"a measured rate is {rate}; expected a number above 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """Devices, and how they are tied together.

    Attributes:
        device: the row of the table.
        devices: n.
        devices_per_worker: of one machine.
        network_bandwidth: bytes a second that a machine can send; None where the devices' own
            links go on from machine to machine.
    """

    device: Device
    devices: int
    devices_per_worker: int
    network_bandwidth: float | None

    @property
    def workers(self) -> int:
        """Machines, the last of which may have devices to spare."""
        return -(-self.devices // self.devices_per_worker)

    @property
    def ring_bandwidth(self) -> float:
        """Bytes a second through the narrowest place of a ring of all devices."""
        if self.workers == 1 or self.network_bandwidth is None:
            return self.device.link_bandwidth
        return min(self.device.link_bandwidth, self.network_bandwidth)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What a phase computes.

    Attributes:
        flops_per_example: F.
        trained: P, weights with a gradient.
        seq_length: s.
        global_batch: B.
        micro_batch: the most examples of one pass of a device.
        steps: updates.
        optimizer: who updates, a name in `UPDATE_BYTES`.
    """

    flops_per_example: float
    trained: int
    seq_length: int
    global_batch: int
    micro_batch: int
    steps: int
    optimizer: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepTime:
    """The seconds of a step, by part.

    Attributes:
        compute: forward and backward.
        update: the optimizer, and the sum over micro-batches.
        all_reduce: the sum over devices.
        input: reading and masking.
    """

    compute: float
    update: float
    all_reduce: float
    input: float

    @property
    def total(self) -> float:
        """The whole step: the input runs beside the rest."""
        return max(self.compute + self.update + self.all_reduce, self.input)

    @property
    def parts(self) -> dict[str, float]:
        """The seconds of each part, by its name."""
        return {
            COMPUTE: self.compute,
            UPDATE: self.update,
            ALL_REDUCE: self.all_reduce,
            INPUT: self.input,
        }

    @property
    def limit(self) -> str:
        """What binds: the input, where the rest waits for it, otherwise the longest part."""
        parts = self.parts
        if parts.pop(INPUT) > sum(parts.values()):
            return INPUT
        return max(parts, key=lambda name: parts[name])


def all_reduce_seconds(
    num_bytes: float, devices: int, bandwidth: float, hop_seconds: float
) -> float:
    """2 (n - 1) / n bytes / bandwidth + 2 (n - 1) l: a ring scatters the sums and gathers them.

    Args:
        num_bytes: of the gradient.
        devices: n.
        bandwidth: bytes a second, one way.
        hop_seconds: l.

    Example:
        >>> all_reduce_seconds(1e9, 4, 1e10, 0.0)
        0.15
    """
    turns = 2 * (devices - 1)
    return turns / devices * num_bytes / bandwidth + turns * hop_seconds


def step_time(work: Work, cluster: Cluster, assumed: Assumptions) -> StepTime:
    """The seconds of one step, by the module's formulas.

    A batch that the devices do not divide counts as if they did: each has B / n examples, in
    ceil(B / (n micro_batch)) passes.
    """
    share = work.global_batch / cluster.devices
    passes = max(1, math.ceil(share / work.micro_batch))
    rate = assumed.examples_per_second
    if rate is None:
        rate = assumed.utilisation * cluster.device.peak_flops / work.flops_per_example
    sums = _SUM_BYTES * passes if passes > 1 else 0
    moved = work.trained * (UPDATE_BYTES[work.optimizer] + sums)
    return StepTime(
        compute=share / rate,
        update=moved / cluster.device.memory_bandwidth,
        all_reduce=all_reduce_seconds(
            _FLOAT32 * work.trained, cluster.devices, cluster.ring_bandwidth, assumed.hop_seconds
        ),
        input=work.global_batch
        * work.seq_length
        / (cluster.workers * assumed.input_tokens_per_second),
    )


def total_parts(steps: Sequence[tuple[int, StepTime]]) -> StepTime:
    """The seconds of several phases, by part; the sum of their `total` is not its `total`.

    Args:
        steps: of each phase, its steps and the time of one.
    """
    return StepTime(
        compute=sum(count * step.compute for count, step in steps),
        update=sum(count * step.update for count, step in steps),
        all_reduce=sum(count * step.all_reduce for count, step in steps),
        input=sum(count * step.input for count, step in steps),
    )


def run_seconds(steps: Sequence[tuple[int, StepTime]]) -> float:
    """The seconds of several phases, one after the other."""
    return sum(count * step.total for count, step in steps)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """The run on another number of devices.

    Attributes:
        devices: n.
        seconds: of the whole run.
        parts: the seconds of its parts.
    """

    devices: int
    seconds: float
    parts: StepTime


def curve(
    phases: Sequence[tuple[Work, Assumptions]], cluster: Cluster, devices: Sequence[int]
) -> list[Point]:
    """The run's time against the number of devices, all else the same.

    Args:
        phases: the work of each, and what is assumed of it.
        cluster: its number of devices is left aside.
        devices: the numbers to look at.
    """
    points = []
    for count in devices:
        there = dataclasses.replace(cluster, devices=count)
        steps = [(work.steps, step_time(work, there, assumed)) for work, assumed in phases]
        points.append(Point(devices=count, seconds=run_seconds(steps), parts=total_parts(steps)))
    return points


def doublings(most: int) -> list[int]:
    """1, 2, 4, ... up to `most`.

    Example:
        >>> doublings(10)
        [1, 2, 4, 8]
    """
    return [2**power for power in range(most.bit_length())]


def last_that_pays(points: Sequence[Point]) -> Point | None:
    """Where more devices stop paying: from there on every doubling saves less than a quarter.

    One that saves little may be followed by some that save more, as behind the first machine, from
    which on the network binds.

    Args:
        points: of 1, 2, 4, ... devices.

    Returns:
        None where the last doubling pays.
    """
    last = None
    for point, doubled in zip(points[-2::-1], points[:0:-1], strict=True):
        if doubled.seconds <= (1 - LEAST_SAVING) * point.seconds:
            break
        last = point
    return last


def duration(seconds: float) -> str:
    """A time in the unit that suits it.

    Example:
        >>> duration(0.0125), duration(1.26), duration(3216), duration(9612), duration(400_000)
        ('12.5 ms', '1.26 s', '53.6 min', '2.67 h', '4.63 days')
    """
    units = (("days", 86400, 2), ("h", 3600, 1.5), ("min", 60, 2), ("s", 1, 1))
    for unit, size, least in units:
        if seconds >= least * size:
            return f"{three_digits(seconds / size)} {unit}"
    return f"{three_digits(1000 * seconds)} ms"


def three_digits(value: float) -> str:
    """Three digits, or the whole number.

    Example:
        >>> three_digits(1.2345), three_digits(123.45), three_digits(123456)
        ('1.23', '123', '123,456')
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
