"""What does not fit into memory is refused."""

from __future__ import annotations

import pytest

from lla_jax.core import memory
from lla_jax.core.arguments import Misuse
from lla_jax.core.memory import check_memory


def test_memory_is_compared_with_that_of_the_machine():
    check_memory("grid", "9 points", 1e6)
    with pytest.raises(Misuse, match=r"grid: 9 points given, which take 888 PiB of memory, and this machine has .*iB"):
        check_memory("grid", "9 points", 1e18)


def test_memory_is_given_back_where_the_system_can(monkeypatch):
    memory.give_back()
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())  # a system without it
    memory._trim.cache_clear()
    memory.give_back()
    memory._trim.cache_clear()
