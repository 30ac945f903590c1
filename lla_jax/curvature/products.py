"""Computes products of a curvature matrix with a vector: sums over blocks and devices, divided by the sum of weights.

A block is either rows of the data, whose primal values are computed at every product, or a linear map that keeps them.
``sums_step``, ``plus_step``, ``finish_step`` and ``linearize`` are compiled, once for each ``Multiplier`` and shape.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from lla_jax.core import interrupts, losses
from lla_jax.core import tree as _tree
from lla_jax.core.called import differentiated
from lla_jax.core.data import num_examples
from lla_jax.core.operands import Precision
from lla_jax.core.types import Batch, PyTree
from lla_jax.curvature import matrices
from lla_jax.curvature.matrices import Matrix
from lla_jax.curvature.space import Space
from lla_jax.execution import plans, rewriting
from lla_jax.execution.devices import GRID


class Multiplier(NamedTuple):
    """The static part of an operator: matrix, devices, and where the loop runs; it compares by value."""

    matrix: Matrix | None  # None for a product of the user's
    product: Any  # the user's product, if jax can trace it; else None
    mesh: Mesh | None  # the devices over which the rows are split; None for a product of the user's
    on_device: bool  # whether a loop of products may run inside one compiled program
    precision: Precision = "highest"  # of matrix products, as in ``Execution``


class Common(NamedTuple):
    """The part of an operator that all blocks share."""

    loss: Any
    params: PyTree
    data: Batch
    count: Any  # number of rows of the data without padding
    offset: Any  # number of the first row among those of all processes and batches
    key: Any


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """S blocks whose primal values are computed at every product: their first rows ``(S,)``, and the rows per block."""

    starts: Any
    size: int = field(metadata={"static": True})


class Linearized(NamedTuple):
    """S blocks whose primal values are kept: their linear maps, and their sums of weights and of losses.

    Both have the leading axis (S,), or (devices, S) with several devices.
    """

    map: Any
    sums: Any


def times(scale: PyTree, v: PyTree) -> PyTree:
    """S v for a diagonal S: the product of two trees, entry by entry."""
    return jax.tree.map(lambda s, x: s * x, scale, v)


def _local_block(common: Common, start: Any, size: int, mesh: Mesh) -> losses.Block:
    """The block of ``size`` rows from ``start`` among the rows on this device; padding is masked."""
    rows = num_examples(common.data)
    before = jax.lax.axis_index(GRID) * rows if mesh.size > 1 else 0
    return losses.block_at(common.data, start, size, jnp.clip(common.count - before, 0, rows), common.offset + before)


def _over_mesh(mesh: Mesh, f: Callable, in_specs: Any, out_specs: Any) -> Callable:
    if mesh.size == 1:
        return f
    return jax.shard_map(f, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _common_specs() -> Common:
    """How a ``Common`` lies on several devices: the data are split over them, the rest is on each of them."""
    copy = PartitionSpec()
    return Common(copy, copy, PartitionSpec(GRID), copy, copy, copy)


def _sum_over(f: Callable[[Any], Any], over: Any) -> Any:
    """The sum of ``f(x)`` over the entries x of the leading axis of ``over``.

    A single entry takes no loop, so that convolutions keep XLA's fast path.
    """
    entry = jax.tree.map(lambda x: x[0], over)
    if jax.tree.leaves(over)[0].shape[0] == 1:
        return f(entry)
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(f, entry))
    return jax.lax.scan(lambda sums, x: (plus(sums, f(x)), None), zero, over)[0]


def plus(a: Any, b: Any) -> Any:
    """a + b, leaf by leaf."""
    return jax.tree.map(jnp.add, a, b)


def _block_sums(by: Multiplier, common: Common, block: Any, v: PyTree) -> tuple[PyTree, Any]:
    """(sum of products, (sum of weights, sum of losses)) over the rows of one block.

    With several devices every sum has a leading axis of devices, to be added up by ``over_devices``: CPU devices that
    talk to each other in two programs at once may wait forever.
    """
    matrix, mesh = by.matrix, by.mesh
    assert matrix is not None
    assert mesh is not None
    fast: Callable[[Any], Any] = rewriting.rewrite_products if matrix.lowered else lambda f: f

    def with_device_axis(sums: Any) -> Any:
        return jax.tree.map(lambda x: x[None], sums) if mesh.size > 1 else sums

    def apply_maps(block: Linearized, v: PyTree) -> Any:
        local = jax.tree.map(lambda x: x[0], block) if mesh.size > 1 else block
        with differentiated():
            return with_device_axis(_sum_over(lambda each: (fast(each.map)(v), each.sums), local))

    def recompute(common: Common, starts: Any, v: PyTree) -> Any:
        start_of = matrices.part(common.params, matrix.leaf_mask)

        def one(start: Any) -> Any:
            rows = _local_block(common, start, block.size, mesh)
            g = matrices.gradient_map(matrix, common.loss, common.params, rows, common.key)
            with differentiated():
                _, product, sums = fast(lambda v: jax.jvp(g, (start_of,), (v,), has_aux=True))(v)
            return product, sums

        return with_device_axis(_sum_over(one, starts))

    copy, split = PartitionSpec(), PartitionSpec(GRID)
    if isinstance(block, Linearized):
        return _over_mesh(mesh, apply_maps, (split, copy), split)(block, v)
    return _over_mesh(mesh, recompute, (_common_specs(), copy, copy), split)(common, block.starts, v)


def _displacement(by: Multiplier, common: Common, space: Space, v: PyTree) -> tuple[PyTree, PyTree]:
    """(the parameters that the matrix acts on, their displacement S v in their dtypes)."""
    assert by.matrix is not None
    part = matrices.part(common.params, by.matrix.leaf_mask)
    v = v if space.scale is None else times(space.scale, v)
    return part, jax.tree.map(lambda x, p: x.astype(p.dtype), v, part)


def sums(by: Multiplier, common: Any, space: Space, block: Any, v: PyTree) -> Any:
    """(sum of products with S v, (sum of weights, sum of losses)) of one block; for a user's product, A S v.

    The sum of products is in float32 at least. ``plus`` adds blocks up, and ``finish`` makes S A S v of the total.
    """
    with jax.default_matmul_precision(by.precision):
        if by.matrix is None:
            return by.product(v if space.scale is None else times(space.scale, v), *common)
        product, rest = _block_sums(by, common, block, _displacement(by, common, space, v)[1])
        return space.pin(jax.tree.map(_tree.widen, product)), rest


def finish(by: Multiplier, common: Any, space: Space, v: PyTree, total: Any) -> PyTree:
    """The product S A S v, from the total of all blocks' ``sums``: their mean plus the penalty's part, times S.

    The Fisher matrix has no part of the penalty. The product is a tree like ``v``, in its dtypes.
    """
    product = total if by.matrix is None else _mean(by, common, space, v, total)
    product = product if space.scale is None else times(space.scale, product)
    product = jax.tree.map(lambda x, like: x.astype(like.dtype), product, v)
    return space.pin(product)


def _mean(by: Multiplier, common: Common, space: Space, v: PyTree, total: Any) -> PyTree:
    assert by.matrix is not None
    product, (weight, _) = over_devices(by, total)
    chex.assert_trees_all_equal_shapes(product, v)
    chex.assert_rank(weight, 0)
    mean = jax.tree.map(lambda x: x / weight.astype(x.dtype), product)
    leaf_mask = by.matrix.leaf_mask
    if common.loss.penalty is None or by.matrix.kind == "fisher":
        return mean
    with jax.default_matmul_precision(by.precision):
        slope = jax.grad(
            lambda moving: losses.penalty_of(common.loss, matrices.merge(common.params, moving, leaf_mask))
        )
        part, displacement = _displacement(by, common, space, v)
        return plus(mean, jax.jvp(slope, (part,), (displacement,))[1])


def mean_loss(by: Multiplier, common: Any, total: Any) -> Any:
    """The mean loss, penalty included, from the total of all blocks' ``sums``.

    None for a user's product, and for a Fisher matrix, whose sums are not those of the loss.
    """
    if by.matrix is None or by.matrix.kind == "fisher":
        return None
    weight, value = over_devices(by, total[1])
    mean = value / weight.astype(value.dtype)
    if common.loss.penalty is None:
        return mean
    with jax.default_matmul_precision(by.precision):
        return mean + losses.penalty_of(common.loss, common.params)


def over_devices(by: Multiplier, total: Any) -> Any:
    """The sums added up over their leading axis of devices, which sums of one device do not have."""
    split = by.mesh is not None and by.mesh.size > 1
    return jax.tree.map(lambda x: x.sum(0), total) if split else total


def add_up(by: Multiplier, total: Any) -> Any:
    """Add the sums of CPU devices up on the host, so that no program waits for another.

    A leading axis of 1 remains in place of the devices. Sums of one device, or of accelerators, stay as they are.
    """
    assert by.mesh is not None
    if by.mesh.size == 1 or by.mesh.devices.flat[0].platform != "cpu":
        return total
    return jax.tree.map(lambda x: np.asarray(x).sum(0, keepdims=True), total)


sums_step = jax.jit(lambda common, space, block, v, *, by: sums(by, common, space, block, v), static_argnames="by")
plus_step = jax.jit(plus)


@functools.partial(jax.jit, static_argnames="by")
def finish_step(common: Any, space: Space, v: PyTree, total: Any, *, by: Multiplier) -> tuple[PyTree, Any]:
    """(``finish``, ``mean_loss``) of the same total."""
    return finish(by, common, space, v, total), mean_loss(by, common, total)


def total(by: Multiplier, common: Any, space: Space, blocks: Any, v: PyTree) -> Any:
    """The total of the ``sums`` of all blocks. It is added up from the host: one compiled step is called per block.

    A block is begun while the one before is computed; an interrupt acts between them.
    """
    return interrupts.wait(functools.reduce(add, (sums_step(common, space, block, v, by=by) for block in blocks)))


def add(total: Any, sums: Any) -> Any:
    """The total with the sums of one block more, once the total is computed; an interrupt acts until then."""
    interrupts.wait(total)
    return plus_step(total, sums)


@functools.partial(jax.jit, static_argnames=("by", "size"))
def linearize(common: Common, starts: Any, *, by: Multiplier, size: int) -> Linearized:
    """The linear maps and sums of the blocks of ``size`` rows from ``starts``; all primal values are computed now."""
    matrix, mesh = by.matrix, by.mesh
    assert matrix is not None
    assert mesh is not None

    def one(common: Common, start: Any) -> Linearized:
        rows = _local_block(common, start, size, mesh)
        g = matrices.gradient_map(matrix, common.loss, common.params, rows, common.key)
        with differentiated():
            _, linear, sums = jax.linearize(g, matrices.part(common.params, matrix.leaf_mask), has_aux=True)
        return Linearized(linear, sums)

    def every(common: Common, starts: Any) -> Linearized:
        maps = plans.map_points(lambda start: one(common, start), starts, "map")
        return jax.tree.map(lambda x: x[None], maps) if mesh.size > 1 else maps

    with jax.default_matmul_precision(by.precision):
        specs = (_common_specs(), PartitionSpec())
        return _over_mesh(mesh, every, specs, PartitionSpec(GRID))(common, starts)
