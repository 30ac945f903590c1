"""Computes the means of a job at any points, in groups of as many as the devices hold at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np

from lla_jax.core.interrupts import check_interrupt
from lla_jax.execution.plans import Plan
from lla_jax.execution.progress import Progress, report_part
from lla_jax.landscape import jobs, points
from lla_jax.landscape.jobs import Job
from lla_jax.landscape.means import Means


def means_in_groups(
    job: Job,
    plan: Plan,
    coords: np.ndarray,
    progress: Progress | None = None,
    on_partial: Callable[[Means], None] | None = None,
) -> tuple[Means, Plan]:
    """(the means at points, the plan at the end, which may be smaller where memory was short).

    Args:
      job: the job.
      plan: its plan.
      coords: (T, k), the coordinates of the points.
      progress: called as ``progress(done, total)``, in points.
      on_partial: called with the means so far, NaN for the others, if the call fails after its first points.

    Returns:
      The means, of which ``values`` and ``stderr`` are {name: (T,)} in float64, and the plan.
    """
    lo, num = 0, len(coords)
    with handed_on(on_partial) as table:
        while lo < num:
            check_interrupt()
            hi = min(lo + jobs.group_size(job, plan), num)
            means, plan = points.compute_means(job, plan, coords[lo:hi], report_part(progress, lo, hi - lo, num))
            table.put(means, slice(lo, hi), num)
            lo = hi
            if progress is not None:
                progress(lo, num)
    return table, plan


@contextlib.contextmanager
def handed_on(on_partial: Callable[[Means], None] | None) -> Iterator[Means]:
    """A context with means to be filled, which are handed on if it fails or is interrupted after the first of them."""
    table = Means({}, {})
    try:
        yield table
    except BaseException:
        if on_partial is not None and table.values:
            on_partial(table)
        raise
