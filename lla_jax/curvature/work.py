"""The memory that programs work in, as the compiler says it, and how many steps of Lanczos one of them takes."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from lla_jax.core import memory
from lla_jax.core.types import PyTree
from lla_jax.curvature import linear_operator, products
from lla_jax.curvature.linear_operator import LinearOperator, Operator
from lla_jax.curvature.room import STEPS_PER_CALL

LARGE = 2**24  # bytes of a vector; the host takes one step after another with larger ones, and holds one new row
UNKNOWN = 2  # vectors that a product takes which is no compiled program
MAPPED = 2**25  # bytes of an array that a CPU's allocator maps by itself, and gives back at once
RETAINED, ARRAYS = 128 * 2**20, 5  # bytes, and largest arrays, that it keeps of smaller ones; measured
FIXED = 16 * 2**20  # the same of large ones
GIVEN_BACK = 88 * 2**20  # the same where it gives back what it keeps before each product (``memory.give_back``)


def takes_several_steps(H: Operator) -> bool:
    """Whether one program takes several steps of Lanczos: where the operator runs on the device, and its vectors are
    small."""
    return H.on_device and H.space.nbytes < LARGE


def program_bytes(step: Any, *args: Any, **static: Any) -> int:
    """Bytes of the new results and the temporary values of a jitted function, on one device.

    The program is compiled for these arguments, and a later call with arrays like them does not compile it again. It is
    0 where the compiler does not tell.
    """
    stats = step.lower(*args, **static).compile().memory_analysis()
    if stats is None:
        return 0
    return int(stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes)


def product_bytes(H: Operator, vector: PyTree) -> int:
    """Bytes that ``H.product(vector)`` takes beside the vector, its result included."""
    nbytes = H.memory()[0]
    if not isinstance(H, LinearOperator):
        return UNKNOWN * nbytes
    by = H.multiplier
    if len(H.blocks) == 1 and (by.mesh is None or by.mesh.size == 1):
        return program_bytes(linear_operator.product_step, H, vector)
    assert by.mesh is not None
    shared = by.mesh.size if by.mesh.devices.flat[0].platform == "cpu" else 1
    ends = (H.blocks[0], H.blocks[-1])
    each = shared * max(program_bytes(products.sums_step, H.common, H.space, block, vector, by=by) for block in ends)
    return max(each + nbytes * (len(H.blocks) > 1), 3 * nbytes)  # beside the total so far; two totals and their sum


def bytes_needed(H: Operator, rows: int, work: int, *, group: int = 1, grown_from: int = 0, kept: int = 0) -> int:
    """Bytes at most of bases and of all that is computed beside them.

    Args:
      H: the operator.
      rows: vectors of one basis.
      work: bytes that a step takes beside the bases (``lanczos.step_bytes``).
      group: number of bases.
      grown_from: rows of a smaller basis, whose largest leaf is there while it is copied; 0 for none.
      kept: vectors that come on top at the end, while there are products of theirs.
    """
    nbytes = H.memory()[0]
    leaves = [int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in H.space.shapes]
    share = 1.0 if H.space.shards is not None else max(leaves) / max(1, sum(leaves))
    several = STEPS_PER_CALL - 1 if takes_several_steps(H) else 0
    end = nbytes * kept + max(work - nbytes * (1 + several), nbytes) if kept else 0
    fixed = 0
    if jax.default_backend() == "cpu":
        fixed = RETAINED + ARRAYS * max(leaves) if max(leaves) < MAPPED else FIXED
        if max(leaves) < MAPPED and H.space.nbytes > memory.KEPT and not several:
            fixed = GIVEN_BACK
    return nbytes * rows * group + max(work, end, int(nbytes * grown_from * share)) + fixed
