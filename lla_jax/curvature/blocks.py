"""Makes the operator of data in memory or of a stream: rows in blocks on devices, primal values kept or recomputed."""

from __future__ import annotations

import functools
import logging
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lla_jax.core import data as _data
from lla_jax.core import interrupts, precision
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse, warn_caller
from lla_jax.core.data import Stream
from lla_jax.core.operands import Precision
from lla_jax.core.passes import Passes
from lla_jax.core.rows import like
from lla_jax.core.types import Batch, Execution, PyTree, Recipe
from lla_jax.curvature import held, matrices, products, steps
from lla_jax.curvature.linear_operator import HostOperator, LinearOperator
from lla_jax.curvature.matrices import Matrix
from lla_jax.curvature.products import Common, Multiplier, Rows
from lla_jax.curvature.space import Space
from lla_jax.execution import devices as _devices
from lla_jax.execution import processes as _processes
from lla_jax.execution import rewriting, sharding
from lla_jax.execution.devices import GRID

log = logging.getLogger("lla_jax")

CONV_BYTES = 2**19  # largest intermediate value of a block with convolutions on a CPU; with more, it spills the caches
CONV_ROWS = (8, 128)  # the fewest and most examples of such a block: gradients of kernels are a sum over them
BLOCK_BYTES = {True: 2**22, False: 2**30}  # largest intermediate value of a block: on a CPU, on other devices
MOST_TRACED = 2**16  # rows; the number of entries of more might not fit an int32
MOST_FLOPS = 10**10  # of a product on a CPU for several to run in one program, some seconds long
UNSTEADY = 1e-5  # relative difference between two evaluations that rounding does not explain
NOT_COMPARED = {"compared": False}  # the probe of a loss that may change from call to call
CALLBACKS = {"pure_callback", "io_callback"}  # without these, a jax function gives the same values every time


class Settings(NamedTuple):
    """The settings that data in memory and streams share."""

    matrix: Matrix
    mesh: Mesh  # over which the rows are split
    params_mesh: Mesh | None  # over which the parameters are sharded, if they are
    uncut: bool  # batches must stay as they are
    batch_size: int | None
    allow_nondeterministic: bool
    together: bool  # with the other processes
    precision: Precision  # of matrix products


