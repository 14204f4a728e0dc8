"""Whole runs on disk: two phases, resume, refusal, export."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import tfrecords
from official_bert import checkpoints, experiments, metrics_log, preflight, pretrain, runner, train
from official_bert.export import __main__ as export_command
from official_bert.export import encoding, source
from official_bert.pretraining_task import LargeBatchPretrainConfig
from tests.bert.conftest import LONG
from tfrecords.errors import UserError

STEPS = 30
SCHEDULE_LENGTH = "trainer__optimizer_config__learning_rate__warmup_constant_decay__total_steps"


@pytest.fixture(scope="module")
def two_phases(tmp_path_factory, shards, tiny_yaml) -> pathlib.Path:
    """`pretrain` run as a user would, phase 2 with another length, rate and length of run."""
    root = tmp_path_factory.mktemp("pretrain")
    phase2 = root / "phase2.yaml"
    text = pathlib.Path(tiny_yaml).read_text().replace("seq_length: 32", f"seq_length: {LONG}")
    phase2.write_text(text.replace("train_steps: 6", "train_steps: 8"))
    phase1 = root / "phase1.yaml"
    phase1.write_text(
        pathlib.Path(tiny_yaml).read_text().replace("train_steps: 6", f"train_steps: {STEPS}")
    )
    assert not pretrain.main(
        [
            f"--phase1={phase1}",
            f"--phase2={phase2}",
            f"--input_path={shards}",
            f"--model_dir={root / 'run'}",
        ]
    )
    return root / "run"


def test_phase_1_is_not_trained_again_behind_phase_2(two_phases, shards, capsys) -> None:
    """Its folder was deleted, as if to free the disk: phase 2 started from what was there."""
    files = two_phases.parent
    recipes = [f"--{name}={files / name}.yaml" for name in ("phase1", "phase2")]
    (two_phases / "phase1").rename(files / "away")
    try:
        assert pretrain.main([*recipes, f"--input_path={shards}", f"--model_dir={two_phases}"]) == 2
        assert not (two_phases / "phase1").exists()
    finally:
        (files / "away").rename(two_phases / "phase1")
    words = f"phase2 has begun, at step 8, but {two_phases / 'phase1'} is at step 0 of {STEPS}"
    assert words in capsys.readouterr().err


def as_trained(model_dir: pathlib.Path) -> tf_keras.Model:
    """The pretrainer as its checkpoint holds it, the encoder's own pooler untrained."""
    config = LargeBatchPretrainConfig(model=source.pretrainer_config(str(model_dir)))
    model = runner.task_factory.get_task(config).build_model()
    checkpoints.restore_model(str(model_dir), model)
    return model


def rows(model_dir: pathlib.Path) -> list[dict]:
    return metrics_log.read(model_dir / metrics_log.METRICS)


def test_both_phases_log_every_step_and_improve(two_phases, shards) -> None:
    first, second = rows(two_phases / "phase1"), rows(two_phases / "phase2")
    assert [row["step"] for row in first] == list(range(1, STEPS + 1))
    assert [row["step"] for row in second] == list(range(1, 9))
    assert first[-1]["loss"] < first[0]["loss"] - 0.7
    # Phase 2 goes on where phase 1 ended, not from the start.
    assert second[0]["loss"] < first[0]["loss"] - 0.5
    assert all(row["skipped_steps"] == 0 for row in first + second)
    assert [row["step"] for row in first if "trust_ratio_median" in row] == list(range(2, 31, 2))
    assert all(row["gradient_norm"] > 0 for row in first)
    assert all(row["weight_norm"] > 0 for row in first if "trust_ratio_median" in row)
    tags = set()
    for path in (two_phases / "phase1" / "train").rglob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            tags |= {value.tag for value in event.summary.value}
    assert {"trust_ratios", "gradient_norms", "gradient_norm", "weight_norm"} <= tags
    schedule = [row["learning_rate"] for row in first]
    assert schedule[:4] == pytest.approx([0.025, 0.05, 0.05, 0.05]) and schedule[-1] == 0.0
    vocabulary = (shards / "vocab.txt").read_bytes()
    assert (two_phases / "phase2" / "vocab.txt").read_bytes() == vocabulary
    evaluations = metrics_log.read(two_phases / "phase1" / metrics_log.EVALUATIONS)
    assert [row["step"] for row in evaluations] == [4, 8, 12, 16, 20, 24, 28, 30]


def test_phase_2_starts_from_every_weight_of_phase_1(two_phases, tiny) -> None:
    params = tiny(task__init_checkpoint=two_phases / "phase1")
    task = runner.task_factory.get_task(params.task)
    model = task.build_model()
    task.initialize(model)
    expected = as_trained(two_phases / "phase1")
    names = [variable.name for variable in model.variables]
    assert any("next_sentence/logits/kernel" in name for name in names)
    for variable, reference in zip(model.variables, expected.variables, strict=True):
        np.testing.assert_array_equal(variable, reference, err_msg=variable.name)


