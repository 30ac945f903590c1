"""Attention against torch in float64, with derivatives."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lla_torch.program.ops import attention

from tests.interop.program.check_operators import MASK, compare, qkv, r

aten = torch.ops.aten

pytestmark = pytest.mark.usefixtures("double")


SDPA = aten.scaled_dot_product_attention.default
ATTENTION: dict[str, Callable[[], tuple]] = {
    "sdpa": lambda: (SDPA, qkv()),
    "sdpa boolean": lambda: (SDPA, (*qkv(), MASK)),
    "sdpa added": lambda: (SDPA, (*qkv(), r(2, 1, 3, 5))),
    "sdpa causal": lambda: (SDPA, (*qkv(), None, 0.0, True), {"scale": 0.3}),
    "sdpa grouped": lambda: (SDPA, qkv(4, 2), {"enable_gqa": True}),
    "sdpa dropout": lambda: (SDPA, (*qkv(), MASK, 0.4)),
    "sdpa all dropped": lambda: (SDPA, (*qkv(), None, 1.0)),
}

TWICE = {"sdpa", "sdpa boolean"}


@pytest.mark.parametrize("name", ATTENTION)
def test_operator(name: str):
    compare(*ATTENTION[name](), second=name in TWICE)


def test_dropped_rows_of_attention_have_no_gradient():
    """A query that sees nothing gives 0, and no nan reaches the rest."""
    q, k, v = (jnp.asarray(a.numpy()) for a in qkv())
    mask = jnp.zeros((3, 5), bool)
    grads = jax.grad(lambda *a: jnp.sum(attention.scaled_dot_product_attention(*a, mask, draw=None)), (0, 1, 2))(
        q, k, v
    )
    for grad in grads:
        np.testing.assert_array_equal(grad, 0)
