"""Losses on a grid of points around a network: line, plane and volume by one function.

The parameters of a point are always computed from the centre, ``rule(params, directions, coord)``; nothing is walked
and nothing accumulates. ``losses`` is the pure kernel, ``evaluate`` the host function that plans, runs and records.
"""

from __future__ import annotations

import functools
import math
import operator
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import data as _data
from lla_jax.core import recipes
from lla_jax.core.data import Stream
from lla_jax.core.static import static
from lla_jax.core.types import Batch, Directions, Execution, Landscape, Loss, PyTree, UpdateRule
from lla_jax.execution import plans
from lla_jax.landscape import in_memory as _in_memory
from lla_jax.landscape import jobs
from lla_jax.landscape import kernels as _kernels
from lla_jax.landscape.jobs import Progress
from lla_jax.landscape.store import writing

Policy = Literal["frozen", "batch", "reestimate"]


def grid(
    extent: float = 1.0,
    points: int | Sequence[int] = 41,
    dims: int = 2,
    *,
    ranges: Sequence[tuple[float, float]] | None = None,
) -> tuple[np.ndarray, ...]:
    """Coordinates of a grid: ``points`` values per axis, from -extent to extent or over explicit ranges.

        c_i = (lo + hi) / 2 + (hi - lo) / 2 * (2 i - (n - 1)) / (n - 1)

    An odd number of points over a symmetric range puts one exactly on 0, the centre.

    Args:
      extent: half the range of every axis, in units of the direction.
      points: number of values per axis, one int for all or one per axis.
      dims: number of axes; ignored when ``ranges`` (or a sequence of ``points``) gives it.
      ranges: ``(lo, hi)`` per axis instead of ``extent``.

    Returns:
      A tuple of 1-D float64 arrays, one per axis.

    Raises:
      ValueError: fewer than one point, lo >= hi with several points, non-finite ends, numbers of axes that disagree.

    The reference's grid covers half the stated range, and has no cell on the centre for odd sizes (LLA, arXiv
    2412.10146, its implementation); this one is symmetric.
    """
    try:
        return _grid(extent, points, dims, ranges)
    except TypeError as error:
        raise ValueError(
            f"grid: extent={extent!r}, points={points!r}, dims={dims!r}, ranges={ranges!r} given; the rule is a "
            "number, an int or one int per axis, an int, and one (lo, hi) per axis"
        ) from error


def _grid(extent: Any, points: Any, dims: Any, ranges: Any) -> tuple[np.ndarray, ...]:
    if ranges is None:
        dims = dims if isinstance(points, int | np.integer) else len(points)
        if not math.isfinite(extent) or extent <= 0:
            raise ValueError(
                f"extent: {extent!r} given; the rule is a finite number above 0, or ranges=[(lo, hi), ...]"
            )
        ranges = [(-float(extent), float(extent))] * dims
    counts = [points] * len(ranges) if isinstance(points, int | np.integer) else [operator.index(n) for n in points]
    if len(counts) != len(ranges) or not counts:
        raise ValueError(
            f"grid: {len(counts)} numbers of points for {len(ranges)} ranges; give one per axis, at least one axis"
        )
    return tuple(_axis(float(lo), float(hi), int(n)) for (lo, hi), n in zip(ranges, counts, strict=True))


def _axis(lo: float, hi: float, n: int) -> np.ndarray:
    if n < 1 or not (math.isfinite(lo) and math.isfinite(hi)) or (n > 1 and lo >= hi):
        raise ValueError(f"grid: {n} points from {lo} to {hi}; the rule is at least one point and finite lo < hi")
    if n == 1:
        return np.array([(lo + hi) / 2])
    axis = (lo + hi) / 2 + (hi - lo) / 2 * (2 * np.arange(n) - (n - 1)) / (n - 1)
    axis[[0, -1]] = lo, hi
    return axis


