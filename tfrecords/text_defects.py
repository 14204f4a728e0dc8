"""What cannot be text: NUL and bytes that are no UTF-8; counted, and replaced or refused.

The replacement is U+FFFD, which BERT's tokenizer drops as it drops NUL.
"""

import dataclasses
import re

from tfrecords.errors import UserError

_REPLACEMENT = "\ufffd"
_REPLACEMENT_BYTES = _REPLACEMENT.encode()
_ESCAPED = re.compile("[\0\ud800-\udfff]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replaced:
    """How much of a text was replaced.

    Attributes:
        nuls: NUL characters.
        invalid: sequences that are no UTF-8; in JSON also surrogates without their other half.
        first: the file and line of the first one, "" where there is none.
    """

    nuls: int = 0
    invalid: int = 0
    first: str = ""

    def __add__(self, later: "Replaced") -> "Replaced":
        return Replaced(
            nuls=self.nuls + later.nuls,
            invalid=self.invalid + later.invalid,
            first=self.first or later.first,
        )

    def __bool__(self) -> bool:
        return bool(self.nuls or self.invalid)

    def __str__(self) -> str:
        return (
            f"{self.nuls:,} NUL characters and {self.invalid:,} invalid UTF-8 sequences were "
            f"replaced, first in {self.first}"
        )


def decode(content: bytes) -> str:
    r"""UTF-8 to text, with U+FFFD for each NUL and each invalid sequence.

    Example:
        >>> ascii(decode(bytes([99, 97, 102, 0xE9, 0])))
        "'caf\\ufffd\\ufffd'"
    """
    return content.decode("utf-8", errors="replace").replace("\0", _REPLACEMENT)


def mend(text: str) -> str:
    """Text out of JSON with U+FFFD for each NUL and lone surrogate that its escapes made."""
    return _ESCAPED.sub(_REPLACEMENT, text) if _defects(text) else text


class Defects:
    """Counts the defects of one file.

    Args:
        path: the file.
        strict: whether to refuse the first one.
    """

    def __init__(self, path: str, strict: bool) -> None:
        self._path = path
        self._strict = strict
        self._nuls = self._invalid = 0
        self._first_line: int | None = None

    @property
    def replaced(self) -> Replaced:
        """Those found so far."""
        first = "" if self._first_line is None else f"{self._path} line {self._first_line}"
        return Replaced(nuls=self._nuls, invalid=self._invalid, first=first)

    def in_bytes(self, content: bytes, line: int, offset: int) -> None:
        """Counts those of a run of whole lines that begins on `line`, at byte `offset`.

        Raises:
            UserError: there is one, and the file is read strictly.
        """
        nuls, invalid = content.count(b"\0"), 0
        first = content.find(b"\0") if nuls else len(content)
        if not content.isascii():
            try:
                content.decode("utf-8")
            except UnicodeDecodeError as error:
                # Whole lines, so that no sequence is cut: a line feed is part of none.
                text = content.decode("utf-8", errors="replace")
                invalid = text.count(_REPLACEMENT) - content.count(_REPLACEMENT_BYTES)
                first = min(first, error.start)
        if nuls or invalid:
            what = "a NUL character" if content[first] == 0 else "invalid UTF-8"
            self._note(nuls, invalid, what, line + content.count(b"\n", 0, first), offset + first)

    def in_text(self, text: str, line: int, offset: int) -> None:
        """Counts those that escapes of JSON's put in the text of the record at `offset`.

        Raises:
            UserError: there is one, and the file is read strictly.
        """
        if found := _defects(text):
            what = "an escaped NUL character" if found[0] else "half an escaped surrogate pair"
            self._note(*found, what, line, offset)

    def _note(self, nuls: int, invalid: int, what: str, line: int, offset: int) -> None:
        if self._strict:
            raise UserError(
                f"{self._path} line {line} has {what} (byte {offset} of the file); mend it, or "
                "leave --strict out to have U+FFFD in its place"
            )
        self._nuls += nuls
        self._invalid += invalid
        self._first_line = min(line, self._first_line or line)


def _defects(text: str) -> tuple[int, int] | None:
    """NUL characters and lone surrogates, None where there is neither."""
    nuls, surrogates = text.count("\0"), 0
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            surrogates = len(_ESCAPED.findall(text)) - nuls
    return (nuls, surrogates) if nuls or surrogates else None
