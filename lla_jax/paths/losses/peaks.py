"""Seeks the maxima of values between the points at which they are known, on an interval."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

ROUNDS, END_ROUNDS = 12, 3  # most rounds of new points; around a maximum at an end, most of which is a falling slope
BRACKETS = 2  # maxima of one value that are looked at in a round
STEP_ROUNDS, STEP_BRACKETS = 2, 1  # of a value that may be a step function, as an error rate is: halving ends nowhere
FLAT = 1e-5  # a fall of this share of the height is not looked into
LEAST = 1e-7  # distance between points


def excess(t: np.ndarray, x: np.ndarray) -> np.ndarray:
    """x(t) - (1 - t) x(0) - t x(1) at the points t (n,) from 0 to 1: exactly 0 at both ends."""
    with np.errstate(invalid="ignore"):
        return x - ((1 - t) * x[0] + t * x[-1])


def between(
    t: np.ndarray, values: Mapping[str, np.ndarray], smooth: Collection[str], count: int, rounding: float = 0.0
) -> np.ndarray:
    """The points at which to look next for the maxima of each value, and of its excess over its line.

    Args:
      t: (n,) the points that are known, increasing from 0 to 1.
      values: {name: (n,)}, the values there.
      smooth: the names of those that are continuous, as losses are.
      count: number of rounds done before.
      rounding: a fall of this share of the largest magnitude is not looked into either.

    Returns:
      Increasing new points; none where all maxima are known well enough, or ``ROUNDS`` are done.
    """
    new: set[float] = set()
    for name, x in values.items():
        rounds, brackets = (ROUNDS, BRACKETS) if name in smooth else (STEP_ROUNDS, STEP_BRACKETS)
        if count < rounds and np.isfinite(x).all():
            for each in (excess(t, x), x - (x[0] + x[-1]) / 2):
                least = FLAT * float(each.max()) + rounding * float(abs(x).max())
                new |= _around(t, each, least, brackets, ends=count < END_ROUNDS)
    chosen: list[float] = []
    for place in sorted(new):
        others = np.concatenate([t, chosen[-1:]])
        if float(abs(others - place).min()) > LEAST:
            chosen.append(place)
    return np.array(chosen)


def _around(t: np.ndarray, x: np.ndarray, least: float, brackets: int, ends: bool) -> set[float]:
    """New points around the highest maxima of x (n,), halfway to their neighbours and at the vertex of a parabola.

    A maximum whose neighbours fall by d is below x + d where x is concave; it is looked at if this is above the highest
    value known.
    """
    new: set[float] = set()
    for i in np.argsort(-x, kind="stable"):
        sides = [j for j in (i - 1, i + 1) if 0 <= j < len(x)]
        fall = max(x[i] - x[j] for j in sides)
        if any(x[j] > x[i] for j in sides) or fall <= least or x[i] + fall <= x.max():
            continue
        if len(sides) == 1 and not ends:
            continue
        new |= {(t[i] + t[j]) / 2 for j in sides}
        if len(sides) == 2:
            new.add(_vertex(t[i - 1 : i + 2], x[i - 1 : i + 2]))
        brackets -= 1
        if not brackets:
            break
    return new


def _vertex(t: np.ndarray, x: np.ndarray) -> float:
    """Where the parabola through three points with the middle one highest has its vertex."""
    left, right = (x[1] - x[0]) * (t[2] - t[1]), (x[1] - x[2]) * (t[1] - t[0])
    if left + right <= 0:
        return float(t[1])
    return float(t[1] + (left * (t[2] - t[1]) - right * (t[1] - t[0])) / (2 * (left + right)))
