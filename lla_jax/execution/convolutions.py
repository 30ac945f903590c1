"""Forms of one convolution that are fast on a CPU: channels last, several pixels as channels, patches times kernel.

XLA has two kinds of convolution for a CPU. The faster one takes images and kernels with their channels last, and only
those with more than ``FEW`` channels on one side; the others are done with a fraction of the operations per second.
The others get the form that it takes: k neighbouring pixels of the result are computed as k times as many channels of
one pixel, by a kernel that holds k copies of the given one, each shifted by a pixel. This is more work, by the factor
(width of the kernel + k - 1) / (width of the kernel), and takes less time all the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FEW = 16  # channels, on both sides, up to which XLA takes its slower convolution
WHOLE = 64  # with an odd number of input channels, the faster one is slow unless this divides the output channels
MOST_PIXELS = 8  # computed as channels of one
LEAST_OPERATIONS = 2**20  # of a convolution that is worth another form
PATCH_MOST = 75  # entries of the largest patch, such as 5 x 5 x 3: for larger ones XLA's convolution is as fast


def channels_last(eqn: Any, images: Any, kernel: Any, pixels: int = 1) -> Any:
    """The result of a convolution, done with its channels on the last axes; differentiable like the convolution.

    With ``pixels``, as many neighbouring pixels are computed as channels of one, which is equal to rounding. Where a
    value is infinite or NaN, its neighbours may be NaN then: they multiply it by a zero of a shifted kernel.
    """
    numbers, axes = eqn.params["dimension_numbers"], range(1, images.ndim - 1)
    last = jax.lax.ConvDimensionNumbers(
        (0, images.ndim - 1, *axes),
        (images.ndim - 1, images.ndim - 2, *(i - 1 for i in axes)),
        (0, images.ndim - 1, *axes),
    )
    params = eqn.params | {"dimension_numbers": last}
    with eqn.ctx.manager:
        images = jnp.transpose(images, (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1]))
        kernel = jnp.transpose(kernel, (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0]))
        if pixels > 1:
            if _grows(eqn):
                edges = [(0, 0, 0), *((low, high, 0) for low, high in params["padding"]), (0, 0, 0)]
                images, params["padding"] = jax.lax.pad(images, jnp.zeros((), images.dtype), edges), ((0, 0), (0, 0))
            shifted = [jnp.pad(kernel, ((0, 0), (i, pixels - 1 - i), (0, 0), (0, 0))) for i in range(pixels)]
            kernel, params["window_strides"] = jnp.concatenate(shifted, -1), (params["window_strides"][0], pixels)
        product = eqn.primitive.bind(images, kernel, **params)
        if pixels > 1:
            product = product.reshape(*product.shape[:2], -1, product.shape[-1] // pixels)
    return _from_channels_last(product, numbers.out_spec)


def channels_elsewhere(eqn: Any) -> bool:
    """Whether an equation is a convolution that gets faster by putting its channels last.

    XLA does so by itself on a CPU, except inside loops. A convolution that has them last, has one filter set per
    channel (depthwise), or runs over volumes does not.
    """
    if eqn.primitive.name != "conv_general_dilated" or eqn.params.get("out_sharding") is not None:
        return False
    p, last = eqn.params, eqn.invars[0].aval.ndim - 1
    numbers, kernel = p["dimension_numbers"], eqn.invars[1].aval.shape
    if p["batch_group_count"] > 1 or last > 3 or (p["feature_group_count"] > 1 and kernel[numbers.rhs_spec[1]] == 1):
        return False
    return (numbers.lhs_spec[1], numbers.out_spec[1], numbers.rhs_spec[:2]) != (last, last, (last, last - 1))


def pixels_to_join(eqn: Any) -> int:
    """How many neighbouring pixels of the result should be computed as channels of one; 1 where it does not pay.

    It depends on the shapes alone, so that a computation that goes on elsewhere is the same to the bit.
    """
    if eqn.primitive.name != "conv_general_dilated":
        return 1
    p, (images, kernel), result = eqn.params, (x.aval for x in eqn.invars), eqn.outvars[0].aval
    numbers = p["dimension_numbers"]
    if images.ndim != 4 or p.get("out_sharding") is not None or {images.dtype, kernel.dtype, result.dtype} != {_SINGLE}:
        return 1
    if p["feature_group_count"] * p["batch_group_count"] > 1 or {*p["lhs_dilation"], *p["rhs_dilation"]} != {1}:
        return 1
    outside, inside, *size = (kernel.shape[i] for i in numbers.rhs_spec)
    into, out = _sizes(eqn)
    work = 2 * result.size * inside * math.prod(size)
    if max(inside, outside) > FEW or p["window_strides"][1] > 1 or size[1] < 3 or work < LEAST_OPERATIONS:
        return 1
    if _grows(eqn):
        into = [n + low + high for n, (low, high) in zip(into, p["padding"], strict=True)]
    most, even = 1, inside == 1 or inside % 2 == 0
    for pixels in (2, 4, MOST_PIXELS):
        shape = (size[0], size[1] + pixels - 1, out[0], out[1] // pixels)
        if out[1] % pixels or any(n > into[i % 2] for i, n in enumerate(shape)):
            break
        if outside * pixels > FEW if even else outside * pixels % WHOLE == 0:
            return pixels
        most = pixels if even else 1  # the slower routine gains too
    return most


_SINGLE = np.dtype(np.float32)


def _sizes(eqn: Any) -> tuple[list[int], list[int]]:
    """Rows and columns of the images, and of the result."""
    numbers = eqn.params["dimension_numbers"]
    images, result = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    return [images[i] for i in numbers.lhs_spec[2:]], [result[i] for i in numbers.out_spec[2:]]


def _grows(eqn: Any) -> bool:
    """Whether the result is larger than the images: XLA's faster routine takes it if the padding is done before."""
    return any(out > into for into, out in zip(*_sizes(eqn), strict=True))


