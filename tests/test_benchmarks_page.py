"""The page of the benchmarks: fixed results to Markdown, what it refuses, and `--check`."""

import json
import pathlib
import re
import subprocess
from typing import Any

import numpy as np
import pytest

from benchmarks import exactness_report, page, page_sections, page_study, page_tables, turns
from tests.figures import ROOT
from tfrecords.errors import UserError

READ_ME = ROOT / "benchmarks" / "README.md"
WHERE: dict[str, Any] = {
    "date": "2000-01-02T03:04:05+00:00",
    "command": "python -m benchmarks.update_step --rounds=3",
    "processor": "Some CPU, 2 cores",
    "versions": {"python": "3.11.7", "tensorflow": "2.20.0"},
}


def row(seconds: list[float], lans: list[float]) -> dict[str, Any]:
    median, best = sorted(seconds)[1], min(seconds)
    return {
        "median_ms": 1e3 * median,
        "best_ms": 1e3 * best,
        "all_ms": [1e3 * s for s in seconds],
        "over_lans": turns.ratios(seconds, lans),
        "best_over_lans": best / min(lans),
        "over_floor": {"median": 2.5, "lowest": 2.0, "highest": 3.0, "of_medians": 2.25},
        "best_over_floor": 2.0,
        "first_s": 1.25,
        "peak_over_state": 1.125,
    }


UPDATE_STEP = {
    **WHERE,
    "model": "bert_tiny",
    "blocks": 46,
    "parameters": 4_400_000,
    "rounds": 3,
    "groups": [
        {
            "tf_lans LANS, Keras 3": row([0.1, 0.1, 0.12], [0.1, 0.1, 0.12]),
            "Keras Lamb, jit": row([0.2, 0.15, 0.23], [0.1, 0.1, 0.12]),
            "tensorflow-addons LAMB": {"not_measured": "no module | found\nhere"},
            "floor": {"bandwidth_gb_per_s": 10.0, "best_ms": 40.0, "median_ms": 40.0},
        },
        {
            "tf_lans LANS, Keras 3": row([0.2, 0.2, 0.2], [0.2, 0.2, 0.2]),
            "torch AdamW, fused": row([0.05, 0.1, 0.1], [0.2, 0.2, 0.2]),
            "floor": {"bandwidth_gb_per_s": 10.0, "best_ms": 40.0, "median_ms": 40.0},
        },
    ],
}


SYSTEM = {
    "system": "x LAMB",
    "is_ours": True,
    "cut": "2 replicas",
    "relative_l2_difference": 1.0,
    "with_key_biases": 1.0,
}


@pytest.fixture
def results(tmp_path: pathlib.Path) -> pathlib.Path:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "update_step_bert_tiny.json").write_text(json.dumps(UPDATE_STEP))
    (folder / "update_step_bert_tiny.png").write_bytes(b"")
    return folder


def cells(text: str) -> list[list[str]]:
    """The rows of all tables."""
    lines = [line.strip("|") for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.split("|")] for line in lines]


def test_a_section_is_what_its_json_says(results: pathlib.Path) -> None:
    text = page.page(results, results.parent / "docs" / "page.md")
    assert re.findall("^##? .*", text, re.MULTILINE) == [
        "# Benchmarks",
        "## The update step on a CPU: bert_tiny",
    ]
    assert (
        "\n2000-01-02; Some CPU, 2 cores; commit not recorded; python 3.11.7, tensorflow 2.20.0:\n"
        "\n```sh\npython -m benchmarks.update_step --rounds=3\n```\n"
    ) in text
    same = ["2.50", "1.2", "1.12"]
    ones = ["1.00", "1.00 to 1.00", "1.00", "1.00"]
    assert cells(text)[2:] == [
        ["torch AdamW, fused", "2", "0.50", "0.25 to 0.50", "0.50", "0.25", "100", *same],
        ["tf_lans LANS, Keras 3", "1", *ones, "100", *same],
        ["tf_lans LANS, Keras 3", "2", *ones, "200", *same],
        ["Keras Lamb, jit", "1", "1.92", "1.50 to 2.00", "2.00", "1.50", "200", *same],
    ]
    assert "Over the floor: the median of the rounds." in text
    assert "Not measured here:\n\n- tensorflow-addons LAMB: no module | found here\n" in text
    assert "![update step bert tiny](../results/update_step_bert_tiny.png)" in text


