"""Exports a module to a graph by torch.export; stop-gradients are kept, failures name the module and the source line.

Stop-gradients are marked before torch decomposes the graph, which would drop them silently.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import logging
import operator
import traceback
import types
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._subclasses import FakeTensor
from torch.export import Dim, ExportedProgram, default_decompositions
from torch.export._remove_effect_tokens_pass import _remove_effect_tokens
from torch.utils import _pytree as torch_pytree

from lla_jax.models.adapters import first_line
from lla_torch.program.operators import TABLE
from lla_torch.tracing.branches import mark_branches, traceable_branches
from lla_torch.tracing.calls import Call, why_call_fails, why_step_fails
from lla_torch.tracing.constants import ConstantValues
from lla_torch.tracing.derivatives import Refused
from lla_torch.tracing.fixing import note_fixed_axes
from lla_torch.tracing.guards import (
    ConversionError,
    is_library,
    preserve_module,
    refuse_losses_of_pairs,
    tracing_mode,
)
from lla_torch.tracing.objects import own_object
from lla_torch.tracing.outputs import split_outputs

LOG = logging.getLogger("lla_torch")


class Traced(NamedTuple):
    """What tracing gives.

    Args:
      program: torch's exported program.
      deciding: names of the buffers whose values have decided a size or a branch, so that it holds for these alone.
      fixed: {(number of a tensor, axis): the source line that fixes its length}, as far as known.
    """

    program: ExportedProgram
    deciding: frozenset[str]
    fixed: dict[tuple[int, int], str]


class _FlatCall(nn.Module):
    """A module whose forward takes a call's tensors by position, and runs ``function(module, ...)`` or the call."""

    def __init__(self, module: nn.Module, call: Call, function: Callable[..., Any] | None, constants: ConstantValues):
        super().__init__()
        self.module, self._constants = module, constants
        self._leaves, self._spec = torch_pytree.tree_flatten((call.args, call.kwargs))
        self._function = function
        self.seen = types.SimpleNamespace(dropped={})  # torch.export resets what a forward pass assigns

    def forward(self, *tensors: torch.Tensor) -> Any:
        remaining = iter(tensors)
        leaves = [next(remaining) if isinstance(x, torch.Tensor) else own_object(x) for x in self._leaves]
        args, kwargs = torch_pytree.tree_unflatten(leaves, self._spec)
        buffers = [(m, n, b) for m in self.module.modules() for n, b in m._buffers.items() if b is not None]
        call = self.module if self._function is None else functools.partial(self._function, self.module)
        self._constants.hold(dict(self.module.named_buffers(remove_duplicate=False)))
        outputs, self.seen.dropped = split_outputs(call(*args, **kwargs))
        expected = self._function is None or self.seen.dropped  # of a step its losses are checked
        if expected and not any(isinstance(x, torch.Tensor) for x in torch_pytree.tree_leaves(outputs)):
            raise ConversionError(_no_tensors_message(self.module, self.seen.dropped or {"": repr(outputs)[:80]}))
        for m, name, buffer in buffers:  # torch.export sees writes in place, but no assignments below its root
            new = m._buffers.get(name)
            if new is not None and new is not buffer:
                buffer.copy_(new)
                m._buffers[name] = buffer
        return outputs


