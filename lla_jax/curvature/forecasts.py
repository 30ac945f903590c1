"""Says about how many products a search or an estimate will take, for the progress bar: its numbers decide nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence

EACH, AT_LEAST = 8, 20  # products for a pair and for all to converge, before anything is known
VERIFIED = 2  # times these until a second sequence has shown that no pair was missed, where eigenvalues lie close
SKETCHED = 1.0  # the power of the number of draws by which the error of a sketch falls, at least
INDEPENDENT = 0.5


def products_of_pairs(errors: Sequence[tuple[int, float]], k: int, limit: int, copies: bool = True) -> float:
    """About how many products a search for k pairs takes.

    Args:
      errors: (products, largest residual of the wanted pairs relative to the tolerance) so far. It falls by about the
        same factor with every product.
      k: number of pairs.
      limit: most products.
      copies: whether a second sequence follows.
    """
    guess = float(AT_LEAST + EACH * k)
    if errors:
        (first, before), (last, now) = errors[0], errors[-1]
        slope = math.log(before / now) / (last - first) if last > first and now > 0 else 0.0
        to_go = math.log(max(now, 1.0)) / slope if slope > 0 else 0.0
        guess = last + to_go if now <= 1 or to_go else max(guess, 1.5 * last)
    return min(limit, (VERIFIED if copies else 1) * guess)


def products_of_draws(products: int, error: float, power: float, limit: float) -> float:
    """About how many products an estimate takes.

    Args:
      products: so far.
      error: standard error relative to the one that is asked for.
      power: of the number of draws by which the error falls.
      limit: most products.
    """
    if not 0 < error < math.inf:
        return limit
    return min(limit, products * max(1.0, error ** (1 / power)))
