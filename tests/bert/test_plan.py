"""The plan: the papers' own numbers come out, recipes pass training's checks, bad input is told."""

import math
import pathlib

import numpy as np
import pytest
import tensorflow as tf
import yaml

import tfrecords
from official_bert import (
    configuration,
    device_table,
    doctor,
    experiments,
    plan,
    plan_recipe,
    plan_result,
    plan_steps,
    preflight,
)
from official_bert.machine import Machine
from official_bert.plan_time import Assumptions
from tests.bert.conftest import LONG, SHORT
from tfrecords import schema

PAPER = (
    "--model=large",
    "--seq_lengths=128,512",
    "--batch=98304,33792",
    "--micro_batch=64,22",
    "--device=v100",
    "--num_devices=1536",
)
ONE = ("--model=base", "--batch=512", "--micro_batch=64", "--device=a100", "--num_devices=8")


def loaded(path: pathlib.Path):
    experiments.register()
    return configuration.load(experiments.PRETRAINING, [str(path)])


def packaged(name: str):
    experiments.register()
    return configuration.load(experiments.PRETRAINING, [name])


def run(*arguments: object) -> int:
    return plan.main([str(argument) for argument in arguments])


def refused(capsys, *arguments: object) -> str:
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert "written" not in out
    return err


def test_the_papers_own_case_comes_out(tmp_path, capsys) -> None:
    folder = tmp_path / "plan"
    assert run(*PAPER, f"--output={folder}") == 0
    out = capsys.readouterr().out
    for number, name in ((1, "bert_large_phase1.yaml"), (2, "bert_large_phase2.yaml")):
        params, published = loaded(folder / f"phase{number}.yaml"), packaged(name)
        assert params.trainer.train_steps == published.trainer.train_steps
        assert (
            params.trainer.optimizer_config.as_dict()
            == published.trainer.optimizer_config.as_dict()
        )
        assert params.task.model.as_dict() == published.task.model.as_dict()
        for field in ("seq_length", "global_batch_size"):
            ours, theirs = (getattr(each.task.train_data, field) for each in (params, published))
            assert ours == theirs
        assert params.runtime.mixed_precision_dtype == "float16"
        assert params.runtime.distribution_strategy == "multi_worker_mirrored"
    first = loaded(folder / "phase1.yaml")
    schedule = first.trainer.optimizer_config.learning_rate.get()
    assert first.trainer.train_steps == 3519 and schedule.peak_learning_rate == 0.00675
    for words in ("1,500 (42.65%)", "963 (27.35%)", "workers: 192", "1 for each worker"):
        assert words in out, words
    assert f"--phase1={folder / 'phase1.yaml'} --phase2={folder / 'phase2.yaml'}" in out


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("bert_base_64dev_phase1.yaml", ("--batch=8192", "--micro_batch=128")),
        (
            "bert_base_64dev_phase2.yaml",
            ("--batch=4096", "--micro_batch=64", "--seq_lengths=512"),
        ),
    ],
)
def test_the_rules_give_the_derived_recipes(name, arguments, tmp_path) -> None:
    path = tmp_path / "plan.yaml"
    where = ("--model=base", "--device=a100", "--num_devices=64", f"--output={path}")
    assert run(*where, *arguments) == 0
    params, derived = loaded(path), packaged(name)
    assert params.trainer.train_steps == derived.trainer.train_steps
    assert params.trainer.optimizer_config.as_dict() == derived.trainer.optimizer_config.as_dict()
    assert params.task.model.as_dict() == derived.task.model.as_dict()
    assert params.task.micro_batch_size == derived.task.micro_batch_size


def planned(tmp_path, tiny_yaml, shards, *more: str) -> pathlib.Path:
    path = tmp_path / "plan.yaml"
    flags = (f"--model={tiny_yaml}", f"--shards={shards}", f"--seq_lengths={SHORT}")
    assert run(*flags, "--batch=32", "--device=cpu", f"--output={path}", *more) == 0
    return path


def test_a_plan_on_shards_passes_the_doctor(
    tmp_path, tiny_yaml, shards, capsys, monkeypatch
) -> None:
    monkeypatch.setattr(doctor, "probe", lambda: Machine(memory_bytes=2**40))
    monkeypatch.setattr(tf.config, "set_visible_devices", lambda *_: None)
    more = ("--micro_batch=4", "--epochs=2.5", "--num_devices=2")
    path = planned(tmp_path, tiny_yaml, shards, *more)
    examples = tfrecords.Manifest.load(shards).num_examples(schema.TRAIN, SHORT)
    params = loaded(path)
    assert params.trainer.train_steps == math.ceil(2.5 * examples / 32)
    assert params.task.train_data.input_path == str(shards)
    assert "4, 2 for each worker" in capsys.readouterr().out
    assert doctor.main([f"--config_file={path}", "--num_workers=2"]) == 0
    out = capsys.readouterr().out
    assert "nothing found" in out and "4 (4 of" not in out
    # Alone, after another plan in its place: its own strategy is then one device.
    path = planned(tmp_path, tiny_yaml, shards, "--micro_batch=4", "--epochs=2", "--overwrite")
    assert doctor.main([f"--config_file={path}", f"--model_dir={tmp_path / 'run'}"]) == 0


