"""Measures the loss barrier between two solutions, along the line or a curve between them: ``barrier``.

References: Entezari et al. 2021, arXiv 2110.06296 (the height above the line between the end losses); Frankle et al.
2019, arXiv 1912.05671 (the height above the mean of the end losses).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np

from lla_jax.core import tree as _tree
from lla_jax.core.arguments import MissingEntry, Misuse, check_integer, is_integer, misuse, warn_caller
from lla_jax.core.data import Stream
from lla_jax.core.interrupts import deferred_interrupts
from lla_jax.core.losses import as_loss
from lla_jax.core.refusals import no_array
from lla_jax.core.signatures import explained
from lla_jax.core.text import pm
from lla_jax.core.types import SAVED, Batch, Execution, Loss, PyTree, Recipe
from lla_jax.execution.plans import Plan
from lla_jax.execution.progress import AskedProgress, Progress, takes_progress
from lla_jax.landscape import planning
from lla_jax.landscape import points as _points
from lla_jax.landscape.jobs import Job
from lla_jax.landscape.means import Means
from lla_jax.landscape.tasks import Policy, Task
from lla_jax.paths.curves import Curve, line
from lla_jax.paths.end_states import states_of_ends
from lla_jax.paths.host_trees import are_equal, has_floats
from lla_jax.paths.losses import along_curves, peaks
from lla_jax.paths.losses.groups import means_in_groups
from lla_jax.paths.losses.paired_errors import Contrast, contrast_errors

APART = 10.0  # standard errors by which an end's loss under its own statistics may be off
PART = 0.1  # of the range of the losses along the curve, likewise
BESIDE = 0.1  # distance from an end up to which the errors at a maximum say little
ELSEWHERE = 0.25, 0.5, 0.75  # where it may be instead
NEAR = 2.0  # standard errors by which it may be higher there


@explained
class Height(NamedTuple):
    """The barrier of one value, such as "loss" or "test_error", with standard errors over the examples.

    Args:
      value: max_t [L(t) - (1 - t) L(0) - t L(1)], at least 0, since the ends count.
      stderr: its standard error, of the differences of each example at t, 0 and 1; NaN where the loss has none. At
        an end nothing differs, and near it little, though the maximum may be elsewhere: within a tenth of an end the
        error is at least that of the heights at about t = 1/4, 1/2 and 3/4 which come within two of their errors of
        ``value``.
      t: where it is.
      above_mean: max_t L(t) - (L(0) + L(1)) / 2.
      above_mean_stderr: its standard error, likewise.
      above_mean_t: where it is.
    """

    value: float
    stderr: float
    t: float
    above_mean: float
    above_mean_stderr: float
    above_mean_t: float


@explained
@no_array("holds losses along a curve; its height is barrier.value, and its losses are barrier.losses")
@dataclass(frozen=True, eq=False, repr=False)
class Barrier:
    """The loss between two solutions, and by how much it rises above that of the ends.

    Args:
      coords: (n,) the t of the points, increasing from 0 to 1; finer around the maxima.
      values: {name: (n,)} float64: the loss, and with metrics and further data sets these, under the names that a
        landscape has ("loss", "error", "test_loss").
      errors: {name: (n,)}: their standard errors, of those that have one.
      heights: {name: ``Height``}: the barrier of each value.
      ends: where statistics follow the points, the values under the statistics that the ends were trained with:
        {name: (2,)}, and with "_stderr" their standard errors; empty where the states are frozen.
      recipe: how it was made, as plain data.
    """

    _meant: ClassVar[dict[str, str]] = {
        **SAVED,
        "height": "value",
        "max": "value",
        "plot": "lla.plotting.barrier(barrier)",
    }

    coords: np.ndarray
    values: dict[str, np.ndarray]
    errors: dict[str, np.ndarray]
    heights: dict[str, Height]
    ends: dict[str, np.ndarray]
    recipe: Recipe

    def __repr__(self) -> str:
        each = (f"{name} {pm(h.value, h.stderr)} at t = {h.t:.3g}" for name, h in self.heights.items())
        return f"Barrier({', '.join(each)}; {len(self.coords)} points)"

    def __getitem__(self, name: str) -> Height:
        """The barrier of one value: ``barrier["test_loss"].value``."""
        if not isinstance(name, str) or name not in self.heights:
            raise MissingEntry("barrier", f"[{name!r}] given; it has {', '.join(map(repr, self.heights))}")
        return self.heights[name]

    @property
    def value(self) -> float:
        """max_t [L(t) - (1 - t) L(0) - t L(1)], the height of the loss above the line between the ends' losses."""
        return self.heights["loss"].value

    @property
    def value_stderr(self) -> float:
        """The standard error of ``value``."""
        return self.heights["loss"].stderr

    @property
    def t(self) -> float:
        """Where on the curve ``value`` is reached, from 0 to 1."""
        return self.heights["loss"].t

    @property
    def above_mean(self) -> float:
        """max_t L(t) - (L(0) + L(1)) / 2, the height of the loss above the mean of the ends' losses."""
        return self.heights["loss"].above_mean

    @property
    def losses(self) -> np.ndarray:
        """(n,) the loss at each point."""
        return self.values["loss"]

    @property
    def stderr(self) -> np.ndarray | None:
        """(n,) the standard error of each loss; None where it has none (plain and batch-coupled losses)."""
        return self.errors.get("loss")


