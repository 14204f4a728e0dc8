"""SQuAD files, v1.1 and v2.0: read and checked, and cut into windows of word pieces.

Windows are Model Garden's own (`official/nlp/data/squad_lib.py`); here they get input that was
checked, a tokenizer that remembers words, and arrays instead of files.
"""

import dataclasses
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from official.nlp.data import squad_lib
from official.nlp.tools import tokenization

from tfrecords import command, files
from tfrecords.errors import UserError

EXACT_MATCH, F1 = "exact_match", "f1"
QUERY_LENGTH = 64

_FORMAT = (
    'expected SQuAD v1.1: {"data": [{"paragraphs": [{"context", "qas": [{"id", "question", '
    '"answers": [{"text", "answer_start"}]}]}]}]}, or v2.0, with "is_impossible" in each of "qas"'
)
_KINDS = {list: "a list", str: "a text", int: "a number", dict: "an object"}
_SHOWN = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Squad:
    """A checked SQuAD file.

    Attributes:
        path: where it came from.
        articles: its `data`, as the official scorers take it.
        num_questions: the questions in it.
        version_2: whether it is SQuAD v2.0, where a question may have no answer.
        sha256: of the file, in hexadecimal; "" where there is none.
        mismatches: ids of the questions with an answer that does not stand in the context at its
            `answer_start`.
    """

    path: str
    articles: list[dict[str, Any]]
    num_questions: int
    version_2: bool = False
    sha256: str = ""
    mismatches: tuple[str, ...] = ()

    @classmethod
    def load(cls, path: str | os.PathLike[str], strict: bool = False) -> "Squad":
        """Reads and checks a file.

        It is SQuAD v2.0 if its `version` says so or any question `is_impossible`.

        Args:
            path: the JSON file.
            strict: whether `mismatches` are refused.

        Raises:
            UserError: it is missing, is no JSON, is in neither format, has no question, half a
                surrogate pair in a text, two questions of one id, or a question that has neither
                an answer nor `is_impossible`, or both; with `strict`, an answer that does not
                stand where it says.
        """
        name = os.fspath(path)
        try:
            content = files.read_bytes(name)
            document = json.loads(content)
        except FileNotFoundError as error:
            raise UserError(f"no SQuAD file at {name}; give the path of a JSON file") from error
        except ValueError as error:
            raise UserError(f"{name} is no JSON: {error}; {_FORMAT}") from error
        document = _field({"file": document}, "file", dict, name, "")
        articles = _field(document, "data", list, name, "")
        found = list(_questions(articles, name))
        version_2 = str(document.get("version", "")).strip().lower().lstrip("v").startswith("2")
        version_2 = version_2 or any(question.get("is_impossible") for _, question, _ in found)
        for _, question, where in found:
            _check_answerable(question, version_2, name, where)
        _check_ids([question["id"] for _, question, _ in found], name)
        squad = cls(
            path=name,
            articles=articles,
            num_questions=len(found),
            version_2=version_2,
            sha256=hashlib.sha256(content).hexdigest(),
            mismatches=tuple(
                question["id"]
                for context, question, _ in found
                if not all(_matches(context, answer) for answer in question["answers"])
            ),
        )
        if strict and squad.mismatches:
            raise UserError(
                f"{name}: {len(squad.mismatches)} of {squad.num_questions} questions have answers "
                f"that do not stand in the context at answer_start: {shown(squad.mismatches)}; "
                "mend the file, or leave --strict out to train without them"
            )
        return squad


def load_pair(
    train_file: str | os.PathLike[str], dev_file: str | os.PathLike[str], strict: bool = False
) -> tuple[Squad, Squad]:
    """Reads the files to train on and to predict on.

    Raises:
        UserError: one of them is not what it should be, or they are of different versions: a
            model that never saw an unanswerable question cannot tell one.
    """
    pair = Squad.load(train_file, strict), Squad.load(dev_file, strict)
    if pair[0].version_2 != pair[1].version_2:
        train, dev = (
            f"{each.path} is SQuAD {'v2.0' if each.version_2 else 'v1.1'}" for each in pair
        )
        raise UserError(
            f"{train} and {dev}, whose questions may have no answer in v2.0 only; expected two "
            'files of one version (a file is v2.0 if its "version" says so or any question '
            '"is_impossible")'
        )
    return pair


def unlabelled(questions: Sequence[tuple[str, str]], path: str = "questions") -> Squad:
    """Questions without answers, as `dev_windows` takes them; their ids are "0", "1", ...

    Args:
        questions: N pairs of a question and the context to look for its answer in.
        path: what messages call them.
    """
    paragraphs = [
        {"context": context, "qas": [{"id": str(index), "question": question, "answers": []}]}
        for index, (question, context) in enumerate(questions)
    ]
    articles: list[dict[str, Any]] = [{"title": "", "paragraphs": paragraphs}]
    return Squad(path=path, articles=articles, num_questions=len(questions))


