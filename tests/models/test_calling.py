"""Adapters of all libraries: an untouched model, one compilation per architecture, noise per example, inputs."""

from __future__ import annotations

import copy
import functools
import re
from pathlib import Path
from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lla_jax.core.losses import as_loss
from lla_jax.core.types import Loss
from lla_jax.models.equinox import from_equinox
from lla_jax.models.linen import from_linen
from lla_jax.models.nnx import from_nnx
from tests.helpers import compilations
from tests.models.cases import (
    MAKERS,
    C,
    D,
    EqxNet,
    EqxPlain,
    LinenDeterministic,
    LinenNet,
    LinenOneFlag,
    N,
    NnxFlag,
    bits,
    close,
    data,
    for_each_library,
    make_equinox,
    make_linen,
    make_nnx,
    squares,
)


@for_each_library
def test_statistics_are_affine_in_the_old_ones(make: Any):
    """new = m old + (1 - m) batch, and outputs in train mode do not depend on the old: re-estimation builds on this."""
    loss, params, _ = make()
    batch = data()

    def step(value: float) -> Any:
        def fill(a: Any) -> Any:
            return jnp.full_like(a, value) if jnp.issubdtype(a.dtype, jnp.floating) else a

        outputs, state = loss.apply(params, jax.tree.map(fill, loss.state), batch, True)
        return outputs, [a for a in jax.tree.leaves(state) if jnp.issubdtype(a.dtype, jnp.floating)]

    (out0, at0), (out1, at1), (out3, at3) = step(0.0), step(1.0), step(3.0)
    close(out0, out1)
    close(out0, out3)
    for a, b, c in zip(at0, at1, at3, strict=True):
        np.testing.assert_allclose(b - a, 0.9, rtol=1e-5)
        np.testing.assert_allclose(c, a + 2.7, rtol=1e-5)
    # frozen statistics = those of this very batch: eval mode is then train mode
    means = iter([a / 0.1 for a in at0])
    estimated = jax.tree.map(lambda a: next(means) if jnp.issubdtype(a.dtype, jnp.floating) else a, loss.state)
    close(loss.apply(params, estimated, batch, False)[0], out0, 1e-4)


def test_gradient_and_jit():
    for make in MAKERS.values():
        loss, params, _ = make()
        batch = data()
        value = lambda p: loss.criterion(loss.apply(p, loss.state, batch, False)[0], batch).mean()  # noqa: E731, B023
        gradient = jax.jit(jax.grad(value))(params)
        assert all(np.isfinite(a).all() for a in jax.tree.leaves(gradient))
        assert jax.tree.structure(gradient) == jax.tree.structure(params)


def test_model_without_state():
    x, y = data()
    dense = nn.Dense(C)
    variables = dense.init(jax.random.key(0), x)
    loss = from_linen(dense, variables, squares)
    assert loss.state is None
    for train in (False, True):
        outputs, state = loss.apply(variables["params"], None, (x, y), train)
        close(outputs, dense.apply(variables, x))
        assert state is None
    linear = nnx.Linear(D, C, rngs=nnx.Rngs(0))
    loss = from_nnx(linear, squares)
    close(loss.apply(nnx.state(linear, nnx.Param), loss.state, (x, y), True)[0], linear(x))
    assert loss.state is None
    mlp = eqx.nn.MLP(D, C, 4, 1, key=jax.random.key(0))
    loss = from_equinox(mlp, squares)
    assert loss.state is None
    close(loss.apply(eqx.filter(mlp, eqx.is_inexact_array), None, (x, y), True)[0], jax.vmap(mlp)(x))


