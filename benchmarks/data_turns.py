"""Contenders, then readers, taking turns."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import pathlib
import shutil
import sys
from collections.abc import Mapping, Sequence

from benchmarks import child, data_process, data_reading, turns
from benchmarks.data_contenders import DYNAMIC, STORED, Contender, Job
from benchmarks.data_process import FailedError
from benchmarks.data_text import Text

Key = tuple[str, int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setup:
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
    setup: Setup, contenders: Mapping[str, Contender], rounds: int, slow_rounds: int
) -> dict[Key, Measured | str]:
    """Lets contenders take turns, in an order that `benchmarks.turns` changes each round.

    Args:
        setup: what they share.
        contenders: who, by name.
        rounds: measurements of each.
        slow_rounds: those of slow contenders, and of start-up.

    Returns:
        By name and cores, the figures, or why there are none.
    """
    pending = {
        (name, cores): _Building(setup, name, contender, cores)
        for name, contender in contenders.items()
        for cores in (setup.cores[:1] if contender.only_alone else setup.cores)
    }
    problems: dict[Key, str] = {}
    rounds_before: collections.Counter[bool] = collections.Counter()
    for number in range(rounds):
        is_shared = number * slow_rounds % rounds < slow_rounds
        present = [
            key
            for key, building in pending.items()
            if key not in problems and (is_shared or not building.contender.is_slow)
        ]
        for key in turns.order(present, rounds_before[is_shared]):
            print(f"  round {number + 1}: {key[0]}, cores: {key[1]}", file=sys.stderr, flush=True)
            try:
                pending[key].take_turn(with_startup=is_shared)
            except (FailedError, OSError) as error:
                problems[key] = str(error)
        rounds_before[is_shared] += 1
    return {key: problems.get(key) or building.measured() for key, building in pending.items()}


class _Building:
    """One contender on some cores, round after round."""

    def __init__(self, setup: Setup, name: str, contender: Contender, cores: int) -> None:
        self.contender = contender
        self._setup, self._cores = setup, cores
        self._folder = _folder(setup, name, cores)
        self._copies = cores if contender.is_copied else 1
        megabytes = min(contender.megabytes, setup.megabytes)
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
        if needed and needed not in self._setup.environments:
            raise FailedError(f"no --{needed} was given")
        if with_startup:
            taken, self._startup_bytes = self._run(self._setup.startup_bytes)
            self._startups.append(taken)
        taken, self._text_bytes = self._run(self._part_bytes)
        self._runs.append(taken)
        outputs = [path for path in self._folder.rglob("*") if path.is_file()]
        self._output_bytes = sum(path.stat().st_size for path in outputs)

    def _run(self, part_bytes: float) -> tuple[data_process.Ran, int]:
        texts = self._setup.text.parts(self._copies, part_bytes)
        paths = [self._setup.work_dir / f"text-{number}.txt" for number in range(len(texts))]
        for path, content in zip(paths, texts, strict=True):
            path.write_bytes(content)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        job = Job(
            texts=list(map(str, paths)),
            vocab_file=os.path.abspath(self._setup.text.vocab_file),
            output_dir=str(self._folder),
            cores=self._cores,
            environments=self._setup.environments,
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


def _folder(setup: Setup, name: str, cores: int) -> pathlib.Path:
    plain = "".join(char if char.isalnum() else "-" for char in name)
    return setup.work_dir / f"{plain}-{cores}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Read:
    """One reader's figures: examples a second, a number a round."""

    rates: list[float]


def read(setup: Setup, rounds: int, seconds: float) -> dict[Key, Read | str]:
    """Lets readers take turns on the shards that our builds left in the work folder.

    Returns:
        By name and cores, the figures, or why there are none.
    """
    built = {data_reading.STORED: STORED, data_reading.MODEL_GARDEN: STORED}
    problems: dict[Key, str] = {}
    with contextlib.ExitStack() as stack:
        running: dict[Key, child.Child] = {}
        for name in data_reading.READERS:
            for cores in setup.cores:
                print(f"  {name}, cores: {cores}", file=sys.stderr, flush=True)
                directory = _folder(setup, built.get(name, DYNAMIC), setup.cores[0]) / "shards"
                try:
                    running[name, cores] = stack.enter_context(_reader(name, directory, cores))
                except FailedError as error:
                    problems[name, cores] = str(error)
        rates: dict[Key, list[float]] = {key: [] for key in running}
        for number in range(rounds):
            alive = [key for key in running if key not in problems]
            for key in turns.order(alive, number):
                try:
                    figures = running[key].ask(seconds)
                except FailedError as error:
                    problems[key] = str(error)
                    continue
                rates[key].append(figures["examples"] / figures["seconds"])
    keys = [(name, cores) for name in data_reading.READERS for cores in setup.cores]
    return {key: problems.get(key) or Read(rates=rates[key]) for key in keys}


def reader_command(name: str, directory: pathlib.Path) -> list[str]:
    """The command of a reader's process; see `benchmarks.data_reading`."""
    return [sys.executable, "-m", "benchmarks.data_reading", name, str(directory)]


def _reader(
    name: str, directory: pathlib.Path, cores: int
) -> contextlib.AbstractContextManager[child.Child]:
    """A reader's process after its first batch."""
    if not (directory / "manifest.json").is_file():
        raise FailedError("the build that it would have read was not measured")
    return child.started(reader_command(name, directory), cores)
