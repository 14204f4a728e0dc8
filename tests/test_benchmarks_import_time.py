"""The import times are measured and reported; what they are is for a quiet machine."""

import json
import pathlib
import sys

import pytest

from benchmarks import import_time

HEADING = {
    "date": "2000-01-02T03:04:05+00:00",
    "command": "python -m benchmarks.import_time",
    "processor": "Some CPU, 2 cores",
    "versions": {"python": "3.11.7", "tensorflow": "2.20.0"},
    "rounds": 3,
    "target": 1.2,
}
MEASURED = {
    "import tensorflow": [[4.0, 2.0], [2.0, 2.5], [2.5, 2.0]],
    "import tf_lans; tf_lans.LANS": [[3.0, 2.2], [2.8, 2.1], [9.0, 2.2]],
    "import tf_lans": [[0.1, 0.01], [0.05, 0.01], [0.05, 0.01]],
}


def test_programs_take_turns_in_processes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    programs = ("import csv", "assert 'csv' not in __import__('sys').modules; import wave")
    monkeypatch.setattr(import_time, "PROGRAMS", programs)
    measured = import_time.measure(sys.executable, 3)
    assert list(measured) == list(programs)
    for rounds in measured.values():
        assert len(rounds) == 3
        assert all(clock > 0 and processor >= 0 for clock, processor in rounds)


def test_medians_and_ratios() -> None:
    found = import_time.summary(MEASURED)
    ours = found[import_time.OURS]
    assert (ours["median_s"], ours["best_s"], ours["processor_median_s"]) == (3.0, 2.8, 2.2)
    assert ours["median_over_tensorflow"] == pytest.approx(1.2)
    assert ours["processor_over_tensorflow"] == pytest.approx(1.1)
    assert found[import_time.REFERENCE]["median_over_tensorflow"] == 1.0


@pytest.mark.parametrize(("target", "verdict"), [(1.21, "met"), (1.19, "missed")])
def test_the_verdict_goes_by_the_clock(target: float, verdict: str) -> None:
    figures = {**HEADING, "target": target, "programs": import_time.summary(MEASURED)}
    assert import_time.table(figures).endswith(
        f"under {target} of TensorFlow's own time: {verdict}"
    )
    assert "| `import tf_lans; tf_lans.LANS` | 1.200 | 1.100 |" in import_time.markdown(figures)


def test_an_environment_without_the_wheel_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(import_time, "_PACKAGES", ("no-such-package",))
    output = tmp_path / "figures"
    assert import_time.main([f"--python={sys.executable}", f"--output={output}"]) == 2
    assert "expected the Python of an environment with tf-lans" in capsys.readouterr().err
    assert not output.with_suffix(".json").exists()


def test_the_figures_in_the_tree_are_of_this_benchmark() -> None:
    path = pathlib.Path(import_time.__file__).parent / "results" / "import_time.json"
    if not path.is_file():
        pytest.skip("no import time was recorded yet")
    figures = json.loads(path.read_text())
    measured = {
        program: list(zip(row["all_s"], row["all_processor_s"], strict=True))
        for program, row in figures["programs"].items()
    }
    for program, row in import_time.summary(measured).items():
        recorded = figures["programs"][program]["median_over_tensorflow"]
        assert recorded == pytest.approx(
            row["median_over_tensorflow"], rel=1e-2
        )  # from rounded seconds
