"""A run's time against the number of devices, drawn."""

from collections.abc import Sequence

from official_bert import charts, html_page, plan_time
from official_bert.plan_time import Point

_HOUR = 3600.0


def draw(points: Sequence[Point], planned: Point, title: str) -> bytes:
    """The chart as PNG: the run and its parts, both axes logarithmic.

    Args:
        points: of 1, 2, 4, ... devices.
        planned: the plan's own number of devices, marked.
        title: what is drawn.
    """
    figure, axes = charts.canvas()
    devices = [point.devices for point in points]
    hours = [point.seconds / _HOUR for point in points]
    axes.plot(devices, hours, "k-", linewidth=2, label="the run")
    ideal = [hours[0] / count for count in devices]
    axes.plot(devices, ideal, "k:", linewidth=0.8, label="if all went with the devices")
    parts = [point.parts.parts for point in points]
    for number, name in enumerate(parts[0]):
        style = {"color": f"C{number}", "linewidth": 1, "linestyle": "--"}
        axes.plot(devices, [part[name] / _HOUR for part in parts], label=name, **style)
    axes.plot([planned.devices], [planned.seconds / _HOUR], "ko", label="the plan")
    last = plan_time.last_that_pays(points)
    if last is not None:
        words = f"twice {last.devices:,} saves less than {plan_time.LEAST_SAVING:.0%}"
        axes.axvline(last.devices, color="grey", linewidth=0.8, linestyle="-.", label=words)
    axes.set_xscale("log", base=2)
    axes.set_xticks(devices[::2], [f"{count:,}" for count in devices[::2]])
    axes.set_yscale("log")
    # An all-reduce of nothing, and an input that nobody waits for, would stretch the axis.
    axes.set_ylim(bottom=min(hours) / 30, top=2 * max(hours))
    axes.set_xlabel("devices")
    axes.set_ylabel("hours")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, ncols=2)
    return html_page.png(figure)
