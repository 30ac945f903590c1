"""Reductions against torch, with gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lla_torch.program.operators import TABLE, full_name
from lla_torch.program.program import Instruction, Noise, run_instruction
from lla_torch.program.views import plain

from tests.interop.program.check_calls import calls_of, check_call


@pytest.mark.parametrize(("name", "args", "kwargs", "permuted"), calls_of("reductions"))
def test_values_and_gradients_are_torchs(name, args, kwargs, permuted):
    check_call(name, args, kwargs, permuted)


def test_second_derivatives_are_finite_where_the_first_are_zero():
    flat = jnp.zeros(3)
    for name, args in (("linalg_vector_norm", ()), ("std.correction", ()), ("linalg_vector_norm", (3.0,))):

        def value(x, name=name, args=args):
            instruction = Instruction(TABLE[full_name(f"aten.{name}")], (), (), 0, ())
            return run_instruction(instruction, [plain(x), *args], {}, Noise(None, None), None).logical()

        _, second = jax.jvp(jax.grad(value), (flat,), (jnp.ones(3),))
        np.testing.assert_array_equal(second, 0)
