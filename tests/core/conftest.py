"""The landscape of the data set, with which every other cut of the data must agree."""

import jax
import pytest

import lla_jax as lla
from tests.core.cases import DATA, run
from tests.helpers import accuracy, params


@pytest.fixture(scope="module")
def axis():
    return lla.directions.random(jax.random.key(1), params(), num=1)


@pytest.fixture(scope="module")
def in_memory(axis):
    return run(axis, DATA, metrics={"accuracy": accuracy})
