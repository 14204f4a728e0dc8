"""Each benchmark runs and reports; what it measures is for a quiet machine, not for a test."""

import json
import pathlib
import subprocess
import sys

import pytest

from benchmarks import bert_shapes, update_contenders

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_the_shapes_are_those_of_bert_base() -> None:
    shapes = bert_shapes.block_shapes("bert_base")
    assert (len(shapes), bert_shapes.parameters(shapes)) == (206, 110_106_428)
    with pytest.raises(ValueError, match="bert_huge"):
        bert_shapes.block_shapes("bert_huge")


def test_the_update_step_is_measured_and_what_is_not_there_is_named(tmp_path) -> None:
    output = tmp_path / "figures"
    completed = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.update_step", "--model=bert_tiny", "--rounds=5"),
            *("--only=tensorflow-addons", f"--tfa_python={sys.executable}", f"--output={output}"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    assert "not measured: ModuleNotFoundError: No module named 'tensorflow_addons'" in (
        completed.stdout
    )
    figures = json.loads(output.with_suffix(".json").read_text())
    (group,) = figures["groups"]
    ours = group["tf_lans LANS, Keras 3"]
    assert len(ours["all_ms"]) == figures["rounds"] == 5
    assert ours["best_ms"] == pytest.approx(min(ours["all_ms"]), abs=1e-3)
    floor = group[update_contenders.FLOOR]
    bytes_moved = 28 * figures["parameters"]
    assert floor["best_ms"] == pytest.approx(
        1e3 * bytes_moved / (1e9 * floor["bandwidth_gb_per_s"])
    )
    assert ours["best_over_floor"] == pytest.approx(ours["best_ms"] / floor["best_ms"])
    assert ours["peak_over_state"] > 1.0
    assert output.with_suffix(".png").stat().st_size > 5_000
