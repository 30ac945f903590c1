"""Operators that work entry by entry: arithmetic, comparisons, logic, elementary functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lla_jax.models.adapters import misuse
from lla_torch.program.operators import lowering
from lla_torch.program.views import View


def floating(x: Any) -> jax.Array:
    """``x`` with integers cast to jax's default float."""
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(float)


def of_floats(function: Callable[[jax.Array], jax.Array]) -> Callable[[Any], jax.Array]:
    """The function of ``floating(x)``: jax itself takes 32 bits for whole numbers, whatever its default is."""
    return lambda x: function(floating(x))


def of_pairs(function: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[[Any, Any], jax.Array]:
    """The function of two arguments as floats of one type and shape."""

    def of_pair(x: Any, y: Any) -> jax.Array:
        x, y = floating(x), floating(y)
        dtype = jnp.result_type(x, y)
        return function(*jnp.broadcast_arrays(x.astype(dtype), y.astype(dtype)))

    return of_pair


def _register(table: dict[str, Callable[..., Any]], *overloads: str) -> None:
    for names, function in table.items():
        for name in names.split():
            lowering(*(f"aten.{name}.{overload}" for overload in overloads), layout="pointwise")(function)


def sign(x: jax.Array) -> jax.Array:
    """-1, 0 or 1, and x / |x| of complex numbers; 0 of NaN, as in torch."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x if x.dtype == bool else jnp.sign(x)
    return jnp.where(jnp.isnan(x), 0, jnp.sign(x))


def absolute(x: jax.Array) -> jax.Array:
    """|x|, with derivative 0 at 0 as in torch (jax's ``abs`` has 1 there)."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return x * jax.lax.stop_gradient(sign(x))
    return jnp.abs(x)


def _copysign(x: jax.Array, y: Any) -> jax.Array:
    size = absolute(floating(x))
    return jnp.where(jnp.signbit(jnp.asarray(floating(y))), -size, size)


@jax.custom_jvp
def _atan2(y: jax.Array, x: jax.Array) -> jax.Array:
    """The angle of the point (x, y); its derivative at (0, 0) is 0, as in torch."""
    return jnp.arctan2(y, x)


@_atan2.defjvp
def _atan2_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (y, x), (dy, dx) = primals, tangents
    square = x * x + y * y
    inverse = jnp.where(square == 0, 0, 1 / jnp.where(square == 0, 1, square))
    return _atan2(y, x), inverse * (x * dy - y * dx)


@jax.custom_jvp
def _hypot(x: jax.Array, y: jax.Array) -> jax.Array:
    """sqrt(x^2 + y^2); its derivative at (0, 0) is NaN, as in torch."""
    return jnp.hypot(x, y)


@_hypot.defjvp
def _hypot_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (x, y), (dx, dy) = primals, tangents
    size = _hypot(x, y)
    return size, dx * (x / size) + dy * (y / size)


def _frac(x: jax.Array) -> jax.Array:
    return x - jnp.trunc(x)


_register(
    {
        "abs absolute": absolute,
        "neg negative": jnp.negative,
        "positive": lambda x: x,
        "sign sgn": sign,
        "floor": jnp.floor,
        "ceil": jnp.ceil,
        "trunc fix": jnp.trunc,
        "round": jnp.round,
        "frac": _frac,
        "exp": of_floats(jnp.exp),
        "exp2 special_exp2": of_floats(jnp.exp2),
        "expm1 special_expm1": of_floats(jnp.expm1),
        "log": of_floats(jnp.log),
        "log2": of_floats(jnp.log2),
        "log10": of_floats(jnp.log10),
        "log1p special_log1p": of_floats(jnp.log1p),
        "sqrt": of_floats(jnp.sqrt),
        "rsqrt": of_floats(jax.lax.rsqrt),
        "square": jnp.square,
        "reciprocal": lambda x: 1 / floating(x),
        "sin": of_floats(jnp.sin),
        "cos": of_floats(jnp.cos),
        "tan": of_floats(jnp.tan),
        "asin arcsin": of_floats(jnp.arcsin),
        "acos arccos": of_floats(jnp.arccos),
        "atan arctan": of_floats(jnp.arctan),
        "sinh": of_floats(jnp.sinh),
        "cosh": of_floats(jnp.cosh),
        "asinh arcsinh": of_floats(jnp.arcsinh),
        "acosh arccosh": of_floats(jnp.arccosh),
        "atanh arctanh": of_floats(jnp.arctanh),
        "deg2rad": of_floats(jnp.deg2rad),
        "rad2deg": of_floats(jnp.rad2deg),
        "logical_not": jnp.logical_not,
        "bitwise_not": jnp.bitwise_not,
        "isnan": jnp.isnan,
        "isinf": jnp.isinf,
        "isfinite": jnp.isfinite,
        "isposinf": jnp.isposinf,
        "isneginf": jnp.isneginf,
        "signbit": jnp.signbit,
        "real": jnp.real,
        "imag": jnp.imag,
        "conj _conj conj_physical _conj_physical": jnp.conj,
        "resolve_conj resolve_neg": lambda x: x,
        "angle": jnp.angle,
    },
    "default",
)

_register(
    {
        "atan2 arctan2": of_pairs(_atan2),
        "hypot": of_pairs(_hypot),
        "logaddexp": jnp.logaddexp,
        "logaddexp2": jnp.logaddexp2,
        "logical_and": jnp.logical_and,
        "logical_or": jnp.logical_or,
        "logical_xor": jnp.logical_xor,
        "heaviside": lambda x, y: jnp.where(x == 0, y, (x > 0).astype(jnp.result_type(x, y))),
        "floor_divide": lambda x, y: _floor_divide(x, y),
        "complex": jax.lax.complex,
    },
    "default",
)
_register(
    {
        "mul multiply": jnp.multiply,
        "eq": jnp.equal,
        "ne not_equal": jnp.not_equal,
        "lt less": jnp.less,
        "le less_equal": jnp.less_equal,
        "gt greater": jnp.greater,
        "ge greater_equal": jnp.greater_equal,
        "bitwise_and __and__": jnp.bitwise_and,
        "bitwise_or __or__": jnp.bitwise_or,
        "bitwise_xor __xor__": jnp.bitwise_xor,
        "fmod": lambda x, y: jnp.fmod(x, y),
        "remainder": jnp.remainder,
        "copysign": _copysign,
    },
    "Tensor",
    "Scalar",
)
_register(
    {
        "bitwise_left_shift": jnp.left_shift,
        "bitwise_right_shift": jnp.right_shift,
    },
    "Tensor",
    "Tensor_Scalar",
)
_register({"__lshift__": jnp.left_shift, "__rshift__": jnp.right_shift}, "Tensor", "Scalar")
lowering("aten.remainder.Scalar_Tensor", layout="pointwise")(jnp.remainder)
lowering("aten.floor_divide.Scalar", layout="pointwise")(lambda x, y: _floor_divide(x, y))


@lowering("aten.add.Tensor", "aten.add.Scalar", layout="pointwise")
def add(x: Any, y: Any, alpha: Any = 1) -> jax.Array:
    """x + alpha y."""
    return jnp.add(x, _times(y, alpha))


@lowering("aten.sub.Tensor", "aten.sub.Scalar", "aten.subtract.Tensor", "aten.subtract.Scalar", layout="pointwise")
def sub(x: Any, y: Any, alpha: Any = 1) -> jax.Array:
    """x - alpha y."""
    return jnp.subtract(x, _times(y, alpha))


@lowering("aten.rsub.Tensor", "aten.rsub.Scalar", layout="pointwise")
def rsub(x: Any, y: Any, alpha: Any = 1) -> jax.Array:
    """y - alpha x."""
    return jnp.subtract(y, _times(x, alpha))


def _times(x: Any, factor: Any) -> Any:
    return x if isinstance(factor, int | float) and factor == 1 else x * factor


def _floor_divide(x: Any, y: Any) -> jax.Array:
    return jnp.floor_divide(jax.lax.stop_gradient(x), jax.lax.stop_gradient(y))


@lowering(
    *(f"aten.{name}.{kind}" for name in ("div", "divide", "true_divide") for kind in ("Tensor", "Scalar")),
    layout="pointwise",
)
def div(x: Any, y: Any) -> jax.Array:
    """x / y, a float also for integers."""
    return jnp.true_divide(x, y)


@lowering(
    *(f"aten.{name}.{kind}_mode" for name in ("div", "divide") for kind in ("Tensor", "Scalar")), layout="pointwise"
)
def div_mode(x: Any, y: Any, rounding_mode: str | None = None) -> jax.Array:
    """x / y, rounded towards -inf ("floor"), towards 0 ("trunc") or not (None); rounding has derivative 0."""
    if rounding_mode is None:
        return div(x, y)
    if rounding_mode == "floor":
        return _floor_divide(x, y)
    if rounding_mode != "trunc":
        raise misuse("rounding_mode", rounding_mode, "one of None, 'floor', 'trunc'")
    x, y = jax.lax.stop_gradient(jnp.asarray(x)), jax.lax.stop_gradient(jnp.asarray(y))
    if jnp.issubdtype(jnp.result_type(x, y), jnp.inexact):
        return jnp.trunc(x / y)
    return jnp.sign(x) * jnp.sign(y) * jnp.floor_divide(jnp.abs(x), jnp.abs(y))


@lowering(
    *(f"aten.pow.{kind}" for kind in ("Tensor_Tensor", "Tensor_Scalar", "Scalar")),
    *(f"aten.float_power.{kind}" for kind in ("Tensor_Tensor", "Tensor_Scalar", "Scalar")),
    layout="pointwise",
)
def power(x: Any, y: Any) -> jax.Array:
    """x to the power y, computed by multiplications if y is a whole number up to 64."""
    if isinstance(y, float) and abs(y) == 0.5:
        return jnp.sqrt(floating(x)) if y > 0 else jax.lax.rsqrt(floating(x))
    if isinstance(y, int | float) and not isinstance(y, bool) and math.isfinite(y) and y == int(y) and abs(y) <= 64:
        if isinstance(y, float) or y < 0:
            x = floating(x)
        return jax.lax.integer_pow(x, int(y))
    if not isinstance(y, int | float) and jnp.issubdtype(y.dtype, jnp.floating):
        x = jnp.where((jnp.asarray(x) == 0) & (y == 0), 1, x)  # jax's derivative of 0 to the 0 is NaN, torch's 0
    return jnp.power(x, y)


@lowering("aten.round.decimals", "aten.special_round.decimals", layout="pointwise")
def round_decimals(x: jax.Array, *, decimals: int = 0) -> jax.Array:
    """x rounded to ``decimals`` decimal places, half to even; negative ones count in front of the point."""
    scale = 10.0 ** abs(decimals)
    return jnp.round(x * scale) / scale if decimals >= 0 else jnp.round(x / scale) * scale


@lowering("aten.lerp.Scalar", "aten.lerp.Tensor", layout="pointwise")
def lerp(start: jax.Array, end: jax.Array, weight: Any) -> jax.Array:
    """start + weight (end - start)."""
    return start + weight * (end - start)


@lowering("aten.addcmul", layout="pointwise")
def addcmul(x: jax.Array, a: jax.Array, b: jax.Array, *, value: Any = 1) -> jax.Array:
    """x + value a b."""
    return x + _times(a, value) * b


@lowering("aten.addcdiv", layout="pointwise")
def addcdiv(x: jax.Array, a: jax.Array, b: jax.Array, *, value: Any = 1) -> jax.Array:
    """x + value a / b."""
    return x + _times(a, value) / b


@lowering(*(f"aten.where.{kind}" for kind in ("self", "Scalar", "ScalarOther", "ScalarSelf")), layout="pointwise")
def where(condition: jax.Array, x: Any, y: Any) -> jax.Array:
    """x where the condition holds, else y."""
    return jnp.where(jnp.asarray(condition, bool), x, y)


@lowering("aten.masked_fill.Scalar", "aten.masked_fill.Tensor", layout="pointwise")
def masked_fill(x: jax.Array, mask: jax.Array, value: Any) -> jax.Array:
    """``value`` where the mask is set, else x."""
    return jnp.where(jnp.asarray(mask, bool), jnp.asarray(value, jnp.asarray(x).dtype), x)


@lowering("aten.nan_to_num", layout="pointwise")
def nan_to_num(x: jax.Array, nan: Any = None, posinf: Any = None, neginf: Any = None) -> jax.Array:
    """x with NaN, inf and -inf replaced, by default by 0 and the largest and least finite number of its type."""
    if not jnp.issubdtype(x.dtype, jnp.inexact):
        return x
    info = jnp.finfo(x.dtype)
    for bad, value, default in (
        (jnp.isnan(x), nan, 0.0),
        (jnp.isposinf(x), posinf, info.max),
        (jnp.isneginf(x), neginf, info.min),
    ):
        x = jnp.where(bad, jnp.asarray(default if value is None else value, x.dtype), x)
    return x


def _identity(x: View) -> View:
    return x


lowering(
    *(f"aten.{name}.default" for name in ("alias", "clone", "contiguous", "lift", "lift_fresh", "lift_fresh_copy")),
    "aten.alias_copy",
    layout="views",
)(_identity)


@lowering("aten.detach", "aten.detach_copy", layout="views")
def detach(x: View) -> View:
    """x as a constant of differentiation (``stop_gradient``)."""
    return x.with_array(jax.lax.stop_gradient(x.array))


@lowering("aten._to_copy", "aten.to.dtype", "aten.to.dtype_layout", layout="views")
def to_dtype(x: View, dtype: Any = None, copy: bool = False) -> View:
    """x in the type ``dtype`` (None: unchanged); ``copy`` has no effect, since arrays never change."""
    del copy
    return x if dtype is None else x.with_array(x.array.astype(dtype))


@lowering("aten.to.device", "aten.to.prim_Device", layout="views")
def to_device(x: View, dtype: Any = None, copy: bool = False) -> View:
    """x in the type ``dtype`` (None: unchanged); devices have no effect."""
    return to_dtype(x, dtype, copy)


@lowering("aten.type_as", "aten.to.other", layout="views")
def type_as(x: View, other: View, copy: bool = False) -> View:
    """x in the type of ``other``."""
    return to_dtype(x, other.dtype, copy)


@lowering("aten.copy", layout="views")
def copy(x: View, source: View) -> View:
    """``source`` broadcast to the shape of x and in its type."""
    array = jnp.broadcast_to(source.logical(), x.shape) if source.shape != x.shape else None
    source = source if array is None else View(array, tuple(range(array.ndim)))
    return to_dtype(source, x.dtype)


@lowering("aten.view_as_real", "aten.view_as_real_copy")
def view_as_real(x: jax.Array) -> jax.Array:
    """Real and imaginary part of x along a new last axis."""
    return jnp.stack((x.real, x.imag), -1)


@lowering("aten.view_as_complex", "aten.view_as_complex_copy")
def view_as_complex(x: jax.Array) -> jax.Array:
    """The complex tensor whose real and imaginary part are the two entries of the last axis of x."""
    return jax.lax.complex(x[..., 0], x[..., 1])


@lowering("aten.polar")
def polar(modulus: jax.Array, angle: jax.Array) -> jax.Array:
    """The complex numbers modulus exp(i angle)."""
    return jax.lax.complex(*jnp.broadcast_arrays(modulus * jnp.cos(angle), modulus * jnp.sin(angle)))
