"""Handles vectors sharded over devices leaf by leaf, such as the parameters of a model too large for one device.

Every leaf has a sharding with one entry per axis; further axes in front (the rows of a basis) are not split. Nothing
here gathers a leaf on one device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lla_jax.core.arguments import Misuse
from lla_jax.core.tree import struct_of
from lla_jax.core.types import PyTree
from lla_jax.execution import devices as _devices

Shardings = tuple[NamedSharding, ...]


def is_sharded(leaf: Any) -> bool:
    """Whether a leaf is a jax array, or the shape of one, of which devices may hold different parts; False for tracers
    and numpy arrays."""
    placed = isinstance(leaf, jax.Array | jax.ShapeDtypeStruct) and not isinstance(leaf, jax.core.Tracer)
    sharding = leaf.sharding if placed else None
    if isinstance(sharding, NamedSharding):
        return any(entry is not None for entry in sharding.spec)
    return sharding is not None and not sharding.is_fully_replicated


def mesh_of(tree: PyTree) -> Mesh | None:
    """The mesh over which the leaves are sharded, with ``AxisType.Auto`` axes; None if no leaf is sharded.

    Raises:
      ValueError: a leaf is sharded by another sharding than a NamedSharding, or over several processes; or two leaves
        are sharded over different meshes.
    """
    mesh = _mesh_named(tree)
    if mesh is None:
        return None
    if not all(x.is_fully_addressable for x in jax.tree.leaves(tree) if is_sharded(x)):
        raise Misuse(
            "params",
            "sharded over several processes, which the curvature does not support; pass a copy in every process "
            "(data-parallel), or parameters sharded over the devices of one process",
        )
    return _mesh(mesh.devices, mesh.axis_names)


def mesh_like(tree: PyTree, devices: Sequence[Any], there: str) -> Mesh | None:
    """The same with other devices: what the leaves are sharded over may be a mesh without devices (``AbstractMesh``).

    Args:
      tree: arrays, or shapes with shardings.
      devices: the devices, of which the first ones are taken.
      there: what has the devices, for the error.

    Raises:
      ValueError: there are fewer devices than in the mesh; or as for ``mesh_of``.
    """
    mesh = _mesh_named(tree)
    if mesh is None:
        return None
    if mesh.size > len(devices):
        raise Misuse(
            "params",
            f"sharded over {mesh.size} devices, and {there} has {len(devices)}; shard them over {len(devices)}",
        )
    return _mesh(np.array(devices[: mesh.size]).reshape(mesh.axis_sizes), mesh.axis_names)


def _mesh(devices: np.ndarray, names: tuple[Any, ...]) -> Mesh:
    return Mesh(devices, names, axis_types=(AxisType.Auto,) * devices.ndim)


def _mesh_named(tree: PyTree) -> Any:
    """The one mesh that the shardings of a tree name; None if no leaf is sharded."""
    shardings = [x.sharding for x in jax.tree.leaves(tree) if is_sharded(x)]
    for each in shardings:
        if not isinstance(each, NamedSharding):
            raise Misuse("params", f"sharded as {each}; shard them by jax.sharding.NamedSharding over one mesh")
    meshes = {each.mesh for each in shardings}
    if len(meshes) > 1:
        raise Misuse("params", f"sharded over {len(meshes)} meshes, {meshes}; put all leaves on one mesh")
    return meshes.pop() if meshes else None


def keep_on_mesh(tree: PyTree, mesh: Mesh, name: str) -> PyTree:
    """Put the tree on the mesh: sharded leaves keep their shardings, and all others are copied to every device.

    Shapes without values stay shapes.

    Args:
      tree: parameters or data.
      mesh: the mesh.
      name: the argument's name, for the error.

    Raises:
      ValueError: a leaf is sharded by another sharding than a NamedSharding, or over a mesh whose axes have other names
        or sizes.
    """
    _check_mesh(tree, mesh, name)
    return jax.tree.map(lambda x: _devices.put(x, sharding_of(x, mesh)), tree)


def shapes_on_mesh(tree: PyTree, mesh: Mesh, name: str) -> PyTree:
    """The shapes and types of a tree, with the places that ``keep_on_mesh`` gives it; nothing is put on a device."""
    _check_mesh(tree, mesh, name)

    def leaf(x: Any) -> jax.ShapeDtypeStruct:
        shape = struct_of(x)
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding_of(x, mesh))

    return jax.tree.map(leaf, tree)


def _check_mesh(tree: PyTree, mesh: Mesh, name: str) -> None:
    for leaf in jax.tree.leaves(tree):
        sharding = leaf.sharding if is_sharded(leaf) else None
        if sharding is not None and (not isinstance(sharding, NamedSharding) or sharding.mesh.shape != mesh.shape):
            raise Misuse(
                name,
                f"has a leaf sharded as {sharding}, and the parameters lie on the mesh {mesh.shape}; use one mesh for "
                "parameters and data",
            )


def sharding_of(leaf: Any, mesh: Mesh) -> NamedSharding:
    """The sharding of a leaf over the mesh, with an entry per axis; a leaf that is not sharded is on every device."""
    spec = leaf.sharding.spec if is_sharded(leaf) else ()
    return NamedSharding(mesh, PartitionSpec(*spec, *[None] * (np.ndim(leaf) - len(spec))))


def with_leading_axes(ndim: int, shard: NamedSharding) -> NamedSharding:
    """The sharding of an array of ``ndim`` axes, of which ``shard`` splits the last ones."""
    return NamedSharding(shard.mesh, PartitionSpec(*[None] * (ndim - len(shard.spec)), *shard.spec))


def _map(f: Any, tree: PyTree, shards: Shardings) -> PyTree:
    leaves, structure = jax.tree.flatten(tree)
    shardings = [with_leading_axes(np.ndim(x), shard) for x, shard in zip(leaves, shards, strict=True)]
    return jax.tree.unflatten(structure, list(map(f, leaves, shardings)))


def constrain(tree: PyTree, shards: Shardings | None) -> PyTree:
    """Make the compiler shard the leaves as given (within jit); without shardings, return the tree as it is."""
    return tree if shards is None else _map(jax.lax.with_sharding_constraint, tree, shards)


def place(tree: PyTree, shards: Shardings) -> PyTree:
    """Put the leaves, arrays of jax or numpy, on the devices of their shardings."""
    return _map(jax.device_put, tree, shards)


def wait_on_cpu(tree: PyTree) -> PyTree:
    """Return the tree; if it lies on CPU devices, which share the cores, wait first until it is computed."""
    on_cpu = next(iter(jax.tree.leaves(tree)[0].devices())).platform == "cpu"
    return jax.block_until_ready(tree) if on_cpu else tree


def zeros(num: int, like: Any, shards: Shardings | None) -> jax.Array:
    """Zeros of shape (num, *like.shape) and the dtype of ``like``; sharded as ``like`` is, if ``shards`` is given."""
    device = None
    if shards is not None:
        assert isinstance(shards[0].mesh, Mesh)
        device = with_leading_axes(like.ndim + 1, sharding_of(like, shards[0].mesh))
    return jnp.zeros((num, *like.shape), like.dtype, device=device)


def shard_shapes(leaves: Sequence[tuple[int, ...]], shards: Shardings) -> list[tuple[int, ...]]:
    """For each leaf, the shape of the part that one device holds, from which memory is estimated.

    CPU devices share one memory: there an axis in front counts the devices of the mesh.

    Args:
      leaves: the shapes of the leaves.
      shards: their shardings.
    """
    if shards[0].mesh.devices.flat[0].platform != "cpu":
        return [s.shard_shape(shape) for shape, s in zip(leaves, shards, strict=True)]
    return [(s.mesh.size, *s.shard_shape(shape)) for shape, s in zip(leaves, shards, strict=True)]


class _OnHost:
    """An array that numpy copies to the host each time it reads it; jax would keep the copy along with the shards."""

    def __init__(self, x: jax.Array):
        self.x, self.shape, self.dtype, self.size, self.ndim = x, x.shape, x.dtype, x.size, x.ndim

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        array = np.empty(self.shape, self.dtype)
        for shard in self.x.addressable_shards:
            if shard.replica_id == 0:
                array[shard.index] = np.asarray(shard.data)
        return array if dtype is None else array.astype(dtype)


def view_on_host(tree: PyTree) -> PyTree:
    """Wrap sharded leaves so that ``np.asarray`` copies them to the host without jax keeping the copy."""
    return jax.tree.map(lambda x: _OnHost(x) if is_sharded(x) else x, tree)
