"""The question set: exact spans, answers that the docstring states, a split by package."""

import collections
import json
import pathlib
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from official_bert import (
    docstring_entries,
    docstring_questions,
    docstring_sources,
    docstring_text,
)
from tfrecords.errors import UserError

DOCSTRING = """
Fit the thing.

Parameters
----------
alpha : float, default=0.5
    Strength of the penalty. Larger values
    give smaller weights.
mode : {'fast', 'exact'}, optional
    How the solution is searched for. The default is 'fast'.
n_jobs : int or None
    Number of processes that are used at once.
x, y : array_like
    Coordinates of the points to be fitted.

Returns
-------
model : FittedModel
    The model that fits best.

Raises
------
ValueError
    If the points lie on one line.
"""


def _piece() -> docstring_entries.Piece:
    lines = docstring_text.logical_lines(DOCSTRING.strip())
    (piece,) = docstring_entries.pieces("package.module.fit", lines, max_words=90)
    return piece


def test_facts_of_a_docstring() -> None:
    piece = _piece()
    facts = {(fact.topic, fact.name): piece.text[fact.start : fact.stop] for fact in piece.facts}
    assert facts == {
        ("type", "alpha"): "float",
        ("default", "alpha"): "0.5",
        ("meaning", "alpha"): "Strength of the penalty",
        ("name", "alpha"): "alpha",
        ("type", "mode"): "{'fast', 'exact'}",
        ("default", "mode"): "'fast'",
        ("meaning", "mode"): "How the solution is searched for",
        ("name", "mode"): "mode",
        ("type", "n_jobs"): "int or None",
        ("meaning", "n_jobs"): "Number of processes that are used at once",
        ("name", "n_jobs"): "n_jobs",
        ("returned type", "model"): "FittedModel",
        ("returned value", "model"): "The model that fits best",
        ("condition", "ValueError"): "If the points lie on one line",
    }
    # The second "'fast'" is the default; the first is a choice among two.
    (default,) = (f for f in piece.facts if f.topic == "default" and f.name == "mode")
    assert piece.text[: default.start].endswith("The default is ")


@pytest.mark.parametrize(
    ("description", "default"),
    [
        ("Size of it. Defaults to 10.", "10"),
        ("Size of it (default: None).", "None"),
        ("Size of it. Default is `np.inf`.", "np.inf"),
        ("Size of it. Defaults to (1, 2).", "(1, 2)"),
        ("Size of it. Defaults to `-1e-3`.", "-1e-3"),
        ("Size of it. Defaults to numpy.get()['size'].", None),
        ("Size of it. Defaults to the size of the last axis.", None),
        ("The default behaviour is to stop.", None),
    ],
)
def test_defaults_in_google_style(description: str, default: str | None) -> None:
    entries = "".join(
        f"  p{n}: {text}\n"
        for n, text in enumerate([description, *(["Some words to read about it."] * 9)])
    )
    lines = docstring_text.logical_lines("Does.\n\nArgs:\n" + entries)
    (piece,) = docstring_entries.pieces("f", lines, max_words=90)
    found = [piece.text[f.start : f.stop] for f in piece.facts if f.topic == "default"]
    assert found == ([] if default is None else [default])


def test_pieces_keep_to_their_limits() -> None:
    lines = docstring_text.logical_lines(DOCSTRING.strip())
    cut = list(docstring_entries.pieces("f", lines, min_words=15, max_words=45))
    assert [piece.text.split("\n")[0] for piece in cut] == ["Parameters", "x, y : array_like"]
    for piece in cut:
        assert 15 <= len(piece.text.split()) <= 45
        for fact in piece.facts:
            assert piece.text[fact.start : fact.stop].strip()
    # Entries longer than a piece separate what stands around them.
    assert not list(docstring_entries.pieces("f", lines, min_words=1, max_words=12))


def test_ambiguous_entries_are_not_asked_about() -> None:
    twice = _piece()
    for topic in ("type", "name", "returned type"):
        fact = next(f for f in twice.facts if f.topic == topic)
        doubled = docstring_entries.Piece(owner="f", text=twice.text, facts=(fact, fact))
        assert list(docstring_questions.questions_on(doubled, random.Random(0))) == []


def test_a_description_that_says_the_name_is_not_asked_for_it() -> None:
    entries = "Args:\n  size: The largest size there is.\n  kind: Which of them.\n  x: A real one."
    (piece,) = docstring_entries.pieces("f", docstring_text.logical_lines(entries), 1)
    assert [fact.name for fact in piece.facts if fact.topic == "name"] == ["kind", "x"]


