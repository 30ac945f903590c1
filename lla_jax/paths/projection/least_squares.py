"""Projects points onto axes that need not be orthogonal, by least squares with their Gram matrix, on the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse
from lla_jax.core.types import Directions, PyTree
from lla_jax.paths.projection.blocks import Blocks, Leaves, pieces

LARGEST_CONDITION = 1e12  # of the Gram matrix of the axes, scaled to norm 1: an angle between two of them of 2e-6
WELL_CONDITIONED = 1e3  # beyond, a second round removes what rounding of the first one leaves


class Frame(NamedTuple):
    """Axes through a centre.

    Args:
      axes: the leaves of each of the k axes.
      centre: the leaves of the centre.
      scales: (k,) the norms of the axes.
      gram: (k, k) the inner products of the axes, each scaled to norm 1.
    """

    axes: list[Leaves]
    centre: Leaves
    scales: np.ndarray
    gram: np.ndarray


def frame_of(axes: Directions, params: PyTree, centre: Leaves) -> Frame:
    """The axes with their Gram matrix.

    Args:
      axes: k directions.
      params: the parameters whose structure they must have.
      centre: the leaves of the centre.

    Raises:
      Misuse: axes of another structure than the centre, one that is zero, or axes that are nearly dependent.
    """
    tree = _tree.align(axes.tree, params, "axes", stacked=True)
    stacked = [np.asarray(x) for x in jax.tree.leaves(tree)]
    each = [[x[i] for x in stacked] for i in range(axes.num)]
    gram = np.zeros((axes.num, axes.num))
    for _, _, piece in pieces(each):
        gram += piece @ piece.T
    scales = np.sqrt(np.diag(gram))
    if not np.isfinite(gram).all():
        raise Misuse(
            "axes", "have NaN or infinite entries; every entry must be finite, so check what they were made from"
        )
    if not scales.all():
        raise Misuse("axes", f"direction {int(np.argmin(scales))} is zero everywhere; leave it out")
    gram = gram / np.outer(scales, scales)
    ends = np.linalg.eigvalsh(gram)
    if ends[0] <= ends[-1] / LARGEST_CONDITION:
        raise Misuse(
            "axes",
            f"its {axes.num} directions are linearly dependent up to rounding, so that coordinates along them are not "
            "unique; leave one out, or make them orthogonal, as lla.directions.between(..., orthogonal=True) does",
        )
    return Frame(each, centre, scales, gram)


def coordinates(
    frame: Frame, blocks: Blocks, report: Callable[[int], None] = lambda num: None
) -> tuple[np.ndarray, np.ndarray]:
    """The coordinates of checkpoints, and their distances from the line, plane or volume of the axes.

        c = argmin |x - centre - sum_i c_i d_i|,   distance = the norm that is left

    The distance is the norm of the difference itself: that of squares would lose half of the digits.

    Args:
      frame: the axes.
      blocks: the T checkpoints.
      report: called after every block with the number of its checkpoints.

    Returns:
      ((T, k) coordinates, (T,) distances), both float64.
    """
    found, left = [], []
    rounds = 1 if np.linalg.cond(frame.gram) < WELL_CONDITIONED else 2
    for block in blocks.slices:
        rows = blocks.read(block)
        coords = np.zeros((len(rows), len(frame.scales)))
        for _ in range(rounds):
            products, _ = _residual(frame, rows, coords)
            coords = coords + np.linalg.solve(frame.gram, products / frame.scales[:, None]).T / frame.scales
        _, rest = _residual(frame, rows, coords)
        found.append(coords)
        left.append(rest)
        report(len(rows))
    return np.concatenate(found), np.concatenate(left)


def _residual(frame: Frame, rows: list[Leaves], coords: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """((k, R) products of the axes with r, (R,) norms of r), r = row - centre - sum_i c_i d_i."""
    products, squares = np.zeros((len(frame.scales), len(rows))), np.zeros(len(rows))
    step = max(len(rows), len(frame.axes))
    for (_, _, piece), (_, _, axes) in zip(
        pieces(rows, frame.centre, step), pieces(frame.axes, None, step), strict=True
    ):
        # of few axes, products on one thread are as fast, and never wait for another one
        piece -= np.einsum("rk,kp->rp", coords, axes)
        products += np.einsum("kp,rp->kr", axes, piece)
        squares += np.einsum("rp,rp->r", piece, piece)
    return products, np.sqrt(squares)
