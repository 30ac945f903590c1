"""The memory that vectors take, of Lanczos and of estimates: how much is needed, and whether there is room for it."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import numpy as np

from lla_jax.core import randomness
from lla_jax.core.arguments import Misuse
from lla_jax.curvature import linear_operator
from lla_jax.curvature.linear_operator import Operator
from lla_jax.execution import devices

log = logging.getLogger("lla_jax")

WORK_VECTORS = {True: 10, False: 3}
"""Vectors that a step needs besides the basis: on the device (``lanczos.STEPS_PER_CALL`` new ones) or not."""

FIXED_BYTES = 128 * 2**20  # on a CPU, for compiled programs and their threads, measured

LITTLE = 2**23  # bytes of vectors that a CPU takes at once; larger ones are as fast one after another
STEPS_PER_CALL = 8  # of Lanczos, in one program
WORK_FRACTION = 0.125  # of the free memory, which the vectors of one block may take
PROGRAM_BYTES = 80 * 2**20  # the same for draws and their products, whose programs are fewer


class Memory(NamedTuple):
    """The memory that a computation takes at most: vectors held, and bytes of all."""

    vectors: int
    bytes: int

    def in_mib(self) -> tuple[int, float]:
        return self.vectors, self.bytes / 2**20

    def recipe(self) -> dict[str, int]:
        """The entry "memory" of a recipe."""
        return {"vectors": int(self.vectors), "bytes": int(self.bytes)}


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


# --- masks, one after another


def step_by_step(H: Operator) -> Operator:
    """The operator, whose Lanczos steps the host takes one by one where they are large and on a CPU: a program of
    several steps holds more vectors, and saves nothing there."""
    if H.on_device and goes_one_by_one(H, STEPS_PER_CALL):
        return replace(H, multiplier=H.multiplier._replace(on_device=False))  # type: ignore[type-var]
    return H


def ends_needed(H: Operator, steps: int) -> Memory:
    """The memory of the ends of the spectrum of a masked operator, from so many steps."""
    scaled = 4 * H.space.nbytes + product_bytes(H, 1)  # the mask, the vector with and without it, their product
    return Memory(steps + 1, bytes_needed(H, steps + 1) + scaled)


def steps_that_fit(H: Operator, name: str, steps: int) -> int:
    """``steps``, or as many as there is room for, with a warning in the log, where it is less.

    Args:
      H: the operator, not masked.
      name: of the computation.
      steps: Lanczos steps asked for.
    """
    nbytes, free = H.memory()
    most = max(2, free // nbytes - WORK_VECTORS[H.on_device] - 2)
    if most < steps:
        log.warning("%s: %d steps in place of %d: the free memory holds no more vectors", name, most, steps)
    return min(steps, most)


# --- draws and their products


def goes_one_by_one(H: Operator, most: int) -> bool:
    """Whether vectors are drawn and multiplied one after another: from the host, and large ones on a CPU."""
    return not H.on_device or (jax.default_backend() == "cpu" and most * H.space.nbytes > LITTLE)


def probes_at_once(H: Operator, most: int) -> int:
    """How many vectors are drawn and multiplied at a time: ``most``, or the half of it, and so on, that has room."""
    if goes_one_by_one(H, most):
        return 1
    return _fitting(H, most, lambda num: 2 * num * H.space.nbytes + product_bytes(H, num))


def rows_at_once(H: Operator, most: int) -> int:
    """How many rows a sketch grows by at a time, as ``probes_at_once``."""
    return _fitting(H, most, lambda num: _sketch_work(H, num, goes_one_by_one(H, most)))


def _fitting(H: Operator, most: int, nbytes: Callable[[int], int]) -> int:
    if jax.default_backend() == "cpu" and most * H.space.nbytes <= LITTLE:
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
    nbytes = max(vectors * H.space.nbytes + product_bytes(H, at_once), _draw_bytes(H, at_once))
    return Memory(vectors, nbytes + _on_cpu(PROGRAM_BYTES))


def sketch_needed(H: Operator, rows: int, at_once: int, most: int, *, unit: float = 1.0) -> Memory:
    """The memory of a sketch of so many rows, which grows by ``at_once`` of at most ``most``."""
    work = _sketch_work(H, at_once, goes_one_by_one(H, most))
    vectors = rows + (unit != 1)
    return Memory(vectors, vectors * H.space.nbytes + work + _on_cpu(FIXED_BYTES))


def _sketch_work(H: Operator, num: int, one_by_one: bool) -> int:
    """Bytes beside the basis while it grows by ``num`` rows: vectors, their products, and the work on one of them."""
    if one_by_one:
        return (2 * num + 2) * H.space.nbytes + product_bytes(H, 1)
    return max(4 * num * H.space.nbytes + product_bytes(H, num), _draw_bytes(H, num))


def _draw_bytes(H: Operator, num: int) -> int:
    """Bytes of drawing vectors: themselves and one flat copy; four more of a short one on a CPU."""
    cpu = jax.default_backend() == "cpu"
    return num * H.space.nbytes * (6 if cpu and H.space.size < randomness.LONG else 2)


def _on_cpu(nbytes: int) -> int:
    return nbytes if jax.default_backend() == "cpu" else 0


def product_bytes(H: Operator, num: int = 1) -> int:
    """Bytes that ``H.products`` of ``num`` vectors takes at most beside the vectors and their products.

    What a compiled program takes is read from it. From the host a vector is taken out of the stack first, and then
    there are the sums of the rows so far and of the next ones; a user's product may copy its vector and its result.
    """
    vector, by = H.space.nbytes, H.multiplier
    if H.on_device:
        stacked = jax.tree.map(lambda x: jax.ShapeDtypeStruct((num, *x.shape), x.dtype), H.structure)
        return _temporary_bytes(H, stacked)
    devices = by.mesh.size if by.mesh is not None and by.mesh.devices.flat[0].platform == "cpu" else 1
    return (3 if devices == 1 else 2 + 2 * devices) * vector


def _temporary_bytes(H: Operator, stacked: Any) -> int:
    """The work memory of the program of ``H.products``. It is compiled now, and not again when it is called."""
    leaves, treedef = jax.tree.flatten(H)
    mesh = H.multiplier.mesh
    scales = [x.sharding for x in jax.tree.leaves(H.scale) if getattr(x, "committed", False)]
    where = None if mesh is None else devices.replicated(mesh)
    where = scales[0] if scales else where
    shapes = tuple(map(_shape, leaves))
    vectors = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), stacked)
    return _read_temporary_bytes(treedef, shapes, tuple(jax.tree.leaves(vectors)), H.space.treedef)


def _shape(x: Any) -> jax.ShapeDtypeStruct:
    """Shape, dtype and place of an array, as a compiled program looks at them."""
    if not isinstance(x, jax.Array):
        return jax.ShapeDtypeStruct(np.shape(x), jax.dtypes.canonicalize_dtype(np.result_type(x)))
    place = x.sharding if x.committed else None
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place, weak_type=getattr(x, "weak_type", False))


@functools.lru_cache(maxsize=64)
def _read_temporary_bytes(treedef: Any, shapes: tuple[Any, ...], vectors: tuple[Any, ...], of_vector: Any) -> int:
    operator, stacked = jax.tree.unflatten(treedef, shapes), jax.tree.unflatten(of_vector, vectors)
    read = linear_operator._products.lower(operator, stacked).compile().memory_analysis()
    return int(getattr(read, "temp_size_in_bytes", 0))


def check_fits(H: Operator, name: str, memory: Memory) -> None:
    """Refuse a computation whose vectors do not fit into the free memory; ``name`` is its own."""
    free = H.memory()[1]
    if memory.vectors * H.space.nbytes > free:
        needed, left = f"{memory.bytes / 2**30:.1f} GiB", f"{free / 2**30:.1f} GiB are free"
        text = f"{name} of {H!r} takes {needed} at least, one vector at a time, and {left}"
        raise Misuse("H", f"{text}; it must fit: free memory, or select fewer parameters")


def say(name: str, H: Operator, memory: Memory, text: str) -> None:
    """Log what a computation takes, in the words that all of them use."""
    free = H.memory()[1] / 2**20
    log.info("%s: %s: %d vectors, %.1f MiB in all (%.0f MiB free)", name, text, *memory.in_mib(), free)
