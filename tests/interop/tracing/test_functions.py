"""Custom autograd.Functions: converted where their backward is the derivative of their forward, refused elsewhere."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lla_torch
from torch import nn
from torch.autograd import Function

from tests.interop.conversions import build, check, real, refused

A = 0.79788456


class Gelu(Function):
    """As Bloom has it: the forward again in the backward, with rounded constants."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * 0.5 * (1.0 + torch.tanh(A * x * (1 + 0.044715 * x * x)))

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        t = torch.tanh(A * x * (1 + 0.044715 * x * x))
        return gradient * (0.5 * x * ((1 - t * t) * (A + 0.1070322243 * x * x)) + 0.5 * (1 + t))


class Swish(Function):
    """Of the newer form, with several arguments, one of them a number."""

    @staticmethod
    def forward(x, scale, power):
        return scale * x * torch.sigmoid(power * x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, scale, ctx.power = inputs
        ctx.save_for_backward(x, scale)

    @staticmethod
    def backward(ctx, gradient):
        x, scale = ctx.saved_tensors
        s = torch.sigmoid(ctx.power * x)
        slope = s + ctx.power * x * s * (1 - s)
        return gradient * scale * slope, (gradient * x * s).sum(0), None


def straight_through(value):
    """A Function with a forward and the identity as its backward."""

    class Through(Function):
        forward = staticmethod(lambda ctx, x: value(x))
        backward = staticmethod(lambda ctx, gradient: gradient)

    return Through


def wrong(backward):
    """The square as a Function, whose right slope is 2 x, with another backward(x, gradient)."""

    class Square(Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, gradient):
            return backward(ctx.saved_tensors[0], gradient)

    return Square


class Uses(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.linear, self.scale, self.function = nn.Linear(4, 3), nn.Parameter(torch.linspace(0.5, 1.5, 3)), function

    def forward(self, x):
        return self.function(self.linear(x), self.scale)


RIGHT = {
    "gelu": lambda x, scale: Gelu.apply(x) * scale,
    "swish": lambda x, scale: Swish.apply(x, scale, 1.5),
    "square": lambda x, scale: wrong(lambda x, g: 2 * x * g).apply(x) * scale,
}


@pytest.mark.parametrize("name", RIGHT)
def test_function_with_the_derivative_as_its_backward_is_converted(name, x64):
    before = Function.__dict__["apply"]
    tolerance = 1e-8 if name == "gelu" else None
    module = build(Uses, RIGHT[name])
    if tolerance is None:
        check(module, real(6, 4))
    else:  # its constants have 8 digits
        certificate = lla_torch.certify(module, lla_torch.convert(module, real(6, 4)), (real(6, 4, seed=1),))
        assert all(row.error <= tolerance for row in certificate.rows)
    assert Function.__dict__["apply"] is before


class SafeRoot(Function):
    """A root whose slope at zero is zero."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.abs().sqrt()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return torch.where(x == 0, 0, gradient * x.sign() / (2 * x.abs().sqrt()))


class Pair(Function):
    """A product with a tensor inside of a list, which gets no gradient."""

    @staticmethod
    def forward(ctx, x, others):
        ctx.save_for_backward(others[0])
        return x * others[0]

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0], None


WRONG = {
    "other at zero": SafeRoot,
    "sign": straight_through(torch.sign),
    "rounding": straight_through(torch.round),
    "quantized to 8 bits": straight_through(lambda x: (x * 127).round() / 127),
    "hardtanh": straight_through(lambda x: x.clamp(-1, 1)),
    "hardtanh far out": straight_through(lambda x: x.clamp(-50, 50)),
    "reversed": wrong(lambda x, g: -2 * x * g),
    "clipped": wrong(lambda x, g: (2 * x * g).clamp(-100, 100)),
    "clipped by norm": wrong(lambda x, g: 2 * x * g / (2 * x * g).norm().clamp(min=1)),
    "none": wrong(lambda x, g: None),
    "one percent off": wrong(lambda x, g: 2.02 * x * g),
    "wrong for negative inputs": wrong(lambda x, g: 2 * x.relu() * g),
    "wrong by shape": wrong(lambda x, g: g.sum()),
}


@pytest.mark.parametrize("name", WRONG)
def test_function_with_another_backward_is_refused(name):
    message = refused(Uses(lambda x, scale: WRONG[name].apply(x)), torch.ones(3, 4))
    assert "autograd.Function whose backward is not" in message
    assert "(f(x) - x).detach()" in message


def test_functions_that_hide_gradients_are_refused():
    """Of a tensor inside of a list, and of complex numbers, whose derivatives are not compared."""
    assert "autograd.Function" in refused(Uses(lambda x, scale: Pair.apply(x, [scale])), torch.ones(3, 4))
    turned = wrong(lambda x, g: -2 * x.conj() * g)
    assert "autograd.Function" in refused(Uses(lambda x, scale: turned.apply(x + 1j).abs()), torch.ones(3, 4))


def test_a_function_is_judged_once_for_all_its_calls():
    calls = []

    class Square(Function):
        @staticmethod
        def forward(ctx, x):
            calls.append(1)
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, gradient):
            return 2 * ctx.saved_tensors[0] * gradient

    def several(times):
        calls.clear()

        def run(x, scale):
            for _ in range(times):
                x = Square.apply(x)
            return x

        lla_torch.convert(Uses(run), torch.ones(3, 4))
        return len(calls)

    once = several(1)
    assert several(4) < once + 20


def test_function_of_a_frozen_network_is_judged_as_well():
    module = Uses(lambda x, scale: WRONG["sign"].apply(x)).requires_grad_(False)
    assert "autograd.Function" in refused(module, torch.ones(3, 4))


def test_function_that_draws_random_numbers_is_refused():
    class Noisy(Function):
        forward = staticmethod(lambda ctx, x: x + torch.randn_like(x))
        backward = staticmethod(lambda ctx, gradient: gradient)

    assert "autograd.Function" in refused(Uses(lambda x, scale: Noisy.apply(x)), torch.ones(3, 4))


def test_batches_of_any_length_pass_through_a_function():
    module = Uses(RIGHT["gelu"])
    net = lla_torch.convert(module, torch.ones(3, 4))
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(net.apply(net.variables, x.numpy()), module(x).detach().numpy(), rtol=1e-5, atol=1e-6)