def export(module: nn.Module, call: Call, *, train: bool = False, function: Callable[..., Any] | None = None) -> Traced:
    """Export a module's call by torch.export as a functional graph in which stop-gradients are marked.

    The module and torch's global state are left as they are.

    Args:
      module: the torch module.
      call: the example arguments. Leading axes of the tensors may have any length, as far as the module allows it.
      train: whether to export train mode; False: eval mode.
      function: ``function(module, *args, **kwargs)`` to export instead of the module's own call.

    Returns:
      torch's ``ExportedProgram``, decomposed into the operators of ``TABLE`` where torch can, and what it depends on.

    Raises:
      ConversionError: code that torch.export cannot trace; the message names the module and the source line.
    """
    _check_module(module)
    _check_tensors(module, call)
    constants = ConstantValues(dict(module.named_buffers(remove_duplicate=False)))
    flat = _FlatCall(module, call, function, constants)
    with torch.inference_mode(False), preserve_module(module, train):
        flat.training = train
        tensors = tuple(_like(x, x) for x in call.tensors)
        try:
            with refuse_losses_of_pairs(), note_fixed_axes() as fixed, _without_dumps():
                exported = _export(flat, tensors, constants)
            buffers = set(exported.graph_signature.inputs_to_buffers)
            _check_writes(exported.graph_module, _is_among(buffers), True)
            _mark_stop_gradients(exported.graph_module)
            with _without_dumps():
                decomposed = exported.run_decompositions(_decompositions(exported.graph_module))
            # checks of values, such as torch.linalg's under vmap, have an effect, for which torch adds inputs
            decomposed = _remove_effect_tokens(decomposed)
        except Exception as error:
            raise _explain(error, module, call, function, lambda: _own_failure(flat, tensors)) from error
    if dropped := flat.seen.dropped:
        LOG.info("%s: outputs that hold no array are left out: %s", type(module).__name__, dropped)
    decomposed.graph_module.meta[DROPPED] = dropped
    return Traced(decomposed, frozenset(constants.deciding), fixed)


@contextlib.contextmanager
def _without_dumps() -> Iterator[None]:
    """Context in which torch writes no graph and no log on stderr beside the error that it raises."""
    modules = [importlib.import_module(name) for name in ("torch.export._trace", "torch.fx.graph_module")]
    names, refuse = ("torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor"), lambda record: False
    logs = [logging.getLogger(name) for name in names]
    for log in logs:
        log.addFilter(refuse)
    for each in modules:
        vars(each)["print"] = lambda *args, **kwargs: None  # instead of the builtin, for the code of this module
    try:
        yield
    finally:
        for log in logs:
            log.removeFilter(refuse)
        for each in modules:
            vars(each).pop("print", None)


DROPPED = "lla_torch.dropped"
"""The key of ``graph_module.meta`` that holds {path: type} of the outputs that are no arrays, and are left out."""


def _no_tensors_message(module: nn.Module, dropped: dict[str, str]) -> str:
    kinds = ", ".join(f"{kind}{path and f' ({path})'}" for path, kind in dropped.items())
    return (
        f"module {type(module).__name__}: its forward pass returns no tensor that can be found: {kinds}; it must "
        "return tensors, or tuples, lists, dicts or dataclasses of them, so return the tensors inside"
    )


def _check_module(module: nn.Module) -> None:
    for name, m in module.named_modules():
        if isinstance(m, torch.jit.ScriptModule):
            raise ConversionError(
                f"{_label(name, m)}: a TorchScript module has no Python source; convert the eager module that it was "
                "made from"
            )
    for name, m in module.named_modules():
        if isinstance(m, nn.Embedding | nn.EmbeddingBag) and m.max_norm is not None:
            raise ConversionError(
                f"{_label(name, m)}: max_norm rewrites the weight in the forward pass; renormalize the weight once and "
                "set max_norm=None"
            )
    tensors = [*module.named_parameters(), *module.named_buffers()]
    lazy = [n for n, p in tensors if isinstance(p, nn.UninitializedParameter | nn.UninitializedBuffer)]
    if lazy:
        raise ConversionError(f"module: its tensors {lazy} are lazy and have no shape yet; run the module once before")


def _check_tensors(module: nn.Module, call: Call) -> None:
    """Refuse tensors that hold no values, or not in a dense array."""
    for name, x in (*module.named_parameters(), *module.named_buffers()):
        reason = why_unusable(x, "give the module values first: module.to_empty(device='cpu'), then load_state_dict")
        if reason:
            raise ConversionError(f"module: its tensor {name!r} {reason}")
    for number, x in enumerate(call.tensors):
        reason = why_unusable(x, "give one with values, such as torch.zeros(x.shape)")
        if reason:
            raise ConversionError(f"inputs: tensor number {number} {reason}")
    for path, m in module.named_modules():
        if type(m).__module__.startswith("torch.ao.nn.quantized"):
            raise ConversionError(f"{_label(path, m)}: a quantized module; convert the float module it was made from")


