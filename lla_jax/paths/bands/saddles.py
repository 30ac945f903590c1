"""The highest point of a band, and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lla_jax.core.refusals import no_array
from lla_jax.core.signatures import explained
from lla_jax.core.types import PyTree


@explained
@no_array("is a point with its loss; take saddle.loss, or the parameters saddle.params")
@dataclass(frozen=True, eq=False, repr=False)
class Saddle:
    """The highest point of a band; a saddle of the loss where ``converged``.

    The loss and the gradient are those of training: over all examples, in train mode, so that with BatchNorm each batch
    has its own statistics.

    Args:
      t: where it lies on the curve, as a share of its length. 0 or 1: no loss on the way exceeds that of this end.
      params: the parameters.
      loss: the loss there.
      gradient_norm: the norm of the gradient there, in units of loss per unit of the parameters.
      across: the norm of its part across the band.
      converged: whether the climbing image reached a point whose gradient has at most the norm ``tolerance``, and which
        has not slid off: is not below its neighbours by more than a tenth of the height of the band, nor below other
        pivots by more than a hundredth.
      negative: number of negative eigenvalues of the Hessian there (1 at the saddle between two minima); no more than
        three are looked for where there are more than 200 parameters; None if it was not asked for.
      eigenvalues: the lowest eigenvalues of the Hessian, three at most, ascending; None likewise.
    """

    t: float
    params: PyTree
    loss: float
    gradient_norm: float
    across: float
    converged: bool
    negative: int | None = None
    eigenvalues: Any = None

    def __repr__(self) -> str:
        found = "converged" if self.converged else "not converged"
        curved = "" if self.negative is None else f", {self.negative} negative eigenvalues"
        return f"Saddle(t {self.t:.4f}, loss {self.loss:.6g}, gradient {self.gradient_norm:.2g}, {found}{curved})"
