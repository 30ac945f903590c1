"""Custom ``autograd.Function``s whose backward is the derivative of their forward are traced by their forward alone.

A graph holds the operators of a forward pass and no backward, so that a backward of its own would be lost. Many such
functions have one only to save memory or time (a GELU that is computed again); it is the derivative of the forward, as
a comparison in float64 at several points shows, and the forward alone says everything. Others (straight-through
estimators, reversed or clipped gradients) differ, and stay refused.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils import _pytree as torch_pytree

CLOSE = 1e-6
"""How far, relative to the largest entry, a backward may be from the derivative: constants may have 8 digits."""
INPUTS = (0.1, 1.0, 10.0, 100.0)
"""The scales of the random inputs."""
DENSE = 0.8
"""The share of the inputs that are not zero: at zero a backward may say what the derivative does not."""
GRADIENTS = (1e-3, 1.0, 1e4)
"""The scales of the random gradients of the outputs: a backward that clips shows itself at the large ones."""


class Context:
    """What a forward gets as ``ctx`` where no backward follows: it takes all attributes, and what is to be saved."""

    def __init__(self, args: tuple[Any, ...]):
        self.needs_input_grad = tuple(isinstance(x, torch.Tensor) and x.is_floating_point() for x in args)

    def save_for_backward(self, *tensors: Any) -> None:
        """Nothing: no backward follows."""

    save_for_forward = mark_dirty = mark_non_differentiable = set_materialize_grads = save_for_backward


def run_forward(function: Any, args: tuple[Any, ...]) -> Any:
    """The forward of an ``autograd.Function`` class as plain operators, which autograd differentiates."""
    if function.setup_context is not torch.autograd.Function.setup_context:
        return function.forward(*args)
    return function.forward(Context(args), *args)


def has_own_derivative(function: Any, apply: Callable[..., Any], args: tuple[Any, ...]) -> bool:
    """Whether the backward of an ``autograd.Function`` is, to rounding, the derivative of its forward.

    Both are computed in float64 at random inputs of the shapes and types of ``args``, in a thread of its own, where no
    tracing is on.

    Args:
      function: the class.
      apply: torch's own ``function.apply``.
      args: the arguments of a call under tracing.
    """
    found = []

    def compare() -> None:
        try:
            found.append(all(_agree(function, apply, inputs) for inputs in _examples(args)))
        except Exception:  # whatever the function does with other inputs than those of the module: nothing is shown
            found.append(False)

    thread = threading.Thread(target=compare)
    thread.start()
    thread.join()
    return bool(found and found[0])


def kinds_of(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """What ``has_own_derivative`` depends on: shapes and types of tensors, and the other arguments."""
    return tuple((tuple(map(_hint, x.shape)), x.dtype) if isinstance(x, torch.Tensor) else (type(x), x) for x in args)


def _examples(args: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    """Random inputs: tensors of the shapes of ``args``, of both signs and positive, at several scales."""
    generator = torch.Generator().manual_seed(0)
    for scale in INPUTS:
        for positive in (False, True):

            def example(x: Any, scale: float = scale, positive: bool = positive) -> Any:
                if not isinstance(x, torch.Tensor):
                    return x
                shape = [_hint(n) for n in x.shape]
                if not x.is_floating_point():
                    return torch.randint(0, 2, shape, generator=generator).to(x.dtype)
                values = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
                values = values * (torch.rand(shape, generator=generator) < DENSE)
                return (values.abs() if positive else values).requires_grad_()

            yield torch_pytree.tree_map(example, args)


def _hint(size: Any) -> int:
    """The length of an axis at conversion."""
    return size if isinstance(size, int) else int(size.node.hint)


def _agree(function: Any, apply: Callable[..., Any], inputs: tuple[Any, ...]) -> bool:
    tensors = [x for x in _tensors(inputs) if x.requires_grad]
    theirs, ours = (_tensors(call()) for call in (lambda: apply(*inputs), lambda: run_forward(function, inputs)))
    if any(x.is_complex() for x in (*_tensors(inputs), *ours)):  # whose derivatives are not compared
        return False
    if len(theirs) != len(ours) or not all(_close(a, b) for a, b in zip(theirs, ours)):
        return False
    floats = [i for i, x in enumerate(ours) if x.is_floating_point()]
    if any(theirs[i].requires_grad != ours[i].requires_grad for i in floats):
        return False
    pairs = [(theirs[i], ours[i]) for i in floats if ours[i].requires_grad]
    if not pairs:
        return True
    generator = torch.Generator().manual_seed(1)
    for scale in GRADIENTS:
        weights = [scale * torch.randn(b.shape, generator=generator, dtype=b.dtype) for _, b in pairs]
        slopes = [
            torch.autograd.grad(outputs, tensors, weights, retain_graph=True, allow_unused=True)
            for outputs in zip(*pairs)
        ]
        zeros = [torch.zeros_like(x) for x in tensors]
        if not all(_close(z if a is None else a, z if b is None else b) for a, b, z in zip(*slopes, zeros)):
            return False
    return True


def _tensors(outputs: Any) -> list[torch.Tensor]:
    return [x for x in torch_pytree.tree_leaves(outputs) if isinstance(x, torch.Tensor)]


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether all entries agree; where both are infinite or NaN there is nothing to compare."""
    if a.shape != b.shape or a.dtype != b.dtype or not torch.equal(a.isfinite(), b.isfinite()):
        return False
    a, b = a.detach()[a.isfinite()].double(), b.detach()[b.isfinite()].double()
    return not a.numel() or bool((a - b).abs().max() <= CLOSE * b.abs().max())