def shown(identifiers: Sequence[str]) -> str:
    """The first few of a list, for messages."""
    return ", ".join(identifiers[:_SHOWN]) + (", ..." if len(identifiers) > _SHOWN else "")


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
    _field(question, "id", str, name, where)
    _field(question, "question", str, name, where)
    if not isinstance(question.get("is_impossible", False), bool):
        kind = type(question["is_impossible"]).__name__
        raise UserError(f"{name}: {where}.is_impossible is {kind}, not true or false; {_FORMAT}")
    for n, answer in enumerate(_field(question, "answers", list, name, where)):
        here = f"{where}.answers[{n}]"
        _field(_object(answer, name, here), "text", str, name, here)
        _field(answer, "answer_start", int, name, here)


def _check_answerable(question: dict[str, Any], version_2: bool, name: str, where: str) -> None:
    """A question of v1.1 has an answer; one of v2.0 has one or says that it has none."""
    answered = bool(question["answers"])
    if not version_2:
        if not answered:
            raise UserError(
                f"{name}: {where} has no answer; expected SQuAD v1.1, where every question has "
                'one: remove it, or make the file v2.0 with "is_impossible": true there'
            )
        return
    if question.get("is_impossible", not answered) == answered:
        has = "answers" if answered else "no answer"
        raise UserError(
            f"{name}: {where} has {has}, and is_impossible is {str(answered).lower()}; expected "
            "an answer or is_impossible true, and not both"
        )


def _check_ids(ids: Sequence[str], name: str) -> None:
    if not ids:
        raise UserError(f"{name} has no questions; {_FORMAT}")
    if len(set(ids)) == len(ids):
        return
    seen: set[str] = set()
    for identifier in ids:
        if identifier in seen:
            raise UserError(
                f"{name}: two questions have the id {identifier!r}; expected every id once"
            )
        seen.add(identifier)


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
    if kind is str and any("\ud800" <= character <= "\udfff" for character in node[key]):
        # JSON may escape what no UTF-8 has, and predictions are UTF-8.
        place = f"{where}.{key}"
        raise UserError(f"{name}: {place} holds half a surrogate pair; expected Unicode text")
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
        # Now, not when all are stacked: a list of numbers takes ten times the room.
        np.array(feature.input_ids, np.int32),
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
    says, or towards [CLS] if it `is_impossible` and in rows that do not hold the answer; one
    whose answers all stand elsewhere is left out.

    Raises:
        UserError: no question is left.
    """
    articles, skipped = _first_answers(squad.articles)
    examples = _examples(articles, is_training=True, version_2=squad.version_2)
    # Answers with unusual spaces in them are dropped by `squad_lib` itself.
    found = {example.qas_id for example in examples}
    kept = (q["id"] for a in articles for p in a["paragraphs"] for q in p["qas"])
    skipped += [identifier for identifier in kept if identifier not in found]
    rows: list[tuple[Any, ...]] = []
    _convert(examples, tokenizer, settings, True, lambda feature: rows.append(_row(feature)))
    if not rows:
        raise UserError(
            f"{squad.path}: none of its {squad.num_questions} questions has an answer that "
            "stands in the context at answer_start; expected character offsets from 0"
        )
    return _stack(rows), tuple(skipped)


def dev_windows(
    squad: Squad, tokenizer: Tokenizer, settings: WindowSettings, progress: bool = True
) -> tuple[Windows, list[squad_lib.SquadExample], list[squad_lib.InputFeatures]]:
    """The rows to predict on, with the examples and features that `squad_answers` needs.

    Args:
        squad: the questions.
        tokenizer: cuts them into word pieces.
        settings: of the windows.
        progress: whether a bar shows how far it is.

    Raises:
        UserError: no context holds a word or, of SQuAD v2.0, one of them does not.
    """
    examples = _examples(squad.articles, is_training=False, version_2=squad.version_2)
    features: list[squad_lib.InputFeatures] = []
    _convert(examples, tokenizer, settings, False, features.append, progress)
    if not features:
        raise UserError(f"{squad.path}: no context holds a word; expected text to answer from")
    read = {feature.example_index for feature in features}
    # `squad_lib` takes "no answer" from a row of the question, which has none.
    wordless = [each.qas_id for number, each in enumerate(examples) if number not in read]
    if squad.version_2 and wordless:
        raise UserError(
            f"{squad.path}: the contexts of {len(wordless)} questions hold no word: "
            f"{shown(wordless)}; give them text, or take the questions out"
        )
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
                answers = question["answers"]
                matching = [a for a in answers if _matches(paragraph["context"], a)]
                if matching or not answers:
                    chosen = {"answers": matching[:1], "is_impossible": not answers}
                    questions.append({**question, **chosen})
                else:
                    skipped.append(question["id"])
            paragraphs.append({**paragraph, "qas": questions})
        kept.append({**article, "paragraphs": paragraphs})
    return kept, skipped


def _examples(
    articles: Sequence[Any], *, is_training: bool, version_2: bool
) -> list[squad_lib.SquadExample]:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "squad.json")
        with open(path, "w", encoding="utf-8") as stream:
            json.dump({"data": articles}, stream)
        return squad_lib.read_squad_examples(path, is_training, version_2_with_negative=version_2)


def _convert(
    examples: Sequence[squad_lib.SquadExample],
    tokenizer: Tokenizer,
    settings: WindowSettings,
    is_training: bool,
    keep: Any,
    progress: bool = True,
) -> None:
    name = "train" if is_training else "dev"
    with command.progress(
        total=len(examples), desc=f"{name} windows", unit="question", disable=not progress
    ) as bar:

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
