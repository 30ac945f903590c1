"""Reads paths in blocks of checkpoints, and cuts these into pieces in float64, so that memory is bounded.

All sums over the entries of checkpoints are taken piece by piece: nothing as large as a path is ever held.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from lla_jax.core import interrupts
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse
from lla_jax.core.types import PyTree
from lla_jax.paths.curves import Curve
from lla_jax.paths.host_trees import bytes_of
from lla_jax.paths.trajectories import Trajectory, as_trajectory

Leaves = list[np.ndarray]

BLOCK_BYTES = 2**28  # of the checkpoints of one block
PIECE = 2**21  # numbers in float64 that are held of one block
LEAST_PIECE = 256


def runs_of(path: Any) -> tuple[list[Trajectory], bool]:
    """(the runs of a path, whether it is a list of several): a list of trajectories is one, a list of trees is not.

    A curve is the path of its points.

    Raises:
      Misuse: no path, a run without checkpoints, or runs of different structure.
    """
    if isinstance(path, list | tuple) and path and all(isinstance(run, Trajectory | Curve) for run in path):
        runs = [as_trajectory(_points_of(run), f"path[{i}]") for i, run in enumerate(path)]
        for i, run in enumerate(runs):
            _tree.align(run.like, runs[0].like, f"path[{i}]", "path[0]")
        return runs, True
    if isinstance(path, list | tuple):
        for i, run in enumerate(path):
            if isinstance(run, Trajectory | Curve):
                text = (
                    f"its entry {i} is a trajectory, and others are none; several runs are a list of trajectories, and "
                )
                raise Misuse("path", f"{text}a tree among them is one as lla.paths.given([tree])")
    return [as_trajectory(_points_of(path))], False


def _points_of(path: Any) -> Any:
    return path.trajectory() if isinstance(path, Curve) else path


def leaves_of(params: PyTree, like: PyTree, name: str) -> Leaves:
    """The leaves of parameters in the order of the checkpoints' own, on the host.

    Raises:
      Misuse: another structure, other shapes, or entries that are not finite.
    """
    _tree.check_real(params, name)
    return [np.asarray(x) for x in jax.tree.leaves(_tree.align(params, like, name, "the first checkpoint"))]


class Blocks:
    """The checkpoints of one or more runs, one after another, in blocks of ``BLOCK_BYTES``, or of one checkpoint.

    The block that was read last is kept, so that a path of one block is read once, however often it is passed through.

    Args:
      runs: the trajectories.
    """

    def __init__(self, runs: Sequence[Trajectory]):
        self.like = runs[0].like
        self.where = [(run, i) for run in runs for i in range(len(run))]
        self.size = min(len(self.where), max(1, BLOCK_BYTES // max(1, bytes_of(self.like))))
        self._last: tuple[tuple[int, int], list[Leaves]] = (0, 0), []

    def __len__(self) -> int:
        return len(self.where)

    @property
    def slices(self) -> list[slice]:
        """The checkpoints of each block."""
        return [slice(i, min(i + self.size, len(self))) for i in range(0, len(self), self.size)]

    def read(self, block: slice) -> list[Leaves]:
        """The leaves of each checkpoint of a block, not to be written to. An interrupt acts between two of them.

        Raises:
          Misuse: a checkpoint with entries that are not finite, or of another structure; it is named.
        """
        bounds = block.start, block.stop
        if self._last[0] != bounds:
            self._last = (0, 0), []  # before the next one takes its memory
            self._last = bounds, [self._leaves(run, i) for run, i in self.where[block]]
        return self._last[1]

    def middle(self) -> Leaves:
        """The leaves of the checkpoint halfway, read by itself."""
        return self._leaves(*self.where[len(self) // 2])

    def _leaves(self, run: Trajectory, i: int) -> Leaves:
        interrupts.check_interrupt()
        return [np.asarray(x) for x in jax.tree.leaves(_tree.align(run[i], self.like, f"path[{i}]"))]


def pieces(
    rows: Sequence[Leaves], centre: Leaves | None = None, most: int | None = None
) -> Iterator[tuple[int, slice, np.ndarray]]:
    """The rows, less the centre, in pieces.

    Args:
      rows: R trees by their leaves.
      centre: a tree that is subtracted in float64, so that small differences of large numbers keep their digits.
      most: the number of rows by which the length of a piece is chosen, where several blocks are cut alike; default R.

    Yields:
      (number of the leaf, the part of its entries, (R, part) float64).
    """
    step = max(LEAST_PIECE, PIECE // max(1, most or len(rows)))
    for leaf in range(len(rows[0])):
        flat = [row[leaf].reshape(-1) for row in rows]
        for start in range(0, flat[0].size, step):
            part = slice(start, min(start + step, flat[0].size))
            piece = np.stack([x[part] for x in flat]).astype(np.float64)
            if centre is not None:
                piece -= centre[leaf].reshape(-1)[part].astype(np.float64)
            yield leaf, part, piece
