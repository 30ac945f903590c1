"""Losses of Flax nnx models: outputs and state are the framework's own."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from flax import nnx

from lla_jax.models.calling import shapes_of
from lla_jax.models.nnx import _in_order, from_nnx
from tests.models.cases import NnxFlag, bits, close, data, make_nnx, squares


def test_nnx_forward_and_state():
    loss, params, model = make_nnx()
    batch = data()
    expected = nnx.view(model, deterministic=True, use_running_average=True)(batch[0])
    pure = nnx.to_pure_dict(params)
    for given in (params, pure, jax.tree.map(lambda a: a + 0, params)):
        outputs, state = loss.apply(given, loss.state, batch, False)
        close(outputs, expected)
        assert state is loss.state
    outputs, state = loss.apply(params, loss.state, batch, True)
    own = nnx.clone(model)
    own.train()
    own.drop.deterministic = True
    close(outputs, own(batch[0]))
    close((state["norm"], state["offset"]), (nnx.state(own.norm, nnx.BatchStat), nnx.state(own)["offset"]))
    assert jax.tree.structure(state) == jax.tree.structure(loss.state)
    assert bits(loss.state["drop"]) == bits(state["drop"])


def test_nnx_one_flag_without_key_is_quiet():
    model = NnxFlag(nnx.Rngs(0))
    loss = from_nnx(model, squares)
    x, y = data()
    outputs, state = loss.apply(nnx.state(model, nnx.Param), loss.state, (x, y), True)
    own = nnx.clone(model)
    close(outputs, own.norm(own.first(x), use_running_average=False))
    close(state["norm"], nnx.state(own.norm, nnx.BatchStat))


def test_a_model_without_other_variables_stands_for_its_parameters():
    model = nnx.Linear(data()[0].shape[1], 3, rngs=nnx.Rngs(0))
    loss, batch = from_nnx(model, squares), data()
    outputs, _ = loss.apply(model, loss.state, batch, False)
    close(outputs, model(batch[0]))


def test_parameters_are_taken_by_their_paths_and_not_by_their_order():
    model = nnx.Dict(layers=nnx.List([nnx.Linear(2, 2, rngs=nnx.Rngs(seed)) for seed in range(11)]))
    pure = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    restored = {"layers": {str(key): layer for key, layer in pure["layers"].items()}}  # where "10" is before "2"
    expected = [pure["layers"][i]["kernel"] for i in range(11)]
    shapes = shapes_of(nnx.state(model, nnx.Param))
    for given in (pure, restored, nnx.to_flat_state(nnx.state(model, nnx.Param))):
        leaves = jax.tree.leaves(_in_order(given, shapes))
        assert all(map(np.array_equal, leaves[1::2], expected))
    with pytest.raises(ValueError, match="lack 'layers/0/bias'"):
        _in_order({"blocks": pure["layers"]}, shapes)
