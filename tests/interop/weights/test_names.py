"""Names and leaves: tied parameters are one leaf, and every tensor of a module keeps its torch name."""

from __future__ import annotations

import jax
import pytest

torch = pytest.importorskip("torch")

import lla_torch
import torch.nn.functional as F
from torch import nn

from tests.interop.conversions import TiedEmbedding, build, check, real

pytestmark = pytest.mark.usefixtures("x64")


class TwoNames(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(3, 3)
        self.again = self.encoder
        self.head = nn.Linear(3, 2)

    def forward(self, x):
        return self.head(torch.tanh(self.again(torch.sin(self.encoder(x)))))


class TiedList(nn.Module):
    def __init__(self):
        super().__init__()
        shared = nn.Parameter(torch.randn(3, 3))
        self.matrices = nn.ParameterList([shared, nn.Parameter(torch.randn(3, 3)), shared])

    def forward(self, x):
        for matrix in self.matrices:
            x = torch.tanh(x @ matrix)
        return x


class TiedTransposed(nn.Module):
    """Encoder and decoder of an autoencoder with one matrix."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Linear(3, 5)
        self.bias = nn.Parameter(torch.randn(3))

    def forward(self, x):
        return F.linear(torch.tanh(self.encode(x)), self.encode.weight.t(), self.bias)


def test_tied_embedding_is_one_leaf():
    module = build(TiedEmbedding)
    net = check(module, torch.randint(0, 6, (7, 5), generator=torch.Generator().manual_seed(0)))
    assert len(jax.tree.leaves(net.variables["params"])) == 1
    back = lla_torch.to_state_dict(net)
    assert list(back) == ["embedding.weight", "out.weight"]
    assert torch.equal(back["out.weight"], module.out.weight)


@pytest.mark.parametrize(("kind", "leaves"), [(TwoNames, 4), (TiedList, 2), (TiedTransposed, 3)])
def test_tied_parameters_are_one_leaf(kind, leaves):
    module = build(kind)
    net = check(module, real(7, 3))
    assert len(jax.tree.leaves(net.variables["params"])) == leaves
    assert list(lla_torch.to_state_dict(net)) == list(module.state_dict())


def test_non_persistent_buffers_are_used_and_not_in_the_state_dict():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 4)
            self.register_buffer("scale", torch.tensor([1.0, 2.0, 3.0, 4.0]), persistent=False)
            self.register_buffer("shift", torch.tensor([0.5]))

        def forward(self, x):
            return self.fc(x) * self.scale + self.shift

    net = check(build(Scaled), real(7, 3))
    assert list(lla_torch.to_state_dict(net)) == ["shift", "fc.weight", "fc.bias"]
