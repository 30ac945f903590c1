"""Update rules: the parameters at a point of a grid."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core.static import static
from lla_jax.core.types import PyTree


def add(params: PyTree, directions: PyTree, coord: Any) -> PyTree:
    """theta + sum_i c_i d_i; exactly theta at c = 0. Half-precision leaves are added up in float32.

    Args:
      params: theta.
      directions: the stacked tree, leading axis k.
      coord: (k,).

    Returns:
      A tree like ``params``.

    References: Goodfellow et al. 2014, arXiv 1412.6544; Li et al. 2018, arXiv 1712.09913, section 2.
    """

    def move(p: Any, d: Any) -> Any:
        wide = jnp.promote_types(p.dtype, jnp.float32)
        q = p.astype(wide)
        for i in range(d.shape[0]):
            q = q + coord[i].astype(wide) * d[i].astype(wide)
        return q.astype(p.dtype)

    return jax.tree.map(move, params, directions)


def adam(params: PyTree, directions: PyTree, coord: Any, eps: float = 1e-8) -> PyTree:
    """Adam's own step as the update: theta + (a / sqrt(b)) m / (sqrt(v) + eps).

    A function of the one number a / sqrt(b); the row a = 0 is theta.

    Args:
      params: theta.
      directions: Adam's raw moments (m, v) stacked, from ``directions.adam_moments``, not normalized.
      coord: (a, b) with b > 0.
      eps: Adam's epsilon; another one by ``functools.partial(lla.landscape.adam, eps=...)``.

    Returns:
      A tree like ``params``.

    References: Gabdullin 2024, arXiv 2412.10146 ("adameq").

    Where we differ from the reference: (1) every point is computed from theta; there, offsets accumulate along rows and
    depend on the number of steps. (2) b <= 0 is refused.
    """

    def move(p: Any, d: Any) -> Any:
        wide = jnp.promote_types(p.dtype, jnp.float32)
        a, b = coord[0].astype(wide), coord[1].astype(wide)
        m, v = d[0].astype(wide), d[1].astype(wide)
        return (p.astype(wide) + a / jnp.sqrt(b) * m / (jnp.sqrt(v) + eps)).astype(p.dtype)

    return jax.tree.map(move, params, directions)


RULES: dict[str, Callable[..., PyTree]] = {"add": add, "adam": adam}


class Rule(NamedTuple):
    """An update rule, checked.

    Args:
      name: in the recipe.
      function: ``(params, directions, coord) -> params``; compares by value.
      affine: it is params + sum_i c_i d_i.
      moments: its directions are Adam's raw moments (m, v).
    """

    name: str
    function: Callable[..., PyTree]
    affine: bool = False
    moments: bool = False


def check_rule(rule: Any, coords: tuple[np.ndarray, ...]) -> Rule:
    """The update rule that is given by its name or as a function.

    Raises:
      ValueError: an unknown name, no function, or a grid on which the rule is not defined.
    """
    if isinstance(rule, str):
        if rule not in RULES:
            raise ValueError(
                f"rule: {rule!r} given; the rule is one of {', '.join(RULES)}, or a function (params, directions, "
                "coord)"
            )
        name, base, rule = rule, RULES[rule], RULES[rule]
    elif callable(rule):
        base = rule.func if isinstance(rule, functools.partial) else rule
        name = next((n for n, r in RULES.items() if r is base), getattr(base, "__qualname__", repr(base)))
        name += f"({rule.args}, {rule.keywords})" if isinstance(rule, functools.partial) else ""
    else:
        raise ValueError(f"rule: got {type(rule).__name__}; the rule is one of {', '.join(RULES)}, or a function")
    if base is adam:
        if len(coords) != 2:
            raise ValueError(
                f"grid: {len(coords)} axes; the adam rule needs two, a and b (lla.grid(ranges=[(-1, 1), (0.1, 2)]))"
            )
        if coords[1].min() <= 0:
            raise ValueError(
                f"grid: b goes down to {coords[1].min()}; the adam rule divides by sqrt(b), so b > 0, e.g. "
                "lla.grid(ranges=[(-1, 1), (0.1, 2)])"
            )
    return Rule(name, static(rule), affine=rule is add, moments=base is adam)
