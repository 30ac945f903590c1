"""Starts and ends the command line: from the first moment to the last, Ctrl-C ends it with one line and its exit code.

This module imports nothing that takes time. The rest is imported when Ctrl-C is looked after.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from collections.abc import Sequence
from typing import NoReturn

from lla_jax.core import interrupts

PATIENCE_S = 1.0  # for what others registered to be done at the end of an interrupted program


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line as the whole program: as ``cli.main.main``, which has the arguments and the exit codes.

    After Ctrl-C the process ends here, without waiting for what its devices or threads have begun.
    """
    interrupts.take_over()
    try:
        from lla_jax.cli.main import main as run

        code = run(argv)
        interrupts.leave()
    except BaseException as error:
        interrupts.leave()
        if not interrupts.was_interrupted():
            raise
        if not isinstance(error, SystemExit):
            print("\nlla-jax: interrupted", file=sys.stderr)
        code = interrupts.INTERRUPTED
    if interrupts.was_interrupted():
        _end(interrupts.INTERRUPTED)
    return code


def _end(code: int) -> NoReturn:
    """End the process with this exit code."""
    late = threading.Timer(PATIENCE_S, os._exit, (code,))
    late.daemon = True
    late.start()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
