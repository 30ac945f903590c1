"""Assembles a curvature operator: checks, places and describes what the user gave, for ``blocks`` to add up."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypedDict

import jax
import numpy as np
from jax.sharding import Mesh

from lla_jax.core import called, counts, examples, losses, operands, precision, recipes
from lla_jax.core import data as _data
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse
from lla_jax.core.copies import own
from lla_jax.core.data import Stream
from lla_jax.core.passes import Passes
from lla_jax.core.rows import Model, like, spread, takes, trace
from lla_jax.core.types import Batch, Execution, Loss, PyTree, Recipe, Select
from lla_jax.core.wholes import Whole
from lla_jax.curvature import blocks, criteria, sampling
from lla_jax.curvature.blocks import Settings
from lla_jax.curvature.likelihoods import Likelihood
from lla_jax.curvature.linear_operator import HostOperator, LinearOperator, describe_params
from lla_jax.curvature.matrices import Matrix
from lla_jax.curvature.products import Common
from lla_jax.execution import devices as _devices
from lla_jax.execution import plans, sharding
from lla_jax.execution import processes as _processes

FEW_ROWS = 8  # at which a criterion is looked at


@called.differentiated()
def operator(
    matrix: Matrix,
    loss: Loss | Callable[[PyTree, Any], Any],
    params: PyTree,
    data: Any,
    options: Options,
    key: Any = None,
) -> LinearOperator | HostOperator:
    """The operator of a matrix over data in memory or a stream; ``operators.hessian`` explains data and options.

    Args:
      matrix: the description of the matrix.
      loss: a ``Loss``, or a plain ``f(params, batch) -> scalar``.
      params: theta, a tree of arrays.
      data: a data set or a stream.
      options: all of ``Options``.
      key: draws the targets of the Monte Carlo Fisher matrix; None for other matrices.
    """
    batch_size, execution = options["batch_size"], options["execution"]
    if batch_size is not None:
        _data.check_batch_size(batch_size)
    plans.check_for_operator(execution)
    if matrix.train and not isinstance(loss, Loss):
        text = "'batch' needs a model whose normalization layers are visible, not a function; leave it out, or use"
        raise Misuse(
            "batch_stats", f"{text} lla.Loss(apply, criterion, state=...) or an adapter such as lla.from_linen"
        )
    loss = losses.as_loss(loss)
    together = execution.processes == "all" and jax.process_count() > 1
    if isinstance(data, Stream) and options["allow_nondeterministic"]:
        data = replace(data, passes=Passes(equal=False))  # such as random subsets
    first = _data.first_batch(data)
    _data.check_uncut(first, batch_size)
    uncut = matrix.train or not loss.per_example or isinstance(first, Whole)
    params_mesh = sharding.mesh_of(params)
    mesh = _mesh(execution, uncut) if params_mesh is None else _mesh_beside(params_mesh, execution, together)
    data = data if isinstance(data, Stream) else own(first)
    recipe = _recipe(matrix, loss, params, data, batch_size if uncut else None, options["select"])
    if execution.precision != "highest":  # recipes of before have no such entry
        recipe["precision"] |= operands.describe(execution.precision, mesh.devices.flat[0])
    key = jax.random.key(0) if key is None else key
    offset = _agree_on_rows(recipe, data, key, matrix) if together else 0
    loss, params = own(precision.at_least_single(loss, params))
    one_device = _devices.mesh_of([mesh.devices.flat[0]])
    there = _place((loss, params), one_device, params_mesh, "loss, params")
    matrix, settled = _check(matrix, there[0], there[1], data, first, batch_size, uncut)
    recipe |= {"likelihood": str(matrix.sample)} if isinstance(matrix.sample, Likelihood) else {}
    loss = replace(loss, apply=settled.apply, criterion=settled.criterion)
    if mesh.size == 1:
        loss, params = settled, there[1]
    del there, settled  # no second copy
    loss, params, key = _place((loss, params, key), mesh, params_mesh, "loss, params")
    if isinstance(data, Stream):
        assert isinstance(loss, Loss)
        data = examples.watch(data, loss, params, train=matrix.train, most=batch_size)
    common = Common(loss, params, None, np.int32(0), np.int32(offset), key)
    allow = options["allow_nondeterministic"]
    settings = Settings(matrix, mesh, params_mesh, uncut, batch_size, allow, together, execution.precision)
    if not isinstance(data, Stream):
        return blocks.in_memory(settings, common, data, recipe, execution.linearize)
    if execution.linearize and execution.linearize != "auto":
        text = "which needs the data in memory, and a stream is read anew for every product"
        raise Misuse("execution.linearize", f'True given, {text}; leave it out, or use "auto" or False')
    return blocks.streamed(settings, common, data, first, recipe)


def _check(
    matrix: Matrix, loss: Loss, params: PyTree, data: Any, first: Batch, batch_size: int | None, uncut: bool
) -> tuple[Matrix, Loss]:
    """Check the loss on some rows; return the matrix with its sampler, and the loss with its outputs, settled.

    Args:
      matrix: the matrix; a sampler "recognise" becomes the criterion's likelihood.
      loss: the loss; a criterion without curvature is cut elsewhere, if its network offers that.
      params: the parameters.
      data: a data set or a stream.
      first: the data set, or the first batch of the stream.
      batch_size: the user's.
      uncut: whether batches must not be cut.
    """
    examples.check_first(loss, params, data, first, train=matrix.train, most=batch_size, slopes=True)
    counts.warn_of_counts(loss, params, data, batch_size)
    if matrix.kind == "fisher" and matrix.sample is None and isinstance(data, Whole):
        _check_entries(loss, params, data, matrix.train)
    if matrix.kind == "hessian" or (matrix.kind == "fisher" and matrix.sample is None):
        return matrix, loss
    count = _data.num_examples(first)
    least = min(count, batch_size or count) if uncut else FEW_ROWS
    lengths = (n for n in (least, batch_size or 0, *examples.FIXED) if least <= n < count)
    model = Model(loss, params, (), matrix.train)
    rows = next((n for n in lengths if takes(model, first, n)), count)
    if matrix.kind == "ggn":
        block = losses.block_of_rows(like(first, rows), np.arange(rows, dtype=np.int32))
        return matrix, criteria.with_curved_criterion(loss, params, block, matrix.train)
    block = losses.block_of_rows(*spread(first, rows))
    return replace(matrix, sample=sampling.settle(loss, params, block, matrix.sample, matrix.train)), loss


def _check_entries(loss: Loss, params: PyTree, data: Whole, train: bool) -> None:
    """Refuse the empirical Fisher matrix of a single loss, which is the product g g' of its gradient."""
    traced = trace(Model(loss, params, (), train), data, 1)
    if traced.out_info["loss"][0].shape == (1,):
        raise Misuse(
            "kind",
            "'empirical' given, but the loss of lla.whole(data) is one number, whose empirical Fisher matrix is the "
            "product g g' of its gradient; let the criterion return an entry for each node or point, (N,) or (losses, "
            "weights), or use lla.hessian or lla.ggn",
        )


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


