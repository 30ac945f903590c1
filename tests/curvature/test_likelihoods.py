"""Likelihoods are recognised by their slopes, and the Fisher matrix with their targets is the one that is exact."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lla_jax as lla
from lla_jax.curvature import likelihoods, operators, recognition, sampling
from tests.helpers import ANEW, error, few_rows

N, T, C = 12, 3, 3
KEY = jax.random.key(0)
_rng = np.random.default_rng(0)
X = _rng.standard_normal((N, 4)).astype("float32")
TOKENS = _rng.standard_normal((N, T, 4)).astype("float32")
LABELS, TOKEN_LABELS = _rng.integers(0, C, N), _rng.integers(0, C, (N, T))
BINARY, REALS = (LABELS > 0).astype("int32"), _rng.standard_normal((N, C)).astype("float32")
PADDED = np.where(np.arange(T) < 1 + np.arange(N)[:, None] % T, TOKEN_LABELS, -100)


def params(outputs: int = C) -> dict:
    return {"kernel": (0.5 * np.random.default_rng(1).standard_normal((4, outputs))).astype("float32")}


def model(then=lambda outputs: outputs):
    """A linear model, with a function on top."""

    def apply(p, state, batch, train):
        return then((batch["x"] if isinstance(batch, dict) else batch[0]) @ p["kernel"]), state

    return apply


def entropy(scores, labels):
    return -jnp.take_along_axis(jax.nn.log_softmax(scores), jnp.maximum(labels, 0)[..., None], -1)[..., 0]


def on_axis_1(outputs):
    return outputs.swapaxes(1, 2)


def entropy_on_axis_1(outputs, batch):
    return entropy(outputs.swapaxes(1, 2), batch[1])


def first(outputs):
    return outputs[:, 0]


CLASS_WEIGHTS = jnp.array([1.0, 3.0, 0.5])
CASES = {  # name: (loss, outputs, data, likelihood)
    "scores": (lla.Loss(model(), lambda o, b: entropy(o, b[1])), C, (X, LABELS), "categorical over axis 1 of scores"),
    "temperature": (
        lla.Loss(model(), lambda o, b: entropy(o / 0.25, b[1])),
        C,
        (X, LABELS),
        "categorical over axis 1 of scores / 0.25",
    ),
    "optax": (
        lla.Loss(model(), lambda o, b: optax.softmax_cross_entropy_with_integer_labels(o, b[1])),
        C,
        (X, LABELS),
        "categorical over axis 1 of scores",
    ),
    "classes on axis 1": (
        lla.Loss(model(on_axis_1), entropy_on_axis_1),
        C,
        (TOKENS, TOKEN_LABELS),
        "categorical over axis 1 of scores",
    ),
    "sums over tokens": (
        lla.Loss(model(), lambda o, b: entropy(o, b[1]).sum(1)),
        C,
        (TOKENS, TOKEN_LABELS),
        "categorical over axis 2 of scores",
    ),
    "means over the tokens that count": (
        lla.Loss(model(), lambda o, b: jnp.sum(entropy(o, b[1]) * (b[1] >= 0), 1) / jnp.sum(b[1] >= 0, 1)),
        C,
        (TOKENS, PADDED),
        "categorical over axis 2 of scores",
    ),
    "ignored labels": (
        lla.Loss(model(), lambda o, b: (entropy(o, b[1]), 1.0 * (b[1] >= 0))),
        C,
        (TOKENS, PADDED),
        "categorical over axis 2 of scores",
    ),
    "class weights": (
        lla.Loss(model(), lambda o, b: (entropy(o, b[1]), CLASS_WEIGHTS[b[1]])),
        C,
        (X, LABELS),
        "categorical over axis 1 of scores",
    ),
    "soft labels": (
        lla.Loss(model(), lambda o, b: optax.softmax_cross_entropy(o, b[1])),
        C,
        (X, np.asarray(jax.nn.softmax(REALS))),
        "categorical over axis 1 of scores",
    ),
    "log-probabilities": (
        lla.Loss(model(jax.nn.log_softmax), lambda o, b: -jnp.take_along_axis(o, b[1][:, None], 1)[:, 0]),
        C,
        (X, LABELS),
        "categorical over axis 1 of log-probabilities",
    ),
    "probabilities": (
        lla.Loss(model(jax.nn.softmax), lambda o, b: -jnp.log(jnp.take_along_axis(o, b[1][:, None], 1)[:, 0])),
        C,
        (X, LABELS),
        "categorical over axis 1 of probabilities",
    ),
    "one logit": (
        lla.Loss(model(first), lambda o, b: optax.sigmoid_binary_cross_entropy(o, b[1])),
        1,
        (X, BINARY),
        "Bernoulli",
    ),
    "one logit of shape (B, 1), labels in a dict": (
        lla.Loss(model(), lambda o, b: b["mask"] * optax.sigmoid_binary_cross_entropy(o[:, 0], b["y"])),
        1,
        {"x": X, "mask": np.arange(N) % 4 > 0, "y": BINARY == 1},
        "Bernoulli",
    ),
    "labels -1 and 1": (
        lla.Loss(model(), lambda o, b: jax.nn.softplus(-b[1] * o[:, 0] / 2)),
        1,
        (X, 2 * BINARY - 1),
        "Bernoulli",
    ),
    "a probability": (
        lla.Loss(model(lambda o: jax.nn.sigmoid(o[:, 0])), lambda o, b: -jnp.log(jnp.where(b[1] == 1, o, 1 - o))),
        1,
        (X, BINARY),
        "Bernoulli",
    ),
    "several labels": (
        lla.Loss(model(), lambda o, b: optax.sigmoid_binary_cross_entropy(o, b[1]).mean(-1)),
        C,
        (X, (REALS > 0).astype("float32")),
        "Bernoulli",
    ),
    "counts": (
        lla.Loss(model(first), lambda o, b: jnp.exp(o) - b[1] * o),
        1,
        (X, LABELS),
        "Poisson",
    ),
    "rates": (
        lla.Loss(model(lambda o: jax.nn.softplus(o[:, 0])), lambda o, b: o - b[1] * jnp.log(o)),
        1,
        (X, LABELS.astype("float32")),
        "Poisson",
    ),
    "counts with exposures": (
        lla.Loss(model(first), lambda o, b: jnp.exp(o + b[2]) - b[1] * (o + b[2])),
        1,
        (X, LABELS, REALS[:, 0]),
        "Poisson",
    ),
    "mean of squares": (
        lla.Loss(model(), lambda o, b: jnp.mean((o - b[1]) ** 2, -1)),
        C,
        (X, REALS),
        "Gaussian",
    ),
    "squares of integers": (lla.Loss(model(first), lambda o, b: (o - b[1]) ** 2), 1, (X, LABELS), "Gaussian"),
    "large targets": (
        lla.Loss(model(lambda o: 1e5 + o), lambda o, b: jnp.sum((o - b[1]) ** 2, -1)),
        C,
        (X, 1e5 + 100 * REALS),
        "Gaussian",
    ),
    "predicted variances": (
        lla.Loss(model(), lambda o, b: 0.5 * (jnp.exp(-o[:, 1]) * (o[:, 0] - b[1]) ** 2 + o[:, 1])),
        2,
        (X, REALS[:, 0]),
        "Gaussian",
    ),
    "the next token, labels cut by the criterion": (
        lla.Loss(model(), lambda o, b: entropy(o[:, :-1], b[1][:, 1:])),
        C,
        (TOKENS, TOKEN_LABELS),
        "categorical over axis 2 of scores, of the next token",
    ),
    "the next token, classes before tokens": (
        lla.Loss(
            lambda p, state, b, train: (model()(p, state, b, train)[0][:, :-1].swapaxes(1, 2), state),
            lambda o, b: entropy(o.swapaxes(1, 2), b[1][:, 1:]),
        ),
        C,
        (TOKENS, TOKEN_LABELS),
        "categorical over axis 1 of scores, of the next token",
    ),
    "the next token of one sequence": (
        lla.Loss(
            lambda p, state, b, train: (jax.nn.one_hot(b[:, :-1], 4) @ p["kernel"], state),
            lambda o, b: entropy(o, b[:, 1:]).sum(1),
        ),
        C,
        TOKEN_LABELS,
        "categorical over axis 2 of scores, of the next token",
    ),
    "labels and counts": (
        lla.Loss(
            lambda p, state, b, train: ({"label": b[0] @ p["kernel"], "count": b[0] @ p["kernel"][:, 0]}, state),
            lambda o, b: entropy(o["label"], b[1]) + jnp.exp(o["count"]) - b[2] * o["count"],
        ),
        C,
        (X, LABELS, LABELS[::-1].copy()),
        "categorical over axis 1 of scores, Poisson",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_fisher_likelihood_is_recognised(name):
    loss, outputs, data, expected = CASES[name]
    assert str(recognition.recognise(loss, params(outputs), few_rows(data), False)) == expected


SAME_AS_GGN = [
    "temperature",
    "classes on axis 1",
    "ignored labels",
    "class weights",
    "one logit",
    "counts",
    "mean of squares",
    "the next token, labels cut by the criterion",
]


@pytest.mark.parametrize("name", SAME_AS_GGN)
def test_fisher_of_the_right_likelihood_is_the_ggn(name):
    loss, outputs, data, _ = CASES[name]
    G = operators.dense(lla.ggn(loss, params(outputs), data, execution=ANEW))
    F = lla.fisher(loss, params(outputs), data, KEY, samples=2000, execution=ANEW)
    assert error(operators.dense(F), G) < 0.1


def _exact(name):
    """E_y[g g'] of one case by definition: over all targets of an example, or for natural parameters."""
    if name == "log-probabilities":
        loss, outputs, data, _ = CASES["scores"]
    elif name == "a probability":
        loss, outputs, data, _ = CASES["one logit"]
    else:  # rates r = softplus(f): g = (1 - y / r) r', of variance r'^2 / r
        f = X.astype(float) @ params(1)["kernel"][:, 0]
        weights = (1 / (1 + np.exp(-f))) ** 2 / np.log1p(np.exp(f))
        return np.einsum("n,ni,nj->ij", weights, X, X) / N
    return operators.dense(lla.ggn(loss, params(outputs), data, execution=ANEW))


@pytest.mark.parametrize("name", ["log-probabilities", "a probability", "rates"])
def test_fisher_does_not_depend_on_how_the_outputs_are_written(name):
    loss, outputs, data, _ = CASES[name]
    F = lla.fisher(loss, params(outputs), data, KEY, samples=2000, execution=ANEW)
    assert error(operators.dense(F), _exact(name)) < 0.1


NO_LIKELIHOOD = {
    "smoothed labels": (lambda o, b: optax.softmax_cross_entropy(o, optax.smooth_labels(jax.nn.one_hot(b[1], C), 0.1))),
    "class weights without weights": lambda o, b: entropy(o, b[1]) * CLASS_WEIGHTS[b[1]],
    "squared margins": lambda o, b: jnp.maximum(0, 1 - (2 * b[1] - 1) * o[:, 0]) ** 2,
    "a label that is ignored though a class": lambda o, b: jnp.where(b[1] == 0, 0, entropy(o, b[1])),
    "positive labels weigh more": lambda o, b: jax.nn.softplus(o[:, 0]) * (1 + b[1]) - b[1] * o[:, 0],
    "shifted labels": lambda o, b: entropy(o, jnp.roll(b[1], 1)),
}


@pytest.mark.parametrize("name", NO_LIKELIHOOD)
def test_fisher_of_no_likelihood_is_refused(name):
    loss = lla.Loss(model(), NO_LIKELIHOOD[name])
    with pytest.raises(ValueError, match=r"none of the likelihoods that are recognised.*sample=f"):
        recognition.recognise(loss, params(), few_rows((X, LABELS)), False)


@pytest.mark.parametrize("name", ["(1 - y f)^2", "shrunken outputs", "variances without a norm"])
def test_fisher_of_squares_that_are_no_density_is_refused(name):
    criterion = {
        "(1 - y f)^2": lambda o, b: (1 - b[1][:, 0] * o[:, 0]) ** 2,
        "shrunken outputs": lambda o, b: jnp.sum((o - b[1]) ** 2 + 0.1 * o**2, -1),
        "variances without a norm": lambda o, b: jnp.exp(-o[:, 1]) * (o[:, 0] - b[1][:, 0]) ** 2,
    }[name]
    with pytest.raises(ValueError, match="none of the likelihoods"):
        recognition.recognise(lla.Loss(model(), criterion), params(), few_rows((X, REALS)), False)


def test_fisher_with_a_sampler_of_another_likelihood_is_refused():
    loss, outputs, data, _ = CASES["one logit"]
    check = functools.partial(sampling.check_mean_slope, loss, params(outputs), few_rows(data))
    check(operators.bernoulli, False, False)
    for sample in (operators.gaussian, functools.partial(operators.bernoulli, temperature=3.0), operators.poisson):
        with pytest.raises(ValueError, match="standard errors from zero"):
            check(sample, False, False)


@pytest.mark.parametrize(
    ("squares", "right", "wrong"),
    [
        (lambda o, b: ((o - b[1]) ** 2).sum(1), 0.5, 1.0),
        (lambda o, b: ((o - b[1]) ** 2).sum(1) / 2, 1.0, 0.5),
        (lambda o, b: ((o - b[1]) ** 2).mean(1), C / 2, 0.5),
    ],
)
def test_fisher_with_a_gaussian_sampler_of_another_variance_is_refused(squares, right, wrong):
    loss = lla.Loss(model(), squares)
    check = functools.partial(sampling.check_mean_slope, loss, params(), few_rows((X, REALS)))
    check(functools.partial(operators.gaussian, variance=right), False, False)
    with pytest.raises(ValueError, match="times the variance of the Gaussian likelihood"):
        check(functools.partial(operators.gaussian, variance=wrong), False, False)


def test_fisher_means_over_tokens_may_be_drawn_by_the_user():
    """Such a loss is a part of the negative log-likelihood, whose slope varies less than the curvature says."""
    loss = lla.Loss(model(), lambda o, b: entropy(o, b[1]).mean(1))
    sampling.check_mean_slope(loss, params(), few_rows((TOKENS, TOKEN_LABELS)), operators.categorical, False, False)


def test_fisher_with_a_sampler_that_returns_the_target_alone_is_refused():
    loss = lla.Loss(model(), lambda o, b: ((o - b[1]) ** 2).sum(1) / 2)
    sample = lambda key, outputs, example: outputs + jax.random.normal(key, outputs.shape)  # noqa: E731
    with pytest.raises(ValueError, match=r"sample: it returns an array of shape .* it must return the example"):
        lla.fisher(loss, params(), (X, REALS), KEY, sample=sample)


@pytest.mark.parametrize("gain", [1.0, 40.0, 400.0])
def test_a_network_that_is_sure_raises_no_alarm(gain):
    """Targets that are so rare that no draw has them: the mean slope is not zero, and its variance unseen."""
    loss = lla.Loss(model(lambda o: gain * o), lambda o, b: entropy(o, b[1]))
    sampling.check_mean_slope(loss, params(), few_rows((X, LABELS)), operators.categorical, False, False)


@pytest.mark.parametrize("sample", [None, operators.bernoulli], ids=["recognised", "given"])
def test_what_is_rare_is_drawn_as_rarely_from_half_precision(sample):
    """A uniform number of 8 bits is below 0.001 seven times as often as it should be."""

    def cross_entropy(outputs, batch):
        return optax.sigmoid_binary_cross_entropy(outputs[:, 0].astype(jnp.float32), batch[1])

    loss = lla.Loss(model(lambda o: o.astype(jnp.bfloat16)), cross_entropy)
    data, outputs = (X, BINARY), jnp.full((N, 1), np.log(0.001 / 0.999), jnp.bfloat16)
    sampler = sampling.settle(loss, params(1), few_rows(data), sample or "recognise", False)
    batch = jax.tree.map(jnp.asarray, data)

    def count(key):
        return likelihoods.draw(sampler, loss, jax.random.split(key, N), outputs, batch)[1].sum()

    drawn = jax.jit(lambda: jax.lax.map(count, jax.random.split(KEY, 5000)))()
    assert drawn.sum() / (5000 * N) == pytest.approx(0.001, rel=0.5)  # 60 are expected, with a deviation of 8
