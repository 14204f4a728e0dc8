"""Questions are answered as by the run's own evaluation, from flags, lines and files."""

import dataclasses
import io
import json
import os
import pathlib
import sys
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from official_bert import answering, finetune, predict, squad, squad_answers, squad_task
from tests.bert.predictions import fails, out, read_lines, write_lines
from tests.bert.tiny_squad import command_line, questions


@pytest.fixture(scope="module")
def folder(squad_folder: pathlib.Path) -> pathlib.Path:
    (squad_folder / "long.json").write_text(json.dumps(long_questions()))
    return squad_folder


def long_questions() -> dict[str, Any]:
    """The questions, each asked of its context among eleven others: too long for one row."""
    articles = questions()["data"]
    contexts = [article["paragraphs"][0]["context"] for article in articles]
    for number, article in enumerate(articles):
        paragraph = article["paragraphs"][0]
        before = " ".join(contexts[number - 5 : number] if number >= 5 else contexts[:number])
        paragraph["context"] = f"{before} {' '.join(contexts[number : number + 7])}".strip()
        question = paragraph["qas"][0]
        answer = question["answers"][0]
        answer["answer_start"] = paragraph["context"].index(answer["text"])
    return {"version": "1.1", "data": articles}


# With all places of a row among the best, so that hardly trained weights find a span too.
ALL_PLACES = "--n_best=72"


@pytest.fixture(scope="module")
def squad_run(folder: pathlib.Path) -> pathlib.Path:
    arguments = command_line(
        folder, "squad", f"--init_checkpoint={folder / 'pretraining'}", "--train_steps=20",
        f"--dev_file={folder / 'long.json'}", "--doc_stride=16", ALL_PLACES,
    )  # fmt: skip
    assert finetune.main(arguments) == 0
    return folder / "squad"


