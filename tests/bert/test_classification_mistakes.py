"""Sentence classification: what the command refuses, and what its messages say."""

import pathlib

import pytest
import yaml

from official_bert import classification_run, classification_task, finetune_plan, guard, preflight
from tests.bert.tiny_classification import command_line, failed, from_scratch, make_files
from tests.bert.tiny_squad import ENCODER


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return make_files(tmp_path_factory.mktemp("classification"))


def test_a_diverged_run_is_told_in_the_commands_own_flags(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*arguments: object) -> None:
        raise guard.diverged({"step": 9, "loss": None}, 3, {}, "ckpt-4")

    monkeypatch.setattr(classification_run, "run", run)
    message = failed(command_line(folder, "diverged"), capsys)
    assert "steps 7 to 9 were not finite, 3 in a row; lower --learning_rate or" in message
    assert "trainer." not in message and "task." not in message


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--doc_stride=7", "--glue_task=rte"], "--doc_stride, --glue_task: not read by --task=cl"),
        (["--label_column="], "--task=classify needs --label_column"),
        (["--label_column=color"], "no column named 'color'; its header is text, colour"),
        (["--text_pair_column=other"], "no column named 'other'"),
        (["--train_file={root}/none.csv"], "no file at"),
        (["--dev_file={root}/odd.csv"], "odd.csv: line 3 is labelled 'pink'; expected one of blue"),
        (["--dev_file={root}/short.csv"], "short.csv has no data lines"),
        (["--seq_length=73"], "--seq_length is 73"),
        (["--seq_length=4"], "--seq_length is 4; expected at least 5"),
        (["--num_lengths=0"], "--num_lengths is 0"),
        (["--micro_batch_size=5"], "task.micro_batch_size is 5"),
        (["--epochs=nan"], "--epochs is nan; expected a number above 0"),
        (["--epochs=inf"], "--epochs is inf; expected a number above 0"),
        (["--learning_rate=0"], "--learning_rate is 0.0; expected a number above 0"),
        (["--learning_rate=-1e-3"], "--learning_rate is -0.001; expected"),
        (["--weight_decay=-0.1"], "--weight_decay is -0.1; expected at least 0"),
        (["--seed=-1"], "--seed is -1; expected 0 to 2147483647"),
        (["--seed=2147483648"], "--seed is 2147483648; expected 0 to 2147483647"),
        (["--warmup_ratio=1.5"], "--warmup_ratio is 1.5; expected 0 to 1"),
        (["--config_file={root}/wider.yaml"], "another architecture"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    more: list[str], message: str, folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "odd.csv").write_text("text,colour\nthe box,red\nthe lamp,pink\n")
    (folder / "short.csv").write_text("text,colour\n")
    config = yaml.safe_load((folder / "small.yaml").read_text())
    config["task"]["model"]["encoder"]["bert"] = {**ENCODER, "num_layers": 3}
    (folder / "wider.yaml").write_text(yaml.safe_dump(config))
    arguments = command_line(
        folder, "never", f"--init_checkpoint={folder / 'pretraining'}", "--train_steps=1",
        *(argument.format(root=folder) for argument in more),
    )  # fmt: skip
    assert message in failed(arguments, capsys)
    assert not (folder / "never").exists()


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (["--data_dir={root}"], "--task=glue needs --glue_task"),
        (["--glue_task=mrpc"], "--task=glue needs --data_dir"),
        (["--glue_task=rte", "--data_dir={root}"], "no train.tsv in"),
        (["--glue_task=wnli", "--data_dir={root}"], "wnli"),
        (["--glue_task=mrpc", "--data_dir={root}", "--train_file=a"], "--train_file: not read by"),
        (["--glue_task=mrpc", "--data_dir={root}", "--new_pooler"], "without --init_checkpoint"),
    ],
)
def test_bad_glue_input_is_one_line(
    task: list[str], message: str, folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = ["--task=glue", *(argument.format(root=folder) for argument in task)]
    arguments = command_line(folder, "never", *from_scratch(folder), task=task)
    assert message in failed(arguments, capsys)
    assert not (folder / "never").exists()


def test_a_folder_of_something_else_is_left_alone(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "thesis").mkdir()
    (folder / "thesis" / "chapter.tex").write_text("")
    message = failed(command_line(folder, "thesis", *from_scratch(folder)), capsys)
    assert "holds something else (chapter.tex)" in message
    assert [path.name for path in (folder / "thesis").iterdir()] == ["chapter.tex"]


def test_a_short_runs_intervals_are_no_cause_for_a_warning() -> None:
    for steps in (1, 9, 49, 200, 5000):
        params = finetune_plan.experiment(
            finetune_plan.Settings(model_dir="run"),
            classification_task.ClassificationConfig(),
            steps,
        )
        assert list(preflight.warnings(params, "train_and_eval")) == []
