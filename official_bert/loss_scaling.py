"""Dynamic loss scaling for float16, on the gradient of the global batch.

Small gradients vanish in float16, so the loss is multiplied by a scale before the backward pass
and the reduced gradient divided by it. An overflow on any replica makes the sum non-finite on
all, so all skip the step and halve the scale (Micikevicius et al., arXiv 1710.03740, section 3.2).
"""

import tensorflow as tf

INITIAL, GROWTH_STEPS = 2.0**15, 2000


class LossScale(tf.Module):
    """The scale and the steps since it last changed; a checkpoint holds both unless it is fixed.

    Args:
      value: a fixed scale, or None: 2^15 at first, halved by every overflow, doubled after
        `growth_steps` steps without one.
      growth_steps: see `value`.

    Raises:
      ValueError: a scale that is not positive.

    Example:
      >>> scale = LossScale()
      >>> float(scale.value)
      32768.0
    """

    def __init__(self, value: float | None = None, growth_steps: int = GROWTH_STEPS) -> None:
        super().__init__(name="loss_scale")
        if value is not None and not value > 0:
            raise ValueError(f"the loss scale is {value}; expected a positive number")
        self.dynamic = value is None
        self.growth_steps = growth_steps
        mirrored = {"trainable": False, "aggregation": tf.VariableAggregation.ONLY_FIRST_REPLICA}
        self.value = tf.Variable(INITIAL if value is None else value, dtype=tf.float32, **mirrored)
        self.good_steps = tf.Variable(0, dtype=tf.int32, **mirrored)

    def update(self, finite: tf.Tensor) -> None:
        """Learns whether a step's gradient was finite; called in a replica context, by all."""
        if not self.dynamic:
            return
        scale, steps = self.value.read_value(), self.good_steps.read_value() + 1
        grows = tf.logical_and(finite, steps >= self.growth_steps)
        # beyond float32 a scale would make every gradient infinite
        doubled = tf.minimum(2.0 * scale, tf.constant(2.0**100))
        halved = tf.maximum(0.5 * scale, tf.constant(2.0**-100))
        self.value.assign(tf.where(finite, tf.where(grows, doubled, scale), halved))
        self.good_steps.assign(tf.where(tf.logical_or(grows, tf.logical_not(finite)), 0, steps))
