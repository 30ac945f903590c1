"""Tests of refined landscapes in stores: to the bit after any interruption, damage or other writer."""

from __future__ import annotations

import numpy as np
import pytest

import lla_jax as lla
from lla_jax.landscape.store import reading, refining
from lla_jax.landscape.store import writing as stored
from tests.helpers import Interrupt
from tests.landscape.store.cases import assert_same, assert_same_to_rounding, run

GRID = lla.grid(extent=0.5, points=(25, 24))
PLAN = lla.Execution(chunk=8, microbatch=32, loop="vmap", share=False, devices=1)


def refined(folder=None, grid=GRID, **options):
    return run(folder, grid, **({"refine": lla.refine(rtol=0.05), "execution": PLAN, "metrics": None} | options))


@pytest.fixture(scope="module")
def plane():
    return refined()


@pytest.fixture
def computed(monkeypatch):
    """The number of points of each call that computes some."""
    calls = []
    for room in (refining, stored):
        real = room.compute_means

        def count(job, plan, coords, *rest, real=real):
            calls.append(len(coords))
            return real(job, plan, coords, *rest)

        monkeypatch.setattr(room, "compute_means", count)
    return calls


@pytest.fixture
def store(tmp_path, plane):
    assert_same(refined(tmp_path), plane)
    return tmp_path


def test_a_store_keeps_a_refinement(store, plane, computed):
    now = lla.runs.status(store)
    assert plane.evaluated is not None
    assert now.points == now.done == plane.evaluated.sum()
    assert now.left == 0
    for found in (refined(store), lla.runs.merge(store)):
        assert_same(found, plane)
        np.testing.assert_array_equal(found.evaluated, plane.evaluated)
        assert found.recipe["refinement"] == plane.recipe["refinement"]
    assert not computed


def test_an_interrupted_refinement_is_continued_to_the_bit(tmp_path, plane, computed):
    parts = []
    with pytest.raises(KeyboardInterrupt):
        refined(tmp_path, progress=Interrupt(50), on_partial=parts.append)
    now, first = lla.runs.status(tmp_path), sum(computed)
    assert now.refining == 1
    assert now.done == first == parts[0].evaluated.sum()
    assert now.points == 600
    with pytest.raises(reading.Incomplete, match="at most 600"):
        lla.runs.merge(tmp_path)
    part = lla.runs.merge(tmp_path, partial=True)
    assert not part.recipe["complete"]
    np.testing.assert_array_equal(part.evaluated, np.isfinite(part["loss"]))
    assert_same(refined(tmp_path), plane)
    assert sum(computed) == plane.evaluated.sum()


def test_damage_is_mended_to_the_bit(store, plane, computed):
    victim = sorted(store.glob("grid-000/points-*.npz"))[1]
    victim.write_bytes(victim.read_bytes()[:-40])
    for name in ("manifest.json", "refine-000.json"):
        (store / name).unlink()
    assert str(victim) in lla.runs.status(store).damaged
    with pytest.raises(reading.Incomplete, match="damaged"):
        lla.runs.merge(store)
    with pytest.warns(UserWarning, match="restored|removed; its points are computed again"):
        assert_same(refined(store), plane)
    assert 0 < sum(computed) < plane.evaluated.sum()
    assert_same(lla.runs.merge(store), plane)


def test_a_file_under_the_name_of_another_is_refused(store, plane):
    one, two = sorted(store.glob("grid-000/points-*.npz"))[:2]
    one.write_bytes(two.read_bytes())
    with pytest.warns(UserWarning, match="another landscape, grid or place"):
        assert_same(refined(store), plane)


def test_the_full_grid_takes_the_points_of_a_refinement(store, plane, computed):
    found = refined(store, refine=None)
    assert sum(computed) == 600 - plane.evaluated.sum()
    assert found.evaluated is None
    np.testing.assert_array_equal(found["loss"][plane.evaluated], plane["loss"][plane.evaluated])
    assert_same_to_rounding(found, refined(refine=None))
    assert_same(lla.runs.merge(store), found)
    computed.clear()
    assert_same(refined(store), found)  # all points are there
    assert not computed


def test_a_refinement_takes_the_points_of_an_unfinished_full_grid(tmp_path, computed):
    with pytest.raises(KeyboardInterrupt):
        refined(tmp_path, refine=None, progress=Interrupt(100))
    there = sum(computed)
    found = refined(tmp_path)
    assert found.recipe["complete"]
    assert sum(computed) == found.evaluated.sum()
    assert there >= 100


def test_another_accuracy_and_a_denser_grid_take_the_points_there_are(store, plane, computed):
    rough = refined(store, refine=lla.refine(rtol=0.2))
    assert rough.recipe["refinement"]["rtol"] == 0.2
    assert sum(computed) < plane.evaluated.sum()
    computed.clear()
    dense = refined(store, lla.grid(extent=0.5, points=(49, 47)))
    assert dense.evaluated[::2, ::2][plane.evaluated].all()
    assert sum(computed) < dense.evaluated.sum()


def test_writers_share_the_points(tmp_path, plane, computed):
    others = []

    def join(done, total):
        if not others:
            others.append(None)
            others.append(refined(tmp_path))  # another writer begins and ends in the meantime

    assert_same(refined(tmp_path, progress=join), plane)
    assert_same(others[1], plane)
    assert sum(computed) == plane.evaluated.sum()


def test_a_store_without_a_refinement_has_no_trace_of_one(tmp_path, complete):
    assert_same(run(tmp_path), complete)
    assert not [*tmp_path.glob("refine*"), *tmp_path.rglob("points-*")]
