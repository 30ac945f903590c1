"""Converts a torch module to the parts of a ``Net``: its function, its variables and their names."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from torch import nn

from lla_jax.models.adapters import check_flag, misuse
from lla_torch.conversion.function import Function, call_pattern
from lla_torch.conversion.graph import Graph, graph_of, tensors_of
from lla_torch.program.bits import bits_of
from lla_torch.program.instructions import Instruction, Ref
from lla_torch.program.program import Program
from lla_torch.program.views import View
from lla_torch.tracing.calls import Call, as_tensors, refuse_loaders
from lla_torch.tracing.exporting import export
from lla_torch.tracing.guards import ConversionError
from lla_torch.weights.arguments import floating_type
from lla_torch.weights.names import NameMap, as_jax, keeps_64_bits, to_array


class Parts(NamedTuple):
    """The parts of a converted module: function, variables, map of names, and the module without wrappers."""

    function: Function
    variables: dict[str, Any]
    names: NameMap
    module: nn.Module


def convert_parts(
    module: nn.Module,
    example_inputs: Any,
    example_kwargs: Mapping[str, Any],
    train: bool,
    dtype: Any,
    function: Callable[..., Any] | None = None,
    like: NameMap | None = None,
) -> Parts:
    """Export and convert a module, or a function of it, to the parts of a ``Net``.

    Args:
      module: see ``convert``.
      example_inputs: see ``convert``.
      example_kwargs: see ``convert``.
      train: see ``convert``.
      dtype: see ``convert``.
      function: ``function(module, *inputs)`` to convert instead of the module's call.
      like: a map of names whose layouts are kept; None: layouts as this module needs them.

    Raises:
      ConversionError, ValueError: as ``convert``.
    """
    module = unwrap(module)
    check_flag("train", train)
    dtype = None if dtype is None else floating_type(dtype)
    args = tuple(example_inputs) if isinstance(example_inputs, tuple | list) else (example_inputs,)
    call = Call(tuple(map(as_tensors, args)), {name: as_tensors(x) for name, x in example_kwargs.items()})
    _refuse_hidden_tensors(call)
    modes = ("eval", "train") if train else ("eval",)
    graphs = [graph_of(export(module, call, train=m == "train", function=function), m) for m in modes]
    names, tensors = tensors_of(module, graphs)
    own = _main_dtype(tensors, call)
    if like is None:
        names = names.with_row_layouts(_row_layouts(graphs, names, own, call))
    else:
        names = names.with_layouts_of(like)
    programs = [g.program(names, own) for g in graphs]
    _refuse_changes_of_what_decided(programs)
    wide = {leaf.name: keeps_64_bits(leaf, programs[0].own.name) for leaf in names.leaves}
    arrays = {
        leaf.name: as_jax(names.to_jax(leaf, to_array(tensors[leaf.name])), leaf.name, dtype, wide[leaf.name])
        for leaf in names.leaves
    }
    pure = Function(programs[0], programs[1] if train else None, call_pattern(call))
    variables = {"params": {}, **names.tree(arrays)}
    return Parts(pure, variables, names, module)


def _refuse_changes_of_what_decided(programs: Sequence[Program]) -> None:
    """Refuse a buffer that decides in one mode and is written in the other: compiled code would not see its value."""
    written = {path for program in programs for path, _ in program.updates}
    both = {each.path for program in programs for each in program.decided} & written
    if both:
        names = sorted("/".join(path) for path in both)
        raise ConversionError(
            f"module: {names} decide a size or a branch in one mode (a mask as an index, .item(), an `if`) and are "
            "written in the other; convert with train=False, or keep the choice in tensors (torch.where, masks)"
        )


def _refuse_hidden_tensors(call: Call) -> None:
    """Refuse a call without tensors that gets an object, such as a graph, whose tensors no conversion sees."""
    for x in call.leaves:
        refuse_loaders("example_inputs", x)
    plain = bool | int | float | complex | str | bytes | torch.dtype | torch.device | None
    hidden = [x for x in call.leaves if not isinstance(x, plain)]
    if hidden and not call.tensors:
        raise misuse(
            "example_inputs",
            hidden[0],
            "tensors, nested in tuples, lists and dicts, since those inside of an object are not seen; give them as "
            'they are, such as (graph.x, graph.edge_index), or {"x": graph.x, "edge_index": graph.edge_index}',
        )


def unwrap(module: nn.Module) -> nn.Module:
    """The module inside of torch.compile, DataParallel and DistributedDataParallel, or the module itself."""
    while True:
        inner = getattr(module, "_orig_mod", None)  # torch.compile
        if inner is None and isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = module.module
        if inner is None:
            return module
        module = inner


def _main_dtype(tensors: Mapping[str, torch.Tensor], call: Call) -> torch.dtype:
    """The floating type that the module computes in: that of most parameters, or without parameters of the inputs."""
    sizes: dict[torch.dtype, int] = {}
    for x in tensors.values():
        if isinstance(x, nn.Parameter) and (x.is_floating_point() or x.is_complex()):
            sizes[x.dtype.to_real()] = sizes.get(x.dtype.to_real(), 0) + x.numel()
    if sizes:
        return max(sizes, key=lambda d: sizes[d])
    return next((x.dtype for x in call.tensors if x.is_floating_point()), torch.get_default_dtype())


def _row_layouts(graphs: Sequence[Graph], names: NameMap, own: torch.dtype, call: Call) -> dict[str, View]:
    """{leaf name: view of its input} of linear weights whose input is a flattened image, alike at every use."""
    inputs_of: dict[str, View | None] = {}

    def examine(program: Program) -> None:
        by_slot = {slot: spec.path for slot, spec in enumerate(program.inputs) if spec.kind == "params"}
        by_path = {leaf.path: leaf.name for leaf in names.leaves if leaf.collection == "params"}

        def observe(instruction: Instruction, args: list[Any]) -> None:
            if instruction.operator.name != "aten.linear.default":
                return  # such as a penalty on the weight, which sees the tensor as torch has it, in any layout
            weight = instruction.args[1]
            if not isinstance(weight, Ref) or weight.index not in by_slot:
                return
            name = by_path[by_slot[weight.index]]  # type: ignore[index]
            x = args[0] if isinstance(args[0], View) and args[0].is_merged else None
            before = inputs_of.get(name, x)
            same = x is not None and before is not None and _row_layout(before) == _row_layout(x)
            inputs_of[name] = x if same else None

        shapes = {
            leaf.name: jax.ShapeDtypeStruct(leaf.stored_shape, _numpy_dtype(leaf.stored_dtype)) for leaf in names.leaves
        }
        trees = {"params": {}, **names.tree(shapes)}
        with bits_of(any(x.dtype.is_floating_point or x.dtype.is_complex for x in call.tensors)):
            floats = [jax.numpy.asarray(to_array(x)) for x in call.tensors]
        inputs = [x if jax.numpy.issubdtype(x.dtype, jax.numpy.inexact) else np.asarray(x) for x in floats]

        def run(trees: Any, inputs: Any, key: Any) -> Any:
            return program(trees["params"], trees, inputs, key=key, observe=observe)

        try:
            jax.eval_shape(run, trees, inputs, jax.random.key(0))
        except ValueError as error:
            notes = [note for note in getattr(error, "__notes__", []) if note.startswith("in ")]
            raise ConversionError("; ".join([str(error), *notes])) from error

    for graph in graphs:
        examine(graph.program(names, own))
    return {name: x for name, x in inputs_of.items() if x is not None}


def _row_layout(x: View) -> tuple[Any, Any]:
    assert x.split is not None
    return x.split[1:], x.order


def _numpy_dtype(name: str) -> Any:
    return jax.dtypes.canonicalize_dtype(jax.numpy.dtype(name))


def convert_callable(module: nn.Module, *examples: Any) -> Callable[..., Any]:
    """Convert a module without weights to train (a loss) to a JAX function of arrays, which compares by value.

    Args:
      module: the module, converted in eval mode; buffers such as class weights become part of the function.
      examples: arrays or tensors, one for each argument.

    Raises:
      ConversionError, ValueError: as ``convert``.
    """
    parts = convert_parts(module, tuple(examples), {}, False, None)
    leaves, structure = jax.tree.flatten(parts.variables)
    return BoundFunction(parts.function, structure, tuple(np.asarray(x) for x in leaves))


@dataclass(frozen=True, eq=False)
class BoundFunction:
    """A converted module's function with its variables, called with the inputs alone; compares by value."""

    function: Function
    structure: Any
    leaves: tuple[np.ndarray, ...]

    @functools.cached_property
    def _content(self) -> tuple[Any, ...]:
        return (self.function, self.structure, tuple((x.shape, x.dtype.str, x.tobytes()) for x in self.leaves))

    def __hash__(self) -> int:
        return hash(self._content)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BoundFunction) and self._content == other._content

    def __call__(self, *args: Any) -> Any:
        return self.function(jax.tree.unflatten(self.structure, self.leaves), args, {})[0]
