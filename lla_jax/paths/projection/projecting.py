"""Projects paths onto lines, planes and volumes: where training went, how far from the plane, and at what loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict, Unpack, overload

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import recipes
from lla_jax.core.arguments import Misuse, check_functions, misuse
from lla_jax.core.data import Stream, as_arrays, check_extra
from lla_jax.core.interrupts import deferred_interrupts
from lla_jax.core.signatures import explained
from lla_jax.core.types import Batch, Directions, Execution, Loss, PyTree, Recipe
from lla_jax.directions import centres
from lla_jax.directions.checks import check_axes
from lla_jax.execution.progress import AskedProgress, check_on_partial, takes_progress
from lla_jax.landscape.tasks import Policy
from lla_jax.paths.curves import Curve
from lla_jax.paths.host_trees import has_floats, size_of, unstack
from lla_jax.paths.projection import checkpoint_values
from lla_jax.paths.projection.blocks import Blocks, leaves_of, runs_of
from lla_jax.paths.projection.curvatures import Asked, check_curvature
from lla_jax.paths.projection.least_squares import Frame, coordinates, frame_of
from lla_jax.paths.projection.projections import PROJECTED, Projection
from lla_jax.paths.trajectories import Trajectory, from_trees


class Options(TypedDict, total=False):
    """The keyword arguments of ``project``, for the type checkers of its overloads."""

    params: PyTree
    loss: Loss | Callable[[PyTree, Batch], Any] | None
    data: Batch | Stream
    batch_size: int | None
    batch_stats: Policy
    metrics: Mapping[str, Callable[[Any, Batch], Any]] | None
    extra_data: Mapping[str, Any] | None
    curvature: str | Sequence[str]
    curvature_every: int
    key: Any
    execution: Execution
    progress: AskedProgress
    on_partial: Callable[[Any], None] | None
    resume: Any


@overload
def project(path: Sequence[Trajectory], axes: Directions, **options: Unpack[Options]) -> list[Projection]: ...


@overload
def project(path: Any, axes: Directions, **options: Unpack[Options]) -> Projection: ...


@takes_progress("points")
@deferred_interrupts()
@explained
def project(
    path: Any,
    axes: Directions,
    *,
    params: PyTree = None,
    loss: Loss | Callable[[PyTree, Batch], Any] | None = None,
    data: Batch | Stream = None,
    batch_size: int | None = None,
    batch_stats: Policy = "frozen",
    metrics: Mapping[str, Callable[[Any, Batch], Any]] | None = None,
    extra_data: Mapping[str, Any] | None = None,
    curvature: str | Sequence[str] = (),
    curvature_every: int = 1,
    key: Any = None,
    execution: Execution = Execution(),  # noqa: B008 (frozen)
    progress: AskedProgress = None,
    on_partial: Callable[[Any], None] | None = None,
    resume: Any = None,
) -> Projection | list[Projection]:
    """Where the checkpoints of a path lie along axes, how far from them, and the losses there and at their projections.

        c_t = argmin_c |x_t - params - sum_i c_i d_i|,     distance_t = |x_t - params - sum_i c_ti d_i|
        loss_t = L(x_t),                                   projected_loss_t = L(params + sum_i c_ti d_i)

    The axes need not be orthogonal: the least squares are solved with their Gram matrix, in float64. Only where the
    distance is 0 the loss of a checkpoint is that of the plane at its coordinates.

    Args:
      path: a ``Trajectory``, a sequence of T parameter trees, a curve, or a list of trajectories, several runs on one
        plane. A curve gives "marks" in the recipe, the coordinates of its control points.
      axes: any ``Directions``, of which no two are nearly parallel.
      params: the centre of the axes, to be passed to ``lla.evaluate`` as well. Default: the last checkpoint, of several
        runs that of the first one.
      loss: a ``Loss`` or a plain ``f(params, batch) -> scalar``; None for coordinates and distances alone. Its state
        is that of the centre, as for the plane.
      data: as for ``lla.evaluate``. A stream is read once for the plane, and once for every 256 checkpoints.
      batch_size: as for ``lla.evaluate``.
      batch_stats: "frozen": each checkpoint has its own state, which the path must hold if the loss has a state of
        floats (running averages, as BatchNorm's), and the projections have the centre's, ``loss.state``; "batch" or
        "reestimate" for both, as for ``lla.evaluate``.
      metrics: as for ``lla.evaluate``.
      extra_data: as for ``lla.evaluate``.
      curvature: some of "trace", "lambda_max" and "lambda_min" of the Hessian, at the checkpoints themselves.
      curvature_every: at every how many checkpoints, from the first one on.
      key: draws the vectors of the curvature, which are the same at all checkpoints.
      execution: as for ``lla.evaluate``; the Hessian takes its devices and precision.
      progress: True for a bar, or a function called as ``progress(done, total)`` in points.
      on_partial: called with the unfinished ``Projection`` (a list for several runs; ``recipe["complete"]`` is False,
        what is missing is absent or NaN) if the call is interrupted or fails after the coordinates; the exception is
        then raised again.
      resume: what ``on_partial`` was called with, which is continued: losses agree to rounding with those of a call
        that was not interrupted, curvatures to the bit.

    Returns:
      A ``Projection``, of several runs a list of them.

    Raises:
      ValueError: other parameters than those that the axes were made for; axes that are nearly dependent; checkpoints
        of another structure, or with entries that are not finite (it is named); a path without states for a loss that
        has running averages; arguments that do not fit together.

    Warns:
      UserWarning: a state of the loss that is not that of the checkpoint at the centre; checkpoints whose loss is not
        finite; what ``lla.evaluate``, ``lla.trace`` and ``lla.eigenpairs`` warn of.

    References: Li et al. 2018, arXiv 1712.09913, section 7. Where we differ from its code: (1) the axes need not be
    orthogonal. (2) The distance off the plane and the losses of both points are given, which explain why a checkpoint's
    loss is not that of the contour under it.
    """
    check_on_partial(on_partial)
    if not isinstance(execution, Execution):
        raise misuse("execution", execution, "an lla.Execution, such as lla.Execution(devices=2)")
    check_axes("axes", axes, "lla.paths.project(path, axes)")
    runs, several = runs_of(path)
    given, params = params, runs[0][-1] if params is None else params
    centre = leaves_of(params, runs[0].like, "params")
    _check_centre(axes, params, given is None)
    asked = check_curvature(curvature, curvature_every, key, loss, batch_stats)
    _check_loss(loss, data, metrics, extra_data)
    _check_states(loss, path, runs, batch_stats)
    options = {"batch_size": batch_size, "batch_stats": batch_stats, "metrics": metrics, "extra_data": extra_data}
    frame = frame_of(axes, params, centre)
    recipe = _recipe(axes, params, loss, data, options, asked)
    seen = [_locate(run, frame, recipe) for run in runs]
    if isinstance(path, Curve):
        seen[0].recipe["marks"] = _marks(path, runs[0], frame)
    if resume is not None:
        checkpoint_values.continue_from(resume, seen, several)
    work = checkpoint_values.Work(loss, params, data, axes, options | {"execution": execution}, asked)
    try:
        checkpoint_values.fill(seen, runs, work, progress)
    except BaseException:
        if on_partial is not None:
            on_partial(seen if several else seen[0])
        raise
    for each in seen:
        each.recipe["complete"] = True
    checkpoint_values.warn_of_values(seen, runs)
    return seen if several else seen[0]


def _check_centre(axes: Directions, params: PyTree, default: bool) -> None:
    """Raise an error if the axes were made for other parameters."""
    foreign = centres.foreign_parts(axes.recipe, params, recipes.fingerprint(params), origins=True)
    if foreign:
        which = "path[-1], the default, is" if default else "the parameters given are"
        raise Misuse(
            "params",
            f"{which} not the centre that the axes were made for ({', '.join(foreign)}), and coordinates along them "
            "belong to that centre; pass the params that the axes were made with, or make the axes for these",
        )


def _check_loss(loss: Any, data: Any, metrics: Any, extra_data: Any) -> None:
    for name, value in (("data", data), ("metrics", metrics), ("extra_data", extra_data)):
        if loss is None and value is not None:
            raise Misuse(name, "given without a loss; pass loss= too, or leave it out for coordinates alone")
    if loss is not None and not isinstance(loss, Loss) and not callable(loss):
        raise misuse("loss", loss, "an lla.Loss, or a function f(params, batch) -> scalar")
    for name, value in (("metrics", check_functions("metrics", metrics)), ("extra_data", check_extra(extra_data))):
        for key in value:
            if f"{key}_".startswith(PROJECTED):
                raise Misuse(
                    name, f"entry {key!r}: names that begin with 'projected' are those of projections; rename it"
                )


def _check_states(loss: Any, path: Any, runs: Sequence[Trajectory], batch_stats: str) -> None:
    """Raise an error if running averages would be those of another checkpoint."""
    if batch_stats != "frozen" or not isinstance(loss, Loss) or not has_floats(loss.state):
        return
    if any(isinstance(each, Curve) for each in (path if isinstance(path, list | tuple) else [path])):
        raise Misuse(
            "batch_stats",
            "'frozen' given for a curve, along which running averages are known at its ends alone; pass "
            "batch_stats='reestimate' or 'batch'",
        )
    lacking = [i for i, run in enumerate(runs) if not run.has_states]
    if lacking:
        raise Misuse(
            "path" if len(runs) == 1 else f"path[{lacking[0]}]",
            "holds no states, and the loss has running averages, which belong to one checkpoint: with those of "
            "loss.state the losses of the others would be wrong. Record states, track(params, step, state=...), make "
            "lla.paths.given(trees, states=[...]), or pass batch_stats='reestimate' or 'batch'",
        )


def _recipe(axes: Directions, params: PyTree, loss: Any, data: Any, options: Mapping[str, Any], asked: Asked) -> Recipe:
    recipe = Recipe(
        kind="projection",
        rule="add",
        directions=dict(axes.recipe) | {"contents": recipes.fingerprint(axes.tree)},
        params={"fingerprint": recipes.fingerprint(params), "size": size_of(params)},
        rounding=_rounding(params),
        versions=recipes.versions(),
        complete=False,
    )
    if loss is not None:
        recipe |= {
            "batch_stats": options["batch_stats"],
            "batch_size": options["batch_size"],
            "state": recipes.fingerprint(loss.state if isinstance(loss, Loss) else None),
            "metrics": sorted(options["metrics"] or {}),
            "data": _describe(data),
            "extra_data": {name: _describe(each) for name, each in (options["extra_data"] or {}).items()},
        }
    if asked.names:
        names, key = list(asked.names), recipes.fingerprint(asked.key)
        recipe["curvature"] = {"names": names, "every": asked.every, "matrix": "hessian", "key": key}
    return recipe


def _rounding(params: PyTree) -> float:
    """How far rounding to their types can move parameters: a checkpoint within it may well lie on the plane."""
    leaves = [x for x in map(jnp.asarray, jax.tree.leaves(params)) if jnp.issubdtype(x.dtype, jnp.floating)]
    moved = [float(jnp.finfo(x.dtype).eps) / 2 * float(np.linalg.norm(np.asarray(x, np.float64))) for x in leaves]
    return float(np.linalg.norm(moved))


def _describe(data: Any) -> dict[str, Any]:
    return recipes.describe(data if isinstance(data, Stream) else as_arrays(data))


def _locate(run: Trajectory, frame: Frame, recipe: Recipe) -> Projection:
    """The coordinates and distances of a run, without losses."""
    coords, distance = coordinates(frame, Blocks([run]))
    recipe = Recipe(recipe, path=dict(run.recipe))
    return Projection(coords, distance, run.steps, run.names, run.losses, {}, {}, {}, {}, recipe)


def _marks(curve: Curve, run: Trajectory, frame: Frame) -> list[Any]:
    """[name, coordinates] of each control point of a curve."""
    trees = unstack(curve.points)
    names = ["A", *[f"P{k}" for k in range(1, len(trees) - 1)], "B"]
    coords, _ = coordinates(frame, Blocks([replace(from_trees(trees, "path"), like=run.like)]))
    return [[name, at.tolist()] for name, at in zip(names, coords, strict=True)]
