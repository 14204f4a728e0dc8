"""No figure of ours in the documentation is typed by hand: each follows from a JSON in the tree."""

import dataclasses
import importlib
import json
import pathlib
import re
from collections.abc import Iterable, Iterator

import pytest

from benchmarks import (
    large_batch_charts,
    large_batch_methods,
    large_batch_queue,
    large_batch_report,
    large_batch_table,
    markdown_part,
    page,
)
from benchmarks.large_batch_settings import Study
from tests import figures
from tests.figures import ROOT, Bound
from tests.figures_allowed import ALLOWED, BOUND

# The page of the benchmarks is generated as a whole.
WHOLE = ROOT / "docs" / "benchmarks.md"
DOCUMENTS = {
    str(path.relative_to(ROOT)): path
    for path in (
        *sorted(ROOT.glob("*.md")),
        ROOT / "benchmarks" / "README.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    )
    if path != WHOLE
}
# Of each generated part, the function that writes it, and the results that this takes.
WRITERS = {
    "benchmarks.exactness": ("benchmarks.exactness_report:table", "exactness.json"),
    "benchmarks.transfer": ("benchmarks.transfer_report:table", "transfer.json"),
    "benchmarks.version_matrix": ("benchmarks.version_matrix:table", "version_matrix.json"),
    "benchmarks.data_rates": ("benchmarks.data_rates_report:markdown", "data_rates.json"),
    (STUDY := "benchmarks.large_batch"): ("", "large_batch.jsonl"),
}
# Parts without results, and the test that compares them.
COMPARED = {"official_bert.plan --published": "tests/bert/test_plan_time.py"}

each_document = pytest.mark.parametrize("name", DOCUMENTS)


def study_parts() -> Iterator[str]:
    """What `benchmarks.large_batch` may have written, for each study that its results hold."""
    results = figures.RESULTS / "large_batch.jsonl"
    records = large_batch_queue.read(results)
    for study in large_batch_queue.all_planned(records):
        target = large_batch_report.target_loss(study, records, None)
        prefix = large_batch_charts.prefix(f"../benchmarks/results/{results.name}", study, records)
        names = large_batch_charts.choose(study, records, target)
        charts = [f"{prefix}_{name}.png" for name in names]
        yield large_batch_table.table(study, records, charts, target).strip()


def expected_parts(name: str) -> Iterable[str]:
    """What a part may hold: nothing, as long as there are no results."""
    writer, results = WRITERS[name]
    if not (figures.RESULTS / results).exists():
        return [""]
    if name == STUDY:
        return study_parts()
    module, _, function = writer.partition(":")
    content = json.loads((figures.RESULTS / results).read_text(encoding="utf-8"))
    return [getattr(importlib.import_module(module), function)(content).strip()]


@each_document
def test_generated_parts_are_what_the_results_say(name: str) -> None:
    document = DOCUMENTS[name].read_text(encoding="utf-8")
    for writer, part in figures.parts(document):
        if writer in COMPARED:
            assert writer in (ROOT / COMPARED[writer]).read_text(encoding="utf-8")
            continue
        assert writer in WRITERS, f"{name}: {writer!r} is not known here"
        assert part.strip() in expected_parts(writer), (
            f"{name} differs from the results in what {writer} writes; write it anew"
        )
    # A mark without its other half would hide nothing and be compared with nothing.
    assert document.count("<!-- written by") == 2 * len(list(figures.parts(document)))


def test_the_page_of_the_benchmarks_is_what_the_results_say() -> None:
    assert WHOLE.read_text(encoding="utf-8") == page.page(figures.RESULTS, WHOLE), (
        "docs/benchmarks.md differs; write it by python -m benchmarks.page"
    )


def test_the_studys_charts_are_those_that_its_results_show() -> None:
    shown = set().union(*(re.findall(r"large_batch_\w+\.png", part) for part in study_parts()))
    there = {path.name for path in figures.RESULTS.glob("large_batch_*.png")}
    assert there == shown, "draw them anew by python -m benchmarks.large_batch --report_only"


@each_document
def test_no_figure_is_typed_by_hand(name: str) -> None:
    allowed = [text for texts in ALLOWED.get(name, {}).values() for text in texts]
    allowed += [bound.rendered() for bound in BOUND if bound.document == name]
    document = DOCUMENTS[name].read_text(encoding="utf-8")
    left = figures.unexplained(document, allowed)
    assert not left, (
        f"{name} has figures that neither a JSON nor tests/figures_allowed.py explains: "
        + "; ".join(left)
    )
    stale = figures.absent(document, allowed)
    assert not stale, f"{name} no longer has, or has otherwise: {stale}"


def test_the_lists_name_documents_that_there_are() -> None:
    assert set(ALLOWED) | {bound.document for bound in BOUND} <= set(DOCUMENTS)


# The search itself


@pytest.mark.parametrize(
    "text",
    [
        "LANS takes 1.37 times as long.",
        "On Keras 1.37 times as long.",
        "It is three times faster.",
        "It is twice as fast.",
        "Stock draws 75 % of the examples.",
        "Stock draws 75 percent of them.",
        "a 3x gain",
        "a gain of 3 ×",
        "About 21 ms an update.",
        "It took five\nminutes.",
        "Half an hour on two cores.",
        "28,500 examples/s on one core",
        "28,500 examples a second",
        "6 GB of memory",
        "20 of 20 kills, and six of six",
        "two out of three",
        "a loss of 3.21",
        "to 1e-5",
        "| LANS | 0.29 |",
        "```sh\nmake demo   # 10 minutes\n```",
        "```sh\n# 10 minutes\nmake demo\n```",
        "```\n1.4 s\n```",
        "```text\n1.4 s\n```",
    ],
)
def test_a_typed_figure_is_found(text: str) -> None:
    (found,) = {each.partition(":")[0] for each in figures.unexplained(f"One.\n\n{text}\n", [])}
    assert re.fullmatch(r"line \d", found)
    assert figures.unexplained(text, [text.removeprefix("```sh\n")]) == []


@pytest.mark.parametrize(
    "text",
    [
        "Keras 3 and TensorFlow 2.20, tf-models-official 2.20.0, on Python 3.11.",
        "arXiv 2006.13484, section 3.4, equation (9), Table 2",
        "phase 1 has 3,519 steps of 98,304 examples, from step 0",
        "from random ones, in 16 bits",
        "see [here](https://example.org/1.5/20%) and https://example.org/1.5",
        "`--rate=0.5` and `0.9 times`",
        "```sh\npython -m x --rate=0.01   # slow\n```",
        "```python\nx = 0.5  # 3 s\n```",
        "<!-- written by some.module: begin -->\n\n0.5 s\n<!-- written by some.module: end -->",
        "<!-- written by x: begin -->\n0.5 s\n<!-- written by x: end -->",
    ],
)
def test_names_settings_in_code_and_generated_parts_are_none(text: str) -> None:
    assert figures.unexplained(f"One.\n\n{text}\n", []) == []


def test_an_allowed_text_explains_what_it_holds_and_nothing_else() -> None:
    text = "The default is 0.1\nthroughout. It takes 0.1 s."
    assert figures.unexplained(text, ["default is 0.1 throughout"]) == ["line 2: '0.1 s'"]
    assert figures.absent(text, ["default is 0.1 throughout", "is 0.2"]) == ["is 0.2"]


def test_a_bound_sentence_follows_its_json(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "RESULTS", tmp_path)
    rows = [{"who": "a", "cores": 1, "share": 0.25}, {"who": "a", "cores": 2, "share": 0.752}]
    (tmp_path / "x.json").write_text(json.dumps({"rows": rows, "best": 1}))
    bound = Bound(
        document="a.md",
        text="from {:.0f} % to {:.1f} %",
        results="x.json",
        paths=(["rows", 0, "share"], ["rows", {"who": "a", "cores": 2}, "share"]),
        scale=100,
    )
    assert bound.rendered() == "from 25 % to 75.2 %"
    assert figures.unexplained("It goes from 25 % to 75.2 % now.", [bound.rendered()]) == []
    assert figures.unexplained("It goes from 25 % to 75.3 % now.", [bound.rendered()])
    with pytest.raises(KeyError):
        dataclasses.replace(bound, paths=(["rows", 0, "none"], ["best"])).rendered()


def test_a_part_is_what_its_marks_hold() -> None:
    begin, end = markdown_part.marks("a.module")
    document = markdown_part.replaced(f"x\n{begin}\n{end}\ny", "a.module", "text 1")
    assert [(name, text.strip()) for name, text in figures.parts(document)] == [
        ("a.module", "text 1")
    ]


def test_the_study_is_found_again_in_its_records(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "RESULTS", tmp_path)
    for batches in ((256, 1024, 4096), (8, 16)):
        study = Study(data=str(batches), examples=2 * 4096, batches=batches)
        for method in large_batch_methods.METHODS.values():
            each = large_batch_methods.drawn(study, method, 0)
            record = {
                "kind": "run",
                "study": study.key,
                "run": each.key(study),
                "settings": dataclasses.asdict(each),
                "common": study.common(),
                "curve": [[0, None, 4.0], [1, 3.9, 3.5]],
                "validation_loss": 3.5,
                "test_loss": 3.6,
                "diverged": False,
                "seconds": 1.0,
                "date": "2000-01-01",
                "source": "none",
                "processor": "none",
                "versions": {},
            }
            large_batch_queue.append(tmp_path / "large_batch.jsonl", record)
        fewer = dataclasses.replace(study, draws=3, seeds=2)
        for asked, target in ((study, None), (fewer, 3.7)):
            path = tmp_path / "large_batch.jsonl"
            large_batch_queue.note_plan(path, asked, target, {"validation": 3.9, "test": 4.0})
            records = large_batch_queue.read(path)
            prefix = large_batch_charts.prefix("../benchmarks/results/large_batch", asked, records)
            named = large_batch_report.target_loss(asked, records, target)
            names = large_batch_charts.choose(asked, records, named)
            charts = [f"{prefix}_{name}.png" for name in names]
            part = large_batch_table.table(asked, records, charts, named)
            assert part.strip() in study_parts()
            assert part.replace("3.500", "3.501").strip() not in study_parts()
