"""Trains a WordPiece vocabulary on text, and loads one.

    python -m tfrecords.vocabulary --input 'text/*.txt' --vocab_size 8192 --output vocab.txt

The file has a token a line, its id the line's number from 0: [PAD], [UNK], [CLS], [SEP], [MASK],
the learned pieces, then [unused*] entries up to a multiple of 64.
"""

import collections
import dataclasses
import functools
import hashlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import tokenizers
from absl import flags

from tfrecords import command, corpus, files, text_flags
from tfrecords.errors import UserError

PAD, UNKNOWN, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL_TOKENS = (PAD, UNKNOWN, CLS, SEP, MASK)
CONTINUATION = "##"

_SIZE_MULTIPLE = 64
_MAX_ALPHABET = 1000
# No text is cut into them. Published vocabularies have <S> and <T> beside BERT's own.
_CONTROL = re.compile(r"\[.+\]|<.+>")
# ASCII's alone: U+2028 and its like are word pieces of some vocabularies.
_BLANKS = " \t\r\f\v"

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "input", None, "Text: files, folders and globs, separated by commas.", required=True,
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_string("output", None, "The file to write.", required=True, flag_values=FLAGS)
flags.DEFINE_integer(
    "vocab_size", 8192, "Entries, special ones included; rounded up to a multiple of 64.",
    lower_bound=_SIZE_MULTIPLE, flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_bool("lower_case", True, "Lower-case the text and strip accents.", flag_values=FLAGS)
text_flags.define(FLAGS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """A WordPiece vocabulary.

    Attributes:
        tokens: the token of each id.
        content: the bytes of its file.
        path: where it came from, for messages.

    Raises:
        UserError: a token occurs twice or is empty, a special token is missing, there is no other
            token, or [PAD] is not id 0, the value that fills rows up.

    Example:
        >>> Vocabulary.load("vocab.txt").ids["[MASK]"]
        4
    """

    tokens: tuple[str, ...]
    content: bytes
    path: str = "vocabulary"

    def __post_init__(self) -> None:
        first: dict[str, int] = {}
        for index, token in enumerate(self.tokens):
            if not token:
                raise UserError(
                    f"{self.path}: line {index + 1} is empty; each line is an id, so expected a "
                    "token; take the file as it was published, or fill in [unused*] there"
                )
            if first.setdefault(token, index) != index:
                raise UserError(
                    f"{self.path}: {token!r} is on lines {first[token] + 1} and {index + 1}; "
                    "a token may occur once; remove one"
                )
        missing = [token for token in SPECIAL_TOKENS if token not in first]
        if missing:
            raise UserError(
                f"{self.path}: {', '.join(missing)} missing; a BERT vocabulary has "
                f"{', '.join(SPECIAL_TOKENS)}; is it the right file?"
            )
        if not len(self.replacements):
            raise UserError(f"{self.path}: no word pieces beside the special tokens; add some")
        if first[PAD] != 0:
            raise UserError(
                f"{self.path}: {PAD} is on line {first[PAD] + 1}; it must be on line 1, since "
                "rows are filled up with id 0"
            )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Vocabulary":
        """Reads a vocabulary file.

        Raises:
            UserError: the file is missing, is no UTF-8 or is no BERT vocabulary.
        """
        name = os.fspath(path)
        try:
            content = files.read_bytes(name)
            text = content.decode("utf-8")
        except FileNotFoundError as error:
            raise UserError(
                f"no vocabulary at {name}; train one with python -m tfrecords.vocabulary"
            ) from error
        except UnicodeDecodeError as error:
            raise UserError(f"{name} is no UTF-8 text ({error}); is it a vocabulary?") from error
        tokens = text.removesuffix("\n").split("\n")
        return cls(
            tokens=tuple(token.strip(_BLANKS) for token in tokens), content=content, path=name
        )

    def __len__(self) -> int:
        return len(self.tokens)

    @functools.cached_property
    def ids(self) -> dict[str, int]:
        """The id of each token."""
        return {token: index for index, token in enumerate(self.tokens)}

    @functools.cached_property
    def sha256(self) -> str:
        """The SHA-256 of the file's bytes, in hexadecimal."""
        return hashlib.sha256(self.content).hexdigest()

    @functools.cached_property
    def continues_word(self) -> np.ndarray:
        """Whether each id is, bool [size], a ``##`` piece, which continues the word before it."""
        return np.array([token.startswith(CONTINUATION) for token in self.tokens])

    @functools.cached_property
    def replacements(self) -> np.ndarray:
        """int32 [n]: ids that may replace a token at random: neither special nor [unused*]."""
        reserved = {token for token in self.tokens if token.startswith("[unused")}
        reserved.update(SPECIAL_TOKENS)
        return np.array(
            [index for index, token in enumerate(self.tokens) if token not in reserved], np.int32
        )

    @functools.cached_property
    def word_pieces(self) -> tuple[str, ...]:
        """The tokens that text is cut into: all but [CLS], [unused7], <S> and their like."""
        return tuple(token for token in self.tokens if not _CONTROL.fullmatch(token))

    @functools.cached_property
    def capitalized(self) -> tuple[str, ...]:
        """The word pieces with a capital letter, as only cased vocabularies have them."""
        return tuple(piece for piece in self.word_pieces if piece != piece.lower())


def casing_warning(vocabulary: Vocabulary, lower_case: bool) -> str | None:
    """Why a vocabulary may not be that of a text; None where casing says nothing against it.

    Args:
        vocabulary: the word pieces.
        lower_case: whether the text is lower-cased.
    """
    cased = vocabulary.capitalized
    if lower_case and cased:
        return (
            f"{vocabulary.path} has word pieces with capitals, such as {cased[0]!r}, and the text "
            "is lower-cased: if it is a cased vocabulary, give --nolower_case"
        )
    # Of a script without capitals there is nothing to lower-case.
    has_case = any(piece != piece.upper() for piece in vocabulary.word_pieces)
    if not lower_case and not cased and has_case:
        return (
            f"{vocabulary.path} has no word piece with a capital, and with --nolower_case every "
            "word with one becomes [UNK]: if it is an uncased vocabulary, leave --nolower_case out"
        )
    return None


def train(
    text_files: Sequence[corpus.TextFile],
    vocab_size: int,
    lower_case: bool,
    text_format: corpus.TextFormat | None = None,
) -> Vocabulary:
    """Learns a WordPiece vocabulary with Hugging Face `tokenizers`.

    Args:
        text_files: the corpus.
        vocab_size: entries, special ones included; rounded up to a multiple of 64.
        lower_case: whether to lower-case and strip accents.
        text_format: what of the files is text; by default all of it.

    Returns:
        The vocabulary; the same for the same text, in any process.

    Raises:
        UserError: the corpus has no text, or more characters than `vocab_size` has room for.
    """
    normalizer = tokenizers.normalizers.BertNormalizer(lowercase=lower_case)
    lines = functools.partial(_lines, text_files, text_format)
    alphabet, excluded = _alphabet(lines("counting characters"), normalizer)
    if not alphabet:
        raise UserError("the files of --input hold no text; give files with one sentence a line")
    # The trainer numbers characters in the order of a hash table and breaks ties between merges
    # by those numbers. Naming every character up front makes its result a function of the text.
    reserved = [*SPECIAL_TOKENS, *alphabet, *(CONTINUATION + char for char in alphabet)]
    if len(reserved) > vocab_size:
        raise UserError(
            f"--vocab_size {vocab_size} has no room for the text's {len(alphabet)} characters, "
            f"each alone and inside a word; give at least {len(reserved)}"
        )
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=reserved, show_progress=False
    )
    table = dict.fromkeys(excluded, " ")
    tokenizer.train_from_iterator(
        (line.translate(table) for line in lines("learning word pieces")), trainer
    )
    learned = tokenizer.get_vocab()
    tokens = sorted(learned, key=learned.__getitem__)
    size = -(-vocab_size // _SIZE_MULTIPLE) * _SIZE_MULTIPLE
    tokens.extend(f"[unused{index}]" for index in range(size - len(tokens)))
    content = "".join(token + "\n" for token in tokens).encode("utf-8")
    return Vocabulary(tokens=tuple(tokens), content=content)


def _alphabet(
    lines: Iterable[str], normalizer: tokenizers.normalizers.Normalizer
) -> tuple[list[str], list[int]]:
    """The most frequent normalised characters, and the code points to leave out of the text."""
    raw: collections.Counter[str] = collections.Counter()
    for line in lines:
        raw.update(line)
    normalized = {char: normalizer.normalize_str(char).replace(" ", "") for char in raw}
    counts: collections.Counter[str] = collections.Counter()
    for char, pieces in normalized.items():
        for piece in pieces:
            counts[piece] += raw[char]
    ranked = sorted(counts, key=lambda char: (-counts[char], char))
    kept = set(ranked[:_MAX_ALPHABET])
    excluded = [ord(char) for char, pieces in normalized.items() if not kept.issuperset(pieces)]
    return sorted(kept), excluded


def _lines(
    text_files: Sequence[corpus.TextFile],
    text_format: corpus.TextFormat | None,
    description: str,
) -> Iterator[str]:
    total = sum(corpus.stored_bytes(file) for file in text_files)
    with command.progress(total=total, desc=description, unit="B", unit_scale=True) as bar:
        for file in text_files:
            for line, num_bytes in corpus.lines(file, text_format):
                bar.update(num_bytes)
                yield line


def body(flag_values: flags.FlagValues) -> None:
    """Trains and writes the vocabulary that the flags ask for."""
    vocabulary = train(
        corpus.find(flag_values.input, [flag_values.output]),
        flag_values.vocab_size,
        flag_values.lower_case,
        text_flags.text_format(flag_values),
    )
    files.write_bytes(flag_values.output, vocabulary.content)
    print(f"{flag_values.output}: {len(vocabulary)} entries, sha256 {vocabulary.sha256[:12]}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; `argv` without the program's name, None for this process's own."""
    return command.run(body, FLAGS, argv)


if __name__ == "__main__":
    sys.exit(main())
