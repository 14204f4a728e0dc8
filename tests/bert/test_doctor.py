"""The doctor: what a machine has, what follows from a recipe, and every problem at once."""

import dataclasses
import json
import math
import pathlib
import re
import stat

import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from official.core import task_factory

import tfrecords
from official_bert import (
    configuration,
    doctor,
    estimates,
    experiments,
    metrics_log,
    optimization,
    runner,
)
from official_bert.machine import Machine, count_tpus, device_problems, probe, visible_gpus
from official_bert.pretraining_task import LargeBatchPretrainTask
from tests.bert.conftest import SHORT
from tfrecords import schema

OTHER_SHAPE = """
task:
  model:
    encoder:
      bert: {vocab_size: 97, hidden_size: 24, num_layers: 3, num_attention_heads: 3,
             intermediate_size: 40, max_position_embeddings: 33, type_vocab_size: 3,
             embedding_size: 10}
    cls_heads:
      - {inner_dim: 24, num_classes: 2, name: next_sentence}
      - {inner_dim: 5, num_classes: 4, name: other}
"""
NO_DEVICES = {"GPU": 0, "TPU": 0, "CPU": 1}


@pytest.fixture(autouse=True)
def _leave_the_gpus_to_other_tests(monkeypatch) -> None:
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda *_: None)


def recipe(name: str, override: str = ""):
    experiments.register()
    return configuration.load(experiments.PRETRAINING, [name], override)


def built(params) -> tuple[int, int, tf.keras.Model]:
    task = task_factory.get_task(params.task)
    assert isinstance(task, LargeBatchPretrainTask)
    model = task.build_model()
    trained = task.trained_variables(model)
    return (
        sum(math.prod(variable.shape) for variable in model.variables),
        sum(math.prod(variable.shape) for variable in trained),
        model,
    )


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("shape", ["", OTHER_SHAPE], ids=["tiny", "other"])
def test_the_formula_counts_the_weights_of_the_built_model(shape, labels, tiny, tmp_path) -> None:
    params = tiny(task__train_data__use_next_sentence_label=labels)
    if shape:
        (tmp_path / "shape.yaml").write_text(shape)
        override = f"task.train_data.use_next_sentence_label={labels}"
        params = configuration.load(
            experiments.PRETRAINING, [str(tmp_path / "shape.yaml")], override
        )
    every, trained, _ = built(params)
    count = estimates.parameters(params.task.model, labels)
    assert (count.model, count.trained) == (every, trained)


def test_bert_large_has_as_many_weights_as_published() -> None:
    """335,141,888 in the encoder with its pooler: `BertModel` of Hugging Face's large model."""
    params = recipe("bert_large_phase1.yaml")
    bare = params.task.model.replace(cls_heads=[])
    encoder = params.task.model.encoder.get()
    masked_lm = encoder.hidden_size**2 + 3 * encoder.hidden_size + encoder.vocab_size
    assert estimates.parameters(bare).model - masked_lm == 335_141_888


def test_a_checkpoint_on_disk_is_as_large_as_estimated(tiny, tmp_path) -> None:
    params = tiny()
    every, trained, model = built(params)
    optimizer = optimization.build_optimizer(params.trainer.optimizer_config, 6)
    optimizer.build(task_factory.get_task(params.task).trained_variables(model))
    tf.train.Checkpoint(model=model, optimizer=optimizer).write(str(tmp_path / "c"))
    size = sum(path.stat().st_size for path in tmp_path.glob("c*"))
    count = estimates.Parameters(model=every, trained=trained)
    estimate = estimates.checkpoint_bytes(count, estimates.slots(params.trainer.optimizer_config))
    assert estimate <= size <= estimate + 200_000
    assert estimates.checkpoint_bytes(count, 2, ema=True) == estimate + 4 * every


@given(
    hidden=st.sampled_from([64, 768, 1024]),
    heads=st.sampled_from([2, 16]),
    rows=st.integers(1, 64),
    length=st.sampled_from([128, 512]),
)
def test_activations_are_those_of_the_cited_formula(hidden, heads, rows, length) -> None:
    encoder = experiments.encoders.BertEncoderConfig(
        hidden_size=hidden, intermediate_size=4 * hidden, num_attention_heads=heads
    )
    published = length * rows * hidden * (34 + 5 * heads * length / hidden)
    assert estimates.layer_activation_bytes(encoder, rows, length, 2) == pytest.approx(published)
    # In float32 all but the dropout masks, a byte each, is twice as large.
    masks = rows * (2 * length * hidden + heads * length**2)
    in_float32 = estimates.layer_activation_bytes(encoder, rows, length, 4)
    assert in_float32 == pytest.approx(2 * (published - masks) + masks)
    calm = encoder.replace(dropout_rate=0.0, attention_dropout_rate=0.0)
    without = length * rows * hidden * 32 + 2 * rows * heads * length**2
    assert estimates.layer_activation_bytes(calm, rows, length, 2) == without


