"""Dropout. The draw is the mask of the entries kept, in torch's order of axes.

Without a key and without recorded draws dropout is off, as in eval mode. p = 1 drops all entries and draws nothing.
Other kinds of dropout are rewritten with this one during tracing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from lla_torch.program.operators import lowering
from lla_torch.program.views import View, as_view, inverse, plain

Draw = Callable[..., Any]


def _lay_mask(mask: jax.Array, x: View) -> jax.Array:
    """A mask in torch's order of axes as an array in the order of the array of x."""
    if x.merged is None:
        return jnp.transpose(mask, inverse(x.order))
    assert x.split is not None
    full = mask.reshape(tuple(x.split[axis] for axis in x.order))
    return jnp.transpose(full, inverse(x.order)).reshape(x.array.shape)


def drop_entries(x: jax.Array, p: float, draw: Draw) -> jax.Array:
    """x, in torch's order of axes, with each entry dropped with probability p: x mask / (1 - p)."""
    return _drop_and_mask(plain(x), p, draw)[0].array


def _drop_and_mask(x: View, p: float, draw: Draw) -> tuple[View, View]:
    """(entries times mask / (1 - p), mask)."""
    if p == 1:
        return x.with_array(jnp.zeros_like(x.array)), x.with_array(jnp.zeros(x.array.shape, bool))
    mask = None if p == 0 else draw(lambda key: jax.random.bernoulli(key, 1 - p, x.shape), optional=True)
    if mask is None:
        return x, x.with_array(jnp.ones(x.array.shape, bool))
    keep = _lay_mask(mask, x)
    return x.with_array(jnp.where(keep, x.array / (1 - p), 0)), x.with_array(keep)


@lowering("aten.dropout.default", layout="views", random=True)
def dropout(x: Any, p: float, train: bool, *, draw: Draw) -> View:
    """x with each entry dropped with probability p, x mask / (1 - p), if ``train``; else x."""
    return _drop_and_mask(as_view(x), p if train else 0, draw)[0]


@lowering("aten.native_dropout.default", layout="views", random=True)
def native_dropout(x: Any, p: float, train: bool | None, *, draw: Draw) -> tuple[View, View]:
    """(x mask / (1 - p), mask of the entries kept); (x, ones) if ``train`` is False."""
    return _drop_and_mask(as_view(x), 0 if train is False else p, draw)
