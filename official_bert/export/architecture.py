"""What all three formats can say: the plain BERT, and the refusal of anything else."""

from collections.abc import Iterator

import numpy as np
import tensorflow as tf
import tf_keras
from official.core import task_factory
from official.nlp.configs import bert, encoders

from official_bert.export import weight_map
from official_bert.pretraining_task import LargeBatchPretrainConfig
from tfrecords.errors import UserError

NEXT_SENTENCE = "next_sentence"
POOLER = "pooler"
MASKED_LM_HEAD = "masked-LM head"
NEXT_SENTENCE_HEAD = "next-sentence head"
# What a published BERT may lack, in words, and what the names of its variables begin with.
HEADS = {
    POOLER: "pooler_transform/",
    MASKED_LM_HEAD: "bert/cls/predictions/",
    NEXT_SENTENCE_HEAD: "bert/next_sentence/logits/",
}


def plain_bert(config: bert.PretrainerConfig, form: str) -> encoders.BertEncoderConfig:
    """The encoder's config, where a format that knows only the published BERT can hold it.

    Args:
        config: the model's config.
        form: the format's name, for the message.

    Raises:
        UserError: naming every field that the format has no word for.
    """
    problems = list(_problems(config))
    if problems:
        raise UserError(
            f"--format {form} holds the BERT as published, and this model is another: "
            f"{'; '.join(problems)}; use --format saved_model, which holds any"
        )
    return config.encoder.get()


def pretrainer_config(encoder: encoders.BertEncoderConfig) -> bert.PretrainerConfig:
    """The config of a pretrainer around an encoder, its next-sentence head included."""
    head = bert.ClsHeadConfig(
        inner_dim=encoder.hidden_size,
        num_classes=2,
        dropout_rate=encoder.dropout_rate,
        name=NEXT_SENTENCE,
    )
    return bert.PretrainerConfig(
        encoder=encoders.EncoderConfig(type="bert", bert=encoder),
        cls_heads=[head],
        mlm_initializer_range=encoder.initializer_range,
    )


def has_pooler_head(config: bert.PretrainerConfig) -> bool:
    """Whether the model has a next-sentence head with a pooler of the encoder's shape."""
    width = getattr(config.encoder.get(), "hidden_size", None)
    return any(head.name == NEXT_SENTENCE and head.inner_dim == width for head in config.cls_heads)


def arrays(model: tf_keras.Model) -> dict[str, np.ndarray]:
    """The values of a pretrainer's variables, by Model Garden's names without `:0`."""
    return {name: variable.numpy() for name, variable in variables(model).items()}


def variables(model: tf_keras.Model) -> dict[str, tf.Variable]:
    """A pretrainer's variables, by Model Garden's names without `:0`."""
    return {variable.name.removesuffix(":0"): variable for variable in model.variables}


def build(encoder: encoders.BertEncoderConfig) -> tf_keras.Model:
    """A pretrainer with new weights, its next-sentence head included."""
    config = LargeBatchPretrainConfig(model=pretrainer_config(encoder))
    return task_factory.get_task(config).build_model()


def sizes(encoder: encoders.BertEncoderConfig) -> weight_map.Sizes:
    """The lengths of the axes of an encoder's weights, by the names that `weight_map` gives."""
    return {
        "vocabulary": encoder.vocab_size,
        "positions": encoder.max_position_embeddings,
        "types": encoder.type_vocab_size,
        "hidden": encoder.hidden_size,
        "heads": encoder.num_attention_heads,
        "head": encoder.hidden_size // encoder.num_attention_heads,
        "inner": encoder.intermediate_size,
        "labels": 2,
    }


def share_pooler(model: tf_keras.Model) -> None:
    """Gives a pretrainer's encoder the pooler of its next-sentence head, the trained one.

    A head without a pooler of the encoder's shape changes nothing.
    """
    known = variables(model)
    for copy, original in weight_map.POOLER_COPIES.items():
        if copy in known and known[copy].shape == known[original].shape:
            known[original].assign(known[copy])


def num_parameters(model: tf_keras.Model) -> int:
    """The weights of a pretrainer, the pooler that its head and its encoder share counted once."""
    return sum(
        int(np.prod(variable.shape))
        for name, variable in variables(model).items()
        if name not in weight_map.POOLER_COPIES
    )


def _problems(config: bert.PretrainerConfig) -> Iterator[str]:
    if config.encoder.type != "bert":
        yield f"task.model.encoder.type is {config.encoder.type}, expected bert"
        return
    encoder = config.encoder.get()
    expected = {
        "norm_first": (encoder.norm_first, (False,)),
        "embedding_size": (encoder.embedding_size, (None, encoder.hidden_size)),
        "hidden_activation": (encoder.hidden_activation, ("gelu",)),
        "output_range": (encoder.output_range, (None,)),
    }
    for name, (value, allowed) in expected.items():
        if value not in allowed:
            yield f"task.model.encoder.bert.{name} is {value}, expected {allowed[-1]}"
    if config.mlm_activation != "gelu":
        yield f"task.model.mlm_activation is {config.mlm_activation}, expected gelu"
    for head in config.cls_heads:
        shape = (head.name, head.inner_dim, head.num_classes, head.activation, head.cls_token_idx)
        wanted = (NEXT_SENTENCE, encoder.hidden_size, 2, "tanh", 0)
        if shape != wanted:
            yield f"a head of task.model.cls_heads is {shape}, expected {wanted}"
