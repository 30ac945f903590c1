"""Compiles a Hessian product and the steps of Lanczos for a slice of TPUs, for shapes alone: nothing is computed.

The programs are those of ``hessian``, of its products and of ``spectrum``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from lla_jax.core import data as _data
from lla_jax.core import losses, operands, precision
from lla_jax.core.arguments import Misuse
from lla_jax.core.data import Stream
from lla_jax.core.types import Execution, PyTree, Recipe
from lla_jax.core.wholes import Whole
from lla_jax.curvature import blocks, held, lanczos, linear_operator, products, room
from lla_jax.curvature.blocks import Settings
from lla_jax.curvature.linear_operator import LinearOperator
from lla_jax.curvature.matrices import Matrix
from lla_jax.curvature.products import Common
from lla_jax.execution import devices, plans, sharding, topologies
from lla_jax.execution.devices import GRID
from lla_jax.execution.topologies import Call, Part, Slice, abstract, abstract_rows

REMEDY = (
    "shard the parameters over the chips (jax.device_put with a NamedSharding; here a jax.ShapeDtypeStruct with one "
    "will do), pass a smaller batch_size, or execution=lla.Execution(linearize=False)"
)


def compile_products(
    loss: Any,
    params: PyTree,
    data: Any,
    on: Slice,
    *,
    num: int = 1,
    steps: int = 100,
    batch_size: int | None = None,
    batch_stats: str = "frozen",
    execution: Execution | None = None,
    told: Callable[[str], None] = lambda text: None,
) -> tuple[Part, Part]:
    """Compile a Hessian product, and a step of Lanczos with the basis of ``steps`` vectors.

    The rows are split over the hosts, one process on each, and there over its chips.

    Args:
      loss: as for ``hessian``, and so are data, batch_size and execution (without devices).
      params: the parameters; arrays or ``jax.ShapeDtypeStruct``. Where leaves are sharded by a NamedSharding, so they
        are over as many chips of a host.
      data: one data set or a stream, whose first batch is compiled for.
      on: the slice.
      num: products of the whole job.
      steps: steps of Lanczos of the whole job.
      batch_stats: "frozen" or "batch".
      told: called with a line before each program that is compiled.

    Returns:
      (the part of ``num`` products, that of ``steps`` steps, products included).
    """
    H, passes = _operator(loss, params, data, on, batch_size, batch_stats, execution or Execution())
    text = H.recipe["plan"]["text"]
    told(f"Hessian product: {text}")
    once = _product(H, on)
    product = Part("Hessian product", text, "products", num, _times(once, num, passes), {}, REMEDY)
    told(f"Lanczos step: {text}")
    remedy = f"take fewer steps, of which each holds a vector, or {REMEDY}"
    if room.goes_one_by_one(H) or passes != 1:
        each = (*_times(once, steps, passes), Call(_orthogonal(H, on, steps + 1), steps))
        return product, Part("Lanczos", f"{text}; one step after another", "steps", steps, each, {}, remedy)
    jitted, args, static = lanczos.steps_program(H, steps + 1)
    together = room.STEPS_PER_CALL
    program = topologies.compile_program(
        jitted, *args, on=on, name=f"{together} Lanczos steps", trips={"while": together}, **static
    )
    calls = (Call(program, -(-steps // together)),)
    return product, Part("Lanczos", f"{text}; {together} steps in one program", "steps", steps, calls, {}, remedy)


def mesh_of_params(params: PyTree, on: Slice, execution: Execution) -> Mesh | None:
    """The chips of one host over which the parameters are sharded; None if they are not.

    Raises:
      ValueError: a host has fewer chips; or primal values are to be kept.
    """
    mesh = sharding.mesh_like(params, topologies.devices_of(on, one_host=True), f"a host of {on.name}")
    if mesh is not None and execution.linearize is True:
        remedy = "which is not compiled for parameters that are sharded; leave it out"
        raise Misuse("execution.linearize", f"True given, {remedy}")
    return mesh


def _times(once: tuple[Call, ...], num: int, passes: int | None) -> tuple[Call, ...]:
    """The calls of ``num`` products, each of so many pieces of the data."""
    return tuple(
        Call(program, None if passes is None or runs is None else num * runs * passes) for program, runs in once
    )


def _operator(
    loss: Any,
    params: PyTree,
    data: Any,
    on: Slice,
    batch_size: int | None,
    batch_stats: str,
    execution: Execution,
) -> tuple[LinearOperator, int | None]:
    """(the operator of ``hessian`` with shapes in place of arrays, pieces of the data that a product reads)."""
    plans.check_for_operator(execution)
    first = _data.first_batch(data)
    passes = data.num_batches if isinstance(data, Stream) else 1
    loss, params = precision.at_least_single(losses.as_loss(loss), params)
    matrix = Matrix("hessian", (True,) * len(jax.tree.leaves(params)), train=batch_stats == "batch")
    uncut = matrix.train or not loss.per_example or isinstance(first, Whole)
    chips = topologies.devices_of(on, one_host=True)
    params_mesh = mesh_of_params(params, on, execution)
    mesh = devices.mesh_of(chips[:1] if uncut or params_mesh is not None else chips)
    here = devices.replicated(params_mesh or mesh)
    if params_mesh is not None:  # one process holds them all, and all rows
        rows = sharding.shapes_on_mesh(first, params_mesh, "data")
        params = sharding.shapes_on_mesh(params, params_mesh, "params")
    else:
        if not uncut and on.hosts > 1:
            first = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct((-(-x.shape[0] // on.hosts), *x.shape[1:]), x.dtype), first
            )
        rows, params = abstract_rows(first, mesh, GRID), abstract(params, here)
    key = abstract(jax.random.key(0), here)
    common = Common(abstract(loss, here), params, None, np.int32(0), np.int32(0), key)
    settings = Settings(matrix, mesh, params_mesh, uncut, batch_size, True, False, execution.precision)
    recipe: Recipe = {"kind": "hessian", "precision": operands.describe(execution.precision, mesh.devices.flat[0])}
    unkept = replace(
        execution, linearize=False, remat=execution.remat is True
    )  # the memory here says nothing of theirs
    H = blocks.in_memory(settings, common, rows, recipe, unkept)
    assert isinstance(H, LinearOperator)
    number = abstract(np.int32(0), here)
    H = replace(H, common=H.common._replace(count=number, offset=number))
    streamed = isinstance(data, Stream)
    return H if streamed else _keep(H, execution, on), passes


def _keep(H: LinearOperator, execution: Execution, on: Slice) -> LinearOperator:
    """The operator that keeps its primal values, if that is chosen, or if they take a quarter of the memory at most."""
    by, mesh = H.multiplier, H.multiplier.mesh
    assert mesh is not None
    if H.space.shards is not None:
        return H
    nbytes = held.kept_bytes(by, H.common, list(H.blocks)) if execution.linearize else 0
    if not execution.linearize or (
        execution.linearize == "auto" and nbytes > held.KEPT_FRACTION * on.chip.memory * mesh.size
    ):
        return H

    def maps(block: Any) -> Any:
        shapes = products.linearize.eval_shape(H.common, block.starts, by=by, size=block.size)
        return abstract(shapes, devices.split_over(mesh, GRID))

    plan = H.recipe["plan"]
    text = plan["text"].replace("computed at every product", f"kept ({nbytes / 2**20:,.1f} MiB)")
    recipe = H.recipe | {"plan": plan | {"text": text, "linearized": True, "bytes": nbytes}}
    return replace(H, common=H.common._replace(data=None), blocks=tuple(map(maps, H.blocks)), recipe=recipe)


def _product(H: LinearOperator, on: Slice) -> tuple[Call, ...]:
    """The programs of one product over the data of ``H``, and how often each runs."""
    by, v = H.multiplier, room.stacked_like(H)
    assert by.mesh is not None
    if len(H.blocks) == 1 and by.mesh.size == 1:
        return (Call(topologies.compile_program(linear_operator.product_step, H, v, on=on, name="product"), 1),)
    made: list[Call] = []
    for block in (H.blocks[0], H.blocks[-1])[: len(H.blocks)]:
        program = topologies.compile_program(
            products.sums_step, H.common, H.space, block, v, on=on, name="sums of a product", by=by
        )
        made.append(Call(program, 1 if made else max(1, len(H.blocks) - 1)))
    total = jax.eval_shape(lambda *args: products.sums(by, *args), H.common, H.space, H.blocks[0], v)
    if H.space.shards is None:
        total = abstract(total, devices.split_over(by.mesh, GRID))
    else:
        total = v, abstract(total[1], H.common.count.sharding)
    finish = topologies.compile_program(
        products.finish_step, H.common, H.space, v, total, on=on, name="end of a product", by=by
    )
    return (*made, Call(finish, 1))


def _orthogonal(H: LinearOperator, on: Slice, rows: int) -> Any:
    """The program that makes a product orthogonal to a basis."""
    jitted, args, static = lanczos.update_program(H, rows)
    return topologies.compile_program(jitted, *args, on=on, name="re-orthogonalisation", **static)
