"""From the logits of windows to the answers of questions, and their scores.

Answers and scores are Model Garden's own (`official/nlp/data/squad_lib.py`, and
`official/nlp/tools/squad_evaluate_v1_1.py` and `_v2_0.py`, the official scripts).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from official.nlp.data import squad_lib
from official.nlp.tools import squad_evaluate_v1_1, squad_evaluate_v2_0

from official_bert import guard
from official_bert.squad import EXACT_MATCH, F1

# Of a row, by its unique id: float32 (seq_length,), how much speaks for each of its word pieces
# as an answer's first, and as its last.
Logits = Mapping[int, tuple[np.ndarray, np.ndarray]]

_OFFICIAL = {"exact": EXACT_MATCH, "f1": F1}
# Model Garden's names of what the official script calls best_*.
_BEST = {
    "final_exact": "best_exact",
    "final_exact_thresh": "best_exact_thresh",
    "final_f1": "best_f1",
    "final_f1_thresh": "best_f1_thresh",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """How answers are chosen.

    Attributes:
        n_best: answers kept for each question, and the first and last word pieces tried in each
            of its rows.
        max_answer_length: in word pieces.
        lower_case: how the text was cut into them, to find an answer's words again.
        version_2: whether "no answer" is one of the answers, as in SQuAD v2.0.
        null_score_diff_threshold: "" is predicted where s_null - s_best exceeds it; s_null is
            the smallest sum of the two logits of [CLS] over the question's rows, s_best the
            largest sum of an answer's.
    """

    n_best: int = 20
    max_answer_length: int = 30
    lower_case: bool = True
    version_2: bool = False
    null_score_diff_threshold: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answers:
    """The answers of questions, by id, in the order of the questions.

    Attributes:
        predictions: the text predicted; of SQuAD v2.0, "" for no answer.
        nbest: the best few, best first, each with `text`, `probability`, `start_logit` and
            `end_logit`; of SQuAD v2.0, "" is one of them.
        null_odds: of SQuAD v2.0, s_null - s_best; otherwise empty.
    """

    predictions: Mapping[str, str]
    nbest: Mapping[str, list[dict[str, Any]]]
    null_odds: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class _Row:
    """A row's logits as `squad_lib` takes them: lists, made when they are looked at."""

    unique_id: int
    logits: tuple[np.ndarray, np.ndarray]

    @property
    def start_logits(self) -> list[float]:
        return self.logits[0].tolist()

    @property
    def end_logits(self) -> list[float]:
        return self.logits[1].tolist()


def form(
    examples: Sequence[squad_lib.SquadExample],
    features: Sequence[squad_lib.InputFeatures],
    logits: Logits,
    settings: AnswerSettings,
) -> Answers:
    """The answers of every question.

    Args:
        examples: the questions, of `squad.dev_windows`.
        features: their rows.
        logits: of every row.
        settings: how answers are chosen.

    Raises:
        ValueError: a row has no logits, which `squad_lib` would pass over.
        guard.Diverged: logits that are not finite.
    """
    missing = [each.unique_id for each in features if each.unique_id not in logits]
    if missing:
        raise ValueError(f"{len(missing)} of {len(features)} rows have no logits: {missing[:3]}")
    broken = sum(not np.isfinite(logits[each.unique_id]).all() for each in features)
    if broken:
        found = f"the logits of {broken} of {len(features)} rows are not finite"
        raise guard.Diverged(
            f"{found}: the training diverged; finetune again in another --model_dir with a lower "
            "--learning_rate",
            found,
        )
    predictions, nbest, null_odds = squad_lib.postprocess_output(
        examples,
        features,
        [_Row(unique_id, values) for unique_id, values in logits.items()],
        settings.n_best,
        settings.max_answer_length,
        settings.lower_case,
        version_2_with_negative=settings.version_2,
        null_score_diff_threshold=settings.null_score_diff_threshold,
    )
    return Answers(predictions=predictions, nbest=nbest, null_odds=null_odds)


def is_nonce(nbest: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a question's n best are what `squad_lib` puts where no span is among them.

    That is the one word "empty" with logits of exactly 0. SQuAD v2.0 has no need of it.
    """
    logits = [(each["text"], each["start_logit"], each["end_logit"]) for each in nbest]
    return logits == [("empty", 0.0, 0.0)]


def score(
    articles: Sequence[Mapping[str, Any]],
    predictions: Mapping[str, str],
    null_odds: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Exact match and F1 in percent, by the official rules as Model Garden has them.

    Lower case, no punctuation, no articles (a, an, the), single spaces; the best of a question's
    answers counts; of an unanswerable one only "" is right. A question without a prediction scores
    0 in v1.1 and is left out in v2.0.

    Args:
        articles: the `data` of a SQuAD file.
        predictions: question id to the predicted text.
        null_odds: of SQuAD v2.0, question id to how much speaks against an answer; None for v1.1.

    Returns:
        `exact_match` and `f1`; of v2.0 also, under the official script's names, the same of the
        questions with an answer and without (`HasAns_exact`, `NoAns_f1`, ..., `_total`) and the
        best that a threshold on `null_odds` would reach with these predictions (`best_exact`,
        `best_exact_thresh`, `best_f1`, `best_f1_thresh`).

    Example:
        >>> qas = [{"id": "1", "question": "?", "answers": [{"text": "the int"}]}]
        >>> score([{"paragraphs": [{"context": "", "qas": qas}]}], {"1": "int or str"})
        {'exact_match': 0.0, 'f1': 50.0}
    """
    if null_odds is None:
        values = squad_evaluate_v1_1.evaluate(articles, predictions)
        return {EXACT_MATCH: 100.0 * values["exact_match"], F1: 100.0 * values["final_f1"]}
    # Without odds the script scores the predictions as they are; given odds, it would first take
    # back those above 1, a threshold that suits probabilities.
    as_they_are = squad_evaluate_v2_0.evaluate(articles, predictions)
    with_odds = squad_evaluate_v2_0.evaluate(articles, predictions, null_odds)
    scores = {ours: as_they_are[name] for name, ours in _OFFICIAL.items()}
    scores |= {
        name: value for name, value in as_they_are.items() if name.startswith(("HasAns_", "NoAns_"))
    }
    return scores | {ours: with_odds[name] for name, ours in _BEST.items()}