@pytest.mark.parametrize("device", sorted(device_table.DEVICES))
@pytest.mark.parametrize("machines", [0, 1, 4])
def test_recipes_for_every_device_pass_preflight(device, machines) -> None:
    row = device_table.find(device)
    replicas = machines * row.devices_per_worker or 1
    workers = max(1, machines)
    whole = plan_steps.cut(64 * replicas, replicas=replicas, workers=workers, micro_batch=8)
    phase = plan_steps.plan_phase(
        plan_steps.reference("lamb", 128), whole, seq_length=128, examples=10**6, epochs=3
    )
    base = plan_recipe.sized("mini", 8192, 128)
    params = plan_recipe.load(plan_recipe.text(plan_recipe.fill(base, phase, row, "lamb"), []))
    found = preflight.problems(params, "train_and_eval", workers=workers, replicas=replicas)
    assert all(isinstance(problem, preflight.NoShards) for problem in found)
    assert params.runtime.mixed_precision_dtype == row.precision
    seen = {"GPU": row.devices_per_worker, "TPU": replicas, "CPU": 1}
    if row.platform != device_table.GPU:
        seen["GPU"] = 0
    assert workers * doctor.replicas_of_worker(params.runtime, seen) in (
        replicas,
        workers * replicas,  # a TPU slice is one process
    )


def test_a_recipes_runtime_stays_but_for_what_the_devices_decide(tmp_path) -> None:
    base, path = tmp_path / "base.yaml", tmp_path / "plan.yaml"
    recipe = yaml.safe_load(
        pathlib.Path(configuration.find_config("bert_tiny_phase1.yaml")).read_text()
    )
    kept = {"enable_xla": False, "deterministic_ops": True, "bytes_per_pack": 5000}
    decided = {"all_reduce_alg": "hierarchical_copy", "num_gpus": 2, "loss_scale": 8.0}
    recipe["runtime"] = {**kept, **decided, "mixed_precision_dtype": "float16"}
    base.write_text(yaml.safe_dump(recipe))
    arguments = ("--batch=4096", "--micro_batch=64", "--device=a100", "--num_devices=8")
    assert run(f"--model={base}", *arguments, f"--output={path}") == 0
    found = yaml.safe_load(path.read_text())["runtime"]
    assert found == {
        **kept,
        "distribution_strategy": "mirrored",
        "num_gpus": 8,
        "mixed_precision_dtype": "bfloat16",
    }


def test_what_a_recipe_says_beside_the_plan_stays(tmp_path) -> None:
    path = tmp_path / "plan.yaml"
    arguments = ("--batch=4096", "--micro_batch=64", "--device=a100", "--num_devices=8")
    assert run("--model=bert_tiny_phase1.yaml", *arguments, f"--output={path}") == 0
    params, before = loaded(path), packaged("bert_tiny_phase1.yaml")
    assert params.task.model.as_dict() == before.task.model.as_dict()
    assert params.trainer.optimizer_config.optimizer == before.trainer.optimizer_config.optimizer
    assert params.trainer.validation_steps == before.trainer.validation_steps
    assert params.runtime.distribution_strategy == "mirrored" and params.runtime.num_gpus == 8
    text = path.read_text()
    assert "&id" not in text and "*id" not in text
    for word in ("Command: ", "Planned: ", "Cost: ", "Result: ", "Run: ", "Assumed:"):
        assert f"# {word}" in text or f"{word}\n" in text, word
    long = [line for line in text.splitlines() if len(line) > 100]
    assert all(" " not in line.strip("# \\") for line in long)
    # Another optimizer does not take over the first one's settings.
    assert (
        run(
            "--model=bert_tiny_phase1.yaml",
            "--optimizer=lamb",
            *arguments,
            f"--output={path}",
            "--overwrite",
        )
        == 0
    )
    chosen = loaded(path).trainer.optimizer_config
    assert chosen.optimizer.type == "lamb" and chosen.optimizer.lamb.weight_decay == 0.01
    assert not chosen.optimizer.lamb.exclude_from_layer_adaptation
    assert chosen.learning_rate.get().constant_ratio == 0.0


