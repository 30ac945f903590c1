"""Durations and numbers with their errors, in words."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the command line reads this before jax starts
    from lla_jax.core.types import Estimate


def pm(estimate: Estimate) -> str:
    """A number and its standard error, where that is known."""
    if math.isnan(estimate.sem):
        return f"{estimate.mean:.4g}"
    return f"{estimate.mean:.4g} +- {estimate.sem:.2g}"


def duration(seconds: float) -> str:
    """A time in the unit in which it is easily read."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
