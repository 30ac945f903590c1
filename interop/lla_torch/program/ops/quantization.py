"""Simulated quantization: values rounded to a grid of integers, with straight-through derivatives.

    q = round(x / scale) + zero_point,    y = (min(max(q, quant_min), quant_max) - zero_point) scale

The derivative of y by x is 1 where q lies within the bounds, and 0 beyond. torch keeps scales in float32, and so does a
converted network.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lla_torch.program.operators import lowering

Array = jax.Array


class Grid(NamedTuple):
    """What is fixed of a grid: its bounds, the factor of the gradients of learned values, and where torch rounds.

    Args:
      quant_min: the least integer.
      quant_max: the largest one.
      factor: of the gradients by the scale and the zero point.
      together: whether the zero point, which is then no integer, is added before rounding.
      single: whether the result is rounded to float32, as it is where there is one scale.
    """

    quant_min: int
    quant_max: int
    factor: float = 1.0
    together: bool = False
    single: bool = False


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _quantize(x: Array, scale: Array, zero: Array, grid: Grid) -> Array:
    """y, whose derivatives by the scale and the zero point, where these are learned, are multiplied by a factor."""
    place, scale, zero = _places(x, scale, zero, grid)
    steps = jnp.clip(place, grid.quant_min, grid.quant_max) - zero
    dtype = jnp.float32 if grid.single else x.dtype
    return (steps.astype(dtype) * scale.astype(dtype)).astype(x.dtype)


def _places(x: Array, scale: Array, zero: Array, grid: Grid) -> tuple[Array, Array, Array]:
    """(q, scale, zero point) in the type of x; the scale and its inverse are rounded to float32 before."""
    scale = scale.astype(jnp.float32)
    zero = zero.astype(x.dtype)
    steps = x * (1 / scale).astype(x.dtype)
    place = jnp.round(steps + zero) if grid.together else jnp.round(steps) + zero
    return place, scale.astype(x.dtype), zero


@_quantize.defjvp
def _quantize_jvp(grid: Grid, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (x, scale, zero), (dx, dscale, dzero) = primals, tangents
    y = _quantize(x, scale, zero, grid)
    place, step, origin = _places(x, scale, zero, grid)
    inside = (place >= grid.quant_min) & (place <= grid.quant_max)
    by_scale = jnp.where(inside, (y - x) / step, jnp.clip(place, grid.quant_min, grid.quant_max) - origin)
    learned = grid.factor * (by_scale * dscale - jnp.where(inside, 0, step) * dzero)
    return y, jnp.where(inside, dx, 0) + learned.astype(x.dtype)


def _fixed(value: Any, dtype: Any) -> Array:
    return jax.lax.stop_gradient(jnp.asarray(value)).astype(dtype)


def _along(values: Array, x: Array, axis: int) -> Array:
    """One value for each entry of an axis, broadcasting to x."""
    shape = [1] * x.ndim
    shape[axis] = -1
    return values.reshape(shape)


@lowering("aten.fake_quantize_per_tensor_affine", "aten.fake_quantize_per_tensor_affine.tensor_qparams")
def fake_quantize(x: Array, scale: Any, zero_point: Any, quant_min: int, quant_max: int) -> Array:
    """x rounded to the grid of one scale and zero point."""
    grid = Grid(quant_min, quant_max, single=True)
    return _quantize(x, _fixed(scale, x.dtype).reshape(()), _fixed(zero_point, x.dtype).reshape(()), grid)


@lowering("aten.fake_quantize_per_channel_affine", "lla_torch.fake_quantize_channels")
def fake_quantize_channels(
    x: Array, scale: Array, zero_point: Array, axis: int, quant_min: int, quant_max: int
) -> Array:
    """x rounded to a grid for each entry of an axis."""
    grid = Grid(quant_min, quant_max, together=bool(jnp.issubdtype(zero_point.dtype, jnp.floating)))
    scale, zero = _along(_fixed(scale, x.dtype), x, axis), _along(_fixed(zero_point, x.dtype), x, axis)
    return _quantize(x, scale, zero, grid)


@lowering("aten._fake_quantize_learnable_per_tensor_affine", "lla_torch.fake_quantize_learned")
def fake_quantize_learned(
    x: Array, scale: Array, zero_point: Array, quant_min: int, quant_max: int, grad_factor: float = 1.0
) -> Array:
    """x rounded to the grid of a learned scale and zero point, whose gradients are multiplied by ``grad_factor``."""
    origin = zero_point.reshape(-1)[0]
    zero = _straight_through(origin, jnp.trunc(jnp.clip(origin + 0.5, quant_min, quant_max)))
    return _quantize(x, scale.reshape(-1)[0], zero, Grid(quant_min, quant_max, grad_factor, single=True))


@lowering("aten._fake_quantize_learnable_per_channel_affine", "lla_torch.fake_quantize_learned_channels")
def fake_quantize_learned_channels(
    x: Array,
    scale: Array,
    zero_point: Array,
    axis: int,
    quant_min: int,
    quant_max: int,
    grad_factor: float = 1.0,
) -> Array:
    """x rounded to a grid with learned scale and zero point for each entry of an axis."""
    zero = _straight_through(zero_point, jnp.clip(jnp.round(zero_point), quant_min, quant_max))
    return _quantize(x, _along(scale, x, axis), _along(zero, x, axis), Grid(quant_min, quant_max, grad_factor))


lowering("lla_torch.fake_quantize")(fake_quantize)
lowering("lla_torch.fake_quantize_number")(fake_quantize)


def _straight_through(x: Array, value: Array) -> Array:
    """``value`` with the derivative of x."""
    fixed = jax.lax.stop_gradient(x)
    return jax.lax.stop_gradient(value) + (x - fixed)
