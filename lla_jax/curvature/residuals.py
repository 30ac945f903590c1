"""Makes the vectors of Ritz pairs, and says how far they are from eigenpairs: by one product for all, or one for each.

A search knows what every product of its basis was, and so the residual of every Ritz pair, but for rounding. One
product with a combination of all pairs shows whether that is so.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import tree as _tree
from lla_jax.core.interrupts import wait
from lla_jax.core.types import PyTree
from lla_jax.curvature import warm_starts
from lla_jax.curvature.eigensearch import Ritz, Search
from lla_jax.curvature.linear_operator import Operator
from lla_jax.curvature.projections import combine, plus_rows
from lla_jax.curvature.space import zeros
from lla_jax.execution import sharding


def disagreement(s: Search, ritz: Ritz, num: int, H: Operator, key: jax.Array) -> float:
    """How far a product is from what the search knows of it, |A x - sum_i s_i (theta_i v_i + r_i)|; NaN if not finite.

        x = sum_i s_i v_i,   s_i = +-1 at random

    It takes one product. If e_i is the error of the residual r_i that the search knows, the mean of its square over the
    signs is sum_i |e_i|^2.

    Args:
      s: the search, at its end.
      ritz: its Ritz pairs.
      num: the pairs that are looked at, the first ones.
      H: the operator.
      key: draws the signs.
    """
    signs = warm_starts.signs(key, num, s.draws)
    inside, open_rows = ritz.vectors[:, :num], ritz.couplings[:, :num]
    product = wait(H.product(_sum(s, np.concatenate([inside @ signs, np.zeros(len(open_rows))]), H)))
    known = np.concatenate([inside @ (ritz.values[:num] * signs), open_rows @ signs])
    return float(_distance(product, _padded(s, -known, H), s.basis))


def ritz_vectors(s: Search, ritz: Ritz, num: int, H: Operator, look: Callable[[int, PyTree], None]) -> PyTree:
    """The best Ritz vectors, stacked one by one to save the memory of a second stack; ``look(i, vector)`` sees each."""
    stacked, shards = None, H.space.shards
    for i in range(num):
        vector = H.space.wait_for(_vector(_padded(s, ritz.vectors[:, i], H), s.basis, shards=shards))
        look(i, vector)
        stacked = H.place(zeros(H.space, leading=(num,))) if stacked is None else stacked
        stacked = H.space.wait_for(_put(stacked, vector, np.int32(i), shards=shards))
    return stacked


@jax.jit
def rayleigh_quotient(vector: PyTree, product: PyTree) -> jax.Array:
    """(Rayleigh quotient theta, residual |A v - theta v| / |v|) of a vector v and its product, as one array (2,)."""
    value = _tree.dot(vector, product) / _tree.dot(vector, vector)
    rest = jax.tree.map(lambda a, v: a - value * v, product, vector)
    return jnp.stack([value, _tree.norm(rest) / _tree.norm(vector)])


def _padded(s: Search, coefficients: np.ndarray, H: Operator) -> np.ndarray:
    return np.pad(coefficients, (0, s.rows - len(coefficients))).astype(H.dtype)


def _sum(s: Search, coefficients: np.ndarray, H: Operator) -> PyTree:
    return H.space.wait_for(_combined(_padded(s, coefficients, H), s.basis, shards=H.space.shards))


@partial(jax.jit, static_argnames="shards")
def _combined(coefficients: Any, basis: PyTree, *, shards: Any) -> PyTree:
    return sharding.constrain(combine(coefficients, basis), shards)


@jax.jit
def _distance(product: PyTree, coefficients: Any, basis: PyTree) -> jax.Array:
    return _tree.norm(plus_rows(product, coefficients, basis))


@partial(jax.jit, static_argnames="shards")
def _vector(coefficients: jax.Array, basis: PyTree, *, shards: Any) -> PyTree:
    """A Ritz vector, of norm 1 and with its entry of largest magnitude positive."""
    vector = combine(coefficients, basis)
    leaves = jax.tree.leaves(vector)
    high, low = (jnp.stack([_tree.widen(f(x)) for x in leaves]) for f in (jnp.max, jnp.min))  # no leaf is reshaped
    size = _tree.norm(vector)
    factor = jnp.where(high.max() >= -low.min(), 1, -1) / jnp.where(size > 0, size, 1)
    return sharding.constrain(jax.tree.map(lambda x: x * factor.astype(x.dtype), vector), shards)


@partial(jax.jit, donate_argnums=0, static_argnames="shards")
def _put(stacked: PyTree, vector: PyTree, i: Any, *, shards: Any) -> PyTree:
    return sharding.constrain(jax.tree.map(lambda q, x: q.at[i].set(x), stacked, vector), shards)
