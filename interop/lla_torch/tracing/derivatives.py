"""Derivatives inside of a forward pass, by ``torch.autograd.grad`` and ``torch.func``, as operators of the graph.

torch computes derivatives beside the graph that it exports. While a module is traced, each call leaves one operator
in the graph instead, ``vjp`` or ``jvp``, with the outputs and inputs of what is differentiated; the converted program
evaluates it by ``jax.vjp`` or ``jax.jvp`` of the operators in between.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch._C._functorch import CVmapInterpreterPtr, TransformType, get_interpreter_stack
from torch._functorch import eager_transforms
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, get_proxy_mode, track_tensor_tree
from torch.utils import _pytree as torch_pytree

try:
    from torch._functorch.predispatch import _add_batch_dim
except ImportError:  # older torch, which exports no vmap
    from torch._C._functorch import _add_batch_dim  # type: ignore[assignment]


class Refused(Exception):
    """The error for a call in a forward pass that the graph would silently lose; it becomes a ``ConversionError``."""


# --- the operators


@torch.library.custom_op("lla_torch::vjp", mutates_args=())
def vjp(
    outputs: list[torch.Tensor], inputs: list[torch.Tensor], cotangents: list[torch.Tensor], batched: int
) -> list[torch.Tensor]:
    """The products of cotangents, one per output, with the derivative of outputs by inputs; one result per input.

    Args:
      outputs: tensors that depend on ``inputs``.
      inputs: the tensors by which they are differentiated.
      cotangents: of the shapes of the outputs, with ``batched`` axes in front.
      batched: the number of leading axes over which the product is mapped.
    """
    return [_like(x, cotangents, batched) for x in inputs]


@torch.library.custom_op("lla_torch::jvp", mutates_args=())
def jvp(
    outputs: list[torch.Tensor], inputs: list[torch.Tensor], tangents: list[torch.Tensor], batched: int
) -> list[torch.Tensor]:
    """The products of the derivative of outputs by inputs with tangents, one per input; one result per output.

    Args:
      outputs: tensors that depend on ``inputs``.
      inputs: the tensors by which they are differentiated.
      tangents: of the shapes of the inputs, with ``batched`` axes in front.
      batched: the number of leading axes over which the product is mapped.
    """
    return [_like(x, tangents, batched) for x in outputs]


@torch.library.custom_op("lla_torch::variable", mutates_args=())
def variable(x: torch.Tensor, tokens: list[torch.Tensor]) -> torch.Tensor:
    """A copy of x by which a function is differentiated; it has the batch axes of ``tokens`` under ``vmap``."""
    return x.clone()


@torch.library.custom_op("lla_torch::stop_gradient", mutates_args=())
def stop_gradient(x: torch.Tensor) -> torch.Tensor:
    """A copy of x whose gradient is zero; it stands for ``detach`` and ``no_grad``."""
    return x.clone()


def _like(x: torch.Tensor, given: Sequence[torch.Tensor], batched: int) -> torch.Tensor:
    return x.new_empty((*given[0].shape[:batched], *x.shape))


vjp.register_fake(lambda outputs, inputs, cotangents, batched: [_like(x, cotangents, batched) for x in inputs])
jvp.register_fake(lambda outputs, inputs, tangents, batched: [_like(x, tangents, batched) for x in outputs])
variable.register_fake(lambda x, tokens: torch.empty_like(x))
stop_gradient.register_fake(torch.empty_like)


def _remember(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.given = inputs[:3]


def _depends(ctx: Any, *gradients: Any) -> Any:
    """Zeros: while tracing, torch only has to know what a derivative depends on."""
    return (*([torch.zeros_like(x) for x in tensors] for tensors in ctx.given), None)


vjp.register_autograd(_depends, setup_context=_remember)
jvp.register_autograd(_depends, setup_context=_remember)
variable.register_autograd(
    lambda ctx, gradient: (gradient, [None] * ctx.count),
    setup_context=lambda ctx, inputs, output: setattr(ctx, "count", len(inputs[1])),
)


# --- their rules for torch.vmap


def _axis_at(x: torch.Tensor, axis: int | None, place: int, length: int) -> torch.Tensor:
    """x with its batch axis at another place, or with one there if it has none."""
    if axis is None:
        return x.unsqueeze(place).expand(*x.shape[:place], length, *x.shape[place:])
    return x.movedim(axis, place)


def _check_mapped(axes: Sequence[int | None], others: Sequence[int | None]) -> None:
    if any(axis is None for axis in axes) and any(axis is not None for axis in others):
        raise Refused(
            "a derivative is taken inside of torch.vmap by a tensor from outside of it. Pass the tensor to the mapped "
            "function as an argument"
        )


@vjp.register_vmap
def _(info: Any, axes: Any, outputs: Any, inputs: Any, cotangents: Any, batched: int) -> Any:
    of_outputs, of_inputs, of_cotangents, _ = axes
    _check_mapped(of_inputs, of_outputs)
    if all(axis is None for axis in of_inputs):  # one derivative for all cotangents
        moved = [_axis_at(c, axis, 0, info.batch_size) for c, axis in zip(cotangents, of_cotangents, strict=True)]
        return vjp(outputs, inputs, moved, batched + 1), [0] * len(inputs)
    outputs = [_axis_at(y, axis, 0, info.batch_size) for y, axis in zip(outputs, of_outputs, strict=True)]
    pairs = zip(cotangents, of_cotangents, strict=True)
    moved = [_axis_at(c, axis, batched, info.batch_size) for c, axis in pairs]
    return vjp(outputs, inputs, moved, batched), [axis + batched for axis in of_inputs]


@jvp.register_vmap
def _(info: Any, axes: Any, outputs: Any, inputs: Any, tangents: Any, batched: int) -> Any:
    of_outputs, of_inputs, of_tangents, _ = axes
    _check_mapped(of_inputs, of_outputs)
    if all(axis is None for axis in of_inputs):
        moved = [_axis_at(t, axis, 0, info.batch_size) for t, axis in zip(tangents, of_tangents, strict=True)]
        return jvp(outputs, inputs, moved, batched + 1), [0] * len(outputs)
    moved = [
        _axis_at(t, axis, place + batched, info.batch_size)
        for t, axis, place in zip(tangents, of_tangents, of_inputs, strict=True)
    ]
    return jvp(outputs, inputs, moved, batched), [None if axis is None else axis + batched for axis in of_outputs]


@variable.register_vmap
def _(info: Any, axes: Any, x: Any, tokens: Any) -> Any:
    axis, of_tokens = axes
    inner = [t if a is None else t.select(a, 0) for t, a in zip(tokens, of_tokens, strict=True)]
    return variable(_axis_at(x, axis, 0, info.batch_size), inner), 0


@stop_gradient.register_vmap
def _(info: Any, axes: Any, x: Any) -> Any:
    return stop_gradient(x), axes[0]


def _tokens() -> list[torch.Tensor]:
    """A tensor for each ``vmap`` that is being traced, with the batch axis of this."""
    levels = [level for level in get_interpreter_stack() or [] if level.key() == TransformType.Vmap]
    return [_add_batch_dim(torch.zeros(CVmapInterpreterPtr(level).batchSize()), 0, level.level()) for level in levels]


# --- torch.autograd.grad


def autograd_grad(*args: Any, **kwargs: Any) -> tuple[torch.Tensor | None, ...]:
    """``torch.autograd.grad`` while a module is traced: the gradients, with an operator in the graph.

    torch itself differentiates the tensors without values of the trace, and so decides which inputs have a gradient,
    and what can be differentiated again.
    """
    given = inspect.signature(_grad).bind(*args, **kwargs)
    return _grad(*given.args, **given.kwargs)


def _grad(
    outputs: Any,
    inputs: Any,
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    only_inputs: bool = True,
    allow_unused: bool | None = None,
    is_grads_batched: bool = False,
    materialize_grads: bool = False,
) -> tuple[torch.Tensor | None, ...]:
    outputs, inputs = _listed(outputs), _listed(inputs)
    if not all(isinstance(x, torch.Tensor) for x in (*outputs, *inputs)):
        raise Refused("torch.autograd.grad is called with a GradientEdge. Give it the tensors")
    mode: Any = get_proxy_mode()
    if mode is None or get_interpreter_stack():
        raise Refused(
            "torch.autograd.grad is called inside of a function that torch.vmap maps. Use torch.func.grad there, or "
            "differentiate the sum over the batch"
        )
    cotangents = [None] * len(outputs) if grad_outputs is None else _listed(grad_outputs)
    found = _by_torch(outputs, inputs, cotangents, create_graph, is_grads_batched)
    unused = [i for i, gradient in enumerate(found) if gradient is None]
    if unused and not (allow_unused or materialize_grads):
        raise Refused(
            f"torch.autograd.grad is called, and its outputs do not depend on input number {unused[0]}. Differentiate "
            "by the tensor that the outputs were computed from, not by a copy or a part of it, or pass "
            "allow_unused=True"
        )
    used = [x for x, gradient in zip(inputs, found, strict=True) if gradient is not None]
    filled = [torch.ones_like(y) if c is None else c for y, c in zip(outputs, cotangents, strict=True)]
    with _with_gradients() if create_graph else contextlib.nullcontext():
        marked = iter(vjp(outputs, used, filled, int(is_grads_batched)) if used else [])
    results: list[torch.Tensor | None] = []
    for x, gradient in zip(inputs, found, strict=True):
        if gradient is None:
            results.append(torch.zeros_like(x) if materialize_grads else None)
            continue
        proxy = mode.tracer.unwrap_proxy(next(marked))
        track_tensor_tree(gradient, proxy, constant=None, tracer=mode.tracer)
        results.append(gradient if create_graph else gradient.detach())
    return tuple(results)


def _with_gradients() -> contextlib.AbstractContextManager[Any]:
    """The context in which gradients are enabled; a context leaves its mark in a graph, so none where they are."""
    return contextlib.nullcontext() if torch.is_grad_enabled() else torch.enable_grad()


def _listed(x: Any) -> list[Any]:
    return list(x) if isinstance(x, tuple | list) or inspect.isgenerator(x) else [x]


def _by_torch(
    outputs: list[Any], inputs: list[Any], cotangents: list[Any], create_graph: bool, batched: bool
) -> tuple[torch.Tensor | None, ...]:
    """torch's gradients, of which only shapes and dependences are known; None of inputs that are not used."""
    with disable_proxy_modes_tracing():
        one = [c[0] if batched and c is not None else c for c in cotangents]
        try:
            found = torch.autograd.grad(
                outputs, inputs, one, retain_graph=True, create_graph=create_graph, allow_unused=True
            )
        except RuntimeError as error:
            raise Refused(f"torch.autograd.grad is called, and torch says: {_sentence(error)}") from error
        if not batched:
            return found
        length = next(c.shape[0] for c in cotangents if c is not None)
        return tuple(None if g is None else g.expand(length, *g.shape) for g in found)


