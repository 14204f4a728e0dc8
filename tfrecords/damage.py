"""Finds the damaged records of a TFRecord file.

A record is its length (8 bytes, little-endian), the masked CRC-32C of the length, the data and the
masked CRC-32C of the data (tensorflow/core/lib/io/record_writer.h). TensorFlow's readers stop at
the first damage and say where, but not in which file, nor at which record, nor what lies beyond.
A GZIP file is one stream around all of this (several, one after another, are one too); TensorFlow
takes one that ends early between two records for whole.
"""

import dataclasses
import struct
import zlib

import numpy as np

from tfrecords import schema

_HEADER, _FOOTER = 12, 4
RECORD_OVERHEAD = _HEADER + _FOOTER
_PIECE = 1 << 16
_GZIP_FORMAT = zlib.MAX_WBITS | 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Damage:
    """A record that cannot be read, and those that cannot be found because of it.

    Attributes:
        record: its number in the file, from 0.
        offset: the byte at which it begins, in the decompressed file where it is compressed.
        reason: what is wrong with it.
        count: the records lost, it and those that follow.
    """

    record: int
    offset: int
    reason: str
    count: int = 1


class Inflater:
    """Decompresses a GZIP file piece by piece, up to its first damage.

    Attributes:
        num_bytes: what was decompressed so far.
    """

    def __init__(self) -> None:
        self.num_bytes = 0
        self._stream = zlib.decompressobj(_GZIP_FORMAT)
        self._is_begun = False
        self._error: zlib.error | None = None

    def feed(self, piece: bytes) -> bytes:
        """What the next bytes of the file add, to the very byte before damage."""
        parts: list[bytes] = []
        while piece and self._error is None:
            if self._stream.eof:
                self._stream = zlib.decompressobj(_GZIP_FORMAT)
            self._is_begun = True
            before = self._stream.copy()
            try:
                parts.append(self._stream.decompress(piece))
                piece = self._stream.unused_data
            except zlib.error as error:
                self._error = error
                parts += _up_to_error(before, piece)
        result = b"".join(parts)
        self.num_bytes += len(result)
        return result

    def problem(self) -> str | None:
        """What is wrong with the file, of which all bytes were fed."""
        if self._error is not None:
            return f"its GZIP stream is corrupted ({self._error})"
        if self._is_begun and not self._stream.eof:
            return "its GZIP stream ends early"
        return None


def inflated(content: bytes, compression: str) -> tuple[bytes, str | None]:
    """As much as can be decompressed of a file, and what is wrong with its compression.

    Args:
        content: the bytes of the file.
        compression: "" or "GZIP".
    """
    if compression != schema.GZIP:
        return content, None
    inflater = Inflater()
    result = bytearray()
    for begin in range(0, len(content), _PIECE):
        result += inflater.feed(content[begin : begin + _PIECE])
    return bytes(result), inflater.problem()


def decompressed(content: bytes, compression: str) -> bytes:
    """As much as can be decompressed of a file; never raises for damage.

    Args:
        content: the bytes of the file.
        compression: "" or "GZIP".

    Example:
        >>> decompressed(gzip.compress(b"records")[:-1], "GZIP")
        b'records'
    """
    return inflated(content, compression)[0]


