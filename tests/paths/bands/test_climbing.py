"""The climbing image between two fixed neighbours."""

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.paths.bands.climbing import climb_step, floor_of, start_climb

SCALE = np.array([-3.0, 5.0, 40.0], np.float32)  # curvatures at the saddle, which is at 0


def saddle(x):
    return 0.5 * jnp.sum(SCALE * x**2) + 2.0


def test_the_image_climbs_along_the_band_and_falls_across_it_to_the_saddle():
    neighbours = jnp.array([[-1.0, 0.3, 0.0], [0.9, -0.2, 0.05]], jnp.float32)  # not along the first axis
    losses = jax.vmap(saddle)(neighbours)
    climb = start_climb(jnp.array([0.3, 0.2, 0.1], jnp.float32))
    start = jax.grad(saddle)(climb.params)
    norms = []
    for _ in range(60):
        value, gradient = jax.value_and_grad(saddle)(climb.params)
        before = climb
        climb = climb_step(climb, value, gradient, neighbours, losses, losses.max())
        assert np.linalg.norm(climb.params - before.params) < 0.26  # a quarter of the distance to a neighbour
        norms.append(float(climb.best_norm))
    assert norms[0] == np.float32(np.linalg.norm(start))
    assert norms[-1] < 1e-4 * norms[0]
    assert abs(float(climb.best_loss) - 2) < 1e-5
    assert norms == sorted(norms, reverse=True)


def test_a_point_below_the_floor_is_no_top():
    neighbours = jnp.array([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], jnp.float32)
    climb = start_climb(jnp.zeros(3, jnp.float32))
    floor = floor_of(1.0, np.array([0.1, 0.05]), np.array([-1.0, 0.0]))
    assert floor == 0.0
    for value, gradient in ((1.0, 2.0), (-1.0, 0.1), (3.0, 1.0)):
        climb = climb_step(climb, jnp.float32(value), jnp.full(3, gradient), neighbours, jnp.zeros(2), floor)
    assert float(climb.best_loss) == 3
