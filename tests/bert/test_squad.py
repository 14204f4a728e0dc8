"""SQuAD files: what is refused, how windows are cut, what is scored, in which order rows come."""

import collections
import json
import pathlib
import re
import shutil
import string
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from official.nlp.data import squad_lib
from official.nlp.tools import squad_evaluate_v1_1, tokenization

from official_bert import squad, squad_answers, squad_rows, squad_task
from tfrecords.errors import UserError

CONTEXT = "The Seine (775 km) flows through Paris. It ends at Le Havre, in Normandy."
WORDS = ["the", "seine", "775", "km", "flow", "##s", "through", "paris", "it", "end", "at", "le"]
WORDS += ["ha", "##vre", "in", "norm", "##andy", "where", "does", "which", "city", "river"]
WORDS += list(string.punctuation) + list("abcdefghijklmnopqrstuvwxyz0123456789")
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


def article(context: str, *questions: tuple[str, str, int]) -> dict[str, Any]:
    """An article of one context; questions are (text, answer, answer_start)."""
    qas = [
        {
            "id": f"{len(context)}-{number}",
            "question": text,
            "answers": [{"text": answer, "answer_start": start}],
        }
        for number, (text, answer, start) in enumerate(questions)
    ]
    return {"title": "t", "paragraphs": [{"context": context, "qas": qas}]}


def document(*articles: dict[str, Any]) -> dict[str, Any]:
    return {"version": "1.1", "data": list(articles)}


def valid() -> dict[str, Any]:
    return document(
        article(
            CONTEXT,
            ("Which river flows through Paris?", "The Seine", 0),
            ("Where does it end?", "Le Havre", CONTEXT.index("Le Havre")),
            ("How long is it?", "775", CONTEXT.index("775")),
        )
    )


@pytest.fixture
def vocab_file(tmp_path: pathlib.Path) -> str:
    path = tmp_path / "vocab.txt"
    path.write_text("".join(f"{token}\n" for token in VOCABULARY))
    return str(path)


def write(tmp_path: pathlib.Path, content: Any, name: str = "squad.json") -> str:
    path = tmp_path / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_load(tmp_path: pathlib.Path) -> None:
    loaded = squad.Squad.load(write(tmp_path, valid()))
    assert (loaded.num_questions, loaded.mismatches) == (3, ())
    assert loaded.articles == valid()["data"]


def test_real_files_load(shared_data: pathlib.Path) -> None:
    loaded = squad.Squad.load(shared_data / "squad" / "xquad.en.json")
    assert (loaded.num_questions, loaded.mismatches) == (1190, ())


def _without(path: str) -> dict[str, Any]:
    content = valid()
    node: Any = content
    *parents, last = path.split(".")
    for key in parents:
        node = node[int(key) if key.isdigit() else key]
    del node[last]
    return content


def _with(field: str, value: Any) -> dict[str, Any]:
    content = valid()
    content["data"][0]["paragraphs"][0]["qas"][1][field] = value
    return content


def _with_answers(answers: Any) -> dict[str, Any]:
    return _with("answers", answers)


QA = r"data\[0\].paragraphs\[0\].qas\[1\]"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is no JSON"),
        ("{", "is no JSON"),
        ([], "file is list, not an object; expected SQuAD v1.1"),
        ({}, "the file has no 'data'"),
        ({"data": {}}, "data is dict, not a list"),
        ({"data": ["x"]}, r"data\[0\] is str, not an object"),
        ({"data": []}, "has no questions"),
        (document({"title": "t", "paragraphs": []}), "has no questions"),
        (_without("data.0.paragraphs"), r"data\[0\] has no 'paragraphs'"),
        (_without("data.0.paragraphs.0.context"), r"paragraphs\[0\] has no 'context'"),
        (_without("data.0.paragraphs.0.qas"), r"paragraphs\[0\] has no 'qas'"),
        (_without("data.0.paragraphs.0.qas.1.id"), f"{QA} has no 'id'"),
        (_without("data.0.paragraphs.0.qas.1.question"), f"{QA} has no 'question'"),
        (_without("data.0.paragraphs.0.qas.1.answers"), f"{QA} has no 'answers'"),
        (_with_answers([]), f"{QA} has no answer; expected SQuAD v1.1"),
        (_with_answers(["x"]), rf"{QA}.answers\[0\] is str"),
        (_with_answers([{"text": "x"}]), r"answers\[0\] has no 'answer_start'"),
        (_with_answers([{"text": "x", "answer_start": "0"}]), "answer_start is str, not a number"),
        (_with_answers([{"text": "x", "answer_start": True}]), "answer_start is bool"),
        (document(*valid()["data"], *valid()["data"]), "two questions have the id"),
        (document(article("a \ud83d b")), r"paragraphs\[0\].context holds half a surrogate pair"),
        (_with("question", "\udc00?"), f"{QA}.question holds half a surrogate pair"),
        (_with("id", "\ud83d"), f"{QA}.id holds half a surrogate pair"),
        (
            _with_answers([{"text": "\ud83d", "answer_start": 0}]),
            rf"{QA}.answers\[0\].text holds half a surrogate pair",
        ),
    ],
)
def test_what_is_no_squad_is_refused(content: Any, message: str, tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        squad.Squad.load(write(tmp_path, content))
    assert "\n" not in str(caught.value)
    assert "squad.json" in str(caught.value)


def test_whole_surrogate_pairs_are_text(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path, document(article("a \U0001f600 b", ("?", "\U0001f600", 2))))
    assert "\\ud83d\\ude00" in pathlib.Path(path).read_text()
    assert squad.Squad.load(path).mismatches == ()


def test_missing_file_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError, match="no SQuAD file at"):
        squad.Squad.load(tmp_path / "none.json")


