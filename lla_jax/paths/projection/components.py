"""Principal components of a path: the axes along which training moved most, and their shares beside a random walk's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, overload

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import precision, recipes
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse, check_integer, is_integer, misuse, warn_caller
from lla_jax.core.interrupts import deferred_interrupts
from lla_jax.core.signatures import explained
from lla_jax.core.types import Directions, PyTree, Recipe
from lla_jax.directions import centres
from lla_jax.directions.checks import check_directions
from lla_jax.execution.progress import AskedProgress, takes_progress
from lla_jax.paths.projection.blocks import Blocks, Leaves, leaves_of, pieces, runs_of
from lla_jax.paths.projection.least_squares import coordinates, frame_of
from lla_jax.paths.trajectories import Trajectory

RESOLVED = 32 * float(np.finfo(np.float64).eps)  # of an eigenvalue of a Gram matrix, relative to the largest, per row


class Spread(NamedTuple):
    """How the checkpoints of a path lie around their mean.

    Args:
      variances: (T - 1,) eigenvalues of the mean-centred Gram matrix, descending, 0 where rounding makes them.
      vectors: (T, T - 1) its eigenvectors, the coordinates of the checkpoints along the components up to a factor.
      rank: the number of components that are not 0.
      lost: the share of the sum of all eigenvalues that was set to 0.
      rounding: the sum over checkpoints of the squared norms of what rounding to their types can change.
    """

    variances: np.ndarray
    vectors: np.ndarray
    rank: int
    lost: float
    rounding: float


@overload
def pca(
    path: Trajectory, params: PyTree = None, num: int = 2, *, progress: AskedProgress = None
) -> tuple[Directions, np.ndarray]: ...


@overload
def pca(
    path: Sequence[Trajectory], params: PyTree = None, num: int = 2, *, progress: AskedProgress = None
) -> tuple[Directions, list[np.ndarray]]: ...


@overload
def pca(
    path: Sequence[PyTree], params: PyTree = None, num: int = 2, *, progress: AskedProgress = None
) -> tuple[Directions, np.ndarray]: ...


@takes_progress("checkpoints")
@deferred_interrupts()
@explained
def pca(
    path: Any, params: PyTree = None, num: int = 2, *, progress: AskedProgress = None
) -> tuple[Directions, np.ndarray | list[np.ndarray]]:
    """The principal components of a path as axes of unit norm, and the coordinates of its checkpoints along them.

        G_st = (x_s - m)'(x_t - m),  m = mean of all checkpoints;   G v_k = l_k v_k,   d_k ~ sum_t v_kt (x_t - m)
        share of component k = l_k / sum_j l_j;                     coords_tk = (x_t - params)'d_k

    Only the T x T matrix G grows with the number of checkpoints, which are read from disk in blocks. Products are in
    float64, of differences to one of the checkpoints, so that small movements of large weights keep their digits.

    A random walk looks structured, too: in many dimensions its share of component k tends to 6 / (pi^2 k^2), and its
    coordinates are cosines of the time. So ``recipe["random_walk"]`` has the shares of a random walk of T checkpoints,

        1 / (4 sin^2(pi k / (2 T))) / ((T^2 - 1) / 6),   k = 1 .. T - 1

    the eigenvalues of the mean-centred matrix min(s, t) over their sum. Of several runs these are the eigenvalues of
    independent walks from one point.

    Args:
      path: a ``Trajectory``, a sequence of T parameter trees, or a curve. A list of trajectories are several runs on
        one plane, with the components of all their checkpoints.
      params: the parameters through which the line, plane or volume is drawn, to be passed to ``lla.evaluate``; it
        changes neither the components nor their shares. Default: the last checkpoint, of several runs that of the first
        one.
      num: the number of axes.
      progress: True for a bar, or a function called as ``progress(done, total)`` in checkpoints read.

    Returns:
      (axes, coords): ``num`` directions in float32 at least, with names such as "PC 1: 61 %", and float64 coordinates
      (T, num) relative to ``params``, of several runs a list of these. The beginning of a path lies on the positive
      side of each axis. The recipe has "explained_variance" and "random_walk", the shares of all T - 1 components, each
      with the sum 1; "rank", the number of components that are not 0; "rounding", the share that was set to 0, since
      the types of the checkpoints make it by rounding.

    Raises:
      ValueError: fewer than two checkpoints, or identical ones; more axes than the path has components, such as a plane
        of a straight line; checkpoints of different structure, or with entries that are not finite (it is named).

    Warns:
      UserWarning: a component so small that it may be rounding added up during training.

    References: Li et al. 2018, arXiv 1712.09913, section 7.2; Antognini and Sohl-Dickstein 2018, arXiv 1806.08805.
    Where we differ from Li's code: the components belong to the checkpoints around their mean, as the word says, and
    not around the last one, which adds the distance of the mean from it to the first share.
    """
    runs, several = runs_of(path)
    num = check_integer("num", num, remedy="the number of axes, such as 2 for a plane")
    blocks = Blocks(runs)
    total = len(blocks)
    if total < 2:
        raise Misuse("path", f"has {total} checkpoint; at least 2 are needed, and 3 for a plane: record more often")
    if is_integer(params):
        raise misuse("params", params, f"parameters, the centre of the axes; their number is num: num={params}")
    params = runs[0][-1] if params is None else params
    centre = leaves_of(params, runs[0].like, "params")
    count = _counter(progress, sum(total - block.start for block in blocks.slices) + 2 * total)
    origin = blocks.middle()
    gram, rounding, changing = _gram_matrix(blocks, origin, count)
    spread = _spread(gram, rounding + changing * sum(len(run) * _error_of(run) ** 2 for run in runs))
    _check_rank(spread, num, blocks, len(runs))
    _warn_of_walks(spread, num, runs)
    tree = _axes(blocks, origin, spread.vectors[:, :num], count)
    shares = spread.variances / spread.variances.sum()
    recipe = Recipe(
        kind="pca",
        names=[f"PC {k + 1}: {_percent(shares[k])}" for k in range(num)],
        explained_variance=shares.tolist(),
        random_walk=random_walk(*map(len, runs)).tolist(),
        rank=spread.rank,
        rounding=spread.lost,
        checkpoints=[len(run) for run in runs] if several else total,
        steps=[[int(run.steps[0]), int(run.steps[-1])] for run in runs],
        deviation=float(np.sqrt(spread.variances.sum() / total)),
    )
    recipe = centres.add(recipe, "the plane of a path", params, fingerprint=recipes.fingerprint(params))
    axes = check_directions(tree, recipe, "its checkpoints are identical: pass others")
    coords, _ = coordinates(frame_of(axes, runs[0].like, centre), blocks, count)
    return axes, split(coords, runs) if several else coords


def random_walk(*lengths: int) -> np.ndarray:
    """(T - 1,): the shares of the components of a random walk of T checkpoints in many dimensions, descending.

    Args:
      lengths: T; of several independent walks from one point, the number of checkpoints of each. Walks of one
        checkpoint each have no steps, and 0 for all shares.
    """
    total = sum(lengths)
    if len(lengths) == 1:
        values = 1 / np.square(np.sin(np.pi * np.arange(1, total) / (2 * total)))
    else:
        gram = np.zeros((total, total))
        ends = np.cumsum(lengths)
        for start, end in zip(ends - lengths, ends, strict=True):
            time = np.arange(end - start)
            gram[start:end, start:end] = np.minimum(time[:, None], time)
        values = np.maximum(np.linalg.eigvalsh(_centred(gram))[:0:-1], 0)
    return values / (values.sum() or 1)


def split(array: np.ndarray, runs: Sequence[Trajectory]) -> list[np.ndarray]:
    """The rows of all checkpoints, run by run."""
    return np.split(array, np.cumsum([len(run) for run in runs])[:-1])


def _counter(progress: Callable[[float, float | None], None] | None, total: int) -> Callable[[int], None]:
    """A function that is called with a number of checkpoints that were read, and reports how many were so far."""
    done = 0

    def count(num: int) -> None:
        nonlocal done
        done += num
        if progress is not None:
            progress(done, total)

    return count


def _error_of(run: Trajectory) -> float:
    """The largest error of an entry of a recording that keeps differences in half precision; 0 of other paths."""
    differences = run.recipe.get("differences")
    return float(differences.get("largest_rounding", 0.0)) if isinstance(differences, dict) else 0.0


def _gram_matrix(blocks: Blocks, origin: Leaves, count: Callable[[int], None]) -> tuple[np.ndarray, float, int]:
    """(products of the differences to the origin, squares of what rounding can change, number of entries that change).

    Rounding changes an entry by eps |x| at most: twice half a unit, of a sum, and of a product in it. Entries that no
    checkpoint changes, as of frozen layers, add nothing to the differences, and none of their rounding is counted.
    """
    gram, slices = np.zeros((len(blocks), len(blocks))), blocks.slices
    largest = [np.zeros(leaf.size, np.float32) for leaf in origin]
    moved = [np.zeros(leaf.size, bool) for leaf in origin]
    for number, one in enumerate(slices):
        rows = blocks.read(one)
        for leaf, part, piece in pieces(rows, origin):
            gram[one, one] += piece @ piece.T
            start, low, high = origin[leaf].reshape(-1)[part].astype(np.float64), piece.min(0), piece.max(0)
            moved[leaf][part] |= (low != 0) | (high != 0)
            size = np.maximum(abs(start + low), abs(start + high))
            np.maximum(largest[leaf][part], size, out=largest[leaf][part], casting="unsafe")
        count(len(rows))
        for other in slices[number + 1 :]:
            columns = blocks.read(other)
            for (_, _, left), (_, _, right) in zip(
                pieces(rows, origin, len(rows)), pieces(columns, origin, len(rows)), strict=True
            ):
                gram[one, other] += left @ right.T
            gram[other, one] = gram[one, other].T
            count(len(columns))
            del columns
    rounding, changing = 0.0, 0
    for x, size, at in zip(origin, largest, moved, strict=True):
        rounding += float(jnp.finfo(x.dtype).eps) ** 2 * float(np.square(size[at], dtype=np.float64).sum())
        changing += int(at.sum())
    return gram, len(blocks) * rounding, changing


def _centred(gram: np.ndarray) -> np.ndarray:
    """H G H, H = I - 1 1' / T: the products of the differences to the mean."""
    rows = gram - gram.mean(0)
    centred = rows - rows.mean(1, keepdims=True)
    return (centred + centred.T) / 2


