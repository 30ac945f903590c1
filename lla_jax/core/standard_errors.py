"""Computes standard errors whose double holds the truth in 95 of 100 cases, from few and skewed draws too.

The plain standard error of N draws, s / sqrt(N), holds it less often: s is itself drawn (Student's t), and where draws
are skewed, as squares are, a low mean comes with a low s. ``widening`` corrects both.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy import special

WITHIN = 2.0  # standard errors that hold the truth as often as 2 of a normal distribution, 95.4 %


def widening(freedom: float, num: float = math.inf, skewness: Any = 0.0) -> Any:
    """The factor by which a plain standard error is widened, so that twice the product holds the truth.

        (t + |g| (1 + 2 t^2) / (6 sqrt(N))) / 2,   t: Student's, as probable as 2 of a normal distribution

    Args:
      freedom: degrees of freedom of the standard error, N - 1 for N independent draws.
      num: number of draws N.
      skewness: g of the draws, a number or an array.

    Returns:
      The factor, at least 1, like ``skewness``; NaN where ``freedom`` is 0 or less.

    References: Johnson 1978 (the t test for skewed draws; here both sides take the wider one).
    """
    if freedom <= 0:
        return np.nan * np.abs(skewness)
    t = float(special.stdtrit(freedom, special.ndtr(WITHIN)))
    return (t + np.abs(skewness) * (1 + 2 * t**2) / (6 * math.sqrt(num))) / WITHIN


def standard_error(draws: np.ndarray) -> Any:
    """The widened standard error of the mean of independent draws.

    Args:
      draws: (N, ...) one row for each draw.

    Returns:
      (...) float64; NaN for one draw, 0 where the draws are equal.
    """
    draws = np.asarray(draws, np.float64)
    num = len(draws)
    if num < 2:
        return np.full(draws.shape[1:], np.nan)[()]
    with np.errstate(invalid="ignore", divide="ignore"):
        away = draws - draws.mean(0)
        spread = np.sqrt((away**2).mean(0))
        skewness = np.where(spread > 0, ((away / spread) ** 3).mean(0), 0.0)
        skewness = skewness * math.sqrt(num * (num - 1)) / max(num - 2, 1)  # few draws hide it
        plain = spread / math.sqrt(num - 1)
        return np.where(spread > 0, plain * widening(num - 1, num, skewness), plain)[()]
