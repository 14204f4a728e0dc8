"""Who makes pretraining data from text, and the commands that each is run with."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping, Sequence

Command = Sequence[str]

SEQ_LENGTHS = (128, 512)
# What a full row can need at 15 %.
MAX_PREDICTIONS = {128: 20, 512: 80}
STORED, DYNAMIC, MODEL_GARDEN = "tf-lans stored", "tf-lans dynamic", "Model Garden"
_NUM_SHARDS = 8
_PEERS = (sys.executable, "-m", "benchmarks.data_peers")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What a contender has to do.

    Attributes:
        texts: a file, or one of equal size for each copy of the command.
        vocab_file: the vocabulary.
        output_dir: an empty folder.
        cores: how many it may use.
        environments: checkouts and Pythons of peers, by the names of their flags.
    """

    texts: Sequence[str]
    vocab_file: str
    output_dir: str
    cores: int
    environments: Mapping[str, str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contender:
    """A way from text to data.

    Attributes:
        makes: what it makes, for the report.
        steps: the commands, in turn; those of a step run beside each other.
        is_ours: whether it is no peer.
        megabytes: text enough to measure it with, for each copy; the faster, the more, so that
            it takes long beside the noise of its start.
        is_slow: whether it is measured in fewer rounds.
        is_copied: whether it uses one core only, so that for several it runs beside itself, on
            a text of its own for each.
        only_alone: whether it is measured on one core only, beside a like one that is not.
        environment: the flag that names what it needs; empty if it is installed here.
    """

    makes: str
    steps: Callable[[Job], list[list[Command]]]
    megabytes: float
    is_ours: bool = False
    is_slow: bool = False
    is_copied: bool = False
    only_alone: bool = False
    environment: str = ""


def _tf_lans(records: str, dupe_factor: int) -> Callable[[Job], list[list[Command]]]:
    def steps(job: Job) -> list[list[Command]]:
        flags = {
            "input": job.texts[0],
            "vocab_file": job.vocab_file,
            "output_dir": os.path.join(job.output_dir, "shards"),
            "seq_lengths": ",".join(map(str, SEQ_LENGTHS)),
            "num_shards": _NUM_SHARDS,
            "records": records,
            "dupe_factor": dupe_factor,
            "num_processes": job.cores,
        }
        return [[[sys.executable, "-m", "tfrecords.build", *_flags(flags)]]]

    return steps


def _create_pretraining_data(
    program: Callable[[Job], Sequence[str]], dupe_factor: int = 5, extra: Sequence[str] = ()
) -> Callable[[Job], list[list[Command]]]:
    def command(job: Job, core: int, seq_length: int) -> Command:
        folder = os.path.join(job.output_dir, f"core{core}-seq{seq_length}")
        outputs = [f"{folder}-{number:05d}.tfrecord" for number in range(_NUM_SHARDS)]
        flags = {
            "input_file": job.texts[core],
            "output_file": ",".join(outputs),
            "vocab_file": job.vocab_file,
            "max_seq_length": seq_length,
            "max_predictions_per_seq": MAX_PREDICTIONS[seq_length],
            "dupe_factor": dupe_factor,
        }
        return [*program(job), *_flags(flags), "--do_whole_word_mask", *extra]

    def steps(job: Job) -> list[list[Command]]:
        return [
            [command(job, core, seq_length) for core in range(len(job.texts))]
            for seq_length in SEQ_LENGTHS
        ]

    return steps


def _model_garden(dupe_factor: int) -> Callable[[Job], list[list[Command]]]:
    """Model Garden's script, with the feature names that its loader and ours share."""
    return _create_pretraining_data(
        lambda job: (sys.executable, "-m", "official.nlp.data.create_pretraining_data"),
        dupe_factor,
        ["--use_v2_feature_names"],
    )


def _huggingface(job: Job) -> list[list[Command]]:
    lengths = ",".join(map(str, SEQ_LENGTHS))
    return [[_peer(job, "huggingface", job.environments["huggingface_python"], lengths)]]


def _lddl(job: Job) -> list[list[Command]]:
    python = job.environments["lddl_python"]
    return [[_peer(job, "lddl", python, str(length))] for length in SEQ_LENGTHS]


def _peer(job: Job, name: str, python: str, lengths: str) -> Command:
    module = ["-W", "ignore", "-m", "benchmarks.data_peers", name]
    return [python, *module, job.texts[0], job.vocab_file, job.output_dir, str(job.cores), lengths]


def _flags(values: Mapping[str, object]) -> list[str]:
    return [f"--{name}={value}" for name, value in values.items()]


_MASKED_PAIRS = "masked segment pairs"

CONTENDERS = {
    STORED: Contender(
        makes=f"{_MASKED_PAIRS}, 5 times",
        steps=_tf_lans("stored", 5),
        megabytes=80,
        is_ours=True,
        is_slow=True,
    ),
    DYNAMIC: Contender(
        makes="segment pairs, masked when read",
        steps=_tf_lans("dynamic", 1),
        megabytes=150,
        is_ours=True,
    ),
    MODEL_GARDEN: Contender(
        makes=f"{_MASKED_PAIRS}, 5 times",
        steps=_model_garden(5),
        megabytes=1,
        is_slow=True,
        is_copied=True,
    ),
    f"{MODEL_GARDEN}, once": Contender(
        makes=f"{_MASKED_PAIRS}, once",
        steps=_model_garden(1),
        megabytes=1,
        is_slow=True,
        is_copied=True,
        only_alone=True,
    ),
    "google-research/bert": Contender(
        makes=f"{_MASKED_PAIRS}, 5 times",
        steps=_create_pretraining_data(
            lambda job: (*_PEERS, "google", job.environments["google_bert"])
        ),
        megabytes=1,
        is_slow=True,
        is_copied=True,
        environment="google_bert",
    ),
    "Hugging Face": Contender(
        makes="rows without pairs, masked when read",
        steps=_huggingface,
        megabytes=16,
        is_slow=True,
        environment="huggingface_python",
    ),
    "NVIDIA LDDL": Contender(
        makes=f"{_MASKED_PAIRS}, 5 times",
        steps=_lddl,
        megabytes=2,
        is_slow=True,
        environment="lddl_python",
    ),
}
