"""Refinement on analytic surfaces: fewer points, a stated error that holds, and nothing smeared or wasted."""

import dataclasses
import json

import numpy as np
import pytest

from lla_jax.landscape import refinement
from lla_jax.landscape.refinement import Known, refine

SIDE = np.linspace(-1, 1, 41)
X, Y = np.meshgrid(SIDE, SIDE, indexing="ij")
NOISE = np.random.default_rng(0).normal(size=X.shape)


def run(values, coords=(SIDE, SIDE), stderr=None, group=1, known_too=None, **options):
    """Drive ``rounds`` over a table of values; the result, the points asked for, and the size of each round."""
    tables = values if isinstance(values, dict) else {"loss": values}
    errors = {} if stderr is None else {"loss": np.broadcast_to(stderr, tables["loss"].shape)}
    asked, sizes = np.zeros(tables["loss"].size, bool), []
    rounds, told = refinement.rounds(refine(**options), coords, group), None
    while True:
        try:
            flat = rounds.send(told)
        except StopIteration as stop:
            return stop.value, asked.reshape(tables["loss"].shape), sizes
        assert flat.dtype == np.int64
        assert len(np.unique(flat)) == len(flat)
        assert not asked[flat].any()
        asked[flat] = True
        sizes.append(len(flat))
        mask = asked if known_too is None else asked | known_too
        mask = mask.reshape(tables["loss"].shape)
        hidden = {name: np.where(mask, table, 1e99) for name, table in tables.items()}
        told = Known(hidden, {name: np.where(mask, table, 1e99) for name, table in errors.items()}, mask)


def true_errors(found, truth, asked, name="loss"):
    """The errors of the points not asked for, in multiples of the range of the picture."""
    picture = np.log if found.about["scales"][name] == "log" else np.asarray
    rest = ~asked & np.isfinite(truth)
    return abs(picture(found.values[name][rest]) - picture(truth[rest])) / np.ptp(picture(truth[np.isfinite(truth)]))


def smooth(seed, narrow=0.05):
    """A random surface with a bowl: a sum of waves, and a root that is nearly a kink."""
    rng = np.random.default_rng(seed)
    waves = sum(rng.normal() * np.cos(rng.normal(0, 2) * X + rng.normal(0, 2) * Y + rng.normal()) for _ in range(4))
    return waves + 2 * np.sqrt(narrow + (X - rng.normal(0, 0.3)) ** 2 + rng.uniform(0.3, 3) * Y**2)


def test_a_quadratic_is_exact_from_few_points():
    truth = X**2 + 3 * Y**2 + X * Y + 0.1
    found, asked, _ = run(truth)
    assert asked.sum() <= 200
    np.testing.assert_allclose(found.values["loss"], truth, atol=1e-8)
    assert found.about["error"] < 1e-8
    assert found.about["met"]


@pytest.mark.parametrize("size", [1e200, 1e-200])
def test_values_whose_squares_have_no_number(size):
    truth = (X**2 + 3 * Y**2 + X) * size
    found, asked, _ = run(truth)
    assert asked.sum() <= 200
    np.testing.assert_allclose(found.values["loss"] / size, truth / size, atol=1e-8)


def test_values_over_more_decades_than_a_square_has():
    found, asked, _ = run(np.exp(600 * X))
    assert asked.sum() <= 200
    np.testing.assert_allclose(np.log(found.values["loss"]), 600 * X, atol=1e-6)


def test_a_quadratic_on_unequal_coordinates():
    coords = (np.geomspace(0.01, 1, 61), np.sort(np.random.default_rng(1).uniform(-1, 1, 31)))
    truth = np.add.outer(3 * coords[0] ** 2, coords[1] ** 2 - coords[1])
    found, asked, _ = run(truth, coords)
    assert asked.mean() < 0.25
    np.testing.assert_allclose(found.values["loss"], truth, atol=1e-6)


@pytest.mark.parametrize("low", [1e-2, 1e-4])
def test_a_narrow_minimum_on_a_logarithmic_picture(low):
    truth = low + 3 * X**2 + 8 * Y**2 + 5 * (X + Y) ** 4
    found, asked, _ = run(truth)
    assert found.about["scale"] == "log"
    assert asked.mean() <= 0.25
    assert true_errors(found, truth, asked).max() < 0.01
    assert (found.values["loss"] > 0).all()


