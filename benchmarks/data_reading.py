"""Shards to batches: one reader in a process of its own, reading whenever it is told to.

    python -m benchmarks.data_reading READER DIRECTORY

Started by `benchmarks.data`. Each line on standard input is a number of seconds to read for; each
is answered by a line of JSON on standard output.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

SEQ_LENGTH = 128
BATCH = 512
_WARM_UP = 0.5

# NVIDIA/DeepLearningExamples, TensorFlow2/LanguageModeling/BERT/README.md, "Pre-training training
# performance: Single-node on NVIDIA DGX A100 (8x A100 80GB)": BERT-Large, length 128, mixed
# precision, 8 GPUs.
HOST_CONSUMES = 3799.24
HOST_SOURCE = (
    "BERT-Large, length 128, mixed precision, DGX A100 with 8 A100 80GB, sequences a second: "
    "NVIDIA/DeepLearningExamples, TensorFlow2/LanguageModeling/BERT/README.md, single-node "
    "pre-training performance, TensorFlow 21.02"
)


def _tf_lans(directory: str) -> Any:
    import tfrecords

    return tfrecords.read(directory, seq_length=SEQ_LENGTH, global_batch_size=BATCH)


def _model_garden(directory: str) -> Any:
    from official.nlp.data import pretrain_dataloader

    from tfrecords import schema

    config = pretrain_dataloader.BertPretrainDataConfig(
        input_path=os.path.join(directory, f"{schema.TRAIN}-seq{SEQ_LENGTH}-*"),
        global_batch_size=BATCH,
        seq_length=SEQ_LENGTH,
        max_predictions_per_seq=schema.default_max_predictions(SEQ_LENGTH, 0.15),
        use_v2_feature_names=True,
    )
    return pretrain_dataloader.BertPretrainDataLoader(config).load()


MODEL_GARDEN = "Model Garden's loader, stored"
STORED, DYNAMIC = "tfrecords.read, stored", "tfrecords.read, dynamic, masking"
READERS: dict[str, Callable[[str], Any]] = {
    STORED: _tf_lans,
    DYNAMIC: _tf_lans,
    MODEL_GARDEN: _model_garden,
}


def batches_within(batches: Iterator[Any], seconds: float) -> tuple[int, float]:
    """Draws batches until the time is over: their number, and the time it really was."""
    begin = time.perf_counter()
    number = 0
    while (elapsed := time.perf_counter() - begin) < seconds:
        next(batches)
        number += 1
    return number, elapsed


def main(reader: str, directory: str) -> None:
    """Serves on a channel that no library's print can reach."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    batches = iter(READERS[reader](directory))
    next(batches)
    channel.write("{}\n")
    channel.flush()
    for line in sys.stdin:
        batches_within(batches, _WARM_UP)  # what was prefetched while others were reading
        number, elapsed = batches_within(batches, float(line))
        channel.write(json.dumps({"examples": number * BATCH, "seconds": elapsed}) + "\n")
        channel.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
