"""Pooling over windows, computed with the channels last."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lla_jax.models.adapters import misuse
from lla_torch.program.operators import lowering
from lla_torch.program.ops.convolution import from_images, per_axis, to_images
from lla_torch.program.views import View


def _outputs(n: int, kernel: int, stride: int, padding: int, dilation: int, ceil_mode: bool) -> int:
    """torch's number of windows: in ceil mode the last one may stick out, but must start within the left-padded row."""
    room = n + 2 * padding - dilation * (kernel - 1) - 1
    if not ceil_mode:
        return room // stride + 1
    windows = -(-room // stride) + 1
    return windows - 1 if (windows - 1) * stride >= n + padding else windows


class _Windows:
    """Windows along every spatial axis of ``shape``: sizes, steps, dilation, number, and the padding they need."""

    def __init__(self, shape: Sequence[int], kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool):
        dims = len(shape)
        self.shape, self.kernel = tuple(shape), per_axis(kernel, dims)
        self.stride = per_axis(stride, dims) if stride not in ((), None) else self.kernel
        self.padding, self.dilation = per_axis(padding, dims), per_axis(dilation, dims)
        axes = list(zip(self.shape, self.kernel, self.stride, self.padding, self.dilation, strict=True))
        self.outputs = tuple(_outputs(*axis, ceil_mode) for axis in axes)
        if min(self.outputs, default=1) < 1:
            raise misuse(
                "kernel_size", self.kernel, f"no larger than the padded input, whose spatial shape is {self.shape}"
            )
        self.ends = []
        for (n, k, s, p, d), outputs in zip(axes, self.outputs, strict=True):
            exact = _outputs(n, k, s, p, d, False) == outputs
            self.ends.append((p, p if exact else (outputs - 1) * s + d * (k - 1) + 1 - n - p))

    def reduce(self, x: jax.Array, start: Any, operation: Any) -> jax.Array:
        """Reduce each window of x (N, *spatial, C) by ``operation``, from ``start``, as Flax's pooling does."""
        dilation = (1, *self.dilation, 1) if set(self.dilation) != {1} else None
        padding = ((0, 0), *self.ends, (0, 0))
        window, stride = (1, *self.kernel, 1), (1, *self.stride, 1)
        return lax.reduce_window(x, start, operation, window, stride, padding, window_dilation=dilation)

    def tables(self) -> list[np.ndarray]:
        """For each axis the positions in the input of all windows' entries, of shape (outputs, kernel).

        A position in the padding is replaced by the nearest one of its window in the input, which changes neither the
        largest entry nor the first of equal ones.
        """
        return [
            _table(*axis)
            for axis in zip(
                self.shape, self.outputs, self.kernel, self.stride, self.padding, self.dilation, strict=True
            )
        ]


def _table(n: int, outputs: int, kernel: int, stride: int, padding: int, dilation: int) -> np.ndarray:
    at = np.arange(outputs)[:, None] * stride - padding + np.arange(kernel) * dilation
    inside = (at >= 0) & (at < n)
    if not inside.all(-1).all() and not inside.any(-1).all():
        raise ValueError(
            f"padding: {padding} given, and a window of {kernel} with dilation {dilation} lies in it altogether; use "
            "less padding"
        )
    low = np.where(inside, at, n).min(-1, keepdims=True)
    high = np.where(inside, at, -1).max(-1, keepdims=True)
    return np.clip(at, low, high)


def _first_largest(x: jax.Array, tables: Sequence[np.ndarray]) -> tuple[jax.Array, jax.Array]:
    """(largest entry of every window, its flat position among the spatial axes); the first of equal entries."""
    dims, spatial = len(tables), x.shape[1:-1]
    for axis, table in enumerate(tables):  # ends as (N, o1, k1, o2, k2, ..., C)
        at = 1 + 2 * axis
        taken = jnp.take(x, table.reshape(-1), at, mode="clip")
        x = taken.reshape(*x.shape[:at], *table.shape, *x.shape[at + 1 :])
    kernel = tuple(table.shape[1] for table in tables)
    order = (0, *range(1, 2 * dims, 2), 2 * dims + 1, *range(2, 2 * dims + 1, 2))
    tiles = x.transpose(order).reshape(x.shape[0], *x.shape[1 : 2 * dims : 2], x.shape[-1], math.prod(kernel))
    first = jnp.argmax(lax.stop_gradient(tiles), -1)
    values = jnp.where(first[..., None] == jnp.arange(tiles.shape[-1]), tiles, 0).sum(-1, dtype=x.dtype)

    index, within = jnp.zeros((), first.dtype), jnp.unravel_index(first, kernel)
    for axis, (table, n) in enumerate(zip(tables, spatial, strict=True)):
        window = jnp.arange(table.shape[0]).reshape(-1, *(1,) * (dims - axis))
        index = index * n + jnp.asarray(table)[window, within[axis]]
    return values, index


def _largest(x: jax.Array, windows: _Windows) -> jax.Array:
    if set(windows.dilation) != {1}:  # JAX cannot transpose a dilated one
        return _first_largest(x, windows.tables())[0]
    lowest = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    return windows.reduce(x, lowest, lax.max)


def _max_pool(dims: int) -> None:
    @lowering(f"aten.max_pool{dims}d.default", layout="views")
    def max_pool(
        x: View, kernel_size: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
    ) -> View:
        images, batch = to_images(x, dims)
        windows = _Windows(images.shape[1:-1], kernel_size, stride, padding, dilation, ceil_mode)
        return from_images(_largest(images, windows), batch)

    @lowering(f"aten.max_pool{dims}d_with_indices.default", layout="views")
    def max_pool_with_indices(
        x: View, kernel_size: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, ceil_mode: bool = False
    ) -> tuple[View, View]:
        images, batch = to_images(x, dims)
        windows = _Windows(images.shape[1:-1], kernel_size, stride, padding, dilation, ceil_mode)
        indices = _first_largest(lax.stop_gradient(images), windows.tables())[1]
        return from_images(_largest(images, windows), batch), from_images(indices, batch)

    @lowering(f"aten.adaptive_max_pool{dims}d.default", layout="views")
    def adaptive_max_pool(x: View, output_size: Any) -> tuple[View, View]:
        images, batch = to_images(x, dims)
        spatial, sizes = images.shape[1:-1], per_axis(output_size, dims)
        tables = [_adaptive_table(n, size) for n, size in zip(spatial, sizes, strict=True)]
        values, indices = _first_largest(images, tables)
        if not any(n % size for n, size in zip(spatial, sizes, strict=True)):
            values = _largest(images, _equal_windows(spatial, sizes))
        return from_images(values, batch), from_images(indices, batch)


def _bounds(n: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """(starts, ends) of torch's ``size`` windows, which overlap where n is no multiple of ``size``."""
    at = np.arange(size)
    return at * n // size, -(-(at + 1) * n // size)


def _adaptive_table(n: int, size: int) -> np.ndarray:
    start, end = _bounds(n, size)
    return np.minimum(start[:, None] + np.arange((end - start).max()), end[:, None] - 1)


def _equal_windows(spatial: Sequence[int], sizes: Sequence[int]) -> _Windows:
    return _Windows(spatial, tuple(n // size for n, size in zip(spatial, sizes, strict=True)), (), 0, 1, False)


def _avg_pool(dims: int) -> None:
    @lowering(f"aten.avg_pool{dims}d.default", layout="views")
    def avg_pool(
        x: View,
        kernel_size: Any,
        stride: Any = (),
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> View:
        images, batch = to_images(x, dims)
        windows = _Windows(images.shape[1:-1], kernel_size, stride, padding, 1, ceil_mode)
        divisor = _divisor(windows, count_include_pad) if divisor_override is None else divisor_override
        return from_images(_divide(_sums(images, windows), divisor), batch)

    names = [f"aten.adaptive_avg_pool{dims}d.default", f"aten._adaptive_avg_pool{dims}d.default"]

    @lowering(*names[: 1 if dims == 1 else 2], layout="views")
    def adaptive_avg_pool(x: View, output_size: Any) -> View:
        images, batch = to_images(x, dims)
        return from_images(_adaptive_mean(images, per_axis(output_size, dims)), batch)


def _sums(x: jax.Array, windows: _Windows) -> jax.Array:
    return windows.reduce(x, 0.0 if jnp.issubdtype(x.dtype, jnp.floating) else 0, lax.add)


def _divide(sums: jax.Array, divisor: Any) -> jax.Array:
    return sums / (divisor if isinstance(divisor, int) else jnp.asarray(divisor, sums.dtype))


def _divisor(windows: _Windows, count_include_pad: bool) -> int | np.ndarray:
    """The number of entries that a window counts; entries beyond the padding, as in ceil mode, never count."""
    result = np.ones((1,) * (len(windows.shape) + 1), int)  # (*outputs, 1)
    axes = zip(windows.shape, windows.outputs, windows.kernel, windows.stride, windows.padding, strict=True)
    for axis, (n, outputs, k, s, p) in enumerate(axes):
        start = np.arange(outputs) * s - p
        counted = np.minimum(start + k, n + p) - start
        if not count_include_pad:
            counted = np.minimum(start + k, n) - np.maximum(start, 0)
        result = result * counted.reshape([-1 if a == axis else 1 for a in range(result.ndim)])
    return int(result.flat[0]) if (result == result.flat[0]).all() else result


def _adaptive_mean(x: jax.Array, sizes: Sequence[int]) -> jax.Array:
    spatial = x.shape[1:-1]
    if set(sizes) == {1}:
        return x.mean(tuple(range(1, x.ndim - 1)), keepdims=True)
    even = [size if n % size == 0 else n for n, size in zip(spatial, sizes, strict=True)]
    if even != list(spatial):
        windows = _equal_windows(spatial, even)
        x = _divide(_sums(x, windows), math.prod(windows.kernel))
    for axis, (n, size) in enumerate(zip(x.shape[1:-1], sizes, strict=True), 1):
        if size == n:
            continue
        if size % n == 0:  # every window is one entry
            x = jnp.repeat(x, size // n, axis, total_repeat_length=size)
            continue
        (start, end), at = _bounds(n, size), np.arange(n)
        weights = ((at >= start[:, None]) & (at < end[:, None])) / (end - start)[:, None]
        means = jnp.tensordot(x, jnp.asarray(weights, x.dtype), ((axis,), (1,)), precision=lax.Precision.HIGHEST)
        x = jnp.moveaxis(means, -1, axis)
    return x


for _dims in (1, 2, 3):
    _max_pool(_dims)
    _avg_pool(_dims)
