"""Strings to the inputs of BERT in TensorFlow operations, with the ids that training saw.

`tensorflow_text.FastBertTokenizer` has Unicode tables of its own, which differ from those of the
reference tokenizer for compatibility characters, some controls and long words. Here the tables
are training's (`characters`); TF Text only cuts the words into pieces.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf
import tensorflow_text as tf_text
from official.nlp.modeling import layers
from official.nlp.tools import export_tfhub_lib

from official_bert.export import characters
from tfrecords import tokenization
from tfrecords.vocabulary import CLS, MASK, PAD, SEP, UNKNOWN, Vocabulary

DEFAULT_LENGTH = 128

_BYTES_PER_CHARACTER = 4
_TOO_LONG = "x" * (_BYTES_PER_CHARACTER * tokenization.MAX_WORD + 1)


class GraphTokenizer:
    """`tfrecords.tokenization.Tokenizer` as a function of string tensors.

    The ids are equal for all text but one kind: `characters` names it.

    Args:
        vocabulary: the word pieces.
        lower_case: whether to lower-case and strip accents first.

    Example:
        >>> GraphTokenizer(vocabulary, lower_case=True)(tf.constant(["Hello [SEP]", ""]))
        <tf.RaggedTensor [[7592, 1031, 19802, 1033], []]>
    """

    def __init__(self, vocabulary: Vocabulary, lower_case: bool) -> None:
        self._lower_case = lower_case
        self._wordpiece = tf_text.FastWordpieceTokenizer(
            list(vocabulary.tokens),
            max_bytes_per_word=len(_TOO_LONG) - 1,
            token_out_type=tf.int32,
            unknown_token=UNKNOWN,
            no_pretokenization=True,
        )

    def __call__(self, text: tf.Tensor) -> tf.RaggedTensor:
        """The ids of each text: string (batch,) to int32 (batch, (pieces)).

        Bytes that are no UTF-8 are dropped.
        """
        words = tf.strings.split(self.normalize(text))
        lengths = tf.strings.length(words.flat_values, unit="UTF8_CHAR")
        # The reference counts characters, the operation bytes.
        words = words.with_flat_values(
            tf.where(lengths > tokenization.MAX_WORD, _TOO_LONG, words.flat_values)
        )
        return self._wordpiece.tokenize(words).merge_dims(1, 2)

    def normalize(self, text: tf.Tensor) -> tf.Tensor:
        """The words of each text with spaces between them: string (batch,) to the same."""
        # The space keeps a line's last sigma from the next line's first letter.
        codes = tf.strings.unicode_decode(tf.strings.join([text, " "]), "UTF-8")
        if self._lower_case:
            codes = codes.with_flat_values(_lower_final_sigmas(codes.flat_values))
        return tf.strings.unicode_encode(_expand(codes, self._lower_case), "UTF-8")


def _look_up(table: characters.Paged, codes: tf.Tensor) -> tf.Tensor:
    pages = tf.gather(table.pages, codes // characters.PAGE)
    return tf.gather(table.values, pages * characters.PAGE + codes % characters.PAGE)


def _expand(codes: tf.RaggedTensor, lower_case: bool) -> tf.RaggedTensor:
    """Puts each character's expansion in its place."""
    table = characters.expansions(lower_case)
    own = codes.flat_values
    rows = tf.gather(table.rows, _look_up(table.kinds, own))
    rows = tf.where(rows == characters.SELF, own[:, tf.newaxis], rows)
    kept = rows != characters.NONE
    counts = tf.reduce_sum(tf.cast(kept, tf.int64), axis=1)
    ends = tf.concat([[0], tf.cumsum(counts)], axis=0)
    return tf.RaggedTensor.from_row_splits(
        tf.boolean_mask(rows, kept), tf.gather(ends, codes.row_splits), validate=False
    )


def _lower_final_sigmas(codes: tf.Tensor) -> tf.Tensor:
    """Unicode's rule: a cased letter stands before it and none after, skipping what is skipped."""

    def lowered() -> tf.Tensor:
        contexts = _look_up(characters.sigma_contexts(), codes)
        places = tf.where(contexts != characters.SigmaContext.SKIPPED)
        cased = tf.gather_nd(contexts, places) == characters.SigmaContext.CASED
        before = tf.concat([[False], cased[:-1]], axis=0)
        after = tf.concat([cased[1:], [False]], axis=0)
        sigma = tf.gather_nd(codes, places) == characters.CAPITAL_SIGMA
        final = tf.boolean_mask(places, sigma & before & ~after)
        updates = tf.fill(tf.shape(final)[:1], characters.FINAL_SIGMA)
        return tf.tensor_scatter_nd_update(codes, final, updates)

    return tf.cond(tf.reduce_any(codes == characters.CAPITAL_SIGMA), lowered, lambda: codes)


def hub_module(
    tokenizer: GraphTokenizer, vocabulary: Vocabulary, seq_length: int
) -> tf.train.Checkpoint:
    """A preprocessor as TF Hub's convention for text encoders has it.

    Args:
        tokenizer: strings to ids.
        vocabulary: says the ids of the special tokens.
        seq_length: the length of rows where a caller names none.

    Returns:
        An object to be saved. Once loaded it maps strings (batch,) to int32 (batch, seq_length)
        `input_word_ids`, `input_mask`, `input_type_ids`; `tokenize` maps strings to ragged ids
        (batch, (pieces)), and `bert_pack_inputs([ids], seq_length=n)` one or two segments of
        these to the inputs, cutting the longer first.
    """
    special = special_tokens(vocabulary)
    pack = layers.BertPackInputs(seq_length=seq_length, special_tokens_dict=special)
    module = tf.train.Checkpoint()
    text = tf.TensorSpec([None], tf.string, name="text")
    module.tokenize = tf.train.Checkpoint()
    module.tokenize.__call__ = _function(tokenizer, text)
    module.tokenize.get_special_tokens_dict = tf.train.Checkpoint()
    module.tokenize.get_special_tokens_dict.__call__ = _function(
        lambda: {name: tf.constant(value) for name, value in special.items()}
    )
    module.bert_pack_inputs = export_tfhub_lib.BertPackInputsSavedModelWrapper(pack)
    module.__call__ = _function(
        lambda text: module.bert_pack_inputs.__call__(
            [module.tokenize.__call__(text)], seq_length=tf.constant(seq_length)
        ),
        text,
    )
    return module


def _function(
    python_function: Callable[..., Any], *specs: tf.TensorSpec
) -> tf.types.experimental.GenericFunction:
    # Nothing here is control flow of Python's; looking for it takes most of the tracing's time.
    return tf.function(python_function, input_signature=specs, autograph=False)


def special_tokens(vocabulary: Vocabulary) -> dict[str, int]:
    """The ids of the special tokens under TF Hub's names, and the vocabulary's size."""
    names = {
        "padding_id": PAD,
        "start_of_sequence_id": CLS,
        "end_of_segment_id": SEP,
        "mask_id": MASK,
    }
    ids = {name: vocabulary.ids[token] for name, token in names.items()}
    return ids | {"vocab_size": len(vocabulary)}
