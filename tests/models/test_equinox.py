"""Losses of Equinox models: outputs and state are the framework's own, with both kinds of BatchNorm."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.cases import close, copy_state, data, make_equinox


@pytest.mark.parametrize(("mode", "steps"), [("batch", 0), ("batch", 1), ("batch", 3), ("ema", 2)])
def test_equinox_forward_and_state(mode: str, steps: int):
    loss, params, (model, old) = make_equinox(mode=mode, steps=steps)
    batch = data(9)

    def own(inference: bool, state: Any) -> Any:
        quiet = eqx.tree_at(lambda m: m.drop.inference, eqx.nn.inference_mode(model, inference), True)
        return jax.vmap(quiet, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(batch[0], state)

    outputs, state = loss.apply(params, loss.state, batch, False)
    close(outputs, own(True, copy_state(old))[0], 5e-6)
    assert state is loss.state
    outputs, state = loss.apply(params, loss.state, batch, True)
    if mode == "ema":  # Equinox normalizes by the batch on the first step only
        old = copy_state(old).set(model.norm.ema_first_time_index, jnp.array(True))
        close(
            state["state"].get(model.norm.ema_state_index),
            own(False, copy_state(old))[1].get(model.norm.ema_state_index),
        )
    else:
        counter, index = model.norm.batch_counter, model.norm.batch_state_index
        scale = 1 - 0.9**steps if steps else 1.0
        hidden = tuple(np.asarray(a) / scale for a in old.get(index))
        old = copy_state(old).set(index, hidden).set(counter, jnp.array(0))
        close(state["state"].get(index), own(False, copy_state(old))[1].get(index))
        assert state["state"].get(counter) == 0
    close(outputs, own(False, copy_state(old))[0])
    assert jax.tree.structure(state) == jax.tree.structure(loss.state)


def test_equinox_ema_statistics_are_those_of_the_batch():
    loss, params, _ = make_equinox(mode="ema")
    batch = data()
    outputs, state = loss.apply(params, loss.state, batch, True)
    close(loss.apply(params, state, batch, False)[0], outputs)
