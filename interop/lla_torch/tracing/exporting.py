"""torch.export with care: stop-gradients kept, the user's module untouched, failures told with module and line.

Stop-gradients are marked before torch decomposes the graph, which would drop them without a word.
"""

from __future__ import annotations

import functools
import itertools
import operator
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.export import Dim, ExportedProgram, default_decompositions
from torch.utils import _pytree as torch_pytree

from lla_torch.program.operators import TABLE
from lla_torch.tracing.guards import ConversionError, Refused, is_library, traceable, untouched


@torch.library.custom_op("lla_torch::stop_gradient", mutates_args=())
def _stop_gradient(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@_stop_gradient.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@dataclass(frozen=True)
class Call:
    """A module's call: its arguments, by position and by name, nested."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def leaves(self) -> list[Any]:
        """All leaves of the arguments, tensors and others."""
        return torch_pytree.tree_flatten((self.args, self.kwargs))[0]

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The tensors among the leaves."""
        return [x for x in self.leaves if isinstance(x, torch.Tensor)]


class _Flat(nn.Module):
    """A module that takes its tensors as positional arguments; ``forward`` may be any function of the module."""

    def __init__(self, module: nn.Module, call: Call, function: Callable[..., Any] | None):
        super().__init__()
        self.module = module
        self._leaves, self._spec = torch_pytree.tree_flatten((call.args, call.kwargs))
        self._function = function

    def forward(self, *tensors: torch.Tensor) -> Any:
        given = iter(tensors)
        leaves = [next(given) if isinstance(x, torch.Tensor) else x for x in self._leaves]
        args, kwargs = torch_pytree.tree_unflatten(leaves, self._spec)
        buffers = [(m, n, b) for m in self.module.modules() for n, b in m._buffers.items() if b is not None]
        call = self.module if self._function is None else functools.partial(self._function, self.module)
        outputs = call(*args, **kwargs)
        for m, name, buffer in buffers:  # torch.export sees writes in place, but no assignments below its root
            new = m._buffers.get(name)
            if new is not None and new is not buffer:
                buffer.copy_(new)
                m._buffers[name] = buffer
        return outputs


def export(
    module: nn.Module, call: Call, *, train: bool = False, function: Callable[..., Any] | None = None
) -> ExportedProgram:
    """The functional graph of a module's call, with stop-gradients marked; see ``convert``.

    Raises:
      ConversionError: what torch.export cannot trace, with the module and the source line.
    """
    _check_module(module)
    flat = _Flat(module, call, function)
    with untouched(module, train):
        flat.training = train
        tensors = tuple(x.detach() for x in call.tensors)
        try:
            exported = _export(flat, tensors)
            buffers = set(exported.graph_signature.inputs_to_buffers)
            _check_writes(exported.graph_module, _named(buffers), True)
            _mark_stop_gradients(exported.graph_module)
            return exported.run_decompositions(_decompositions(exported.graph_module))
        except Exception as error:
            raise _explained(error, module) from error


def _check_module(module: nn.Module) -> None:
    for name, m in module.named_modules():
        if isinstance(m, torch.jit.ScriptModule):
            raise ConversionError(
                f"module {name or '(the whole)'!r} is a TorchScript {type(m).__name__}, whose Python source is gone; "
                "convert the eager module that it was made from"
            )
    for name, m in module.named_modules():
        if isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.max_norm is not None:
            raise ConversionError(
                f"module {name!r} ({type(m).__name__}) has max_norm, which rewrites its weight in the forward pass; "
                "renormalize the weight once and set max_norm=None"
            )
    lazy = [n for n, p in module.named_parameters() if isinstance(p, nn.UninitializedParameter)]
    if lazy:
        raise ConversionError(f"parameters {lazy} of lazy modules have no shape yet; run the module once before")


def _export(flat: nn.Module, tensors: tuple[torch.Tensor, ...]) -> ExportedProgram:
    """Exported with leading axes of any length, as far as the module allows it."""
    rows = {x.shape[0] for x in tensors if x.ndim}
    if rows == {1}:  # torch takes a length of 1 to be fixed
        tensors = tuple(torch.cat([x, x]) if x.ndim else x for x in tensors)
    dynamic = tuple({0: Dim.AUTO} if x.ndim and x.shape[0] > 1 else None for x in tensors)
    with traceable():
        return torch.export.export(flat, tensors, dynamic_shapes=(dynamic,), strict=False)


def _decompositions(graph_module: torch.fx.GraphModule) -> Any:
    """torch's table without the operators that have a lowering: whole, they are faster and kinder to derivatives."""
    table = default_decompositions()
    tracking = _tracks(graph_module)
    for op in list(table):
        # views stay with torch, which has to know what writes in place reach
        known = str(op) in TABLE and not _is_view(op) and not (tracking and "instance_norm" in str(op))
        if known or not op.name().startswith("aten::"):
            table.pop(op)
    return table


def _tracks(graph_module: torch.fx.GraphModule) -> bool:
    """Whether an instance_norm updates running statistics, which it would not return if it were left whole."""
    graphs = [m.graph for m in graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    norms = [n for graph in graphs for n in graph.nodes if n.target is torch.ops.aten.instance_norm.default]
    return any(n.args[3] is not None and n.args[5] for n in norms)


def _is_view(op: Any) -> bool:
    return any(r.alias_info is not None for r in op._schema.returns)


def _check_writes(
    graph_module: torch.fx.GraphModule, is_buffer: Callable[[torch.fx.Node], bool], enabled: bool
) -> None:
    """Refuse writes in place whose gradient, or whose effect, the functional graph would not have as torch has them.

    Through a detached alias the values change and not the gradient; under ``no_grad``, likewise.
    """
    nodes: list[Any] = list(graph_module.graph.nodes)
    placeholders = [n for n in nodes if n.op == "placeholder"]
    for node in nodes:
        if node.target is torch.ops.higher_order.wrap_with_set_grad_enabled:
            inner, given = getattr(graph_module, node.args[1].target), node.args[2:]
            names = [n.name for n in inner.graph.nodes if n.op == "placeholder"]
            held = {name for name, outer in zip(names, given) if is_buffer(outer)}
            _check_writes(inner, _named(held), bool(node.args[0]))
        for written in _written(node):
            base, detached = _base(written)
            outside = not enabled and base in placeholders and not is_buffer(base)
            if (detached or outside) and node.target is not torch.ops.aten.detach_.default:
                how = "through a detached alias" if detached else "under no_grad"
                raise ConversionError(
                    f"{where(node)}: a tensor is written to {how} ({node.target}), which changes its values and not "
                    "its gradient; that is not supported. Make a new tensor instead: x + (f(x) - x).detach()"
                )


def _named(names: set[str]) -> Callable[[torch.fx.Node], bool]:
    return lambda node: node.name in names


def _written(node: Any) -> list[Any]:
    """The nodes that an operator writes to in place."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return []
    pairs = zip(schema.arguments, node.args)
    return [x for a, x in pairs if a.alias_info is not None and a.alias_info.is_write and isinstance(x, torch.fx.Node)]


def _base(node: Any) -> tuple[Any, bool]:
    """The tensor that a node is a view of, and whether it was detached on the way."""
    detached = False
    while True:
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.arguments or schema.arguments[0].alias_info is None or not node.args:
            return node, detached
        detached = detached or node.target is torch.ops.aten.detach.default
        node = node.args[0]


def _mark_stop_gradients(graph_module: torch.fx.GraphModule) -> None:
    """``detach`` and the results of ``no_grad`` become an operator that decompositions leave alone."""
    stop = torch.ops.lla_torch.stop_gradient.default
    nodes: list[Any] = list(graph_module.graph.nodes)
    for node in nodes:
        if node.target is torch.ops.aten.detach.default:
            node.target = stop
        elif node.target is torch.ops.aten.detach_.default:
            node.target = stop
            node.args[0].replace_all_uses_with(node, delete_user_cb=lambda user, node=node: _later(node, user))
        elif node.target is torch.ops.higher_order.wrap_with_set_grad_enabled:
            enabled, inner = node.args[0], getattr(graph_module, node.args[1].target)
            _mark_stop_gradients(inner)
            if not enabled:
                _stop_outputs(inner, stop)
    graph_module.recompile()


def _later(node: torch.fx.Node, user: torch.fx.Node) -> bool:
    """Whether ``user`` comes after ``node``."""
    return user is not node and node < user


def _stop_outputs(graph_module: torch.fx.GraphModule, stop: Any) -> None:
    output: Any = next(n for n in graph_module.graph.nodes if n.op == "output")

    def stopped(x: Any) -> Any:
        if not isinstance(x, torch.fx.Node) or not isinstance(x.meta.get("val"), torch.Tensor):
            return x
        if x.op == "placeholder":  # handed through: nothing was computed without gradient
            return x
        source: Any = x.args[0] if x.target is operator.getitem else x
        within = torch.ops.higher_order.wrap_with_set_grad_enabled
        if source.target is within and source.args[0]:  # enable_grad inside of no_grad
            return x
        with graph_module.graph.inserting_before(output):
            node = graph_module.graph.call_function(stop, (x,))
            node.meta = dict(x.meta)
            return node

    output.args = (torch.fx.map_arg(output.args[0], stopped),)
    graph_module.recompile()


# --- what went wrong


def _explained(error: Exception, module: nn.Module) -> ConversionError:
    if isinstance(error, ConversionError):
        return error
    where = _place(error.__traceback__, module)
    if isinstance(error, Refused):
        return ConversionError(f"{where}: {error}.")
    kind = type(error).__name__
    if "DataDependent" in kind or "data-dependent" in str(error):
        return ConversionError(
            f"{where}: the forward pass depends on the values of a tensor (an `if`, a loop, .item(), an index that is "
            "computed, BatchNorm(momentum=None)), so it is no single graph. Write it with torch.where, or fix the "
            f"choice before converting. torch says: {_first_line(error)}"
        )
    if "fake tensor in the exported program" in str(error):
        return ConversionError(
            f"{where}: a tensor is made in a way that leaves no trace in the graph (.data, torch.autograd.grad, "
            f"numpy); write it with differentiable operators. torch says: {_first_line(error)}"
        )
    return ConversionError(f"{where}: torch.export cannot trace this module ({kind}): {_first_line(error)}")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _place(trace: TracebackType | None, module: nn.Module) -> str:
    """The innermost module and the innermost line of the user's that a traceback went through."""
    names = {id(m): name for name, m in module.named_modules()}
    found, line = "", ""
    for frame, number in traceback.walk_tb(trace):
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and id(owner) in names:
            found = f"module {names[id(owner)] or '(the whole)'!r} ({type(owner).__name__})"
        file = frame.f_code.co_filename
        if not is_library(file):
            text = traceback.FrameSummary(file, number, frame.f_code.co_name).line
            line = f"{file}:{number}: {text}"
    return ", ".join(filter(None, [found or f"module {type(module).__name__}", line]))


def where(node: torch.fx.Node) -> str:
    """The module and the innermost source line outside of torch that a node comes from."""
    stack = node.meta.get("nn_module_stack") or {}
    owner = ""
    if stack:
        path, kind = list(stack.values())[-1]
        path = path.removeprefix("module").removeprefix(".")
        kind = kind if isinstance(kind, str) else kind.__name__
        owner = f"module {path or '(the whole)'!r} ({kind.rsplit('.', 1)[-1]})"
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines()]
    places = [(a, b) for a, b in itertools.pairwise(lines) if a.startswith("File ") and not is_library(a[6:])]
    if not places:
        return owner
    file, text = places[-1]
    name, number = file.split('"')[1], file.split("line ")[1].split(",")[0]
    return ", ".join(filter(None, [owner, f"{name}:{number}: {text}"]))