def test_a_recipes_share_of_masks_is_what_is_computed(tmp_path, monkeypatch) -> None:
    arguments = ("--batch=512", "--micro_batch=64", "--device=a100", "--num_devices=8")
    packaged_recipe = yaml.safe_load(
        pathlib.Path(configuration.find_config("bert_tiny_phase1.yaml")).read_text()
    )
    kept: list[plan_result.Planned] = []
    monkeypatch.setattr(plan, "write", lambda flag_values, found, cluster: kept.extend(found) or [])
    for rate in (0.15, 0.4):
        packaged_recipe["task"]["train_data"]["masked_lm_prob"] = rate
        path = tmp_path / f"{rate}.yaml"
        path.write_text(yaml.safe_dump(packaged_recipe))
        assert run(f"--model={path}", *arguments) == 0
    few, many = kept
    assert many.work.flops_per_example > few.work.flops_per_example
    assert many.memory.total > few.memory.total


@pytest.mark.parametrize(
    ("name", "said"),
    [("tiny", plan_recipe.VOCAB_SIZE), ("bert_tiny_phase1.yaml", None)],
)
def test_a_vocabulary_that_is_given_is_the_models(name: str, said: int | None) -> None:
    def vocab_size(given: int | None) -> int:
        found = plan_recipe.find_model(name, given, LONG)
        return found["task"]["model"]["encoder"]["bert"]["vocab_size"]

    assert vocab_size(1234) == 1234
    assert vocab_size(None) == (said or packaged(name).task.model.encoder.bert.vocab_size)
    one, other = (plan_recipe.find_model(name, size, LONG) for size in (1234, None))
    other["task"]["model"]["encoder"]["bert"]["vocab_size"] = 1234
    assert one == other


def test_a_measured_rate_takes_the_tables_place(capsys) -> None:
    def compute(*more: str) -> tuple[float, str]:
        flags = plan.FLAGS
        assert run(*ONE, *more) == 0
        (found,), _ = plan.plan(flags)
        return found.step.compute, capsys.readouterr().out

    table, out = compute()
    assert "0.33 of the 312 TFLOP/s" in out
    own, out = compute("--examples_per_second=160")
    assert own == 64 / 160 and "160 examples a second of one device, as measured" in out
    assert compute("--step_seconds=0.4")[0] == own
    assert compute("--utilisation=0.66")[0] == pytest.approx(table / 2)
    network = compute("--network_gbits=1", "--num_devices=16", "--batch=1024")
    assert "0.125 GB/s" in network[1] and "all-reduce binds" in network[1]


def test_a_corpus_by_its_words(capsys) -> None:
    assert run(*ONE, "--corpus_words=1e9", "--epochs=2") == 0
    assert "over 10,400,000 examples" in capsys.readouterr().out
    assert run(*ONE, "--corpus_tokens=1.3e9", "--epochs=2") == 0
    assert "over 10,400,000 examples" in capsys.readouterr().out
    assert run(*ONE, "--corpus_examples=10400000", "--epochs=2") == 0
    out = capsys.readouterr().out
    assert "40,625" in out and "epochs                  2 over 10,400,000" in out


def test_the_chart_and_what_is_there_already(tmp_path, capsys) -> None:
    chart, path = tmp_path / "plan.png", tmp_path / "plan.yaml"
    where = (f"--chart={chart}", f"--output={path}")
    assert run(*ONE, *where) == 0
    assert chart.read_bytes().startswith(b"\x89PNG") and chart.stat().st_size > 10_000
    assert "from " in capsys.readouterr().out
    before = path.read_bytes()
    path.write_bytes(b"mine")
    assert "is there already" in refused(capsys, *ONE, *where)
    chart.unlink()
    assert "is there already" in refused(capsys, *ONE, *where)
    assert path.read_bytes() == b"mine" and not chart.exists()
    assert run(*ONE, *where, "--overwrite") == 0
    assert yaml.safe_load(path.read_bytes()) == yaml.safe_load(before)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["plan.png", "plan.yaml"]


def test_memory_that_does_not_do_is_said(capsys) -> None:
    big = ("--model=large", "--batch=4096", "--micro_batch=4096", "--device=v100")
    assert run(*big) == 0
    assert "it will not fit, with what the framework adds; lower --micro_batch" in (
        capsys.readouterr().out
    )


