"""What a user may set on an optimizer of the family, validated once for all classes.

The dataclasses are immutable and hashable, so that a compiled program can be keyed by them.
"""

from __future__ import annotations

import dataclasses
import math
import numbers
import re
from collections.abc import Sequence
from typing import Any

_SMALLEST_EPSILON = 1.1754944e-38  # the smallest normal float32: below it epsilon would round to 0


def number(name: str, value: Any, expected: str) -> float:
    """Returns `value` as a finite float.

    Args:
        name: the argument's name, for the message.
        value: what the caller gave: a Python or NumPy real number, not a bool or a variable.
        expected: what the argument may be, in words, for the message.

    Raises:
        TypeError: `value` is a bool, a string, None, a variable, whose later values would be
            missed, or anything else that is no real number.
        ValueError: `value` is NaN or infinite.
    """
    is_variable = hasattr(value, "assign")
    if is_variable or isinstance(value, bool | str) or not hasattr(value, "__float__"):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}: expected {expected}")
    converted = float(value)
    if not math.isfinite(converted):
        raise ValueError(f"{name}={converted} is not finite: expected {expected}")
    return converted


def integer(name: str, value: Any, *, minimum: int) -> int:
    """Returns `value` as an int of at least `minimum`.

    Raises:
        TypeError: `value` is no integer (bools and integral floats included).
        ValueError: `value` is below `minimum`.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(
            f"{name}={value!r} is a {type(value).__name__}: expected an integer of at least "
            f"{minimum}"
        )
    converted = int(value)
    if converted < minimum:
        raise ValueError(f"{name}={converted}: expected an integer of at least {minimum}")
    return converted


def learning_rate(value: Any) -> Any:
    """Returns a checked learning rate: a float of at least 0, or the callable as it came.

    Schedules are callables; whether one is of its Keras says `check_schedule`.

    Raises:
        TypeError: `value` is neither a real number nor callable, or is a variable: assign to the
            optimizer's own `learning_rate`.
        ValueError: `value` is negative, NaN or infinite.
    """
    expected = "a number of at least 0 or a learning-rate schedule"
    if callable(value) and not hasattr(value, "assign"):
        return value
    rate = number("learning_rate", value, expected)
    if rate < 0.0:
        raise ValueError(f"learning_rate={rate} is negative: expected {expected}")
    return rate


def assigned_learning_rate(value: Any) -> Any:
    """Returns what is to be assigned to `learning_rate`: Python and NumPy numbers checked.

    Tensors, variables and schedules pass as they came: a look at a value could wait for a device.

    Raises:
        TypeError: `value` is None, a bool or a string.
        ValueError: `value` is a negative number, NaN or infinite.
    """
    of_python = value is None or isinstance(value, bool | str | numbers.Real)
    if of_python or type(value).__module__ == "numpy":
        return learning_rate(value)
    return value


def check_schedule(learning_rate: Any, own: type, keras: str) -> None:
    """Refuses a schedule of the other Keras, which fails at the first step or is never asked again.

    Args:
        learning_rate: a rate, a schedule or another callable.
        own: the base class of schedules.
        keras: whose it is, for the message.

    Raises:
        TypeError: it is such a schedule.
    """
    if hasattr(learning_rate, "get_config") and not isinstance(learning_rate, own):
        kind = type(learning_rate)
        raise TypeError(
            f"learning_rate is a {kind.__name__} of {kind.__module__}: expected a schedule of "
            f"{keras}, whose optimizer this is"
        )


_BASE_NUMBERS = {
    "clipnorm": "a number above 0, or None",
    "global_clipnorm": "a number above 0, or None",
    "clipvalue": "a number above 0, or None",
    "loss_scale_factor": "a number above 0, or None",
    "ema_momentum": "a number in [0, 1]",
}
# What other LAMBs call our arguments: PyTorch's and older Keras's, Model Garden's.
_OTHER_NAMES = {"lr": "learning_rate", "weight_decay_rate": "weight_decay"}


def base_arguments(optimizer: str, given: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of the Keras base, its numbers finite, where Keras takes a NaN.

    Ranges are Keras's to check: bounds of 0 and below clip nothing there, and 0 micro-steps
    accumulate nothing.

    Args:
        optimizer: the class's name, for the messages.
        given: the keyword arguments; those unknown here are left to Keras.

    Raises:
        TypeError: a value of the wrong type, or an argument that has another name here.
        ValueError: NaN, infinity, or less than 2 micro-steps.
    """
    for name, ours in _OTHER_NAMES.items():
        if name in given:
            raise TypeError(f"{optimizer} got {name}={given[name]!r}: expected {ours}=")
    checked = dict(given)
    for name, expected in _BASE_NUMBERS.items():
        if given.get(name) is not None:
            checked[name] = number(name, given[name], expected)
    if given.get("gradient_accumulation_steps") not in (None, 0):
        checked["gradient_accumulation_steps"] = integer(
            "gradient_accumulation_steps", given["gradient_accumulation_steps"], minimum=2
        )
    return checked


