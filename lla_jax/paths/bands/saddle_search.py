"""Finds the highest point of a trained band, lets it climb to a saddle, and counts the negative eigenvalues there."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from lla_jax.core import tree as _tree
from lla_jax.core.operands import Precision
from lla_jax.core.types import Batch, Execution, Loss, PyTree
from lla_jax.curvature import eigen, operators
from lla_jax.paths.bands.climbing import Climb, climb_step
from lla_jax.paths.bands.steps import samples_between
from lla_jax.paths.host_trees import size_of
from lla_jax.paths.training.batch_slopes import has_statistics
from lla_jax.paths.training.batches import Draw
from lla_jax.paths.training.full_slopes import full_losses, full_slope

DENSE_MOST = 200  # parameters up to which the whole Hessian is computed
LOWEST = 3  # eigenvalues of a larger one that are sought
ROUNDING = 50.0  # times eps of the largest magnitude: eigenvalues below count as 0


class Highest(NamedTuple):
    """The highest point of a band.

    Args:
      low: the number of the pivot that it is, or that lies before it.
      weight: how far it lies from that pivot to the next one; 0 for the pivot itself.
      params: the parameters.
      loss: over all examples.
      losses: (K,) of the pivots, over all examples.
    """

    low: int
    weight: float
    params: PyTree
    loss: float
    losses: np.ndarray


def find_highest(
    loss: Loss, pivots: list[PyTree], draws: Iterable[Draw], samples: int, precision: Precision
) -> Highest:
    """The highest of all pivots and of equally spaced samples between them, by the loss over all examples.

    Args:
      loss: the loss.
      pivots: K trees.
      draws: the batches, which can be read again and again.
      samples: number of samples between two pivots.
      precision: of matrix products.
    """
    losses = full_losses(loss, pivots, draws, precision)
    at = int(np.nanargmax(losses)) if np.isfinite(losses).any() else 0
    best = Highest(at, 0.0, pivots[at], float(losses[at]), losses)
    for low, (one, other) in enumerate(itertools.pairwise(pivots)):
        trees = samples_between(one, other, samples)
        values = full_losses(loss, trees, draws, precision)
        if np.isfinite(values).any() and values[i := int(np.nanargmax(values))] > best.loss:
            best = Highest(low, (i + 1) / (samples + 1), trees[i], float(values[i]), losses)
    return best


def climb_once(
    climb: Climb,
    neighbours: PyTree,
    losses: np.ndarray,
    floor: float,
    loss: Loss,
    draws: Iterable[Draw],
    precision: Precision,
) -> Climb:
    """The image after one step, from the gradient over all examples.

    Args:
      climb: the image.
      neighbours: two stacked pivots, before and behind it.
      losses: (2,) theirs.
      floor: the loss below which a point is no top.
      loss: the loss.
      draws: the batches.
      precision: of matrix products.
    """
    value, gradient = full_slope(loss, climb.params, draws, precision)
    return climb_step(climb, value, gradient, neighbours, losses, floor)


def is_over(climb: Climb, steps: int, tolerance: float) -> bool:
    """Whether a climb has converged, has done its steps, or has left all finite numbers."""
    done = int(climb.step)
    return done >= steps or float(climb.best_norm) <= tolerance or not np.isfinite(float(_tree.largest(climb.params)))


def lowest_eigenvalues(
    loss: Loss, params: PyTree, data: Batch, key: Any, batch_size: int | None, precision: Precision
) -> tuple[np.ndarray, int]:
    """(the lowest eigenvalues of the Hessian, ascending; how many of all are negative).

    Up to 200 parameters the whole matrix is computed. Of a larger one the lowest three eigenvalues are found by
    Lanczos, so that a count of 3 means three or more. An eigenvalue within its residual of 0, or within rounding of the
    largest, counts as 0.

    Args:
      loss: the loss.
      params: the point.
      data: the data set or stream.
      key: draws the start vector of Lanczos.
      batch_size: examples per batch; None for all.
      precision: of matrix products.
    """
    H = operators.hessian(
        loss,
        params,
        data,
        batch_size=batch_size,
        batch_stats="batch" if has_statistics(loss) else "frozen",
        execution=Execution(devices=1, precision=precision),
    )
    eps = float(np.finfo(np.result_type(*(x.dtype for x in jax.tree.leaves(params)))).eps)
    if size_of(params) <= DENSE_MOST:
        matrix = operators.dense(H)
        values = np.linalg.eigvalsh((matrix + matrix.T) / 2)
        zero = ROUNDING * eps * float(np.abs(values).max())
        return values[:LOWEST], int((values < -zero).sum())
    found = eigen.eigenpairs(H, key, LOWEST, which="smallest", copies=False)
    residuals = np.asarray(found.residuals)
    values = np.asarray(found.values)
    return values, int((values < -residuals).sum())
