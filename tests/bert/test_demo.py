"""The demonstration: the whole way on a small text, and what a failing stage says."""

import json
import os
import pathlib
import pydoc_data.topics
import re
import signal
import subprocess
import sys

import pytest
import tensorflow as tf
import yaml

from official_bert import configuration, demo, docstring_questions, metrics_log, report
from tfrecords import build, vocabulary
from tfrecords.errors import UserError


def small_recipe(name: str, steps: int) -> str:
    """A packaged recipe with a narrower model and fewer steps."""
    path = pathlib.Path(configuration.CONFIG_FOLDER) / name
    params = yaml.safe_load(path.read_text())
    encoder = {"hidden_size": 32, "num_layers": 1, "intermediate_size": 32}
    params["task"]["model"]["encoder"]["bert"] |= encoder
    params["task"]["model"]["cls_heads"][0]["inner_dim"] = 32
    for part in ("train_data", "validation_data"):
        params["task"][part]["global_batch_size"] = 8
    params["trainer"] |= {"train_steps": steps, "validation_interval": 2, "validation_steps": 1}
    params["trainer"] |= {"steps_per_loop": 1, "summary_interval": 1, "checkpoint_interval": 2}
    return yaml.safe_dump(params)


@pytest.mark.slow
def test_the_whole_way(tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    topics = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    lines = [line.strip() for text in topics for line in text.split("\n") if line.strip()]
    documents = ["\n".join(lines[start : start + 20]) for start in range(0, len(lines), 20)]
    (tmp_path / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")
    for number, name in enumerate(demo.PHASES, start=1):
        (tmp_path / f"phase{number}.yaml").write_text(small_recipe(name, steps=3))
    questions = docstring_questions.write_questions(
        tmp_path / "questions",
        ["absl"],
        ["orbit"],
        max_train_questions=40,
        max_dev_questions=10,
    )
    work = tmp_path / "demo"
    arguments = [
        f"--work_dir={work}",
        f"--corpus={tmp_path / 'text.txt'}",
        f"--squad_train={questions.train_path}",
        f"--squad_dev={questions.dev_path}",
        f"--phase1={tmp_path / 'phase1.yaml'}",
        f"--phase2={tmp_path / 'phase2.yaml'}",
        "--finetune_steps=2",
    ]
    capfd.readouterr()
    assert demo.main(arguments) == 0, (work / "demo.log").read_text()[-2000:]
    screen = capfd.readouterr()
    assert "tensorflow/" not in screen.out, "TensorFlow's own messages belong in the log"
    assert not screen.err
    table = screen.out[screen.out.index("not a benchmark") :]
    first, last = map(float, re.search(r"training loss, .*?([\d.]+) to ([\d.]+)", table).groups())
    steps = metrics_log.read(work / "pretraining" / "phase1" / metrics_log.METRICS)
    assert (first, last) == pytest.approx((steps[0]["loss"], steps[-1]["loss"]), abs=6e-4)
    scores = json.loads((work / "finetuned" / "eval_metrics.json").read_text())
    assert f"{scores['f1']:.1f} against" in table
    page = (work / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert not re.search(r'(src|href)="(?!data:)', page), "the page refers to nothing else"
    assert str(work / "demo.log") in table and (work / "export" / "encoder").is_dir()

    # A second call finds everything done and prints the same table.
    assert demo.main(arguments) == 0
    again = capfd.readouterr().out
    rows = [line for line in table.splitlines() if "against" in line or "baseline" in line]
    assert rows and all(row in again for row in rows)


def test_the_command_itself_starts_without_tensorflow() -> None:
    """Else TensorFlow's start-up noise would be on the screen before the log is open."""
    code = "import sys, official_bert.demo; print('tensorflow' in sys.modules)"
    answer = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    )
    assert answer.stdout.strip() == "False"


def test_a_failing_stage_ends_the_demo_with_its_own_line(tmp_path: pathlib.Path) -> None:
    log = tmp_path / "demo.log"
    stage = demo.Stage(
        title="vocabulary",
        module="tfrecords.vocabulary",
        arguments=["--input=/nowhere/*.txt", f"--output={tmp_path / 'v.txt'}"],
    )
    with pytest.raises(UserError) as caught:
        demo.run_stage(stage, str(log))
    assert "/nowhere/*.txt" in str(caught.value) and str(log) in str(caught.value)
    assert not (tmp_path / "v.txt").exists()


SLOW_TO_SAVE = """
import signal, sys, time

def save(*_):
    time.sleep(1)  # what saving takes: more than the quarter of a second that subprocess.run waits
    print("saved", flush=True)
    sys.exit(130)

signal.signal(signal.SIGINT, save)
print("ready", flush=True)
while True:
    signal.pause()
"""


def test_ctrl_c_waits_until_the_stage_has_saved(tmp_path: pathlib.Path) -> None:
    (tmp_path / "slow_to_save.py").write_text(SLOW_TO_SAVE)
    code = (
        "import sys; from official_bert import demo; from tfrecords import command;"
        " stage = demo.Stage(title='', module='slow_to_save', arguments=[]);"
        " sys.exit(command.run(lambda _: demo.run_stage(stage, 'log'), demo.FLAGS, []))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(pathlib.Path(demo.__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        screen, errors = process.communicate()
    assert screen.endswith("saved\n")
    assert (process.returncode, errors) == (130, "interrupted\n")


def test_half_of_the_question_files_is_refused(tmp_path: pathlib.Path, capsys) -> None:
    work = tmp_path / "demo"
    assert demo.main([f"--work_dir={work}", "--squad_train=train.json"]) == 2
    assert "give both" in capsys.readouterr().err
    assert not work.exists()


def test_the_texts_format_goes_to_the_commands_that_read_it() -> None:
    flag_values = demo.FLAGS
    flag_values.unparse_flags()
    flag_values(["demo", "--corpus=a.txt", "--document_boundary=file", "--split_sentences"])
    layout = demo.Layout(root="work")
    found = {
        stage.module: stage for stage in demo.stages(layout, demo.inputs_from(flag_values, layout))
    }
    for module, owner in (("tfrecords.vocabulary", vocabulary), ("tfrecords.build", build)):
        owner.FLAGS.unparse_flags()
        owner.FLAGS(["command", *found[module].arguments])
        assert owner.FLAGS.input == "a.txt" and owner.FLAGS.document_boundary == "file"
    assert build.FLAGS.split_sentences
    formats = ("--document_boundary", "--split_sentences")
    others = [stage for module, stage in found.items() if module.startswith("official_bert.")]
    assert not [text for stage in others for text in stage.arguments if text.startswith(formats)]


def test_a_format_of_no_text_is_refused(tmp_path: pathlib.Path, capsys) -> None:
    work = tmp_path / "demo"
    assert demo.main([f"--work_dir={work}", "--split_sentences"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --split_sentences") and "--corpus" in line
    assert not work.exists()


def test_the_baseline_counts_the_most_frequent_masked_token(shards) -> None:
    """Against a plain count over the shards' records, parsed one by one."""
    counts: dict[int, int] = {}
    for path in sorted(shards.glob("eval-seq32-*")):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            features = tf.train.Example.FromString(record).features.feature
            weights = features["masked_lm_weights"].float_list.value
            for token, weight in zip(
                features["masked_lm_ids"].int64_list.value, weights, strict=True
            ):
                counts[token] = counts.get(token, 0) + int(weight)
    expected = max(counts.values()) / sum(counts.values())
    assert report.most_frequent_token_accuracy(str(shards), 32) == pytest.approx(expected)
