"""Converts an exported graph to a ``Program``, operator by operator."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import torch
from torch import nn
from torch._ops import HigherOrderOperator
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx.experimental.symbolic_shapes import is_concrete_int
from torch.utils import _pytree as torch_pytree

import lla_torch.program.ops  # noqa: F401  (fills the table)
from lla_torch.conversion.rounding import find_kept
from lla_torch.conversion.ties import tie_arguments
from lla_torch.conversion.widths import GIVEN, Range, find_widths, nodes_in, results_of
from lla_torch.program.branches import Block, choose
from lla_torch.program.decided import Decided
from lla_torch.program.instructions import DType, Instruction, Ref
from lla_torch.program.operators import TABLE, TorchOperator
from lla_torch.program.program import Input, Program
from lla_torch.program.sizes import PYTHON, SYMBOLIC
from lla_torch.tracing.exporting import DROPPED, Traced, source_place
from lla_torch.tracing.guards import ConversionError
from lla_torch.weights.names import NameMap, map_names, to_array

IGNORED = frozenset(["device", "layout", "pin_memory", "memory_format", "non_blocking", "requires_grad"])
COMPLEX = {torch.float32: torch.complex64, torch.float64: torch.complex128}
VALUE_SHAPED = frozenset(
    ["bincount", "nonzero", "masked_select", "unique", "_unique2", "unique_consecutive", "unique_dim"]
)
ASSERTIONS = ("aten._assert_tensor_metadata.", "aten.sym_constrain_range", "aten._assert_async.")


@dataclass(frozen=True)
class Graph:
    """An exported graph with its constants; ``program`` converts it once all tensors have a place in a tree.

    Args:
      exported: torch's exported program.
      constants: tensors that are neither parameters nor buffers, by mode and name: "eval.NAME".
      mode: "eval" or "train".
      deciding: names of the buffers whose values have decided a size or a branch.
      fixed: the source lines that fix lengths of axes, see ``Traced``.
    """

    exported: ExportedProgram
    constants: dict[str, torch.Tensor]
    mode: str
    deciding: frozenset[str] = frozenset()
    fixed: Mapping[tuple[int, int], str] = field(default_factory=dict)

    def program(self, names: NameMap, own: torch.dtype) -> Program:
        """Convert the graph to a ``Program``.

        Args:
          names: the map of all tensors; it says where the program finds each of them in ``variables``, and in which
            layout.
          own: the type of the weights; the program's entries of this type follow the weights' type later.

        Raises:
          ConversionError: operators that are not in the table, all of them in one message; writes in place to inputs or
            parameters; arguments, outputs or decisions by sizes that are not supported.
        """
        return _Builder(self, names, own).build()


def graph_of(traced: Traced, mode: str) -> Graph:
    """The ``Graph`` of a traced module, with its constants: tensors that are neither parameters nor buffers."""
    exported = traced.program
    specs = exported.graph_signature.input_specs
    targets = [s.target for s in specs if s.kind == InputKind.CONSTANT_TENSOR and s.target is not None]
    constants = {f"{mode}.{_name_in_module(target)}": exported.constants[target].detach() for target in targets}
    return Graph(exported, constants, mode, traced.deciding, traced.fixed)


def _name_in_module(target: str) -> str:
    return target.removeprefix("module.")


class _Builder:
    """Numbers the values of a graph and turns its nodes into instructions."""

    def __init__(self, graph: Graph, names: NameMap, own: torch.dtype):
        self.exported, self.mode, self.names, self.own = graph.exported, graph.mode, names, own
        self.deciding, self.fixed = graph.deciding, graph.fixed
        self.slots: dict[torch.fx.Node, int] = {}
        self.numbers: dict[torch.fx.Node, int] = {}
        self.unknown: dict[str, list[str]] = {}

    def build(self) -> Program:
        signature, graph = self.exported.graph_signature, self.exported.graph
        inputs: list[Input] = []
        number = 0
        placeholders = dict(zip(_placeholders(graph), signature.input_specs, strict=True))
        needed = self.needed_nodes(graph)
        self.examine(placeholders, [n for n in graph.nodes if n in needed or n in placeholders])
        for node, spec in placeholders.items():
            self.slots[node] = len(inputs)
            (wide,) = self.widths.values[node]
            if spec.kind == InputKind.USER_INPUT:
                value = node.meta.get("val")
                shape, line = _open_shape(value), self.fixed.get((number, 0), "")
                inputs.append(Input("input", number, dtype=self.dtype_of(value, wide), shape=shape, where=line))
                number += 1
            else:
                inputs.append(self.stored_input(spec, wide))
        steps = [n for n in graph.nodes if n.op == "call_function" and n in needed]
        self.numbers = {node: number for number, node in enumerate(steps)}
        converted = [self.instruction(n) for n in steps]
        instructions = [i for i in converted if i is not None]
        if self.unknown:
            raise ConversionError(_unknown_message(self.unknown))
        results = next(n for n in graph.nodes if n.op == "output").args[0]
        outputs, updates = [], []
        for spec, value in zip(signature.output_specs, results, strict=True):
            if spec.kind == OutputKind.USER_OUTPUT:
                outputs.append(self.value(value))
            elif spec.kind == OutputKind.BUFFER_MUTATION:
                leaf = self.names.by_name(_name_in_module(spec.target))
                _check_deciding(_name_in_module(spec.target), self.deciding, value)
                updates.append(((leaf.collection, *leaf.path), self.value(value)))
            else:
                target = "one of its inputs" if "USER_INPUT" in spec.kind.name else f"parameter {spec.target!r}"
                raise ConversionError(
                    f"module: the forward pass writes in place to {target}{_in_place(value)}; only buffers may be "
                    "written. Write to a copy (x.clone()) instead"
                )
        structure = _structure(self.exported.call_spec.out_spec)
        slots = len(self.slots)
        own = DType(_dtype_name(self.own), True)
        return Program(
            inputs=tuple(inputs),
            instructions=tuple(instructions),
            outputs=tuple(outputs),
            updates=tuple(updates),
            structure=structure,
            own=own,
            num_slots=slots,
            guards=_read_guards(self.exported),
            decided=self.decided(),
            dropped=tuple(self.exported.graph_module.meta.get(DROPPED, {}).items()),
        )

    def decided(self) -> tuple[Decided, ...]:
        """The values of the buffers that have decided a size or a branch."""
        tensors = {**self.exported.constants, **self.exported.state_dict}
        found = []
        for name in sorted(self.deciding):
            leaf = self.names.by_name(name)
            array = self.names.to_jax(leaf, to_array(tensors[f"module.{name}"]))
            found.append(Decided.of((leaf.collection, *leaf.path), array))
        return tuple(found)

    def examine(self, placeholders: dict[torch.fx.Node, Any], nodes: list[torch.fx.Node]) -> None:
        """Find the values that need 64 bits, and those that XLA must round as they stand."""
        stored = {n: s for n, s in placeholders.items() if s.kind in (InputKind.BUFFER, InputKind.CONSTANT_TENSOR)}
        ranges = {n: _range_of(self.exported, s) for n, s in stored.items()}
        given = {n: r for n, r in ranges.items() if r is not None}
        specs = self.exported.graph_signature.output_specs
        output = next(n for n in self.exported.graph.nodes if n.op == "output")
        returned = [x for x, s in zip(output.args[0], specs) if s.kind == OutputKind.USER_OUTPUT]
        outputs = [x for x in returned if isinstance(x, torch.fx.Node)]
        self.widths = find_widths(nodes, given, outputs, frozenset([self.own, COMPLEX.get(self.own, self.own)]))
        self.kept = find_kept(nodes, set(stored))

    def stored_input(self, spec: Any, wide: bool) -> Input:
        """The ``Input`` of a parameter, a buffer or a constant."""
        if spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            raise ConversionError(
                f"module: its graph takes {spec.target!r}, a {spec.kind.name}, which is not supported; make it a "
                "tensor, such as by register_buffer"
            )
        prefix = f"{self.mode}." if spec.kind == InputKind.CONSTANT_TENSOR else ""
        leaf = self.names.by_name(prefix + _name_in_module(spec.target))
        is_param = leaf.collection == "params"
        path = leaf.path if is_param else (leaf.collection, *leaf.path)
        kind, dtype = "params" if is_param else "state", self.dtype(getattr(torch, leaf.dtype), wide)
        if leaf.order == tuple(range(len(leaf.order))):
            return Input(kind, path, dtype=dtype, shape=leaf.stored_shape, in_parts=leaf.in_parts)
        return Input(kind, path, leaf.order, leaf.split, leaf.merged, dtype, leaf.stored_shape, leaf.in_parts)

    def needed_nodes(self, graph: torch.fx.Graph) -> set[torch.fx.Node]:
        """The nodes that an output depends on, nodes that draw random numbers (their order counts), and assertions."""
        needed: set[torch.fx.Node] = set()
        for node in reversed(graph.nodes):
            name = str(node.target)
            if name.startswith(ASSERTIONS):
                continue
            known = TABLE.get(name)
            asserts = name.startswith("aten._assert_scalar.")
            if node.op == "output" or node in needed or asserts or (known is not None and known.random):
                needed.update((node, *node.all_input_nodes))
        return needed

    def instruction(self, node: torch.fx.Node) -> Instruction | None:
        """The instruction of a node; None, and a note in ``unknown``, where no function computes its operator."""
        out = self.slots.setdefault(node, len(self.slots))
        known = _python_operator(node.target) or TABLE.get(_name_of(node.target))
        if known is None and isinstance(node.target, HigherOrderOperator):
            raise ConversionError(
                f"{source_place(node)}: torch's {node.target} takes functions and is not supported; write a loop of a "
                "fixed number of steps in Python, and a choice by values with torch.cond or torch.where"
            )
        if known is None:
            self.unknown.setdefault(str(node.target), []).append(source_place(node))
            return None
        if "as_strided" in str(node.target):
            _check_strides(node)
        args = [_as_torch_reads(a, node) for a in node.args]
        kwargs = {name: _as_torch_reads(a, node) for name, a in node.kwargs.items()}
        if known.layout == "graph":
            args.append([self.numbers[n] for n in _between(node)])
        names = _argument_names(node.target)
        args = [None if name in IGNORED else a for a, name in zip(args, [*names, *[""] * len(args)])]
        while args and len(args) <= len(names) and names[len(args) - 1] in IGNORED:
            args.pop()
        kwargs = {name: a for name, a in kwargs.items() if name not in IGNORED}
        kwargs |= tie_arguments(known.function, node.target)
        runs_wide = node in self.widths.steps
        return Instruction(
            known,
            tuple(self.value(a, runs_wide) for a in args),
            tuple((name, self.value(a, runs_wide)) for name, a in sorted(kwargs.items())),
            out,
            tuple(self.dtype_of(v, w) for v, w in zip(results_of(node), self.widths.values[node], strict=True)),
            source_place(node),
            runs_wide,
            node in self.kept,
        )

    def block(self, graph_module: torch.fx.GraphModule) -> Block:
        """The instructions of a function that an operator takes, such as a branch of ``torch.cond``."""
        inner = copy.copy(self)
        inner.slots = {node: slot for slot, node in enumerate(_placeholders(graph_module.graph))}
        nodes = [n for n in graph_module.graph.nodes if n.op != "output"]
        results = next(n for n in graph_module.graph.nodes if n.op == "output").args[0]
        outputs = [x for x in results if isinstance(x, torch.fx.Node)]
        inner.widths = find_widths(nodes, {}, outputs, frozenset([self.own, COMPLEX.get(self.own, self.own)]))
        inner.kept = find_kept(nodes, set())
        inputs = len(inner.slots)
        converted = [inner.instruction(n) for n in nodes if n.op == "call_function"]
        instructions = tuple(i for i in converted if i is not None)
        random = next((i for i in instructions if i.operator.random), None)
        if random is not None:
            raise ConversionError(
                f"{random.where}: a function inside of torch.cond draws random numbers, which is not "
                "supported; draw them before"
            )
        return Block(instructions, tuple(inner.value(x) for x in results), inputs, len(inner.slots))

    def value(self, x: Any, wide: bool = False) -> Any:
        """A hashable form of an argument; types have their 64 bits if ``wide``."""
        if isinstance(x, torch.fx.Node):
            if x.op == "get_attr":
                return self.block(getattr(x.graph.owning_module, str(x.target)))
            return Ref(self.slots[x])
        if isinstance(x, torch.dtype):
            return self.dtype(x, wide)
        if isinstance(x, list | tuple):
            return tuple(self.value(v, wide) for v in x)
        if isinstance(x, torch.device | torch.layout | torch.memory_format):
            return None
        if x is None or isinstance(x, bool | int | float | complex | str):
            return x
        raise ConversionError(
            f"module: an operator is called with {x!r}, a {type(x).__name__}, which is not supported; call it with "
            "tensors, numbers, strings, or lists of these"
        )

    def dtype(self, dtype: torch.dtype, wide: bool = False) -> DType:
        """The ``DType`` of a torch type, marked as ``own`` where it is the weights' type or the complex one of this."""
        own = dtype in (self.own, COMPLEX.get(self.own))
        return DType(_dtype_name(dtype), own, wide and not own)

    def dtype_of(self, value: Any, wide: bool = False) -> DType | None:
        """The type of a tensor's entries; None of other values."""
        return self.dtype(value.dtype, wide) if isinstance(value, torch.Tensor) else None


