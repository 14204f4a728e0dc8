"""The demonstration's question set: reading comprehension on documented parameters.

A context is a piece of a docstring with at least three documented entries; a question asks for
one entry's type, default, meaning or name, or for what is returned or raised, and its answer is
a span of the context. The other entries are the wrong answers to choose among. It is a
demonstration, not a benchmark.
"""

import collections
import dataclasses
import hashlib
import json
import os
import random
from collections.abc import Iterable, Iterator, Sequence

from official_bert import docstring_entries, docstring_sources, docstring_text
from official_bert.docstring_entries import Fact, Piece
from tfrecords import command, files
from tfrecords.errors import UserError

# Dev packages of both styles (NumPy's and Google's), none derived from a train package.
TRAIN_PACKAGES = (
    "numpy",
    "scipy",
    "sklearn",
    "keras",
    "keras_hub",
    "huggingface_hub",
    "joblib",
)
DEV_PACKAGES = ("pandas", "matplotlib", "narwhals")

_TEMPLATES = {
    "type": (
        "What type does {name} have?",
        "Which type is expected for the parameter {name}?",
        "What kind of value does {name} take?",
        "What should be passed to {owner} as {name}?",
    ),
    "default": (
        "What is the default value of {name}?",
        "What does {name} default to?",
        "Which value is used when {name} is not given?",
        "If {name} is left out, what does {owner} use?",
    ),
    "meaning": (
        "What is {name}?",
        "What does the parameter {name} specify?",
        "What does {name} mean in {owner}?",
        "What is the purpose of {name}?",
    ),
    "name": (
        "Which parameter is documented as: {description}?",
        "What is the parameter called that stands for: {description}?",
        "Which argument of {owner} is this: {description}?",
    ),
    "returned value": (
        "What does {owner} return?",
        "What is the result of {owner}?",
        "What value is returned?",
    ),
    "returned type": (
        "What type does {owner} return?",
        "Of which type is the returned value?",
        "What is the type of the result of {owner}?",
    ),
    "condition": (
        "When is {name} raised?",
        "Under which condition does {owner} raise {name}?",
        "What makes {owner} raise {name}?",
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """A question with its answer: `context[start:start + len(answer)] == answer`."""

    owner: str
    context: str
    text: str
    answer: str
    start: int
    topic: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuestionsSummary:
    """What `write_questions` wrote.

    Attributes:
        train_path: SQuAD v1.1 JSON of questions on `train_packages`.
        dev_path: the same on `dev_packages`.
        train_questions: number of questions in `train_path`.
        dev_questions: number of questions in `dev_path`.
        topics: what is asked for (`type`, `default`, ...) to the number of questions.
        train_packages: packages that gave questions to train on.
        dev_packages: packages that gave questions to evaluate on; disjoint from the others.
    """

    train_path: str
    dev_path: str
    train_questions: int
    dev_questions: int
    topics: dict[str, int]
    train_packages: tuple[str, ...]
    dev_packages: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{self.train_questions:,} questions on {', '.join(self.train_packages)}; "
            f"{self.dev_questions:,} dev questions on {', '.join(self.dev_packages)}"
        )


def write_questions(
    output_dir: str | os.PathLike[str],
    train_packages: Sequence[str] = TRAIN_PACKAGES,
    dev_packages: Sequence[str] = DEV_PACKAGES,
    *,
    max_train_questions: int = 3_000,
    max_dev_questions: int = 1_000,
    min_words: int = 20,
    max_words: int = 50,
    seed: int = 0,
) -> QuestionsSummary:
    """Writes `train.json` and `dev.json` in SQuAD v1.1 format, split by package.

    The same installation, numbers and seed give the same bytes. Topics are balanced as far as
    the docstrings allow; a context that stands in a train package is never asked about in dev.
    The defaults suit a model of minutes: with few questions to learn from, what was pretrained
    shows, and 50 words and a question fit into 128 word pieces.

    Args:
        output_dir: a folder, made where it is missing.
        train_packages: import names to train on; those not installed are passed over.
        dev_packages: import names to evaluate on.
        max_train_questions: the most questions in `train.json`.
        max_dev_questions: the most questions in `dev.json`.
        min_words: the fewest words of a context.
        max_words: the most words of a context.
        seed: which contexts, entries and wordings are taken.

    Raises:
        UserError: a limit that leaves nothing, a package on both sides, none installed, or no
            question found on a side.

    Example:
        >>> print(write_questions("questions"))
        3,000 questions on numpy, scipy, ...; 1,000 dev questions on pandas, matplotlib, narwhals
    """
    _check_limits(max_train_questions, max_dev_questions, min_words, max_words)
    both = sorted(set(train_packages) & set(dev_packages))
    if both:
        raise UserError(
            f"{', '.join(both)} is both a train and a dev package; expected disjoint lists, so "
            "that dev measures reading and not memory: remove it from one"
        )
    sides = (docstring_sources.installed(train_packages), docstring_sources.installed(dev_packages))
    limits = (max_train_questions, max_dev_questions)
    seen: set[str] = set()
    paths, chosen = [], []
    for name, packages, limit in zip(("train", "dev"), sides, limits, strict=True):
        contexts = _contexts(packages, seen, (min_words, max_words), f"{name} questions")
        questions = choose(contexts, limit, seed=seed)
        if not questions:
            raise UserError(
                f"no documented parameters in {', '.join(packages)}; expected docstrings in "
                "NumPy or Google style: name other packages"
            )
        paths.append(os.path.join(os.fspath(output_dir), f"{name}.json"))
        chosen.append(questions)
    for path, questions in zip(paths, chosen, strict=True):
        files.write_text(path, json.dumps(to_squad(questions), ensure_ascii=False) + "\n")
    return QuestionsSummary(
        train_path=paths[0],
        dev_path=paths[1],
        train_questions=len(chosen[0]),
        dev_questions=len(chosen[1]),
        topics=dict(sorted(collections.Counter(q.topic for q in sum(chosen, [])).items())),
        train_packages=tuple(sides[0]),
        dev_packages=tuple(sides[1]),
    )


def _check_limits(max_train: int, max_dev: int, min_words: int, max_words: int) -> None:
    for name, value in (("max_train_questions", max_train), ("max_dev_questions", max_dev)):
        if value < 1:
            raise UserError(f"{name} is {value}; expected at least 1")
    if min_words > max_words:
        raise UserError(f"min_words {min_words} is more than max_words {max_words}; swap them")


def _contexts(
    packages: Sequence[str], seen: set[str], words: tuple[int, int], desc: str
) -> list[Piece]:
    """The pieces of the packages' docstrings whose text is not in `seen`, which grows."""
    pieces = []
    sources = [source for package in packages for source in docstring_sources.sources(package)]
    for source in command.progress(sources, desc=desc, unit="file"):
        for docstring in docstring_sources.read(source):
            lines = docstring_text.logical_lines(docstring.text)
            for piece in docstring_entries.pieces(docstring.name, lines, *words):
                if piece.text not in seen:
                    seen.add(piece.text)
                    pieces.append(piece)
    return pieces


def choose(
    pieces: Iterable[Piece], limit: int, *, per_context: int = 3, seed: int = 0
) -> list[Question]:
    """At most `limit` questions on the pieces, the topics as even as they can be.

    Args:
        pieces: the contexts, in any fixed order.
        limit: the most questions.
        per_context: the most questions on one context.
        seed: of the order of contexts and the choice of entries and wordings.
    """
    rng = random.Random(seed)
    shuffled = list(pieces)
    rng.shuffle(shuffled)
    counts: collections.Counter[str] = collections.Counter()
    questions: list[Question] = []
    for piece in shuffled:
        candidates = list(questions_on(piece, rng))
        rng.shuffle(candidates)
        for _ in range(min(per_context, len(candidates))):
            if len(questions) == limit:
                return questions
            rarest = min(candidates, key=lambda question: counts[question.topic])
            candidates.remove(rarest)
            counts[rarest.topic] += 1
            questions.append(rarest)
    return questions


def questions_on(piece: Piece, rng: random.Random) -> Iterator[Question]:
    """Every question that `piece` answers, each in a wording drawn from `rng`.

    What two entries of the piece would answer (two of one name, two of one description, two
    returned values) is not asked.
    """
    same = collections.Counter(_subject(fact) for fact in piece.facts)
    for fact in piece.facts:
        if same[_subject(fact)] > 1:
            continue
        template = rng.choice(_TEMPLATES[fact.topic])
        yield Question(
            owner=piece.owner,
            context=piece.text,
            text=template.format(
                name=fact.name,
                owner=_short_name(piece.owner),
                description=_lower_first(fact.description),
            ),
            answer=piece.text[fact.start : fact.stop],
            start=fact.start,
            topic=fact.topic,
        )


def _subject(fact: Fact) -> tuple[str, str]:
    """What a question on the fact names to ask for it."""
    if fact.topic.startswith("returned"):
        return fact.topic, ""
    return fact.topic, fact.description if fact.topic == "name" else fact.name


def _short_name(owner: str) -> str:
    parts = owner.split(".")
    return parts[-2] if parts[-1] in ("__init__", "__new__", "__call__") else parts[-1]


def _lower_first(sentence: str) -> str:
    word = sentence.split(" ", 1)[0]
    return sentence if word[1:] != word[1:].lower() else sentence[:1].lower() + sentence[1:]


def to_squad(questions: Iterable[Question]) -> dict[str, object]:
    """The questions as a SQuAD v1.1 document, one article a documented object.

    Example:
        >>> to_squad([])
        {'version': '1.1', 'data': []}
    """
    articles: dict[str, dict[str, list[dict[str, object]]]] = {}
    for question in questions:
        paragraphs = articles.setdefault(question.owner, {})
        key = f"{question.owner}\n{question.context}\n{question.text}\n{question.start}"
        paragraphs.setdefault(question.context, []).append(
            {
                "id": hashlib.sha256(key.encode()).hexdigest()[:24],
                "question": question.text,
                "answers": [{"text": question.answer, "answer_start": question.start}],
            }
        )
    data = [
        {
            "title": owner,
            "paragraphs": [{"context": text, "qas": qas} for text, qas in paragraphs.items()],
        }
        for owner, paragraphs in articles.items()
    ]
    return {"version": "1.1", "data": data}
