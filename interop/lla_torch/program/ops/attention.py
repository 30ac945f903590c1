"""Scaled dot product attention, computed as by torch's own reference implementation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lla_torch.program.operators import lowering
from lla_torch.program.ops.dropout import drop_entries

Array = jax.Array


def safe_softmax(x: Array, dim: int, dtype: Any = None) -> Array:
    """The softmax along an axis, and 0 (with gradient 0) where all entries are -inf."""
    x = x if dtype is None else x.astype(dtype)
    top = lax.stop_gradient(jnp.max(x, axis=dim, keepdims=True))
    exps = jnp.exp(x - jnp.where(top == -jnp.inf, 0, top))
    total = jnp.sum(exps, axis=dim, keepdims=True)
    return exps / jnp.where(total == 0, 1, total)


@lowering("aten.scaled_dot_product_attention.default", random=True)
def scaled_dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    attn_mask: Array | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    draw: Callable[..., Any],
) -> Array:
    """softmax(scale Q K^T + mask) V over the last two axes.

    Args:
      query: (..., heads, L, E).
      key: (..., heads, S, E).
      value: (..., heads, S, Ev).
      attn_mask: boolean (True: the entry takes part) or numbers to be added, broadcast to (..., heads, L, S). A row in
        which no entry takes part gives 0.
      dropout_p: probability with which an entry of the softmax is dropped; its draw is the boolean mask of the entries
        kept, (..., heads, L, S).
      is_causal: whether position i sees positions up to i only, counted from the start of both.
      scale: 1 / sqrt(E) if None.
      enable_gqa: whether each head of key and value is used by several consecutive heads of query.
      draw: see ``lowering``.
    """
    if is_causal and attn_mask is not None:
        raise ValueError("attn_mask: given together with is_causal=True; torch allows only one of them, pass one")
    if enable_gqa:
        key, value = (jnp.repeat(a, query.shape[-3] // a.shape[-3], axis=-3) for a in (key, value))
    scores = jnp.matmul(query * (1 / math.sqrt(query.shape[-1]) if scale is None else scale), jnp.swapaxes(key, -1, -2))
    if is_causal:
        attn_mask = jnp.tril(jnp.ones(scores.shape[-2:], bool))
    if attn_mask is not None:
        scores = jnp.where(attn_mask, scores, -jnp.inf) if attn_mask.dtype == bool else scores + attn_mask
    weights = jax.nn.softmax(scores, axis=-1) if attn_mask is None else safe_softmax(scores, -1)
    return jnp.matmul(drop_entries(weights, dropout_p, draw), value)
