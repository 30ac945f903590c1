"""Convolutions against torch in float64: values, gradients, second derivatives, in both layouts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

torch = pytest.importorskip("torch")

from lla_torch.program.operators import TABLE
from lla_torch.program.ops import convolution, normalization
from lla_torch.program.views import View, channels_last

from tests.interop.program.check_images import T, W, case_name, check_case, check_second_derivative

aten = torch.ops.aten


CASES = [
    (aten.conv1d.default, T(2, 3, 9), W(4, 3, 3), T(4), [2], [1], [2]),
    (aten.conv1d.default, T(3, 9), W(4, 3, 3), T(4)),
    (aten.conv1d.padding, T(2, 3, 9), W(4, 3, 4), T(4), [1], "same", [3]),
    (aten.conv2d.default, T(2, 3, 7, 6), W(4, 3, 3, 2), T(4), [2, 1], [1, 0]),
    (aten.conv2d.default, T(2, 4, 5, 6), W(8, 1, 3, 3), None, [1, 1], [1, 1], [1, 1], 4),
    (aten.conv2d.default, T(2, 4, 5, 6), W(6, 2, 3, 3), T(6), [2, 2], [2, 1], [2, 1], 2),
    (aten.conv2d.default, T(3, 5, 6), W(4, 3, 1, 1), T(4), [3, 3]),
    (aten.conv2d.padding, T(2, 3, 5, 6), W(4, 3, 4, 2), T(4), [1, 1], "same", [1, 3]),
    (aten.conv2d.padding, T(2, 3, 5, 6), W(4, 3, 4, 2), T(4), [2, 2], "valid"),
    (aten.conv3d.default, T(2, 2, 4, 5, 3), W(3, 2, 2, 3, 2), T(3), [1, 2, 1], [1, 1, 0]),
    (aten.conv3d.padding, T(2, 4, 5, 3), W(3, 2, 2, 3, 2), None, [1], "same"),
    (aten.conv_transpose1d.default, T(2, 4, 5), W(4, 3, 3), T(3), [2], [1], [1]),
    (aten.conv_transpose2d.input, T(2, 4, 3, 4), W(4, 3, 3, 2), T(3), [3, 2], [1, 0], [2, 1]),
    (aten.conv_transpose2d.input, T(2, 4, 3, 4), W(4, 3, 2, 3), T(6), [2, 2], [0, 3], [1, 0], 2, [1, 2]),
    (aten.conv_transpose2d.input, T(4, 3, 4), W(4, 1, 2, 2), None, [1, 1], [0, 0], [0, 0], 4),
    (aten.conv_transpose2d.input, T(1, 2, 4, 4), W(2, 3, 1, 1), T(3), [1, 1], [1, 1]),
    (aten.conv_transpose3d.input, T(1, 2, 2, 3, 2), W(2, 2, 2, 2, 3), T(2), [2, 1, 2], [1, 0, 1]),
    (aten.convolution.default, T(2, 3, 5, 4), W(4, 3, 2, 2), T(4), [1, 2], [1, 1], [1, 1], False, [0, 0], 1),
    (aten.convolution.default, T(2, 3, 5), W(3, 2, 2), None, [2], [0], [1], True, [1], 1),
]
TWICE = [c for c in CASES if c[0] in (aten.conv2d.default, aten.conv_transpose2d.input)]


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_values_and_gradients_are_torchs(case):
    check_case(case, CASES)


@pytest.mark.parametrize("case", TWICE, ids=case_name)
def test_a_jvp_of_the_gradient_is_torchs_second_derivative(case):
    check_second_derivative(case)


def test_fast_layout_moves_nothing():
    """What a ResNet is made of runs without a transpose, also where it is differentiated."""
    images, kernel = View(jnp.ones((2, 6, 6, 3)), channels_last(4)), View(jnp.ones((3, 3, 3, 4)), (3, 2, 0, 1))

    def block(x, w):
        y = convolution.conv(images.with_array(x), kernel.with_array(w), None, (1, 1), (1, 1))
        y = normalization.batch_norm_eval(y, *(View(jnp.ones(4), (0,)) for _ in range(4)), 0.1, 1e-5)[0]
        y = TABLE["aten.max_pool2d.default"].function(y, (2, 2))
        return TABLE["aten.adaptive_avg_pool2d.default"].function(y, (1, 1)).array.sum()

    assert "transpose[" not in str(jax.make_jaxpr(block)(images.array, kernel.array))