@given(seed=st.integers(0, 2**32), limit=st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_choice_keeps_its_limits_and_spans(seed: int, limit: int) -> None:
    pieces = [_piece()] * 4
    questions = docstring_questions.choose(pieces, limit, seed=seed)
    assert len(questions) == limit
    for question in questions:
        end = question.start + len(question.answer)
        assert question.context[question.start : end] == question.answer
    assert questions == docstring_questions.choose(pieces, limit, seed=seed)


def _questions(path: str) -> list[tuple[str, str, dict[str, Any]]]:
    document = json.loads(pathlib.Path(path).read_bytes())
    assert document["version"] == "1.1"
    return [
        (article["title"], paragraph["context"], question)
        for article in document["data"]
        for paragraph in article["paragraphs"]
        for question in paragraph["qas"]
    ]


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> docstring_questions.QuestionsSummary:
    """500 + 100 questions on small packages of both styles."""
    return docstring_questions.write_questions(
        tmp_path_factory.mktemp("questions"),
        ["keras_hub", "joblib"],
        ["narwhals", "mpl_toolkits"],
        max_train_questions=500,
        max_dev_questions=100,
        seed=3,
    )


def test_every_answer_is_an_exact_span(real: docstring_questions.QuestionsSummary) -> None:
    ids = []
    for path in (real.train_path, real.dev_path):
        for _, context, question in _questions(path):
            (answer,) = question["answers"]
            start, text = answer["answer_start"], answer["text"]
            assert text == text.strip() != ""
            assert context[start : start + len(text)] == text
            assert question["question"].endswith("?") and "{" not in question["question"][:20]
            ids.append(question["id"])
    assert len(set(ids)) == len(ids) == 600
    assert (real.train_questions, real.dev_questions) == (500, 100)


def test_split_is_by_package(real: docstring_questions.QuestionsSummary) -> None:
    sides = []
    for path, packages in (
        (real.train_path, real.train_packages),
        (real.dev_path, real.dev_packages),
    ):
        questions = _questions(path)
        assert {title.split(".")[0] for title, _, _ in questions} == set(packages)
        sides.append({context for _, context, _ in questions})
    assert sides[0].isdisjoint(sides[1])


def test_contexts_hold_wrong_answers_too(real: docstring_questions.QuestionsSummary) -> None:
    positions = []
    for _, context, question in _questions(real.train_path):
        assert 20 <= len(context.split()) <= 50
        assert len(context.split("\n")) >= 3
        positions.append(question["answers"][0]["answer_start"] / len(context))
    # Answers stand all over the context: no quarter of it holds half of them.
    quarters = collections.Counter(int(4 * position) for position in positions)
    assert set(quarters) == {0, 1, 2, 3}
    assert max(quarters.values()) < 0.5 * len(positions)
    assert set(real.topics) >= {"type", "default", "meaning", "name", "returned value"}
    assert max(real.topics.values()) < 0.4 * sum(real.topics.values())


def test_same_seed_same_bytes_other_seed_other_questions(
    real: docstring_questions.QuestionsSummary, tmp_path: pathlib.Path
) -> None:
    def again(name: str, seed: int) -> bytes:
        summary = docstring_questions.write_questions(
            tmp_path / name, ["joblib"], ["orbit"], max_train_questions=20, seed=seed
        )
        return pathlib.Path(summary.train_path).read_bytes()

    assert again("a", 3) == again("b", 3)
    assert again("c", 4) != again("d", 3)


def test_default_packages_are_disjoint_and_have_no_copies_among_dev() -> None:
    train, dev = docstring_questions.TRAIN_PACKAGES, docstring_questions.DEV_PACKAGES
    assert not set(train) & set(dev)
    assert set(train) | set(dev) <= set(docstring_sources.DEFAULT_PACKAGES)


@pytest.mark.parametrize(
    ("train", "dev", "message"),
    [
        (["joblib"], ["joblib"], "both a train and a dev package"),
        (["joblib"], ["no_such_package"], "none of the packages no_such_package is installed"),
        (["joblib"], [docstring_sources.PYTHON_TOPICS], "no documented parameters in pydoc_data"),
    ],
)
def test_bad_packages(
    train: list[str], dev: list[str], message: str, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(UserError, match=message):
        docstring_questions.write_questions(tmp_path / "out", train, dev)
    assert not (tmp_path / "out").exists()