@for_each_library
@pytest.mark.parametrize("key", [None, 0])
def test_model_is_untouched(make: Any, key: int | None):
    key = None if key is None else jax.random.key(key)
    loss, params, model = make(key=key)
    flags = (model.drop.deterministic, model.norm.use_running_average, model.drop.rate) if make is make_nnx else None
    # training modes as the user left them
    before = bits(nnx.state(model) if make is make_nnx else model), bits(params), bits(loss.state)
    graph = nnx.graphdef(model) if make is make_nnx else None
    batch = data()
    keys = () if key is None else (jax.random.split(key, N),)
    for train in (False, True) if key is None else (False,):
        loss.apply(params, loss.state, batch, train, *keys)
    assert before == (bits(nnx.state(model) if make is make_nnx else model), bits(params), bits(loss.state))
    if make is make_nnx:
        assert flags == (model.drop.deterministic, model.norm.use_running_average, model.drop.rate)
        assert flags == (False, False, 0.5)
        assert nnx.graphdef(model) == graph
        model.norm.mean[...] = jnp.full(4, 9.0)  # the user trains on: the loss keeps what it was built from
        assert not np.any(loss.state["norm"]["mean"].get_value() == 9.0)


@for_each_library
@pytest.mark.parametrize("keyed", [False, True])
def test_second_adapter_compiles_nothing(make: Any, keyed: bool):
    key = jax.random.key(1) if keyed else None
    batch, other = data(), data(1)
    keys = (jax.random.split(jax.random.key(2), N),) if keyed else ()
    run = jax.jit(lambda loss, p, b, *k: loss.criterion(loss.apply(p, loss.state, b, False, *k)[0], b))
    (a, params_a, _), (b, params_b, _) = make(0, key=key), make(1, key=key)
    first = run(a, params_a, batch, *keys)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert hash(jax.tree.structure(a)) == hash(jax.tree.structure(b))
    with compilations() as compiles:
        second = run(b, params_b, other, *keys)
        jax.block_until_ready(second)
    assert compiles.count == 0
    assert not np.allclose(first, second)


def test_other_architectures_differ():
    base, *_ = make_linen()
    wide, *_ = make_linen(module=LinenNet(width=5))
    assert base.apply == make_linen(seed=1)[0].apply
    assert base.apply != wide.apply
    assert make_linen(inputs=0)[0].apply != base.apply
    assert make_linen(eval_kwargs={"deterministic": True})[0].apply == base.apply  # the same call
    assert make_equinox(mode="ema")[0].apply != make_equinox()[0].apply


def test_unhashable_parts_compare_by_content():
    width = np.array(4)
    loose = lambda width: make_linen(module=LinenNet(width=width))[0]  # noqa: E731
    a = loose(width)
    assert a.apply == copy.copy(a).apply == loose(np.array(4)).apply
    assert hash(a.apply) == hash(copy.copy(a).apply)
    width[...] = 5
    assert a.apply != loose(width).apply


class Scaled:
    scale = 1.0

    def __call__(self, x):
        return self.scale * x


UNIT = {"k": 1.0}


class LinenScaled(nn.Module):
    activation: Any

    @nn.compact
    def __call__(self, x):
        return UNIT["k"] * self.activation(nn.Dense(2, kernel_init=nn.initializers.ones)(x))


class NnxScaled(nnx.Module):
    def __init__(self, activation):
        self.dense = nnx.Linear(5, 2, kernel_init=nnx.initializers.ones, rngs=nnx.Rngs(0))
        self.activation = activation

    def __call__(self, x):
        return UNIT["k"] * self.activation(self.dense(x))


class EqxScaled(eqx.Module):
    kernel: jax.Array
    activation: Any = eqx.field(static=True)

    def __call__(self, x):
        return UNIT["k"] * self.activation(self.kernel @ x)


def linen_scaled(activation):
    module = LinenScaled(activation)
    variables = module.init(jax.random.key(0), jnp.ones((1, 5)))
    return from_linen(module, variables, squares), variables["params"]


def nnx_scaled(activation):
    model = NnxScaled(activation)
    return from_nnx(model, squares), nnx.state(model, nnx.Param)


def equinox_scaled(activation):
    model = EqxScaled(jnp.ones((2, 5)), activation)
    return from_equinox(model, squares), eqx.filter(model, eqx.is_inexact_array)


