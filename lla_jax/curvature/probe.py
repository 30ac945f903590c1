"""The probe of an operator: a few numbers that change with its function, at all rows of the data.

Recipes describe arguments, and a function has no description: its loss times ten has the same recipe. So every result
records the product with one fixed vector and the mean loss, and a result is continued, kept or compared only where
these are the same (``recipes.check_same_function``). The probe takes one product, once for each operator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import recipes
from lla_jax.core import tree as _tree
from lla_jax.core.interrupts import deferred_interrupts
from lla_jax.core.types import PyTree, Recipe
from lla_jax.curvature.linear_operator import Operator
from lla_jax.curvature.space import Space


def describe(H: Operator | Mapping[str, Any]) -> Recipe:
    """The operator's recipe with the entry "probe", for the recipe of a result.

    Args:
      H: the operator as the user gave it, not in a unit of its own. All processes that share it must call. A recipe,
        where no more is known of the operator, is returned as it is.
    """
    return dict(H) if isinstance(H, Mapping) else dict(H.recipe) | {"probe": probe(H)}


def probe(H: Operator) -> Recipe:
    """The numbers by which the function of an operator is known again; computed once, and kept in ``H.recipe``.

        {"product": [s'A v, t'A v, |A v|], "loss": L}

    v is a fixed vector of norm 1, with entries +-1 / sqrt(n); s are its signs, and t are other ones. L is the mean loss
    over all rows, penalty included; a Fisher matrix and a given product have none. Of a loss that may change from call
    to call it is {"compared": False}.
    """
    known = H.recipe.get("probe")
    if known is not None:
        return known
    with deferred_interrupts():
        space = H.space
        v = space.wait_for(H.place(_signs_of_norm_1(space, np.float32(1 / math.sqrt(space.dim)))))
        product, loss = H.product_and_loss(v)
        del v  # so that the forms take no more than the product did
        size = _largest(product)
        forms = [float(_form(space, product, size, np.uint32(seed))) for seed in (1, 2, 0)]
        size = float(size)
    found: Recipe = {"product": [form * size for form in forms]}
    if loss is not None:
        found["loss"] = float(loss)
    if not H.is_given:  # what a user's product reads may change between two calls
        H.recipe["probe"] = found
    return found


def check(
    argument: str,
    what: str,
    then: Mapping[str, Any],
    H: Operator | Mapping[str, Any],
    otherwise: str,
    path: Path | None = None,
) -> None:
    """Raise ``Differs`` unless the operator has the function that an older result's operator had.

    Args:
      argument: the argument that brought the older result.
      what: the older result in words.
      then: the recipe of the older result's operator; without a probe nothing is computed or compared.
      H: the operator now, or its recipe.
      otherwise: the remedy for a user who cannot restore the function.
      path: the file that holds the older result, or None.
    """
    if recipes.has_probe(then):
        recipes.check_same_function(argument, what, then, describe(H), otherwise, path)


# --- fixed vectors of signs: hashes of the entries' numbers, the same on all machines, versions and shardings


def _signs(space: Space, seed: Any) -> PyTree:
    """A vector of +-1, and 0 where entries are masked."""
    leaves, first = [], 0
    for shape, dtype in space.shapes:
        number, stride = jnp.full(shape, first % 2**32, jnp.uint32), 1
        for axis in reversed(range(len(shape))):
            number += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride % 2**32)
            stride *= shape[axis]
        first += stride
        leaves.append(jnp.where(_hash(number ^ jnp.asarray(seed, jnp.uint32)) >> 31, 1, -1).astype(dtype))
    signs = space.tree(leaves)
    if space.scale is None:
        return signs
    return jax.tree.map(lambda x, scale: jnp.where(scale != 0, x, 0), signs, space.scale)


def _hash(x: jax.Array) -> jax.Array:
    """Mix the bits of 32-bit numbers (Wellons 2018, "lowbias32")."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


@jax.jit
def _signs_of_norm_1(space: Space, size: Any) -> PyTree:
    return space.pin(jax.tree.map(lambda x: x * size.astype(x.dtype), _signs(space, 1)))


@jax.jit
def _largest(product: PyTree) -> jax.Array:
    """The largest magnitude of a product; 1 of zeros, and where there is a NaN."""
    largest = _tree.largest(product)
    return jnp.where(largest > 0, largest, 1)


@jax.jit
def _form(space: Space, product: PyTree, size: jax.Array, seed: Any) -> jax.Array:
    """s'y with the signs s of a seed, y = product / size; |y| for the seed 0. Squares of such numbers are exact.

    One form at a time, and sums of a choice, not of a product: a program of all of them would hold a vector for each,
    and a CPU both factors of a product.
    """

    def terms(x: jax.Array, signs: jax.Array) -> jax.Array:
        x = x / size.astype(x.dtype)
        return jnp.where(seed > 0, jnp.where(signs > 0, x, jnp.where(signs < 0, -x, 0)), x * x)

    each = jax.tree.map(terms, product, _signs(space, seed))
    total = sum(jnp.sum(_tree.widen(x)) for x in jax.tree.leaves(each))
    return jnp.where(seed > 0, total, jnp.sqrt(jnp.maximum(total, 0)))
