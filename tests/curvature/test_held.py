"""What products hold: chunks of scores, fewer examples, rematerialised segments; the products stay the same."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.curvature import held, room
from lla_jax.execution import heads

RNG = np.random.default_rng(0)
ROWS, LENGTH, WIDTH, CLASSES = 8, 6, 4, 64
PARAMS = {
    "embedding": RNG.normal(size=(CLASSES, WIDTH)).astype(np.float32),
    "inner": RNG.normal(size=(WIDTH, WIDTH)).astype(np.float32),
}
TEXT = RNG.integers(0, CLASSES, (ROWS, LENGTH + 1)).astype(np.int32)
DATA = TEXT[:, :-1], TEXT[:, 1:], RNG.random((ROWS, LENGTH)).astype(np.float32)
KEY = jax.random.key(0)


def apply(p: Any, state: Any, batch: Any, train: bool) -> Any:
    return jnp.tanh(jnp.asarray(p["embedding"])[batch[0]] @ p["inner"]) @ p["embedding"].T, state


def criterion(scores: Any, batch: Any) -> Any:
    losses = jax.nn.logsumexp(scores, -1) - jnp.take_along_axis(scores, batch[1][..., None], -1)[..., 0]
    return losses, batch[2]


LOSS = lla.Loss(apply, criterion)


def plain(p: Any, batch: Any) -> Any:
    losses, weights = criterion(apply(p, None, batch, False)[0], batch)
    return (losses * weights).mean()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(heads.CHUNK_BYTES, True, 4 * CLASSES * LENGTH)


@pytest.mark.parametrize("linearize", [True, False])
@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_chunks_of_scores_change_nothing(kind: str, linearize: bool, request: pytest.FixtureRequest) -> None:
    make, execution = getattr(lla, kind), lla.Execution(linearize=linearize)
    whole = make(LOSS, PARAMS, DATA, execution=execution)
    assert "heads" not in whole.recipe["plan"]
    request.getfixturevalue("small_chunks")
    H = make(LOSS, PARAMS, DATA, execution=execution)
    assert H.recipe["plan"]["heads"] == [{"tokens": ROWS, "chunk": 1, "bytes": 4 * ROWS * LENGTH * CLASSES}]
    v = H.random(KEY)
    for one, two in zip(*(jax.tree.leaves(each.product(v)) for each in (whole, H)), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=2e-6 * np.abs(one).max())
    if linearize:
        assert H.recipe["plan"]["bytes"] < whole.recipe["plan"]["bytes"] / 2


@pytest.mark.usefixtures("small_chunks")
def test_streams_and_plain_functions_have_chunks_too() -> None:
    v = lla.hessian(LOSS, PARAMS, DATA).random(KEY)
    streamed = lla.hessian(LOSS, PARAMS, lla.stream([tuple(x[i : i + 4] for x in DATA) for i in (0, 4)]))
    alone = lla.hessian(plain, PARAMS, DATA)
    assert "heads" in streamed.recipe["plan"]
    assert "heads" in alone.recipe["plan"]
    ratio = DATA[2].mean()
    for one, two in zip(*(jax.tree.leaves(each.product(v)) for each in (streamed, alone)), strict=True):
        np.testing.assert_allclose(two, ratio * one, rtol=1e-5, atol=2e-6 * np.abs(two).max())


def deep(p: Any, batch: Any) -> Any:
    x = batch
    for w in p:
        x = x + jnp.tanh(x @ w)
    return (x**2).mean()


def test_rematerialisation_takes_less_memory() -> None:
    params = [RNG.normal(size=(8, 8)).astype(np.float32) / 4 for _ in range(24)]
    x = RNG.normal(size=(512, 8)).astype(np.float32)
    H, spared = (
        lla.hessian(deep, params, x, execution=lla.Execution(remat=yes, linearize=False)) for yes in (False, True)
    )
    assert spared.recipe["plan"]["remat"]
    assert "remat" not in H.recipe["plan"]
    v = H.random(KEY)
    for one, two in zip(*(jax.tree.leaves(each.product(v)) for each in (H, spared)), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-4, atol=1e-5 * np.abs(one).max())
    assert room.product_bytes(spared) < 0.6 * room.product_bytes(H)


@pytest.mark.parametrize(("loss", "free", "rows", "remat"), [
    (LOSS, 2**30, ROWS, False), (LOSS, 200_000, 4, False), (LOSS, 1000, 1, True), (plain, 1000, ROWS, True),
])  # fmt: skip
def test_blocks_fit_into_the_free_memory(
    loss: Any, free: int, rows: int, remat: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held, "free_bytes", lambda by: free)
    plan = lla.hessian(loss, PARAMS, DATA).recipe["plan"]
    assert plan["rows"] <= rows
    assert plan.get("remat", False) == remat
