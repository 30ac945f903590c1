"""One step of a band, and new pivots between the old ones."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lla_jax.core.losses import as_loss
from lla_jax.paths.bands.steps import Band, insert_pivots, take_step
from lla_jax.paths.training.batches import Batches
from lla_jax.paths.training.optimizers import as_optimizer
from tests.paths.surfaces import point, ring

DRAW = next(Batches(None, jax.random.key(0)).from_step(0))
SGD = as_optimizer(optax.sgd(0.1))
HEIGHT = as_loss(lambda p, batch: p["y"] + 0.5 * p["x"] ** 2)


def band_of(*points, optimizer=SGD):
    pivots = [jax.tree.map(jnp.asarray, point(*each)) for each in points]
    memory = [optimizer.init(jax.tree.map(lambda x: x[None], each)) for each in pivots[1:-1]]
    return Band(pivots, np.linspace(0, 1, len(pivots)), memory)


@pytest.mark.parametrize(("weight_decay", "expected"), [(0.0, 0.9), (0.5, 0.85)])
def test_a_pivot_moves_across_the_band_by_the_gradient_and_the_weight_decay(weight_decay, expected):
    band = band_of((-1, 0), (0, 1), (1, 0))  # the tangent in the middle is (1, 0)
    moved, highest, good = take_step(band, HEIGHT, DRAW, weight_decay, SGD, 1.0, "highest")
    assert (highest, good) == (1.0, True)
    np.testing.assert_allclose([moved.pivots[1]["x"], moved.pivots[1]["y"]], [0, expected], atol=1e-6)
    assert moved.pivots[0] is band.pivots[0]
    assert moved.pivots[2] is band.pivots[2]


def test_nothing_moves_along_the_band_and_pivots_keep_their_shares_of_its_length():
    band = band_of((0, 0), (0, 2), (0, 3), (0, 4))
    moved, _, _ = take_step(band, HEIGHT, DRAW, 0.0, SGD, 1.0, "highest")
    np.testing.assert_allclose([pivot["y"] for pivot in moved.pivots], [0, 4 / 3, 8 / 3, 4], rtol=1e-6)


def test_a_step_that_is_not_finite_changes_nothing():
    band = band_of((-1, 0), (0, 1), (1, 0))
    same, _, good = take_step(band, HEIGHT, DRAW, 0.0, SGD, np.inf, "highest")
    assert not good
    assert same is band


def test_a_new_pivot_takes_over_the_memory_of_the_optimizer_next_to_it():
    momentum = as_optimizer(optax.sgd(0.1, momentum=0.9))
    band = band_of((-1, 0), (-0.7, 0.7), (1, 0.2), (1, 0), optimizer=momentum)
    band = band._replace(memory=[jax.tree.map(lambda x, i=i: x + i, each) for i, each in enumerate(band.memory, 1)])
    more = insert_pivots(band, as_loss(ring), DRAW, 4, 1, "highest")
    assert len(more.pivots) == 5
    assert more.knots.tolist() == pytest.approx([0, 1 / 3, 1 / 3 + 0.4 / 3, 2 / 3, 1])
    np.testing.assert_allclose(more.pivots[2]["x"], -0.7 + 0.4 * 1.7, atol=1e-6)
    assert [float(jax.tree.leaves(each)[0][0]) for each in more.memory] == [1, 1, 2]
    assert more.pivots[1] is band.pivots[1]
