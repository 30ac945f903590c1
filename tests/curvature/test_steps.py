"""Finite differences: the error that is stated holds, in all that products are used for."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla

RNG = np.random.default_rng(0)
MATRIX = (lambda a: (a + a.T).astype(np.float32))(RNG.normal(size=(6, 6)))
PARAMS = {"w": RNG.normal(size=6).astype(np.float32)}
DATA = RNG.normal(size=(12, 5)).astype(np.float32), RNG.integers(0, 3, 12).astype(np.int32)
KEY = jax.random.key(0)


def quadratic(p: Any, batch: Any) -> Any:
    return 0.5 * p["w"] @ (MATRIX @ p["w"])


def cubic(p: Any, batch: Any) -> Any:
    return (p["w"] ** 3).sum() / 6


def quartic(p: Any, batch: Any) -> Any:
    return (p["w"] ** 4).sum() / 24


@jax.custom_vjp
def fused(x: Any) -> Any:
    return jnp.tanh(x)


def _backward(y: Any, slope: Any) -> Any:
    shape = jax.ShapeDtypeStruct(y.shape, y.dtype)
    return (jax.pure_callback(lambda y, s: np.asarray(s * (1 - y * y), y.dtype), shape, y, slope),)


fused.defvjp(lambda x: (fused(x),) * 2, _backward)


def network(activation: Any) -> lla.Loss:
    def apply(p: Any, state: Any, batch: Any, train: bool) -> Any:
        return activation(batch[0] @ p["in"]) @ p["out"], state

    def criterion(outputs: Any, batch: Any) -> Any:
        return -jnp.take_along_axis(jax.nn.log_softmax(outputs), batch[1][:, None], 1)[:, 0]

    return lla.Loss(apply, criterion)


WEIGHTS = {"in": RNG.normal(size=(5, 4)).astype(np.float32), "out": RNG.normal(size=(4, 3)).astype(np.float32)}


def differences(loss: Any, params: Any = WEIGHTS, data: Any = DATA, **options: Any) -> Any:
    return lla.hessian(loss, params, data, product="finite-difference", **options)


def distance(H: Any, exact: np.ndarray) -> tuple[float, float]:
    """(distance from the exact matrix, the stated error), in the spectral norm."""
    return float(np.linalg.norm(lla.operators.dense(H) - exact, 2)), H.recipe["product"]["absolute"]


@pytest.mark.parametrize(("loss", "hessian", "most"), [
    (quadratic, lambda w: MATRIX, 5e-5),
    (cubic, lambda w: np.diag(w), 1e-3),
    (quartic, lambda w: np.diag(w**2 / 2), 1e-3),
])  # fmt: skip
def test_the_stated_error_holds(loss: Any, hessian: Any, most: float) -> None:
    H = differences(loss, PARAMS, None)
    exact = hessian(PARAMS["w"])
    away, stated = distance(H, exact)
    assert away <= stated
    assert H.recipe["product"]["error"] <= most
    assert H.recipe["product"]["error"] >= 0.99 * stated / np.abs(np.linalg.eigvalsh(exact)).max()


def steep(p: Any, batch: Any) -> Any:
    """One entry of which has a far larger third derivative of the gradient than all others."""
    return jnp.sum(p["w"] ** 2) / 2 + jnp.cos(30 * p["w"][3]) / 900


def test_a_steep_direction_is_found() -> None:
    w = np.full(100, 0.1, np.float32)
    H = differences(steep, {"w": w}, None)
    exact = np.eye(100)
    exact[3, 3] -= np.cos(30 * w[3])
    away, stated = distance(H, exact)
    assert away <= stated < 2e-2


@pytest.fixture(scope="module")
def exact() -> np.ndarray:
    return lla.operators.dense(lla.hessian(network(jnp.tanh), WEIGHTS, DATA))


def test_a_fused_kernel_has_a_hessian(exact: np.ndarray) -> None:
    loss = network(fused)
    with pytest.raises(ValueError, match='product="finite-difference"'):
        lla.hessian(loss, WEIGHTS, DATA)
    H = differences(loss)
    away, stated = distance(H, exact)
    assert away <= stated < 1e-2 * np.abs(exact).max()
    pairs = lla.eigenpairs(H, KEY, k=2, tol=1e-2)
    values = np.linalg.eigvalsh(exact)
    for value, residual in zip(pairs.values, pairs.residuals, strict=True):
        assert residual >= stated / 2
        assert np.abs(values - value).min() <= residual


def test_the_error_is_that_of_an_operator_with_a_scale() -> None:
    loss, (mask, moment) = (
        network(jnp.tanh),
        (jax.tree.map(lambda x, c=c: np.full_like(x, c), WEIGHTS) for c in (0, 1e-6)),
    )
    mask["in"][0] = 1
    H = differences(loss)
    absolute = H.recipe["product"]["absolute"]
    for made, times in ((lla.operators.masked(H, mask), 1), (lla.operators.preconditioned(H, moment), 1e3)):
        pairs = lla.eigenpairs(made, KEY, k=1, tol=1e-2)
        assert pairs.recipe["rounding"] >= 0.99 * times * absolute
        assert lla.spectral.extremes(made, KEY, 40).residual >= 0.99 * times * absolute


def test_streams_selections_and_other_parameters(exact: np.ndarray) -> None:
    loss = network(jnp.tanh)
    streamed = differences(loss, data=lla.stream([tuple(x[i : i + 5] for x in DATA) for i in (0, 5, 10)]))
    away, stated = distance(streamed, exact)
    assert away <= stated
    part = differences(loss, select="out")
    away, stated = distance(part, exact[20:, 20:])
    assert away <= stated
    others = jax.tree.map(lambda x: 3 * x, WEIGHTS)
    moved = part.at(others)
    away, stated = distance(moved, lla.operators.dense(lla.hessian(loss, others, DATA, select="out")))
    assert away <= stated
    assert moved.recipe["product"]["error"] != part.recipe["product"]["error"]
    assert moved.at(WEIGHTS).recipe["product"] == part.recipe["product"]


def half(p: Any, state: Any, batch: Any, train: bool) -> Any:
    return (batch[0].astype(jnp.bfloat16) @ p["in"].astype(jnp.bfloat16)).astype(jnp.float32), state


@pytest.mark.parametrize(("call", "words"), [
    (lambda: differences(lla.Loss(half, lambda o, b: (o**2).sum(-1))), "product: .* computes in bfloat16"),
    (lambda: lla.hessian(quadratic, PARAMS, None, product="central"), "product: 'central' given"),
    (lambda: differences(quadratic, PARAMS, None, execution=lla.Execution(linearize=True)), "execution.linearize"),
])  # fmt: skip
def test_misuse(call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()
