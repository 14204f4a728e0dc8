"""Sentence classification: the step, and runs end to end."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from official_bert import (
    classification_run,
    classification_task,
    configuration,
    finetune,
    finetune_plan,
    guard,
    interruption,
    metrics_log,
    starting_point,
)
from official_bert.classification_input import Labelled
from tests.bert.half_precision import assert_same_norms
from tests.bert.test_classification_rows import rows_of
from tests.bert.tiny_classification import (
    SEQ_LENGTH,
    command_line,
    failed,
    from_scratch,
    glue,
    losses,
    make_files,
    sentences,
)
from tests.bert.tiny_squad import VOCABULARY


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return make_files(tmp_path_factory.mktemp("classification"))


@pytest.fixture(scope="module")
def learned(folder: pathlib.Path) -> pathlib.Path:
    """A run from the pretraining run's checkpoint, long enough to tell colours apart."""
    arguments = command_line(
        folder, "learned", f"--init_checkpoint={folder / 'pretraining'}", "--train_steps=120"
    )
    assert finetune.main(arguments) == 0
    return folder / "learned"


def test_it_learns_what_can_be_told_apart(learned: pathlib.Path) -> None:
    scores = json.loads((learned / classification_task.METRICS).read_text())
    assert scores == {"accuracy": 100.0, "macro_f1": 100.0, "step": 120, "rows": 70}
    assert losses(learned)[0] > 1.0 > 0.7 > losses(learned)[-1]
    accuracies = [json.loads(line)["accuracy"] for line in (learned / "metrics.jsonl").open()]
    assert 0 < accuracies[0] < 0.9 < accuracies[-1] <= 1


def test_what_a_run_leaves(folder: pathlib.Path, learned: pathlib.Path) -> None:
    labels = json.loads((learned / classification_task.LABELS).read_text())
    assert labels == {"labels": ["blue", "green", "red"]}
    assert (learned / "vocab.txt").read_bytes() == (folder / "vocab.txt").read_bytes()
    lines = (learned / classification_task.PREDICTIONS).read_text().splitlines()
    assert lines[0] == "index\tlabel\tscore_blue\tscore_green\tscore_red"
    rows = [line.split("\t") for line in lines[1:]]
    assert [row[0] for row in rows] == [str(index) for index in range(70)]
    assert [row[1] for row in rows] == sentences(96)[1][:70]
    for row in rows:
        values = dict(zip(labels["labels"], map(float, row[2:]), strict=True))
        assert sum(values.values()) == pytest.approx(1, abs=2e-6)
        assert max(values, key=lambda label: values[label]) == row[1]


