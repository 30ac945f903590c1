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
from collections.abc import Iterator, Sequence
from pathlib import Path

from lla_jax.core.text import duration
from lla_jax.execution.progress import Progress, expect_total
from lla_jax.execution.progress import bar as progress_bar


def print_message(text: str) -> None:
    """Print a message to the user on the error stream, so that the standard output has results only."""
    from tqdm import tqdm

    tqdm.write(f"lla-jax: {text}", sys.stderr)  # above a progress bar, if there is one


def print_note(text: str) -> None:
    """Print a note to the user on the error stream."""
    print_message(f"note: {text}")


def print_results(paths: Sequence[Path], heading: str = "Results") -> None:
    """Print paths below a heading, on the standard output."""
    print(f"{heading}:", *paths, sep="\n  ")


def tolerate_encodings() -> None:
    """Let characters that the output's encoding lacks be printed as others, instead of an error in every message.

    What is printed to a stream that was closed, as by ``lla-jax ... >&-``, is dropped.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
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
    began: tuple[float, float] | None = None
    announced = not estimate
    with progress_bar(label, unit) as show:
        expected: float | None = None

        def progress(done: float, total: float | None) -> None:
            nonlocal began, announced
            show(done, total)
            total = total or expected
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

        def expect(total: float) -> None:
            nonlocal expected
            expected = total
            expect_total(show, total)

        progress.expect = expect  # type: ignore[attr-defined]
        yield progress


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