def test_memory_by_hand(tiny) -> None:
    params = tiny(runtime__mixed_precision_dtype="bfloat16")
    count = estimates.parameters(params.task.model)
    encoder = params.task.model.encoder.get()
    found = estimates.memory(params, examples=8, micro_batches=4, predictions=5)
    assert found.weights == 6 * count.model
    assert found.optimizer == 8 * count.trained
    assert found.gradients == 8 * count.trained
    assert found.activations == 2 * estimates.layer_activation_bytes(encoder, 8, SHORT, 2)
    assert found.logits == 3 * 4 * 8 * 5 * encoder.vocab_size
    assert found.total == sum(vars(found).values())
    whole = estimates.memory(tiny(), examples=8, micro_batches=1, predictions=5)
    assert whole.weights == 4 * count.model and whole.gradients == 4 * count.trained
    assert whole.activations == 2 * estimates.layer_activation_bytes(encoder, 8, SHORT, 4)


@given(
    workers=st.sampled_from([1, 2, 4]),
    per_worker=st.sampled_from([1, 3]),
    micro_batches=st.integers(1, 6),
    micro=st.integers(1, 9),
    steps=st.integers(1, 99),
)
def test_batches_add_up(workers, per_worker, micro_batches, micro, steps) -> None:
    replicas = workers * per_worker
    cut = estimates.Batches(
        steps=steps,
        global_batch=replicas * micro_batches * micro,
        per_worker=per_worker * micro_batches * micro,
        per_replica=micro_batches * micro,
        per_micro_batch=micro,
        seq_length=7,
        split_examples=11,
    )
    assert cut.micro_batches == micro_batches
    assert cut.pieces == replicas * micro_batches
    assert cut.per_worker * workers == cut.per_replica * replicas == cut.global_batch
    assert cut.tokens_per_step == 7 * cut.global_batch
    assert cut.epochs == pytest.approx(steps * cut.global_batch / 11)
    assert dataclasses.replace(cut, split_examples=None).epochs is None


def test_batches_of_a_recipe(tiny, shards) -> None:
    params = tiny(task__micro_batch_size=4)
    cut = estimates.batches(params, workers=2, replicas=4, split_examples=100)
    assert (cut.per_worker, cut.per_replica, cut.per_micro_batch) == (16, 8, 4)
    assert (cut.micro_batches, cut.pieces, cut.examples, cut.epochs) == (2, 8, 192, 1.92)
    assert estimates.batches(tiny(), workers=1, replicas=2).per_micro_batch == 16


def test_rates_of_the_papers_phase_1() -> None:
    params = recipe("bert_large_phase1.yaml")
    found = estimates.learning_rates(params.trainer.optimizer_config, params.trainer.train_steps)
    assert [rate.step for rate in found] == [1, 1500, 2463, 2991, 3519]
    peak = 0.00675
    half = peak * (3519 - 2991) / (3519 - 2463)
    expected = [peak / 1500, peak, peak, half, 0.0]
    assert [rate.rate for rate in found] == pytest.approx(expected, rel=1e-6)
    assert found[3].rate == pytest.approx(peak / 2, rel=1e-3)


def test_rates_of_runs_without_some_phases() -> None:
    def rates(override: str, steps: int = 8) -> list[tuple[str, int, float]]:
        params = recipe("bert_tiny_phase1.yaml", override)
        found = estimates.learning_rates(params.trainer.optimizer_config, steps)
        return [(rate.name, rate.step, round(rate.rate, 6)) for rate in found]

    schedule = "trainer.optimizer_config.learning_rate"
    fields = {"warmup_ratio": None, "constant_ratio": None, "peak_learning_rate": 1.0}

    def with_fields(**more: int) -> str:
        return json.dumps(
            {
                "trainer": {
                    "optimizer_config": {"learning_rate": {"warmup_constant_decay": fields | more}}
                }
            }
        )

    assert rates(with_fields(warmup_steps=2)) == [
        ("first step", 1, 0.5),
        ("end of warmup", 2, 1.0),
        ("half way down", 5, 0.5),
        ("last step", 8, 0.0),
    ]
    # A run that ends on the plateau of a longer schedule.
    assert rates(with_fields(warmup_steps=2, constant_steps=10, total_steps=20)) == [
        ("first step", 1, 0.5),
        ("end of warmup", 2, 1.0),
        ("last step", 8, 1.0),
    ]
    constant = f"{schedule}.type=constant,{schedule}.constant.learning_rate=0.25"
    assert [step for _, step, _ in rates(constant)] == [1, 2, 4, 6, 8]
    assert {rate for *_, rate in rates(constant)} == {0.25}


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3 * 2**29, "1.5 GiB"),
        (2**62, "4096.0 PiB"),
    ],
)
def test_sizes_in_words(size, words) -> None:
    assert estimates.in_words(size) == words


