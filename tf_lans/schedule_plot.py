"""Learning-rate schedules drawn and measured: Figure 1 of the paper, from our own schedule."""

from __future__ import annotations

import importlib
import pathlib
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from tf_lans import hyperparameters, schedules

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Schedule = Callable[[Any], Any]

# Of their own: a program that draws a schedule may have flags of the same names.
_FLAGS = flags.FlagValues()
_PEAK = flags.DEFINE_float(
    "peak_learning_rate", 0.007, "The rate of the constant phase.", flag_values=_FLAGS
)
_TOTAL = flags.DEFINE_integer("total_steps", 3519, "Updates of the run.", flag_values=_FLAGS)
_WARMUP = flags.DEFINE_integer("warmup_steps", 1500, "Updates of the warmup.", flag_values=_FLAGS)
_CONSTANT = flags.DEFINE_integer("constant_steps", 963, "Updates at the peak.", flag_values=_FLAGS)
_DECAY = flags.DEFINE_enum(
    "decay", "linear", schedules.DECAYS, "How the rate falls.", flag_values=_FLAGS
)
_FINAL = flags.DEFINE_float("final_learning_rate", 0.0, "Where it falls to.", flag_values=_FLAGS)
_IDEAL = flags.DEFINE_float(
    "ideal_peak", 0.01, "A peak too high to train with, whose area is the measure; 0 for none.",
    flag_values=_FLAGS,
)  # fmt: skip
_PLOT = flags.DEFINE_string(
    "plot", None, "The picture to write, such as schedule.png.", flag_values=_FLAGS
)


def rates(schedule: Schedule, total_steps: int) -> np.ndarray:
    """The learning rate of each update of a run: float64, shape [total_steps].

    Args:
        schedule: a function from the updates made, 0 first, to a rate: any Keras schedule.
        total_steps: the updates of the run.
    """
    phases = getattr(schedule, "phases", None)
    if isinstance(phases, schedules.Phases):
        return schedules.learning_rate(np, np.arange(1, total_steps + 1, dtype=np.float64), phases)
    return np.array([float(schedule(step)) for step in range(total_steps)])


def plot_schedule(
    schedules: Schedule | Mapping[str, Schedule], total_steps: int | None = None
) -> Figure:
    """Draws schedules and tells their areas, as Figure 1 of the paper does.

    The area of a schedule is the sum of its rates eta_t over t = 1 ... T. Each further schedule's
    legend says how much smaller its area is than the first's.

    Args:
        schedules: one schedule, or several by the names that the legend shall show.
        total_steps: T; by default that of the first schedule.

    Returns:
        A matplotlib figure: `figure.savefig("schedule.png")`.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError: `total_steps` is not given and the first schedule has none.
        ValueError: there is no schedule, or `total_steps` is below 1.

    Example:
        >>> figure = tf_lans.plot_schedule(
        ...     {
        ...         "eq. (8), 0.01": tf_lans.WarmupConstantDecay(0.01, 3519, 1500),
        ...         "eq. (9), 0.007": tf_lans.WarmupConstantDecay(0.007, 3519, 1500, 963),
        ...     }
        ... )
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['eq. (8), 0.01: area 17.60', 'eq. (9), 0.007: area 15.69, 1.91 less']

    Reference:
        arXiv 2006.13484, Figure 1 and equations (8) and (9).
    """
    named = dict(schedules) if isinstance(schedules, Mapping) else {"schedule": schedules}
    if not named:
        raise ValueError("plot_schedule() got no schedule: expected at least one")
    if total_steps is None:
        first = next(iter(named.values()))
        total_steps = getattr(first, "total_steps", None)
        if total_steps is None:
            raise TypeError(
                f"plot_schedule() got a {type(first).__name__}, which has no total_steps: "
                "give total_steps="
            )
    hyperparameters.integer("total_steps", total_steps, minimum=1)
    figure = importlib.import_module("matplotlib.figure").Figure(
        figsize=(7, 4), layout="constrained"
    )
    axes = figure.subplots()
    steps = np.arange(1, total_steps + 1)
    measure = None
    for name, schedule in named.items():
        values = rates(schedule, total_steps)
        area = float(np.sum(values))
        label = f"{name}: area {area:.2f}"
        if measure is None:
            measure = area
        else:
            difference = measure - area
            label += f", {abs(difference):.2f} {'less' if difference >= 0 else 'more'}"
        axes.plot(steps, values, label=label)
    axes.set(xlabel="update", ylabel="learning rate", xlim=(0, total_steps), ylim=(0, None))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


class _Pure:
    """A schedule without Keras, for the command."""

    def __init__(self, **phases: Any) -> None:
        self.phases = schedules.Phases(**phases)
        self.total_steps = self.phases.total_steps


def _named_schedules() -> dict[str, Any]:
    chosen = {
        "total_steps": _TOTAL.value,
        "warmup_steps": _WARMUP.value,
        "decay": _DECAY.value,
        "final_learning_rate": _FINAL.value,
    }
    found = {}
    if _IDEAL.value:
        found[f"eq. (8), peak {_IDEAL.value:g}"] = _Pure(peak_learning_rate=_IDEAL.value, **chosen)
    peak = _PEAK.value
    found[f"eq. (8), peak {peak:g}"] = _Pure(peak_learning_rate=peak, **chosen)
    if _CONSTANT.value:
        found[f"eq. (9), peak {peak:g}"] = _Pure(
            peak_learning_rate=peak, constant_steps=_CONSTANT.value, **chosen
        )
    return found


def _write(figure: Figure, path: pathlib.Path) -> None:
    if not path.parent.is_dir():
        raise ValueError(f"--plot: there is no folder {path.parent}: make it first")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".plot-") as folder:
        temporary = pathlib.Path(folder) / path.name
        figure.savefig(temporary, dpi=150)
        temporary.replace(path)


def run(arguments: Sequence[str] | None = None) -> None:
    """The command `python -m tf_lans.schedules`: prints the areas and draws the schedules.

    Args:
        arguments: those after the command's name; by default this process's.

    Raises:
        SystemExit: the flags describe no schedule, or the picture cannot be written; its message
            is one line.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    if {"--help", "-h", "-help"} & set(given):
        print(f"{__doc__}\n{_FLAGS.get_help(include_special_flags=False)}")
        return
    try:
        rest = _FLAGS(["schedules", *given])[1:]
        if rest:
            raise ValueError(f"got {rest[0]!r}: expected flags only, see --help")
        figure = plot_schedule(_named_schedules())
        for line in figure.axes[0].get_lines():
            print(line.get_label())
        if _PLOT.value is not None:
            _write(figure, pathlib.Path(_PLOT.value).absolute())
    except (flags.Error, ImportError, OSError, TypeError, ValueError) as error:
        sys.exit(f"error: {error}")
