"""What is told before a run that would go wrong late: idle GPUs, unlike phases, another folder."""

import contextlib
import pathlib
import tempfile
import types

import numpy as np
import pytest
import tensorflow as tf
import yaml

from official_bert import (
    cluster,
    configuration,
    devices,
    disk_space,
    doctor,
    guard,
    pretrain,
    run_checkpoints,
    runner,
)
from official_bert.machine import Machine
from tests.bert.conftest import LONG, SHORT
from tfrecords.errors import UserError

NO_DEVICES = {"GPU": 0, "TPU": 0, "CPU": 1}


def test_gpus_that_a_run_leaves_idle_are_told(tiny, monkeypatch, caplog) -> None:
    runtime = tiny().runtime
    gpus = [types.SimpleNamespace(name=f"GPU:{number}") for number in range(8)]
    monkeypatch.setattr(tf.config, "get_visible_devices", lambda kind: gpus)
    devices.build_strategy(runtime)
    (record,) = caplog.records
    line = record.getMessage()
    assert "num_gpus=8" in line and "--num_gpus" in line and "\n" not in line
    assert line in doctor.examine(tiny(), "train", "", Machine(), NO_DEVICES | {"GPU": 8}).warnings
    assert "for all" not in devices.idle_gpus(runtime, 1)
    assert devices.idle_gpus(runtime, 0) is None
    assert devices.idle_gpus(runtime.replace(num_gpus=1), 8) is None
    together = runtime.replace(distribution_strategy="multi_worker_mirrored")
    assert devices.idle_gpus(together, 8) is None


def test_one_device_is_not_several_gpus(tiny) -> None:
    params = tiny()
    params = params.replace(runtime=params.runtime.replace(num_gpus=8))
    with pytest.raises(UserError, match="one_device, runtime.num_gpus 8; expected mirrored"):
        devices.build_strategy(params.runtime)
    found = doctor.examine(params, "train", "", Machine(), NO_DEVICES | {"GPU": 8})
    assert any(
        "one_device, runtime.num_gpus 8; expected mirrored" in each for each in found.problems
    )
    assert devices.unused_gpus(params.runtime.replace(distribution_strategy="mirrored")) is None


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("num_layers: 2", "num_layers: 3", "num_layers is 3 in --phase1 and 2 in --phase2"),
        (f"embeddings: {LONG}", f"embeddings: {SHORT}", f"{SHORT} in --phase1 and {LONG} in"),
        ("activation: tanh", "activation: relu", "cls_heads[0].activation is 'relu'"),
    ],
)
def test_phases_of_different_models_are_refused(
    old, new, words, tiny_yaml, shards, tmp_path, capsys
) -> None:
    text = pathlib.Path(tiny_yaml).read_text()
    assert text.count(old) == 1
    first = tmp_path / "first.yaml"
    first.write_text(text.replace(old, new))
    code = pretrain.main(
        [f"--phase1={first}", f"--phase2={tiny_yaml}", f"--input_path={shards}"]
        + [f"--model_dir={tmp_path / 'run'}"]
    )
    assert code == 2 and words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_phases_may_differ_in_what_shapes_no_weight(tiny) -> None:
    pretrain._check_models(tiny(), tiny(task__model__encoder__bert__dropout_rate=0.1))


def test_the_doctor_looks_whether_the_folder_is_of_this_run(tiny, pretrained_run, tmp_path) -> None:
    saved = runner.completed(tiny(), "train_and_eval", 1, str(tmp_path))
    configuration.save(saved, str(tmp_path))

    def problems(
        num_workers: int | None = None, repartition: bool = False, **overrides: object
    ) -> tuple[str, ...]:
        return doctor.examine(
            tiny(**overrides),
            *("train_and_eval", str(tmp_path), Machine(), {**NO_DEVICES, "TPU": 8}, num_workers),
            repartition=repartition,
        ).problems

    assert not problems()
    (line,) = problems(task__seed=5)
    assert "holds a different experiment: task.seed was 0, now 5" in line
    (line,) = problems(num_workers=2)
    assert "runtime.num_workers was 1, now 2" in line
    assert not problems(num_workers=2, repartition=True)
    # Of `official_bert.pretrain`, which tells phase 2 alone where it starts.
    phase2 = saved.replace(task=saved.task.replace(init_checkpoint=str(pretrained_run)))
    configuration.save(phase2, str(tmp_path))
    (tmp_path / "ckpt-1.index").touch()
    assert not problems()
    (line,) = problems(task__init_checkpoint="other")
    assert f"task.init_checkpoint was '{pretrained_run}', now 'other'" in line
    (tmp_path / "ckpt-1.index").unlink()
    assert not problems()
    on_tpu = {"runtime__distribution_strategy": "tpu"}
    hosts = saved.replace(runtime=saved.runtime.replace(num_workers=2))
    configuration.save(hosts, str(tmp_path))
    # Nobody has said how many hosts there are, and training will see.
    assert not problems(**on_tpu)
    (line,) = problems(num_workers=4, **on_tpu)
    assert "runtime.num_workers was 2, now 4" in line


