"""How a curvature operator is put together: where the data lie, in which blocks, and whether primal values are kept."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple, TypedDict

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from lla_jax.core import data as _data
from lla_jax.core import losses, recipes
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse
from lla_jax.core.data import Stream
from lla_jax.core.types import Batch, Execution, Loss, PyTree, Recipe, Select
from lla_jax.curvature import matrices, products
from lla_jax.curvature.linear_operator import HostOperator, LinearOperator, describe_params
from lla_jax.curvature.matrices import Matrix
from lla_jax.curvature.products import Common, Multiplier, Rows
from lla_jax.curvature.space import Space
from lla_jax.execution import devices as _devices
from lla_jax.execution import plans, rewriting, sharding
from lla_jax.execution import processes as _processes
from lla_jax.execution.devices import GRID

log = logging.getLogger("lla_jax")

CONV_ROWS = 128  # examples per block: beyond, convolutions spill the caches of a CPU
BLOCK_BYTES = {True: 2**22, False: 2**30}  # largest intermediate value of a block, on a CPU or not
MOST_TRACED = 2**16  # rows; beyond, a count of their entries might not fit an int32
KEPT_SHARE = 0.25  # of the free memory that primal values may take
UNSTEADY = 1e-5  # relative difference between two runs that rounding does not explain
CALLBACKS = {"pure_callback", "io_callback"}  # all that can make a jax function differ from run to run


def operator(
    matrix: Matrix,
    loss: Loss | Callable[[PyTree, Any], Any],
    params: PyTree,
    data: Any,
    options: Options,
    key: Any = None,
) -> LinearOperator | HostOperator:
    """The operator of a matrix over data in memory or a stream; see ``operators.hessian`` and ``fisher``."""
    batch_size, execution = options["batch_size"], options["execution"]
    if batch_size is not None:
        _data.check_batch_size(batch_size)
    plans.check_for_operator(execution)
    if matrix.train and not isinstance(loss, Loss):
        raise Misuse("batch_stats", "'batch' needs a model whose normalization layers are visible, not a function")
    loss = losses.as_loss(loss)
    together = execution.processes == "all" and jax.process_count() > 1
    whole = matrix.train or not loss.per_example
    model = sharding.mesh_of(params)
    mesh = _mesh(execution, whole) if model is None else _model_mesh(model, execution, together)
    recipe = _recipe(matrix, loss, params, data, batch_size if whole else None, options["select"])
    key = jax.random.key(0) if key is None else key
    first = _among(recipe, data, key, matrix) if together else 0
    loss, params, key = _placed((loss, params, key), mesh, model, "loss, params")
    common = Common(loss, params, None, np.int32(0), np.int32(first), key)
    settings = Settings(matrix, mesh, model, whole, batch_size, options["allow_nondeterministic"], together)
    if not isinstance(data, Stream):
        found = _in_memory(settings, common, data, recipe, execution.linearize)
        return _over_processes(found, _plan_together(recipe)) if together else found
    if execution.linearize and execution.linearize != "auto":
        raise ValueError(
            "execution.linearize: True given, which needs the data in memory, and a stream is read anew for every "
            'product; leave it out, or use "auto" or False'
        )
    return _streamed(settings, common, data, recipe)


class Options(TypedDict, total=False):
    """The options that ``hessian``, ``ggn`` and ``fisher`` share; ``hessian`` explains them."""

    batch_size: int | None
    select: Select | None
    batch_stats: str
    execution: Execution
    allow_nondeterministic: bool


DEFAULTS = Options(
    batch_size=None, select=None, batch_stats="frozen", execution=Execution(), allow_nondeterministic=False
)


class Settings(NamedTuple):
    """What both kinds of data need to know."""

    matrix: Matrix
    mesh: Mesh  # over which the rows are split
    model: Mesh | None  # over which the parameters are spread, if they are
    whole: bool  # batches must not be cut
    batch_size: int | None
    allow_nondeterministic: bool
    together: bool  # with the other processes


def _mesh(execution: Execution, whole: bool) -> Mesh:
    devices, chosen = execution.devices, _devices.devices_of(execution)
    if devices == "all" and chosen[0].platform == "cpu":  # one has all cores
        return _devices.mesh_of(chosen[:1])
    if not whole:
        return _devices.mesh_of(chosen)
    if devices != "all" and len(chosen) > 1:
        raise Misuse(
            "execution.devices",
            f"{devices!r} given, but batch statistics or a batch-coupled loss need whole batches, which are not split "
            "over devices; the rule is 1 then, or leave it out",
        )
    return _devices.mesh_of(chosen[:1])


def _model_mesh(model: Mesh, execution: Execution, together: bool) -> Mesh:
    """For rows that are split by nobody but the user and the compiler."""
    if execution.devices != "all":
        raise Misuse(
            "execution.devices",
            f"{execution.devices!r} given, but the parameters are spread over {model.size} devices, which do the work; "
            'leave it out, or use "all"',
        )
    if together:
        raise ValueError(
            "params: are spread over devices, and there are several processes, which is not supported together; the "
            'rule is a copy of the parameters in every process, or execution=lla.Execution(processes="own")'
        )
    return _devices.mesh_of([model.devices.flat[0]])


def _placed(tree: PyTree, mesh: Mesh, model: Mesh | None, name: str) -> PyTree:
    return _devices.replicate(tree, mesh) if model is None else sharding.kept(tree, model, name)


def _among(recipe: Recipe, data: Any, key: Any, matrix: Matrix) -> int:
    """The number of this process's first row; the recipe's data are those of all, the rest is the same in all."""
    same = {name: json.dumps(x, sort_keys=True, default=repr) for name, x in recipe.items() if name != "data"}
    drawn = {"samples": str(matrix.samples), "key": recipes.fingerprint(key)}
    _processes.agree(**same, kind_of_data=str(recipe["data"]["kind"]), **drawn)
    recipe["data"] = recipe["data"] | {"processes": jax.process_count()}
    if isinstance(data, Stream):  # its length is known only by reading it
        return _processes.cut(sum(_data.num_examples(batch) for batch in data))[0]
    first, count = _processes.cut(recipe["data"]["examples"])
    recipe["data"] |= {"examples": count, "fingerprint": _processes.combined(recipe["data"]["fingerprint"])}
    return first


def _plan_together(recipe: Recipe) -> Recipe:
    """The recipe of one process's operator as that of all."""
    plan = recipe["plan"]
    text = f"{plan['text']}, in each of {jax.process_count()} processes"
    return recipe | {"plan": plan | {"on_device": False, "text": text}}