def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path, tiny) -> None:
    """Three legs of 2 steps and one of 6 log the same numbers (no dropout, one thread order)."""
    whole = runner.run(tiny(trainer__train_steps=6), str(tmp_path / "whole"), "train")
    assert whole.global_step == 6
    legs = tmp_path / "legs"
    for steps in (2, 4, 6):
        runner.run(tiny(trainer__train_steps=steps, **{SCHEDULE_LENGTH: 6}), str(legs), "train")
    for ours, reference in zip(rows(legs), rows(tmp_path / "whole"), strict=True):
        assert ours["step"] == reference["step"]
        assert ours["loss"] == pytest.approx(reference["loss"], rel=1e-5)
        assert ours["learning_rate"] == reference["learning_rate"]


def test_the_metrics_file_is_cut_back_to_the_checkpoint(tmp_path, tiny) -> None:
    params = tiny(trainer__train_steps=4)
    runner.run(params, str(tmp_path), "train")
    path = tmp_path / metrics_log.METRICS
    text = path.read_text()
    path.write_text(text + json.dumps({"step": 5, "loss": 1.0}) + "\n" + '{"step": 6, "lo')
    runner.run(params, str(tmp_path), "train")
    assert path.read_text() == text


def test_two_replicas_log_what_one_logs(tmp_path, tiny) -> None:
    """The same experiment on two logical CPUs; float32 sums in another order."""
    runner.run(tiny(), str(tmp_path / "one"), "train_and_eval")
    runner.run(
        tiny(runtime__distribution_strategy="mirrored"), str(tmp_path / "two"), "train_and_eval"
    )
    for ours, reference in zip(rows(tmp_path / "two"), rows(tmp_path / "one"), strict=True):
        assert ours["loss"] == pytest.approx(reference["loss"], rel=1e-4)
    one, two = (
        metrics_log.read(tmp_path / name / metrics_log.EVALUATIONS) for name in ("one", "two")
    )
    assert [row["step"] for row in two] == [4, 6]
    for ours, reference in zip(two, one, strict=True):
        assert ours == pytest.approx(reference, rel=1e-3)


def test_model_gardens_adamw_trains_on_two_replicas(tmp_path, tiny) -> None:
    optimizer = "trainer__optimizer_config__optimizer__"
    schedule = "trainer__optimizer_config__learning_rate__warmup_constant_decay__"
    overrides = {f"{optimizer}type": "adamw", f"{schedule}peak_learning_rate": 0.002}
    params = tiny(runtime__distribution_strategy="mirrored", **overrides)
    runner.run(params, str(tmp_path), "train")
    logged = rows(tmp_path)
    assert len(logged) == 6 and logged[-1]["masked_lm_loss"] < logged[0]["masked_lm_loss"]
    assert "skipped_steps" not in logged[0]


def test_evaluation_alone_agrees_with_the_runs_own(two_phases, tiny_yaml, shards, capsys) -> None:
    override = f"task.validation_data.input_path={shards}"
    model_dir = two_phases / "phase1"
    arguments = [f"--config_file={tiny_yaml}", f"--params_override={override}", "--mode=eval"]
    before = sorted(path.name for path in model_dir.iterdir() if path.is_file())
    assert not train.main([*arguments, f"--model_dir={model_dir}"])
    printed = capsys.readouterr().out
    last = metrics_log.read(model_dir / metrics_log.EVALUATIONS)[-1]
    assert f"masked_lm_accuracy {last['masked_lm_accuracy']:.4f}" in printed
    assert sorted(path.name for path in model_dir.iterdir() if path.is_file()) == before


def fails(arguments: list[str], capsys, *words: str) -> None:
    assert train.main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    for word in words:
        assert word in error, error


def test_mistakes_end_in_one_line_and_change_nothing(
    two_phases, tiny_yaml, shards, tmp_path, capsys
) -> None:
    data = f"task.train_data.input_path={shards},task.validation_data.input_path={shards}"
    common = [f"--config_file={tiny_yaml}", f"--model_dir={tmp_path / 'new'}"]

    def with_override(text: str) -> list[str]:
        return [
            *common,
            f"--params_override={data},{text}" if text else f"--params_override={data}",
        ]

    fails(common, capsys, "input_path is empty")
    fails(with_override("task.train_data.seq_length=33"), capsys, "32, 64", "33")
    fails(with_override("task.model.encoder.bert.vocab_size=999"), capsys, "1024", "999")
    fails(with_override("task.train_data.global_batch_size=0"), capsys, "global_batch_size is 0")
    fails(with_override("task.micro_batch_size=5"), capsys, "micro_batch_size is 5")
    fails(with_override("runtime.distribution_strategy=tpu"), capsys, "tpu")
    fails(with_override("runtime.num_gpus=3"), capsys, "num_gpus 3; expected mirrored")
    fails(with_override("task.init_checkpoint=/nowhere"), capsys, "no checkpoint at /nowhere")
    pattern = "trainer.optimizer_config.optimizer.lans.exclude_from_weight_decay=['laier_norm']"
    fails(with_override(pattern), capsys, "'laier_norm' matches no variable")
    assert not (tmp_path / "new").exists()

    run = two_phases / "phase1"
    before = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    other = [
        f"--config_file={tiny_yaml}",
        f"--model_dir={run}",
        f"--params_override={data},trainer.train_steps={STEPS},"
        "trainer.optimizer_config.optimizer.lans.beta_1=0.8",
    ]
    fails(other, capsys, "holds a different experiment", "beta_1 was 0.9, now 0.8")
    assert {path: path.read_bytes() for path in run.iterdir() if path.is_file()} == before


