"""Every wrong call of the tables says what to do, and none ends in an error that this library did not raise."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from tests.slips.slip import Slip, check

TABLES = sorted(path.stem for path in (Path(__file__).parent / "slips").glob("*_table.py"))
ALL = [
    pytest.param(slip, id=f"{name.removesuffix('_table')}-{slip.call.__name__}")
    for name in TABLES
    for slip in importlib.import_module(f"tests.slips.{name}").SLIPS
]


@pytest.mark.parametrize("slip", ALL)
def test_a_slip_says_what_to_do(slip: Slip):
    check(slip)


def test_a_traceback_out_of_jax_is_no_answer():
    def add() -> None:
        import jax.numpy as jnp

        jnp.zeros(3) + jnp.zeros(4)

    with pytest.raises(AssertionError, match="incompatible shapes"):
        check(Slip(add, ()))


def test_silence_is_no_answer():
    with pytest.raises(AssertionError, match="accepted in silence"):
        check(Slip(lambda: None, ()))
