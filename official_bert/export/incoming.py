"""What a published BERT is, once read: the same whichever format it came in."""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
from official.nlp.configs import encoders

from official_bert.export import weight_map
from tfrecords.errors import UserError
from tfrecords.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class Incoming:
    """A BERT as a foreign folder holds it.

    Attributes:
        encoder: its size, in Model Garden's words.
        arrays: its weights by Model Garden's names (`weight_map.Entry.model_garden`), in Model
            Garden's shapes; heads that the folder lacks are not among them.
        vocabulary: as many word pieces as there are embedding rows.
        lower_case: whether text is lower-cased before it is cut into them.
        warnings: what the user should know of the differences, a line each.
    """

    encoder: encoders.BertEncoderConfig
    arrays: Mapping[str, np.ndarray]
    vocabulary: Vocabulary
    lower_case: bool
    warnings: tuple[str, ...] = ()


def complete(
    *,
    encoder: encoders.BertEncoderConfig,
    arrays: Mapping[str, np.ndarray],
    vocabulary: Vocabulary,
    lower_case: bool,
    warnings: Iterable[str],
) -> Incoming:
    """An `Incoming` whose vocabulary has an entry for every embedding row.

    Raises:
        UserError: the vocabulary is larger than the embedding table, or the encoder lacks weights.
    """
    rows = encoder.vocab_size
    warnings = list(warnings)
    if len(vocabulary) > rows:
        raise UserError(
            f"{vocabulary.path} has {len(vocabulary)} entries, the model {rows} embedding rows; "
            "expected the vocabulary it was trained with: give that as --vocab_file"
        )
    if len(vocabulary) < rows:
        warnings.append(
            f"its vocabulary has {len(vocabulary)} entries for {rows} embedding rows; [unused*] "
            "entries fill it up"
        )
    needed = [entry.model_garden for entry in weight_map.entries(encoder.num_layers)]
    missing = [
        name for name in needed if name not in arrays and not name.startswith(weight_map.HEADS)
    ]
    if missing:
        raise UserError(
            f"{len(missing)} of the encoder's weights are missing, the first {missing[0]} in Model "
            "Garden's words; is the folder whole, and its config its own?"
        )
    return Incoming(
        encoder=encoder,
        arrays=arrays,
        vocabulary=filled_up(vocabulary, rows),
        lower_case=lower_case,
        warnings=tuple(warnings),
    )


def filled_up(vocabulary: Vocabulary, rows: int) -> Vocabulary:
    """The vocabulary with `[unused*]` entries for embedding rows that have no token.

    Embedding tables are often padded to a round number of rows. A vocabulary that is larger than
    the table is returned as it is: the caller refuses it.

    Example:
        >>> len(filled_up(vocabulary, 30528))
        30528
    """
    if len(vocabulary) >= rows:
        return vocabulary
    taken = set(vocabulary.tokens)
    names = (f"[unused{index}]" for index in range(len(taken) + rows))
    fresh = [name for name in names if name not in taken][: rows - len(vocabulary)]
    tokens = (*vocabulary.tokens, *fresh)
    return of_tokens(tokens, vocabulary.path)


def of_tokens(tokens: tuple[str, ...], path: str) -> Vocabulary:
    """A vocabulary of tokens that came without a vocabulary file."""
    content = "".join(f"{token}\n" for token in tokens).encode("utf-8")
    return Vocabulary(tokens=tokens, content=content, path=path)
