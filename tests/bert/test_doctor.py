"""The doctor: what follows from a recipe on a machine, and every problem at once."""

import json
import re

import pytest
import tensorflow as tf

import tfrecords
from official_bert import configuration, doctor, estimates, metrics_log, runner
from official_bert.machine import Machine
from tests.bert.conftest import SHORT
from tests.bert.recipes import load
from tfrecords import schema

NO_DEVICES = {"GPU": 0, "TPU": 0, "CPU": 1}


@pytest.fixture(autouse=True)
def _leave_the_gpus_to_other_tests(monkeypatch) -> None:
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda *_: None)


@pytest.mark.parametrize(
    ("fields", "seen", "replicas"),
    [
        ({"distribution_strategy": "one_device", "num_gpus": 1}, {"GPU": 8}, 1),
        ({"distribution_strategy": "mirrored"}, {"CPU": 2}, 2),
        ({"distribution_strategy": "Mirrored", "num_gpus": 4}, {"GPU": 8}, 4),
        ({"distribution_strategy": "multi_worker_mirrored"}, {"GPU": 8}, 8),
        ({"distribution_strategy": "multi_worker_mirrored"}, {"CPU": 2}, 1),
        ({"distribution_strategy": "multi_worker_mirrored", "num_gpus": 4}, {}, 4),
        ({"distribution_strategy": "tpu"}, {"TPU": 8}, 8),
        ({"distribution_strategy": "tpu"}, {}, 1),
    ],
)
def test_replicas(fields, seen, replicas) -> None:
    runtime = load().runtime.replace(**fields)
    assert doctor.replicas_of_worker(runtime, NO_DEVICES | seen) == replicas


def test_workers_are_those_of_the_cluster(monkeypatch) -> None:
    runtime = load().runtime
    assert doctor.count_workers(runtime) == 1
    together = runtime.replace(distribution_strategy="multi_worker_mirrored")
    cluster = {"chief": ["a:1"], "worker": ["b:1", "c:1"], "evaluator": ["d:1"]}
    task = {"type": "worker", "index": 1}
    monkeypatch.setenv("TF_CONFIG", json.dumps({"cluster": cluster, "task": task}))
    assert doctor.count_workers(together) == 3
    assert doctor.count_workers(together.replace(worker_hosts="a:1, b:2", task_index=0)) == 2


def run_doctor(tmp_path, *arguments: str) -> int:
    return doctor.main([f"--model_dir={tmp_path / 'run'}", *arguments])


def test_a_recipe_without_data_is_told_all_the_rest(capsys, tmp_path) -> None:
    override = "trainer.max_to_keep=0,runtime.num_gpus=64,runtime.run_eagerly=true"
    code = run_doctor(
        tmp_path, "--config_file=bert_large_phase1.yaml", f"--params_override={override}"
    )
    out, err = capsys.readouterr()
    assert code == 2 and err.startswith("error: 6 of the checks failed")
    problems = out.split("What will not work\n")[1].splitlines()
    assert len(problems) == 6 and all(line.startswith("  - ") for line in problems)
    for words in (
        "num_gpus 64; expected mirrored",
        "num_gpus is 64, TensorFlow sees",
        "max_to_keep is 0",
        "run_eagerly is True",
        "task.train_data.input_path is empty",
        "task.validation_data.input_path is empty",
    ):
        assert [line for line in problems if words in line], words
    for words in ("  tensorflow ", "  keras ", "tf-models-official ", "tf-lans "):
        assert words in out.split("Devices")[0]
    for words in ("345,931,776", "1,536 a step", "337,275,708", "step 1,500", "unknown: no shards"):
        assert words in out, words
    assert not (tmp_path / "run").exists()


