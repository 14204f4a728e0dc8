"""What XLA's text of a program says about it: sizes, shapes, and what a TPU could not run.

Pure functions of the text that `tf.function(...).experimental_get_compiler_ir` gives for the
stages `hlo` and `optimized_hlo`. https://openxla.org/xla/operation_semantics describes the
operations.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

_BITS = {
    "pred": 8,
    **{f"{sign}{bits}": bits for sign in "su" for bits in (2, 4, 8, 16, 32, 64)},
    "f16": 16,
    "bf16": 16,
    "f32": 32,
    "f64": 64,
    "c64": 64,
    "c128": 128,
    "token": 0,
    "opaque": 0,
}
_WIDE_INTEGERS = ("s64", "u64")

# Carried out by the host, or waiting for it: inside a TPU's program each stops the device.
HOST_OPCODES = frozenset(
    ("infeed", "outfeed", "send", "send-done", "recv", "recv-done", "rng-get-and-update-state")
)
# Called by name. These are notes to the compiler itself and no calls.
_COMPILER_NOTES = frozenset(("Sharding", "SPMDFullToShardShape", "SPMDShardToFullShape"))
# A TPU emulates 64-bit integers in pairs of 32-bit words. Counters and the keys of random
# generators are as small as this; elsewhere, or as an index, they cost.
_KEY_ELEMENTS = 4
_INDEXING = frozenset(
    ("gather", "scatter", "dynamic-slice", "dynamic-update-slice", "iota", "sort", "dot")
)
COLLECTIVES = frozenset(
    ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")
)

_SHAPE = re.compile(r"\b([a-z]+[0-9]*)\[([^\]]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")
_METADATA = re.compile(r'op_(type|name)="([^"]*)"')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_LINE = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = ")
_OPCODE = re.compile(r"\s*([a-z][a-z0-9\-]*)\(")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """An array's type.

    Attributes:
      dtype: as XLA writes it: `f32`, `s64`, `pred`.
      dimensions: its sizes, bounds where they are dynamic.
      dynamic: whether a dimension is known at run time only.
    """

    dtype: str
    dimensions: tuple[int, ...]
    dynamic: bool = False

    @property
    def bytes(self) -> int:
        """Its size without padding."""
        return math.prod(self.dimensions) * _BITS.get(self.dtype, 0) // 8

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.dimensions))}]"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """One line of a program.

    Attributes:
      name: unique in the program.
      opcode: such as `dot`.
      shapes: of its result, a tuple's flattened.
      operands: names of the instructions whose results it takes.
      computation: the name of the computation it stands in.
      op_type: of the TensorFlow operation that it comes from, or empty.
      op_name: that operation's name, or empty.
      target: of a custom call, or empty.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...] = ()
    computation: str = ""
    op_type: str = ""
    op_name: str = ""
    target: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Program:
    """An HLO module.

    Attributes:
      name: the module's.
      entry: the name of the computation that it begins with.
      instructions: of all computations.
    """

    name: str
    entry: str
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        """The instructions by their names."""
        return {each.name: each for each in self.instructions}

    @property
    def opcodes(self) -> collections.Counter[str]:
        """How often each opcode occurs."""
        return collections.Counter(each.opcode for each in self.instructions)

    @property
    def argument_bytes(self) -> int:
        """The size of what the program is given: variables and batch."""
        return sum(
            shape.bytes
            for each in self.instructions
            if each.opcode == "parameter" and each.computation == self.entry
            for shape in each.shapes
        )

    @property
    def collective_bytes(self) -> int:
        """The size of what collectives of the program result in, each counted once."""
        return sum(
            shape.bytes
            for each in self.instructions
            if each.opcode.removesuffix("-start") in COLLECTIVES
            for shape in each.shapes
        )


def parse(text: str) -> Program:
    r"""Reads an HLO module.

    Args:
      text: begins with `HloModule`.

    Raises:
      ValueError: it does not, or holds more than one module.

    Example:
      >>> program = parse('HloModule m\\n\\nENTRY %e (x: f32[2]) -> f32[2] {\\n'
      ...                 '  ROOT %x = f32[2]{0} parameter(0)\\n}\\n')
      >>> program.argument_bytes, dict(program.opcodes)
      (8, {'parameter': 1})
    """
    modules = [line for line in text.splitlines() if line.startswith("HloModule")]
    if len(modules) != 1:
        raise ValueError(f"expected the text of one HloModule, got {len(modules)}")
    entry, computation, instructions = "", "", []
    for line in text.splitlines():
        if line.endswith("{") and not line.startswith((" ", "HloModule")):
            computation = line.removeprefix("ENTRY ").split()[0].lstrip("%")
            entry = computation if line.startswith("ENTRY") else entry
        elif (match := _LINE.match(line)) and computation:
            instructions.append(_instruction(match[1], line[match.end() :], computation))
    name = modules[0].split()[1].rstrip(",")
    return Program(name=name, entry=entry, instructions=tuple(instructions))


