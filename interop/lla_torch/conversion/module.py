"""From a torch module to the parts of a ``Net``: export, names and layouts, copies of the weights."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as torch_pytree

from lla_torch.conversion.function import Function, pattern
from lla_torch.conversion.graph import Graph, graph_of, tensors_of
from lla_torch.program.program import Instruction, Program, Ref
from lla_torch.program.views import View
from lla_torch.tracing.exporting import Call, export
from lla_torch.tracing.guards import ConversionError
from lla_torch.weights.names import NameMap, as_jax, to_array, to_tensor


class Parts(NamedTuple):
    """What a module is converted into."""

    function: Function
    variables: dict[str, Any]
    names: NameMap
    module: nn.Module


def converted(
    module: nn.Module,
    example_inputs: Any,
    example_kwargs: Mapping[str, Any],
    train: bool,
    dtype: Any,
    function: Callable[..., Any] | None = None,
    like: NameMap | None = None,
) -> Parts:
    """The parts of a ``Net``; see ``convert``. ``function(module, *inputs)`` is what is converted, if not its call;
    ``like`` is a map whose layouts are kept."""
    module = unwrapped(module)
    args = tuple(example_inputs) if isinstance(example_inputs, tuple | list) else (example_inputs,)
    call = Call(tuple(map(as_tensors, args)), {name: as_tensors(x) for name, x in example_kwargs.items()})
    modes = ("eval", "train") if train else ("eval",)
    graphs = [graph_of(export(module, call, train=m == "train", function=function), m) for m in modes]
    names, tensors = tensors_of(module, graphs)
    own = _own(tensors, call)
    names = names.with_rows(_rows(graphs, names, own, call)) if like is None else names.laid_out_like(like)
    programs = [g.program(names, own) for g in graphs]
    arrays = {
        leaf.name: as_jax(names.to_jax(leaf, to_array(tensors[leaf.name])), leaf.name, dtype) for leaf in names.leaves
    }
    function_ = Function(programs[0], programs[1] if train else None, pattern(call))
    variables = {"params": {}, **names.tree(arrays)}
    return Parts(function_, variables, names, module)


def unwrapped(module: nn.Module) -> nn.Module:
    if not isinstance(module, nn.Module):
        raise ValueError(f"module: {type(module).__name__} given; the rule is a torch.nn.Module")
    while True:
        inner = getattr(module, "_orig_mod", None)  # torch.compile
        if inner is None and isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = module.module
        if inner is None:
            return module
        module = inner


def as_tensors(x: Any) -> Any:
    """Arrays among nested arguments as tensors."""
    is_array = lambda leaf: isinstance(leaf, np.ndarray | jax.Array)  # noqa: E731
    convert = lambda leaf: to_tensor(leaf) if is_array(leaf) else leaf  # noqa: E731
    return torch_pytree.tree_map(convert, x, is_leaf=is_array)


def as_arrays(x: Any) -> Any:
    return torch_pytree.tree_map(lambda leaf: to_array(leaf) if isinstance(leaf, torch.Tensor) else leaf, as_tensors(x))


def _own(tensors: Mapping[str, torch.Tensor], call: Call) -> torch.dtype:
    """The floating type that the module computes in: that of most of its parameters, or of its inputs."""
    sizes: dict[torch.dtype, int] = {}
    for x in tensors.values():
        if x.is_floating_point() and isinstance(x, nn.Parameter):
            sizes[x.dtype] = sizes.get(x.dtype, 0) + x.numel()
    if sizes:
        return max(sizes, key=lambda d: sizes[d])
    return next((x.dtype for x in call.tensors if x.is_floating_point()), torch.get_default_dtype())


def _rows(graphs: Sequence[Graph], names: NameMap, own: torch.dtype, call: Call) -> dict[str, View]:
    """Linear weights whose input is a flattened image wherever they are used: {leaf name: that input}."""
    found: dict[str, View | None] = {}

    def examine(program: Program) -> None:
        by_slot = {slot: spec.path for slot, spec in enumerate(program.inputs) if spec.kind == "params"}
        by_path = {leaf.path: leaf.name for leaf in names.leaves if leaf.collection == "params"}

        def observe(instruction: Instruction, args: list[Any]) -> None:
            uses = [(i, by_slot[a.index]) for i, a in enumerate(instruction.args)
                    if isinstance(a, Ref) and a.index in by_slot]  # fmt: skip
            for position, path in uses:
                if instruction.lowering.name != "aten.linear.default" or position != 1:
                    continue  # a penalty on the weight, say: it sees the tensor as torch has it, wherever rows lie
                name = by_path[path]  # type: ignore[index]
                x = args[0] if isinstance(args[0], View) and args[0].is_merged else None
                same = x is not None and (before := found.get(name, x)) is not None and _rows_of(before) == _rows_of(x)
                found[name] = x if same else None

        shapes = {leaf.name: jax.ShapeDtypeStruct(leaf.stored_shape, _numpy_dtype(leaf.dtype)) for leaf in names.leaves}
        trees = {"params": {}, **names.tree(shapes)}
        inputs = [to_array(x) for x in call.tensors]

        def run(trees: Any, inputs: Any, key: Any) -> Any:
            return program(trees["params"], trees, inputs, key=key, observe=observe)

        try:
            jax.eval_shape(run, trees, inputs, jax.random.key(0))
        except ValueError as error:
            notes = [note for note in getattr(error, "__notes__", []) if note.startswith("in ")]
            raise ConversionError("; ".join([str(error), *notes])) from error

    for graph in graphs:
        examine(graph.program(names, own))
    return {name: x for name, x in found.items() if x is not None}


def _rows_of(x: View) -> tuple[Any, Any]:
    assert x.split is not None
    return x.split[1:], x.order


def _numpy_dtype(name: str) -> Any:
    return jax.dtypes.canonicalize_dtype(jax.numpy.dtype(name))


def convert_callable(module: nn.Module, *examples: Any) -> Callable[..., Any]:
    """A module without weights (a loss) as a JAX function of as many arguments as there are examples.

    Args:
      module: the module; buffers such as class weights become part of the function.
      examples: arrays or tensors.
    """
    parts = converted(module, tuple(examples), {}, False, None)
    leaves, structure = jax.tree.flatten(parts.variables)
    return Held(parts.function, structure, tuple(np.asarray(x) for x in leaves))


@dataclass(frozen=True, eq=False)
class Held:
    """A function with the arrays it needs; compares by their entries."""

    function: Function
    structure: Any
    leaves: tuple[np.ndarray, ...]

    @functools.cached_property
    def _content(self) -> tuple[Any, ...]:
        return (self.function, self.structure, tuple((x.shape, x.dtype.str, x.tobytes()) for x in self.leaves))

    def __hash__(self) -> int:
        return hash(self._content)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Held) and self._content == other._content

    def __call__(self, *args: Any) -> Any:
        return self.function(jax.tree.unflatten(self.structure, self.leaves), args, {})[0]
