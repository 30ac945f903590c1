"""Re-estimates normalization statistics at every point of a landscape.

Moving the weights makes the running averages of BatchNorm stale. Here they are replaced, point by point, by the mean
over the batches of the statistics that the network has at that point. No framework is asked where it keeps running
averages: one is recognised by its update in train mode, new = m old + (1 - m) batch. With old = 0 this update gives
(1 - m) batch.

References: Izmailov et al. 2018, arXiv 1803.05407, section 3.2 (statistics recomputed after averaging weights).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lla_jax.core import losses
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse
from lla_jax.core.operands import at_highest
from lla_jax.core.types import Batch, Loss, PyTree
from lla_jax.execution import devices, plans
from lla_jax.landscape.kernels import Blocks, Formula, Points
from lla_jax.landscape.rules import params_at


@functools.partial(jax.jit, static_argnames="size")
@at_highest
def _state_after(loss: Loss, params: PyTree, state: PyTree, batch: Batch, *, size: int) -> PyTree:
    """The state after one call in train mode on the first ``size`` rows of a batch."""
    block = losses.block_at(batch, 0, size, size, 0)
    return losses.outputs_of(loss, params, state, block, True)[1]


@functools.partial(jax.jit, static_argnames=("size", "changing"))
def _updates(
    loss: Loss, params: PyTree, batch: Batch, *, size: int, changing: tuple[bool, ...]
) -> tuple[list[Any], ...]:
    """Update the state three times by one batch in train mode, with the ``changing`` leaves started from 0, S and 2S.

    Returns:
      (leaves from 0, leaves from S, leaves from 2S, scales S), one entry per state leaf in each. S is of the size of
      the batch's own statistics, so that differences keep their digits. Leaves that are not ``changing`` start from
      their own values, since the statistics may depend on them.
    """
    leaves, structure = jax.tree.flatten(loss.state)

    def update(values: list[Any]) -> list[Any]:
        state = [jnp.full_like(x, v) if c else x for x, v, c in zip(leaves, values, changing, strict=True)]
        new = _state_after(loss, params, jax.tree.unflatten(structure, state), batch, size=size)
        return jax.tree.leaves(new)

    from_zero = update([0] * len(leaves))
    scales = [jnp.maximum(1, 10 * jnp.abs(x).max(initial=0)) for x in from_zero]
    return from_zero, update(scales), update([2 * s for s in scales]), scales


def momenta(loss: Loss, params: PyTree, batch: Batch, size: int) -> list[float | None]:
    """The momentum m of each state leaf that is a running average, new = m old + (1 - m) batch; None for other leaves.

    Args:
      loss: the loss; copies of its state are updated in train mode to see how each leaf changes.
      params: the centre.
      batch: the examples of the update.
      size: number of examples taken, from the first on.

    Raises:
      ValueError: no leaf changes in train mode, or one changes but not as a running average.
    """
    changing = _changing(loss, params, loss.state, batch, size)
    if not all(
        c or not np.issubdtype(x.dtype, np.floating) for x, c in zip(_leaves(loss.state), changing, strict=True)
    ):
        # averages that are those of this very batch stay what they are, and buffers stay wherever they are
        moved = jax.tree.map(lambda x: x + 1 if jnp.issubdtype(x.dtype, jnp.floating) else x, loss.state)
        changing = tuple(map(max, changing, _changing(loss, params, moved, batch, size)))
    updates = map(_leaves, _updates(loss, params, batch, size=size, changing=changing))
    by_leaf: list[float | None] = []
    for path, changes, from0, from1, from2, scale in zip(_tree.paths(loss.state), changing, *updates, strict=True):
        if not changes:
            by_leaf.append(None)
            continue
        slopes = np.diff(np.stack([from0, from1, from2]).astype(np.float64), axis=0) / scale
        m = float(slopes.mean())
        if abs(m - round(m, 6)) < 2e-7:  # float32 gives m to about 1e-7, and 1 - m is needed more exactly
            m = round(m, 6)
        if not 0 <= m < 1 or not np.allclose(slopes, m, atol=1e-4):
            raise Misuse(
                "batch_stats",
                f"'reestimate' needs running averages, but state leaf {path!r} is not updated as m*old + (1-m)*batch; "
                "use batch_stats='frozen' or 'batch'",
            )
        by_leaf.append(m)
    if not any(m is not None for m in by_leaf):
        raise Misuse(
            "batch_stats",
            "'reestimate' given, but no leaf of Loss.state changes in train mode, so nothing can be re-estimated; use "
            "batch_stats='frozen'",
        )
    return by_leaf


def _changing(loss: Loss, params: PyTree, state: PyTree, batch: Batch, size: int) -> tuple[bool, ...]:
    """Whether each leaf of a state is floating, and becomes other finite numbers in a call in train mode."""
    new = _leaves(_state_after(loss, params, state, batch, size=size))
    return tuple(
        bool(np.issubdtype(x.dtype, np.floating) and not np.array_equal(x, y) and np.isfinite(y).all())
        for x, y in zip(_leaves(state), new, strict=True)
    )


@functools.partial(jax.jit, static_argnames=("formula", "size", "loop", "mesh", "is_average"))
def batch_statistics(
    loss: Loss, points: Points, rows: Blocks, *, formula: Formula, size: int, loop: str, mesh: Mesh, is_average: Any
) -> list[Any]:
    """Compute (1 - m) times the statistics of one batch at C points, for the state leaves that ``is_average`` marks.

    Args:
      loss: the loss.
      points: the C points.
      rows: the data; the batch is the ``size`` rows from ``rows.starts`` on, all of which count.
      formula: gives the rule and the precision.
      size: number of rows of the batch.
      loop: "map" or "vmap" over the points.
      mesh: the devices.
      is_average: for each leaf of the state, whether it is a running average.

    Returns:
      One array for each running average, with a leading axis C.
    """

    def run(loss: Loss, params: PyTree, directions: PyTree, coords: Any, states: PyTree, *rows: Any) -> Any:
        data, start, offset = rows
        block = losses.block_at(data, start, size, start + size, offset)

        def zeroed(state: PyTree) -> PyTree:
            leaves, structure = jax.tree.flatten(state)
            values = [jnp.zeros_like(x) if a else x for x, a in zip(leaves, is_average, strict=True)]
            return jax.tree.unflatten(structure, values)

        @jax.default_matmul_precision(formula.precision)
        def one(c: Any, state: PyTree) -> list[Any]:
            new = losses.outputs_of(loss, params_at(formula.rule, params, directions, c), state, block, True)[1]
            return [x for x, a in zip(jax.tree.leaves(new), is_average, strict=True) if a]

        if states is None:
            state = zeroed(loss.state)
            return plans.map_points(lambda c: one(c, state), coords, loop)
        return plans.map_points(lambda point: one(point[0], zeroed(point[1])), (coords, states), loop)

    split = (False, False, False, True, True, False, False, False)
    return devices.shard_over_points(run, mesh, split)(loss, *points, rows.data, rows.starts, rows.offset)


def _leaves(tree: PyTree) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree.leaves(tree)]


def restore_state(state: PyTree, sums: list[np.ndarray], momenta: list[float | None], weight: float) -> PyTree:
    """The state at C points, with a leading axis C on every leaf and re-estimated running averages, on the host.

    Args:
      state: the state at each point before, with a leading axis C; leaves that are no running averages stay.
      sums: for each running average, the sum over batches of ``batch_statistics`` times the rows of the batch.
      momenta: the momentum m of each leaf of the state; None for a leaf that is no running average.
      weight: number of rows of all batches.
    """
    averages = iter(sums)
    new = [
        x if m is None else (next(averages) / (weight * (1 - m))).astype(x.dtype)
        for x, m in zip(_leaves(state), momenta, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(state), new)