@pytest.mark.parametrize("side", [19, 20])
def test_a_look_filled_up_to_a_group_still_bounds(side):
    line = np.linspace(-1, 1, side)
    x, y = np.meshgrid(line, line, indexing="ij")
    for number in range(2):
        truth = x**2 + y + 0.003 * np.random.default_rng(number).normal(size=x.shape) * (x > 0)
        found, asked, _ = run(truth, (line, line), stderr=np.full(x.shape, 0.003), group=16)
        assert not asked.all()
        assert np.percentile(true_errors(found, truth, asked), 95) <= found.about["error"]


def test_evaluated_points_stay_as_they_are_and_are_counted():
    truth = smooth(0)
    found, asked, _ = run(truth)
    np.testing.assert_array_equal(found.values["loss"][asked], truth[asked])
    assert found.about["points"] == asked.sum() < found.about["of"] == truth.size
    assert np.isfinite(found.values["loss"]).all()


def test_the_stated_error_holds():
    held = []
    for seed in range(20):
        truth = smooth(seed)
        found, asked, _ = run(truth)
        assert found.about["error"] <= 0.01
        held.append(np.percentile(true_errors(found, truth, asked), 95) <= found.about["error"])
    assert sum(held) >= 19


def test_it_depends_on_no_other_points():
    truth = smooth(3)
    others = np.random.default_rng(5).random(truth.size) < 0.3
    found, asked, sizes = run(truth)
    again, same, sizes_again = run(truth, known_too=others)
    assert sizes == sizes_again
    np.testing.assert_array_equal(asked, same)
    new = ~(asked.ravel() | others)
    np.testing.assert_array_equal(found.values["loss"].ravel()[new], again.values["loss"].ravel()[new])
    np.testing.assert_array_equal(again.values["loss"].ravel()[others], truth.ravel()[others])


def test_points_known_where_the_surface_is_smooth_lower_the_share_that_is_bounded():
    truth = X**2 + Y**2 + 0.02 * np.sin(20 * X * Y) * (X > 0.6)
    rows = np.repeat(SIDE <= 0.55, len(SIDE))
    found, asked, _ = run(truth, known_too=rows, rtol=0.02)
    alone, _, _ = run(truth, rtol=0.02)
    assert found.about["error"] == alone.about["error"]
    assert found.about["percentile"] < 95 == alone.about["percentile"]
    rest = ~asked & ~rows.reshape(X.shape)
    errors = abs(found.values["loss"] - truth)[rest] / np.ptp(truth)
    assert np.percentile(errors, found.about["percentile"]) <= found.about["error"]


def test_rounds_fill_groups():
    _, asked, sizes = run(smooth(1), group=32)
    assert all(size % 32 == 0 for size in sizes[1:])
    assert asked.mean() < 0.5


def test_the_centre_and_its_neighbours_come_first():
    rounds = refinement.rounds(refine(), (SIDE, SIDE))
    first = np.zeros(X.shape, bool)
    first.ravel()[next(rounds)] = True
    assert first[18:23, 20].all()
    assert first[20, 18:23].all()
    assert first[[0, 0, -1, -1], [0, -1, 0, -1]].all()


def test_white_noise_costs_no_more_than_the_grid():
    found, asked, sizes = run(NOISE)
    assert asked.all()
    assert sum(sizes) == NOISE.size
    assert len(sizes) <= 4
    assert found.about["error"] == 0


def test_noise_that_the_standard_errors_know_of_is_not_refined():
    found, asked, _ = run(X**2 + Y**2 + 0.1 * NOISE, stderr=0.1)
    assert asked.mean() < 0.5
    assert not found.about["met"]
    assert "standard error" in found.about["reason"]
    truth = X**2 + Y**2 + 0.1 * NOISE
    assert 0.01 < np.percentile(true_errors(found, truth, asked), 95) <= found.about["error"]


def test_noise_about_as_large_as_the_tolerance_is_not_refined_either():
    truth = np.cosh(2 * X) + 0.01 * NOISE  # 0.36 % of the range
    found, asked, _ = run(truth, stderr=0.01, group=16)
    assert asked.mean() < 0.4
    assert np.percentile(true_errors(found, truth, asked), 95) <= found.about["error"] < 0.03


def test_standard_errors_of_common_examples_are_no_noise():
    found, _, _ = run(smooth(2), stderr=0.5)
    assert found.about["error"] <= 0.01
    rest = found.stderr["loss"][found.values["loss"] != smooth(2)]
    assert (rest >= 0.5 - 1e-6).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_region_without_values_keeps_its_border(bad):
    truth = np.where(X + 0.2 * Y > 0.41, bad, X**2 + Y**2)
    found, asked, _ = run(truth)
    assert asked.mean() < 0.35
    assert (np.isfinite(found.values["loss"]) != np.isfinite(truth)).mean() < 0.02
    agree = np.isfinite(truth) & np.isfinite(found.values["loss"])
    np.testing.assert_allclose(found.values["loss"][agree], truth[agree], atol=1e-6)