@takes_progress("points")
@deferred_interrupts()
@explained
def barrier(
    loss: Loss | Callable[[PyTree, Batch], Any],
    a: PyTree,
    b: PyTree,
    data: Batch | Stream,
    *,
    state_b: PyTree = None,
    curve: Curve | None = None,
    points: int | Sequence[float] | np.ndarray = 25,
    batch_size: int | None = None,
    batch_stats: Policy | None = None,
    metrics: Mapping[str, Callable[[Any, Batch], Any]] | None = None,
    extra_data: Mapping[str, Any] | None = None,
    execution: Execution = Execution(),  # noqa: B008 (frozen)
    progress: AskedProgress = None,
) -> Barrier:
    """Measure the barrier between two solutions a and b, along the straight line or a curve between them.

        value = max_t [L(t) - (1 - t) L(0) - t L(1)],   above_mean = max_t L(t) - (L(0) + L(1)) / 2

    The maxima are sought first on a grid, and then between its points, by halving around each and by parabolas, until
    the loss around them falls by less than 1e-5 of the height. A height that rounding can make is 0.

    Args:
      loss: a ``Loss``, whose state is that of a; or a plain function, as for ``lla.evaluate``.
      a: the parameters of the first solution.
      b: those of the second.
      data: one data set, a whole or a stream (read once for each round of points).
      state_b: the state of the loss at b, such as its BatchNorm statistics; needed where the state has floats.
      curve: a curve from a to b, such as ``lla.paths.connect`` returns, in place of the line.
      points: the number of points of the grid, ends included; or their t, an array from 0 to 1.
      batch_size: as for ``lla.evaluate``.
      batch_stats: as for ``lla.paths.evaluate``: by default statistics are re-estimated at every t, the ends included.
      metrics: as for ``lla.evaluate``. Barriers are those of values that are low where the network is good, such as an
        error rate.
      extra_data: as for ``lla.evaluate``: ``{"test": ...}`` gives ``barrier["test_loss"]`` too.
      execution: as for ``lla.evaluate``.
      progress: True for a bar, or a function called as ``progress(done, total)`` in points; the total grows with the
        points between those of the grid.

    Returns:
      A ``Barrier``. Its errors are those of the data: of ``value`` from the differences of each example at t, 0 and 1.
      That the largest of several values is taken raises it slightly where the losses between the ends scatter little.

    Raises:
      ValueError: a and b of other structures, types or shapes, equal, or not finite; a second state that is missing; a
        curve with other ends; a loss that is finite nowhere.

    Warns:
      UserWarning: losses that are not finite, with their t; an end whose loss under the statistics it was trained with
        is another than under re-estimated ones, by 10 standard errors and a tenth of the range along the curve.

    References: Entezari et al. 2021, arXiv 2110.06296; Frankle et al. 2019, arXiv 1912.05671.
    """
    loss = as_loss(loss)
    curve = _check_curve(loss, a, b, state_b, curve)
    task = Task(
        loss,
        data,
        along_curves.rule_of(curve),
        batch_size=batch_size,
        batch_stats=along_curves.policy_of(batch_stats, loss),
        metrics=metrics,
        point_metrics=None,
        extra_data=extra_data,
        key=None,
        execution=execution,
    )
    if is_integer(points):
        check_integer("points", points, least=3, remedy="both ends included")
    coords = np.union1d(along_curves.place(curve, points, "t"), [0.0, 1.0])
    num = len(coords)
    job = along_curves.curve_job(curve, coords, task)
    plan, recipe, _ = planning.choose_plan(job, None)
    coords, means, plan = _compute_refined(job, plan, coords, progress)
    if not np.isfinite(means.values["loss"]).any():
        raise ValueError("loss: not finite at any point between a and b; check it at a and b, and the data for NaN")
    _warn_of_holes(coords, means)
    heights = _heights(job, plan, coords, means)
    ends = _trained_ends(job, plan)
    if job.momenta is not None:
        _warn_of_ends(means, ends)
    values, errors = ({name: each[name] for name in job.task.names if name in each} for each in means)
    recipe = recipe | {"kind": "barrier", "points": num, "plan": planning.plan_recipe(job, plan), "complete": True}
    return Barrier(coords, values, errors, heights, ends, recipe)


