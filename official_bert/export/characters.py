"""What BERT's cleaning does to every character of Unicode, as tables that a graph can look up.

The tables are read off `tfrecords.tokenization.words`, which prepared the training text, so that
they hold its Unicode version and not that of the library that later runs the graph. All of its
steps treat a character by itself, but for two. A capital sigma is lower-cased by its neighbours;
`SigmaContext` says what each character is to it. Lower-casing also puts combining marks into
canonical order, which shows only in marks that it does not strip: the 25 spacing marks that have
a combining class. Two of these in one word, of different classes and in the wrong order, keep
their order here; a vocabulary without such marks makes the word [UNK] either way.
"""

import dataclasses
import enum
import functools
import itertools

import numpy as np

from tfrecords import tokenization

CODE_POINTS = 0x110000
PAGE = 256
CAPITAL_SIGMA, FINAL_SIGMA = 0x3A3, 0x3C2
# In a row of `Expansions`: the character itself, and no character.
SELF, NONE = -1, -2

# Outside of these ranges there are surrogates, which text cannot hold, planes that Unicode has
# not begun to fill, and private use: all stay as they are.
_RANGES = (range(0xD800), range(0xE000, 0x40000), range(0xE0000, 0xE1000))
# A private-use character: cleaning leaves it alone, and it has no case.
_DELIMITER = "\ue000"


class SigmaContext(enum.IntEnum):
    """What a character is to a capital sigma beside it."""

    SKIPPED = 0
    CASED = 1
    OTHER = 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paged:
    """A number for every code point; pages of `PAGE` that are equal are kept once.

    Attributes:
        pages: int32 [CODE_POINTS / PAGE], the row in `values` of each page.
        values: int32 [rows * PAGE].
    """

    pages: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, numbers: np.ndarray) -> "Paged":
        """Folds int [CODE_POINTS] numbers."""
        values, pages = np.unique(numbers.reshape(-1, PAGE), axis=0, return_inverse=True)
        return cls(
            pages=pages.astype(np.int32).reshape(-1), values=values.astype(np.int32).reshape(-1)
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Expansions:
    """What becomes of each character, spaces around punctuation and ideographs included.

    Attributes:
        kinds: the row of each code point in `rows`.
        rows: int32 [kinds, width], code points, `SELF` or, to the right, `NONE`.
    """

    kinds: Paged
    rows: np.ndarray


@functools.cache
def expansions(lower_case: bool) -> Expansions:
    """The table of a casing; a capital sigma stands for one that does not end a word.

    Example:
        >>> expansions(lower_case=True).rows.shape[1]
        3
    """
    rows: dict[tuple[int, ...], int] = {(SELF,): 0}
    kinds = np.zeros(CODE_POINTS, np.int32)
    for char, becomes in _expanded(lower_case).items():
        row = tuple(SELF if each == char else ord(each) for each in becomes)
        kinds[ord(char)] = rows.setdefault(row, len(rows))
    width = max(map(len, rows))
    filled = [row + (NONE,) * (width - len(row)) for row in rows]
    return Expansions(kinds=Paged.of(kinds), rows=np.array(filled, np.int32))


@functools.cache
def sigma_contexts() -> Paged:
    """The `SigmaContext` of each code point, read off Python's own `str.lower`.

    What cleaning drops is gone before words are lower-cased, so it counts as skipped.
    """
    cleaned = _expanded(False)
    contexts = np.full(CODE_POINTS, SigmaContext.OTHER, np.int32)
    for char in _characters():
        becomes = cleaned.get(char, char)
        if becomes == " ":
            continue
        after_cased = not becomes or _is_final(f"A{char}\u03a3")
        after_uncased = bool(becomes) and _is_final(f"1{char}\u03a3")
        if after_uncased:
            contexts[ord(char)] = SigmaContext.CASED
        elif after_cased:
            contexts[ord(char)] = SigmaContext.SKIPPED
    return Paged.of(contexts)


def _is_final(word: str) -> bool:
    return word.lower().endswith(chr(FINAL_SIGMA))


def _characters() -> list[str]:
    codes = itertools.chain.from_iterable(_RANGES)
    return [char for char in map(chr, codes) if char != _DELIMITER]


@functools.cache
def _expanded(lower_case: bool) -> dict[str, str]:
    """The characters that do not stay as they are, and what each becomes between two others."""
    characters = _characters()
    line = _DELIMITER.join(["", *characters, ""])
    becomes = " ".join(tokenization.words(line, lower_case)).split(_DELIMITER)[1:-1]
    pairs = zip(characters, becomes, strict=True)
    return {char: expansion for char, expansion in pairs if expansion != char}
