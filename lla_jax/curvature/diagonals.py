"""Draws the diagonal of an operator: the mean of z * (A z) and its scatter; its memory does not grow with the draws."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import recipes
from lla_jax.core import tree as _tree
from lla_jax.core.standard_errors import widening
from lla_jax.core.types import PyTree
from lla_jax.curvature.linear_operator import Operator, no_finite_product
from lla_jax.curvature.random_probes import map_probes, reserve_probes
from lla_jax.curvature.sketches import AT_ONCE
from lla_jax.curvature.space import zeros
from lla_jax.curvature.stopping import Round, State
from lla_jax.curvature.units import Unit


class Moments(NamedTuple):
    """The number of draws so far, their mean, and the sum of squared deviations from it."""

    num: Any
    mean: PyTree
    squares: PyTree


@partial(jax.jit, donate_argnums=1)
def _times(z: PyTree, product: PyTree) -> PyTree:
    return jax.tree.map(jnp.multiply, z, product)


@partial(jax.jit, donate_argnums=0)
def _merge(so_far: Moments, draws: PyTree) -> tuple[Moments, Any, Any]:
    """Add draws, up to the first that is not finite, to the moments.

    Returns:
      (the moments, the number of draws added, (|mean|^2, the sum of all squared deviations)).
    """
    leaves = jax.tree.leaves(draws)
    finite = jnp.stack([jnp.isfinite(x).all(tuple(range(1, x.ndim))) for x in leaves]).all(0)
    good = jnp.cumprod(finite)
    count = good.sum(dtype=jnp.int32)
    num = so_far.num + count

    def each(mean: Any, squares: Any, x: Any) -> tuple[Any, Any]:
        keep = good.reshape(-1, *[1] * (x.ndim - 1)) > 0
        some, total = (jnp.maximum(c, 1).astype(x.dtype) for c in (count, num))
        here = jnp.where(keep, x, 0).sum(0) / some
        deviations = jnp.where(keep, x - here, 0)
        step = here - mean
        change = step * count.astype(x.dtype) / total
        return mean + change, squares + (deviations**2).sum(0) + step * change * so_far.num.astype(x.dtype)

    pairs = jax.tree.map(each, so_far.mean, so_far.squares, draws)
    mean, squares = (jax.tree.map(lambda _, pair, i=i: pair[i], so_far.mean, pairs) for i in (0, 1))
    norms = _tree.dot(mean, mean), sum(jnp.sum(_tree.widen(x)) for x in jax.tree.leaves(squares))
    return Moments(num, mean, squares), count, norms


def _error(squares: np.ndarray, num: int, factor: float) -> np.ndarray:
    """``factor`` times sqrt(squares / num / (num - 1)), with no copies on the way."""
    error = np.asarray(squares / num)
    error /= num - 1
    np.sqrt(error, out=error)
    error *= factor
    return error


def rounds(unit: Unit, key: jax.Array, max_products: int, state: State) -> Iterator[Round]:
    """Rounds of draws of z * (A z), whose mean is the diagonal; only their moments are kept.

    The unit's products were made before, and do not count towards ``max_products``. A product that is not finite ends
    the rounds; if it is the first one, there is an error.
    """
    H, used, done, norms, trouble = unit.H, unit.products, 0, (0.0, 0.0), None
    at_once, memory = reserve_probes(unit, "diagonal", held=2)
    moments = _no_draws(H)
    if state is not None:
        with recipes.reading_state():
            used, done, at_once = map(int, state["counts"])
            norms = float(state["norms"][0]), float(state["norms"][1])
            moments = _moments_of_state(H, state)

    def value() -> tuple[PyTree, PyTree]:
        num = int(moments.num)
        with np.errstate(invalid="ignore", divide="ignore"):
            factor = widening(num - 1)
            sem = [_error(np.asarray(x), num, factor) for x in jax.tree.leaves(moments.squares)]
        return jax.tree.map(np.asarray, moments.mean), H.space.tree(sem)

    def here() -> dict[str, np.ndarray]:  # copies: the memory of the moments is used again
        counts = {"counts": np.array([used, done, at_once]), "norms": np.array(norms), "num": np.array(moments.num)}
        trees = {"mean": moments.mean, "squares": moments.squares}
        return counts | {
            f"{k}/{i}": np.array(x) for k, tree in trees.items() for i, x in enumerate(jax.tree.leaves(tree))
        }

    def look() -> Round:
        num, (mean, squares) = int(moments.num), norms
        sem = widening(num - 1) * math.sqrt(squares / num / (num - 1)) if num > 1 else math.nan
        whole = done % AT_ONCE == 0 or done == max_products
        mean = math.sqrt(mean)
        return Round(mean, sem, num, used, value, trouble=trouble, memory=memory, state=here, whole=whole)

    if state is not None:
        yield look()
    for piece in map_probes(_times, H, key, done, max_products, at_once):
        size = len(jax.tree.leaves(piece)[0])
        moments, count, sums = _merge(moments, piece)
        del piece  # before the next draw
        if count < size:
            trouble = f"product {used + int(count) + 1} is not finite"
        used, done, norms = used + size, done + size, (float(sums[0]), float(sums[1]))
        num = int(moments.num)
        unit.check(math.sqrt(norms[0] + norms[1] / num) if num else math.nan, used)
        if not num:
            raise no_finite_product(trouble)
        yield look()
        if trouble:
            return


def _no_draws(H: Operator) -> Moments:
    return Moments(np.int32(0), H.place(zeros(H.space)), H.place(zeros(H.space)))


def _moments_of_state(H: Operator, state: Mapping[str, Any]) -> Moments:
    def tree(kind: str) -> PyTree:
        leaves = [np.asarray(state[f"{kind}/{i}"]).astype(d) for i, (_, d) in enumerate(H.space.shapes)]
        return H.place(
            jax.tree.map(jnp.array, H.space.tree([x.reshape(s) for x, (s, _) in zip(leaves, H.space.shapes)]))
        )

    return Moments(np.int32(state["num"]), tree("mean"), tree("squares"))
