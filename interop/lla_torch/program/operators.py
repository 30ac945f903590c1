"""The table of ATen operators, with the JAX function that computes each, and the decorator that adds to it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from lla_jax.models.adapters import explained, misuse

Layout = Literal["logical", "pointwise", "views", "graph"]


@dataclass(frozen=True)
class TorchOperator:
    """An operator of torch and the JAX function that computes it.

    Args:
      name: the operator with its overload, such as "aten.relu.default".
      function: called with the operator's arguments in the order and by the names of ATen's schema.
      layout: "logical": tensors arrive as arrays in torch's order of axes. "pointwise": they arrive as arrays in any
        common order, which is enough for functions that work entry by entry with broadcasting. "views": they arrive as
        ``views.View``, and the function returns views or arrays. "graph": the function differentiates a part of the
        program, see ``ops.derivatives``.
      random: whether it draws random numbers, through the keyword argument ``draw``.
      subject: name of the Python module that registered it, for the table in the docs.
    """

    name: str
    function: Callable[..., Any]
    layout: Layout = "logical"
    random: bool = False
    subject: str = field(default="", compare=False)


TABLE: dict[str, TorchOperator] = {}
"""All known operators by name."""


def full_name(op: Any) -> str:
    """The name of an operator as the table has it: "aten.relu.default" for "relu" or ``torch.ops.aten.relu.default``.

    A name without namespace is ATen's, one without overload has the overload "default".
    """
    name = str(op).replace("::", ".")
    parts = name.split(".")
    if len(parts) == 1:
        parts = ["aten", *parts]
    if len(parts) == 2:
        parts.append("default")
    return ".".join(parts)


@explained
def lowering(op: Any, *ops: Any, layout: Layout = "logical", random: bool = False) -> Callable[..., Any]:
    """A decorator that registers the JAX function of an ATen (or custom) operator.

        @lla_torch.lowering("aten.erfinv.default")
        def erfinv(x):
            return jax.scipy.special.erfinv(x)

    Args:
      op: the operator: ``torch.ops.aten.erfinv.default``, "aten.erfinv.default", "aten::erfinv" or "mylib::op".
      ops: further operators that the same function computes.
      layout: the form of tensors. "logical": jax arrays in torch's order of axes. "pointwise": jax arrays in any common
        order, for functions that work entry by entry with broadcasting. "views": ``lla_torch.program.views.View``.
      random: the function is passed ``draw``; ``draw(sampler)`` gives ``sampler(key)`` with a key of its own, or the
        recorded draw in a replay; ``draw(sampler, optional=True)`` gives None where there is neither.

    Returns:
      The decorator; it returns the function unchanged. Types (``dtype=``) arrive as numpy dtypes, sizes as Python ints;
      ``device``, ``layout``, ``pin_memory``, ``memory_format``, ``non_blocking`` and ``requires_grad`` are left out. A
      function registered again replaces the former, for modules converted from then on.
    """

    for each in (op, *ops):
        if not (isinstance(each, str) and each) and type(each).__name__ not in ("OpOverload", "OpOverloadPacket"):
            raise misuse(
                "op",
                each,
                "the name of an operator, such as 'aten.erfinv.default', or one of torch.ops.aten; the "
                "function is decorated: @lowering(op)",
            )
    if layout not in get_args(Layout):
        raise misuse("layout", layout, f"one of {', '.join(map(repr, get_args(Layout)[:3]))}")
    if not isinstance(random, bool):
        raise misuse("random", random, "True or False")

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        subject = sys._getframe(1).f_globals.get("__name__", "")
        if not callable(function):
            raise misuse("function", function, "the function of arrays that computes the operator")
        for each in (op, *ops):
            name = full_name(each)
            TABLE[name] = TorchOperator(name, function, layout, random, subject)
        return function

    return register
