"""Finetuning end to end: what is inherited, what is restored, that it learns, what it leaves."""

import itertools
import json
import math
import pathlib
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
import yaml
from official.core import task_factory
from official.nlp.tools import squad_evaluate_v1_1

from official_bert import (
    configuration,
    experiments,
    finetune,
    runner,
    squad_task,
    starting_point,
)
from tfrecords.errors import UserError

WORDS = ["the", "of", "is", "and", "in", "red", "blue", "large", "small", "colour", "size"]
WORDS += ["green", "box", "lamp", "chair", "door", "what"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "?", ".", ":"]
ENCODER = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 64,
    "num_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 128,
    "max_position_embeddings": 72,
    "dropout_rate": 0.0,
    "attention_dropout_rate": 0.0,
}
MODEL = {
    "encoder": {"type": "bert", "bert": ENCODER},
    "cls_heads": [
        {"inner_dim": 64, "num_classes": 2, "dropout_rate": 0.0, "name": "next_sentence"}
    ],
}

TRAINER = {
    "train_steps": 1,
    "optimizer_config": {
        "learning_rate": {"warmup_constant_decay": {"warmup_steps": 1}},
    },
}


def questions() -> dict[str, Any]:
    """24 contexts that name a colour among other words, anywhere; the question asks for it."""
    articles = []
    cases = itertools.product(("box", "lamp", "chair", "door"), ("red", "blue", "green"), (0, 1))
    for number, (thing, colour, place) in enumerate(cases):
        size = ("large", "small")[number % 2]
        words = (f"{colour} and {size}", f"{size} and in {colour}")[place]
        context = f"the {thing} of the door is {words} ."
        question = {
            "id": f"question {number}",
            "question": f"what colour is the {thing} ?",
            "answers": [{"text": colour, "answer_start": context.index(colour)}],
        }
        articles.append({"title": "t", "paragraphs": [{"context": context, "qas": [question]}]})
    return {"version": "1.1", "data": articles}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """SQuAD files, a vocabulary, a config, and a pretraining run with a checkpoint."""
    root = tmp_path_factory.mktemp("finetune")
    (root / "squad.json").write_text(json.dumps(questions()))
    (root / "vocab.txt").write_text("".join(f"{token}\n" for token in VOCABULARY))
    (root / "small.yaml").write_text(yaml.safe_dump({"task": {"model": MODEL}, "trainer": TRAINER}))
    experiments.register()
    params = configuration.load(experiments.PRETRAINING, [str(root / "small.yaml")])
    task = task_factory.get_task(params.task)
    trainer = runner.build_trainer(params, task, train=True, evaluate=False)
    run = root / "pretraining"
    run.mkdir()
    configuration.save(params, str(run))
    (run / "vocab.txt").write_bytes((root / "vocab.txt").read_bytes())
    manager = tf.train.CheckpointManager(trainer.checkpoint, str(run), max_to_keep=1)
    manager.save(checkpoint_number=7)
    return root


def command_line(folder: pathlib.Path, model_dir: str, *more: str) -> list[str]:
    return [
        "--task=squad",
        f"--train_file={folder / 'squad.json'}",
        f"--dev_file={folder / 'squad.json'}",
        f"--model_dir={folder / model_dir}",
        "--batch_size=16",
        "--seq_length=72",
        "--learning_rate=1e-3",
        *more,
    ]


def from_scratch(folder: pathlib.Path) -> list[str]:
    return [f"--config_file={folder / 'small.yaml'}", f"--vocab_file={folder / 'vocab.txt'}"]


def metrics(folder: pathlib.Path, model_dir: str) -> dict[str, float]:
    return json.loads((folder / model_dir / squad_task.METRICS).read_text())


@pytest.fixture(scope="module")
def finetuned(folder: pathlib.Path) -> str:
    """A run from the pretraining run's checkpoint, long enough to learn its questions by heart."""
    arguments = command_line(
        folder, "finetuned", f"--init_checkpoint={folder / 'pretraining'}", "--train_steps=50"
    )
    assert finetune.main(arguments) == 0
    return "finetuned"


