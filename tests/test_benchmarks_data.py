"""The benchmark of text preparation: its commands run, its arithmetic is right, nothing is hidden.

What it measures is for a quiet machine, not for a test.
"""

import dataclasses
import json
import pathlib
import random
import re
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import (
    data,
    data_contenders,
    data_process,
    data_rates,
    data_reading,
    data_report,
    data_text,
    data_turns,
)
from tfrecords import build, schema, vocabulary

MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> data_text.Text:
    folder = tmp_path_factory.mktemp("text")
    draw = random.Random(0)
    words = ["".join(draw.choices("aeiklmnorst", k=draw.randint(2, 8))) for _ in range(400)]
    (folder / "in").mkdir()
    for number in range(3):
        sentences = [" ".join(draw.choices(words, k=12)).capitalize() + "." for _ in range(500)]
        (folder / "in" / f"{number}.txt").write_text("\ufeff" + "\r\n".join(sentences), newline="")
    return data_text.prepare(str(folder / "in"), None, folder)


def test_a_sentence_a_line_and_a_blank_line_after_each_document(text: data_text.Text) -> None:
    assert data_text.sentences('It\r\nrained. "Does it?" she asked. No') == [
        "It rained.",
        '"Does it?"',
        "she asked.",
        "No",
    ]
    assert len(text.documents) > 20
    for document in text.documents:
        *lines, after, end = document.decode().split("\n")
        assert after == end == ""
        assert all(re.fullmatch(r"[A-Z][a-z ]+\.", line) for line in lines)
    assert len(vocabulary.Vocabulary.load(text.vocab_file)) == data_text.TRAINED_VOCAB_SIZE


