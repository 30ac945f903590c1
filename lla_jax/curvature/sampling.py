"""Settles how the targets of a Fisher matrix are drawn, and checks that their mean slope is zero."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import losses
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse
from lla_jax.core.operands import at_highest
from lla_jax.core.remembering import remember, shapes_of
from lla_jax.core.rows import outputs_of_rows
from lla_jax.core.types import Loss, PyTree
from lla_jax.curvature import criteria
from lla_jax.curvature.likelihoods import Likelihood, draw
from lla_jax.curvature.recognition import REMEDY, recognise

RECOGNISE = "recognise"
"""The sampler of a matrix whose likelihood is yet to be recognised."""

DRAWS, FEWEST_DRAWS = 256, 64  # of targets, over which slopes are averaged
MOST_OUTPUTS = 2**18  # of the rows that are looked at, unless one row alone has more
DRAWN_OUTPUTS = 2**24  # outputs times draws, roughly
SIGMAS = 6.0  # standard errors by which the mean slope may differ from zero

_SETTLED: dict[Hashable, Any] = {}  # the samplers of losses that were looked at


def settle(loss: Loss, params: PyTree, block: losses.Block, sampler: Any, train: bool) -> Any:
    """The sampler of the targets, recognised where it is ``RECOGNISE``, once its mean slope is known to be zero.

    A loss is looked at once for each sampler and shape.

    Raises:
      ValueError: as ``recognise`` and ``check_mean_slope``.
    """

    def look() -> Any:
        few = _shorten(loss, params, block, train)
        recognised = sampler == RECOGNISE
        found = recognise(loss, params, few, train) if recognised else sampler
        check_mean_slope(loss, params, few, found, train, recognised)
        return found

    return remember(_SETTLED, (shapes_of((loss, params, block)), sampler, train), look)


def _shorten(loss: Loss, params: PyTree, block: losses.Block, train: bool) -> losses.Block:
    """Fewer rows of a block where the outputs are many, such as scores of all words for each token."""
    sizes = [x.size for x in jax.tree.leaves(outputs_of_rows.eval_shape(loss, params, block, train=train))]
    rows = len(block.index)
    keep = int(np.clip(rows * MOST_OUTPUTS // max(1, sum(sizes)), 1, rows))
    return jax.tree.map(lambda x: x[:keep], block)


def check_mean_slope(
    loss: Loss, params: PyTree, block: losses.Block, sampler: Any, train: bool, recognised: bool
) -> None:
    """Check that the mean slope over drawn targets is zero, E_y[grad_f l(f, y)] = 0, as it is for every likelihood.

    The slope is taken along a tangent of the outputs, J J' g for a mean slope g of other draws, since outputs may be
    constrained (log-probabilities). Its variance is that of the draws, or the curvature along the tangent if this is
    larger: for a likelihood both have one mean, and a target that is rare may be in no draw.

    Raises:
      ValueError: the mean is farther from zero than 6 standard errors; or the criterion is a sum of squares, and the
        targets of a user's sampler have another variance than its Gaussian likelihood.
    """
    outputs = outputs_of_rows(loss, params, block, train=train)
    entries = sum(x.size for x in jax.tree.leaves(outputs))
    draws = int(np.clip(DRAWN_OUTPUTS // max(1, entries), FEWEST_DRAWS, DRAWS))
    statistics = functools.partial(_slope_statistics, loss, outputs, block, sampler=sampler, draws=draws)
    zero = jax.tree.map(jnp.zeros_like, criteria.split_smooth(outputs)[0])
    slope, _ = statistics(zero, 0)
    tangent = _tangent(loss, params, block, slope, train=train)
    mean, variance, curvature = (float(x) for x in statistics(tangent, 1)[1])
    error = np.sqrt(max(variance, curvature, 0.0) / draws)
    if not np.isfinite([mean, error]).all() or abs(mean) <= SIGMAS * error:
        if not recognised and curvature > 0:
            _check_variance(variance / curvature, draws, functools.partial(recognise, loss, params, block, train))
        return
    raise Misuse(
        "sample",
        f"the mean slope of the criterion over the drawn targets is {abs(mean) / error if error else np.inf:.0f} "
        "standard errors from zero, which it must be where targets are drawn from the likelihood whose negative "
        f"logarithm the criterion is{_blame(sampler, recognised)}; {REMEDY}",
    )


def _check_variance(ratio: float, draws: int, recognised: Callable[[], Likelihood]) -> None:
    """Check that a user's targets for a Gaussian criterion have its variance, which no mean slope shows.

    The slope of a negative log-likelihood has its mean curvature as variance (Bartlett's second identity); that of c
    times one has c times as much. So the ratio tells something only where c is known: a sum of squares is the negative
    logarithm of one Gaussian density, whose variance has the factor in it.

    Args:
      ratio: the variance of the slope over drawn targets, divided by the mean curvature.
      draws: the number of draws that gave the variance.
      recognised: gives the likelihood of the criterion; called only if the ratio is not 1 within its error.
    """
    if ratio > 0 and abs(np.log(ratio)) <= SIGMAS * np.sqrt(2 / (draws - 1)):
        return
    try:
        targets = recognised().targets
    except Misuse:  # a likelihood of the user's own
        return
    if all(target.family == "Gaussian" for target in targets):
        raise Misuse(
            "sample",
            f"the drawn targets have {ratio:.2g} times the variance of the Gaussian likelihood whose negative "
            "logarithm the criterion is; leave sample out, so that it is recognised, or draw with the criterion's own "
            "variance, functools.partial(lla.operators.gaussian, variance=s): s for sum((o - y)^2) / (2 s), so 1/2 for "
            "a sum of squares and D/2 for the mean of D squares",
        )


def _blame(sampler: Any, recognised: bool) -> str:
    if recognised:
        return f" (recognised was: {sampler})"
    return ": draw them with the criterion's own temperature, class axis, variance or rate"


@functools.partial(jax.jit, static_argnames=("sampler", "draws"))
@at_highest
def _slope_statistics(
    loss: Loss, outputs: Any, block: losses.Block, tangent: list[Any], seed: Any, *, sampler: Any, draws: int
) -> tuple[list[Any], tuple[Any, Any, Any]]:
    """(mean slope, (its mean along the tangent, the variance of a draw along it, mean curvature along it))."""
    smooth, rebuild = criteria.split_smooth(outputs)
    key = jax.random.fold_in(jax.random.key(0), seed)

    def one(number: Any) -> tuple[list[Any], Any, Any]:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, number), block.index)
        drawn = draw(sampler, loss, keys, outputs, block.batch)
        slope = lambda leaves: criteria.slopes(loss, rebuild(leaves), block.batch, drawn)  # noqa: E731
        g, turned = jax.jvp(slope, (smooth,), (tangent,))
        return g, _tree.dot(g, tangent), _tree.dot(turned, tangent)

    def add(sums: list[Any], number: Any) -> tuple[list[Any], Any]:
        g, *along = one(number)
        return jax.tree.map(lambda s, x: s + x / draws, sums, g), along

    sums, (along, turned) = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, smooth), jnp.arange(draws))
    return sums, (along.mean(), along.var(ddof=1), turned.mean())


@functools.partial(jax.jit, static_argnames="train")
@at_highest
def _tangent(loss: Loss, params: PyTree, block: losses.Block, slope: list[Any], *, train: bool) -> list[Any]:
    """J J' g for a slope g, with J' g of norm 1: the change of the outputs as the parameters move along -g."""

    def model(p: PyTree) -> list[Any]:
        return criteria.split_smooth(losses.outputs_of(loss, p, loss.state, block, train)[0])[0]

    pulled = jax.vjp(model, params)[1](slope)[0]
    size = _tree.norm(pulled)
    pulled = jax.tree.map(lambda x: x / jnp.where(size == 0, 1, size).astype(x.dtype), pulled)
    return jax.jvp(model, (params,), (pulled,))[1]
