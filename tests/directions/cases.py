"""A small tree of parameters, and directions as flat vectors of numpy."""

from __future__ import annotations

import jax
import numpy as np

KEY = jax.random.key(7)


def params_of(dtype=np.float32):
    rng = np.random.default_rng(1)
    return {
        "conv": {"kernel": rng.normal(size=(3, 3, 2, 4)).astype(dtype), "bias": rng.normal(size=4).astype(dtype)},
        "head": {"kernel": rng.normal(size=(8, 5)).astype(dtype), "bias": rng.normal(size=5).astype(dtype)},
    }


def tree_like(params, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=np.shape(x)).astype("f4"), params)


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype("f8")


def rows(axes):
    return [flat(jax.tree.map(lambda leaf, i=i: np.asarray(leaf)[i], axes.tree)) for i in range(axes.num)]


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a.tree, b.tree)
