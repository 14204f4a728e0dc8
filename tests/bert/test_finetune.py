"""Finetuning end to end: what is inherited, what is restored, that it learns, what it leaves."""

import dataclasses
import json
import math
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
import yaml
from official.nlp.tools import squad_evaluate_v1_1

from official_bert import (
    configuration,
    devices,
    disk_space,
    finetune,
    global_batch,
    launch,
    squad_task,
    starting_point,
)
from tests.bert.tiny_squad import ENCODER, VOCABULARY, command_line, make_folder, questions
from tfrecords.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return make_folder(tmp_path_factory.mktemp("finetune"))


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


def test_random_weights_take_the_same_path_however_a_batch_is_cut(
    folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step_settings, summed = devices.step_settings, global_batch.summed
    found: dict[str, Any] = {}
    cuts = set()

    def compiled(*arguments: Any) -> global_batch.StepSettings:
        settings = step_settings(*arguments)
        return dataclasses.replace(settings, compiled=name == "compiled")

    def seen(*arguments: Any, **named: Any) -> global_batch.Summed:
        cuts.add((name, named["micro_batch_size"], named["settings"].compiled))
        return summed(*arguments, **named)

    monkeypatch.setattr(devices, "step_settings", compiled)
    monkeypatch.setattr(global_batch, "summed", seen)
    for name, flags in {
        "one_device": [],
        "mirrored": ["--distribution_strategy=mirrored"],
        "micro": ["--micro_batch_size=4"],
        "compiled": ["--micro_batch_size=8"],
    }.items():
        arguments = command_line(folder, name, *from_scratch(folder), "--train_steps=2", *flags)
        assert finetune.main(arguments) == 0
        rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").open()]
        scalars = ("loss", "start_accuracy", "end_accuracy", "gradient_norm")
        found[name] = [[row[scalar] for scalar in scalars] for row in rows]
        assert len(json.loads((folder / name / squad_task.PREDICTIONS).read_text())) == 24
    # Equal up to the order of float32 sums.
    np.testing.assert_allclose(found["mirrored"], found["one_device"], rtol=1e-4)
    np.testing.assert_allclose(found["micro"], found["one_device"], rtol=1e-4)
    np.testing.assert_allclose(found["compiled"], found["one_device"], rtol=1e-4)
    # Untrained logits are all but equal over the 72 places.
    assert found["one_device"][0][0] == pytest.approx(math.log(72), abs=0.1)
    assert cuts == {
        ("one_device", 0, False), ("mirrored", 0, False), ("micro", 4, False),
        ("compiled", 8, True),
    }  # fmt: skip


def test_casing_and_vocabulary_are_found(
    folder: pathlib.Path, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = str(folder / "pretraining")
    start = starting_point.find(run)
    assert start.lower_case and start.vocabulary.path.startswith(run)
    assert start.encoder.get().hidden_size == 64
    assert not starting_point.find(run, lower_case=False).lower_case
    cased = tmp_path / "cased.txt"
    cased.write_text("".join(f"{token}\n" for token in [*VOCABULARY[:-1], "Box"]))
    assert not starting_point.find(run, vocab_file=str(cased)).lower_case
    (record,) = caplog.records
    assert f"differs from the run's own {run}/vocab.txt in 1 of" in record.getMessage()


def test_shards_that_were_built_anew_do_not_matter_to_a_run_with_its_vocabulary(
    pretrained_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run, shards = tmp_path / "run", tmp_path / "shards"
    shutil.copytree(pretrained_run, run)
    was = configuration.read_saved(str(run))["task"]["train_data"]["input_path"]
    shutil.copytree(was, shards)
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["vocabulary_sha256"] = "0" * 64
    (shards / "manifest.json").write_text(json.dumps(manifest))
    params = run / "params.yaml"
    params.write_text(params.read_text().replace(was, str(shards)))
    assert starting_point.find(str(run)).vocabulary.path == str(run / "vocab.txt")
    # Without its own vocabulary it has the shards' alone.
    (run / "vocab.txt").unlink()
    with pytest.raises(UserError, match="is not the vocabulary of"):
        starting_point.find(str(run))


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
        (
            ["--init_checkpoint={root}/pretraining", "--train_file={root}/squad2.json"],
            "squad2.json is SQuAD v2.0 and",
        ),
        (
            ["--init_checkpoint={root}/pretraining", "--dev_file={root}/moved.json", "--strict"],
            "1 of 24 questions have answers that do not stand in the context at answer_start: "
            "question 0",
        ),
        (["--init_checkpoint={root}/pretraining", "--seq_length=73"], "--seq_length is 73"),
        (["--init_checkpoint={root}/pretraining", "--batch_size=0"], "--batch_size is 0"),
        (["--init_checkpoint={root}/pretraining", "--micro_batch_size=-1"], "--micro_batch_size"),
        (
            ["--init_checkpoint={root}/pretraining", "--micro_batch_size=5"],
            "micro_batch_size is 5; expected 0 or a divisor of the 16 examples",
        ),
        (["--init_checkpoint={root}/pretraining", "--epochs=0"], "--epochs is 0.0"),
        (["--init_checkpoint={root}/pretraining", "--learning_rate=-1"], "--learning_rate is -1.0"),
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
    moved = questions()
    moved["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["answer_start"] = 0
    (folder / "moved.json").write_text(json.dumps(moved))
    arguments = [argument.format(root=folder) for argument in more]
    error = _fails(command_line(folder, "never", *arguments), capsys)
    assert message in error
    assert not (folder / "never").exists()


def test_another_model_dir_is_refused(
    folder: pathlib.Path, finetuned: str, capsys: pytest.CaptureFixture[str]
) -> None:
    error = _fails(command_line(folder, finetuned, *from_scratch(folder)), capsys)
    assert "holds a different experiment: task." in error


def test_an_edited_training_file_is_another_run(
    folder: pathlib.Path, finetuned: str, capsys: pytest.CaptureFixture[str]
) -> None:
    edited = questions()
    edited["data"][0]["paragraphs"][0]["qas"][0]["question"] = "what size is the box ?"
    train = folder / "squad.json"
    before = train.read_bytes()
    train.write_text(json.dumps(edited))
    arguments = command_line(folder, finetuned, f"--init_checkpoint={folder / 'pretraining'}")
    try:
        error = _fails(arguments, capsys)
    finally:
        train.write_bytes(before)
    assert "holds a different experiment: task.train_file_sha256 was" in error


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
    assert not (folder / "other").exists()


def test_a_disk_without_room_is_refused(
    folder: pathlib.Path,
    finetuned: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    size = (folder / finetuned / "ckpt-50.data-00000-of-00001").stat().st_size
    estimate, estimated = disk_space.checkpoint_bytes, []

    def noted(params: Any) -> int | None:
        estimated.append(estimate(params))
        return estimated[-1]

    monkeypatch.setattr(disk_space, "checkpoint_bytes", noted)
    monkeypatch.setattr(disk_space, "free_bytes", lambda path: size)
    arguments = command_line(folder, "full", f"--init_checkpoint={folder / 'pretraining'}")
    assert "expected room for 2 more" in _fails(arguments, capsys)
    assert not (folder / "full").exists()
    # The head of another task, and the names and shapes, which are much beside so small a model.
    assert estimated[0] == pytest.approx(size, rel=0.1)


def test_missing_vocabulary_names_the_way_out(folder: pathlib.Path) -> None:
    with pytest.raises(UserError, match="--vocab_file"):
        starting_point.find(config_file=str(folder / "small.yaml"))


@pytest.mark.parametrize(
    ("workers", "gpus", "given", "added"),
    [
        (1, 0, [], []),
        (2, 0, [], ["--distribution_strategy=multi_worker_mirrored"]),
        (2, 0, ["--distribution_strategy=multi_worker_mirrored"], []),
        (1, 2, ["--distribution_strategy=mirrored"], ["--num_gpus=2"]),
    ],
)
def test_the_launcher_says_the_strategy(
    workers: int, gpus: int, given: list[str], added: list[str], tmp_path: pathlib.Path
) -> None:
    launch.FLAGS.unparse_flags()
    launch.FLAGS(
        ["launch", f"--num_workers={workers}", f"--gpus_per_worker={gpus}",
         "--command=official_bert.finetune"]
    )  # fmt: skip
    arguments = [f"--model_dir={tmp_path}", *given]
    job = launch.job_from(launch.FLAGS, arguments, {})
    begin = job.command.index(arguments[0])
    assert job.command[begin:] == [*arguments, *added]
    assert "official_bert.finetune" in job.command


def test_the_launcher_refuses_workers_that_train_alone(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--num_workers=2", "--command=official_bert.finetune", "--"]
    arguments += [f"--model_dir={tmp_path / 'run'}", "--distribution_strategy=mirrored"]
    assert launch.main(arguments) == 2
    assert "each worker would train alone" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
