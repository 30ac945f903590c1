"""The losses of converted networks."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import lla_torch
from torch import nn

from tests.interop.conversions import build, real

pytestmark = pytest.mark.usefixtures("x64")


@pytest.mark.parametrize("criterion", [nn.GaussianNLLLoss(), nn.CTCLoss()], ids=lambda c: type(c).__name__)
def test_criteria_that_do_not_convert(criterion):
    net = lla_torch.convert(build(nn.Linear, 3, 2), (real(6, 3),))
    with pytest.raises(ValueError, match=type(criterion).__name__):
        net.loss(criterion)