def _as_torch_reads(x: Any, node: torch.fx.Node) -> Any:
    """An argument of a node; integers from 2^63 on, such as factors of hashes, have a sign beside integers."""
    if not isinstance(x, int) or x < 2**63:
        return x
    tensors = [v for n in (node, *node.all_input_nodes) for v in results_of(n) if isinstance(v, torch.Tensor)]
    return float(x) if any(v.dtype.is_floating_point or v.dtype.is_complex for v in tensors) else x - 2**64


def _between(node: torch.fx.Node) -> list[torch.fx.Node]:
    """The nodes that a derivative goes through: those that depend on its inputs, and on which its outputs depend."""
    outputs, inputs = (list(nodes_in(x)) for x in node.args[:2])
    before = list(itertools.takewhile(lambda n: n is not node, node.graph.nodes))
    needed, reached = set(outputs), set(inputs)
    for each in before:
        if any(n in reached for n in each.all_input_nodes):
            reached.add(each)
    for each in reversed(before):
        if each in needed:
            needed.update(each.all_input_nodes)
    for each in inputs:
        if each not in needed and str(each.target) != "lla_torch.variable.default":
            raise ConversionError(
                f"{source_place(node)}: a derivative is taken by a tensor that the graph does not connect with the "
                "outputs; compute the outputs from this very tensor, such as x = x.detach().requires_grad_()"
            )
    through = [n for n in before if n in needed and any(m in reached for m in n.all_input_nodes)]
    return [n for n in through if n.op == "call_function"]


