"""Products of the Hessian from gradients alone: central differences.

    H v ~ |v| (g(theta + s u) - g(theta - s u)) / (2 s),   u = v / |v|

``steps`` chooses the step s and states the error.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lla_jax.core import tree as _tree
from lla_jax.core.types import PyTree


def central(gradient: Callable[[PyTree], Any], at: PyTree, v: PyTree, step: Any) -> tuple[PyTree, Any]:
    """(H v, the sums at the parameters) by a central difference of ``gradient(params) -> (slope, sums)``; pure.

    Args:
      gradient: the gradient.
      at: the parameters.
      v: the vector, a tree like them; 0 gives 0.
      step: the norm of the displacement.
    """
    largest = _tree.largest(v)
    largest = jnp.where(largest > 0, largest, 1)
    u = jax.tree.map(lambda x: x / largest.astype(x.dtype), v)  # whose squares are exact
    norm = _tree.norm(u)
    times = jnp.where(norm > 0, step / jnp.where(norm > 0, norm, 1), 0)

    def displace(sign: int) -> PyTree:
        return jax.tree.map(lambda p, x: p + sign * (times.astype(p.dtype) * x), at, u)

    (plus, _), (minus, _) = gradient(displace(1)), gradient(displace(-1))
    back = largest * (norm / (2 * step))
    product = jax.tree.map(lambda a, b: (a - b) * back.astype(a.dtype), plus, minus)
    return product, gradient(at)[1]  # the sums do not depend on the vector