def test_a_start_of_phase_2_that_phase_1_would_replace_is_refused(
    tiny_yaml, shards, pretrained_run, tmp_path, capsys
) -> None:
    config = yaml.safe_load(pathlib.Path(tiny_yaml).read_text())
    config["task"]["init_checkpoint"] = str(pretrained_run)
    second = tmp_path / "second.yaml"
    second.write_text(yaml.safe_dump(config))
    arguments = [f"--phase1={tiny_yaml}", f"--phase2={second}", f"--input_path={shards}"]
    assert pretrain.main([*arguments, f"--model_dir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert f"task.init_checkpoint of --phase2 is {pretrained_run}; expected none" in error
    assert not (tmp_path / "run").exists()


def test_a_worker_that_is_not_the_first_looks_for_room(tiny, tmp_path, monkeypatch) -> None:
    """Once what a killed one left in its folder is gone, and before anything is restored."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    left = tmp_path / "temporary"
    left.mkdir()
    monkeypatch.setattr(cluster, "this_worker", lambda strategy: cluster.Worker(index=1, count=2))
    with contextlib.ExitStack() as killed:
        folder = run_checkpoints._own_folder(str(tmp_path / "run"), 1, killed)
    remains = pathlib.Path(folder) / "ckpt-3.data"
    remains.touch()
    seen = []
    monkeypatch.setattr(
        disk_space, "free_bytes", lambda path: seen.append((path, remains.exists())) or 0
    )
    with pytest.raises(UserError, match="a worker that is not the first .* TMPDIR"):
        runner.run(tiny(), str(tmp_path / "run"), "train")
    assert seen == [(str(left), False)]


def test_a_loss_that_is_not_finite_counts_where_nothing_is_skipped() -> None:
    rows = [{"step": n, "loss": None if n > 2 else 1.0, "skipped_steps": 0} for n in range(1, 6)]
    counting = guard.SkippedStepsGuard(3, rows[:4])
    assert counting.in_a_row == 2
    assert counting.see(rows[4:]) == rows[4] and counting.in_a_row == 3


def test_a_checkpoint_of_lost_weights_is_not_called_good(tmp_path) -> None:
    weight, step = tf.Variable(1.0), tf.Variable(0, dtype=tf.int64)
    manager = tf.train.CheckpointManager(
        tf.train.Checkpoint(weight=weight, step=step), str(tmp_path), max_to_keep=9
    )
    for number, value in ((2, 1.0), (4, 2.0), (6, np.nan)):
        weight.assign(value)
        manager.save(checkpoint_number=number)
    assert guard.sound_checkpoint(str(tmp_path)).endswith("ckpt-4")
    assert guard.sound_checkpoint(str(tmp_path), before=4).endswith("ckpt-2")
    assert guard.sound_checkpoint(str(tmp_path), before=2) is None
    said = guard.diverged({"step": 9, "loss": None}, 3, {}, None, skips=False)
    assert "the losses of steps 7 to 9" in str(said) and "init_checkpoint" not in str(said)


def test_a_run_without_skips_ends_too(tiny, tmp_path) -> None:
    optimizer = "trainer__optimizer_config__"
    params = tiny(
        trainer__train_steps=30,
        trainer__max_skipped_steps=4,
        **{
            f"{optimizer}optimizer__lans__skip_nonfinite": False,
            f"{optimizer}learning_rate__warmup_constant_decay__peak_learning_rate": 1e30,
        },
    )
    with pytest.raises(guard.Diverged, match="the losses of steps .* were not finite") as caught:
        runner.run(params, str(tmp_path), "train")
    assert "No finite weights from before them are kept" in str(caught.value)
