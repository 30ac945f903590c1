"""Functions of sizes, which are Python numbers when a program runs: those of a graph's nodes and of its guards."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


def _choose(condition: Any, a: Any, b: Any) -> Any:
    return a if condition else b


SYMBOLIC: dict[str, Callable[..., Any]] = {
    "sym_float": float,
    "sym_int": int,
    "sym_max": max,
    "sym_min": min,
    "sym_not": operator.not_,
    "sym_ite": _choose,
    "sym_sum": sum,
    "sym_sqrt": math.sqrt,
    **{
        f"_sym_{name}": getattr(math, name)
        for name in ("sqrt", "log2", "cos", "cosh", "sin", "sinh", "tan", "tanh", "acos", "asin", "atan")
    },
}
"""torch's functions of sizes by their names in torch."""

PYTHON: tuple[Callable[..., Any], ...] = (
    *(operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.mod),
    *(operator.neg, operator.pos, operator.abs, operator.pow, operator.lshift, operator.rshift, operator.index),
    *(operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge),
    *(operator.and_, operator.or_, operator.xor, operator.invert, operator.not_),
    *(math.ceil, math.floor, math.trunc, math.sqrt, math.log2, math.exp, math.log),
    *(math.cos, math.cosh, math.sin, math.sinh, math.tan, math.tanh, math.acos, math.asin, math.atan),
    *(round, int, float, bool, abs, min, max, sum),
)
"""Python's own functions of numbers that a graph may hold."""

_NAMES: dict[str, Any] = {
    "__builtins__": {},
    "math": math,
    "torch": SimpleNamespace(**SYMBOLIC),
    **{f.__name__: f for f in (abs, bool, float, int, max, min, round, sum)},
}


def holds(guard: str, shapes: list[tuple[int, ...]]) -> bool:
    """Whether a condition on the shapes ``s`` holds, an expression that torch.export wrote, such as "s[0][0] > 3"."""
    return bool(eval(guard, dict(_NAMES), {"s": shapes}))
