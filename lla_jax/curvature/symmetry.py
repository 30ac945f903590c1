"""Checks that a user's product is symmetric, once, before anything is computed of it."""

from __future__ import annotations

import jax
import numpy as np

from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse
from lla_jax.core.types import PyTree
from lla_jax.curvature import units
from lla_jax.curvature.linear_operator import Operator
from lla_jax.curvature.space import draw_one
from lla_jax.curvature.units import Unit

NUMBER = 2**31  # folded into the key for the check of symmetry
ASYMMETRY = 1e-2  # relative; products in half precision stay below, mistakes (another batch, one-sided scales) do not


def check_symmetric(H: Operator, key: jax.Array) -> Unit:
    """Check u'(A v) = v'(A u) for two random vectors, up to 1e-2 (|A u| + |A v|).

    The two sides differ by about |A - A'|_F, and either product has about the norm |A|_F, for every size: an asymmetric
    part of the operator is found if it makes up more than a percent.

    Args:
      H: any operator; those of ``hessian``, ``ggn`` and ``fisher`` are symmetric by construction.
      key: draws the vectors.

    Returns:
      The operator in its unit, with the products used: 2, and a few more out of the ordinary range.

    Raises:
      ValueError: it is not symmetric; a product has another structure than its vector, or is not finite.
    """
    unit, (one, two, *sizes) = Unit(H, products=2, settled=True), _symmetry(H, key)
    if not all(units.is_ordinary(H, size) for size in sizes):
        unit = units.find_unit(unit, float(np.max(sizes)), 2, key)
        if unit.size != 1:
            unit, (one, two, *sizes) = unit._replace(products=unit.products + 2), _symmetry(unit.H, key)
    for number, size in enumerate(sizes):
        if not np.isfinite(size):
            text = f"product {number + 1} is not finite, and its vector is"
            raise Misuse("H", f"{text}; check that the loss is finite here")
    if abs(one - two) > ASYMMETRY * sum(sizes):
        raise Misuse(
            "H",
            f"u'(A v) = {one * unit.size:.6g} and v'(A u) = {two * unit.size:.6g} for two random vectors, so it is not "
            "symmetric (or not linear, or changes from product to product); it must be A = A'. For a matrix pass "
            "(A + A') / 2; scale both sides, as lla.operators.preconditioned does",
        )
    return unit


def _symmetry(H: Operator, key: jax.Array) -> list[float]:
    """u'(A v), v'(A u), |A u| and |A v| of two random vectors."""

    def draw(number: int) -> PyTree:  # waits: two draws at once would take the memory of both
        return jax.block_until_ready(draw_one(H.space, key, np.uint32(number), distribution="normal"))

    u, v = draw(0), draw(1)

    def terms(x: PyTree, other: PyTree) -> list[float]:
        product = _tree.align(H.product(x), H.structure, "A v", "its vector v")
        return [float(term) for term in _symmetry_terms(other, product)]

    (two, size_u), (one, size_v) = terms(u, v), terms(v, u)
    return [one, two, size_u, size_v]


@jax.jit
def _symmetry_terms(other: PyTree, product: PyTree) -> list[jax.Array]:
    return [_tree.dot(other, product), _tree.norm(product)]


def settle(H: Operator, key: jax.Array) -> Unit:
    """The operator with its unit: for a user's product, after a check of its symmetry, which takes 2 products or a few
    more; for other operators as it is, since their first products will show their size."""
    return check_symmetric(H, jax.random.fold_in(key, NUMBER)) if H.is_given else Unit(H)