def _instruction(name: str, text: str, computation: str) -> Instruction:
    end = _closing(text) + 1 if text.startswith("(") else text.index(" ")
    match = _OPCODE.match(text, end)
    if match is None:
        raise ValueError(f"expected an operation in the line of %{name}: {text[:80]}")
    close = _closing(text, match.end() - 1)
    rest = text[close + 1 :]
    metadata = dict(_METADATA.findall(rest))
    target = _TARGET.search(rest)
    literal = match[1] in ("constant", "parameter")
    return Instruction(
        name=name,
        opcode=match[1],
        shapes=tuple(shapes(text[:end])),
        operands=() if literal else tuple(_NAME.findall(text, match.end(), close)),
        computation=computation,
        op_type=metadata.get("type", ""),
        op_name=metadata.get("name", ""),
        target=target[1] if target else "",
    )


def shapes(text: str) -> Iterator[Shape]:
    """The arrays of a type as XLA writes it, a tuple's from left to right.

    Example:
      >>> [str(shape) for shape in shapes("(s32[], /*index=1*/f32[<=8,128]{1,0})")]
      ['s32[]', 'f32[8,128]']
    """
    for dtype, sizes in _SHAPE.findall(text):
        dimensions = tuple(
            int(size.strip().removeprefix("<=")) for size in sizes.split(",") if size
        )
        yield Shape(dtype=dtype, dimensions=dimensions, dynamic="<=" in sizes)


def _closing(text: str, start: int = 0) -> int:
    """Where the parenthesis that opens at `start` closes."""
    depth = 0
    for match in re.finditer(r'"(?:[^"\\]|\\.)*"|[()]', text[start:]):
        depth += {"(": 1, ")": -1}.get(match[0], 0)
        if depth == 0:
            return start + match.start()
    raise ValueError(f"expected a closing parenthesis: {text[start : start + 80]}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """Instructions of one kind that a check names.

    Attributes:
      check: `dynamic shape`, `host`, `custom call`, `stateful random numbers`, `64-bit integers`,
        `64-bit floats` or `unknown type`.
      what: opcode, type, and the TensorFlow operation.
      count: how many there are.
    """

    check: str
    what: str
    count: int

    def __str__(self) -> str:
        return f"{self.check}: {self.what} ({self.count} times)"


def findings(program: Program) -> list[Finding]:
    """What of a program a TPU cannot run, runs with the host's help, or emulates.

    - dynamic shape: a dimension with a bound in place of a size;
    - host: `HOST_OPCODES`;
    - custom call: code that is not XLA's, callbacks among it;
    - stateful random numbers: `rng`, whose bits depend on what ran before;
    - 64-bit integers: more than a counter or the key of a random generator, or an index;
    - 64-bit floats: any;
    - unknown type: what is no number, a string for instance.
    """
    checks: dict[str, Callable[[Instruction], bool]] = {
        "dynamic shape": lambda each: any(shape.dynamic for shape in each.shapes),
        "host": lambda each: each.opcode in HOST_OPCODES,
        "custom call": lambda each: (
            each.opcode == "custom-call" and each.target not in _COMPILER_NOTES
        ),
        "stateful random numbers": lambda each: each.opcode == "rng",
        "64-bit integers": lambda each: not _counter_or_key(program, each),
        "64-bit floats": lambda each: _has_dtype(each.shapes, ("f64", "c128")),
        "unknown type": lambda each: any(shape.dtype not in _BITS for shape in each.shapes),
    }
    found = []
    for check, applies in checks.items():
        kinds = collections.Counter(_kind(each) for each in program.instructions if applies(each))
        found += [Finding(check=check, what=what, count=count) for what, count in kinds.items()]
    return found


def _counter_or_key(program: Program, instruction: Instruction) -> bool:
    operands = [program.by_name[name] for name in instruction.operands if name in program.by_name]
    wide = [
        math.prod(shape.dimensions)
        for each in (instruction, *operands)
        for shape in each.shapes
        if shape.dtype in _WIDE_INTEGERS
    ]
    return not wide or (max(wide) <= _KEY_ELEMENTS and instruction.opcode not in _INDEXING)


def _has_dtype(given: Iterable[Shape], dtypes: Sequence[str]) -> bool:
    return any(shape.dtype in dtypes for shape in given)


def _kind(instruction: Instruction) -> str:
    """Opcode, type and origin, alike for the layers of a model."""
    result = str(instruction.shapes[0]) if instruction.shapes else "()"
    origin = instruction.target or instruction.op_type or "no TensorFlow operation"
    place = re.sub(r"\d+", "N", instruction.op_name.rpartition("/")[0])
    return f"{instruction.opcode} {result} of {origin}" + (f" in {place}" if place else "")
