"""Heads with many classes: found whatever wrote them, evaluated in chunks, with the same derivatives."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lla_jax.core.jaxprs import equations
from lla_jax.execution import heads

ROWS, LENGTH, WIDTH, CLASSES = 4, 6, 3, 40
RNG = np.random.default_rng(0)
PARAMS = {
    "embedding": RNG.normal(size=(CLASSES, WIDTH)),
    "kernel": RNG.normal(size=(WIDTH, CLASSES)),
    "bias": RNG.normal(size=CLASSES),
}
VECTOR = {name: RNG.normal(size=x.shape) for name, x in PARAMS.items()}
TEXT = RNG.integers(0, CLASSES, (ROWS, LENGTH + 1)).astype(np.int32)
TOKENS, LABELS = TEXT[:, :-1], TEXT[:, 1:]
WEIGHTS = RNG.random((ROWS, LENGTH)).astype(np.float32)  # in x64 too: a constant of both kinds of traces

entropy = optax.softmax_cross_entropy_with_integer_labels


def hidden(p: Any, tokens: Any = TOKENS) -> Any:
    return jnp.tanh(jnp.asarray(p["embedding"])[tokens])


def scores(p: Any, tokens: Any = TOKENS) -> Any:
    return hidden(p, tokens) @ p["kernel"] + p["bias"]


def one_hot() -> Any:
    return jax.nn.one_hot(LABELS, CLASSES)


CASES = {
    "weighted": lambda p: (entropy(scores(p), LABELS) * WEIGHTS).sum() / WEIGHTS.sum(),
    "log-softmax": lambda p: -jnp.take_along_axis(jax.nn.log_softmax(scores(p)), LABELS[..., None], -1).mean(),
    "softmax": lambda p: -jnp.log(jnp.take_along_axis(jax.nn.softmax(scores(p)), LABELS[..., None], -1)).mean(),
    "one-hot": lambda p: optax.softmax_cross_entropy(scores(p), one_hot()).mean(),
    "smoothed": lambda p: optax.softmax_cross_entropy(scores(p), optax.smooth_labels(one_hot(), 0.1)).mean(),
    "log-sum-exp twice": lambda p: (
        (x := scores(p), jax.nn.logsumexp(x, -1))[1] - jnp.sum(one_hot() * x, -1) + jax.nn.logsumexp(x, -1) ** 2
    ).mean(),
    "flattened": lambda p: entropy(scores(p).reshape(-1, CLASSES), LABELS.reshape(-1)).mean(),
    "flattened, by number": lambda p: (
        -jax.nn.log_softmax(scores(p).reshape(-1, CLASSES))[jnp.arange(ROWS * LENGTH), LABELS.reshape(-1)].mean()
    ),
    "flat before": lambda p: entropy((hidden(p).reshape(-1, WIDTH) @ p["kernel"]).reshape(ROWS, LENGTH, -1), LABELS),
    "next token": lambda p: entropy(scores(p, TEXT)[:, :-1], TEXT[:, 1:]).mean(),
    "tied": lambda p: entropy(jnp.einsum("btd,vd->btv", hidden(p), p["embedding"]), LABELS).mean(),
    "capped": lambda p: entropy(3 * jnp.tanh(scores(p) / 3), LABELS).mean(),
    "classes before tokens": lambda p: (
        -jnp.take_along_axis(jax.nn.log_softmax(jnp.moveaxis(scores(p), -1, 1), 1), LABELS[:, None], 1).mean()
    ),
    "ignored labels": lambda p: jnp.where(LABELS > 5, entropy(scores(p), LABELS), 0).sum() / (LABELS > 5).sum(),
    "jitted, and accuracy": jax.jit(
        lambda p: entropy(scores(p), LABELS).mean() + (scores(p).argmax(-1) == LABELS).sum()
    ),
}


def product(f: Any, p: Any, v: Any) -> Any:
    """The loss, its gradient, and their derivatives: with this vector."""
    return jax.jvp(jax.value_and_grad(lambda p: f(p).sum()), (p,), (v,))


@pytest.mark.parametrize("name", CASES)
def test_the_products_are_those_of_all_scores_at_once(name: str) -> None:
    with jax.enable_x64(True):
        per_token = 8 * CLASSES * ROWS
        f, found = heads.in_chunks(CASES[name], PARAMS, chunk_bytes=per_token)
        assert found
        assert all(head.num > head.size for head in found)
        both = jax.jit(lambda p, v: (product(CASES[name], p, v), product(f, p, v)))(PARAMS, VECTOR)
    for one, two in zip(*map(jax.tree.leaves, both), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-12, atol=1e-13 * np.abs(one).max())


def test_no_array_of_all_scores_is_left() -> None:
    f, _ = heads.in_chunks(CASES["weighted"], PARAMS, chunk_bytes=4 * CLASSES * ROWS)
    largest = ROWS * LENGTH * CLASSES
    step = jax.make_jaxpr(lambda p, v: product(f, p, v))(PARAMS, VECTOR)
    sizes = [v.aval.size for eqn in equations(step.jaxpr) for v in eqn.outvars]
    assert max(sizes) < largest / 2


REFUSED = {
    "tokens are mixed": lambda p: entropy((x := scores(p)) - x.mean((0, 1)), LABELS).mean(),
    "scores are a result": lambda p: scores(p),
    "small": lambda p: entropy(scores(p)[:1, :1], LABELS[:1, :1]).mean(),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_functions_stay_as_they_are(name: str) -> None:
    nbytes = 2**20 if name == "small" else 4 * CLASSES * ROWS
    f, found = heads.in_chunks(REFUSED[name], PARAMS, chunk_bytes=nbytes)
    assert not found
    assert f is REFUSED[name]


@jax.custom_jvp
def softmax(x: Any) -> Any:
    """Named like jax's, and with another derivative than its equations have."""
    return jnp.exp(x) / jnp.exp(x).sum(-1, keepdims=True)


