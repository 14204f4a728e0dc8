"""What every format shares: where weights come from, where folders go, and what is refused."""

import json
import logging
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
import yaml
from official.core import task_factory

from official_bert import convert, experiments
from official_bert.export import __main__ as export
from official_bert.export import architecture, output, source
from official_bert.pretraining_task import LargeBatchPretrainConfig
from tests.bert import pretrained_runs
from tfrecords import files
from tfrecords.errors import UserError


@pytest.fixture(scope="module")
def pretrained(pretrained_run: pathlib.Path) -> source.Source:
    return source.load(str(pretrained_run))


def test_a_run_says_everything_itself(
    pretrained: source.Source, pretrained_run: pathlib.Path
) -> None:
    assert pretrained.path == str(pretrained_run)
    assert pretrained.checkpoint == str(pretrained_run / f"ckpt-{pretrained_runs.STEP}")
    assert pretrained.lower_case and pretrained.has_next_sentence
    assert len(pretrained.vocabulary) == pretrained.config.encoder.get().vocab_size
    values = architecture.arrays(pretrained.model)
    np.testing.assert_array_equal(
        values["pooler_transform/kernel"], values["bert/next_sentence/pooler_dense/kernel"]
    )


@pytest.fixture
def bare(pretrained_run: pathlib.Path, tmp_path: pathlib.Path) -> tuple[str, str]:
    """`--config_file` and `--vocab_file` of a checkpoint with nothing beside it."""
    return str(pretrained_run / "params.yaml"), str(pretrained_run / "vocab.txt")


def as_published(pretrained: source.Source, kind: str) -> dict[str, tf_keras.Model]:
    """What Model Garden's own programs put into a checkpoint."""
    model = pretrained.model
    return {
        "trainer": {"model": model, **model.checkpoint_items},
        "pretrainer": {"pretrainer": model},
        "items": dict(model.checkpoint_items),
        "encoder": {"encoder": model.encoder_network},
        "model": {"model": model.encoder_network},
    }[kind]


