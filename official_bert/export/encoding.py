"""Model Garden's BERT as trackable functions, called as TF Hub's text encoders are."""

from collections.abc import Callable

import tensorflow as tf
import tf_keras

from official_bert import saved_encoders
from tfrecords import schema

INPUTS = saved_encoders.INPUTS
POOLED, SEQUENCE, LAYERS = "pooled_output", "sequence_output", "encoder_outputs"
DEFAULT, LOGITS = "default", "mlm_logits"

Tensors = dict[str, tf.Tensor]
Function = Callable[..., Tensors]


def hub_module(model: tf_keras.Model) -> tf.train.Checkpoint:
    """The encoder with its masked-LM head, as TF Hub's convention for text encoders has them.

    Only functions and variables are tracked, no Keras layers: the SavedModel holds the encoder's
    graph twice, with dropout and without, and nothing of an optimizer.

    Args:
        model: Model Garden's `BertPretrainerV2`.

    Returns:
        An object to be saved. Once loaded it maps int32 (batch, length) `input_word_ids`,
        `input_mask`, `input_type_ids` to `sequence_output` (batch, length, hidden),
        `pooled_output` (batch, hidden), `default`, the same, and the list `encoder_outputs`, of
        every layer's (batch, length, hidden). Its `mlm` also takes `masked_lm_positions`
        (batch, places), and gives `mlm_logits` (batch, places, vocabulary) in place of `default`.
    """
    encoder, head = model.encoder_network, model.masked_lm
    module = _reusable(_encoding(encoder), encoder.trainable_variables, INPUTS)
    own = {id(variable) for variable in encoder.trainable_variables}
    added = [variable for variable in head.trainable_variables if id(variable) not in own]
    module.mlm = _reusable(
        _filling(module.__call__, head),
        [*encoder.trainable_variables, *added],
        (*INPUTS, schema.MASKED_LM_POSITIONS),
    )
    return module


def signatures(module: tf.train.Checkpoint) -> dict[str, tf.types.experimental.GenericFunction]:
    """TensorFlow Serving's view of `hub_module`: flat outputs, layers by number, no dropout."""

    @tf.function(input_signature=_in_order(INPUTS), autograph=False)
    def serving_default(
        input_word_ids: tf.Tensor, input_mask: tf.Tensor, input_type_ids: tf.Tensor
    ) -> Tensors:
        outputs = module.__call__(
            dict(zip(INPUTS, (input_word_ids, input_mask, input_type_ids), strict=True)), False
        )
        return _flat(outputs)

    names = (*INPUTS, schema.MASKED_LM_POSITIONS)

    @tf.function(input_signature=_in_order(names), autograph=False)
    def mlm(
        input_word_ids: tf.Tensor,
        input_mask: tf.Tensor,
        input_type_ids: tf.Tensor,
        masked_lm_positions: tf.Tensor,
    ) -> Tensors:
        values = (input_word_ids, input_mask, input_type_ids, masked_lm_positions)
        outputs = module.mlm.__call__(dict(zip(names, values, strict=True)), False)
        return {LOGITS: outputs[LOGITS]}

    return {"serving_default": serving_default, "mlm": mlm}


def _encoding(encoder: tf_keras.Model) -> Function:
    def call(inputs: Tensors, training: bool = False) -> Tensors:
        outputs = encoder({name: inputs[name] for name in INPUTS}, training=training)
        return {
            SEQUENCE: outputs[SEQUENCE],
            POOLED: outputs[POOLED],
            DEFAULT: outputs[POOLED],
            LAYERS: list(outputs[LAYERS]),
        }

    return call


def _filling(encode: Function, head: tf_keras.layers.Layer) -> Function:
    def call(inputs: Tensors, training: bool = False) -> Tensors:
        outputs = encode({name: inputs[name] for name in INPUTS}, training)
        del outputs[DEFAULT]
        positions = inputs[schema.MASKED_LM_POSITIONS]
        return outputs | {LOGITS: head(outputs[SEQUENCE], masked_positions=positions)}

    return call


def _reusable(
    call: Function, variables: list[tf.Variable], names: tuple[str, ...]
) -> tf.train.Checkpoint:
    """An object with what `hub.KerasLayer` asks of a trainable one."""
    module = tf.train.Checkpoint()
    module.__call__ = tf.function(call, autograph=False)
    for training in (True, False):
        module.__call__.get_concrete_function(_specs(names), training=training)
    module.variables = module.trainable_variables = list(variables)
    module.regularization_losses = []
    return module


def _specs(names: tuple[str, ...]) -> dict[str, tf.TensorSpec]:
    return {name: tf.TensorSpec([None, None], tf.int32, name=name) for name in names}


def _in_order(names: tuple[str, ...]) -> list[tf.TensorSpec]:
    specs = _specs(names)
    return [specs[name] for name in names]


def _flat(outputs: Tensors) -> Tensors:
    flat = {name: outputs[name] for name in (SEQUENCE, POOLED)}
    layers = {f"{LAYERS}_{index}": layer for index, layer in enumerate(outputs[LAYERS])}
    return flat | layers
