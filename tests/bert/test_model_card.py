"""A run's README: what it says is what lies on disk, and nothing else is said."""

import json
import os
import pathlib
import re
import shlex

import pytest
import yaml
from official.core import config_definitions
from official.nlp.tasks import question_answering

import tfrecords
from official_bert import (
    configuration,
    experiments,
    finetune,
    metrics_log,
    model_card,
    squad_task,
    train,
)
from official_bert.export import __main__ as export
from official_bert.input import keep_tokenization
from tests.bert import fake_runs
from tests.bert.conftest import SHORT, VOCAB_SIZE
from tfrecords.errors import UserError

STEPS, BATCH = 40, 32


@pytest.fixture
def params(tiny) -> config_definitions.ExperimentConfig:
    return tiny(task__micro_batch_size=8, trainer__train_steps=STEPS)


def card_of(folder: pathlib.Path, params: object = None) -> tuple[dict, dict[str, str], str]:
    """Front matter, the facts of all tables and the whole text of a run's card."""
    assert model_card.write(str(folder), params) == str(folder / "README.md")
    text = (folder / "README.md").read_text(encoding="utf-8")
    _, front, body = text.split("---\n", 2)
    facts = dict(re.findall(r"^\| (.+?) \| (.*) \|$", body, flags=re.MULTILINE))
    return yaml.safe_load(front), facts, text


def test_a_pretraining_run(tmp_path, params, shards) -> None:
    folder = fake_runs.write(tmp_path / "phase1", params, STEPS, pieces=4)
    fake_runs.finish(folder, accuracy=0.375)
    keep_tokenization(params.task.train_data, str(folder))
    front, facts, text = card_of(folder)
    assert front == {
        "library_name": "tensorflow",
        "tags": ["tf-lans", "bert", "masked-lm", "lans"],
    }
    assert text.split("\n\n")[1] == "# phase1"
    expected = {
        "steps": "40 of 40",
        "skipped steps (gradient not finite)": "1",
        "training loss, first": "9.99",
        "training loss, mean of the last twentieth of the steps": "9.6",  # one row of 39
        "examples a second, median": "1,250.0",
        "evaluation at step 8: masked_lm_accuracy": "0.375",
        "evaluation at step 8: masked_lm_loss": "7.5",
        "training examples read": f"{STEPS * BATCH:,}",
        "training data": shards.name,
        "sequence length": str(SHORT),
        "encoder: num_layers": "2",
        "encoder: vocab_size": str(VOCAB_SIZE),
        "global batch, examples": "32",
        "micro-batch, examples of a replica": "8",
        "optimizer": "lans",
        "optimizer: weight_decay": "0.01",
        "learning rate: peak_learning_rate": "0.05",
        "precision": "float32",
        "strategy": "one_device",
        "step 5: trainer.train_steps": "6 to 20",
    }
    assert expected.items() <= facts.items()
    assert not any(value == "null" for value in facts.values())
    # From B (25 - 9) / (9 N - 25): 46.5 examples, 47 to two digits.
    assert re.search(r"last 39 steps with both norms: 47 \+- \S+ examples; batch: 32\.", text)
    assert "It is about right" in text
    assert not list(folder.glob("*.partial-*"))


def test_the_data_are_the_manifests(tmp_path, params, shards) -> None:
    folder = fake_runs.write(tmp_path / "run", params, STEPS)
    _, facts, _ = card_of(folder)
    manifest = json.loads((shards / "manifest.json").read_text())
    split = manifest["sequences"][str(SHORT)]["splits"]["train"]["shards"]
    count = sum(shard["examples"] for shard in split)
    assert facts["train split"] == f"{count:,} examples in 4 shards"
    assert facts["passes over the train split"] == f"{STEPS * BATCH / count:.3g}"
    assert facts["vocabulary, sha256"] == manifest["vocabulary_sha256"]
    assert facts["lower-cased"] == "true"
    assert facts["build: options.dupe_factor"] == "1"
    assert facts["build: input.sha256"] == manifest["identity"]["input"]["sha256"]


def test_no_path_of_this_machine_is_told(tmp_path, params, shards) -> None:
    params = params.replace(task=params.task.replace(init_checkpoint=f"{tmp_path}/phase1/ckpt-6"))
    folder = fake_runs.write(tmp_path / "run", params, STEPS)
    _, facts, text = card_of(folder)
    assert facts["started from"] == "phase1/ckpt-6"
    assert str(tmp_path) not in text and str(shards.parent) not in text


def test_without_its_shards_a_run_keeps_to_what_it_has(tmp_path, params, shards) -> None:
    folder = fake_runs.write(tmp_path / "run", params, STEPS)
    keep_tokenization(params.task.train_data, str(folder))
    gone = params.task.train_data.replace(input_path=str(tmp_path / "gone"))
    _, facts, _ = card_of(folder, params.replace(task=params.task.replace(train_data=gone)))
    manifest = tfrecords.Manifest.load(shards)
    assert facts["training data"] == "gone"
    assert facts["vocabulary, sha256"] == manifest.vocabulary_sha256
    assert facts["lower-cased"] == "true"
    assert "train split" not in facts and not any(name.startswith("build") for name in facts)


