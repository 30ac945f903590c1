"""Fixtures of the curvature tests."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from lla_jax.curvature import operators
from tests.curvature.cases import make


@pytest.fixture(scope="session")
def hessian() -> Any:
    """The Hessian of the small network."""
    return make()


@pytest.fixture(scope="session")
def matrix(hessian) -> np.ndarray:
    """The same as a dense matrix."""
    return operators.dense(hessian)


@pytest.fixture
def double():
    """Computes in float64."""
    with jax.enable_x64(True):
        yield