def in_memory(
    settings: Settings, common: Common, data: Batch, recipe: Recipe, execution: Execution
) -> LinearOperator | HostOperator:
    """The operator over data in memory; in a group of processes, that of the mean over the rows of all of them.

    Args:
      settings: settings that streams have too.
      common: the loss, the parameters and the key, on the devices.
      data: arrays.
      recipe: the operator's recipe; the plan and the precision are added.
      execution: says what products hold (``linearize``, ``remat``).
    """
    _, mesh, params_mesh, uncut, batch_size, allow_nondeterministic, together, _ = settings
    count = _data.num_examples(data)
    rows = -(-count // mesh.size)
    by, space, row_bytes, primitives, heads = _look(settings, common, data, rows, recipe)
    if params_mesh is not None and not uncut and any(map(sharding.is_sharded, jax.tree.leaves(data))):
        batch_size = batch_size or rows  # a block of sharded rows would have to be brought together
    blocks = _uncut_batches(by, count, batch_size) if uncut else _blocks(by, rows, row_bytes, batch_size)
    place = functools.partial(_place_data, data, mesh, params_mesh)
    common = common._replace(data=place(), count=np.int32(count))
    common = common._replace(step=np.float32(1)) if settings.matrix.differences else common
    if primitives & CALLBACKS:
        if allow_nondeterministic:
            recipe["probe"] = NOT_COMPARED
        else:
            _check_deterministic(by, space, common, blocks[0])
    linearize, remat = execution.linearize, execution.remat
    if params_mesh is not None:  # the compiler might gather values that are kept
        linearize, remat = (False if linearize == "auto" else linearize), (False if remat == "auto" else remat)
    recut = None if uncut or batch_size else functools.partial(_blocks, by, rows, row_bytes)
    by, blocks, keep, nbytes, text = held.choose(by, common, blocks, linearize, remat, row_bytes, recut)
    assert by.matrix is not None
    num = sum(len(block.starts) for block in blocks)
    in_blocks = f"{num * mesh.size:,} block" + "s" * (num * mesh.size > 1)
    sharded = "" if params_mesh is None else f", parameters sharded over {params_mesh.size} devices"
    recipe["plan"] = {
        "blocks": num,
        "rows": blocks[0].size,
        "devices": (params_mesh or mesh).size,
        "linearized": keep,
        "bytes": nbytes,
        "on_device": by.on_device,
        **({"remat": True} if by.matrix.remat else {}),
        **heads,
        "text": f"{count:,} example{'s' * (count != 1)} in {in_blocks}, primal values {text}{sharded}"
        + held.in_words(heads),
    }
    log.info("%s: %s", recipe["kind"], recipe["plan"]["text"])
    make = _linearize_at if keep else _recompute_at
    base = common._replace(params=None)
    if by.matrix.differences:
        of_step = functools.partial(_of_step, by, space, base, tuple(blocks), place, together)
        return steps.operator_at(of_step, common.params, _plan_together(recipe) if together else recipe)
    own = make(by, space, base, tuple(blocks), place, common.params, recipe)
    return _over_processes(own, _plan_together(recipe)) if together else own


# The next two are no closures: an operator held by a closure that it holds itself would not free its data.


def _recompute_at(
    by: Multiplier, space: Space, base: Common, blocks: tuple[Rows, ...], place: Any, params: PyTree, recipe: Recipe
) -> LinearOperator:
    """The operator at these parameters, with primal values computed at every product."""
    rebuild = functools.partial(_recompute_at, by, space, base, blocks, place)
    return LinearOperator(by, space, base._replace(params=params), blocks, recipe=recipe, rebuild=rebuild)


def _of_step(
    by: Multiplier,
    space: Space,
    base: Common,
    blocks: tuple[Rows, ...],
    place: Any,
    together: bool,
    step: Any,
    params: PyTree,
    recipe: Recipe,
) -> LinearOperator | HostOperator:
    """The operator at these parameters, whose products are finite differences of this step."""
    own = _recompute_at(by, space, base._replace(step=step), blocks, place, params, recipe)
    return _over_processes(own, recipe) if together else own


def _linearize_at(
    by: Multiplier, space: Space, base: Common, blocks: tuple[Rows, ...], place: Any, params: PyTree, recipe: Recipe
) -> LinearOperator:
    """The operator at these parameters, with primal values computed now and kept in place of the data."""
    without = base._replace(data=None)
    rebuild = functools.partial(_linearize_at, by, space, without, blocks, place)
    common = base._replace(params=params, data=place() if base.data is None else base.data)
    maps = tuple(products.linearize(common, block.starts, by=by, size=block.size) for block in blocks)
    return LinearOperator(by, space, without._replace(params=params), maps, recipe=recipe, rebuild=rebuild)


def _check_deterministic(by: Multiplier, space: Space, common: Common, block: Rows) -> None:
    ones = jax.tree.map(jnp.ones_like, matrices.part(common.params, by.matrix.leaf_mask))  # type: ignore
    twice = [products.sums_step(common, space, block, ones, by=by) for _ in range(2)]
    numbers = [np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(sums)]) for sums in twice]
    difference = _difference(*numbers)
    if difference > UNSTEADY:
        raise Misuse(
            "loss",
            f"two evaluations on the same batch differ by {difference:.1e} relative, and the curvature of a loss that "
            f"changes has no meaning; the difference must be at most {UNSTEADY}. Remove the callback that draws noise "
            "and pass a key to the Loss, or set allow_nondeterministic=True",
        )


def _difference(one: np.ndarray, two: np.ndarray) -> float:
    """Largest difference relative to the largest entry; inf where one is finite and the other is not."""
    finite = np.isfinite(one)
    if not np.array_equal(one[~finite], two[~finite], equal_nan=True):
        return np.inf
    largest = np.abs(one[finite]).max(initial=np.finfo(np.float32).tiny)
    return float(np.nan_to_num(np.abs(one[finite] - two[finite]) / largest, nan=np.inf).max(initial=0))


# --- streams


def streamed(
    settings: Settings, common: Common, data: Stream, batch: Batch, recipe: Recipe, execution: Execution
) -> HostOperator:
    """The operator over a stream, which is read for every product.

    Args:
      settings: settings that data in memory have too.
      common: the loss, the parameters and the key, on the devices.
      data: the stream.
      batch: its first batch.
      recipe: the operator's recipe; the plan and the precision are added.
      execution: says what products hold (``remat``).
    """
    mesh, params_mesh, together = settings.mesh, settings.params_mesh, settings.together
    by, space, row_bytes, _, heads = _look(settings, common, batch, _data.num_examples(batch), recipe)
    by, settings = _fit_stream(settings, by, common, batch, row_bytes, execution.remat)
    assert by.matrix is not None
    text = "streamed, one reading per product"
    recipe["plan"] = {
        "devices": (params_mesh or mesh).size,
        "linearized": False,
        "bytes": 0,
        "on_device": False,
        **({"remat": True} if by.matrix.remat else {}),
        **heads,
        "text": (f"{text}, in each of {jax.process_count()} processes" if together else text) + held.in_words(heads),
    }
    if settings.allow_nondeterministic:
        recipe["probe"] = NOT_COMPARED
    base = common._replace(params=None)
    if by.matrix.differences:
        of_step = functools.partial(_stream_of_step, settings, by, space, row_bytes, data, base)
        return steps.operator_at(of_step, common.params, recipe)
    return _stream_at(settings, by, space, row_bytes, data, base, common.params, recipe)


