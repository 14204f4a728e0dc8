"""Several training runs side by side: their figures, the settings that differ, their curves."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from official_bert import charts, html_page, metrics_log, noise_scale, run_summary
from tfrecords.errors import UserError

UNKNOWN = "not known"
ABSENT = "(absent)"
ACCURACY = "masked_lm_accuracy"
# The noise scale is shown over a twentieth of a run at a time.
_WINDOWS = 20
_SHORTEST_WINDOW = 10

Runs = Mapping[str, run_summary.Run]


def load(model_dirs: Sequence[str]) -> Runs:
    """The runs by their names, in the order they were given.

    Raises:
      UserError: none is given, one is given twice, or one is no run that has trained a step.
    """
    folders = [folder.rstrip("/") or folder for folder in model_dirs]
    if not folders:
        raise UserError("no MODEL_DIR is given; expected python -m official_bert.report MODEL_DIR")
    if len(set(folders)) < len(folders):
        twice = next(folder for folder in folders if folders.count(folder) > 1)
        raise UserError(f"{twice} is given twice; name each run once")
    runs = [run_summary.Run.load(folder) for folder in folders]
    for run in runs:
        if not run.steps:
            raise UserError(
                f"{run.model_dir} holds no {metrics_log.METRICS} with a step in it; expected a "
                "run that has trained: leave it out, or wait until it has"
            )
    return dict(zip(names(folders), runs, strict=True))


def names(folders: Sequence[str]) -> list[str]:
    """The shortest ends of the paths that tell the folders apart.

    Example:
      >>> names(["a/lans/phase1", "a/lamb/phase1"])
      ['lans/phase1', 'lamb/phase1']
    """
    parts = [folder.split("/") for folder in folders]
    for length in range(1, max(map(len, parts))):
        found = ["/".join(part[-length:]) for part in parts]
        if len(set(found)) == len(found):
            return found
    return list(folders)


def _number(value: float | None, form: str = ",") -> str:
    return UNKNOWN if value is None else format(value, form)


def _steps(run: run_summary.Run) -> str:
    return f"{run.last_step:,} of {_number(run.get('trainer.train_steps'))}"


def _noise_scale(run: run_summary.Run) -> str:
    found = run.noise_scale
    return UNKNOWN if found is None else f"{found.rounded} (last {found.steps:,} steps)"


# What the table of figures shows of a run, by the name of the row.
_FIGURES: Mapping[str, Callable[[run_summary.Run], str]] = {
    "steps": _steps,
    "batch, examples": lambda run: _number(run.batch_size),
    "optimizer": lambda run: run.optimizer or UNKNOWN,
    "peak learning rate": lambda run: _number(run.peak_learning_rate, ".4g"),
    "training loss, mean of the last twentieth": lambda run: _number(run.last_loss, ".4g"),
    "skipped steps": lambda run: _number(run.skipped_steps),
    "examples a second, median": lambda run: _number(run.examples_per_second, ",.1f"),
    "gradient noise scale, examples": _noise_scale,
    "last evaluation, at step": lambda run: _number(run.last_evaluation.get("step")),
}


def summary(runs: Runs, baselines: Mapping[str, float | None]) -> html_page.Table:
    """The figures of the runs, a column each.

    Args:
      runs: the runs by name.
      baselines: accuracy of the most frequent masked token, by name; empty: no such row.
    """
    rows = [[name, *map(show, runs.values())] for name, show in _FIGURES.items()]
    # A dictionary keeps the order that a set would lose.
    evaluated = dict.fromkeys(name for run in runs.values() for name in run.last_evaluation)
    for name in evaluated:
        if name != "step":
            values = [_number(run.last_evaluation.get(name), ".4g") for run in runs.values()]
            rows.append([f"last evaluation, {name}", *values])
    if baselines:
        values = [_number(baselines[name], ".4g") for name in runs]
        rows.append([f"{ACCURACY} of the most frequent token", *values])
    return html_page.Table(rows=rows, header=["", *runs], caption="The runs")


def differences(runs: Runs) -> html_page.Table:
    """The fields of `params.yaml` that are not the same in all runs.

    A `*` stands for the type that was chosen: `optimizer.*.beta_1` is that of `optimizer.lans` in
    one run and of `optimizer.lamb` in another.
    """
    settings = [run_summary.flattened(_without_types(run.params)) for run in runs.values()]
    rows = []
    for field in sorted({field for values in settings for field in values}):
        values = [found.get(field, ABSENT) for found in settings]
        if any(value != values[0] for value in values):
            rows.append([field, *map(run_summary.shown, values)])
    return html_page.Table(rows=rows, header=["field", *runs], caption="Settings that differ")


def _without_types(values: Any) -> Any:
    if not isinstance(values, Mapping):
        return values
    kind = values.get("type")
    is_choice = isinstance(kind, str) and isinstance(values.get(kind), Mapping)
    return {
        "*" if is_choice and key == kind else key: _without_types(value)
        for key, value in values.items()
    }


def changes(runs: Runs) -> html_page.Table:
    """What was changed while the runs went on."""
    rows = [
        [name, f"{row['step']:,}", row["field"], *map(run_summary.shown, (row["was"], row["now"]))]
        for name, run in runs.items()
        for row in run.changes
    ]
    header = ["run", "at step", "field", "was", "now"]
    return html_page.Table(rows=rows, header=header, caption="Changed on the way")


def tables(runs: Runs, baselines: Mapping[str, float | None]) -> list[html_page.Table]:
    """All tables that have something to say."""
    found = [summary(runs, baselines), differences(runs), changes(runs)]
    return [table for table in found if table.rows]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Chart:
    """One chart over all runs."""

    caption: str
    label: str
    quantity: str
    log: bool = False
    smooth: bool = True


_CHARTS = (
    _Chart(caption="Training loss", label="loss in nats", quantity="loss"),
    _Chart(
        caption="Masked-LM accuracy: training batches, and evaluations as dots",
        label="accuracy",
        quantity=ACCURACY,
    ),
    _Chart(caption="Learning rate", label="learning rate", quantity="learning_rate", smooth=False),
    _Chart(
        caption="Norm of the global gradient",
        label="gradient norm",
        quantity=noise_scale.BIG,
        log=True,
    ),
    _Chart(
        caption="Trust ratio, median over the blocks",
        label="trust ratio",
        quantity="trust_ratio_median",
        log=True,
    ),
)


def figures(runs: Runs, baselines: Mapping[str, float | None]) -> dict[str, Figure]:
    """The charts for which any run has values, by caption.

    Args:
      runs: the runs by name.
      baselines: as in `summary`.
    """
    found = {}
    for chart in _CHARTS:
        curves = [
            charts.Curve(
                name=name,
                points=run.curve(chart.quantity),
                marks=run.evaluation_curve(chart.quantity),
                level=baselines.get(name) if chart.quantity == ACCURACY else None,
            )
            for name, run in runs.items()
        ]
        if any(curve.points for curve in curves):
            found[chart.caption] = charts.overlay(
                curves, chart.label, log=chart.log, smooth=chart.smooth
            )
    curves = [
        charts.Curve(name=name, points=_noise_scales(run), level=run.batch_size)
        for name, run in runs.items()
    ]
    if any(curve.points for curve in curves):
        caption = "Gradient noise scale over windows of steps, and the batch dotted"
        found[caption] = charts.overlay(curves, "examples", log=True, smooth=False)
    return found


def _noise_scales(run: run_summary.Run) -> list[tuple[int, float]]:
    if not run.batch_size:
        return []
    window = max(_SHORTEST_WINDOW, len(run.steps) // _WINDOWS)
    found = noise_scale.over_run(run.steps, run.batch_size, run.pieces, window)
    return [(step, scale.noise_scale) for step, scale in found]