def _sentence(error: Exception) -> str:
    text = str(error).strip().splitlines()[0].rstrip(".")
    if "does not require grad" in text:
        text += ". Call x.requires_grad_() on the input, in the step, before the module is run on it"
    return text


# --- torch.func


def _variables(tree: Any) -> Any:
    tokens = _tokens()
    return torch_pytree.tree_map(lambda x: variable(x, tokens) if isinstance(x, torch.Tensor) else x, tree)


def _split(result: Any, has_aux: bool) -> tuple[Any, Any]:
    """(outputs, auxiliary outputs) of a function's result."""
    if not has_aux:
        return result, None
    if not (isinstance(result, tuple) and len(result) == 2):
        raise Refused("a function is differentiated with has_aux=True. Let it return (output, aux)")
    return result


def _run(function: Any, args: Any, argnums: Any, kwargs: Any, has_aux: bool) -> tuple[Any, list[Any], Any, Any]:
    """(outputs, variables, their nesting, auxiliary outputs) of a function of variables in place of some arguments."""
    if argnums is None:
        varied = args = _variables(args)
    else:
        numbers = eager_transforms._validate_and_wrap_argnums(argnums, len(args))
        varied = _variables(eager_transforms._slice_argnums(args, numbers, as_tuple=False))
        replaced = varied if isinstance(numbers, tuple) else (varied,)
        args = eager_transforms._replace_args(args, replaced, numbers)
    with _with_gradients():
        outputs, aux = _split(function(*args, **kwargs), has_aux)
    leaves, nesting = torch_pytree.tree_flatten(varied)
    return outputs, leaves, nesting, aux


