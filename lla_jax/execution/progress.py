"""Reports the progress of long computations to the user, and saves results on the way."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

Progress = Callable[[float, float | None], None]
"""``progress(done, total)``, called during a computation; the total is None where it is unknown."""


def report_part(progress: Any, start: int, length: int, total: int) -> Any:
    """Make the progress callback of a part of a longer computation, which calls ``progress`` for the whole.

    Args:
      progress: the callback of the whole computation; if it is None, so is the result.
      start: number of points before the part.
      length: number of points of the part.
      total: number of points of the whole.
    """
    if progress is None:
        return None

    def report(done: float, of: float | None) -> None:
        progress(start + done if of is None else start + length * done / of, None if of is None else total)

    return report


def save_regularly(progress: Progress | None, every: Any, on_partial: Any, save: Callable[[], None]) -> Progress | None:
    """Make a callback that calls ``progress`` (if not None), and ``save`` when ``every`` seconds have passed.

    Args:
      progress: the user's callback, or None.
      every: the argument ``save_every`` of the caller; if it is None, ``progress`` is returned as it is.
      on_partial: the argument ``on_partial`` of the caller, only checked.
      save: hands over the partial result.

    Raises:
      ValueError: ``every`` is not above 0, or is given without ``on_partial``.
    """
    from lla_jax.core.arguments import Misuse, check_number  # the command line reads this module before jax starts

    if every is None:
        return progress
    check_number("save_every", every, remedy="in seconds, such as 60, or None")
    if on_partial is None:
        raise Misuse("save_every", f"{every!r} given without on_partial, which it would call; pass on_partial as well")
    last = time.monotonic()

    def both(done: float, total: float | None) -> None:
        nonlocal last
        if progress is not None:
            progress(done, total)
        if time.monotonic() - last >= every:
            save()
            last = time.monotonic()

    return both
