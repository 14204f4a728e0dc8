"""What a folder may hold when a run begins or goes on in it, and what may change by then."""

import pathlib
import shutil
from fractions import Fraction
from unittest import mock

import pytest
import tensorflow as tf
import tf_keras
from hypothesis import given
from hypothesis import strategies as st

from official_bert import (
    configuration,
    continuation,
    interruption,
    metrics_log,
    preflight,
    run_checkpoints,
    run_data,
    run_files,
    runner,
    starting_point,
    train,
)
from official_bert.global_batch import StepSettings
from official_bert.input import TOKENIZER_CONFIG, kept_casing
from official_bert.loss_scaling import INITIAL, LossScale
from official_bert.trainer import build_trainer
from tests.bert import pretrained_runs
from tests.bert.half_precision import assert_same_norms
from tfrecords.errors import UserError

START = "task.init_checkpoint"


@pytest.fixture
def phases(pretrained_run, tiny, tmp_path, monkeypatch) -> pathlib.Path:
    """`run/phase1`, and `run/phase2` begun from it, both named from where the command ran."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(pretrained_run, tmp_path / "run" / "phase1")
    configuration.save(tiny(task__init_checkpoint="run/phase1"), str(tmp_path / "run" / "phase2"))
    return tmp_path / "run"


def begin_as_run(params, folder: str) -> None:
    """What a run writes down before its first step."""
    configuration.save(runner.completed(params, "train", 1, folder), folder)


def changes_of(tiny, start: object, folder: object) -> list[tuple[str, object]]:
    found = continuation.check(tiny(task__init_checkpoint=start), str(folder), "train")
    return [(change.field, change.now) for change in found]


def test_where_a_run_started_may_be_named_otherwise(phases, tiny) -> None:
    """By another path to the same folder, or by the path of a copy."""
    assert changes_of(tiny, "run/phase1", "run/phase2") == []
    for name in (phases / "phase1", "./run/phase1", "run/phase2/../phase1", "run/phase1/ckpt-7"):
        assert changes_of(tiny, name, "run/phase2") == [(START, str(name))]
    shutil.copytree(phases, phases.parent / "copy")
    assert changes_of(tiny, "copy/phase1", "copy/phase2") == [(START, "copy/phase1")]


def test_a_moved_run_starts_where_it_did(phases, tiny) -> None:
    phases.rename(phases.parent / "moved")
    assert changes_of(tiny, "moved/phase1", "moved/phase2") == [(START, "moved/phase1")]


def test_a_run_that_has_begun_need_not_be_told_again_where_it_started(phases, tiny) -> None:
    """As a plain recipe does not, while `official_bert.pretrain` names its first phase."""
    begin_as_run(tiny(task__init_checkpoint="run/phase1"), "run/phase2")
    unnamed = tiny()
    found = runner.completed(unnamed, "train", 1, "run/phase2")
    assert found.task.init_checkpoint == "run/phase1"
    assert unnamed.task.init_checkpoint == ""
    runner.check_model_dir(unnamed, "run/phase2", "train")
    # A run that has lost its checkpoints starts there again, so that it has to be there.
    assert not list(preflight.problems(unnamed, "train", "run/phase2"))
    (phases / "phase1").rename(phases / "elsewhere")
    assert list(preflight.problems(unnamed, "train", "run/phase2")) == [
        "no checkpoint at run/phase1; expected a model_dir with a finished save, a prefix such as "
        "model_dir/ckpt-500, or an exported SavedModel"
    ]
    named = tiny(task__init_checkpoint="run/elsewhere")
    for folder in ("run/phase2", "run/elsewhere", "run/new"):
        completed = runner.completed(named, "train", 1, folder)
        assert completed.task.init_checkpoint == "run/elsewhere"
    for folder in ("run/elsewhere", "run/new"):
        assert runner.completed(unnamed, "train", 1, folder).task.init_checkpoint == ""


def test_a_run_that_lost_its_checkpoints_starts_where_it_did(phases, tiny, monkeypatch) -> None:
    """Not from random weights."""
    begin_as_run(tiny(task__init_checkpoint="run/phase1"), "run/phase2")

    def restore(path: str, model: tf_keras.Model) -> None:
        raise UserError(f"started from {path}")

    monkeypatch.setattr("official_bert.checkpoints.restore_model", restore)
    with pytest.raises(UserError, match="started from run/phase1"):
        runner.run(tiny(), "run/phase2", "train")


def test_another_start_is_another_run(phases, tiny, shards) -> None:
    other = tiny(task__model__encoder__bert__num_layers=1)
    pretrained_runs.write(other, shards, phases.parent / "other")
    for name in ("other", "nowhere"):
        with pytest.raises(UserError, match=f"{START} was 'run/phase1', now '{name}'"):
            runner.check_model_dir(tiny(task__init_checkpoint=name), "run/phase2", "train")
    # To a finetuning, which completes nothing, none means random weights.
    with pytest.raises(UserError, match=f"{START} was 'run/phase1', now ''"):
        continuation.check_begun(tiny(), "run/phase2", [START])


def test_a_vocabulary_is_known_by_its_content(tmp_path, tiny, shards) -> None:
    """A finetuning names that of the pretraining, which may lie elsewhere by now."""
    configuration.save(tiny(task__train_data__vocab_file="gone.txt"), str(tmp_path))
    now = tiny(task__train_data__vocab_file=shards / "vocab.txt")
    with pytest.raises(UserError, match="vocab_file was 'gone.txt', now "):
        continuation.check_begun(now, str(tmp_path), ("task.train_data",))
    shutil.copy(shards / "vocab.txt", tmp_path)
    continuation.check_begun(now, str(tmp_path), ("task.train_data",))
    (tmp_path / "vocab.txt").write_text("other")
    with pytest.raises(UserError, match="vocab_file was 'gone.txt', now "):
        continuation.check_begun(now, str(tmp_path), ("task.train_data",))


def test_how_a_step_is_carried_out_is_written_down(tmp_path, tiny) -> None:
    """All that changes the bits of a run."""
    configuration.save(tiny(), str(tmp_path))
    now = tiny(runtime__distribution_strategy="mirrored", runtime__deterministic_ops=False)
    found = {each.field: each.now for each in continuation.check(now, str(tmp_path), "train")}
    assert found == {
        "runtime.distribution_strategy": "mirrored", "runtime.deterministic_ops": False
    }  # fmt: skip


PHASES = (
    st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(0, 6))
    .filter(any)
    .map(lambda lengths: (lengths[0], lengths[1], sum(lengths)))
)


def rates(phases: tuple[int, int, int], steps: int) -> list[Fraction]:
    """Equation (9) of arXiv 2006.13484, of a peak of 1, exactly."""
    warmup, constant, total = phases
    decay = total - warmup - constant
    return [
        Fraction(step, warmup) if step <= warmup
        else Fraction(1) if step <= warmup + constant
        else Fraction(max(total - step, 0), max(decay, 1))
        for step in range(1, steps + 1)
    ]  # fmt: skip


def with_phases(params, phases: tuple[int, int, int]):
    names = ("warmup_steps", "constant_steps", "total_steps")
    config = params.trainer.optimizer_config
    fields = dict(zip(names, phases, strict=True))
    schedule = config.learning_rate.warmup_constant_decay.replace(**fields)
    rate = config.learning_rate.replace(warmup_constant_decay=schedule)
    config = config.replace(learning_rate=rate)
    return params.replace(
        trainer=params.trainer.replace(optimizer_config=config, train_steps=phases[2])
    )


@given(old=PHASES, other=PHASES, longer=st.none() | st.integers(1, 4), data=st.data())
def test_a_schedule_may_change_as_long_as_no_step_had_another_rate(
    tiny, old, other, longer: int | None, data
) -> None:
    """Any two, and often the second with a longer plateau than the first."""
    new = other if longer is None else (old[0], old[1] + longer, old[2] + longer)
    done = data.draw(st.integers(0, old[2]))
    saved = with_phases(tiny(), old).as_dict()
    params = with_phases(tiny(), new)
    change = continuation.Change(field="constant_steps", was=old[1], now=new[1])
    before, after = rates(old, done), rates(new, done)
    with (
        mock.patch.object(continuation, "_steps_done", lambda model_dir: done),
        mock.patch.object(configuration, "read_saved", lambda model_dir: saved),
    ):
        if before == after:
            continuation._check_rates_used(params, "run", change)
            return
        first = 1 + next(i for i in range(done) if before[i] != after[i])
        with pytest.raises(UserError, match=f"gives step {first}, of {done} done, the learning"):
            continuation._check_rates_used(params, "run", change)


def contents(folder: pathlib.Path) -> dict[pathlib.Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"notes.txt": "", "vocab.txt": ""}, "holds something else (notes.txt, vocab.txt)"),
        ({"vocab.txt": "[PAD]\n"}, "holds something else (vocab.txt)"),
        ({"tokenizer_config.json": '{"do_lower_case": false}'}, "else (tokenizer_config.json)"),
        ({"tokenizer_config.json": "[]"}, "tokenizer_config.json is no JSON object"),
        ({"metrics.jsonl": '{"a": 1}\n'}, "holds something else (metrics.jsonl)"),
        ({"README.md": "", "phase1": None}, "holds something else (README.md, phase1)"),
        ({"data.json": '{"rows": 3}'}, "data.json does not say which shards"),
        ({"data.json": "[1]"}, "data.json does not say which shards"),
        ({"data.json": "\x80"}, "data.json does not say which shards"),
    ],
)
def test_nothing_begins_among_foreign_files(
    files, words: str, tmp_path, tiny_arguments, capsys
) -> None:
    for name, text in files.items():
        path = tmp_path / name
        path.mkdir() if text is None else path.write_text(text)
    before = contents(tmp_path)
    config_file, data = tiny_arguments
    arguments = [f"--config_file={config_file}", f"--params_override={data}"]
    assert train.main([*arguments, f"--model_dir={tmp_path}"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and words in errors[0]
    assert contents(tmp_path) == before


def test_what_lies_beside_a_run_before_it_begins_is_no_obstacle(tmp_path, tiny) -> None:
    """Logs of launchers and schedulers, TensorBoard's, a volume's own, a recipe, a killed start."""
    for name in ("logs", "launch_logs", "train", "validation", "plugins", "lost+found"):
        (tmp_path / name).mkdir()
    for name in ("bert-17.log", "slurm-17.out", "nohup.out", "job.err", ".nfs0001", "recipe.yaml"):
        (tmp_path / name).touch()
    (tmp_path / "events.out.tfevents.17.host").touch()
    params = tiny()
    continuation.check(params, str(tmp_path), "train")
    begun = run_files.RunFiles(params, str(tmp_path), writes=True)
    begun.begin(0, (), (run_data.Partition(),))
    (tmp_path / "params.yaml").rename(tmp_path / "params.yaml.partial-0")
    assert (tmp_path / "data.json").exists() and (tmp_path / "vocab.txt").exists()
    continuation.check(params, str(tmp_path), "train")


def test_a_begun_run_whose_records_are_damaged_is_one_line(tmp_path, tiny) -> None:
    params = tiny()
    configuration.save(params, str(tmp_path))
    (tmp_path / run_data.FILE).write_text("{}")
    with pytest.raises(UserError, match="data.json does not say which shards"):
        continuation.check(params, str(tmp_path), "train")


@pytest.mark.parametrize("line", [b"\xff\xfe", b"[1]", b"7", b'{"loss": 1.0}', b'{"step": "x"}'])
def test_a_log_of_something_else_is_one_line(line: bytes, tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line + b"\n")
    with pytest.raises(UserError, match="metrics.jsonl is damaged"):
        metrics_log.read(path)


def test_damage_after_the_last_checkpoint_costs_no_more_than_the_steps_since(tmp_path) -> None:
    """As a machine leaves its last pages that loses its power: zeros, and rows after them."""
    path = tmp_path / "metrics.jsonl"
    log = metrics_log.MetricsLog(str(path))
    log.append([{"step": 1}, {"step": 2}])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"st\0\0\0\n{"step": 4}\n')
    with pytest.raises(UserError, match="metrics.jsonl is damaged"):
        metrics_log.read(path)
    with pytest.raises(UserError, match="metrics.jsonl is damaged"):
        log.cut_back(3)
    assert metrics_log.read(path, through=2) == [{"step": 1}, {"step": 2}]
    log.cut_back(2)
    assert path.read_bytes() == whole


def test_a_torn_end_of_what_has_a_row_now_and_then_is_left_out(tmp_path, caplog) -> None:
    """Which row is the last that is wanted cannot be known there; damage before one is refused."""
    path = tmp_path / "evaluations.jsonl"
    log = metrics_log.MetricsLog(str(path), every_step=False)
    log.append([{"step": 10}, {"step": 20}])
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"st\0\0\n\0\n{"step": 4')
    log.cut_back(40)
    assert path.read_bytes() == whole
    assert "its last 2 lines are damaged" in caplog.text
    path.write_bytes(b"\0\0\n" + whole)
    with pytest.raises(UserError, match="evaluations.jsonl is damaged"):
        log.cut_back(40)


def test_a_foreign_tokenizer_config_may_leave_the_casing_open(tmp_path) -> None:
    path = tmp_path / TOKENIZER_CONFIG
    path.write_text('{"model_max_length": 512}')
    assert kept_casing(str(tmp_path)) is None
    path.write_text('{"do_lower_case": false}')
    assert kept_casing(str(tmp_path)) is False
    for text, words in (("{", "is no JSON object"), ("[]", "is no JSON object"),
                        ('{"do_lower_case": "yes"}', "do_lower_case is 'yes'")):  # fmt: skip
        path.write_text(text)
        with pytest.raises(UserError, match=words):
            kept_casing(str(tmp_path))


def test_a_finetuned_runs_casing_is_read_from_its_config(pretrained_run, tmp_path) -> None:
    """Its vocabulary has no capitals, so a guess would be the wrong one."""
    run = tmp_path / "run"
    shutil.copytree(pretrained_run, run)
    (run / TOKENIZER_CONFIG).unlink()
    saved = (run / "params.yaml").read_text()
    assert "input_path" in saved
    encoder = configuration.read_saved(str(run))["task"]["model"]["encoder"]
    data = {"do_lower_case": False, "vocab_file": "vocab.txt"}
    task = {"model": {"encoder": encoder}, "train_data": data}
    configuration.save(configuration.base_config.Config({"task": task}), str(run))
    assert starting_point.find(str(run)).lower_case is False
    assert starting_point.find(str(run), lower_case=True).lower_case is True


def test_a_run_may_become_float16(tmp_path, tiny) -> None:
    """With a loss scale that begins anew, and gradients as large as those of float32."""
    policy = tf_keras.mixed_precision.global_policy()
    schedule = "trainer__optimizer_config__learning_rate__warmup_constant_decay__"

    def run(folder: str, steps: int, precision: str) -> None:
        params = tiny(
            trainer__train_steps=steps,
            trainer__steps_per_loop=1,
            # The second gradient of the whole batch would overflow.
            task__micro_batch_size=8,
            runtime__mixed_precision_dtype=precision,
            **{f"{schedule}total_steps": 4, f"{schedule}peak_learning_rate": 0.005},
        )
        runner.run(params, str(tmp_path / folder), "train")

    try:
        run("full", 1, "float32")
        shutil.copytree(tmp_path / "full", tmp_path / "half")
        run("full", 2, "float32")
        run("half", 2, "float16")
    finally:
        tf_keras.mixed_precision.set_global_policy(policy)
    full, half = (metrics_log.read(tmp_path / name / "metrics.jsonl") for name in ("full", "half"))
    assert [row["step"] for row in half] == [1, 2]
    assert_same_norms(half[1], full[1], "float16", "piece_gradient_norm")
    rows = metrics_log.read(tmp_path / "half" / continuation.CHANGES)
    changes = [(row["step"], row["field"], row["now"]) for row in rows]
    assert (1, "runtime.mixed_precision_dtype", "float16") in changes
    saved = tf.train.load_checkpoint(str(tmp_path / "half" / "ckpt-2"))
    scale = saved.get_tensor("loss_scale/value/.ATTRIBUTES/VARIABLE_VALUE")
    assert half[1]["skipped_steps"] == 0 and scale == INITIAL


def test_a_fixed_loss_scale_is_the_configs(tmp_path, tiny) -> None:
    """Whatever the checkpoint that the run goes on from was saved with."""
    params = tiny()
    task = runner.task_factory.get_task(params.task)

    def restored(scale: LossScale) -> float:
        trainer = build_trainer(
            params, task, train=True, evaluate=False, settings=StepSettings(loss_scale=scale)
        )
        manager = run_checkpoints.RunCheckpoints(
            trainer.checkpoint, str(tmp_path), max_to_keep=1, global_step=trainer.global_step,
            interval=1, initialize=lambda: None,
        )  # fmt: skip
        manager.restore_or_initialize()
        value = float(scale.value)
        manager.save(checkpoint_number=int(trainer.global_step.assign_add(1)))
        return value

    dynamic = LossScale()
    dynamic.value.assign(5.0)
    assert restored(dynamic) == 5.0 and restored(LossScale()) == 5.0
    assert restored(LossScale(8.0)) == 8.0 and restored(LossScale(4.0)) == 4.0
    # Dynamic again after a fixed one, it begins anew.
    assert restored(LossScale()) == INITIAL


def test_an_evaluation_asks_for_the_model_only(pretrained_run, tmp_path, tiny) -> None:
    """Another optimizer than the run's has other slots; another model is told."""
    run = tmp_path / "run"
    shutil.copytree(pretrained_run, run)
    other = {"trainer__optimizer_config__optimizer__type": "adamw"}
    stop = interruption.StopRequest()
    result = runner.run(tiny(**other), str(run), "eval", stop=stop)
    assert result.evaluation["masked_lm_loss"] > 0
    assert not stop.has_steps  # whose end a signal would wait for
    (run / "params.yaml").unlink()
    with pytest.raises(UserError, match="another architecture than the config's"):
        runner.run(tiny(task__model__encoder__bert__num_layers=1), str(run), "eval")