def asked() -> list[dict[str, str]]:
    return [
        {"id": question["id"], "question": question["question"], "context": paragraph["context"]}
        for article in long_questions()["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]


def test_answers_are_those_of_the_runs_evaluation(
    squad_run: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    source = write_lines(tmp_path / "in.jsonl", asked())
    target = tmp_path / "new" / "out.jsonl"
    flags = [f"--model_dir={squad_run}", f"--input_file={source}", f"--output_file={target}"]
    assert predict.main([*flags, "--top_k=3", "--batch_size=7"]) == 0
    results = read_lines(target.read_text())
    expected = json.loads((squad_run / squad_task.PREDICTIONS).read_text())
    assert [result["id"] for result in results] == list(expected)
    assert {result["id"]: result["answer"] for result in results} == expected
    nbest = json.loads((squad_run / squad_task.NBEST).read_text())
    for result in results:
        best = nbest[result["id"]][:3]
        assert [each["text"] for each in result["answers"]] == [each["text"] for each in best]
        # float32 sums over batches of another size.
        found = [each["probability"] for each in result["answers"]]
        assert found == pytest.approx([each["probability"] for each in best], abs=1e-5)
        assert result["probability"] == found[0]
    assert os.listdir(target.parent) == ["out.jsonl"]
    again = tmp_path / "again.jsonl"
    flags[2] = f"--output_file={again}"
    assert predict.main([*flags, "--top_k=3", "--batch_size=7"]) == 0
    assert again.read_bytes() == target.read_bytes()


def test_half_precision_is_the_runs_own(folder: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Trained with a loss scale, answered in the run's precision, and nothing left behind."""
    before = tf_keras.mixed_precision.global_policy()
    arguments = command_line(
        folder, "half", f"--init_checkpoint={folder / 'pretraining'}", "--train_steps=3",
        "--batch_size=8", "--mixed_precision_dtype=float16", ALL_PLACES,
    )  # fmt: skip
    try:
        assert finetune.main(arguments) == 0
    finally:
        tf_keras.mixed_precision.set_global_policy(before)
    saved = tf.train.load_checkpoint(str(folder / "half"))
    good_steps = [name for name in saved.get_variable_to_shape_map() if "good_steps" in name]
    # A step that overflowed would have begun the count anew.
    assert [int(saved.get_tensor(name)) for name in good_steps] == [3]
    answerer = answering.QuestionAnswerer(str(folder / "half"), top_k=72, batch_size=8)
    answerer.load()
    assert tf_keras.mixed_precision.global_policy().name == before.name
    lines = [
        {"question": paragraph["qas"][0]["question"], "context": paragraph["context"]}
        for article in questions()["data"]
        for paragraph in article["paragraphs"]
    ]
    nbest = json.loads((folder / "half" / squad_task.NBEST).read_text())
    for result, expected in zip(answerer.predict(lines), nbest.values(), strict=True):
        assert [each["text"] for each in result["answers"]] == [each["text"] for each in expected]
        found = [each["probability"] for each in result["answers"]]
        # The same batches. In float32 they would differ by what 11 bits round, some 1e-4 of each.
        assert found == pytest.approx([each["probability"] for each in expected], rel=1e-6)


def test_where_no_span_is_among_the_best_nothing_is_found(
    squad_run: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answerer = answering.QuestionAnswerer(str(squad_run))
    request = {"question": "what is red ?", "context": "the box is red"}
    assert answerer.predict([request])[0]["answers"]
    few = dataclasses.replace(answerer._answers, n_best=20)
    monkeypatch.setattr(answerer, "_answers", few)

    def at_cls(windows: squad.Windows) -> squad_answers.Logits:
        """So much for [CLS] and padding that no other place is among the best."""
        places = np.arange(windows.word_ids.shape[1])
        row = np.where((places >= 1) & (places < windows.lengths[0]), -9.0, 9.0 - 0.01 * places)
        return {int(windows.unique_ids[0]): (row.astype(np.float32),) * 2}

    monkeypatch.setattr(answerer, "_logits", at_cls)
    result = answerer.predict([{**request, "id": 5}])[0]
    nothing = {"answer": "", "probability": 0.0, "answers": []}
    assert result == {"id": 5, "question": request["question"], **nothing}
    assert "nothing found" in answerer.readable(result)


def test_one_question_from_flags(
    squad_run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    request = asked()[9]
    given = [f"--model_dir={squad_run}", f"--question={request['question']}"]
    result = out(capsys, *given, f"--context={request['context']}")
    expected = json.loads((squad_run / squad_task.PREDICTIONS).read_text())
    assert [each["answer"] for each in result] == [expected[request["id"]]]
    assert "id" not in result[0] and len(result[0]["answers"]) == 5
    (tmp_path / "context.txt").write_text(request["context"])
    assert out(capsys, *given, f"--context_file={tmp_path / 'context.txt'}") == result


def test_a_session_about_contexts(
    squad_run: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines are a context, its questions, an empty line, the next context, and so on."""
    first, second = asked()[3], asked()[20]
    lines = ["", first["context"], first["question"], second["question"], ""]
    lines += [second["context"], second["question"]]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    results = out(capsys, f"--model_dir={squad_run}")
    expected = json.loads((squad_run / squad_task.PREDICTIONS).read_text())
    assert [each["question"] for each in results] == [
        first["question"], second["question"], second["question"],
    ]  # fmt: skip
    assert results[0]["answer"] == expected[first["id"]]
    assert results[2]["answer"] == expected[second["id"]]
    # With a context given every line is a question, and an empty one is told.
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"\n{first['question']}\n"))
    results = out(capsys, f"--model_dir={squad_run}", f"--context={first['context']}")
    assert [each["answer"] for each in results] == [expected[first["id"]]]


def test_a_terminal_gets_lines_to_read(
    folder: pathlib.Path,
    squad_run: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    texts = "the [MASK] is [MASK] ."
    assert predict.main([f"--model_dir={folder / 'pretraining'}", f"--text={texts}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].strip() == "[MASK] 1" and lines[7].strip() == "[MASK] 2" and len(lines) == 13
    request = asked()[0]
    question = [f"--question={request['question']}", f"--context={request['context']}"]
    assert predict.main([f"--model_dir={squad_run}", *question]) == 0
    lines = capsys.readouterr().out.splitlines()
    answers = json.loads((squad_run / squad_task.PREDICTIONS).read_text())
    assert lines[0] == answers[request["id"]] and lines[1].endswith(f"  {lines[0]}")


def test_a_sweep_is_its_best_run(
    squad_run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sweep" / "runs").mkdir(parents=True)
    (tmp_path / "sweep" / "runs" / "second").symlink_to(squad_run)
    (tmp_path / "sweep" / "best.json").write_text(json.dumps({"path": "runs/second"}))
    request = asked()[0]
    question = [f"--question={request['question']}", f"--context={request['context']}"]
    of_run = out(capsys, f"--model_dir={squad_run}", *question)
    assert out(capsys, f"--model_dir={tmp_path / 'sweep'}", *question) == of_run
    (tmp_path / "sweep" / "best.json").write_text("{}")
    assert "does not name the best run" in fails(
        capsys, f"--model_dir={tmp_path / 'sweep'}", *question
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model_dir={root}/none", "--text=x"], "holds no params.yaml"),
        (["--model_dir={root}/bare", "--text=x"], "no checkpoint at"),
        (["--model_dir={root}/other", "--text=x"], "a run of an unknown task, with the fields"),
        (["--model_dir={root}/pretraining", "--text=the box"], "text has no [MASK] to fill"),
        (["--model_dir={root}/pretraining", "--text="], "text is empty"),
        (["--model_dir={root}/pretraining", "--question=who"], "--question is given, but"),
        (["--model_dir={root}/pretraining", "--text=[MASK]", "--text_pair=x"], "--text_pair is"),
        (["--model_dir={root}/pretraining", "--text=[MASK]", "--top_k=99"], "--top_k is 99"),
        (["--model_dir={root}/pretraining", "--text=[MASK]", "--top_k=0"], "top_k"),
        (["--model_dir={root}/squad", "--question= ", "--context=the box"], "question is empty"),
        (["--model_dir={root}/squad", "--question=what"], "there is no 'context'"),
        (["--model_dir={root}/squad", "--question=what", "--context=\x07"], "holds no word"),
        (["--model_dir={root}/squad", "--question=q", "--context_file={root}/no"], "cannot read"),
        (["--model_dir={root}/squad", "--context=c", "--context_file={root}/no"], "leave one out"),
        (["--model_dir={root}/squad", "--text=x"], "--text is given, but"),
        (["--model_dir={root}/squad", "--text=x", "--input_file={root}/in"], "leave one out"),
        (["--model_dir={root}/squad", "--output_file={root}/out"], "without --input_file"),
        (["--model_dir={root}/squad", "--input_file={root}/no"], "no file at --input_file"),
        (["--model_dir={root}/squad", "--input_file={root}/empty.jsonl"], "has no lines"),
        ([], "model_dir"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str],
    message: str,
    folder: pathlib.Path,
    squad_run: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    saved = (folder / "pretraining" / "params.yaml").read_text()
    for name, content in (("bare", saved), ("other", "task: {model: {x: 1}, labels: 2}")):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "params.yaml").write_text(content)
    (folder / "empty.jsonl").write_text("\n")
    before = sorted(folder.rglob("*"))
    assert message in fails(capsys, *(each.format(root=folder) for each in arguments))
    assert sorted(folder.rglob("*")) == before


GOOD = {"question": "what is red ?", "context": "the box is red"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 3: it is no JSON"),
        ("[1]", "line 3: it is list, not an object"),
        ({"question": "what"}, "line 3: there is no 'context'"),
        ({**GOOD, "question": ""}, "line 3: question is empty"),
        ({**GOOD, "context": 7}, "line 3: context is int; expected a text"),
        ({**GOOD, "question": "\ud800"}, "line 3: question holds half a surrogate pair"),
        ({**GOOD, "id": "\ud800"}, "line 3: id holds half a surrogate pair"),
    ],
)
def test_bad_lines_are_told_by_number_before_anything_is_computed(
    line: Any,
    message: str,
    squad_run: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [GOOD, "", line, GOOD, line])
    target = tmp_path / "deeper" / "out.jsonl"
    error = fails(
        capsys, f"--model_dir={squad_run}", f"--input_file={source}", f"--output_file={target}"
    )
    assert message in error and "(2 such lines)" in error
    assert os.listdir(tmp_path) == ["in.jsonl"]


def test_the_input_is_never_overwritten(
    squad_run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [GOOD])
    given = [f"--model_dir={squad_run}", f"--input_file={source}"]
    assert "name another" in fails(capsys, *given, f"--output_file={source}")
    assert "is a folder" in fails(capsys, *given, f"--output_file={tmp_path}")
    assert os.listdir(tmp_path) == ["in.jsonl"] and read_lines(
        pathlib.Path(source).read_text()
    ) == [GOOD]


def test_pipes_and_links_are_refused(
    squad_run: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"--model_dir={squad_run}", f"--input_file={write_lines(tmp_path / 'in', [GOOD])}"]
    (tmp_path / "target").write_text("kept")
    (tmp_path / "link").symlink_to("target")
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.iterdir())
    for name in ("link", "pipe"):
        assert "is no regular file" in fails(capsys, *given, f"--output_file={tmp_path / name}")
    error = fails(capsys, given[0], f"--input_file={tmp_path / 'pipe'}")
    assert "is no regular file; expected one, since it is read twice" in error
    assert sorted(tmp_path.iterdir()) == before and (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "kept"
