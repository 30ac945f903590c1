"""Chooses the devices of a call, makes meshes over them, puts and splits arrays on them, and asks for free memory."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from lla_jax.core.arguments import Misuse, check_choice, check_integer, is_integer, misuse
from lla_jax.core.data import Stream, cuts, num_examples, pad_rows, rows_of
from lla_jax.core.types import Execution, PyTree

GRID, DATA = "grid", "data"  # axes of a mesh: points and examples


def devices_of(execution: Execution) -> tuple[Any, ...]:
    """The devices that ``execution.devices`` names.

    Raises:
      ValueError: the field asks for more devices than there are, or has an unknown value.
    """
    chosen: Any = execution.devices
    local = jax.local_devices()
    if isinstance(chosen, str) and chosen == "all":
        return tuple(local)
    if is_integer(chosen):
        remedy = f'as there are {len(local)} local devices, or "all"'
        return tuple(local[: check_integer("execution.devices", chosen, most=len(local), remedy=remedy)])
    several = isinstance(chosen, Sequence | np.ndarray) and not isinstance(chosen, str) and np.size(chosen)
    if several and all(isinstance(each, jax.Device) for each in chosen) and len(set(chosen)) == len(chosen):
        return tuple(chosen)
    raise misuse(
        "execution.devices",
        chosen,
        '"all", a number such as 1, or a sequence of jax devices, each once, such as jax.devices()[:2]',
    )


def mesh_of(devices: Sequence[Any], data_shards: int = 1) -> Mesh:
    """A mesh of (devices / data_shards) x data_shards devices: one axis splits the points, the other the examples."""
    return Mesh(np.array(devices).reshape(-1, data_shards), (GRID, DATA), axis_types=(AxisType.Auto,) * 2)


def on_cpu(mesh: Mesh | None) -> bool:
    """Whether the devices are CPUs; without a mesh, jax's default devices.

    Forms that are fast on a CPU alone are chosen by this, and not by the default devices: a program may be compiled for
    others.
    """
    return (jax.default_backend() if mesh is None else mesh.devices.flat[0].platform) == "cpu"


def data_shards(
    execution: Execution, devices: Sequence[Any], points: int, nbytes: int, uncut: str, free: int | None = None
) -> int:
    """The number of devices over which the examples are split: the user's, or the least that suits.

    Args:
      execution: the choice of the user.
      devices: all devices of the call.
      points: points of the landscape; if there are fewer points than devices, examples are split too.
      nbytes: bytes of the data in memory; data above half of a device's free memory are split, except on CPUs.
      uncut: the reason why batches may not be cut, in words, or ""; the number is 1 then.
      free: the free memory of a device in bytes, by default what it says.

    Raises:
      ValueError: the user's number does not divide the number of devices, or is above 1 where batches may not be cut.
    """
    chosen, many = execution.data_shards, len(devices)
    divisors = [d for d in range(1, many + 1) if many % d == 0]
    if chosen != "auto":
        check_choice("execution.data_shards", chosen, ("auto", *divisors), "a divisor of the number of devices")
        if chosen > 1 and uncut:
            raise Misuse("execution.data_shards", f"{chosen} given, but {uncut}; it must be 1 then: leave it out")
        return int(chosen)
    if uncut:
        return 1
    least = many // max(d for d in divisors if d <= points)
    if devices[0].platform == "cpu":  # CPU devices share one memory
        return least
    half = (free_bytes(devices[0]) if free is None else free) / 2
    return next((d for d in divisors if d >= least and nbytes / d <= half), many)


def shard_over_points(step: Callable, mesh: Mesh, split: Sequence[bool | str]) -> Callable:
    """Make ``step`` run on every device of the mesh, each with its part of the arguments.

    Args:
      step: a function of trees of arrays, which are cut along their leading axis.
      mesh: the devices.
      split: for every argument, True to cut it by points, DATA to cut it by examples, False to repeat it.

    Returns:
      A function of the arguments of ``step``. The results of the devices are joined along the leading axis (points)
      and, if an argument is cut by examples, those of the data shards along the second axis. ``step`` itself if the
      mesh has one device.
    """
    if mesh.size == 1:
        return step
    specs = {False: PartitionSpec(), True: PartitionSpec(GRID), DATA: PartitionSpec(DATA)}
    out = PartitionSpec(GRID, DATA) if DATA in split else PartitionSpec(GRID)
    return jax.shard_map(step, mesh=mesh, in_specs=tuple(specs[s] for s in split), out_specs=out, check_vma=False)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Put the tree on every device of the mesh, so that it is not moved again at every call."""
    return put(tree, replicated(mesh))


def put(tree: PyTree, at: Sharding) -> PyTree:
    """Put a tree on devices; shapes without values, for which a program is only compiled, stay what they are."""
    leaves = jax.tree.leaves(tree)
    if any(isinstance(x, jax.ShapeDtypeStruct) for x in leaves):
        return tree
    return jax.device_put(tree, at)


def replicated(mesh: Mesh) -> Sharding:
    """How arrays lie that every device of the mesh has."""
    return NamedSharding(mesh, PartitionSpec()) if mesh.size > 1 else SingleDeviceSharding(mesh.devices.flat[0])


def split_over(mesh: Mesh, axis: str) -> Sharding:
    """How arrays lie whose leading axis is split over an axis of the mesh."""
    return NamedSharding(mesh, PartitionSpec(axis)) if mesh.size > 1 else replicated(mesh)


def split_rows(tree: PyTree, mesh: Mesh) -> PyTree:
    """Split the rows of a tree over the mesh's data axis, padded to a multiple of its size; copy them if that is 1."""
    shards = mesh.shape[DATA]
    if shards == 1:
        return replicate(tree, mesh)
    rows = -(-num_examples(tree) // shards) * shards
    return jax.device_put(pad_rows(tree, rows), NamedSharding(mesh, PartitionSpec(DATA)))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device or the host ran out of memory."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)


def free_bytes(device: Any) -> int:
    """The unused memory of a device in bytes; of a CPU that of the host, or of its container if that has less.

    It is 4 GiB if the system does not tell.
    """
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats["bytes_in_use"])
    free = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        free.append(1024 * int(next(x for x in lines if x.startswith("MemAvailable")).split()[1]))
    with contextlib.suppress(OSError, ValueError):  # a container's limit
        group = pathlib.Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        free.append(limit - used)
    return min(free, default=2**32)


def device_batches(
    data: Stream, mesh: Mesh, uncut: bool, place: Callable[[Any, Mesh], Any]
) -> Iterator[tuple[Any, int, int]]:
    """Yield (batch on the devices, number of its rows that count, index of its first row) while a stream is read.

    Unless batches must stay ``uncut``, all get the length of the first one, so that one shape compiles: longer ones are
    cut, and shorter ones and last pieces padded. ``place(batch, mesh)`` puts a numpy batch on the devices.
    """
    rows, offset = 0, 0
    for batch in data:
        count = num_examples(batch)
        rows = count if uncut or not rows else rows
        for start, size in cuts(count, rows):
            piece = pad_rows(rows_of(batch, start, size), rows)
            yield place(piece, mesh), size, offset + start
        offset += count