def _check_curve(loss: Loss, a: PyTree, b: PyTree, state_b: PyTree, curve: Any) -> Curve:
    """The curve along which the barrier is measured, with the states of its ends where the loss has a state."""
    straight = line(a, b)
    if curve is not None and not isinstance(curve, Curve):
        raise misuse("curve", curve, "None for the straight line, or a curve, such as lla.paths.connect returns")
    if curve is None and are_equal(*straight.ends):
        raise Misuse("b", "equals a in every parameter, so that there is nothing between them; pass another solution")
    for name, end, own in zip("ab", straight.ends, straight.ends if curve is None else curve.ends, strict=True):
        if not are_equal(end, _tree.align(own, end, "curve", name)):
            raise Misuse("curve", f"its end {name} has other parameters than {name}; pass the ends of the curve")
    states = None if curve is None else curve.states
    if state_b is not None or (states is None and has_floats(loss.state)):
        states = states_of_ends(loss, state_b)
    return replace(straight if curve is None else curve, states=states)


def _compute_refined(
    job: Job, plan: Plan, coords: np.ndarray, progress: Progress | None
) -> tuple[np.ndarray, Means, Plan]:
    """(t of all points, the means there, plan at the end): those of the grid, and of points around the maxima."""
    known, table, smooth = np.zeros(0), Means({}, {}), {prefix + "loss" for prefix in job.task.sets}
    new, count = coords, 0
    while len(new):
        means, plan = means_in_groups(job, plan, new[:, None], _after(progress, len(known), len(new)))
        order = np.argsort(np.concatenate([known, new]), kind="stable")
        known = np.concatenate([known, new])[order]
        table = Means(
            *({name: _join(old, x, name)[order] for name, x in now.items()} for old, now in zip(table, means))
        )
        new = peaks.between(known, table.values, smooth, count, 2 * _rounding(job))
        count += 1
    return known, table, plan


def _after(progress: Progress | None, done: int, num: int) -> Progress | None:
    """The progress of ``num`` points after those that are done; the total grows with the rounds."""
    return None if progress is None else lambda now, _: progress(done + now, done + num)


def _join(old: Mapping[str, np.ndarray], new: np.ndarray, name: str) -> np.ndarray:
    return np.concatenate([old[name], new]) if name in old else new


