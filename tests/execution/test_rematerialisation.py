"""Functions in segments: the same derivatives, and less that is held."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lla_jax.execution.rematerialisation import in_segments

X = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
PARAMS = {"w": np.random.default_rng(1).normal(size=(12, 8, 8)).astype(np.float32) / 3}


def deep(p: Any) -> Any:
    x = jnp.asarray(X)
    for w in p["w"]:
        x = jnp.tanh(x @ w) + x
    return (x**2).sum()


def scanned(p: Any) -> Any:
    return (jax.lax.scan(lambda x, w: (jnp.tanh(jnp.sin(x @ w)), None), jnp.asarray(X), p["w"])[0] ** 2).sum()


@pytest.mark.parametrize("f", [deep, scanned])
def test_products_are_the_same_and_less_is_held(f: Any) -> None:
    g = in_segments(f, PARAMS)

    def product(f: Any, p: Any) -> Any:
        return jax.jvp(jax.grad(f), (p,), (p,))

    one, two = jax.jit(lambda p: (product(f, p), product(g, p)))(PARAMS)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        np.testing.assert_allclose(b, a, rtol=2e-5, atol=1e-5 * np.abs(a).max())

    kept = [
        sum(x.size for x in jax.tree.leaves(jax.eval_shape(lambda p, f=h: jax.vjp(f, p)[1], PARAMS))) for h in (f, g)
    ]
    assert kept[1] < 0.6 * kept[0]
