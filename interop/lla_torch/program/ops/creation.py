"""Operators that make tensors from sizes and numbers, or like another tensor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_torch.program.operators import lowering
from lla_torch.program.views import View


@lowering("aten.full")
def full(size: Sequence[int], value: Any, *, dtype: Any = None) -> jax.Array:
    """A tensor of the shape ``size`` with ``value`` in every entry."""
    return jnp.full(tuple(size), value, dtype)


@lowering("aten.zeros", "aten.empty.memory_format")
def zeros(size: Sequence[int], *, dtype: Any = None) -> jax.Array:
    """A tensor of zeros of the shape ``size``, also where torch leaves memory uninitialized."""
    return jnp.zeros(tuple(size), dtype)


@lowering("aten.ones")
def ones(size: Sequence[int], *, dtype: Any = None) -> jax.Array:
    """A tensor of ones of the shape ``size``."""
    return jnp.ones(tuple(size), dtype)


@lowering("aten.empty_strided", "aten.empty_permuted")
def empty_strided(size: Sequence[int], stride: Sequence[int], *, dtype: Any = None) -> jax.Array:
    """A tensor of zeros of the shape ``size``; XLA decides how memory is strided."""
    del stride
    return zeros(size, dtype=dtype)


@lowering("aten.scalar_tensor")
def scalar_tensor(value: Any, *, dtype: Any = None) -> jax.Array:
    """A number as a tensor without axes."""
    return jnp.asarray(value, dtype)


def _like(value: Any) -> Callable[..., View]:
    def like(x: View, *, dtype: Any = None) -> View:
        return x.with_array(jnp.full_like(x.array, value, dtype))

    return like


lowering("aten.zeros_like", "aten.empty_like", "aten.zero", layout="views")(_like(0))
lowering("aten.ones_like", layout="views")(_like(1))


@lowering("aten.full_like", layout="views")
def full_like(x: View, value: Any, *, dtype: Any = None) -> View:
    """A tensor of the shape of x with ``value`` in every entry; dtype=None takes the type of x."""
    return x.with_array(jnp.full_like(x.array, value, x.dtype if dtype is None else dtype))


@lowering("aten.fill.Scalar", "aten.fill.Tensor", layout="views")
def fill(x: View, value: Any) -> View:
    """A tensor of the shape and type of x with ``value``, a number or a tensor without axes, in every entry."""
    value = value.logical() if isinstance(value, View) else value
    return x.with_array(jnp.broadcast_to(jnp.asarray(value, x.dtype), x.array.shape))


@lowering("aten.new_full")
def new_full(x: jax.Array, size: Sequence[int], value: Any, *, dtype: Any = None) -> jax.Array:
    """A tensor of the shape ``size`` with ``value`` in every entry; dtype=None takes the type of x."""
    return jnp.full(tuple(size), value, x.dtype if dtype is None else dtype)


@lowering("aten.new_zeros", "aten.new_empty")
def new_zeros(x: jax.Array, size: Sequence[int], *, dtype: Any = None) -> jax.Array:
    """A tensor of zeros of the shape ``size``; dtype=None takes the type of x."""
    return new_full(x, size, 0, dtype=dtype)


@lowering("aten.new_ones")
def new_ones(x: jax.Array, size: Sequence[int], *, dtype: Any = None) -> jax.Array:
    """A tensor of ones of the shape ``size``; dtype=None takes the type of x."""
    return new_full(x, size, 1, dtype=dtype)


@lowering("aten.new_empty_strided")
def new_empty_strided(x: jax.Array, size: Sequence[int], stride: Sequence[int], *, dtype: Any = None) -> jax.Array:
    """A tensor of zeros of the shape ``size``, see ``new_zeros``; XLA decides how memory is strided."""
    del stride
    return new_zeros(x, size, dtype=dtype)


@lowering("aten.arange")
def arange(end: Any, *, dtype: Any = None) -> jax.Array:
    """The numbers 0, 1, ... below ``end``."""
    return arange_step(0, end, dtype=dtype)


@lowering("aten.arange.start", "aten.arange.start_step")
def arange_step(start: Any, end: Any, step: Any = 1, *, dtype: Any = None) -> jax.Array:
    """The numbers start, start + step, ... before end; computed in float64 unless all are integers, as in torch."""
    if all(isinstance(v, int) for v in (start, end, step)):
        return jnp.arange(start, end, step, dtype)
    length = int(np.ceil((end - start) / step))
    return jnp.asarray(start + step * np.arange(length), dtype)


def _interpolate(start: Any, end: Any, steps: int) -> Any:
    if isinstance(start, int | float) and isinstance(end, int | float):
        return np.linspace(start, end, steps)
    start, end = jnp.asarray(start, float), jnp.asarray(end, float)
    return start + (end - start) * (np.arange(steps) / max(steps - 1, 1))


_SPACES = ("default", "Tensor_Tensor", "Tensor_Scalar", "Scalar_Tensor")


@lowering(*(f"aten.linspace.{kind}" for kind in _SPACES))
def linspace(start: Any, end: Any, steps: int, *, dtype: Any = None) -> jax.Array:
    """``steps`` evenly spaced numbers from start to end, both included."""
    return jnp.asarray(_interpolate(start, end, steps), dtype)


@lowering(*(f"aten.logspace.{kind}" for kind in _SPACES))
def logspace(start: Any, end: Any, steps: int, base: float = 10.0, *, dtype: Any = None) -> jax.Array:
    """``steps`` powers of the base, whose exponents are evenly spaced from start to end, both included."""
    return jnp.asarray(base ** _interpolate(start, end, steps), dtype)


@lowering("aten.fft_fftfreq.default")
def fftfreq(n: int, d: float = 1.0, *, dtype: Any = None) -> jax.Array:
    """The frequencies of a Fourier transform of n samples at distances d, the negative ones behind the others."""
    return jnp.asarray(np.fft.fftfreq(n, d), dtype)


@lowering("aten.fft_rfftfreq.default")
def rfftfreq(n: int, d: float = 1.0, *, dtype: Any = None) -> jax.Array:
    """The frequencies of a Fourier transform of n real samples at distances d, from zero up."""
    return jnp.asarray(np.fft.rfftfreq(n, d), dtype)


def _window(length: int, periodic: bool, shape: Callable[[Any], Any], dtype: Any) -> jax.Array:
    """A window as ``shape`` of places from 0 to 1; a periodic one is cut from a window with an entry more."""
    steps = length - 1 + periodic
    values = np.ones(length) if length == 1 else shape(np.arange(length) / max(steps, 1))
    return jnp.asarray(values, dtype)


@lowering(
    "aten.hamming_window.default", *(f"aten.hamming_window.periodic{kind}" for kind in ("", "_alpha", "_alpha_beta"))
)
def hamming_window(
    length: int, periodic: bool = True, alpha: float = 0.54, beta: float = 0.46, *, dtype: Any = None
) -> jax.Array:
    """The window alpha - beta cos(2 pi x)."""
    return _window(length, periodic, lambda x: alpha - beta * np.cos(2 * np.pi * x), dtype)


@lowering("aten.blackman_window.default", "aten.blackman_window.periodic")
def blackman_window(length: int, periodic: bool = True, *, dtype: Any = None) -> jax.Array:
    """The window 0.42 - 0.5 cos(2 pi x) + 0.08 cos(4 pi x)."""
    return _window(length, periodic, lambda x: 0.42 - 0.5 * np.cos(2 * np.pi * x) + 0.08 * np.cos(4 * np.pi * x), dtype)


@lowering("aten.bartlett_window.default", "aten.bartlett_window.periodic")
def bartlett_window(length: int, periodic: bool = True, *, dtype: Any = None) -> jax.Array:
    """The window 1 - |2 x - 1|."""
    return _window(length, periodic, lambda x: 1 - np.abs(2 * x - 1), dtype)


@lowering("aten.kaiser_window.default", "aten.kaiser_window.periodic", "aten.kaiser_window.beta")
def kaiser_window(length: int, periodic: bool = True, beta: float = 12.0, *, dtype: Any = None) -> jax.Array:
    """The window I0(beta sqrt(1 - (2 x - 1)^2)) / I0(beta), with the modified Bessel function I0."""
    return _window(
        length, periodic, lambda x: np.i0(beta * np.sqrt(np.maximum(0, 1 - (2 * x - 1) ** 2))) / np.i0(beta), dtype
    )


@lowering("aten.eye", "aten.eye.m")
def eye(n: int, m: int | None = None, *, dtype: Any = None) -> jax.Array:
    """The matrix (n, m) with ones on its diagonal and zeros elsewhere; m=None means n."""
    return jnp.eye(n, m, dtype=dtype)


@lowering("aten.tril_indices")
def tril_indices(row: int, col: int, offset: int = 0, *, dtype: Any = None) -> jax.Array:
    """(2, count): rows and columns of the entries on and below diagonal ``offset`` of a matrix (row, col)."""
    return jnp.asarray(np.stack(np.tril_indices(row, offset, col)), dtype)


@lowering("aten.triu_indices")
def triu_indices(row: int, col: int, offset: int = 0, *, dtype: Any = None) -> jax.Array:
    """(2, count): rows and columns of the entries on and above diagonal ``offset`` of a matrix (row, col)."""
    return jnp.asarray(np.stack(np.triu_indices(row, offset, col)), dtype)
