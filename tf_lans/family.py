"""The optimizers of the family: constructors, documentation and configuration.

These mixins know no Keras; `keras3` and `tf_keras` join each to its base class. An adapter
offers `_initialize(learning_rate, name, base_arguments)`, which constructs the Keras base,
`_is_built()`, `_trust_ratios(settings)` and its Keras's schedules.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from tf_lans import hyperparameters, update_rules
from tf_lans.block_selection import block_path, check_list
from tf_lans.diagnostics import ObservedOptimizer
from tf_lans.hyperparameters import (
    Hyperparameters,
    LANSHyperparameters,
    LayerAdaptiveHyperparameters,
)


def _setting(name: str) -> property:
    """An attribute of the optimizer that lives, validated, in its hyper-parameters."""

    def get(self: BlockOptimizer) -> Any:
        return getattr(self.hyperparameters, name)

    def replace(self: BlockOptimizer, value: Any) -> None:
        # The Keras base classes assign their own idea of weight_decay and jit_compile while they
        # are constructed; ours come after.
        if "hyperparameters" in self.__dict__:
            self.hyperparameters = dataclasses.replace(self.hyperparameters, **{name: value})

    return property(get, replace, doc=f"The constructor's `{name}`.")


class BlockOptimizer(ObservedOptimizer):
    """What all optimizers of the family share, in either Keras.

    Attributes:
        hyperparameters: the validated settings.
        skipped_steps: an integer variable, the steps skipped for a non-finite gradient.
    """

    rule: ClassVar[Callable[..., update_rules.Updated]]
    hyperparameters: Hyperparameters
    _initialize: Callable[[Any, str, dict[str, Any]], None]
    _trust_ratios: Callable[[Any], dict[str, Any]]
    _schedule_class: ClassVar[type]
    _keras: ClassVar[str]
    clipnorm: float | None
    global_clipnorm: float | None
    clipvalue: float | None

    beta_1 = _setting("beta_1")
    beta_2 = _setting("beta_2")
    epsilon = _setting("epsilon")
    weight_decay = _setting("weight_decay")
    skip_nonfinite = _setting("skip_nonfinite")
    jit_compile = _setting("jit_compile")

    def _configure(
        self, settings: Hyperparameters, learning_rate: Any, name: str, base_arguments: dict
    ) -> None:
        arguments = hyperparameters.base_arguments(type(self).__name__, base_arguments)
        rate = hyperparameters.learning_rate(learning_rate)
        hyperparameters.check_schedule(rate, self._schedule_class, self._keras)
        self._initialize(rate, name, arguments)
        self.hyperparameters = settings

    @property
    def learning_rate(self) -> Any:
        """The learning rate; numbers that are assigned to it are checked like the constructor's."""
        return super().learning_rate  # type: ignore[misc]

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        rate = hyperparameters.assigned_learning_rate(value)
        hyperparameters.check_schedule(rate, self._schedule_class, self._keras)
        of_keras = super(BlockOptimizer, type(self)).learning_rate  # type: ignore[misc]
        of_keras.fset(self, rate)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "exclude_from_weight_decay":
            raise AttributeError(
                f"{type(self).__name__}.exclude_from_weight_decay is a method, which nothing can "
                "be assigned to: give the patterns to the constructor, or call the method with "
                "var_names=[...] before the first step"
            )
        if name == "exclude_from_layer_adaptation" and not hasattr(type(self), name):
            raise AttributeError(f"{type(self).__name__} has no {name}: it adapts no block")
        super().__setattr__(name, value)

    def _clipping(self) -> dict[str, float | None]:
        """The one clipping in force, by Keras's precedence; bounds of 0 and below are none."""
        bounds: dict[str, float | None] = dict.fromkeys(
            ("clipnorm", "global_clipnorm", "clipvalue")
        )
        for name in bounds:
            bound = getattr(self, name)
            if bound is not None and bound > 0:
                return {**bounds, name: bound}
        return bounds

    def exclude_from_weight_decay(
        self, var_list: Sequence[Any] | None = None, var_names: Sequence[str] | None = None
    ) -> None:
        """Adds blocks to those that weight decay leaves alone: Keras's own method.

        The constructor's argument of the same name does this by patterns; what is added here is
        kept with them and serialised with them.

        Args:
            var_list: variables to exclude, each known by its path; of several with one path all
                are, which the first step warns of.
            var_names: regular expressions searched in the paths.

        Raises:
            ValueError: the optimizer is built already.
            TypeError: `var_names` is no list of strings, or `var_list` is no list or holds one.
        """
        if self._is_built():
            raise ValueError(
                f"{type(self).__name__}.exclude_from_weight_decay() came after the optimizer was "
                "built: call it before the first step, or give the patterns to the constructor"
            )
        check_list("exclude_from_weight_decay(var_list=...)", var_list)
        strings = [each for each in var_list or () if isinstance(each, str)]
        if strings:
            raise TypeError(
                f"exclude_from_weight_decay() got {strings[0]!r} in var_list: expected variables "
                "there, and regular expressions in var_names"
            )
        exact = [f"^{re.escape(block_path(variable))}$" for variable in var_list or ()]
        named = hyperparameters.patterns("var_names", var_names) or ()
        present = self.hyperparameters.exclude_from_weight_decay or ()
        added = [pattern for pattern in (*exact, *named) if pattern not in present]
        self.hyperparameters = dataclasses.replace(
            self.hyperparameters, exclude_from_weight_decay=(*present, *added)
        )

    def get_config(self) -> dict[str, Any]:
        """Every constructor argument, those of the Keras base included."""
        return {**super().get_config(), **self.hyperparameters.config()}  # type: ignore[misc]


