"""What `benchmarks.large_batch --quick` did, for the page: a JSON of its own.

    python -m benchmarks.page_study --output=benchmarks/results/large_batch_quick

Losses are left out, since they say nothing at such sizes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from benchmarks import large_batch_queue, whole_files
from tfrecords import command
from tfrecords.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "records", "build/large_batch/quick/results.jsonl", "Its lines of finished runs.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_string("output", None, "Writes OUTPUT.json.", required=True, flag_values=FLAGS)

_COMMAND = "python -m benchmarks.large_batch --quick"


def summary(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many runs there were, of what, and where.

    Args:
        records: of one study.

    Raises:
        UserError: there is no run, or there are runs of several studies.
    """
    runs = [record for record in records if record["kind"] == "run"]
    if len({run["study"] for run in runs}) != 1:
        raise UserError(
            f"expected the runs of one study, got {len(runs)} of "
            f"{len({run['study'] for run in runs})}; `{_COMMAND}` makes them"
        )
    last, common = runs[-1], runs[-1]["common"]
    return {
        "date": last["date"],
        "commit": last.get("commit", ""),
        "command": _COMMAND,
        "processor": last["processor"],
        "versions": last["versions"],
        "backend": common["backend"],
        "examples": common["examples"],
        "batches": sorted({run["settings"]["batch"] for run in runs}),
        "methods": len({run["settings"]["method"] for run in runs}),
        "runs": len(runs),
        "diverged": sum(run["diverged"] for run in runs),
        "seconds": round(sum(run["seconds"] for run in runs), 1),
    }


def body(flag_values: flags.FlagValues) -> None:
    """Writes the JSON file."""
    figures = summary(large_batch_queue.read(flag_values.records))
    whole_files.write_json(f"{flag_values.output}.json", figures)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    return command.run(body, FLAGS, argv)


if __name__ == "__main__":
    sys.exit(main())
