"""Bounds and extrema of two tensors against torch, with gradients."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tests.interop.program.check_calls import calls_of, check_call


@pytest.mark.parametrize(("name", "args", "kwargs", "permuted"), calls_of("extrema"))
def test_values_and_gradients_are_torchs(name, args, kwargs, permuted):
    check_call(name, args, kwargs, permuted)
