"""SQuAD v2.0: what is read, how "no answer" is chosen and scored, on any number of devices."""

import collections
import copy
import dataclasses
import json
import pathlib
import re
import shutil
import string
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from official.nlp.data import squad_lib
from official.nlp.tools import tokenization

from official_bert import finetune, guard, predict, squad, squad_answers, squad_task
from tests.bert.tiny_squad import VOCABULARY, command_line, make_folder, questions
from tfrecords.errors import UserError

TIMEOUT_S = 300


def write(folder: pathlib.Path, content: Any, name: str = "squad.json") -> str:
    (folder / name).write_text(json.dumps(content))
    return str(folder / name)


def first_questions(document: dict[str, Any]) -> list[dict[str, Any]]:
    return document["data"][0]["paragraphs"][0]["qas"]


def test_the_version_is_seen_from_the_file(tmp_path: pathlib.Path) -> None:
    content = questions(version_2=True)
    loaded = squad.Squad.load(write(tmp_path, content))
    assert loaded.version_2 and loaded.num_questions == 48 and not loaded.mismatches
    assert loaded.articles == content["data"]
    del content["version"]
    assert squad.Squad.load(write(tmp_path, content)).version_2
    assert not squad.Squad.load(write(tmp_path, questions())).version_2
    # The flag may be left out where the answers say it all.
    content["version"] = "v2.0"
    for article in content["data"]:
        for question in article["paragraphs"][0]["qas"]:
            del question["is_impossible"]
    assert squad.Squad.load(write(tmp_path, content)).version_2


@pytest.mark.parametrize(
    ("index", "field", "value", "message"),
    [
        (1, "is_impossible", False, "has no answer, and is_impossible is false"),
        (0, "is_impossible", True, "has answers, and is_impossible is true"),
        (0, "is_impossible", 1, "is_impossible is int, not true or false"),
        (1, "answers", None, "answers is NoneType, not a list"),
    ],
)
def test_contradictions_are_refused(
    index: int, field: str, value: Any, message: str, tmp_path: pathlib.Path
) -> None:
    content = questions(version_2=True)
    first_questions(content)[index][field] = value
    with pytest.raises(UserError, match=message) as caught:
        squad.Squad.load(write(tmp_path, content))
    assert rf"qas[{index}]" in str(caught.value) and "\n" not in str(caught.value)


def test_two_versions_do_not_go_together(tmp_path: pathlib.Path) -> None:
    one = write(tmp_path, questions(), "one.json")
    two = write(tmp_path, questions(version_2=True), "two.json")
    for pair in ((one, two), (two, one)):
        with pytest.raises(UserError, match="expected two files of one version"):
            squad.load_pair(*pair)


def test_strict_refuses_answers_that_stand_elsewhere(tmp_path: pathlib.Path) -> None:
    content = questions(version_2=True)
    bad = [f"question {number}" for number in range(7)]
    for article in content["data"][:7]:
        article["paragraphs"][0]["qas"][0]["answers"][0]["answer_start"] += 1
    path = write(tmp_path, content)
    assert squad.Squad.load(path).mismatches == tuple(bad)
    with pytest.raises(UserError, match="7 of 48 questions have answers that do not") as caught:
        squad.Squad.load(path, strict=True)
    assert f"{', '.join(bad[:5])}, ..." in str(caught.value) and bad[5] not in str(caught.value)
    good = write(tmp_path, questions(version_2=True), "good.json")
    assert squad.Squad.load(good, strict=True).num_questions == 48
    with pytest.raises(UserError, match="do not stand in the context"):
        squad.load_pair(good, path, strict=True)


@pytest.fixture
def vocab_file(tmp_path: pathlib.Path) -> str:
    path = tmp_path / "vocab.txt"
    path.write_text("".join(f"{token}\n" for token in VOCABULARY))
    return str(path)


def moved(articles: list[dict[str, Any]]) -> dict[str, Any]:
    """SQuAD v2.0 from v1.1: every third question asked of another article's paragraph."""
    articles = copy.deepcopy(articles)
    strays = []
    for article in articles:
        for paragraph in article["paragraphs"]:
            strays.append(paragraph["qas"][::3])
            del paragraph["qas"][::3]
    paragraphs = [paragraph for article in articles for paragraph in article["paragraphs"]]
    half = len(paragraphs) // 2
    for paragraph, stray in zip(paragraphs[half:] + paragraphs[:half], strays, strict=True):
        paragraph["qas"] += [{**each, "answers": [], "is_impossible": True} for each in stray]
    for paragraph in paragraphs:
        for question in paragraph["qas"]:
            question.setdefault("is_impossible", False)
    return {"version": "v2.0", "data": articles}


