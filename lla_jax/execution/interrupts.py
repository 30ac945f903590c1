"""Lets Ctrl-C act between the steps of a loop: the signal is remembered until the loop asks for it.

An interrupt that Python raises at once may leave a state half changed, and one that is raised inside a callback of the
garbage collector is lost.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


class _Deferral:
    """A handler of SIGINT that remembers one signal; a second one calls the previous handler ``before`` at once."""

    def __init__(self, before: Callable[[int, FrameType | None], object]):
        self.before, self.pending = before, False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.pending = not self.pending
        if not self.pending:
            self.before(number, frame)

    def check(self) -> None:
        """Hand a remembered signal, if there is one, to the previous handler (Python's raises KeyboardInterrupt)."""
        if self.pending:
            self.pending = False
            self.before(signal.SIGINT, None)


@contextlib.contextmanager
def deferred_interrupts() -> Iterator[Callable[[], None]]:
    """Make Ctrl-C (SIGINT) within a ``with`` block wait for the next call of the function that the block is given.

        with deferred_interrupts() as check:
            while True:
                check()
                ...  # one step, which a single Ctrl-C does not interrupt

    A remembered Ctrl-C is handed to the handler that was installed before: by default it raises KeyboardInterrupt. A
    Ctrl-C after the last call acts on leaving the block. A second Ctrl-C while one waits acts at once, wherever the
    program is: the step in progress may then be lost, and with it the values that the step was about to replace.

    A block inside another one shares its flag. The block changes nothing in threads other than the main one, which
    receive no signals, and where SIGINT is ignored or has no handler of Python.
    """
    before = signal.getsignal(signal.SIGINT)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if isinstance(before, _Deferral) and in_main_thread:
        yield before.check
        return
    if not callable(before) or not in_main_thread:  # SIG_IGN and SIG_DFL are no functions
        yield lambda: None
        return
    deferral = _Deferral(before)
    signal.signal(signal.SIGINT, deferral)
    try:
        yield deferral.check
    finally:
        signal.signal(signal.SIGINT, before)
        deferral.check()
