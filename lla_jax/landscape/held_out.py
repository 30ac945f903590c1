"""Bounds an error by points that had no part in what is judged: how many must be drawn, and which of them bounds.

The error that is bounded is the 95th percentile over all points without a value. Let M cells be without one, n of them
be drawn at random and evaluated, and M - n remain. If at least r of the n are among the W = w + r - 1 cells with the
largest errors, the r-th largest error of the n bounds all but w - 1 of those that remain; the number of the n among the
W is hypergeometric. No assumption about the errors is made.
"""

from __future__ import annotations

import math

LEVEL = 0.95  # of the confidence that is stated
WRONG = 0.01  # how often the bound may be wrong in truth, all looks of a refinement together: less than is stated
PERCENTILE = 95.0
FIRST = 0.8  # of the chance to be wrong, what the first look may use; each further one the same part of the rest


def chance_of_look(look: int) -> float:
    """How often the bound of a look may be wrong; the sum over all looks 0, 1, ... is WRONG."""
    return WRONG * FIRST * (1 - FIRST) ** look


def choose_rank(cells: int, drawn: int, chance: float) -> int:
    """The rank r of the error that bounds, the r-th largest of those drawn; 0 if they are too few to bound.

    Args:
      cells: M, number of cells without a value before the draw.
      drawn: n, number of those drawn.
      chance: how often the bound may be wrong.
    """
    rank = 0
    while rank < drawn and _chance_of_fewer(cells, drawn, rank + 1) <= chance:
        rank += 1
    return rank


def choose_number(cells: int, rank: int, chance: float) -> int:
    """The least n with which the error of this rank bounds; all cells if none does."""
    low, high = min(rank, cells), cells
    while low < high:
        middle = (low + high) // 2
        if _chance_of_fewer(cells, middle, rank) <= chance:
            high = middle
        else:
            low = middle + 1
    return low


def most_above(cells: int) -> int:
    """How many of so many cells may be above a bound of their percentile; below 0 if they are too few."""
    return cells - 2 - math.floor(PERCENTILE / 100 * (cells - 1))


def percentile_of(cells: int, above: int) -> float:
    """The percentile of so many cells that is bounded where at most ``above`` are above: PERCENTILE, or less."""
    return min(PERCENTILE, 100.0 * max(0.0, 1 - above / max(cells - 1, 1)))


def _chance_of_fewer(cells: int, drawn: int, rank: int) -> float:
    """P(fewer than r of the n drawn are among the W worst of the M cells)."""
    rest = cells - drawn
    if rest < 2:
        return 0.0 if rest <= 0 else 1.0
    allowed = most_above(rest)
    worst = min(allowed + rank, cells)
    if allowed < 0:
        return 1.0
    return sum(math.exp(_log_chance(cells, worst, drawn, hits)) for hits in range(min(rank, worst + 1)))


def _log_chance(cells: int, worst: int, drawn: int, hits: int) -> float:
    if drawn - hits > cells - worst or hits > drawn:
        return -math.inf
    return _log_choose(worst, hits) + _log_choose(cells - worst, drawn - hits) - _log_choose(cells, drawn)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
