"""Finds the results whose rounding XLA would lose by rewriting arithmetic with constants, such as (x + c) - c.

XLA adds constants of successive additions, (x + a) + b to x + (a + b), and multiplies those of successive
multiplications; it takes log exp x for x, and exp x / exp y for exp(x - y). What a module rounds on purpose, or lets
overflow, would come out as another number than torch's.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Node

from lla_torch.conversion.widths import name_of, names, nodes_in, results_of

ADDITIONS = names("add sub subtract rsub")
PRODUCTS = names("mul multiply div divide true_divide")
POWERS = names("exp exp2 pow square")
ROOTS = names("log pow sqrt rsqrt")
SAME = names(
    "_to_copy view reshape _unsafe_view permute transpose t expand unsqueeze squeeze slice select cat stack clone "
    "alias contiguous detach stop_gradient neg negative flip split split_with_sizes unbind"
)
"""Operators through which XLA sees the arithmetic in front of them."""
EXTREME = 1e12
"""A factor above this, or below its inverse, may overflow or underflow before the next factor undoes it."""


def find_kept(nodes: list[Node], constants: set[Node]) -> frozenset[Node]:
    """Find the nodes whose results must be rounded as they stand before the next operator uses them.

    Args:
      nodes: the nodes of a functional graph of ATen operators, in order.
      constants: the placeholders that XLA may know as constants: buffers and constants of the module.
    """
    fixed = set(constants)
    for node in nodes:
        if node.op == "call_function" and all(n in fixed for n in node.all_input_nodes):
            fixed.add(node)
    passed, kept = _passed_on(nodes), set[Node]()
    for node in nodes:
        if node.op == "call_function" and _is_real(node) and node not in fixed:
            sources = frozenset().union(*(passed[n] for n in nodes_in(node.args))) - fixed
            kept.update(source for source in sources if _is_rewritten(source, node, fixed, passed))
    return frozenset(kept)


def _is_real(node: Node) -> bool:
    return all(isinstance(x, torch.Tensor) and x.dtype.is_floating_point for x in results_of(node))


def _is_rewritten(inner: Node, outer: Node, fixed: set[Node], passed: Mapping[Any, frozenset[Node]]) -> bool:
    """Whether XLA may merge two operators of which the second one reads the first one's result."""
    first, second = name_of(inner), name_of(outer)
    if first in ADDITIONS and second in ADDITIONS:
        return _constant(inner, fixed) is not None and _constant(outer, fixed) is not None
    if first in PRODUCTS and second in PRODUCTS:
        factors = _constant(inner, fixed), _constant(outer, fixed)
        if None not in factors:
            return any(_is_extreme(x) for x in factors)
    if first in POWERS and second in PRODUCTS:
        return all(any(name_of(s) in POWERS for s in passed.get(x, ())) for x in outer.args[:2])
    return first in POWERS and second in ROOTS


def _is_extreme(x: Any) -> bool:
    return not isinstance(x, int | float) or not (x == 0 or 1 / EXTREME <= abs(x) <= EXTREME)


def _constant(node: Node, fixed: set[Node]) -> Any:
    """The constant among the two operands of an operator, a number or a node; None if there is none."""
    found = [x for x in node.args[:2] if isinstance(x, int | float) or x in fixed]
    return found[0] if len(found) == 1 else None


def _passed_on(nodes: list[Node]) -> dict[Node, frozenset[Node]]:
    """For every node the operators whose results it hands on, seen through those that change no entry."""
    found: dict[Node, frozenset[Node]] = {}
    for node in nodes:
        if _changes_none(node):
            found[node] = frozenset().union(*(found[n] for n in nodes_in(node.args)))
        else:
            found[node] = frozenset([node] if node.op == "call_function" else [])
    return found


def _changes_none(node: Node) -> bool:
    return name_of(node) in SAME or node.target is operator.getitem or _is_times_one(node)


def _is_times_one(node: Node) -> bool:
    factors = [x for x in node.args if isinstance(x, int | float)]
    return name_of(node) in PRODUCTS and len(factors) == 1 and math.fabs(factors[0]) == 1