def _flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}: expected True or False")


def patterns(name: str, value: Any) -> tuple[str, ...] | None:
    """Returns regular expressions as a tuple; None stays None.

    Raises:
        TypeError: `value` is a lone string, or holds something that is no string.
        ValueError: a string is no valid regular expression, or is empty (it would match
            every block).
    """
    if value is None:
        return None
    expected = 'a list of regular expressions such as ["bias", "layer_norm"], or None'
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}: expected {expected}")
    for pattern in value:
        if not isinstance(pattern, str):
            raise TypeError(f"{name} holds {pattern!r}, no string: expected {expected}")
        if not pattern:
            raise ValueError(f"{name} holds an empty string, which matches every block: remove it")
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"{name} holds {pattern!r}, no regular expression ({error}): "
                "escape special characters with a backslash"
            ) from error
    return tuple(value)


def _norm_bounds(value: Any) -> tuple[float, float] | None:
    if value is None:
        return None
    expected = (
        "None or a pair (lower, upper) with 0 <= lower <= upper and upper > 0; a lower bound of 0 "
        "and an upper one of 1e38 leave their sides open"
    )
    if type(value).__module__ == "numpy":
        value = value.tolist()
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise TypeError(f"weight_norm_bounds={value!r}: expected {expected}")
    bounds = tuple(number("weight_norm_bounds", bound, expected) for bound in value)
    if not 0.0 <= bounds[0] <= bounds[1] or bounds[1] == 0.0:
        raise ValueError(f"weight_norm_bounds={value!r}: expected {expected}")
    return bounds[0], bounds[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """What every optimizer of the family has: the fields of `BlockNormalizedAdamW`.

    Attributes:
        beta_1: decay rate of the first moment m, in [0, 1).
        beta_2: decay rate of the second moment v, in [0, 1).
        epsilon: the constant outside the square root, above 0.
        weight_decay: lambda, at least 0.
        exclude_from_weight_decay: regular expressions; blocks whose path matches one decay by 0.
        skip_nonfinite: whether a step with a non-finite gradient is skipped.
        jit_compile: whether XLA compiles the update.

    Raises:
        TypeError: a value of the wrong type (bools and strings are no numbers).
        ValueError: a value outside its range.
    """

    beta_1: float = 0.9
    beta_2: float = 0.999
    epsilon: float = 1e-6
    weight_decay: float = 0.01
    exclude_from_weight_decay: tuple[str, ...] | None = None
    skip_nonfinite: bool = True
    jit_compile: bool = True

    def __post_init__(self) -> None:
        for name in ("beta_1", "beta_2"):
            expected = "a number in [0, 1)"
            beta = number(name, getattr(self, name), expected)
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"{name}={beta}: expected {expected}")
            object.__setattr__(self, name, beta)
        epsilon = number("epsilon", self.epsilon, "a number above 0")
        if epsilon < _SMALLEST_EPSILON:
            raise ValueError(f"epsilon={epsilon}: expected a number above 0, such as 1e-6")
        object.__setattr__(self, "epsilon", epsilon)
        decay = number("weight_decay", self.weight_decay, "a number of at least 0")
        if decay < 0.0:
            raise ValueError(f"weight_decay={decay}: expected a number of at least 0")
        object.__setattr__(self, "weight_decay", decay)
        for name in ("skip_nonfinite", "jit_compile"):
            _flag(name, getattr(self, name))
        object.__setattr__(
            self,
            "exclude_from_weight_decay",
            patterns("exclude_from_weight_decay", self.exclude_from_weight_decay),
        )

    def config(self) -> dict[str, Any]:
        """The fields as Keras serialises them: tuples become lists."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in fields.items()
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerAdaptiveHyperparameters(Hyperparameters):
    """The fields of `LAMB`: those of `Hyperparameters` and the trust ratio's.

    Attributes:
        exclude_from_layer_adaptation: regular expressions; blocks whose path matches one have
            trust ratio 1.
        weight_norm_bounds: None, or (lower, upper): phi clips ||x|| to that range.
    """

    exclude_from_layer_adaptation: tuple[str, ...] | None = None
    weight_norm_bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(
            self,
            "exclude_from_layer_adaptation",
            patterns("exclude_from_layer_adaptation", self.exclude_from_layer_adaptation),
        )
        object.__setattr__(self, "weight_norm_bounds", _norm_bounds(self.weight_norm_bounds))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LANSHyperparameters(LayerAdaptiveHyperparameters):
    """The fields of `LANS`: those of `LAMB` and a switch for each of its two ideas.

    Attributes:
        normalize_gradients: whether each block's gradient is divided by its norm.
        nesterov: whether the step mixes the momentum term with the current gradient's.
    """

    normalize_gradients: bool = True
    nesterov: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("normalize_gradients", "nesterov"):
            _flag(name, getattr(self, name))
