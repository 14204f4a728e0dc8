"""A process that makes the study's runs, one at a time, as it is told.

    python -m benchmarks.large_batch_process STUDY DATA MICRO_BATCH

Started by `benchmarks.large_batch`. A line on standard input asks for a run, the speed of one, or
the variance of gradients; a line on standard output answers. It ends when its input does, also in
the middle of a run, so that none outlives the study.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from benchmarks import large_batch_variance
from benchmarks.large_batch_data import Text
from benchmarks.large_batch_run import Laboratory
from benchmarks.large_batch_settings import Run, Study
from tfrecords.errors import UserError


def _requests() -> Iterator[dict[str, Any]]:
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(1)

    threading.Thread(target=read, daemon=True).start()
    while True:
        yield json.loads(lines.get())


def answer(laboratory: Laboratory, request: dict[str, Any]) -> dict[str, Any]:
    """What a request asks for."""
    if "run" in request:
        return laboratory.train(Run(**request["run"]))
    if "speed" in request:
        speed = laboratory.examples_per_second(Run(**request["speed"]), request["seconds"])
        return {"examples_per_second": speed}
    return large_batch_variance.record(laboratory, request["variance"])


def main() -> None:
    """The loop."""
    for number in (signal.SIGINT, signal.SIGTERM):  # the study decides when to end
        signal.signal(number, signal.SIG_IGN)
    answers, sys.stdout = sys.stdout, sys.stderr  # what a user's model prints is no answer
    study_text, data, micro_batch = sys.argv[1:]
    study = Study.from_json(study_text)
    laboratory: Laboratory | None = None
    for request in _requests():
        try:
            if laboratory is None:
                laboratory = Laboratory(study, Text.load(data), int(micro_batch))
            reply = answer(laboratory, request)
        except UserError as error:
            reply = {"user_error": str(error)}
        print(json.dumps(reply, allow_nan=False), file=answers, flush=True)


if __name__ == "__main__":
    main()