@pytest.mark.parametrize("damage", ["{", '{"format_version": 1}', "another vocabulary"])
def test_a_manifest_that_is_not_the_runs_is_left_out(tmp_path, params, shards, damage) -> None:
    folder = fake_runs.write(tmp_path / "run", params, STEPS)
    keep_tokenization(params.task.train_data, str(folder))
    other = tmp_path / "other"
    other.mkdir()
    if damage == "another vocabulary":
        stored = json.loads((shards / "manifest.json").read_text())
        damage = json.dumps(stored | {"vocabulary_sha256": "0" * 64})
    (other / "manifest.json").write_text(damage)
    data = params.task.train_data.replace(input_path=str(other))
    _, facts, text = card_of(folder, params.replace(task=params.task.replace(train_data=data)))
    assert "train split" not in facts and "0" * 64 not in text


def test_a_run_that_has_left_little(tmp_path, params) -> None:
    folder = tmp_path / "run"
    configuration.save(params, str(folder))
    _, facts, text = card_of(folder)
    assert facts["steps"] == "0 of 40"
    absent = ("loss", "evaluation at", "skipped", "a second", "examples read", "step 5")
    assert not [name for name in facts if any(word in name for word in absent)]
    assert "noise scale is not known" in text and "Changed on the way" not in text


def test_why_the_noise_scale_is_not_known(tmp_path, tiny) -> None:
    whole = fake_runs.write(tmp_path / "whole", tiny(), STEPS)
    mirrored = tiny(runtime__distribution_strategy="mirrored")
    many = fake_runs.write(tmp_path / "many", mirrored, STEPS)
    # Two pieces of norm 5 hide a gradient where their sum has norm 3: 2 * 9 < 25.
    hidden = fake_runs.write(tmp_path / "hidden", tiny(task__micro_batch_size=16), STEPS, pieces=2)
    for folder, reason in (
        (whole, "the batch was taken in one piece"),
        (many, "no file says in how many pieces"),
        (hidden, "the logged norms of the gradient do not tell it"),
    ):
        assert f"The gradient noise scale is not known: {reason}" in card_of(folder)[2]


def test_a_finetuning_run_has_no_manifest(tmp_path, params) -> None:
    encoder = params.task.model.encoder
    task = squad_task.SquadConfig(model=question_answering.ModelConfig(encoder=encoder))
    data = {"input_path": "/data/squad/train.json", "do_lower_case": False}
    task = task.replace(train_data=task.train_data.replace(**data))
    params = config_definitions.ExperimentConfig(
        task=task, trainer=params.trainer, runtime=params.runtime
    )
    folder = fake_runs.write(tmp_path / "finetuned", params, 10)
    fake_runs.log(folder, metrics_log.EVALUATIONS, [{"step": 10, "exact_match": 80.5, "f1": 88.0}])
    front, facts, text = card_of(folder)
    assert "question-answering" in front["tags"] and "masked-lm" not in text
    assert facts["training data"] == "train.json" and facts["lower-cased"] == "false"
    assert facts["evaluation at step 10: f1"] == "88"
    assert "official_bert.train" not in text


def commands(text: str) -> list[list[str]]:
    return [shlex.split(line) for line in text.splitlines() if line.startswith("    python -m ")]


def test_the_commands_are_those_of_the_tree(tmp_path, params) -> None:
    folder = fake_runs.write(tmp_path / "run", params, STEPS)
    found = {command[2]: command[3:] for command in commands(card_of(folder)[2])}
    modules = {
        "official_bert.train": train,
        "official_bert.export": export,
        "official_bert.finetune": finetune,
    }
    assert found.keys() == modules.keys()
    for name, module in modules.items():
        module.FLAGS.unparse_flags()
        assert module.FLAGS([name, *found[name]]) == [name]
    # The resumed run is the run.
    (config,) = [flag for flag in found["official_bert.train"] if flag.startswith("--config_file")]
    path = config.split("=")[1].replace("MODEL_DIR", os.fspath(folder))
    assert configuration.load(experiments.PRETRAINING, [path]).as_dict() == params.as_dict()


def test_a_readme_of_the_users_own_is_kept(tmp_path, params) -> None:
    folder = fake_runs.write(tmp_path / "run", params, STEPS)
    card_of(folder)
    card_of(folder)  # its own is written anew
    (folder / "README.md").write_text("mine")
    assert model_card.write(str(folder)) is None
    assert (folder / "README.md").read_text() == "mine"


def test_a_folder_that_is_no_run_is_refused(tmp_path) -> None:
    with pytest.raises(UserError, match=r"holds no params\.yaml"):
        model_card.write(str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_bars_do_not_break_the_table(tmp_path, tiny) -> None:
    params = tiny(trainer__optimizer_config__optimizer__lans__exclude_from_weight_decay="[a|b]")
    folder = fake_runs.write(tmp_path / "run", params, STEPS)
    _, facts, _ = card_of(folder)
    assert facts["optimizer: exclude_from_weight_decay"] == r'["a\|b"]'
