"""The benchmark runs on a small model, GPU or not, and says what it measured."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks import bert_shapes
from tests.backends.harness import only_jax

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("model", "blocks", "millions"),
    [("bert_tiny", 46, 4.4), ("bert_base", 206, 110.1), ("bert_large", 398, 336.2)],
)
def test_shapes_are_those_of_bert(model: str, blocks: int, millions: float) -> None:
    shapes = bert_shapes.block_shapes(model)
    assert len(shapes) == blocks
    assert bert_shapes.parameters(shapes) == pytest.approx(1e6 * millions, rel=0.01)


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(ValueError, match="bert_small.*expected one of bert_tiny"):
        bert_shapes.block_shapes("bert_small")


@only_jax
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_benchmark_reports_its_figures(dtype: str, tmp_path: pathlib.Path) -> None:
    output = tmp_path / "figures.json"
    flags = ["--model=bert_tiny", f"--dtype={dtype}", "--rounds=5", f"--output={output}"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.update_step_gpu", *flags],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if key != "XLA_FLAGS"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(output.read_text())
    first = done.stdout.splitlines()[0]
    assert first.startswith("no GPU here") == (not figures["gpu"])
    assert figures["device"] in first
    assert figures["floor_ms"] > 0
    rows = figures["contenders"]
    assert len(rows) == 6
    for name, row in rows.items():
        assert row["status"] == "measured" or "not installed: t" in row["status"], name
        assert name in done.stdout
    for name in ("tf_lans LANS", "optax lamb"):
        assert rows[name]["best_ms"] <= rows[name]["median_ms"]
        assert len(rows[name]["all_ms"]) == 5
    assert rows["tf_lans LANS"]["state_dtype"] == "float32"
