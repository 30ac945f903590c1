"""Copies arrays that somebody else may write to, so that what is read stays what it was.

A transfer to a device is asynchronous, and on a CPU an array of jax may share its memory with one of numpy.
"""

from __future__ import annotations

from typing import Any, TypeVar

import jax
import numpy as np

T = TypeVar("T")

ALIGNED = 64  # bytes; jax takes numpy arrays that are aligned so without another copy


def own(tree: T) -> T:
    """The tree, with copies of its numpy arrays, but for those that nobody can write to.

    Arrays of jax are left as they are; those of numpy that show an array of jax are copied. The copies are read-only,
    and jax takes them on a CPU as they are.
    """
    copied: Any = jax.tree.map(lambda x: _copy(x) if isinstance(x, np.ndarray) and _may_change(x) else x, tree)
    return copied


def _may_change(array: Any) -> bool:
    """Whether an array of numpy, or what it is a view of, can be written to.

    What a view of an array of jax shows may be the memory of a user's array, as after ``jax.device_put(array)`` on a
    CPU or ``jnp.from_dlpack(tensor)``, and jax does not tell.
    """
    while isinstance(array, np.ndarray | memoryview):
        if array.flags.writeable if isinstance(array, np.ndarray) else not array.readonly:
            return True
        array = array.base if isinstance(array, np.ndarray) else array.obj
    return isinstance(array, bytearray | jax.Array)


def _copy(array: np.ndarray) -> np.ndarray:
    if array.dtype == object:
        return array.copy()
    memory = np.empty(array.nbytes + ALIGNED, np.uint8)
    start = -memory.ctypes.data % ALIGNED
    copied = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    np.copyto(copied, array)
    memory.flags.writeable = copied.flags.writeable = False
    return copied
