"""Blocks of rows with convolutions on a CPU are small, and a number of rows that 4 divides."""

import flax.linen as nn
import jax
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.curvature import blocks


@pytest.mark.parametrize(("row_bytes", "rows"), [(65_536, 8), (18_816, 32), (2**24, 8), (16, 128)])
def test_rows_of_a_block_with_convolutions_are_a_power_of_two_that_fits_the_caches(row_bytes, rows):
    assert blocks.conv_rows(row_bytes) == rows


def test_an_operator_of_a_convolutional_network_takes_blocks_of_a_multiple_of_four():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.tanh(nn.Conv(16, (3, 3))(x)).mean((1, 2)))

    x, y = np.random.default_rng(0).standard_normal((70, 16, 16, 2), np.float32), np.arange(70) % 2
    variables = Net().init(jax.random.key(0), x[:1])
    loss = lla.from_linen(Net(), variables, lambda out, batch: ((out - batch[1][:, None]) ** 2).sum(-1))
    H = lla.hessian(loss, variables["params"], (x, y), execution=lla.Execution(devices=1))
    assert (H.recipe["plan"]["rows"], H.recipe["plan"]["blocks"]) == (24, 3)  # 70 rows, 32 of which would fit
    v = H.random(jax.random.key(1))

    def mean(params):
        return ((Net().apply({"params": params}, x) - y[:, None]) ** 2).sum(-1).mean()

    expected = jax.jit(lambda v: jax.jvp(jax.grad(mean), (variables["params"],), (v,))[1])(v)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-6), H.product(v), expected)