def _over_processes(own: LinearOperator, recipe: Recipe) -> HostOperator:
    """The mean over the rows of all processes, from the sums of each."""
    by, space, common = own.multiplier, own.space, own.common

    def call(v: PyTree) -> PyTree:
        total = _exchanged(by, v, products.gathered(by, products.total(by, common, space, own.blocks, v)))
        return products.finish_step(common, space, v, total, by=by)

    def around(params: PyTree, recipe: Recipe) -> HostOperator:
        assert own.around is not None
        return _over_processes(own.around(params, recipe), recipe)

    driven = by._replace(on_device=False)
    return HostOperator(driven, space, call, common.params, recipe=recipe, around=around, together=True)


def _exchanged(by: Multiplier, v: PyTree, total: Any) -> Any:
    """The sums of all processes in place of this one's."""
    assert by.mesh is not None
    found = _processes.total_of(v, products.over_devices(by, total))
    found = found if by.mesh.size == 1 else jax.tree.map(lambda x: x[None], found)
    return _devices.replicate(found, by.mesh)


def _recipe(matrix: Matrix, loss: Loss, params: PyTree, data: Any, batch_size: int | None, select: Any) -> Recipe:
    leaves = jax.tree.leaves(params)
    spread = any(map(sharding.spread, leaves))
    return {
        "kind": matrix.kind,
        "params": describe_params(params),
        "state": recipes.fingerprint(sharding.viewed(loss.state)),
        "noise": recipes.fingerprint(loss.key),
        "data": recipes.describe(data if isinstance(data, Stream) else sharding.viewed(_data.as_arrays(data))),
        **({"draw": "per leaf"} if spread else {}),
        "batch_size": batch_size,
        "batch_stats": "batch" if matrix.train else "frozen",
        "select": None if select is None else _tree.describe(select, params, matrix.chosen),
        "precision": {"params": sorted({str(x.dtype) for x in leaves})},
    }


