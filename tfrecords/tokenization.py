"""Lines of text to WordPiece ids, equal to those of BERT's reference tokenizer.

The reference is `FullTokenizer` of official/nlp/tools/tokenization.py (from google-research/bert).
`tensorflow_text.FastBertTokenizer` is ten to thirty times as fast and gives the same ids for all
but a few characters (compatibility forms that it folds, control characters that it replaces) and
over-long words; lines that hold any of those take `encode_exactly`, the reference's algorithm.
Text never yields a special token: ``[SEP]`` is a bracket, a word and a bracket.
"""

import functools
import re
import unicodedata
from collections.abc import Sequence

import numpy as np
import tensorflow as tf
import tensorflow_text as tf_text

from tfrecords.vocabulary import CONTINUATION, UNKNOWN, Vocabulary

# Characters on which the fast tokenizer and the reference agree, cased and uncased: ASCII, the
# Latin, Greek and Cyrillic letters, common punctuation, symbols, Hebrew letters and CJK ideographs
# that have no compatibility folding and no context-dependent case.
AGREED = (
    "\t\n\r -~\xa0-\xa7\xa9\xab\xac\xae\xb0\xb1\xb6\xb7\xbb\xbf-\xde\xe0-\u0131\u0134-\u013e"
    "\u0141-\u0148\u014a-\u017e\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a4-\u03c1\u03c3-\u03ce"
    "\u0400-\u0482\u048a-\u052f\u05d0-\u05ea\u1e00-\u1e99\u1ea0-\u1eff\u2010\u2012-\u2016"
    "\u2018-\u2023\u2027\u2030-\u2032\u2035\u2038-\u203b\u203d\u2042\u2044\u20a0-\u20a7\u20a9-\u20bf"
    "\u2190-\u222b\u222e\u2231-\u22ff\u2500-\u25ff\u3001-\u3003\u3005-\u3017\u4e00-\u9fa5"
)
MAX_FAST_WORD = 100
MAX_WORD = 400

_LEAVE_TO_REFERENCE = re.compile(rf"[^{AGREED}]|\S{{{MAX_FAST_WORD + 1}}}")
_BATCH = 4096


class Tokenizer:
    """Turns lines into ids of a vocabulary.

    Args:
        vocabulary: the word pieces.
        lower_case: whether to lower-case and strip accents first.

    Example:
        >>> ids, lengths = Tokenizer(vocabulary, lower_case=True).encode(["Hello [SEP]", ""])
        >>> lengths
        array([4, 0])
    """

    def __init__(self, vocabulary: Vocabulary, lower_case: bool) -> None:
        self._ids = vocabulary.ids
        self._unknown = vocabulary.ids[UNKNOWN]
        self._lower_case = lower_case
        self._longest = max(len(token) for token in vocabulary.tokens)
        self._pieces = functools.lru_cache(maxsize=1 << 16)(self._word_to_ids)
        self._fast = tf_text.FastBertTokenizer(
            list(vocabulary.tokens),
            token_out_type=tf.int32,
            # In bytes; an agreed character has at most 3.
            max_bytes_per_word=3 * MAX_FAST_WORD,
            lower_case_nfd_strip_accents=lower_case,
        )

    def encode(self, lines: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of `lines`.

        Args:
            lines: N lines of text.

        Returns:
            int32 [sum(lengths)], the ids of all lines end to end, and int64 [N], their lengths.
        """
        batches = [self._encode(lines[at : at + _BATCH]) for at in range(0, len(lines), _BATCH)]
        if not batches:
            return np.zeros(0, np.int32), np.zeros(0, np.int64)
        ids, lengths = zip(*batches, strict=True)
        return np.concatenate(ids), np.concatenate(lengths)

    def _encode(self, lines: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        exact = [index for index, line in enumerate(lines) if _LEAVE_TO_REFERENCE.search(line)]
        fast = list(lines)
        for index in exact:
            fast[index] = ""
        ragged = self._fast.tokenize(fast)
        ids, splits = ragged.flat_values.numpy(), ragged.row_splits.numpy()
        lengths = np.diff(splits)
        if not exact:
            return ids, lengths
        pieces = []
        begin = 0
        for index in exact:
            own = np.array(self.encode_exactly(lines[index]), np.int32)
            pieces += [ids[begin : splits[index]], own]
            begin = splits[index]
            lengths[index] = len(own)
        pieces.append(ids[begin:])
        return np.concatenate(pieces), lengths

    def encode_exactly(self, line: str) -> list[int]:
        """The ids of one line, by the reference's own steps."""
        return [index for word in words(line, self._lower_case) for index in self._pieces(word)]

    def _word_to_ids(self, word: str) -> tuple[int, ...]:
        """Greedy longest match from the left; one piece that is not there spoils the word."""
        if len(word) > MAX_WORD:
            return (self._unknown,)
        result = []
        start = 0
        while start < len(word):
            prefix = CONTINUATION if start else ""
            for end in range(min(len(word), start + self._longest), start, -1):
                index = self._ids.get(prefix + word[start:end])
                if index is not None:
                    result.append(index)
                    start = end
                    break
            else:
                return (self._unknown,)
        return tuple(result)


def words(line: str, lower_case: bool) -> list[str]:
    """The normalised words, punctuation marks and ideographs of a line, before WordPiece.

    Example:
        >>> words("Caf\u00e9, no.", lower_case=True)
        ['cafe', ',', 'no', '.']
    """
    spaced = line.translate(_CLEAN).split()
    if lower_case:
        spaced = [_strip_accents(word.lower()) for word in spaced]
    return " ".join(spaced).translate(_PUNCTUATION).split()


class _Clean(dict):
    """Maps a code point as BERT cleans text: drops controls, spaces out ideographs."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        category = unicodedata.category(char)
        if char in "\t\n\r" or category == "Zs":
            result = " "
        elif code in (0, 0xFFFD) or category in ("Cc", "Cf"):
            result = ""
        elif _is_ideograph(code):
            result = f" {char} "
        else:
            result = char
        self[code] = result
        return result


class _Punctuation(dict):
    """Maps a code point to itself, with spaces around it where BERT sees punctuation."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        ascii_symbol = 33 <= code <= 126 and not char.isalnum()
        punctuation = ascii_symbol or unicodedata.category(char).startswith("P")
        self[code] = result = f" {char} " if punctuation else char
        return result


_CLEAN = _Clean()
_PUNCTUATION = _Punctuation()
_IDEOGRAPHS = (
    (0x4E00, 0x9FFF),
    (0x3400, 0x4DBF),
    (0x20000, 0x2A6DF),
    (0x2A700, 0x2B73F),
    (0x2B740, 0x2B81F),
    (0x2B820, 0x2CEAF),
    (0xF900, 0xFAFF),
    (0x2F800, 0x2FA1F),
)


def _is_ideograph(code: int) -> bool:
    return any(first <= code <= last for first, last in _IDEOGRAPHS)


def _strip_accents(word: str) -> str:
    return "".join(
        char for char in unicodedata.normalize("NFD", word) if unicodedata.category(char) != "Mn"
    )
