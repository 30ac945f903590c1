"""Whole numbers and the parts of floats: common divisors, mantissas and exponents, neighbours."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from lla_torch.program.operators import lowering
from lla_torch.program.ops.pointwise import floating

lowering("aten.gcd", layout="pointwise")(jnp.gcd)
lowering("aten.lcm", layout="pointwise")(jnp.lcm)


@lowering("aten.nextafter", layout="pointwise")
def nextafter(x: jax.Array, y: jax.Array) -> jax.Array:
    """The float next to x in the direction of y; torch has no derivative of it."""
    return jnp.nextafter(x, y)


@lowering("aten.frexp.Tensor", layout="pointwise")
def frexp(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(mantissa, exponent) with x = mantissa 2^exponent and 1/2 <= |mantissa| < 1; the exponent is constant."""
    x = floating(x)
    _, exponent = jnp.frexp(jax.lax.stop_gradient(x))
    exponent = jnp.where(jnp.isfinite(x), exponent, 0)
    return _scaled(x, -exponent), exponent.astype(jnp.int32)


@lowering("aten.ldexp.Tensor", layout="pointwise")
def ldexp(x: jax.Array, exponent: Any) -> jax.Array:
    """x 2^exponent, exact for whole exponents."""
    x, exponent = floating(x), jnp.asarray(exponent)
    if jnp.issubdtype(exponent.dtype, jnp.floating):
        return x * jnp.power(2.0, exponent)
    info = jnp.finfo(x.dtype)
    return _scaled(x, jnp.clip(exponent.astype(int), 2 * (info.minexp - info.nmant), 2 * info.maxexp))


def _scaled(x: jax.Array, exponent: jax.Array) -> jax.Array:
    """x 2^exponent, exact for every exponent of a float: the power alone may overflow, its third root does not."""
    thirds = [exponent // 3, (exponent + 1) // 3, (exponent + 2) // 3]
    for each in thirds:
        x = x * _power_of_two(each, x.dtype)
    return x


def _power_of_two(exponent: jax.Array, dtype: Any) -> jax.Array:
    return jnp.ldexp(jnp.ones((), dtype), exponent)
