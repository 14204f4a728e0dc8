"""Finds the damaged records of a TFRecord file.

A record is its length (8 bytes, little-endian), the masked CRC-32C of the length, the data and the
masked CRC-32C of the data (tensorflow/core/lib/io/record_writer.h). TensorFlow's readers stop at
the first damage and say where, but not in which file, nor at which record, nor what lies beyond.
"""

import dataclasses
import struct

import numpy as np

_HEADER, _FOOTER = 12, 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Damage:
    """A record that cannot be read, and those that cannot be found because of it.

    Attributes:
        record: its number in the file, from 0.
        offset: the byte at which it begins.
        reason: what is wrong with it.
        count: the records lost, it and those that follow.
    """

    record: int
    offset: int
    reason: str
    count: int = 1


def salvage(content: bytes, num_records: int) -> tuple[list[bytes | None], list[Damage]]:
    """Reads what can be read of a TFRecord file.

    Args:
        content: the bytes of the file.
        num_records: how many records it should hold. Beyond a damaged length no record can be
            found again, so all that follow are lost too.

    Returns:
        For each record its data, None where it is damaged; and the damage.
    """
    offsets, lengths = _walk(content, num_records)
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
        reason = "its length fails its CRC" if reach < len(offsets) else "the file ends within it"
        damages.append(Damage(record=reach, offset=end, reason=reason, count=lost))
    return records + [None] * lost, damages


def extent(records: list[bytes | None]) -> int:
    """The bytes that sound records take in a file, their lengths and checksums included."""
    return sum(_HEADER + len(record) + _FOOTER for record in records if record is not None)


def _walk(content: bytes, num_records: int) -> tuple[np.ndarray, np.ndarray]:
    """Follows the lengths from record to record while they stay within the file."""
    offsets: list[int] = []
    lengths: list[int] = []
    at = 0
    while len(offsets) < num_records and at + _HEADER + _FOOTER <= len(content):
        (length,) = struct.unpack_from("<Q", content, at)
        following = at + _HEADER + length + _FOOTER
        if following > len(content):
            break
        offsets.append(at)
        lengths.append(length)
        at = following
    return np.array(offsets, np.int64), np.array(lengths, np.int64)


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
