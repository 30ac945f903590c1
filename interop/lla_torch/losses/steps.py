"""Looks at what a step written in torch returns: the form of its losses, and whether they are what is expected."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import torch
from torch import nn
from torch.utils import _pytree as torch_pytree

from lla_jax.models.adapters import warn_caller
from lla_torch.conversion.function import depends_on_params
from lla_torch.program.program import Program
from lla_torch.tracing.calls import as_arrays
from lla_torch.tracing.guards import preserve_module


def check_dependence(program: Program) -> None:
    """Refuse a step whose loss does not depend on the parameters, and warn of one that is detached from them."""
    if not depends_on_params(program, 0):
        raise ValueError(
            "step: its loss does not depend on the parameters of the module that it gets; compute it from "
            "module(inputs), not from another network or plain numbers"
        )
    if not depends_on_params(program, 0, through_stops=False):
        warn_caller(
            "step: its loss is detached from the parameters (torch.no_grad, .detach()), so gradient and Hessian are "
            "zero; leave these out, unless you want the values alone"
        )


def _rows(batch: Any, rows: int, cut: slice) -> Any:
    """Some rows of the tensors of a batch whose leading axis is that of the examples."""
    take = lambda x: x[cut].detach() if isinstance(x, torch.Tensor) and x.shape[:1] == (rows,) else x  # noqa: E731
    return torch_pytree.tree_map(take, batch)


def is_fixed(net: Any, batch: Any, rows: int) -> bool:
    """Whether a converted step takes no other number of examples than its example batch has."""
    half = as_arrays(_rows(batch, rows, slice(rows // 2)))
    try:
        jax.eval_shape(lambda v, k: net.function(v, (half,), {}, key=k)[0], net.variables, jax.random.key(0))
    except Exception:  # whatever the step says to another shape
        return True
    return False


def warn_of_a_mean(step: Callable[[nn.Module, Any], Any], module: nn.Module, batch: Any, rows: int) -> None:
    """Warn where the first value of a step, computed by torch, is a mean: a sum is that of the two halves together."""
    half = rows // 2
    try:
        with preserve_module(module, train=False):  # with gradients, since the step may take some
            cuts = (slice(2 * half), slice(half), slice(half, 2 * half))
            total, first, second = (float(step(module, _rows(batch, rows, cut))[0]) for cut in cuts)
    except Exception:  # it takes no halves in torch either
        return
    slack = 1e-5 * max(abs(total), abs(first), abs(second))
    within = min(first, second) - slack <= total <= max(first, second) + slack
    if first and second and within and abs(total - first - second) > slack:
        warn_caller(
            f"step: the first of its two values, {total:.4g} for {2 * half} examples, {first:.4g} and {second:.4g} for "
            "the halves, is a mean, where the sum of the losses is expected; return (sum, weight), such as "
            "(F.cross_entropy(..., reduction='sum'), count)"
        )


def form_of_losses(shape: Any, rows: int | None, whole: bool) -> tuple[bool, bool]:
    """(whether a step returns one number for its batch, whether with a weight), from the shapes that it returns.

    For data that stay ``whole`` the losses may be those of any parts, such as nodes.
    """
    weighted = isinstance(shape, tuple | list) and len(shape) == 2
    losses, weights = shape if weighted else (shape, shape)
    same = hasattr(losses, "shape") and getattr(weights, "shape", None) == losses.shape
    entries = same and weighted and losses.shape[:1] == (rows,)  # (B, ...), such as tokens
    if not same or not (whole or entries or losses.shape in ((), (rows,))):
        raise ValueError(
            f"step: it returns {shape}; it must return a scalar, the mean over the batch, or one loss per example, of "
            f"shape ({rows},), such as cross_entropy(..., reduction='none'); or, where entries are masked or padded, "
            "(sum of the losses, sum of the weights) as two scalars, or (losses, weights) of one shape"
        )
    return losses.shape == (), weighted
