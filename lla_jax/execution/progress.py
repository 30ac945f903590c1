"""Progress of long computations: reports to the user, and results saved on the way."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

Progress = Callable[[float, float | None], None]
"""``progress(done, total)``, called on the way; the total is None where it is unknown."""


def report_part(progress: Any, start: int, length: int, total: int) -> Any:
    """A progress callback for ``length`` points, from number ``start`` on, of a longer computation; None stays None."""
    if progress is None:
        return None

    def report(done: float, of: float | None) -> None:
        progress(start + done if of is None else start + length * done / of, None if of is None else total)

    return report


def save_regularly(progress: Progress | None, every: Any, on_partial: Any, save: Callable[[], None]) -> Progress | None:
    """``progress``, which also calls ``save`` about every ``every`` seconds.

    Raises:
      ValueError: ``every``, the argument ``save_every`` of the caller, is not above 0, or there is no ``on_partial``.
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