def _placeholders(graph: torch.fx.Graph) -> list[torch.fx.Node]:
    return [n for n in graph.nodes if n.op == "placeholder"]


def _range_of(exported: ExportedProgram, spec: Any) -> Range | None:
    """The range of a stored tensor of integers: its entries' if it is constant, otherwise at least that of 32 bits."""
    x = exported.constants.get(spec.target, exported.state_dict.get(spec.target))
    if x is None or x.dtype.is_floating_point or x.dtype.is_complex or x.dtype == torch.bool or not x.numel():
        return None
    least, most = int(x.min()), int(x.max())
    if spec.kind == InputKind.CONSTANT_TENSOR:
        return least, most
    return min(least, GIVEN[0]), max(most, GIVEN[1])


def _open_shape(value: Any) -> tuple[int | None, ...] | None:
    """The shape of a tensor with None for axes of any length; None of other values."""
    if not torch.is_tensor(value):
        return None
    return tuple(int(n) if is_concrete_int(n) else None for n in value.shape)


def _check_strides(node: torch.fx.Node) -> None:
    base = node.args[0].meta["val"]  # type: ignore[union-attr]
    if not base.is_contiguous():
        raise ConversionError(
            f"{source_place(node)}: as_strided of a tensor that does not lie contiguously in memory; use view, permute "
            "or unfold, or x.contiguous() before"
        )


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _argument_names(op: Any) -> list[str]:
    return [a.name for a in op._schema.arguments] if hasattr(op, "_schema") else []