def _space(matrix: Matrix, params: PyTree, model: Mesh | None) -> Space:
    leaves, treedef = jax.tree.flatten(matrices.part(params, matrix.chosen))
    shapes = tuple((tuple(x.shape), jnp.promote_types(x.dtype, jnp.float32)) for x in leaves)
    return Space(treedef, shapes, None if model is None else tuple(sharding.of(x, model) for x in leaves))


def _multiplier(matrix: Matrix, mesh: Mesh, primitives: set[str], model: Mesh | None) -> Multiplier:
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    if model is not None:  # step by step from the host: nothing is lost where one product takes long
        return Multiplier(matrix, None, mesh, on_device=False)
    lowered = on_cpu and "conv_general_dilated" in primitives
    on_device = not on_cpu or (mesh.size == 1 and not lowered)
    return Multiplier(replace(matrix, lowered=lowered), None, mesh, on_device)


def _profile(matrix: Matrix, common: Common, batch: Batch, rows: int) -> tuple[int, set[str]]:
    """(bytes of the largest intermediate value per row, primitives) of a product over ``rows``; traced, not run.

    All rows at once, so that the values of the examples are larger than the weights where there are many.
    """
    rows = min(rows, MOST_TRACED)
    by = _multiplier(matrix, _devices.mesh_of(jax.local_devices()[:1]), set(), None)
    typed = jax.dtypes.canonicalize_dtype
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), typed(x.dtype)), batch)
    common = common._replace(data=like, count=np.int32(rows))
    vector = matrices.part(common.params, matrix.chosen)
    step, space = functools.partial(products.sums_step, by=by), _space(matrix, common.params, None)
    nbytes, primitives = rewriting.profile(step, common, space, Rows(np.zeros(1, np.int32), rows), vector)
    return max(1, nbytes // rows), primitives


def _blocks(by: Multiplier, rows: int, row_bytes: int, batch_size: int | None) -> list[Rows]:
    """Blocks of one device's rows: one loop on the device, or convolutions one after another from the host."""
    assert by.mesh is not None
    assert by.matrix is not None
    on_cpu = by.mesh.devices.flat[0].platform == "cpu"
    size = batch_size or (CONV_ROWS if by.matrix.lowered else max(64, BLOCK_BYTES[on_cpu] // row_bytes))
    size = -(-rows // -(-rows // min(size, rows)))  # equal blocks: rows that overlap are work for nothing
    starts = np.arange(0, rows, size, dtype=np.int32)
    return [Rows(starts[i : i + 1], size) for i in range(len(starts))] if by.matrix.lowered else [Rows(starts, size)]


def _whole_batches(by: Multiplier, count: int, batch_size: int | None) -> list[Rows]:
    """The same for batches that must stay as they are: one loop for all of one size."""
    assert by.matrix is not None
    cuts = _data.cuts(count, batch_size)
    if by.matrix.lowered:
        return [Rows(np.array([start], np.int32), size) for start, size in cuts]
    sizes = dict.fromkeys(size for _, size in cuts)
    return [Rows(np.array([start for start, n in cuts if n == size], np.int32), size) for size in sizes]


def _split(batch: Batch, mesh: Mesh) -> Batch:
    """The rows over the devices, padded to an equal number for each."""
    if mesh.size == 1:
        return _devices.replicate(batch, mesh)
    rows = _data.num_examples(batch)
    target = -(-rows // mesh.size) * mesh.size
    if target > rows:
        batch = _data.pad_rows(jax.tree.map(np.asarray, batch), target)
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec(GRID)))


def _place_data(data: Batch, mesh: Mesh, model: Mesh | None) -> Batch:
    """The rows on the devices, as the caller holds them."""
    return _split(data, mesh) if model is None else sharding.kept(data, model, "data")


def _in_memory(
    settings: Settings, common: Common, data: Batch, recipe: Recipe, linearize: bool | str
) -> LinearOperator:
    matrix, mesh, model, whole, batch_size, allow_nondeterministic, _ = settings
    data = _data.as_arrays(data)
    count = _data.num_examples(data)
    rows = -(-count // mesh.size)
    row_bytes, primitives = _profile(matrix, common, data, _data.cuts(count, batch_size)[0][1] if whole else rows)
    by, space = _multiplier(matrix, mesh, primitives, model), _space(matrix, common.params, model)
    if model is not None and not whole and any(map(sharding.spread, jax.tree.leaves(data))):
        batch_size = batch_size or rows  # a part of rows that are spread would have to be brought together
    blocks = _whole_batches(by, count, batch_size) if whole else _blocks(by, rows, row_bytes, batch_size)
    place = functools.partial(_place_data, data, mesh, model)
    common = common._replace(data=place(), count=np.int32(count))
    if primitives & CALLBACKS and not allow_nondeterministic:
        _check_deterministic(by, space, common, blocks[0])
    if model is not None and linearize == "auto":
        keep, nbytes, said = False, 0, "computed at every product"  # kept, the compiler might gather them
    else:
        keep, nbytes, said = _keep(by, common, blocks, linearize)
    many = sum(len(block.starts) for block in blocks)
    cut = f"{many * mesh.size:,} block" + "s" * (many * mesh.size > 1)
    spread = "" if model is None else f", parameters spread over {model.size} devices"
    recipe["plan"] = {
        "blocks": many, "rows": blocks[0].size, "devices": (model or mesh).size, "linearized": keep, "bytes": nbytes,
        "on_device": by.on_device, "text": f"{count:,} examples in {cut}, primal values {said}{spread}",
    }  # fmt: skip
    log.info("%s: %s", recipe["kind"], recipe["plan"]["text"])
    make = _linearized if keep else _recomputed
    shared = common._replace(params=None)
    return make(by, space, shared, tuple(blocks), place, common.params, recipe)


# Neither is a closure, of which one that holds itself would free no data.


def _recomputed(
    by: Multiplier, space: Space, shared: Common, blocks: tuple[Rows, ...], place: Any, params: PyTree, recipe: Recipe
) -> LinearOperator:
    """The operator around these parameters, its primal values computed at every product."""
    around = functools.partial(_recomputed, by, space, shared, blocks, place)
    return LinearOperator(by, space, shared._replace(params=params), blocks, recipe=recipe, around=around)


def _linearized(
    by: Multiplier, space: Space, shared: Common, blocks: tuple[Rows, ...], place: Any, params: PyTree, recipe: Recipe
) -> LinearOperator:
    """The operator around these parameters, its primal values computed now and kept; of the data nothing stays."""
    without = shared._replace(data=None)
    around = functools.partial(_linearized, by, space, without, blocks, place)
    common = shared._replace(params=params, data=place() if shared.data is None else shared.data)
    maps = tuple(products.linearize(common, block.starts, by=by, size=block.size) for block in blocks)
    return LinearOperator(by, space, without._replace(params=params), maps, recipe=recipe, around=around)


def _keep(by: Multiplier, common: Common, blocks: list[Rows], linearize: bool | str) -> tuple[bool, int, str]:
    """(whether primal values are kept, bytes they take, the same in words)."""
    if not linearize:
        return False, 0, "computed at every product"
    assert by.mesh is not None
    device, nbytes = by.mesh.devices.flat[0], _kept_bytes(by, common, blocks)
    free = _devices.free_bytes(device) * (1 if device.platform == "cpu" else by.mesh.size)
    if linearize != "auto" or nbytes <= KEPT_SHARE * free:
        return True, nbytes, f"kept ({_size(nbytes)})"
    return False, 0, f"computed at every product (kept, they would take {_size(nbytes)} of {_size(free)} that are free)"


def _kept_bytes(by: Multiplier, common: Common, blocks: list[Rows]) -> int:
    """Bytes that the primal values of all blocks take, by their shapes."""
    sizes = {
        (block.size, len(block.starts)): products.linearize.eval_shape(common, block.starts, by=by, size=block.size)
        for block in blocks[:1] + blocks[-1:]
    }

    def nbytes(block: Rows) -> int:
        found = sizes.get((block.size, len(block.starts)), next(iter(sizes.values())))
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(found))

    return sum(map(nbytes, blocks))


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**30:.1f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.1f} MiB"


def _check_deterministic(by: Multiplier, space: Space, common: Common, block: Rows) -> None:
    ones = jax.tree.map(jnp.ones_like, matrices.part(common.params, by.matrix.chosen))  # type: ignore
    runs = [products.sums_step(common, space, block, ones, by=by) for _ in range(2)]
    numbers = [np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(r)]) for r in runs]
    difference = _difference(*numbers)
    if difference > UNSTEADY:
        raise ValueError(
            f"loss: two runs on the same batch differ by {difference:.1e} relative; the rule is at most {UNSTEADY}, as "
            "the curvature of a loss that changes from run to run has no meaning. Remove the callback that draws noise "
            "and pass a key to the Loss, or set allow_nondeterministic=True"
        )


