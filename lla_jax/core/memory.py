"""Refuses what would not fit into the memory of the machine, before it is allocated; gives freed memory back."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable

from lla_jax.core.arguments import Misuse

KEPT = 2**23  # bytes of arrays that are freed and made again and again, from which on ``give_back`` is worth its time


def check_memory(name: str, text: str, nbytes: float) -> None:
    """Raise an error, before anything is allocated, if arrays would take more than the memory of the machine.

    Args:
      name: the argument's name.
      text: what would take the memory, such as "10^14 points".
      nbytes: the bytes of the arrays.
    """
    try:
        memory = float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # the system does not tell
        memory = 2.0**40
    if nbytes > memory:
        raise Misuse(
            name,
            f"{text} given, which take {_size(nbytes)} of memory, and this machine has {_size(memory)}; give fewer",
        )


def give_back() -> None:
    """Give the memory of freed arrays back to the system, where its allocator keeps it (glibc, on Linux).

    The allocator keeps what is freed of arrays below 32 MiB, in as many pieces as fit no later array: a loop over
    vectors with such leaves holds up to twice what it uses. It takes a millisecond.
    """
    if (trim := _trim()) is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another system
        return None


def _size(nbytes: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if nbytes < 1024:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1024
    return f"{nbytes:.3g} EiB"
