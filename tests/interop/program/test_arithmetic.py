"""Whole numbers and the parts of floats against torch, with gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tests.interop.program.check_calls import calls_of, check_call, run_call


@pytest.mark.parametrize(("name", "args", "kwargs", "permuted"), calls_of("arithmetic"))
def test_values_and_gradients_are_torchs(name, args, kwargs, permuted):
    check_call(name, args, kwargs, permuted)


def test_the_next_float_has_no_derivative():
    x, y = np.array([0.0, 1.0, -2.0, np.inf]), np.array([1.0, 0.0, -3.0, 0.0])
    with jax.enable_x64(True):
        (got,) = run_call("nextafter", (x, y), {}, (), [jnp.asarray(x), jnp.asarray(y)], False)
        np.testing.assert_array_equal(got, torch.nextafter(torch.tensor(x), torch.tensor(y)).numpy())
        with pytest.raises(NotImplementedError, match="nextafter"):
            jax.grad(lambda x: run_call("nextafter", (y, y), {}, (), [x, x], False)[0].sum())(jnp.asarray(y))


def test_powers_of_two_neither_overflow_nor_underflow():
    x, exponent = np.array([1e-300, 1e300, 3.0, 0.0]), np.array([1990, -1990, -3, 7])
    with jax.enable_x64(True):
        floats = [jnp.asarray(x)]
        got, pull = jax.vjp(lambda fs: run_call("ldexp.Tensor", (x, exponent), {}, (), fs, False)[0], floats)
        np.testing.assert_array_equal(got, np.ldexp(x, exponent))
        np.testing.assert_array_equal(pull(jnp.ones(4))[0][0][2:], [0.125, 128.0])  # torch 2.13 has 0 for 2^-3
