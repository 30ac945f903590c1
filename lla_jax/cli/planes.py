"""Computes the plane of a path or a curve in the store of its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lla_jax.cli import stores
from lla_jax.cli.environment import make_execution
from lla_jax.cli.options import ConnectOptions, PathOptions
from lla_jax.cli.terminal import bar
from lla_jax.core.results import Landscape
from lla_jax.core.types import Directions, Problem, PyTree
from lla_jax.landscape.evaluation import evaluate


def compute_plane(
    problem: Problem,
    params: PyTree,
    axes: Directions,
    grid: Sequence[np.ndarray],
    batch_stats: Any,
    options: PathOptions | ConnectOptions,
    chosen: Mapping[str, str],
) -> Landscape:
    """The plane through ``params``; after Ctrl-C the same command continues it.

    Args:
      problem: its loss has the state of the centre.
      params: the centre.
      axes: two directions.
      grid: the coordinates along both.
      batch_stats: as for ``evaluate``.
      options: of the command.
      chosen: {option: its text}, the settings of the store.
    """
    try:
        with bar("plane") as progress:
            plane = evaluate(
                problem.loss,
                params,
                problem.data,
                axes,
                tuple(grid),
                batch_size=options.batch_size,
                batch_stats=batch_stats,
                metrics=dict(problem.metrics),
                extra_data=dict(problem.extra_data),
                execution=make_execution(options),
                progress=progress,
                store=options.out,
            )
    except KeyboardInterrupt:
        stores.report_interruption(options.out, chosen, options.problem)
        raise
    stores.write_settings(options.out, chosen, options.problem)
    return plane
