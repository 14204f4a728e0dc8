"""The examples explain what they cannot do, and documented commands have their flags."""

import pathlib
import re
import shlex
import types

import pytest

from tests.examples import EXAMPLES, ROOT, load


@pytest.fixture(scope="module")
def pretraining() -> types.ModuleType:
    return load("keras_hub_pretrain")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input_dir=nowhere"], "no manifest.json in nowhere"),
        (["--seq_length=48"], "48"),
        (["--steps=30", "--report_every=20"], "--steps=30 is no multiple of --report_every=20"),
        (["--warmup_ratio=0.8"], "--warmup_ratio=0.8 and --constant_ratio=0.2735 are more"),
        (["--hidden_dim=10", "--num_heads=4"], "--hidden_dim=10 is no multiple of --num_heads=4"),
        (["--model=gpt"], "--model=gpt"),
        (["--distribution=data_parallel"], "set KERAS_BACKEND=jax"),
        (["--distribution=mirrored", "--batch_size=33"], "a multiple of their number, such as 34"),
        (["--output={full}"], "is not empty"),
    ],
)
def test_pretraining_explains_what_it_cannot_do(
    arguments: list[str],
    message: str,
    pretraining: types.ModuleType,
    example_shards: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "kept").write_text("kept")
    given = [argument.format(full=tmp_path) for argument in arguments]
    assert pretraining.main([f"--input_dir={example_shards}", *given]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input_dir=nowhere"], "no manifest.json in nowhere"),
        (["--batch_size=64", "--micro_batch_size=48"], "--batch_size=64 is no multiple of"),
    ],
)
def test_the_loop_explains_what_it_cannot_do(
    arguments: list[str],
    message: str,
    example_shards: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    given = [f"--input_dir={example_shards}", f"--model_dir={run}", *arguments]
    assert load("custom_loop").main(given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line
    assert not run.exists()


def documented() -> list[tuple[str, list[str]]]:
    """The examples' commands in their docstrings and in the documents."""
    found = []
    for path in [*EXAMPLES.glob("*.py"), ROOT / "docs" / "keras.md"]:
        text = path.read_text(encoding="utf-8").replace("\\\n", " ")
        for name, arguments in re.findall(r"python examples/(\w+)\.py((?: +--\S+)+)", text):
            found.append((name, shlex.split(arguments)))
    return found


@pytest.mark.parametrize(("name", "arguments"), documented())
def test_documented_commands_have_the_flags(name: str, arguments: list[str]) -> None:
    if "--help" not in arguments:
        flag_values = load(name).FLAGS
        flag_values.unparse_flags()
        assert flag_values(["command", *arguments]) == ["command"]
