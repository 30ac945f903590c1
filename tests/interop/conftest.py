"""Fixtures of the tests of ``lla_torch``."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture
def x64() -> Iterator[None]:
    """float64 in JAX."""
    with jax.enable_x64(True):
        yield
