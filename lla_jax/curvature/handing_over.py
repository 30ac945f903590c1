"""Hands over what a long computation has so far: regularly, and when an interrupt or an error ends it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from lla_jax.core.interrupts import check_interrupt
from lla_jax.curvature.units import OutOfRange
from lla_jax.execution.progress import Progress, save_regularly


@contextlib.contextmanager
def handing_over(
    progress: Progress | None, save_every: float | None, on_partial: Any, hand_over: Callable[[str], None]
) -> Iterator[Progress | None]:
    """A context that gives the callback for every step, and hands the partial result over if an exception ends it.

    An interrupt that is remembered at the end, from the last step, is such an exception. ``OutOfRange`` is no end: the
    computation starts again in another unit.

    Args:
      progress: as the caller of the computation gave it, and so are ``save_every`` and ``on_partial``.
      save_every: seconds after which the callback hands over what there is.
      on_partial: only checked.
      hand_over: called with why: "running" or "interrupted", the entry "stopped" of the partial result's recipe.
    """
    report = save_regularly(progress, save_every, on_partial, lambda: hand_over("running"))
    try:
        yield report
        check_interrupt()
    except OutOfRange:
        raise
    except BaseException:
        hand_over("interrupted")
        raise
