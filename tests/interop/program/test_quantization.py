"""Simulated quantization against torch, with straight-through gradients."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lla_torch.program.operators import TABLE, full_name

from tests.interop.program.check_operators import as_constant, compare, r

aten = torch.ops.aten
T = torch.tensor

pytestmark = pytest.mark.usefixtures("double")


def steps(n: int):
    return torch.linspace(0.03, 0.2, n)


INT = torch.int32
CASES: dict[str, Callable[[], tuple]] = {
    "tensor": lambda: (aten.fake_quantize_per_tensor_affine.default, (3 * r(3, 4), 0.037, 3, -8, 20)),
    "tensor's own scale": lambda: (
        aten.fake_quantize_per_tensor_affine.tensor_qparams,
        (3 * r(3, 4), T(0.11), T(3, dtype=INT), 0, 20),
    ),
    "channels": lambda: (
        aten.fake_quantize_per_channel_affine.default,
        (3 * r(3, 4), steps(4), T([0, 1, 9, 30], dtype=INT), 1, 0, 30),
    ),
    "channels, float zero point": lambda: (
        aten.fake_quantize_per_channel_affine.default,
        (3 * r(3, 4), steps(3), T([1.3, 2.5, 7.0]), 0, -5, 30),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_operator(name: str):
    op, args = CASES[name]()
    fixed = [as_constant(x) if isinstance(x, torch.Tensor) and x.dtype != torch.float64 else x for x in args]
    compare(op, tuple(fixed))


LEARNED: dict[str, tuple] = {
    "learned": (aten._fake_quantize_learnable_per_tensor_affine.default, T([0.11]), T([3.4]), 0, 20, 0.7),
    "learned channels": (
        aten._fake_quantize_learnable_per_channel_affine.default,
        *(steps(4), T([1.0, 2.5, 3.7, 40.0]), 1, 0, 20, 0.7),
    ),
}


@pytest.mark.parametrize("name", LEARNED)
def test_learned_grids_have_gradients(name: str):
    """In float32, which alone torch has."""
    op, *rest = LEARNED[name]
    x = (3 * r(3, 4)).float()
    leaves = [t.clone().requires_grad_() for t in (x, *rest[:2])]
    wanted = op(*leaves, *rest[2:])
    run = lambda *arrays: TABLE[full_name(op)].function(*arrays, *rest[2:])  # noqa: E731
    got, pull = jax.vjp(run, *(jnp.asarray(t.detach().numpy()) for t in leaves))
    np.testing.assert_array_equal(got, wanted.detach().numpy())
    weights = torch.linspace(1, 2, 12).reshape(3, 4)
    for mine, theirs in zip(pull(jnp.asarray(weights.numpy())), torch.autograd.grad(wanted, leaves, weights)):
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-5, atol=1e-6)
