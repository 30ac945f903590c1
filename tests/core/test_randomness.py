"""A vector drawn in pieces has the numbers that jax.random draws at once."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lla_jax.core import randomness
from lla_jax.core.randomness import DRAWS, draw_flat


@pytest.fixture
def in_pieces(monkeypatch):
    monkeypatch.setattr(randomness, "PIECE", 64)
    monkeypatch.setattr(randomness, "LONG", 100)


@pytest.mark.parametrize("distribution", DRAWS)
@pytest.mark.parametrize("size", [99, 128, 300])
def test_the_numbers_are_those_of_one_draw(in_pieces, distribution, size):
    key = jax.random.fold_in(jax.random.key(3), 5)
    wanted = DRAWS[distribution](key, (size,), dtype=jnp.float32)
    np.testing.assert_array_equal(draw_flat(key, size, distribution), wanted)
    assert ("key<pieces>" in str(jax.make_jaxpr(lambda key: draw_flat(key, size, distribution))(key))) == (size > 100)


def test_several_at_once(in_pieces):
    keys = jax.random.split(jax.random.key(0), 3)
    found = jax.vmap(lambda key: draw_flat(key, 150, "normal"))(keys)
    np.testing.assert_array_equal(found, [jax.random.normal(key, (150,), jnp.float32) for key in keys])


def test_other_generators_draw_at_once(in_pieces, monkeypatch):
    key = jax.random.key(0, impl="rbg")
    np.testing.assert_array_equal(draw_flat(key, 150, "normal"), jax.random.normal(key, (150,), jnp.float32))
    with jax.threefry_partitionable(False):
        key = jax.random.key(0)
        np.testing.assert_array_equal(draw_flat(key, 150, "normal"), jax.random.normal(key, (150,), jnp.float32))


def test_a_long_draw_holds_little_beside_its_result():
    size = randomness.LONG
    program = jax.jit(lambda key: draw_flat(key, size, "rademacher")).lower(jax.random.key(0)).compile()
    assert program.memory_analysis().temp_size_in_bytes < size * 4
