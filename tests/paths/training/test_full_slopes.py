"""Losses and gradients over all examples, batch by batch."""

import jax
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.core.gradients import mean_gradient
from lla_jax.paths.losses.at_trees import losses_at
from lla_jax.paths.training.batches import Batches
from lla_jax.paths.training.full_slopes import full_losses, full_slope, one_pass
from tests.helpers import FIXED, MODELS, flat

KEY = jax.random.key(0)


def at(model, **options):
    loss, params, data = model
    draws = one_pass(Batches(data, KEY, **options), loss)
    value, gradient = full_slope(loss, params, draws, "highest")
    np.testing.assert_allclose(full_losses(loss, [params, params], draws, "highest"), [value] * 2, rtol=1e-6)
    return value, flat(gradient)


@pytest.mark.parametrize("name", ["mlp", "penalty", "weighted"])
def test_of_losses_per_example_they_are_those_of_all_examples_however_they_are_cut(name):
    model = MODELS[name]
    value, gradient = at(model, batch_size=4)  # 11 examples: the last batch is not full
    expected = mean_gradient(model.loss, model.params, model.data)
    np.testing.assert_allclose(gradient, flat(expected), rtol=1e-4, atol=1e-6)
    means = losses_at(model.loss, [model.params], model.data, execution=FIXED)
    np.testing.assert_allclose(value, means.values["loss"][0], rtol=1e-5)
    whole = at(model)
    np.testing.assert_allclose(whole[0], value, rtol=1e-5)
    np.testing.assert_allclose(whole[1], gradient, rtol=1e-4, atol=1e-6)


def test_of_a_batch_that_couples_its_examples_no_row_is_padding():
    model = MODELS["batch-coupled"]
    draws = one_pass(Batches(model.data, KEY, 4), model.loss)
    assert draws.count == 2
    assert all(len(draw.rows) == 4 for draw in draws)


def test_a_stream_is_read_once_for_each_pass():
    loss, params, data = MODELS["mlp"]
    stream = lla.stream([tuple(x[i : i + 4] for x in data) for i in (0, 4, 8)])
    draws = one_pass(Batches(stream, KEY, pads=True), loss)
    assert draws.count == 3
    value, gradient = full_slope(loss, params, draws, "highest")
    expected = at(MODELS["mlp"])
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    np.testing.assert_allclose(flat(gradient), expected[1], rtol=1e-4, atol=1e-6)
