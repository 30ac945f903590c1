"""Reads the text of a compiled program (HLO): its computations, instructions and the arrays of their shapes."""

from __future__ import annotations

import math
import re
from typing import NamedTuple

Computation = dict[str, "Instruction"]

_ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,<=]*)\](?:\{([^{}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_TILE = re.compile(r"T\(([\d,]+)\)")


class Instruction(NamedTuple):
    """One line of a computation: ``%name = shape opcode(operands), attributes``."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    inside: str  # the text between the brackets
    attributes: str
    is_root: bool


class Array(NamedTuple):
    """An array of a shape: its type, its sizes, and the bytes that it takes in the main memory of a device."""

    kind: str
    sizes: tuple[int, ...]
    nbytes: int  # with the padding of tiles
    resident: int  # the same, 0 for what lies in another memory, such as that on the chip

    @property
    def size(self) -> int:
        """The number of entries."""
        return math.prod(self.sizes)


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """(all computations by name, the name of the entry)."""
    computations: dict[str, Computation] = {}
    current, entry = "", ""
    for line in re.sub(r"/\*.*?\*/", "", text).splitlines():
        if line.startswith(("%", "ENTRY ")) and line.rstrip().endswith("{"):
            current = line.removeprefix("ENTRY ").split(" ", 1)[0].lstrip("%")
            computations[current] = {}
            entry = current if line.startswith("ENTRY") else entry
        elif line.startswith("}"):
            current = ""
        elif current and (found := _instruction(line)):
            computations[current][found.name] = found
    return computations, entry


def _instruction(line: str) -> Instruction | None:
    name, equals, rest = line.strip().partition(" = ")
    if not equals:
        return None
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opening = rest.find("(")
    if opening < 0:
        return None
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    names = tuple(_NAME.findall(inside)) or tuple(x.strip() for x in inside.split(","))
    is_root = name.startswith("ROOT ")
    name = name.removeprefix("ROOT ").lstrip("%")
    return Instruction(name, shape, rest[:opening], names, inside, rest[closing + 1 :], is_root)


def _closing(text: str, start: int) -> int:
    """The index of the bracket that closes the one at ``start``."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if not depth:
            return i
    return len(text)


def arrays(shape: str) -> list[Array]:
    """The arrays of a shape or of a tuple of shapes, such as ``f32[8,128]{1,0:T(8,128)}``."""
    return [_array(*found.groups()) for found in _ARRAY.finditer(shape)]


def _array(letters: str, bits: str, sizes: str, layout: str | None) -> Array:
    shape = tuple(int(re.sub(r"\D", "", n)) for n in sizes.split(",") if n)
    width = 8 if letters == "pred" else int(bits or 0)
    order, _, rest = (layout or "").partition(":")
    padded = list(shape)
    tile = _TILE.search(rest)
    if tile and order:
        minor = [int(i) for i in order.split(",")]
        for axis, unit in zip(minor, [int(t) for t in reversed(tile[1].split(","))], strict=False):
            padded[axis] = -(-padded[axis] // unit) * unit
    nbytes = math.prod(padded) * width // 8
    elsewhere = re.search(r"S\((\d+)\)", rest)
    return Array(f"{letters}{bits}", shape, nbytes, 0 if elsewhere and elsewhere[1] != "0" else nbytes)


def attribute(text: str, name: str) -> str:
    """The value of an attribute ``name=value`` or ``name={value}``; "" if there is none."""
    found = re.search(rf"\b{name}=(?:\{{([^{{}}]*)\}}|([^,\s]+))", text)
    return "" if found is None else (found[1] if found[1] is not None else found[2])


def called_by(text: str) -> list[str]:
    """The computations that the attributes call as branches or bodies."""
    names = []
    for name in ("calls", "to_apply", "branch_computations", "true_computation", "false_computation"):
        names += [x.strip().lstrip("%") for x in attribute(text, name).split(",") if x.strip()]
    return names
