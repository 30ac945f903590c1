"""The memory that vectors, their products and steps of Lanczos take: how much is needed, and whether there is room.

What a compiled program works in is read from it. Two questions have one answer for all computations: whether vectors
are taken one after another (``goes_one_by_one``), and what a program takes (``program_bytes``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from lla_jax.core import memory, randomness
from lla_jax.core.arguments import Misuse
from lla_jax.core.types import PyTree
from lla_jax.curvature import linear_operator, products
from lla_jax.curvature.linear_operator import LinearOperator, Operator
from lla_jax.execution import devices, sharding

log = logging.getLogger("lla_jax")

STEPS_PER_CALL = 8  # of Lanczos, in one program
LITTLE = 2**20  # bytes of a vector of which a CPU takes several at once; larger ones are as fast one after another
LITTLE_ELSEWHERE = 2**28  # the same on accelerators, which are faster with several
WORK_FRACTION = 0.125  # of the free memory, which the vectors of one block of draws may take
UNKNOWN = 2  # vectors that a product takes which is no compiled program
AT_LEAST = 3  # vectors that it takes if its vector is taken out of a stack first

# what a CPU's allocator and the threads of its programs keep, in bytes, measured
DRAWS_KEEP = 80 * 2**20
SKETCHES_KEEP = 128 * 2**20  # they have more programs
MAPPED = 2**25  # an array above it is mapped by itself, and given back at once
STEPS_KEEP, ARRAYS = 128 * 2**20, 5  # of smaller ones: bytes, and so many of the largest arrays
STEPS_KEEP_MAPPED = 16 * 2**20
STEPS_KEEP_GIVEN_BACK = 88 * 2**20  # where it gives back what it keeps before each product (``memory.give_back``)


class Memory(NamedTuple):
    """The memory that a computation takes at most: vectors held, and bytes of all."""

    vectors: int
    bytes: int

    def recipe(self) -> dict[str, int]:
        """The entry "memory" of a recipe."""
        return {"vectors": int(self.vectors), "bytes": int(self.bytes)}


def goes_one_by_one(H: Operator) -> bool:
    """Whether vectors are drawn, multiplied and made orthogonal one after another from the host.

    So are those of an operator that does not run on the device, and long ones: several at once take more memory.
    """
    little = LITTLE if devices.on_cpu(H.multiplier.mesh) else LITTLE_ELSEWHERE
    return not H.on_device or H.space.nbytes > little


# --- programs and products


def program_bytes(step: Any, *args: Any, **static: Any) -> int:
    """Bytes of the new results and the temporary values of a jitted function, on one device.

    The program is compiled for these arguments, and a later call with arrays like them does not compile it again. It is
    0 where the compiler does not tell.
    """
    stats = step.lower(*args, **static).compile().memory_analysis()
    if stats is None:
        return 0
    return int(stats.temp_size_in_bytes + stats.output_size_in_bytes - stats.alias_size_in_bytes)


def stacked_like(H: Operator, *leading: int) -> PyTree:
    """Shapes, dtypes and places of vectors with leading axes, as the operator's programs are compiled for them."""
    return H.space.tree(
        [
            jax.ShapeDtypeStruct((*leading, *shape), dtype, sharding=at)
            for (shape, dtype), at in zip(H.space.shapes, _places(H, len(leading)), strict=True)
        ]
    )


def _places(H: Operator, more: int) -> list[Any]:
    """Where each leaf of a vector with so many leading axes lies; None where jax decides it."""
    mesh, shards, num = H.multiplier.mesh, H.space.shards, len(H.space.shapes)
    if shards is not None:
        return [sharding.with_leading_axes(len(shape) + more, at) for (shape, _), at in zip(H.space.shapes, shards)]
    scales = [x.sharding for x in jax.tree.leaves(H.scale) if getattr(x, "committed", False)]
    return [scales[0] if scales else None if mesh is None else devices.replicated(mesh)] * num


def products_bytes(H: Operator, num: int = 1) -> int:
    """Bytes that ``H.products`` of ``num`` vectors takes at most beside the vectors and their products."""
    if H.on_device:
        found = program_bytes(linear_operator.products_step, H, stacked_like(H, num))
        return max(0, found - num * H.space.nbytes)
    return max(AT_LEAST * H.memory()[0], product_bytes(H))


def product_bytes(H: Operator) -> int:
    """Bytes that ``H.product`` takes beside its vector, its result included."""
    nbytes = H.memory()[0]
    if not isinstance(H, LinearOperator):
        return UNKNOWN * nbytes
    by, vector = H.multiplier, stacked_like(H)
    if len(H.blocks) == 1 and (by.mesh is None or by.mesh.size == 1):
        return program_bytes(linear_operator.product_step, H, vector)
    assert by.mesh is not None
    shared = by.mesh.size if devices.on_cpu(by.mesh) else 1
    ends = (H.blocks[0], H.blocks[-1])
    each = shared * max(program_bytes(products.sums_step, H.common, H.space, block, vector, by=by) for block in ends)
    return max(each + nbytes * (len(H.blocks) > 1), 3 * nbytes)  # beside the total so far; two totals and their sum