def test_a_finished_run_only_predicts_again(
    folder: pathlib.Path, learned: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = (learned / "metrics.jsonl").read_bytes()
    before = (learned / classification_task.PREDICTIONS).read_bytes()
    (learned / classification_task.PREDICTIONS).unlink()
    arguments = command_line(
        folder, "learned", f"--init_checkpoint={folder / 'pretraining'}", "--train_steps=120"
    )
    assert finetune.main(arguments) == 0
    assert (learned / classification_task.PREDICTIONS).read_bytes() == before
    assert (learned / "metrics.jsonl").read_bytes() == log
    assert "dev.csv: accuracy 100.00, macro_f1 100.00" in capsys.readouterr().out


def test_the_whole_encoder_starts_from_the_checkpoint(folder: pathlib.Path) -> None:
    start = starting_point.find(str(folder / "pretraining"))
    config = classification_task.ClassificationConfig(
        init_checkpoint=start.checkpoint, labels=["0", "1"]
    )
    config.model.encoder, config.model.num_classes = start.encoder, 2
    task = classification_task.ClassificationTask(config)
    # Other weights than those the checkpoint happened to be made with.
    tf_keras.utils.set_random_seed(7)
    model = task.build_model()
    encoder = model.checkpoint_items["encoder"]
    before = [variable.numpy() for variable in encoder.trainable_variables]
    task.initialize(model)
    for old, variable in zip(before, encoder.trainable_variables, strict=True):
        # New biases and norms are what untrained ones are.
        assert old.std() == 0 or not np.array_equal(old, variable.numpy()), variable.name
    saved = tf.train.load_checkpoint(start.checkpoint)
    kernel = encoder.pooler_layer.kernel.numpy()
    same = [
        name
        for name, shape in saved.get_variable_to_shape_map().items()
        if tuple(shape) == kernel.shape and np.array_equal(saved.get_tensor(name), kernel)
    ]
    assert len(same) == 1 and "next_sentence" in same[0]
    assert len(task.trained_variables(model)) == len(encoder.trainable_variables) + 2


def test_a_new_pooler_is_drawn_and_all_else_restored(folder: pathlib.Path) -> None:
    start = starting_point.find(str(folder / "pretraining"))
    encoders = []
    for new_pooler in (False, True):
        config = classification_task.ClassificationConfig(
            init_checkpoint=start.checkpoint, labels=["0", "1"], new_pooler=new_pooler
        )
        config.model.encoder, config.model.num_classes = start.encoder, 2
        task = classification_task.ClassificationTask(config)
        tf_keras.utils.set_random_seed(7)
        model = task.build_model()
        encoder = model.checkpoint_items["encoder"]
        drawn = encoder.pooler_layer.get_weights()
        task.initialize(model)
        encoders.append(encoder)
    for was, now in zip(drawn, encoder.pooler_layer.get_weights(), strict=True):
        np.testing.assert_array_equal(was, now)
    poolers = {id(variable) for each in encoders for variable in each.pooler_layer.variables}
    for one, other in zip(*(each.variables for each in encoders), strict=True):
        if id(one) not in poolers:
            np.testing.assert_array_equal(one.numpy(), other.numpy())
    assert not np.array_equal(*(each.pooler_layer.kernel.numpy() for each in encoders))


def test_lengths_groups_and_replicas_change_nothing(folder: pathlib.Path) -> None:
    cuts = {
        "whole": ["--num_lengths=1", "--micro_batch_size=0"],
        "groups": ["--num_lengths=3", "--micro_batch_size=4"],
        "replicas": ["--distribution_strategy=mirrored"],
        # Two groups of 4 on each of two replicas.
        "both": [
            "--distribution_strategy=mirrored", "--num_lengths=3", "--micro_batch_size=4",
        ],
    }  # fmt: skip
    assert len(tf.config.list_logical_devices("CPU")) == 2
    for name, flags in cuts.items():
        arguments = command_line(folder, name, *from_scratch(folder), "--train_steps=3", *flags)
        assert finetune.main(arguments) == 0
    for name in ("groups", "replicas", "both"):
        # Equal up to the order of float32 sums.
        np.testing.assert_allclose(losses(folder / name), losses(folder / "whole"), rtol=1e-4)
        found, expected = (
            np.loadtxt(
                folder / each / classification_task.PREDICTIONS,
                skiprows=1, usecols=(2, 3, 4), delimiter="\t",
            )
            for each in (name, "whole")
        )  # fmt: skip
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_float16_scales_its_loss(folder: pathlib.Path) -> None:
    """And takes the scale out again: the gradients have the norms that they have in float32."""
    rows = []
    for name in ("float32", "float16"):
        arguments = command_line(
            folder, name, *from_scratch(folder), "--train_steps=3",
            f"--mixed_precision_dtype={name}",
        )  # fmt: skip
        assert finetune.main(arguments) == 0
        rows.append(metrics_log.read(folder / name / metrics_log.METRICS))
    saved = tf.train.load_checkpoint(str(folder / "float16" / "ckpt-3"))
    found = {
        name: float(saved.get_tensor(f"loss_scale/{name}/.ATTRIBUTES/VARIABLE_VALUE"))
        for name in ("value", "good_steps")
    }
    assert rows[1][-1]["skipped_steps"] == 0 and found == {"value": 2.0**15, "good_steps": 3}
    assert np.isfinite(losses(folder / "float16")).all()
    assert_same_norms(rows[1][0], rows[0][0], "float16")


def test_outputs_that_are_not_finite_are_divergence(tmp_path: pathlib.Path) -> None:
    config = classification_task.ClassificationConfig(labels=["a", "b"])
    dev = Labelled(rows=rows_of([3, 4, 5]), labels=np.array([0, 1, 1], np.int32))
    task = classification_task.ClassificationTask(config, logging_dir=str(tmp_path), dev=[dev])
    outputs = np.zeros((4, 2), np.float32)
    # The fourth row fills up the batch.
    outputs[3] = np.nan
    rows = np.arange(4)
    assert task.reduce_aggregated_logs([(rows, outputs)])["accuracy"] > 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    outputs[1, 0] = np.inf
    with pytest.raises(guard.Diverged, match="outputs for 1 of 3 rows are not finite"):
        task.reduce_aggregated_logs([(rows, outputs)])
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_resumed_run_is_the_uninterrupted_one(folder: pathlib.Path) -> None:
    """With dropout on, to the last bit."""

    def run(name: str, stop: interruption.StopRequest) -> None:
        classification_run.run(
            finetune_plan.Settings(
                model_dir=str(folder / name),
                config_file=str(folder / "dropout.yaml"),
                vocab_file=str(folder / "vocab.txt"),
                batch_size=16,
                seq_length=SEQ_LENGTH,
                learning_rate=1e-3,
                train_steps=6,
            ),
            classification_run.ClassificationSettings(
                task="classify",
                train_file=str(folder / "train.csv"),
                dev_file=str(folder / "dev.csv"),
                text_column="text",
                label_column="colour",
            ),
            stop,
        )

    run("uninterrupted", interruption.StopRequest())
    stop = interruption.StopRequest()
    stop.set()
    with pytest.raises(interruption.Stopped, match="stopped at step 1 as asked"):
        run("resumed", stop)
    assert not (folder / "resumed" / classification_task.METRICS).exists()
    run("resumed", interruption.StopRequest())
    for name in (classification_task.PREDICTIONS, "metrics.jsonl"):
        resumed, whole = (folder / each / name for each in ("resumed", "uninterrupted"))
        assert resumed.read_bytes() == whole.read_bytes()
    checkpoints = [
        tf.train.load_checkpoint(str(folder / name / "ckpt-6"))
        for name in ("resumed", "uninterrupted")
    ]
    names = [
        name
        for name, dtype in checkpoints[0].get_variable_to_dtype_map().items()
        if dtype == tf.float32
    ]
    assert len(names) > 100
    for name in names:
        resumed, whole = (checkpoint.get_tensor(name) for checkpoint in checkpoints)
        np.testing.assert_array_equal(resumed, whole, err_msg=name)


@pytest.mark.parametrize("name", ["mrpc", "sts-b"])
def test_scores_of_pairs_are_those_of_the_predictions(folder: pathlib.Path, name: str) -> None:
    arguments = command_line(
        folder, name, *from_scratch(folder), "--train_steps=3", task=glue(folder, name)
    )
    assert finetune.main(arguments) == 0
    assert configuration.read_saved(str(folder / name))["task"]["pairs"] is True
    scores = json.loads((folder / name / classification_task.METRICS).read_text())
    assert (scores.pop("step"), scores.pop("rows")) == (3, 12)
    lines = (folder / name / classification_task.PREDICTIONS).read_text().splitlines()[1:]
    found = np.array([float(line.split("\t")[1]) for line in lines])
    if name == "mrpc":
        truth = np.array([1, 0] * 6)
        hits, guesses = float((truth * found).sum()), found.sum()
        f1 = 200 * hits / (guesses + 6)
        assert scores == pytest.approx({"accuracy": 100 * (truth == found).mean(), "f1": f1})
    else:
        assert set(scores) == {"pearson", "spearman"}
        # The file has six digits of numbers that differ in the third.
        expected = 100 * np.corrcoef(np.arange(12) % 6, found)[0, 1]
        assert scores["pearson"] == pytest.approx(expected, abs=1)


def test_both_dev_sets_of_mnli(folder: pathlib.Path) -> None:
    with (folder / "MNLI" / "dev_mismatched.tsv").open("a") as stream:
        stream.write("0\t1\t2\tf\tb\tb\tp\tp\tthe lamp\tthe door\tneutral\tentailment\n")
    arguments = command_line(
        folder, "mnli", *from_scratch(folder), "--train_steps=1", task=glue(folder, "mnli")
    )
    assert finetune.main(arguments) == 0
    run = folder / "mnli"
    scores = json.loads((run / classification_task.METRICS).read_text())
    assert set(scores) == {"accuracy", "accuracy_mismatched", "step", "rows"}
    assert scores["rows"] == 5
    for name, count in (("predictions.tsv", 2), ("predictions_mismatched.tsv", 3)):
        lines = (run / name).read_text().splitlines()
        assert len(lines) == 1 + count
        assert lines[0].endswith("score_contradiction\tscore_entailment\tscore_neutral")


def test_two_workers_finetune_as_one(folder: pathlib.Path) -> None:
    """Two processes on this machine; the chief alone leaves files, of all rows."""
    arguments = command_line(folder, "workers", *from_scratch(folder), "--train_steps=2")
    launched = subprocess.run(
        [
            sys.executable, "-m", "official_bert.launch", "--num_workers=2", "--max_restarts=0",
            "--command=official_bert.finetune", "--", *arguments,
        ],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert launched.returncode == 0, launched.stdout + launched.stderr
    assert "dev.csv: accuracy" in launched.stdout
    alone = command_line(folder, "alone", *from_scratch(folder), "--train_steps=2")
    assert finetune.main(alone) == 0
    # Equal up to the order of float32 sums.
    np.testing.assert_allclose(losses(folder / "workers"), losses(folder / "alone"), rtol=1e-4)
    tables = [
        np.loadtxt(
            folder / name / classification_task.PREDICTIONS,
            skiprows=1, usecols=(0, 2, 3, 4), delimiter="\t",
        )
        for name in ("workers", "alone")
    ]  # fmt: skip
    np.testing.assert_allclose(*tables, atol=1e-4)


def test_another_data_set_is_refused(
    folder: pathlib.Path, learned: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "two.csv").write_text("text,colour\nthe box,red\nthe lamp,blue\n")
    arguments = command_line(
        folder, "learned", f"--init_checkpoint={folder / 'pretraining'}", "--train_steps=120",
        f"--train_file={folder / 'two.csv'}", f"--dev_file={folder / 'two.csv'}",
    )  # fmt: skip
    assert "holds a different experiment: task." in failed(arguments, capsys)


def test_params_say_what_predictions_need(learned: pathlib.Path) -> None:
    saved = configuration.read_saved(str(learned))["task"]
    assert saved["labels"] == ["blue", "green", "red"] and saved["pairs"] is False
    assert saved["validation_data"]["seq_length"] == SEQ_LENGTH
    assert saved["model"]["encoder"]["bert"]["vocab_size"] == len(VOCABULARY)