def test_a_damaged_record_ends_the_run_with_its_place(tmp_path, shards, tiny_yaml, capsys) -> None:
    copy = tmp_path / "shards"
    shutil.copytree(shards, copy)
    for path in copy.glob("train-seq32-*"):
        content = bytearray(path.read_bytes())
        content[200] ^= 0xFF
        path.write_bytes(content)
    override = f"task.train_data.input_path={copy}"
    arguments = [f"--config_file={tiny_yaml}", f"--params_override={override}", "--mode=train"]
    fails([*arguments, f"--model_dir={tmp_path / 'run'}"], capsys, "train-seq32", "record", "byte")


def test_a_checkpoint_of_another_architecture_is_refused(two_phases, tiny, shards) -> None:
    params = tiny(
        task__init_checkpoint=two_phases / "phase1", task__model__encoder__bert__num_layers=3
    )
    with pytest.raises(UserError, match="num_layers is 3, but .*phase1.* has 2; add --params_over"):
        preflight.check(params, "train")
    task = runner.task_factory.get_task(params.task)
    with pytest.raises(UserError, match="another architecture"):
        task.initialize(task.build_model())


@pytest.fixture(scope="module")
def exported(two_phases, tmp_path_factory) -> pathlib.Path:
    output = tmp_path_factory.mktemp("export")
    model_dir = two_phases / "phase2"
    arguments = ["--format=saved_model", f"--model_dir={model_dir}", f"--output_dir={output}"]
    assert not export_command.main(arguments)
    return output


def test_the_export_agrees_with_the_checkpoint(two_phases, exported, shards) -> None:
    """Within 1e-5 on real text; the pooled output is the trained pooler's."""
    batch = next(iter(tfrecords.read(shards, split="eval", seq_length=LONG, global_batch_size=16)))
    inputs = {name: batch[name] for name in encoding.INPUTS}
    answers = tf.saved_model.load(str(exported / "encoder"))(inputs)
    model = as_trained(two_phases / "phase2")
    outputs = model(batch, training=False)
    np.testing.assert_allclose(
        answers["sequence_output"], outputs["sequence_output"], rtol=0, atol=1e-5
    )
    head = model.classification_heads[0]
    trained = head(outputs["sequence_output"], only_project=True)
    np.testing.assert_allclose(answers["pooled_output"], trained, rtol=0, atol=1e-5)
    untrained = outputs["pooled_output"]
    assert float(tf.reduce_max(tf.abs(untrained - trained))) > 1e-3
    # Other lengths and batch sizes than the run's are welcome.
    short = {name: value[:3, :7] for name, value in inputs.items()}
    assert tf.saved_model.load(str(exported / "encoder"))(short)["sequence_output"].shape == (
        3,
        7,
        32,
    )


def test_the_export_holds_no_optimizer_state_and_its_vocabulary(
    exported, two_phases, shards
) -> None:
    names = [
        name
        for name, _ in tf.train.list_variables(
            str(exported / "encoder" / "variables" / "variables")
        )
    ]
    assert not any("optimizer" in name for name in names)
    assert (exported / "encoder/assets/vocab.txt").read_bytes() == (
        shards / "vocab.txt"
    ).read_bytes()


def test_export_mistakes(exported, two_phases, tmp_path, capsys) -> None:
    for arguments, words in (
        ([f"--model_dir={tmp_path}", f"--output_dir={tmp_path / 'o'}"], "no checkpoint at"),
        ([f"--model_dir={two_phases / 'phase2'}", f"--output_dir={exported}"], "--overwrite"),
        ([f"--model_dir={tmp_path}", "--format=onnx", f"--output_dir={tmp_path / 'o'}"], "format"),
    ):
        assert export_command.main(arguments) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_checkpoints_are_named_by_folder_or_prefix(two_phases) -> None:
    folder = str(two_phases / "phase2")
    prefix = checkpoints.latest(folder)
    assert checkpoints.latest(prefix) == prefix
    assert prefix.endswith("ckpt-8")
    with pytest.raises(UserError, match="no checkpoint at"):
        checkpoints.latest(prefix + "9")
    experiments.register()