softmax.defjvp(lambda x, t: (softmax(*x), 2 * t[0]))


def test_a_derivative_of_the_users_own_is_kept() -> None:
    def f(p: Any) -> Any:
        return -jnp.log(jnp.take_along_axis(softmax(scores(p)), LABELS[..., None], -1)).mean()

    g, _ = heads.in_chunks(f, PARAMS, chunk_bytes=4 * CLASSES * ROWS)
    one, two = (jax.grad(f)(PARAMS)["bias"] for f in (f, g))
    np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-7)


def test_jax_softmax_with_its_own_derivative_is_cut() -> None:
    with jax.softmax_custom_jvp(True):
        assert heads.in_chunks(CASES["softmax"], PARAMS, chunk_bytes=4 * CLASSES * ROWS)[1]


def test_gradients_in_half_precision_are_added_up_in_float32() -> None:
    x, labels = jnp.ones((1024, 2), jnp.bfloat16), np.zeros(1024, np.int32)

    def f(kernel: Any) -> Any:
        return entropy((x @ kernel).astype(jnp.float32), labels).mean()

    kernel = jnp.zeros((2, CLASSES), jnp.bfloat16)
    g, found = heads.in_chunks(f, kernel, chunk_bytes=2 * CLASSES)
    assert found[0].size == 1  # 1024 equal terms, of which a sum in bfloat16 would end at 256
    one, two = (np.asarray(jax.jit(jax.grad(f))(kernel), np.float32) for f in (f, g))
    np.testing.assert_allclose(two, one, rtol=2**-6)


def test_a_rest_of_tokens_is_a_chunk_of_its_own() -> None:
    flat, shape = heads.flatten(CASES["weighted"], PARAMS)
    head = heads.find(flat, 4 * CLASSES * ROWS)
    assert head is not None
    assert head.num % 4
    g = heads._evaluator(flat, shape, head._replace(size=4))
    np.testing.assert_allclose(jax.jit(g)(PARAMS), jax.jit(CASES["weighted"])(PARAMS), rtol=1e-6)
