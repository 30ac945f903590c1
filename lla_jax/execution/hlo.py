"""Counts what a compiled program does, from its text: operations, bytes, collectives and the compiler's cycles.

XLA's own analysis counts the body of a loop once. Here every instruction counts as often as the loops around it turn.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from lla_jax.execution.hlo_text import Array, Computation, Instruction, arrays, attribute, called_by, parse

_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "iota")
_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_ELEMENTWISE = (
    *("add", "subtract", "multiply", "divide", "maximum", "minimum", "negate", "abs", "sign", "compare", "select"),
    *("power", "exponential", "exponential-minus-one", "log", "log-plus-one", "tanh", "logistic", "rsqrt", "sqrt"),
    *("cosine", "sine", "erf", "floor", "ceil", "clamp"),
)
_NO_WORK = ("Sharding", "ConcatBitcast", "SliceBitcast", "AllocateBuffer", "annotate_device_placement")
_SLICES = ("dynamic-slice", "slice", "gather")
_PASSES = {"highest": 6, "high": 3}  # products of bfloat16 that a TPU makes of one of float32


class Collective(NamedTuple):
    """How often a program calls a collective of one kind, and the bytes of all results on one device."""

    calls: int
    nbytes: int


@dataclass
class Counts:
    """What one run of a program does on one device.

    Args:
      operations: floating point operations: two for each multiplication with addition of a product of matrices or a
        convolution, one for each entry of other results.
      products: those of products of matrices and convolutions alone.
      passes: the same as a TPU works them off: products of float32 at "highest" precision count 6 times, "high" 3.
      nbytes: bytes that the instructions read from the device's main memory and write to it.
      cycles: the sum of the compiler's estimates, in cycles; None where it gives none.
      seconds_by: for ``seconds``, pairs (cycles, bytes) of the instructions that run one after another, with their
        number.
      collectives: {kind: calls and bytes}.
      doubts: the reasons why a number may be wrong, in words.
    """

    operations: float = 0.0
    products: float = 0.0
    passes: float = 0.0
    nbytes: float = 0.0
    cycles: float | None = None
    seconds_by: list[tuple[float, float, int]] = field(default_factory=list)
    collectives: dict[str, Collective] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)

    def doubt(self, text: str) -> None:
        """Remember a reason, once."""
        if text not in self.doubts:
            self.doubts.append(text)


def count(text: str, trips: Mapping[str, int] | None = None) -> Counts:
    """Count what one run of a program does on one device.

    Args:
      text: the optimized program, ``compiled.as_text()``.
      trips: for a loop whose number of turns depends on values: {part of the loop's name in the source (``op_name``):
        turns}, such as {"while": 8}. A loop that is not named turns once, and the counts say that they are in doubt.
    """
    computations, entry = parse(text)
    counts = Counts()
    _Walk(computations, trips or {}, counts).run(entry, 1)
    return counts


class _Walk:
    """Adds up the instructions of a program, each as often as it runs."""

    def __init__(self, computations: dict[str, Computation], trips: Mapping[str, int], counts: Counts):
        self.computations, self.trips, self.counts = computations, trips, counts

    def run(self, name: str, times: int) -> None:
        """Count a computation that runs ``times`` times."""
        computation = self.computations.get(name, {})
        for each in computation.values():
            if each.opcode == "while":
                turns = times * self._turns(each, computation)
                self.run(attribute(each.attributes, "body").lstrip("%"), turns)
            elif each.opcode == "conditional":
                self.run(max(called_by(each.attributes), key=self._work), times)
            elif each.opcode in ("call", "async-start"):
                for called in called_by(each.attributes):
                    self.run(called, times)
            elif each.opcode not in _FREE and not each.opcode.endswith("-done"):
                self._add(each, computation, times)

    def _add(self, each: Instruction, computation: Computation, times: int) -> None:
        counts = self.counts
        for operations, is_product, passes in self._operations(each, computation):
            counts.operations += times * operations
            counts.products += times * operations * is_product
            counts.passes += times * operations * passes
        kind = each.opcode.removesuffix("-start")
        if kind in _COLLECTIVES:
            made = arrays(each.shape)
            nbytes = sum(x.nbytes for x in (made[len(made) // 2 :] if each.opcode != kind and len(made) > 1 else made))
            before = counts.collectives.get(kind, Collective(0, 0))
            counts.collectives[kind] = Collective(before.calls + times, before.nbytes + times * nbytes)
        if each.opcode == "custom-call":
            target = attribute(each.attributes, "custom_call_target").strip('"')
            if target not in _NO_WORK:
                counts.doubt(f"the operations of {target} are not counted")
        nbytes = self._bytes(each, computation)
        counts.nbytes += times * nbytes
        cycles = re.search(r'"estimated_cycles":"(\d+)"', each.attributes)
        if cycles:
            counts.cycles = (counts.cycles or 0.0) + times * int(cycles[1])
        if not each.opcode.endswith("-start"):  # copies that begin early run beside the others
            counts.seconds_by.append((int(cycles[1]) if cycles else 0, nbytes, times))

    def _work(self, name: str) -> float:
        """The operations of a branch, or its instructions, to find the longest one."""
        counts = Counts()
        _Walk(self.computations, self.trips, counts).run(name, 1)
        return counts.operations + counts.nbytes

    # --- operations

    def _operations(self, each: Instruction, computation: Computation) -> Iterator[tuple[float, bool, int]]:
        """Yield (operations, whether of a product, passes) of an instruction and of those fused into it."""
        if each.opcode in ("fusion", "map", "call"):
            for name in called_by(each.attributes):
                inner = self.computations.get(name, {})
                for one in inner.values():
                    yield from self._operations(one, inner)
            return
        made = arrays(each.shape)
        if not made or not made[0].kind.startswith(("f", "bf", "c")):
            return
        if each.opcode in ("dot", "convolution"):
            left, right = (self._array(name, computation) for name in each.operands[:2])
            found = _dot(each, left, made[0]) if each.opcode == "dot" else _convolution(each, left, right, made[0])
            yield found * (4 if made[0].kind.startswith("c") else 1), True, _passes(each, left, right)
        elif each.opcode in _ELEMENTWISE:
            yield made[0].size, False, 1
        elif each.opcode == "reduce":
            yield self._array(each.operands[0], computation).size, False, 1
        elif each.opcode in ("reduce-window", "select-and-scatter"):
            window = [int(n) for n in re.findall(r"\d+", _window(each).get("size", ""))]
            entries = self._array(each.operands[0], computation) if each.opcode != "reduce-window" else made[0]
            yield entries.size * math.prod(window), False, 1

    def _array(self, name: str, computation: Computation) -> Array:
        return arrays(computation[name].shape)[0]

    # --- bytes

    def _bytes(self, each: Instruction, computation: Computation) -> int:
        """The bytes that an instruction moves from and to the main memory."""
        if each.opcode in ("copy-start", "slice-start", "async-start"):
            made = arrays(each.shape)  # what is read, what is written, a mark; of a slice as much is read as written
            out = made[0] if each.opcode == "copy-start" else made[-2] if len(made) > 2 else made[-1]
            source = made[1] if each.opcode == "copy-start" and len(made) > 1 else made[0]
            return out.resident + (out.nbytes if source.resident else 0)
        operands = [name for name in each.operands if name in computation]
        if each.opcode == "fusion":
            name = called_by(each.attributes)[0]
            return self._written(name, each) + sum(
                self._read(name, i, computation[x].shape) for i, x in enumerate(operands)
            )
        if each.opcode in _SLICES:
            return 2 * _resident(each.shape)
        if each.opcode == "dynamic-update-slice":
            return 2 * _resident(computation[each.operands[1]].shape)
        return _resident(each.shape) + sum(_resident(computation[x].shape) for x in operands)

    def _read(self, name: str, index: int, shape: str) -> int:
        """The bytes that a fused computation reads of one argument: of one that is only sliced, its slices."""
        whole, inner = _resident(shape), self.computations.get(name, {})
        parameter = next(
            (x for x in inner.values() if x.opcode == "parameter" and x.inside.strip() == str(index)), None
        )
        if parameter is None or not whole:
            return whole
        total = 0
        for each in inner.values():
            for place, operand in enumerate(each.operands):
                if operand != parameter.name or each.opcode == "parameter":
                    continue
                if each.opcode in _SLICES and not place:
                    total += sum(x.nbytes for x in arrays(each.shape))
                elif each.opcode == "dynamic-update-slice" and not place:
                    total += 0  # it is changed in its place
                elif each.opcode == "fusion":
                    total += self._read(called_by(each.attributes)[0], place, shape)
                else:
                    return whole
        return min(whole, total)

    def _written(self, name: str, each: Instruction) -> int:
        """The bytes that a fused computation writes: of an update in place, the part that is new."""
        whole, inner = _resident(each.shape), self.computations.get(name, {})
        root = next((x for x in inner.values() if x.is_root), None)
        if root is not None and root.opcode == "dynamic-update-slice" and whole:
            return min(whole, sum(x.nbytes for x in arrays(inner[root.operands[1]].shape)))
        return whole

    # --- loops

    def _turns(self, loop: Instruction, computation: Computation) -> int:
        """How often a loop turns: as the compiler or its condition says, or the caller; 1, in doubt, if nobody does."""
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known[1])
        found = self._turns_by_condition(loop, computation)
        if found is not None:
            return found
        place = attribute(loop.attributes, "op_name").strip('"')
        for part, turns in self.trips.items():
            if part in place:
                return turns
        self.counts.doubt(f"the loop {place or loop.name} turns as often as its values say; it is counted once")
        return 1

    def _turns_by_condition(self, loop: Instruction, computation: Computation) -> int | None:
        """The turns of a loop that counts an integer by a constant up or down to a constant; None for another one."""
        condition = self.computations.get(attribute(loop.attributes, "condition").lstrip("%"), {})
        body = self.computations.get(attribute(loop.attributes, "body").lstrip("%"), {})
        root = next((x for x in condition.values() if x.is_root), None)
        while root is not None and root.opcode in ("fusion", "copy", "bitcast"):
            if root.opcode != "fusion":
                root = condition.get(root.operands[0])
                continue
            fused, outer = self.computations.get(called_by(root.attributes)[0], {}), root
            inner = next((x for x in fused.values() if x.is_root), None)
            condition = condition | {
                x.name: condition[outer.operands[int(x.inside)]] for x in fused.values() if x.opcode == "parameter"
            }
            condition |= {x.name: x for x in fused.values() if x.opcode != "parameter"}
            root = inner
        if root is None or root.opcode != "compare" or len(root.operands) != 2:
            return None
        entries = self._entries(loop.operands[0], computation)
        sides = [_element(name, condition) for name in root.operands]
        constants = [_constant(name, condition) for name in root.operands]
        direction = attribute(root.attributes, "direction")
        if sides[0] is None:  # limit > i
            sides, constants = sides[::-1], constants[::-1]
            direction = {"LT": "GT", "GT": "LT", "LE": "GE", "GE": "LE"}.get(direction, direction)
        index = sides[0]
        if index is None or entries is None:
            return None
        start = _constant(entries[index], computation)
        limit = constants[1] if sides[1] is None else _constant(entries[sides[1]], computation)
        step = self._step(index, body)
        if start is None or limit is None or not step:
            return None
        if direction in ("LE", "GE"):
            limit += 1 if step > 0 else -1
        elif direction not in ("LT", "GT", "NE"):
            return None
        return max(0, -(-(limit - start) // step) if step > 0 else -(-(start - limit) // -step))

    def _entries(self, name: str, computation: Computation) -> tuple[str, ...] | None:
        """The names of the values with which a loop begins."""
        given = computation.get(name)
        while given is not None and given.opcode in ("copy", "bitcast", "opt-barrier"):
            given = computation.get(given.operands[0])
        return given.operands if given is not None and given.opcode == "tuple" else None

    def _step(self, index: int, body: Computation) -> int | None:
        """By how much one turn changes the entry ``index`` of a loop's values."""
        root = next((x for x in body.values() if x.is_root), None)
        if root is None or root.opcode != "tuple":
            return None
        change = body.get(root.operands[index])
        while change is not None and change.opcode in ("copy", "bitcast"):
            change = body.get(change.operands[0])
        scope = body
        if change is not None and change.opcode == "fusion":
            scope = self.computations.get(called_by(change.attributes)[0], {})
            outer = change
            names = {x.name: outer.operands[int(x.inside)] for x in scope.values() if x.opcode == "parameter"}
            change = next((x for x in scope.values() if x.is_root), None)
        else:
            names = {}
        if change is None or change.opcode not in ("add", "subtract"):
            return None
        values = []
        for operand in change.operands:
            value = _constant(operand, scope)
            values.append(_constant(names[operand], body) if value is None and operand in names else value)
        known = [x for x in values if x is not None]
        if len(known) != 1:
            return None
        return known[0] if change.opcode == "add" else -known[0]


