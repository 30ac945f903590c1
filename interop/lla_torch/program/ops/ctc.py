"""Connectionist temporal classification: the likelihood of a sequence of labels, summed over all alignments."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_torch.program.operators import lowering

Array = jax.Array


def _log_sum(terms: list[Array]) -> Array:
    """log(sum exp) of several arrays, whose derivative is finite also where all are -inf."""
    top = jax.lax.stop_gradient(jnp.max(jnp.stack(terms), 0))
    top = jnp.where(jnp.isfinite(top), top, 0)
    total = sum((jnp.exp(each - top) for each in terms), jnp.zeros_like(top))
    none = total == 0
    return jnp.where(none, -jnp.inf, top + jnp.log(jnp.where(none, 1, total)))


def _extend(targets: Array, blank: int) -> Array:
    """The states (N, 2 S + 1): the labels (N, S) with a blank before, between and behind them."""
    states = jnp.full((targets.shape[0], 2 * targets.shape[1] + 1), blank, targets.dtype)
    return states.at[:, 1::2].set(targets)


def _negative_log_likelihoods(logp: Array, targets: Array, steps: Array, sizes: Array, blank: int) -> Array:
    """-log p(labels | log probabilities), (N,), by the forward recursion.

    Args:
      logp: (T, N, C).
      targets: (N, S), of which the first ``sizes[n]`` labels count.
      steps: (N,), how many of the T steps count.
      sizes: (N,).
      blank: the class that stands for no label.
    """
    states = _extend(targets, blank)
    count = states.shape[1]
    place = np.arange(count)
    exists = place < 2 * sizes[:, None] + 1
    differs = (states != blank) & (place >= 2) & (states != jnp.roll(states, 2, 1))
    of_state = jnp.take_along_axis(logp, jnp.broadcast_to(states, (logp.shape[0], *states.shape)), 2)
    never = jnp.full(states.shape, -jnp.inf, logp.dtype)
    first = jnp.where((place < 2) & exists, of_state[0], never)

    def step(alpha: Array, at: tuple[Array, Array]) -> tuple[Array, None]:
        time, scores = at
        moved = jnp.where(place >= 1, jnp.roll(alpha, 1, 1), never)
        skipped = jnp.where(differs, jnp.roll(alpha, 2, 1), never)
        new = jnp.where(exists, _log_sum([alpha, moved, skipped]) + scores, never)
        return jnp.where((time < steps)[:, None], new, alpha), None

    times = jnp.arange(1, logp.shape[0])
    alpha, _ = jax.lax.scan(step, first, (times, of_state[1:]))
    last = jnp.take_along_axis(alpha, 2 * sizes[:, None], 1)[:, 0]
    before = jnp.take_along_axis(alpha, jnp.maximum(2 * sizes - 1, 0)[:, None], 1)[:, 0]
    likelihood = _log_sum([last, jnp.where(sizes > 0, before, -jnp.inf)])
    return -jnp.where(steps > 0, likelihood, jnp.where(sizes > 0, -jnp.inf, 0))


def _padded(targets: Array, sizes: Array) -> Array:
    """Labels (N, S) from labels that lie one after the other; S is their number."""
    starts = jnp.cumsum(sizes) - sizes
    places = starts[:, None] + np.arange(targets.shape[0])
    return targets[jnp.minimum(places, targets.shape[0] - 1)] if targets.shape[0] else targets.reshape(-1, 0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4, 5))
def _losses(logp: Array, targets: Array, steps: Array, sizes: Array, blank: int, zero_infinity: bool) -> Array:
    """``_negative_log_likelihoods`` with torch's derivative, see ``ctc_loss``."""
    return _negative_log_likelihoods(logp, targets, steps, sizes, blank)


@_losses.defjvp
def _losses_jvp(blank: int, zero_infinity: bool, primals: Any, tangents: Any) -> tuple[Array, Array]:
    logp, targets, steps, sizes = primals
    value = _losses(logp, targets, steps, sizes, blank, zero_infinity)
    total = lambda p: jnp.sum(_negative_log_likelihoods(p, targets, steps, sizes, blank))  # noqa: E731
    counts = (jnp.arange(logp.shape[0])[:, None] < steps)[..., None]
    slope = jnp.where(counts, jnp.exp(logp), 0) + jax.grad(total)(logp)
    slope = jnp.where(jnp.isinf(value)[:, None] & counts, 0 if zero_infinity else jnp.nan, slope)
    return value, jnp.sum(slope * tangents[0], (0, 2))


@lowering("lla_torch.ctc_loss")
def ctc_loss(
    log_probs: Array, targets: Array, input_lengths: Array, target_lengths: Array, blank: int, zero_infinity: bool
) -> Array:
    """-log p(labels | log probabilities) of each example, (N,); with ``zero_infinity`` 0 where it is infinite.

    The derivative is torch's, that of the loss by the scores z whose log-softmax the log probabilities are:

        exp(log_probs[t, n, c]) - p(class c at step t | labels of n)

    torch has no second derivative. Ours is that of this expression, so that through a log-softmax the Hessian is exact.

    Args:
      log_probs: (T, N, C).
      targets: (N, S), or (sum of target_lengths,), one example after the other.
      input_lengths: (N,), at most T.
      target_lengths: (N,).
      blank: the class that stands for no label.
      zero_infinity: whether impossible labels, longer than the input allows, count as a loss of 0.

    References:
      Graves, Fernandez, Gomez, Schmidhuber (2006), "Connectionist temporal classification: labelling unsegmented
      sequence data with recurrent neural networks", ICML.
    """
    steps, sizes = (jnp.asarray(x).reshape(-1).astype(int) for x in (input_lengths, target_lengths))
    padded = targets if targets.ndim == 2 else _padded(targets, sizes)
    padded = jnp.where(np.arange(padded.shape[1]) < sizes[:, None], padded, blank)

    value = _losses(log_probs, padded, steps, sizes, blank, zero_infinity)
    return jnp.where(jnp.isinf(value), 0, value) if zero_infinity else value