class LAMBFamily(BlockOptimizer):
    """What the layer-adapting optimizers share."""

    hyperparameters: LayerAdaptiveHyperparameters

    weight_norm_bounds = _setting("weight_norm_bounds")

    @property
    def exclude_from_layer_adaptation(self) -> tuple[str, ...] | None:
        """The constructor's patterns; others can be assigned before the optimizer is built."""
        return self.hyperparameters.exclude_from_layer_adaptation

    @exclude_from_layer_adaptation.setter
    def exclude_from_layer_adaptation(self, value: Sequence[str] | None) -> None:
        if self._is_built():
            raise ValueError(
                f"{type(self).__name__}.exclude_from_layer_adaptation was assigned after the "
                "optimizer was built: assign it before the first step, or give the patterns to "
                "the constructor"
            )
        self.hyperparameters = dataclasses.replace(
            self.hyperparameters,
            exclude_from_layer_adaptation=value,  # type: ignore[arg-type]
        )

    def trust_ratios(self) -> dict[str, Any]:
        """The trust ratio of each block's momentum term, computed from state when called.

            phi(||x||) / ||r + lambda x||,  r = m^ / (sqrt(v^) + epsilon)

        with x, m, v as the last update left them; 1 before the first update and where a norm is
        0. Blocks excluded from layer adaptation are left out. A block that has seen no gradient
        but zeros has r = 0, and if it decays, the ratio 1 / lambda: a step shrinks it by the
        factor 1 - eta. So has every such block where tf_keras's LossScaleOptimizer has counted a
        skipped step before the first update.

        Returns:
            A dict from block path to a float32 scalar. Inside a `tf.function` the scalars are
            symbolic; a run that never asks pays nothing.

        Raises:
            ValueError: the optimizer is not built yet.

        Example:
            >>> optimizer = tf_lans.LANS()
            >>> optimizer.build(model.trainable_variables)
            >>> {path: float(ratio) for path, ratio in optimizer.trust_ratios().items()}
            {'dense/kernel': 1.0, 'dense/bias': 1.0}
        """
        if not self._is_built():
            raise ValueError(
                f"{type(self).__name__}.trust_ratios() came before the optimizer was built: call "
                "build(trainable_variables) or take a step first"
            )
        return self._trust_ratios(self.hyperparameters)


