"""Products of a curvature matrix with a vector: sums over blocks of rows, over devices, then the mean.

A block is either rows of the data, whose primal values are computed at every product, or a linear map that keeps them.
Pure functions, jitted once per shape and static part.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from lla_jax.core import losses
from lla_jax.core import tree as _tree
from lla_jax.core.types import Batch, PyTree
from lla_jax.curvature import matrices
from lla_jax.curvature.matrices import Matrix
from lla_jax.curvature.space import Space
from lla_jax.execution import plans
from lla_jax.execution.devices import GRID


class Multiplier(NamedTuple):
    """What an operator multiplies vectors by, and on which devices: the static part, which compares by value."""

    matrix: Matrix | None  # None: a given product
    product: Any
    mesh: Mesh | None
    on_device: bool


class Common(NamedTuple):
    """What all blocks share."""

    loss: Any
    params: PyTree
    data: Batch
    count: Any  # rows that count
    offset: Any  # number of the first row in the whole data set
    key: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """Blocks of rows, recomputed at every product: their first rows ``(S,)`` and their size."""

    starts: Any
    size: int = field(metadata={"static": True})


class Linearized(NamedTuple):
    """Blocks whose primal values are kept: the linear map, leading axes (devices, S), and the sums beside it."""

    map: Any
    sums: Any


def times(scale: PyTree, v: PyTree) -> PyTree:
    """S v, entry by entry."""
    return jax.tree.map(lambda s, x: s * x, scale, v)


def _local_block(common: Common, start: Any, size: int, mesh: Mesh) -> losses.Block:
    """Rows of this device's share of the data."""
    rows = jax.tree.leaves(common.data)[0].shape[0]
    before = jax.lax.axis_index(GRID) * rows if mesh.size > 1 else 0
    return losses.block_at(common.data, start, size, jnp.clip(common.count - before, 0, rows), common.offset + before)


def _spread(mesh: Mesh, f: Callable, in_specs: Any, out_specs: Any) -> Callable:
    if mesh.size == 1:
        return f
    return jax.shard_map(f, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _common_specs() -> Common:
    """The data are split over the devices; the rest is on each of them."""
    whole = PartitionSpec()
    return Common(whole, whole, PartitionSpec(GRID), whole, whole, whole)


def _summed(f: Callable[[Any], Any], over: Any) -> Any:
    """Sum of f over the leading axis: no loop for one entry, so that convolutions keep XLA's fast path."""
    first = jax.tree.map(lambda x: x[0], over)
    if jax.tree.leaves(over)[0].shape[0] == 1:
        return f(first)
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(f, first))
    return jax.lax.scan(lambda sums, x: (plus(sums, f(x)), None), start, over)[0]


def plus(a: Any, b: Any) -> Any:
    """a + b, leaf by leaf."""
    return jax.tree.map(jnp.add, a, b)


def _block_sums(by: Multiplier, common: Common, block: Any, v: PyTree) -> tuple[PyTree, Any]:
    """(sum of products, (sum of weights, sum of losses)) over the rows of one block; a leading axis of devices, if
    there are several: CPU devices that talk to each other in two programs at once may wait forever."""
    matrix, mesh = by.matrix, by.mesh
    assert matrix is not None
    assert mesh is not None

    def own(found: Any) -> Any:
        return jax.tree.map(lambda x: x[None], found) if mesh.size > 1 else found

    def kept(block: Linearized, v: PyTree) -> Any:
        local = jax.tree.map(lambda x: x[0], block) if mesh.size > 1 else block
        return own(_summed(lambda each: (each.map(v), each.sums), local))

    def recomputed(common: Common, starts: Any, v: PyTree) -> Any:
        start_of = matrices.part(common.params, matrix.chosen)

        def one(start: Any) -> Any:
            rows = _local_block(common, start, block.size, mesh)
            g = matrices.gradient_map(matrix, common.loss, common.params, rows, common.key)
            _, product, sums = jax.jvp(g, (start_of,), (v,), has_aux=True)
            return product, sums

        return own(_summed(one, starts))

    whole, split = PartitionSpec(), PartitionSpec(GRID)
    if isinstance(block, Linearized):
        return _spread(mesh, kept, (split, whole), split)(block, v)
    return _spread(mesh, recomputed, (_common_specs(), whole, whole), split)(common, block.starts, v)