def _difference(one: np.ndarray, two: np.ndarray) -> float:
    """Largest difference relative to the largest entry; inf where one is finite and the other is not."""
    known = np.isfinite(one)
    if not np.array_equal(one[~known], two[~known], equal_nan=True):
        return np.inf
    largest = np.abs(one[known]).max(initial=np.finfo(np.float32).tiny)
    return float(np.nan_to_num(np.abs(one[known] - two[known]) / largest, nan=np.inf).max(initial=0))


def _streamed(settings: Settings, common: Common, data: Stream, recipe: Recipe) -> HostOperator:
    matrix, mesh, model, whole, batch_size, _, together = settings
    first = next(iter(data))
    count = _data.num_examples(first)
    row_bytes, primitives = _profile(matrix, common, first, _data.cuts(count, batch_size)[0][1] if whole else count)
    by, space = _multiplier(matrix, mesh, primitives, model), _space(matrix, common.params, model)
    text = "streamed, one reading per product"
    recipe["plan"] = {
        "devices": (model or mesh).size, "linearized": False, "bytes": 0, "on_device": False,
        "text": f"{text}, in each of {jax.process_count()} processes" if together else text,
    }  # fmt: skip
    return _reading(settings, by, space, row_bytes, data, common._replace(params=None), common.params, recipe)


