"""Orthogonal polynomials of a degree n for each entry; torch takes them for constants, so they have no derivative."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_torch.program.operators import lowering
from lla_torch.program.ops.pointwise import floating

Array = jax.Array
Step = Callable[[Array, Any, Array, Array], Array]
"""The next polynomial of a recurrence: (x, k, the k-th, the one before it) -> the (k + 1)-th."""


def _recur(x: Array, n: Array, first: Array, step: Step) -> Array:
    """p_n(x) with p_0 = 1, p_1 = first, and p_(k + 1) by ``step``; 0 for n < 0."""
    last = jnp.max(n, initial=1)

    def body(state: tuple[Any, ...]) -> tuple[Any, ...]:
        k, now, before = state
        return k + 1, jnp.where(k < n, step(x, k.astype(x.dtype), now, before), now), jnp.where(k < n, now, before)

    one = jnp.ones_like(x)
    _, value, _ = jax.lax.while_loop(lambda state: state[0] < last, body, (jnp.ones((), n.dtype), first, one))
    return jnp.where(n < 0, 0, jnp.where(n == 0, 1, value))


def _odd_sign(n: Array) -> Array:
    return jnp.where(n % 2 == 0, 1, -1)


def _register(name: str, function: Callable[[Array, Array], Array]) -> None:
    def of_any(x: Any, n: Any) -> Array:
        x, n = floating(x), jnp.asarray(n)
        whole = jnp.trunc(n).astype(int) if jnp.issubdtype(n.dtype, jnp.floating) else n
        x, whole = jnp.broadcast_arrays(x, whole)
        return function(jax.lax.stop_gradient(x), whole)

    overloads = ("default", "x_scalar", "n_scalar")
    lowering(*(f"aten.special_{name}.{kind}" for kind in overloads), layout="pointwise")(of_any)


Kind = tuple[Callable[[Array], Array], Callable[[Array, Array, Array], Array], Callable[[Array], tuple[Any, Any]], int]


def _angle_t(n: Array, angle: Array, x: Array) -> Array:
    return jnp.cos(n * angle)


def _angle_u(n: Array, angle: Array, x: Array) -> Array:
    sine = jnp.sin(angle)
    safe = jnp.where(sine == 0, 1, sine)
    return jnp.where(sine == 0, (n + 1) * jnp.cos((n + 1) * angle) / x, jnp.sin((n + 1) * angle) / safe)


def _angle_v(n: Array, angle: Array, x: Array) -> Array:
    return jnp.cos((n + 0.5) * angle) / jnp.cos(angle / 2)


def _angle_w(n: Array, angle: Array, x: Array) -> Array:
    return jnp.sin((n + 0.5) * angle) / jnp.sin(angle / 2)


CHEBYSHEV: dict[str, Kind] = {
    "t": (lambda x: x, _angle_t, lambda n: (1, 1), 6),
    "u": (lambda x: 2 * x, _angle_u, lambda n: (n + 1, n + 1), 8),
    "v": (lambda x: 2 * x - 1, _angle_v, lambda n: (1, 2 * n + 1), 8),
    "w": (lambda x: 2 * x + 1, _angle_w, lambda n: (2 * n + 1, 1), 8),
}
"""Of each kind: p_1, p_n by the angle arccos x, |p_n| at 1 and at -1, and the degree above which torch takes the angle.
"""
SHIFTED = {"t": 6, "u": 6, "v": 6, "w": 4}
"""These degrees for the polynomials in 2 x - 1."""


def _chebyshev_polynomial(kind: str, shifted: bool) -> Callable[[Array, Array], Array]:
    first, by_angle, at_ends, degree = CHEBYSHEV[kind]
    degree = SHIFTED[kind] if shifted else degree

    def function(x: Array, n: Array) -> Array:
        x = 2 * x - 1 if shifted else x
        inside, end = jnp.abs(x) < 1, jnp.abs(x) == 1
        angle = jnp.arccos(jnp.where(inside, x, 0.5))
        takes_angle = inside & (n > degree)
        steps = jnp.where(takes_angle | end, 1, n)
        value = _recur(x, steps, first(x), lambda x, k, now, before: 2 * x * now - before)
        value = jnp.where(takes_angle, by_angle(n.astype(x.dtype), angle, jnp.where(inside, x, 0.5)), value)
        above, below = at_ends(n)
        ends = jnp.where(x > 0, above, below * _odd_sign(n))
        return jnp.where(n < 0, 0, jnp.where(end, ends, value))

    return function


for _kind in CHEBYSHEV:
    _register(f"chebyshev_polynomial_{_kind}", _chebyshev_polynomial(_kind, False))
    _register(f"shifted_chebyshev_polynomial_{_kind}", _chebyshev_polynomial(_kind, True))


def _hermite(factor: int) -> Callable[[Array, Array], Array]:
    """The polynomials with the step factor (x p_k - k p_(k - 1)); torch gives NaN above a degree that may overflow."""

    def function(x: Array, n: Array) -> Array:
        limit = 128 if x.dtype == np.float32 else 512
        step = lambda x, k, now, before: factor * (x * now - k * before)  # noqa: E731
        return jnp.where(n > limit, jnp.nan, _recur(x, jnp.minimum(n, limit), factor * x, step))

    return function


_register("hermite_polynomial_h", _hermite(2))
_register("hermite_polynomial_he", _hermite(1))
_register(
    "laguerre_polynomial_l",
    lambda x, n: _recur(x, n, 1 - x, lambda x, k, now, before: ((2 * k + (1 - x)) * now - k * before) / (k + 1)),
)
_register(
    "legendre_polynomial_p",
    lambda x, n: _recur(x, n, x, lambda x, k, now, before: ((2 * k + 1) * x * now - k * before) / (k + 1)),
)
