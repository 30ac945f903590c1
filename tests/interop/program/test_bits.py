"""Computations in 64 bits inside of programs in 32: values, derivatives of every order, batches."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("torch")

from lla_torch.program.bits import bits_of, has_64_bits, in_64_bits, is_wide

W, X = jnp.array([[0.3, 0.2], [0.1, -0.4], [0.5, 0.7]]), jnp.arange(12.0).reshape(4, 3) / 10
V = jnp.array([[1.0, -1.0], [0.5, 0.0], [2.0, 1.0]])


def double(w):
    """A function of weights that loses all digits in float32, in steps."""
    y = in_64_bits(lambda y: y.astype(jnp.float64) + 1e8, jnp.tanh(X @ w))
    y = in_64_bits(lambda y: (jnp.einsum("bi,ij->bj", y - 1e8, jnp.eye(2)), jnp.argmax(y, 1), jnp.max(y, 1) - 1e8), y)
    return in_64_bits(lambda y: (y[0].sum(1) + y[2] + y[1]).astype(jnp.float32), y)


def plain(w):
    y = jnp.tanh(X @ w)
    return y.sum(1) + y.max(1) + y.argmax(1)


def loss_of(f):
    return lambda w: jnp.sin(f(w)).sum()


TRANSFORMED = {
    "value": lambda f: f(W),
    "gradient": lambda f: jax.grad(loss_of(f))(W),
    "product": lambda f: jax.jvp(jax.grad(loss_of(f)), (W,), (V,))[1],
    "forward": lambda f: jax.jvp(f, (W,), (V,))[1],
    "linearized": lambda f: jax.linearize(jax.grad(loss_of(f)), W)[1](V),
    "transposed": lambda f: jax.linear_transpose(lambda v: jax.jvp(f, (W,), (v,))[1], W)(jnp.ones(4))[0],
    "batch": lambda f: jax.vmap(jax.grad(loss_of(f)))(jnp.stack([W, V])),
    "checkpoint": lambda f: jax.grad(jax.checkpoint(loss_of(f)))(W),
    "loop": lambda f: jax.lax.map(loss_of(f), jnp.stack([W, V])),
}


@pytest.mark.parametrize("name", TRANSFORMED)
def test_64_bits_under_transformations(name):
    with jax.enable_x64(False):
        found, expected = (jax.jit(lambda f=f: TRANSFORMED[name](f))() for f in (double, plain))
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)


def test_64_bits_without_jit():
    with jax.enable_x64(False):
        np.testing.assert_allclose(double(W), plain(W), rtol=1e-6)
        product = in_64_bits(lambda n: n.astype(jnp.int64) * 2**40, jnp.arange(3))
        np.testing.assert_array_equal(product, 2**40 * np.arange(3))
        assert not has_64_bits()
        with bits_of(True):
            assert has_64_bits()
    assert [is_wide(t) for t in ("int64", np.dtype("float64"), "float32", None)] == [True, True, False, False]
