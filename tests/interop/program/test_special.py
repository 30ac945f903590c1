"""Special functions against torch, with gradients."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from tests.interop.program.check_calls import calls_of, check_call
from tests.interop.program.check_operators import as_constant, compare, r


@pytest.mark.parametrize(("name", "args", "kwargs", "permuted"), calls_of("special"))
def test_values_and_gradients_are_torchs(name, args, kwargs, permuted):
    check_call(name, args, kwargs, permuted)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("name", ["special_gammainc", "special_gammaincc"])
def test_incomplete_gamma_functions_have_a_derivative_by_their_second_argument(name):
    op = getattr(torch.ops.aten, name).default
    compare(op, (as_constant(r(3).abs() + 0.1), r(3).abs()))
