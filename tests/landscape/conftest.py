"""Axes of the small network that the tests of landscapes share."""

from __future__ import annotations

import jax
import numpy as np
import pytest

import lla_jax as lla
from tests.helpers import params


@pytest.fixture(scope="module")
def axes():
    return lla.directions.normalize(lla.directions.random(jax.random.key(3), params(), num=3), params())


@pytest.fixture(scope="module")
def moments():
    import optax

    tx = optax.adam(1e-2)
    state = tx.init(params())
    for seed in range(3):
        grads = jax.tree.map(lambda x, s=seed: 0.1 * np.cos(np.asarray(x) + s), params())
        _, state = tx.update(grads, state)
    return lla.directions.adam_moments(state, params())
