"""Workers of one job on this machine, each a process with its TF_CONFIG."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Sequence

from official_bert import launch

TIMEOUT = 600


def run_workers(command: Sequence[str], count: int) -> None:
    """Runs `command` as every worker; fails with what they said if one of them does."""
    environments = launch.cluster_environments(launch.free_ports(count))
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(count)]
        workers = [
            subprocess.Popen(command, env=os.environ | environment, stdout=log, stderr=log)
            for environment, log in zip(environments, logs, strict=True)
        ]
        try:
            codes = [worker.wait(TIMEOUT) for worker in workers]
        finally:
            for worker in workers:
                worker.kill()
        said = []
        for log in logs:
            log.seek(0)
            said.append(log.read()[-4000:])
        assert codes == [0] * count, "\n".join(said)
