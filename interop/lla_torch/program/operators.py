"""The table of ATen operators: which JAX function computes which operator, and how to add one."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

Layout = Literal["logical", "pointwise", "views"]


@dataclass(frozen=True)
class Lowering:
    """How one ATen operator is computed.

    Args:
      name: the operator with its overload, such as "aten.relu.default".
      function: called with the operator's arguments in the order and by the names of ATen's schema.
      layout: "logical": tensors arrive as arrays in torch's order of axes. "pointwise": the same, but entry by entry
        with broadcasting, so that any common order does. "views": tensors arrive as ``views.View``, and the function
        returns such (or arrays).
      random: whether it draws random numbers, through the keyword argument ``draw``.
      subject: name of the Python module that registered it, for the table in the docs.
    """

    name: str
    function: Callable[..., Any]
    layout: Layout = "logical"
    random: bool = False
    subject: str = field(default="", compare=False)


TABLE: dict[str, Lowering] = {}
"""All known operators by name."""


def full_name(op: Any) -> str:
    """The name of an operator as the table has it: "aten.add.Tensor" for ``torch.ops.aten.add.Tensor`` and for "add".

    A name without namespace is ATen's, one without overload has the overload "default".
    """
    name = str(op).replace("::", ".")
    parts = name.split(".")
    if len(parts) == 1:
        parts = ["aten", *parts]
    if len(parts) == 2:
        parts.append("default")
    return ".".join(parts)


def lowering(op: Any, *ops: Any, layout: Layout = "logical", random: bool = False) -> Callable[..., Any]:
    """A decorator that says how an ATen (or custom) operator is computed in JAX.

        @lla_torch.lowering("aten.erfinv.default")
        def erfinv(x):
            return jax.scipy.special.erfinv(x)

    Args:
      op: the operator: ``torch.ops.aten.erfinv.default``, "aten.erfinv.default", "aten::erfinv" or "mylib::op".
      ops: further operators that the same function computes.
      layout: how tensors arrive. "logical": as jax arrays in torch's order of axes. "pointwise": as jax arrays in any
        common order, for what works entry by entry with broadcasting. "views": as ``lla_torch.program.views.View``.
      random: the function is passed ``draw``; ``draw(sampler)`` gives ``sampler(key)`` with a key of its own, or the
        recorded draw where one is replayed; ``draw(sampler, optional=True)`` gives None where there is neither.

    Returns:
      The decorator; it returns the function unchanged. Types (``dtype=``) arrive as numpy dtypes, sizes as Python ints;
      ``device``, ``layout``, ``pin_memory`` and ``memory_format`` are left out. A function registered again replaces
      the former, for modules converted from then on.
    """

    subject = sys._getframe(1).f_globals.get("__name__", "")

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for each in (op, *ops):
            name = full_name(each)
            TABLE[name] = Lowering(name, function, layout, random, subject)
        return function

    return register