def _spread(gram: np.ndarray, rounding: float) -> Spread:
    """The eigenvalues and eigenvectors of the mean-centred Gram matrix, without those that rounding can make.

    Of a path of rank r with the rounding N, the eigenvalues beyond the r-th sum to |N|^2 at most (Eckart and Young). So
    the rank is the least for which they do. Each may be below |N|^2 where all together are not, as of a random walk.
    """
    total = len(gram)
    values, vectors = np.linalg.eigh(_centred(gram))
    values, vectors = np.maximum(values[:0:-1], 0), vectors[:, :0:-1]
    tails = np.cumsum(values[::-1])[::-1]
    kept = (tails > rounding) & (values > RESOLVED * total * values[0])
    signs = np.sign(vectors.T @ (1 / np.arange(1, total + 1)))
    lost = float(values[~kept].sum() / values.sum()) if values.sum() > 0 else 0.0
    rank = int(kept.sum())
    return Spread(np.where(kept, values, 0), vectors * np.where(signs < 0, -1, 1), rank, lost, rounding)


def _check_rank(spread: Spread, num: int, blocks: Blocks, runs: int) -> None:
    """Raise an error if the path has fewer components than axes are asked for."""
    where = f"{len(blocks)} checkpoints{f' of {runs} runs' if runs > 1 else ''}"
    types = ", ".join(precision.types_of(blocks.like))
    if not spread.rank:
        alike = f"differ by no more than the rounding of {types}" if spread.lost else "are identical"
        wider = ", or in a wider type if these numbers are exact" if spread.lost else ""
        raise Misuse(
            "path", f"its {where} {alike}, which gives no direction; pass those of a training that moves{wider}"
        )
    if spread.rank < num:
        what = "they lie on a straight line" if spread.rank == 1 else f"{spread.rank} axes hold all of them"
        raise Misuse(
            "path",
            f"its {where} have rank {spread.rank} ({what}, but for the rounding of {types}), and num={num} given; pass "
            f"num={spread.rank}, or join these with a random direction: lla.directions.join(lla.paths.pca(path, "
            f"num={spread.rank})[0], lla.directions.random(key, params))",
        )


