"""The benchmark of the training step: its contenders train alike, its arithmetic is right.

What it measures is for a quiet machine, not for a test.
"""

import dataclasses
import json
import math
import pathlib
import re
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from official.modeling.optimization import lamb

import tf_lans.tf_keras
from benchmarks import (
    machine,
    train_step,
    train_step_batches,
    train_step_contenders,
    train_step_process,
    train_step_report,
    update_contenders,
)
from benchmarks.train_step_contenders import FOUR, OURS, OURS_BFLOAT16, SIXTEEN, STOCK, Workload
from benchmarks.train_step_report import Measured, Turn

SMALL = Workload(
    layers=1, hidden=64, vocab_size=2048, batch_size=4, seq_length=16, max_predictions=3
)


@given(length=st.integers(16, 64), predictions=st.integers(1, 12), seed=st.integers(0, 99))
def test_batches_look_like_those_of_a_reader(length: int, predictions: int, seed: int) -> None:
    workload = dataclasses.replace(SMALL, seq_length=length, max_predictions=predictions)
    rows = train_step_batches.rows(workload, 40, seed)
    words, mask = rows["input_word_ids"], rows["input_mask"]
    lengths = mask.sum(axis=1)
    assert (np.diff(mask, axis=1) <= 0).all() and lengths.min() >= length // 4
    assert (words[mask == 0] == 0).all() and (words[mask == 1] > 0).all()
    assert words.max() < workload.vocab_size
    assert (rows["input_type_ids"] <= mask).all()
    assert (np.diff(np.where(mask == 1, rows["input_type_ids"], 1), axis=1) >= 0).all()
    for row in range(40):
        weights = rows["masked_lm_weights"][row]
        count = int(weights.sum())
        assert (weights[:count] == 1).all() and 1 <= count <= predictions
        positions = rows["masked_lm_positions"][row]
        assert (np.diff(positions[:count]) > 0).all()
        assert positions[0] > 0 and positions[count - 1] < lengths[row] - 1
        assert (words[row, positions[:count]] == 103).all()
        assert (words[row] == 103).sum() == count
        assert (rows["masked_lm_ids"][row][:count] >= 1000).all()
        assert not positions[count:].any() and not rows["masked_lm_ids"][row][count:].any()
    again = train_step_batches.rows(workload, 40, seed)
    assert all((rows[name] == again[name]).all() for name in rows)


def test_ours_and_model_gardens_train_the_same_model_on_the_same_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What this process held before it came here is no measure of anything.
    kilobytes = {"VmRSS": 100, "VmHWM": 400}
    monkeypatch.setattr(update_contenders, "_status_kilobytes", kilobytes.__getitem__)
    answers = {}
    for contender in (STOCK, FOUR):
        said: list[dict[str, Any]] = []
        train_step_process.serve(contender, SMALL, ["2\n", "1\n"], said.append)
        ready, *turns = said
        assert ready["first_s"] > max(turn["seconds"] for turn in turns) > 0
        assert [turn["peak_bytes"] for turn in turns] == [300 * 1024] * 2
        answers[contender] = (ready["parameters"], turns[0]["loss"])
    parameters, losses = zip(*answers.values(), strict=True)
    assert len(set(parameters)) == 1
    assert losses == pytest.approx([math.log(SMALL.vocab_size) + math.log(2)] * 2, rel=0.1)


def test_the_peak_is_what_was_held_at_most_since_it_was_forgotten() -> None:
    size = 256 * 1024  # kilobytes, far more than anything else allocates meanwhile
    update_contenders._forget_peak()
    before = update_contenders._status_kilobytes("VmHWM")
    held = np.ones(size * 1024, np.uint8)
    del held
    with_it = update_contenders._status_kilobytes("VmHWM")
    assert with_it - before > 0.9 * size
    update_contenders._forget_peak()
    assert with_it - update_contenders._status_kilobytes("VmHWM") > 0.9 * size