def test_hardly_any_finite_value():
    truth = np.where((abs(X) < 0.2) & (abs(Y) < 0.2), X**2, np.nan)
    found, asked, _ = run(truth)
    assert asked.all()
    np.testing.assert_array_equal(found.values["loss"], truth)


@pytest.mark.parametrize(
    "truth",
    [abs(X - 0.33 + 0.2 * Y) + 0.3 * Y**2, np.where(X + 0.3 * Y > 0.1, 1.0, 0.0) + 0.1 * X],
    ids=["kink", "step"],
)
def test_kinks_and_steps(truth):
    found, asked, _ = run(truth)
    assert asked.mean() < 0.6
    assert np.percentile(true_errors(found, truth, asked), 95) <= max(found.about["error"], 1e-9) <= 0.01


def test_a_line():
    line = np.linspace(-1, 1, 1001)
    truth = np.cosh(3 * line) + 0.3 * np.sin(9 * line)
    found, asked, _ = run(truth, (line,))
    assert asked.mean() < 0.2
    assert true_errors(found, truth, asked).max() < 0.01


def test_a_volume():
    axes = [np.linspace(-1, 1, n) for n in (13, 15, 11)]
    a, b, c = np.meshgrid(*axes, indexing="ij")
    truth = np.cosh(a + b) + c**2 * (1 + a) + b
    found, asked, _ = run(truth, tuple(axes))
    assert asked.mean() < 0.5
    assert np.percentile(true_errors(found, truth, asked), 95) <= found.about["error"] <= 0.01


@pytest.mark.parametrize("shape", [(3,), (41,), (3, 3), (1, 5), (2, 2, 2), (9, 9)])
def test_small_grids_are_evaluated_as_a_whole(shape):
    coords = tuple(np.linspace(-1, 1, n) for n in shape)
    truth = np.random.default_rng(0).normal(size=shape)
    found, asked, sizes = run(truth, coords)
    assert asked.all()
    assert len(sizes) == 1
    assert found.about["met"]


def test_an_axis_with_few_points():
    coords = (np.linspace(-1, 1, 301), np.linspace(-1, 1, 3))
    truth = np.add.outer(np.cos(3 * coords[0]), coords[1])
    found, asked, _ = run(truth, coords)
    assert asked.mean() < 0.5
    assert np.percentile(true_errors(found, truth, asked), 95) <= found.about["error"] <= 0.01


def test_a_constant():
    found, asked, _ = run(np.full(X.shape, 2.0))
    assert found.about["error"] < 1e-12
    assert asked.mean() < 0.2
    np.testing.assert_allclose(found.values["loss"], 2.0, rtol=1e-12)


def test_metrics_are_interpolated_with_an_error_of_their_own():
    values = {"loss": X**2 + Y**2, "accuracy": np.round(np.exp(-(X**2) - Y**2), 1)}
    found, asked, _ = run(values)
    errors = found.about["errors"]
    assert errors["loss"] < 1e-6 < errors["accuracy"]
    assert np.percentile(true_errors(found, values["accuracy"], asked, "accuracy"), 95) <= errors["accuracy"]
    assert 0 <= found.values["accuracy"].min() <= found.values["accuracy"].max() <= 1
    np.testing.assert_array_equal(found.values["accuracy"][asked], values["accuracy"][asked])


def test_what_is_told_is_plain_data():
    found, _, _ = run({"loss": smooth(1), "lost": np.full(X.shape, np.nan)})
    assert json.loads(json.dumps(found.about, allow_nan=False)) == found.about
    assert found.about["errors"]["lost"] is None


def test_a_smaller_tolerance_takes_more_points():
    points = [run(smooth(4, 0.005), rtol=rtol)[0].about["points"] for rtol in (0.05, 0.002)]
    assert points[0] < points[1]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"rtol": 0}, "rtol: 0 given"),
        ({"rtol": 1.5}, "below 1"),
        ({"rtol": "1 %"}, "rtol"),
        ({"scale": "logit"}, "'log'"),
    ],
)
def test_misuse(options, match):
    with pytest.raises(ValueError, match=match):
        refine(**options)


def test_it_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        refine().rtol = 0.1


def test_errors_that_fall_below_the_standard_errors_are_no_noise():
    assert refinement._is_noise(1.1, np.inf)
    assert refinement._is_noise(1.0, 1.1)
    assert not refinement._is_noise(1.0, 1.5)  # a surface on its way down
    assert not refinement._is_noise(2.4, np.inf)
    assert not refinement._is_noise(np.nan, 1.0)
