"""Projects paths onto lines, planes and volumes: where training went, how far from the plane, and at what loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, NamedTuple, TypedDict, Unpack, overload

import jax
import numpy as np

from lla_jax.core import recipes
from lla_jax.core.arguments import Misuse, misuse, warn_caller
from lla_jax.core.data import Stream
from lla_jax.core.interrupts import deferred_interrupts
from lla_jax.core.refusals import no_array
from lla_jax.core.signatures import explained
from lla_jax.core.text import table
from lla_jax.core.types import SAVED, Batch, Directions, Execution, Loss, PyTree, Recipe
from lla_jax.directions import centres
from lla_jax.directions.checks import check_axes
from lla_jax.execution.progress import AskedProgress, Progress, check_on_partial, report_part, takes_progress
from lla_jax.landscape.means import Means
from lla_jax.landscape.tasks import Policy
from lla_jax.paths.curvatures import Asked, check_curvature, curvatures_along
from lla_jax.paths.in_plane import losses_in_plane
from lla_jax.paths.least_squares import Frame, coordinates, frame_of
from lla_jax.paths.points import has_floats, losses_at
from lla_jax.paths.reading import Blocks, is_curve, leaves_of, runs_of
from lla_jax.paths.trajectories import Trajectory, from_trees

Numbers = dict[str, np.ndarray]
PROJECTED = "projected_"  # before the names of values at projections


@explained
@no_array(
    "holds several arrays; take seen.coords, seen.distance and seen.loss, or draw it with lla.plotting.trajectory"
)
@dataclass(frozen=True, eq=False, repr=False)
class Projection:
    """A path of T checkpoints, seen along k axes through a centre.

    Args:
      coords: (T, k) float64, the coordinates of each checkpoint along the axes, in units of the directions.
      distance: (T,) float64, its distance from the line, plane or volume of the axes, in parameter space.
      steps: (T,) int64, its training step.
      names: T texts, its name in messages and pictures.
      recorded: (T,) float64, the loss that was recorded with it during training; NaN where none was.
      values: ``{name: (T,)}`` float64, the loss and the metrics of the checkpoint itself, and under "projected_NAME"
        those of its projection, the point of the plane with its coordinates; empty without a loss.
      stderr: ``{name: (T,)}``, their standard errors over the examples, where they have some.
      curvature: ``{name: (T,)}``, "trace", "lambda_max" and "lambda_min" of the Hessian, as far as they were asked for;
        NaN at checkpoints between.
      curvature_error: ``{name: (T,)}``, the standard error of the trace and the residuals of the eigenvalues.
      recipe: axes, centre, path, data and policies; JSON-able.
    """

    _meant: ClassVar[dict[str, str]] = {**SAVED, "losses": "loss", "distances": "distance", "grid": "coords"}

    coords: np.ndarray
    distance: np.ndarray
    steps: np.ndarray
    names: tuple[str, ...]
    recorded: np.ndarray
    values: Numbers
    stderr: Numbers
    curvature: Numbers
    curvature_error: Numbers
    recipe: Recipe

    def __repr__(self) -> str:
        num, dims = self.coords.shape
        most = max(map(len, self.names), default=0)
        head = ["checkpoint", "step", *[f"c{i + 1}" for i in range(dims)], "distance"]
        columns = [self.coords[:, i] for i in range(dims)] + [self.distance]
        for name, array in (("loss", self.loss), ("projected", self.projected_loss), *self.curvature.items()):
            if array is not None:
                head.append(name)
                columns.append(array)
        shown = range(num) if num <= 8 else [*range(4), *range(num - 4, num)]
        rows = [[self.names[t][:40], str(self.steps[t]), *[f"{x[t]:.4g}" for x in columns]] for t in shown]
        if num > 8:
            rows.insert(4, ["..."] + [""] * (len(head) - 1))
        if most and all(name in (str(i), f"step {step}") for i, (name, step) in enumerate(zip(self.names, self.steps))):
            head, rows = head[1:], [row[1:] if row[0] != "..." else ["...", *row[2:]] for row in rows]
        state = "" if self.recipe.get("complete", True) else ", unfinished"
        return f"Projection of {num} checkpoints on {dims} axes{state}\n" + table([head, *rows], indent=2)

    def __len__(self) -> int:
        return len(self.coords)

    @property
    def loss(self) -> np.ndarray | None:
        """(T,) the loss of each checkpoint; None where no loss was given."""
        return self.values.get("loss")

    @property
    def loss_stderr(self) -> np.ndarray | None:
        """(T,) the standard error of ``loss``; None where it has none."""
        return self.stderr.get("loss")

    @property
    def projected_loss(self) -> np.ndarray | None:
        """(T,) the loss at the coordinates of each checkpoint on the plane; None where no loss was given."""
        return self.values.get("projected_loss")

    @property
    def projected_loss_stderr(self) -> np.ndarray | None:
        """(T,) the standard error of ``projected_loss``; None where it has none."""
        return self.stderr.get("projected_loss")


class _Call(NamedTuple):
    """The arguments of ``project`` that all runs share, checked."""

    axes: Directions
    params: PyTree
    frame: Frame
    loss: Any
    data: Any
    options: dict[str, Any]
    asked: Asked
    recipe: Recipe


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
    call = _Call(axes, params, frame, loss, data, options | {"execution": execution}, asked, recipe)
    seen = [_locate(run, call) for run in runs]
    if is_curve(path):
        seen[0].recipe["marks"] = _marks(path, runs[0], frame)
    try:
        _fill(seen, runs, call, progress)
    except BaseException:
        if on_partial is not None:
            on_partial(seen if several else seen[0])
        raise
    for each in seen:
        each.recipe["complete"] = True
    _warn_of_values(seen, runs)
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
    for name, value in (("metrics", metrics), ("extra_data", extra_data)):
        for key in value if isinstance(value, Mapping) else ():
            if isinstance(key, str) and f"{key}_".startswith(PROJECTED):
                raise Misuse(
                    name, f"entry {key!r}: names that begin with 'projected' are those of projections; rename it"
                )


def _check_states(loss: Any, path: Any, runs: Sequence[Trajectory], batch_stats: str) -> None:
    """Raise an error if running averages would be those of another checkpoint."""
    if batch_stats != "frozen" or not isinstance(loss, Loss) or not has_floats(loss.state):
        return
    if any(is_curve(each) for each in (path if isinstance(path, list | tuple) else [path])):
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
    size = sum(map(np.size, jax.tree.leaves(params)))
    recipe = Recipe(
        kind="projection",
        directions=dict(axes.recipe) | {"contents": recipes.fingerprint(axes.tree)},
        params={"fingerprint": recipes.fingerprint(params), "size": size},
        versions=recipes.versions(),
        complete=False,
    )
    if loss is not None:
        recipe |= {
            "batch_stats": options["batch_stats"],
            "batch_size": options["batch_size"],
            "metrics": sorted(options["metrics"] or {}),
            "data": recipes.describe(data),
            "extra_data": {name: recipes.describe(each) for name, each in (options["extra_data"] or {}).items()},
        }
    if asked.names:
        recipe["curvature"] = {"names": list(asked.names), "every": asked.every, "matrix": "hessian"}
    return recipe


def _locate(run: Trajectory, call: _Call) -> Projection:
    """The coordinates and distances of a run, without losses."""
    coords, distance = coordinates(call.frame, Blocks([run]))
    recipe = Recipe(call.recipe, path=dict(run.recipe))
    return Projection(coords, distance, run.steps, run.names, run.losses, {}, {}, {}, {}, recipe)


def _marks(curve: Any, run: Trajectory, frame: Frame) -> list[Any]:
    """[name, coordinates] of each control point of a curve."""
    num = len(jax.tree.leaves(curve.points)[0])
    trees = [jax.tree.map(lambda x, k=k: np.asarray(x)[k], curve.points) for k in range(num)]
    names = ["A", *[f"P{k}" for k in range(1, num - 1)], "B"]
    coords, _ = coordinates(frame, Blocks([replace(from_trees(trees, "path"), like=run.like)]))
    return [[name, at.tolist()] for name, at in zip(names, coords, strict=True)]


def _fill(seen: list[Projection], runs: Sequence[Trajectory], call: _Call, progress: Progress | None) -> None:
    """Compute losses, those of the projections, and curvatures, run by run, into the dicts of the projections."""
    if call.loss is None:
        return
    picked = [range(0, len(run), call.asked.every) if call.asked.names else range(0) for run in runs]
    total = sum(2 * len(run) + len(at) for run, at in zip(runs, picked, strict=True))
    done = 0

    def part(length: int) -> Any:
        nonlocal done
        done += length
        return report_part(progress, done - length, length, total)

    _warn_of_state(seen, runs, call)
    for each, run in zip(seen, runs, strict=True):
        own, projected = partial(_put, each), partial(_put, each, prefix=PROJECTED)
        trees: Any = run
        own(losses_at(call.loss, trees, call.data, progress=part(len(run)), on_partial=own, **call.options))
        around = call.loss, call.params, call.data, call.axes, each.coords
        projected(losses_in_plane(*around, progress=part(len(run)), on_partial=projected, **call.options))
    for each, run, at in zip(seen, runs, picked, strict=True):
        if at:
            curvatures_along(
                call.loss,
                run,
                call.data,
                at,
                call.asked,
                call.options,
                (each.curvature, each.curvature_error),
                part(len(at)),
            )


def _put(seen: Projection, means: Means, prefix: str = "") -> None:
    seen.values.update({prefix + name: x for name, x in means.values.items()})
    seen.stderr.update({prefix + name: x for name, x in means.stderr.items()})


def _warn_of_state(seen: Sequence[Projection], runs: Sequence[Trajectory], call: _Call) -> None:
    """Warn if a checkpoint is the centre and has another state than the loss, which gives the plane another loss."""
    if call.options["batch_stats"] != "frozen" or not isinstance(call.loss, Loss) or not has_floats(call.loss.state):
        return
    for each, run in zip(seen, runs, strict=True):
        at = np.flatnonzero((each.distance == 0) & (each.coords == 0).all(1))
        if not at.size:
            continue
        t = int(at[-1])
        one, two = (jax.tree.leaves(state) for state in (run.state(t), call.loss.state))
        if len(one) == len(two) and not all(
            np.allclose(x, y, 1e-5, 1e-6 * np.abs(y).max(initial=0)) for x, y in _floating(one, two)
        ):
            warn_caller(
                f"loss: its state is not that of {run.names[t]}, the checkpoint at the centre, so that the plane has "
                f"another loss there than the checkpoint; pass dataclasses.replace(loss, state=path.state({t}))"
            )
            return


def _floating(one: Sequence[Any], two: Sequence[Any]) -> list[tuple[np.ndarray, np.ndarray]]:
    pairs = [(np.asarray(x, np.float64), np.asarray(y, np.float64)) for x, y in zip(one, two) if has_floats([x])]
    return [(x, y) for x, y in pairs if x.shape == y.shape]


def _warn_of_values(seen: Sequence[Projection], runs: Sequence[Trajectory]) -> None:
    for each, run in zip(seen, runs, strict=True):
        if each.loss is not None and not np.isfinite(each.loss).all():
            bad = np.flatnonzero(~np.isfinite(each.loss))
            names = ", ".join(run.names[t] for t in bad[:3]) + (" ..." if bad.size > 3 else "")
            warn_caller(f"loss: not finite at {bad.size} of {len(run)} checkpoints ({names})")