def test_each_contender_is_set_up_as_its_name_says() -> None:
    with train_step_process.trainer(STOCK, SMALL) as stock:
        assert type(stock.optimizer) is lamb.LAMB
        assert type(stock.task).__module__ == "official.nlp.tasks.masked_lm"
    with train_step_process.trainer(SIXTEEN, SMALL) as ours:
        assert isinstance(ours.optimizer, tf_lans.tf_keras.LANS)
        assert ours.pieces == 16
        assert ours.config.runtime.deterministic_ops
        assert not ours.config.runtime.enable_xla
        assert ours.config.task.model.as_dict() == stock.config.task.model.as_dict()


CHILD = """
import json, sys
name, sizes = sys.argv[1:]
if "XLA" in name:
    sys.exit("no compiler")
print(json.dumps({"first_s": 1.0, "parameters": 5}), flush=True)
for steps in sys.stdin:
    if "LAMB" in name and "tf-lans" in name and int(steps) > 1:
        sys.exit("out of memory")
    print(name, steps.strip(), file=open("turns.txt", "a"), flush=True)
    answer = {"seconds": 0.25 * int(steps), "loss": 0.5, "peak_bytes": 1000}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def turns_file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Where children that only pretend to train leave a line for each turn."""
    path = tmp_path / "turns.txt"
    real = train_step.command_line

    def fake(contender: train_step_contenders.Contender, workload: Workload) -> list[str]:
        program = CHILD.replace("turns.txt", str(path))
        return [sys.executable, "-c", program, *real(contender, workload)[-2:]]

    monkeypatch.setattr(train_step, "command_line", fake)
    return path


