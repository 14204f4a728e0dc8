"""The rows of both SQuAD files of a finetuning: cut once for all runs of a sweep."""

import dataclasses
from typing import Any, TypeAlias

from official.nlp.data import question_answering_dataloader

from official_bert import squad
from tfrecords import files

DataConfig: TypeAlias = question_answering_dataloader.QADataConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class SquadRows:
    """What two files became.

    Attributes:
        train: the rows to train on.
        skipped: ids of questions that are left out of them.
        dev: the rows to predict on.
        examples: of `dev`, as `squad_answers` takes them.
        features: likewise.
    """

    train: squad.Windows
    skipped: tuple[str, ...]
    dev: squad.Windows
    examples: list[Any]
    features: list[Any]


class Cutter:
    """Cuts rows of files, and keeps the last for who asks for the same again.

    Full-size files take minutes, which the runs of a sweep, alike but for rate and seed, need
    only once.
    """

    def __init__(self) -> None:
        self._kept: tuple[Any, SquadRows] | None = None

    def __call__(
        self, pair: tuple[squad.Squad, squad.Squad], train_data: DataConfig, dev_data: DataConfig
    ) -> SquadRows:
        """The rows of a pair of files.

        Args:
            pair: the files to train on and to predict on.
            train_data: vocabulary and windows of the first.
            dev_data: of the second.

        Raises:
            UserError: no question is left to train on, or no context holds a word.
        """
        key = [
            (file.sha256, files.sha256(data.vocab_file), data.do_lower_case, window_settings(data))
            for file, data in zip(pair, (train_data, dev_data), strict=True)
        ]
        if self._kept is None or self._kept[0] != key:
            self._kept = None  # before the next are cut: both may not fit
            self._kept = key, _cut(*pair, train_data, dev_data)
        return self._kept[1]


def _cut(
    train: squad.Squad, dev: squad.Squad, train_data: DataConfig, dev_data: DataConfig
) -> SquadRows:
    # First, so that a bad train file is told at once.
    train_windows, skipped = squad.train_windows(
        train, tokenizer(train_data), window_settings(train_data)
    )
    dev_windows, examples, features = squad.dev_windows(
        dev, tokenizer(dev_data), window_settings(dev_data)
    )
    return SquadRows(
        train=train_windows,
        skipped=skipped,
        dev=dev_windows,
        examples=examples,
        features=features,
    )


def tokenizer(params: DataConfig) -> squad.Tokenizer:
    """The tokenizer that a data config describes."""
    return squad.Tokenizer(params.vocab_file, params.do_lower_case)


def window_settings(params: DataConfig) -> squad.WindowSettings:
    """The windows that a data config describes."""
    return squad.WindowSettings(
        seq_length=params.seq_length,
        doc_stride=params.doc_stride,
        query_length=params.query_length,
    )
