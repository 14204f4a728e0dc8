"""The processes that make the runs, and the loop that keeps them busy."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from benchmarks import data_process, large_batch_queue
from benchmarks.large_batch_settings import Run, Study
from tfrecords.errors import UserError


class Worker:
    """One `benchmarks.large_batch_process` on some of the cores."""

    def __init__(self, study: Study, data: str, micro_batch: int, cores: Sequence[int]) -> None:
        # A file that nothing else can see, for the life of the process.
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        module = "benchmarks.large_batch_process"
        self._process = data_process.start(
            [
                sys.executable,
                "-m",
                module,
                study.as_json(),
                os.path.abspath(data),
                str(micro_batch),
            ],
            cores,
            self._log,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # a terminal's Ctrl-C is for the study alone
        )

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            UserError: what the process was given is wrong.
            FailedError: it ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it ended: the missing answer tells
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._log.seek(0)
            words = [each.strip() for each in self._log if each.strip()]
            raise data_process.FailedError(
                f"a run's process ended with code {code}: {words[-1] if words else 'no message'}"
            )
        reply = json.loads(line)
        if "user_error" in reply:
            raise UserError(reply["user_error"])
        return reply

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self._log.close()


@contextlib.contextmanager
def workers(study: Study, data: str, micro_batch: int, count: int) -> Iterator[list[Worker]]:
    """So many processes, the cores dealt out among them."""
    cores = sorted(os.sched_getaffinity(0))
    with contextlib.ExitStack() as stack:
        started = []
        for number in range(count):
            own = cores[number::count] if count <= len(cores) else cores
            started.append(Worker(study, data, micro_batch, own))
            stack.callback(started[-1].close)
        yield started


class Stop:
    """Set by the first SIGTERM or Ctrl-C; a second one interrupts."""

    def __init__(self) -> None:
        self.is_set = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Within, signals set it."""
        before = {each: signal.signal(each, self._hear) for each in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _hear(self, *_: object) -> None:
        if self.is_set:
            raise KeyboardInterrupt
        self.is_set = True
        print("ending with the runs under way; once more: at once, without them", flush=True)


def speed(staff: Sequence[Worker], run: Run, seconds: float) -> float:
    """Examples per second of all processes together."""
    request = {"speed": dataclasses.asdict(run), "seconds": seconds}
    with concurrent.futures.ThreadPoolExecutor(len(staff)) as pool:
        replies = list(pool.map(lambda worker: worker.ask(request), staff))
    return sum(reply["examples_per_second"] for reply in replies)


def work(
    study: Study,
    staff: Sequence[Worker],
    results: str,
    may_start: Callable[[], bool],
    stop: Stop,
) -> None:
    """Makes runs until none is left, `may_start` says no, or `stop` is set.

    Each record is kept as soon as its run ends.
    """
    done = large_batch_queue.of_study(study, large_batch_queue.read(results))
    idle = list(staff)
    under_way: dict[concurrent.futures.Future, tuple[Worker, Run]] = {}
    with concurrent.futures.ThreadPoolExecutor(len(staff)) as pool:
        try:
            while True:
                begun = {run.key(study) for _, run in under_way.values()}
                waiting = (
                    run
                    for run in large_batch_queue.remaining(study, done)
                    if run.key(study) not in begun
                )
                while idle and not stop.is_set and may_start():
                    run = next(waiting, None)
                    if run is None:
                        break
                    worker = idle.pop()
                    request = {"run": dataclasses.asdict(run)}
                    under_way[pool.submit(worker.ask, request)] = worker, run
                if not under_way:
                    return
                ended = concurrent.futures.wait(
                    under_way, return_when=concurrent.futures.FIRST_COMPLETED
                ).done
                for future in ended:
                    worker, run = under_way.pop(future)
                    record = future.result()
                    large_batch_queue.append(results, record)
                    done[record["run"]] = record
                    idle.append(worker)
                    print(_line(study, done, run, record), flush=True)
        except BaseException:
            for worker in staff:  # or the pool would wait for their runs
                worker.close()
            raise


def _line(study: Study, done: large_batch_queue.Records, run: Run, record: Mapping) -> str:
    loss = record["validation_loss"]
    outcome = "diverged" if record["diverged"] else f"validation loss {loss:.4f}"
    count = len(large_batch_queue.finished(study, done))
    all_ = large_batch_queue.total(study, done)
    return (
        f"{time.strftime('%H:%M:%S')} {count}/{all_} {run.method}, batch {run.batch}, "
        f"rate {run.learning_rate:g}, beta_2 {run.beta_2:g}, warmup {run.warmup_ratio:g}, "
        f"seed {run.seed}: {outcome}, {record['seconds']:.0f} s"
    )