class LANS(LAMBFamily):
    """LANS, Algorithm 2 of the paper: LAMB for batches beyond 32K.

    For each block (trainable variable) x with the gradient g of the global batch, at update t:

        g~ = g / ||g||
        m  = beta_1 m + (1 - beta_1) g~,     v  = beta_2 v + (1 - beta_2) g~^2
        m^ = m / (1 - beta_1^t),             v^ = v / (1 - beta_2^t)
        r  = m^ / (sqrt(v^) + epsilon),      c  = g~ / (sqrt(v^) + epsilon)
        d  = phi(||x||) [ beta_1 (r + lambda x) / ||r + lambda x||
                          + (1 - beta_1) (c + lambda x) / ||c + lambda x|| ]
        x  = x - eta d

    A positive scale on a block's gradient changes nothing within the range of float32, so gradient
    clipping is not needed. Norms, m and v are float32 whatever the variable's dtype (float64 for
    float64 variables). A ratio whose numerator or denominator is 0 is 1, so zero-initialised blocks
    learn.

    Args:
        learning_rate: eta: a number of at least 0 or a schedule, which is given the number of
            updates made, also where gradients are accumulated.
        beta_1: decay rate of m and the mix of the two terms, in [0, 1).
        beta_2: decay rate of v, in [0, 1).
        epsilon: the constant outside the square root, above 0.
        weight_decay: lambda, inside the trust ratio, at least 0.
        exclude_from_weight_decay: regular expressions searched in each block's path; where one
            is found, lambda = 0. None and [] exclude nothing.
        exclude_from_layer_adaptation: likewise; where one is found, both ratios are 1.
        weight_norm_bounds: None for phi(z) = z, or (lower, upper) for
            phi(z) = min(max(z, lower), upper).
        normalize_gradients: False for g~ = g.
        nesterov: False for d = phi(||x||) (r + lambda x) / ||r + lambda x||. With both switches
            off this is `LAMB`, bit for bit.
        skip_nonfinite: whether a step whose all-reduced gradient holds NaN or infinity changes
            nothing but `skipped_steps`; variables that Keras 3 overwrites with their gradients are
            overwritten even so. A LossScaleOptimizer's own skips are not in `skipped_steps`;
            tf_keras's adds them to `iterations`.
        jit_compile: whether XLA compiles the update on TensorFlow, one program per distinct block
            shape.
        name: the optimizer's name.
        **kwargs: those of the Keras base optimizer: clipnorm, global_clipnorm, clipvalue (on the
            gradient of the global batch), use_ema, ema_momentum, ema_overwrite_frequency, and in
            Keras 3 loss_scale_factor and gradient_accumulation_steps.

    Raises:
        TypeError: an argument of the wrong type; bools and strings are no numbers.
        ValueError: an argument outside its range.

    Example:
        >>> model = keras.Sequential([keras.layers.Dense(1)])
        >>> schedule = tf_lans.WarmupConstantDecay.from_ratios(0.007, 100, 0.2, 0.1)
        >>> model.compile(optimizer=tf_lans.LANS(schedule), loss="mse")
        >>> history = model.fit(numpy.ones((8, 4)), numpy.ones((8, 1)), verbose=0)

    Reference:
        Zheng, Lin, Zha, Li, "Accelerated Large Batch Optimization of BERT Pretraining in 54
        minutes", arXiv 2006.13484, Algorithm 2.
    """

    rule = staticmethod(update_rules.lans)
    hyperparameters: LANSHyperparameters

    normalize_gradients = _setting("normalize_gradients")
    nesterov = _setting("nesterov")

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-6,
        weight_decay: float = 0.01,
        exclude_from_weight_decay: Sequence[str] | None = None,
        exclude_from_layer_adaptation: Sequence[str] | None = None,
        *,
        weight_norm_bounds: tuple[float, float] | None = None,
        normalize_gradients: bool = True,
        nesterov: bool = True,
        skip_nonfinite: bool = True,
        jit_compile: bool = True,
        name: str = "LANS",
        **kwargs: Any,
    ) -> None:
        settings = LANSHyperparameters(
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            weight_decay=weight_decay,
            exclude_from_weight_decay=exclude_from_weight_decay,  # type: ignore[arg-type]
            exclude_from_layer_adaptation=exclude_from_layer_adaptation,  # type: ignore[arg-type]
            weight_norm_bounds=weight_norm_bounds,
            normalize_gradients=normalize_gradients,
            nesterov=nesterov,
            skip_nonfinite=skip_nonfinite,
            jit_compile=jit_compile,
        )
        self._configure(settings, learning_rate, name, kwargs)