def why_unusable(x: torch.Tensor, source: str) -> str:
    """Why a tensor cannot be converted, and what to do; "" if it can. ``source`` says how to get values."""
    if isinstance(x, FakeTensor) or x.device.type == "meta":
        return f"is {'a fake one' if isinstance(x, FakeTensor) else 'on the meta device'} and holds no values; {source}"
    if x.is_nested:
        return "is nested; pad it to one shape: torch.nested.to_padded_tensor(x, 0.0)"
    if x.is_quantized:
        return "is quantized; convert the float tensor: x.dequantize()"
    if x.layout != torch.strided:
        return f"has the layout {x.layout}; make it dense: x.to_dense()"
    if getattr(x, "has_names", bool)():  # not every version of torch has them
        return f"has names of axes {getattr(x, 'names', ())}; drop them: x.rename(None)"
    return ""


def _label(path: str, module: nn.Module | str) -> str:
    """A module in a message: its path and its type."""
    return f"module {path or '(the root)'!r} ({module if isinstance(module, str) else type(module).__name__})"


def _export(flat: nn.Module, tensors: tuple[torch.Tensor, ...], constants: ConstantValues) -> ExportedProgram:
    """The exported program, with leading axes of any length as far as the module allows it."""
    rows = {x.shape[0] for x in tensors if x.ndim}
    if rows == {1}:  # torch treats a length of 1 as fixed
        tensors = tuple(_like(x, torch.cat([x, x])) if x.ndim else x for x in tensors)
    dynamic = tuple({0: Dim.AUTO} if x.ndim and x.shape[0] > 1 else None for x in tensors)
    with tracing_mode(), traceable_branches(), constants:
        return torch.export.export(flat, tensors, dynamic_shapes=(dynamic,) if tensors else None, strict=False)


