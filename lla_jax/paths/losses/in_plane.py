"""Computes the loss at points of a line, a plane or a volume that lie on no grid: ``losses_in_plane``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from lla_jax.core.static import static
from lla_jax.core.types import Directions, PyTree
from lla_jax.execution.progress import Progress
from lla_jax.landscape import jobs, planning
from lla_jax.landscape.means import Means
from lla_jax.landscape.rules import Rule, add
from lla_jax.landscape.tasks import Task
from lla_jax.paths.losses.groups import means_in_groups


def losses_in_plane(
    loss: Any,
    params: PyTree,
    data: Any,
    axes: Directions,
    coords: np.ndarray,
    *,
    progress: Progress | None = None,
    on_partial: Callable[[Means], None] | None = None,
    **options: Any,
) -> Means:
    """The loss and the metrics at params + sum_i c_i d_i, as ``lla.evaluate`` computes them at these coordinates.

    Args:
      loss: as for ``lla.evaluate``; its state is that of the centre.
      params: the centre.
      data: as for ``lla.evaluate``.
      axes: the k directions.
      coords: (T, k), the coordinates of the points.
      progress: called as ``progress(done, total)``, in points.
      on_partial: called with the means so far, NaN for the others, if the call fails after its first points.
      options: ``batch_size``, ``batch_stats``, ``metrics``, ``extra_data`` and ``execution`` of ``lla.evaluate``.

    Returns:
      ``Means``: ``values`` and ``stderr``, {name: (T,)} in float64.
    """
    num = len(coords)
    index = np.arange(num, dtype=np.float64)

    def at(points: np.ndarray) -> np.ndarray:
        return np.stack([np.interp(points[:, 0], index, column) for column in coords.T], axis=1)

    rule = Rule("add", static(add), affine=True, directions=axes.num, weights=at)
    task = Task(loss, data, rule, point_metrics=None, key=None, **options)
    job = jobs.set_axes(jobs.prepare(task, params, (index,)), axes)
    plan, *_ = planning.choose_plan(job, None)
    return means_in_groups(job, plan, index[:, None], progress, on_partial)[0]
