"""Adapters: the framework's own numbers, an untouched model, and no second compilation."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.core import FrozenDict

from lla_jax.core.losses import as_loss
from lla_jax.core.types import Loss
from lla_jax.models.equinox import from_equinox
from lla_jax.models.linen import from_linen
from lla_jax.models.nnx import from_nnx

N, D, C = 7, 3, 2


def _data(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(N, D)).astype(np.float32), rng.integers(0, C, N)


def _squares(outputs: Any, batch: Any) -> Any:
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
        jax.random.key(seed), _data()[0]
    )


def _linen(seed: int = 0, module: Any = None, **options: Any) -> tuple[Loss, Any, Any]:
    module = LinenNet() if module is None else module
    variables = _init(seed, type(module), getattr(module, "norm", True))
    return from_linen(module, variables, _squares, **options), variables["params"], (module, variables)


def _nnx(seed: int = 0, **options: Any) -> tuple[Loss, Any, Any]:
    model = NnxNet(nnx.Rngs(seed))
    return from_nnx(model, _squares, **options), nnx.state(model, nnx.Param), model


@functools.cache
def _eqx_model(seed: int, mode: str, steps: int) -> Any:
    """A model and its state after train-mode steps, made with Equinox alone."""
    model, state = eqx.nn.make_with_state(EqxNet)(jax.random.key(seed), mode)
    call = jax.vmap(
        lambda x, s: eqx.nn.inference_mode(model, False)(x, s, key=jax.random.key(0)),
        axis_name="batch", in_axes=(0, None), out_axes=(0, None),
    )  # fmt: skip
    for step in range(steps):
        state = call(_data(step)[0], _copy(state))[1]
    return model, state


def _copy(state: Any) -> Any:
    """``State.set`` makes the object it is called on unusable."""
    return jax.tree.map(lambda a: a, state)


def _equinox(seed: int = 0, mode: str = "batch", steps: int = 3, **options: Any) -> tuple[Loss, Any, Any]:
    model, state = _eqx_model(seed, mode, steps)
    loss = from_equinox(model, _squares, state=state, **options)
    return loss, eqx.filter(model, eqx.is_inexact_array), (model, state)


MAKERS = {"linen": _linen, "nnx": _nnx, "equinox": _equinox}
each = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def _close(a: Any, b: Any, tol: float = 1e-6) -> None:
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tol, atol=tol)


def _bits(tree: Any) -> list[Any]:
    """Every leaf as bytes or value, with the structure."""
    raw = [
        jax.random.key_data(a) if isinstance(a, jax.Array) and jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a
        for a in jax.tree.leaves(tree)
    ]
    return [str(jax.tree.structure(tree)), *(np.asarray(a).tobytes() if eqx.is_array(a) else a for a in raw)]


class _Compiles:
    """Counts backend compilations while ``active``."""

    active: ClassVar[list[_Compiles]] = []

    def __enter__(self) -> _Compiles:
        self.count = 0
        _Compiles.active.append(self)
        return self

    def __exit__(self, *_: Any) -> None:
        _Compiles.active.remove(self)


def _count(event: str, *_: Any, **__: Any) -> None:
    if "backend_compile" in event:
        for counter in _Compiles.active:
            counter.count += 1


jax.monitoring.register_event_duration_secs_listener(_count)


# plain functions


def _plain(params: Any, batch: Any) -> Any:
    return ((batch[0] @ params - batch[1]) ** 2).mean()


def test_plain_function():
    x, y = _data()
    loss = as_loss(_plain)
    outputs, state = loss.apply(jnp.ones(D), loss.state, (x, y), False)
    assert loss.criterion(outputs, (x, y)) == _plain(jnp.ones(D), (x, y))
    assert state is None
    assert not loss.per_example
    assert as_loss(loss) is loss
    assert jax.tree.structure(as_loss(_plain)) == jax.tree.structure(loss)
    assert jax.tree.structure(as_loss(lambda p, b: 0.0)) != jax.tree.structure(loss)


def test_plain_function_must_be_callable():
    with pytest.raises(ValueError, match=r"loss: \{\} given; it must be an lla.Loss"):
        as_loss({})


# the framework's own numbers


def test_linen_forward_and_state():
    loss, params, (module, variables) = _linen()
    x, y = _data()
    outputs, state = loss.apply(params, loss.state, (x, y), False)
    _close(outputs, module.apply(variables, x, True, True))
    assert state is loss.state
    outputs, state = loss.apply(params, loss.state, (x, y), True)
    expected, new = module.apply(variables, x, False, True, mutable=["batch_stats"])
    _close((outputs, state), (expected, dict(new)))
    assert jax.tree.structure(state) == jax.tree.structure(loss.state)


def test_nnx_forward_and_state():
    loss, params, model = _nnx()
    batch = _data()
    expected = nnx.view(model, deterministic=True, use_running_average=True)(batch[0])
    pure = nnx.to_pure_dict(params)
    for given in (params, pure, jax.tree.map(lambda a: a + 0, params)):
        outputs, state = loss.apply(given, loss.state, batch, False)
        _close(outputs, expected)
        assert state is loss.state
    outputs, state = loss.apply(params, loss.state, batch, True)
    own = nnx.clone(model)
    own.train()
    own.drop.deterministic = True
    _close(outputs, own(batch[0]))
    _close((state["norm"], state["offset"]), (nnx.state(own.norm, nnx.BatchStat), nnx.state(own)["offset"]))
    assert jax.tree.structure(state) == jax.tree.structure(loss.state)
    assert _bits(loss.state["drop"]) == _bits(state["drop"])


@pytest.mark.parametrize(("mode", "steps"), [("batch", 0), ("batch", 1), ("batch", 3), ("ema", 2)])
def test_equinox_forward_and_state(mode: str, steps: int):
    loss, params, (model, old) = _equinox(mode=mode, steps=steps)
    batch = _data(9)

    def own(inference: bool, state: Any) -> Any:
        quiet = eqx.tree_at(lambda m: m.drop.inference, eqx.nn.inference_mode(model, inference), True)
        return jax.vmap(quiet, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(batch[0], state)

    outputs, state = loss.apply(params, loss.state, batch, False)
    _close(outputs, own(True, _copy(old))[0], 5e-6)
    assert state is loss.state
    outputs, state = loss.apply(params, loss.state, batch, True)
    if mode == "ema":  # Equinox normalizes by the batch on the first step only
        old = _copy(old).set(model.norm.ema_first_time_index, jnp.array(True))
        _close(
            state["state"].get(model.norm.ema_state_index), own(False, _copy(old))[1].get(model.norm.ema_state_index)
        )
    else:
        counter, index = model.norm.batch_counter, model.norm.batch_state_index
        scale = 1 - 0.9**steps if steps else 1.0
        hidden = tuple(np.asarray(a) / scale for a in old.get(index))
        old = _copy(old).set(index, hidden).set(counter, jnp.array(0))
        _close(state["state"].get(index), own(False, _copy(old))[1].get(index))
        assert state["state"].get(counter) == 0
    _close(outputs, own(False, _copy(old))[0])
    assert jax.tree.structure(state) == jax.tree.structure(loss.state)


@each
def test_statistics_are_affine_in_the_old_ones(make: Any):
    """new = m old + (1 - m) batch, and outputs in train mode do not depend on the old: re-estimation builds on this."""
    loss, params, _ = make()
    batch = _data()

    def step(value: float) -> Any:
        def fill(a: Any) -> Any:
            return jnp.full_like(a, value) if jnp.issubdtype(a.dtype, jnp.floating) else a

        outputs, state = loss.apply(params, jax.tree.map(fill, loss.state), batch, True)
        return outputs, [a for a in jax.tree.leaves(state) if jnp.issubdtype(a.dtype, jnp.floating)]

    (out0, at0), (out1, at1), (out3, at3) = step(0.0), step(1.0), step(3.0)
    _close(out0, out1)
    _close(out0, out3)
    for a, b, c in zip(at0, at1, at3, strict=True):
        np.testing.assert_allclose(b - a, 0.9, rtol=1e-5)
        np.testing.assert_allclose(c, a + 2.7, rtol=1e-5)
    # frozen statistics = those of this very batch: eval mode is then train mode
    means = iter([a / 0.1 for a in at0])
    estimated = jax.tree.map(lambda a: next(means) if jnp.issubdtype(a.dtype, jnp.floating) else a, loss.state)
    _close(loss.apply(params, estimated, batch, False)[0], out0, 1e-4)


def test_equinox_ema_statistics_are_those_of_the_batch():
    loss, params, _ = _equinox(mode="ema")
    batch = _data()
    outputs, state = loss.apply(params, loss.state, batch, True)
    _close(loss.apply(params, state, batch, False)[0], outputs)


def test_gradient_and_jit():
    for make in MAKERS.values():
        loss, params, _ = make()
        batch = _data()
        value = lambda p: loss.criterion(loss.apply(p, loss.state, batch, False)[0], batch).mean()  # noqa: E731, B023
        gradient = jax.jit(jax.grad(value))(params)
        assert all(np.isfinite(a).all() for a in jax.tree.leaves(gradient))
        assert jax.tree.structure(gradient) == jax.tree.structure(params)


def test_model_without_state():
    x, y = _data()
    dense = nn.Dense(C)
    variables = dense.init(jax.random.key(0), x)
    loss = from_linen(dense, variables, _squares)
    assert loss.state is None
    for train in (False, True):
        outputs, state = loss.apply(variables["params"], None, (x, y), train)
        _close(outputs, dense.apply(variables, x))
        assert state is None
    linear = nnx.Linear(D, C, rngs=nnx.Rngs(0))
    loss = from_nnx(linear, _squares)
    _close(loss.apply(nnx.state(linear, nnx.Param), loss.state, (x, y), True)[0], linear(x))
    assert loss.state is None
    mlp = eqx.nn.MLP(D, C, 4, 1, key=jax.random.key(0))
    loss = from_equinox(mlp, _squares)
    assert loss.state is None
    _close(loss.apply(eqx.filter(mlp, eqx.is_inexact_array), None, (x, y), True)[0], jax.vmap(mlp)(x))


# the user's model


@each
@pytest.mark.parametrize("key", [None, 0])
def test_model_is_untouched(make: Any, key: int | None):
    key = None if key is None else jax.random.key(key)
    loss, params, model = make(key=key)
    flags = (model.drop.deterministic, model.norm.use_running_average, model.drop.rate) if make is _nnx else None
    # training modes as the user left them
    before = _bits(nnx.state(model) if make is _nnx else model), _bits(params), _bits(loss.state)
    graph = nnx.graphdef(model) if make is _nnx else None
    batch = _data()
    keys = () if key is None else (jax.random.split(key, N),)
    for train in (False, True) if key is None else (False,):
        loss.apply(params, loss.state, batch, train, *keys)
    assert before == (_bits(nnx.state(model) if make is _nnx else model), _bits(params), _bits(loss.state))
    if make is _nnx:
        assert flags == (model.drop.deterministic, model.norm.use_running_average, model.drop.rate)
        assert flags == (False, False, 0.5)
        assert nnx.graphdef(model) == graph
        model.norm.mean[...] = jnp.full(4, 9.0)  # the user trains on: the loss keeps what it was built from
        assert not np.any(loss.state["norm"]["mean"].get_value() == 9.0)


# one architecture, one program


@each
@pytest.mark.parametrize("keyed", [False, True])
def test_second_adapter_compiles_nothing(make: Any, keyed: bool):
    key = jax.random.key(1) if keyed else None
    batch, other = _data(), _data(1)
    keys = (jax.random.split(jax.random.key(2), N),) if keyed else ()
    run = jax.jit(lambda loss, p, b, *k: loss.criterion(loss.apply(p, loss.state, b, False, *k)[0], b))
    (a, params_a, _), (b, params_b, _) = make(0, key=key), make(1, key=key)
    first = run(a, params_a, batch, *keys)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert hash(jax.tree.structure(a)) == hash(jax.tree.structure(b))
    with _Compiles() as compiles:
        second = run(b, params_b, other, *keys)
        jax.block_until_ready(second)
    assert compiles.count == 0
    assert not np.allclose(first, second)


def test_other_architectures_differ():
    base, *_ = _linen()
    wide, *_ = _linen(module=LinenNet(width=5))
    assert base.apply == _linen(seed=1)[0].apply
    assert base.apply != wide.apply
    assert _linen(inputs=0)[0].apply != base.apply
    assert _linen(eval_kwargs={"deterministic": True})[0].apply == base.apply  # the same call
    assert _equinox(mode="ema")[0].apply != _equinox()[0].apply


def test_unhashable_parts_compare_by_identity():
    loose = lambda: _linen(module=LinenNet(width=np.array(4)))[0]  # noqa: E731
    a, b = loose(), loose()
    assert a.apply == copy.copy(a).apply
    assert a.apply != b.apply
    assert hash(a.apply) == hash(copy.copy(a).apply)


# noise


def _keyed_models() -> dict[str, Any]:
    def plain(key: Any) -> tuple[Loss, Any]:
        model = EqxPlain(jax.random.key(0))
        return from_equinox(model, _squares, key=key), eqx.filter(model, eqx.is_inexact_array)

    def flag(key: Any) -> tuple[Loss, Any]:
        model = NnxFlag(nnx.Rngs(0), norm=False)
        return from_nnx(model, _squares, key=key), nnx.state(model, nnx.Param)

    return {
        **{name: lambda key, make=make: make(key=key)[:2] for name, make in MAKERS.items()},
        "linen one flag": lambda key: _linen(module=LinenOneFlag(norm=False), key=key)[:2],
        "nnx one flag": flag,
        "equinox plain": plain,
    }


@pytest.mark.parametrize("name", _keyed_models())
def test_noise_does_not_depend_on_the_batching(name: str):
    key = jax.random.key(3)
    loss, params = _keyed_models()[name](key)
    quiet, _ = _keyed_models()[name](None)
    x, y = _data()
    keys = jax.random.split(key, N)
    run = jax.jit(lambda b, k: loss.apply(params, loss.state, b, False, k)[0])
    whole = run((x, y), keys)
    parts = [run((x[i : i + 4], y[i : i + 4]), keys[i : i + 4]) for i in (0, 3)]
    _close(parts, [whole[:4], whole[3:]])
    silent = jax.jit(lambda b: quiet.apply(params, quiet.state, b, False)[0])((x, y))
    assert not np.allclose(whole, silent)
    assert not np.allclose(whole, run((x, y), jax.random.split(jax.random.key(4), N)))
    same = run((np.tile(x[:1], (N, 1)), y), keys)
    assert len(np.unique(np.asarray(same).round(5), axis=0)) > 1  # each example has its own draw


def test_linen_noise_is_the_frameworks_own():
    loss, params, (module, variables) = _linen(key=jax.random.key(0))
    x, y = _data()
    keys = jax.random.split(jax.random.key(5), N)
    expected = [
        module.apply(variables, x[i : i + 1], True, False, rngs={"dropout": keys[i]})[0] for i in range(N)
    ]  # running averages, dropout on
    _close(loss.apply(params, loss.state, (x, y), False, keys)[0], jnp.stack(expected))


@each
def test_noise_and_batch_statistics_exclude_each_other(make: Any):
    loss, params, _ = make(key=jax.random.key(0))
    with pytest.raises(ValueError, match="one example at a time"):
        loss.apply(params, loss.state, _data(), True, jax.random.split(jax.random.key(0), N))


def test_noise_needs_two_flags_if_there_are_statistics():
    for module in (LinenOneFlag(), LinenDeterministic()):
        with pytest.raises(ValueError, match="one flag"):
            _linen(module=module, key=jax.random.key(0))
    with pytest.raises(ValueError, match="one flag 'train'"):
        from_nnx(NnxFlag(nnx.Rngs(0)), _squares, key=jax.random.key(0))
    loss, params, _ = _linen(module=LinenOneFlag(), key=jax.random.key(0), eval_kwargs={"train": True})
    with pytest.raises(ValueError, match="must not change"):
        loss.apply(params, loss.state, _data(), False, jax.random.split(jax.random.key(0), N))


@pytest.mark.parametrize("module", [LinenOneFlag(), LinenDeterministic()], ids=["train", "deterministic"])
def test_one_flag_without_key_is_batch_statistics_without_dropout(module: Any):
    loss, params, (_, variables) = _linen(module=module)
    x, y = _data()
    outputs, state = loss.apply(params, loss.state, (x, y), True)
    flag = {"train": True} if isinstance(module, LinenOneFlag) else {"deterministic": False}
    expected, new = module.clone(rate=0.0).apply(variables, x, **flag, mutable=["batch_stats"])
    _close((outputs, state), (expected, dict(new)))


def test_nnx_one_flag_without_key_is_quiet():
    model = NnxFlag(nnx.Rngs(0))
    loss = from_nnx(model, _squares)
    x, y = _data()
    outputs, state = loss.apply(nnx.state(model, nnx.Param), loss.state, (x, y), True)
    own = nnx.clone(model)
    _close(outputs, own.norm(own.first(x), use_running_average=False))
    _close(state["norm"], nnx.state(own.norm, nnx.BatchStat))


def test_noise_without_a_key_is_explained():
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.Dense(C)(x) + jax.random.normal(self.make_rng("noise"), (C,))

    x, y = _data()
    variables = Noisy().init({"params": jax.random.key(0), "noise": jax.random.key(1)}, x)
    with pytest.raises(ValueError, match="has no key"):
        from_linen(Noisy(), variables, _squares).apply(variables["params"], None, (x, y), False)
    loss = from_linen(Noisy(), variables, _squares, key=jax.random.key(0))
    outputs, _ = loss.apply(variables["params"], None, (x, y), False, jax.random.split(jax.random.key(0), N))
    assert outputs.shape == (N, C)


def test_outputs_of_a_keyed_model_need_examples():
    class Summed(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.Dense(C)(x).sum()

    x, y = _data()
    variables = Summed().init(jax.random.key(0), x)
    loss = from_linen(Summed(), variables, _squares, key=jax.random.key(0))
    with pytest.raises(ValueError, match="leading axis"):
        loss.apply(variables["params"], None, (x, y), False, jax.random.split(jax.random.key(0), N))


# inputs, flags, errors


class TwoInputs(nn.Module):
    @nn.compact
    def __call__(self, x: Any, scale: Any) -> Any:
        return nn.Dense(C)(x) * scale[:, None]


def test_inputs():
    x, y = _data()
    dense = nn.Dense(C)
    variables = dense.init(jax.random.key(0), x)
    expected = dense.apply(variables, x)
    named = {"image": x, "label": y}
    cases = [("image", named), (lambda b: b["image"], named), (None, (x, y)), (None, [x, y]), (None, x), (1, (y, x))]
    for inputs, batch in cases:
        loss = from_linen(dense, variables, _squares, inputs=inputs)
        _close(loss.apply(variables["params"], None, batch, False)[0], expected)
    with pytest.raises(ValueError, match=r"inputs: None given.*\['image', 'label'\]"):
        from_linen(dense, variables, _squares).apply(variables["params"], None, named, False)

    two = TwoInputs()
    variables = two.init(jax.random.key(0), x, y)
    expected = two.apply(variables, x, y)
    cases = [(("image", "label"), named), ((0, 1), (x, y)), (lambda b: (b[0], b[1]), (x, y)), (None, ((x, y), y))]
    for inputs, batch in cases:
        loss = from_linen(two, variables, _squares, inputs=inputs)
        _close(loss.apply(variables["params"], None, batch, False)[0], expected)


def test_dict_batches_of_other_frameworks():
    x, y = _data()
    for make in (_nnx, _equinox):
        loss, params, _ = make()
        named, *_ = make(inputs="image")
        _close(
            named.apply(params, named.state, {"image": x, "label": y}, False)[0],
            loss.apply(params, loss.state, (x, y), False)[0],
        )


def test_linen_flag_must_be_known_for_batch_statistics():
    loss, params, _ = _linen(module=LinenFixed())
    with pytest.raises(ValueError, match="train_kwargs"):
        loss.apply(params, loss.state, _data(), True)
    loss, params, (module, variables) = _linen(module=LinenFixed(running=False), train_kwargs={})
    outputs, _ = loss.apply(params, loss.state, _data(), True)
    _close(outputs, module.apply(variables, _data()[0], mutable=["batch_stats"])[0])
    with pytest.raises(ValueError, match="must not change"):
        loss.apply(params, loss.state, _data(), False)


def test_kwargs_and_method():
    class Scaled(nn.Module):
        def setup(self) -> None:
            self.dense = nn.Dense(C)

        def __call__(self, x: Any, factor: float = 1.0) -> Any:
            return factor * self.dense(x)

        def features(self, x: Any) -> Any:
            return self.dense(x) + 1

    x, y = _data()
    variables = Scaled().init(jax.random.key(0), x)
    base = Scaled().apply(variables, x)
    loss = from_linen(Scaled(), variables, _squares, eval_kwargs={"factor": 2.0}, train_kwargs={"factor": 3.0})
    _close(loss.apply(variables["params"], None, (x, y), False)[0], 2 * base)
    _close(loss.apply(variables["params"], None, (x, y), True)[0], 3 * base)
    for method in ("features", Scaled.features):
        loss = from_linen(Scaled(), variables, _squares, method=method)
        _close(loss.apply(variables["params"], None, (x, y), False)[0], base + 1)


def test_sown_intermediates_are_no_state():
    class Sowing(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            self.sow("intermediates", "x", x)
            return nn.Dense(C)(x)

    x, _ = _data()
    variables = Sowing().init(jax.random.key(0), x)
    assert from_linen(Sowing(), variables, _squares).state is None


def test_options_reach_the_loss():
    penalty = lambda p: 0.0  # noqa: E731
    key = jax.random.key(0)
    for make in MAKERS.values():
        loss, *_ = make(penalty=penalty, per_example=False, filter_axis=-1, key=key)
        assert (loss.penalty({}), loss.per_example, loss.filter_axis) == (0.0, False, -1)
        assert loss.key is key
        assert loss.criterion == Loss(None, _squares).criterion


def test_errors():
    x, _ = _data()
    params = nn.Dense(C).init(jax.random.key(0), x)["params"]
    with pytest.raises(ValueError, match=r"variables: a dict of \['bias', 'kernel'\] given; .* \"params\""):
        from_linen(nn.Dense(C), params, _squares)
    with pytest.raises(ValueError, match="variables: NoneType given"):
        from_linen(nn.Dense(C), None, _squares)  # type: ignore[arg-type]
    model, _ = eqx.nn.make_with_state(EqxNet)(jax.random.key(0))
    with pytest.raises(ValueError, match="make_with_state"):
        from_equinox(model, _squares)

    class NoKey(eqx.Module):
        def __call__(self, x: Any) -> Any:
            return x

    with pytest.raises(ValueError, match="no argument named key"):
        from_equinox(NoKey(), _squares, key=jax.random.key(0))


# the page


def test_the_page():
    """Every example of docs/models.md runs, and its losses give one number per example (or per batch)."""
    pytest.importorskip("haiku")
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(N, 64)).astype(np.float32), rng.integers(0, 10, N)
    space: dict[str, Any] = {"x": x}
    checked = 0
    for block in re.findall(r"```python\n(.*?)```", page, re.S):
        space.pop("loss", None)
        exec(block, space)
        if "loss" not in space or "params" not in block:
            continue
        loss = as_loss(space["loss"])
        outputs, _ = jax.jit(lambda loss, p, b: loss.apply(p, loss.state, b, False))(loss, space["params"], (x, y))
        assert np.shape(loss.criterion(outputs, (x, y))) == ((N,) if loss.per_example else ())
        checked += 1
    assert checked == 6

    losses, weights = space["next_token"](jnp.zeros((2, 5, 10)), jnp.array([[1, 2, 3, 0, 0], [1, 2, 3, 4, 5]]))
    assert losses.shape == weights.shape == (2, 4)
    assert weights.sum() == 6
    # Haiku: with the counters of the page, all statistics are running averages with the layer's decay rate
    haiku, params = space["net"], space["params"]
    fill = lambda a, v: jnp.full_like(a, v) if jnp.issubdtype(a.dtype, jnp.floating) else a  # noqa: E731
    zero, one = (
        haiku.apply(params, jax.tree.map(functools.partial(fill, v=v), space["state"]), None, x, True)[1]
        for v in (0.0, 1.0)
    )
    for path, gap in jax.tree.leaves_with_path(jax.tree.map(jnp.subtract, one, zero)):
        np.testing.assert_allclose(gap, 0 if path[-1].key == "counter" else 0.9, rtol=1e-5)


def test_frozen_dict_variables():
    plain, params, (module, variables) = _linen()
    frozen = from_linen(module, FrozenDict(variables), _squares)
    assert jax.tree.structure(frozen) == jax.tree.structure(plain)
    outputs, state = frozen.apply(FrozenDict(params), frozen.state, _data(), True)
    _close((outputs, state), plain.apply(params, plain.state, _data(), True))
    assert jax.tree.structure(state) == jax.tree.structure(frozen.state)


def test_copies_are_equal():
    for make in MAKERS.values():
        loss, *_ = make()
        assert copy.copy(loss.apply) == loss.apply


@pytest.mark.parametrize("adapter", [from_linen, from_nnx, from_equinox])
def test_an_unknown_option_is_named_and_so_are_those_there_are(adapter):
    model = {from_linen: (nn.Dense(2), {"params": {}}), from_nnx: (nnx.Linear(2, 2, rngs=nnx.Rngs(0)),)}
    arguments = model.get(adapter, (eqx.nn.Linear(2, 2, key=jax.random.key(0)),))
    said = rf"{adapter.__name__}\(\) .* argument 'input'; it takes inputs, key, penalty, per_example"
    with pytest.raises(TypeError, match=said):
        adapter(*arguments, lambda outputs, batch: outputs, input=0)