def test_contenders_take_turns_and_what_ends_is_told(
    turns_file: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    output = tmp_path / "figures"
    arguments = ["--rounds=5", "--turn_seconds=0.6", "--batch_size=8", f"--output={output}"]
    assert train_step.main([*arguments, "--only=XLA,float32"]) == 0
    figures = json.loads(output.with_suffix(".json").read_text())
    rows = {row["contender"]: row for row in figures["contenders"]}
    assert rows["tf-lans LANS float32 deterministic XLA"]["not_measured"] == "no compiler"
    assert rows["tf-lans LAMB float32 deterministic"]["not_measured"] == "out of memory"
    for name in (STOCK.name, OURS.name):
        assert rows[name]["steps_per_turn"] == 3
        assert rows[name]["steps_per_s"] == 4.0
        assert rows[name]["all_examples_per_s"] == [32.0] * 5
    taken = [line for line in turns_file.read_text().splitlines() if "bf" not in line]
    alive = {STOCK.name, OURS.name, "tf-lans LANS float32"}
    full = [line.removesuffix(" 3") for line in taken if line.endswith(" 3")]
    assert len(full) == 5 * len(alive)
    for number in range(5):
        assert {*full[number * 3 : (number + 1) * 3]} == alive
    assert len({tuple(full[number * 3 : (number + 1) * 3]) for number in range(5)}) >= 4
    assert output.with_suffix(".png").stat().st_size > 5_000


def test_a_contender_without_room_is_left_out(
    turns_file: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "available_bytes", lambda: 1000)
    found = train_step.measure([STOCK, OURS], SMALL, rounds=5, turn_seconds=0.0)
    assert isinstance(found[STOCK.name], Measured)
    assert re.match(r"0\.0 GB of memory are left .*; use --only$", found[OURS.name])
    assert turns_file.read_text() == f"{STOCK.name} 1\n" * 6


def test_a_comparison_brings_those_that_it_needs() -> None:
    def names(only: list[str]) -> list[str]:
        return [
            each.name
            for each in train_step_contenders.chosen(train_step_contenders.MODEL_GARDEN, only)
        ]

    everything = names([])
    assert len(everything) == len(set(everything)) == 9
    assert names(["LANS bfloat16 deterministic XLA"]) == [
        "Model Garden LAMB float32",
        "Model Garden LAMB bfloat16",
        "tf-lans LANS bfloat16 deterministic XLA",
    ]
    for name, each in train_step_contenders.CONTENDERS.items():
        assert each.name == name
        assert all(base.name in train_step_contenders.CONTENDERS for base in each.bases)


@pytest.mark.parametrize(
    ("argument", "told"),
    [("--only=PyTorch", "'PyTorch'"), ("--max_predictions=128", "max_predictions is 128")],
)
def test_mistakes_are_told_before_anything_starts(
    argument: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_step.main([argument]) == 2
    assert told in capsys.readouterr().err


def measured(contender: train_step_contenders.Contender, *seconds: float, peak: int) -> Measured:
    turns = [Turn(steps=2, seconds=each, loss=1.0, peak_bytes=peak) for each in seconds]
    return Measured(contender=contender, first_s=1.0, parameters=7, turns=turns)


def test_ratios_are_of_medians_and_within_rounds() -> None:
    rows = train_step_report.rows(
        {
            STOCK.name: measured(STOCK, 1.0, 2.0, 4.0, 2.0, 2.0, peak=1),
            OURS.name: measured(OURS, 1.0, 0.5, 2.0, 1.0, 1.0, peak=1),
            OURS_BFLOAT16.name: measured(OURS_BFLOAT16, 0.25, 0.25, 0.25, 0.25, 0.25, peak=1),
        },
        batch_size=10,
    )
    stock, ours, half = rows
    assert (stock["steps_per_s"], stock["examples_per_s"], stock["over"]) == (1.0, 10.0, {})
    # Medians: 2 / 1 s and 2 / 2 s; in the rounds 1, 4, 2, 2 and 2.
    assert ours["over"] == {
        STOCK.name: {"of_medians": 2.0, "median": 2.0, "lowest": 1.0, "highest": 4.0}
    }
    assert [*half["over"]] == [STOCK.name]
    comparison = train_step_contenders.MODEL_GARDEN
    first, second, third = train_step_report.targets(rows, comparison, has_bfloat16=True)
    # Over Model Garden, 1 to 4 in the rounds: a bound of 1 is not excluded.
    assert (first["measured"], first["met"], first["interval"]) == (2.0, None, [1.0, 4.0])
    assert first["confidence"] == 0.9375
    assert train_step_report.verdict(first) == "not decided"
    assert train_step_report.interval(first) == "1.000 to 4.000 (94 %)"
    assert train_step_report.verdict(second) == train_step_report.interval(second) == ""
    assert (second["measured"], second["met"]) == (None, None)
    assert (third["measured"], third["met"]) == (8.0, True)
    *_, third = train_step_report.targets(rows, comparison, has_bfloat16=False)
    assert third["met"] is None


@pytest.mark.parametrize(("rounds", "met"), [(4, None), (5, False)])
def test_micro_batches_are_held_against_one_alone(rounds: int, met: bool | None) -> None:
    rows = train_step_report.rows(
        {
            OURS.name: measured(OURS, *[1.0] * rounds, peak=80),
            FOUR.name: measured(FOUR, *[4.0] * rounds, peak=100),
            SIXTEEN.name: measured(SIXTEEN, *[20.0] * rounds, peak=110),
        },
        batch_size=3,
    )
    comparison = train_step_contenders.MICRO_BATCHES
    throughput, memory = train_step_report.targets(rows, comparison, has_bfloat16=False)
    # Four rounds are too few for any verdict, however far they are from the bound.
    assert throughput["measured"] == pytest.approx(0.8) and throughput["met"] is met
    assert memory["measured"] == pytest.approx(1.1) and memory["met"] is False
    figures = {
        **dict.fromkeys(("processor", "date", "command", "model"), "some"),
        "bfloat16_instructions": [],
        "versions": {},
        "rounds": 1,
        "workload": dataclasses.asdict(SMALL),
        "contenders": rows,
        "targets": [throughput, memory],
    }
    printed = train_step_report.table(figures)
    assert re.search(r"16 micro-batches +2 +0\.100 +0\.100 +4\.80 ", printed)
    told = "(94 %) missed" if rounds == 5 else "(88 %) not decided"
    assert f"at least 0.95, 0.800 0.800 to 0.800 {told}" in printed
    assert "at most 1.05, 1.100 missed" in printed
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