def _from_channels_last(x: Any, spec: Sequence[int]) -> Any:
    """Transpose an array (examples, *space, channels); ``spec`` has the new axes of examples, channels and *space."""
    return jnp.transpose(x, np.argsort((spec[0], *spec[2:], spec[1])).tolist())


# --- patches times kernel


def is_patchable(eqn: Any) -> bool:
    """Whether an equation is a convolution that ``patch_product`` can do, and whose patches are small."""
    if eqn.primitive.name != "conv_general_dilated":
        return False
    p, kernel = eqn.params, eqn.invars[1].aval.shape
    spec = p["dimension_numbers"].rhs_spec  # (output, input, *spatial) axes of the kernel
    plain = p["feature_group_count"] == p["batch_group_count"] == 1 and set(p["lhs_dilation"]) == {1}
    return plain and len(spec) == 4 and np.prod(kernel) // kernel[spec[0]] <= PATCH_MOST


def patch_product(eqn: Any, images: Any, kernel: Any) -> Any:
    """A convolution for which ``is_patchable``, as the product of the patches of the images and the kernel."""
    p = eqn.params
    numbers, strides, dilation = p["dimension_numbers"], p["window_strides"], p["rhs_dilation"]
    x = jnp.transpose(images, (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1]))
    w = jnp.transpose(kernel, (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0]))
    zero = jnp.zeros((), x.dtype)
    x = jax.lax.pad(x, zero, ((0, 0, 0), *((low, high, 0) for low, high in p["padding"]), (0, 0, 0)))
    height, width = w.shape[:2]
    out = [(n - d * (k - 1) - 1) // s + 1 for n, d, k, s in zip(x.shape[1:3], dilation, w.shape[:2], strides)]

    def window(i: int, j: int) -> Any:
        starts = (i * dilation[0], j * dilation[1])
        ends = [a + (n - 1) * s + 1 for a, n, s in zip(starts, out, strides)]
        return jax.lax.slice(x, (0, *starts, 0), (x.shape[0], *ends, x.shape[3]), (1, *strides, 1))

    patches = jnp.concatenate([window(i, j) for i in range(height) for j in range(width)], -1)
    product = jax.lax.dot_general(
        patches,
        w.reshape(-1, w.shape[3]),
        (((3,), (0,)), ((), ())),
        precision=p["precision"],
        preferred_element_type=p["preferred_element_type"],
    )  # (examples, height, width, filters)
    return _from_channels_last(product, numbers.out_spec)
