"""Resizing, sampling, padding and rearranging of images, with torch's formulas for coordinates.

We differ from torch in one derivative and one value. Where a scale factor leaves all sizes as they are, torch's
backward pass of bicubic upsampling passes the gradient through, though its forward pass interpolates; ours is the
derivative of the forward pass. torch's antialiased resizing to width 1 and another height repeats the first row; ours
resizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lla_torch.program.operators import lowering
from lla_torch.program.ops.convolution import from_images, per_axis, to_images
from lla_torch.program.views import View, as_view, plain

# --- upsampling: one matrix or table of positions per axis


def _sizes(
    spatial: Sequence[int], output_size: Sequence[int] | None, scales: Sequence[float | None] | None
) -> list[tuple[int, int, float | None]]:
    """(input size, output size, scale factor or None) for each axis, from the output size or the scale factors."""
    if (output_size is None) == (scales is None):
        raise ValueError(
            f"output_size, scale_factors: {output_size}, {scales} given; give exactly one of the two, the other as None"
        )
    if output_size is not None:
        return [(n, size, None) for n, size in zip(spatial, per_axis(output_size, len(spatial)), strict=True)]
    factors: Any = per_axis(scales, len(spatial))  # type: ignore[arg-type]
    return [(n, int(n * factor), factor) for n, factor in zip(spatial, factors, strict=True)]


def _source_positions(n: int, size: int, scale: float | None, align_corners: bool) -> np.ndarray:
    """The places of output positions in the input, by the scale factor if there is one, else by the ratio of sizes."""
    at = np.arange(size)
    if align_corners:
        return at * ((n - 1) / (size - 1) if size > 1 else 0.0)
    return (at + 0.5) * (1 / scale if scale else n / size) - 0.5


def _linear_matrix(n: int, size: int, scale: float | None, align_corners: bool) -> np.ndarray:
    at = np.arange(n, dtype=float) if n == size else np.maximum(_source_positions(n, size, scale, align_corners), 0)
    low = np.minimum(at.astype(int), n - 1)
    part = np.clip(at - low, 0, 1)
    return _matrix(n, [low, np.minimum(low + 1, n - 1)], [1 - part, part])


def _cubic_matrix(n: int, size: int, scale: float | None, align_corners: bool) -> np.ndarray:
    at = _source_positions(n, size, scale, align_corners)
    low = np.minimum(np.floor(at).astype(int), n - 1)
    taps = [np.clip(low + i, 0, n - 1) for i in (-1, 0, 1, 2)]
    return _matrix(n, taps, _cubic_weights(np.clip(at - low, 0, 1)))


def _cubic_weights(t: Any) -> list[Any]:
    """Weights of the entries at -1, 0, 1, 2 for a position t in [0, 1]: Keys' kernel with a = -0.75."""
    a = -0.75
    near = lambda x: ((a + 2) * x - (a + 3)) * x * x + 1  # noqa: E731
    far = lambda x: ((a * x - 5 * a) * x + 8 * a) * x - 4 * a  # noqa: E731
    return [far(t + 1), near(t), near(1 - t), far(2 - t)]


