"""Decides when an estimate has draws enough, and says what more draws would take."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from lla_jax.core.text import pm
from lla_jax.curvature.room import Memory
from lla_jax.curvature.sketches import AT_ONCE

log = logging.getLogger("lla_jax")

LEAST_DRAWS = 2 * AT_ONCE  # for a standard error to be believed; of fewer, one in forty is half the true one or less
NEAR_ZERO = 2.0  # standard errors: a value within them may be zero
PRODUCTS_EACH = {"hutchinson": 1, "hutch++": 3, "xtrace": 2}  # that a draw takes


class Round(NamedTuple):
    """The state of an estimate after a block of draws.

    Args:
      mean: of the draws; where it is a tree, its norm.
      sem: standard error of the mean, likewise.
      num: draws.
      products: products used.
      value: makes (mean, sem) where they are trees.
      exact: whether the mean has no error.
      trouble: why there can be no more draws; None if there can.
      memory: what the draws take.
    """

    mean: float
    sem: float
    num: int
    products: int
    value: Callable[[], tuple[Any, Any]] | None = None
    exact: bool = False
    trouble: str | None = None
    memory: Memory = Memory(0, 0)

    def times(self, size: float) -> Round:
        """The same, multiplied by the size of its unit; trees in float64, since their type may not hold the numbers."""
        if size == 1:
            return self
        tree = self.value and self.value()
        scaled = tree and jax.tree.map(lambda x: np.asarray(x, np.float64) * size, tree)
        return self._replace(mean=self.mean * size, sem=self.sem * size, value=scaled and (lambda: scaled))


def method_of(recipe: Mapping[str, Any]) -> str:
    """The method of an estimate; the norm and the diagonal, which have one only, take draws as "hutchinson" does."""
    return str(recipe.get("method", "hutchinson"))


def is_precise(now: Round, rtol: float, rounding: float) -> bool:
    """Whether the standard error is at most rtol |mean|, and is to be believed.

    Args:
      now: the state of the estimate.
      rtol: standard error asked for, relative to the mean.
      rounding: relative standard error up to which fewer draws are believed, too; negative for none.
    """
    if now.exact:
        return True
    if not now.sem <= rtol * abs(now.mean):
        return False
    return now.num >= LEAST_DRAWS or (now.num >= AT_ONCE and now.sem <= rounding * abs(now.mean))


def shortfall(recipe: Mapping[str, Any], now: Round, rtol: float) -> str:
    """The warning that an estimate is not as precise as asked for."""
    result = f"{recipe['kind']}: {pm(now.mean, now.sem, 6)} from {now.num} draws ({now.products} products)"
    if now.trouble:
        return f"{result}: it ends there, because {now.trouble}"
    if now.sem <= rtol * abs(now.mean):
        text = "too few draws to believe their standard error"
        return f"{result}: {text}; raise max_products (at least {LEAST_DRAWS} draws)"
    request = f"{result}, and rtol={rtol:g} asks for a standard error of {rtol * abs(now.mean):.2g}"
    if now.num == 1:
        most = LEAST_DRAWS * PRODUCTS_EACH[method_of(recipe)]
        return f"{request}; one draw has no error: raise max_products, to {most} for {LEAST_DRAWS} draws"
    if rtol == 0:
        return f"{request}, which only an exact number has; this is the error after all of max_products"
    if now.mean == 0 or (now.num >= LEAST_DRAWS and abs(now.mean) <= NEAR_ZERO * now.sem):
        text = "the value may be zero, and no number of products makes an error small beside zero"
        return f"{request}; {text}: take it with this error, or halve the error with 4 times max_products"
    if method_of(recipe) == "hutchinson" and 0 < now.sem < math.inf:
        return f"{request}; about {_draws_needed(now, rtol):.2g} products would do (max_products), or a larger rtol"
    return f"{request}; raise max_products or rtol"


def _draws_needed(now: Round, rtol: float) -> float:
    """The number of independent draws after which the standard error is rtol |mean|."""
    return now.num * (now.sem / (rtol * abs(now.mean))) ** 2


def say_early(recipe: Mapping[str, Any], now: Round, rtol: float, max_products: int) -> None:
    """Log how many products ``rtol`` takes, if they are more than twice as many as are allowed."""
    # the noise of a tree's entries adds to its norm
    own = now if now.value is None else now._replace(mean=math.sqrt(max(now.mean**2 - now.sem**2, 0.0)))
    needed = _draws_needed(own, rtol) if own.mean else math.inf
    if needed > 2 * max_products:
        reached = rtol * math.sqrt(needed / max_products)
        about = f"about {needed:.2g} products" if needed < 1e6 else "more than a million products"
        left = f"an error of about {reached:.0%} will be left" if reached < 1 else "the error will exceed the value"
        text = f"{recipe['kind']}: after {now.num} draws, rtol={rtol:g} seems to need {about}; after max_products="
        log.warning("%s%d %s. Raise rtol for fewer products, max_products for more", text, max_products, left)