def test_encoder_and_pooler_are_the_checkpoints(folder: pathlib.Path) -> None:
    start = starting_point.find(str(folder / "pretraining"))
    assert start.checkpoint.endswith("ckpt-7")
    config = squad_task.SquadConfig(init_checkpoint=start.checkpoint)
    config.model.encoder = start.encoder
    config.validation_data.input_path = config.train_data.input_path = str(folder / "squad.json")
    for data in (config.train_data, config.validation_data):
        data.vocab_file, data.seq_length = start.vocabulary.path, 72
    task = squad_task.SquadTask(config)
    # Other weights than those the checkpoint happened to be made with.
    tf_keras.utils.set_random_seed(1)
    model = task.build_model()
    encoder = model.checkpoint_items["encoder"]
    saved = tf.train.load_checkpoint(start.checkpoint)
    suffix = "/.ATTRIBUTES/VARIABLE_VALUE"
    arrays = {
        name.removesuffix(suffix): saved.get_tensor(name)
        for name in saved.get_variable_to_shape_map()
        if name.endswith(suffix) and "optimizer" not in name
    }
    before = [variable.numpy() for variable in encoder.trainable_variables]
    task.initialize(model)
    pooler = encoder.pooler_layer
    fresh = {id(variable) for variable in pooler.trainable_variables}
    kernels = 0
    for old, variable in zip(before, encoder.trainable_variables, strict=True):
        value = variable.numpy()
        same = [
            name
            for name, array in arrays.items()
            if array.shape == value.shape and np.array_equal(array, value)
        ]
        assert same, variable.name
        if value.std() > 0:
            kernels += 1
            assert not np.array_equal(old, value), variable.name
            assert ("next_sentence" in same[0]) == (id(variable) in fresh), (variable.name, same)
    assert kernels == 3 + 2 * 6 + 1


def test_it_learns_its_questions(folder: pathlib.Path, finetuned: str) -> None:
    scores = metrics(folder, finetuned)
    assert scores["exact_match"] > 90 and scores["f1"] > 90
    rows = [json.loads(line) for line in (folder / finetuned / "metrics.jsonl").open()]
    assert [row["step"] for row in rows] == list(range(1, 51))
    assert rows[0]["loss"] > 3.5 > 1.5 > rows[-1]["loss"]
    rates = [row["learning_rate"] for row in rows]
    assert max(rates) == pytest.approx(1e-3) and rates[0] < 3e-4 and rates[-1] < 1e-4


def test_what_a_run_leaves(folder: pathlib.Path, finetuned: str) -> None:
    run = folder / finetuned
    articles = questions()["data"]
    predictions = json.loads((run / squad_task.PREDICTIONS).read_text())
    ids = [qa["id"] for a in articles for p in a["paragraphs"] for qa in p["qas"]]
    assert list(predictions) == ids
    official = squad_evaluate_v1_1.evaluate(articles, predictions)
    scores = metrics(folder, finetuned)
    assert scores["exact_match"] == pytest.approx(100 * official["exact_match"], abs=1e-12)
    assert scores["f1"] == pytest.approx(100 * official["final_f1"], abs=1e-12)
    assert (scores["step"], scores["questions"]) == (50, 24)
    nbest = json.loads((run / squad_task.NBEST).read_text())
    for identifier, answers in nbest.items():
        assert answers[0]["text"] == predictions[identifier]
        assert sum(answer["probability"] for answer in answers) == pytest.approx(1)
        logits = [answer["start_logit"] + answer["end_logit"] for answer in answers]
        assert logits == sorted(logits, reverse=True) and len(answers) > 1
    assert (run / "vocab.txt").read_bytes() == (folder / "vocab.txt").read_bytes()
    assert tf.train.latest_checkpoint(str(run)).endswith("ckpt-50")


