"""Whether what is given is an operator, and a user's symmetric, as all that is done with them takes for granted."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from lla_jax.core import tree as _tree
from lla_jax.core.types import PyTree
from lla_jax.curvature.linear_operator import HostOperator, LinearOperator, Space

NUMBER = 2**31  # of the key that the check takes

ASYMMETRY = 1e-2  # relative; products in half precision stay below, mistakes (another batch, one-sided scales) do not


def check_symmetric(H: LinearOperator | HostOperator, key: jax.Array) -> int:
    """Check u'(A v) = v'(A u) for two random vectors, up to 1e-2 (|A u| + |A v|).

    The two sides differ by about |A - A'|_F, and either product has the norm |A|_F or so, whatever the size: a part of
    the operator that is not symmetric is found if it makes up more than a percent.

    Args:
      H: any operator; those of ``hessian``, ``ggn`` and ``fisher`` are symmetric by construction.
      key: draws the vectors.

    Returns:
      The products used: 2.

    Raises:
      ValueError: it is not symmetric; a product has another structure than its vector, or is not finite.
    """
    u, v = _pair(H.space, key)
    of_u, of_v = (_tree.align(H.product(x), H.structure, "A v", "its vector v") for x in (u, v))
    one, two, *sizes = (float(x) for x in _compared(u, v, of_u, of_v))
    for number, size in enumerate(sizes):
        if not np.isfinite(size):
            raise ValueError(f"H: product {number + 1} is not finite, of a finite vector; the rule is finite products")
    if abs(one - two) > ASYMMETRY * sum(sizes):
        raise ValueError(
            f"H: u'(A v) = {one:.6g} and v'(A u) = {two:.6g} for two random vectors, so it is not symmetric (or "
            "changes from product to product); the rule is A = A'. For a matrix pass (A + A') / 2; scale both sides as "
            "lla.operators.preconditioned does"
        )
    return 2


def check_operator(H: Any) -> None:
    """Raise a ValueError where ``H`` is no operator."""
    if not isinstance(H, Space):
        raise ValueError(
            f"H: got {type(H).__name__}; the rule is an operator: lla.hessian(loss, params, data), or "
            "lla.operators.given(product, like) for one of your own"
        )


def check_given(H: LinearOperator | HostOperator, key: jax.Array) -> int:
    """``check_symmetric`` for a user's product; the products used, 0 for all others."""
    return check_symmetric(H, jax.random.fold_in(key, NUMBER)) if H.is_given else 0


@jax.jit
def _pair(space: LinearOperator, key: jax.Array) -> list[PyTree]:
    return [space.random(jax.random.fold_in(key, number), "normal") for number in range(2)]


@jax.jit
def _compared(u: PyTree, v: PyTree, of_u: PyTree, of_v: PyTree) -> list[jax.Array]:
    return [_tree.dot(u, of_v), _tree.dot(v, of_u), _tree.norm(of_u), _tree.norm(of_v)]
