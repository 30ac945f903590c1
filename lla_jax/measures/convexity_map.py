"""Computes the convexity map: the extreme eigenvalues of the Hessian at every point of a plane."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from lla_jax.core import arguments, recipes
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse, misuse, warn_caller
from lla_jax.core.interrupts import deferred_interrupts
from lla_jax.core.results import Landscape
from lla_jax.core.signatures import explained
from lla_jax.core.types import Directions, Execution, Loss, PyTree
from lla_jax.curvature import eigen, operators
from lla_jax.curvature.linear_operator import LinearOperator
from lla_jax.curvature.probe import check as check_probe
from lla_jax.curvature.probe import probe
from lla_jax.directions.checks import check_axes
from lla_jax.execution import plans
from lla_jax.execution.keywords import accept_old
from lla_jax.execution.progress import AskedProgress, check_on_partial, takes_progress
from lla_jax.landscape import evaluation, rules

CURVATURES = ("lambda_min", "lambda_max", "residual")


@accept_old("devices")
@takes_progress("products")
@explained
def convexity(
    loss: Loss | Callable[[PyTree, Any], Any],
    params: PyTree,
    data: Any,
    axes: Directions,
    grid: Sequence[Any],
    key: jax.Array,
    *,
    steps: int = 20,
    batch_size: int | None = None,
    execution: Execution = Execution(),  # noqa: B008 (frozen)
    progress: AskedProgress = None,
    on_partial: Callable[[Landscape], None] | None = None,
    resume: Landscape | None = None,
) -> Landscape:
    """How convex the loss is at every point of a plane: the extreme eigenvalues of the Hessian over all parameters.

        c(a, b) = |lambda_min / lambda_max| of the Hessian at theta + a d1 + b d2

    Where a plane looks convex, the map shows whether the hidden directions are convex, too. The eigenvalues come from
    Lanczos with full re-orthogonalisation, from the same start vector at every point, until both residuals are at most
    1e-3 times the larger magnitude of the two. Ritz values lie inside the spectrum: the true lambda_max is not below,
    and the true lambda_min not above the one given here; more ``steps`` bring them closer. The ratio is near 0 where
    negative curvature is negligible. It has no sign: where lambda_min > 0, as for a strongly convex loss, it is the
    inverse condition number.

    Args:
      loss: as for ``hessian``.
      params: the centre.
      data: one data set, a whole, or a stream, read once per step.
      axes: one, two or three directions, for a line, plane or volume.
      grid: one 1-D array of coordinates per axis, e.g. ``lla.grid(points=9)``.
      key: draws the start vector.
      steps: Lanczos steps per point at most; a step takes a Hessian product.
      batch_size: as for ``hessian``.
      execution: as for ``hessian``, except that every process computes for itself.
      progress: True for a bar, or a function called as ``progress(done, total)`` in products, ``steps`` per point,
        after every point.
      on_partial: called with the finished points (the eigenvalues of others NaN, ``recipe["complete"]`` False) if the
        computation is interrupted or fails; the exception is then raised again.
      resume: a partial landscape that ``on_partial`` was called with, of the same call. The computation continues from
        it, and gives the same to the bit as one that was not interrupted.

    Returns:
      A ``Landscape`` with the values "lambda_min", "lambda_max", "residual" (an exact eigenvalue lies within it of
      either), "convexity" and "loss", for pictures, ``lla.save`` and ``plane_report``. NaN where the loss or the
      Hessian is not finite. ``recipe["curvature"]`` has steps, products and the plan.

    Raises:
      ValueError: as for ``evaluate`` and ``hessian``; ``steps`` < 1.

    Warns:
      UserWarning: points without finite loss or curvature (their fraction).

    References: Li et al. 2018, arXiv 1712.09913, section 6 (figure 7).
    """
    check_on_partial(on_partial)
    steps = arguments.check_integer("steps", steps, remedy="such as 20")
    check_axes("axes", axes, "axes = lla.directions.random(key, params)")
    key, finished = arguments.single_key(key), _as_complete(resume, steps)
    plans.check_for_operator(execution)
    fixed = Execution(  # nothing is timed
        chunk=1,
        microbatch=256,
        loop="map",
        share=False,
        devices=execution.devices,
        precision=execution.precision,
    )
    plane = evaluation.evaluate(
        loss, params, data, axes, grid, batch_size=batch_size, key=key, execution=fixed, resume=finished
    )
    total, done = plane.values["loss"].size, 0
    table = {name: np.full(total, np.nan) for name in CURVATURES}
    about: dict[str, Any] = {"kind": "hessian", "steps": steps, "start": "rademacher", "products": 0}
    if resume is not None:
        table = {name: resume.values[name].ravel().copy() for name in table}
        done, about = int(resume.recipe["points_done"]), dict(resume.recipe["curvature"])
    with deferred_interrupts() as check:
        try:
            own = replace(execution, processes="own")
            if "plan" in about:  # primal values are kept or not as they were then, to be the same to the bit
                own = replace(own, linearize=bool(about["plan"]["linearized"]))
            H = operators.hessian(loss, params, data, batch_size=batch_size, execution=own)
            if resume is not None:
                there = H.recipe | {"probe": about.get("probe")}
                check_probe("resume", "the partial landscape", there, H, recipes.START_ANEW)
            about |= {"plan": H.recipe["plan"], "probe": probe(H)}
            if isinstance(H, LinearOperator):
                H = replace(H, blocks=())  # without the primal values at the centre
            tree = H.place(_tree.align(axes.tree, params, "axes", stacked=True))
            while done < total:
                check()
                cell = np.unravel_index(done, plane.shape)
                if np.isfinite(plane.values["loss"][cell]):
                    coord = np.array([c[i] for c, i in zip(plane.coords, cell, strict=True)])
                    here = H.at(_move(H.centre(), tree, coord))
                    ends = eigen.extremes(here, key, steps)
                    for name, value in zip(CURVATURES, (ends.smallest, ends.largest, ends.residual), strict=True):
                        table[name][done] = value
                    about["products"] += ends.products
                    del here  # its primal values, before those of the next point are computed
                done += 1
                if progress is not None:
                    progress(done * steps, total * steps)
            check()
        except BaseException:
            if on_partial is not None and done:
                on_partial(_map(plane, table, about, done))
            raise
    result = _map(plane, table, about, done)
    missing = np.isfinite(plane.values["loss"]) & ~np.isfinite(result.values["lambda_max"])
    if missing.any():
        warn_caller(
            f"lambda_max: the Hessian is not finite at {missing.mean():.1%} of the points, where the loss is; they are "
            "kept as NaN. A smaller extent avoids them"
        )
    return result


def _as_complete(resume: Landscape | None, steps: int) -> Landscape | None:
    """The losses of a partial map as a finished landscape, for ``evaluate`` to check and resume; None for None."""
    if resume is None:
        return None
    before = resume.recipe.get("curvature", {}) if isinstance(resume, Landscape) else {}
    if "products" not in before or not {"loss", *CURVATURES} <= set(resume.values):
        raise misuse("resume", resume, "a landscape that convexity gave to on_partial, or None to start anew")
    if before["steps"] != steps:
        text = f"the partial landscape has steps={before['steps']}, and {steps} are asked for"
        raise Misuse("resume", f"{text}; the number must be the same: repeat it, or start anew without resume")
    recipe = resume.recipe | {"complete": True, "points_done": resume.values["loss"].size}
    return replace(resume, values={"loss": resume.values["loss"]}, recipe=recipe)


def _map(plane: Landscape, table: Mapping[str, np.ndarray], about: dict[str, Any], done: int) -> Landscape:
    values = {name: flat.reshape(plane.shape).copy() for name, flat in table.items()}
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.abs(values["lambda_min"] / values["lambda_max"])
    values["convexity"] = np.where(np.isfinite(ratio), ratio, np.nan)
    progress = {"complete": done == values["convexity"].size, "points_done": done}
    recipe = plane.recipe | {"curvature": dict(about)} | progress
    return Landscape(plane.coords, values | {"loss": plane.values["loss"]}, plane.stderr, recipe)


_move = jax.jit(rules.add)
