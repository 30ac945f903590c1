"""New pivots of a band, where its losses between two pivots lie most above a straight line through theirs."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LEAST_GAP = 0.1  # of the range of all losses along the band, that a gap must exceed


class Places(NamedTuple):
    """Points between neighbours of a band.

    Args:
      low: (M,) int32, the number of the pivot before each.
      weight: (M,) float64, how far it lies from that pivot to the next one, above 0 and below 1.
    """

    low: np.ndarray
    weight: np.ndarray


def places_between(pivots: int, samples: int) -> Places:
    """Equally spaced places, the same number in each segment, in their order along the band."""
    low = np.repeat(np.arange(pivots - 1, dtype=np.int32), samples)
    return Places(low, np.tile(np.arange(1, samples + 1) / (samples + 1), pivots - 1))


def largest_gaps(losses: np.ndarray, sampled: np.ndarray, places: Places, most: int) -> Places:
    """Choose where new pivots are needed: at most one per segment, where a loss lies highest above the interpolation.

    A gap is a sampled loss minus that which the losses of the two pivots give by linear interpolation. It counts if it
    exceeds a tenth of the range of all these losses, and if the loss is above those of both ends of the band: below
    them no pivot is needed to find the barrier.

    Args:
      losses: (K,) of the pivots.
      sampled: (M,) at the places.
      places: the places between the pivots, as ``places_between`` gives them.
      most: new pivots at most.

    Returns:
      The chosen places, in their order along the band.
    """
    low, weight = places
    gaps = sampled - ((1 - weight) * losses[low] + weight * losses[low + 1])
    seen = np.concatenate([losses, sampled])
    if not np.isfinite(seen).all():  # where a loss is infinite, a pivot is needed most
        seen = seen[np.isfinite(seen)]
        gaps = np.nan_to_num(gaps, nan=np.inf, posinf=np.inf, neginf=-np.inf)
    wanted = (gaps > LEAST_GAP * (np.ptp(seen) if seen.size else 0.0)) & ~(sampled <= max(losses[0], losses[-1]))
    highest = [i for i in np.argsort(-gaps, kind="stable") if wanted[i]]
    best: dict[int, int] = {}
    for i in highest:
        best.setdefault(int(low[i]), int(i))
    chosen = sorted(list(best.values())[:most])
    return Places(low[chosen], weight[chosen])


def with_new(knots: np.ndarray, new: Places) -> tuple[np.ndarray, Places]:
    """The knots of a band with new pivots, and all its points as places on the old one: (knots, places).

    A pivot that was there is a place of weight 0; the last one, of weight 1 in the last segment.
    """
    count = len(knots)
    low = np.concatenate([np.arange(count - 1), [count - 2], new.low]).astype(np.int32)
    weight = np.concatenate([np.zeros(count - 1), [1.0], new.weight])
    order = np.argsort(low + weight, kind="stable")
    low, weight = low[order], weight[order]
    together = knots[low] + weight * (knots[low + 1] - knots[low])
    together[0], together[-1] = 0.0, 1.0
    return together, Places(low, weight)
