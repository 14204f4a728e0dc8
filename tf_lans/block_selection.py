"""From the user's patterns to each block's flags, and the table that shows them."""

from __future__ import annotations

import collections
import re
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from tf_lans.update_rules import Treatment

_SUFFIX = re.compile(r"(/replica_\d+)?(:\d+)?$")


class BlockRow(NamedTuple):
    """One block as `describe` shows it.

    Attributes:
        block: the variable's path, as the patterns see it; of further ones of that path with #2,
            #3, ..., which patterns do not see.
        shape: the variable's shape.
        decays: whether weight decay applies.
        adapts: whether the trust ratio applies.
    """

    block: str
    shape: tuple[int, ...]
    decays: bool
    adapts: bool


class BlockTable(tuple[BlockRow, ...]):
    """Rows of `BlockRow`, printed as an aligned table."""

    __slots__ = ()

    def __str__(self) -> str:
        cells = [["block", "shape", "decays", "adapts"]]
        for row in self:
            flags = ["yes" if flag else "no" for flag in (row.decays, row.adapts)]
            cells.append([row.block, str(row.shape), *flags])
        widths = [max(len(line[column]) for line in cells) for column in range(4)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
            for line in cells
        )


def block_path(variable: Any) -> str:
    """The name that patterns are searched in: the variable's path, else its name.

    The suffixes `:0` and `/replica_N` of TensorFlow are gone.

    Args:
        variable: a Keras 3 variable (`path`) or a `tf.Variable` (`name`).

    Example:
        >>> import types
        >>> block_path(types.SimpleNamespace(name="dense/kernel/replica_1:0"))
        'dense/kernel'
    """
    name = getattr(variable, "path", None)
    return _SUFFIX.sub("", variable.name if name is None else name)


def numbered(paths: Sequence[str]) -> list[str]:
    """The paths, those that occurred before with a number: names to tell the blocks apart.

    Example:
        >>> numbered(["dense/kernel", "dense/bias", "dense/kernel"])
        ['dense/kernel', 'dense/bias', 'dense/kernel#2']
    """
    seen: collections.Counter[str] = collections.Counter()
    found = []
    for path in paths:
        seen[path] += 1
        found.append(path if seen[path] == 1 else f"{path}#{seen[path]}")
    return found


def matches(patterns: Sequence[str] | None, path: str) -> bool:
    """Whether any of the regular expressions is found in the path; None holds no pattern."""
    return patterns is not None and any(re.search(pattern, path) for pattern in patterns)


def unmatched_patterns(patterns: Sequence[str] | None, paths: Iterable[str]) -> tuple[str, ...]:
    """The patterns that are found in none of the paths, in their order.

    Example:
        >>> unmatched_patterns(["bias", "gamma"], ["dense/kernel", "dense/bias"])
        ('gamma',)
    """
    if patterns is None:
        return ()
    known = list(paths)
    return tuple(
        pattern for pattern in patterns if not any(re.search(pattern, path) for path in known)
    )


def treatments(settings: Any, paths: Sequence[str]) -> list[Treatment]:
    """Each block's flags, in the order of `paths`.

    Args:
        settings: the optimizer's hyper-parameters; without the field
            `exclude_from_layer_adaptation` no block adapts.
        paths: the blocks' paths.
    """
    adaptive = hasattr(settings, "exclude_from_layer_adaptation")
    return [
        Treatment(
            decays=not matches(settings.exclude_from_weight_decay, path),
            adapts=adaptive and not matches(settings.exclude_from_layer_adaptation, path),
        )
        for path in paths
    ]


def warn_of_unmatched(settings: Any, paths: Sequence[str]) -> None:
    """Warns, once for each argument, of patterns that match no block, naming them.

    An optimizer that was given no block has none that a pattern could miss.
    """
    if not paths:
        return
    for argument in ("exclude_from_weight_decay", "exclude_from_layer_adaptation"):
        unmatched = unmatched_patterns(getattr(settings, argument, None), paths)
        if unmatched:
            warnings.warn(
                f"{argument}: {', '.join(map(repr, unmatched))} matches none of the "
                f"{len(paths)} blocks; the first is {paths[0]!r}. "
                "tf_lans.describe(optimizer, model) lists them all.",
                stacklevel=4,
            )


def warn_of_shared(settings: Any, paths: Sequence[str]) -> None:
    """Warns of variables that were excluded one by one and have the path of others.

    Two towers whose layers have the same names have equal paths; a pattern means all of them.
    """
    counts = collections.Counter(paths)
    for path, count in counts.items():
        exact = f"^{re.escape(path)}$"
        if count > 1 and exact in (settings.exclude_from_weight_decay or ()):
            warnings.warn(
                f"exclude_from_weight_decay: {count} blocks have the path {path!r}, and all of "
                "them are excluded; give their layers names of their own",
                stacklevel=4,
            )


def check_list(argument: str, variables: Any) -> None:
    """Refuses a lone variable where a list of them belongs.

    Raises:
        TypeError: it is one.
    """
    if hasattr(variables, "assign"):
        raise TypeError(
            f"{argument} got the variable {block_path(variables)!r}: expected a list, [variable]"
        )


def describe(optimizer: Any, variables_or_model: Any) -> BlockTable:
    """A table of what the optimizer will do with each block, before a step is taken.

    Args:
        optimizer: an optimizer of this package.
        variables_or_model: a list of trainable variables, or a built model.

    Returns:
        A tuple of rows (block, shape, decays, adapts) that prints as a table.

    Raises:
        TypeError: `optimizer` is of another package, or a lone variable came for a list.
        ValueError: the model has no variables yet.

    Example:
        >>> print(tf_lans.describe(tf_lans.LANS(exclude_from_weight_decay=["bias"]), model))
        block         shape   decays  adapts
        dense/kernel  (3, 4)  yes     yes
        dense/bias    (4,)    no      yes
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)  # of a LossScaleOptimizer
    settings = getattr(optimizer, "hyperparameters", None)
    if settings is None:
        raise TypeError(
            f"describe() got a {type(optimizer).__name__}: expected an optimizer of tf_lans"
        )
    variables = getattr(variables_or_model, "trainable_variables", variables_or_model)
    check_list("describe()", variables)
    if not variables:
        raise ValueError("describe() got no trainable variables: build the model first")
    paths = [block_path(variable) for variable in variables]
    return BlockTable(
        BlockRow(path, tuple(variable.shape), treatment.decays, treatment.adapts)
        for path, variable, treatment in zip(
            numbered(paths), variables, treatments(settings, paths), strict=True
        )
    )
