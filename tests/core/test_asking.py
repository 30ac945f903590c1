"""Errors of small functions are explained, those of ours pass, and what does not fit into memory is refused."""

from __future__ import annotations

import pytest

from lla_jax.core.arguments import MissingEntry, Misuse
from lla_jax.core.asking import ask, check_memory, explain_call


def test_the_error_of_a_function_is_the_cause():
    with pytest.raises(
        Misuse, match=r"groups: the function failed for the leaf 'a/b' with KeyError: 'c'; .*f\(path"
    ) as e:
        ask("groups", lambda path, leaf: {}["c"], "f(path, leaf)", "a/b", 1)
    assert isinstance(e.value.__cause__, KeyError)


def test_errors_of_ours_pass():
    own = Misuse("seed", "is odd")
    with pytest.raises(Misuse) as error, explain_call("axes", "f(key)"):
        raise own
    assert error.value is own


def test_memory_is_compared_with_that_of_the_machine():
    check_memory("grid", "9 points", 1e6)
    with pytest.raises(Misuse, match=r"grid: 9 points given, which take 888 PiB of memory, and this machine has .*iB"):
        check_memory("grid", "9 points", 1e18)


def test_a_missing_entry_is_an_error_of_all_three_kinds():
    for kind in (KeyError, IndexError, ValueError):
        with pytest.raises(kind) as error:
            raise MissingEntry("table", "[0] given")
        assert str(error.value) == "table: [0] given"