@pytest.mark.parametrize("make", [linen_scaled, nnx_scaled, equinox_scaled])
def test_a_new_adapter_reads_what_the_model_reaches_now(make, monkeypatch):
    activation, x = Scaled(), jnp.ones((3, 5))
    run = jax.jit(lambda loss, p: loss.apply(p, loss.state, (x,), False)[0])
    np.testing.assert_allclose(run(*make(activation)), 5.0)
    activation.scale = 2.0
    np.testing.assert_allclose(run(*make(activation)), 10.0)
    monkeypatch.setitem(UNIT, "k", 3.0)
    np.testing.assert_allclose(run(*make(activation)), 30.0)
    again = make(activation)
    with compilations() as count:
        np.testing.assert_allclose(run(*again), 30.0)
    assert count.count == 0


def _keyed_models() -> dict[str, Any]:
    def plain(key: Any) -> tuple[Loss, Any]:
        model = EqxPlain(jax.random.key(0))
        return from_equinox(model, squares, key=key), eqx.filter(model, eqx.is_inexact_array)

    def flag(key: Any) -> tuple[Loss, Any]:
        model = NnxFlag(nnx.Rngs(0), norm=False)
        return from_nnx(model, squares, key=key), nnx.state(model, nnx.Param)

    return {
        **{name: lambda key, make=make: make(key=key)[:2] for name, make in MAKERS.items()},
        "linen one flag": lambda key: make_linen(module=LinenOneFlag(norm=False), key=key)[:2],
        "nnx one flag": flag,
        "equinox plain": plain,
    }


@pytest.mark.parametrize("name", _keyed_models())
def test_noise_does_not_depend_on_the_batching(name: str):
    key = jax.random.key(3)
    loss, params = _keyed_models()[name](key)
    quiet, _ = _keyed_models()[name](None)
    x, y = data()
    keys = jax.random.split(key, N)
    run = jax.jit(lambda b, k: loss.apply(params, loss.state, b, False, k)[0])
    whole = run((x, y), keys)
    parts = [run((x[i : i + 4], y[i : i + 4]), keys[i : i + 4]) for i in (0, 3)]
    close(parts, [whole[:4], whole[3:]])
    silent = jax.jit(lambda b: quiet.apply(params, quiet.state, b, False)[0])((x, y))
    assert not np.allclose(whole, silent)
    assert not np.allclose(whole, run((x, y), jax.random.split(jax.random.key(4), N)))
    same = run((np.tile(x[:1], (N, 1)), y), keys)
    assert len(np.unique(np.asarray(same).round(5), axis=0)) > 1  # each example has its own draw


@for_each_library
def test_noise_and_batch_statistics_exclude_each_other(make: Any):
    loss, params, _ = make(key=jax.random.key(0))
    with pytest.raises(ValueError, match="one example at a time"):
        loss.apply(params, loss.state, data(), True, jax.random.split(jax.random.key(0), N))


def test_noise_needs_two_flags_if_there_are_statistics():
    for module in (LinenOneFlag(), LinenDeterministic()):
        with pytest.raises(ValueError, match="one flag"):
            make_linen(module=module, key=jax.random.key(0))
    with pytest.raises(ValueError, match="one flag 'train'"):
        from_nnx(NnxFlag(nnx.Rngs(0)), squares, key=jax.random.key(0))
    loss, params, _ = make_linen(module=LinenOneFlag(), key=jax.random.key(0), eval_kwargs={"train": True})
    with pytest.raises(ValueError, match="must not change"):
        loss.apply(params, loss.state, data(), False, jax.random.split(jax.random.key(0), N))


