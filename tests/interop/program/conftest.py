"""Fixtures of the tests of operators."""

from __future__ import annotations

import pytest


@pytest.fixture
def double(x64: None) -> None:
    """float64 in JAX, and torch's generator with a seed."""
    import torch

    torch.manual_seed(0)
