"""SQuAD v1.1 files: read and checked, cut into windows of word pieces, and scored.

Windows, answers and scores are Model Garden's own (`official/nlp/data/squad_lib.py` and
`official/nlp/tools/squad_evaluate_v1_1.py`); here they get input that was checked, a tokenizer
that remembers words, and arrays instead of files.
"""

import dataclasses
import functools
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from official.nlp.data import squad_lib
from official.nlp.tools import squad_evaluate_v1_1, tokenization

from tfrecords import command, files
from tfrecords.errors import UserError

EXACT_MATCH, F1 = "exact_match", "f1"
QUERY_LENGTH = 64

_FORMAT = (
    'expected SQuAD v1.1: {"data": [{"paragraphs": [{"context", "qas": [{"id", "question", '
    '"answers": [{"text", "answer_start"}]}]}]}]}'
)
_KINDS = {list: "a list", str: "a text", int: "a number", dict: "an object"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Squad:
    """A checked SQuAD v1.1 file.

    Attributes:
        path: where it came from.
        articles: its `data`, as the official scorer takes it.
        num_questions: the questions in it.
        mismatches: ids of the questions with an answer that does not stand in the context at its
            `answer_start`.
    """

    path: str
    articles: list[dict[str, Any]]
    num_questions: int
    mismatches: tuple[str, ...]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Squad":
        """Reads and checks a file.

        Raises:
            UserError: it is missing, is no JSON, is not in SQuAD v1.1 format, has no question,
                two questions of one id, or a question without an answer (SQuAD v2.0).
        """
        name = os.fspath(path)
        try:
            document = json.loads(files.read_bytes(name))
        except FileNotFoundError as error:
            raise UserError(f"no SQuAD file at {name}; give the path of a JSON file") from error
        except ValueError as error:
            raise UserError(f"{name} is no JSON: {error}; {_FORMAT}") from error
        articles = _field({"file": document}, "file", dict, name, "")
        articles = _field(articles, "data", list, name, "")
        ids: set[str] = set()
        mismatches = []
        for context, question, where in _questions(articles, name):
            identifier = _field(question, "id", str, name, where)
            if identifier in ids:
                raise UserError(
                    f"{name}: two questions have the id {identifier!r}; expected every id once"
                )
            ids.add(identifier)
            if not all(_matches(context, answer) for answer in question["answers"]):
                mismatches.append(identifier)
        if not ids:
            raise UserError(f"{name} has no questions; {_FORMAT}")
        return cls(
            path=name,
            articles=articles,
            num_questions=len(ids),
            mismatches=tuple(mismatches),
        )


def _questions(articles: list[Any], name: str) -> Any:
    """Yields (context, question, where) of every question, all fields checked."""
    for a in range(len(articles)):
        where = f"data[{a}]"
        article = _field({where: articles[a]}, where, dict, name, "")
        paragraphs = _field(article, "paragraphs", list, name, where)
        for p, paragraph in enumerate(paragraphs):
            here = f"{where}.paragraphs[{p}]"
            context = _field(_object(paragraph, name, here), "context", str, name, here)
            for q, question in enumerate(_field(paragraph, "qas", list, name, here)):
                there = f"{here}.qas[{q}]"
                _check_question(_object(question, name, there), name, there)
                yield context, question, there


def _check_question(question: dict[str, Any], name: str, where: str) -> None:
    _field(question, "question", str, name, where)
    answers = _field(question, "answers", list, name, where)
    if not answers:
        raise UserError(
            f"{name}: {where} has no answer; expected SQuAD v1.1, where every question has one "
            "(unanswerable questions are SQuAD v2.0): remove such questions"
        )
    for n, answer in enumerate(answers):
        here = f"{where}.answers[{n}]"
        _field(_object(answer, name, here), "text", str, name, here)
        _field(answer, "answer_start", int, name, here)


def _object(node: Any, name: str, where: str) -> dict[str, Any]:
    return _field({where: node}, where, dict, name, "")


def _field(node: Mapping[str, Any], key: str, kind: type, name: str, where: str) -> Any:
    if key not in node:
        raise UserError(f"{name}: {where or 'the file'} has no {key!r}; {_FORMAT}")
    if not isinstance(node[key], kind) or isinstance(node[key], bool):
        place = f"{where}.{key}" if where else key
        raise UserError(
            f"{name}: {place} is {type(node[key]).__name__}, not {_KINDS[kind]}; {_FORMAT}"
        )
    return node[key]


def _matches(context: str, answer: Mapping[str, Any]) -> bool:
    start, text = answer["answer_start"], answer["text"]
    return bool(text.strip()) and start >= 0 and context[start : start + len(text)] == text


class Tokenizer(tokenization.FullTokenizer):
    """Model Garden's reference tokenizer, with the pieces of a text kept: words recur."""

    def __init__(self, vocab_file: str, do_lower_case: bool) -> None:
        super().__init__(vocab_file=vocab_file, do_lower_case=do_lower_case)
        self._pieces = functools.lru_cache(maxsize=1 << 18)(super().tokenize)

    def tokenize(self, text: str) -> list[str]:
        """The word pieces of `text`."""
        return self._pieces(text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class WindowSettings:
    """How a question and its context become rows of word pieces.

    Attributes:
        seq_length: word pieces in a row: [CLS] question [SEP] window [SEP].
        doc_stride: word pieces from one window's start to the next's.
        query_length: longer questions are cut to this many word pieces.
    """

    seq_length: int = 384
    doc_stride: int = 128
    query_length: int = QUERY_LENGTH

    def __post_init__(self) -> None:
        if self.query_length < 1:
            raise UserError(f"query_length is {self.query_length}; expected at least 1")
        shortest = self.query_length + 4
        if self.seq_length < shortest:
            raise UserError(
                f"--seq_length is {self.seq_length}; expected at least {shortest}: a question "
                f"may take {self.query_length} word pieces, and the window needs room"
            )
        if self.doc_stride < 1:
            raise UserError(f"--doc_stride is {self.doc_stride}; expected at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Windows:
    """N rows [CLS] question [SEP] window [SEP] [PAD]..., as int32 arrays.

    Attributes:
        word_ids: (N, seq_length).
        question_lengths: (N,), word pieces up to and with the first [SEP].
        lengths: (N,), word pieces up to and with the second [SEP].
        starts: (N,), the answer's first word piece; 0, where the window does not hold it.
        ends: (N,), its last.
        unique_ids: (N,), the number `squad_lib` knows the row by.
    """

    word_ids: np.ndarray
    question_lengths: np.ndarray
    lengths: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    unique_ids: np.ndarray

    def __len__(self) -> int:
        return len(self.word_ids)


def _stack(rows: Sequence[tuple[Any, ...]]) -> Windows:
    columns = [np.array(column, np.int32) for column in zip(*rows, strict=True)]
    return Windows(
        **dict(zip((field.name for field in dataclasses.fields(Windows)), columns, strict=True))
    )


def _row(feature: squad_lib.InputFeatures) -> tuple[Any, ...]:
    return (
        feature.input_ids,
        feature.tokens.index("[SEP]") + 1,
        len(feature.tokens),
        feature.start_position,
        feature.end_position,
        feature.unique_id,
    )


def train_windows(
    squad: Squad, tokenizer: Tokenizer, settings: WindowSettings
) -> tuple[Windows, tuple[str, ...]]:
    """The rows to train on, and the ids of the questions that were left out.

    A question is trained towards the first of its answers that stands in the context where it
    says; one without any is left out.

    Raises:
        UserError: no question is left.
    """
    articles, skipped = _first_answers(squad.articles)
    examples = _examples(articles, is_training=True)
    # Answers with unusual spaces in them are dropped by `squad_lib` itself.
    found = {example.qas_id for example in examples}
    kept = (q["id"] for a in articles for p in a["paragraphs"] for q in p["qas"])
    skipped += [identifier for identifier in kept if identifier not in found]
    if not examples:
        raise UserError(
            f"{squad.path}: none of its {squad.num_questions} questions has an answer that "
            "stands in the context at answer_start; expected character offsets from 0"
        )
    rows: list[tuple[Any, ...]] = []
    _convert(examples, tokenizer, settings, True, lambda feature: rows.append(_row(feature)))
    return _stack(rows), tuple(skipped)


def dev_windows(
    squad: Squad, tokenizer: Tokenizer, settings: WindowSettings
) -> tuple[Windows, list[squad_lib.SquadExample], list[squad_lib.InputFeatures]]:
    """The rows to predict on, with the examples and features that `answers` needs."""
    examples = _examples(squad.articles, is_training=False)
    features: list[squad_lib.InputFeatures] = []
    _convert(examples, tokenizer, settings, False, features.append)
    return _stack([_row(feature) for feature in features]), examples, features


def _first_answers(articles: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[str]]:
    """The articles with one matching answer a question, and the ids of those without any."""
    kept: list[Any] = []
    skipped = []
    for article in articles:
        paragraphs = []
        for paragraph in article["paragraphs"]:
            questions = []
            for question in paragraph["qas"]:
                matching = [a for a in question["answers"] if _matches(paragraph["context"], a)]
                if matching:
                    questions.append({**question, "answers": matching[:1]})
                else:
                    skipped.append(question["id"])
            paragraphs.append({**paragraph, "qas": questions})
        kept.append({**article, "paragraphs": paragraphs})
    return kept, skipped


def _examples(articles: Sequence[Any], *, is_training: bool) -> list[squad_lib.SquadExample]:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "squad.json")
        with open(path, "w", encoding="utf-8") as stream:
            json.dump({"data": articles}, stream)
        return squad_lib.read_squad_examples(path, is_training, version_2_with_negative=False)


def _convert(
    examples: Sequence[squad_lib.SquadExample],
    tokenizer: Tokenizer,
    settings: WindowSettings,
    is_training: bool,
    keep: Any,
) -> None:
    name = "train" if is_training else "dev"
    with command.progress(total=len(examples), desc=f"{name} windows", unit="question") as bar:

        def output(feature: squad_lib.InputFeatures, is_padding: bool = False) -> None:
            if not is_padding:
                keep(feature)
            bar.update(feature.example_index + 1 - bar.n)

        squad_lib.convert_examples_to_features(
            examples,
            tokenizer,
            max_seq_length=settings.seq_length,
            doc_stride=settings.doc_stride,
            max_query_length=settings.query_length,
            is_training=is_training,
            output_fn=output,
            # Padding is the data set's business; a batch of 1 never needs any here.
            batch_size=1,
        )


def score(
    articles: Sequence[Mapping[str, Any]], predictions: Mapping[str, str]
) -> dict[str, float]:
    """Exact match and F1 in percent, by the official v1.1 rules as Model Garden has them.

    Lower case, no punctuation, no articles (a, an, the), single spaces; the best of a
    question's answers counts; a question without a prediction scores 0.

    Args:
        articles: the `data` of a SQuAD v1.1 file.
        predictions: question id to the predicted text.

    Example:
        >>> qas = [{"id": "1", "question": "?", "answers": [{"text": "the int"}]}]
        >>> score([{"paragraphs": [{"context": "", "qas": qas}]}], {"1": "int or str"})
        {'exact_match': 0.0, 'f1': 50.0}
    """
    values = squad_evaluate_v1_1.evaluate(articles, predictions)
    return {EXACT_MATCH: 100.0 * values["exact_match"], F1: 100.0 * values["final_f1"]}