class LAMB(LAMBFamily):
    """LAMB, Algorithm 1 of the paper, with the weight decay inside the trust ratio.

    For each block x with the gradient g of the global batch, at update t:

        m  = beta_1 m + (1 - beta_1) g,      v  = beta_2 v + (1 - beta_2) g^2
        m^ = m / (1 - beta_1^t),             v^ = v / (1 - beta_2^t)
        r  = m^ / (sqrt(v^) + epsilon)
        d  = phi(||x||) (r + lambda x) / ||r + lambda x||
        x  = x - eta d

    Keras's own `Lamb` decays outside the ratio; the paper, and this class, inside.

    Args:
        learning_rate: as in `LANS`.
        beta_1: decay rate of m, in [0, 1).
        beta_2: as in `LANS`.
        epsilon: as in `LANS`.
        weight_decay: as in `LANS`.
        exclude_from_weight_decay: as in `LANS`.
        exclude_from_layer_adaptation: as in `LANS`.
        weight_norm_bounds: as in `LANS`.
        skip_nonfinite: as in `LANS`.
        jit_compile: as in `LANS`.
        name: the optimizer's name.
        **kwargs: those of the Keras base optimizer.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument outside its range.

    Example:
        >>> optimizer = tf_lans.LAMB(0.006, exclude_from_weight_decay=["bias", "layer_norm"])

    Reference:
        You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes",
        arXiv 1904.00962; Algorithm 1 of arXiv 2006.13484.
    """

    rule = staticmethod(update_rules.lamb)

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-6,
        weight_decay: float = 0.01,
        exclude_from_weight_decay: Sequence[str] | None = None,
        exclude_from_layer_adaptation: Sequence[str] | None = None,
        *,
        weight_norm_bounds: tuple[float, float] | None = None,
        skip_nonfinite: bool = True,
        jit_compile: bool = True,
        name: str = "LAMB",
        **kwargs: Any,
    ) -> None:
        settings = LayerAdaptiveHyperparameters(
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            weight_decay=weight_decay,
            exclude_from_weight_decay=exclude_from_weight_decay,  # type: ignore[arg-type]
            exclude_from_layer_adaptation=exclude_from_layer_adaptation,  # type: ignore[arg-type]
            weight_norm_bounds=weight_norm_bounds,
            skip_nonfinite=skip_nonfinite,
            jit_compile=jit_compile,
        )
        self._configure(settings, learning_rate, name, kwargs)


class BlockNormalizedAdamW(BlockOptimizer):
    """AdamW on the block-normalized gradient, what the paper finetunes with.

    For each block x with the gradient g of the global batch, at update t:

        g~ = g / ||g||
        m  = beta_1 m + (1 - beta_1) g~,     v  = beta_2 v + (1 - beta_2) g~^2
        m^ = m / (1 - beta_1^t),             v^ = v / (1 - beta_2^t)
        x  = x - eta (m^ / (sqrt(v^) + epsilon) + lambda x)

    Args:
        learning_rate: as in `LANS`.
        beta_1: decay rate of m, in [0, 1).
        beta_2: as in `LANS`.
        epsilon: as in `LANS`.
        weight_decay: lambda, at least 0.
        exclude_from_weight_decay: as in `LANS`.
        skip_nonfinite: as in `LANS`.
        jit_compile: as in `LANS`.
        name: the optimizer's name.
        **kwargs: those of the Keras base optimizer.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: an argument outside its range.

    Example:
        >>> optimizer = tf_lans.BlockNormalizedAdamW(3e-5)

    Reference:
        arXiv 2006.13484, sections 3.2 (normalization) and 4 (finetuning).
    """

    rule = staticmethod(update_rules.block_normalized_adamw)

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-6,
        weight_decay: float = 0.01,
        exclude_from_weight_decay: Sequence[str] | None = None,
        *,
        skip_nonfinite: bool = True,
        jit_compile: bool = True,
        name: str = "BlockNormalizedAdamW",
        **kwargs: Any,
    ) -> None:
        settings = Hyperparameters(
            beta_1=beta_1,
            beta_2=beta_2,
            epsilon=epsilon,
            weight_decay=weight_decay,
            exclude_from_weight_decay=exclude_from_weight_decay,  # type: ignore[arg-type]
            skip_nonfinite=skip_nonfinite,
            jit_compile=jit_compile,
        )
        self._configure(settings, learning_rate, name, kwargs)
