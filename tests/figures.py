"""Figures in prose: where they stand, and why each may."""

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

_NUMBER = r"(?<![\w.,])\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?"
_WORD = (
    r"\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|fifteen|twenty|thirty|"
    r"forty|fifty|sixty|ninety|a\s+dozen|a\s+hundred|a\s+thousand)"
)
_ANY = f"(?:{_NUMBER}|{_WORD})"
_UNIT = (
    r"(?:times|fold|per\s?cent|percent|points|"
    r"(?:milli|micro)?seconds?|minutes?|hours?|days?|weeks?|ms|µs|us|s|min|h|"
    r"(?:[KMGT]i?B|[KMGT]b|bytes|GFLOPs?|TFLOPs?)(?:/s)?|"
    r"(?:\w+)(?:/s|\s+(?:a|per|each)\s+second))\b"
)
# What looks like a measurement: a number with a unit, a share, a count of a count, a decimal.
FIGURE = re.compile(
    "|".join(
        (
            rf"(?:{_NUMBER}[\s-]?|{_WORD}[\s-]){_UNIT}",
            rf"{_NUMBER}(?:\s?[%×]|x\b)",
            rf"×\s?{_NUMBER}",
            rf"{_ANY}\s+(?:out\s+)?of\s+(?:the\s+|its\s+|all\s+|our\s+)?{_ANY}\b",
            r"\b(?:twice|thrice|half)\s+as\s+(?:fast|slow|much|many|long|large)\b",
            r"\b(?:half|quarter\s+of)\s+an?\s+(?:second|minute|hour|day)\b",
            r"(?<![\w.,/-])\d[\d,]*(?:\.\d+(?:e[-+]?\d+)?|e[-+]?\d+)(?![\d\w]|\.\d)",
        )
    ),
    re.IGNORECASE,
)
# Numbers that name something, whatever the sentence: versions, papers, places in them.
NAMES = re.compile(
    r"(?:TensorFlow|Keras(?: 3)?(?:'s)?|tf_keras|KerasHub|Python|Kubernetes|NumPy|JAX|PyTorch|"
    rf"Unicode|CUDA)[\s,]+(?:up\s+to\s+)?\d+\.\d+(?:\.\d+)?(?!\d|[\s-]?(?:{_UNIT}|[%×]))"
    r"|arXiv[:\s]\s*\d{4}\.\d{4,5}"
    r"|[Ss]ections?\s+\d+\.\d+"
)
# Their code runs in tests, or is typed into a shell or a file.
_CODE = frozenset(("sh", "bash", "python", "pycon", "yaml", "dockerfile", "json"))
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
_PART = re.compile(
    r"<!-- written by (?P<name>[^>]*?): begin -->\n(?P<text>.*?)<!-- written by (?P=name): end -->",
    re.DOTALL,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bound:
    """A sentence whose figures stand in a JSON file.

    Attributes:
        document: where it is.
        text: it, or a part of it, with a format field for each figure, such as `{:.2f} times`.
        results: the name of the JSON file.
        paths: to each figure: keys, indices, and dictionaries that an item of a list must match.
        scale: what the figures are multiplied by, 100 for percentages.
    """

    document: str
    text: str
    results: str
    paths: Sequence[Sequence[Any]]
    scale: float = 1.0

    def rendered(self) -> str:
        """The text as the JSON has it."""
        figures = json.loads((RESULTS / self.results).read_text(encoding="utf-8"))
        return self.text.format(*(self.scale * found(figures, path) for path in self.paths))


def found(figures: Any, path: Sequence[Any]) -> Any:
    """What lies at a path.

    Example:
        >>> found({"rows": [{"name": "a", "ms": 3}]}, ["rows", {"name": "a"}, "ms"])
        3
    """
    for key in path:
        if isinstance(key, Mapping):
            (figures,) = [each for each in figures if key.items() <= each.items()]
        else:
            figures = figures[key]
    return figures


def _blank(text: str) -> str:
    return re.sub(r"[^\n]", " ", text)


def _comments(shell: str) -> str:
    """A shell's comments, every place as it was."""
    shown = []
    for line in shell.split("\n"):
        comment = re.search(r"(?:^|\s)#\s", line)
        place = comment.start() if comment else len(line)
        shown.append(_blank(line[:place]) + line[place:])
    return "\n".join(shown)


def _prose_of_fence(match: re.Match[str]) -> str:
    """A shell's comments and the text of what is no code; the rest is blank."""
    _, language, text = match.groups()
    if language in ("sh", "bash"):
        shown = _comments(text)
    else:
        shown = _blank(text) if language in _CODE else text
    begin, end = (place - match.start() for place in match.span(3))
    return _blank(match[0][:begin]) + shown + _blank(match[0][end:])


def parts(document: str) -> Iterator[tuple[str, str]]:
    """The generated parts of a document: who writes them, what they hold."""
    for match in _PART.finditer(document):
        yield match["name"], match["text"]


def prose(document: str) -> str:
    """A document without generated parts, code, names and links; every place as it was."""
    text = _PART.sub(lambda match: _blank(match[0]), document)
    text = _FENCE.sub(_prose_of_fence, text)
    for pattern in (r"\]\([^)\s]*\)|https?://\S+", NAMES, r"`(?:[^`\n]|\n(?!\n))*`"):
        text = re.sub(pattern, lambda match: _blank(match[0]), text)
    return text


def _spans(text: str, allowed: str) -> Iterator[tuple[int, int]]:
    pattern = r"\s+".join(map(re.escape, allowed.split()))
    return (match.span() for match in re.finditer(pattern, text))


def unexplained(document: str, allowed: Sequence[str]) -> list[str]:
    """The figures of a document that stand in none of the allowed texts, with their lines.

    Args:
        document: its Markdown.
        allowed: texts that may stand there, figures and all.
    """
    text = prose(document)
    known = [span for each in allowed for span in _spans(document, each)]
    left = []
    for match in FIGURE.finditer(text):
        if not any(start <= match.start() and match.end() <= end for start, end in known):
            line = text.count("\n", 0, match.start()) + 1
            left.append(f"line {line}: {' '.join(match[0].split())!r}")
    return left


def absent(document: str, allowed: Sequence[str]) -> list[str]:
    """The allowed texts that the document does not hold."""
    return [each for each in allowed if not any(True for _ in _spans(document, each))]