def _reading(
    settings: Settings,
    by: Multiplier,
    space: Space,
    row_bytes: int,
    data: Stream,
    shared: Common,
    params: PyTree,
    recipe: Recipe,
) -> HostOperator:
    """The operator around these parameters, whose products read the stream."""
    _, mesh, model, whole, batch_size, allow_nondeterministic, together = settings
    common = shared._replace(params=params)
    values: list[np.ndarray] = []  # the mean loss of the first pass

    def place(piece: Batch, mesh: Mesh) -> Batch:
        return _split(piece, mesh) if model is None else sharding.kept(piece, model, "data")

    def call(v: PyTree) -> PyTree:
        total: Any = None
        for piece, count, offset in _devices.device_batches(data, mesh, whole, place=place):
            rows = _data.num_examples(piece) // mesh.size
            here = common._replace(data=piece, count=np.int32(count), offset=common.offset + np.int32(offset))
            blocks = _whole_batches(by, count, batch_size) if whole else _blocks(by, rows, row_bytes, batch_size)
            for block in blocks:
                found = products.sums_step(here, space, block, v, by=by)
                total = found if total is None else products.plus_step(total, found)
                if model is not None:
                    total = sharding.settled(total)
        total = products.gathered(by, total)
        total = _exchanged(by, v, total) if together else total
        if not allow_nondeterministic:
            _check_same_pass(values, products.over_devices(by, total[1]))
        found = products.finish_step(common, space, v, total, by=by)
        return space.settle(found)

    around = functools.partial(_reading, settings, by, space, row_bytes, data, shared)
    driven = by._replace(on_device=False)
    return HostOperator(driven, space, call, params, recipe=recipe, around=around, together=together)


def _check_same_pass(values: list[np.ndarray], sums: Any) -> None:
    weight, value = (np.asarray(x, np.float64) for x in sums)
    with np.errstate(invalid="ignore", divide="ignore"):  # no weight at all
        values.append(np.array([value / weight]))
    first, now = values[0], values[-1]
    del values[1:]
    if _difference(first, now) > UNSTEADY:
        raise ValueError(
            f"data: two readings of the stream give the mean losses {first[0]:.8g} and {now[0]:.8g}; the rule is the "
            "same examples each time. Turn off augmentation and dropping of batches, or set allow_nondeterministic=True"
        )