@given(
    sizes=st.lists(st.integers(1, 30), min_size=4, max_size=40),
    num_parts=st.integers(1, 4),
    part_bytes=st.integers(1, 200),
)
def test_parts_are_whole_documents_in_order(
    sizes: list[int], num_parts: int, part_bytes: int
) -> None:
    documents = tuple(b"%c" % (97 + n % 26) * size for n, size in enumerate(sizes))
    text = data_text.Text(source="", documents=documents, vocab_file="")
    parts = text.parts(num_parts, part_bytes)
    assert len(parts) == num_parts
    joined = b"".join(parts)
    repeats = -(-len(joined) // text.num_bytes)
    assert (b"".join(documents) * repeats).startswith(joined)
    for part in parts:
        assert part_bytes <= len(part) < part_bytes + max(sizes)


def test_memory_of_a_process_and_its_children_is_seen(tmp_path: pathlib.Path) -> None:
    def holding(together: int) -> list[str]:
        """A process whose child holds memory until so many of them do, and a while longer."""
        meeting = tmp_path / f"{together}"
        meeting.mkdir()
        child = (
            "import os, pathlib, time; held = bytearray(150_000_000);"
            f"folder = pathlib.Path({str(meeting)!r}); (folder / str(os.getpid())).touch()\n"
            f"while len(list(folder.iterdir())) < {together}: time.sleep(0.01)\n"
            "time.sleep(0.5)"
        )
        parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
        return [sys.executable, "-c", parent]

    ran = data_process.run([holding(1)], cores=1)
    assert 150e6 < ran.peak_bytes < 250e6
    assert ran.seconds > 0.5
    two = data_process.run([holding(2)] * 2)
    assert 300e6 < two.peak_bytes < 500e6


def test_a_failure_is_told_in_its_own_words() -> None:
    with pytest.raises(data_process.FailedError, match="^no such luck$"):
        data_process.run([[sys.executable, "-c", "import sys; sys.exit('no such luck')"]])


def contender(seconds_per_byte: float, **options: object) -> data_contenders.Contender:
    """One that copies its text, and says how long `pretend` shall take that to have lasted."""
    program = "import shutil, sys; shutil.copy(*sys.argv[1:3])"

    def steps(job: data_contenders.Job) -> list[list[data_contenders.Command]]:
        assert not list(pathlib.Path(job.output_dir).iterdir())
        return [
            [
                [sys.executable, "-c", program, text, job.output_dir, f"{seconds_per_byte}"]
                for text in job.texts
            ]
        ]

    return data_contenders.Contender(makes="copies", steps=steps, megabytes=1, **options)


def pretend(
    run: Callable[..., data_process.Ran],
) -> Callable[..., data_process.Ran]:
    """`data_process.run` with seconds that no machine's load can change."""

    def pretending(commands: list[list[str]], cores: int | None = None) -> data_process.Ran:
        seconds = [
            0.1 + float(rate) * pathlib.Path(text).stat().st_size for *_, text, _, rate in commands
        ]
        return dataclasses.replace(run(commands, cores), seconds=max(seconds))

    return pretending


def test_contenders_take_turns_and_start_up_is_taken_off(
    text: data_text.Text, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fakes = {
        data_contenders.STORED: contender(2e-6, is_ours=True),
        data_contenders.MODEL_GARDEN: contender(8e-6, is_slow=True, is_copied=True),
        "Hugging Face": contender(0.0, environment="huggingface_python"),
    }
    setup = data_turns.Setup(
        text=text,
        work_dir=tmp_path,
        environments={},
        megabytes=0.06,
        startup_bytes=8_000,
        cores=(1, 2),
    )
    monkeypatch.setattr(data_process, "run", pretend(data_process.run))
    measured = data_turns.measure(setup, fakes, rounds=3, slow_rounds=2)
    monkeypatch.setattr(data_report, "CONTENDERS", fakes)
    rows = {(row["contender"], row["cores"]): row for row in data_report.building(measured)}
    for cores in (1, 2):
        ours = rows[data_contenders.STORED, cores]
        slow = rows[data_contenders.MODEL_GARDEN, cores]
        assert (len(ours["all_s"]), len(ours["all_startup_s"]), len(slow["all_s"])) == (3, 2, 2)
        assert ours["mb_per_s"] == pytest.approx(0.5, rel=1e-6)
        assert ours["mb_per_s_per_core"] == ours["mb_per_s"] / cores
        assert slow["mb_per_s_per_core"] == pytest.approx(0.125, rel=0.05)
        assert slow["text_bytes"] == slow["output_bytes"] == pytest.approx(6e4 * cores, rel=0.2)
        missing = rows["Hugging Face", cores]["not_measured"]
        assert missing == "no --huggingface_python was given"
    assert rows[data_contenders.STORED, 1]["over_model_garden"] == pytest.approx(4, rel=0.05)


READER = """
import sys
print("{}", flush=True)
for number, seconds in enumerate(sys.stdin):
    if sys.argv[1] == "dies" and number == 1:
        sys.exit("a record is damaged")
    print('{"examples": %s, "seconds": %s}' % (8 * float(seconds), seconds.strip()), flush=True)
"""


def test_a_reader_that_ends_midway_is_a_row(
    text: data_text.Text, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = data_turns.Setup(
        text=text, work_dir=tmp_path, environments={}, megabytes=1.0, startup_bytes=1, cores=(1,)
    )
    shards = data_turns._folder(setup, data_contenders.STORED, 1) / "shards"
    shards.mkdir(parents=True)
    (shards / "manifest.json").touch()

    def command(name: str, directory: pathlib.Path) -> list[str]:
        assert directory == shards
        dies = name == data_reading.MODEL_GARDEN
        return [sys.executable, "-c", READER, "dies" if dies else "lives"]

    monkeypatch.setattr(data_turns, "reader_command", command)
    assert data_turns.read(setup, rounds=3, seconds=0.5) == {
        (data_reading.STORED, 1): data_turns.Read(rates=[8.0] * 3),
        (data_reading.DYNAMIC, 1): "the build that it would have read was not measured",
        (data_reading.MODEL_GARDEN, 1): "a record is damaged",
    }


def ran(seconds: float, gigabytes: float = 1.0) -> data_process.Ran:
    return data_process.Ran(seconds=seconds, peak_bytes=int(1e9 * gigabytes))


def built(name: str, megabytes: float, seconds: list[float]) -> data_turns.Measured:
    return data_turns.Measured(
        contender=data_contenders.CONTENDERS[name],
        text_bytes=int(megabytes * MEGABYTE) + 50_000,
        startup_bytes=50_000,
        startups=[ran(each) for each in (5.0, 9.0, 4.0)],
        runs=[ran(each) for each in seconds],
        output_bytes=123,
    )


@pytest.fixture
def figures() -> dict:
    stored, dynamic, garden = (
        data_contenders.STORED,
        data_contenders.DYNAMIC,
        data_contenders.MODEL_GARDEN,
    )
    building = data_report.building(
        {
            (stored, 1): built(stored, 50, [30.0, 25.0, 34.0, 34.0, 24.0]),
            (stored, 2): built(stored, 50, [17.5, 17.5, 21.5, 21.5, 14.0]),
            (dynamic, 1): "no such records",
            (garden, 1): built(garden, 1, [15.0, 19.0, 9.0]),
            (garden, 2): built(garden, 2, [15.0, 19.0, 9.0]),
            ("Hugging Face", 1): built("Hugging Face", 10, [15.0, 19.0, 14.0]),
        }
    )
    reading = data_report.reading(
        {
            (data_reading.STORED, 1): data_turns.Read(rates=[90.0, 60.0, 10.0]),
            (data_reading.MODEL_GARDEN, 1): data_turns.Read(rates=[20.0, 20.0, 5.0]),
        }
    )
    return {
        "processor": "abacus, 2 cores",
        "date": "today",
        "command": "benchmark",
        "versions": {},
        "is_quick": True,
        "text": {"source": "none", "bytes": 1, "documents": 1},
        "seq_lengths": [128, 512],
        "method": {"memory": "guessed"},
        "building": building,
        "reading": reading,
        "host": {"examples_per_s": data_reading.HOST_CONSUMES, "source": "theirs"},
        **data_report.conclusions(building, reading, extrapolate_to=(20e9, 16)),
    }


def test_ratios_targets_and_what_is_extrapolated(figures: dict) -> None:
    rows = {(row["contender"], row["cores"]): row for row in figures["building"]}
    # Less the start of the round, or of the last that had one: 25, 20, 25, 25 and 20 s for 50 MB.
    stored = rows["tf-lans stored", 1]
    assert stored["all_mb_per_s"] == pytest.approx([2.0, 2.5, 2.0, 2.0, 2.5])
    assert stored["mb_per_s"] == pytest.approx(2.0)
    # Model Garden, in the first round, the third and the fifth: 10, 10 and 5 s for 1 MB.
    assert rows["Model Garden", 1]["all_mb_per_s"] == pytest.approx([0.1, 0.1, 0.2])
    assert stored["over_model_garden"] == pytest.approx(20.0)
    assert stored["over_model_garden_range"] == pytest.approx([12.5, 20.0])
    assert rows["Model Garden", 2]["over_model_garden"] == pytest.approx(1.0)
    assert figures["fastest_peer"]["contender"] == "Hugging Face"
    assert figures["fastest_peer"]["stored_over_it"] == pytest.approx(2.0)
    targets = figures["targets"]
    assert targets["stored_over_model_garden"]["met"]
    assert targets["stored_all_cores_over_one"]["measured"] == pytest.approx(2.0)
    assert targets["dynamic_over_model_garden"]["measured"] is None
    assert targets["reading_stored_over_model_garden"] == {
        "target": 5.0,
        "measured": 3.0,
        "range": [2.0, 4.5],
        "met": False,
    }
    extrapolation = figures["extrapolation"]
    assert "EXTRAPOLATED" in extrapolation["note"]
    assert extrapolation["hours"]["tf-lans stored"] == pytest.approx(20_000 / (2.0 * 16) / 3600)


def test_the_report_can_be_read_stored_and_seen(figures: dict, tmp_path: pathlib.Path) -> None:
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    printed = data_report.table(figures)
    assert "its figures say nothing" in printed
    assert "not measured: no such records" in printed
    assert "fastest peer: Hugging Face" in printed
    assert re.search(
        r"stored over model garden +target +20 +20\.00, 12\.50 to 20\.00 +met", printed
    )
    path = tmp_path / "chart.png"
    data_report.chart(figures).savefig(path)
    assert path.stat().st_size > 5_000


def test_every_contender_says_what_it_needs() -> None:
    for each in data_contenders.CONTENDERS.values():
        assert not each.environment or each.environment in data.FLAGS


def test_our_builds_and_model_gardens_are_made_read_and_counted(
    text: data_text.Text, tmp_path: pathlib.Path
) -> None:
    text_file = tmp_path / "text.txt"
    text_file.write_bytes(text.parts(1, 100_000)[0])

    def steps(name: str) -> tuple[pathlib.Path, list[list[data_contenders.Command]]]:
        output_dir = tmp_path / name
        output_dir.mkdir()
        job = data_contenders.Job(
            texts=[str(text_file)],
            vocab_file=text.vocab_file,
            output_dir=str(output_dir),
            cores=1,
            environments={},
        )
        return output_dir, data_contenders.CONTENDERS[name].steps(job)

    words = vocabulary.Vocabulary.load(text.vocab_file)
    counted = []
    for name in (data_contenders.STORED, data_contenders.DYNAMIC):
        output_dir, [[command]] = steps(name)
        assert list(command[:3]) == [sys.executable, "-m", "tfrecords.build"]
        assert build.main(list(command[3:])) == 0
        counted.append(data_rates.counted(data_rates.read(output_dir, 128), words))
    output_dir, [of_128, of_512] = steps(data_contenders.MODEL_GARDEN)
    assert "--max_predictions_per_seq=80" in of_512[0]
    data_process.run(of_128)
    theirs = data_rates.counted(data_rates.read(output_dir, 128), words)
    stored, dynamic = counted
    # Few documents, of which one that is cut short makes many rows.
    assert stored["rows"] == pytest.approx(theirs["rows"], rel=0.6)
    assert stored["rows"] == pytest.approx(5 * dynamic["rows"], rel=0.6)
    for name in ("masked", "shown_as_mask", "masks_per_full_row"):
        assert stored[name] == pytest.approx(theirs[name], rel=0.1)

    shards = str(tmp_path / data_contenders.STORED / "shards")
    for reader in (data_reading.STORED, data_reading.MODEL_GARDEN):
        batches = iter(data_reading.READERS[reader](shards))
        number, seconds = data_reading.batches_within(batches, 0.01)
        assert number >= 1 and seconds >= 0.01
        batch = next(batches)
        assert batch[schema.INPUT_WORD_IDS].shape == (data_reading.BATCH, 128)
        assert np.asarray(batch[schema.MASKED_LM_WEIGHTS]).shape == (data_reading.BATCH, 20)
