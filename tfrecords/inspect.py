"""Shows examples of a folder of shards as text, and the rates of their masks and pairs.

    python -m tfrecords.inspect --input_dir shards --seq_length 128 --num_examples 3

A masked position is written [shown|original]: what the model sees and what it has to guess. Rows
that are masked when they are read are shown as the first epoch of seed 0 masks them.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from absl import flags

from tfrecords import command, reader, schema
from tfrecords.errors import UserError
from tfrecords.manifest import Manifest
from tfrecords.vocabulary import CLS, CONTINUATION, MASK, PAD, SEP, Vocabulary

_BATCH = 512

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "input_dir", None, "The folder that tfrecords.build or tfrecords.adopt wrote.", required=True,
    flag_values=FLAGS,
)  # fmt: skip
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
        random_next: rows whose second segment comes from another document; None for rows without
            next-sentence pairs.
        fill: tokens over places, special tokens included.
        under_half_full: rows whose tokens fill less than half of their places.
        length_deciles: the tokens of the shortest row, of the one longer than a tenth of them,
            than two tenths and so on, to the longest: 11 numbers.
    """

    rows: int
    masked: float
    shown_as_mask: float
    shown_as_original: float
    shown_as_another: float
    random_next: float | None
    fill: float
    under_half_full: float
    length_deciles: tuple[int, ...]


def rates(rows: Rows, vocabulary: Vocabulary, next_sentence: bool = True) -> Rates:
    """Counts the rates of rows.

    Args:
        rows: the features of `tfrecords.schema` by name, arrays of [rows, size].
        vocabulary: the one they were written with.
        next_sentence: whether they are segment pairs with a label.
    """
    words, lengths = rows[schema.INPUT_WORD_IDS], rows[schema.INPUT_MASK].sum(axis=1)
    present = rows[schema.MASKED_LM_WEIGHTS] > 0
    positions = rows[schema.MASKED_LM_POSITIONS]
    shown = np.take_along_axis(words, positions, axis=1)[present]
    original = rows[schema.MASKED_LM_IDS][present]
    is_mask = shown == vocabulary.ids[MASK]
    is_original = ~is_mask & (shown == original)
    # Other scripts may show a special token as the replacement of a masked one.
    unmasked = words.copy()
    unmasked[np.nonzero(present)[0], positions[present]] = original
    special = np.isin(unmasked, [vocabulary.ids[token] for token in (PAD, CLS, SEP)])
    maskable = (rows[schema.INPUT_MASK] > 0) & ~special
    guesses = max(len(shown), 1)
    labels = rows[schema.NEXT_SENTENCE_LABELS]
    deciles = np.percentile(lengths, np.arange(0, 101, 10), method="inverted_cdf")
    return Rates(
        rows=len(words),
        masked=len(shown) / max(maskable.sum(), 1),
        shown_as_mask=is_mask.sum() / guesses,
        shown_as_original=is_original.sum() / guesses,
        shown_as_another=(~is_mask & ~is_original).sum() / guesses,
        random_next=float(labels.mean()) if next_sentence else None,
        fill=lengths.sum() / words.size,
        under_half_full=float((2 * lengths < words.shape[1]).mean()),
        length_deciles=tuple(deciles.astype(int).tolist()),
    )


def as_text(rows: Rows, number: int, vocabulary: Vocabulary) -> str:
    """One row as text: the first segment, then the second and where it comes from.

    Args:
        rows: as for `rates`.
        number: which of them.
        vocabulary: the one they were written with.

    Returns:
        Two lines, one where the row has no second segment; word pieces joined to words, each
        masked position as [shown|original].
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
    types = rows[schema.INPUT_TYPE_IDS][number]
    if not types.any():
        return f"text: {_joined(shown[:length])}"
    second = int(np.argmax(types))
    is_random = bool(rows[schema.NEXT_SENTENCE_LABELS][number].item())
    title = "of another document" if is_random else "what follows"
    return f"first: {_joined(shown[:second])}\n{title}: {_joined(shown[second:length])}"


def _joined(tokens: Sequence[str]) -> str:
    return " ".join(tokens).replace(f" {CONTINUATION}", "")


def read_rows(manifest: Manifest, split: str, seq_length: int, num_rows: int) -> Rows:
    """The first rows of a split, in the order in which they lie in its shards.

    Raises:
        UserError: the split or length is not there, holds no example or is damaged.
    """
    dataset = reader.read(
        manifest.directory,
        split=split,
        seq_length=seq_length,
        global_batch_size=_BATCH,
        training=False,
    )
    try:
        batches = list(dataset.take(-(-num_rows // _BATCH)).as_numpy_iterator())
    except tf.errors.OpError as error:
        named = reader.user_error(error)
        reason = error.message if named is None else named
        raise UserError(
            f"{manifest.directory} cannot be read ({reason}); python -m tfrecords.verify says where"
        ) from error
    rows = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    is_example = rows[schema.INPUT_MASK].any(axis=1)
    return {name: values[is_example][:num_rows] for name, values in rows.items()}


def report(found: Rates) -> str:
    """Rates as lines."""
    lines = []
    for name, value in dataclasses.asdict(found).items():
        if name in ("rows", "length_deciles"):
            continue
        shown = "not applicable" if value is None else f"{100 * value:6.2f} %"
        lines.append(f"  {name.replace('_', ' '):<18} {shown}")
    deciles = " ".join(map(str, found.length_deciles))
    return "\n".join([*lines, f"  tokens in a row, from the shortest by tenths: {deciles}"])


def body(flag_values: flags.FlagValues) -> None:
    """Prints examples and rates as the flags say."""
    manifest = Manifest.load(flag_values.input_dir)
    vocabulary = Vocabulary.load(manifest.vocabulary_file)
    manifest.check_vocabulary(vocabulary)
    seq_length = flag_values.seq_length
    if seq_length is None:
        seq_length = manifest.seq_lengths[0]
    rows = read_rows(manifest, flag_values.split, seq_length, flag_values.num_rows)
    for number in range(min(flag_values.num_examples, len(rows[schema.INPUT_MASK]))):
        print(f"{as_text(rows, number, vocabulary)}\n")
    found = rates(rows, vocabulary, manifest.next_sentence)
    print(f"{found.rows:,} rows of {seq_length} tokens, split {flag_values.split}:")
    print(report(found))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command."""
    return command.run(body, FLAGS, argv)


if __name__ == "__main__":
    sys.exit(main())