def add(params: PyTree, directions: PyTree, coord: Any) -> PyTree:
    """theta + sum_i c_i d_i; exactly theta at c = 0. Half-precision leaves are added up in float32.

    Args:
      params: theta.
      directions: the stacked tree, leading axis k.
      coord: (k,).

    Returns:
      A tree like ``params``.

    References: Goodfellow et al. 2014, arXiv 1412.6544; Li et al. 2018, arXiv 1712.09913, section 2.
    """

    def move(p: Any, d: Any) -> Any:
        wide = jnp.promote_types(p.dtype, jnp.float32)
        q = p.astype(wide)
        for i in range(d.shape[0]):
            q = q + coord[i].astype(wide) * d[i].astype(wide)
        return q.astype(p.dtype)

    return jax.tree_util.tree_map(move, params, directions)


def adam(params: PyTree, directions: PyTree, coord: Any, eps: float = 1e-8) -> PyTree:
    """Adam's own step as the update: theta + (a / sqrt(b)) m / (sqrt(v) + eps).

    A function of the one number a / sqrt(b); the row a = 0 is theta.

    Args:
      params: theta.
      directions: Adam's raw moments (m, v) stacked, from ``directions.adam_moments``, not normalized.
      coord: (a, b) with b > 0.
      eps: Adam's epsilon; another one by ``functools.partial(lla.landscape.adam, eps=...)``.

    Returns:
      A tree like ``params``.

    References: Gabdullin 2024, arXiv 2412.10146 ("adameq").

    Where we differ from the reference: (1) every point is computed from theta; there, offsets accumulate along rows and
    depend on the number of steps. (2) b <= 0 is refused.
    """

    def move(p: Any, d: Any) -> Any:
        wide = jnp.promote_types(p.dtype, jnp.float32)
        a, b = coord[0].astype(wide), coord[1].astype(wide)
        m, v = d[0].astype(wide), d[1].astype(wide)
        return (p.astype(wide) + a / jnp.sqrt(b) * m / (jnp.sqrt(v) + eps)).astype(p.dtype)

    return jax.tree_util.tree_map(move, params, directions)


RULES: dict[str, Callable[..., PyTree]] = {"add": add, "adam": adam}


def losses(
    loss: Loss | Callable[[PyTree, Batch], Any],
    params: PyTree,
    directions: PyTree,
    coords: Any,
    data: Batch,
    *,
    rule: UpdateRule = add,
    loop: str = "map",
    share: bool = False,
) -> Any:
    """The kernel: the loss over one in-memory data set at each of C points; pure, to be jitted by the user.

        L(c) = sum_i w_i l_i(rule(params, directions, c)) / sum_i w_i + penalty

    Args:
      loss: a ``Loss`` (frozen statistics) or a plain function.
      params: the centre.
      directions: the stacked tree (``axes.tree``), leading axis k.
      coords: (C, k).
      data: one data set, evaluated in one block.
      rule: ``add``, ``adam`` or any ``(params, directions, coord) -> params``.
      loop: "map" for one point after another, "vmap" for all at once.
      share: compute what is affine in the coordinates once for all points (rule ``add`` only; not differentiable).

    Returns:
      (C,) losses.
    """
    loss = _data.as_loss(loss)
    if share and rule is not add:
        raise ValueError("share: only the add rule is affine in the coordinates; use share=False with another rule")
    how = _kernels.How(static(rule), False, ())
    plan = plans.Plan(coords.shape[0], _data.num_examples(data), loop, share)
    block = _data.block_at(data, 0, plan.microbatch, plan.microbatch, 0)
    sums = _kernels.points_sums(loss, params, directions, coords, None, block, how, plan)["loss"]
    value = sums[:, 2] + sums[:, 3] / sums[:, 1]
    if (penalty := loss.penalty) is not None:
        value = value + plans.map_points(lambda c: penalty(rule(params, directions, c)), coords, loop)
    return value


@overload
def evaluate(
    loss: Loss | Callable[[PyTree, Batch], Any],
    params: PyTree,
    data: Batch | Stream,
    directions: Directions,
    grid: Sequence[Any],
    *,
    batch_size: int | None = ...,
    rule: str | UpdateRule = ...,
    batch_stats: Policy = ...,
    metrics: Mapping[str, Callable[[Any, Batch], Any]] | None = ...,
    point_metrics: Mapping[str, Callable[[PyTree, Any], Any]] | None = ...,
    extra_data: Mapping[str, Any] | None = ...,
    key: Any = ...,
    execution: Execution = ...,
    progress: Progress | None = ...,
    on_partial: Callable[[Landscape], None] | None = ...,
    resume: Landscape | None = ...,
    store: str | os.PathLike[str] | None = ...,
    shard: tuple[int, int] | None = ...,
) -> Landscape: ...


