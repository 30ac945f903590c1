"""Asks the installed torch how it divides the derivative of an extremum where both sides are equal."""

from __future__ import annotations

import functools
from collections.abc import Callable
from inspect import signature
from types import BuiltinFunctionType
from typing import Any

import torch

BOUNDS = ("clamp", "clip", "clamp_min", "clamp_max", "fmax", "fmin")
"""Operators that are called with two arguments of which they take one."""


def tie_arguments(function: Callable[..., Any], op: Any) -> dict[str, float]:
    """The further argument of a function that takes ``share``, see ``program.ops.extrema``: what torch's op answers."""
    if isinstance(function, BuiltinFunctionType):  # of sizes, such as max, which has no signature
        return {}
    return {"share": share_at_tie(op)} if "share" in signature(function).parameters else {}


@functools.cache
def share_at_tie(op: Any) -> float:
    """The derivative of ``op(x, bound)`` by x where both are equal: 1 in torch 2.13, 0 or 1/2 in torch 2.14.

    Args:
      op: an operator such as ``torch.ops.aten.clamp_min.default``; of operators with other arguments, such as a loss
        with a margin, the share is that of ``clamp_min``, by which they are computed.
    """
    if op.name().partition("::")[2].partition(".")[0] not in BOUNDS:
        op = torch.ops.aten.clamp_min.default
    takes_tensor = [str(a.type) for a in op._schema.arguments][1].endswith(("Tensor", "Optional[Tensor]"))
    with torch.inference_mode(False), torch.enable_grad(), torch.device("cpu"):
        x = torch.ones(1, dtype=torch.float64, requires_grad=True)
        bound = torch.ones(1, dtype=torch.float64) if takes_tensor else 1.0
        return float(torch.autograd.grad(op(x, bound).sum(), x)[0])
