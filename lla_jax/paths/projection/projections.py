"""Paths as they are seen along axes: coordinates, distances off the plane, and both losses of each checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lla_jax.core.refusals import no_array
from lla_jax.core.signatures import explained
from lla_jax.core.text import table
from lla_jax.core.types import SAVED, Recipe

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
