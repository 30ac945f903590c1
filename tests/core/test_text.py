"""Durations, numbers with errors and tables as text."""

import math

import numpy as np
import pytest

from lla_jax.core import text


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.83, "0.83 s"),
        (12.4, "12 s"),
        (40, "40 s"),
        (100, "2 min"),
        (5000, "83 min"),
        (7200, "2.0 h"),
        (1e6, "12 days"),
        (1e12, "31,688 years"),
    ],
)
def test_a_duration_has_a_unit_that_is_easily_read(seconds, expected):
    assert text.duration(seconds) == expected


def test_a_number_has_its_error_where_that_is_known():
    assert text.pm(0.12345678, 0.00987) == "0.1235 +- 0.0099"
    assert text.pm(np.float64(-3.0), np.float64(0.01), 6) == "-3 +- 0.01"
    assert text.pm(0.5, math.nan) == "0.5"


def test_a_table_has_words_on_the_left_and_numbers_on_the_right():
    rows = [("axis", "length", "note"), ("a long name", "1", "x"), ("b", "1,000,000", "")]
    assert text.table(rows, left=(0, 2), indent=2).splitlines() == [
        "  axis            length  note",
        "  a long name          1  x",
        "  b            1,000,000",
    ]


def test_errors_in_a_table_stand_below_each_other():
    rows = [("", "trace"), ("a", "4.23 +- 0.55"), ("total", "51.67 +- 2.6"), ("b", "27.3")]
    assert text.table(rows).splitlines() == [
        "               trace",
        "a       4.23 +- 0.55",
        "total  51.67 +- 2.6",
        "b               27.3",
    ]