def test_help_explains_the_assumptions(capsys) -> None:
    assert run("--help") == 0
    out = capsys.readouterr().out
    for words in (
        "utilisation",
        "arXiv 2204.02311",
        "ring",
        "Input overlaps with everything",
        "sqrt(B / B_reference)",
        "--examples_per_second",
        "Left out",
        "is an assumption",
        "fills every row",
        f"at most {plan_steps.EXAMPLES_OF_A_SHARD:,} examples",
        f"{Assumptions().utilisation:g} unless another is given",
        f"latency l of {Assumptions().hop_seconds * 1e6:g} microseconds",
        f"{Assumptions().input_tokens_per_second / 1e6:g} million tokens a second",
    ):
        assert words in " ".join(out.split()), words
    # The mean that the default is said to be.
    assert Assumptions().utilisation == round(np.mean([0.213, 0.325, 0.302, 0.462]), 2)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (("--batch=500",), "multiple of 8 devices x micro-batch 64 = 512: take 512"),
        (("--batch=1500",), "take 1024 or 1536"),
        (("--batch=800",), "a --micro_batch that divides 100"),
        (("--device=abacus",), "expected one of v100, a100"),
        (("--num_devices=12",), "take 8 or 16"),
        (("--num_devices=0",), "--num_devices"),
        (("--device=cpu", "--devices_per_worker=2"), "a worker on CPUs is one replica"),
        (("--batch=lots",), "--batch has 'lots'; expected a whole number above 0"),
        (("--batch=-512",), "--batch has '-512'"),
        (("--micro_batch=nan",), "--micro_batch has 'nan'"),
        (("--micro_batch=",), "--micro_batch is missing"),
        (("--batch=512,512",), "--batch has 2 values and --seq_lengths 1"),
        (("--seq_lengths=1,2,3",), "expected one or two"),
        (("--seq_lengths=0",), "--seq_lengths has '0'"),
        (("--utilisation=0",), "above 0 and up to 1"),
        (("--utilisation=nan",), "above 0 and up to 1"),
        (("--network_gbits=-1",), "--network_gbits is -1"),
        (("--input_tokens_per_second=inf",), "--input_tokens_per_second is inf"),
        (("--step_seconds=0",), "--step_seconds has '0'"),
        (("--step_seconds=1", "--examples_per_second=1"), "say the same"),
        (("--corpus_words=0",), "--corpus_words is 0"),
        (("--corpus_words=5", "--corpus_tokens=5"), "both say the corpus's size"),
        (("--corpus_tokens=1000",), "fewer than the batch of 512"),
        (("--epochs=3",), "--epochs needs the size of the corpus"),
        (("--epochs=1e300", "--corpus_examples=1000"), "steps at batch 512; expected at most"),
        (("--reference_rate=1",), "--reference_batch belong together"),
        (("--optimizer=sgd",), "expected one of lans, lamb"),
        (("--model=enormous",), "expected one of tiny, mini"),
        (("--seq_lengths=513", "--model=bert_large_phase1.yaml"), "max_position_embeddings 512"),
        (("--shards=nowhere",), "no manifest.json in nowhere"),
        (("--max_rate=0",), "--max_rate has '0'"),
        (("--output=plan.txt",), "ends in .yaml"),
        (("--chart=plan.jpg",), "ends in .png"),
        (("stray",), "unexpected argument"),
    ],
)
def test_bad_input_is_told_in_one_line(changes, words, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = () if any(each.startswith("--output") for each in changes) else ("--output=plan.yaml",)
    assert words in refused(capsys, *ONE, *own, *changes)
    assert not list(tmp_path.iterdir())


def test_recipes_and_shards_that_do_not_do(capsys, tmp_path, shards, tiny_yaml) -> None:
    (tmp_path / "list.yaml").write_text("[1, 2]")
    (tmp_path / "broken.yaml").write_text("task: {")
    (tmp_path / "odd.yaml").write_text("task: {modle: 1}")
    for name, words in (
        ("list.yaml", "no field: value pairs"),
        ("broken.yaml", "is not YAML"),
        ("odd.yaml", "the planned recipe: unknown field task.modle"),
    ):
        assert words in refused(capsys, *ONE, f"--model={tmp_path / name}")
    own = (f"--model={tiny_yaml}", f"--shards={shards}", "--micro_batch=1", "--device=cpu")
    line = refused(capsys, *own, "--batch=32", "--seq_lengths=99")
    assert f"holds {SHORT}, {LONG}" in line
    where = (f"--seq_lengths={SHORT}", "--num_devices=3", "--batch=33")
    assert "4 shards cannot be dealt out to 3 workers" in refused(capsys, *own, *where)
    assert "--device is missing" in refused(capsys, "--batch=1", "--micro_batch=1")
    assert "--batch is missing" in refused(capsys, "--device=cpu", "--micro_batch=1")
