"""Normalization against torch in float64: values, gradients, second derivatives, in both layouts."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tests.interop.program.check_images import S, T, W, case_name, check_case, check_second_derivative

aten = torch.ops.aten


CASES = [
    (aten._native_batch_norm_legit_no_training.default, T(3, 4), T(4), T(4), S(4), S(4, low=0.5), 0.1, 1e-5),
    (aten._native_batch_norm_legit_no_training.default, T(2, 3, 4, 5), T(3), T(3), S(3), S(3, low=0.5), 0.1, 1e-3),
    (aten._native_batch_norm_legit_no_training.default, T(2, 3, 4), None, None, S(3), S(3, low=0.5), 0.1, 1e-3),
    (aten._native_batch_norm_legit_functional.default, T(2, 3, 4, 5), T(3), T(3), S(3), S(3, low=0.5), True, 0.1, 1e-5),
    (aten._native_batch_norm_legit_functional.default, T(4, 3), None, None, S(3), S(3, low=0.5), True, 0.3, 1e-5),
    (aten._native_batch_norm_legit.no_stats, T(2, 3, 2, 2, 2), T(3), T(3), True, 0.1, 1e-5),
    (aten.layer_norm.default, T(2, 3, 4), [4], T(4), T(4)),
    (aten.layer_norm.default, T(2, 3, 4, 5), [3, 4, 5], T(3, 4, 5), T(3, 4, 5), 1e-3),
    (aten.layer_norm.default, T(2, 3, 4, 5), [4, 5], T(4, 5), None),
    (aten.layer_norm.default, T(4), [4]),
    (aten.native_layer_norm.default, T(2, 3, 4, 5), [4, 5], T(4, 5), T(4, 5), 1e-5),
    (aten.group_norm.default, T(2, 6, 3, 4), 3, T(6), T(6)),
    (aten.group_norm.default, T(2, 6), 2),
    (aten.native_group_norm.default, T(2, 4, 5), T(4), T(4), 2, 4, 5, 2, 1e-5),
    (aten.instance_norm.default, T(2, 3, 4, 5), T(3), T(3), None, None, True, 0.1, 1e-5, False),
    (aten.instance_norm.default, T(2, 3, 4), None, None, None, None, True, 0.1, 1e-5, False),
    (aten.instance_norm.default, T(2, 3, 4), T(3), T(3), S(3), S(3, low=0.5), False, 0.1, 1e-5, False),
    (aten.rms_norm.default, T(2, 3, 4), [4], T(4)),
    (aten.rms_norm.default, T(2, 3, 4, 5), [4, 5], None, 1e-3),
    (aten._weight_norm.default, W(4, 3, 2, 2), T(4, 1, 1, 1), 0),
    (aten._weight_norm.default, T(4, 3), T(1, 3), 1),
    (aten._weight_norm_interface.default, T(4, 3, 2), T(4, 1, 1), 0),
]
TWICE = [c for c in CASES if len(c[1].shape) >= 3]


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_values_and_gradients_are_torchs(case):
    check_case(case, CASES)


@pytest.mark.parametrize("case", TWICE, ids=case_name)
def test_a_jvp_of_the_gradient_is_torchs_second_derivative(case):
    check_second_derivative(case)