# --- bases of Lanczos


def bases_bytes(H: Operator, rows: int, work: int, *, group: int = 1, grown_from: int = 0, kept: int = 0) -> int:
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
    several = 0 if goes_one_by_one(H) else STEPS_PER_CALL - 1
    end = nbytes * kept + max(work - nbytes * (1 + several), nbytes) if kept else 0
    kept_by_cpu = STEPS_KEEP + ARRAYS * max(leaves) if max(leaves) < MAPPED else STEPS_KEEP_MAPPED
    if max(leaves) < MAPPED and H.space.nbytes > memory.KEPT and goes_one_by_one(H):
        kept_by_cpu = STEPS_KEEP_GIVEN_BACK
    return nbytes * rows * group + max(work, end, int(nbytes * grown_from * share)) + _on_cpu(H, kept_by_cpu)


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


# --- draws and their products


def probes_at_once(H: Operator, most: int) -> int:
    """How many vectors are drawn and multiplied at a time: ``most``, or the half of it, and so on, that has room."""
    if goes_one_by_one(H):
        return 1
    return _fitting(H, most, lambda num: 2 * num * H.space.nbytes + products_bytes(H, num))


def rows_at_once(H: Operator, most: int) -> int:
    """How many rows a sketch grows by at a time, as ``probes_at_once``."""
    return _fitting(H, most, lambda num: _sketch_work(H, num))


def _fitting(H: Operator, most: int, nbytes: Callable[[int], int]) -> int:
    if devices.on_cpu(H.multiplier.mesh) and H.space.nbytes <= LITTLE:
        return most
    room, num = WORK_FRACTION * H.memory()[1], most
    while num > 1 and nbytes(num) > room:
        num //= 2
    return num


def probes_needed(H: Operator, at_once: int, *, held: int = 0, unit: float = 1.0) -> Memory:
    """The memory of draws and their products.

    Args:
      H: the operator.
      at_once: vectors at a time.
      held: vectors held beside them.
      unit: the operator's unit; one other than 1 scales vectors by a vector of its own.
    """
    checked = 3 if H.is_given else 0  # two vectors and a product, whose symmetry is looked at first
    vectors = held + max(2 * at_once, checked) + (unit != 1)
    nbytes = max(vectors * H.space.nbytes + products_bytes(H, at_once), _draw_bytes(H, at_once))
    return Memory(vectors, nbytes + _on_cpu(H, DRAWS_KEEP))


def sketch_needed(H: Operator, rows: int, at_once: int, *, unit: float = 1.0) -> Memory:
    """The memory of a sketch of so many rows, which grows by ``at_once``."""
    vectors = rows + (unit != 1)
    return Memory(vectors, vectors * H.space.nbytes + _sketch_work(H, at_once) + _on_cpu(H, SKETCHES_KEEP))


def _sketch_work(H: Operator, num: int) -> int:
    """Bytes beside the basis while it grows by ``num`` rows: vectors, their products, and the work on one of them."""
    if goes_one_by_one(H):
        return (2 * num + 2) * H.space.nbytes + products_bytes(H, 1)
    return max(4 * num * H.space.nbytes + products_bytes(H, num), _draw_bytes(H, num))


def _draw_bytes(H: Operator, num: int) -> int:
    """Bytes of drawing vectors: themselves and one flat copy; four more of a short one on a CPU."""
    cpu = devices.on_cpu(H.multiplier.mesh)
    return num * H.space.nbytes * (6 if cpu and H.space.size < randomness.LONG else 2)


def _on_cpu(H: Operator, nbytes: int) -> int:
    return nbytes if devices.on_cpu(H.multiplier.mesh) else 0


# --- words


def check_fits(H: Operator, name: str, memory: Memory) -> None:
    """Refuse a computation whose vectors do not fit into the free memory; ``name`` is its own."""
    free = H.memory()[1]
    if memory.vectors * H.space.nbytes > free:
        needed, left = f"{memory.bytes / 2**30:.1f} GiB", f"{free / 2**30:.1f} GiB are free"
        text = f"{name} of {H!r} takes {needed} at least, one vector at a time, and {left}"
        raise Misuse("H", f"{text}; it must fit: free memory, or select fewer parameters")


def say(name: str, H: Operator, memory: Memory, text: str) -> None:
    """Log what a computation takes, in the words that all of them use."""
    free, needed = H.memory()[1] / 2**20, memory.bytes / 2**20
    log.info("%s: %s: %d vectors, %.1f MiB in all (%.0f MiB free)", name, text, memory.vectors, needed, free)
