r"""Writes BERT pretraining shards from raw text.

    python -m tfrecords.build --input 'text/*.txt' --vocab_file vocab.txt --output_dir shards \
        --seq_lengths 128,512 --num_shards 8

The text has one sentence a line and a blank line after each document; --document_boundary,
--text_field and --split_sentences say so where it is otherwise. The folder gets the shards of every
length, a copy of the vocabulary and manifest.json. The bytes are a function of text, vocabulary and
flags, except --num_processes and --strict; a build that was killed goes on where it was when the
same command is run again.
"""

import dataclasses
import sys
from collections.abc import Iterable, Sequence

from absl import flags, logging

from tfrecords import command, hashing, limits, pipeline, schema, stages, text_flags
from tfrecords.errors import UserError
from tfrecords.manifest import Manifest
from tfrecords.vocabulary import Vocabulary, casing_warning

_MIN_SEQ_LENGTH = 16
# What a sort key of `tfrecords.masking` has bits for.
_MAX_SEQ_LENGTH = hashing.MAX_PLACES
_DUPE_FACTORS = {schema.STORED: 5, schema.DYNAMIC: 1}

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "input", None, "Text: files, folders and globs, separated by commas.", required=True,
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_string("vocab_file", None, "The vocabulary.", required=True, flag_values=FLAGS)
flags.DEFINE_string("output_dir", None, "The folder to write.", required=True, flag_values=FLAGS)
flags.DEFINE_list("seq_lengths", ["128", "512"], "Tokens in a row.", flag_values=FLAGS)
flags.DEFINE_integer(
    "num_shards", 8, "Files of each split and length.", lower_bound=1, upper_bound=99999,
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_enum(
    "records", schema.STORED, schema.RECORDS,
    "stored: examples masked once, when written; dynamic: masked afresh every epoch, when read.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_integer(
    "dupe_factor", None, "Times each training document is cut, paired and masked anew; by default "
    "5 for stored records and 1 for dynamic ones.",
    lower_bound=1, upper_bound=999, flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_bool(
    "next_sentence", True, "Rows are segment pairs for next-sentence prediction; with "
    "--nonext_sentence (or --no_next_sentence) they are packed with full sentences.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_bool("no_next_sentence", False, "The same as --nonext_sentence.", flag_values=FLAGS)
flags.DEFINE_bool(
    "deduplicate", False, "Leave out a document when an earlier one has the same tokens.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_bool("gzip", False, "Compress the shards.", flag_values=FLAGS)
flags.DEFINE_integer(
    "seed", 0, "Of every random choice.", lower_bound=0, upper_bound=(1 << 63) - 1,
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_integer(
    "num_processes", limits.cores(), "Processes to work in.", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_float(
    "eval_fraction", 0.0, "The share of documents held out as the split eval.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_bool("lower_case", True, "Lower-case text, strip accents.", flag_values=FLAGS)
flags.DEFINE_float(
    "short_seq_prob", None, "The share of documents cut at a random shorter length, or of packed "
    "rows that are; by default 0.1 for pairs and 0 for packed rows.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_float("masked_lm_prob", 0.15, "The share of tokens to guess.", flag_values=FLAGS)
flags.DEFINE_bool("whole_word_mask", True, "Mask the pieces of a word together.", flag_values=FLAGS)
flags.DEFINE_list(
    "max_predictions_per_seq", None,
    "Masked positions in a row, one number a length; by default what a full row can need.",
    flag_values=FLAGS,
)  # fmt: skip
text_flags.define(FLAGS)
flags.DEFINE_bool(
    "split_sentences", False, "A line is a paragraph, to be split into sentences; otherwise it is "
    "a sentence.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_bool(
    "strict", False, "Refuse NUL characters and invalid UTF-8 in the text, which are otherwise "
    "replaced by U+FFFD and counted.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_integer(
    "bucket_bytes", 64 << 20, "Text among which the partners of random pairs are drawn.",
    lower_bound=1, flag_values=FLAGS,
)  # fmt: skip


def options_from(flag_values: flags.FlagValues) -> stages.Options:
    """The options that the flags say.

    Raises:
        UserError: a list is malformed, a length cannot be used or a share is out of its range.
    """
    prob, held_out = flag_values.masked_lm_prob, flag_values.eval_fraction
    next_sentence = flag_values.next_sentence and not flag_values.no_next_sentence
    short = flag_values.short_seq_prob
    if short is None:
        short = 0.1 if next_sentence else 0.0
    # Here, since absl's bounds include their ends and let NaN through.
    for name, value, expected, is_fine in (
        ("masked_lm_prob", prob, "above 0 and up to 1", 0 < prob <= 1),
        ("eval_fraction", held_out, "from 0 to below 1", 0 <= held_out < 1),
        ("short_seq_prob", short, "from 0 to 1", 0 <= short <= 1),
    ):
        if not is_fine:
            raise UserError(f"--{name} is {value}; expected a number {expected}")
    lengths = _integers("seq_lengths", flag_values.seq_lengths, _MIN_SEQ_LENGTH, _MAX_SEQ_LENGTH)
    if not lengths or len(set(lengths)) < len(lengths):
        raise UserError(f"--seq_lengths is {lengths}; give each length once, such as 128,512")
    given = flag_values.max_predictions_per_seq
    if given is None:
        predictions = [schema.default_max_predictions(length, prob) for length in lengths]
    else:
        predictions = _integers("max_predictions_per_seq", given, 1, max(lengths))
        if len(predictions) != len(lengths):
            raise UserError(
                f"--max_predictions_per_seq has {len(predictions)} numbers for {len(lengths)} "
                "--seq_lengths; give one for each"
            )
    pairs = sorted(zip(lengths, predictions, strict=True))
    dupe_factor = flag_values.dupe_factor
    if dupe_factor is None:
        dupe_factor = _DUPE_FACTORS[flag_values.records]
    derived = {
        "seq_lengths": tuple(length for length, _ in pairs),
        "max_predictions_per_seq": tuple(count for _, count in pairs),
        "dupe_factor": dupe_factor,
        "short_seq_prob": short,
        "next_sentence": next_sentence,
        "compression": schema.GZIP if flag_values.gzip else "",
        "text_format": text_flags.text_format(flag_values, flag_values.split_sentences),
    }
    chosen = {
        field.name: flag_values[field.name].value
        for field in dataclasses.fields(stages.Options)
        if field.name not in derived
    }
    return stages.Options(**derived, **chosen)


def vocabulary_from(flag_values: flags.FlagValues) -> Vocabulary:
    """The vocabulary that the flags name; a casing that it may not be of is logged as a warning.

    Raises:
        UserError: it cannot be used.
    """
    vocabulary = Vocabulary.load(flag_values.vocab_file)
    if warning := casing_warning(vocabulary, flag_values.lower_case):
        logging.warning("%s", warning)
    return vocabulary


def _integers(name: str, values: Iterable[str], lowest: int, highest: int) -> list[int]:
    numbers = []
    for value in values:
        if not value.strip().isdecimal() or not lowest <= int(value) <= highest:
            raise UserError(f"--{name} has {value!r}; expected integers, {lowest} to {highest}")
        numbers.append(int(value))
    return numbers


def body(flag_values: flags.FlagValues) -> None:
    """Builds the folder that the flags ask for."""
    manifest = pipeline.build(
        input_patterns=flag_values.input,
        vocabulary=vocabulary_from(flag_values),
        output_dir=flag_values.output_dir,
        options=options_from(flag_values),
        num_processes=flag_values.num_processes,
        strict=flag_values.strict,
    )
    report(manifest)


def report(manifest: Manifest) -> None:
    """Prints what a build wrote."""
    for seq_length in manifest.seq_lengths:
        for split in manifest.sequences[seq_length].splits:
            print(
                f"{manifest.directory}: {split}, length {seq_length}: "
                f"{manifest.num_examples(split, seq_length):,} examples in "
                f"{manifest.num_shards(split)} shards"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """The command; `argv` without the program's name, None for this process's own."""
    return command.run(body, FLAGS, argv)


if __name__ == "__main__":
    sys.exit(main())