@overload
def evaluate(
    loss: Loss | Callable[[PyTree, Batch], Any],
    params: PyTree,
    data: Batch | Stream,
    directions: Sequence[Directions],
    grid: Sequence[Any],
    *,
    batch_size: int | None = ...,
    rule: str | UpdateRule = ...,
    batch_stats: Policy = ...,
    metrics: Mapping[str, Callable[[Any, Batch], Any]] | None = ...,
    point_metrics: Mapping[str, Callable[[PyTree, Any], Any]] | None = ...,
    extra_data: Mapping[str, Any] | None = ...,
    key: Any = ...,
    execution: Execution = ...,
    progress: Progress | None = ...,
    on_partial: Callable[[Landscape], None] | None = ...,
    resume: Landscape | None = ...,
    store: str | os.PathLike[str] | None = ...,
    shard: tuple[int, int] | None = ...,
) -> list[Landscape]: ...


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
    progress: Progress | None = None,
    on_partial: Callable[[Landscape], None] | None = None,
    resume: Landscape | None = None,
    store: str | os.PathLike[str] | None = None,
    shard: tuple[int, int] | None = None,
) -> Landscape | list[Landscape]:
    """The landscape: loss and metrics over the whole data set at every point of a grid.

        values[i, j] = L(rule(params, directions, (coords[0][i], coords[1][j])))

    Args:
      loss: a ``Loss``, or a plain ``f(params, batch) -> scalar`` (the mean over batches weighted by size; no standard
        error).
      params: the centre, a pytree of finite floating arrays.
      data: one data set, an array pytree with leading axis N, or ``lla.stream(loader)``, read once per landscape
        (re-estimated statistics read it twice).
      directions: the axes, one per grid dimension; a list of them gives a list of landscapes with one compilation.
      grid: one 1-D array of coordinates per axis, e.g. ``lla.grid()``.
      batch_size: examples per batch. Where batches matter (``batch_stats`` other than "frozen", ``per_example=False``)
        it is part of the result; otherwise an upper bound on the block that is held at a time. Default: the whole data
        set.
      rule: "add", "adam" or any ``(params, directions, coord) -> params``.
      batch_stats: normalization statistics at a point: "frozen" as trained, "batch" of each batch, or "reestimate": the
        mean over the batches of the statistics at that point, then used as frozen ones.
      metrics: ``{name: f(outputs, batch) -> (B,)}`` (or values and weights), averaged like the loss in the same pass.
      point_metrics: ``{name: f(params, key) -> scalar}``; the key is common to all points.
      extra_data: ``{name: data}`` evaluated at the same points; its values are called ``name_loss``, ``name_<metric>``.
      key: for ``point_metrics``; default ``jax.random.key(0)``.
      execution: how it is run; "auto" is timed on the first chunk.
      progress: called as ``progress(done, total)`` in points after every chunk; ``total`` is None while unknown
        (streams without a length).
      on_partial: called with what is finished (other cells NaN, ``recipe["complete"]`` False) if the run is interrupted
        or fails; the exception is then re-raised.
      resume: such a partial landscape of the same recipe, to be continued.
      store: a folder that keeps what is finished, chunk by chunk, and survives any interruption (``kill -9`` too): a
        second call continues, or returns the finished landscape. Several processes may work on one store at once. A
        wider or denser grid reuses the points there are. In ``docs/scaling.md``.
      shard: (i, n) for the i-th of n processes over one store: it computes its share, and the others' points are NaN
        until they are there (``recipe["complete"]`` False); ``lla.runs.merge(store)`` then gives the whole.

    Returns:
      A ``Landscape``, or a list of them for a list of directions. Values in float64, whatever the network's precision.

    Raises:
      ValueError: arguments that do not fit together, naming the argument; a loss that is finite at no point; a store
        that holds a landscape of another recipe, saying what differs.
      OSError: a store that cannot be written or a disk that is full; finished chunks are kept.

    Warns:
      UserWarning: non-finite cells (their share), a loss that is not deterministic, damaged chunks of a store.

    Example:
      >>> axes = lla.directions.normalize(lla.directions.random(jax.random.key(0), params), params)
      >>> plane = lla.evaluate(loss, params, (x, y), axes, lla.grid(extent=1.0, points=41))
      >>> lla.plotting.surface(plane).savefig("plane.png")

    References: Li et al. 2018, arXiv 1712.09913, equation 1; Gabdullin 2024, arXiv 2412.10146.

    Where we differ from the reference implementations: (1) each point is computed from the centre, not walked in place,
    so that no rounding or shift accumulates. (2) The loss is the mean over the whole data set with its standard error,
    not that of one minibatch. (3) The network is in evaluation mode unless asked otherwise, and nothing of the user's
    is changed.
    """
    coords = recipes.check_grid(grid)
    name, base, rule = check_rule(rule, coords)
    job = jobs.prepare(
        loss, params, data, coords, batch_size, name, rule, rule is add, base is adam, batch_stats, metrics,
        point_metrics, extra_data, key, execution,
    )  # fmt: skip
    if resume is not None and (store is not None or not isinstance(directions, Directions)):
        raise ValueError("resume: continues one landscape held in memory; leave store out, and pass one Directions")
    if (share := writing.check_shard(shard)) is not None and store is None:
        raise ValueError(f"shard: {shard!r} given without a store, where the shards meet; pass store=folder")
    if isinstance(directions, Directions):
        if store is not None:
            return writing.run(job, directions, pathlib.Path(store), progress, on_partial, share)
        return _in_memory.run(job, directions, progress, on_partial, resume)
    if not isinstance(directions, Sequence) or not directions:
        raise ValueError(
            f"directions: got {type(directions).__name__}; the rule is lla.Directions (from lla.directions.random, "
            ".given, ...) or a non-empty list of them"
        )
    total, planes = len(directions) * job.num, []
    for i, axes in enumerate(directions):  # a loop, so that warnings name the caller's line
        report = jobs.span(progress, i * job.num, job.num, total)
        if store is not None:
            planes.append(writing.run(job, axes, pathlib.Path(store) / f"{i:03d}", report, on_partial, share))
        else:
            planes.append(_in_memory.run(job, axes, report, on_partial, None))
    return planes


