"""Workers of one job on this machine, each a process with its TF_CONFIG."""

import contextlib
import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Sequence

TIMEOUT = 600


def free_ports(count: int) -> list[int]:
    """Ports that nobody listened on a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def tf_configs(count: int) -> list[str]:
    """TF_CONFIG of every worker of a job."""
    hosts = [f"127.0.0.1:{port}" for port in free_ports(count)]
    return [
        json.dumps({"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}})
        for index in range(count)
    ]


def run_workers(command: Sequence[str], count: int) -> None:
    """Runs `command` as every worker; fails with what they said if one of them does."""
    with contextlib.ExitStack() as stack:
        logs = [stack.enter_context(tempfile.TemporaryFile("w+")) for _ in range(count)]
        workers = [
            subprocess.Popen(
                command, env=os.environ | {"TF_CONFIG": config}, stdout=log, stderr=log
            )
            for config, log in zip(tf_configs(count), logs, strict=True)
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
