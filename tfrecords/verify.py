"""Checks every byte of a folder of shards against its manifest.

    python -m tfrecords.verify --input_dir shards

Of each shard: that it is there, its size, its SHA-256, its compression, the CRC of every record,
the number of records; and the vocabulary's hash. The folder may be one that tfrecords.build wrote
or one of tfrecords.adopt, whose shards lie elsewhere. Each problem is a line; a folder with any
ends the command with exit code 2. Nothing is changed.
"""

import dataclasses
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence

import tensorflow as tf
from absl import flags

from tfrecords import command, damage, files, schema
from tfrecords.errors import UserError
from tfrecords.manifest import Manifest, Shard
from tfrecords.vocabulary import Vocabulary

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "input_dir", None, "The folder that tfrecords.build or tfrecords.adopt wrote.", required=True,
    flag_values=FLAGS,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Problem:
    """What is wrong.

    Attributes:
        line: in words.
        is_skippable: whether the reader passes over it with on_corrupt='skip'.
    """

    line: str
    is_skippable: bool = False


def shard_problems(path: str, shard: Shard, compression: str = "") -> Iterator[Problem]:
    """What is wrong with a shard; nothing where its file is what the manifest says.

    Args:
        path: where the file lies.
        shard: what the manifest says of it.
        compression: of the shards, "" or "GZIP".
    """
    if not tf.io.gfile.exists(path):
        yield Problem(f"{path} is missing")
        return
    content = files.read_bytes(path)
    if len(content) != shard.bytes:
        yield Problem(f"{path} has {len(content)} bytes, the manifest says {shard.bytes}")
    digest = hashlib.sha256(content).hexdigest()
    content, broken = damage.inflated(content, compression)
    if broken is not None:
        yield Problem(f"{path}: {broken}, after {len(content)} bytes of decompressed content")
    yield from _record_problems(path, content, shard.examples, compression)
    if digest != shard.sha256:
        yield Problem(f"{path} has sha256 {digest[:12]}, the manifest says {shard.sha256[:12]}")


def _record_problems(
    path: str, content: bytes, examples: int, compression: str
) -> Iterator[Problem]:
    within = " of the decompressed content" if compression else ""
    records, damages = damage.salvage(content, examples)
    for found in damages:
        after = f", and the {found.count - 1} after it are lost" if found.count > 1 else ""
        yield Problem(
            f"{path}: record {found.record} at byte offset {found.offset}{within}: "
            f"{found.reason}{after}",
            is_skippable=True,
        )
    beyond = len(content) - damage.extent(records)
    if not damages and beyond > 0:
        yield Problem(f"{path} goes on for {beyond} bytes{within} after its {examples} records")


def vocabulary_problems(manifest: Manifest) -> Iterator[Problem]:
    """What is wrong with the vocabulary beside the shards."""
    try:
        manifest.check_vocabulary(Vocabulary.load(manifest.vocabulary_file))
    except UserError as error:
        yield Problem(str(error))


def unlisted_problems(manifest: Manifest) -> Iterator[Problem]:
    """The shards that lie in the folder, but which the manifest does not know."""
    listed = {shard.file for shard in _shards(manifest)}
    for name in sorted(tf.io.gfile.listdir(manifest.directory)):
        if name.endswith(schema.SHARD_SUFFIXES) and name not in listed:
            yield Problem(f"{os.path.join(manifest.directory, name)} is not in the manifest")


def body(flag_values: flags.FlagValues) -> None:
    """Verifies the folder that the flags name.

    Raises:
        UserError: there is no manifest, or anything is not as it says.
    """
    manifest = Manifest.load(flag_values.input_dir)
    shards = _shards(manifest)
    problems = [*vocabulary_problems(manifest), *unlisted_problems(manifest)]
    with command.progress(
        total=sum(shard.bytes for shard in shards), desc="verify", unit="B", unit_scale=True
    ) as bar:
        for shard in shards:
            path = manifest.path(shard)
            problems.extend(shard_problems(path, shard, manifest.compression))
            bar.update(shard.bytes)
    print()
    for problem in problems:
        print(problem.line)
    if problems:
        skipping = ", or read past damaged records with on_corrupt='skip' and a corrupt_budget"
        is_damaged = any(problem.is_skippable for problem in problems)
        raise UserError(
            f"{len(problems)} problems in {manifest.directory}, listed above; {manifest.remedy}"
            f"{skipping if is_damaged else ''}"
        )
    examples = sum(shard.examples for shard in shards)
    print(f"{len(shards)} shards with {examples:,} examples are as the manifest says")


def _shards(manifest: Manifest) -> list[Shard]:
    return [
        shard
        for length in manifest.seq_lengths
        for split in sorted(manifest.sequences[length].splits)
        for shard in manifest.shards(split, length)
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    return command.run(body, FLAGS, argv)


if __name__ == "__main__":
    sys.exit(main())