def test_unanswerable_questions_are_trained_towards_cls(
    tmp_path: pathlib.Path, shared_data: pathlib.Path
) -> None:
    real = squad.Squad.load(shared_data / "squad" / "xquad.en.json")
    path = write(tmp_path, moved(real.articles[:6]))
    loaded = squad.Squad.load(path)
    vocabulary = str(next((shared_data / "vocab").glob("*.txt")))
    tokenizer = squad.Tokenizer(vocabulary, do_lower_case=True)
    windows, skipped = squad.train_windows(
        loaded, tokenizer, squad.WindowSettings(seq_length=192, doc_stride=64)
    )
    assert skipped == ()
    theirs: list[Any] = []
    squad_lib.convert_examples_to_features(
        squad_lib.read_squad_examples(path, True, True),
        tokenization.FullTokenizer(vocabulary, do_lower_case=True),
        192, 64, 64, True, theirs.append,
    )  # fmt: skip
    np.testing.assert_array_equal(windows.word_ids, [f.input_ids for f in theirs])
    np.testing.assert_array_equal(windows.starts, [f.start_position for f in theirs])
    np.testing.assert_array_equal(windows.ends, [f.end_position for f in theirs])
    impossible = [
        question["is_impossible"]
        for article in loaded.articles
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]
    of_impossible = np.array([impossible[f.example_index] for f in theirs])
    assert 0.2 < of_impossible.mean() < 0.5
    assert not windows.starts[of_impossible].any() and not windows.ends[of_impossible].any()
    # Every answer is in some row of its question; some rows of answered questions lack it.
    answered = {f.example_index for f in theirs if f.start_position > 0}
    assert answered == {index for index, each in enumerate(impossible) if not each}
    gold = {
        question["id"]: question["answers"][0]["text"] if question["answers"] else ""
        for article in loaded.articles
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    }
    scores = squad_answers.score(loaded.articles, gold, dict.fromkeys(gold, 0.0))
    assert scores["exact_match"] == scores["f1"] == 100
    assert scores["HasAns_total"] + scores["NoAns_total"] == len(gold)


def normal(text: str) -> list[str]:
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def reference_f1(prediction: str, answer: str) -> float:
    ours, theirs = normal(prediction), normal(answer)
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def reference_best(
    scores: list[float], predictions: list[str], answered: list[bool], odds: list[float]
) -> tuple[float, float]:
    """The best mean, over every cut of the questions in order of their odds.

    Those before the cut keep their prediction, those after it get "".
    """
    order = sorted(range(len(odds)), key=odds.__getitem__)
    best, threshold = -1.0, 0.0
    for cut in range(len(order) + 1):
        kept = [scores[i] if answered[i] else float(not predictions[i]) for i in order[:cut]]
        total = sum(kept) + sum(not answered[i] for i in order[cut:])
        if total > best + 1e-9:
            best, threshold = total, odds[order[cut - 1]] if cut else 0.0
    return 100 * best / len(odds), threshold


TEXTS = st.lists(st.sampled_from(["the", "An", "int", "INT", "or", "None.", "Le"]), max_size=4).map(
    " ".join
)
ANSWERS = st.lists(st.sampled_from(["int", "the int or", "le", "INT None"]), max_size=3)