def _antialiased_matrix(width: int, n: int, size: int, scale: float | None, align_corners: bool) -> np.ndarray:
    """Rows of the hat (width 2) or of Keys' kernel with a = -0.5 (width 4), stretched where the image shrinks."""
    step = 1 / scale if scale else n / size
    if align_corners:
        step = (n - 1) / (size - 1) if size > 1 else 0.0
    centre, stretch = step * (np.arange(size) + 0.5), max(step, 1.0)
    low = np.maximum((centre - width / 2 * stretch + 0.5).astype(int), 0)
    high = np.minimum((centre + width / 2 * stretch + 0.5).astype(int), n)
    at = np.arange(n)
    x = np.abs((at + 0.5 - centre[:, None]) / stretch)
    keys = np.where(x < 1, (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2)
    weights = np.where(x < width / 2, 1 - x if width == 2 else keys, 0.0)
    weights *= (at >= low[:, None]) & (at < high[:, None])
    return weights / weights.sum(1, keepdims=True)


def _matrix(n: int, taps: Sequence[np.ndarray], weights: Sequence[np.ndarray]) -> np.ndarray:
    """(outputs, n): row i has weights[k][i] at taps[k][i]; equal taps add up."""
    matrix = np.zeros((len(taps[0]), n))
    for tap, weight in zip(taps, weights, strict=True):
        np.add.at(matrix, (np.arange(len(tap)), tap), weight)
    return matrix


def _nearest_table(n: int, size: int, scale: float | None, exact: bool, image: bool, dtype: Any) -> np.ndarray:
    """The input position of each output position, for nearest upsampling.

    Positions may be integers up to rounding, so they are rounded as in torch's kernels: that for images computes in
    float32 and has two exceptions, those for one and three axes compute in the data's type.
    """
    if image and not exact and size in (n, 2 * n):  # whatever the scale factor
        return np.arange(size) // (size // n)
    at, wide = np.arange(size), np.float64 if dtype == np.float64 and not image else np.float32
    step = np.float64(wide(1 / scale) if scale else wide(n) / wide(size))
    source = (at + (0.5 if exact else 0)) * step
    if exact and not image:
        source = np.maximum((source - 0.5).astype(wide), 0) + np.float64(0.5)
    return np.minimum(np.floor(source.astype(np.float32)).astype(int), n - 1)


def _through_matrices(x: jax.Array, matrices: Sequence[np.ndarray]) -> jax.Array:
    spatial = "defg"[: len(matrices)]
    inputs = ",".join(f"{out}{axis}" for out, axis in zip(spatial.upper(), spatial, strict=True))
    arrays = [jnp.asarray(m, x.dtype) for m in matrices]
    formula = f"n{spatial}c,{inputs}->n{spatial.upper()}c"
    return jnp.einsum(formula, x, *arrays, precision=lax.Precision.HIGHEST, optimize="optimal")


def _through_tables(x: jax.Array, tables: Sequence[np.ndarray]) -> jax.Array:
    for axis, table in enumerate(tables, 1):
        n, size = x.shape[axis], len(table)
        if size % n == 0 and np.array_equal(table, np.arange(size) // (size // n)):
            x = jnp.repeat(x, size // n, axis, total_repeat_length=size)  # whose derivative is a sum, not a scatter
        else:
            x = jnp.take(x, table, axis, mode="clip")
    return x


def _upsample(name: str, dims: int, make: Callable[..., np.ndarray]) -> None:
    @lowering(f"aten.{name}.vec", layout="views")
    def upsample(input: View, output_size: Any, align_corners: bool, scale_factors: Any) -> View:
        images, batch = to_images(input, dims)
        sizes = _sizes(images.shape[1:-1], output_size, scale_factors)
        return from_images(_through_matrices(images, [make(*each, align_corners) for each in sizes]), batch)

    @lowering(f"aten.{name}.default", layout="views")
    def upsample_default(
        x: View, output_size: Any, align_corners: bool, *scales: float | None, **named: float | None
    ) -> View:
        images, batch = to_images(x, dims)
        sizes = _sizes_with_scales(images.shape[1:-1], output_size, scales, named)
        return from_images(_through_matrices(images, [make(*each, align_corners) for each in sizes]), batch)


def _upsample_nearest(name: str, dims: int, exact: bool) -> None:
    def resize(x: View, sizes_of: Callable[[tuple[int, ...]], list[tuple[int, int, float | None]]]) -> View:
        images, batch = to_images(x, dims)
        tables = [_nearest_table(*each, exact, dims == 2, images.dtype) for each in sizes_of(images.shape[1:-1])]
        return from_images(_through_tables(images, tables), batch)

    @lowering(f"aten.{name}{dims}d.vec", layout="views")
    def upsample(input: View, output_size: Any, scale_factors: Any) -> View:
        return resize(input, lambda spatial: _sizes(spatial, output_size, scale_factors))

    @lowering(f"aten.{name}{dims}d.default", layout="views")
    def upsample_default(x: View, output_size: Any, *scales: float | None, **named: float | None) -> View:
        return resize(x, lambda spatial: _sizes_with_scales(spatial, output_size, scales, named))


SCALE_NAMES = {1: ("scales",), 2: ("scales_h", "scales_w"), 3: ("scales_d", "scales_h", "scales_w")}


def _sizes_with_scales(
    spatial: Sequence[int], output_size: Sequence[int], scales: Sequence[float | None], named: dict[str, float | None]
) -> list[tuple[int, int, float | None]]:
    """``_sizes`` for the overloads with sizes and scale factors, which only affect the coordinates."""
    dims = len(spatial)
    factors = dict(zip(SCALE_NAMES[dims], scales)) | named
    sizes = per_axis(output_size, dims)
    return [(n, size, factors.get(name)) for n, size, name in zip(spatial, sizes, SCALE_NAMES[dims], strict=True)]


for _dims, _kind in ((1, "linear"), (2, "bilinear"), (3, "trilinear")):
    _upsample(f"upsample_{_kind}{_dims}d", _dims, _linear_matrix)
_upsample("upsample_bicubic2d", 2, _cubic_matrix)
_upsample("_upsample_bilinear2d_aa", 2, partial(_antialiased_matrix, 2))
_upsample("_upsample_bicubic2d_aa", 2, partial(_antialiased_matrix, 4))
for _dims in (1, 2, 3):
    _upsample_nearest("upsample_nearest", _dims, False)
    _upsample_nearest("_upsample_nearest_exact", _dims, True)


# --- sampling at given points

BILINEAR, NEAREST, BICUBIC = range(3)
ZEROS, BORDER, REFLECTION = range(3)


@lowering("aten.grid_sampler_2d.default", "aten.grid_sampler_3d.default", "aten.grid_sampler.default", layout="views")
def grid_sampler(input: View, grid: View, interpolation_mode: int, padding_mode: int, align_corners: bool) -> View:
    """torch.nn.functional.grid_sample: the entries of ``input`` interpolated at the points ``grid``.

    Codes of ``interpolation_mode``: 0 bilinear, 1 nearest, 2 bicubic (images only). Codes of ``padding_mode``: 0 zeros,
    1 border, 2 reflection.
    """
    dims = input.ndim - 2
    if interpolation_mode == BICUBIC and dims != 2:
        raise ValueError(
            f"input: shape {input.shape} given; it must be images (N, C, H, W) for a bicubic grid_sample; use bilinear"
        )
    images, points = to_images(input, dims)[0], as_view(grid).logical()
    taps: list[Any] = []
    weights: list[Any] = []
    for axis, n in enumerate(images.shape[1:-1]):
        at = _to_pixels(points[..., dims - 1 - axis], n, align_corners)  # points have the last axis first
        positions, factors = _taps(at, n, interpolation_mode, padding_mode, align_corners)
        shape = (-1, *(len(positions) if a == axis else 1 for a in range(dims)), *points.shape[1:-1])
        taps.append(jnp.stack(positions, 1).reshape(shape))
        weights.append(jnp.stack(factors, 1).reshape(shape))
    entries = _entries(images, taps) * math.prod(weights[1:], start=weights[0])[..., None]
    return from_images(entries.sum(tuple(range(1, dims + 1))), True)


def _taps(
    at: jax.Array, n: int, interpolation: int, padding: int, align_corners: bool
) -> tuple[list[jax.Array], list[jax.Array]]:
    """(positions, weights) of the entries whose weighted sum is the value at ``at``, along one axis."""

    def inside(at: jax.Array) -> jax.Array:
        if padding == ZEROS:
            return at
        if padding == REFLECTION:
            at = _reflect(at, n, align_corners)
        return lax.clamp(jnp.zeros((), at.dtype), at, jnp.asarray(n - 1, at.dtype))

    if interpolation == BICUBIC:
        low = jnp.floor(at)
        return [inside(low + i) for i in (-1, 0, 1, 2)], _cubic_weights(at - low)
    at = inside(at)
    if interpolation == NEAREST:
        return [jnp.round(at)], [jnp.ones_like(at)]
    low = jnp.floor(at)
    return [low, low + 1], [1 - (at - low), at - low]


def _to_pixels(at: jax.Array, n: int, align_corners: bool) -> jax.Array:
    return (at + 1) / 2 * (n - 1) if align_corners else ((at + 1) * n - 1) / 2


def _reflect(at: jax.Array, n: int, align_corners: bool) -> jax.Array:
    """Positions reflected at the first and last entry, or with ``align_corners=False`` at their outer edges."""
    low, span = (0.0, n - 1) if align_corners else (-0.5, n)
    if span == 0:
        return jnp.zeros_like(at)
    away = jnp.where(at < low, low - at, at - low)
    flips, rest = lax.stop_gradient(jnp.floor(away / span)), lax.rem(away, jnp.asarray(span, at.dtype))
    return jnp.where(flips % 2 == 0, rest + low, span - rest + low)


def _entries(images: jax.Array, positions: Sequence[jax.Array]) -> jax.Array:
    """The entries images[n, positions[0][n, ...], positions[1][n, ...], ...], and 0 at positions outside."""
    positions = jnp.broadcast_arrays(*positions)
    inside = [(at >= 0) & (at < n) for at, n in zip(positions, images.shape[1:-1], strict=True)]
    kept = math.prod(inside[1:], start=inside[0])
    indices = [jnp.where(kept, at, 0).astype(np.int32) for at in positions]
    return jnp.where(kept[..., None], jax.vmap(lambda image, *at: image[at])(images, *indices), 0)


@lowering("aten.affine_grid_generator.default")
def affine_grid_generator(theta: jax.Array, size: Sequence[int], align_corners: bool) -> jax.Array:
    """The points of a grid on [-1, 1]^dims after affine maps, (N, *spatial, dims).

    Args:
      theta: the maps, (N, dims, dims + 1).
      size: (N, C, *spatial).
      align_corners: whether the outer points lie at -1 and 1; else the outer edges of their pixels do.
    """
    axes = [np.linspace(-1, 1, n) if n > 1 else np.zeros(1) for n in size[2:]]
    if not align_corners:
        axes = [axis * (n - 1) / n for axis, n in zip(axes, size[2:], strict=True)]
    *points, last = np.meshgrid(*axes, indexing="ij")
    base = jnp.asarray(np.stack([last, *points[::-1], np.ones_like(last)], -1), theta.dtype)
    return jnp.einsum("...k,njk->n...j", base, theta, precision=lax.Precision.HIGHEST)


# --- rearranging channels and pixels


def _on_images(x: View, rearrange: Callable[[jax.Array], jax.Array]) -> View:
    """``rearrange`` on arrays (N, H, W, C), for any number of leading axes of the tensor."""
    if x.ndim in (3, 4):
        images, batch = to_images(x, 2)
        return from_images(rearrange(images), batch)
    flat = plain(x.logical().reshape(-1, *x.shape[-3:]))
    result = from_images(rearrange(to_images(flat, 2)[0]), True).logical()
    return plain(result.reshape(*x.shape[:-3], *result.shape[1:]))


@lowering("aten.pixel_shuffle.default", layout="views")
def pixel_shuffle(x: View, upscale_factor: int) -> View:
    """x (..., C r^2, H, W) rearranged to (..., C, H r, W r), r the factor."""

    def distribute(images: jax.Array) -> jax.Array:
        n, h, w, c = images.shape
        r = upscale_factor
        tiles = images.reshape(n, h, w, c // r**2, r, r).transpose(0, 1, 4, 2, 5, 3)
        return tiles.reshape(n, h * r, w * r, c // r**2)

    return _on_images(x, distribute)


@lowering("aten.pixel_unshuffle.default", layout="views")
def pixel_unshuffle(x: View, downscale_factor: int) -> View:
    """x (..., C, H r, W r) rearranged to (..., C r^2, H, W), r the factor."""

    def gather(images: jax.Array) -> jax.Array:
        n, h, w, c = images.shape
        r = downscale_factor
        tiles = images.reshape(n, h // r, r, w // r, r, c).transpose(0, 1, 3, 5, 2, 4)
        return tiles.reshape(n, h // r, w // r, c * r**2)

    return _on_images(x, gather)


@lowering("aten.channel_shuffle.default", "aten.native_channel_shuffle.default", layout="views")
def channel_shuffle(x: View, groups: int) -> View:
    """x with its channels, split as (groups, C / groups), reordered to (C / groups, groups)."""
    images, batch = to_images(x, x.ndim - 2)
    split = images.reshape(*images.shape[:-1], groups, images.shape[-1] // groups)
    return from_images(jnp.swapaxes(split, -1, -2).reshape(images.shape), batch)


# --- padding


def _pad_widths(x: View, pad: Sequence[int]) -> tuple[View, list[tuple[int, int]]]:
    """(x without merged axes, (before, after) for every axis of its array); ``pad`` lists the last axis first."""
    x = plain(x.logical()) if x.is_merged or x.split is not None else x
    ends = [(0, 0)] * x.ndim
    for i in range(len(pad) // 2):
        ends[x.order[x.ndim - 1 - i]] = (pad[2 * i], pad[2 * i + 1])
    return x, ends


def _extend(array: jax.Array, ends: Sequence[tuple[int, int]], mode: str) -> jax.Array:
    return jnp.pad(array, [(max(low, 0), max(high, 0)) for low, high in ends], mode=mode)


def _crop(array: jax.Array, ends: Sequence[tuple[int, int]]) -> jax.Array:
    lows, highs = ([max(-end, 0) for end in side] for side in zip(*ends, strict=True))
    return lax.slice(array, lows, [n - high for n, high in zip(array.shape, highs, strict=True)])


@lowering(*(f"aten.reflection_pad{d}d.default" for d in (1, 2, 3)), layout="views")
def reflection_pad(x: View, padding: Sequence[int]) -> View:
    """x padded by its mirror image, without a second copy of the edge; negative sizes cut off."""
    x, ends = _pad_widths(x, padding)
    return x.with_array(_crop(_extend(x.array, ends, "reflect"), ends))


@lowering(*(f"aten.replication_pad{d}d.default" for d in (1, 2, 3)), layout="views")
def replication_pad(x: View, padding: Sequence[int]) -> View:
    """x padded by the entries at its edge; negative sizes cut off."""
    x, ends = _pad_widths(x, padding)
    return x.with_array(_crop(_extend(x.array, ends, "edge"), ends))


@lowering("aten._pad_circular.default", layout="views")
def pad_circular(x: View, pad: Sequence[int]) -> View:
    """x padded by its entries at the other end; negative sizes cut off, before the padding is made."""
    x, ends = _pad_widths(x, pad)
    return x.with_array(_extend(_crop(x.array, ends), ends, "wrap"))


# --- patches


def _patches(images: jax.Array, kernel: Any, dilation: Any, padding: Any, stride: Any) -> jax.Array:
    """The windows of images (N, H, W, C), padded by zeros, as (N, positions, C * window)."""
    kernel, dilation, padding, stride = (per_axis(v, 2) for v in (kernel, dilation, padding, stride))
    zero = jnp.zeros((), images.dtype)
    x = lax.pad(images, zero, [(0, 0, 0), *((p, p, 0) for p in padding), (0, 0, 0)])
    sizes = zip(x.shape[1:3], kernel, dilation, stride, strict=True)
    outputs = [(n - d * (k - 1) - 1) // s + 1 for n, k, d, s in sizes]

    def window_entries(*window: int) -> jax.Array:
        starts = [i * d for i, d in zip(window, dilation, strict=True)]
        ends = [start + (n - 1) * s + 1 for start, n, s in zip(starts, outputs, stride, strict=True)]
        return lax.slice(x, (0, *starts, 0), (x.shape[0], *ends, x.shape[3]), (1, *stride, 1))

    tiles = jnp.stack([window_entries(*window) for window in np.ndindex(*kernel)], -1)
    return tiles.reshape(x.shape[0], math.prod(outputs), -1)


def _columns(array: jax.Array, batch: bool) -> View:
    return View(array, (0, 2, 1)) if batch else View(array[0], (1, 0))


@lowering("aten.im2col.default", layout="views")
def im2col(x: View, kernel_size: Any, dilation: Any, padding: Any, stride: Any) -> View:
    """torch.nn.functional.unfold: the windows of images as columns, (N, C * window, positions)."""
    images, batch = to_images(x, 2)
    return _columns(_patches(images, kernel_size, dilation, padding, stride), batch)


@lowering("aten.col2im.default", layout="views")
def col2im(x: View, output_size: Any, kernel_size: Any, dilation: Any, padding: Any, stride: Any) -> View:
    """torch.nn.functional.fold: columns summed into images at their windows, the transpose of ``im2col``."""
    columns = x.physical((0, 2, 1)) if x.ndim == 3 else x.physical((1, 0))[None]
    channels = columns.shape[-1] // math.prod(per_axis(kernel_size, 2))
    shape = jax.ShapeDtypeStruct((columns.shape[0], *per_axis(output_size, 2), channels), columns.dtype)
    fold = jax.linear_transpose(lambda images: _patches(images, kernel_size, dilation, padding, stride), shape)
    return from_images(fold(columns)[0], x.ndim == 3)
