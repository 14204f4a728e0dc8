"""Strings to embeddings, and to guesses for `[MASK]`, as one program that a server can run."""

from collections.abc import Callable

import tensorflow as tf

from official_bert.export import encoding
from tfrecords import schema
from tfrecords.vocabulary import MASK, Vocabulary

MEAN = "mean_pooled"
GUESSES = 5

TEXT = tf.TensorSpec([None], tf.string, name="text")


def module(
    encoder: tf.train.Checkpoint,
    preprocess: tf.train.Checkpoint,
    vocabulary: Vocabulary,
    max_length: int,
) -> tf.train.Checkpoint:
    """Everything from text on, in one object to be saved.

    Rows are as long as the batch's longest text, `max_length` at most; what is beyond is cut.

    Args:
        encoder: an `encoding.hub_module`.
        preprocess: a `preprocessing.hub_module`.
        vocabulary: the encoder's.
        max_length: places that the encoder has.

    Returns:
        An object whose `embed` and `fill_mask` are functions of strings (batch,). `embed`, which
        is also what calling the object does, gives `pooled_output` (batch, hidden),
        `sequence_output` (batch, length, hidden), the int32 `input_mask` (batch, length) of its
        filled places and `mean_pooled` (batch, hidden), the mean of `sequence_output` over these,
        [CLS] and [SEP] included. `fill_mask` gives, for every `[MASK]` that stands in a text, the
        likeliest `tokens` and their `probabilities`, (batch, masks, GUESSES); "" and 0 fill up
        the rows of texts with fewer masks than others.
    """
    tokenize, mask = preprocess.tokenize.__call__, vocabulary.ids[MASK]
    tokens = tf.constant(vocabulary.tokens)

    def rows(ids: tf.RaggedTensor) -> encoding.Tensors:
        longest = tf.reduce_max(tf.concat([[0], ids.row_lengths()], axis=0))
        length = tf.cast(longest, tf.int32) + schema.SPECIAL_TOKENS_IN_PACKED
        return preprocess.bert_pack_inputs.__call__(
            [ids], seq_length=tf.minimum(length, max_length)
        )

    @tf.function(input_signature=[TEXT], autograph=False)
    def embed(text: tf.Tensor) -> encoding.Tensors:
        return _embeddings(encoder, rows(tokenize(text)))

    @tf.function(input_signature=[TEXT], autograph=False)
    def fill_mask(text: tf.Tensor) -> encoding.Tensors:
        return _guesses(encoder, rows(_masked_ids(text, tokenize, mask)), mask, tokens)

    saved = tf.train.Checkpoint()
    saved.variables = list(encoder.mlm.variables)
    saved.embed, saved.fill_mask = embed, fill_mask
    saved.__call__ = embed
    return saved


def _embeddings(encoder: tf.train.Checkpoint, rows: encoding.Tensors) -> encoding.Tensors:
    outputs = encoder.__call__(rows, False)
    sequence = outputs[encoding.SEQUENCE]
    weights = tf.cast(rows[schema.INPUT_MASK], sequence.dtype)[:, :, tf.newaxis]
    return {
        encoding.POOLED: outputs[encoding.POOLED],
        encoding.SEQUENCE: sequence,
        schema.INPUT_MASK: rows[schema.INPUT_MASK],
        MEAN: tf.reduce_sum(sequence * weights, axis=1) / tf.reduce_sum(weights, axis=1),
    }


def _guesses(
    encoder: tf.train.Checkpoint, rows: encoding.Tensors, mask: int, tokens: tf.Tensor
) -> encoding.Tensors:
    ids = rows[schema.INPUT_WORD_IDS]
    columns = tf.broadcast_to(tf.range(tf.shape(ids)[1]), tf.shape(ids))
    places = tf.ragged.boolean_mask(columns, ids == mask)
    positions = places.to_tensor()
    filled = tf.sequence_mask(places.row_lengths(), tf.shape(positions)[1])[:, :, tf.newaxis]
    outputs = encoder.mlm.__call__({**rows, schema.MASKED_LM_POSITIONS: positions}, False)
    probabilities, best = tf.math.top_k(tf.nn.softmax(outputs[encoding.LOGITS]), GUESSES)
    return {
        "tokens": tf.where(filled, tf.gather(tokens, best), ""),
        "probabilities": tf.where(filled, probabilities, 0.0),
    }


def _masked_ids(
    text: tf.Tensor, tokenize: Callable[[tf.Tensor], tf.RaggedTensor], mask: int
) -> tf.RaggedTensor:
    """The ids of texts, `mask` for each `[MASK]`."""
    parts = tf.strings.split(text, MASK)
    ids = tokenize(parts.flat_values)
    ended = tf.concat([ids, tf.fill([ids.nrows(), 1], mask)], axis=1)
    return parts.with_flat_values(ended).merge_dims(1, 2)[:, :-1]
