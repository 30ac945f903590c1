"""Gauss-Newton matrices of zeros: refused, warned of, or cut elsewhere."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lla_jax as lla
from lla_jax.curvature import operators
from tests.helpers import ONE, error

_rng = np.random.default_rng(0)
X, Y = (_rng.standard_normal((12, n)).astype("float32") for n in (4, 3))
DATA = X, _rng.integers(0, 3, 12)
PARAMS = {"kernel": (0.5 * _rng.standard_normal((4, 3))).astype("float32")}


def model(then=lambda outputs: outputs):
    """A linear model, with a function on top."""
    return lambda p, state, batch, train: (then(batch[0] @ p["kernel"]), state)


def negative(outputs, batch):
    """Minus the output of the label."""
    return -jnp.take_along_axis(outputs, batch[1][:, None], 1)[:, 0]


LOG_PROBABILITIES = lla.Loss(model(jax.nn.log_softmax), negative)
SCORES = lla.Loss(model(), lambda o, b: negative(jax.nn.log_softmax(o), b))


def test_ggn_of_zeros_is_refused_where_the_criterion_is_linear():
    with pytest.raises(ValueError, match=r"linear in the outputs.*log-softmax, end it before.*lla\.hessian"):
        lla.ggn(LOG_PROBABILITIES, PARAMS, DATA)
    weighted = lla.Loss(LOG_PROBABILITIES.apply, lambda o, b: (LOG_PROBABILITIES.criterion(o, b), 1.0 + b[1]))
    with pytest.raises(ValueError, match="linear in the outputs"):
        lla.ggn(weighted, PARAMS, lla.stream([DATA]))
    coupled = lla.Loss(model(), lambda o, b: o.mean(), per_example=False)
    with pytest.raises(ValueError, match="linear in the outputs"):
        lla.ggn(coupled, PARAMS, DATA)


def test_ggn_of_zeros_is_warned_of_where_the_criterion_is_piecewise_linear():
    absolute = lla.Loss(model(), lambda o, b: jnp.abs(o - b[1]).sum(-1), penalty=lambda p: jnp.sum(p["kernel"] ** 2))
    with pytest.warns(UserWarning, match="piecewise linear"):
        G = lla.ggn(absolute, PARAMS, (X, Y), execution=ONE)
    np.testing.assert_allclose(operators.dense(G), 2 * np.eye(12), atol=1e-6)  # of the penalty
    partly = lla.Loss(model(), lambda o, b: optax.huber_loss(o, b[1]).sum(-1))
    assert np.trace(operators.dense(lla.ggn(partly, PARAMS, (X, Y), execution=ONE))) > 1


def test_ggn_of_zeros_takes_the_scores_that_a_model_offers():
    class Ends:
        """A model that ends in log-softmax, and offers its scores."""

        def __call__(self, p, state, batch, train):
            return jax.nn.log_softmax(batch[0] @ p["kernel"]), state

        def scores(self, criterion):
            return model(), lambda o, b: criterion(jax.nn.log_softmax(o), b)

    G = lla.ggn(lla.Loss(Ends(), LOG_PROBABILITIES.criterion), PARAMS, DATA, execution=ONE)
    reference = lla.ggn(SCORES, PARAMS, DATA, execution=ONE)
    assert error(operators.dense(G), operators.dense(reference)) < 1e-6
