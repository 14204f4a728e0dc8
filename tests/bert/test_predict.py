"""Predictions: those of the run's own evaluation and task, from flags, lines and files."""

import csv
import dataclasses
import io
import json
import os
import pathlib
import shutil
import sys
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
import yaml
from official.core import task_factory

from official_bert import (
    answering,
    configuration,
    experiments,
    fill_mask,
    finetune,
    predict,
    squad,
    squad_answers,
    squad_task,
)
from tests.bert.tiny_squad import VOCABULARY, command_line, make_folder, questions


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    root = make_folder(tmp_path_factory.mktemp("predict"))
    (root / "long.json").write_text(json.dumps(long_questions()))
    return root


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


def write_lines(path: pathlib.Path, lines: list[Any]) -> str:
    text = "".join((each if isinstance(each, str) else json.dumps(each)) + "\n" for each in lines)
    path.write_text(text)
    return str(path)


def read_lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def out(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[Any]:
    """What a command prints, as JSON lines."""
    capsys.readouterr()
    assert predict.main(list(arguments)) == 0
    return read_lines(capsys.readouterr().out)


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


@pytest.fixture(scope="module")
def pairs_run(folder: pathlib.Path) -> pathlib.Path:
    """Classes of pairs: the colour of the thing that the second text asks for."""
    with (folder / "pairs.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["context", "asked", "colour"])
        for article in questions()["data"]:
            paragraph = article["paragraphs"][0]
            question = paragraph["qas"][0]
            colour = question["answers"][0]["text"]
            writer.writerow([paragraph["context"], question["question"], colour])
    arguments = [
        "--task=classify", f"--train_file={folder / 'pairs.csv'}",
        f"--dev_file={folder / 'pairs.csv'}", "--text_column=context", "--text_pair_column=asked",
        "--label_column=colour", f"--model_dir={folder / 'pairs'}", "--batch_size=8",
        f"--init_checkpoint={folder / 'pretraining'}", "--train_steps=6", "--seq_length=32",
    ]  # fmt: skip
    assert finetune.main(arguments) == 0
    return folder / "pairs"


def test_classes_are_those_of_the_runs_evaluation(
    folder: pathlib.Path, pairs_run: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (folder / "pairs.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    lines = [{"text": row["context"], "text_pair": row["asked"]} for row in rows]
    source = write_lines(folder / "pairs.jsonl", lines)
    results = out(capsys, f"--model_dir={pairs_run}", f"--input_file={source}", "--batch_size=5")
    with (pairs_run / "predictions.tsv").open(newline="") as stream:
        expected = list(csv.DictReader(stream, delimiter="\t"))
    assert len(results) == len(expected) == 24
    for result, row, line in zip(results, expected, lines, strict=True):
        assert {name: result[name] for name in line} == line
        assert result["label"] == row["label"]
        assert sum(result["probabilities"].values()) == pytest.approx(1, abs=1e-6)
        assert result["probability"] == max(result["probabilities"].values())
        for label, probability in result["probabilities"].items():
            # Written with six digits; float32 sums over other batches.
            assert probability == pytest.approx(float(row[f"score_{label}"]), abs=1e-5)


def told(run: pathlib.Path, folder: pathlib.Path, pairs: bool | None) -> str:
    """`--model_dir` of a copy of a run whose config says so of pairs, or nothing."""
    copy = shutil.copytree(run, folder / str(pairs))
    params = yaml.safe_load((copy / "params.yaml").read_text())
    params["task"].pop("pairs", None)
    params["task"] |= {} if pairs is None else {"pairs": pairs}
    (copy / "params.yaml").write_text(yaml.safe_dump(params))
    return f"--model_dir={copy}"


def test_an_older_run_takes_texts_with_and_without_a_pair(
    pairs_run: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = told(pairs_run, tmp_path, None)
    monkeypatch.setattr(sys, "stdin", io.StringIO("the box is red\twhat colour ?\nthe lamp\n"))
    results = out(capsys, run)
    assert [each.get("text_pair") for each in results] == ["what colour ?", None]
    assert [each["text"] for each in results] == ["the box is red", "the lamp"]
    # One without a pair among them changes nothing but its own result.
    paired = {"text": "the box is red", "text_pair": "what colour ?"}
    source = write_lines(tmp_path / "in.jsonl", [paired, {"id": 7, "text": "the lamp"}, paired])
    first, alone, last = out(capsys, run, f"--input_file={source}")
    assert alone["id"] == 7 and "text_pair" not in alone
    for found, expected in ((first, results[0]), (last, results[0]), (alone, results[1])):
        assert found["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-6)
    assert "--text_pair is given without --text" in fails(capsys, run, "--text_pair=what")


def test_pairs_and_single_texts_are_not_confused(
    pairs_run: pathlib.Path,
    tmp_path: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pairs, single = (told(pairs_run, tmp_path, each) for each in (True, False))
    assert "there is no 'text_pair'" in fails(capsys, pairs, "--text=the box")
    assert "--text_pair is given, but" in fails(capsys, single, "--text=the box", "--text_pair=x")
    paired = {"text": "the box", "text_pair": "what ?"}
    source = write_lines(tmp_path / "in.jsonl", [paired])
    assert out(capsys, pairs, f"--input_file={source}")[0]["text_pair"] == "what ?"
    error = fails(capsys, single, f"--input_file={source}")
    assert "line 1: text_pair is given, but the run was finetuned on single texts" in error
    assert out(capsys, single, "--text=the box")[0]["text"] == "the box"
    # A tab is a space where there are no pairs.
    monkeypatch.setattr(sys, "stdin", io.StringIO("the box\tis red\n"))
    assert [each["text"] for each in out(capsys, single)] == ["the box\tis red"]


def test_filled_words_are_the_pretraining_models(folder: pathlib.Path) -> None:
    run = folder / "pretraining"
    texts = [
        "the [MASK] is red and [MASK] .", "[MASK]", "The BOX [SEP] is [CLS] in[MASK]the door ?",
    ]  # fmt: skip
    filler = fill_mask.MaskFiller(str(run), top_k=4, batch_size=2)
    results = filler.predict([{"text": text} for text in texts])
    params = configuration.load(experiments.PRETRAINING, [str(run / configuration.PARAMS_FILE)])
    task = task_factory.get_task(params.task)
    model = task.build_model()
    for variable in model.variables:
        variable.assign(tf.zeros_like(variable))
    tf.train.Checkpoint(model=model).read(str(run / "ckpt-7")).expect_partial()
    ids = {token: index for index, token in enumerate(VOCABULARY)}
    pieces = [
        ["the", "[MASK]", "is", "red", "and", "[MASK]", "."],
        ["[MASK]"],
        # A bracket and SEP are no entries of this vocabulary; a special token it is not.
        ["the", "box", *["[UNK]"] * 3, "is", *["[UNK]"] * 3, "in", "[MASK]", "the", "door", "?"],
    ]
    for result, text, row in zip(results, texts, pieces, strict=True):
        word_ids = np.array([[ids[piece] for piece in ["[CLS]", *row, "[SEP]"]]], np.int32)
        places = np.flatnonzero(word_ids[0] == ids["[MASK]"])
        features = {
            "input_word_ids": word_ids,
            "input_mask": np.ones_like(word_ids),
            "input_type_ids": np.zeros_like(word_ids),
            "masked_lm_positions": places[None].astype(np.int32),
        }
        logits = model(features, training=False)["mlm_logits"].numpy()[0].astype(np.float64)
        probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        assert result["text"] == text and len(result["masks"]) == len(places)
        for words, expected in zip(result["masks"], probabilities, strict=True):
            found = [each["probability"] for each in words]
            assert found == sorted(found, reverse=True) and len(found) == 4
            # float32 logits near 1, whose sums padding may reorder.
            chosen = [expected[ids[each["word"]]] for each in words]
            np.testing.assert_allclose(found, chosen, atol=1e-6)
            np.testing.assert_allclose(found, np.sort(expected[5:])[::-1][:4], atol=1e-6)
            assert not {each["word"] for each in words} & set(VOCABULARY[:5])
        first, *rest = text.split("[MASK]")
        assert result["filled"].startswith(first) and result["filled"].endswith(rest[-1])
        assert "[MASK]" not in result["filled"]


def test_the_models_inputs_are_padded(folder: pathlib.Path) -> None:
    filler = fill_mask.MaskFiller(str(folder / "pretraining"))
    inputs = filler.inputs(["[MASK] is [MASK]", "the box is red [MASK] ."])
    np.testing.assert_array_equal(inputs["input_mask"], [[1] * 5 + [0] * 3, [1] * 8])
    np.testing.assert_array_equal(inputs["masked_lm_positions"], [[1, 3], [5, 0]])
    whole = filler.model({name: tf.constant(each) for name, each in inputs.items()})["mlm_logits"]
    alone = filler.inputs(["[MASK] is [MASK]"])
    part = filler.model({name: tf.constant(each) for name, each in alone.items()})["mlm_logits"]
    # Padding changes nothing but the order of float32 sums.
    np.testing.assert_allclose(whole[:1], part, atol=1e-5)


def test_pieces_of_words_are_joined() -> None:
    masks = [[{"word": "##s"}], [{"word": "red"}]]
    assert fill_mask._filled("the box [MASK] are [MASK].", masks) == "the boxs are red."


def test_a_session_of_texts_survives_bad_ones(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["the box is [MASK]", "no mask here", "", "[MASK] " * 80, "a [MASK]\t."]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    capsys.readouterr()
    assert predict.main([f"--model_dir={folder / 'pretraining'}", "--top_k=2"]) == 0
    said = capsys.readouterr()
    results = read_lines(said.out)
    assert [each["text"] for each in results] == ["the box is [MASK]", "a [MASK]\t."]
    assert [len(each["masks"][0]) for each in results] == [2, 2]
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert "has no [MASK]" in errors[0] and "82 word pieces" in errors[1]


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


def test_bytes_that_are_no_text_do_not_end_a_session(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = io.TextIOWrapper(io.BytesIO(b"\xff [MASK]\n[MASK] is\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", typed)
    results = out(capsys, f"--model_dir={folder / 'pretraining'}")
    assert [each["text"] for each in results] == ["\ufffd [MASK]", "[MASK] is"]


def test_somebody_at_a_terminal_is_asked(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = io.StringIO("[MASK]\n")
    monkeypatch.setattr(typed, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdin", typed)
    capsys.readouterr()
    assert predict.main([f"--model_dir={folder / 'pretraining'}"]) == 0
    said = capsys.readouterr()
    assert said.err.count("text> ") == 2 and "text> " not in said.out


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


def fails(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a command fails with."""
    capsys.readouterr()
    assert predict.main(list(arguments)) == 2
    said = capsys.readouterr()
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and not said.out
    return errors[0]


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
