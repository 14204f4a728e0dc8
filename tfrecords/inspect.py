"""Shows examples of a folder of shards as text, and the rates of their masks and pairs.

    python -m tfrecords.inspect --input_dir shards --seq_length 128 --num_examples 3

A masked position is written [shown|original]: what the model sees and what it has to guess.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from absl import flags

from tfrecords import command, schema
from tfrecords.errors import UserError
from tfrecords.manifest import Manifest
from tfrecords.vocabulary import CONTINUATION, MASK, Vocabulary

_BATCH = 512

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "input_dir", None, "The folder that tfrecords.build wrote.", required=True, flag_values=FLAGS
)
flags.DEFINE_enum("split", schema.TRAIN, schema.SPLITS, "Whose examples.", flag_values=FLAGS)
flags.DEFINE_integer(
    "seq_length", None, "Tokens in a row; by default the shortest there is.", flag_values=FLAGS
)
flags.DEFINE_integer(
    "num_examples", 3, "Examples to show, from the first shard.", lower_bound=0, flag_values=FLAGS
)
flags.DEFINE_integer(
    "num_rows", 20_000, "Rows to count the rates in, from the first shards on.", lower_bound=1,
    flag_values=FLAGS,
)  # fmt: skip

Rows = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """The rates of some rows; see `rates`.

    Attributes:
        rows: how many they are.
        masked: masked positions over all tokens that may be masked (no special ones).
        shown_as_mask: of the masked positions, those that show [MASK].
        shown_as_original: those that show the token itself, by choice or by a lucky draw.
        shown_as_another: those that show another token.
        random_next: rows whose second segment comes from another document.
        fill: tokens over places, special tokens included.
        under_half_full: rows whose tokens fill less than half of their places.
    """

    rows: int
    masked: float
    shown_as_mask: float
    shown_as_original: float
    shown_as_another: float
    random_next: float
    fill: float
    under_half_full: float


def rates(rows: Rows, vocabulary: Vocabulary) -> Rates:
    """Counts the rates of rows.

    Args:
        rows: the features of `tfrecords.schema` by name, arrays of [rows, size].
        vocabulary: the one they were written with.
    """
    words, lengths = rows[schema.INPUT_WORD_IDS], rows[schema.INPUT_MASK].sum(axis=1)
    present = rows[schema.MASKED_LM_WEIGHTS] > 0
    shown = np.take_along_axis(words, rows[schema.MASKED_LM_POSITIONS], axis=1)[present]
    original = rows[schema.MASKED_LM_IDS][present]
    is_mask = shown == vocabulary.ids[MASK]
    is_original = ~is_mask & (shown == original)
    guesses = max(len(shown), 1)
    seq_length = words.shape[1]
    return Rates(
        rows=len(words),
        masked=len(shown) / float((lengths - schema.SPECIAL_TOKENS_IN_ROW).sum()),
        shown_as_mask=is_mask.sum() / guesses,
        shown_as_original=is_original.sum() / guesses,
        shown_as_another=(~is_mask & ~is_original).sum() / guesses,
        random_next=float(rows[schema.NEXT_SENTENCE_LABELS].mean()),
        fill=lengths.sum() / words.size,
        under_half_full=float((2 * lengths < seq_length).mean()),
    )


def as_text(rows: Rows, number: int, vocabulary: Vocabulary) -> str:
    """One row as text: the first segment, then the second and where it comes from.

    Args:
        rows: as for `rates`.
        number: which of them.
        vocabulary: the one they were written with.

    Returns:
        Two lines, word pieces joined to words, each masked position as [shown|original].
    """
    shown = [vocabulary.tokens[index] for index in rows[schema.INPUT_WORD_IDS][number]]
    length = int(rows[schema.INPUT_MASK][number].sum())
    for position, original, weight in zip(
        rows[schema.MASKED_LM_POSITIONS][number],
        rows[schema.MASKED_LM_IDS][number],
        rows[schema.MASKED_LM_WEIGHTS][number],
        strict=True,
    ):
        if weight > 0:
            shown[position] = f"[{shown[position]}|{vocabulary.tokens[original]}]"
    second = int(np.argmax(rows[schema.INPUT_TYPE_IDS][number]))
    is_random = bool(rows[schema.NEXT_SENTENCE_LABELS][number].item())
    segments = (shown[:second], shown[second:length])
    return "\n".join(
        f"{title}: {_joined(tokens)}"
        for title, tokens in zip(
            ("first", "of another document" if is_random else "what follows"), segments, strict=True
        )
    )


def _joined(tokens: Sequence[str]) -> str:
    return " ".join(tokens).replace(f" {CONTINUATION}", "")


def read_rows(manifest: Manifest, split: str, seq_length: int, num_rows: int) -> Rows:
    """The first rows of a split, in the order in which they lie in its shards.

    Raises:
        UserError: the split or length is not there, or holds no example.
    """
    manifest.check_shards(split, seq_length)
    paths = [manifest.path(shard) for shard in manifest.shards(split, seq_length)]
    features = schema.features(seq_length, manifest.max_predictions_per_seq(seq_length))
    parsed = {
        feature.name: tf.io.FixedLenFeature(
            [feature.size], tf.float32 if feature.dtype == "float32" else tf.int64
        )
        for feature in features
    }
    records = tf.data.TFRecordDataset(paths).take(num_rows).batch(_BATCH)
    examples = records.map(lambda serialized: tf.io.parse_example(serialized, parsed))
    try:
        batches = list(examples.as_numpy_iterator())
    except tf.errors.OpError as error:
        raise UserError(
            f"{manifest.directory} cannot be read ({error.message}); "
            "python -m tfrecords.verify says where"
        ) from error
    if not batches:
        raise UserError(f"the split {split!r} of {manifest.directory} holds no example")
    return {name: np.concatenate([batch[name] for batch in batches]) for name in parsed}


def body(flag_values: flags.FlagValues) -> None:
    """Prints examples and rates as the flags say."""
    manifest = Manifest.load(flag_values.input_dir)
    vocabulary = Vocabulary.load(manifest.vocabulary_file)
    manifest.check_vocabulary(vocabulary)
    seq_length = flag_values.seq_length or manifest.seq_lengths[0]
    rows = read_rows(manifest, flag_values.split, seq_length, flag_values.num_rows)
    for number in range(min(flag_values.num_examples, len(rows[schema.INPUT_MASK]))):
        print(f"{as_text(rows, number, vocabulary)}\n")
    found = rates(rows, vocabulary)
    print(f"{found.rows:,} rows of {seq_length} tokens, split {flag_values.split}:")
    for name, value in dataclasses.asdict(found).items():
        if name != "rows":
            print(f"  {name.replace('_', ' '):<18} {100 * value:6.2f} %")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    return command.run(body, FLAGS, argv)


if __name__ == "__main__":
    sys.exit(main())
