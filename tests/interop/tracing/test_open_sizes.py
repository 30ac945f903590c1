"""Functions that torch computes with a length as a number leave the batch axis open; messages name what fixes it."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lla_torch
from torch import nn
from torch.nn import functional

from tests.interop.conversions import real

pytestmark = pytest.mark.usefixtures("x64")


class Net(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.w = function, nn.Parameter(torch.arange(1.0, 5.0))

    def forward(self, x):
        return self.function(x * self.w)


OPEN = {
    "take_along_dim": lambda x: torch.take_along_dim(x, x.argsort(1), 1),
    "take_along_dim broadcast": lambda x: x.take_along_dim(x.argmax(1)[:, None], -1),
    "take_along_dim flat": lambda x: torch.take_along_dim(x, x.flatten().argsort()),
    "kron": lambda x: torch.kron(x, x[:2]),
    "block_diag": lambda x: torch.block_diag(x, x[0]),
    "vander": lambda x: torch.vander(x[:, 0]),
    "gradient": lambda x: torch.gradient(x, spacing=2.0),
    "multi_dot": lambda x: torch.linalg.multi_dot([x, x.T, x]),
    "linspace": lambda x: torch.linspace(-1, 2, x.shape[0])[:, None] * x,
    "sym_max": lambda x: x / torch.sym_max(x.shape[0], 2),
    "fill_diagonal": lambda x: (x @ x.T).fill_diagonal_(0.5),
    "cov": lambda x: torch.cov(x.T),
    "corrcoef": lambda x: torch.corrcoef(x),
    "cross_entropy": lambda x: functional.cross_entropy(x[:, 0], x[:, 1].argmax(), reduction="none"),
}


@pytest.mark.parametrize("name", OPEN)
def test_the_batch_axis_stays_open(name):
    module = Net(OPEN[name]).double()
    net = lla_torch.convert(module, real(6, 4))
    for rows in (6, 9):
        x = real(rows, 4, seed=rows)
        expected, found = module(x), net.apply(net.variables, x.numpy())
        pairs = zip(expected, found, strict=True) if isinstance(expected, tuple) else [(expected, found)]
        for a, b in pairs:
            np.testing.assert_allclose(b, a.detach().numpy(), rtol=1e-12, atol=1e-13)


def test_whole_numbers_on_a_line_are_torchs():
    module = Net(lambda x: torch.linspace(0, 10, x.shape[0], dtype=torch.long)[:, None] * x).double()
    net = lla_torch.convert(module, real(4, 4))
    np.testing.assert_array_equal(net.apply(net.variables, real(4, 4).numpy()), module(real(4, 4)).detach().numpy())


def test_a_message_names_the_line_that_fixes_the_batch_axis():
    def by_length(x):
        y = x.cos()
        return y / len(x)

    net = lla_torch.convert(Net(by_length).double(), real(3, 4))
    line = by_length.__code__.co_firstlineno + 2
    with pytest.raises(ValueError, match=rf"fixed at .*{pathlib.Path(__file__).name}:{line}: return y / len\(x\)"):
        net.apply(net.variables, np.ones((5, 4)))


def test_a_message_on_another_axis_blames_no_line():
    net = lla_torch.convert(Net(torch.cos).double(), real(3, 4))
    with pytest.raises(ValueError, match="Only leading axes may have other lengths"):
        net.apply(net.variables, np.ones((3, 5)))
