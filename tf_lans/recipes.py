"""Published settings for pretraining BERT-Large, as data.

Sources: Table 1 of arXiv 2006.13484 for LANS; its section 4 and arXiv 1904.00962 for the LAMB
baseline. The papers do not state beta, epsilon and weight decay: those are the ones in the LANS
authors' later code.
"""

from __future__ import annotations

import dataclasses
import importlib
from typing import Any

from tf_lans import schedules


@dataclasses.dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase of pretraining, at one sequence length.

    Attributes:
        seq_length: tokens in an example.
        global_batch_size: examples in an update.
        total_steps: updates.
        peak_learning_rate: eta.
        warmup_ratio: the warmup's share of the updates.
        constant_ratio: the constant phase's share.
    """

    seq_length: int
    global_batch_size: int
    total_steps: int
    peak_learning_rate: float
    warmup_ratio: float
    constant_ratio: float = 0.0

    def schedule_arguments(self) -> dict[str, Any]:
        """The arguments of `WarmupConstantDecay`."""
        warmup_steps, constant_steps = schedules.phase_steps(
            self.total_steps, self.warmup_ratio, self.constant_ratio
        )
        return {
            "peak_learning_rate": self.peak_learning_rate,
            "total_steps": self.total_steps,
            "warmup_steps": warmup_steps,
            "constant_steps": constant_steps,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A published pretraining run in two phases.

    Attributes:
        optimizer: the class's name in this package.
        optimizer_arguments: its arguments beside the learning rate.
        phase1: the phase at sequence length 128.
        phase2: the phase at sequence length 512.
        source: where the numbers come from.

    Example:
        >>> recipe = tf_lans.recipes.LANS_96K_33K
        >>> recipe.phase1.schedule_arguments()["warmup_steps"]
        1500
        >>> optimizer = recipe.create_optimizer(recipe.phase1)
    """

    optimizer: str
    optimizer_arguments: tuple[tuple[str, float], ...]
    phase1: Phase
    phase2: Phase
    source: str

    def create_optimizer(self, phase: Phase, **overrides: Any) -> Any:
        """The optimizer of one phase with its schedule, for whatever `tf.keras` is.

        Args:
            phase: `phase1` or `phase2`.
            **overrides: further arguments of the optimizer, such as exclusion patterns.
        """
        package = importlib.import_module("tf_lans")
        schedule = package.WarmupConstantDecay(**phase.schedule_arguments())
        arguments = {**dict(self.optimizer_arguments), **overrides}
        return getattr(package, self.optimizer)(schedule, **arguments)


_ARGUMENTS = (("beta_1", 0.9), ("beta_2", 0.999), ("epsilon", 1e-6), ("weight_decay", 0.01))

LANS_96K_33K = Recipe(
    optimizer="LANS",
    optimizer_arguments=_ARGUMENTS,
    phase1=Phase(
        seq_length=128,
        global_batch_size=98_304,
        total_steps=3519,
        peak_learning_rate=0.00675,
        warmup_ratio=0.4265,
        constant_ratio=0.2735,
    ),
    phase2=Phase(
        seq_length=512,
        global_batch_size=33_792,
        total_steps=782,
        peak_learning_rate=0.005,
        warmup_ratio=0.192,
        constant_ratio=0.108,
    ),
    source="arXiv 2006.13484, Table 1: F1 90.60 on SQuAD v1.1 after 53.6 minutes on 1536 V100",
)

LAMB_64K_32K = Recipe(
    optimizer="LAMB",
    optimizer_arguments=_ARGUMENTS,
    phase1=Phase(
        seq_length=128,
        global_batch_size=65_536,
        total_steps=7038,
        peak_learning_rate=0.006,
        warmup_ratio=0.2843,
    ),
    phase2=Phase(
        seq_length=512,
        global_batch_size=32_768,
        total_steps=1563,
        peak_learning_rate=0.004,
        warmup_ratio=0.128,
    ),
    source="arXiv 1904.00962, the baseline of Table 2 in arXiv 2006.13484",
)
