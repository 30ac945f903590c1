"""Sorting, searching and running operators against torch, with gradients."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lla_torch.program.ops.ordering import histc

from tests.interop.program.check_calls import calls_of, check_call


@pytest.mark.parametrize(("name", "args", "kwargs", "permuted"), calls_of("ordering"))
def test_values_and_gradients_are_torchs(name, args, kwargs, permuted):
    check_call(name, args, kwargs, permuted)


HISTOGRAMS = [(5, 0, 4), (4, 0, 0), (7, -1, 1), (3, 2, 9), (4, 1, 1)]


@pytest.mark.parametrize("bins", HISTOGRAMS, ids=str)
def test_histograms_count_as_torch_does(bins, x64):
    entries = [torch.linspace(-3, 5, 17, dtype=torch.float64), torch.tensor([0.0, 3, 3, 1, 4]), torch.ones(3)]
    for x in entries:
        np.testing.assert_array_equal(histc(x.numpy(), *bins), torch.histc(x, *bins).numpy())
