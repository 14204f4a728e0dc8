"""Rows of text as NumPy arrays: their order and their masks, both from a seed."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import zipfile
from typing import NamedTuple

import numpy as np

from benchmarks.large_batch_settings import ModelSizes
from tfrecords.errors import UserError

MASK_SHARE, KEEP_SHARE = 0.8, 0.1
# Ids below it are special: [PAD], [UNK], [CLS], [SEP], [MASK].
FIRST_PIECE, MASK_ID = 5, 4
# Masks are drawn for so many examples at a time, wherever the batches begin.
_BLOCK = 64
_ORDER, _MASKS, _HELD_OUT = range(3)


class Rows(NamedTuple):
    """Masked examples.

    Attributes:
        word_ids: int32 [rows, length], what the model sees.
        positions: int32 [rows, masked], ascending.
        ids: int32 [rows, masked], what stood there.
        weights: float32 [rows, masked].
    """

    word_ids: np.ndarray
    positions: np.ndarray
    ids: np.ndarray
    weights: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """The rows of a corpus.

    Attributes:
        train: uint16 [rows, length]: [CLS], the text's next tokens, [SEP].
        validation: the same, by which settings are chosen.
        test: the same, which is reported.
        vocab_size: ids are below it.
        source: what the text is, in words.
        sha256: of the rows.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    vocab_size: int
    source: str
    sha256: str

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Text:
        """Reads what `benchmarks.large_batch_corpus` wrote.

        Raises:
            UserError: it is no such file.
        """
        digest = hashlib.sha256()
        try:
            with np.load(path, allow_pickle=False) as arrays:
                parts = {name: arrays[name] for name in ("train", "validation", "test")}
                vocab_size, source = int(arrays["vocab_size"]), str(arrays["source"])
        except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
            raise UserError(
                f"{os.fspath(path)}: {error}; expected what benchmarks.large_batch_corpus writes: "
                "remove it, or give another --data"
            ) from error
        for part in parts.values():
            digest.update(repr(part.shape).encode() + part.tobytes())
        return cls(**parts, vocab_size=vocab_size, source=source, sha256=digest.hexdigest()[:16])

    def examples(self, sizes: ModelSizes, seed: int, begin: int, count: int) -> Rows:
        """Examples `begin` to `begin + count` of a run: epochs laid end to end.

        Each epoch has its own order, without replacement, and its own masks; neither depends on
        the batch.
        """
        parts = []
        for block in range(begin // _BLOCK, -(-(begin + count) // _BLOCK)):
            places = np.arange(block * _BLOCK, (block + 1) * _BLOCK)
            random = np.random.default_rng([seed, _MASKS, block])
            rows = self.train[self._in_order(seed, places)]
            parts.append(masked(rows, sizes, self.vocab_size, random))
        whole = Rows(*(np.concatenate(each) for each in zip(*parts, strict=True)))
        offset = begin % _BLOCK
        return Rows(*(each[offset : offset + count] for each in whole))

    def _in_order(self, seed: int, places: np.ndarray) -> np.ndarray:
        epochs, within = np.divmod(places, len(self.train))
        orders = {int(epoch): _order(len(self.train), seed, int(epoch)) for epoch in set(epochs)}
        return np.array(
            [orders[int(epoch)][place] for epoch, place in zip(epochs, within, strict=True)]
        )

    def held_out(self, sizes: ModelSizes, part: str) -> Rows:
        """The rows of `validation` or `test` with masks that never change."""
        random = np.random.default_rng([_HELD_OUT, part == "test"])
        return masked(getattr(self, part), sizes, self.vocab_size, random)

    def frequency_loss(self, sizes: ModelSizes, part: str) -> float:
        """The loss of a model that knows no more than how frequent each token is.

        The mean of -ln((n + 1) / (N + vocab_size)) over the masked positions of `held_out`, n the
        count of what stood there among the N tokens of the training rows. What is not below it has
        learnt nothing from what surrounds a token.
        """
        counts = 1 + np.bincount(self.train[:, 1:-1].ravel(), minlength=self.vocab_size)
        return float(-np.log(counts / counts.sum())[self.held_out(sizes, part).ids].mean())


_orders: dict[tuple[int, int, int], np.ndarray] = {}


def _order(count: int, seed: int, epoch: int) -> np.ndarray:
    """The permutation of an epoch; the last few are kept."""
    key = (count, seed, epoch)
    if key not in _orders:
        while len(_orders) > 2:
            del _orders[next(iter(_orders))]
        _orders[key] = np.random.default_rng([seed, _ORDER, epoch]).permutation(count)
    return _orders[key]


def masked(
    rows: np.ndarray, sizes: ModelSizes, vocab_size: int, random: np.random.Generator
) -> Rows:
    """Masks as many positions of each row as are predicted, as BERT does: 80, 10 and 10 %.

    Args:
        rows: ids [rows, length], special tokens at both ends.
        sizes: how many positions.
        vocab_size: random tokens are below it.
        random: the source of all choices.
    """
    shape = (len(rows), sizes.max_predictions)
    order = random.random((len(rows), rows.shape[1] - 2)).argpartition(shape[1] - 1, axis=1)
    positions = np.sort(order[:, : shape[1]] + 1, axis=1)
    ids = np.take_along_axis(rows, positions, 1).astype(np.int32)
    action = random.random(shape)
    shown = np.where(
        action < MASK_SHARE + KEEP_SHARE, ids, random.integers(FIRST_PIECE, vocab_size, shape)
    )
    word_ids = rows.astype(np.int32)
    np.put_along_axis(word_ids, positions, np.where(action < MASK_SHARE, MASK_ID, shown), 1)
    return Rows(word_ids, positions.astype(np.int32), ids, np.ones(shape, np.float32))
