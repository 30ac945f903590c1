"""Draws probes, random vectors of signs, and multiplies them: as many at a time as there is room for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import jax
import numpy as np

from lla_jax.core import interrupts
from lla_jax.core.interrupts import deferred_interrupts
from lla_jax.core.types import PyTree
from lla_jax.curvature import room
from lla_jax.curvature.linear_operator import Operator, halve
from lla_jax.curvature.sketches import AT_ONCE
from lla_jax.curvature.space import draw
from lla_jax.curvature.units import Unit

T = TypeVar("T")


def reserve_probes(unit: Unit, name: str, *, held: int = 0) -> tuple[int, room.Memory]:
    """(how many probes are taken at a time, the memory of that); it is logged, and refused if there is none.

    Args:
      unit: the operator.
      name: of the computation.
      held: vectors that it holds beside probes and products.
    """
    H = unit.H
    at_once = room.probes_at_once(H, AT_ONCE)
    memory = room.probes_needed(H, at_once, held=held, unit=unit.size)
    room.say(name, H, memory, f"{at_once} draw{'s' * (at_once > 1)} at a time")
    room.check_fits(H, name, memory)
    return at_once, memory


def map_probes(
    f: Callable[[PyTree, PyTree], T], H: Operator, key: jax.Array, lo: int, hi: int, at_once: int
) -> Iterator[T]:
    """Yield ``f(z, A z)`` of the probes numbered ``lo`` to ``hi - 1``, for a piece of them at a time.

    A piece ends where a block of AT_ONCE ends, also if ``lo`` lies within one. If memory runs out, it is taken in
    halves. A Ctrl-C leaves out those that are computed.

    Args:
      f: of stacked vectors (k, ...) and their products.
      H: the operator.
      key: each probe, a vector of signs, is drawn from it and the probe's number.
      lo: number of the first probe.
      hi: number after the last one.
      at_once: probes of a piece.
    """

    def compute(lo: int, hi: int) -> T:
        with deferred_interrupts():
            z = draw_probes(H, key, lo, hi)
            return interrupts.wait(f(z, H.products(z)))

    while lo < hi:
        stop = min(lo + at_once, (lo // AT_ONCE + 1) * AT_ONCE, hi)
        yield from halve(compute, lo, stop)
        lo = stop


def draw_probes(H: Operator, key: jax.Array, lo: int, hi: int) -> PyTree:
    """The probes numbered ``lo`` to ``hi - 1``: stacked vectors of signs."""
    numbers = np.arange(lo, hi, dtype=np.uint32)
    return H.space.wait_for(H.place(draw(H.space, key, numbers, distribution="rademacher")))