def _fit_stream(
    settings: Settings, by: Multiplier, common: Common, batch: Batch, row_bytes: int, remat: bool | str
) -> tuple[Multiplier, Settings]:
    """(the multiplier, the settings) with which a product of a batch fits into the free memory; see ``held``."""
    assert by.matrix is not None
    if remat != "auto" or settings.params_mesh is not None:
        return by._replace(matrix=replace(by.matrix, remat=bool(remat is True))), settings
    rows = _data.num_examples(batch)
    cuttable = not settings.uncut and settings.batch_size is None
    size = min(rows, settings.batch_size or rows) if settings.uncut else _size_of_block(by, rows, row_bytes, settings)
    by, fitting = held.fit_block(by, common, batch, size, row_bytes, cuttable)
    return by, settings._replace(batch_size=fitting) if fitting < size else settings


def _stream_at(
    settings: Settings,
    by: Multiplier,
    space: Space,
    row_bytes: int,
    data: Stream,
    base: Common,
    params: PyTree,
    recipe: Recipe,
) -> HostOperator:
    """The operator at these parameters, whose products read the stream."""
    _, mesh, params_mesh, uncut, batch_size, allow_nondeterministic, together, _ = settings
    common = base._replace(params=params)
    values: list[np.ndarray] = []  # the mean loss of the first pass

    def place(batch: Batch, mesh: Mesh) -> Batch:
        return _place_data(batch, mesh, params_mesh)

    def call(v: PyTree) -> tuple[PyTree, Any]:
        total: Any = None
        for batch, count, offset in _devices.device_batches(data, mesh, uncut, place=place):
            rows = _data.num_examples(batch) // mesh.size
            here = common._replace(data=batch, count=np.int32(count), offset=common.offset + np.int32(offset))
            blocks = _uncut_batches(by, count, batch_size) if uncut else _blocks(by, rows, row_bytes, batch_size)
            for block in blocks:
                sums = products.sums_step(here, space, block, v, by=by)
                total = sums if total is None else products.add(total, sums)
                if params_mesh is not None:
                    total = sharding.wait_on_cpu(total)
        total = products.add_up(by, interrupts.wait(total))
        total = _exchange(by, v, total) if together else total
        if not allow_nondeterministic:
            _check_same_pass(values, products.over_devices(by, total[1]))
        return space.wait_for(products.finish_step(common, space, v, total, by=by))

    rebuild = functools.partial(_stream_anew, settings, by, space, row_bytes, data, base)
    from_host = by._replace(on_device=False)
    return HostOperator(from_host, space, call, params, recipe=recipe, rebuild=rebuild, together=together)


def _stream_of_step(
    settings: Settings,
    by: Multiplier,
    space: Space,
    row_bytes: int,
    data: Stream,
    base: Common,
    step: Any,
    params: PyTree,
    recipe: Recipe,
) -> HostOperator:
    """The operator at these parameters, whose products are finite differences of this step."""
    return _stream_anew(settings, by, space, row_bytes, data, base._replace(step=step), params, recipe)


def _stream_anew(
    settings: Settings, by: Multiplier, space: Space, row_bytes: int, data: Stream, *rest: Any
) -> HostOperator:
    """The operator at other parameters, where the stream may have other batches."""
    return _stream_at(
        settings, by, space, row_bytes, replace(data, passes=Passes(not settings.allow_nondeterministic)), *rest
    )


def _check_same_pass(values: list[np.ndarray], sums: Any) -> None:
    """Refuse a stream whose mean loss is not that of the first pass, the only entry of ``values`` after it."""
    weight, value = (np.asarray(x, np.float64) for x in sums)
    with np.errstate(invalid="ignore", divide="ignore"):  # no weight at all
        values.append(np.array([value / weight]))
    before, now = values[0], values[-1]
    del values[1:]
    if _difference(before, now) > UNSTEADY:
        raise Misuse(
            "data",
            f"two readings of the stream give the mean losses {before[0]:.8g} and {now[0]:.8g}; it must yield the same "
            "examples each time. Turn off augmentation and dropping of batches, or set allow_nondeterministic=True",
        )


