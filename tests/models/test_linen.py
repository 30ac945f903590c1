"""Losses of Flax linen modules: outputs and state are the framework's own, and flags are found."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax.core import FrozenDict

from lla_jax.models.linen import from_linen
from tests.models.cases import C, LinenDeterministic, LinenFixed, LinenOneFlag, N, close, data, make_linen, squares


def test_linen_forward_and_state():
    loss, params, (module, variables) = make_linen()
    x, y = data()
    outputs, state = loss.apply(params, loss.state, (x, y), False)
    close(outputs, module.apply(variables, x, True, True))
    assert state is loss.state
    outputs, state = loss.apply(params, loss.state, (x, y), True)
    expected, new = module.apply(variables, x, False, True, mutable=["batch_stats"])
    close((outputs, state), (expected, dict(new)))
    assert jax.tree.structure(state) == jax.tree.structure(loss.state)


def test_linen_noise_is_the_frameworks_own():
    loss, params, (module, variables) = make_linen(key=jax.random.key(0))
    x, y = data()
    keys = jax.random.split(jax.random.key(5), N)
    # running averages, dropout on
    expected = [module.apply(variables, x[i : i + 1], True, False, rngs={"dropout": keys[i]})[0] for i in range(N)]
    close(loss.apply(params, loss.state, (x, y), False, keys)[0], jnp.stack(expected))


@pytest.mark.parametrize("module", [LinenOneFlag(), LinenDeterministic()], ids=["train", "deterministic"])
def test_one_flag_without_key_is_batch_statistics_without_dropout(module: Any):
    loss, params, (_, variables) = make_linen(module=module)
    x, y = data()
    outputs, state = loss.apply(params, loss.state, (x, y), True)
    flag = {"train": True} if isinstance(module, LinenOneFlag) else {"deterministic": False}
    expected, new = module.clone(rate=0.0).apply(variables, x, **flag, mutable=["batch_stats"])
    close((outputs, state), (expected, dict(new)))


def test_noise_without_a_key_is_explained():
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.Dense(C)(x) + jax.random.normal(self.make_rng("noise"), (C,))

    x, y = data()
    variables = Noisy().init({"params": jax.random.key(0), "noise": jax.random.key(1)}, x)
    with pytest.raises(ValueError, match="has no key"):
        from_linen(Noisy(), variables, squares).apply(variables["params"], None, (x, y), False)
    loss = from_linen(Noisy(), variables, squares, key=jax.random.key(0))
    outputs, _ = loss.apply(variables["params"], None, (x, y), False, jax.random.split(jax.random.key(0), N))
    assert outputs.shape == (N, C)


def test_linen_flag_must_be_known_for_batch_statistics():
    loss, params, _ = make_linen(module=LinenFixed())
    with pytest.raises(ValueError, match="train_kwargs"):
        loss.apply(params, loss.state, data(), True)
    loss, params, (module, variables) = make_linen(module=LinenFixed(running=False), train_kwargs={})
    outputs, _ = loss.apply(params, loss.state, data(), True)
    close(outputs, module.apply(variables, data()[0], mutable=["batch_stats"])[0])
    with pytest.raises(ValueError, match="must not change"):
        loss.apply(params, loss.state, data(), False)


def test_kwargs_and_method():
    class Scaled(nn.Module):
        def setup(self) -> None:
            self.dense = nn.Dense(C)

        def __call__(self, x: Any, factor: float = 1.0) -> Any:
            return factor * self.dense(x)

        def features(self, x: Any) -> Any:
            return self.dense(x) + 1

    x, y = data()
    variables = Scaled().init(jax.random.key(0), x)
    base = Scaled().apply(variables, x)
    loss = from_linen(Scaled(), variables, squares, eval_kwargs={"factor": 2.0}, train_kwargs={"factor": 3.0})
    close(loss.apply(variables["params"], None, (x, y), False)[0], 2 * base)
    close(loss.apply(variables["params"], None, (x, y), True)[0], 3 * base)
    for method in ("features", Scaled.features):
        loss = from_linen(Scaled(), variables, squares, method=method)
        close(loss.apply(variables["params"], None, (x, y), False)[0], base + 1)


def test_sown_intermediates_are_no_state():
    class Sowing(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            self.sow("intermediates", "x", x)
            return nn.Dense(C)(x)

    x, _ = data()
    variables = Sowing().init(jax.random.key(0), x)
    assert from_linen(Sowing(), variables, squares).state is None


def test_frozen_dict_variables():
    plain, params, (module, variables) = make_linen()
    frozen = from_linen(module, FrozenDict(variables), squares)
    assert jax.tree.structure(frozen) == jax.tree.structure(plain)
    outputs, state = frozen.apply(FrozenDict(params), frozen.state, data(), True)
    close((outputs, state), plain.apply(params, plain.state, data(), True))
    assert jax.tree.structure(state) == jax.tree.structure(frozen.state)