def check_rule(rule: Any, coords: tuple[np.ndarray, ...]) -> tuple[str, Any, Any]:
    """(name in the recipe, the function without its options, the function) of an update rule given by name or itself.

    Raises:
      ValueError: an unknown name, no function, or a grid on which the rule is not defined.
    """
    if isinstance(rule, str):
        if rule not in RULES:
            raise ValueError(
                f"rule: {rule!r} given; the rule is one of {', '.join(RULES)}, or a function (params, directions, "
                "coord)"
            )
        name, base, rule = rule, RULES[rule], RULES[rule]
    elif callable(rule):
        base = rule.func if isinstance(rule, functools.partial) else rule
        name = next((n for n, r in RULES.items() if r is base), getattr(base, "__qualname__", repr(base)))
        name += f"({rule.args}, {rule.keywords})" if isinstance(rule, functools.partial) else ""
    else:
        raise ValueError(f"rule: got {type(rule).__name__}; the rule is one of {', '.join(RULES)}, or a function")
    if base is adam:
        if len(coords) != 2:
            raise ValueError(
                f"grid: {len(coords)} axes; the adam rule needs two, a and b (lla.grid(ranges=[(-1, 1), (0.1, 2)]))"
            )
        if coords[1].min() <= 0:
            raise ValueError(
                f"grid: b goes down to {coords[1].min()}; the adam rule divides by sqrt(b), so b > 0, e.g. "
                "lla.grid(ranges=[(-1, 1), (0.1, 2)])"
            )
    return name, base, rule
