"""Nudged elastic bands: known saddles, pivots where they are needed, and trainings that go on where they stopped."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lla_jax as lla
from tests.helpers import Interrupt, compilations
from tests.paths.surfaces import HIGH, LOW, MIDDLE, bowl, mueller_brown, point, ring

KEY = jax.random.key(0)
WEST, EAST = point(-1, 0), point(1, 0)


def band(loss, a, b, data=None, **options):
    return lla.paths.connect(loss, a, b, data, key=KEY, kind="band", **{"insert": 0, "cycles": 1, **options})


def flat(points):
    leaves = [np.asarray(x) for x in jax.tree.leaves(points)]
    return np.concatenate([x.reshape(len(x), -1) for x in leaves], 1)


@pytest.mark.parametrize(
    ("a", "b", "height"), [(LOW, MIDDLE, -40.6648), (HIGH, MIDDLE, -72.2489), (LOW, HIGH, -40.6648)]
)
def test_the_saddles_of_the_mueller_brown_surface(a, b, height):
    curve = band(mueller_brown, a, b, steps=200, curvature=True)
    saddle = curve.saddle
    assert saddle.converged
    assert abs(saddle.loss - height) < 1e-4
    assert saddle.gradient_norm <= 1e-3
    assert saddle.across <= saddle.gradient_norm
    gradient = jax.grad(mueller_brown)(saddle.params, None)
    assert np.hypot(gradient["x"], gradient["y"]) == pytest.approx(saddle.gradient_norm, rel=0.5, abs=2e-4)
    assert saddle.negative == 1
    assert saddle.eigenvalues[0] < -100 < 0 < saddle.eigenvalues[1]
    assert curve.history["pivot_loss"].max() == saddle.loss


def test_a_band_that_has_come_down_has_no_saddle_to_warn_of():
    """Its highest pivots differ by rounding; warnings are errors here."""
    for steps in (300, 500):
        assert band(ring, WEST, EAST, steps=steps).saddle.loss < 1e-6


def test_the_pivots_of_a_band_on_the_ring_reach_zero_and_the_ends_stay():
    curve = band(ring, WEST, EAST, steps=300)
    assert curve.history["pivot_loss"].max() < 1e-6
    assert curve.history["loss"][0] > 0.9
    for end, given in zip(curve.ends, (WEST, EAST), strict=True):
        assert all(end[name] == given[name] and end[name].dtype == given[name].dtype for name in given)
    gaps = np.hypot(*np.diff(flat(curve.points), axis=0).T)
    np.testing.assert_allclose(np.diff(curve.knots), gaps / gaps.sum(), rtol=1e-4)


def test_new_pivots_come_before_each_further_cycle_lower_the_losses_between_pivots_and_compile_nothing():
    few = band(ring, WEST, EAST, steps=300)
    with compilations() as seen:
        more = band(ring, WEST, EAST, steps=300, cycles=3, insert=2)
    assert seen.count == 0
    assert more.history["cycle_pivots"].tolist() == [5, 7, 9]
    assert len(more.history["cycle_max_loss"]) == 3
    highest = [lla.paths.evaluate(curve, ring, None, points=41).values["loss"].max() for curve in (few, more)]
    assert highest[1] < 0.5 * highest[0]


def test_a_way_without_a_pass_has_its_highest_point_at_an_end():
    curve = band(bowl, point(-1, 0), point(1, 0.5), steps=60)
    assert curve.saddle.t == 1
    assert not curve.saddle.converged
    assert curve.saddle.loss == 1.75
    assert curve.saddle.gradient_norm == pytest.approx(np.hypot(2, 3))


@pytest.mark.parametrize("after", [3, 21])  # while the band is trained, and while its highest point climbs
def test_an_interrupted_band_goes_on_to_the_same_result_to_the_bit(tmp_path, after):
    options = {"steps": 20, "cycles": 2, "insert": 1, "climb": 5, "tolerance": 1e-7}
    with pytest.warns(UserWarning, match="tolerance: 1e-07 not reached"):
        once = band(mueller_brown, LOW, MIDDLE, **options)
    with pytest.raises(KeyboardInterrupt):
        band(mueller_brown, LOW, MIDDLE, **options, store=tmp_path, progress=Interrupt(after))
    seen = []
    with pytest.warns(UserWarning, match="tolerance"):
        again = band(
            mueller_brown,
            LOW,
            MIDDLE,
            **options,
            store=tmp_path,
            progress=lambda done, total: seen.append((done, total)),
        )
    assert seen[0] == (after + 1, 25)
    np.testing.assert_array_equal(flat(again.points), flat(once.points))
    for name, x in once.history.items():
        np.testing.assert_array_equal(again.history[name], x)
    with pytest.raises(ValueError, match=r"store.*another"):
        band(ring, LOW, MIDDLE, **options, store=tmp_path)


def test_a_step_that_is_not_finite_ends_the_training_with_a_warning():
    with pytest.warns(UserWarning, match="not finite at step 1"):
        curve = band(mueller_brown, LOW, MIDDLE, steps=9, optimizer=optax.sgd(1e6))
    assert curve.saddle is None
    assert not curve.recipe["complete"]
    assert curve.recipe["stopped"] == 1
    assert np.isfinite(flat(curve.points)).all()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"points": 0}, "points: 0"),
        ({"climb": -1}, "climb: -1"),
        ({"tolerance": 0}, "tolerance: 0"),
        ({"cycle": 3}, "cycle"),
        ({"curvature": "yes"}, "curvature: 'yes'"),
    ],
)
def test_wrong_options_are_refused_by_name(options, match):
    with pytest.raises(ValueError, match=match):
        band(ring, WEST, EAST, steps=5, **options)


def _normalized(params, state, batch, train):
    hidden = batch[0] @ params["w"]
    mean, var = (hidden.mean(0), hidden.var(0)) if train else (state["mean"], state["var"])
    new = {"mean": 0.9 * state["mean"] + 0.1 * hidden.mean(0), "var": 0.9 * state["var"] + 0.1 * hidden.var(0)}
    return ((hidden - mean) * jax.lax.rsqrt(var + 1e-3)) @ params["v"], new


def _squares(outputs, batch):
    return jnp.square(outputs[:, 0] - batch[1])


def test_a_network_with_batch_statistics_and_mini_batches():
    rng = np.random.default_rng(0)
    x, w, v = (rng.normal(size=shape).astype("float32") for shape in ((24, 3), (3, 4), (4, 1)))
    fitting = {"mean": (x @ w).mean(0), "var": (x @ w).var(0)}
    state = {"mean": 0.9 * fitting["mean"], "var": 0.9 * fitting["var"]}
    a, b = {"w": w, "v": v}, {"w": w[:, ::-1], "v": v[::-1]}  # the same function, of permuted units
    state_b = {name: leaf[::-1] for name, leaf in state.items()}
    data = x, np.asarray(_normalized(a, fitting, (x, None), False)[0])[:, 0]
    loss = lla.Loss(_normalized, _squares, state=state)
    with pytest.raises(ValueError, match="state_b"):
        band(loss, a, b, data, steps=6, batch_size=12)
    with pytest.warns(UserWarning, match="tolerance"):
        curve = band(loss, a, b, data, state_b=state_b, steps=100, batch_size=12, climb=2, tolerance=1e-9)
    assert jax.tree.leaves(curve.states)[0].shape == (2, 4)
    ends = {name: np.stack([a[name], b[name]]) for name in a}
    assert all((leaf[[0, -1]] == ends[name]).all() for name, leaf in curve.points.items())
    assert len(curve.history["loss"]) == 100
    straight = lla.paths.line(a, b, state, state_b)
    barriers = [lla.paths.evaluate(c, loss, data, points=9).values["loss"].max() for c in (curve, straight)]
    assert barriers[0] < 0.5 * barriers[1]


_TURN = np.linalg.qr(np.random.default_rng(0).normal(size=(10, 10)))[0].astype("float32")


def _turned(params, batch):
    """The Mueller-Brown surface over two of ten turned axes; along the others a narrow valley bends with the first."""
    q = _TURN @ params
    return mueller_brown({"x": q[0], "y": q[1]}, batch) + 50 * jnp.sum((q[2:] - 0.3 * q[0]) ** 2)


def test_pivots_come_where_the_band_cuts_a_corner_until_its_top_climbs_to_the_saddle():
    a, b = (_TURN.T @ np.r_[p["x"], p["y"], np.full(8, 0.3 * p["x"])].astype("float32") for p in (LOW, HIGH))
    curve = band(_turned, a, b, steps=500, cycles=14, insert=2, curvature=True)
    assert len(curve.knots) > 5
    assert curve.saddle.converged
    assert abs(curve.saddle.loss + 40.6648) < 1e-3
    assert curve.saddle.negative == 1
