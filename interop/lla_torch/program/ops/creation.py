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