def test_outputs_of_a_keyed_model_need_examples():
    class Summed(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.Dense(C)(x).sum()

    x, y = data()
    variables = Summed().init(jax.random.key(0), x)
    loss = from_linen(Summed(), variables, squares, key=jax.random.key(0))
    with pytest.raises(ValueError, match="leading axis"):
        loss.apply(variables["params"], None, (x, y), False, jax.random.split(jax.random.key(0), N))


class TwoInputs(nn.Module):
    @nn.compact
    def __call__(self, x: Any, scale: Any) -> Any:
        return nn.Dense(C)(x) * scale[:, None]


def test_inputs():
    x, y = data()
    dense = nn.Dense(C)
    variables = dense.init(jax.random.key(0), x)
    expected = dense.apply(variables, x)
    named = {"image": x, "label": y}
    cases = [("image", named), (lambda b: b["image"], named), (None, (x, y)), (None, [x, y]), (None, x), (1, (y, x))]
    for inputs, batch in cases:
        loss = from_linen(dense, variables, squares, inputs=inputs)
        close(loss.apply(variables["params"], None, batch, False)[0], expected)
    with pytest.raises(ValueError, match=r"inputs: None given.*\['image', 'label'\]"):
        from_linen(dense, variables, squares).apply(variables["params"], None, named, False)

    two = TwoInputs()
    variables = two.init(jax.random.key(0), x, y)
    expected = two.apply(variables, x, y)
    cases = [(("image", "label"), named), ((0, 1), (x, y)), (lambda b: (b[0], b[1]), (x, y)), (None, ((x, y), y))]
    for inputs, batch in cases:
        loss = from_linen(two, variables, squares, inputs=inputs)
        close(loss.apply(variables["params"], None, batch, False)[0], expected)


def test_dict_batches_of_other_frameworks():
    x, y = data()
    for make in (make_nnx, make_equinox):
        loss, params, _ = make()
        named, *_ = make(inputs="image")
        close(
            named.apply(params, named.state, {"image": x, "label": y}, False)[0],
            loss.apply(params, loss.state, (x, y), False)[0],
        )


def test_options_reach_the_loss():
    penalty = lambda p: 0.0  # noqa: E731
    key = jax.random.key(0)
    for make in MAKERS.values():
        loss, *_ = make(penalty=penalty, per_example=False, filter_axis=-1, key=key)
        assert (loss.penalty({}), loss.per_example, loss.filter_axis) == (0.0, False, -1)
        assert loss.key is key
        assert loss.criterion == Loss(penalty, squares).criterion


def test_errors():
    x, _ = data()
    params = nn.Dense(C).init(jax.random.key(0), x)["params"]
    with pytest.raises(ValueError, match=r"variables: a dict of \['bias', 'kernel'\] given; .* \"params\""):
        from_linen(nn.Dense(C), params, squares)
    with pytest.raises(ValueError, match="variables: NoneType given"):
        from_linen(nn.Dense(C), None, squares)  # type: ignore[arg-type]
    model, _ = eqx.nn.make_with_state(EqxNet)(jax.random.key(0))
    with pytest.raises(ValueError, match="make_with_state"):
        from_equinox(model, squares)

    class NoKey(eqx.Module):
        def __call__(self, x: Any) -> Any:
            return x

    with pytest.raises(ValueError, match="no argument named key"):
        from_equinox(NoKey(), squares, key=jax.random.key(0))


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


def test_copies_are_equal():
    for make in MAKERS.values():
        loss, *_ = make()
        assert copy.copy(loss.apply) == loss.apply


@pytest.mark.parametrize("adapter", [from_linen, from_nnx, from_equinox])
def test_an_unknown_option_is_named_and_so_are_those_there_are(adapter):
    model = {from_linen: (nn.Dense(2), {"params": {}}), from_nnx: (nnx.Linear(2, 2, rngs=nnx.Rngs(0)),)}
    arguments = model.get(adapter, (eqx.nn.Linear(2, 2, key=jax.random.key(0)),))
    said = rf"input: {adapter.__name__}\(\) .* did you mean inputs\? It takes inputs, key, penalty, per_example"
    with pytest.raises(TypeError, match=said):
        adapter(*arguments, lambda outputs, batch: outputs, input=0)
