"""Reports of how far a long run is, and states saved on the way."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

Progress = Callable[[float, float | None], None]


def span(progress: Any, first: int, length: int, total: int) -> Any:
    """A progress callback for ``length`` points from ``first`` within a longer run; None stays None."""
    if progress is None:
        return None

    def report(done: float, of: float | None) -> None:
        progress(first + done if of is None else first + length * done / of, None if of is None else total)

    return report


def saving(progress: Progress | None, every: Any, on_partial: Any, save: Callable[[], None]) -> Progress | None:
    """``progress``, which also saves about every so many seconds."""
    if every is None:
        return progress
    if not isinstance(every, int | float) or isinstance(every, bool) or not every > 0:
        raise ValueError(f"save_every: {every!r} given; the rule is seconds above 0, such as 60, or None")
    if on_partial is None:
        raise ValueError(f"save_every: {every!r} given without on_partial, which would be called; pass it as well")
    last = time.monotonic()

    def both(done: float, total: float | None) -> None:
        nonlocal last
        if progress is not None:
            progress(done, total)
        if time.monotonic() - last >= every:
            save()
            last = time.monotonic()

    return both
