"""Evaluates the loss on a grid of points around a network, a line, a plane or a volume: ``evaluate``.

The parameters of a point are always computed from the centre, ``rule(params, directions, coord)``, never from the point
before, so that no error accumulates. A pure function for use under ``jax.jit`` is ``kernels.losses``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypedDict, Unpack, overload

from lla_jax.core.arguments import Misuse, misuse
from lla_jax.core.data import Stream
from lla_jax.core.interrupts import deferred_interrupts
from lla_jax.core.results import Landscape
from lla_jax.core.signatures import explained
from lla_jax.core.types import Batch, Directions, Execution, Loss, PyTree, UpdateRule
from lla_jax.directions import centres
from lla_jax.directions.checks import check_axes
from lla_jax.execution.progress import AskedProgress, check_on_partial, takes_progress
from lla_jax.landscape import grids, jobs, refined, rules, sweeps
from lla_jax.landscape.refinement import Refine
from lla_jax.landscape.store import folders, writing
from lla_jax.landscape.tasks import Policy, Task


class Options(TypedDict, total=False):
    """The keyword arguments of ``evaluate``, for the type checkers of its two overloads."""

    batch_size: int | None
    rule: str | UpdateRule
    batch_stats: Policy
    metrics: Mapping[str, Callable[[Any, Batch], Any]] | None
    point_metrics: Mapping[str, Callable[[PyTree, Any], Any]] | None
    extra_data: Mapping[str, Any] | None
    key: Any
    execution: Execution
    progress: AskedProgress
    on_partial: Callable[[Landscape], None] | None
    resume: Landscape | None
    store: str | os.PathLike[str] | None
    shard: tuple[int, int] | None
    refine: Refine | None


@overload
def evaluate(
    loss: Loss | Callable[[PyTree, Batch], Any],
    params: PyTree,
    data: Batch | Stream,
    directions: Directions,
    grid: Sequence[Any],
    **options: Unpack[Options],
) -> Landscape: ...


@overload
def evaluate(
    loss: Loss | Callable[[PyTree, Batch], Any],
    params: PyTree,
    data: Batch | Stream,
    directions: Sequence[Directions],
    grid: Sequence[Any],
    **options: Unpack[Options],
) -> list[Landscape]: ...


@takes_progress("points")
@deferred_interrupts()
@explained
def evaluate(
    loss: Loss | Callable[[PyTree, Batch], Any],
    params: PyTree,
    data: Batch | Stream,
    directions: Directions | Sequence[Directions],
    grid: Sequence[Any],
    *,
    batch_size: int | None = None,
    rule: str | UpdateRule = "add",
    batch_stats: Policy = "frozen",
    metrics: Mapping[str, Callable[[Any, Batch], Any]] | None = None,
    point_metrics: Mapping[str, Callable[[PyTree, Any], Any]] | None = None,
    extra_data: Mapping[str, Any] | None = None,
    key: Any = None,
    execution: Execution = Execution(),  # noqa: B008 (frozen)
    progress: AskedProgress = None,
    on_partial: Callable[[Landscape], None] | None = None,
    resume: Landscape | None = None,
    store: str | os.PathLike[str] | None = None,
    shard: tuple[int, int] | None = None,
    refine: Refine | None = None,
) -> Landscape | list[Landscape]:
    """Compute a landscape: loss and metrics, averaged over all examples, at every point of a grid.

        values[i, j] = L(rule(params, directions, (coords[0][i], coords[1][j])))

    Args:
      loss: a ``Loss``, or a plain ``f(params, batch) -> scalar`` (the mean over batches weighted by size; no standard
        error).
      params: the centre, a pytree of finite floating arrays.
      data: one data set, an array pytree with leading axis N; ``lla.whole(data)`` of one example that is never cut, or
        None for a loss without data; or ``lla.stream(loader)``. Without a store a stream is
        read once per landscape (with re-estimated statistics twice, or more often if the statistics of all points take
        over 256 MiB); with a store, as often for each chunk. Its first batch is also read once more at the start.
      directions: the axes, one per grid dimension; a list of them gives a list of landscapes with one compilation.
      grid: one 1-D array of coordinates per axis, e.g. ``lla.grid()``.
      batch_size: examples per batch. Where batches matter (``batch_stats`` other than "frozen", ``per_example=False``)
        it is part of the result; otherwise an upper bound on the block that is held at a time. Default: all examples.
      rule: "add", "adam" or any ``(params, directions, coord) -> params``.
      batch_stats: normalization statistics at a point: "frozen" as trained, "batch" of each batch, or "reestimate": the
        mean over the batches of the statistics at that point, then used as frozen ones.
      metrics: ``{name: f(outputs, batch) -> (B,)}`` (or values and weights), averaged as the loss is, in the same pass.
      point_metrics: ``{name: f(params, key) -> scalar}``; the key is common to all points.
      extra_data: ``{name: data}``, further data sets; their values are called ``name_loss`` and ``name_<metric>``.
      key: for ``point_metrics``; default ``jax.random.key(0)``.
      execution: chunks, blocks and devices; fields that are "auto" are chosen by timing the first chunk.
      progress: True for a bar, or a function called as ``progress(done, total)`` in points after every chunk;
        ``total`` is None while unknown (streams without a length).
      on_partial: called with the unfinished landscape (cells without a value NaN, ``recipe["complete"]`` False) if the
        call is interrupted or fails after its first values; the exception is then re-raised.
      resume: an unfinished landscape of the same recipe, which is continued; without a store, and for one landscape.
      store: a folder that keeps finished chunks of points, and survives any interruption (``kill -9`` too): a second
        call continues, or returns the finished landscape. Several processes may write to one store at once. A wider or
        denser grid reuses the points that the store has. A list of directions gets a store for each in the folders
        000, 001, ... See ``docs/scaling.md``.
      shard: (i, n) for the i-th of n processes that write to one store, with i from 1 to n. This call computes every
        n-th chunk; points of other processes are NaN, and ``recipe["complete"]`` is False, until they are written. When
        all processes are done, ``lla.runs.merge(store)`` gives the landscape.
      refine: ``lla.refine(rtol=0.01)`` to evaluate only as many points of the grid as the surface needs, and to
        interpolate the others: in rounds, until the error of the loss at points that were held out is below ``rtol``
        of the range of its picture. A stream is read once per round. See ``docs/scaling.md``.

    Returns:
      A ``Landscape``, or a list of them for a list of directions. Values in float64, whatever the network's precision.
      With ``refine``, ``evaluated`` says which points were evaluated, and ``recipe["refinement"]`` the error of others.

    Raises:
      ValueError: arguments that do not fit together, naming the argument; a loss that is finite at no point; a store
        that holds a landscape of another recipe, saying what differs; ``refine`` with a shard, or with an ``rtol``
        below the rounding of the network.
      OSError: a store that cannot be written or a disk that is full; finished chunks are kept.

    Warns:
      UserWarning: axes that were normalized to other parameters, or are the gradient, moments or eigenvectors of
        others; non-finite cells (their fraction), a loss that is not deterministic, damaged chunks of a store,
        and a manifest or grid of it that was missing or damaged and is restored; ``refine`` with a loss that is not
        deterministic, or an error that stays above its ``rtol``.

    Example:
      >>> axes = lla.directions.normalize(lla.directions.random(jax.random.key(0), params), params)
      >>> plane = lla.evaluate(loss, params, (x, y), axes, lla.grid(extent=1.0, points=41))
      >>> lla.plotting.surface(plane).savefig("plane.png")

    References: Li et al. 2018, arXiv 1712.09913, equation 1; Gabdullin 2024, arXiv 2412.10146.

    Where we differ from the reference implementations: (1) each point is computed from the centre, not walked in place,
    so that no rounding or shift accumulates. (2) The loss is the mean over all examples with its standard error, not
    the mean over one minibatch. (3) The network is in evaluation mode unless asked otherwise, and nothing of the user's
    is changed.
    """
    check_on_partial(on_partial)
    coords = grids.check_grid(grid)
    task = Task(
        loss,
        data,
        rules.check_rule(rule, coords),
        batch_size=batch_size,
        batch_stats=batch_stats,
        metrics=metrics,
        point_metrics=point_metrics,
        extra_data=extra_data,
        key=key,
        execution=execution,
    )
    if not isinstance(directions, Directions):
        _check_list(directions, len(coords))
    job = jobs.prepare(task, params, coords)
    named = {"directions": directions} if isinstance(directions, Directions) else _name_each(directions)
    for name, axes in named.items():
        centres.warn_of_others(name, axes.recipe, params, job.recipe["params"]["fingerprint"])
    if resume is not None and (store is not None or not isinstance(directions, Directions)):
        raise Misuse("resume", "continues one landscape held in memory; leave store out, and pass one Directions")
    shard = writing.check_shard(shard, store)
    refine = refined.check_refine(refine, shard)
    if refine is not None:
        refined.check_resolved(refine, job)
    folder = None if store is None else folders.store_folder(store)
    if isinstance(directions, Directions):
        job = jobs.set_axes(job, directions)
        return sweeps.compute_one(job, folder, progress, on_partial, shard, resume=resume, refine=refine)
    each = ((jobs.set_axes(job, axes), folder and folder / f"{i:03d}") for i, axes in enumerate(directions))
    return list(sweeps.compute_each(each, len(directions), progress, on_partial, shard, refine=refine))


def _name_each(directions: Sequence[Directions]) -> dict[str, Directions]:
    return {f"directions[{i}]": axes for i, axes in enumerate(directions)}


def _check_list(directions: Any, dims: int) -> None:
    """Raise an error unless ``directions`` is a list of ``Directions``, each for a landscape of ``dims`` axes."""
    if not isinstance(directions, Sequence) or isinstance(directions, str) or not directions:
        raise misuse(
            "directions",
            directions,
            "lla.Directions (from lla.directions.random, .given, ...) or a list with at least one of them; of trees "
            "make them, lla.directions.given(*trees)",
        )
    for i, each in enumerate(directions):
        check_axes(f"directions[{i}]", each, "[axes, others], a landscape for each")
    if len(directions) == dims > 1 and all(each.num == 1 for each in directions):
        raise Misuse(
            "directions",
            f"a list of {dims} single directions given for a grid of {dims} axes; a list gives a landscape for each "
            "entry: for one landscape join them, lla.directions.join(*directions)",
        )