@given(
    data=st.lists(
        st.tuples(TEXTS, ANSWERS, st.floats(-5, 5).map(lambda x: round(x, 1))),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=200)
def test_scores_are_the_official_ones(data: list[tuple[str, list[str], float]]) -> None:
    qas = [
        {"id": str(n), "answers": [{"text": text} for text in texts], "is_impossible": not texts}
        for n, (_, texts, _) in enumerate(data)
    ]
    predictions = {str(n): text for n, (text, _, _) in enumerate(data)}
    null_odds = {str(n): odds for n, (_, _, odds) in enumerate(data)}
    scores = squad_answers.score([{"paragraphs": [{"qas": qas}]}], predictions, null_odds)
    exact, f1 = [], []
    for text, texts, _ in data:
        gold = texts or [""]
        exact.append(float(any(normal(text) == normal(each) for each in gold)))
        f1.append(max(reference_f1(text, each) for each in gold))
    answered = [bool(texts) for _, texts, _ in data]
    expected = {"exact_match": 100 * np.mean(exact), "f1": 100 * np.mean(f1)}
    for name, wanted in (("HasAns", True), ("NoAns", False)):
        chosen = [n for n, each in enumerate(answered) if each == wanted]
        if chosen:
            expected[f"{name}_exact"] = 100 * np.mean([exact[n] for n in chosen])
            expected[f"{name}_f1"] = 100 * np.mean([f1[n] for n in chosen])
            expected[f"{name}_total"] = len(chosen)
    for name, values in (("best_exact", exact), ("best_f1", f1)):
        best, threshold = reference_best(
            values, list(predictions.values()), answered, list(null_odds.values())
        )
        expected |= {name: best, f"{name}_thresh": threshold}
    assert scores == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("threshold", [-3.0, 0.0, 3.0])
def test_no_answer_is_chosen_by_the_odds(threshold: float, vocab_file: str) -> None:
    """Against every span of every row, in NumPy."""
    contexts = ["the box is red and small and the lamp is blue and large .", "what of the chair ?"]
    asked = squad.unlabelled([("what is red ?", each) for each in contexts])
    tokenizer = squad.Tokenizer(vocab_file, do_lower_case=True)
    windows, examples, features = squad.dev_windows(
        asked, tokenizer, squad.WindowSettings(seq_length=14, doc_stride=3, query_length=8), False
    )
    assert len(windows) > 4
    generator = np.random.default_rng(0)
    logits = {
        int(unique_id): tuple(generator.normal(scale=3, size=(2, 14)).astype(np.float32))
        for unique_id in windows.unique_ids
    }
    answers = squad_answers.form(
        examples,
        features,
        logits,
        squad_answers.AnswerSettings(
            n_best=14, max_answer_length=4, version_2=True, null_score_diff_threshold=threshold
        ),
    )
    assert list(answers.predictions) == ["0", "1"]
    for index, key in enumerate(answers.predictions):
        rows = [feature for feature in features if feature.example_index == index]
        null = min(sum(float(part[0]) for part in logits[row.unique_id]) for row in rows)
        spans = [
            float(logits[row.unique_id][0][start]) + float(logits[row.unique_id][1][end])
            for row in rows
            for start in row.token_to_orig_map
            for end in range(start, min(start + 4, max(row.token_to_orig_map) + 1))
            if row.token_is_max_context[start]
        ]
        assert answers.null_odds[key] == pytest.approx(null - max(spans), abs=1e-5)
        assert (answers.predictions[key] == "") == (null - max(spans) > threshold)
        texts = [each["text"] for each in answers.nbest[key]]
        assert "" in texts and len(set(texts)) == len(texts)


def test_a_context_without_a_word_is_told_before_any_training(vocab_file: str) -> None:
    asked = squad.unlabelled([("what is red ?", "the box is red"), ("what ?", " ")])
    tokenizer = squad.Tokenizer(vocab_file, do_lower_case=True)
    settings = squad.WindowSettings()
    assert len(squad.dev_windows(asked, tokenizer, settings, False)[0]) == 1
    asked = dataclasses.replace(asked, version_2=True)
    with pytest.raises(UserError, match="contexts of 1 questions hold no word: 1; give them text"):
        squad.dev_windows(asked, tokenizer, settings, False)


def test_rows_without_logits_are_no_rows_without_answers(vocab_file: str) -> None:
    asked = squad.unlabelled([("what is red ?", "the box is red")])
    tokenizer = squad.Tokenizer(vocab_file, do_lower_case=True)
    _, examples, features = squad.dev_windows(asked, tokenizer, squad.WindowSettings(), False)
    with pytest.raises(ValueError, match="1 of 1 rows have no logits"):
        squad_answers.form(examples, features, {}, squad_answers.AnswerSettings())


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_divergence(value: float, vocab_file: str) -> None:
    asked = squad.unlabelled([("what is red ?", "the box is red"), ("what ?", "the lamp")])
    tokenizer = squad.Tokenizer(vocab_file, do_lower_case=True)
    windows, examples, features = squad.dev_windows(asked, tokenizer, squad.WindowSettings(), False)
    logits = {int(each): tuple(np.zeros((2, 384), np.float32)) for each in windows.unique_ids}
    squad_answers.form(examples, features, logits, squad_answers.AnswerSettings())
    logits[int(windows.unique_ids[1])][1][5] = value
    with pytest.raises(guard.Diverged, match="logits of 1 of 2 rows are not finite") as caught:
        squad_answers.form(examples, features, logits, squad_answers.AnswerSettings())
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return make_folder(tmp_path_factory.mktemp("squad2"))


STEPS = 150


@pytest.fixture(scope="module")
def finetuned(folder: pathlib.Path) -> list[str]:
    """The command line of a run on one device that has learnt both kinds of question."""
    arguments = command_line(
        folder, "alone", f"--init_checkpoint={folder / 'pretraining'}", f"--train_steps={STEPS}",
        data="squad2",
    )  # fmt: skip
    assert finetune.main(arguments) == 0
    return arguments


def left(run: pathlib.Path) -> dict[str, Any]:
    names = (squad_task.PREDICTIONS, squad_task.NBEST, squad_task.NULL_ODDS, squad_task.METRICS)
    return {name: json.loads((run / name).read_text()) for name in names}


def test_both_kinds_of_question_are_learnt(folder: pathlib.Path, finetuned: list[str]) -> None:
    found = left(folder / "alone")
    scores = found[squad_task.METRICS]
    assert scores["HasAns_exact"] > 90 and scores["NoAns_exact"] > 90
    assert scores["best_exact"] >= scores["exact_match"] > 90
    assert (scores["HasAns_total"], scores["NoAns_total"], scores["questions"]) == (24, 24, 48)
    for key, text in found[squad_task.PREDICTIONS].items():
        assert (found[squad_task.NULL_ODDS][key] > 0) == (text == "")
        assert "" in [each["text"] for each in found[squad_task.NBEST][key]]
    again = squad_answers.score(
        questions(version_2=True)["data"],
        found[squad_task.PREDICTIONS],
        found[squad_task.NULL_ODDS],
    )
    assert {name: scores[name] for name in again} == again
    logged = json.loads((folder / "alone" / "evaluations.jsonl").read_text())
    assert logged == {"step": STEPS, **again}


def same_answers(run: pathlib.Path, other: pathlib.Path) -> None:
    ours, theirs = left(run), left(other)
    ids = [
        question["id"]
        for article in questions(version_2=True)["data"]
        for question in article["paragraphs"][0]["qas"]
    ]
    assert list(ours[squad_task.PREDICTIONS]) == ids
    assert ours[squad_task.PREDICTIONS] == theirs[squad_task.PREDICTIONS]
    # float32 sums in another order, over rows cut otherwise.
    odds = theirs[squad_task.NULL_ODDS]
    assert ours[squad_task.NULL_ODDS] == pytest.approx(odds, abs=1e-4)
    scores = theirs[squad_task.METRICS]
    assert ours[squad_task.METRICS] == pytest.approx(scores, abs=1e-4)


def test_two_replicas_answer_as_one_device(folder: pathlib.Path, finetuned: list[str]) -> None:
    shutil.copytree(folder / "alone", folder / "mirrored")
    for name in (squad_task.PREDICTIONS, squad_task.METRICS):
        (folder / "mirrored" / name).unlink()
    again = [*finetuned, f"--model_dir={folder / 'mirrored'}", "--distribution_strategy=mirrored"]
    assert finetune.main(again) == 0
    same_answers(folder / "mirrored", folder / "alone")


def test_two_workers_answer_as_one_device(folder: pathlib.Path, finetuned: list[str]) -> None:
    """They train and answer; one device answers from their checkpoint."""
    run = folder / "workers"
    arguments = [*finetuned, f"--model_dir={run}", "--train_steps=4", "--batch_size=10"]
    job = subprocess.run(
        [
            *(sys.executable, "-m", "official_bert.launch", "--num_workers=2", "--max_restarts=0"),
            *("--command=official_bert.finetune", "--", *arguments),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert job.returncode == 0, job.stdout
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    alone = folder / "one"
    assert finetune.main([*arguments, f"--model_dir={alone}"]) == 0
    # The same steps from the same batches, up to the order of float32 sums.
    losses = [json.loads(line)["loss"] for line in (alone / "metrics.jsonl").open()]
    np.testing.assert_allclose([row["loss"] for row in rows], losses, rtol=1e-4)
    same_answers(run, alone)


def test_predict_says_when_there_is_no_answer(
    folder: pathlib.Path, finetuned: list[str], tmp_path: pathlib.Path
) -> None:
    lines = [
        {"id": question["id"], "question": question["question"], "context": paragraph["context"]}
        for article in questions(version_2=True)["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arguments = [f"--model_dir={folder / 'alone'}", f"--input_file={tmp_path / 'in.jsonl'}"]
    assert predict.main([*arguments, f"--output_file={tmp_path / 'out.jsonl'}"]) == 0
    results = [json.loads(line) for line in (tmp_path / "out.jsonl").open()]
    found = left(folder / "alone")
    answers = {result["id"]: result["answer"] for result in results}
    assert answers == found[squad_task.PREDICTIONS]
    odds = {result["id"]: result["null_odds"] for result in results}
    assert odds == pytest.approx(found[squad_task.NULL_ODDS], abs=1e-4)


def test_a_threshold_is_for_version_2(
    folder: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = command_line(
        folder, "never", f"--init_checkpoint={folder / 'pretraining'}",
        "--null_score_diff_threshold=1",
    )  # fmt: skip
    assert finetune.main(arguments) == 2
    assert "SQuAD v1.1, where every question has an answer" in capsys.readouterr().err
    assert not (folder / "never").exists()