@pytest.mark.parametrize("kind", ["trainer", "pretrainer", "items", "encoder", "model"])
def test_checkpoints_of_model_garden_are_read(
    kind: str, pretrained: source.Source, bare: tuple[str, str], tmp_path: pathlib.Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    prefix = tf.train.Checkpoint(**as_published(pretrained, kind)).write(str(tmp_path / "bert"))
    read = source.load(prefix, *bare)
    ours, theirs = architecture.arrays(read.model), architecture.arrays(pretrained.model)
    held = {
        "trainer": "",
        "pretrainer": "",
        "items": "bert/next_sentence/logits",
        "encoder": "bert/",
        "model": "bert/",
    }[kind]
    for name, array in theirs.items():
        if not held or not name.startswith(held):
            np.testing.assert_array_equal(ours[name], array, err_msg=name)
    assert read.has_next_sentence == (not held)
    assert ("no masked-LM head" in caplog.text) == (held == "bert/")
    assert ("pooled_output is the one it came with" in caplog.text) == bool(held)


def test_what_is_given_wins_over_the_folder(pretrained_run: pathlib.Path) -> None:
    assert not source.load(str(pretrained_run), lower_case=False).lower_case


def failure(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert export.main(arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


def test_mistakes_are_one_line_and_leave_nothing(
    pretrained_run: pathlib.Path, bare: tuple[str, str], tmp_path: pathlib.Path, capsys
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "params.yaml").write_bytes((pretrained_run / "params.yaml").read_bytes())
    weights = tmp_path / "weights"
    weights.mkdir()
    for path in pretrained_run.glob("ckpt-*"):
        shutil.copy(path, weights)
    prefix = weights / f"ckpt-{pretrained_runs.STEP}"
    saved = yaml.safe_load((pretrained_run / "params.yaml").read_text())
    other = {}
    for layers in (1, 3):
        saved["task"]["model"]["encoder"]["bert"]["num_layers"] = layers
        other[layers] = tmp_path / f"layers{layers}.yaml"
        other[layers].write_text(yaml.safe_dump({"task": {"model": saved["task"]["model"]}}))
    finetuned = tmp_path / "finetuned"
    shutil.copytree(pretrained_run, finetuned)
    model = {"encoder": saved["task"]["model"]["encoder"] | {"bert": {"num_layers": 2}}}
    model["encoder"]["bert"]["vocab_size"] = 1024
    (finetuned / "params.yaml").write_text(yaml.safe_dump({"task": {"model": model}}))
    config, vocabulary = bare
    old = tmp_path / "bert_model.ckpt"
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        variable = tf.compat.v1.get_variable("bert/embeddings/word_embeddings", [4, 2])
        session.run(variable.initializer)
        tf.compat.v1.train.Saver().save(session, str(old), write_state=False)
    marked = tmp_path / "marked"
    shutil.copytree(pretrained_run, marked)
    (marked / output.MARKER).write_text("{")
    cases = {
        (f"--model_dir={empty}",): "no checkpoint at",
        (f"--model_dir={tmp_path / 'none'}",): "no checkpoint at",
        ("--model_dir=",): "--model_dir is empty",
        (f"--model_dir={prefix}",): "give --config_file",
        (f"--model_dir={prefix}", f"--config_file={config}"): "give --vocab_file",
        (
            f"--model_dir={prefix}", f"--config_file={other[3]}", f"--vocab_file={vocabulary}",
        ): "another architecture than the config's",
        (
            f"--model_dir={prefix}", f"--config_file={other[1]}", f"--vocab_file={vocabulary}",
        ): "another architecture than the config's: its encoder has 39 variables, the config's 23",
        (
            f"--model_dir={old}", f"--config_file={config}", f"--vocab_file={vocabulary}",
        ): "is a checkpoint of TensorFlow 1",
        (f"--model_dir={finetuned}",): "is not a pretraining run",
        (f"--model_dir={marked}",): "exported.json is no JSON",
        (f"--model_dir={pretrained_run}", "--format=onnx"): "--format",
        (f"--model_dir={pretrained_run}", "--config_file=none.yaml"): "none.yaml",
    }  # fmt: skip
    before = sorted(path.name for path in tmp_path.iterdir())
    for arguments, words in cases.items():
        line = failure([*arguments, f"--output_dir={tmp_path / 'out'}"], capsys)
        assert words in line, line
        assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_bert_that_a_format_has_no_word_for_is_refused(
    pretrained_run: pathlib.Path, tmp_path: pathlib.Path, capsys, tiny
) -> None:
    run = tmp_path / "run"
    params = tiny(task__model__encoder__bert__norm_first=True, task__model__mlm_activation="relu")
    pretrained_runs.write(params, pretrained_run, run)
    for form in ("huggingface", "keras_hub"):
        arguments = [f"--format={form}", f"--model_dir={run}"]
        line = failure([*arguments, f"--output_dir={tmp_path / 'out'}"], capsys)
        assert "norm_first is True, expected False" in line and "mlm_activation is relu" in line
        assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_folder_with_content_is_refused_before_the_slow_work(
    pretrained_run: pathlib.Path, tmp_path: pathlib.Path, capsys
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    arguments = [f"--model_dir={tmp_path / 'none'}", f"--output_dir={tmp_path}"]
    assert "is not empty (it holds notes.txt); choose another, or give --overwrite" in failure(
        arguments, capsys
    )
    assert "is not an earlier export" in failure([*arguments, "--overwrite"], capsys)
    file = [f"--model_dir={pretrained_run}", f"--output_dir={tmp_path / 'notes.txt'}"]
    assert "is a file" in failure(file, capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_an_earlier_export_is_replaced_when_the_new_one_is_whole(
    pretrained_run: pathlib.Path, tmp_path: pathlib.Path, capsys
) -> None:
    target = tmp_path / "out"
    arguments = ["--format=huggingface", f"--output_dir={target}"]
    assert not export.main([*arguments, f"--model_dir={pretrained_run}"])
    marker = json.loads((target / output.MARKER).read_text())
    names = sorted(path.name for path in target.iterdir() if path.name != output.MARKER)
    checkpoint = f"ckpt-{pretrained_runs.STEP}"
    assert marker == {"format": "huggingface", "checkpoint": checkpoint, "content": names}
    (target / "vocab.txt").write_text("stale")
    assert "is not empty" in failure([*arguments, f"--model_dir={pretrained_run}"], capsys)
    failure([*arguments, "--overwrite", f"--model_dir={tmp_path / 'none'}"], capsys)
    assert (target / "vocab.txt").read_text() == "stale"
    assert not export.main([*arguments, "--overwrite", f"--model_dir={pretrained_run}"])
    assert (target / "vocab.txt").read_text() != "stale"
    (target / "notes.txt").write_text("mine")
    line = failure([*arguments, "--overwrite", f"--model_dir={pretrained_run}"], capsys)
    assert "holds notes.txt, which the export did not write" in line
    assert (target / "notes.txt").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_was_put_below_an_export_is_not_deleted(tmp_path: pathlib.Path) -> None:
    target = tmp_path / "out"
    with output.folder(str(target)) as folder:
        files.write_text(f"{folder}/encoder/saved_model.pb", "model")
    with output.folder(str(target), overwrite=True) as folder:
        files.write_text(f"{folder}/encoder/saved_model.pb", "newer")
    warmup = target / "encoder/assets.extra/tf_serving_warmup_requests"
    warmup.parent.mkdir()
    warmup.write_text("mine")
    name = str(warmup.relative_to(target))
    with pytest.raises(UserError, match=f"holds {name}, which the export did not write"):
        output.check_free(str(target), overwrite=True)
    # What earlier versions wrote named the folder alone.
    marker = json.loads((target / output.MARKER).read_text())
    assert marker["content"] == ["encoder/saved_model.pb"]
    (target / output.MARKER).write_text(json.dumps({"content": ["encoder"]}))
    output.check_free(str(target), overwrite=True)


def test_a_failure_in_the_middle_leaves_the_old_folder(tmp_path: pathlib.Path) -> None:
    target = tmp_path / "out"
    with output.folder(str(target)) as folder:
        pathlib.Path(folder, "kept").write_text("1234")
    assert output.size(str(target)) == 4 + (target / output.MARKER).stat().st_size
    for error in (UserError("no"), KeyboardInterrupt()):
        with (
            pytest.raises(type(error)),
            output.folder(str(target) + "/", overwrite=True) as folder,
        ):
            pathlib.Path(folder, "half").write_text("")
            raise error
        assert [path.name for path in tmp_path.iterdir()] == ["out"]
        assert (target / "kept").read_text() == "1234"


def test_what_is_read_is_never_overwritten(tmp_path: pathlib.Path, monkeypatch) -> None:
    base = tmp_path / "base"
    with output.folder(str(base)) as folder:
        pathlib.Path(folder, "ckpt-0.index").write_text("")
    (tmp_path / "link").symlink_to(base)
    prefix = base / "ckpt-0"
    for read in (base, prefix, tmp_path / "link"):
        for path in (base, tmp_path / "link", tmp_path):
            with pytest.raises(UserError, match="lie in one another"):
                output.check_apart(str(path), str(read))
    output.check_apart(str(base / "new"), str(base))
    (base / "new").mkdir()
    with pytest.raises(UserError, match="lie in one another"):
        output.check_apart(str(base / "new"), str(base))
    output.check_apart(str(base / "new"), str(prefix))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="lie in one another"):
        output.check_apart("base/", str(base))
    output.check_apart(str(tmp_path / "base2"), str(base))
    output.check_apart("gs://bucket/base", str(base))
    arguments = [f"--model_dir={base}", f"--output_dir={base}", "--overwrite"]
    assert export.main(arguments) == 2
    assert convert.main(["--from=huggingface", str(base), f"--output_dir={base}", "--overwrite"])
    assert (base / "ckpt-0.index").exists()


def test_links_are_followed(tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, target in (("link", "empty"), ("dangling", "nowhere")):
        (tmp_path / name).symlink_to(tmp_path / target)
        for overwrite in (False, True):
            with output.folder(str(tmp_path / name), overwrite) as folder:
                pathlib.Path(folder, "new").write_text("")
            assert (tmp_path / name).is_symlink()
            assert sorted(path.name for path in (tmp_path / target).iterdir()) == [
                "exported.json",
                "new",
            ]
    assert len(list(tmp_path.iterdir())) == 4


def test_the_current_folder_and_mounts_are_refused(tmp_path: pathlib.Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in (".", str(tmp_path), "/proc"):
        with pytest.raises(UserError, match="cannot be replaced as a whole; name a folder in it"):
            output.check_free(path)


ENDED = """
import os, signal, sys
from official_bert.export import output
before = signal.getsignal(signal.SIGTERM)
with output.folder(sys.argv[1]) as folder:
    open(folder + "/kept", "w").close()
assert signal.getsignal(signal.SIGTERM) is before
rename = output.tf.io.gfile.rename
def renamed(source, target, overwrite=False):
    rename(source, target, overwrite)
    if target.endswith("-old"):
        os.kill(os.getpid(), signal.SIGTERM)
if sys.argv[2] == "move":
    output.tf.io.gfile.rename = renamed
with output.folder(sys.argv[1], overwrite=True) as folder:
    if sys.argv[2] == "write":
        os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.mark.parametrize("where", ["write", "move"])
def test_a_process_that_is_ended_leaves_the_old_folder(where: str, tmp_path: pathlib.Path) -> None:
    command = [sys.executable, "-c", ENDED, str(tmp_path / "out"), where]
    assert subprocess.run(command, check=False).returncode == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["exported.json", "kept"]


def test_an_empty_folder_is_free(tmp_path: pathlib.Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    with output.folder(str(target)) as folder:
        pathlib.Path(folder, "new").write_text("")
    assert sorted(path.name for path in target.iterdir()) == ["exported.json", "new"]


def test_a_run_without_the_head_says_so_once(
    tiny, shards: pathlib.Path, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    params = tiny()
    params = params.replace(task=params.task.replace(model=params.task.model.replace(cls_heads=[])))
    pretrained_runs.write(params, shards, tmp_path / "run")
    caplog.set_level(logging.WARNING)
    headless = source.load(str(tmp_path / "run"))
    assert not headless.has_next_sentence
    assert caplog.text.count("pooled_output is untrained") == 1
    arguments = ["--format=huggingface", f"--model_dir={tmp_path / 'run'}"]
    assert not export.main([*arguments, f"--output_dir={tmp_path / 'out'}"])
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["BertForMaskedLM"]


def test_a_head_that_no_label_trained_is_untrained(
    tiny, shards: pathlib.Path, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The shards have labels and the model a head, and the run was told not to use them."""
    run = tmp_path / "run"
    pretrained_runs.write(tiny(task__train_data__use_next_sentence_label=False), shards, run)
    caplog.set_level(logging.WARNING)
    bare = (str(run / "params.yaml"), str(run / "vocab.txt"))
    prefix = shutil.copytree(run, tmp_path / "bare") / f"ckpt-{pretrained_runs.STEP}"
    (tmp_path / "bare" / "params.yaml").unlink()
    for arguments in ((str(run),), (str(prefix), *bare)):
        caplog.clear()
        assert not source.load(*arguments).has_next_sentence
        assert "holds no trained next-sentence head" in caplog.text
        assert "pooled_output is untrained" in caplog.text


def test_parameters_are_counted_once(pretrained: source.Source) -> None:
    experiments.register()
    config = LargeBatchPretrainConfig(model=pretrained.config)
    model = task_factory.get_task(config).build_model()
    # The encoder's pooler and the head's are one: 32 x 32 and 32.
    assert architecture.num_parameters(model) == model.count_params() - 32 * 32 - 32
