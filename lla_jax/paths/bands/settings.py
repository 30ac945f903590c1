"""The options of a band that other curves do not have: their defaults and their checks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

from lla_jax.core.arguments import check_flag, check_integer, check_number
from lla_jax.paths.training.control_points import DISPLACEMENT, check_displacement


class BandOptions(TypedDict, total=False):
    """What ``connect`` takes for ``kind="band"`` alone, and explains; None stands for the default of ``Settings``."""

    cycles: int | None
    insert: int | None
    samples: int | None
    climb: int | None
    tolerance: float | None
    curvature: bool | None


NOT_GIVEN: BandOptions = {
    "cycles": None,
    "insert": None,
    "samples": None,
    "climb": None,
    "tolerance": None,
    "curvature": None,
}


@dataclass(frozen=True)
class Settings:
    """What decides a band besides what all curves have; the defaults are AutoNEB's where it has them.

    Args:
      points: inner pivots at the start.
      displacement: how far they lie beside the straight line at the start, in units of the distance of the ends.
      cycles: parts of the training, of equal length; new pivots come before each but the first.
      insert: new pivots per cycle at most.
      samples: points between two neighbours at which gaps, and the highest point, are looked for.
      climb: steps of the climbing image at most, each with the gradient over all examples; None for 300, or fewer where
        these would read more batches than the training.
      tolerance: of the norm of the gradient at the saddle.
      curvature: whether the negative eigenvalues of the Hessian at the saddle are counted.
    """

    points: int = 3
    displacement: float = DISPLACEMENT
    cycles: int = 14
    insert: int = 2
    samples: int = 9
    climb: int | None = None
    tolerance: float = 1e-3
    curvature: bool = False

    def __post_init__(self) -> None:
        check_displacement(self.displacement)
        check_integer("points", self.points, remedy="the number of pivots to begin with, such as 3")
        check_integer("cycles", self.cycles, remedy="such as 14")
        check_integer("insert", self.insert, least=0, remedy="new pivots per cycle, such as 2")
        check_integer("samples", self.samples, remedy="points between two pivots, such as 9")
        if self.climb is not None:
            check_integer("climb", self.climb, least=0, remedy="steps of the climbing image, such as 100")
        check_number("tolerance", self.tolerance, remedy="such as 1e-3")
        check_flag("curvature", self.curvature)