# --- groups of processes


def _over_processes(own: LinearOperator, recipe: Recipe) -> HostOperator:
    """The operator of the mean over the rows of all processes: their sums are added up in every product."""
    by, space, common = own.multiplier, own.space, own.common

    def call(v: PyTree) -> tuple[PyTree, Any]:
        total = _exchange(by, v, products.add_up(by, products.total(by, common, space, own.blocks, v)))
        return products.finish_step(common, space, v, total, by=by)

    def rebuild(params: PyTree, recipe: Recipe) -> HostOperator:
        assert own.rebuild is not None
        return _over_processes(own.rebuild(params, recipe), recipe)

    from_host = by._replace(on_device=False)
    return HostOperator(from_host, space, call, common.params, recipe=recipe, rebuild=rebuild, together=True)


def _plan_together(recipe: Recipe) -> Recipe:
    """The recipe of an operator over all processes, from the recipe of this process's operator."""
    plan = recipe["plan"]
    text = f"{plan['text']}, in each of {jax.process_count()} processes"
    return recipe | {"plan": plan | {"on_device": False, "text": text}}


def _exchange(by: Multiplier, v: PyTree, total: Any) -> Any:
    """The sums of all processes added up, after a check that all have the same vector ``v``."""
    assert by.mesh is not None
    sums = _processes.total_for(v, products.over_devices(by, total))
    sums = sums if by.mesh.size == 1 else jax.tree.map(lambda x: x[None], sums)
    return _devices.replicate(sums, by.mesh)


# --- blocks of rows


def _space(matrix: Matrix, params: PyTree, mesh: Mesh | None) -> Space:
    """The space of the vectors; ``mesh`` is that of sharded parameters."""
    leaves, treedef = jax.tree.flatten(matrices.part(params, matrix.leaf_mask))
    shapes = tuple((tuple(x.shape), _tree.wide(x.dtype)) for x in leaves)
    return Space(treedef, shapes, None if mesh is None else tuple(sharding.sharding_of(x, mesh) for x in leaves))


def _multiplier(settings: Settings, mesh: Mesh, primitives: set[str], params_mesh: Mesh | None) -> Multiplier:
    on_cpu, matrix, precision = _devices.on_cpu(mesh), settings.matrix, settings.precision
    if params_mesh is not None:  # step by step from the host: nothing is lost where one product takes long
        return Multiplier(matrix, None, mesh, on_device=False, precision=precision)
    lowered = on_cpu and "conv_general_dilated" in primitives
    on_device = not on_cpu or (mesh.size == 1 and not lowered)
    return Multiplier(replace(matrix, lowered=lowered), None, mesh, on_device, precision)


