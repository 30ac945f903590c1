"""Settings of the tests of directions."""

from __future__ import annotations

import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Everything here is small, so compiling without optimization saves most of the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
