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


@jax.jit
def norm(mask):
    return mask / mask.sum()


def by_steps(p, batch):
    """The masked mean, added up over the tokens."""

    def add(carry, step):
        total, count = carry
        return (total + step[0].sum(), count + step[1].sum()), None

    steps = ((squares(p, batch) * batch[2]).T, 1.0 * batch[2].T)
    (total, count), _ = jax.lax.scan(add, (jnp.zeros(()), jnp.zeros(())), steps)
    return total / count


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
    "weights that are normed": lambda p, batch: (squares(p, batch) * (batch[2] / batch[2].sum())).sum(),
    "weights that a helper norms": lambda p, batch: (squares(p, batch) * norm(batch[2])).sum(),
    "a product of matrices": lambda p, batch: jnp.einsum("nt,nt->", squares(p, batch), batch[2] / batch[2].sum()),
    "terms that are normed": lambda p, batch: (squares(p, batch) * batch[2] / batch[2].sum()).sum(),
    "a mean by a mean": lambda p, batch: (squares(p, batch) * batch[2]).mean() / batch[2].mean(),
    "sums in a loop": lambda p, batch: by_steps(p, batch),
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
    "a Dice loss": lambda p, batch: (
        1
        - 2
        * (jax.nn.sigmoid(squares(p, batch)) * batch[2]).sum()
        / (jax.nn.sigmoid(squares(p, batch)).sum() + batch[2].sum() + 1)
    ),
    "smoothed labels": lambda p, batch: (
        -jnp.mean(jax.nn.log_softmax(squares(p, batch)) * (0.9 * batch[2] / batch[2].sum(1, keepdims=True) + 0.1 / T))
    ),
    "inputs of sum 1": lambda p, batch: ((batch[0] / batch[0].sum() @ p["w"] - batch[1]) ** 2).mean(),
    "standardized labels": lambda p, batch: (
        (batch[0] @ p["w"] - (batch[1] - batch[1].mean()) / batch[1].std()) ** 2
    ).mean(),
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


def coupled(criterion):
    return lla.Loss(lambda p, state, batch, train: (squares(p, batch), state), criterion, per_example=False)


WRONG = {
    "a sum": (lambda o, b: (o.sum(), 1.0 * o.size), "is a sum"),
    "a sum over entries that count": (lambda o, b: ((o * b[2]).sum(), b[2].sum()), "is a sum"),
    "a mean taken for a sum": (lambda o, b: (o.mean() / o.size, o.size), "a mean was returned where a sum"),
    "a constant weight": (lambda o, b: (o.mean(), 0.1), "does not add up"),
    "a constant weight of a contrast": (
        lambda o, b: (-jnp.diagonal(jax.nn.log_softmax(o @ o.T)).mean(), 1.0),
        "not the sum of the weights",
    ),
    "a mean as the weight": (lambda o, b: (o.mean(), b[2].mean()), "not the sum of the weights"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_value_that_does_not_fit_its_weight_is_pointed_out(name):
    criterion, text = WRONG[name]
    for data, size in ((DATA, None), (DATA, 4), (lla.stream([DATA]), None)):
        with pytest.warns(UserWarning, match=text):
            counts.warn_of_counts(coupled(criterion), PARAMS, data, size)


RIGHT = {
    "examples": lambda o, b: (o.mean(), len(o)),
    "entries that count": lambda o, b: ((o * b[2]).sum() / b[2].sum(), b[2].sum()),
    "a guard": lambda o, b: ((o * b[3]).sum() / jnp.maximum(b[3].sum(), 1), jnp.maximum(b[3].sum(), 1)),
    "pairs": lambda o, b: (jnp.abs(o[:, :1] - o[:, 0]).sum() / (len(o) * (len(o) - 1)), len(o) * (len(o) - 1)),
    "a contrast": lambda o, b: (-jnp.diagonal(jax.nn.log_softmax(o @ o.T)).mean(), len(o)),
    "zero": lambda o, b: (0 * o.mean(), len(o)),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_value_that_fits_its_weight_raises_no_alarm(name):
    half = MASK & (np.arange(N) < N // 2)[:, None]  # nothing counts in the second half
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        counts.warn_of_counts(coupled(RIGHT[name]), PARAMS, (*DATA, half), None)


def test_further_data_are_looked_at_too():
    every = (X, Y, np.ones_like(MASK))
    axes = lla.directions.random(jax.random.key(0), PARAMS, num=1)
    with pytest.warns(UserWarning, match="different numbers"):
        lla.evaluate(masked_mean, PARAMS, every, axes, [np.zeros(1)], extra_data={"test": DATA}, batch_size=4)
