"""The benchmark of the update step: turns, what ends midway, what is not here, and its ratios.

What it measures is for a quiet machine, not for a test.
"""

import json
import pathlib
import sys
from typing import Any

import pytest

from benchmarks import machine, page_sections, page_tables, update_contenders, update_step
from benchmarks.update_contenders import FLOOR
from benchmarks.update_step_report import REFERENCE, Measured, chart, drifts, rows, table
from tfrecords.errors import UserError

# Pretends to update: each time takes longer by a second, of the optimizer's own.
CHILD = """
import json, sys
name = sys.argv[1]
if name == "Keras Lamb, jit":
    sys.exit("no compiler")
print(json.dumps({"first_s": 5.0, "versions": {"python": "3.0", "torch": "2.0"}}), flush=True)
for number, _ in enumerate(sys.stdin):
    if name == "Keras Lamb" and number == 2:
        sys.exit("out of memory")
    if name == DEAD and number == 3:
        sys.exit(1)
    print(name, file=open(FILE, "a"), flush=True)
    seconds = (2.0 if "AdamW" in name else 1.0) * (1 + number)
    print(json.dumps({"seconds": seconds, "peak_bytes": 100 + number}), flush=True)
"""


@pytest.fixture
def turns_file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Where children that only pretend to update leave a line for each turn."""
    return pretend(tmp_path / "turns.txt", monkeypatch)


def pretend(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, dead: str = "") -> pathlib.Path:
    program = f"DEAD, FILE = {dead!r}, {str(path)!r}\n{CHILD}"
    monkeypatch.setattr(
        update_step,
        "command_line",
        lambda name, model, python: [python, "-c", program, name, model],
    )
    # All in one group, however little of its memory the machine has free.
    monkeypatch.setattr(machine, "available_bytes", lambda: 2**40)
    return path


def test_what_ends_midway_is_a_row_and_the_others_go_on(
    turns_file: pathlib.Path, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "update_step_bert_tiny"
    arguments = ["--model=bert_tiny", "--rounds=6", f"--output={output}"]
    only = ",".join(("Keras Lamb", "Keras AdamW", "torch", "addons"))
    assert update_step.main([*arguments, f"--only={only}", f"--torch_python={sys.executable}"]) == 0
    figures = json.loads(output.with_suffix(".json").read_text())
    (group,) = figures["groups"]
    assert group["Keras Lamb, jit"] == {"not_measured": "no compiler"}
    assert group["Keras Lamb"] == {"not_measured": "out of memory"}
    assert group["torch AdamW, fused"]["peak_over_state"] == 105 / (16 * figures["parameters"])
    for name in (REFERENCE, "Keras AdamW", "Keras AdamW, jit", "torch AdamW, fused"):
        assert len(group[name]["all_ms"]) == figures["rounds"] == 6
        ratio = 1.0 if name == REFERENCE else 2.0
        expected = dict.fromkeys(("median", "lowest", "highest", "of_medians"), ratio)
        assert group[name]["over_lans"] == pytest.approx(expected)
        assert group[name]["over_floor"]["median"] == pytest.approx(
            group[name]["median_ms"] / group[FLOOR]["median_ms"]
        )
    assert figures["not_measured"] == {
        "tensorflow-addons LAMB": "no --tfa_python was given",
    }
    assert figures["peers"] == {"torch": {"python": "3.0", "torch": "2.0"}}

    printed = capfd.readouterr().out
    assert "tensorflow-addons LAMB" in printed and "not measured here: no --tfa_python" in printed
    words = " ".join(page_tables.update_step(figures))
    assert "- tensorflow-addons LAMB: no --tfa_python was given" in words
    assert "- Keras Lamb: out of memory" in words and "the median of the rounds" in words
    assert "; torch with python 3.0, torch 2.0:" in page_sections.where(figures)
    assert output.with_suffix(".png").stat().st_size > 5_000

    taken = turns_file.read_text().splitlines()
    alive = [name for name, row in group.items() if "not_measured" not in row]
    last = [tuple(taken[-len(alive) * (1 + back) :][: len(alive)]) for back in range(3)]
    assert all(sorted(order) == sorted(alive) for order in last) and len(set(last)) == 3


@pytest.mark.parametrize("dead", [FLOOR, REFERENCE])
def test_without_what_all_are_held_against_there_is_one_line(
    dead: str,
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    pretend(tmp_path / "turns.txt", monkeypatch, dead)
    output = tmp_path / "figures"
    assert update_step.main(["--only=Keras AdamW", f"--output={output}"]) == 2
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {dead} could not be measured") and "exit code 1" in error
    assert not output.with_suffix(".json").exists()


def test_known_peers_are_absent_only_where_they_cannot_be_imported() -> None:
    names = ["tensorflow-addons LAMB", "Keras Lamb", "torch AdamW, fused"]
    given = {"tfa": "python", "torch": "python"}
    assert update_step.absent(names, given) == {}
    found = update_step.absent(names, {})
    assert "Keras Lamb" not in found
    assert found["tensorflow-addons LAMB"] == "no --tfa_python was given"
    assert set(update_step._PEERS) == set(update_contenders.PACKAGES) - {update_contenders.MAIN}


def test_groups_have_the_triad_and_the_reference() -> None:
    names = [FLOOR, REFERENCE, "a", "b", "c"]
    assert update_step.groups(names, 4) == [
        [FLOOR, REFERENCE, "a", "b"],
        [FLOOR, REFERENCE, "c"],
    ]
    assert update_step.groups([], 0) == [[FLOOR, REFERENCE]]


def measured(*updates: float) -> Measured:
    return Measured(first=1.0, updates=list(updates), peak_bytes=32)


def test_ratios_are_taken_within_rounds() -> None:
    """By hand: 28 bytes a parameter are a tenth of what the triad moves."""
    parameters = update_contenders.TRIAD_BYTES // 280
    group: dict[str, Measured | str] = {
        FLOOR: measured(10.0, 20.0, 10.0),
        REFERENCE: measured(2.0, 4.0, 1.0),
        "other": measured(2.0, 12.0, 2.0),
        "none": "no luck",
    }
    found: dict[str, Any] = rows(group, parameters)
    assert found["none"] == {"not_measured": "no luck"}
    other = found["other"]
    assert other["over_lans"] == {"median": 2.0, "lowest": 1.0, "highest": 3.0, "of_medians": 1.0}
    floor = other["over_floor"]
    assert floor["median"] == pytest.approx(2.0, rel=1e-6)
    assert floor["highest"] == pytest.approx(6.0, rel=1e-6)
    assert (other["best_over_lans"], other["all_ms"]) == (2.0, [2000.0, 12000.0, 2000.0])
    shown = chart({"groups": [found], "model": "m", "processor": "p", "not_measured": {}}).axes[0]
    assert [bar.get_width() for bar in shown.patches] == [2.0, 1.0]
    # Of 1, 3 and 2 the quartiles are 1.5 and 2.5.
    (whiskers,) = [each for each in shown.containers if hasattr(each, "has_xerr")]
    (segments,) = whiskers.lines[2]
    assert [part[:, 0].tolist() for part in segments.get_segments()] == [[1.5, 2.5], [1.0, 1.0]]


@pytest.mark.parametrize(("last", "is_told"), [(1.19, False), (1.25, True), (0.75, True)])
def test_a_group_in_which_the_machine_changed_speed_is_told(last: float, is_told: bool) -> None:
    steady, changed = ([1.0, 1.0, 5.0, 1.0, 1.0, 1.0], [1.0, 1.0, 5.0, 1.0, last, last])
    groups = [
        rows({FLOOR: measured(*each), REFERENCE: measured(*each), "other": measured(*each)}, 1)
        for each in (steady, changed)
    ]
    assert [each.partition(":")[0] for each in drifts(groups)] == ["Group 2"] * is_told
    figures: dict[str, Any] = {
        **dict.fromkeys(("processor", "date", "command", "model", "blocks"), "some"),
        **dict.fromkeys(("versions", "peers", "not_measured"), {}),
        **dict.fromkeys(("parameters", "rounds"), 6),
        "groups": [groups[1]],
    }
    assert ("are to be measured again" in table(figures)) == is_told
    names = [label.get_text() for label in chart(figures).axes[0].get_yticklabels()]
    assert ("other *" in names) == is_told and REFERENCE in names
    assert ("1, drifted" in page_tables.update_step(figures)[1]) == is_told


def test_nothing_to_hold_against_is_refused() -> None:
    with pytest.raises(UserError, match=f"{REFERENCE} could not be measured.*no luck"):
        rows({FLOOR: measured(1.0), REFERENCE: "no luck"}, 1)