def test_answers_that_do_not_match_are_listed_and_left_out_of_training(
    tmp_path: pathlib.Path, vocab_file: str
) -> None:
    start = CONTEXT.index("Paris")
    bad = article(
        CONTEXT + " ",
        ("off by one", "Paris", start + 1),
        ("outside", "Paris", 5000),
        ("negative", "Paris", -5),
        ("blank", " ", 3),
        ("right", "Paris", start),
        ("second one is right", "Paris", 0),
    )
    questions = bad["paragraphs"][0]["qas"]
    questions[5]["answers"].append({"text": "Paris", "answer_start": start})
    ids = [question["id"] for question in questions]
    loaded = squad.Squad.load(write(tmp_path, document(bad)))
    assert loaded.mismatches == (*ids[:4], ids[5])
    tokenizer = squad.Tokenizer(vocab_file, do_lower_case=True)
    settings_ = squad.WindowSettings(seq_length=96)
    windows, skipped = squad.train_windows(loaded, tokenizer, settings_)
    assert skipped == tuple(ids[:4])
    assert len(windows) == 2
    only_bad = document(article(CONTEXT, ("?", "Rome", 0)))
    hopeless = squad.Squad.load(write(tmp_path, only_bad))
    with pytest.raises(UserError, match="none of its 1 questions has an answer that stands"):
        squad.train_windows(hopeless, tokenizer, settings_)


def test_rows_are_cut_once_for_all_runs_of_a_sweep(tmp_path: pathlib.Path, vocab_file: str) -> None:
    first, second = write(tmp_path, valid()), str(tmp_path / "dev.json")
    shutil.copy(first, second)
    data = squad_task.SquadConfig().train_data.replace(vocab_file=vocab_file, seq_length=96)
    cut = squad_rows.Cutter()

    def again(**changed: Any) -> squad_rows.SquadRows:
        train = data.replace(**changed)
        return cut(squad.load_pair(first, second), train, data)

    rows = again()
    # What a sweep's runs differ in.
    assert again(seed=7, global_batch_size=2) is rows
    for changed in ({"doc_stride": 6}, {"do_lower_case": False}, {}):
        before, rows = rows, again(**changed)
        assert rows is not before and again(**changed) is rows
    write(tmp_path, document(article(CONTEXT, ("who", "Paris", CONTEXT.index("Paris")))))
    assert len(again().train) == 1


def _pieces(windows: squad.Windows, row: int, start: int, end: int) -> list[str]:
    return [VOCABULARY[index] for index in windows.word_ids[row][start:end]]


def test_windows_hold_question_context_and_answer(tmp_path: pathlib.Path, vocab_file: str) -> None:
    tokenizer = squad.Tokenizer(vocab_file, do_lower_case=True)
    loaded = squad.Squad.load(write(tmp_path, valid()))
    windows, skipped = squad.train_windows(
        loaded, tokenizer, squad.WindowSettings(seq_length=24, doc_stride=6, query_length=8)
    )
    assert skipped == ()
    held = collections.Counter()
    answers = {tuple(tokenizer.tokenize(text)) for text in ("The Seine", "Le Havre", "775")}
    context = tokenizer.tokenize(CONTEXT)
    for row in range(len(windows)):
        question, length = int(windows.question_lengths[row]), int(windows.lengths[row])
        pieces = _pieces(windows, row, 0, 24)
        assert pieces[0] == "[CLS]" and pieces[question - 1] == pieces[length - 1] == "[SEP]"
        assert pieces[length:] == ["[PAD]"] * (24 - length)
        window = pieces[question : length - 1]
        assert any(context[i : i + len(window)] == window for i in range(len(context)))
        if windows.starts[row] > 0:
            answer = tuple(_pieces(windows, row, windows.starts[row], windows.ends[row] + 1))
            assert answer in answers
            held[answer] += 1
        else:
            assert windows.ends[row] == 0
    assert set(held) == answers
    assert len(windows) > 3


