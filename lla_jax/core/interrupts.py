"""Lets Ctrl-C always act: between the steps of a loop, or at once and again until the program has noticed it.

An interrupt that Python raises at once may leave a state half changed, and one that is raised inside a callback of the
garbage collector, in a ``__del__`` or in a callback of a compiled program is lost. So loops remember the signal until
they ask for it; other code is interrupted at once, and a signal that was swallowed there is raised again.

This module imports no jax: the command line begins with it.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.machinery import ExtensionFileLoader
from types import FrameType
from typing import Any, TypeVar

Tree = TypeVar("Tree")

INTERRUPTED = 130  # the exit code of a program that Ctrl-C ended
GRACE_S = 1.0  # for code of the user that is called again and again, such as a loader of data
AGAIN_S = 0.02  # after which an interrupt that was swallowed is raised again
LONG_S = 0.1  # a loop whose longest wait took less has no time for more than waiting
LONGEST_PAUSE_S = 0.01  # between two looks
STARTS_A_LIBRARY = ExtensionFileLoader.create_module.__code__


class _Handler:
    """A handler of SIGINT that remembers a signal until an interrupt has been raised where it cannot be lost.

    Args:
      before: the previous handler, which raises the interrupt (Python's does).
    """

    def __init__(self, before: Callable[[int, FrameType | None], object]):
        self.before = before
        self.process = os.getpid()  # a fork of it, such as a worker of a loader, has no step to wait for
        self.defers = False  # whether a first signal waits for the next check
        self.grace: float | None = None  # seconds for which it waits at most
        self.pending = False  # whether a signal waits, or was raised where it may be swallowed
        self.received = False  # whether there was any
        self.leaving = False  # whether the program is at its end
        self.in_hook = False  # whether ``on_unraisable`` runs
        self.longest: float | None = None  # seconds of the longest wait in the present block
        self.hook = sys.unraisablehook

    def install(self) -> None:
        """Handle signals from now on."""
        sys.unraisablehook = self.on_unraisable
        signal.signal(signal.SIGINT, self)

    def remove(self) -> None:
        """Put back what was there before, also after an installation that was interrupted."""
        signal.signal(signal.SIGINT, self.before)
        sys.unraisablehook = self.hook

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self.process:
            self.before(number, frame)
            return
        if self.leaving:
            os._exit(INTERRUPTED)
        if self.in_hook:  # where an interrupt would be lost
            _after(AGAIN_S, self.send_again)
            return
        waits = self.defers and not self.pending
        self.pending = self.received = True
        if not waits and _starts_a_library(frame):
            _after(AGAIN_S, self.send_again)
        elif not waits:
            self.act(frame)
        elif self.grace is not None:
            _after(self.grace, self.end_grace)

    def act(self, frame: FrameType | None = None) -> None:
        """Call the previous handler; a signal is forgotten where that raises nothing."""
        self.before(signal.SIGINT, frame)
        self.pending = False

    def check(self) -> None:
        """Raise a remembered interrupt, if there is one; here it is not lost, and so it is forgotten."""
        if self.pending:
            self.pending = False
            self.act()

    def on_unraisable(self, unraisable: Any) -> None:
        """In place of a message: raise an interrupt again that a callback or a ``__del__`` has swallowed."""
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            self.hook(unraisable)
        elif self.pending and not self.leaving:
            self.in_hook = True
            _after(AGAIN_S, self.send_again)
            self.in_hook = False

    def end_grace(self) -> None:
        """Send the signal again if it still waits, and need not."""
        if self.grace is not None:
            self.send_again()

    def send_again(self) -> None:
        """Send the signal again if nothing has acted on it; from another thread."""
        main = threading.main_thread().ident
        if self.pending and main is not None and signal.getsignal(signal.SIGINT) is self:
            if hasattr(signal, "pthread_kill"):  # which also ends a sleep of the main thread
                signal.pthread_kill(main, signal.SIGINT)
            else:
                _thread.interrupt_main()

    def wait(self, arrays: list[Any]) -> None:
        """Wait until jax arrays are computed; an interrupt acts meanwhile."""
        self.check()
        start, looks = time.perf_counter(), self.longest is None or self.longest >= LONG_S
        for x in arrays:
            while looks and not x.is_ready():
                self.check()
                time.sleep(min(1e-5 + (time.perf_counter() - start) / 100, LONGEST_PAUSE_S))
            x.block_until_ready()
        self.longest = max(self.longest or 0.0, time.perf_counter() - start)


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
    with _section(defers=True) as check:
        yield check


@contextlib.contextmanager
def prompt_interrupts(grace: float | None = None) -> Iterator[Callable[[], None]]:
    """Make Ctrl-C in a ``with`` block act at once, also inside ``deferred_interrupts``: for code that may take long.

    An interrupt that is swallowed (by the garbage collector, a ``__del__``, a callback of a compiled program, an
    ``except BaseException``) is raised again: soon, at the next check, or at the end of the block. An error that comes
    of it, as of an import that it stopped, becomes an interrupt. Otherwise as ``deferred_interrupts``.

    Args:
      grace: seconds for which the interrupt waits for the end of the block before it acts; None for at once.
    """
    with _section(defers=grace is not None, grace=grace) as check:
        yield check


@contextlib.contextmanager
def _section(defers: bool, grace: float | None = None) -> Iterator[Callable[[], None]]:
    current = _current()
    handler = current or _new()
    if handler is None:
        yield lambda: None
        return
    outer, longest, outer_grace = handler.defers, handler.longest, handler.grace
    try:
        handler.defers, handler.grace = defers, grace
        if current is None:
            handler.install()
        if not defers or grace is not None:
            handler.check()
        if not outer:
            handler.longest = None
        yield handler.check
    except KeyboardInterrupt:
        handler.pending = False
        raise
    finally:
        if current is None:
            handler.remove()
        handler.defers, handler.grace = outer, outer_grace
        if not outer:
            handler.longest = longest
        if not (defers and outer):
            handler.check()


def _new() -> _Handler | None:
    """A handler that is not installed yet; None in other threads and where there is no handler of Python."""
    before = signal.getsignal(signal.SIGINT)
    return _Handler(before) if callable(before) and _in_main_thread() else None  # SIG_IGN and SIG_DFL are no functions


def take_over() -> None:
    """Handle Ctrl-C from now to the end of the process as ``prompt_interrupts`` does: for a whole program."""
    if _current() is None and (handler := _new()):
        handler.install()


def check_interrupt() -> None:
    """Raise an interrupt that a block around this call has remembered, if there is one."""
    if handler := _current():
        handler.check()


def wait(tree: Tree) -> Tree:
    """Wait until the arrays of a tree are computed, and return it; an interrupt acts while they are still computed.

    Call it only where an interrupt may be raised. The devices go on with what they have begun.
    """
    import jax

    if (handler := _current()) is None:
        return jax.block_until_ready(tree)
    arrays = [x for x in jax.tree.leaves(tree) if isinstance(x, jax.Array)]
    handler.wait([x for x in arrays if not isinstance(x, jax.core.Tracer)])
    return tree


def was_interrupted() -> bool:
    """Whether Ctrl-C was pressed since the outermost block around this call began."""
    handler = _current()
    return handler is not None and handler.received


def leave() -> None:
    """Let a further Ctrl-C end the process at once: for the end of a program, when all results are written."""
    if handler := _current():
        handler.leaving = True


def _starts_a_library(frame: FrameType | None) -> bool:
    """Whether a compiled library is being imported, which may crash if an interrupt is raised on the way, as jax's."""
    while frame is not None:
        if frame.f_code is STARTS_A_LIBRARY:
            return True
        frame = frame.f_back
    return False


def _after(seconds: float, f: Callable[[], object]) -> None:
    """Call a function after some seconds, in another thread that nobody waits for."""

    def later() -> None:
        time.sleep(seconds)
        f()

    _thread.start_new_thread(later, ())


def _current() -> _Handler | None:
    """The handler of the blocks around this call; None in other threads, and without a block."""
    handler = signal.getsignal(signal.SIGINT)
    return handler if isinstance(handler, _Handler) and _in_main_thread() else None


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
