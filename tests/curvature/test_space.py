"""The space of an operator: structure, random vectors, embedding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lla_jax.curvature import operators, space
from tests import helpers
from tests.curvature.cases import HALF, MADE, make, ones
from tests.helpers import ravel

KEY = jax.random.key(0)


def test_structure_random_vectors_and_embedding():
    H = make(select="**/kernel")
    assert H.structure["gain"] is None
    assert H.structure["Dense_0"]["kernel"] == jax.ShapeDtypeStruct((5, 6), np.float32)
    assert H.shape == (48, 48)
    assert H.dtype == np.float32
    signs, normal = (H.random(KEY, kind) for kind in ("rademacher", "normal"))
    assert set(np.unique(ravel(signs))) == {-1.0, 1.0}
    assert abs(np.std(ravel(normal)) - 1) < 0.3
    assert signs["Dense_1"]["bias"] is None
    full = H.embed(jax.tree.map(lambda x: jnp.stack([x, 2 * x]), signs))
    assert jax.tree.structure(full) == jax.tree.structure(helpers.params())
    assert full["gain"].shape == (2,)
    assert not np.any(full["gain"])
    np.testing.assert_array_equal(full["Dense_0"]["kernel"][1], 2 * signs["Dense_0"]["kernel"])
    with pytest.raises(ValueError, match="distribution: 'uniform' given"):
        H.random(KEY, "uniform")


def test_a_vector_of_a_number_is_the_same_alone_and_among_others():
    for H in (
        make(),
        make(select="**/kernel"),
        operators.masked(make(), HALF),
        MADE["spread over devices"](helpers.params()),
    ):
        numbers = np.array([5, 0, 7], np.uint32)
        for kind in ("rademacher", "normal"):
            drawn = space.draw(H.space, KEY, numbers, distribution=kind)
            for i, number in enumerate(numbers):
                alone = H.random(jax.random.fold_in(KEY, number), kind)
                np.testing.assert_array_equal(ravel(jax.tree.map(lambda x, i=i: x[i], drawn)), ravel(alone))


def test_one_program_draws_for_all_operators_of_a_shape():
    numbers = np.arange(3, dtype=np.uint32)
    masks = [operators.masked(make(), mask).space for mask in (HALF, ones)]
    for first, *others in (
        [
            make().space,
            make(devices=2).space,
            MADE["streamed"](helpers.params(1)).space,
            MADE["kept"](helpers.params()).space,
        ],
        masks,
    ):
        space.draw(first, KEY, numbers, distribution="normal")
        with helpers.compilations() as seen:
            for other in others:
                space.draw(other, KEY, numbers, distribution="normal")
        assert seen.count == 0


def test_a_space_knows_its_vectors():
    H = make(select="Dense_0/*")
    masked = operators.masked(H, jax.tree.map(lambda x: np.arange(x.size).reshape(x.shape) < 2, H.random(KEY)))
    assert (H.space.size, H.space.dim, H.space.nbytes, H.space.dtype) == (36, 36, 144, np.float32)
    assert (masked.space.size, masked.space.dim, masked.shape) == (36, 4, (4, 4))
    assert repr(H.space) == "Space(36 entries in 2 leaves)"
    assert H.memory()[0] == 144
    assert H.leaf_mask == (True, True, False, False, False)
    spread = MADE["spread over devices"](helpers.params())
    assert spread.space.nbytes == 2 * 4 * 43  # devices that are cores share their memory: what all hold
    v = H.random(KEY)
    assert H.space.check(v) is v
    assert H.space.tree(jax.tree.leaves(v))["gain"] is None


def test_vectors_may_be_numbers_of_numpy_and_python():
    H = operators.hessian(lambda p: p["a"] ** 2 + p["b"] ** 2, {"a": 2.0, "b": np.float32(1)}, None)
    assert H.mv({"a": 1.0, "b": np.float64(3.0)}) == {"a": 2.0, "b": 6.0}
