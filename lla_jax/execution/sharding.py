"""Vectors sharded over devices leaf by leaf, such as the parameters of a model too large for one device.

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
from lla_jax.core.types import PyTree

Shardings = tuple[NamedSharding, ...]


def is_sharded(leaf: Any) -> bool:
    """Whether a leaf is an array of which devices may hold different parts."""
    sharding = leaf.sharding if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer) else None
    if isinstance(sharding, NamedSharding):
        return any(entry is not None for entry in sharding.spec)
    return sharding is not None and not sharding.is_fully_replicated


def mesh_of(tree: PyTree) -> Mesh | None:
    """The mesh over which leaves are sharded, with axes that the compiler manages; None if no leaf is.

    Raises:
      ValueError: leaves are sharded over different meshes, without names of axes, or over several processes.
    """
    sharded = [x for x in jax.tree.leaves(tree) if is_sharded(x)]
    if not sharded:
        return None
    if not all(isinstance(x.sharding, NamedSharding) for x in sharded):
        others = [x.sharding for x in sharded if not isinstance(x.sharding, NamedSharding)]
        raise Misuse("params", f"sharded as {others[0]}; shard them by jax.sharding.NamedSharding over one mesh")
    if not all(x.is_fully_addressable for x in sharded):
        raise Misuse(
            "params",
            "sharded over several processes, which the curvature does not support; pass a copy in every process "
            "(data-parallel), or parameters sharded over the devices of one process",
        )
    meshes = {x.sharding.mesh for x in sharded}
    if len(meshes) > 1:
        raise Misuse("params", f"sharded over {len(meshes)} meshes, {meshes}; put all leaves on one mesh")
    mesh = meshes.pop()
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)


def keep_on_mesh(tree: PyTree, mesh: Mesh, name: str) -> PyTree:
    """The tree on the mesh: sharded leaves stay as they are, and others go to every device.

    Raises:
      ValueError: a leaf is sharded over other devices than the mesh's, or by names that it does not have.
    """
    for leaf in jax.tree.leaves(tree):
        sharding = leaf.sharding if is_sharded(leaf) else None
        if sharding is not None and (not isinstance(sharding, NamedSharding) or sharding.mesh.shape != mesh.shape):
            raise Misuse(
                name,
                f"has a leaf sharded as {sharding}, and the parameters lie on the mesh {mesh.shape}; use one mesh for "
                "parameters and data",
            )
    return jax.tree.map(lambda x: jax.device_put(x, sharding_of(x, mesh)), tree)


def sharding_of(leaf: Any, mesh: Mesh) -> NamedSharding:
    """The sharding of a leaf, with an entry for every axis; a leaf that is not sharded is on every device."""
    spec = leaf.sharding.spec if is_sharded(leaf) else ()
    return NamedSharding(mesh, PartitionSpec(*spec, *[None] * (np.ndim(leaf) - len(spec))))


def _with_leading_axes(ndim: int, shard: NamedSharding) -> NamedSharding:
    """The sharding of an array with further axes in front."""
    return NamedSharding(shard.mesh, PartitionSpec(*[None] * (ndim - len(shard.spec)), *shard.spec))


def _map(f: Any, tree: PyTree, shards: Shardings) -> PyTree:
    leaves, structure = jax.tree.flatten(tree)
    shardings = [_with_leading_axes(np.ndim(x), shard) for x, shard in zip(leaves, shards, strict=True)]
    return jax.tree.unflatten(structure, list(map(f, leaves, shardings)))


def constrain(tree: PyTree, shards: Shardings | None) -> PyTree:
    """The same tree, which the compiler shards as given; within jit."""
    return tree if shards is None else _map(jax.lax.with_sharding_constraint, tree, shards)


def place(tree: PyTree, shards: Shardings) -> PyTree:
    """Arrays of jax or numpy on the devices of their shardings."""
    return _map(jax.device_put, tree, shards)


def wait_on_cpu(tree: PyTree) -> PyTree:
    """The tree; on a CPU, whose devices share its cores, only after it is computed."""
    on_cpu = next(iter(jax.tree.leaves(tree)[0].devices())).platform == "cpu"
    return jax.block_until_ready(tree) if on_cpu else tree


def zeros(num: int, like: Any, shards: Shardings | None) -> jax.Array:
    """``num`` stacked arrays of zeros like a parameter, and sharded like it if ``shards`` is given."""
    device = None
    if shards is not None:
        assert isinstance(shards[0].mesh, Mesh)
        device = _with_leading_axes(like.ndim + 1, sharding_of(like, shards[0].mesh))
    return jnp.zeros((num, *like.shape), like.dtype, device=device)


def shard_shapes(leaves: Sequence[tuple[int, ...]], shards: Shardings) -> list[tuple[int, ...]]:
    """The shapes of the parts of leaves that one device holds; on CPUs, which share memory, that all devices hold.

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
    """The tree for functions that read it on the host leaf by leaf, without leaving copies there."""
    return jax.tree.map(lambda x: _OnHost(x) if is_sharded(x) else x, tree)
