"""Spanning trees over several minima, whose saddles are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.paths import spanning
from tests.helpers import Interrupt
from tests.paths.surfaces import HIGH, LOW, MIDDLE, mueller_brown, point

KEY = jax.random.key(0)

SIDES = {"south": 1.0, "north": 3.0, "west": 2.0, "east": 5.0}


def square(p, batch):
    """Four minima of loss 0 at (+-1, +-1), with a saddle between each two neighbours, at (0, -1), ..., of known height.

    (1 - x^2)^2 (height of the sides south and north) + (1 - y^2)^2 (of the sides west and east), each interpolated
    smoothly from one side to the other, with no slope at the sides.
    """
    x, y = p["x"], p["y"]

    def between(low, high, t):
        s = jnp.clip((t + 1) / 2, 0, 1)
        return low + (high - low) * s**2 * (3 - 2 * s)

    across = (1 - x**2) ** 2 * between(SIDES["south"], SIDES["north"], y)
    return across + (1 - y**2) ** 2 * between(SIDES["west"], SIDES["east"], x)


CORNERS = [point(x, y) for x, y in ((-1, -1), (1, -1), (-1, 1), (1, 1))]


@pytest.fixture(scope="module")
def tree():
    options = {"steps": 60, "cycles": 1, "insert": 0}
    return lla.paths.spanning_tree(square, CORNERS, None, KEY, names=["sw", "se", "nw", "ne"], **options)


def test_four_minima_with_known_saddles_give_the_known_tree(tree):
    assert tree.edges == ((0, 1), (0, 2), (2, 3))  # south 1, west 2, north 3, and not east 5
    np.testing.assert_allclose(tree.losses, [1, 2, 3], atol=1e-4)
    expected = [[0, 1, 2, 3], [1, 0, 2, 3], [2, 2, 0, 3], [3, 3, 3, 0]]
    np.testing.assert_allclose(tree.barriers, expected, atol=1e-4)
    np.testing.assert_allclose(tree.minima, 0, atol=1e-6)
    assert np.isnan(tree.stderr).all()  # a plain function shows no examples
    assert tree.recipe["all"]
    assert repr(tree) == "SpanningTree(4 minima; sw-se 1, sw-nw 2, nw-ne 3)"


def test_its_curves_lead_from_minimum_to_minimum_over_their_highest_points(tree):
    for (i, j), curve, t, height in zip(tree.edges, tree.curves, tree.t, tree.losses, strict=True):
        assert curve.ends == (CORNERS[i], CORNERS[j])
        assert float(square(curve(t), None)) == pytest.approx(height, abs=1e-6)


def test_a_curve_over_the_saddle_of_another_loses_to_the_shorter_one():
    options = {"steps": 150, "cycles": 1, "insert": 0}
    tree = lla.paths.spanning_tree(mueller_brown, [LOW, HIGH, MIDDLE], None, KEY, **options)
    assert tree.edges == ((1, 2), (0, 2))
    np.testing.assert_allclose(tree.losses, [-72.2489, -40.6648], atol=1e-3)
    np.testing.assert_allclose(tree.barriers[0, 1], -40.6648, atol=1e-3)
    np.testing.assert_allclose(tree.minima, [-146.6995, -108.1667, -80.7678], atol=1e-3)


def choices(lines, curves, ends, most, lengths=None):
    """The pairs that are chosen where curves have these heights."""
    tops: dict = {}
    chosen = []
    for pair in spanning._choose(len(ends), lines, ends, tops, most, lengths or {}):
        chosen.append(pair)
        tops[pair] = spanning._Top(curves[pair], 0.0, 0.5, ((0.0, 0.0), (0.0, 0.0)))
    return chosen


LINES = {(0, 1): 1.0, (0, 2): 2.0, (0, 3): 3.0, (1, 2): 4.0, (1, 3): 5.0, (2, 3): 6.0}


def test_the_lowest_lines_come_first_and_then_pairs_that_may_lower_the_highest_edge():
    curves = {**LINES, (0, 3): 2.9, (1, 3): 0.5, (2, 3): 0.1}
    assert choices(LINES, curves, [0.0] * 4, 3) == [(0, 1), (0, 2), (0, 3)]
    # 0-3 is the highest: of 1-3 and 2-3 the line of 1-3 is lower; then 0-2, which 1-2 or 2-3 may replace
    assert choices(LINES, curves, [0.0] * 4, 5) == [(0, 1), (0, 2), (0, 3), (1, 3), (1, 2)]
    assert len(choices(LINES, curves, [0.0] * 4, 6)) == 6


def test_of_lines_of_one_height_the_shorter_come_first():
    # three minima in a row, 0 in the middle of 1 and 2: the line 1-2 leads through 0
    lines = {(0, 1): 1.0, (0, 2): 1.0 + 1e-7, (1, 2): 1.0 - 1e-7}
    assert choices(lines, lines, [0.0] * 3, 2, {(0, 1): 1.0, (0, 2): 1.0, (1, 2): 2.0}) == [(0, 1), (0, 2)]


def test_a_pair_with_a_minimum_as_high_as_the_edge_is_left_out():
    assert choices(LINES, LINES, [0.0, 0.0, 0.0, 3.0], 6) == [(0, 1), (0, 2), (0, 3), (1, 2)]


def test_a_tree_that_was_interrupted_keeps_its_finished_curves(tmp_path):
    options = {"steps": 4, "cycles": 1, "insert": 0, "climb": 0, "store": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        lla.paths.spanning_tree(square, CORNERS[:3], None, KEY, progress=Interrupt(6), **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0-1", "0-2"]
    seen = []
    tree = lla.paths.spanning_tree(
        square, CORNERS[:3], None, KEY, progress=lambda done, total: seen.append((done, total)), **options
    )
    assert seen[-1][1] == 12
    assert seen[0][0] > 4  # the first curve is read
    assert len(tree.edges) == 2


def _fit(params, state, batch, train):
    return batch[0] * params["w"] + state["mean"], state


@pytest.mark.parametrize(
    ("minima", "options", "match"),
    [
        ([], {}, "minima: 0 given"),
        (CORNERS[:1], {}, "minima: 1 given"),
        (CORNERS[0], {}, "minima: a value that is no list"),
        ([CORNERS[0], CORNERS[1], CORNERS[0]], {}, r"minima\[2\]: equals minima\[0\]"),
        ([CORNERS[0], {"x": np.float32(1)}], {}, r"minima\[1\]"),
        ([CORNERS[0], point(1, np.nan)], {}, r"minima\[1\]"),
        (CORNERS, {"connections": 2}, "connections: 2"),
        (CORNERS[:2], {"names": ["a"]}, "names"),
        (CORNERS[:2], {"states": [1, 2]}, "states"),
        (CORNERS[:2], {"kind": "line"}, "kind: 'line'"),
    ],
)
def test_wrong_arguments_are_refused_by_name(minima, options, match):
    with pytest.raises(ValueError, match=match):
        lla.paths.spanning_tree(square, minima, None, KEY, **options)


def test_the_states_of_all_minima_are_asked_for():
    loss = lla.Loss(_fit, lambda outputs, batch: outputs**2, state={"mean": np.float32(0)})
    minima = [{"w": np.float32(w)} for w in (0, 1)]
    with pytest.raises(ValueError, match="states: none given"):
        lla.paths.spanning_tree(loss, minima, (np.ones(4, "float32"),), KEY)


def _follow(params, state, batch, train):
    mean = 0.9 * state["mean"] + 0.1 * batch[0].mean()
    return batch[0] * params["w"] + (mean if train else state["mean"]), {"mean": mean}


def test_a_state_that_is_not_finite_is_named_as_it_was_given():
    loss = lla.Loss(_follow, lambda outputs, batch: outputs**2, state={"mean": np.float32(0)})
    minima, states = [{"w": np.float32(w)} for w in (0, 1)], [{"mean": np.float32(x)} for x in (0, np.nan)]
    with pytest.raises(ValueError, match=r"states\[1\]: \['mean'\] has NaN"):
        lla.paths.spanning_tree(loss, minima, (np.ones(4, "float32"),), KEY, states=states)
