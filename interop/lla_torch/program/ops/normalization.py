"""Normalization layers. None of them moves the data: statistics are taken over the axes as they lie."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lla_torch.program.operators import lowering
from lla_torch.program.views import View, channels_last, plain


def _wide(x: jax.Array) -> jax.Array:
    """Statistics are taken in float32 at least, as torch takes them."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _vector(x: View | None) -> jax.Array | None:
    return None if x is None else x.logical()


def _affine(centred: jax.Array, rstd: jax.Array, weight: jax.Array | None, bias: jax.Array | None) -> jax.Array:
    """centred * (rstd * weight) + bias, as Flax does it."""
    y = centred * (rstd if weight is None else rstd * weight)
    return y if bias is None else y + bias


def _moments(x: jax.Array, axes: Sequence[int]) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(x - mean, mean, mean of (x - mean)^2) with the axes kept.

    From E y and E y^2 of y = x - first entry: both in one pass over the data, twice as fast as two, and without the
    cancellation of E x^2 - (E x)^2 far from zero. Which number is taken off does not matter, so it is held constant.
    """
    first = x
    for axis in axes:
        first = lax.slice_in_dim(first, 0, 1, axis=axis)
    first = lax.stop_gradient(first)
    moved = x - first
    offset, square = moved.mean(axes, keepdims=True), (moved * moved).mean(axes, keepdims=True)
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
    """Normalized by the running statistics, which momentum does not touch here; the saved ones are empty."""
    del momentum  # it says how statistics are updated, and here none are
    empty = jnp.zeros((0,), input.dtype)
    return _normalized(input, weight, bias, running_mean, running_var, eps), empty, empty


def _normalized(x: View, weight: View | None, bias: View | None, mean: View, variance: View, eps: float) -> View:
    order = channels_last(x.ndim)
    rstd = lax.rsqrt(variance.logical() + eps)
    return View(_affine(x.physical(order) - mean.logical(), rstd, _vector(weight), _vector(bias)), order)


@lowering("aten._native_batch_norm_legit.no_stats", layout="views")
def batch_norm_no_stats(
    input: View, weight: View | None, bias: View | None, training: bool, momentum: float, eps: float
) -> tuple[Any, ...]:
    """Normalized by the statistics of the batch: (output, mean, rstd)."""
    if not training:
        raise ValueError("training=False without running statistics: there is nothing to normalize by; pass True")
    del momentum  # there are no running statistics to update
    return _batch_norm(input, weight, bias, eps)[:3]


def _batch_norm(
    x: View, weight: View | None, bias: View | None, eps: float
) -> tuple[View, jax.Array, jax.Array, jax.Array]:
    order = channels_last(x.ndim)
    centred, mean, variance = _moments(_wide(x.physical(order)), tuple(range(x.ndim - 1)))
    mean, variance = mean.reshape(-1), variance.reshape(-1)
    rstd = lax.rsqrt(variance + eps)
    return View(_affine(centred, rstd, _vector(weight), _vector(bias)), order), mean, rstd, variance


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
    """(output, mean, rstd, new running mean, new running variance); the last with n / (n - 1), as torch has it."""
    if not training:
        evaluated = batch_norm_eval(input, weight, bias, running_mean, running_var, momentum, eps)
        return (*evaluated, running_mean, running_var)
    if momentum is None:
        raise ValueError(
            "momentum=None (a cumulative average) changes with every call; give the layer a number, such as 0.1"
        )
    n = math.prod(input.shape) // input.shape[1]
    if n < 2:
        raise ValueError(f"input of shape {input.shape} has one value per channel; training needs two at least")
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
    """Normalized over the spatial axes of every image and channel, or by running statistics."""
    del cudnn_enabled  # which kernel torch picks
    if not use_input_stats:
        if running_mean is None or running_var is None:
            raise ValueError("use_input_stats=False needs running_mean and running_var; pass True or both of them")
        return _normalized(input, weight, bias, running_mean, running_var, eps)
    if running_mean is not None or running_var is not None:
        raise ValueError(
            f"instance_norm updates running statistics (momentum={momentum}), which the operator does not return; "
            "convert the module in eval mode, or with track_running_stats=False"
        )
    order = channels_last(input.ndim)
    centred, _, variance = _moments(_wide(input.physical(order)), tuple(range(1, input.ndim - 1)))
    return View(_affine(centred, lax.rsqrt(variance + eps), _vector(weight), _vector(bias)), order)


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
    """Normalized over the spatial axes and groups of channels of every example."""
    del cudnn_enabled  # which kernel torch picks
    return _group_norm(input, num_groups, weight, bias, eps)[0]


def _group_norm(
    x: View, groups: int, weight: View | None, bias: View | None, eps: float
) -> tuple[View, jax.Array, jax.Array]:
    channels = x.shape[1]
    if channels % groups:
        raise ValueError(f"num_groups={groups} does not divide the {channels} channels; use a divisor")
    order = channels_last(x.ndim)
    array = _wide(x.physical(order))
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
    """(output, mean, rstd) with statistics (N, group)."""
    if (N, C, N * C * HxW) != (*input.shape[:2], math.prod(input.shape)):
        raise ValueError(f"N={N}, C={C}, HxW={HxW} do not describe the input of shape {input.shape}; pass its sizes")
    return _group_norm(input, group, weight, bias, eps)


# --- layer and rms norm: over the last logical axes, wherever these lie


def _trailing(x: View, normalized_shape: Sequence[int]) -> tuple[View, tuple[int, ...]]:
    """The tensor as a view without merged axes, and the axes of its array to normalize over."""
    count = len(normalized_shape)
    if count < 1 or x.shape[-count:] != tuple(normalized_shape):
        raise ValueError(f"normalized_shape={normalized_shape} must be the last sizes of the input, {x.shape}")
    x = plain(x.logical()) if x.is_merged or x.split is not None else x
    return x, x.order[-count:]


def _beside(weight: View | None, x: View) -> jax.Array | None:
    """A weight of the last logical axes, laid to broadcast against the array of ``x``."""
    if weight is None:
        return None
    if x.order[-weight.ndim :] == tuple(range(x.ndim - weight.ndim, x.ndim)):
        return weight.logical()
    return plain(weight.logical().reshape((1,) * (x.ndim - weight.ndim) + weight.shape)).physical(x.order)


@lowering("aten.native_layer_norm.default", layout="views")
def native_layer_norm(
    input: View, normalized_shape: Sequence[int], weight: View | None, bias: View | None, eps: float
) -> tuple[View, View, View]:
    """(output, mean, rstd); the statistics keep the normalized axes with size one."""
    x, axes = _trailing(input, normalized_shape)
    centred, mean, variance = _moments(_wide(x.array), axes)
    rstd = lax.rsqrt(variance + eps)
    y = _affine(centred, rstd, _beside(weight, x), _beside(bias, x))
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
    """Normalized over the last logical axes."""
    del cudnn_enable  # which kernel torch picks
    return native_layer_norm(input, normalized_shape, weight, bias, eps)[0]


@lowering("aten._fused_rms_norm.default", layout="views")
def fused_rms_norm(
    input: View, normalized_shape: Sequence[int], weight: View | None, eps: float | None
) -> tuple[View, View]:
    """(x / rms(x) * weight, 1 / rms(x)) over the last logical axes; eps=None is the rounding unit of the type."""
    x, axes = _trailing(input, normalized_shape)
    array = _wide(x.array)
    eps = float(jnp.finfo(array.dtype).eps) if eps is None else eps
    rstd = lax.rsqrt((array * array).mean(axes, keepdims=True) + eps)
    return x.with_array(_affine(array, rstd, _beside(weight, x), None)), x.with_array(rstd)


@lowering("aten.rms_norm.default", layout="views")
def rms_norm(
    input: View, normalized_shape: Sequence[int], weight: View | None = None, eps: float | None = None
) -> View:
    """torch.nn.functional.rms_norm."""
    return fused_rms_norm(input, normalized_shape, weight, eps)[0]


# --- weight norm


@lowering("aten._weight_norm_interface.default", layout="views")
def weight_norm_interface(v: View, g: View, dim: int = 0) -> tuple[View, View]:
    """(g v / |v|, |v|) with a norm per slice along ``dim``; -1: one norm."""
    v = plain(v.logical()) if v.is_merged or v.split is not None else v
    axes = tuple(a for i, a in enumerate(v.order) if dim == -1 or i != dim)
    norm = jnp.sqrt((v.array * v.array).sum(axes, keepdims=True))
    length = g.logical() if g.ndim == 0 else g.physical(v.order)
    return v.with_array(v.array * (length / norm)), v.with_array(norm)


@lowering("aten._weight_norm.default", layout="views")
def weight_norm(v: View, g: View, dim: int = 0) -> View:
    """g v / |v| with a norm per slice along ``dim``; -1: one norm."""
    return weight_norm_interface(v, g, dim)[0]
