"""Pooling against torch in float64: values, gradients, second derivatives, in both layouts."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tests.interop.program.check_images import T, case_name, check_case, check_second_derivative

aten = torch.ops.aten


CASES = [
    (aten.max_pool1d.default, T(2, 3, 9), [3], [2], [1]),
    (aten.max_pool1d.default, T(3, 9), [2], [], [0], [2]),
    (aten.max_pool2d.default, T(2, 3, 6, 4), [2, 2]),
    (aten.max_pool2d.default, T(2, 3, 6, 4, ties=True), [2, 2]),
    (aten.max_pool2d.default, T(2, 3, 7, 5, ties=True), [3, 3], [2, 2], [1, 1], [1, 1], True),
    (aten.max_pool2d.default, T(2, 3, 7, 8, ties=True), [3, 2], [2, 1], [1, 1], [2, 3], True),
    (aten.max_pool2d.default, T(2, 3, 6, 5), [1, 2], [3, 3], [0, 1], [1, 1], True),
    (aten.max_pool2d.default, T(3, 6, 5), [4], [5], [2], [1], True),
    (aten.max_pool2d_with_indices.default, T(2, 3, 7, 5, ties=True), [3, 3], [2, 2], [1, 1], [1, 1], True),
    (aten.max_pool2d_with_indices.default, T(3, 7, 6), [2, 3], [2, 2], [1, 1], [2, 1]),
    (aten.max_pool3d.default, T(1, 2, 5, 4, 4), [2, 2, 3], [2, 2, 1], [1, 0, 1], [1, 1, 1], True),
    (aten.max_pool3d_with_indices.default, T(1, 2, 5, 4, 4), [2, 2, 3], [2, 1, 1], [1, 0, 1], [1, 2, 1]),
    (aten.avg_pool1d.default, T(2, 3, 7), [3], [2], [1], True),
    (aten.avg_pool2d.default, T(2, 3, 6, 4), [2, 2]),
    (aten.avg_pool2d.default, T(2, 3, 7, 6), [3, 3], [2, 2], [1, 1], True, True),
    (aten.avg_pool2d.default, T(2, 3, 7, 6), [3, 2], [2, 3], [1, 1], True, False),
    (aten.avg_pool2d.default, T(3, 7, 6), [3, 3], [2, 2], [1, 1], False, True, 5),
    (aten.avg_pool3d.default, T(1, 2, 5, 4, 3), [2, 3, 2], [2, 2, 1], [1, 1, 0], True, False),
    (aten.adaptive_avg_pool1d.default, T(2, 3, 7), [3]),
    (aten.adaptive_avg_pool2d.default, T(2, 3, 7, 6), [1, 1]),
    (aten.adaptive_avg_pool2d.default, T(2, 3, 6, 4), [3, 2]),
    (aten.adaptive_avg_pool2d.default, T(2, 3, 6, 5), [2, 7]),
    (aten.adaptive_avg_pool2d.default, T(3, 3, 1), [5, 3]),
    (aten._adaptive_avg_pool2d.default, T(2, 3, 7, 4), [3, 8]),
    (aten.adaptive_avg_pool3d.default, T(1, 2, 5, 4, 3), [2, 2, 1]),
    (aten._adaptive_avg_pool3d.default, T(1, 2, 5, 4, 3), [3, 4, 2]),
    (aten.adaptive_max_pool1d.default, T(2, 3, 7), [3]),
    (aten.adaptive_max_pool2d.default, T(2, 3, 6, 4), [3, 2]),
    (aten.adaptive_max_pool2d.default, T(2, 3, 7, 4, ties=True), [3, 6]),
    (aten.adaptive_max_pool3d.default, T(2, 5, 4, 3), [2, 2, 2]),
]
TWICE = [
    *(c for c in CASES if c[0] in (aten.max_pool2d.default, aten.max_pool2d_with_indices.default)),
    *(c for c in CASES if c[0] in (aten.avg_pool2d.default, aten.adaptive_max_pool2d.default)),
]


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_values_and_gradients_are_torchs(case):
    check_case(case, CASES)


@pytest.mark.parametrize("case", TWICE, ids=case_name)
def test_a_jvp_of_the_gradient_is_torchs_second_derivative(case):
    check_second_derivative(case)