def test_windows_are_model_gardens(tmp_path: pathlib.Path, vocab_file: str) -> None:
    path = write(tmp_path, valid())
    settings_ = squad.WindowSettings(seq_length=24, doc_stride=6, query_length=8)
    loaded = squad.Squad.load(path)
    ours, _ = squad.train_windows(loaded, squad.Tokenizer(vocab_file, True), settings_)
    theirs: list[Any] = []
    squad_lib.convert_examples_to_features(
        squad_lib.read_squad_examples(path, True, False),
        tokenization.FullTokenizer(vocab_file, do_lower_case=True),
        24, 6, 8, True, theirs.append,
    )  # fmt: skip
    np.testing.assert_array_equal(ours.word_ids, [f.input_ids for f in theirs])
    np.testing.assert_array_equal(ours.lengths, [sum(f.input_mask) for f in theirs])
    np.testing.assert_array_equal(
        ours.lengths - ours.question_lengths, [sum(f.segment_ids) for f in theirs]
    )
    np.testing.assert_array_equal(ours.starts, [f.start_position for f in theirs])
    np.testing.assert_array_equal(ours.ends, [f.end_position for f in theirs])


@given(text=st.text(max_size=40))
@settings(max_examples=60)
def test_tokenizer_is_the_reference(text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "reference_vocab.txt"
    path.write_text("".join(f"{token}\n" for token in VOCABULARY))
    for lower in (True, False):
        ours = squad.Tokenizer(str(path), lower)
        expected = tokenization.FullTokenizer(str(path), do_lower_case=lower).tokenize(text)
        assert ours.tokenize(text) == expected
        assert ours.tokenize(text) == expected


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seq_length": 10}, "--seq_length is 10; expected at least 68"),
        ({"doc_stride": 0}, "--doc_stride is 0; expected at least 1"),
        ({"query_length": 0}, "query_length is 0; expected at least 1"),
    ],
)
def test_window_settings_are_checked(fields: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        squad.WindowSettings(**fields)


def _normal(text: str) -> list[str]:
    """The official script's normalisation, written anew."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def _f1(prediction: str, answer: str) -> float:
    ours, theirs = _normal(prediction), _normal(answer)
    common = sum((collections.Counter(ours) & collections.Counter(theirs)).values())
    return 0.0 if common == 0 else 2 * common / (len(ours) + len(theirs))


TEXTS = st.lists(
    st.sampled_from(["the", "a", "An", "int", "INT", "or", "None.", "'x'", "-", "Le", "Havre"]),
    max_size=5,
).map(" ".join)


@given(data=st.lists(st.tuples(TEXTS | st.none(), st.lists(TEXTS, min_size=1, max_size=3)),
                     min_size=1, max_size=6))  # fmt: skip
@settings(max_examples=150)
def test_scores_are_the_official_ones(data: list[tuple[str | None, list[str]]]) -> None:
    qas = [
        {"id": str(n), "question": "?", "answers": [{"text": t, "answer_start": 0} for t in texts]}
        for n, (_, texts) in enumerate(data)
    ]
    articles = [{"paragraphs": [{"context": "", "qas": qas}]}]
    predictions = {str(n): text for n, (text, _) in enumerate(data) if text is not None}
    scores = squad_answers.score(articles, predictions)
    official = squad_evaluate_v1_1.evaluate(articles, predictions)
    assert scores == {
        "exact_match": 100.0 * official["exact_match"],
        "f1": 100.0 * official["final_f1"],
    }
    exact = [p is not None and any(_normal(p) == _normal(t) for t in texts) for p, texts in data]
    f1 = [0.0 if p is None else max(_f1(p, t) for t in texts) for p, texts in data]
    assert scores["exact_match"] == pytest.approx(100 * np.mean(exact), abs=1e-9)
    assert scores["f1"] == pytest.approx(100 * np.mean(f1), abs=1e-9)


def test_scores_of_crafted_predictions() -> None:
    articles = valid()["data"]
    ids = [question["id"] for question in articles[0]["paragraphs"][0]["qas"]]
    predictions = {ids[0]: "SEINE.", ids[1]: "ends at Le Havre", ids[2]: "km"}
    scores = squad_answers.score(articles, predictions)
    # Exactly one; F1 1, 2/3 (precision 2/4, recall 2/2) and 0.
    assert scores["exact_match"] == pytest.approx(100 / 3)
    assert scores["f1"] == pytest.approx(100 * (1 + 2 / 3 + 0) / 3)


def _numbered(num_rows: int) -> squad.Windows:
    numbers = np.arange(num_rows, dtype=np.int32)
    return squad.Windows(
        word_ids=np.stack([numbers] * 4, 1),
        question_lengths=np.full(num_rows, 2, np.int32),
        lengths=np.full(num_rows, 3, np.int32),
        starts=numbers,
        ends=numbers + 1,
        unique_ids=numbers + 1000,
    )


@given(
    num_rows=st.integers(1, 30),
    positions=st.integers(0, 90),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60)
def test_every_epoch_is_a_permutation(num_rows: int, positions: int, seed: int) -> None:
    rows = squad_task.rows_at(np.arange(positions + 3 * num_rows), num_rows, seed).numpy()
    for epoch in range(3):
        part = rows[epoch * num_rows : (epoch + 1) * num_rows]
        assert sorted(part) == list(range(num_rows))
    np.testing.assert_array_equal(
        squad_task.rows_at(np.arange(positions, positions + 3), num_rows, seed),
        squad_task.rows_at(np.arange(positions + 3), num_rows, seed)[positions:],
    )


def test_epochs_and_seeds_differ() -> None:
    rows = squad_task.rows_at(np.arange(100), 50, seed=1).numpy()
    assert list(rows[:50]) != list(rows[50:])
    assert list(rows) != list(squad_task.rows_at(np.arange(100), 50, seed=2).numpy())


@pytest.mark.parametrize("num_rows", [100, 1000, 8551])
@pytest.mark.parametrize("seed", range(4))
def test_rows_are_mixed(num_rows: int, seed: int) -> None:
    """Of a random order, r times the root of n is a standard normal, and one row stays on average.

    Five of the one, and nine of the other, come once in a million orders.
    """
    orders = squad_task.rows_at(np.arange(3 * num_rows), num_rows, seed).numpy()
    for order in orders.reshape(3, num_rows):
        places = np.arange(num_rows)
        assert abs(np.corrcoef(places, order)[0, 1]) * np.sqrt(num_rows) < 5
        assert np.sum(order == places) <= 9


def _starts(dataset: Any, steps: int) -> np.ndarray:
    return np.stack([labels["start_positions"].numpy() for _, labels in dataset.take(steps)])


def test_batches_continue_at_any_step_and_split_over_pipelines() -> None:
    windows = _numbered(10)
    whole = _starts(squad_task.batches(windows, 4, seed=3), 6)
    resumed = _starts(squad_task.batches(windows, 4, seed=3, start_step=4), 2)
    np.testing.assert_array_equal(whole[4:], resumed)
    shares = [
        _starts(squad_task.batches(windows, 4, seed=3, num_pipelines=2, pipeline=p), 6)
        for p in range(2)
    ]
    np.testing.assert_array_equal(np.concatenate(shares, axis=1), whole)


def test_batch_contents() -> None:
    features, labels = next(iter(squad_task.batches(_numbered(5), 3)))
    rows = labels["start_positions"].numpy()
    np.testing.assert_array_equal(features["input_word_ids"], np.stack([rows] * 4, 1))
    np.testing.assert_array_equal(features["input_mask"], [[1, 1, 1, 0]] * 3)
    np.testing.assert_array_equal(features["input_type_ids"], [[0, 0, 1, 0]] * 3)
    np.testing.assert_array_equal(labels["end_positions"], rows + 1)
    assert {tensor.dtype.name for tensor in [*features.values(), *labels.values()]} == {"int32"}


@pytest.mark.parametrize(("num_rows", "batch_size"), [(10, 4), (8, 4), (3, 4)])
def test_evaluation_sees_every_row_in_full_batches(num_rows: int, batch_size: int) -> None:
    seen = []
    for pipeline in range(2):
        dataset = squad_task.evaluation_batches(
            _numbered(num_rows), batch_size, num_pipelines=2, pipeline=pipeline
        )
        for features, _ in dataset:
            assert features["input_word_ids"].shape == (batch_size // 2, 4)
            seen += features["unique_ids"].numpy().tolist()
    assert set(seen) == {1000 + row for row in range(num_rows)}
    assert len(seen) == -(-num_rows // batch_size) * batch_size
