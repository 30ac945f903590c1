"""Puts together the points of a curve from its control points: theta(t) = sum_k w_k(t) P_k."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from lla_jax.core.types import PyTree


def weights(kind: str, num: int, t: Any) -> list[Any]:
    """The weights w_k of ``num`` control points at t in [0, 1]; their sum is 1.

    Args:
      kind: "bezier", w_k = C(n, k) (1 - t)^(n - k) t^k with n = num - 1; or "polygon", w_k = max(0, 1 - |n t - k|),
        whose control points lie at equal distances of t.
      num: number of control points, the ends included.
      t: a scalar.
    """
    last = num - 1
    if kind == "polygon":
        return [jnp.maximum(0.0, 1.0 - jnp.abs(last * t - k)) for k in range(num)]
    return [math.comb(last, k) * (1 - t) ** (last - k) * t**k for k in range(num)]


def combine(w: list[Any], a: PyTree, free: PyTree, b: PyTree) -> PyTree:
    """The sum of w_k P_k over the end ``a``, the stacked free control points and the end ``b``."""

    def at(x: Any, inner: Any, y: Any) -> Any:
        total = w[0].astype(x.dtype) * x
        for k, weight in enumerate(w[1:-1]):
            total = total + weight.astype(x.dtype) * inner[k]
        return total + w[-1].astype(x.dtype) * y

    return jax.tree.map(at, a, free, b)


def scale(w: list[Any], gradient: PyTree) -> PyTree:
    """The gradients in the free control points, stacked: w_k times the gradient at the point of the curve."""
    return jax.tree.map(lambda g: jnp.stack([weight.astype(g.dtype) * g for weight in w[1:-1]]), gradient)
