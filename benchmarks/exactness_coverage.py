"""An epoch's coverage: which of the examples its workers draw, and how often.

An epoch is as many draws as there are examples, each worker taking its share. Drawn are rows, as
the readers hand them to training, of the same shards: by Model Garden's reader with the config of
its experiment `bert/pretraining`, and by the one of `official_bert`. Every worker has a pipeline
of its own, as it has in its process; what draws their random numbers is seeded by the trial, so
that a measurement can be repeated as far as the readers can.
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import pathlib
import random
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from official.core import exp_factory
from official.nlp.configs import pretraining_experiments  # noqa: F401 (registers bert/pretraining)
from official.nlp.data import data_loader_factory

from benchmarks import exactness_data
from official_bert.input import PretrainDataConfig, PretrainDataLoader
from tfrecords import schema, sharding
from tfrecords.errors import UserError
from tfrecords.manifest import Manifest

_ROWS = 16  # of a worker's batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """Files, workers, and whether Model Garden's `task.train_data.seed` is set; ours always is."""

    files: int
    workers: int
    seeded: bool

    @property
    def title(self) -> str:
        """As the report names it."""
        seed = "seed set" if self.seeded else "seed unset"
        return f"{self.files} files, {self.workers} workers, {seed}"


CASES = (
    Case(files=8, workers=4, seeded=False),
    Case(files=8, workers=4, seeded=True),
    Case(files=10, workers=4, seeded=True),
)

Counts = collections.Counter[bytes]


def counts(batches: Iterable[Mapping[str, Any]], rows: int) -> Counts:
    """How often each content occurs in the first `rows` rows of batches of features."""
    digests: list[bytes] = []
    for batch in batches:
        parts = [np.asarray(batch[name]) for name in sorted(batch)]
        columns = [each.reshape(len(each), -1).astype(np.int32) for each in parts]
        digests += [
            hashlib.blake2b(row.tobytes(), digest_size=16).digest()
            for row in np.concatenate(columns, axis=1)
        ]
        if len(digests) >= rows:
            break
    return collections.Counter(digests[:rows])


def share_drawn(drawn: Counts, stored: Counts) -> float:
    """The share of the stored examples that were drawn; two with one content are two."""
    return (drawn & stored).total() / stored.total()


def stock(manifest: Manifest, case: Case, worker: int, trial: int) -> tf.data.Dataset:
    """A worker's batches as Model Garden's pretraining experiment reads them."""
    (seq_length,) = manifest.seq_lengths
    config = exp_factory.get_exp_config("bert/pretraining").task.train_data
    config.override(
        {
            "input_path": str(pathlib.Path(manifest.directory, f"{schema.TRAIN}-seq*")),
            "global_batch_size": _ROWS * case.workers,
            "seq_length": seq_length,
            "max_predictions_per_seq": manifest.max_predictions_per_seq(seq_length),
            "use_v2_feature_names": True,
            "seed": trial if case.seeded else None,
        }
    )
    context = tf.distribute.InputContext(case.workers, worker, case.workers)
    return data_loader_factory.get_data_loader(config).load(context)


def ours(manifest: Manifest, case: Case, worker: int, trial: int) -> tf.data.Dataset:
    """A worker's batches as `official_bert.train` reads them."""
    (seq_length,) = manifest.seq_lengths
    config = PretrainDataConfig(
        input_path=str(manifest.directory),
        global_batch_size=_ROWS * case.workers,
        seq_length=seq_length,
        seed=trial,
    )
    context = tf.distribute.InputContext(case.workers, worker, case.workers)
    return PretrainDataLoader(config).load(context)


def stored(manifest: Manifest) -> Counts:
    """What lies in the shards."""
    (seq_length,) = manifest.seq_lengths
    examples = manifest.num_examples(schema.TRAIN, seq_length)
    paths = [manifest.path(each) for each in manifest.shards(schema.TRAIN, seq_length)]
    config = exp_factory.get_exp_config("bert/pretraining").task.train_data
    config.override(
        {
            "input_path": paths,
            "global_batch_size": _ROWS,
            "is_training": False,
            "drop_remainder": False,
            "seq_length": seq_length,
            "max_predictions_per_seq": manifest.max_predictions_per_seq(seq_length),
            "use_v2_feature_names": True,
        }
    )
    dataset = data_loader_factory.get_data_loader(config).load()
    found = counts(dataset.as_numpy_iterator(), examples)
    if found.total() != examples:
        raise RuntimeError(f"the shards hold {found.total()} examples, not {examples}")
    return found


READERS = {"stock": stock, "ours": ours}


def epoch(reader: str, manifest: Manifest, case: Case, trial: int) -> Counts:
    """What all workers draw in an epoch.

    Raises:
        UserError: our reader refuses the case.
    """
    (seq_length,) = manifest.seq_lengths
    sizes = [each.examples for each in manifest.shards(schema.TRAIN, seq_length)]
    # Ours own their shards, whose sizes differ by one; a stock worker owns nothing.
    shares = [len(part) for part in np.array_split(np.arange(sum(sizes)), case.workers)]
    if reader == "ours":
        shares = [
            sum(sizes[each] for each in sharding.worker_shards(len(sizes), case.workers, worker))
            for worker in range(case.workers)
        ]
    random.seed(trial)  # Model Garden draws the seed of its files from here where none is set
    tf.random.set_seed(trial)
    drawn: Counts = collections.Counter()
    for worker, share in enumerate(shares):
        dataset = READERS[reader](manifest, case, worker, trial)
        drawn += counts(dataset.as_numpy_iterator(), share)
    return drawn


def measure_case(manifest: Manifest, case: Case, trials: int) -> dict[str, Any]:
    """A row of the report: both readers on one case.

    Returns:
        The case, the number of examples, and for each reader either the share of them that each
        trial drew and the most times one was drawn, or why it refused.
    """
    available = stored(manifest)
    row: dict[str, Any] = {
        "case": case.title,
        **dataclasses.asdict(case),
        "examples": available.total(),
    }
    for reader in READERS:
        try:
            drawn = [epoch(reader, manifest, case, trial) for trial in range(trials)]
        except UserError as error:
            row[reader] = {"refused": str(error)}
            continue
        shares = [share_drawn(each, available) for each in drawn]
        row[reader] = {
            "mean_share": float(np.mean(shares)),
            "lowest_share": min(shares),
            "highest_share": max(shares),
            "trials": trials,
            "each_exactly_once": all(each == available for each in drawn),
        }
    return row


def measure(text: exactness_data.Corpus, folder: pathlib.Path, trials: int) -> dict[str, Any]:
    """The whole part.

    Args:
        text: what is read.
        folder: for the shards.
        trials: epochs of each case and reader, each from another seed.
    """
    manifests = {
        number: exactness_data.shards(text, folder / f"shards-{number}", number)
        for number in sorted({case.files for case in CASES})
    }
    return {
        "text": text.source,
        "seq_length": text.seq_length,
        "cases": [measure_case(manifests[case.files], case, trials) for case in CASES],
    }
