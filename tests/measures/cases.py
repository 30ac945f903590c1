"""Shared cases of the tests of measures: vectors of seven parameters as trees of two leaves."""

import jax.numpy as jnp
import numpy as np

import lla_jax as lla

NO_DATA = np.zeros((3, 1))
N = 7


def tree(w):
    """A vector as a parameter tree of two leaves, (k, n) as a stacked one."""
    w = np.asarray(w)
    return {"a": w[..., :3], "b": w[..., 3:].reshape(*w.shape[:-1], 2, 2)}


def flat(p):
    """The tree as a vector; to be differentiated."""
    return jnp.concatenate([p["a"], p["b"].ravel()])


def axes_of(vectors):
    """Directions of these vectors."""
    return lla.directions.given(*(tree(v) for v in vectors))
