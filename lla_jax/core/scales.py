"""Says whether a picture of some values is logarithmic."""

from __future__ import annotations

import numpy as np

SPAN = 1000.0  # ratio of the largest to the smallest value above which a linear picture shows nothing


def spans_decades(values: np.ndarray) -> bool:
    """Whether the finite values are all above 0 and span a factor over 1000, so that a picture of them is logarithmic.

    Args:
      values: of any shape; False if none is finite.
    """
    values = values[np.isfinite(values)]
    if not values.size:
        return False
    low, high = values.min(), values.max()
    return bool(low > 0 and high > SPAN * low)