def write(root: pathlib.Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def command(path: pathlib.Path, text: str, code: int = 0) -> str:
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {code}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_machine_is_read_from_its_files(tmp_path) -> None:
    write(
        tmp_path,
        {
            "proc/meminfo": "MemTotal:       24617120 kB\nMemFree: 1 kB\n",
            "proc/cpuinfo": "processor : 0\nflags : fpu avx512_bf16 amx_bf16_not avx2\nflags : fpu",
            "dev/nvidia0": "",
            "dev/nvidia1": "",
            "dev/nvidiactl": "",
        },
    )
    machine = probe(tmp_path, nvidia_smi=str(tmp_path / "absent"))
    assert machine.memory_bytes == 24617120 * 1024
    assert machine.bfloat16 == ("avx512_bf16",)
    assert len(machine.gpus) == 2 and machine.gpu_bytes is None
    bare = probe(tmp_path / "nothing", nvidia_smi=str(tmp_path / "absent"))
    assert (bare.gpus, bare.tpus, bare.memory_bytes, bare.bfloat16) == ((), 0, None, ())


def test_nvidia_smi_is_asked_first(tmp_path) -> None:
    write(tmp_path, {"dev/nvidia0": ""})
    answers = command(tmp_path / "smi", "NVIDIA H200, 143771\nNVIDIA A100, PCIe, 81920")
    machine = probe(tmp_path, nvidia_smi=answers)
    assert machine.gpus == ("NVIDIA H200", "NVIDIA A100, PCIe")
    assert machine.gpu_bytes == 81920 * 2**20
    unknown = probe(tmp_path, nvidia_smi=command(tmp_path / "smi", "NVIDIA GB10, [N/A]"))
    assert unknown.gpus == ("NVIDIA GB10",) and unknown.gpu_bytes is None
    failing = command(tmp_path / "smi", "No devices were found", code=6)
    assert probe(tmp_path, nvidia_smi=failing).gpus == ("GPU",)


def test_tpus_are_told_from_googles_disks_and_network_cards(tmp_path) -> None:
    group = "sys/kernel/iommu_groups/{}/devices/0000:00:0{}.0/{}"
    kinds = {0: "0x088000", 1: "0x020000", 2: "0x010802"}
    for number, kind in kinds.items():
        write(
            tmp_path,
            {
                f"dev/vfio/{number}": "",
                group.format(number, number, "vendor"): "0x1ae0\n",
                group.format(number, number, "class"): f"{kind}\n",
            },
        )
    write(
        tmp_path,
        {
            "dev/vfio/vfio": "",
            "dev/vfio/7": "",
            group.format(7, 7, "vendor"): "0x10de\n",
            group.format(7, 7, "class"): "0x030000\n",
        },
    )
    assert count_tpus(tmp_path) == 1
    write(tmp_path, {f"dev/accel{number}": "" for number in range(4)})
    assert probe(tmp_path, nvidia_smi=str(tmp_path / "absent")).tpus == 4


@pytest.mark.parametrize(
    ("variable", "count"),
    [(None, 4), ("", 0), ("-1", 0), ("0,2", 2), ("1,-1,2", 1), ("0,9,1", 1), ("GPU-1f,GPU-2e", 2)],
)
def test_gpus_that_cuda_hides_are_not_missed(variable, count) -> None:
    assert visible_gpus(4, variable) == count
    machine = Machine(gpus=("GPU",) * 4)
    assert not list(device_problems(machine, NO_DEVICES | {"GPU": count}, variable))
    if count:
        (line,) = device_problems(machine, NO_DEVICES | {"GPU": count - 1}, variable)
        assert f"sees {count - 1} of {count} GPUs" in line


def test_a_tpu_that_tensorflow_does_not_see() -> None:
    (line,) = device_problems(Machine(tpus=4), NO_DEVICES)
    assert "none of 4 TPU chips" in line and "tensorflow-tpu" in line


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
    runtime = recipe("bert_tiny_phase1.yaml").runtime.replace(**fields)
    assert doctor.replicas_of_worker(runtime, NO_DEVICES | seen) == replicas


def test_workers_are_those_of_the_cluster(monkeypatch) -> None:
    runtime = recipe("bert_tiny_phase1.yaml").runtime
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
    saved = runner.completed(tiny(task__micro_batch_size=4), "train_and_eval", 1)
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


def test_masked_positions_come_from_the_shards(tiny, shards) -> None:
    manifest = tfrecords.Manifest.load(shards)
    data = tiny().task.train_data
    assert estimates.predictions(data, manifest) == manifest.max_predictions_per_seq(SHORT)
    assert estimates.predictions(data) == schema.default_max_predictions(SHORT, 0.15)
    assert estimates.predictions(data.replace(masked_lm_prob=0.5)) == (
        schema.default_max_predictions(SHORT, 0.5)
    )
    for shards_there in (None, manifest):
        assert estimates.predictions(data.replace(max_predictions_per_seq=3), shards_there) == 3
