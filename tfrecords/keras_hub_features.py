"""Batches under the names and types of KerasHub's masked language models."""

import tensorflow as tf

from tfrecords import schema

Batch = tuple[dict[str, tf.Tensor], tf.Tensor, tf.Tensor]


def from_model_garden(features: dict[str, tf.Tensor]) -> Batch:
    """What `keras_hub.models.BertMaskedLM.fit` takes, from a batch under Model Garden's names.

    The names and types are those of `keras_hub.models.BertMaskedLMPreprocessor`; the next-sentence
    labels, which these models do not learn, are left out.

    Args:
        features: what a `tfrecords.decoding.Decoder` gives: [b, L] and [b, M].

    Returns:
        (x, y, sample_weight): x has `token_ids`, `segment_ids` int32 [b, L], `padding_mask` bool
        [b, L], true for tokens, and `mask_positions` int32 [b, M]; y is the masked tokens' ids,
        int32 [b, M]; sample_weight is 1 where there is one and 0 for the filling, float32 [b, M].

    Example:
        >>> x, y, sample_weight = from_model_garden(batch)
    """
    x = {
        "token_ids": features[schema.INPUT_WORD_IDS],
        "segment_ids": features[schema.INPUT_TYPE_IDS],
        "padding_mask": tf.cast(features[schema.INPUT_MASK], tf.bool),
        "mask_positions": features[schema.MASKED_LM_POSITIONS],
    }
    return x, features[schema.MASKED_LM_IDS], features[schema.MASKED_LM_WEIGHTS]
