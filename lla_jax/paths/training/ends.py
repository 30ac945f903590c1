"""Checks the two solutions that a curve shall connect, and puts them side by side with the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lla_jax.core import precision
from lla_jax.core.arguments import Misuse
from lla_jax.core.losses import as_loss
from lla_jax.core.types import Loss, PyTree
from lla_jax.paths.curves import stack_points
from lla_jax.paths.end_states import states_of_ends
from lla_jax.paths.host_trees import distance, size_of, unstack


@dataclass(frozen=True, eq=False)
class Ends:
    """Two solutions of one network.

    Args:
      loss: the loss, for parameters of 32 bits at least; its state is a's.
      a: the first solution, in 32 bits at least.
      b: the second one, in the structure of ``a``.
      states: the states of both, a stacked tree; None for a loss without state.
      distance: |b - a|.
    """

    loss: Loss
    a: PyTree
    b: PyTree
    states: PyTree
    distance: float

    @property
    def size(self) -> int:
        """Number of parameters."""
        return size_of(self.a)


def make_ends(loss: Loss | Callable[..., Any], a: PyTree, b: PyTree, state_b: PyTree = None) -> Ends:
    """The ends of a curve from ``a`` to ``b``, after their check.

    Args:
      loss: a ``Loss``, whose state is that of ``a``, or a plain ``f(params, batch) -> scalar``.
      a, b: the parameters of both.
      state_b: the state of ``b`` (BatchNorm statistics).

    Raises:
      ValueError: parameters that are not real, floating and finite; of different structure or shape; the same twice; a
        second state that is missing, superfluous or of another structure.
    """
    loss = as_loss(loss)
    stacked = stack_points([a, b], ["a", "b"])
    states = states_of_ends(loss, state_b)
    a, b = unstack(stacked)
    apart = distance(a, b)
    if apart == 0:
        raise Misuse("b", "equals a, so that there is no way between them; pass another solution")
    wide_loss, _ = precision.at_least_single(loss, a)
    a, b = precision.widen(a), precision.widen(b)
    if wide_loss is not loss:
        states = precision.widen(states)
    return Ends(wide_loss, a, b, states, apart)