def _element(name: str, computation: Computation) -> int | None:
    """The index of a loop's value that a name in its condition stands for; None if it stands for something else."""
    each = computation.get(name)
    while each is not None and each.opcode in ("copy", "bitcast"):
        each = computation.get(each.operands[0])
    return int(attribute(each.attributes, "index")) if each is not None and each.opcode == "get-tuple-element" else None


def _constant(name: str, computation: Computation) -> int | None:
    """The value of an integer constant, also behind copies; None for anything else."""
    each = computation.get(name)
    while each is not None and each.opcode in ("copy", "bitcast", "convert"):
        each = computation.get(each.operands[0])
    is_constant = each is not None and each.opcode == "constant" and re.fullmatch(r"-?\d+", each.inside.strip())
    return int(each.inside) if is_constant and each is not None else None


def _resident(shape: str) -> int:
    return sum(x.resident for x in arrays(shape))


def _passes(each: Instruction, left: Array, right: Array) -> int:
    """How many products of bfloat16 a TPU makes of this one."""
    if "f32" not in (left.kind, right.kind):
        return 1
    named = re.findall(r"highest|high", attribute(each.attributes, "operand_precision"))
    return max((_PASSES[name] for name in named), default=1)


def _dot(each: Instruction, left: Array, made: Array) -> float:
    """Two operations for every entry of the result and every entry that is summed over."""
    summed = [int(i) for i in attribute(each.attributes, "lhs_contracting_dims").split(",") if i]
    return 2.0 * made.size * math.prod(left.sizes[i] for i in summed)