def test_a_finished_run_only_answers_again(
    folder: pathlib.Path, finetuned: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = metrics(folder, finetuned)
    log = (folder / finetuned / "metrics.jsonl").read_bytes()
    arguments = command_line(
        folder, finetuned, f"--init_checkpoint={folder / 'pretraining'}", "--train_steps=50"
    )
    (folder / finetuned / squad_task.PREDICTIONS).unlink()
    assert finetune.main(arguments) == 0
    assert metrics(folder, finetuned) == before
    assert (folder / finetuned / squad_task.PREDICTIONS).exists()
    assert (folder / finetuned / "metrics.jsonl").read_bytes() == log
    assert f"F1 {before['f1']:.2f}" in capsys.readouterr().out


def test_random_weights_take_the_same_path_on_two_replicas(folder: pathlib.Path) -> None:
    losses = {}
    for strategy in ("one_device", "mirrored"):
        arguments = command_line(
            folder, strategy, *from_scratch(folder), "--train_steps=2",
            f"--distribution_strategy={strategy}",
        )  # fmt: skip
        assert finetune.main(arguments) == 0
        rows = [json.loads(line) for line in (folder / strategy / "metrics.jsonl").open()]
        losses[strategy] = [row["loss"] for row in rows]
        assert len(json.loads((folder / strategy / squad_task.PREDICTIONS).read_text())) == 24
    # Equal up to the order of float32 sums.
    np.testing.assert_allclose(losses["mirrored"], losses["one_device"], rtol=1e-4)
    # Untrained logits are all but equal over the 72 places.
    assert losses["one_device"][0] == pytest.approx(math.log(72), abs=0.1)


def test_casing_and_vocabulary_are_found(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run = str(folder / "pretraining")
    start = starting_point.find(run)
    assert start.lower_case and start.vocabulary.path.startswith(run)
    assert start.encoder.get().hidden_size == 64
    assert not starting_point.find(run, lower_case=False).lower_case
    cased = tmp_path / "cased.txt"
    cased.write_text("".join(f"{token}\n" for token in [*VOCABULARY[:-1], "Box"]))
    assert not starting_point.find(run, vocab_file=str(cased)).lower_case


def _fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert finetune.main(arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--init_checkpoint={root}/empty"], "no checkpoint at"),
        (["--init_checkpoint={root}/bare"], "holds no params.yaml with task.model.encoder"),
        ([], "--init_checkpoint is empty, so the encoder's size is unknown"),
        (["--config_file={root}/small.yaml"], "there is no run to take the vocabulary from"),
        (
            ["--init_checkpoint={root}/pretraining", "--vocab_file={root}/short.txt"],
            f"has {len(VOCABULARY) - 3} entries, the encoder {len(VOCABULARY)} embedding rows",
        ),
        (["--init_checkpoint={root}/pretraining", "--dev_file={root}/none.json"], "no SQuAD file"),
        (["--init_checkpoint={root}/pretraining", "--train_file={root}/bad.json"], "is no JSON"),
        (["--init_checkpoint={root}/pretraining", "--seq_length=73"], "--seq_length is 73"),
        (["--init_checkpoint={root}/pretraining", "--batch_size=0"], "--batch_size is 0"),
        (["--init_checkpoint={root}/pretraining", "--epochs=0"], "--epochs is 0.0"),
        (["--init_checkpoint={root}/pretraining", "--learning_rate=-1"], "peak_learning_rate"),
        (["--init_checkpoint={root}/pretraining", "--optimizer=sgd"], "sgd"),
        (["--init_checkpoint={root}/pretraining", "--task=glue"], "glue"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    more: list[str], message: str, folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "empty").mkdir(exist_ok=True)
    bare = folder / "bare"
    bare.mkdir(exist_ok=True)
    for path in (folder / "pretraining").iterdir():
        if path.name not in (configuration.PARAMS_FILE, "train"):
            (bare / path.name).write_bytes(path.read_bytes())
    (folder / "short.txt").write_text("".join(f"{token}\n" for token in VOCABULARY[:-3]))
    (folder / "bad.json").write_text("{")
    arguments = [argument.format(root=folder) for argument in more]
    error = _fails(command_line(folder, "never", *arguments), capsys)
    assert message in error
    assert not (folder / "never").exists()


def test_another_model_dir_is_refused(
    folder: pathlib.Path, finetuned: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = _fails(command_line(folder, finetuned, *from_scratch(folder)), capsys)
    assert "holds a different experiment: task." in error


def test_checkpoint_of_another_architecture_is_refused(
    folder: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wider = {"task": {"model": {"encoder": {"type": "bert", "bert": {**ENCODER, "num_layers": 3}}}}}
    (tmp_path / "wider.yaml").write_text(yaml.safe_dump(wider))
    arguments = command_line(
        folder, "other", f"--init_checkpoint={folder / 'pretraining'}",
        f"--config_file={tmp_path / 'wider.yaml'}",
    )  # fmt: skip
    assert "another architecture" in _fails(arguments, capsys)


def test_missing_vocabulary_names_the_way_out(folder: pathlib.Path) -> None:
    with pytest.raises(UserError, match="--vocab_file"):
        starting_point.find(config_file=str(folder / "small.yaml"))