def _moved(by: Multiplier, common: Common, space: Space, v: PyTree) -> tuple[PyTree, PyTree]:
    """The chosen parameters, and the vector by which they move: S v, in their dtypes."""
    assert by.matrix is not None
    part = matrices.part(common.params, by.matrix.chosen)
    v = v if space.scale is None else times(space.scale, v)
    return part, jax.tree.map(lambda x, p: x.astype(p.dtype), v, part)


def sums(by: Multiplier, common: Any, space: Space, block: Any, v: PyTree) -> Any:
    """The sums of one block, in float32 at least: what ``plus`` adds up and ``finish`` makes a product of."""
    with jax.default_matmul_precision("highest"):
        if by.matrix is None:
            return by.product(v if space.scale is None else times(space.scale, v), *common)
        product, rest = _block_sums(by, common, block, _moved(by, common, space, v)[1])
        return space.pin(jax.tree.map(_tree.wide, product)), rest


def finish(by: Multiplier, common: Any, space: Space, v: PyTree, total: Any) -> PyTree:
    """The mean, with the penalty's part."""
    found = total if by.matrix is None else _mean(by, common, space, v, total)
    found = found if space.scale is None else times(space.scale, found)
    found = jax.tree.map(lambda x, like: x.astype(like.dtype), found, v)
    return space.pin(found)


def _mean(by: Multiplier, common: Common, space: Space, v: PyTree, total: Any) -> PyTree:
    assert by.matrix is not None
    product, (weight, _) = over_devices(by, total)
    found = jax.tree.map(lambda x: x / weight.astype(x.dtype), product)
    penalty, chosen = common.loss.penalty, by.matrix.chosen
    if penalty is None or by.matrix.kind == "fisher":
        return found
    with jax.default_matmul_precision("highest"):
        slope = jax.grad(lambda moving: penalty(matrices.merged(common.params, moving, chosen)))
        part, moved = _moved(by, common, space, v)
        return plus(found, jax.jvp(slope, (part,), (moved,))[1])


def over_devices(by: Multiplier, total: Any) -> Any:
    """The sums of all devices."""
    split = by.mesh is not None and by.mesh.size > 1
    return jax.tree.map(lambda x: x.sum(0), total) if split else total


def gathered(by: Multiplier, total: Any) -> Any:
    """The same from the host, where devices are cores: a leading axis of 1 remains, and nothing waits for another."""
    assert by.mesh is not None
    if by.mesh.size == 1 or by.mesh.devices.flat[0].platform != "cpu":
        return total
    return jax.tree.map(lambda x: np.asarray(x).sum(0, keepdims=True), total)


sums_step = jax.jit(lambda common, space, block, v, *, by: sums(by, common, space, block, v), static_argnames="by")
plus_step = jax.jit(plus)
finish_step = jax.jit(lambda common, space, v, total, *, by: finish(by, common, space, v, total), static_argnames="by")


def total(by: Multiplier, common: Any, space: Space, blocks: Any, v: PyTree) -> Any:
    """The sums of all blocks, from the host: one compiled step, called for each."""
    return functools.reduce(plus_step, (sums_step(common, space, block, v, by=by) for block in blocks))


@functools.partial(jax.jit, static_argnames=("by", "size"))
def linearize(common: Common, starts: Any, *, by: Multiplier, size: int) -> Linearized:
    """The linear map of every block, with what does not depend on the vector computed now."""
    matrix, mesh = by.matrix, by.mesh
    assert matrix is not None
    assert mesh is not None

    def one(common: Common, start: Any) -> Linearized:
        rows = _local_block(common, start, size, mesh)
        g = matrices.gradient_map(matrix, common.loss, common.params, rows, common.key)
        _, linear, sums = jax.linearize(g, matrices.part(common.params, matrix.chosen), has_aux=True)
        return Linearized(linear, sums)

    def every(common: Common, starts: Any) -> Linearized:
        found = plans.map_points(lambda start: one(common, start), starts, "map")
        return jax.tree.map(lambda x: x[None], found) if mesh.size > 1 else found

    with jax.default_matmul_precision("highest"):
        whole = PartitionSpec()
        return _spread(mesh, every, (_common_specs(), whole), PartitionSpec(GRID))(common, starts)
