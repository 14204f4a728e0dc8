"""Configs: recipes load, and every mistake ends in one line that names the field."""

import pathlib

import pytest

from official_bert import configuration, experiments, optimization, preflight
from tfrecords.errors import UserError

RECIPES = sorted(pathlib.Path(configuration.CONFIG_FOLDER).glob("*.yaml"))


def load(*files: str, override: str = ""):
    return configuration.load(experiments.PRETRAINING, files, override)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_load_and_state_what_they_are(path: pathlib.Path) -> None:
    params = load(path.name)
    head = path.read_text().split("task:")[0]
    assert all(f"# {word}:" in head for word in ("Command", "Cost", "Result"))
    optimization.build_optimizer(params.trainer.optimizer_config, params.trainer.train_steps)
    batch, micro = params.task.train_data.global_batch_size, params.task.micro_batch_size
    assert micro == 0 or batch % micro == 0
    encoder = params.task.model.encoder.get()
    assert params.task.model.cls_heads[0].inner_dim == encoder.hidden_size


@pytest.mark.parametrize(
    ("recipe", "batch", "steps", "peak", "warmup", "constant"),
    [
        ("bert_large_phase1.yaml", 98_304, 3519, 0.00675, 1500, 963),
        ("bert_large_phase2.yaml", 33_792, 782, 0.005, 150, 84),
    ],
)
def test_the_papers_table_1(recipe, batch, steps, peak, warmup, constant) -> None:
    params = load(recipe)
    assert params.task.train_data.global_batch_size == batch
    assert params.trainer.train_steps == steps
    schedule = optimization.build_learning_rate(params.trainer.optimizer_config, steps)
    # Before its peak the rate rises each step; on the plateau it does not; then it falls to 0.
    rates = [float(schedule(step)) for step in range(steps)]
    top = [step for step, rate in enumerate(rates) if rate == pytest.approx(peak, rel=1e-6)]
    assert top == list(range(warmup - 1, warmup + constant))
    assert rates[0] == pytest.approx(peak / warmup, rel=1e-6)
    assert rates[-1] == pytest.approx(0.0, abs=peak / 1e6)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("trainer.train_stepz=3", "unknown field trainer.train_stepz"),
        ("trainer.optimizer_config.optimizer.lans.beta_1=abc", "beta_1 is 'abc'; expected float"),
        ("trainer.train_steps=2.5", "train_steps is 2.5; expected int"),
        ("trainer.optimizer_config.optimizer.type=lens", "type is 'lens'; expected one of"),
        ("{trainer: 3}", "trainer"),
        ("{task: {model: {cls_heads: [{inner_dims: 1}]}}}", "field task.model.cls_heads[0].inner_"),
        ("{task: {model: {cls_heads: [{inner_dim: 1}, {x: 1}]}}}", "task.model.cls_heads[1].x"),
        ("{task: {model: {cls_heads: [{inner_dim: a}]}}}", "cls_heads[0].inner_dim is 'a'; expec"),
        ("{task: {model: {cls_heads: [7]}}}", "cls_heads[0] is 7; expected field: value pairs"),
        ("trainer: [", "not YAML"),
        ("just words", "expected field: value pairs"),
    ],
)
def test_bad_overrides_are_one_line(override: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        load(override=override)
    assert words in str(caught.value)


def test_bad_files_and_names(tmp_path: pathlib.Path) -> None:
    (tmp_path / "list.yaml").write_text("- 1\n- 2\n")
    (tmp_path / "bad.yaml").write_text("a: [")
    for name in ("list.yaml", "bad.yaml", "absent.yaml"):
        with pytest.raises(UserError, match=name):
            load(str(tmp_path / name))
    with pytest.raises(UserError, match="absent.yaml: it does not exist"):
        load(str(tmp_path / "absent.yaml"))
    with pytest.raises(UserError, match="(?i)is a directory"):
        load(str(tmp_path))
    with pytest.raises(UserError, match="not registered"):
        configuration.load("bert/nonsense")


def test_override_wins_over_files_and_forms_agree(tmp_path: pathlib.Path) -> None:
    (tmp_path / "override.yaml").write_text("trainer: {train_steps: 7}")
    forms = [
        "trainer.train_steps=7",
        "{trainer: {train_steps: 7}}",
        str(tmp_path / "override.yaml"),
    ]
    for form in forms:
        assert load("bert_tiny_phase1.yaml", override=form).trainer.train_steps == 7


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"warmup_steps": 4, "constant_steps": 7}, "10"),
        ({"warmup_steps": 4, "warmup_ratio": 0.5}, "both steps and ratios"),
        ({}, "no warmup"),
        ({"warmup_steps": 2, "peak_learning_rate": -1.0}, "-1.0"),
        ({"warmup_steps": 2, "total_steps": 5}, "shorter than trainer.train_steps 10"),
    ],
)
def test_impossible_schedules_are_refused_before_the_run(fields, words) -> None:
    lr = {"learning_rate": {"warmup_constant_decay": fields}}
    override = str({"trainer": {"train_steps": 10, "optimizer_config": lr}})
    with pytest.raises(UserError) as caught:
        preflight.check(load(override=override), "train")
    assert words in str(caught.value)


@pytest.mark.parametrize("value", ["-0.1", "1.5"])
def test_hyper_parameters_out_of_range_are_refused(value: str) -> None:
    override = (
        f"trainer.train_steps=9,trainer.optimizer_config.optimizer.lans.beta_1={value},"
        "trainer.optimizer_config.learning_rate.warmup_constant_decay.warmup_steps=1"
    )
    with pytest.raises(UserError, match=rf"optimizer\.lans: .*beta_1.*{value}"):
        preflight.check(load(override=override), "train")
