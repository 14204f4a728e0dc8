"""The figures of `benchmarks.transfer`: scores by starting point, differences, the table."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from scipy import stats

from benchmarks import provenance

PRETRAINED, RANDOM = "pretrained", "random"
# Of each task: name, metric in eval_metrics.json (in percent), heading.
TASKS = (
    ("sst2", "accuracy", "SST-2 dev accuracy"),
    ("squad", "f1", "SQuAD dev F1"),
    ("squad_exact_match", "exact_match", "SQuAD dev exact match"),
)
CONFIDENCE = 0.95


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arm:
    """A task's scores from one starting point.

    Attributes:
        starting_point: `PRETRAINED` or `RANDOM`.
        scores: learning rate, as it was written, to seed to score.
    """

    starting_point: str
    scores: Mapping[str, Mapping[int, float]]

    @property
    def best_rate(self) -> str:
        """The rate with the best median over the seeds."""
        return max(self.scores, key=lambda rate: statistics.median(self.scores[rate].values()))

    @property
    def best(self) -> list[float]:
        """The scores at the best rate, by seed."""
        by_seed = self.scores[self.best_rate]
        return [by_seed[seed] for seed in sorted(by_seed)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
    """One finetuning task from both starting points; scores in percent."""

    name: str
    title: str
    pretrained: Arm
    random: Arm

    def difference(self) -> tuple[float, float, float]:
        """Mean of pretrained minus mean of random, and its confidence interval (Welch's t).

        Over finetuning seeds alone: the dev set and the one pretraining run are taken as given.
        """
        mean = statistics.fmean(self.pretrained.best) - statistics.fmean(self.random.best)
        if min(len(self.pretrained.best), len(self.random.best)) < 2:
            return mean, float("nan"), float("nan")
        test = stats.ttest_ind(self.pretrained.best, self.random.best, equal_var=False)
        low, high = test.confidence_interval(CONFIDENCE)
        return mean, float(low), float(high)

    def as_json(self) -> dict[str, Any]:
        """All scores, and what the table shows."""
        mean, low, high = self.difference()
        return {
            "task": self.name,
            "title": self.title,
            **{
                arm.starting_point: {"best_rate": arm.best_rate, "scores": arm.scores}
                for arm in (self.pretrained, self.random)
            },
            "difference": mean,
            "interval": [low, high],
        }


def table(figures: Mapping[str, Any]) -> str:
    """The figures as Markdown: pretraining, finetuning, commands.

    Args:
        figures: what `benchmarks.transfer` writes as JSON.
    """
    rows = [*figures["pretraining"], *figures["tasks"]]
    # Results from before rows had headings of their own have one for all.
    headings = [row if "date" in row else figures for row in rows]
    facts = (provenance.processors(headings), provenance.versions(headings))
    code = provenance.commits(headings)
    return "\n".join(
        [
            *_pretraining_rows(figures["pretraining"]),
            "",
            *_task_rows(figures["tasks"]),
            "",
            f"Measured {provenance.dates(headings)} on "
            + ", ".join([*facts, *filter(None, [code])])
            + ", by",
            "",
            "```sh",
            *figures["stages"],
            "```",
            "",
        ]
    )


def _pretraining_rows(phases: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        "| phase | length | steps | examples | minutes of training | held-out masked-LM loss | "
        "accuracy | most frequent token's |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for number, phase in enumerate(phases, start=1):
        rows.append(
            f"| {number} | {phase['seq_length']} | {phase['steps']:,} | {phase['examples']:,} | "
            f"{phase['training_seconds'] / 60:.1f} | {phase['held_out_masked_lm_loss']:.3f} | "
            f"{100 * phase['held_out_masked_lm_accuracy']:.1f} % | "
            f"{100 * phase['most_frequent_token_accuracy']:.1f} % |"
        )
    return rows


def _task_rows(tasks: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        "| | from pretrained weights | from random weights | difference | 95 % interval |",
        "| --- | --- | --- | ---: | --- |",
    ]
    for task in tasks:
        low, high = task["interval"]
        rows.append(
            f"| {task['title']} | {_scores(task[PRETRAINED])} | {_scores(task[RANDOM])} | "
            f"{task['difference']:+.2f} | {low:+.2f} to {high:+.2f} |"
        )
    return rows


def _scores(arm: Mapping[str, Any]) -> str:
    by_seed = arm["scores"][arm["best_rate"]]
    values = [by_seed[seed] for seed in sorted(by_seed, key=int)]
    listed = ", ".join(f"{value:.2f}" for value in values)
    return f"{statistics.fmean(values):.2f} ({listed}; rate {arm['best_rate']})"
