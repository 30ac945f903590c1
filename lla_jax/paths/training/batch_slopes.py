"""Computes the loss of a batch and its gradient at given parameters, as a training does: in train mode.

    L(theta) = (sum_i w_i l_i(theta)) / (sum_i w_i) + penalty(theta),   i over the examples of the batch

Normalization layers use the statistics of the batch, if the loss has batch statistics; a loss with a key draws its
noise anew at each step. These are pure functions, to be called in a jitted step.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from lla_jax.core import losses
from lla_jax.core.losses import Block
from lla_jax.core.types import Loss, PyTree
from lla_jax.paths.host_trees import has_floats


def has_statistics(loss: Loss) -> bool:
    """Whether a loss has a state with floating numbers, such as the running averages of BatchNorm.

    Such a loss is trained in train mode, ``apply(..., train=True)``; without a state both modes are the same, since
    noise follows from the loss's key.
    """
    return has_floats(loss.state)


def with_fresh_noise(loss: Loss, step: Any) -> Loss:
    """The loss of a step: a key is folded with the step's number, so that each step draws other noise."""
    return loss if loss.key is None else replace(loss, key=jax.random.fold_in(loss.key, step))


def slope(loss: Loss, params: PyTree, block: Block) -> tuple[Any, PyTree]:
    """The loss of a batch at given parameters, and its gradient.

    Args:
      loss: a ``Loss`` for parameters of 32 bits at least (``precision.at_least_single``).
      params: the parameters.
      block: the batch; rows that are masked out have no part in a loss per example. With batch statistics, and in a
        batch-coupled loss, no row may be masked.

    Returns:
      (the loss, a scalar; the gradient, a tree like ``params``). Where all weights are 0, nothing counts: the loss is
      NaN, and the gradient that of the penalty.
    """
    train = has_statistics(loss)

    def mean(p: PyTree) -> tuple[Any, Any]:
        total, weight = losses.loss_total(loss, losses.outputs_of(loss, p, loss.state, block, train)[0], block)
        value = jnp.where(weight != 0, total, 0) / jnp.where(weight != 0, weight, 1)
        added = 0.0 if loss.penalty is None else losses.penalty_of(loss, p)
        return value + added, jnp.where(weight != 0, value, jnp.nan) + added

    (_, shown), gradient = jax.value_and_grad(mean, has_aux=True)(params)
    return shown, gradient
