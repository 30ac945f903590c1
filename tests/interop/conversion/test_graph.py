"""The conversion of graphs: integers, constants, and operators that are not in the table."""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lla_torch
import torch.nn.functional as F
from lla_torch.program.operators import TABLE
from torch import nn

from tests.interop.conversions import Outer, TiedEmbedding, build, check, line_of, real, refused

FILE = pathlib.Path(__file__).name

pytestmark = pytest.mark.usefixtures("x64")


def test_int64_targets():
    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 5)

        def forward(self, x, target):
            logits = self.fc(x)
            picked = logits.gather(1, target[:, None]).squeeze(1)
            one_hot = F.one_hot(target, 5).to(x.dtype)
            smooth = F.cross_entropy(logits, target, reduction="none", label_smoothing=0.1, ignore_index=2)
            return smooth, picked, (one_hot * logits).sum(1), target + 1

    check(build(Loss), real(7, 3), torch.tensor([0, 4, 2, 1, 3, 0, 2]))


def test_int64_targets_without_64_bits():
    module = build(TiedEmbedding).float()
    tokens = torch.tensor([[0, 5], [3, 1], [2, 2]])
    with jax.enable_x64(False):
        net = lla_torch.convert(module, (tokens,))
        outputs = np.asarray(net.apply(net.variables, tokens.numpy()))
    assert outputs.dtype == np.float32
    with torch.no_grad():
        np.testing.assert_allclose(outputs, module(tokens).numpy(), rtol=1e-5, atol=1e-6)


class Constants(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 4)
        self.plain = torch.tensor([0.5, -1.0, 2.0, 3.0], dtype=torch.float64)  # neither parameter nor buffer

    def forward(self, x):
        positions = torch.arange(4, dtype=x.dtype)
        table = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=x.dtype)
        rows = torch.arange(x.shape[0], dtype=x.dtype)[:, None] / x.shape[0]
        noise_free = torch.full((4,), 0.1, dtype=x.dtype) + torch.eye(4, dtype=x.dtype).sum(0)
        grid = torch.linspace(0, 1, 4, dtype=x.dtype)
        return self.fc(x) * table + positions * self.plain + rows + noise_free * torch.ones_like(grid) * grid


def test_constants_made_in_forward():
    module = build(Constants)
    net = check(module, real(7, 3))
    assert list(lla_torch.to_state_dict(net)) == list(module.state_dict())


@pytest.fixture
def bump():
    """A custom operator x^2 sin(x) that no table knows, and the table as it was afterwards."""
    if not hasattr(torch.ops.lla_tests, "bump"):

        @torch.library.custom_op("lla_tests::bump", mutates_args=())
        def op(x: torch.Tensor, power: int) -> torch.Tensor:
            return x**power * torch.sin(x)

        op.register_fake(lambda x, power: torch.empty_like(x))

        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            n = ctx.power
            return grad * (n * x ** (n - 1) * torch.sin(x) + x**n * torch.cos(x)), None

        def keep(ctx, inputs, output):
            ctx.save_for_backward(inputs[0])
            ctx.power = inputs[1]

        op.register_autograd(backward, setup_context=keep)
    before = dict(TABLE)
    yield torch.ops.lla_tests.bump
    TABLE.clear()
    TABLE.update(before)


class Bumped(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return torch.ops.lla_tests.bump(self.fc(x), 2)  # bumps


def test_an_unknown_operator_is_named_and_can_be_added(bump):
    module = build(lambda: Outer(Bumped()))
    text = refused(module, real(7, 3))
    line = line_of(Bumped, "# bumps")
    assert "lla_tests.bump" in text
    assert "body.gate" in text
    assert f"{FILE}:{line}" in text or f"line {line}" in text
    assert "lla_torch.lowering" in text

    @lla_torch.lowering("lla_tests::bump")
    def lowered(x, power):
        return x**power * jnp.sin(x)

    check(module, real(7, 3), second=False)


def test_an_operator_can_be_registered_by_the_object(bump):
    module = build(lambda: Outer(Bumped()))
    assert "lla_tests.bump" in refused(module, real(7, 3))
    lla_torch.lowering(bump.default, layout="pointwise")(lambda x, power: x**power * jnp.sin(x))
    check(module, real(7, 3))
