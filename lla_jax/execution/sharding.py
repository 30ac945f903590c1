"""Vectors that are spread over devices leaf by leaf, as the parameters of a model too large for one device are.

A sharding is kept for every leaf, with one entry per axis; axes that a leaf has in front of these (the rows of a basis)
are not split. Nothing here brings a leaf together on a device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lla_jax.core.types import PyTree

Shards = tuple[NamedSharding, ...]


def spread(leaf: Any) -> bool:
    """Whether a leaf is an array of which a device may hold a part."""
    sharding = leaf.sharding if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer) else None
    if isinstance(sharding, NamedSharding):
        return any(entry is not None for entry in sharding.spec)
    return sharding is not None and not sharding.is_fully_replicated


def mesh_of(tree: PyTree) -> Mesh | None:
    """The mesh over which leaves are spread, its axes managed by the compiler; None where none is.

    Raises:
      ValueError: leaves over different meshes, in another way than by names of axes, or over several processes.
    """
    found = [x for x in jax.tree.leaves(tree) if spread(x)]
    if not found:
        return None
    if not all(isinstance(x.sharding, NamedSharding) for x in found):
        raise ValueError(f"params: are spread as {found[0].sharding}; the rule is jax.NamedSharding, over one mesh")
    if not all(x.is_fully_addressable for x in found):
        raise ValueError(
            "params: are spread over several processes, which the curvature does not support; the rule is a copy in "
            "every process (data-parallel), or parameters spread over the devices of one process"
        )
    meshes = {x.sharding.mesh for x in found}
    if len(meshes) > 1:
        raise ValueError(f"params: are spread over {len(meshes)} meshes, {meshes}; the rule is one mesh for all leaves")
    mesh = meshes.pop()
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * mesh.devices.ndim)


def kept(tree: PyTree, mesh: Mesh, name: str) -> PyTree:
    """The tree on the mesh: leaves that are spread stay as they are, others go to every device.

    Raises:
      ValueError: a leaf is spread over other devices than the mesh's, or by names that it does not have.
    """
    for leaf in jax.tree.leaves(tree):
        sharding = leaf.sharding if spread(leaf) else None
        if sharding is not None and (not isinstance(sharding, NamedSharding) or sharding.mesh.shape != mesh.shape):
            raise ValueError(
                f"{name}: has a leaf spread as {sharding}, and the parameters are over {mesh.shape}; the rule is one "
                "mesh for parameters and data"
            )
    return jax.tree.map(lambda x: jax.device_put(x, of(x, mesh)), tree)


def of(leaf: Any, mesh: Mesh) -> NamedSharding:
    """How a leaf is spread, an entry for every axis; one that is not is on every device."""
    spec = leaf.sharding.spec if spread(leaf) else ()
    return NamedSharding(mesh, PartitionSpec(*spec, *[None] * (np.ndim(leaf) - len(spec))))


def _behind(ndim: int, shard: NamedSharding) -> NamedSharding:
    """The sharding of an array with further axes in front."""
    return NamedSharding(shard.mesh, PartitionSpec(*[None] * (ndim - len(shard.spec)), *shard.spec))


def _each(f: Any, tree: PyTree, shards: Shards) -> PyTree:
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [f(x, _behind(np.ndim(x), s)) for x, s in zip(leaves, shards, strict=True)])


def pinned(tree: PyTree, shards: Shards | None) -> PyTree:
    """The same tree, for the compiler to spread so; within jit."""
    return tree if shards is None else _each(jax.lax.with_sharding_constraint, tree, shards)


def placed(tree: PyTree, shards: Shards) -> PyTree:
    """Arrays, numpy's too, where they belong."""
    return _each(jax.device_put, tree, shards)


def settled(tree: PyTree) -> PyTree:
    """The tree, once it is there, where devices are cores."""
    on_cpu = next(iter(jax.tree.leaves(tree)[0].devices())).platform == "cpu"
    return jax.block_until_ready(tree) if on_cpu else tree


def zeros(num: int, like: Any, shards: Shards | None) -> jax.Array:
    """``num`` stacked arrays of zeros like a parameter, spread as it is where any is."""
    device = None
    if shards is not None:
        assert isinstance(shards[0].mesh, Mesh)
        device = _behind(like.ndim + 1, of(like, shards[0].mesh))
    return jnp.zeros((num, *like.shape), like.dtype, device=device)


def shapes(whole: Sequence[tuple[int, ...]], shards: Shards) -> list[tuple[int, ...]]:
    """The shape of what one device holds of each leaf; on CPUs, which share their memory, of what all hold."""
    if shards[0].mesh.devices.flat[0].platform != "cpu":
        return [s.shard_shape(shape) for shape, s in zip(whole, shards, strict=True)]
    return [(s.mesh.size, *s.shard_shape(shape)) for shape, s in zip(whole, shards, strict=True)]


class _OnHost:
    """An array of which numpy gets a copy whenever it asks: jax would keep the copy beside the shards."""

    def __init__(self, x: jax.Array):
        self.x, self.shape, self.dtype, self.size, self.ndim = x, x.shape, x.dtype, x.size, x.ndim

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        found = np.empty(self.shape, self.dtype)
        for shard in self.x.addressable_shards:
            if shard.replica_id == 0:
                found[shard.index] = np.asarray(shard.data)
        return found if dtype is None else found.astype(dtype)


def viewed(tree: PyTree) -> PyTree:
    """The tree for functions that read it on the host, one leaf after another: nothing of it stays there."""
    return jax.tree.map(lambda x: _OnHost(x) if spread(x) else x, tree)
