"""Normalization layers; statistics are taken over the axes as they lie in the array, if possible without transposes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lla_jax.models.adapters import misuse
from lla_torch.program.operators import lowering
from lla_torch.program.views import View, channels_last, plain


def _at_least_float32(x: jax.Array) -> jax.Array:
    """The array in float32 or more, in which torch takes statistics too."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _logical_or_none(x: View | None) -> jax.Array | None:
    return None if x is None else x.logical()


def _affine(centred: jax.Array, rstd: jax.Array, weight: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    """centred * (rstd * weight) + bias, in Flax's order of operations."""
    y = centred * (rstd if weight is None else rstd * weight)
    return y if bias is None else y + bias


def _moments(x: jax.Array, axes: Sequence[int]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(x - mean, mean, mean of (x - mean)^2) with the axes kept.

    They follow from E y and E y^2 of y = x - first entry: both in one pass over the data, twice as fast as two passes,
    and without the cancellation of E x^2 - (E x)^2 far from zero. The result does not depend on the number subtracted,
    so it is a constant of differentiation.
    """
    first = x
    for axis in axes:
        first = lax.slice_in_dim(first, 0, 1, axis=axis)
    first = lax.stop_gradient(first)
    shifted = x - first
    offset, square = shifted.mean(axes, keepdims=True), (shifted * shifted).mean(axes, keepdims=True)
    mean = first + offset
    return x - mean, mean, square - offset * offset


# --- batch and instance norm: one mean and variance per channel


@lowering("aten._native_batch_norm_legit_no_training.default", layout="views")
def batch_norm_eval(
    input: View,
    weight: View | None,
    bias: View | None,
    running_mean: View,
    running_var: View,
    momentum: float,
    eps: float,
) -> tuple[Any, ...]:
    """(x normalized by the running statistics of its channels and affine, empty, empty)."""
    del momentum  # of the update of statistics, which there is not
    empty = jnp.zeros((0,), input.dtype)
    return _normalize(input, weight, bias, running_mean, running_var, eps), empty, empty


def _normalize(x: View, weight: View | None, bias: View | None, mean: View, variance: View, eps: float) -> View:
    order = channels_last(x.ndim)
    rstd = lax.rsqrt(variance.logical() + eps)
    return View(
        _affine(x.physical(order) - mean.logical(), rstd, _logical_or_none(weight), _logical_or_none(bias)), order
    )


@lowering("aten._native_batch_norm_legit.no_stats", layout="views")
def batch_norm_no_stats(
    input: View, weight: View | None, bias: View | None, training: bool, momentum: float, eps: float
) -> tuple[Any, ...]:
    """(x normalized by its own statistics per channel and affine, mean, 1 / std)."""
    if not training:
        raise misuse(
            "training", training, "True without running statistics, since there is nothing else to normalize by"
        )
    del momentum  # there are no running statistics to update
    return _batch_norm(input, weight, bias, eps)[:3]


def _batch_norm(
    x: View, weight: View | None, bias: View | None, eps: float
) -> tuple[View, jax.Array, jax.Array, jax.Array]:
    order = channels_last(x.ndim)
    centred, mean, variance = _moments(_at_least_float32(x.physical(order)), tuple(range(x.ndim - 1)))
    mean, variance = mean.reshape(-1), variance.reshape(-1)
    rstd = lax.rsqrt(variance + eps)
    return View(_affine(centred, rstd, _logical_or_none(weight), _logical_or_none(bias)), order), mean, rstd, variance


@lowering("aten._native_batch_norm_legit_functional.default", layout="views")
def batch_norm_train(
    input: View,
    weight: View | None,
    bias: View | None,
    running_mean: View,
    running_var: View,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Any, ...]:
    """(x normalized per channel and affine, mean, 1 / std, new running mean, new running variance).

    With ``training`` the statistics of x normalize. They enter the running ones with the factor ``momentum``, as in
    torch the variance times n / (n - 1). Without it, as ``batch_norm_eval``; the running statistics stay.
    """
    if not training:
        results = batch_norm_eval(input, weight, bias, running_mean, running_var, momentum, eps)
        return (*results, running_mean, running_var)
    if momentum is None:
        raise misuse("momentum", None, "a number, such as 0.1, since a cumulative average changes with every call")
    n = math.prod(input.shape) // input.shape[1]
    if n < 2:
        raise ValueError(
            f"input: shape {input.shape} given, with one value per channel; it must have two or more in train mode, "
            "such as a larger batch"
        )
    y, mean, rstd, variance = _batch_norm(input, weight, bias, eps)
    new_mean = (1 - momentum) * running_mean.logical() + momentum * mean
    new_var = (1 - momentum) * running_var.logical() + momentum * variance * (n / (n - 1))
    return y, mean, rstd, new_mean, new_var


@lowering("aten.instance_norm.default", layout="views")
def instance_norm(
    input: View,
    weight: View | None,
    bias: View | None,
    running_mean: View | None,
    running_var: View | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool = False,
) -> View:
    """x normalized over the spatial axes for each example and channel, or by running statistics; affine."""
    del cudnn_enabled  # it selects a kernel of torch
    if not use_input_stats:
        if running_mean is None or running_var is None:
            raise misuse("use_input_stats", False, "True without running_mean and running_var; or pass both of them")
        return _normalize(input, weight, bias, running_mean, running_var, eps)
    if running_mean is not None or running_var is not None:
        raise ValueError(
            f"running_mean: given, and instance_norm would update it (momentum={momentum}), but does not return it; "
            "convert the module in eval mode, or with track_running_stats=False"
        )
    order = channels_last(input.ndim)
    centred, _, variance = _moments(_at_least_float32(input.physical(order)), tuple(range(1, input.ndim - 1)))
    return View(_affine(centred, lax.rsqrt(variance + eps), _logical_or_none(weight), _logical_or_none(bias)), order)


# --- group norm


@lowering("aten.group_norm.default", layout="views")
def group_norm(
    input: View,
    num_groups: int,
    weight: View | None = None,
    bias: View | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> View:
    """x normalized over the entries of each example and group of channels; affine."""
    del cudnn_enabled  # it selects a kernel of torch
    return _group_norm(input, num_groups, weight, bias, eps)[0]


def _group_norm(
    x: View, groups: int, weight: View | None, bias: View | None, eps: float
) -> tuple[View, jax.Array, jax.Array]:
    channels = x.shape[1]
    if channels % groups:
        raise misuse("num_groups", groups, f"a divisor of the {channels} channels")
    order = channels_last(x.ndim)
    array = _at_least_float32(x.physical(order))
    split = array.reshape(*array.shape[:-1], groups, channels // groups)
    centred, mean, variance = _moments(split, (*range(1, x.ndim - 1), x.ndim))
    rstd = lax.rsqrt(variance + eps)
    shaped = [v if v is None else v.logical().reshape(groups, -1) for v in (weight, bias)]
    y = _affine(centred, rstd, *shaped).reshape(array.shape)
    return View(y, order), mean.reshape(-1, groups), rstd.reshape(-1, groups)


@lowering("aten.native_group_norm.default", layout="views")
def native_group_norm(
    input: View, weight: View | None, bias: View | None, N: int, C: int, HxW: int, group: int, eps: float
) -> tuple[View, jax.Array, jax.Array]:
    """(``group_norm``, mean, 1 / std); mean and 1 / std are of shape (N, group)."""
    if (N, C, N * C * HxW) != (*input.shape[:2], math.prod(input.shape)):
        raise ValueError(
            f"N, C, HxW: {N}, {C}, {HxW} given; they must be the sizes of the input, which has shape {input.shape}"
        )
    return _group_norm(input, group, weight, bias, eps)


# --- layer and rms norm: over the last logical axes, wherever they lie in the array


def _last_axes(x: View, normalized_shape: Sequence[int]) -> tuple[View, tuple[int, ...]]:
    """The tensor as a view without merged axes, and the axes of its array to normalize over."""
    count = len(normalized_shape)
    if count < 1 or x.shape[-count:] != tuple(normalized_shape):
        raise misuse(
            "normalized_shape", tuple(normalized_shape), f"the last sizes of the input, which has shape {x.shape}"
        )
    x = plain(x.logical()) if x.is_merged or x.split is not None else x
    return x, x.order[-count:]


def _broadcast_last(weight: View | None, x: View) -> jax.Array | None:
    """A weight of the last logical axes, as an array that broadcasts against the array of ``x``."""
    if weight is None:
        return None
    if x.order[-weight.ndim :] == tuple(range(x.ndim - weight.ndim, x.ndim)):
        return weight.logical()
    return plain(weight.logical().reshape((1,) * (x.ndim - weight.ndim) + weight.shape)).physical(x.order)


@lowering("aten.native_layer_norm.default", layout="views")
def native_layer_norm(
    input: View, normalized_shape: Sequence[int], weight: View | None, bias: View | None, eps: float
) -> tuple[View, View, View]:
    """(``layer_norm``, mean, 1 / std); mean and 1 / std keep the normalized axes with length 1."""
    x, axes = _last_axes(input, normalized_shape)
    centred, mean, variance = _moments(_at_least_float32(x.array), axes)
    rstd = lax.rsqrt(variance + eps)
    y = _affine(centred, rstd, _broadcast_last(weight, x), _broadcast_last(bias, x))
    return x.with_array(y), x.with_array(mean), x.with_array(rstd)


@lowering("aten.layer_norm.default", layout="views")
def layer_norm(
    input: View,
    normalized_shape: Sequence[int],
    weight: View | None = None,
    bias: View | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> View:
    """x normalized over its last axes, of the sizes ``normalized_shape``; affine."""
    del cudnn_enable  # it selects a kernel of torch
    return native_layer_norm(input, normalized_shape, weight, bias, eps)[0]


@lowering("aten._fused_rms_norm.default", layout="views")
def fused_rms_norm(
    input: View, normalized_shape: Sequence[int], weight: View | None, eps: float | None
) -> tuple[View, View]:
    """(x / rms * weight, 1 / rms) with rms^2 = mean(x^2) + eps over the last axes, of the sizes ``normalized_shape``.

    eps=None means the rounding unit of the type in which it is computed, float32 or float64.
    """
    x, axes = _last_axes(input, normalized_shape)
    array = _at_least_float32(x.array)
    eps = float(jnp.finfo(array.dtype).eps) if eps is None else eps
    rstd = lax.rsqrt((array * array).mean(axes, keepdims=True) + eps)
    return x.with_array(_affine(array, rstd, _broadcast_last(weight, x), None)), x.with_array(rstd)


@lowering("aten.rms_norm.default", layout="views")
def rms_norm(
    input: View, normalized_shape: Sequence[int], weight: View | None = None, eps: float | None = None
) -> View:
    """x / rms * weight over the last axes, see ``fused_rms_norm``."""
    return fused_rms_norm(input, normalized_shape, weight, eps)[0]


# --- weight norm


@lowering("aten._weight_norm_interface.default", layout="views")
def weight_norm_interface(v: View, g: View, dim: int = 0) -> tuple[View, View]:
    """(g v / |v|, |v|) with one norm for each index of the axis ``dim``; -1: one norm of all entries."""
    v = plain(v.logical()) if v.is_merged or v.split is not None else v
    axes = tuple(a for i, a in enumerate(v.order) if dim == -1 or i != dim)
    norm = jnp.sqrt((v.array * v.array).sum(axes, keepdims=True))
    length = g.logical() if g.ndim == 0 else g.physical(v.order)
    return v.with_array(v.array * (length / norm)), v.with_array(norm)


@lowering("aten._weight_norm.default", layout="views")
def weight_norm(v: View, g: View, dim: int = 0) -> View:
    """g v / |v| with one norm for each index of the axis ``dim``; -1: one norm of all entries."""
    return weight_norm_interface(v, g, dim)[0]
