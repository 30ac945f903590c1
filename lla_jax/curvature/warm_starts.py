"""Begins searches for eigenpairs with earlier vectors, such as those of the same network some training steps before.

A sequence begins along a combination of the earlier vectors with random signs. A part of it stays random, so that it
has something of every other eigenvector too.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import recipes
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse, misuse
from lla_jax.core.results import Eigenpairs
from lla_jax.core.types import Directions, PyTree, Recipe
from lla_jax.curvature import lanczos as _lanczos
from lla_jax.curvature.linear_operator import Operator
from lla_jax.curvature.projections import combine
from lla_jax.execution import sharding

RANDOM_PART = 1e-2  # norm of the random part of the first start vector, beside earlier ones of norm 1
NORM_SQUARED = 4.0  # of a later start vector at most: a random one of norm 1, and earlier ones of norm 1


class Start(NamedTuple):
    """Earlier vectors.

    Args:
      vectors: stacked vectors of the operator's space.
      sizes: their norms (r,), which are above 0.
    """

    vectors: PyTree
    sizes: np.ndarray


def read(start: Any, H: Operator) -> Start | None:
    """The vectors of eigenpairs or directions as vectors of the operator; None of None.

    Raises:
      ValueError: neither of both, no vectors, or vectors of another structure or shape, not finite, or zero on the
        parameters that the operator acts on.
    """
    if start is None:
        return None
    if not isinstance(start, Eigenpairs | Directions):
        raise misuse("start", start, "earlier pairs of lla.eigenpairs, or directions, such as lla.directions.gradient")
    if isinstance(start, Eigenpairs) and start.vectors is None:
        raise Misuse("start", f"has {start.num} values and no vectors; pass pairs that have them, or None")
    axes = start if isinstance(start, Directions) else start.vectors
    tree = axes.tree if isinstance(axes, Directions) else axes
    like = H.space.structure if H.is_given else H.centre()
    tree = _tree.align(tree, like, "start", "the operator's parameters", stacked=True)
    leaves = jax.tree.leaves(tree)
    if not H.is_given:
        leaves = [x for x, moves in zip(leaves, H.leaf_mask, strict=True) if moves]
    vectors = H.space.check(H.space.tree(leaves), "start", stacked=True)
    wide = [x.astype(dtype) for x, (_, dtype) in zip(jax.tree.leaves(vectors), H.space.shapes, strict=True)]
    vectors = H.place(H.space.tree(wide))
    sizes = np.asarray(_sizes(vectors, H.scale), np.float64)
    for i, size in enumerate(sizes):
        if not np.isfinite(size) or size == 0:
            text = f"vector {i} has norm {size:g} on the parameters that H acts on; it must be a number above 0"
            raise Misuse("start", f"{text}: leave it out, as in start[:{max(1, i)}]")
    return Start(vectors, sizes)


def describe(start: Start | None) -> Recipe | None:
    """The entry "start" of a recipe."""
    if start is None:
        return None
    return {"num": len(start.sizes), "fingerprint": recipes.fingerprint(sharding.view_on_host(start.vectors))}


def begin_with(H: Operator, key: jax.Array, number: int, start: Start | None) -> PyTree:
    """The vector with which a sequence begins: random, and along earlier vectors where there are some.

    Args:
      H: the operator.
      key: draws the vector.
      number: of the sequence; in the first one, 0, the random part is small.
      start: earlier vectors.
    """
    vector = _lanczos.random(H, key, number, "normal")
    if start is None:
        return vector
    coefficients = (signs(key, len(start.sizes), number) / start.sizes).astype(H.dtype)
    part = np.asarray(1.0 if number else RANDOM_PART, H.dtype)
    return H.space.wait_for(_mix(vector, start.vectors, coefficients, H.scale, part, shards=H.space.shards))


def signs(key: jax.Array, num: int, number: int) -> np.ndarray:
    """``num`` random signs (num,) float64 on the host; nothing is compiled for them."""
    words = np.asarray(jax.random.key_data(key)).ravel().tolist()
    return np.random.default_rng([*words, number]).choice([-1.0, 1.0], num)


def _seen(tree: PyTree, scale: PyTree) -> PyTree:
    """The vectors, with 0 where the operator's scale is 0."""
    return tree if scale is None else jax.tree.map(lambda x, s: jnp.where(s != 0, x, 0), tree, scale)


@jax.jit
def _sizes(vectors: PyTree, scale: PyTree) -> jax.Array:
    return jax.vmap(lambda vector: _tree.norm(_seen(vector, scale)))(vectors)


@partial(jax.jit, static_argnames="shards")
def _mix(vector: PyTree, stacked: PyTree, coefficients: Any, scale: PyTree, part: Any, *, shards: Any) -> PyTree:
    """(sum_i c_i u_i) / |sum_i c_i u_i| + part v / |v|."""
    along = _seen(combine(coefficients, stacked), scale)
    size = _tree.norm(along)
    one, other = 1 / jnp.where(size > 0, size, 1), part / _tree.norm(vector)
    mixed = jax.tree.map(lambda x, y: one.astype(x.dtype) * x + other.astype(x.dtype) * y, along, vector)
    return sharding.constrain(mixed, shards)
