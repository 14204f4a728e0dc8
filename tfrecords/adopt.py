r"""Makes shards that other scripts wrote readable here, without touching them.

    python -m tfrecords.adopt --input 'pretraining/*.tfrecord' --seq_length 128 \
        --vocab_file vocab.txt --output_dir adopted

Takes what create_pretraining_data.py of Model Garden, google-research/bert or NVIDIA wrote, with
either set of feature names, plain or GZIP. Every record is read and checked once. The folder gets
manifest.json, which says where the shards lie relative to it, and a copy of the vocabulary; then
tfrecords.read, tfrecords.inspect, tfrecords.verify and training take it like one that
tfrecords.build wrote.
"""

import concurrent.futures
import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
from absl import flags

from tfrecords import command, corpus, files, foreign, schema
from tfrecords.errors import UserError
from tfrecords.manifest import (
    FORMAT_VERSION,
    HEAD_BYTES,
    Manifest,
    Sequences,
    Shard,
    SplitCounts,
)
from tfrecords.vocabulary import Vocabulary, casing_warning

_REQUESTS = 16
# From here on a worker's epoch is noticeably shorter than another's.
_UNEVEN = 0.02

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "input", None, "The shards: files, folders and globs, separated by commas.", required=True,
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_string("eval_input", None, "Those of the split eval, likewise.", flag_values=FLAGS)
flags.DEFINE_integer(
    "seq_length", None, "Tokens in a row.", required=True, lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_string(
    "vocab_file", None, "The vocabulary they were written with.", required=True, flag_values=FLAGS
)
flags.DEFINE_string(
    "output_dir", None, "The folder to write, new or empty.", required=True, flag_values=FLAGS
)
flags.DEFINE_bool(
    "lower_case", True, "Whether the text was lower-cased (their --do_lower_case).",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_float(
    "masked_lm_prob", 0.15, "The share of tokens to guess that they were written with.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_bool(
    "whole_word_mask", False, "Whether whole words were masked (their --do_whole_word_mask).",
    flag_values=FLAGS,
)  # fmt: skip

# What shapes the manifest beside the files themselves.
_OPTIONS = ("seq_length", "lower_case", "masked_lm_prob", "whole_word_mask")


def stored_path(path: str, folder: str) -> str:
    """What a manifest in `folder` calls the file: relative to it where both are local.

    Real paths, since ".." means one folder above a link and another above its target.
    """
    if "://" in path:
        return path
    real = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    return real if "://" in folder else os.path.relpath(real, os.path.realpath(folder))


def relative_patterns(patterns: str, folder: str) -> str:
    """The patterns of a flag, none of them absolute where both they and `folder` are local."""
    parts = filter(None, (part.strip() for part in patterns.split(",")))
    return ",".join(
        stored_path(os.path.abspath(part), folder) if "://" not in part else part for part in parts
    )


def is_adopted(
    folder: str,
    paths: Mapping[str, Sequence[str]],
    identity: Mapping[str, Any],
    vocabulary: Vocabulary,
) -> bool:
    """Whether `folder` holds this very adoption.

    Args:
        folder: the output folder.
        paths: the shards of each split.
        identity: what was given, as the manifest holds it.
        vocabulary: the vocabulary.

    Raises:
        UserError: it holds anything else; or the adopted files are no longer what they were.
    """
    if not tf.io.gfile.exists(folder):
        return False
    if not tf.io.gfile.isdir(folder):
        raise UserError(f"--output_dir {folder} is a file; give a new or empty folder")
    names = [name.rstrip("/") for name in tf.io.gfile.listdir(folder)]
    if schema.MANIFEST_FILE not in names:
        _check_empty(folder, names, vocabulary)
        return False
    _check_same(Manifest.load(folder), paths, identity, vocabulary)
    return True


def _check_same(
    manifest: Manifest,
    paths: Mapping[str, Sequence[str]],
    identity: Mapping[str, Any],
    vocabulary: Vocabulary,
) -> None:
    folder = manifest.directory
    if "adopted" not in manifest.identity:
        raise UserError(
            f"{folder} holds shards that tfrecords.build wrote; give --output_dir another folder"
        )
    earlier = dict(manifest.identity["adopted"])
    now = identity["adopted"]
    differing = [key for key in now if earlier.get(key) != now[key]]
    if manifest.vocabulary_sha256 != vocabulary.sha256:
        differing.append("vocab_file")
    splits = manifest.sequences.get(now["seq_length"])
    if splits is not None and not differing:
        listed = {
            split: [shard.file for shard in counts.shards]
            for split, counts in splits.splits.items()
        }
        came = {split: [stored_path(path, folder) for path in paths[split]] for split in paths}
        differing += [] if listed == came else ["the files found"]
    if differing:
        raise UserError(
            f"{folder} holds another adoption (different: {', '.join(differing)}); give "
            "--output_dir another folder, or remove that one"
        )
    for split, own in paths.items():
        for path, shard in zip(own, manifest.shards(split, now["seq_length"]), strict=True):
            size = tf.io.gfile.stat(path).length
            if size != shard.bytes or files.sha256(path, HEAD_BYTES) != shard.head_sha256:
                raise UserError(
                    f"{path} has changed since {folder} adopted it; remove that folder and adopt "
                    "again"
                )


def _check_empty(folder: str, names: Sequence[str], vocabulary: Vocabulary) -> None:
    """Allows what an adoption that was killed leaves."""
    path = os.path.join(folder, schema.VOCABULARY_FILE)
    for name in sorted(names):
        if files.PARTIAL in name:
            continue
        if name == schema.VOCABULARY_FILE and files.read_bytes(path) == vocabulary.content:
            continue
        raise UserError(
            f"--output_dir {folder} holds {name}; give a new or empty folder (the shards stay "
            "where they are)"
        )


def advice(split: str, shards: Sequence[Shard]) -> list[str]:
    """What to know before training on shards of these numbers and sizes, a line each."""
    count = len(shards)
    divisors = [str(number) for number in range(1, count + 1) if count % number == 0]
    listed = " or ".join(filter(None, [", ".join(divisors[:-1]), divisors[-1]]))
    several = "s" if count > 1 else ""
    lines = [
        f"{split}: {count} shard{several} can be dealt out to {listed} worker{several}; for more, "
        "write the data again with at least as many shards as workers"
    ]
    sizes = [shard.examples for shard in shards]
    empty = [shard.file for shard in shards if not shard.examples]
    if empty:
        lines.append(
            f"warning: {split}: {len(empty)} of {count} shards hold no example, the first "
            f"{empty[0]}; leave them out of the input, or a worker may be left with none"
        )
    least, most = min(sizes), max(sizes)
    # Numbers that differ by one are as even as can be.
    if split == schema.TRAIN and most - least > max(1, _UNEVEN * most):
        lines.append(
            f"warning: {split}: shards hold from {least:,} to {most:,} examples; a worker reads "
            "its own shards alone, so one with small shards repeats its examples more often; for "
            "shards of one size write the data again"
        )
    return lines


def adopt(
    *,
    paths: Mapping[str, Sequence[str]],
    vocabulary: Vocabulary,
    output_dir: str,
    identity: Mapping[str, Any],
) -> Manifest:
    """Reads and checks all shards, then writes the vocabulary and, last, the manifest.

    Args:
        paths: the shards of each split.
        vocabulary: the one they were written with.
        output_dir: the folder to write.
        identity: what was given, as the manifest is to hold it.

    Raises:
        UserError: a file cannot be used; nothing has been written then.
    """
    options = identity["adopted"]
    every = list(itertools.chain(*paths.values()))
    with concurrent.futures.ThreadPoolExecutor(_REQUESTS) as pool:
        heads = list(pool.map(foreign.head, every))
    layout, compression = foreign.common(heads, options["seq_length"])
    splits = _indexed(paths, layout, compression, vocabulary, output_dir)
    manifest = Manifest(
        directory=output_dir,
        format_version=FORMAT_VERSION,
        records=schema.STORED,
        feature_names=layout.feature_names,
        compression=compression,
        next_sentence=True,
        masked_lm_prob=options["masked_lm_prob"],
        whole_word_mask=options["whole_word_mask"],
        vocabulary_sha256=vocabulary.sha256,
        vocab_size=len(vocabulary),
        lower_case=options["lower_case"],
        identity=identity,
        documents={},
        duplicate_documents=0,
        one_document_buckets={},
        sequences={
            options["seq_length"]: Sequences(
                max_predictions_per_seq=layout.max_predictions_per_seq, splits=splits
            )
        },
    )
    files.make_folder(output_dir)
    files.remove_partial(output_dir)
    files.write_bytes(manifest.vocabulary_file, vocabulary.content)
    manifest.save()
    return manifest


def _indexed(
    paths: Mapping[str, Sequence[str]],
    layout: foreign.Layout,
    compression: str,
    vocabulary: Vocabulary,
    output_dir: str,
) -> dict[str, SplitCounts]:
    """Every record read once, behind a progress bar."""
    splits = {}
    every = itertools.chain(*paths.values())
    total = sum(tf.io.gfile.stat(path).length for path in every)
    with command.progress(total=total, desc="adopt", unit="B", unit_scale=True) as bar:
        for split, own in paths.items():
            found = [
                foreign.indexed(
                    path,
                    name=stored_path(path, output_dir),
                    layout=layout,
                    compression=compression,
                    vocabulary=vocabulary,
                    bar=bar,
                )
                for path in own
            ]
            splits[split] = SplitCounts(
                shards=tuple(shard for shard, _ in found),
                random_next=sum(random_next for _, random_next in found),
            )
    print()
    return splits


def body(flag_values: flags.FlagValues) -> None:
    """Adopts the shards that the flags name."""
    prob = flag_values.masked_lm_prob
    if not 0 < prob <= 1:
        raise UserError(f"--masked_lm_prob is {prob}; expected a number above 0 and up to 1")
    vocabulary = Vocabulary.load(flag_values.vocab_file)
    folder = flag_values.output_dir
    patterns = {"input": flag_values.input}
    if flag_values.eval_input is not None:
        patterns["eval_input"] = flag_values.eval_input
    found = [_find(flag, pattern, folder) for flag, pattern in patterns.items()]
    paths = dict(zip(schema.SPLITS, found, strict=False))
    shared = set(paths[schema.TRAIN]) & set(paths.get(schema.EVAL, ()))
    if shared:
        raise UserError(f"{min(shared)} is in --input and in --eval_input; leave it out of one")
    given = {flag: relative_patterns(pattern, folder) for flag, pattern in patterns.items()}
    options = {name: flag_values[name].value for name in _OPTIONS}
    identity = {"adopted": {"eval_input": None, **given, **options}}
    if is_adopted(folder, paths, identity, vocabulary):
        print(f"{folder} already holds this adoption; nothing to do")
        return
    manifest = adopt(paths=paths, vocabulary=vocabulary, output_dir=folder, identity=identity)
    seq_length = flag_values.seq_length
    compression = f", {manifest.compression}" if manifest.compression else ""
    for split in paths:
        print(
            f"{folder}: {split}, length {seq_length}: {manifest.num_examples(split, seq_length):,} "
            f"examples in {manifest.num_shards(split)} shards, feature names "
            f"{manifest.feature_names}{compression}, "
            f"{manifest.max_predictions_per_seq(seq_length)} predictions a row"
        )
        for line in advice(split, manifest.shards(split, seq_length)):
            print(line)
    if warning := casing_warning(vocabulary, flag_values.lower_case):
        print(f"warning: {warning}")


def _find(flag: str, patterns: str, folder: str) -> list[str]:
    # One by one, since files of different file systems share no folder.
    parts = [part for part in patterns.split(",") if part.strip()] or [patterns]
    try:
        return sorted({file.path for part in parts for file in corpus.find(part, [folder])})
    except UserError as error:
        raise UserError(str(error).replace("--input", f"--{flag}", 1)) from error


def main(argv: Sequence[str] | None = None) -> int:
    """The command; `argv` without the program's name, None for this process's own."""
    return command.run(body, FLAGS, argv)


if __name__ == "__main__":
    sys.exit(main())
