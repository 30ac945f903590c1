"""Convolutions, computed with the channels last and the kernel as (*window, in, out), as in Flax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax import lax

from lla_jax.models.adapters import misuse
from lla_torch.program.operators import lowering
from lla_torch.program.views import View, as_view, channels_last

LETTERS = {1: "W", 2: "HW", 3: "DHW"}


def per_axis(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """``dims`` numbers, one per spatial axis, from as many or from a single one, which stands for all axes."""
    values = tuple(value) if isinstance(value, Sequence) else (value,)
    return values * dims if len(values) == 1 else values


def to_images(x: View, dims: int) -> tuple[jax.Array, bool]:
    """The array (N, *spatial, C) of an image batch or a single image, and whether it is a batch."""
    if x.ndim == dims + 2:
        return x.physical(channels_last(dims + 2)), True
    if x.ndim == dims + 1:
        return x.physical((dims, *range(dims)))[None], False
    raise ValueError(
        f"input: shape {x.shape} given; it must be (N, C, *spatial) or (C, *spatial) with {dims} spatial axes; reshape "
        "it"
    )


def from_images(array: jax.Array, batch: bool) -> View:
    """The tensor (N, C, *spatial), or (C, *spatial) for a single image, over an array (N, *spatial, C)."""
    if batch:
        return View(array, channels_last(array.ndim))
    return View(array[0], (array.ndim - 2, *range(array.ndim - 2)))


def kernel_order(ndim: int) -> tuple[int, ...]:
    """The ``order`` of a view (a, b, *window) over an array (*window, b, a), for ``ndim`` axes."""
    return (ndim - 1, ndim - 2, *range(ndim - 2))


def _convolve(
    x: View,
    weight: View,
    bias: View | None,
    stride: Any,
    padding: Sequence[tuple[int, int]],
    dilation: Any,
    groups: int,
) -> View:
    dims = weight.ndim - 2
    images, batch = to_images(x, dims)
    letters = LETTERS[dims]
    y = lax.conv_general_dilated(
        images,
        weight.physical(kernel_order(weight.ndim)),
        per_axis(stride, dims),
        padding,
        rhs_dilation=per_axis(dilation, dims),
        dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
        feature_group_count=groups,
    )
    return from_images(_add_bias(y, bias), batch)


def _add_bias(y: jax.Array, bias: View | None) -> jax.Array:
    return y if bias is None else y + as_view(bias).logical()


def _transposed_convolution(
    x: View,
    weight: View,
    bias: View | None,
    stride: Any,
    padding: Any,
    output_padding: Any,
    dilation: Any,
    groups: int,
) -> View:
    dims = weight.ndim - 2
    images, batch = to_images(x, dims)
    letters, dilation = LETTERS[dims], per_axis(dilation, dims)
    kernel = lax.rev(weight.physical(kernel_order(weight.ndim)), tuple(range(dims)))  # (*window, out / groups, in)
    spec = f"{letters}OI"
    if groups > 1:
        window, (per_group, features) = kernel.shape[:dims], kernel.shape[dims:]
        kernel = kernel.reshape(*window, per_group, groups, features // groups)
        kernel = kernel.transpose(*range(dims), dims + 2, dims + 1, dims)
        kernel = kernel.reshape(*window, features // groups, groups * per_group)
        spec = f"{letters}IO"
    reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    ends = zip(reach, per_axis(padding, dims), per_axis(output_padding, dims), strict=True)
    y = lax.conv_general_dilated(
        images,
        kernel,
        (1,) * dims,
        [(r - p, r - p + extra) for r, p, extra in ends],
        lhs_dilation=per_axis(stride, dims),
        rhs_dilation=dilation,
        dimension_numbers=(f"N{letters}C", spec, f"N{letters}C"),
        feature_group_count=groups,
    )
    return from_images(_add_bias(y, bias), batch)


@lowering("aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default", layout="views")
def conv(
    input: View,
    weight: View,
    bias: View | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> View:
    """torch.nn.functional.conv1d, conv2d or conv3d, padded by zeros; the weight is (out, in / groups, *window)."""
    ends = [(p, p) for p in per_axis(padding, weight.ndim - 2)]
    return _convolve(input, weight, bias, stride, ends, dilation, groups)


@lowering(
    "aten.conv1d.padding",
    "aten.conv2d.padding",
    "aten.conv3d.padding",
    "aten._convolution_mode.default",
    layout="views",
)
def conv_named_padding(
    input: View,
    weight: View,
    bias: View | None = None,
    stride: Any = 1,
    padding: str = "valid",
    dilation: Any = 1,
    groups: int = 1,
) -> View:
    """``conv`` with padding "valid" (none) or "same" (stride 1; of an odd total, the end gets one more)."""
    dims = weight.ndim - 2
    if padding == "valid":
        ends = [(0, 0)] * dims
    elif padding == "same" and set(per_axis(stride, dims)) == {1}:
        sizes = zip(per_axis(dilation, dims), weight.shape[2:], strict=True)
        ends = [(d * (k - 1) // 2, d * (k - 1) - d * (k - 1) // 2) for d, k in sizes]
    else:
        raise ValueError(
            f"padding: {padding!r} given with stride={stride}; it must be 'valid', or 'same' with stride 1; else pass "
            "numbers"
        )
    return _convolve(input, weight, bias, stride, ends, dilation, groups)


@lowering("aten.conv_transpose1d.default", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input", layout="views")
def conv_transpose(
    input: View,
    weight: View,
    bias: View | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> View:
    """torch.nn.functional.conv_transpose1d, 2d or 3d; the weight is (in, out / groups, *window)."""
    return _transposed_convolution(input, weight, bias, stride, padding, output_padding, dilation, groups)


@lowering("aten.convolution.default", layout="views")
def convolution(
    input: View,
    weight: View,
    bias: View | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> View:
    """``conv``, or ``conv_transpose`` where ``transposed`` is set."""
    if transposed:
        return _transposed_convolution(input, weight, bias, stride, padding, output_padding, dilation, groups)
    if any(per_axis(output_padding, weight.ndim - 2)):
        raise misuse("output_padding", output_padding, "0 without transposed=True, where it has no meaning")
    return conv(input, weight, bias, stride, padding, dilation, groups)
