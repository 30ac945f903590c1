"""Inner products and combinations of rows are the same however long the rows are."""

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.curvature import projections

KEY = jax.random.key(0)


def test_long_leaves_are_added_up_by_rows(monkeypatch):
    q, w = jax.random.normal(KEY, (11, 6, 64)), jax.random.normal(jax.random.key(1), (6, 64))
    basis, vector = {"a": q, "b": q.reshape(11, -1)}, {"a": w, "b": w.ravel()}
    short = projections.inner(basis, vector), projections.combine(jnp.arange(11.0), basis)
    monkeypatch.setattr(projections, "LONG", 64)
    long = projections.inner(basis, vector), projections.combine(jnp.arange(11.0), basis)
    for one, two in zip(jax.tree.leaves(short), jax.tree.leaves(long), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4)
