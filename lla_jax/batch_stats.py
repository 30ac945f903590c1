"""Normalization statistics re-estimated at every point of a landscape.

Moving the weights makes the running averages of BatchNorm stale. Here they are replaced, point by point, by the mean
over the batches of the statistics that the moved network really has. No framework is asked how it stores them: a
running average is recognised by how train mode changes it, new = m old + (1 - m) batch, and started from 0 it gives (1
- m) batch.

References: Izmailov et al. 2018, arXiv 1803.05407, section 3.2 (statistics recomputed after averaging weights).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax import _tree, execution
from lla_jax import data as _data
from lla_jax._types import Batch, Loss, PyTree


@functools.partial(jax.jit, static_argnames="size")
def _probe(loss: Loss, params: PyTree, batch: Batch, *, size: int) -> tuple[PyTree, ...]:
    """The state after one train-mode batch of ``size`` rows, started from itself, 0, S and 2S; and the scales S.

    S is as large as what the batch gives, so that differences keep their digits.
    """
    block = _data.block_at(batch, 0, size, size, 0)

    def after(state: PyTree) -> PyTree:
        return _data.outputs_of(loss, params, state, block, True)[1]

    from_zero = after(jax.tree_util.tree_map(lambda x: _filled(x, 0), loss.state))
    scales = jax.tree_util.tree_map(lambda x: jnp.maximum(1, 10 * jnp.abs(x).max(initial=0)), from_zero)
    once, twice = (
        after(jax.tree_util.tree_map(lambda x, s, k=k: _filled(x, k * s), loss.state, scales)) for k in (1, 2)
    )
    return after(loss.state), from_zero, once, twice, scales


def _filled(x: Any, value: Any) -> Any:
    return jnp.full_like(x, value) if jnp.issubdtype(x.dtype, jnp.floating) else x


def momenta(loss: Loss, params: PyTree, batch: Batch, size: int) -> list[float | None]:
    """Momentum m of each state leaf that is a running average, new = m old + (1 - m) batch; None for any other leaf.

    Args:
      loss: its state is probed in train mode on the first ``size`` rows of ``batch`` at ``params``.
      params: the centre.
      batch: rows to probe with.
      size: how many of them.

    Raises:
      ValueError: no leaf changes in train mode, or one changes but not as a running average.
    """
    start = _leaves(loss.state)
    probed = map(_leaves, _probe(loss, params, batch, size=size))
    found: list[float | None] = []
    for path, old, new, from0, from1, from2, scale in zip(_tree.paths(loss.state), start, *probed, strict=True):
        if not np.issubdtype(old.dtype, np.floating) or np.array_equal(old, new):
            found.append(None)
            continue
        slopes = np.diff(np.stack([from0, from1, from2]).astype(np.float64), axis=0) / scale
        m = float(slopes.mean())
        if abs(m - round(m, 6)) < 2e-7:  # 1 - m is needed more exactly than float32 tells it
            m = round(m, 6)
        if not 0 <= m < 1 or not np.allclose(slopes, m, atol=1e-4):
            raise ValueError(
                f"batch_stats: 'reestimate' needs running averages, but state leaf {path!r} is not updated as "
                "m*old + (1-m)*batch; use batch_stats='frozen' or 'batch'"
            )
        found.append(m)
    if not any(m is not None for m in found):
        raise ValueError(
            "batch_stats: 'reestimate' given, but no leaf of Loss.state changes in train mode: there is nothing to "
            "re-estimate; use batch_stats='frozen'"
        )
    return found


@functools.partial(jax.jit, static_argnames=("how", "size", "loop", "mesh", "averaged"))
def batch_step(loss, params, directions, coords, data, start, offset, *, how, size, loop, mesh, averaged) -> list[Any]:
    """(C, state): (1 - m) x the batch statistics of one batch at every point, in the leaves marked ``averaged``."""

    def run(loss, params, directions, coords, data, start, offset):
        block = _data.block_at(data, start, size, start + size, offset)
        leaves, structure = jax.tree_util.tree_flatten(loss.state)
        zeroed = [jnp.zeros_like(x) if a else x for x, a in zip(leaves, averaged, strict=True)]
        zeroed = jax.tree_util.tree_unflatten(structure, zeroed)

        def one(c):
            new = _data.outputs_of(loss, how.rule(params, directions, c), zeroed, block, True)[1]
            return [x for x, a in zip(jax.tree_util.tree_leaves(new), averaged, strict=True) if a]

        return execution.map_points(one, coords, loop)

    split = (False, False, False, True, False, False, False)
    return execution.over_points(run, mesh, split)(loss, params, directions, coords, data, start, offset)


def _leaves(tree: PyTree) -> list[np.ndarray]:
    return [np.asarray(x) for x in jax.tree_util.tree_leaves(tree)]


def restored(state: PyTree, sums: list[np.ndarray], momenta: list[float | None], weight: float) -> PyTree:
    """The state with a leading axis C: ``sums`` over batches of batch_step x rows, divided by rows and by 1 - m."""
    points, averages = len(sums[0]), iter(sums)
    new = [
        np.broadcast_to(x, (points, *x.shape)) if m is None else (next(averages) / (weight * (1 - m))).astype(x.dtype)
        for x, m in zip(_leaves(state), momenta, strict=True)
    ]
    return jax.tree_util.tree_unflatten(jax.tree_util.tree_structure(state), new)