def _warn_of_walks(spread: Spread, num: int, runs: Sequence[Trajectory]) -> None:
    """Warn of an axis that may be the rounding of every training step, added up as a random walk does."""
    steps = max(max(len(run), int(run.steps[-1] - run.steps[0])) for run in runs)
    if spread.variances[num - 1] <= steps * spread.rounding:
        first = int(np.argmax(spread.variances <= steps * spread.rounding))
        ratio = np.sqrt(spread.variances[first] / spread.variances[0])
        warn_caller(
            f"path: component {first + 1} has {ratio:.1g} of the length of the first one, which rounding of the "
            f"parameters can make if it adds up over {steps:,} steps; train in float64 to tell them apart"
            + (f", or pass num={first}" if first else "")
        )


def _axes(blocks: Blocks, origin: Leaves, vectors: np.ndarray, count: Callable[[int], None]) -> PyTree:
    """The stacked tree of the directions, of norm 1: sum_t v_kt (x_t - origin), in which the mean drops out."""
    num = vectors.shape[1]
    sums = [np.zeros((num, leaf.size)) for leaf in origin]
    for block in reversed(blocks.slices):  # the last one was read last
        rows = blocks.read(block)
        for leaf, part, piece in pieces(rows, origin):
            sums[leaf][:, part] += np.einsum("tk,tp->kp", vectors[block], piece)
        count(len(rows))
    norms = np.sqrt(sum(np.einsum("kp,kp->k", x, x) for x in sums))[:, None]
    shapes = [(_tree.shape_dtype(leaf), leaf.shape) for leaf in origin]
    made = [
        jnp.asarray((x / norms).reshape(num, *shape), _tree.wide(dtype))
        for x, ((_, dtype), shape) in zip(sums, shapes, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(blocks.like), made)


def _percent(share: float) -> str:
    """A share in percent with two digits: 61 %, 6.7 %."""
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.2g} %"
