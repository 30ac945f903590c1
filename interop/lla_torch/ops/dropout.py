"""Dropout; its other kinds are made of it in ``tracing``. The draw is the mask of what is kept, in torch's order.

Without a key and without recorded draws dropout is off, as in evaluation mode. p = 1 drops all and draws nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lla_torch.lowering import lowering
from lla_torch.views import View, as_view, inverse

Draw = Callable[..., Any]


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
