"""The sections of `docs/benchmarks.md`: which results each shows, and how to read them."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

from benchmarks import (
    data_rates_report,
    exactness_report,
    large_batch_queue,
    page_tables,
    provenance,
    transfer_report,
)
from tfrecords.errors import UserError

LINES = ".jsonl"
# Results that other documents show, and that are no benchmarks.
ELSEWHERE = ("version_matrix.json",)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """One benchmark.

    Attributes:
        pattern: of the names of its results.
        title: its heading.
        anchor: where `benchmarks/README.md` says how it is measured.
        reading: how to read it, without figures.
        blocks: its results to Markdown.
        says_where: whether those blocks say themselves where and how they were measured.
    """

    pattern: str
    title: str
    anchor: str
    reading: str
    blocks: Callable[[Any], list[str]]
    says_where: bool = False


def _transfer(figures: Any) -> list[str]:
    return [transfer_report.table(figures).strip()]


def _rates(figures: Any) -> list[str]:
    return [data_rates_report.markdown(figures)]


def _exactness(figures: Any) -> list[str]:
    processors = provenance.processors(exactness_report.headings(figures))
    commands = exactness_report.commands(figures)
    return [
        "\n".join((f"On {processors}:\n\n```sh", *commands, "```")),
        exactness_report.table(figures).strip(),
    ]


SECTIONS = (
    Section(
        pattern="exactness.json",
        title="What does not depend on the hardware",
        anchor="what-does-not-depend-on-the-hardware",
        reading="Ours beside stock Model Garden and Keras, in figures that are no speeds: which "
        "examples an epoch draws, how far float32 is from float64, how far a cut batch is from a "
        "whole one, and what a kill leaves.",
        blocks=_exactness,
        says_where=True,
    ),
    Section(
        pattern="update_step_gpu*.json",
        title="The update step on a GPU",
        anchor="the-update-step-on-a-gpu",
        reading="Below 1 is faster than optax's LAMB in the same process. The floor is what moving "
        "weights, gradients and moments once takes at the bandwidth of a copy.",
        blocks=page_tables.update_step_gpu,
    ),
    Section(
        pattern="update_step_*.json",
        title="The update step on a CPU",
        anchor="the-update-step-on-a-cpu",
        reading="Below 1 is faster than our LANS of the same group: what memory does not hold at "
        "once is measured in groups, with LANS in each. A ratio is taken within each round, where "
        "the two turns lay close to each other; the spread is over rounds. The floor is what "
        "moving weights, gradients and moments once takes at the machine's bandwidth; the state is "
        "their size. An optimizer that needs no norms has less to do. The chart has the quartiles "
        "of the rounds.",
        blocks=page_tables.update_step,
    ),
    Section(
        pattern="train_step.json",
        title="The training step on a CPU",
        anchor="the-training-step-on-a-cpu",
        reading="Above 1 is faster. A ratio is taken within each round, where the two turns lay "
        "close to each other; the spread is over rounds. The rows with XLA, and those without the "
        "word deterministic, show what each of the two changes. " + page_tables.VERDICTS,
        blocks=page_tables.train_step,
    ),
    Section(
        pattern="train_step_micro_batches.json",
        title="The training step with micro-batches",
        anchor="the-training-step-on-a-cpu",
        reading="Above 1 is faster than a step of one micro-batch, example by example: the update "
        "is paid once for all of them. Memory should not grow with their number. "
        + page_tables.VERDICTS,
        blocks=page_tables.train_step,
    ),
    Section(
        pattern="data.json",
        title="Text to pretraining data, and data to batches",
        anchor="text-to-pretraining-data-and-data-to-batches",
        reading="Above 1 is faster than Model Garden's script, or its loader. Rates are without a "
        "command's start, as it was in the same round. A ratio is taken within each round that "
        "both took part in, the median of those is shown, and the spread beside it. A start that "
        "takes about half of a run, as Model Garden's does, makes it wide. What a contender makes "
        "is not the same work everywhere: the second column says what it is.",
        blocks=page_tables.data,
    ),
    Section(
        pattern="data_rates.json",
        title="What lies in the rows",
        anchor="what-lies-in-the-rows",
        reading="The same text through each builder. [The document of the data](data.md) says "
        "where ours differ on purpose.",
        blocks=_rates,
    ),
    Section(
        pattern="import_time.json",
        title="Importing",
        anchor="importing",
        reading="Medians over those of importing TensorFlow alone, each import in a new process, "
        "in an environment that holds the wheel and what it needs.",
        blocks=page_tables.import_time,
    ),
    Section(
        pattern="transfer.json",
        title="Does pretraining pay?",
        anchor="does-pretraining-pay",
        reading="The same finetuning from pretrained and from random weights, by seed. The "
        "intervals are over finetuning seeds; there is one pretraining run, whose own spread is "
        "not in them. An interval without 0 is a difference that finetuning seeds alone do not "
        "explain.",
        blocks=_transfer,
        says_where=True,
    ),
    Section(
        pattern="large_batch.jsonl",
        title="The large-batch study",
        anchor="the-large-batch-study",
        reading="How far it has come; [its results](results.md) have the losses and how to read "
        "them.",
        blocks=page_tables.study,
        says_where=True,
    ),
    Section(
        pattern="large_batch_quick.json",
        title="The large-batch study, quick",
        anchor="the-large-batch-study",
        reading="That all of it runs, on a model and batches far too small for its losses to say "
        "anything.",
        blocks=page_tables.quick_study,
    ),
)


def section_of(path: pathlib.Path) -> tuple[int, Section]:
    """The section of a results file, and its place.

    Raises:
        UserError: there is none.
    """
    for place, section in enumerate(SECTIONS):
        if fnmatch.fnmatch(path.name, section.pattern):
            return place, section
    known = ", ".join(section.pattern for section in SECTIONS)
    raise UserError(
        f"{path} belongs to no section; expected names such as {known}: rename it, move it "
        "elsewhere, or add a section to benchmarks/page_sections.py"
    )


def load(path: pathlib.Path) -> Any:
    """The figures of a results file; a list of records where it has lines.

    Raises:
        UserError: it is no such file.
    """
    if path.suffix == LINES:
        return large_batch_queue.read(path)
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}; measure it again") from error
    if not isinstance(figures, dict):
        raise UserError(f"{path} holds no JSON object; measure it again")
    return figures


def where(figures: dict[str, Any]) -> str:
    """When, on what, of which commit, with which versions, by which command."""
    facts = [figures["date"][:10]]
    facts += [figures[key] for key in ("device", "processor") if key in figures]
    # Results from before commits were kept have none, and without git there is none.
    facts.append(f"commit {figures.get('commit') or 'not recorded'}")
    facts.append(_listed(figures["versions"]))
    facts += [f"{peer} with {_listed(each)}" for peer, each in figures.get("peers", {}).items()]
    return f"{'; '.join(facts)}:\n\n```sh\n{figures['command']}\n```"


def _listed(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def charts(path: pathlib.Path) -> list[pathlib.Path]:
    """The pictures beside a results file."""
    if path.suffix == LINES:
        known = {each.with_suffix(".png") for each in path.parent.glob("*.json")}
        return sorted(set(path.parent.glob(f"{path.stem}_*.png")) - known)
    chart = path.with_suffix(".png")
    return [chart] if chart.exists() else []


def written(path: pathlib.Path, folder: str, read_me: str) -> str:
    """A section of the page.

    Args:
        path: the results.
        folder: of the page, from which links go out.
        read_me: the link to `benchmarks/README.md`.

    Raises:
        UserError: the file is not what its name says.
    """
    _, section = section_of(path)
    figures = load(path)
    star = section.pattern.rpartition("*")[0]
    rest = path.stem.removeprefix(star).strip("_") if star else ""
    blocks = [f"## {section.title}{f': {rest}' if rest else ''}"]
    try:
        if not section.says_where:
            blocks.append(where(figures))
        found = section.blocks(figures)
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"{path} is not what {section.title!r} takes ({type(error).__name__}: {error}); "
            "measure it again"
        ) from error
    blocks += [f"{section.reading} [How it is measured]({read_me}#{section.anchor}).", *found]
    for chart in charts(path):
        title = chart.stem.replace("_", " ")
        blocks.append(f"![{title}]({os.path.relpath(chart, folder)})")
    return "\n\n".join(blocks)
