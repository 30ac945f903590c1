"""Extrema of two tensors, and bounds.

Where both sides are equal, versions of torch divide the derivative otherwise: 2.13 gives all of it to the first
argument of ``clamp``, ``fmax`` and ``fmin``, 2.14 a half to each, and none to the argument of a bound that is a number.
So the functions take ``share``, the part of the derivative that the first argument keeps at equality; the conversion
asks the installed torch for it, and keeps the answer in the program.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from lla_torch.program.operators import lowering

ALL = 1.0
"""The share of the first argument in torch 2.13."""


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _extremum(function: Any, share: float, x: jax.Array, y: jax.Array) -> jax.Array:
    """maximum, minimum, fmax or fmin of two arrays; at equality x has ``share`` of the derivative and y the rest."""
    return function(x, y)


@_extremum.defjvp
def _extremum_jvp(function: Any, share: float, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (x, y), (dx, dy) = primals, tangents
    down = function in (jnp.minimum, jnp.fmin)
    lost, won = (x > y, x < y) if down else (x < y, x > y)
    if share == ALL:  # y has the derivative where it wins alone, or x is NaN for fmax and fmin
        kept = ~lost if function in (jnp.maximum, jnp.minimum) else ~(lost | jnp.isnan(x)) | jnp.isnan(y)
        return function(x, y), jnp.where(kept, dx, dy)
    equal = x == y
    both = jnp.where(lost, 0, dx) + jnp.where(won, 0, dy)  # of NaN both, as torch has it
    return function(x, y), jnp.where(equal, share * dx + (1 - share) * dy, both)


def _pair(function: Any, share: float, x: Any, y: Any) -> jax.Array:
    dtype = jnp.result_type(x, y)
    x, y = jnp.broadcast_arrays(jnp.asarray(x, dtype), jnp.asarray(y, dtype))
    return _extremum(function, share, x, y) if jnp.issubdtype(dtype, jnp.floating) else function(x, y)


lowering("aten.maximum", "aten.max.other", layout="pointwise")(jnp.maximum)
lowering("aten.minimum", "aten.min.other", layout="pointwise")(jnp.minimum)


@lowering("aten.fmax", layout="pointwise")
def fmax(x: jax.Array, y: jax.Array, *, share: float = ALL) -> jax.Array:
    """The larger of x and y, or the other one where one is NaN; at equality x has ``share`` of the derivative."""
    return _pair(jnp.fmax, share, x, y)


@lowering("aten.fmin", layout="pointwise")
def fmin(x: jax.Array, y: jax.Array, *, share: float = ALL) -> jax.Array:
    """The smaller of x and y, or the other one where one is NaN; at equality x has ``share`` of the derivative."""
    return _pair(jnp.fmin, share, x, y)


def positive_part(x: jax.Array, share: float = ALL) -> jax.Array:
    """max(x, 0); the derivative at 0 is ``share``."""
    return clamp(x, 0, share=share)


@lowering("aten.clamp", "aten.clip", layout="pointwise")
def clamp(x: jax.Array, min: Any = None, max: Any = None, *, share: float = ALL) -> jax.Array:
    """min(max(x, lower), upper) for the numbers ``min`` and ``max`` (None: no bound); derivative ``share`` at a bound.

    An upper bound below the lower one is the result everywhere. Of NaN the derivative is 0.
    """
    inside = jnp.ones(x.shape, bool)
    value: Any = x
    if min is not None:
        inside &= x >= min if share == ALL else x > min
        value = jnp.where(x < min, min, value)
    if max is not None:
        inside &= x <= max if share == ALL else x < max
        value = jnp.where(value > max, max, value)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return value
    return jnp.where(inside, x, jax.lax.stop_gradient(value))


@lowering("aten.clamp.Tensor", "aten.clip.Tensor", layout="pointwise")
def clamp_tensor(x: jax.Array, min: Any = None, max: Any = None, *, share: float = ALL) -> jax.Array:
    """min(max(x, lower), upper) for the tensors ``min`` and ``max`` (None: no bound).

    Where x equals a bound it has ``share`` of the derivative and the bound the rest; where it equals both it has all.
    """
    if max is None or min is None:
        return clamp_min_tensor(x, min, share=share) if max is None else clamp_max_tensor(x, max, share=share)
    x, lower, upper = jnp.broadcast_arrays(x, jnp.asarray(min), jnp.asarray(max))
    bounded = _pair(jnp.minimum, ALL, _pair(jnp.maximum, share, x, lower), upper)
    if not jnp.issubdtype(bounded.dtype, jnp.floating):
        return bounded
    if share == ALL:  # torch 2.13 gives a lower bound that equals the upper one no derivative
        empty = (lower == upper) & (x < lower)
        return jnp.where(empty, jax.lax.stop_gradient(bounded), bounded)
    at_upper = (x == upper) & (lower < upper)
    single = jnp.where((x == lower) & (lower == upper), x, bounded)
    return jnp.where(at_upper, _pair(jnp.minimum, share, x, upper), single)


@lowering("aten.clamp_min", layout="pointwise")
def clamp_min(x: jax.Array, min: Any, *, share: float = ALL) -> jax.Array:
    """max(x, lower) for the number ``min``; derivative ``share`` at the bound."""
    return clamp(x, min, share=share)


@lowering("aten.clamp_max", layout="pointwise")
def clamp_max(x: jax.Array, max: Any, *, share: float = ALL) -> jax.Array:
    """min(x, upper) for the number ``max``; derivative ``share`` at the bound."""
    return clamp(x, None, max, share=share)


@lowering("aten.clamp_min.Tensor", layout="pointwise")
def clamp_min_tensor(x: jax.Array, min: Any, *, share: float = ALL) -> jax.Array:
    """max(x, lower) for the tensor ``min``; at equality x has ``share`` of the derivative and the bound the rest."""
    return _pair(jnp.maximum, share, x, min)


@lowering("aten.clamp_max.Tensor", layout="pointwise")
def clamp_max_tensor(x: jax.Array, max: Any, *, share: float = ALL) -> jax.Array:
    """min(x, upper) for the tensor ``max``; at equality x has ``share`` of the derivative and the bound the rest."""
    return _pair(jnp.minimum, share, x, max)
