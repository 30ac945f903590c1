"""GPT-2 small, with random weights and a few tokens: 124,439,808 parameters, or fewer of the same kind.

Pre-norm blocks, learned positions, output weights tied to the embedding (Radford et al. 2019).
"""

from __future__ import annotations

from typing import Any

import numpy as np

VOCABULARY, LENGTH, HEAD = 50257, 1024, 64
SIZES = {"small": (768, 12), "30M": (384, 6), "8M": (128, 4)}
"""Width and depth."""


def problem(size: str = "small", rows: int = 2, tokens: int = 16) -> tuple[Any, Any, Any]:
    """(loss, params, data): the mean cross-entropy of the next token, of ``rows`` texts of ``tokens`` random tokens."""
    import jax.numpy as jnp

    width, depth = SIZES[size]
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return jnp.asarray(rng.standard_normal(shape, np.float32) * np.float32(0.02))

    def scale(*shape: int) -> Any:
        return {"scale": jnp.ones(shape), "bias": jnp.zeros(shape)}

    def dense(inputs: int, outputs: int) -> Any:
        return {"kernel": normal(depth, inputs, outputs), "bias": jnp.zeros((depth, outputs))}

    blocks = {
        "norm1": scale(depth, width),
        "qkv": dense(width, 3 * width),
        "mixed": dense(width, width),
        "norm2": scale(depth, width),
        "wide": dense(width, 4 * width),
        "narrow": dense(4 * width, width),
    }
    params = {
        "embedding": normal(VOCABULARY, width),
        "positions": normal(LENGTH, width),
        "blocks": blocks,
        "norm": scale(width),
    }
    text = jnp.asarray(rng.integers(0, VOCABULARY, (rows, tokens + 1)))
    return loss_of, params, (text[:, :-1], text[:, 1:])


def _norm(x: Any, p: Any) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    return centred / ((centred**2).mean(-1, keepdims=True) + 1e-5) ** 0.5 * p["scale"] + p["bias"]


def _dense(x: Any, p: Any) -> Any:
    return x @ p["kernel"] + p["bias"]


def scores_of(params: Any, tokens: Any) -> Any:
    """Scores of the next token, (rows, length, VOCABULARY)."""
    import jax
    import jax.numpy as jnp

    length = tokens.shape[1]
    seen = jnp.tril(jnp.ones((length, length), bool))

    def block(x: Any, p: Any) -> Any:
        q, k, v = jnp.split(_dense(_norm(x, p["norm1"]), p["qkv"]), 3, axis=-1)
        q, k, v = (each.reshape(*each.shape[:-1], -1, HEAD) for each in (q, k, v))
        scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / HEAD**0.5
        shares = jax.nn.softmax(jnp.where(seen, scores, -jnp.inf))
        x = x + _dense(jnp.einsum("bhqk,bkhd->bqhd", shares, v).reshape(x.shape), p["mixed"])
        return x + _dense(jax.nn.gelu(_dense(_norm(x, p["norm2"]), p["wide"])), p["narrow"]), None

    x = params["embedding"][tokens] + params["positions"][:length]
    x = _norm(jax.lax.scan(block, x, params["blocks"])[0], params["norm"])
    return x @ params["embedding"].T


def loss_of(params: Any, batch: Any) -> Any:
    """Mean cross-entropy of the next token."""
    import jax
    import jax.numpy as jnp

    tokens, following = batch
    scores = jax.nn.log_softmax(scores_of(params, tokens))
    return -jnp.take_along_axis(scores, following[..., None], -1).mean()
