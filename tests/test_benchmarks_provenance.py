"""What is measured once and kept is not dated anew when something else is measured."""

import json
import pathlib
from typing import Any

import pytest

from benchmarks import (
    exactness,
    exactness_kills,
    exactness_report,
    machine,
    provenance,
    transfer,
    transfer_report,
)
from benchmarks.transfer_report import PRETRAINED, RANDOM, Arm, Task
from official_bert import demo


def test_a_kill_keeps_the_heading_that_it_was_made_with(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def heading(day: int) -> dict[str, Any]:
        return {"date": f"2020-02-0{day}T00", "commit": f"c{day}", "command": f"on {day}"}

    def rows(*seconds: float) -> dict[str, Any]:
        ours = [{"seconds": each, "workers": 1, "kills": 1, "bit_equal": True} for each in seconds]
        return {"planned_kills": {"1": 7, "2": 0}, "ours": ours, "stock": []}

    measured = [rows(1.5), rows(1.5, 2.5), rows(1.5, 2.5) | {"planned_kills": {"1": 8, "2": 0}}]
    arguments = [f"--output={tmp_path / 'out'}", "--only=kills"]
    for day, found in enumerate(measured, start=1):
        monkeypatch.setattr(exactness_kills, "measure", lambda *_, found=found: found)
        monkeypatch.setattr(machine, "heading", lambda _, day=day: heading(day))
        assert exactness.main(arguments) == 0
        part = json.loads((tmp_path / "out.json").read_text())["kills"]
        if day == 1:  # as a file from before kills had headings
            for row in part["ours"]:
                for key in ("date", "commit", "processor", "versions"):
                    del row[key]
            (tmp_path / "out.json").write_text(json.dumps({"kills": part}))
    assert [row["date"][:10] for row in part["ours"]] == ["2020-02-01", "2020-02-02"]
    assert [row["commit"] for row in part["ours"]] == ["c1", "c2"]
    assert part["planned_kills"]["1"] == 8
    # Nothing was killed on the third day.
    assert (part["date"][:10], part["command"]) == ("2020-02-02", "on 2")
    table = exactness_report.table({"kills": part})
    assert "Measured 2020-02-01 to 2020-02-02 with " in table and "the code of `c1`, `c2`." in table


def test_the_rows_of_transfer_keep_the_heading_that_they_were_measured_with(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A figure that is the same as before was not measured again."""
    old, new = (
        {"date": f"{year}-01-02T03", "commit": commit, "command": "c", "processor": "p"}
        | {"versions": {"a": version}}
        for year, commit, version in ((2001, "old", "1"), (2002, "new", "2"))
    )
    scores = {"sst2": 1.0, "squad": 2.0}

    def tasks(layout: demo.Layout) -> list[Task]:
        return [
            Task(
                name=name,
                title=name,
                pretrained=Arm(starting_point=PRETRAINED, scores={"r": {0: score}}),
                random=Arm(starting_point=RANDOM, scores={"r": {0: score}}),
            )
            for name, score in scores.items()
        ]

    phase = {
        **dict.fromkeys(("seq_length", "steps", "examples", "training_seconds"), 1),
        **dict.fromkeys(("held_out_masked_lm_loss", "held_out_masked_lm_accuracy"), 0.5),
        "most_frequent_token_accuracy": 0.5,
    }
    monkeypatch.setattr(transfer, "read_tasks", tasks)
    monkeypatch.setattr(transfer, "read_phase", lambda layout, number: dict(phase))
    layout = demo.Layout(root="nowhere")
    first = json.loads(json.dumps(transfer.read_figures(layout, [], old, {})))
    assert "Measured 2001-01-02 on p, a 1, the code of `old`, by" in transfer_report.table(first)
    scores["squad"] = 3.0
    # Rows of a file from before they had headings take over that of the file.
    bare = [{key: row[key] for key in row if key not in old} for row in first["tasks"]]
    for before in (first, {**first, "tasks": bare}):
        second = transfer.read_figures(layout, [], new, before)
        rows = [*second["pretraining"], *second["tasks"]]
        assert [row["commit"] for row in rows] == ["old", "old", "old", "new"]
        assert [row["versions"]["a"] for row in rows] == ["1", "1", "1", "2"]
        table = transfer_report.table(second)
        assert "2001-01-02 to 2002-01-02 on p, a 1 and 2, the code of `old`, `new`, by" in table


def test_a_row_is_known_again_from_its_file_whatever_its_keys() -> None:
    """Ten seeds, whose numbers sort otherwise as words."""
    row = {"scores": {seed: float(seed) for seed in range(11)}, "date": "2000-01-01T00"}
    stored = json.loads(json.dumps(row))
    assert provenance.known(row, [stored]) is stored
    assert provenance.known({"scores": {**row["scores"], 10: 0.0}}, [stored]) is None


def test_what_took_part_is_named_once_in_order() -> None:
    headings = [
        {"date": f"2000-01-0{day}T00", "processor": processor, "versions": {"a": version}} | commit
        for day, processor, version, commit in (
            (3, "p", "1", {"commit": "x"}),
            (2, "q", "2", {"commit": ""}),
            (3, "p", "1", {}),
        )
    ]
    assert provenance.dates(headings) == "2000-01-02 to 2000-01-03"
    assert provenance.dates(headings[:1]) == "2000-01-03"
    assert provenance.processors(headings) == "p and on q"
    assert provenance.versions(headings) == "a 1 and 2"
    assert provenance.commits(headings[:1]) == "the code of `x`"
    assert "`x` and of commits that are not recorded" in provenance.commits(headings)
    assert provenance.commits(headings[1:]) == ""
