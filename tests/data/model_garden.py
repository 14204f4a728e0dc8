"""Model Garden, the reference of some of these tests; the others need no more than `[data]`."""

import importlib
import importlib.util
import types

import pytest


def module(name: str) -> types.ModuleType:
    """A module of Model Garden; the test that asks for it skips where there is none."""
    if importlib.util.find_spec("official") is None:
        pytest.skip("compares with Model Garden; tf-models-official is not installed")
    return importlib.import_module(name)
