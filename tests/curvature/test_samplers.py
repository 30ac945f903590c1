"""The samplers that users name: their moments, and where they look for the target."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lla_jax.curvature import operators

KEY = jax.random.key(0)

SAMPLERS = {
    "categorical": (functools.partial(operators.categorical, temperature=2.0), np.array([2.0, 0.0, -2.0]), 0),
    "bernoulli": (operators.bernoulli, np.array([2.0, 0.0, -2.0]), np.zeros(3, int)),
    "probabilities": (functools.partial(operators.bernoulli, probabilities=True), np.array([0.9, 0.2]), np.zeros(2)),
    "gaussian": (functools.partial(operators.gaussian, variance=4.0), np.array([2.0, -1.0]), np.zeros(2)),
    "poisson": (operators.poisson, np.array([1.0, -1.0]), np.zeros(2, int)),
    "rates": (functools.partial(operators.poisson, log_rate=False), np.array([3.0, 1.0]), np.zeros(2, int)),
}
MOMENTS = {  # mean and variance of a target
    "categorical": (0.67, 0.59),
    "bernoulli": ([0.881, 0.5, 0.119], [0.105, 0.25, 0.105]),
    "probabilities": ([0.9, 0.2], [0.09, 0.16]),
    "gaussian": ([2.0, -1.0], [4.0, 4.0]),
    "poisson": ([2.718, 0.368], [2.718, 0.368]),
    "rates": ([3.0, 1.0], [3.0, 1.0]),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_have_the_moments_of_their_distributions(name):
    sample, outputs, old = SAMPLERS[name]
    if name == "categorical":
        p = np.exp([1.0, 0.0, -1.0]) / np.exp([1.0, 0.0, -1.0]).sum()
        mean, variance = p @ [0, 1, 2], p @ [0, 1, 4] - (p @ [0, 1, 2]) ** 2
    else:
        mean, variance = MOMENTS[name]
    keys, count = jax.random.split(KEY, 4000), 4000
    example = {"x": jnp.zeros(1), "y": jnp.asarray(old)}
    drawn = jax.vmap(lambda key: functools.partial(sample, target="y")(key, jnp.asarray(outputs), example)["y"])(keys)
    drawn = np.asarray(drawn, float)
    np.testing.assert_allclose(drawn.mean(0), mean, atol=5 * np.sqrt(np.max(variance) / count))
    np.testing.assert_allclose(drawn.var(0), variance, rtol=0.2)


def test_samplers_say_where_they_looked():
    with pytest.raises(ValueError, match=r"looks for the target at 1 of an example, which is a dict with \['x'\]"):
        operators.bernoulli(KEY, jnp.zeros(1), {"x": jnp.zeros(1)})
    with pytest.raises(ValueError, match=r"a target of shape \(2,\) from outputs of shape \(3,\)"):
        operators.gaussian(KEY, jnp.zeros(3), (0, jnp.zeros(2)))
    with pytest.raises(ValueError, match="categorical draws classes"):
        operators.categorical(KEY, jnp.zeros((2, 3)), (0, jnp.zeros(2)))
