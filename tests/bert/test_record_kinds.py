"""Pretraining on shards of every kind: masked at read time, packed, cased, with damage."""

import json
import pathlib

import pytest
import tensorflow as tf

import tfrecords
from official_bert import metrics_log, preflight, runner, starting_point
from official_bert.export import saved_model, source
from tests.bert.conftest import LONG, SHORT
from tfrecords.errors import UserError


@pytest.fixture(scope="module")
def packed(shards: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Cased rows without next-sentence labels, masked when they are read."""
    folder = tmp_path_factory.mktemp("packed") / "shards"
    assert not tfrecords.build.main(
        [
            f"--input={shards.parent / 'text.txt'}",
            f"--vocab_file={shards.parent / 'v.txt'}",
            f"--output_dir={folder}",
            f"--seq_lengths={SHORT},{LONG}",
            "--num_shards=4",
            "--num_processes=1",
            "--eval_fraction=0.1",
            "--records=dynamic",
            "--no_next_sentence",
            "--nolower_case",
        ]
    )
    return folder


@pytest.fixture(scope="module")
def run(packed, tiny, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    model_dir = tmp_path_factory.mktemp("run")
    runner.run(on(packed, tiny), str(model_dir))
    return model_dir


def on(folder: pathlib.Path, tiny, **overrides):
    paths = {
        "task__train_data__input_path": folder,
        "task__validation_data__input_path": folder,
    }
    return tiny(**(paths | overrides))


def test_without_labels_there_is_no_head(run: pathlib.Path) -> None:
    rows = metrics_log.read(run / metrics_log.METRICS)
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert not any(name.startswith("next_sentence") for row in rows for name in row)
    assert all(row["loss"] == pytest.approx(row["masked_lm_loss"]) for row in rows)
    names = [name for name, _ in tf.train.list_variables(tf.train.latest_checkpoint(run))]
    assert not any("next_sentence" in name or "classification" in name for name in names)
    evaluation = metrics_log.read(run / metrics_log.EVALUATIONS)[-1]
    assert "masked_lm_accuracy" in evaluation and "next_sentence_accuracy" not in evaluation


def test_the_next_phase_and_a_restart_have_none_either(
    run: pathlib.Path, packed: pathlib.Path, tiny, tmp_path: pathlib.Path
) -> None:
    params = on(packed, tiny, task__init_checkpoint=run, trainer__train_steps=4)
    preflight.check(params, "train_and_eval")
    for _ in range(2):
        assert runner.run(params, str(tmp_path), "train").global_step == 4


def test_the_casing_goes_with_the_run(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    assert json.loads((run / "tokenizer_config.json").read_text()) == {"do_lower_case": False}
    # The vocabulary was trained on lower-cased text: only the run itself knows that it is cased.
    assert not starting_point.find(str(run)).lower_case
    saved_model.export(source.load(str(run)), str(tmp_path))
    assert not tf.saved_model.load(str(tmp_path / "encoder")).do_lower_case.numpy()


def test_masks_can_be_chosen_in_the_config(packed: pathlib.Path, tiny) -> None:
    params = on(packed, tiny, task__train_data__masked_lm_prob=0.4)
    task = runner.task_factory.get_task(params.task)
    batch = next(iter(task.build_inputs(params.task.train_data)))
    assert batch["masked_lm_positions"].shape == (32, 16)


def test_masks_of_stored_records_cannot(tiny) -> None:
    with pytest.raises(UserError, match="masked_lm_prob is 0.4"):
        preflight.check(tiny(task__train_data__masked_lm_prob=0.4), "train")


def test_evaluation_needs_no_training_shards(run: pathlib.Path, packed: pathlib.Path, tiny) -> None:
    params = on(packed, tiny, task__train_data__input_path="gone")
    result = runner.run(params, str(run), "eval")
    assert 0 < result.evaluation["masked_lm_accuracy"] < 1


def test_training_and_evaluation_have_the_same_labels(
    shards: pathlib.Path, packed: pathlib.Path, tiny, tmp_path: pathlib.Path
) -> None:
    params = tiny(task__train_data__input_path=shards, task__validation_data__input_path=packed)
    with pytest.raises(UserError, match="one has next-sentence labels and the other none"):
        runner.run(params, str(tmp_path))


def test_a_run_that_damage_stopped_may_go_on_without_the_record(
    run: pathlib.Path, packed: pathlib.Path, tiny
) -> None:
    skipping = {
        "task__train_data__on_corrupt": "skip",
        "task__train_data__corrupt_budget": 5,
    }
    runner.check_model_dir(on(packed, tiny, **skipping), str(run))
    with pytest.raises(UserError, match="task.train_data.seed was 0, now 3"):
        runner.check_model_dir(on(packed, tiny, task__train_data__seed=3, **skipping), str(run))