def _in_place(value: Any) -> str:
    """The source line of a node in brackets, for a message."""
    place = source_place(value) if isinstance(value, torch.fx.Node) else ""
    return f" ({place})" if place else ""


def _read_guards(exported: ExportedProgram) -> tuple[str, ...]:
    """The conditions on sizes under which the graph was traced, in terms of the inputs' shapes ``s``."""
    conditions = []
    for guard in getattr(exported, "_guards_code", None) or ():
        condition = re.sub(r"L\['\w+'\]\[(\d+)\]\.size\(\)\[(\d+)\]", r"s[\1][\2]", guard)
        if "L[" in condition:
            raise ConversionError(
                f"module: the forward pass decides by sizes in a way that is not supported ({guard}); write it without "
                "this decision, or make it before the conversion"
            )
        conditions.append(condition)
    return tuple(conditions)


def _check_deciding(name: str, deciding: frozenset[str], value: Any) -> None:
    """Refuse a buffer that decides a size or a branch and is written by the forward pass."""
    if name in deciding:
        raise ConversionError(
            f"module: the forward pass decides by the values of its buffer {name!r} (a mask as an index, .item(), an "
            f"`if`, BatchNorm(momentum=None)) and writes to it{_in_place(value)}, so its next call would be another "
            "graph; write to another buffer, or make the decision before the conversion"
        )