def _window(each: Instruction) -> dict[str, str]:
    """The fields of the attribute ``window={size=3x3 pad=1_1x1_1 ...}``."""
    return dict(part.split("=") for part in attribute(each.attributes, "window").split())


def _convolution(each: Instruction, left: Array, right: Array, made: Array) -> float:
    """Two operations for every multiplication of an entry of the input, not of the padding or of the holes."""
    found = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", each.attributes)
    if found is None:
        return 0.0
    input_labels, kernel_labels, output_labels = found.groups()
    window, spatial = _window(each), sorted(set(input_labels) - set("bf"))
    fields = {name: value.split("x") for name, value in window.items()}
    positions = 1.0
    for i, label in enumerate(spatial):
        pads = fields["pad"][i].split("_") if "pad" in fields else ("0", "0")
        numbers = {k: int(fields[k][i]) if k in fields else 1 for k in ("stride", "lhs_dilate", "rhs_dilate")}
        positions *= _valid_positions(
            left.sizes[input_labels.index(label)],
            right.sizes[kernel_labels.index(label)],
            made.sizes[output_labels.index(label)],
            int(pads[0]),
            numbers,
        )
    groups = int(attribute(each.attributes, "batch_group_count") or 1)
    inner = right.sizes[kernel_labels.index("i")]
    batch = left.sizes[input_labels.index("b")] // groups
    return 2.0 * positions * inner * made.sizes[output_labels.index("f")] * batch


def _valid_positions(size: int, kernel: int, out: int, pad: int, numbers: Mapping[str, int]) -> int:
    """The pairs of an output and a kernel entry, along one axis, that meet an entry of the input."""
    total, hole, last = 0, numbers["lhs_dilate"], (size - 1) * numbers["lhs_dilate"]
    outputs = np.arange(out, dtype=np.int64) * numbers["stride"] - pad
    for k in range(kernel):
        at = outputs + k * numbers["rhs_dilate"]
        total += int(((at >= 0) & (at <= last) & (at % hole == 0)).sum())
    return total


def serial_seconds(counts: Counts, clock: float, bandwidth: float) -> float:
    """The seconds of all instructions one after another, each as long as its cycles or its bytes take.

    Args:
      counts: of a program.
      clock: cycles per second.
      bandwidth: bytes per second of the main memory.
    """
    pairs: Sequence[tuple[float, float, int]] = counts.seconds_by
    return sum(times * max(cycles / clock, nbytes / bandwidth) for cycles, nbytes, times in pairs)