def _func_grad_and_value(function: Any, argnums: Any, has_aux: bool, args: Any, kwargs: Any) -> Any:
    output, variables, nesting, aux = _run(function, args, argnums, kwargs, has_aux)
    if not isinstance(output, torch.Tensor) or output.ndim:
        shape = f"one of shape {tuple(output.shape)}" if isinstance(output, torch.Tensor) else type(output).__name__
        raise Refused(
            f"torch.func.grad is called of a function that returns {shape}. Let it return a tensor without axes, such "
            "as a sum, or use torch.func.jacrev"
        )
    gradients = torch_pytree.tree_unflatten(vjp([output], variables, [torch.ones_like(output)], 0), nesting)
    return gradients, ((output, aux) if has_aux else output)


def _func_grad(function: Any, argnums: Any, has_aux: bool, args: Any, kwargs: Any) -> Any:
    gradients, value = _func_grad_and_value(function, argnums, has_aux, args, kwargs)
    return (gradients, value[1]) if has_aux else gradients


def _func_vjp(function: Any, *primals: Any, argnums: Any = None, has_aux: bool = False) -> Any:
    outputs, variables, nesting, aux = _run(function, primals, argnums, {}, has_aux)
    flat = torch_pytree.tree_leaves(outputs)

    def product(cotangents: Any, retain_graph: bool = True, create_graph: bool | None = None) -> Any:
        products = vjp(flat, variables, torch_pytree.tree_leaves(cotangents), 0)
        return torch_pytree.tree_unflatten(products, nesting)

    return (outputs, product, aux) if has_aux else (outputs, product)


