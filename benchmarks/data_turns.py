"""Contenders, then readers, taking turns."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks import data_process, data_reading
from benchmarks.data_contenders import DYNAMIC, STORED, Contender, Job
from benchmarks.data_text import Text

Key = tuple[str, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Turns:
    """What all turns share.

    Attributes:
        text: the corpus.
        work_dir: where they write.
        environments: checkouts and Pythons of peers, by the names of their flags.
        megabytes: an upper bound on the text of each contender.
        startup_bytes: the text that tells what a command takes beside it.
        cores: the numbers of cores to measure with.
    """

    text: Text
    work_dir: pathlib.Path
    environments: Mapping[str, str]
    megabytes: float
    startup_bytes: int
    cores: Sequence[int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """One contender on some cores.

    Attributes:
        contender: who.
        text_bytes: of the text, copies together.
        startup_bytes: of the next to no text, likewise.
        startups: what the command took on next to no text.
        runs: what it took on the text.
        output_bytes: what it wrote.
    """

    contender: Contender
    text_bytes: int
    startup_bytes: int
    startups: list[data_process.Ran]
    runs: list[data_process.Ran]
    output_bytes: int


def measure(
    turns: Turns, contenders: Mapping[str, Contender], rounds: int, slow_rounds: int
) -> dict[Key, Measured | str]:
    """Lets contenders take turns, each following each as the rounds go on.

    Returns:
        By name and cores, the figures, or why there are none.
    """
    pending = {
        (name, cores): _Building(turns, name, contender, cores)
        for name, contender in contenders.items()
        for cores in (turns.cores[:1] if contender.only_alone else turns.cores)
    }
    problems: dict[Key, str] = {}
    for number in range(rounds):
        is_shared = number * slow_rounds % rounds < slow_rounds
        first = number % len(pending)
        for key in [*pending][first:] + [*pending][:first]:
            building = pending[key]
            if key in problems or (building.contender.is_slow and not is_shared):
                continue
            print(f"  round {number + 1}: {key[0]}, cores: {key[1]}", file=sys.stderr, flush=True)
            try:
                building.take_turn(with_startup=is_shared)
            except (data_process.FailedError, OSError) as error:
                problems[key] = str(error)
    return {key: problems.get(key) or building.measured() for key, building in pending.items()}


class _Building:
    """One contender on some cores, round after round."""

    def __init__(self, turns: Turns, name: str, contender: Contender, cores: int) -> None:
        self.contender = contender
        self._turns, self._cores = turns, cores
        self._folder = _folder(turns, name, cores)
        self._copies = cores if contender.is_copied else 1
        megabytes = min(contender.megabytes, turns.megabytes)
        self._part_bytes = 1e6 * megabytes
        self._text_bytes = self._startup_bytes = 0
        self._startups: list[data_process.Ran] = []
        self._runs: list[data_process.Ran] = []
        self._output_bytes = 0

    def take_turn(self, with_startup: bool) -> None:
        """One measurement.

        Raises:
            FailedError: the command failed, or there is nothing to run it with.
        """
        needed = self.contender.environment
        if needed and needed not in self._turns.environments:
            raise data_process.FailedError(f"no --{needed} was given")
        if with_startup:
            taken, self._startup_bytes = self._run(self._turns.startup_bytes)
            self._startups.append(taken)
        taken, self._text_bytes = self._run(self._part_bytes)
        self._runs.append(taken)
        outputs = [path for path in self._folder.rglob("*") if path.is_file()]
        self._output_bytes = sum(path.stat().st_size for path in outputs)

    def _run(self, part_bytes: float) -> tuple[data_process.Ran, int]:
        texts = self._turns.text.parts(self._copies, part_bytes)
        paths = [self._turns.work_dir / f"text-{number}.txt" for number in range(len(texts))]
        for path, content in zip(paths, texts, strict=True):
            path.write_bytes(content)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        job = Job(
            texts=list(map(str, paths)),
            vocab_file=os.path.abspath(self._turns.text.vocab_file),
            output_dir=str(self._folder),
            cores=self._cores,
            environments=self._turns.environments,
        )
        os.sync()  # nobody pays for what another one left to be written
        first, *others = (data_process.run(step, self._cores) for step in self.contender.steps(job))
        return sum(others, first), sum(map(len, texts))

    def measured(self) -> Measured:
        """The figures of all rounds."""
        return Measured(
            contender=self.contender,
            text_bytes=self._text_bytes,
            startup_bytes=self._startup_bytes,
            startups=self._startups,
            runs=self._runs,
            output_bytes=self._output_bytes,
        )


def _folder(turns: Turns, name: str, cores: int) -> pathlib.Path:
    plain = "".join(char if char.isalnum() else "-" for char in name)
    return turns.work_dir / f"{plain}-{cores}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Read:
    """One reader's figures: examples a second, a number a round."""

    rates: list[float]


def read(turns: Turns, rounds: int, seconds: float) -> dict[Key, Read | str]:
    """Lets readers take turns on the shards that our builds left in the work folder.

    Returns:
        By name and cores, the figures, or why there are none.
    """
    built = {data_reading.STORED: STORED, data_reading.MODEL_GARDEN: STORED}
    with contextlib.ExitStack() as stack:
        found = {
            (name, cores): stack.enter_context(
                _reader(
                    name, _folder(turns, built.get(name, DYNAMIC), turns.cores[0]) / "shards", cores
                )
            )
            for name in data_reading.READERS
            for cores in turns.cores
        }
        running = {key: each for key, each in found.items() if not isinstance(each, str)}
        rates: dict[Key, list[float]] = {key: [] for key in running}
        for number in range(rounds if running else 0):
            first = number % len(running)
            for key in [*running][first:] + [*running][:first]:
                figures = _ask(running[key], f"{seconds}\n")
                rates[key].append(figures["examples"] / figures["seconds"])
        return {
            key: each if isinstance(each, str) else Read(rates=rates[key])
            for key, each in found.items()
        }


@contextlib.contextmanager
def _reader(
    name: str, directory: pathlib.Path, cores: int
) -> Iterator[subprocess.Popen[str] | str]:
    """A reader's process after its first batch, or why there is none."""
    print(f"  {name}, cores: {cores}", file=sys.stderr, flush=True)
    if not (directory / "manifest.json").is_file():
        yield "the build that it would have read was not measured"
        return
    with tempfile.TemporaryFile("w+") as log:
        process = data_process.start(
            [sys.executable, "-m", "benchmarks.data_reading", name, str(directory)],
            sorted(os.sched_getaffinity(0))[:cores],
            log,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            _answer(process)
        except EOFError:
            log.seek(0)
            words = [line.strip() for line in log if line.strip()]
            yield words[-1] if words else "its process ended without a word"
            return
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


def _ask(process: subprocess.Popen[str], question: str) -> dict[str, Any]:
    assert process.stdin is not None
    process.stdin.write(question)
    process.stdin.flush()
    return _answer(process)


def _answer(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise EOFError("its process ended without a word")
    return json.loads(line)
