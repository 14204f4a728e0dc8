"""Flags from recipes: what the command line overrides, what is refused, what is packaged."""

import hashlib
import json
import pathlib
from typing import Any

import pytest
import yaml

from official_bert import finetune, finetune_plan, finetune_recipe, sweep
from tests.bert.tiny_squad import command_line, make_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return make_folder(tmp_path_factory.mktemp("sweep"))


def test_a_sweep_by_recipe(folder: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two real runs; what the recipe says holds but for what the command line says."""
    recipe = folder / "recipe.yaml"
    values = {"task": "squad", "train_steps": 9, "learning_rates": [1e-3, "2e-3"], "seeds": "4,"}
    recipe.write_text(yaml.safe_dump(values))
    arguments = [
        each for each in command_line(folder, "swept") if not each.startswith("--learning_rate=")
    ]
    arguments += [f"--init_checkpoint={folder / 'pretraining'}", f"--recipe={recipe}"]
    arguments += ["--train_steps=2"]
    assert finetune.main(arguments) == 0
    root = folder / "swept"
    saved = json.loads((root / sweep.RESULTS).read_text())
    assert [row["folder"] for row in saved["runs"]] == ["rate-0.001-seed-4", "rate-0.002-seed-4"]
    assert saved["settings"]["train_steps"] == 2 and "seed" not in saved["settings"]
    best = json.loads((root / sweep.BEST).read_text())
    scores = {row["folder"]: row["metrics"]["f1"] for row in saved["runs"]}
    assert best["score"] == max(scores.values()) == scores[best["path"]]
    for name in scores:
        run = root / name
        assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
        assert json.loads((run / "eval_metrics.json").read_text())["f1"] == scores[name]
    assert "best: rate-0.00" in capsys.readouterr().out
    digest = hashlib.sha256((folder / "squad.json").read_bytes()).hexdigest()
    assert saved["data_sha256"]["--dev_file"] == digest
    # Finished runs are read, not made again.
    modified = [(root / name / "predictions.json").stat().st_mtime_ns for name in scores]
    assert finetune.main(arguments) == 0
    assert modified == [(root / name / "predictions.json").stat().st_mtime_ns for name in scores]
    assert finetune.main([*arguments, "--seed=1", "--seeds=2"]) == 2
    assert "--seed and --seeds are given" in capsys.readouterr().err
    # A single run has no place here; it does no harm either.
    before = sorted(root.rglob("*"))
    single = [each for each in arguments if not each.startswith("--recipe=")]
    assert finetune.main(single) == 2
    assert "swept holds a sweep" in capsys.readouterr().err and before == sorted(root.rglob("*"))


@pytest.mark.parametrize(
    ("given", "content", "expected"),
    [
        ("--seed=7", "seeds: 4", {"seed": 7, "seeds": None}),
        ("--seeds=7", "seed: 4", {"seed": 0, "seeds": "7"}),
        ("--learning_rate=1", "learning_rates: [2, 3]", {"learning_rates": None}),
        ("--learning_rates=1,2", "learning_rate: 3", {"learning_rate": None}),
        ("--epochs=1", "train_steps: 9", {"epochs": 1.0, "train_steps": None}),
        ("--batch_size=8", "{seeds: 4, batch_size: 2}", {"seeds": "4", "batch_size": 8}),
    ],
)
def test_the_command_line_wins_by_either_name(
    given: str, content: str, expected: dict[str, Any], tmp_path: pathlib.Path
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(content)
    parsed = finetune.FLAGS
    parsed.unparse_flags()
    parsed(["finetune", "--model_dir=run", given])
    finetune_recipe.apply(str(recipe), parsed)
    assert {name: parsed[name].value for name in expected} == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rat: 1", "'learning_rat' is no flag of a recipe; did you mean learning_rate?"),
        ("model_dir: x", "'model_dir' is no flag of a recipe"),
        ("epochs: many", "epochs: "),
        ("optimizer: sgd", "optimizer: "),
        ("- task", "holds no flag: value pairs"),
        ("a: [", "is no YAML"),
    ],
)
def test_bad_recipes(
    content: str, message: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(content)
    assert finetune.main([f"--model_dir={tmp_path / 'run'}", f"--recipe={recipe}"]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_unknown_recipe_names_those_there_are(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finetune.main([f"--model_dir={tmp_path / 'run'}", "--recipe=none.yaml"]) == 2
    assert "no recipe at none.yaml" in capsys.readouterr().err


RECIPES = sorted(pathlib.Path(finetune_recipe.FOLDER).glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_packaged_recipes_are_whole(path: pathlib.Path) -> None:
    parsed = finetune.FLAGS
    parsed.unparse_flags()
    parsed(["finetune", "--model_dir=run", "--train_file=a", "--dev_file=b"])
    finetune_recipe.apply(path.name, parsed)
    chosen = finetune.from_flags(finetune_plan.Settings, parsed)
    assert chosen.model_dir == "run"
    assert sweep.seeds(parsed.seeds) and sweep.learning_rates(parsed.learning_rates)
    head = path.read_text()
    for word in ("Command:", "Cost:", "Result:", "Run:"):
        assert f"# {word}" in head
