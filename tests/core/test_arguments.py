"""Shared checks of arguments: what they take, and that every error has argument, value, rule and remedy."""

import re

import jax
import numpy as np
import pytest

from lla_jax.core import arguments
from lla_jax.core.arguments import MissingEntry, Misuse


@pytest.mark.parametrize("value", [1, np.int32(3), np.uint8(7)])
def test_integers_of_python_and_numpy(value):
    found = arguments.check_integer("num", value)
    assert found == value
    assert type(found) is int


@pytest.mark.parametrize("value", [0, -1, True, 2.0, "3", None, np.float32(2), np.array([1, 2])])
def test_what_is_no_positive_integer(value):
    with pytest.raises(Misuse, match=r"^num: .* given; it must be an integer of at least 1, such as 10$"):
        arguments.check_integer("num", value, remedy="such as 10")


def test_bounds_of_an_integer():
    assert arguments.check_integer("top", 5, most=5) == 5
    with pytest.raises(Misuse, match=re.escape("top: 6 given; it must be an integer from 0 to 5")):
        arguments.check_integer("top", 6, least=0, most=5)


@pytest.mark.parametrize("value", [0, 0.0, -1, float("nan"), float("inf"), "1", True, None])
def test_what_is_no_number_above_zero(value):
    with pytest.raises(Misuse, match=r"^rtol: .* given; it must be a finite number above 0, such as 0.05$"):
        arguments.check_number("rtol", value, remedy="such as 0.05")


def test_numbers_of_python_and_numpy():
    assert [arguments.check_number("x", x, least=0) for x in (0, 1, 2.5, np.float32(0.5), jax.numpy.float32(2))] == [
        *(0, 1, 2.5, 0.5, 2)
    ]


@pytest.mark.parametrize("value", ["fast", 1, None, ["full"], np.array([1, 2])])
def test_what_is_none_of_the_choices(value):
    with pytest.raises(Misuse, match=r"scheme: .* given; it must be one of 'full', 'lla', True"):
        arguments.check_choice("scheme", value, ("full", "lla", True))
    arguments.check_choice("scheme", np.str_("full"), ("full", "lla", True))
    for flag in (True, np.True_):
        arguments.check_choice("scheme", flag, ("full", "lla", True))


def test_a_long_value_is_shown_by_its_type():
    assert arguments.show_value(np.zeros((30, 40))) == "ndarray of shape (30, 40)"
    assert arguments.show_value(object()) == "object"
    assert arguments.show_value([1, 2]) == "[1, 2]"


def test_a_key_of_either_kind():
    new, old = jax.random.key(3), jax.random.PRNGKey(3)
    assert arguments.single_key(old).dtype == new.dtype
    for wrong in (3, None, jax.random.split(new, 2), np.zeros(2)):
        with pytest.raises(Misuse, match=r"^key: .* given; it must be one jax.random key, such as"):
            arguments.single_key(wrong)


def test_a_missing_entry_is_an_error_of_all_three_kinds():
    for kind in (KeyError, IndexError, ValueError):
        with pytest.raises(kind) as error:
            raise MissingEntry("table", "[0] given")
        assert str(error.value) == "table: [0] given"
