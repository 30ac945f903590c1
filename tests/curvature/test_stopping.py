"""When estimates stop on their standard error, and what they say where it stays too large."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.curvature.operators import given
from tests.curvature.cases import quiet, symmetric
from tests.helpers import vector_operator

METHODS = ("hutchinson", "hutch++", "xtrace")
CHECK = 2  # products that the check for symmetry takes
N = 30
KEY = jax.random.key(0)


@pytest.mark.parametrize("method", METHODS)
def test_it_stops_on_its_own_error(method):
    H = vector_operator(symmetric())
    loose, tight = (lla.trace(H, KEY, method=method, rtol=r, max_products=4000) for r in (0.05, 0.015))
    for found, rtol in ((loose, 0.05), (tight, 0.015)):
        assert found.sem <= rtol * abs(found.mean)
        assert found.num >= 16
        assert (found.recipe["converged"], found.recipe["stopped"]) == (True, None)
        assert abs(found.mean - np.trace(symmetric())) < 4 * found.sem or found.sem == 0
    assert loose.recipe["products"] < tight.recipe["products"]


@pytest.mark.parametrize("method", METHODS)
def test_it_says_when_it_could_not(method):
    A = symmetric(shift=0.0)
    A -= np.trace(A) / N * np.eye(N, dtype=np.float32)  # the trace is zero: no relative error is small
    with pytest.warns(UserWarning, match=r"asks for a standard error of") as seen:
        found = lla.trace(vector_operator(A), KEY, method=method, max_products=48)
    assert seen[0].filename == __file__
    assert not found.recipe["converged"]
    assert found.recipe["products"] <= 48 + CHECK
    assert abs(found.mean) < 4 * found.sem
    json.dumps(found.recipe)


def test_few_draws_are_not_believed():
    with pytest.warns(UserWarning, match="too few draws"):
        found = lla.trace(vector_operator(symmetric()), KEY, method="hutchinson", rtol=0.9, max_products=8)
    assert found.num == 8
    assert not found.recipe["converged"]


def test_a_mean_of_exactly_zero_from_few_draws_is_warned_of():
    swap = given(lambda v: v[::-1], jnp.zeros(2))
    with pytest.warns(UserWarning, match="the value may be zero"):
        found = lla.trace(swap, jax.random.key(0), method="hutchinson", max_products=2)
    assert (found.mean, found.num) == (0, 2)


@pytest.mark.parametrize(("rtol", "says"), [(0.01, "will be left"), (0.3, "")])
def test_after_16_draws_it_says_what_an_error_out_of_reach_would_take(caplog, rtol, says):
    with quiet(), caplog.at_level("WARNING", "lla_jax"):
        found = lla.diagonal(vector_operator(symmetric()), KEY, rtol=rtol, max_products=40)
    assert [says in record.getMessage() for record in caplog.records] == [True] * bool(says)
    assert found.recipe["converged"] == (not says)