def test_a_sound_recipe_ends_with_0(capsys, tmp_path, tiny, tiny_yaml, shards, monkeypatch) -> None:
    monkeypatch.setattr(doctor, "probe", lambda: Machine(memory_bytes=2**40))
    data = f"task.train_data.input_path={shards},task.validation_data.input_path={shards}"
    (tmp_path / "run").mkdir()
    saved = runner.completed(
        tiny(task__micro_batch_size=4), "train_and_eval", 1, str(tmp_path / "run")
    )
    configuration.save(saved, str(tmp_path / "run"))
    rows = [
        {"step": step, "loss": 1.0, "gradient_norm": 3.0, "piece_gradient_norm": 5.0}
        for step in range(1, 5)
    ]
    metrics_log.MetricsLog(str(tmp_path / "run" / metrics_log.METRICS)).append(rows)
    arguments = [f"--config_file={tiny_yaml}", f"--params_override={data},task.micro_batch_size=4"]
    code = run_doctor(tmp_path, *arguments)
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert out.endswith("What will not work\n  - nothing found\n")
    examples = tfrecords.Manifest.load(shards).num_examples(schema.TRAIN, SHORT)
    assert f"{6 * 32 / examples:.4g} over {examples:,} examples" in out
    # B_simple of 32 examples in 8 pieces: (25 - 9) / (1/4 - 1/32) over (32 * 9 - 4 * 25) / 28.
    assert "Gradient noise" in out
    scale = 16 / (1 / 4 - 1 / 32) / (188 / 28)
    assert re.search(rf"noise scale +{scale:.0f} .*examples, over the last 4 steps", out)
    lines = [line for line in out.splitlines() if line.startswith("  step")]
    assert len(lines) >= 5


def test_a_config_that_does_not_load_is_one_of_the_problems(capsys, tmp_path) -> None:
    code = run_doctor(tmp_path, "--config_file=absent.yaml")
    out = capsys.readouterr().out
    assert code == 2 and "Versions" in out and "Devices" in out
    assert "  - cannot read the config file absent.yaml" in out


def test_devices_that_are_not_seen_fail_it(capsys, tmp_path, monkeypatch) -> None:
    machine = Machine(gpus=("H200",) * 99, gpu_bytes=2**37, tpus=4)
    monkeypatch.setattr(doctor, "probe", lambda: machine)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert run_doctor(tmp_path, "--config_file=bert_tiny_phase1.yaml") == 2
    out = capsys.readouterr().out
    assert "of 99 GPUs" in out and "none of 4 TPU chips" in out
    assert "99 (H200, 128.0 GiB each)" in out


def test_workers_are_examined_together_as_the_launcher_starts_them(capsys, tmp_path) -> None:
    assert run_doctor(tmp_path, "--config_file=bert_large_phase1.yaml", "--num_workers=7") == 2
    out = capsys.readouterr().out
    assert "examined as multi_worker_mirrored" in out
    assert "global_batch_size 98304 is no positive multiple of 7 workers; use 98301 or 98308" in out
    assert "Training batches" not in out and "Learning rate" in out


def test_what_runs_slowly_or_not_at_all_for_want_of_memory(tiny) -> None:
    params = tiny(runtime__mixed_precision_dtype="bfloat16")
    small = Machine(memory_bytes=2**20)
    report = doctor.examine(params, "train", "", small, NO_DEVICES)
    assert not report.problems
    slow, large = report.warnings
    assert "bfloat16, for which this processor has no instructions" in slow
    assert "the device has 1.0 MiB: it will not fit" in large and "micro_batch_size" in large
    needed = estimates.memory(params, examples=32, micro_batches=1, predictions=8).total
    tight = Machine(memory_bytes=int(1.5 * needed), bfloat16=("amx_bf16",))
    (may,) = doctor.examine(params, "train", "", tight, NO_DEVICES).warnings
    assert "it may not fit" in may
    roomy = Machine(memory_bytes=2**40, bfloat16=("amx_bf16",))
    assert not doctor.examine(params, "train", "", roomy, NO_DEVICES).warnings


def test_a_cluster_or_tpu_that_nothing_names(tiny, monkeypatch) -> None:
    for name in ("TF_CONFIG", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    machine = Machine()
    together = tiny(runtime__distribution_strategy="multi_worker_mirrored")
    (line,) = doctor.examine(together, "train", "", machine, NO_DEVICES).problems
    assert "nothing says who the workers" in line
    assert not doctor.examine(together, "train", "", machine, NO_DEVICES, num_workers=2).problems
    on_tpu = tiny(runtime__distribution_strategy="tpu")
    (line,) = doctor.examine(on_tpu, "train", "", machine, NO_DEVICES).problems
    assert "runtime.tpu names none" in line


def test_evaluation_alone_asks_nothing_of_the_training(tiny) -> None:
    params = tiny(trainer__train_steps=0, task__train_data__input_path="nowhere")
    report = doctor.examine(params, "eval", "", Machine(), NO_DEVICES)
    assert not report.problems
    assert [section.split("\n")[0] for section in report.sections] == ["Model"]