def _look(
    settings: Settings, common: Common, batch: Batch, rows: int, recipe: Recipe
) -> tuple[Multiplier, Space, int, set[str], Recipe]:
    """(multiplier, space of the vectors, bytes of the largest value per row, primitives, an entry for heads).

    All is read from a traced product.
    """
    count = _data.num_examples(batch)
    rows = min(count if settings.uncut else rows, settings.batch_size or count)
    profile, flops = _profile(settings, common, batch, rows)
    row_bytes, primitives = _state_precision(recipe, profile, settings.matrix.differences)
    by = _multiplier(settings, settings.mesh, primitives, settings.params_mesh)
    if _devices.on_cpu(settings.mesh) and flops * count > MOST_FLOPS:
        by = by._replace(on_device=False)  # nothing is gained in one program, and the progress would wait for its end
    heads: Recipe = {}
    if settings.params_mesh is None:
        size = rows if settings.uncut else _size_of_block(by, -(-rows // settings.mesh.size), row_bytes, settings)
        by, heads = held.chunk_heads(by, common, batch, size, row_bytes)
    return by, _space(settings.matrix, common.params, settings.params_mesh), row_bytes, primitives, heads


def _profile(settings: Settings, common: Common, batch: Batch, rows: int) -> tuple[rewriting.Profile, float]:
    """(profile of a product, with the bytes per row; its operations per row). The product is only traced.

    It is traced for all ``rows`` at once, or for a batch of the user's size: with many rows, the values of the examples
    are larger than the weights.
    """
    rows = min(rows, MOST_TRACED)
    by = _multiplier(settings, _devices.mesh_of(jax.local_devices()[:1]), set(), None)
    matrix = settings.matrix
    step = np.float32(1) if matrix.differences else None
    common = common._replace(data=like(batch, rows), count=np.int32(rows), step=step)
    vector = matrices.part(common.params, matrix.leaf_mask)
    sums, space = functools.partial(products.sums_step, by=by), _space(matrix, common.params, None)
    traced = (sums, common, space, Rows(np.zeros(1, np.int32), rows), vector)
    profile = rewriting.profile(*traced, device=settings.mesh.devices.flat[0])
    return profile._replace(nbytes=max(1, profile.nbytes // rows)), rewriting.flops(*traced) / rows


def _state_precision(recipe: Recipe, profile: rewriting.Profile, differences: bool) -> tuple[int, set[str]]:
    """Write the digits of the products into the recipe, and warn of half precision; (bytes per row, primitives)."""
    recipe["precision"] |= {"lowest": profile.lowest, "bits": profile.bits}
    coarse = precision.find_coarse(recipe["precision"])
    if coarse is not None and differences:
        raise Misuse(
            "product",
            f'"{steps.NAME}" given, and {coarse.who} in {coarse.name}, {profile.bits} significant bits, of which '
            f"differences of gradients keep none; it must be float32 at least: {coarse.remedy}, or leave product out",
        )
    if coarse is not None:
        own = coarse.name == profile.lowest
        digits = "two or three" if own else f"about {profile.bits * np.log10(2):.0f}"
        warn_caller(
            f"loss: {coarse.who} in {coarse.name}, {profile.bits} significant bits, and so the curvature has {digits} "
            f"digits; {coarse.remedy}{' (dtype=jnp.float32, no autocast)' if own else ''} for more"
        )
    return profile.nbytes, profile.primitives


def _blocks(by: Multiplier, rows: int, row_bytes: int, batch_size: int | None) -> list[Rows]:
    """The blocks of one device's rows: all in one ``Rows``, or for convolutions on a CPU one ``Rows`` each."""
    assert by.mesh is not None
    assert by.matrix is not None
    on_cpu = _devices.on_cpu(by.mesh)
    fit = conv_rows(row_bytes) if by.matrix.lowered else max(64, BLOCK_BYTES[on_cpu] // row_bytes)
    size = -(-rows // -(-rows // min(batch_size or fit, rows)))  # equal blocks: rows that overlap are work for nothing
    if by.matrix.lowered and not batch_size:
        size = min(rows, -(-size // 4) * 4)
    starts = np.arange(0, rows, size, dtype=np.int32)
    return [Rows(starts[i : i + 1], size) for i in range(len(starts))] if by.matrix.lowered else [Rows(starts, size)]


def conv_rows(row_bytes: int) -> int:
    """Examples per block with convolutions on a CPU, a power of 2.

    The gradient of a kernel is a convolution whose input channels are the examples. XLA's routine for it falls to a
    third of its speed with a hundred examples, and further with a number of them that 4 does not divide.
    """
    least, most = CONV_ROWS
    return min(most, max(least, 2 ** round(np.log2(CONV_BYTES / row_bytes))))


def _size_of_block(by: Multiplier, rows: int, row_bytes: int, settings: Settings) -> int:
    return _blocks(by, rows, row_bytes, settings.batch_size)[0].size


def _uncut_batches(by: Multiplier, count: int, batch_size: int | None) -> list[Rows]:
    """A block for each batch that must not be cut: all of one size in one ``Rows``, or as in ``_blocks`` one each."""
    assert by.matrix is not None
    cuts = _data.cuts(count, batch_size)
    if by.matrix.lowered:
        return [Rows(np.array([start], np.int32), size) for start, size in cuts]
    sizes = dict.fromkeys(size for _, size in cuts)
    return [Rows(np.array([start for start, n in cuts if n == size], np.int32), size) for size in sizes]


def _split(batch: Batch, mesh: Mesh) -> Batch:
    """The rows, split over the devices and padded to an equal number for each."""
    if mesh.size == 1:
        return _devices.replicate(batch, mesh)
    rows = _data.num_examples(batch)
    target = -(-rows // mesh.size) * mesh.size
    if target > rows:
        batch = _data.pad_rows(jax.tree.map(np.asarray, batch), target)
    return _devices.put(batch, NamedSharding(mesh, PartitionSpec(GRID)))


def _place_data(data: Batch, mesh: Mesh, params_mesh: Mesh | None) -> Batch:
    """The rows on the devices: split over the mesh, or sharded as the caller sharded them beside the parameters."""
    return _split(data, mesh) if params_mesh is None else sharding.keep_on_mesh(data, params_mesh, "data")
