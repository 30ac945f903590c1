"""What a module rounds by adding and subtracting a constant stays rounded under jit, and has torch's derivative."""

from __future__ import annotations

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lla_torch
from lla_torch.conversion import rounding
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
MAGIC = 12582912.0  # 1.5 * 2^23: float32 has no digits behind the point here


class Rounding(nn.Module):
    def __init__(self, function):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.linear = nn.Linear(3, 4)
        self.function = function
        self.register_buffer("magic", torch.tensor(MAGIC))

    def forward(self, x):
        return self.function(self, 9 * self.linear(x))


ROUNDED = {
    "numbers": lambda m, y: (y + MAGIC) - MAGIC,
    "subtracted first": lambda m, y: MAGIC + (y - MAGIC),
    "negative": lambda m, y: -((-y - MAGIC) + MAGIC),
    "tensors": lambda m, y: (y + torch.full((4,), MAGIC)) - torch.full((4,), MAGIC),
    "a buffer": lambda m, y: (y + m.magic) - m.magic,
    "in place": lambda m, y: y.mul(3).add_(MAGIC).sub_(MAGIC),
    "another shape": lambda m, y: ((y + MAGIC).reshape(-1) - MAGIC).reshape(y.shape),
    "a factor of one": lambda m, y: (y + MAGIC) * 1.0 - MAGIC,
    "three constants": lambda m, y: (y + MAGIC) + 1.0 - MAGIC,
    "straight through": lambda m, y: y + ((y + MAGIC) - MAGIC - y).detach(),
    "two sums": lambda m, y: y - ((y + 4096.0) - 4096.0),
    "split": lambda m, y: y * 4097 - (y * 4097 - y),
    "a small number": lambda m, y: torch.log(1 - torch.sigmoid(9 * y) + 1e-6),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_rounding_by_a_constant(name):
    module = Rounding(ROUNDED[name])
    outputs = module(X)
    with jax.enable_x64(False):
        net = lla_torch.convert(module, X)
        variables = net.variables

        def value(params):
            found = net.apply({**variables, "params": params}, X.numpy())
            return found.sum(), found

        (_, found), gradient = jax.jit(jax.value_and_grad(value, has_aux=True))(variables["params"])
        batched = jax.jit(jax.vmap(lambda x: net.apply(variables, x[None])[0]))(X.numpy())
    np.testing.assert_allclose(found, outputs.detach(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(batched, outputs.detach(), rtol=1e-5, atol=1e-6)
    (expected,) = torch.autograd.grad(outputs.sum(), module.linear.weight)
    np.testing.assert_allclose(gradient["linear"]["kernel"].T, expected, rtol=1e-4, atol=1e-4)


def test_overflow_between_two_factors_is_torchs():
    module = Rounding(lambda m, y: y * 1e38 * 1e-30)
    with jax.enable_x64(False):
        net = lla_torch.convert(module, X)
        found = jax.jit(net.apply)(net.variables, X.numpy())
    assert np.isinf(found).any()
    np.testing.assert_array_equal(np.isinf(found), np.isinf(module(X).detach().numpy()))


def test_ordinary_arithmetic_is_left_to_the_compiler():
    def ordinary(module, y):
        y = (y / 255.0 - 0.5) / 0.25
        y = 0.5 * y * (1 + torch.tanh(0.8 * (y + 0.04 * y**3)))
        return (y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True) + 1e-5).sqrt() * 1.5 + 0.1

    net = lla_torch.convert(Rounding(ordinary), X)
    assert not any(i.kept or i.wide for i in net.function.eval.instructions)


@pytest.mark.parametrize("steps", [16, 400])
def test_a_constant_is_found_behind_many_steps_in_one_pass(steps, monkeypatch):
    def swapped(y):
        y = y + MAGIC
        for _ in range(steps):
            y = torch.cat([y[:, 1:], y[:, :1]], 1)
        return y - MAGIC

    nodes = list(make_fx(swapped)(X).graph.nodes)
    name_of, calls = rounding.name_of, iter(range(10 * len(nodes)))

    def counted(node):
        assert next(calls, None) is not None, "a node is visited once for every path that leads to it"
        return name_of(node)

    monkeypatch.setattr(rounding, "name_of", counted)
    assert [node.name for node in rounding.find_kept(nodes, set())] == ["add"]