def _like(x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The values as a tensor of its own, contiguous as arrays are, that requires a gradient if x does."""
    own = values.clone() if values.is_inference() else values.detach()
    return own.contiguous().requires_grad_(x.requires_grad)


def _decompositions(graph_module: torch.fx.GraphModule) -> Any:
    """torch's table of decompositions without our own operators, which are faster and more exact undecomposed."""
    table = default_decompositions()
    tracking = _updates_statistics(graph_module)
    for op in list(table):
        # torch decomposes views itself, because it has to know which tensors a write in place changes
        known = str(op) in TABLE and not _is_view(op) and not (tracking and "instance_norm" in str(op))
        if known or not op.name().startswith("aten::"):
            table.pop(op)
    return table


def _updates_statistics(graph_module: torch.fx.GraphModule) -> bool:
    """Whether an instance_norm updates running statistics; undecomposed, the operator would not return them."""
    graphs = [m.graph for m in graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    norms = [n for graph in graphs for n in graph.nodes if n.target is torch.ops.aten.instance_norm.default]
    return any(n.args[3] is not None and n.args[5] for n in norms)


def _is_view(op: Any) -> bool:
    return any(r.alias_info is not None for r in op._schema.returns)


def _check_writes(
    graph_module: torch.fx.GraphModule, is_buffer: Callable[[torch.fx.Node], bool], enabled: bool
) -> None:
    """Refuse writes in place that change the values of a tensor and not its gradient, which a graph cannot express.

    These are writes through a detached alias, and writes under ``no_grad``.
    """
    nodes: list[Any] = list(graph_module.graph.nodes)
    placeholders = [n for n in nodes if n.op == "placeholder"]
    for node in nodes:
        if node.target is torch.ops.higher_order.wrap_with_set_grad_enabled:
            inner, outer_nodes = getattr(graph_module, node.args[1].target), node.args[2:]
            names = [n.name for n in inner.graph.nodes if n.op == "placeholder"]
            buffers = {name for name, outer in zip(names, outer_nodes) if is_buffer(outer)}
            _check_writes(inner, _is_among(buffers), bool(node.args[0]))
        for target in _write_targets(node):
            base, detached = _view_base(target)
            outside = not enabled and base in placeholders and not is_buffer(base)
            if (detached or outside) and node.target is not torch.ops.aten.detach_.default:
                means = "through a detached alias" if detached else "under no_grad"
                raise ConversionError(
                    f"{source_place(node)}: a tensor is written to {means} ({node.target}), which changes its values "
                    "and not its gradient; that is not supported. Make a new tensor instead: x + (f(x) - x).detach()"
                )


def _is_among(names: set[str]) -> Callable[[torch.fx.Node], bool]:
    return lambda node: node.name in names


def _write_targets(node: Any) -> list[Any]:
    """The nodes that an operator writes to in place."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return []
    pairs = zip(schema.arguments, node.args)
    return [x for a, x in pairs if a.alias_info is not None and a.alias_info.is_write and isinstance(x, torch.fx.Node)]


def _view_base(node: Any) -> tuple[Any, bool]:
    """The tensor that a node is a view of, and whether a view in between detaches it."""
    detached = False
    while True:
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.arguments or schema.arguments[0].alias_info is None or not node.args:
            return node, detached
        detached = detached or node.target is torch.ops.aten.detach.default
        node = node.args[0]


def _mark_stop_gradients(graph_module: torch.fx.GraphModule) -> None:
    """Replace ``detach`` by, and wrap the results of ``no_grad`` in, an operator that torch does not decompose."""
    stop = torch.ops.lla_torch.stop_gradient.default
    mark_branches(graph_module, _mark_stop_gradients)
    nodes: list[Any] = list(graph_module.graph.nodes)
    for node in nodes:
        if node.target is torch.ops.aten.detach.default:
            node.target = stop
        elif node.target is torch.ops.aten.detach_.default:
            node.target = stop
            node.args[0].replace_all_uses_with(node, delete_user_cb=lambda user, node=node: _comes_after(node, user))
        elif node.target is torch.ops.higher_order.wrap_with_set_grad_enabled:
            enabled, inner = node.args[0], getattr(graph_module, node.args[1].target)
            _mark_stop_gradients(inner)
            if not enabled:
                _stop_outputs(inner, stop)
    graph_module.recompile()


def _comes_after(node: torch.fx.Node, user: torch.fx.Node) -> bool:
    """Whether ``user`` comes after ``node``."""
    return user is not node and node < user


def _stop_outputs(graph_module: torch.fx.GraphModule, stop: Any) -> None:
    output: Any = next(n for n in graph_module.graph.nodes if n.op == "output")

    def stop_gradient(x: Any) -> Any:
        if not isinstance(x, torch.fx.Node) or not isinstance(x.meta.get("val"), torch.Tensor):
            return x
        if x.op == "placeholder":  # passed through: nothing was computed without gradient
            return x
        source: Any = x.args[0] if x.target is operator.getitem else x
        within = torch.ops.higher_order.wrap_with_set_grad_enabled
        if source.target is within and source.args[0]:  # enable_grad inside of no_grad
            return x
        with graph_module.graph.inserting_before(output):
            node = graph_module.graph.call_function(stop, (x,))
            node.meta = dict(x.meta)
            return node

    output.args = (torch.fx.map_arg(output.args[0], stop_gradient),)
    graph_module.recompile()


# --- messages


def _own_failure(flat: nn.Module, tensors: tuple[torch.Tensor, ...]) -> Exception | None:
    """The error that a call raises in torch, without tracing and with copies of all tensors; None if it has none."""
    values = {n: x.detach().clone().requires_grad_(x.requires_grad) for n, x in flat.named_parameters()}
    values |= {n: x.clone() for n, x in flat.named_buffers()}
    try:
        torch.func.functional_call(flat, values, tuple(_like(x, x.clone()) for x in tensors))
    except Exception as error:
        return error
    return None


def _explain(
    error: Exception,
    module: nn.Module,
    call: Call,
    function: Callable[..., Any] | None,
    own_failure: Callable[[], Exception | None],
) -> ConversionError:
    """The ConversionError for a failed export; it names the module, the line and a remedy."""
    if isinstance(error, ConversionError):
        return error
    place = _innermost_place(error.__traceback__, module)
    if isinstance(error, Refused):
        return ConversionError(f"{place}: {error}.")
    kind = type(error).__name__
    if "DeviceMismatch" in kind:
        return ConversionError(
            f"{place}: tensors on different devices meet; put the module, its inputs and tensors made in forward on "
            f"one: module.cpu(), x.cpu(), torch.zeros(..., device=x.device). torch says: {first_line(error)}"
        )
    if kind == "UncapturedHigherOrderOpError":
        return ConversionError(
            f"{place}: a function that takes functions cannot be traced; torch.cond takes branches that return tensors "
            "of equal shapes and types and change nothing else; write a loop of a fixed number of steps in Python, and "
            f"other choices with torch.where. torch says: {first_line(error)}"
        )
    if "sparse" in str(error) and "fake tensor in the exported program" not in str(error):
        return ConversionError(
            f"{place}: torch.export cannot trace sparse tensors; make them dense by x.to_dense(), or pass the indices "
            "and values of a sparse matrix as dense tensors, and write its product with h as "
            "torch.zeros_like(h).index_add(0, rows, values[:, None] * h[columns]). "
            f"torch says: {first_line(error)}"
        )
    if "DataDependent" in kind or "data-dependent" in str(error):
        return ConversionError(
            f"{place}: the forward pass depends on the values of a tensor (an `if`, a loop, .item(), an index that is "
            f"computed, BatchNorm(momentum=None)), so it is no single graph. {_other_than_choosing(place)}. torch "
            f"says: {first_line(error)}"
        )
    if "arget size" in str(error) and "input size" in str(error):
        return ConversionError(
            f"{place}: outputs and labels have different shapes; give the labels an axis, labels[:, None], or take it "
            f"from the outputs, outputs.squeeze(1). torch says: {first_line(error)}"
        )
    if "fake tensor in the exported program" in str(error):
        return ConversionError(
            f"{place}: a tensor is made in a way that leaves no trace in the graph (.data, numpy, torch.vmap with "
            f"out_dims); write it with differentiable operators, and move the axes of a mapped result by movedim. "
            f"torch says: {first_line(error)}"
        )
    if own := own_failure():
        place = _innermost_place(own.__traceback__, module)
        if function is not None:
            return ConversionError(why_step_fails(own, function, module, call.args[0], place))
        return ConversionError(why_call_fails(own, module, call.args, call.kwargs, place))
    axis = "; if the example inputs lack the axis of examples, give it, x[None]" if "channels" in str(error) else ""
    return ConversionError(
        f"{place}: torch.export cannot trace this module ({kind}); write this line with operators that torch.export "
        f"supports{axis}. torch says: {first_line(error)}"
    )


def _other_than_choosing(place: str) -> str:
    """What to do about a choice by values, at a place."""
    if "transformers" in place and "Experts" in place:
        return (
            "transformers has versions of its experts that choose nothing: call model.set_experts_implementation("
            "'batched_mm') or ('grouped_mm'), or leave experts_implementation= out where the model is made"
        )
    return (
        "Write it with torch.where, fix the choice before converting, or convert the part of the module before it, "
        "such as module.backbone; of a detection model the raw boxes and scores, before some are selected"
    )


def _innermost_place(trace: TracebackType | None, module: nn.Module) -> str:
    """Text that names the innermost module and the innermost line of the user's own code in a traceback."""
    names = {id(m): name for name, m in module.named_modules()}
    label, line = "", ""
    for frame, number in traceback.walk_tb(trace):
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and id(owner) in names:
            label = _label(names[id(owner)], owner)
        file = frame.f_code.co_filename
        if not is_library(file):
            text = traceback.FrameSummary(file, number, frame.f_code.co_name).line
            line = f"{file}:{number}: {text}"
    return ", ".join(filter(None, [label or f"module {type(module).__name__}", line]))


def source_place(node: torch.fx.Node) -> str:
    """Text that names the module of a graph's node and its innermost source line outside of torch; "" if unknown."""
    stack = node.meta.get("nn_module_stack") or {}
    owner = ""
    if stack:
        path, kind = list(stack.values())[-1]
        path = path.removeprefix("module").removeprefix(".")
        kind = kind if isinstance(kind, str) else kind.__name__
        owner = _label(path, kind.rsplit(".", 1)[-1])
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").splitlines()]
    places = [(a, b) for a, b in itertools.pairwise(lines) if a.startswith("File ") and not is_library(a[6:])]
    if not places:
        return owner
    file, text = places[-1]
    name, number = file.split('"')[1], file.split("line ")[1].split(",")[0]
    return ", ".join(filter(None, [owner, f"{name}:{number}: {text}"]))