def _heights(job: Job, plan: Plan, coords: np.ndarray, means: Means) -> dict[str, Height]:
    found: dict[str, Height] = {}
    contrasts: dict[str, list[Contrast]] = {}
    below: dict[str, list[tuple[float, float]]] = {}
    rounding, nan = _rounding(job), float("nan")
    others = {int(np.argmin(abs(coords - t))) for t in ELSEWHERE}
    for name in job.task.names:
        x = means.values[name]
        over = peaks.excess(coords, x)
        i, j = (int(np.argmax(each)) for each in (over, x))  # of NaN the first
        if over[i] <= rounding * abs(x).max():  # what rounding makes of a straight line is no barrier
            i = 0
        above = x - (x[0] + x[-1]) / 2
        found[name] = Height(float(over[i]), nan, float(coords[i]), float(above[j]), nan, float(coords[j]))
        if name in means.stderr and np.isfinite(x[[i, j, 0, -1]]).all():
            at = [k for k in sorted(others) if np.isfinite(x[k])]
            contrasts[name] = [_contrast(coords[k], 1 - coords[k]) for k in (i, *at)]
            contrasts[name] += [_contrast(coords[k], 0.5) for k in (j, *at)]
            below[name] = [(0.0, 0.0), *((over[k] - over[i], above[k] - above[j]) for k in at)]
    for name, errors in (contrast_errors(job, plan, contrasts) if contrasts else {}).items():
        height, pairs = found[name], zip(np.reshape(errors, (2, -1)), np.transpose(below[name]), strict=True)
        both = [_largest_error(t, *pair) for t, pair in zip((height.t, height.above_mean_t), pairs, strict=True)]
        found[name] = height._replace(stderr=both[0], above_mean_stderr=both[1])
    return found


def _largest_error(t: float, errors: np.ndarray, below: np.ndarray) -> float:
    """The error of a maximum at t: the first, and near an end those of other points at which the maximum may be.

    Args:
      t: where it is.
      errors: (P,) of the heights at t and other points.
      below: (P,) these heights, less the one at t.
    """
    others = (below + NEAR * errors >= 0) & (min(t, 1 - t) <= BESIDE)
    return float(np.max(errors, where=others, initial=errors[0]))


def _rounding(job: Job) -> float:
    """By how much of its magnitude the rounding of the network may change a mean of losses."""
    double = job.recipe["precision"]["lowest"] == "float64"
    return 2 * float(np.finfo(np.float64 if double else np.float32).eps)


def _contrast(t: float, of_a: float) -> Contrast:
    """L(t) - p L(0) - (1 - p) L(1) as {t: coefficient}."""
    total = {0.0: -of_a, 1.0: of_a - 1}
    total[float(t)] = total.get(float(t), 0.0) + 1
    return total


def _trained_ends(job: Job, plan: Plan) -> dict[str, np.ndarray]:
    """The values at both ends under the states that they were trained with; empty where these are used anyhow."""
    if job.task.batch_stats == "frozen" or job.states is None:
        return {}
    frozen = job._replace(task=job.task._replace(batch_stats="frozen"), momenta=None)
    means, _ = _points.compute_means(frozen, plan, np.array([[0.0], [1.0]]))
    return means.values | {f"{name}_stderr": x for name, x in means.stderr.items()}


def _warn_of_holes(coords: np.ndarray, means: Means) -> None:
    for name, x in means.values.items():
        if (holes := coords[~np.isfinite(x)]).size:
            shown = ", ".join(f"{t:.3g}" for t in holes[:5]) + (" and more" if len(holes) > 5 else "")
            warn_caller(
                f"values[{name!r}]: not finite at {len(holes)} of {len(x)} points (t = {shown}); they are kept as they "
                "are, and its barrier is not a number or infinite: check the loss at these points"
            )


def _warn_of_ends(means: Means, ends: Mapping[str, np.ndarray]) -> None:
    """Warn if an end's own statistics are not those that its data give: they may be those of another network."""
    if "loss_stderr" not in ends:
        return
    x, error = means.values["loss"], means.stderr["loss"]
    for name, k in (("a", 0), ("b", -1)):
        own, now = ends["loss"][k], x[k]
        apart = abs(own - now)
        if apart > APART * np.hypot(ends["loss_stderr"][k], error[k]) and apart > PART * np.ptp(x):
            state = "loss.state" if name == "a" else "state_b"
            warn_caller(
                f"{state}: the loss at {name} is {own:.4g} under it, and {now:.4g} under statistics that are "
                f"re-estimated on the data; check that it is the state that {name} was trained with"
            )
