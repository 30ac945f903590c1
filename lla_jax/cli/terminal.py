"""Shows messages, warnings, the library's log and progress bars on the terminal.

This module imports no jax.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import select
import sys
import time
import warnings
from collections.abc import Iterator

from lla_jax.core.text import duration
from lla_jax.execution.progress import Progress

_FORMAT = "{desc}: {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}{unit} [{elapsed}, {remaining} left]"
_OPEN = "{desc}: {n_fmt}{unit} [{elapsed}]"  # while the total is not known


def print_message(text: str) -> None:
    """Print a message to the user on the error stream, so that the standard output has results only."""
    from tqdm import tqdm

    tqdm.write(f"lla-jax: {text}", sys.stderr)  # above a progress bar, if there is one


def tolerate_encodings() -> None:
    """Let characters that the output's encoding lacks be printed as others, instead of an error in every message."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            is_unicode = stream.encoding.lower().replace("-", "") == "utf8"
            stream.reconfigure(errors="backslashreplace" if is_unicode else "replace")


def is_read() -> bool:
    """Whether somebody reads the output still: not after ``lla-jax ... | head`` has its lines."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # not a file, or no poll on this system
            poll = select.poll()
            poll.register(stream.fileno(), 0)
            if any(event & select.POLLERR for _, event in poll.poll(0)):
                return False
    return True


def drop_output() -> None:
    """Send the rest of the output nowhere, so that the interpreter does not complain at its end."""
    null = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            os.dup2(null, stream.fileno())
    os.close(null)


@contextlib.contextmanager
def bar(label: str, unit: str = "points", estimate: bool = False) -> Iterator[Progress]:
    """A context with a progress bar on the error stream; it gives the callback ``progress(done, total)``.

    Args:
      label: the text before the bar.
      unit: of the numbers ``done`` and ``total``.
      estimate: also announce the expected time, once, if more than ten seconds are left.
    """
    from tqdm import tqdm

    # in a file that no one watches, a line now and then is enough
    every = 0.2 if sys.stderr.isatty() else 10.0
    began: tuple[float, float] | None = None
    announced = not estimate
    with tqdm(desc=label, unit=f" {unit}", mininterval=every, bar_format=_OPEN, dynamic_ncols=True) as shown:

        def progress(done: float, total: float | None) -> None:
            nonlocal began, announced
            shown.total, shown.bar_format = total, _FORMAT if total else _OPEN
            shown.update(round(done) - shown.n)
            if announced or not total:
                return
            now = time.monotonic()
            if began is None:  # the first chunk also compiled: its time says nothing about the others
                began = now, done
                return
            seconds, count = now - began[0], done - began[1]
            if seconds > 1 and count > 0:
                announced = True
                left = (total - done) * seconds / count
                if left > 10:
                    print_message(f"expected time: about {duration(left)} for the other {total - done:.0f} {unit}")

        yield progress
        if shown.total:  # fewer were needed than announced
            shown.total = shown.n


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """A context in which a warning is one line, without the source line, which means nothing to the command's user."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print_message(f"warning: {message}")
        yield


@contextlib.contextmanager
def show_log() -> Iterator[None]:
    """A context in which the library's log (plans, memory, expected times) is printed as messages to the user."""
    log, handler = logging.getLogger("lla_jax"), logging.Handler(logging.INFO)
    handler.emit = lambda record: print_message(record.getMessage())  # type: ignore[method-assign]
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
