"""Means over counted entries are found in losses of whole batches, and nothing else is."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.core import counts, losses

N, T = 12, 4
_rng = np.random.default_rng(0)
PARAMS = {"w": _rng.standard_normal(3).astype("float32")}
X, Y = (_rng.standard_normal(shape).astype("float32") for shape in ((N, T, 3), (N, T)))
MASK = np.arange(T) < 1 + np.arange(N)[:, None] // 3  # 1 token in the first examples, 4 in the last
DATA = (X, Y, MASK)


def squares(p, batch):
    return (batch[0] @ p["w"] - batch[1]) ** 2


def masked_mean(p, batch):
    return jnp.sum(squares(p, batch) * batch[2]) / jnp.maximum(batch[2].sum(), 1)


def scores(p, batch):
    return batch[0][:, 0] @ p["w"]


MEANS = {
    "masked": masked_mean,
    "jitted": jax.jit(masked_mean),
    "recomputed": jax.checkpoint(masked_mean),
    "where": lambda p, batch: jnp.mean(squares(p, batch), where=batch[2]),
    "NaN in place of targets": lambda p, batch: jnp.nanmean(jnp.where(batch[2], squares(p, batch), jnp.nan)),
    "weighted, with a penalty": lambda p, batch: (
        jnp.average(squares(p, batch), weights=1.0 * batch[2]) + 0.1 * jnp.sum(p["w"] ** 2)
    ),
    "times an inverse": lambda p, batch: jnp.sum(squares(p, batch) * batch[2]) * (1 / batch[2].sum()),
}


@pytest.mark.parametrize("name", MEANS)
def test_a_token_mean_is_pointed_out(name):
    loss = losses.as_loss(MEANS[name])
    with pytest.warns(UserWarning, match=r"different numbers of them \(1\.25 to 3\.75 per example in 3 batches\)"):
        counts.warn_of_counts(loss, PARAMS, DATA, 4)
    batches = lla.stream([tuple(x[i : i + 4] for x in DATA) for i in (0, 4, 8)])
    with pytest.warns(UserWarning, match="sum, weight"):
        counts.warn_of_counts(loss, PARAMS, batches, None)


def test_a_token_mean_over_batches_padded_each_to_its_own_length_is_pointed_out():
    batches = lla.stream([tuple(x[i : i + 4, :length] for x in DATA) for i, length in ((0, 2), (4, 3), (8, 4))])
    plain = losses.as_loss(lambda p, batch: squares(p, batch).mean())
    with pytest.warns(UserWarning, match=r"\(2 to 4 per example"):
        counts.warn_of_counts(plain, PARAMS, batches, None)


OTHERS = {
    "a mean": lambda p, batch: squares(p, batch).mean() / 2,
    "a mean of means": lambda p, batch: jnp.mean(jnp.sum(squares(p, batch) * batch[2], 1) / batch[2].sum(1)),
    "relative to the labels": lambda p, batch: squares(p, batch).mean() / batch[1].std(),
    "a variance": lambda p, batch: scores(p, batch).var(),
    "a contrast": lambda p, batch: (
        -jnp.diagonal(jax.nn.log_softmax(jnp.outer(scores(p, batch), scores(p, batch)))).mean()
    ),
    "all pairs": lambda p, batch: jnp.outer(scores(p, batch), scores(p, batch)).mean(),
}


@pytest.mark.parametrize("name", OTHERS)
def test_losses_that_are_no_token_mean_raise_no_alarm(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        counts.warn_of_counts(losses.as_loss(OTHERS[name]), PARAMS, DATA, 5)


def test_batches_that_count_as_they_should_raise_no_alarm():
    def apply(p, state, batch, train):
        return squares(p, batch), state

    def weighted(outputs, batch):
        return jnp.sum(outputs * batch[2]) / batch[2].sum(), batch[2].sum()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        counts.warn_of_counts(losses.as_loss(masked_mean), PARAMS, DATA, None)  # one batch
        counts.warn_of_counts(losses.as_loss(masked_mean), PARAMS, (X, Y, MASK[::-1] | True), 4)  # all count
        counts.warn_of_counts(lla.Loss(apply, weighted, per_example=False), PARAMS, DATA, 4)


def test_a_curvature_of_token_means_is_pointed_out_and_right_with_weights():
    with pytest.warns(UserWarning, match="different numbers"):
        lla.hessian(masked_mean, PARAMS, DATA, batch_size=4)

    def weighted(outputs, batch):
        return jnp.sum(outputs * batch[2]) / batch[2].sum(), batch[2].sum()

    loss = lla.Loss(lambda p, state, batch, train: (squares(p, batch), state), weighted, per_example=False)
    v = {"w": jnp.ones(3)}
    product = lla.hessian(loss, PARAMS, DATA, batch_size=4).product(v)["w"]
    rows = X[MASK]
    np.testing.assert_allclose(product, 2 * rows.T @ rows.sum(1) / len(rows), rtol=1e-5)