def _unknown_message(unknown: dict[str, list[str]]) -> str:
    lines = [
        f"  {name}  in {places[0]}" + (f" and {len(places) - 1} more" * (len(places) > 1))
        for name, places in sorted(unknown.items())
    ]
    numbers = [name for name in unknown if name in ("aten._local_scalar_dense.default", "aten.item.default")]
    if numbers:
        raise ConversionError(
            f"{unknown[numbers[0]][0]}: the forward pass takes the values of a tensor as numbers (.item(), .tolist()), "
            "which no single graph can do. Keep them in tensors (torch.where, masks), or fix them before converting"
        )
    shapeless = [name for name in unknown if name.startswith("aten.") and name.split(".")[1] in VALUE_SHAPED]
    if shapeless:
        raise ConversionError(
            f"{unknown[shapeless[0]][0]}: the shape of {shapeless[0]}'s result depends on the values of a tensor, "
            "which no single graph can have. Write it with torch.where, masks or weights of 0, or convert the part of "
            "the module before it (of a detection model the raw boxes and scores)"
        )
    return (
        "these operators are not in the table:\n" + "\n".join(lines) + "\nAdd each with a JAX function:\n"
        f'  @lla_torch.lowering("{next(iter(sorted(unknown)))}")\n  def f(x, ...): return ...  # arrays as torch has '
        "them"
    )


def _structure(spec: Any) -> Any:
    """The nesting of a torch pytree as ``program.unflatten`` reads it."""
    nested = torch_pytree.tree_unflatten(list(range(spec.num_leaves)), spec)

    def describe(x: Any) -> Any:
        if isinstance(x, int):
            return x
        if isinstance(x, dict):
            return ("dict", tuple(x), *(describe(v) for v in x.values()))
        if isinstance(x, tuple) and hasattr(x, "_fields"):
            return ("namedtuple", type(x), *(describe(v) for v in x))
        if isinstance(x, tuple | list):
            return ("list" if isinstance(x, list) else "tuple", *(describe(v) for v in x))
        raise ConversionError(
            f"module: its forward pass returns a {type(x).__name__}; it must return tensors, or tuples, lists or dicts "
            "of them, so return the tensors inside"
        )

    return describe(nested)


def tensors_of(module: nn.Module, graphs: Sequence[Graph]) -> tuple[NameMap, dict[str, torch.Tensor]]:
    """(map, tensors by torch name) of all parameters, buffers and constants of a module and its graphs."""
    constants = {name: x for graph in graphs for name, x in graph.constants.items()}
    own = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    return map_names(module, constants), {**constants, **own}


# --- numbers in the graph, such as sizes, which are Python ints when the program runs


def _on_numbers(name: str, function: Callable[..., Any]) -> TorchOperator:
    return TorchOperator(name, function, "views")


def _assert_scalar(condition: Any, message: str) -> None:
    if not bool(condition):
        raise ValueError(
            f"inputs: the converted graph does not hold for these shapes ({message}); convert the module with example "
            "inputs of these shapes"
        )


_PYTHON = {f: _on_numbers(f"{f.__module__}.{f.__name__}", f) for f in PYTHON} | {
    getattr(torch, name): _on_numbers(f"torch.{name}", f) for name, f in SYMBOLIC.items() if hasattr(torch, name)
}

TABLE.update(
    {
        "aten.sym_size.int": _on_numbers("aten.sym_size.int", lambda x, axis: x.shape[axis]),
        "aten.sym_numel.default": _on_numbers("aten.sym_numel.default", lambda x: int(np.prod(x.shape))),
        "lla_torch.stop_gradient.default": TorchOperator(
            "lla_torch.stop_gradient.default", jax.lax.stop_gradient, "pointwise"
        ),
        "higher_order.cond.default": _on_numbers("higher_order.cond.default", choose),
        "aten._assert_scalar.default": _on_numbers("aten._assert_scalar.default", _assert_scalar),
    }
)


def _name_of(target: Any) -> str:
    """The name of an operator in the table."""
    return f"higher_order.{target}.default" if isinstance(target, HigherOrderOperator) else str(target)


def _python_operator(target: Any) -> TorchOperator | None:
    try:
        return _PYTHON.get(target)
    except TypeError:
        return None
