"""Small networks of every library, and their losses."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import chex
import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lla_jax.core.types import Loss
from lla_jax.models.equinox import from_equinox
from lla_jax.models.linen import from_linen
from lla_jax.models.nnx import from_nnx

N, D, C = 7, 3, 2


def data(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(N, D)).astype(np.float32), rng.integers(0, C, N)


def squares(outputs: Any, batch: Any) -> Any:
    return ((outputs - batch[1][:, None]) ** 2).sum(-1)


class LinenNet(nn.Module):
    """Dense, BatchNorm, Dropout with a flag for each."""

    width: int = 4
    rate: float = 0.5

    @nn.compact
    def __call__(self, x: Any, use_running_average: bool, deterministic: bool) -> Any:
        x = nn.BatchNorm(use_running_average=use_running_average, momentum=0.9)(nn.Dense(self.width)(x))
        return nn.Dense(C)(nn.Dropout(self.rate, deterministic=deterministic)(nn.tanh(x)))


class LinenOneFlag(nn.Module):
    """The usual way: ``train`` for both."""

    norm: bool = True
    rate: float = 0.5

    @nn.compact
    def __call__(self, x: Any, train: bool) -> Any:
        x = nn.Dense(4)(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x) if self.norm else x
        return nn.Dense(C)(nn.Dropout(self.rate, deterministic=not train)(nn.tanh(x)))


class LinenDeterministic(nn.Module):
    """``deterministic`` for both."""

    rate: float = 0.5

    @nn.compact
    def __call__(self, x: Any, deterministic: bool = True) -> Any:
        x = nn.BatchNorm(use_running_average=deterministic)(nn.Dense(C)(x))
        return nn.Dropout(self.rate, deterministic=deterministic)(x)


class LinenFixed(nn.Module):
    """No flag to be found."""

    running: bool = True

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.BatchNorm(use_running_average=self.running)(nn.Dense(C)(x))


class NnxNet(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, rate: float = 0.5):
        self.first = nnx.Linear(D, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.drop = nnx.Dropout(rate, rngs=rngs)
        self.layers = nnx.List([nnx.Linear(4, 4, rngs=rngs), nnx.Linear(4, C, rngs=rngs)])
        self.offset = nnx.Variable(jnp.arange(C))

    def __call__(self, x: Any) -> Any:
        x = self.drop(jnp.tanh(self.norm(self.first(x))))
        for layer in self.layers:
            x = layer(x)
        return x + self.offset[...]


class NnxFlag(nnx.Module):
    """Modes in the call."""

    def __init__(self, rngs: nnx.Rngs, norm: bool = True):
        self.first = nnx.Linear(D, C, rngs=rngs)
        self.norm = nnx.BatchNorm(C, rngs=rngs) if norm else None
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: Any, train: bool, rngs: nnx.Rngs | None = None) -> Any:
        x = self.first(x)
        x = x if self.norm is None else self.norm(x, use_running_average=not train)
        return self.drop(x, deterministic=not train, rngs=rngs)


class EqxNet(eqx.Module):
    first: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    last: eqx.nn.Linear
    shift: jax.Array
    act: Callable

    def __init__(self, key: Any, mode: str = "batch"):
        k1, k2 = jax.random.split(key)
        self.first, self.last = eqx.nn.Linear(D, 4, key=k1), eqx.nn.Linear(4, C, key=k2)
        self.norm = eqx.nn.BatchNorm(4, axis_name="batch", mode=mode, momentum=0.9)
        self.drop = eqx.nn.Dropout(0.5)
        self.shift = jnp.arange(C)
        self.act = jax.nn.tanh

    def __call__(self, x: Any, state: Any, *, key: Any = None) -> Any:
        x, state = self.norm(self.first(x), state)
        return self.last(self.drop(self.act(x), key=key)) + self.shift, state


class EqxPlain(eqx.Module):
    mlp: eqx.nn.MLP
    drop: eqx.nn.Dropout

    def __init__(self, key: Any):
        self.mlp, self.drop = eqx.nn.MLP(D, C, 4, 1, key=key), eqx.nn.Dropout(0.5)

    def __call__(self, x: Any, key: Any = None) -> Any:
        return self.drop(self.mlp(x), key=key)


@functools.cache
def _init(seed: int, kind: type[nn.Module], norm: bool) -> Any:
    flags = {LinenNet: 2, LinenOneFlag: 1, LinenDeterministic: 1, LinenFixed: 0}[kind]
    module = kind() if norm else LinenOneFlag(norm=False)
    return jax.jit(lambda key, x: module.init(key, x, *[True] * flags if kind is not LinenOneFlag else [False]))(
        jax.random.key(seed), data()[0]
    )


def make_linen(seed: int = 0, module: Any = None, **options: Any) -> tuple[Loss, Any, Any]:
    module = LinenNet() if module is None else module
    variables = _init(seed, type(module), getattr(module, "norm", True))
    return from_linen(module, variables, squares, **options), variables["params"], (module, variables)


def make_nnx(seed: int = 0, **options: Any) -> tuple[Loss, Any, Any]:
    model = NnxNet(nnx.Rngs(seed))
    return from_nnx(model, squares, **options), nnx.state(model, nnx.Param), model


@functools.cache
def _eqx_model(seed: int, mode: str, steps: int) -> Any:
    """A model and its state after train-mode steps, made with Equinox alone."""
    model, state = eqx.nn.make_with_state(EqxNet)(jax.random.key(seed), mode)

    def one(x: Any, state: Any) -> Any:
        return eqx.nn.inference_mode(model, False)(x, state, key=jax.random.key(0))

    call = jax.vmap(one, axis_name="batch", in_axes=(0, None), out_axes=(0, None))
    for step in range(steps):
        state = call(data(step)[0], copy_state(state))[1]
    return model, state


def copy_state(state: Any) -> Any:
    """``State.set`` makes the object it is called on unusable."""
    return jax.tree.map(lambda a: a, state)


def make_equinox(seed: int = 0, mode: str = "batch", steps: int = 3, **options: Any) -> tuple[Loss, Any, Any]:
    model, state = _eqx_model(seed, mode, steps)
    loss = from_equinox(model, squares, state=state, **options)
    return loss, eqx.filter(model, eqx.is_inexact_array), (model, state)


MAKERS = {"linen": make_linen, "nnx": make_nnx, "equinox": make_equinox}


for_each_library = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def close(a: Any, b: Any, tol: float = 1e-6) -> None:
    """Assert that two trees are equal up to a relative and absolute tolerance."""
    chex.assert_trees_all_close(a, b, rtol=tol, atol=tol)


def bits(tree: Any) -> list[Any]:
    """Every leaf as bytes or value, with the structure."""
    raw = [
        jax.random.key_data(a) if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a
        for a in jax.tree.leaves(tree)
    ]
    return [str(jax.tree.structure(tree)), *(np.asarray(a).tobytes() if eqx.is_array(a) else a for a in raw)]
