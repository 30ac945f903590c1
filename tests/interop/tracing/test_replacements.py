"""Losses and counts that decide by values inside are traced as torch computes them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lla_torch
import torch.nn.functional as F
from torch import nn

from tests.interop.conversions import real

pytestmark = pytest.mark.usefixtures("x64")

T = torch.tensor


class Call(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


def compare(function, *tensors):
    """Values and gradients of a function by its float tensors are torch's."""
    net = lla_torch.convert(Call(function), tensors)
    leaves = [t.clone().requires_grad_() if t.is_floating_point() else t for t in tensors]
    floats = [i for i, t in enumerate(tensors) if t.is_floating_point()]
    wanted = function(*leaves)

    def run(values):
        given = dict(zip(floats, values, strict=True))
        arrays = [given.get(i, t.numpy()) for i, t in enumerate(tensors)]
        return net.apply(net.variables, *arrays)

    got, pull = jax.vjp(run, [jnp.asarray(tensors[i].numpy()) for i in floats])
    np.testing.assert_allclose(got, wanted.detach().numpy(), rtol=1e-12)
    if wanted.requires_grad:
        weights = torch.linspace(1, 2, wanted.numel(), dtype=wanted.dtype).reshape(wanted.shape)
        gradients = torch.autograd.grad(wanted, [leaves[i] for i in floats], weights)
        for mine, theirs in zip(pull(jnp.asarray(weights.numpy()))[0], gradients, strict=True):
            np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-13, atol=1e-12)


STEPS, SIZES = T([7, 5, 6]), T([3, 2, 0])
LABELS = T([[1, 1, 2], [3, 4, 1], [2, 2, 2]])


def ctc(**options):
    return lambda z, *rest: F.ctc_loss(z.log_softmax(-1), *rest, **options)


CTC = {
    "padded": (ctc(), (LABELS, STEPS, SIZES)),
    "one after the other": (ctc(reduction="none"), (T([1, 1, 2, 3, 4]), STEPS, SIZES)),
    "lengths as tuples, last class blank": (
        lambda z, t: nn.CTCLoss(blank=4, reduction="sum")(z.log_softmax(-1), t - 1, (7, 5, 6), (3, 2, 0)),
        (LABELS,),
    ),
    "impossible": (ctc(reduction="none"), (LABELS, T([3, 5, 6]), SIZES)),
    "impossible as 0": (ctc(zero_infinity=True), (LABELS, T([3, 5, 6]), SIZES)),
}


@pytest.mark.parametrize("name", CTC)
def test_ctc_is_torchs(name):
    function, labels = CTC[name]
    compare(function, real(7, 3, 5), *labels)


def test_ctc_of_one_example_and_of_scores_that_are_not_normalized():
    run = lambda z, t, steps, size: F.ctc_loss(z, t, steps, size, reduction="none")  # noqa: E731
    compare(run, real(7, 5), LABELS[0], T(7), T(3))


def test_ctc_has_the_second_derivative_of_the_likelihood():
    function, labels = CTC["padded"]
    z, v, h = real(7, 3, 5).numpy(), real(7, 3, 5, seed=1).numpy(), 1e-5
    net = lla_torch.convert(Call(function), (T(z), *labels))
    gradient = jax.jit(jax.grad(lambda z: net.apply(net.variables, z, *(x.numpy() for x in labels))))
    product = jax.jvp(gradient, (z,), (v,))[1]
    np.testing.assert_allclose(product, (gradient(z + h * v) - gradient(z - h * v)) / (2 * h), atol=1e-9)


def test_simulated_quantization_takes_any_batch():
    scale, zero = T([0.1, 0.2, 0.15]), T([1, 2, 3], dtype=torch.int32)
    compare(lambda x: torch.fake_quantize_per_tensor_affine(x, 0.1, 3, 0, 15), real(4, 3))
    compare(lambda x: torch.fake_quantize_per_tensor_affine(x, scale[0], zero[0], 0, 15), real(4, 3))
    compare(lambda x: torch.fake_quantize_per_channel_affine(x, scale, zero, 1, 0, 15), real(4, 3))


VARIANCES = torch.tensor([[0.0, 1e-9, 0.5], [1.5, 0.2, 3.0]], dtype=torch.float64)
GAUSSIAN = {
    "each": lambda x, y, v: F.gaussian_nll_loss(x, y, v, full=True, eps=1e-3, reduction="none"),
    "one for each example": lambda x, y, v: nn.GaussianNLLLoss()(x, y, v[:, 2]),
    "a column": lambda x, y, v: F.gaussian_nll_loss(x, y, v[:, 2:], reduction="sum"),
    "a number": lambda x, y, v: F.gaussian_nll_loss(x, y, 0.7) * v.sum(),
}


@pytest.mark.parametrize("name", GAUSSIAN)
def test_gaussian_likelihood_is_torchs(name):
    compare(GAUSSIAN[name], real(2, 3), real(2, 3, seed=1), VARIANCES)


def test_a_negative_variance_has_no_loss():
    net = lla_torch.convert(nn.GaussianNLLLoss(reduction="none"), (real(2), real(2), T([1.0, 2.0]).double()))
    losses = net.apply(net.variables, np.zeros(2), np.zeros(2), np.array([1.0, -1.0]))
    np.testing.assert_array_equal(np.isnan(losses), [False, True])


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_hinge_loss_of_distances_is_torchs(reduction):
    signs = T([[1, -1, 1], [-1, -1, 1]])
    compare(lambda x, t: F.hinge_embedding_loss(x, t, margin=0.3, reduction=reduction), real(2, 3), signs)


def test_counts_have_the_length_that_is_given():
    ids, weights = T([0, 2, 2, 1, 5]), np.array([0.5, 1.0, 2.0, 3.0, 4.0])
    compare(lambda i: torch.bincount(i, minlength=6), ids)
    compare(lambda i: i.bincount(T(weights), minlength=8), ids)
    net = lla_torch.convert(Call(lambda i: torch.bincount(i, minlength=3)), (ids,))
    np.testing.assert_array_equal(net.apply(net.variables, ids.numpy()), [-1, -1, -1])
    np.testing.assert_array_equal(net.apply(net.variables, np.array([0, 2, 2])), [1, 0, 2])
    with pytest.raises(lla_torch.ConversionError, match="bincount"):
        lla_torch.convert(Call(torch.bincount), (ids,))
