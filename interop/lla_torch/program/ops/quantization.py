"""Simulated quantization: values rounded to a grid of integers, with straight-through derivatives.

    q = round(x / scale) + zero_point,    y = (min(max(q, quant_min), quant_max) - zero_point) scale

The derivative of y by x is 1 where q lies within the bounds, and 0 beyond. torch keeps scales in float32, and so does a
converted network.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from lla_torch.program.operators import lowering

Array = jax.Array


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4, 5))
def _quantize(x: Array, scale: Array, zero: Array, quant_min: int, quant_max: int, factor: float) -> Array:
    """y, whose derivatives by the scale and the zero point, where these are learned, are multiplied by ``factor``."""
    place, scale, zero = _places(x, scale, zero)
    return ((jnp.clip(place, quant_min, quant_max) - zero) * scale).astype(x.dtype)


def _places(x: Array, scale: Array, zero: Array) -> tuple[Array, Array, Array]:
    """(q, scale, zero point) in the type of x; the scale and its inverse are rounded to float32 before."""
    scale = scale.astype(jnp.float32)
    zero = zero.astype(x.dtype)
    return jnp.round(x * (1 / scale).astype(x.dtype)) + zero, scale.astype(x.dtype), zero


@_quantize.defjvp
def _quantize_jvp(
    quant_min: int, quant_max: int, factor: float, primals: Any, tangents: Any
) -> tuple[jax.Array, jax.Array]:
    (x, scale, zero), (dx, dscale, dzero) = primals, tangents
    y = _quantize(x, scale, zero, quant_min, quant_max, factor)
    place, step, origin = _places(x, scale, zero)
    inside = (place >= quant_min) & (place <= quant_max)
    by_scale = jnp.where(inside, (y - x) / step, jnp.clip(place, quant_min, quant_max) - origin)
    learned = factor * (by_scale * dscale - jnp.where(inside, 0, step) * dzero)
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
    scale, zero = _fixed(scale, x.dtype).reshape(()), _fixed(zero_point, x.dtype).reshape(())
    return _quantize(x, scale, zero, quant_min, quant_max, 1.0)


@lowering("aten.fake_quantize_per_channel_affine")
def fake_quantize_channels(
    x: Array, scale: Array, zero_point: Array, axis: int, quant_min: int, quant_max: int
) -> Array:
    """x rounded to a grid for each entry of an axis."""
    scale, zero = _along(_fixed(scale, x.dtype), x, axis), _along(_fixed(zero_point, x.dtype), x, axis)
    return _quantize(x, scale, zero, quant_min, quant_max, 1.0)


@lowering(
    "aten.fake_quantize_per_tensor_affine_cachemask",
    "aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
)
def fake_quantize_with_mask(x: Array, scale: Any, zero_point: Any, *rest: Any) -> tuple[Array, Array]:
    """(x on the grid of one scale and zero point, whether it lies within the bounds)."""
    quant_min, quant_max = rest[-2:]
    place, _, _ = _places(x, jnp.asarray(scale), jnp.asarray(zero_point))
    y = fake_quantize(x, scale, zero_point, quant_min, quant_max)
    return y, (place >= quant_min) & (place <= quant_max)


@lowering("aten._fake_quantize_learnable_per_tensor_affine")
def fake_quantize_learned(
    x: Array, scale: Array, zero_point: Array, quant_min: int, quant_max: int, grad_factor: float = 1.0
) -> Array:
    """x rounded to the grid of a learned scale and zero point, whose gradients are multiplied by ``grad_factor``."""
    rounded = jnp.clip(zero_point.reshape(-1)[0] + 0.5, quant_min, quant_max)
    zero = _straight_through(zero_point.reshape(-1)[0], jnp.trunc(rounded))
    return _quantize(x, scale.reshape(-1)[0], zero, quant_min, quant_max, grad_factor)


@lowering("aten._fake_quantize_learnable_per_channel_affine")
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
    return _quantize(x, _along(scale, x, axis), _along(zero, x, axis), quant_min, quant_max, grad_factor)


def _straight_through(x: Array, value: Array) -> Array:
    """``value`` with the derivative of x."""
    fixed = jax.lax.stop_gradient(x)
    return jax.lax.stop_gradient(value) + (x - fixed)
