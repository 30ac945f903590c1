"""Functions of sizes, in guards and in a graph."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lla_torch
from lla_torch.program.sizes import holds
from torch import nn

from tests.interop.conversions import real

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize(
    ("guard", "yes"),
    [
        ("torch.sym_float(s[0][0]) / 2.5 < 3", True),
        ("torch.sym_max(s[0][0], 9) > 10", False),
        ("round(s[0][0] / 2) == 2", True),
        ("torch._sym_sqrt(torch.sym_float(s[0][0])) < 2", False),
        ("math.trunc(s[0][0] / 2) == max(2, 1) and not torch.sym_not(s[0][1] == 4)", True),
    ],
)
def test_guards_know_the_functions_of_sizes(guard, yes):
    assert holds(guard, [(5, 4)]) is yes


def test_a_guard_reads_sizes_only():
    with pytest.raises(NameError):
        holds("open('x')", [(5, 4)])


class OfSizes(nn.Module):
    """Arithmetic on the number of rows, in the graph and in decisions."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        n = x.shape[0]
        y = self.fc(x) if torch.sym_float(n) / 2.5 < 90 and round(n / 2) < 90 and n**0.5 < 90 else x
        factor = torch.sym_max(n, 4) + torch.sym_min(n, 4) + torch.sym_sum([n, n, 2]) + abs(n - 4) + (n << 1) + (n >> 1)
        return y * factor / torch.sym_sqrt(n) * torch.sym_int(n / 2) * math.ceil(n / 2) * torch.sym_ite(n > 4, 2, 3)


def test_sizes_are_computed_for_every_batch():
    module = OfSizes().double()
    net = lla_torch.convert(module, real(3, 4))
    for rows in (3, 5, 8):
        x = real(rows, 4)
        np.testing.assert_allclose(net.apply(net.variables, x.numpy()), module(x).detach().numpy(), rtol=1e-12)


class OfExtremes(nn.Module):
    """Python's own functions of the number of rows."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        n = x.shape[0]
        return self.fc(x) * min(n, 4) * max(n, 4) / torch.sym_float(n)


def test_functions_of_python_that_tell_no_arguments():
    module = OfExtremes().double()
    net = lla_torch.convert(module, real(6, 4))
    np.testing.assert_allclose(
        net.apply(net.variables, real(6, 4).numpy()), module(real(6, 4)).detach().numpy(), rtol=1e-12
    )