def salvage(content: bytes, num_records: int | None) -> tuple[list[bytes | None], list[Damage]]:
    """Reads what can be read of a TFRecord file.

    Args:
        content: the bytes of the file, decompressed.
        num_records: how many records it should hold. Beyond a damaged length no record can be
            found again, so all that follow are lost too. None means as many as its bytes make up,
            of which those after a damaged length cannot be counted.

    Returns:
        For each record its data, None where it is damaged; and the damage.
    """
    offsets, lengths = _walk(content, num_records)
    if num_records is None:
        end = int(offsets[-1] + lengths[-1]) + _HEADER + _FOOTER if len(offsets) else 0
        num_records = len(offsets) + (end < len(content))
    data = np.frombuffer(content, np.uint8)
    sound = _matches(data, offsets, np.full(len(offsets), 8), offsets + 8)
    reach = len(offsets) if sound.all() else int(np.argmin(sound))
    begins, lengths = offsets[:reach] + _HEADER, lengths[:reach]
    good = _matches(data, begins, lengths, begins + lengths)
    records: list[bytes | None] = [
        content[begin : begin + length] if fine else None
        for begin, length, fine in zip(begins.tolist(), lengths.tolist(), good, strict=True)
    ]
    damages = [
        Damage(record=number, offset=int(offsets[number]), reason="its data fails its CRC")
        for number in np.flatnonzero(~good).tolist()
    ]
    lost = num_records - reach
    if lost:
        end = int(begins[-1] + lengths[-1]) + _FOOTER if reach else 0
        reason = "its length fails its CRC"
        # A length that is sound, or not whole, leads beyond the file's end.
        if reach == len(offsets) and (end + _HEADER > len(content) or _is_length_sound(data, end)):
            reason = "the file ends within it"
        damages.append(Damage(record=reach, offset=end, reason=reason, count=lost))
    return records + [None] * lost, damages


def extent(records: list[bytes | None]) -> int:
    """The bytes that sound records take in a file, their lengths and checksums included."""
    return sum(len(record) + RECORD_OVERHEAD for record in records if record is not None)


def _up_to_error(stream: "zlib._Decompress", piece: bytes) -> list[bytes]:
    """What a stream gives for the bytes of `piece` before the one that it cannot take."""
    parts: list[bytes] = []
    try:
        for at in range(len(piece)):
            parts.append(stream.decompress(piece[at : at + 1]))
    except zlib.error:
        return parts
    return parts


def _walk(content: bytes, num_records: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Follows the lengths from record to record while they stay within the file."""
    offsets: list[int] = []
    lengths: list[int] = []
    at = 0
    most = len(content) if num_records is None else num_records
    while len(offsets) < most and at + _HEADER + _FOOTER <= len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        following = at + _HEADER + length + _FOOTER
        if following > len(content):
            break
        offsets.append(at)
        lengths.append(length)
        at = following
    return np.array(offsets, np.int64), np.array(lengths, np.int64)


def _is_length_sound(data: np.ndarray, begin: int) -> bool:
    begins = np.array([begin])
    return bool(_matches(data, begins, np.array([8]), begins + 8)[0])


def _matches(
    data: np.ndarray, begins: np.ndarray, lengths: np.ndarray, checksums: np.ndarray
) -> np.ndarray:
    """Whether each span's masked CRC-32C is the one stored at `checksums`."""
    crc = crc32c(data, begins, lengths)
    masked = ((crc >> np.uint32(15)) | (crc << np.uint32(17))) + np.uint32(0xA282EAD8)
    stored = np.zeros(len(begins), np.uint32)
    for place in range(4):
        stored |= data[checksums + place].astype(np.uint32) << np.uint32(8 * place)
    return masked == stored


def crc32c(data: np.ndarray, begins: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The CRC-32C (Castagnoli) of many spans of `data` at once: uint32 [spans].

    Example:
        >>> hex(crc32c(np.frombuffer(b"123456789", np.uint8), np.array([0]), np.array([9]))[0])
        '0xe3069283'
    """
    longest_first = np.argsort(-lengths, kind="stable")
    begins, sizes = begins[longest_first], lengths[longest_first]
    state = np.full(len(begins), 0xFFFFFFFF, np.uint32)
    active = len(begins)
    for column in range(int(sizes.max(initial=0))):
        while sizes[active - 1] <= column:
            active -= 1
        index = (state[:active] ^ data[begins[:active] + column]) & np.uint32(0xFF)
        state[:active] = _TABLE[index] ^ (state[:active] >> np.uint32(8))
    result = np.empty_like(state)
    result[longest_first] = state ^ np.uint32(0xFFFFFFFF)
    return result


def _table() -> np.ndarray:
    value = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        value = (value >> np.uint32(1)) ^ np.where(value & 1, np.uint32(0x82F63B78), np.uint32(0))
    return value


_TABLE = _table()
