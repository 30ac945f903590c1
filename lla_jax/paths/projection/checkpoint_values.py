"""Fills projections with the losses and curvatures of their checkpoints, and continues those that were interrupted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lla_jax.core import recipes
from lla_jax.core.arguments import Misuse, misuse, warn_caller
from lla_jax.core.types import Directions, Loss, PyTree
from lla_jax.execution.progress import Progress, report_part
from lla_jax.landscape.means import Means
from lla_jax.paths.host_trees import has_floats
from lla_jax.paths.losses.at_trees import losses_at
from lla_jax.paths.losses.in_plane import losses_in_plane
from lla_jax.paths.projection.curvatures import Asked, curvatures_along
from lla_jax.paths.projection.projections import PROJECTED, Projection
from lla_jax.paths.trajectories import Trajectory, describe

SAME_LOSS = 1e-3  # relative difference of a loss that is computed again, half precision included
SAME_PLACE = 1e-6  # of coordinates


class Work(NamedTuple):
    """What is computed of all runs.

    Args:
      loss: the loss, or None.
      params: the centre.
      data: the data.
      axes: the axes.
      options: of the losses: "batch_size", "batch_stats", "metrics", "extra_data" and "execution".
      asked: the curvature that is asked for.
    """

    loss: Any
    params: PyTree
    data: Any
    axes: Directions
    options: Mapping[str, Any]
    asked: Asked


def continue_from(resume: Any, seen: Sequence[Projection], several: bool) -> None:
    """Take over the values of an unfinished result, of which what is missing is computed then.

    Raises:
      Misuse: it is no result of ``project``, or belongs to another path, axes, data or arguments.
    """
    before = list(resume) if several and isinstance(resume, list | tuple) else [resume]
    if len(before) != len(seen) or not all(isinstance(each, Projection) for each in before):
        raise misuse("resume", resume, "what lla.paths.project gave to on_partial; save it there, and pass it here")
    for old, new in zip(before, seen, strict=True):
        names = {*old.recipe, *new.recipe} - {"complete", "path", "marks", "rounding"}
        recipes.check_same("resume", "the unfinished projection", old.recipe, new.recipe, names, recipes.START_ANEW)
        for one, two in ((old.coords, new.coords), (old.distance, new.distance)):
            scale = SAME_PLACE * max(np.abs(new.coords).max(initial=0), np.abs(new.distance).max(initial=0))
            if one.shape != two.shape or not np.allclose(one, two, SAME_PLACE, scale):
                raise Misuse("resume", "belongs to another path, whose checkpoints lie elsewhere; pass the path it had")
        for kind in ("values", "stderr", "curvature", "curvature_error"):
            getattr(new, kind).update({name: np.array(x) for name, x in getattr(old, kind).items()})


def fill(seen: Sequence[Projection], runs: Sequence[Trajectory], work: Work, progress: Progress | None) -> None:
    """Compute what the projections lack, run by run: losses, those of the projections, then curvatures."""
    if work.loss is None:
        return
    _warn_of_state(seen, runs, work)
    picked = [range(0, len(run), work.asked.every) if work.asked.names else range(0) for run in runs]
    total, done = sum(2 * len(run) + len(at) for run, at in zip(runs, picked, strict=True)), 0

    def part(length: int) -> Any:
        nonlocal done
        done += length
        return report_part(progress, done - length, length, total)

    for each, run in zip(seen, runs, strict=True):
        _add_losses(each, "", _at_checkpoints(run, work), part(len(run)))
        _add_losses(each, PROJECTED, _at_projections(each, work), part(len(run)))
    for each, run, at in zip(seen, runs, picked, strict=True):
        finite = [t for t in at if np.isfinite(each.values["loss"][t])]
        into = each.curvature, each.curvature_error
        curvatures_along(work.loss, run, work.data, finite, work.asked, work.options, into, part(len(at)))


Compute = Callable[..., Means]
"""``compute(at, progress=..., on_partial=...)``: the means at the checkpoints of some indices."""


def _at_checkpoints(run: Trajectory, work: Work) -> Compute:
    def compute(at: np.ndarray, **calls: Any) -> Means:
        chosen: Any = run if len(at) == len(run) else run[at.tolist()]
        return losses_at(work.loss, chosen, work.data, **calls, **work.options)

    return compute


def _at_projections(seen: Projection, work: Work) -> Compute:
    def compute(at: np.ndarray, **calls: Any) -> Means:
        return losses_in_plane(work.loss, work.params, work.data, work.axes, seen.coords[at], **calls, **work.options)

    return compute


def _add_losses(seen: Projection, prefix: str, compute: Compute, progress: Progress | None) -> None:
    """Compute the values that are missing; of a result that is continued, one is computed again to compare it."""
    num = len(seen)
    known = seen.values.get(f"{prefix}loss", np.full(num, np.nan))
    done, missing = (np.flatnonzero(there) for there in (~np.isnan(known), np.isnan(known)))
    at = np.concatenate([done[:1], missing])
    before = float(known[at[0]])

    def put(means: Means) -> None:
        for numbers, new in ((seen.values, means.values), (seen.stderr, means.stderr)):
            for name, x in new.items():
                numbers.setdefault(prefix + name, np.full(num, np.nan))[at] = x

    means = compute(at, progress=progress, on_partial=put)
    now = float(means.values["loss"][0])
    if done.size and not recipes.is_close(before, now, SAME_LOSS, 0.0):
        text = f"belongs to another loss: at {describe(at[0], seen.names[at[0]])} it was {before:.6g}, and is {now:.6g}"
        raise Misuse("resume", f"{text}; restore the loss, or {recipes.START_ANEW}")
    put(means)


def _warn_of_state(seen: Sequence[Projection], runs: Sequence[Trajectory], work: Work) -> None:
    """Warn if a checkpoint is the centre and has another state than the loss, which gives the plane another loss."""
    if work.options["batch_stats"] != "frozen" or not isinstance(work.loss, Loss) or not has_floats(work.loss.state):
        return
    for each, run in zip(seen, runs, strict=True):
        for t in np.flatnonzero((each.distance == 0) & (each.coords == 0).all(1))[-1:].tolist():
            if not _same_state(run.state(t), work.loss.state):
                warn_caller(
                    f"loss: its state is not that of {describe(t, run.names[t])}, which is the centre, so that the "
                    f"plane has another loss there; pass dataclasses.replace(loss, state=path.state({t}))"
                )
                return


def _same_state(one: PyTree, two: PyTree) -> bool:
    for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(two)):
        if has_floats(x):
            x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
            if x.shape != y.shape or not np.allclose(x, y, 1e-4, 1e-6):
                return False
    return True


def warn_of_values(seen: Sequence[Projection], runs: Sequence[Trajectory]) -> None:
    """Warn of checkpoints at which the loss is not finite."""
    for each, run in zip(seen, runs, strict=True):
        bad = np.flatnonzero(~np.isfinite(each.values.get("loss", np.zeros(0))))
        if bad.size:
            names = ", ".join(describe(t, run.names[t]) for t in bad[:3]) + (" ..." if bad.size > 3 else "")
            warn_caller(f"loss: not finite at {bad.size} of {len(run)} checkpoints ({names})")
