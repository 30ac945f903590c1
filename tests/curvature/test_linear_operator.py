"""Operators as objects: at other parameters, as pytrees, with several vectors, symmetric."""

from __future__ import annotations

import operator
import weakref
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.curvature import blocks, operators
from lla_jax.curvature.symmetry import check_symmetric
from tests import helpers
from tests.curvature.cases import DATA, LOSS, MADE, make
from tests.helpers import ONE, error, ravel

KEY = jax.random.key(0)


@pytest.mark.parametrize("name", MADE)
def test_around_other_parameters_it_is_the_operator_made_there_and_compiles_nothing(name):
    first, there = helpers.params(), helpers.params(7)
    H = MADE[name](first)
    v = H.random(KEY)
    at_first = H.product(v)
    with helpers.compilations() as seen:
        moved = H.at(there)
        found = moved.product(v)
    assert seen.count == 0
    anew = MADE[name](there)
    np.testing.assert_array_equal(ravel(found), ravel(anew.product(v)))
    assert error(found, at_first) > 0.01
    assert moved.recipe == anew.recipe != H.recipe
    assert repr(moved) == repr(H)
    np.testing.assert_array_equal(ravel(moved.at(first).product(v)), ravel(at_first))
    np.testing.assert_array_equal(ravel(H.product(v)), ravel(at_first))
    assert [x.sharding for x in jax.tree.leaves(moved.centre())] == [x.sharding for x in jax.tree.leaves(H.centre())]


def test_around_other_parameters_the_data_stay_where_they_are(monkeypatch):
    H = make(linearize=False)

    def refuse(*args):
        raise AssertionError("the data are moved")

    monkeypatch.setattr(blocks, "_split", refuse)
    monkeypatch.setattr(blocks, "_profile", refuse)
    assert H.at(helpers.params(1)).recipe["plan"] == H.recipe["plan"]
    there, here = (jax.tree.leaves(op.common.data) for op in (H.at(helpers.params(1)), H))
    assert all(map(operator.is_, there, here))
    held = weakref.ref(here[0])
    del H, there, here
    assert held() is None  # at once: an operator that holds itself would wait for the garbage collector


def test_where_primal_values_are_kept_the_data_are_not_here_or_elsewhere(monkeypatch):
    placed, split = [], blocks._split

    def watched(*args):
        found = split(*args)
        placed.extend(map(weakref.ref, jax.tree.leaves(found)))
        return found

    monkeypatch.setattr(blocks, "_split", watched)
    H = make(linearize=True)
    there = H.at(helpers.params(1))
    assert there.recipe["plan"] == H.recipe["plan"]
    assert len(placed) == 4  # inputs and labels, for each of the two
    assert not [array for array in placed if array() is not None]


def test_around_other_parameters_the_recipe_is_that_of_an_operator_made_there():
    """Parameters of a wider type are known by their own bits, as a landscape around them says."""
    wide = jax.tree.map(lambda x: np.asarray(x, np.float64), helpers.params(1))
    there, anew = make().at(wide), lla.hessian(LOSS, wide, DATA, execution=ONE)
    assert there.recipe["params"] == anew.recipe["params"]
    axes = lla.directions.random(KEY, wide)
    plane = lla.evaluate(LOSS, wide, DATA, axes, lla.grid(points=3), execution=helpers.FIXED)
    assert lla.plane_report(plane, axes, there).products


def test_a_stream_may_change_between_parameters_but_not_at_them():
    passes = [DATA, DATA, tuple(x[:7] for x in DATA), tuple(x[:7] for x in DATA), DATA]
    reading = iter(passes)
    H = lla.hessian(LOSS, helpers.params(), lla.stream(lambda: [next(reading)]), execution=ONE)  # reads once
    v = H.random(KEY)
    H.product(v)
    there = H.at(helpers.params(1))
    there.product(v)
    there.product(v)
    with pytest.raises(ValueError, match="the stream yielded 7 examples and now"):
        there.product(v)


def test_an_operator_is_a_pytree_and_survives_transformations(hessian):
    v = hessian.random(KEY)
    copied = jax.tree.map(lambda x: x, hessian)
    assert error(copied.product(v), hessian.product(v)) == 0
    assert copied.recipe == {}
    half = jax.tree.map(lambda x: (np.arange(x.size) % 2).reshape(x.shape), helpers.params())
    seen = []

    @jax.jit
    def inside(H, key):
        seen.append(repr(H))
        return H, H.mv(H.random(key))

    for H in (hessian, operators.masked(hessian, half)):
        after, product = inside(H, KEY)
        assert error(product, H.product(H.random(KEY))) < 1e-6
        assert after.shape == H.shape
    assert seen == ["LinearOperator(hessian, 58 x 58)", "LinearOperator(hessian, masked)"]
    host = operators.given(lambda v: v, v, traceable=False)
    assert repr(host) == "HostOperator(given, 58 x 58)"
    assert not host.on_device


@pytest.mark.parametrize("name", MADE)
def test_products_are_the_product_row_by_row(name):
    _check_products(MADE[name](helpers.params()))


def test_products_of_given_operators_are_the_product_row_by_row():
    A = np.random.default_rng(0).standard_normal((6, 6)).astype(np.float32)
    _check_products(operators.given(lambda v, A: A @ v, A[0], A))
    _check_products(operators.given(lambda v, A: A @ np.asarray(v), A[0], A, traceable=False))


def _check_products(H: Any) -> None:
    each = [H.random(jax.random.fold_in(KEY, i), "normal") for i in range(3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *each)
    found = H.products(stacked)
    assert jax.tree.structure(found) == jax.tree.structure(stacked)
    for i, v in enumerate(each):
        assert error(jax.tree.map(lambda x, i=i: x[i], found), H.mv(v)) < 1e-6
    alone = H.products(jax.tree.map(lambda x: x[:1], stacked))
    assert [x.shape[0] for x in jax.tree.leaves(alone)] == [1] * len(H.space.shapes)


@pytest.mark.parametrize("name", helpers.OPERATORS)
def test_every_operator_multiplies_by_its_matrix(name):
    H, a = helpers.OPERATORS[name]()
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *(H.random(jax.random.fold_in(KEY, i), "normal") for i in range(3)))
    v = jax.tree.map(lambda x: x[1], stacked)
    x, scale = helpers.flat(stacked, 1), 1e-6 * np.linalg.norm(a, 2) * np.linalg.norm(helpers.flat(v))
    assert np.abs(helpers.flat(H.product(v)) - a @ x[1]).max() < scale
    assert np.abs(helpers.flat(H.mv(v)) - a @ x[1]).max() < scale
    assert np.abs(helpers.flat(H.products(stacked), 1) - x @ a).max() < 2 * scale
    chex.assert_trees_all_equal_shapes_and_dtypes(H.product(v), v, H.structure)
    assert check_symmetric(H, KEY).products == 2
    assert H.space.size == len(a)
