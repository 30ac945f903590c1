"""Chooses the step of finite differences, for functions without a second derivative, and states their error.

The error of a product with a vector u of norm 1 is s^2 / 6 |D^3 g[u, u, u]| of truncation, and N / s of rounding, N
that of a gradient and of the displaced parameters. Both are measured when the operator is made, and the step s is where
their sum is least. The products are those of ``differences``.
"""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse
from lla_jax.core.types import PyTree, Recipe
from lla_jax.curvature import matrices
from lla_jax.curvature.linear_operator import Operator

log = logging.getLogger("lla_jax")

NAME = "finite-difference"
POWER_STEPS = 2  # towards the largest eigenvalue
WORST_STEPS = 3  # towards the direction of the largest third derivative of the gradient
SAFETY = 2.0  # times the error that is measured
ROUNDS = 4  # at most, in which a step whose error is larger than expected is halved

Make = Callable[[Any, PyTree, Recipe], Operator]
"""``make(step, params, recipe)``: the operator at some parameters, with products of this step."""


def operator_at(make: Make, params: PyTree, recipe: Recipe) -> Any:
    """The operator of finite differences at some parameters, with its step chosen and its error stated there.

    Args:
      make: makes it with a step.
      params: the parameters.
      recipe: the operator's recipe, which gets the entry "product".
    """
    made = make(np.float32(0), params, recipe)
    entry = _choose_step(lambda step: make(np.asarray(step, made.dtype), params, recipe), made)
    log.info(
        "%s: finite differences of the gradient, step %.2g, error %.1e of the largest eigenvalue",
        *(recipe["kind"], entry["step"], entry["error"]),
    )
    found: Any = make(np.asarray(entry["step"], made.dtype), params, recipe | {"product": entry})
    return replace(found, rebuild=functools.partial(operator_at, make))


def error_of_differences(H: Operator) -> float:
    """The stated error of a product with a vector of norm 1; 0 where products are no finite differences.

    Of S A S it is the largest entry of S squared times that of A.
    """
    absolute = float(H.recipe.get("product", {}).get("absolute", 0.0))
    return absolute * float(_tree.largest(H.scale)) ** 2 if absolute and H.scale is not None else absolute


class _Measured(NamedTuple):
    """The product with a vector of norm 1 at a step, and its difference from that at half of the step."""

    product: PyTree
    difference: PyTree
    size: float
    change: float


def _choose_step(make: Callable[[float], Operator], H: Operator) -> Recipe:
    """The entry "product" of the recipe: kind, step, error (relative to the largest eigenvalue found), absolute error.

    The largest third derivative of the gradient is sought by the power method for symmetric tensors: the truncation
    error of a product is the next direction (Kolda and Mayo 2011).
    """
    part = matrices.part(H.centre(), H.leaf_mask)
    scale = float(_tree.norm(jax.tree.map(_tree.widen, part))) or 1.0
    eps = max(float(jnp.finfo(dtype).eps) for _, dtype in H.space.shapes)
    operators: dict[float, Operator] = {}

    def product(step: float, v: PyTree) -> PyTree:
        if step not in operators:
            operators.clear()
            operators[step] = make(step)
        return operators[step].product(v)

    def measure(step: float, v: PyTree) -> _Measured:
        whole = product(step, v)
        change = jax.tree.map(jnp.subtract, whole, product(step / 2, v))
        return _Measured(whole, change, float(_tree.norm(whole)), float(_tree.norm(change)))

    # the largest and the least step: truncation shows at the first, rounding at the second
    wide, fine = (_power_of_two(scale * eps**power) for power in (0.2, 0.5))
    first = _unit(H, H.random(jax.random.key(0)))
    top, largest = first, 0.0
    for _ in range(POWER_STEPS):
        image = product(_power_of_two(scale * eps ** (1 / 3)), top)
        size = float(_tree.norm(image))
        if not math.isfinite(size):
            raise Misuse("H", "its finite differences are not finite; check that the loss is finite around params")
        if size == 0:
            break
        top, largest = _unit(H, image), max(largest, size)
    noise = max(measure(fine, v).change for v in (first, top)) * fine / math.sqrt(5)
    worst, third = top, 0.0
    for direction in (first, top):
        for _ in range(WORST_STEPS):
            found = measure(wide, direction)
            largest = max(largest, found.size)
            if not found.change > 4 * noise / wide:
                break
            if 8 * found.change / wide**2 > third:
                worst, third = direction, 8 * found.change / wide**2
            direction = _unit(H, found.difference)
    step = wide if third == 0 else min(wide, (3 * noise / third) ** (1 / 3))
    step = _power_of_two(max(step, fine))
    error = math.inf
    for _ in range(ROUNDS):
        each = [measure(step, v) for v in (first, top, worst)]
        largest = max(largest, *(found.size for found in each))
        measured = SAFETY * max(max(4 / 3 * found.change for found in each), third * step**2 / 6 + noise / step)
        if measured >= error:
            step *= 2
            break
        expected = SAFETY * (third * step**2 / 6 + noise / step)
        error = measured
        if measured <= 2 * expected or step <= fine:
            break
        step /= 2
    else:
        step *= 2
    return {
        "kind": NAME,
        "step": float(step),
        "error": float(error / largest) if largest > 0 else 1.0,
        "absolute": float(error),
    }


def _unit(H: Operator, v: PyTree) -> PyTree:
    size = float(_tree.norm(v))
    return H.place(jax.tree.map(lambda x: x / np.asarray(size or 1.0, x.dtype), v))


def _power_of_two(x: float) -> float:
    return 2.0 ** round(math.log2(x))
