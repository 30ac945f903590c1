"""Estimates that are interrupted and continued are those that were not, to the bit."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.curvature import room
from lla_jax.execution import devices
from tests.curvature.cases import quiet, symmetric
from tests.helpers import vector_operator

KEY = jax.random.key(0)
N = 30
VERBS = {
    "hutchinson": functools.partial(lla.trace, method="hutchinson", max_products=20),
    "hutch++": functools.partial(lla.trace, method="hutch++", max_products=60),
    "xtrace": functools.partial(lla.trace, max_products=40),
    "frobenius_norm": functools.partial(lla.frobenius_norm, max_products=20),
    "diagonal": functools.partial(lla.diagonal, max_products=20),
}


def interrupted(call, at):
    """The partial result of a call that is interrupted when its ``at``-th progress is told."""
    kept, told = [], []

    def stop(products, total):
        told.append(products)
        if len(told) == at:
            raise KeyboardInterrupt

    with quiet(), pytest.raises(KeyboardInterrupt):
        call(on_partial=kept.append, progress=stop)
    return kept[-1]


@pytest.mark.parametrize("each", [False, True], ids=["eight at a time", "fewer at a time"])
@pytest.mark.parametrize("name", VERBS)
def test_interrupted_and_continued(monkeypatch, tmp_path, name, each):
    H = vector_operator(symmetric() * (1e-25 if name == "diagonal" else 1))  # in a unit of its own
    if each:
        monkeypatch.setattr(room, "LITTLE", 0)
        monkeypatch.setattr(devices, "free_bytes", lambda device: 8 * 11 * N * 4)  # 4 rows have room at a time
    call = functools.partial(VERBS[name], H, KEY, rtol=0)
    with quiet():
        whole = call()
    assert whole.recipe["complete"]
    assert whole.state is None
    for at in (1, 2):
        part = interrupted(call, at)
        assert (part.recipe["complete"], part.recipe["stopped"]) == (False, "interrupted")
        assert 0 < part.num < whole.num
        path = lla.save(part, tmp_path / f"{at}.npz")
        with quiet():
            found = call(resume=lla.load(path))
        for one, other in ((found.mean, whole.mean), (found.sem, whole.sem)):
            np.testing.assert_array_equal(one, other)
        assert (found.num, found.state) == (whole.num, None)
        assert {**found.recipe, "products": 0, "memory": 0} == {**whole.recipe, "products": 0, "memory": 0}
        assert call(resume=found) is found


def test_another_computation_is_not_continued():
    H = vector_operator(symmetric())
    call = functools.partial(lla.trace, H, KEY, method="hutchinson", rtol=0, max_products=20)
    part = interrupted(call, 1)
    for changed in (
        functools.partial(lla.frobenius_norm, H, KEY, rtol=0, max_products=20),
        functools.partial(call, max_products=30),
        functools.partial(lla.trace, H, jax.random.key(1), method="hutchinson", rtol=0, max_products=20),
        functools.partial(call, method="hutch++"),
    ):
        with pytest.raises(ValueError, match="resume"):
            changed(resume=part)
    with pytest.raises(ValueError, match=r"resume: its state is damaged"):
        call(resume=lla.Estimate(part.mean, part.sem, part.num, part.recipe, {"forms": part.state["forms"]}))
    with pytest.raises(ValueError, match=r"save_every: 1\.0 given without on_partial"):
        call(save_every=1.0)


def test_it_is_saved_on_the_way():
    kept = []
    with quiet():
        call = functools.partial(lla.diagonal, vector_operator(symmetric()), KEY, rtol=0, max_products=24)
        whole = call(on_partial=kept.append, save_every=1e-9)
        assert [part.num for part in kept] == [8, 16, 24]
        assert {part.recipe["stopped"] for part in kept} == {"running"}
        for part in kept:  # none of them changed afterwards
            np.testing.assert_array_equal(call(resume=part).mean, whole.mean)
