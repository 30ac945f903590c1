"""Differences between two sides of a comparison, relative to the largest entry, and what rounding allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np


def eps_of(dtype: str) -> float:
    return float(jnp.finfo(dtype).eps)


def rounding_of(dtype: str) -> float:
    """The relative error allowed in a type: 100 eps, or 10 eps in 16 bits, where 100 eps would let anything pass."""
    return eps_of(dtype) * (100 if jnp.finfo(dtype).bits >= 32 else 10)


def is_inexact(x: Any) -> bool:
    return bool(jnp.issubdtype(x.dtype, jnp.inexact))


def largest_difference(ours: list[Any], theirs: list[Any]) -> float:
    return float(np.max([relative_difference(a, b) for a, b in zip(ours, theirs, strict=True)]))


def relative_difference(ours: Mapping[str, Any] | None, theirs: Mapping[str, Any] | None) -> float:
    """The largest difference divided by the largest entry of ``theirs``, over all arrays; NaN where a side is None.

    It is infinite where names, shapes or entries of integer arrays differ. Equal infinities agree. If all of ``theirs``
    is zero, it is the largest difference itself.
    """
    if ours is None or theirs is None:
        return float("nan")
    if {n: np.shape(x) for n, x in ours.items()} != {n: np.shape(x) for n, x in theirs.items()}:
        return float("inf")
    scale = largest = 0.0
    for name in theirs:
        a, b = np.asarray(ours[name]), np.asarray(theirs[name])
        if not is_inexact(b):
            largest = largest if np.array_equal(a, b) else float("inf")
        elif b.size:
            a, b = a.astype(np.complex128), b.astype(np.complex128)
            distance = np.abs(np.subtract(a, b, out=np.zeros_like(a), where=a != b))
            scale = max(scale, float(np.abs(np.where(np.isfinite(b), b, 0)).max()))
            largest = float(np.maximum(largest, distance.max()))
    return largest / scale if scale else largest


def median_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> float:
    """The median over all entries of floats of |ours - theirs| / max|theirs|; 0 where none or all are zero."""
    pairs = [(np.asarray(ours[name]), np.asarray(x)) for name, x in theirs.items() if is_inexact(np.asarray(x))]
    distances = [np.abs(a.astype(np.complex128) - b.astype(np.complex128)).ravel() for a, b in pairs]
    known = np.concatenate([np.zeros(0), *distances])
    scale = max((float(np.abs(np.where(np.isfinite(b), b, 0)).max(initial=0)) for _, b in pairs), default=0.0)
    known = known[np.isfinite(known)]
    return float(np.median(known)) / scale if known.size and scale else 0.0
