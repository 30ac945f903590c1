"""Update rules: add, adam and a user's own, at a point and on a grid."""

from __future__ import annotations

import functools
import itertools

import jax
import numpy as np
import pytest
from flax.core import FrozenDict

import lla_jax as lla
from lla_jax.landscape import grids, rules
from lla_jax.landscape.store import writing
from tests.helpers import FIXED, dataset, mlp_loss, params, reference_losses
from tests.landscape.cases import DATA, RTOL, reference


def test_the_adam_rule_against_its_formula_and_its_row_zero(moments):
    coords = lla.grid(ranges=[(-0.02, 0.02), (0.1, 2)], points=(3, 4))
    plane = lla.evaluate(mlp_loss(), params(), DATA, moments, coords, rule="adam", execution=FIXED)
    for (i, a), (j, b) in itertools.product(enumerate(coords[0]), enumerate(coords[1])):

        def step(p, d, a=a, b=b):
            m, v = np.asarray(d, np.float64)
            return p + a / np.sqrt(b) * m / (np.sqrt(v) + 1e-8)

        at = jax.tree.map(step, params(), moments.tree)
        assert plane.values["loss"][i, j] == pytest.approx(reference_losses(at, DATA).mean(), rel=1e-5)
    assert plane.values["loss"][1] == pytest.approx(reference_losses(params(), DATA).mean(), rel=1e-6)


def test_the_adam_rule_is_constant_on_a_over_root_b_and_takes_its_eps(moments):
    adam, tree, p = lla.landscape.adam, moments.tree, params()
    one, other = (adam(p, tree, np.array(c, np.float32)) for c in ((0.1, 1.0), (0.2, 4.0)))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), one, other)
    coords = lla.grid(ranges=[(-0.02, 0.02), (0.1, 2)], points=3)
    large = functools.partial(adam, eps=1e6)
    plane = lla.evaluate(mlp_loss(), params(), DATA, moments, coords, rule=large, execution=FIXED)
    np.testing.assert_allclose(plane.values["loss"], plane.values["loss"][1, 1], rtol=1e-5)
    assert "eps" in plane.recipe["rule"]


def test_the_adam_rule_refuses_b_at_zero_and_other_or_normalized_directions(moments, axes):
    call = functools.partial(lla.evaluate, mlp_loss(), params(), DATA, rule="adam", execution=FIXED)
    with pytest.raises(ValueError, match="b > 0"):
        call(moments, lla.grid(points=3))
    positive = lla.grid(ranges=[(-1, 1), (0.1, 1)], points=3)
    with pytest.raises(ValueError, match="raw moments"):
        call(axes[:2], positive)
    with pytest.raises(ValueError, match="raw moments"):
        call(lla.directions.normalize(moments, params()), positive)


def test_frozen_leaves_never_move_and_a_selection_is_a_landscape_of_its_own():
    pair = lla.directions.random(jax.random.key(0), params(), select="Dense_1/**")
    for coord in itertools.product((-3.0, 0.0, 2.5), repeat=2):
        at = lla.landscape.add(params(), pair.tree, np.array(coord, np.float32))
        np.testing.assert_array_equal(at["Dense_0"]["kernel"], params()["Dense_0"]["kernel"])
        np.testing.assert_array_equal(at["gain"], params()["gain"])
    coords = lla.grid(points=3)
    plane = lla.evaluate(mlp_loss(), params(), DATA, pair, coords, execution=FIXED)
    np.testing.assert_allclose(plane.values["loss"], reference(params(), pair, coords, DATA)[0], rtol=RTOL)


def test_a_rule_of_the_users_may_have_any_name(axes):
    def adamw_like(p, directions, coord):
        return lla.landscape.add(p, directions, coord)

    coords = lla.grid(points=3)
    found = lla.evaluate(mlp_loss(), params(), DATA, axes[:2], coords, rule=adamw_like, execution=FIXED)
    np.testing.assert_allclose(found.values["loss"], reference(params(), axes[:2], coords, DATA)[0], rtol=RTOL)


def test_a_rule_may_return_its_leaves_in_another_container(axes):
    def step(p, directions, coord):
        return FrozenDict(lla.landscape.add(p, directions, coord))

    line = lla.grid(points=3, dims=1)
    frozen, plain = (
        lla.evaluate(mlp_loss(), params(), DATA, axes[0], line, rule=rule, execution=FIXED) for rule in (step, "add")
    )
    np.testing.assert_allclose(frozen.values["loss"], plain.values["loss"], rtol=1e-6)


def test_a_checked_rule_says_what_it_needs_and_allows():
    plane, positive = lla.grid(points=3), lla.grid(ranges=[(-1, 1), (0.1, 1)], points=3)
    half = functools.partial(lla.landscape.adam, eps=0.5)

    def mine(p, directions, coord):
        return lla.landscape.add(p, directions, coord)

    found = [
        (rule.name, rule.affine, rule.moments)
        for rule in (
            rules.check_rule("add", plane),
            rules.check_rule(lla.landscape.add, plane),
            rules.check_rule("adam", positive),
            rules.check_rule(half, positive),
            rules.check_rule(mine, plane),
        )
    ]
    assert found[:2] == [("add", True, False)] * 2
    assert found[2] == ("adam", False, True)
    assert found[3] == ("adam((), {'eps': 0.5})", False, True)
    assert found[4][0].endswith("mine")
    assert found[4][1:] == (False, False)
    again = functools.partial(lla.landscape.adam, eps=0.5)
    assert rules.check_rule(half, positive) == rules.check_rule(again, positive)  # by value: nothing compiles anew
    assert rules.check_rule(half, positive) != rules.check_rule("adam", positive)
    for rule, message in ((3, "rule: 3 given; it must be one of"), (mine, "has no axis")):
        with pytest.raises(ValueError, match=message):
            rules.check_rule(rule, grids.check_grid(() if rule is mine else plane))


class Shrinking:
    """A rule that is an object, whose repr has an address."""

    def __init__(self, by):
        self.by = by

    def __call__(self, params, directions, coord):
        return jax.tree.map(lambda p: self.by * p, lla.landscape.add(params, directions, coord))


@pytest.mark.parametrize(
    "make",
    [
        lambda by: Shrinking(by),
        lambda by: Shrinking(by).__call__,
        lambda by: functools.partial(lambda rule, *rest: rule(*rest), Shrinking(by)),
        lambda by: functools.partial(Shrinking(by)),
    ],
)
def test_an_object_as_rule_is_continued_by_another_one_that_does_the_same(tmp_path, axes, make, monkeypatch):
    def plane(by):
        grid = lla.grid(extent=0.3, points=2, dims=3)
        return lla.evaluate(mlp_loss(), params(), dataset(), axes, grid, rule=make(by), store=tmp_path, execution=FIXED)

    first = plane(0.5)
    assert "0x" not in first.recipe["rule"]
    with monkeypatch.context() as patch:
        patch.setattr(writing, "compute_means", None)  # would raise if a point were computed
        np.testing.assert_array_equal(plane(0.5).values["loss"], first.values["loss"])
    with pytest.raises(ValueError, match=r"store: 'loss' at .* is .*both need the same loss and functions"):
        plane(0.25)
