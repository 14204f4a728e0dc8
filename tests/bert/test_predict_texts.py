"""Classes and filled masks are those of the run's own model, of texts in pairs and alone."""

import csv
import io
import pathlib
import shutil
import sys

import numpy as np
import pytest
import tensorflow as tf
import yaml
from official.core import task_factory

from official_bert import configuration, experiments, fill_mask, finetune, predict
from tests.bert.predictions import fails, out, read_lines, write_lines
from tests.bert.tiny_squad import VOCABULARY, questions


@pytest.fixture(scope="module")
def pairs_run(squad_folder: pathlib.Path) -> pathlib.Path:
    """Classes of pairs: the colour of the thing that the second text asks for."""
    with (squad_folder / "pairs.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["context", "asked", "colour"])
        for article in questions()["data"]:
            paragraph = article["paragraphs"][0]
            question = paragraph["qas"][0]
            colour = question["answers"][0]["text"]
            writer.writerow([paragraph["context"], question["question"], colour])
    arguments = [
        "--task=classify", f"--train_file={squad_folder / 'pairs.csv'}",
        f"--dev_file={squad_folder / 'pairs.csv'}", f"--model_dir={squad_folder / 'pairs'}",
        "--text_column=context", "--text_pair_column=asked", "--label_column=colour",
        f"--init_checkpoint={squad_folder / 'pretraining'}", "--batch_size=8", "--train_steps=6",
        "--seq_length=32",
    ]  # fmt: skip
    assert finetune.main(arguments) == 0
    return squad_folder / "pairs"


def test_classes_are_those_of_the_runs_evaluation(
    squad_folder: pathlib.Path, pairs_run: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (squad_folder / "pairs.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    lines = [{"text": row["context"], "text_pair": row["asked"]} for row in rows]
    source = write_lines(squad_folder / "pairs.jsonl", lines)
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


def test_filled_words_are_the_pretraining_models(squad_folder: pathlib.Path) -> None:
    run = squad_folder / "pretraining"
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


def test_the_models_inputs_are_padded(squad_folder: pathlib.Path) -> None:
    filler = fill_mask.MaskFiller(str(squad_folder / "pretraining"))
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
    squad_folder: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = ["the box is [MASK]", "no mask here", "", "[MASK] " * 80, "a [MASK]\t."]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines) + "\n"))
    capsys.readouterr()
    assert predict.main([f"--model_dir={squad_folder / 'pretraining'}", "--top_k=2"]) == 0
    said = capsys.readouterr()
    results = read_lines(said.out)
    assert [each["text"] for each in results] == ["the box is [MASK]", "a [MASK]\t."]
    assert [len(each["masks"][0]) for each in results] == [2, 2]
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 2
    assert "has no [MASK]" in errors[0] and "82 word pieces" in errors[1]


def test_bytes_that_are_no_text_do_not_end_a_session(
    squad_folder: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    typed = io.TextIOWrapper(io.BytesIO(b"\xff [MASK]\n[MASK] is\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", typed)
    results = out(capsys, f"--model_dir={squad_folder / 'pretraining'}")
    assert [each["text"] for each in results] == ["\ufffd [MASK]", "[MASK] is"]


def test_somebody_at_a_terminal_is_asked(
    squad_folder: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    typed = io.StringIO("[MASK]\n")
    monkeypatch.setattr(typed, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdin", typed)
    capsys.readouterr()
    assert predict.main([f"--model_dir={squad_folder / 'pretraining'}"]) == 0
    said = capsys.readouterr()
    assert said.err.count("text> ") == 2 and "text> " not in said.out
