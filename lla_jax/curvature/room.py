"""The memory that Lanczos vectors take: how much is needed, and whether there is room for it."""

from __future__ import annotations

import jax

from lla_jax.core.arguments import Misuse
from lla_jax.curvature.linear_operator import Operator

WORK_VECTORS = {True: 10, False: 3}
"""Vectors that a step needs besides the basis: on the device (``lanczos.STEPS_PER_CALL`` new ones) or not."""

FIXED_BYTES = 190 * 2**20  # on a CPU, for compiled programs and their threads, measured


def bytes_needed(
    H: Operator, rows: int, *, group: int = 1, saved: bool = False, grown_from: int = 0, kept: int = 0
) -> int:
    """Bytes at most of bases and their work space.

    Args:
      H: the operator.
      rows: vectors of one basis.
      group: number of bases.
      saved: whether the bases are copied to the host on the way, to be saved.
      grown_from: rows of a smaller basis that is there while it is copied; 0 for none.
      kept: vectors that come on top at the end.
    """
    nbytes, rows = H.space.nbytes, 2 * rows if saved else rows
    work = group * WORK_VECTORS[H.on_device]
    growing = grown_from + work // 2 if grown_from else 0
    fixed = FIXED_BYTES if jax.default_backend() == "cpu" else 0
    return nbytes * rows * group + max(nbytes * max(work, growing) + fixed, nbytes * kept + fixed // 2)


def check_room(H: Operator, name: str, rows: int, remedy: str = "") -> None:
    """Refuse so many steps that their vectors do not fit into the free memory.

    Args:
      H: the operator.
      name: the argument's name.
      rows: the number of steps, each of which keeps a vector.
      remedy: words about another way.
    """
    nbytes, free = H.memory()
    if nbytes * rows > free:
        needed, left = f"{nbytes * rows / 2**30:.1f} GiB", f"{free / 2**30:.1f} GiB are free"
        text = f"{rows} given, whose vectors take {needed}, and {left}"
        raise Misuse(name, f"{text}; it must be at most {free // nbytes}: take fewer{remedy}")
