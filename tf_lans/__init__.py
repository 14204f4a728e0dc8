"""Large-batch optimizers for Keras: LANS, LAMB and AdamW on block-normalized gradients.

The names here are the classes for whatever `tf.keras` is; `tf_lans.keras3` and
`tf_lans.tf_keras` name one Keras explicitly. Importing this package imports no Keras: each name
is resolved when it is first used. A Keras that was imported before, as TensorFlow does it, is told
of the classes, so that it finds them in saved models; one that is imported later needs
`tf_lans.keras3` or `tf_lans.tf_keras`, or any of the classes, before it loads one.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

_OF_EITHER_KERAS = (
    "LANS",
    "LAMB",
    "BlockNormalizedAdamW",
    "WarmupConstantDecay",
    "LargeBatchDiagnostics",
)
_MODULES = ("callbacks", "keras3", "recipes", "tf_keras")
_FUNCTIONS = {"describe": "block_selection", "plot_schedule": "schedule_plot"}

# Without the adapters, one of which may lack its Keras.
__all__ = [*_OF_EITHER_KERAS, *_FUNCTIONS, "callbacks", "recipes"]


def _keras_module() -> str:
    """The adapter for what `tf.keras` is, or will be once TensorFlow is imported."""
    if "tensorflow" in sys.modules:
        home = sys.modules["tensorflow"].keras.optimizers.Optimizer.__module__
        return "keras3" if home.split(".")[0] == "keras" else "tf_keras"
    legacy = os.environ.get("TF_USE_LEGACY_KERAS") in ("1", "true", "True")
    return "tf_keras" if legacy else "keras3"


def __getattr__(name: str) -> Any:
    if name in _OF_EITHER_KERAS:
        return getattr(importlib.import_module(f"tf_lans.{_keras_module()}"), name)
    if name in _MODULES:
        return importlib.import_module(f"tf_lans.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(f"tf_lans.{_FUNCTIONS[name]}"), name)
    raise AttributeError(f"module 'tf_lans' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_MODULES})


def _register_where_keras_is() -> None:
    if hasattr(sys.modules.get("keras"), "ops"):  # Keras 2 has none
        importlib.import_module("tf_lans.keras3")
    if "tf_keras" in sys.modules:
        importlib.import_module("tf_lans.tf_keras")


_register_where_keras_is()
