"""Constant masks and other values that are known decide sizes and branches; values of inputs do not."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lla_torch
from torch import nn
from torch.nn import functional as F

from tests.interop.conversions import real, refused

pytestmark = pytest.mark.usefixtures("x64")


class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.w = function, nn.Parameter(torch.arange(1.0, 5.0))
        self.register_buffer("mask", torch.tensor([True, False, True, True]))
        self.register_buffer("ids", torch.tensor([3, 1, 1, 0]))
        self.register_buffer("edges", torch.tensor([[0, 1, 2, 2], [0, 2, 2, 1]]))
        self.plain = torch.tensor([True, True, False, True])

    def forward(self, x):
        return self.function(self, x)


def written(n, x):
    mask = torch.zeros(4, dtype=torch.bool)
    part = mask[1:]
    part.fill_(True)
    mask.logical_and_(n.mask)
    places = mask.nonzero().squeeze(1)
    places -= 1
    return x[:, mask] * x[:, places] * n.w[0]


def assigned(n, x):
    y = x * n.w
    y[:, n.mask] = x[:, 1:]
    return y


CONSTANT = {
    "buffer": lambda n, x: x[:, n.mask] * n.w[0],
    "attribute": lambda n, x: x[:, n.plain] * n.w[0],
    "made": lambda n, x: (x[:, :, None] * n.w)[:, ~torch.eye(4, dtype=torch.bool)],
    "list": lambda n, x: x[:, [True, False, True, False]] * n.w[0],
    "self loops": lambda n, x: x[:, n.edges[:, n.edges[0] != n.edges[1]][0]] * n.w[0],
    "written": written,
    "assigned": assigned,
    "where": lambda n, x: x[:, torch.where(n.mask)[0]] * n.w[0],
    "nonzero": lambda n, x: x[:, n.mask.nonzero(as_tuple=True)[0]] * n.w[0],
    "masked_select": lambda n, x: torch.masked_select(n.w, n.mask) * x[:, :3],
    "unique": lambda n, x: x[:, torch.unique(n.ids, return_inverse=True)[1]] * n.w,
    "bincount": lambda n, x: torch.bincount(n.ids) * x * n.w,
    "one_hot": lambda n, x: F.one_hot(n.ids) * x[:1] * n.w,
    "repeat_interleave": lambda n, x: (x * n.w).repeat_interleave(n.ids, dim=1),
    "item": lambda n, x: (x * n.w * n.ids.max().item())[:, : int(n.mask.sum())],
    "if": lambda n, x: x * n.w if n.mask.any() else x,
    "tolist": lambda n, x: torch.stack([x[:, i] * n.w[0] for i in n.ids.tolist()]),
    "for": lambda n, x: torch.stack([x[:, i] * n.w[0] for i in n.ids]),
    "padding": lambda n, x: F.pad((x * n.w)[:, None], (n.ids[0], n.ids.sum() // 5), mode="reflect").repeat(
        1, n.ids[1], 1
    ),
    "sizes": lambda n, x: (x * n.w).view(-1, n.ids[1] + 1, 2).roll(n.ids[1], 1).narrow(1, n.ids[3], n.ids[1]),
    "combinations": lambda n, x: torch.combinations(n.w).sum(0)[0] * x,
}


@pytest.mark.parametrize("name", CONSTANT)
def test_constants_decide(name):
    module = Net(CONSTANT[name]).double()
    before = {name: x.clone() for name, x in module.state_dict().items()}
    net = lla_torch.convert(module, real(3, 4))
    assert all(torch.equal(x, before[name]) for name, x in module.state_dict().items())
    other = real(5, 4, seed=1)
    expected = module(other).detach().numpy()
    np.testing.assert_allclose(net.apply(net.variables, other.numpy()), expected, rtol=1e-12)


REFUSED = {
    "input": lambda n, x: x[x > 0] * n.w[0],
    "nonzero of an input": lambda n, x: (x > 0).nonzero() * n.w[0],
    "parameter": lambda n, x: x[:, n.w > 0],
    "random": lambda n, x: x[:, torch.rand(4) > 2] * n.w[0],
    "written from an input": lambda n, x: x[:, n.mask.clone().logical_and_(x[0] > 0)] * n.w[0],
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_values_do_not(name):
    assert "torch.where" in refused(Net(REFUSED[name]).double(), real(3, 4))


def test_a_buffer_that_decides_may_not_be_written():
    def flip(n, x):
        n.mask.logical_not_()
        return x[:, n.mask] * n.w[0]

    text = refused(Net(flip).double(), real(3, 4))
    assert "'mask'" in text
    assert "writes to it" in text


def test_other_values_of_a_buffer_that_decided_are_refused(tmp_path):
    module = Net(CONSTANT["buffer"]).double()
    net = lla_torch.convert(module, real(3, 4))
    torch.save(module.state_dict(), tmp_path / "same.pth")
    lla_torch.load_checkpoint(tmp_path / "same.pth", net)
    torch.save({**module.state_dict(), "mask": ~module.mask}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="buffers/mask has other values than at conversion"):
        lla_torch.load_checkpoint(tmp_path / "other.pth", net)
    flipped = {**net.variables, "buffers": {**net.variables["buffers"], "mask": ~module.mask.numpy()}}
    with pytest.raises(ValueError, match="convert the module with these values"):
        net.apply(flipped, real(3, 4).numpy())
