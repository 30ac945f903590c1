"""A landscape that is kept in a store, comparisons of two landscapes, and a process that writes one."""

from __future__ import annotations

import pathlib

import jax
import numpy as np

import lla_jax as lla
from tests.helpers import FIXED, accuracy, dataset, mlp_loss, params

GRID = lla.grid(extent=0.5, points=(9, 8))
CHUNKS = 6  # of 12 points, with the plan FIXED and the chunks of the fixture small_chunks


def axes(seed=0):
    return lla.directions.random(jax.random.key(seed), params(), num=2)


def run(folder=None, grid=GRID, seed=0, **options):
    options = {"execution": FIXED, "metrics": {"accuracy": accuracy}} | options
    return lla.evaluate(mlp_loss(), params(), dataset(), axes(seed), grid, store=folder, **options)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in pathlib.Path(folder).rglob("*.npz"))


def assert_same(found, expected):
    assert found.recipe["complete"]
    for kind in ("values", "stderr"):
        there, wanted = getattr(found, kind), getattr(expected, kind)
        assert there.keys() == wanted.keys()
        for name, z in wanted.items():
            np.testing.assert_array_equal(there[name], z, strict=True)


def assert_same_to_rounding(found, expected):
    assert found.recipe["complete"]
    for name, z in expected.values.items():
        np.testing.assert_allclose(found.values[name], z, rtol=2e-6)
    for mine, theirs in zip(found.coords, expected.coords, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-12)


PLAN = lla.Execution(chunk=4, microbatch=8, loop="map", share=False, devices=1)
GRIDS = lla.grid(0.5, 60)
WRITER = """
import logging, sys, time
from lla_jax.landscape.store import writing as stored
from tests.landscape.store.cases import GRIDS, PLAN, run
logging.basicConfig(stream=sys.stdout, format="%(message)s")
logging.getLogger("lla_jax").setLevel(logging.DEBUG)
stored._chunk_points = lambda *_: 30
real = stored.compute_means
stored.compute_means = lambda *a: time.sleep(0.2) or real(*a)  # so that a kill finds it at work
run(sys.argv[1], GRIDS, execution=PLAN)
"""
"""A process that fills a store, slowly enough to be killed at work; its argument is the folder."""
