"""Devices: which there are, meshes over them, what lies where, how much memory is free."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lla_jax.core.arguments import Misuse
from lla_jax.core.data import Stream, cuts, num_examples, pad_rows, rows_of
from lla_jax.core.types import Execution, PyTree

GRID, DATA = "grid", "data"  # axes of a mesh: points and examples


def devices_of(execution: Execution) -> tuple[Any, ...]:
    """The devices an execution names.

    Raises:
      ValueError: more devices than there are, or an unknown value.
    """
    chosen, local = execution.devices, jax.local_devices()
    if chosen == "all":
        return tuple(local)
    if isinstance(chosen, int) and not isinstance(chosen, bool):
        if not 1 <= chosen <= len(local):
            raise Misuse(
                "execution.devices", f"{chosen} asked for; the rule is 1 to {len(local)}, the local devices {local}"
            )
        return tuple(local[:chosen])
    if isinstance(chosen, Sequence) and not isinstance(chosen, str) and len(chosen):
        return tuple(chosen)
    raise Misuse("execution.devices", f'{chosen!r} given; the rule is "all", a number, or a sequence of jax devices')


def mesh_of(devices: Sequence[Any], data_shards: int = 1) -> Mesh:
    """A mesh over which points are split, and examples over ``data_shards`` of its devices for each share of points."""
    return Mesh(np.array(devices).reshape(-1, data_shards), (GRID, DATA), axis_types=(AxisType.Auto,) * 2)


def data_shards(execution: Execution, devices: Sequence[Any], points: int, nbytes: int, whole: str) -> int:
    """Over how many devices the examples are split, for each share of the points.

    Args:
      execution: what the user fixed.
      devices: all of them.
      points: of the job; where they are fewer than the devices, examples are split too.
      nbytes: of the data in memory; split where half of a device's memory does not hold them.
      whole: why batches may not be cut, or "".

    Raises:
      ValueError: a number that does not divide that of the devices, or batches that may not be cut.
    """
    chosen, many = execution.data_shards, len(devices)
    divisors = [d for d in range(1, many + 1) if many % d == 0]
    if chosen != "auto":
        if isinstance(chosen, bool) or chosen not in divisors:
            raise ValueError(f'execution.data_shards: {chosen!r} given; the rule is "auto" or one of {divisors}')
        if chosen > 1 and whole:
            raise ValueError(f"execution.data_shards: {chosen} given, but {whole}; the rule is 1 then, or leave it out")
        return chosen
    if whole:
        return 1
    least = many // max(d for d in divisors if d <= points)
    if devices[0].platform == "cpu":  # all share one memory
        return least
    half = free_bytes(devices[0]) / 2
    return next((d for d in divisors if d >= least and nbytes / d <= half), many)


def over_points(step: Callable, mesh: Mesh, split: Sequence[bool | str]) -> Callable:
    """``step`` with arguments cut along their leading axis over the mesh: those marked True over the points, and so the
    result; those marked DATA over the examples, and then the result's second axis has what each share gave."""
    if mesh.size == 1:
        return step
    named = {False: PartitionSpec(), True: PartitionSpec(GRID), DATA: PartitionSpec(DATA)}
    out = PartitionSpec(GRID, DATA) if DATA in split else PartitionSpec(GRID)
    return jax.shard_map(step, mesh=mesh, in_specs=tuple(named[s] for s in split), out_specs=out, check_vma=False)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """The tree on every device of the mesh: what all points share is moved once, not at every call."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()) if mesh.size > 1 else mesh.devices.flat[0])


def split_rows(tree: PyTree, mesh: Mesh) -> PyTree:
    """Rows spread over the mesh's data axis, padded to a multiple of its size; whole on every device if that is 1."""
    shards = mesh.shape[DATA]
    if shards == 1:
        return replicate(tree, mesh)
    rows = -(-num_examples(tree) // shards) * shards
    return jax.device_put(pad_rows(tree, rows), NamedSharding(mesh, PartitionSpec(DATA)))


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that a device or the host ran out of memory."""
    return isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error) or "Out of memory" in str(error)


def free_bytes(device: Any) -> int:
    """Memory of a device (for a CPU, of the host) that nothing uses yet."""
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
    data: Stream, mesh: Mesh, whole: bool, place: Callable[[Any, Mesh], Any]
) -> Iterator[tuple[Any, int, int]]:
    """(batch on the devices, rows that count, number of its first row) of a stream.

    Batches are brought to the first one's length (a longer one cut, a shorter one padded), so that one shape compiles;
    unless they must stay ``whole``.
    """
    rows, offset = 0, 0
    for batch in data:
        count = num_examples(batch)
        rows = count if whole or not rows else rows
        for start, size in cuts(count, rows):
            piece = pad_rows(rows_of(batch, start, size), rows)
            yield place(piece, mesh), size, offset + start
        offset += count