def _mesh(execution: Execution, uncut: bool) -> Mesh:
    devices, available = execution.devices, _devices.devices_of(execution)
    if devices == "all" and available[0].platform == "cpu":  # one has all cores
        return _devices.mesh_of(available[:1])
    if not uncut:
        return _devices.mesh_of(available)
    if devices != "all" and len(available) > 1:
        text = "batch statistics, a batch-coupled loss or lla.whole(data) need complete batches, which are not split"
        raise Misuse("execution.devices", f"{devices!r} given, but {text}; leave it out, or use 1")
    return _devices.mesh_of(available[:1])


def _mesh_beside(params_mesh: Mesh, execution: Execution, together: bool) -> Mesh:
    """A mesh of one device: where parameters are sharded, user and compiler split the rows. Refuses other demands."""
    if execution.devices != "all":
        text = f"but the parameters are sharded over {params_mesh.size} devices, which do the work"
        raise Misuse("execution.devices", f'{execution.devices!r} given, {text}; leave it out, or use "all"')
    if together:
        raise Misuse(
            "params",
            "sharded over devices, and there are several processes, which is not supported together; give every "
            'process a copy of the parameters, or use execution=lla.Execution(processes="own")',
        )
    return _devices.mesh_of([params_mesh.devices.flat[0]])


def _place(tree: PyTree, mesh: Mesh, params_mesh: Mesh | None, name: str) -> PyTree:
    return _devices.replicate(tree, mesh) if params_mesh is None else sharding.keep_on_mesh(tree, params_mesh, name)


def _agree_on_rows(recipe: Recipe, data: Any, key: Any, matrix: Matrix) -> int:
    """Check that the processes agree, and return the number of this process's first row among the rows of all.

    The recipe is changed: its entry "data" then describes the data of all processes.

    Raises:
      ValueError: the processes differ in anything but their data.
    """
    same = {name: json.dumps(x, sort_keys=True, default=repr) for name, x in recipe.items() if name != "data"}
    drawn = {"samples": str(matrix.samples), "key": recipes.fingerprint(key)}
    _processes.agree(**same, kind_of_data=str(recipe["data"]["kind"]), **drawn)
    recipe["data"] = recipe["data"] | {"processes": jax.process_count()}
    if isinstance(data, Stream):  # its length is known only by reading it
        return _processes.locate_rows(sum(_data.num_examples(batch) for batch in data))[0]
    start, count = _processes.locate_rows(recipe["data"]["examples"])
    recipe["data"] |= {"examples": count, "fingerprint": _processes.combine_digests(recipe["data"]["fingerprint"])}
    return start


def _recipe(matrix: Matrix, loss: Loss, params: PyTree, data: Any, batch_size: int | None, select: Any) -> Recipe:
    leaves = jax.tree.leaves(params)
    sharded = any(map(sharding.is_sharded, leaves))
    return {
        "kind": matrix.kind,
        "params": describe_params(params),
        "state": recipes.fingerprint(sharding.view_on_host(loss.state)),
        "noise": recipes.fingerprint(loss.key),
        "data": recipes.describe(data if isinstance(data, Stream) else sharding.view_on_host(data)),
        **({"draw": "per leaf"} if sharded else {}),
        "batch_size": batch_size,
        "batch_stats": "batch" if matrix.train else "frozen",
        "select": None if select is None else _tree.describe(select, params, matrix.leaf_mask),
        "precision": precision.describe(loss, params),
    }