def test_results_that_are_not_there_are_left_out_and_more_come_in_order(
    results: pathlib.Path,
) -> None:
    quick = {
        **WHERE,
        "backend": "tensorflow",
        "examples": 256,
        "batches": [16, 64],
        "methods": 9,
        "runs": 56,
        "diverged": 1,
        "seconds": 12.5,
    }
    (results / "large_batch_quick.json").write_text(json.dumps(quick))
    commit = {**UPDATE_STEP, "model": "bert_base", "commit": "abc1234"}
    (results / "update_step_bert_base.json").write_text(json.dumps(commit))
    (results / "version_matrix.json").write_text("{}")
    text = page.page(results, results / "page.md")
    assert re.findall("^## .*", text, re.MULTILINE) == [
        "## The update step on a CPU: bert_base",
        "## The update step on a CPU: bert_tiny",
        "## The large-batch study, quick",
    ]
    assert "; commit abc1234; python" in text
    assert "56 runs of 256 examples, 9 methods at batches of 16 and 64" in text


def test_check_says_whether_the_document_is_current(
    results: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = results.parent / "page.md"
    flags = [f"--results={results}", f"--output={document}"]
    assert page.main([*flags, "--check"]) == 2 and not document.exists()
    assert page.main(flags) == 0
    assert page.main([*flags, "--check"]) == 0
    assert "is what the results say" in capsys.readouterr().out
    typed = document.read_text().replace("0.50", "0.40")
    document.write_text(typed)
    assert page.main([*flags, "--check"]) == 2 and document.read_text() == typed
    error = capsys.readouterr().err
    assert "write it by python -m benchmarks.page" in error and error.count("\n") == 1
    assert page.main(flags) == 0 and document.read_text() != typed
    assert {path.name for path in results.parent.iterdir()} == {"page.md", "results"}


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("notes.json", "{}", "belongs to no section"),
        ("data.json", "{", "is no JSON"),
        ("data.json", "[]", "no JSON object"),
        ("data.json", "{}", "is not what .* takes"),
        ("train_step.json", json.dumps(UPDATE_STEP), "is not what .* takes"),
        ("large_batch.jsonl", "nonsense\n{}\n", "line 1 is no record"),
    ],
)
def test_files_that_are_no_results_are_named(
    name: str, content: str, told: str, results: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (results / name).write_text(content)
    output = results.parent / "page.md"
    assert page.main([f"--results={results}", f"--output={output}"]) == 2
    error = capsys.readouterr().err
    assert re.search(told, error) and name in error and error.count("\n") == 1
    assert not output.exists()


def test_an_empty_folder_is_told(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="make benchmarks"):
        page.page(tmp_path, tmp_path / "page.md")


@pytest.fixture(scope="module")
def written() -> str:
    """The page of the results in the tree."""
    return page.page(page.RESULTS, page.DOCUMENT)


def in_tree(name: str) -> dict[str, Any]:
    return json.loads((page.RESULTS / f"{name}.json").read_text())


def test_the_update_steps_ratios_are_on_the_page(written: str) -> None:
    """Read from the JSON by another path than the page's; what was not measured is told."""
    rows = cells(written)
    shown = 0
    for number, group in enumerate(in_tree("update_step_bert_base")["groups"], start=1):
        rounds = group["tf_lans LANS, Keras 3"]["all_ms"]
        third = len(rounds) // 3
        first, last = np.median(rounds[:third]), np.median(rounds[-third:])
        drifted = abs(last - first) > 0.2 * first
        assert drifted == (f"\nGroup {number}: tf_lans LANS, Keras 3, over which" in written)
        label = f"{number}, drifted" if drifted else str(number)
        for name, each in group.items():
            if "not_measured" in each:
                assert f"\n- {name}: " in written
            elif name != "floor":
                lans = group["tf_lans LANS, Keras 3"]
                within = np.divide(each["all_ms"], lans["all_ms"])
                ratios = [np.median(within), each["median_ms"] / lans["median_ms"]]
                found = [row[2::2] for row in rows if row[:2] == [name, label]]
                assert [f"{ratio:.2f}" for ratio in ratios] in [row[:2] for row in found]
                shown += 1
    assert shown, "no figure at all: none of these was measured"


def test_the_train_steps_targets_are_on_the_page(written: str) -> None:
    rows = cells(written)
    measured = in_tree("train_step")
    rates = {each["contender"]: each.get("all_examples_per_s") for each in measured["contenders"]}
    shown = 0
    for target in measured["targets"]:
        (found,) = [found for found in rows if found[0] == target["name"]]
        if target["measured"] is None:
            assert found[2:] == ["not measured", "", ""]
            continue
        of, to = target["name"].removeprefix("throughput: ").split(" / ")
        # Of seven rounds only the whole range has 95 %: its confidence is 1 - 2 / 2^7.
        within = np.divide(rates[of], rates[to])
        assert len(within) == 7
        verdict = "met" if within.min() > target["bound"] else "not decided"
        verdict = "missed" if within.max() < target["bound"] else verdict
        interval = f"{within.min():.3f} to {within.max():.3f} (98 %)"
        assert found[2:] == [f"{target['measured']:.2f}", interval, verdict]
        shown += 1
    assert shown, "no figure at all: none of these was measured"


def test_the_rates_of_building_are_on_the_page(written: str) -> None:
    rows = cells(written)
    building = in_tree("data")["building"]

    def rounds_of(each: dict[str, Any]) -> np.ndarray:
        starts = each["all_startup_s"]  # of three rounds, of five where there are so many
        runs = each["all_s"][:: 2 if len(each["all_s"]) > len(starts) else 1]
        megabytes = (each["text_bytes"] - each["startup_bytes"]) / 1e6
        return megabytes / np.subtract(runs, starts) / each["cores"]

    (garden,) = [
        rounds_of(each)
        for each in building
        if each["contender"] == "Model Garden" and each["cores"] == 1
    ]
    for each in building:
        if "not_measured" in each:
            assert f"\n- {each['contender']}, cores: {each['cores']}: " in written
            continue
        rate = f"{np.median(rounds_of(each) / garden):.1f}"
        wanted = [each["contender"], each["makes"], str(each["cores"]), rate]
        assert wanted in [found[:4] for found in rows]


def test_every_chart_in_the_tree_is_on_the_page(written: str) -> None:
    for path in page.RESULTS.glob("*.png"):
        if not path.with_suffix(".json").exists() or path.stem == "version_matrix":
            continue
        assert f"](../benchmarks/results/{path.name})" in written


def test_links_lead_to_sections_of_the_documentation() -> None:
    headings = re.findall("^## (.*)", READ_ME.read_text(encoding="utf-8"), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}
    text = page.page(page.RESULTS, page.DOCUMENT)
    linked = set(re.findall(r"benchmarks/README\.md#([\w-]+)", text))
    assert linked and linked <= anchors
    assert {section.anchor for section in page_sections.SECTIONS} <= anchors


def commands(target: str, *variables: str) -> list[tuple[str, list[str]]]:
    """The modules that a target of the Makefile runs, with the names of their flags."""
    printed = subprocess.run(
        ["make", "-n", target, *variables], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.replace("\\\n", " ")
    lines = re.findall(r"python -m (benchmarks\.\w+)(.*)", printed)
    return [(module, re.findall(r"--(\w+)", arguments)) for module, arguments in lines]


@pytest.mark.parametrize(("target", "last"), [("benchmarks", 10), ("study", 2), ("transfer", 2)])
def test_targets_name_flags_that_there_are(target: str, last: int) -> None:
    found = commands(target, "CORPUS=text.txt", "BUDGET_HOURS=2")
    assert len(found) == last and found[-1] == ("benchmarks.page", [])
    for module, names in found:
        source = (ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")
        for name in names:
            peers = name.endswith("_python")  # defined in a loop
            assert peers or re.search(rf'DEFINE_\w+\(\s*"{name}"', source), (module, name)


def record(batch: int, diverged: bool = False, study: str = "s") -> dict[str, Any]:
    sizes = {"layers": 2, "width": 128}
    return {
        "kind": "run",
        "study": study,
        "run": f"{batch}",
        "seconds": 1800.0,
        "settings": {"batch": batch, "method": "AdamW"},
        "diverged": diverged,
        "common": {"backend": "jax", "model": "", "sizes": sizes, "examples": 4096},
        **{key: WHERE[key] for key in ("date", "processor", "versions")},
    }


def test_the_study_is_counted(tmp_path: pathlib.Path) -> None:
    records = [record(16), record(4096, diverged=True), record(16, study="t")]
    variance = {"kind": "variance", "study": "s"}
    (text,) = page_tables.study([variance, *records])
    first, second = cells(text)[2:]
    assert first[2:] == ["BERT, 2 layers, 128 wide", "16, 4,096", "4,096", "2", "1", "1.0"]
    assert second[3:] == ["16", "4,096", "1", "0", "0.5"]
    summary = page_study.summary([variance, *records[:2]])
    assert (summary["runs"], summary["diverged"], summary["batches"]) == (2, 1, [16, 4096])
    with pytest.raises(UserError, match="of one study"):
        page_study.summary(records)

    lines = tmp_path / "results.jsonl"
    lines.write_text("".join(json.dumps(each) + "\n" for each in records[:2]))
    output = tmp_path / "large_batch_quick"
    assert page_study.main([f"--records={lines}", f"--output={output}"]) == 0
    assert json.loads(output.with_suffix(".json").read_text()) == summary


def test_imports_are_over_tensorflows() -> None:
    row = {"median_over_tensorflow": 1.0625, "processor_over_tensorflow": 1.05, "median_s": 2.0}
    figures = {"programs": {"import x": {**row, "all_s": [1.9, 2.0, 2.5]}}, "target": 1.2}
    _, text = page_tables.import_time({**figures, "rounds": 3})
    assert cells(text)[2] == ["`import x`", "1.062", "1.050", "2.00", "1.90 to 2.50"]


def test_exactness_has_its_own_table_and_each_part_one_command(tmp_path: pathlib.Path) -> None:
    command = "python -m benchmarks.exactness"
    commands = {
        "coverage": f"{command} --only=error,coverage --output=o",
        "error": f"{command} --only error,cuts --again --output=o",
        "cuts": f"{command} --again=true --only=cuts --output=o --error_steps=5",
        "kills": f"{command} --output=o",
    }
    contents: dict[str, Any] = {
        "coverage": {"cases": []},
        "error": {"steps": 1, "methods": []},
        "cuts": {"steps": 1, "global_batch_size": 2, "rows": [SYSTEM, SYSTEM | {"is_ours": False}]},
        "kills": {"ours": [], "stock": [], "planned_kills": {"1": 1, "2": 1}},
    }
    figures = {name: {**WHERE, **contents[name], "command": commands[name]} for name in contents}
    (tmp_path / "exactness.json").write_text(json.dumps(figures))
    text = page.page(tmp_path, tmp_path / "page.md")
    assert exactness_report.table(figures).strip() in text
    assert (
        f"```sh\n{command} --output=o --only=coverage,error,kills\n"
        f"{command} --output=o --error_steps=5 --only=cuts\n```"
    ) in text
    same = {name: {**part, "command": commands["error"]} for name, part in figures.items()}
    assert exactness_report.commands(same) == [f"{command} --output=o"]
