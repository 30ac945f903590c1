"""Refuses what would not fit into the memory of the machine, before it is allocated."""

from __future__ import annotations

import os

from lla_jax.core.arguments import Misuse


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


def _size(nbytes: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if nbytes < 1024:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1024
    return f"{nbytes:.3g} EiB"
