"""Computes the last part of the demo: where its training went, with the picture and the film of its descent."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lla_jax.core.text import pm
from lla_jax.core.types import Directions, Problem
from lla_jax.landscape.evaluation import evaluate
from lla_jax.output import plotting
from lla_jax.paths.projection.components import pca
from lla_jax.paths.projection.grids import grid_around
from lla_jax.paths.projection.projecting import project
from lla_jax.paths.projection.projections import Projection
from lla_jax.paths.trajectories import Trajectory

EVERY = 11  # steps between checkpoints: twice in an epoch of 22
FRAMES, SIZE = 48, (960, 540)


class DescentPart(NamedTuple):
    """The results and figures of the descent by file name, its film, and a text with its numbers."""

    results: dict[str, Any]
    figures: dict[str, Any]
    film: Path
    text: str


def run(path: Trajectory, problem: Problem, out: Path, *, points: int, bar: Any) -> DescentPart:
    """Compute the plane in which a training moved most, and its checkpoints there; film the descent.

    BatchNorm statistics are re-estimated at each checkpoint and each point: those of one network fit no other.

    Args:
      path: the recorded training.
      problem: the trained network, the end of the path.
      out: the folder for the film.
      points: per axis of the plane.
      bar: as for ``tour.run``.

    Returns:
      The ``DescentPart``; only the film is written.
    """
    axes, _ = pca(path, params=problem.params)
    options: dict[str, Any] = {"batch_stats": "reestimate"}
    with bar("path") as progress:
        seen = project(
            path, axes, params=problem.params, loss=problem.loss, data=problem.data, progress=progress, **options
        )
    with bar("plane of the path") as progress:
        plane = evaluate(
            problem.loss,
            problem.params,
            problem.data,
            axes,
            grid_around(seen, points=points),
            progress=progress,
            **options,
        )
    with bar("film", "frames") as progress:
        film = plotting.film(
            plane,
            seen,
            out / "descent.gif",
            log=True,
            frames=FRAMES,
            size=SIZE,
            title="Digits CNN: its training",
            progress=progress,
        )
    return DescentPart(
        {"trajectory": plane, "seen": seen},
        {
            "trajectory": plotting.trajectory(plane, seen, log=True, title="Digits CNN: its training"),
            "explained-variance": plotting.explained_variance(axes, title="Digits CNN: components of its training"),
        },
        film,
        summarize(axes, seen),
    )


def summarize(axes: Directions, seen: Projection) -> str:
    """The numbers of the descent as a text."""
    shares, walk = (sum(axes.recipe[name][:2]) for name in ("explained_variance", "random_walk"))
    losses, errors = seen.loss, seen.loss_stderr
    assert losses is not None
    assert errors is not None
    assert seen.projected_loss is not None
    worst = int(np.argmax(np.abs(np.log(losses / seen.projected_loss))))
    # the axes are orthonormal, and their centre is the end
    length = np.hypot(np.linalg.norm(seen.coords[0]), seen.distance[0])
    head = f"The training, {len(seen)} checkpoints in {seen.steps[-1]} steps, on the plane of its principal components:"
    return "\n".join(
        [
            head,
            f"  they hold {shares:.0%} of its variance; of a random walk's it would be {walk:.0%}",
            f"  training loss {pm(losses[0], errors[0])} at the start, {pm(losses[-1], errors[-1])} at the end "
            "(BatchNorm statistics re-estimated for each)",
            f"  off the plane by up to {seen.distance.max():.3g}, while the ends are {length:.3g} apart: at step "
            f"{seen.steps[worst]} the loss is {losses[worst]:.3g}, and {seen.projected_loss[worst]:.3g} on the plane",
        ]
    )
