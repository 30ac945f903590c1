"""Tests of refined landscapes in memory: values, errors, interruptions, streams, bad input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.landscape import refined
from tests.helpers import Interrupt

INPUTS = np.random.default_rng(0).normal(size=(32, 3)).astype("float32")
DATA = (INPUTS, np.tanh(INPUTS @ np.array([1.0, -2.0, 0.5], "float32")))
PARAMS = {"w": np.linalg.lstsq(*DATA)[0]}
GRID = lla.grid(extent=1.0, points=25)
PLAN = lla.Execution(chunk=16, microbatch=32, loop="vmap", share=False, devices=1)
REFINE = lla.refine(rtol=0.02)


def squares(outputs, batch):
    return (outputs - batch[1]) ** 2


LOSS = lla.Loss(lambda params, state, batch, train: (batch[0] @ params["w"], state), squares)


def run(loss=LOSS, data=DATA, grid=GRID, **options):
    axes = lla.directions.random(jax.random.key(0), PARAMS)
    return lla.evaluate(loss, PARAMS, data, axes, grid, **({"execution": PLAN, "refine": REFINE} | options))


@pytest.fixture(scope="module")
def full():
    return run(refine=None)


@pytest.fixture(scope="module")
def plane():
    return run()


@pytest.fixture
def computed(monkeypatch):
    """The number of points of each call that computes some."""
    calls, real = [], refined.compute_means
    monkeypatch.setattr(
        refined, "compute_means", lambda job, plan, coords, *a: calls.append(len(coords)) or real(job, plan, coords, *a)
    )
    return calls


def assert_same(one, two):
    for mine, theirs in ((one.values, two.values), (one.stderr, two.stderr)):
        assert mine.keys() == theirs.keys()
        for name in mine:
            np.testing.assert_array_equal(mine[name], theirs[name])
    np.testing.assert_array_equal(one.evaluated, two.evaluated)


def test_evaluated_points_are_those_of_the_full_grid_and_the_others_within_the_stated_error(full, plane):
    about, loss = plane.recipe["refinement"], full["loss"]
    assert about["points"] == plane.evaluated.sum() == plane.recipe["points_done"] < about["of"] == loss.size
    assert plane.recipe["complete"]
    assert about["rtol"] == 0.02
    np.testing.assert_allclose(plane["loss"][plane.evaluated], loss[plane.evaluated], rtol=1e-6)
    error = np.abs(plane["loss"] - loss)[~plane.evaluated] / np.ptp(loss)
    assert np.percentile(error, 95) <= about["error"] + 1e-6
    assert about["error"] <= 0.02
    assert f"{about['points']} of 625 points evaluated, the rest within" in repr(plane)
    assert "evaluated" not in repr(full)
    assert full.evaluated is None
    assert "refinement" not in full.recipe


def test_the_centre_and_its_neighbours_are_evaluated(plane):
    assert plane.evaluated[10:15, 12].all()
    assert plane.evaluated[12, 10:15].all()
    uneven = (np.array([0.3, -0.1, 0.0, 0.2, 1.0, -1.0]),)  # in no order
    np.testing.assert_array_equal(refined.centre_points(uneven), [0, 1, 2, 3, 5])
    assert refined.centre_points((np.array([0.1, 0.9]),)).size == 0


def test_an_interrupted_refinement_is_continued_to_the_bit(plane, computed):
    parts = []
    with pytest.raises(KeyboardInterrupt):
        run(progress=Interrupt(60), on_partial=parts.append)
    (part,) = parts
    assert not part.recipe["complete"]
    assert "so far" in repr(part)
    assert np.isfinite(part["loss"]).sum() == part.evaluated.sum() >= 60
    computed.clear()
    assert_same(run(resume=part), plane)
    assert sum(computed) == plane.evaluated.sum() - part.evaluated.sum()


def test_the_full_grid_continues_a_refinement_and_a_refinement_the_full_grid(full, plane, computed):
    rest = run(refine=None, resume=plane)
    assert rest.evaluated is None
    assert sum(computed) == 625 - plane.evaluated.sum()
    np.testing.assert_allclose(rest["loss"], full["loss"], rtol=1e-6)
    np.testing.assert_array_equal(rest["loss"][plane.evaluated], plane["loss"][plane.evaluated])
    parts = []
    with pytest.raises(KeyboardInterrupt):
        run(refine=None, progress=Interrupt(100), on_partial=parts.append)
    done = parts[0].recipe["points_done"]
    again = run(resume=parts[0])
    assert again.evaluated.ravel()[:done].all()
    np.testing.assert_array_equal(again["loss"].ravel()[:done], parts[0]["loss"].ravel()[:done])


def test_all_values_are_filled(plane):
    options = {
        "metrics": {"size": lambda outputs, batch: jnp.abs(outputs)},
        "point_metrics": {"norm": lambda params, key: jnp.sum(params["w"] ** 2)},
        "extra_data": {"test": (DATA[0][:16], DATA[1][:16])},
    }
    found = run(**options)
    assert list(found.values) == ["loss", "size", "test_loss", "test_size", "norm"]
    assert all(np.isfinite(z).all() for z in (*found.values.values(), *found.stderr.values()))
    assert found.recipe["refinement"]["errors"].keys() == found.values.keys()
    np.testing.assert_array_equal(found.evaluated, plane.evaluated)


def test_a_stream_is_read_once_a_round(plane):
    reads = []

    def batches():
        reads.append(None)
        return iter([(DATA[0][:20], DATA[1][:20]), (DATA[0][20:], DATA[1][20:])])

    found = run(data=lla.stream(batches))
    assert found.evaluated is not None
    np.testing.assert_allclose(found["loss"], plane["loss"], rtol=1e-4)
    assert len(reads) <= 6  # at the start, and once in each of a few rounds


def test_a_region_that_is_not_finite_stays_so():
    def loss(params, batch):
        return jnp.where(
            params["w"][0] > PARAMS["w"][0] + 0.3, jnp.nan, jnp.mean((batch[0] @ params["w"] - batch[1]) ** 2)
        )

    with pytest.warns(UserWarning, match="not finite"):
        whole = run(loss, refine=None)
    with pytest.warns(UserWarning, match="not finite"):
        found = run(loss)
    differs = np.isnan(found["loss"]) != np.isnan(whole["loss"])
    assert not differs[found.evaluated if found.evaluated is not None else ...].any()
    assert differs.mean() < 0.05


def test_a_loss_that_is_nowhere_finite_ends_after_the_first_round(computed):
    with pytest.raises(ValueError, match=r"not finite at any of the .* points of the first round"):
        run(lambda params, batch: jnp.nan * jnp.sum(params["w"]))
    assert 0 < sum(computed) < 200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refine": 0.05}, r"refine: 0.05 given; it must be lla.refine\(rtol=0.05\)"),
        ({"refine": True}, "refine: True given; it must be lla.refine"),
        ({"refine": lla.refine(1e-9)}, "refine: rtol=1e-09 given, and float32 .* larger rtol"),
        ({"grid": (np.array([0.0, 1.0, 1.0]),) * 2}, "grid: axis 0 has a coordinate twice; with refine"),
        ({"shard": (1, 2), "store": "nowhere"}, "shard: .* given with refine; .* leave shard out"),
    ],
)
def test_bad_input(options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)


def test_noise_and_a_missed_error_are_said(plane):
    with pytest.warns(UserWarning, match="refine: the loss is not deterministic"):
        refined.warn_of_noise({"deterministic": False})
    about = plane.recipe["refinement"] | {"met": False, "reason": "noise", "error": 0.03, "errors": {"loss": 0.03}}
    missed = lla.Landscape(plane.coords, plane.values, {}, {"refinement": about}, plane.evaluated)
    with pytest.warns(UserWarning, match=r"within 3 % of the range .* rtol=0.02 was asked for \(noise\)"):
        refined.warn_of_error(missed)


def test_a_sweep_counts_the_points_that_each_landscape_needs():
    seen = []
    table = lla.sweep(
        LOSS,
        [PARAMS],
        DATA,
        grid=GRID,
        seeds=range(2),
        execution=PLAN,
        refine=REFINE,
        progress=lambda *a: seen.append(a),
    )
    planes = list(table.landscapes.values())
    assert seen[-1] == (sum(plane.evaluated.sum() for plane in planes), None)
    row = table.rows()[0]
    assert row["least"] == planes[0]["loss"][planes[0].evaluated].min()
    assert np.isfinite(row["centre"])
