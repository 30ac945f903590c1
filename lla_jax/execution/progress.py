"""Reports the progress of long computations to the user, and saves results on the way."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from lla_jax.core.notebooks import in_notebook

Function = TypeVar("Function", bound=Callable[..., Any])
Progress = Callable[[float, float | None], None]
"""``progress(done, total)``, called during a computation; the total is None where it is unknown."""

AskedProgress = Any
"""What the argument ``progress`` of public functions may be: a callback, True for a bar, or False or None for nothing.

``takes_progress`` makes the callback of it, before the function starts; so it is not narrower than Any."""

_FORMAT = "{desc}: {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}{unit} [{elapsed}, {remaining} left]"
_ABOUT = "{desc}: ~{percentage:.0f}% |{bar}| {n_fmt} of about {total_fmt}{unit} [{elapsed}, ~{remaining} left]"
_OPEN = "{desc}: {n_fmt}{unit} [{elapsed}]"  # while the total is not known


def takes_progress(unit: str) -> Callable[[Function], Function]:
    """A decorator for functions with an argument ``progress``: True shows a bar, and False is None.

    Args:
      unit: what the function counts, such as "points".
    """

    def decorate(f: Function) -> Function:
        @functools.wraps(f)
        def call(*args: Any, **options: Any) -> Any:
            asked = options.get("progress")
            if asked is None:
                return f(*args, **options)
            with _as_callback(asked, f.__name__, unit) as progress:
                return f(*args, **options | {"progress": progress})

        return call  # type: ignore[return-value]

    return decorate


def _as_callback(asked: Any, label: str, unit: str) -> contextlib.AbstractContextManager[Progress | None]:
    """A context that gives the callback of what was asked for; a ValueError for what is none."""
    if type(asked).__name__ in ("bool", "bool_"):  # of Python or numpy
        return bar(label, unit) if asked else contextlib.nullcontext()
    if not _takes(asked, 2):
        from lla_jax.core.arguments import misuse

        raise misuse("progress", asked, "True for a bar, None, or a function progress(done, total)")
    return contextlib.nullcontext(asked)


def check_on_partial(asked: Any) -> None:
    """Raise an error unless it is None or a function of one argument: it is called only when much is at stake."""
    if asked is not None and not _takes(asked, 1):
        from lla_jax.core.arguments import misuse

        raise misuse("on_partial", asked, "a function of an unfinished result, such as results.append, or None")


def _takes(asked: Any, num: int) -> bool:
    """Whether an object is a function that can be called with this number of arguments."""
    if not callable(asked) or isinstance(asked, type):
        return False
    try:
        inspect.signature(asked).bind(*range(num))
    except TypeError:
        return False
    except ValueError:  # some functions have no signature
        return True
    return True


@contextlib.contextmanager
def bar(label: str, unit: str = "points") -> Iterator[Progress]:
    """A context with a progress bar on the error stream; it gives the callback ``progress(done, total)``.

    The callback has an attribute ``expect``, for ``expect_total``.

    Args:
      label: the text before the bar.
      unit: of the numbers ``done`` and ``total``.
    """
    from tqdm import tqdm

    # a notebook keeps every state of a bar; in a file that no one watches, a line now and then is enough
    every = 0.2 if sys.stderr.isatty() else 1.0 if in_notebook() else 10.0
    with tqdm(desc=label, unit=f" {unit}", mininterval=every, bar_format=_OPEN, dynamic_ncols=True) as shown:
        expected: float | None = None

        def progress(done: float, total: float | None) -> None:
            about = None if expected is None else max(round(expected), round(done) + 1)
            shown.total, shown.bar_format = total or about, _FORMAT if total else _ABOUT if about else _OPEN
            shown.update(round(done) - shown.n)

        def expect(total: float) -> None:
            nonlocal expected
            is_first, expected = expected is None, total
            if is_first:
                progress(shown.n, None)
                shown.refresh()

        progress.expect = expect  # type: ignore[attr-defined]
        yield progress
        if shown.total:  # fewer were needed than announced
            shown.total, shown.bar_format = shown.n, _FORMAT


def expect_total(progress: Any, total: float) -> None:
    """Tell a bar about how many there will be, before its next call; no other callback is told what is not known."""
    if math.isfinite(total) and (expect := getattr(progress, "expect", None)) is not None:
        expect(total)


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


def report_open_part(progress: Any, start: int, parts: int) -> Any:
    """Make the progress callback of a part whose length is not known before its end.

    Args:
      progress: the callback of the whole computation; if it is None, so is the result.
      start: number of points before the part.
      parts: number of parts from this one on, which are expected to be as long as this one.
    """
    if progress is None:
        return None

    def report(done: float, _: float | None) -> None:
        progress(start + done, None)

    report.expect = lambda total: expect_total(progress, start + parts * total)  # type: ignore[attr-defined]
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
