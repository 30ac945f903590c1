"""Objects among a call's arguments: what a forward pass writes to them stays in the graph."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lla_torch
from lla_torch.tracing.objects import own_object
from torch import nn

from tests.interop.conversions import real

pytestmark = pytest.mark.usefixtures("x64")


class Cache:
    """Keys of earlier tokens, to which a model adds its own."""

    def __init__(self):
        self.layers, self.steps, self.itself = [{"keys": real(3, 2)}], 0, self


class Remembers(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, x, cache):
        layer = cache.layers[0]
        layer["keys"] = torch.cat([layer["keys"], self.fc(x)], 1)
        cache.steps += 1
        return layer["keys"] * cache.steps


def test_a_cache_given_to_a_model_is_left_as_it_was():
    module, cache, x = Remembers().double(), Cache(), real(3, 2)
    before = cache.layers[0]["keys"]
    net = lla_torch.convert(module, (x, cache))
    assert cache.layers[0]["keys"] is before
    assert cache.steps == 0
    found = net.apply(net.variables, x.numpy(), cache)
    np.testing.assert_allclose(found, module(x, cache).detach().numpy(), rtol=1e-12)


def test_copies_share_tensors_and_keep_circles():
    cache = Cache()
    own = own_object(cache)
    assert own.itself is own
    assert own.layers[0] is not cache.layers[0]
    assert own.layers[0]["keys"] is cache.layers[0]["keys"]
    assert own_object(print) is print
