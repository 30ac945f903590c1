"""Special functions: error functions, gamma functions, modified Bessel functions, logarithms that meet 0."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy import special

from lla_torch.program.operators import lowering
from lla_torch.program.ops.pointwise import floating, of_floats, of_pairs

Array = jax.Array


def with_slope(slope: Callable[[Array, Array], Array]) -> Callable[[Callable[[Array], Array]], Callable[[Any], Array]]:
    """A decorator of a function of one float array: its derivative is ``slope(x, f(x))``, torch's at single points."""

    def decorate(function: Callable[[Array], Array]) -> Callable[[Any], Array]:
        smooth = jax.custom_jvp(function)

        def rule(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
            y = smooth(*primals)
            return y, slope(primals[0], y) * tangents[0]

        smooth.defjvp(rule)
        return of_floats(smooth)

    return decorate


def _register(names: str, function: Callable[..., Array]) -> None:
    lowering(*(f"aten.{name}" for name in names.split()), layout="pointwise")(function)


# --- error functions


_register("erf special_erf", of_floats(special.erf))
_register("erfc special_erfc", of_floats(special.erfc))
_register("erfinv special_erfinv", of_floats(special.erfinv))
_register("special_ndtr", of_floats(special.ndtr))
_register("special_log_ndtr", of_floats(special.log_ndtr))
_register(
    "special_ndtri",
    with_slope(lambda x, y: math.sqrt(2 * math.pi) * jnp.exp(y * y / 2))(special.ndtri),
)

# rational approximations of erfcx on (0.46875, 4] and above 4: Cody (1969), coefficients from the highest power on
_MIDDLE = (
    (
        *(2.15311535474403846e-8, 5.64188496988670089e-1, 8.88314979438837594, 6.61191906371416295e1),
        *(2.98635138197400131e2, 8.81952221241769090e2, 1.71204761263407058e3, 2.05107837782607147e3),
        1.23033935479799725e3,
    ),
    (
        *(1.0, 1.57449261107098347e1, 1.17693950891312499e2, 5.37181101862009858e2, 1.62138957456669019e3),
        *(3.29079923573345963e3, 4.36261909014324716e3, 3.43936767414372164e3, 1.23033935480374942e3),
    ),
)
_FAR = (
    (
        *(1.63153871373020978e-2, 3.05326634961232344e-1, 3.60344899949804439e-1, 1.25781726111229246e-1),
        *(1.60837851487422766e-2, 6.58749161529837803e-4),
    ),
    (
        *(1.0, 2.56852019228982242, 1.87295284992346725, 5.27905102951428412e-1, 6.05183413124413191e-2),
        2.33520497626869185e-3,
    ),
)


def ratio(z: Array, coefficients: tuple[tuple[float, ...], tuple[float, ...]]) -> Array:
    """The ratio of two polynomials in z, whose coefficients are given from the highest power on."""
    above, below = (polynomial(z, c) for c in coefficients)
    return above / below


def polynomial(z: Array, coefficients: tuple[float, ...]) -> Array:
    """A polynomial in z by Horner's rule; the coefficients are given from the highest power on."""
    value = jnp.full_like(z, coefficients[0])
    for c in coefficients[1:]:
        value = value * z + c
    return value


@with_slope(lambda x, y: 2 * x * y - 2 / math.sqrt(math.pi))
def erfcx(x: Array) -> Array:
    """exp(x^2) erfc(x), which does not underflow.

    References:
      Cody (1969), "Rational Chebyshev approximations for the error function", Mathematics of Computation 23, 631-637.
    """
    size = jnp.abs(x)
    small = jnp.minimum(size, 0.5)
    near = jnp.exp(small * small) * special.erfc(small)
    middle = ratio(jnp.clip(size, 0.46875, 4), _MIDDLE)
    far = jnp.maximum(size, 4)
    z = 1 / (far * far)
    tail = (1 / math.sqrt(math.pi) - z * ratio(z, _FAR)) / far
    of_size = jnp.where(size <= 0.46875, near, jnp.where(size <= 4, middle, tail))
    return jnp.where(x < 0, 2 * jnp.exp(x * x) - of_size, of_size)


_register("special_erfcx", erfcx)


# --- gamma functions


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _derivative_of_digamma(n: int, x: Array) -> Array:
    """psi_n(x) for n >= 1; jax has it for x > 0, and psi_n(x) = (-1)^n psi_n(1 - x) - pi d^n/dx^n cot(pi x)."""
    negative = x <= 0
    right = special.polygamma(n, jnp.where(negative, 1 - x, x))
    cotangent = 1 / jnp.tan(math.pi * (x - jnp.round(x)))
    return jnp.where(negative, (-1) ** n * right - math.pi ** (n + 1) * _derivative_of_cotangent(n, cotangent), right)


@_derivative_of_digamma.defjvp
def _derivative_of_digamma_jvp(n: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _derivative_of_digamma(n, *primals), _derivative_of_digamma(n + 1, *primals) * tangents[0]


def _derivative_of_cotangent(n: int, c: Array) -> Array:
    """The n-th derivative of cot u where cot u = c, a polynomial in c, as (cot u)' = -1 - c^2."""
    coefficients = [0.0, 1.0]
    for _ in range(n):
        slopes = [k * a for k, a in enumerate(coefficients)][1:]
        coefficients = [-a - b for a, b in zip([*slopes, 0.0, 0.0], [0.0, 0.0, *slopes])]
    return polynomial(c, tuple(reversed(coefficients)))


@with_slope(lambda x, y: _derivative_of_digamma(1, x))
def digamma(x: Array) -> Array:
    """The derivative of log Gamma; -inf at 0 and inf at -0, as in torch."""
    return jnp.where(x == 0, jnp.copysign(jnp.inf, -x), special.digamma(x))


_register("digamma special_digamma special_psi", digamma)
_register("lgamma special_gammaln", with_slope(lambda x, y: digamma(x))(special.gammaln))
_register("igamma special_gammainc", of_pairs(special.gammainc))
_register("igammac special_gammaincc", of_pairs(special.gammaincc))


@lowering("aten.polygamma", "aten.special_polygamma", layout="pointwise")
def polygamma(n: int, x: Array) -> Array:
    """The n-th derivative of digamma."""
    return digamma(x) if n == 0 else _derivative_of_digamma(n, floating(x))


@lowering(*(f"aten.special_zeta.{kind}" for kind in ("default", "other_scalar", "self_scalar")), layout="pointwise")
def zeta(x: Any, q: Any) -> Array:
    """Hurwitz' zeta function, the sum of 1 / (k + q)^x over k = 0, 1, ...; inf at poles, NaN at other q < 0."""
    pole = jnp.where(q == jnp.floor(q), jnp.inf, jnp.nan)
    return jnp.where(q > 0, of_pairs(special.zeta)(x, jnp.where(q > 0, q, 1)), pole)


# --- modified Bessel functions of the first kind


def _i1_slope(x: Array, y: Array) -> Array:
    zero = x == 0
    return jnp.where(zero, 0.5, _i0(x) - y / jnp.where(zero, 1, x))


_i1 = with_slope(_i1_slope)(special.i1)
_i0 = with_slope(lambda x, y: _i1(x))(special.i0)
_register("i0 special_i0", _i0)
_register("special_i0e", of_floats(special.i0e))
_register("special_i1", _i1)
_register("special_i1e", of_floats(special.i1e))


# --- functions with logarithms, whose limits at 0 torch defines


_register("sinc special_sinc", of_floats(jnp.sinc))


@with_slope(lambda x, y: -jnp.log(x) - 1)
def entr(x: Array) -> Array:
    """-x log x, 0 at 0 and -inf below; its derivative is inf at 0."""
    return jnp.where(x < 0, -jnp.inf, jnp.where(x == 0, 0, -x * jnp.log(jnp.where(x > 0, x, 1))))


_register("special_entr", entr)


@lowering("aten.logit", "aten.special_logit", layout="pointwise")
def logit(x: Array, eps: float | None = None) -> Array:
    """log(p / (1 - p)), where p is x, clamped to [eps, 1 - eps] unless eps is None.

    Its derivative is 1 / (x (1 - x)); beyond the bounds it is 0, without eps NaN.
    """

    def slope(x: Array, y: Array) -> Array:
        lower, beyond = (0, jnp.nan) if eps is None else (eps, 0)
        inside = (x >= lower) & (x <= 1 - lower)
        return jnp.where(inside, 1 / jnp.where(inside, x * (1 - x), 1), beyond)

    def value(x: Array) -> Array:
        p = x if eps is None else jnp.clip(x, eps, 1 - eps)
        return jnp.log(p / (1 - p))

    return with_slope(slope)(value)(x)


def _vanishing(log: Callable[[Array], Array], shift: int) -> Callable[[Any, Any], Array]:
    """x log(shift + y), 0 where x is 0 unless y is NaN; the derivatives are torch's, 0 and NaN where both meet 0."""

    @jax.custom_jvp
    def product(x: Array, y: Array) -> Array:
        zero = (x == 0) & ~jnp.isnan(y)
        return jnp.where(zero, 0, x * log(jnp.where(zero, 1, y)))

    def rule(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
        (x, y), (dx, dy) = primals, tangents
        gone = (x == 0) & (y <= -shift)
        by_x = jnp.where(gone, 0, log(jnp.where(gone, 1, y)))
        return product(x, y), by_x * dx + x / (shift + y) * dy

    product.defjvp(rule)
    return of_pairs(product)


_xlogy, _xlog1py = _vanishing(jnp.log, 0), _vanishing(jnp.log1p, 1)


@lowering(
    *(f"aten.xlogy.{kind}" for kind in ("Tensor", "Scalar_Self", "Scalar_Other")),
    *(f"aten.special_xlogy.{kind}" for kind in ("default", "self_scalar", "other_scalar")),
    layout="pointwise",
)
def xlogy(x: Any, y: Any) -> Array:
    """x log y, which is 0 where x is 0, unless y is NaN."""
    return _xlogy(x, y)


@lowering(*(f"aten.special_xlog1py.{kind}" for kind in ("default", "self_scalar", "other_scalar")), layout="pointwise")
def xlog1py(x: Any, y: Any) -> Array:
    """x log(1 + y), which is 0 where x is 0, unless y is NaN."""
    return _xlog1py(x, y)
