"""Layers that drop entries at random. The draw of each is the boolean mask of what is kept, in torch's order of axes.

Without a key and without recorded draws the layers are off, as in evaluation mode. p = 1 drops everything and draws
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lla_torch.lowering import lowering
from lla_torch.views import View, as_view, inverse

Draw = Callable[..., Any]
_SATURATION = 1.7580993408473766  # selu's lower limit, negated: scale * alpha


def _laid(mask: jax.Array, x: View) -> jax.Array:
    """A mask in torch's order of axes, of the shape of x or broadcasting to it, in the order in which x lies."""
    if x.merged is None:
        return jnp.transpose(mask, inverse(x.order))
    assert x.split is not None
    full = mask.reshape(tuple(x.split[axis] for axis in x.order))
    return jnp.transpose(full, inverse(x.order)).reshape(x.array.shape)


def _keep(x: View, shape: tuple[int, ...], p: float, draw: Draw) -> jax.Array | None:
    mask = draw(lambda key: jax.random.bernoulli(key, 1 - p, shape), optional=True)
    return None if mask is None else _laid(mask, x)


def _dropped(x: View, shape: tuple[int, ...], p: float, train: bool, draw: Draw) -> View:
    if not train or p == 0:
        return x
    if p == 1:
        return x.with_array(jnp.zeros_like(x.array))
    keep = _keep(x, shape, p, draw)
    return x if keep is None else x.with_array(jnp.where(keep, x.array / (1 - p), 0))


def _alpha_dropped(x: View, shape: tuple[int, ...], p: float, train: bool, draw: Draw) -> View:
    """Dropped entries take selu's lower limit, and all are rescaled so that mean 0 and variance 1 stay."""
    if not train or p == 0:
        return x
    if p == 1:
        return x.with_array(jnp.zeros_like(x.array))
    keep = _keep(x, shape, p, draw)
    if keep is None:
        return x
    a = 1 / math.sqrt((_SATURATION**2 * p + 1) * (1 - p))
    shift = _SATURATION * a * p
    return x.with_array(jnp.where(keep, a * x.array + shift, shift - _SATURATION * a))


def _features(x: View) -> tuple[View, tuple[int, ...]]:
    """x with its axes apart, and the shape of one draw per example and channel."""
    if x.ndim < 2:
        raise ValueError(f"input has shape {x.shape}, but dropout of features needs at least (examples, channels)")
    x = as_view(x.logical()) if x.is_merged else x
    return x, (*x.shape[:2], *[1] * (x.ndim - 2))


@lowering("aten.dropout.default", layout="views", random=True)
def dropout(x: Any, p: float, train: bool, *, draw: Draw) -> View:
    """Entries times mask / (1 - p)."""
    x = as_view(x)
    return _dropped(x, x.shape, p, train, draw)


@lowering("aten.native_dropout.default", layout="views", random=True)
def native_dropout(x: Any, p: float, train: bool | None, *, draw: Draw) -> tuple[View, View]:
    """(``dropout``, the mask of what is kept)."""
    x = as_view(x)
    ones = x.with_array(jnp.ones(x.array.shape, bool))
    if train is False or p == 0:
        return x, ones
    if p == 1:
        return x.with_array(jnp.zeros_like(x.array)), x.with_array(jnp.zeros(x.array.shape, bool))
    keep = _keep(x, x.shape, p, draw)
    if keep is None:
        return x, ones
    return x.with_array(jnp.where(keep, x.array / (1 - p), 0)), x.with_array(keep)


@lowering("aten.feature_dropout.default", layout="views", random=True)
def feature_dropout(x: Any, p: float, train: bool, *, draw: Draw) -> View:
    """``dropout`` of whole channels: x is (N, C, ...) and the mask (N, C, 1, ...)."""
    x, shape = _features(as_view(x))
    return _dropped(x, shape, p, train, draw)


@lowering("aten.alpha_dropout.default", layout="views", random=True)
def alpha_dropout(x: Any, p: float, train: bool, *, draw: Draw) -> View:
    """Dropout for networks of selu."""
    x = as_view(x)
    return _alpha_dropped(x, x.shape, p, train, draw)


@lowering("aten.feature_alpha_dropout.default", layout="views", random=True)
def feature_alpha_dropout(x: Any, p: float, train: bool, *, draw: Draw) -> View:
    """``alpha_dropout`` of whole channels."""
    x, shape = _features(as_view(x))
    return _alpha_dropped(x, shape, p, train, draw)
