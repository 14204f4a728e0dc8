"""`official_bert.launch` whose worker does something after one of its steps, once.

`TF_LANS_TEST_ACT={"worker": 1, "step": 4, "what": "die", "mark": PATH} python -m
tests.bert.acting_job ...`: the launcher starts this module in place of official_bert.train. The
worker of that number touches PATH after that step and dies, or says so where `what` is "say"; a
worker that finds PATH does nothing, as after the restart.
"""

import dataclasses
import json
import os
import pathlib
import signal
import sys
from typing import Any

ACT = "TF_LANS_TEST_ACT"
SAID = "reached step"


def act_at(step: int, what: str, mark: pathlib.Path) -> None:
    """Has this process act after a step, as soon as its row is written."""
    from official_bert.run_files import RunFiles

    add_steps = RunFiles.add_steps

    def then_act(self: RunFiles, rows: Any, *args: Any, **kwargs: Any) -> None:
        add_steps(self, rows, *args, **kwargs)
        if rows[-1]["step"] != step:
            return
        mark.touch()
        # A run sends `sys.stdout` nowhere, and a progress bar may stand in the middle of a line.
        os.write(1, f"\n{SAID} {step}\n".encode())
        if what == "die":
            os.kill(os.getpid(), signal.SIGKILL)

    RunFiles.add_steps = then_act  # type: ignore[method-assign]


def work() -> int:
    from official_bert import train

    act = json.loads(os.environ[ACT])
    mark = pathlib.Path(act["mark"])
    is_it = json.loads(os.environ["TF_CONFIG"])["task"]["index"] == act["worker"]
    if is_it and not mark.exists():
        act_at(act["step"], act["what"], mark)
    return train.main()


def launched() -> int:
    from official_bert import launch, supervision

    job_from = launch.job_from

    def of_this_module(*args: Any) -> supervision.Job:
        job = job_from(*args)
        own = ["tests.bert.acting_job" if part == launch.COMMANDS[0] else part
               for part in job.command]  # fmt: skip
        return dataclasses.replace(job, command=own)

    launch.job_from = of_this_module
    return launch.main()


if __name__ == "__main__":
    sys.exit(work() if "TF_CONFIG" in os.environ else launched())