def _func_jvp(function: Any, primals: Any, tangents: Any, argnums: Any, *, strict: bool = False, has_aux: bool) -> Any:
    outputs, variables, _, aux = _run(function, primals, argnums, {}, has_aux)
    flat, nesting = torch_pytree.tree_flatten(outputs)
    moved = torch_pytree.tree_unflatten(jvp(flat, variables, torch_pytree.tree_leaves(tangents), 0), nesting)
    return (outputs, moved, aux) if has_aux else (outputs, moved)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "grad_and_value_impl": _func_grad_and_value,
    "grad_impl": _func_grad,
    "_vjp_with_argnums": _func_vjp,
    "_jvp_with_argnums": _func_jvp,
}
"""What ``torch.func.grad``, ``grad_and_value``, ``vjp``, ``jvp``, ``jacrev``, ``jacfwd`` and ``hessian`` call."""


@contextlib.contextmanager
def derivatives_in_graph() -> Iterator[None]:
    """Context in which the functions of ``torch.func`` leave operators in the graph that this thread traces."""
    here = threading.get_ident()
    before = {name: getattr(eager_transforms, name) for name in _FUNCTIONS}

    def in_this_thread(name: str) -> Callable[..., Any]:
        def function(*args: Any, **kwargs: Any) -> Any:
            return (_FUNCTIONS if threading.get_ident() == here else before)[name](*args, **kwargs)

        return function

    for name in _FUNCTIONS:
        setattr(eager_transforms, name, in_this_thread(name))
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(eager_transforms, name, function)
