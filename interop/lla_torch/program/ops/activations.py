"""Activation functions, with torch's derivatives at the kinks."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

from lla_jax.models.adapters import misuse
from lla_torch.program.operators import lowering
from lla_torch.program.ops.axes import axis_of, unmerge
from lla_torch.program.ops.pointwise import of_floats
from lla_torch.program.views import View

lowering("aten.relu", layout="pointwise")(jax.nn.relu)
lowering("aten.silu", layout="pointwise")(jax.nn.silu)
lowering("aten.sigmoid", "aten.special_expit", layout="pointwise")(of_floats(jax.nn.sigmoid))
lowering("aten.tanh", layout="pointwise")(of_floats(jnp.tanh))
lowering("aten.mish", layout="pointwise")(lambda x: x * jnp.tanh(jax.nn.softplus(x)))
lowering("aten.log_sigmoid", layout="pointwise")(jax.nn.log_sigmoid)


@lowering("aten.log_sigmoid_forward", layout="pointwise")
def log_sigmoid_forward(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """log sigmoid(x), and torch's buffer exp(-|x|)."""
    return jax.nn.log_sigmoid(x), jnp.exp(-jnp.abs(x))


@lowering("aten.gelu", layout="pointwise")
def gelu(x: jax.Array, *, approximate: str = "none") -> jax.Array:
    """x Phi(x), with Phi the normal distribution function, or with approximate="tanh" torch's approximation of it."""
    if approximate not in ("none", "tanh"):
        raise misuse("approximate", approximate, "one of 'none', 'tanh'")
    return jax.nn.gelu(x, approximate=approximate == "tanh")


@lowering("aten.softplus", layout="pointwise")
def softplus(x: jax.Array, beta: float = 1, threshold: float = 20) -> jax.Array:
    """log(1 + exp(beta x)) / beta, and x itself where beta x is above the threshold."""
    return jnp.where(x * beta > threshold, x, jax.nn.softplus(x * beta) / beta)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2, 3))
def _elu(x: jax.Array, alpha: float, scale: float, input_scale: float) -> jax.Array:
    low = jnp.where(x > 0, 0, x)  # so that the branch not taken does not overflow
    return jnp.where(x > 0, x * scale, jnp.expm1(low * input_scale) * (alpha * scale))


@_elu.defjvp
def _elu_jvp(alpha: float, scale: float, input_scale: float, primals: Any, tangents: Any) -> tuple[Any, Any]:
    (x,), (change,) = primals, tangents
    low = jnp.where(x < 0, x, 0)  # at 0 the second derivative is 0, as in torch
    slope = jnp.where(x <= 0, jnp.exp(low * input_scale) * (alpha * scale * input_scale), scale)
    return _elu(x, alpha, scale, input_scale), slope * change


@lowering("aten.elu", layout="pointwise")
def elu(x: jax.Array, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> jax.Array:
    """scale x above 0, scale alpha (exp(input_scale x) - 1) elsewhere; at 0 the derivative is that of the latter."""
    return _elu(x, float(alpha), float(scale), float(input_scale))


@lowering("aten.celu", layout="pointwise")
def celu(x: jax.Array, alpha: float = 1.0) -> jax.Array:
    """x above 0, alpha (exp(x / alpha) - 1) elsewhere."""
    return elu(x, alpha, 1, 1 / alpha)


@lowering("aten.selu", layout="pointwise")
def selu(x: jax.Array) -> jax.Array:
    """scale x above 0, scale alpha (exp(x) - 1) elsewhere, with the constants of Klambauer et al. (2017)."""
    return elu(x, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


@lowering("aten.leaky_relu", layout="pointwise")
def leaky_relu(x: jax.Array, negative_slope: float = 0.01) -> jax.Array:
    """x above 0, negative_slope x elsewhere; at 0 the derivative is negative_slope."""
    return jnp.where(x > 0, x, x * negative_slope)


@lowering("aten._prelu_kernel", layout="pointwise")
def prelu_kernel(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x above 0, weight x elsewhere; at 0 the derivative is the weight, as a constant."""
    slope = jnp.where(x < 0, weight, jax.lax.stop_gradient(weight))
    return jnp.where(x > 0, x, x * slope)


@lowering("aten.prelu", layout="views")
def prelu(x: View, weight: View) -> View:
    """x above 0, weight x elsewhere, with one weight for all entries, or one for each entry of axis 1."""
    x, slopes = unmerge(x), weight.logical()
    shape = [1] * x.ndim
    if slopes.size > 1:
        shape[x.order[1]] = -1
    return x.with_array(prelu_kernel(x.array, slopes.reshape(shape)))


@lowering("aten.hardtanh", layout="pointwise")
def hardtanh(x: jax.Array, min_val: float = -1, max_val: float = 1) -> jax.Array:
    """x clamped to [min_val, max_val]; the derivative at the ends is 0."""
    return jnp.where(x <= min_val, min_val, jnp.where(x >= max_val, max_val, x))


@lowering("aten.relu6", layout="pointwise")
def relu6(x: jax.Array) -> jax.Array:
    """x clamped to [0, 6]; the derivative at the ends is 0."""
    return hardtanh(x, 0, 6)


@lowering("aten.hardsigmoid", layout="pointwise")
def hardsigmoid(x: jax.Array) -> jax.Array:
    """x / 6 + 1/2 clamped to [0, 1]; the derivative at the ends is 0."""
    return jnp.where(x <= -3, 0.0, jnp.where(x >= 3, 1.0, x / 6 + 0.5))


@lowering("aten.hardswish", layout="pointwise")
def hardswish(x: jax.Array) -> jax.Array:
    """x hardsigmoid(x); at 3 the derivative is 1 and at -3 it is 0."""
    return jnp.where(x <= -3, 0.0, jnp.where(x >= 3, x, x * (x + 3) / 6))


@lowering("aten.hardshrink", layout="pointwise")
def hardshrink(x: jax.Array, lambd: float = 0.5) -> jax.Array:
    """0 in [-lambd, lambd], else x."""
    return jnp.where((x >= -lambd) & (x <= lambd), 0, x)


@lowering("aten.softshrink", layout="pointwise")
def softshrink(x: jax.Array, lambd: float = 0.5) -> jax.Array:
    """x moved by lambd towards 0, but 0 in [-lambd, lambd]."""
    return jnp.where((x >= -lambd) & (x <= lambd), 0, jnp.where(x < 0, x + lambd, x - lambd))


@lowering("aten.threshold", layout="pointwise")
def threshold(x: jax.Array, threshold: float, value: float) -> jax.Array:
    """x where it is above the threshold, else ``value``."""
    return jnp.where(x <= threshold, value, x)


@lowering("aten.glu", layout="views")
def glu(x: View, dim: int = -1) -> View:
    """The first half of x along the axis ``dim`` times the sigmoid of its second half."""
    x = unmerge(x)
    first, second = jnp.split(x.array, 2, x.order[axis_of(dim, x.ndim)])
    return View(first * jax.nn.sigmoid(second), x.order)
