"""Computes the parameters at the coordinates of a point, by update rules: ``add``, ``adam`` or a user's own."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core.arguments import Misuse, check_choice
from lla_jax.core.called import ask
from lla_jax.core.signatures import explained
from lla_jax.core.static import static
from lla_jax.core.text import stable_repr
from lla_jax.core.tree import paths, wide  # not its module: rules compare by value
from lla_jax.core.types import PyTree


@explained
def add(params: PyTree, directions: PyTree, coord: Any) -> PyTree:
    """The parameters theta + sum_i c_i d_i, exactly theta at c = 0; half-precision leaves become float32 and stay so.

    Args:
      params: the centre theta.
      directions: the stacked tree of the d_i, with leading axis k.
      coord: (k,), the coordinates c of one point.

    Returns:
      A tree like ``params``, in float32 at least: rounded to half precision, most points would be theta again.

    References: Goodfellow et al. 2014, arXiv 1412.6544; Li et al. 2018, arXiv 1712.09913, section 2.
    """

    def move(p: Any, d: Any) -> Any:
        dtype = wide(p.dtype)
        q = p.astype(dtype)
        for i in range(d.shape[0]):
            q = q + coord[i].astype(dtype) * d[i].astype(dtype)
        return q

    return jax.tree.map(move, params, directions)


@explained
def adam(params: PyTree, directions: PyTree, coord: Any, eps: float = 1e-8) -> PyTree:
    """The parameters after a step of Adam's form: theta + (a / sqrt(b)) m / (sqrt(v) + eps).

    They depend on a and b only through a / sqrt(b), and are theta at a = 0.

    Args:
      params: the centre theta.
      directions: Adam's raw moments (m, v) stacked, from ``directions.adam_moments``, not normalized.
      coord: (a, b) with b > 0, which is not checked here (``evaluate`` checks its grid).
      eps: Adam's epsilon; to change it, pass ``functools.partial(lla.landscape.adam, eps=...)`` as the rule.

    Returns:
      A tree like ``params``, in float32 at least.

    References: Gabdullin 2024, arXiv 2412.10146 ("adameq").

    Where we differ from the reference: (1) every point is computed from theta; there, offsets accumulate along rows and
    depend on the number of steps. (2) Grids with b <= 0 are refused.
    """

    def move(p: Any, d: Any) -> Any:
        dtype = wide(p.dtype)
        a, b = coord[0].astype(dtype), coord[1].astype(dtype)
        m, v = d[0].astype(dtype), d[1].astype(dtype)
        return p.astype(dtype) + a / jnp.sqrt(b) * m / (jnp.sqrt(v) + eps)

    return jax.tree.map(move, params, directions)


RULES: dict[str, Callable[..., PyTree]] = {"add": add, "adam": adam}
HOW = "rule(params, directions, coord) -> params"


def function_of(rule: Any) -> Callable[..., PyTree]:
    """The function of a rule, which is itself or one of the names "add" and "adam".

    Raises:
      ValueError: an unknown name, or a value that is neither name nor function.
    """
    if callable(rule):
        return rule
    check_choice("rule", rule, RULES, "or a function (params, directions, coord) -> params")
    return RULES[rule]


def params_at(rule: Callable[..., PyTree], params: PyTree, directions: PyTree, coord: Any) -> PyTree:
    """The parameters that a rule gives at the coordinates of a point, after a check of their structure and shapes.

    While a program is traced this is checked, and a compiled program does not check again.

    Raises:
      Misuse: the rule failed, or its result is not like the parameters.
    """
    result = ask("rule", rule, HOW, {"params": params, "directions": directions, "coord": coord})
    advice = "return a tree like params, such as lla.landscape.add(params, directions, coord)"
    if paths(result) != paths(params):
        kind = "None" if result is None else f"a {type(result).__name__}"
        raise Misuse("rule", f"returned {kind} of another structure than params; it is {HOW}: {advice}")
    result = jax.tree.unflatten(jax.tree.structure(params), jax.tree.leaves(result))  # perhaps in another container
    if all(leaf is own for leaf, own in zip(jax.tree.leaves(result), jax.tree.leaves(params), strict=True)):
        raise Misuse("rule", f"returned params as they are, so that all points are the centre; it is {HOW}: {advice}")
    for path, leaf, own in zip(paths(params), jax.tree.leaves(result), jax.tree.leaves(params), strict=True):
        if np.shape(leaf) != np.shape(own):
            raise Misuse(
                "rule", f"returned shape {np.shape(leaf)} for {path!r}, and in params it is {np.shape(own)}; {advice}"
            )
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            raise Misuse(
                "rule", f"returned {jnp.result_type(leaf)} for {path!r}; parameters must be real floating: {advice}"
            )
    return result


class Rule(NamedTuple):
    """An update rule, as ``check_rule`` makes it.

    Args:
      name: its name in the recipe.
      function: ``(params, directions, coord) -> params``; compares by value.
      affine: whether the rule is ``add``, params + sum_i c_i d_i.
      moments: whether the directions of the rule have to be Adam's raw moments (m, v).
      directions: the number of directions that the rule takes; None for one per axis of the grid.
      weights: (C, axes) coordinates of the grid -> (C, directions), those that the function gets, one for each
        direction: the basis functions of a curve at t, for example. It is called on the host, so that one compiled
        program serves all curves of one number of directions. None where they are the coordinates themselves.
    """

    name: str
    function: Callable[..., PyTree]
    affine: bool = False
    moments: bool = False
    directions: int | None = None
    weights: Callable[[np.ndarray], np.ndarray] | None = None

    def coords(self, coords: np.ndarray) -> np.ndarray:
        """The coordinates that the function gets at points of the grid with coordinates (C, axes)."""
        return coords if self.weights is None else self.weights(coords)


def check_rule(rule: Any, coords: tuple[np.ndarray, ...]) -> Rule:
    """Make the ``Rule`` of a name ("add", "adam") or a function, after a check that the grid suits it.

    Raises:
      ValueError: an unknown name, a value that is neither name nor function, or, for ``adam``, a grid that has not two
        axes or has b <= 0.
    """
    rule = function_of(rule)
    base = rule.func if isinstance(rule, functools.partial) else rule
    name = next((name for name, f in RULES.items() if f is base), None)
    name = name or getattr(base, "__qualname__", None) or stable_repr(base)
    name += stable_repr((rule.args, rule.keywords)) if isinstance(rule, functools.partial) else ""
    if base is adam:
        if len(coords) != 2:
            raise Misuse(
                "grid",
                f"{len(coords)} axes given; the adam rule needs two, a and b, such as "
                "lla.grid(ranges=[(-1, 1), (0.1, 2)])",
            )
        if coords[1].min() <= 0:
            raise Misuse(
                "grid",
                f"b goes down to {coords[1].min()}; the adam rule divides by sqrt(b), so it must be b > 0, such as "
                "lla.grid(ranges=[(-1, 1), (0.1, 2)])",
            )
    return Rule(name, static(rule), affine=rule is add, moments=base is adam)
