"""A slip: a wrong call that people make, with the words that must stand in what it says."""

from __future__ import annotations

import dis
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import lla_jax

PACKAGES = (Path(lla_jax.__file__).parent, Path(__file__).parents[2] / "interop" / "lla_torch")


class Slip(NamedTuple):
    """A wrong call.

    Attributes:
      call: a function of no arguments that makes the call.
      words: parts of the message: the argument's name, and what to do.
      warns: the call goes through with a warning instead of an error.
    """

    call: Callable[[], Any]
    words: tuple[str, ...]
    warns: bool = False


def table() -> tuple[list[Slip], Callable[..., Callable]]:
    """A new list of slips, and the decorator that adds a function to it: ``@slip("key", "jax.random.key(0)")``."""
    slips: list[Slip] = []

    def slip(*words: str, warns: bool = False) -> Callable:
        def add(call: Callable[[], Any]) -> Callable[[], Any]:
            slips.append(Slip(call, words, warns))
            return call

        return add

    return slips, slip


def check(slip: Slip) -> None:
    """Make the call, and compare what it says; an error must come from a ``raise`` of this library's own code."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        error = error_of(slip.call)
    if error is None:
        assert slip.warns, "the call was accepted in silence" if not seen else f"only warned: {seen[0].message}"
        text = "\n".join(str(warning.message) for warning in seen)
    else:
        assert not slip.warns, f"an error where a warning was awaited: {type(error).__name__}: {error}"
        assert raised_on_purpose(error.__traceback__), "".join(traceback.format_exception(error))
        text = str(error)
    for word in slip.words:
        assert word in text, f"{word!r} is not in: {text}"


def error_of(call: Callable[[], Any]) -> Exception | None:
    """The error of a call, or None."""
    try:
        call()
    except Exception as error:
        return error
    return None


def raised_on_purpose(trace: TracebackType | None) -> bool:
    """Whether a traceback ends at a ``raise`` statement in a file of this library."""
    assert trace is not None
    while trace.tb_next is not None:
        trace = trace.tb_next
    code = trace.tb_frame.f_code
    file = Path(code.co_filename)
    ours = any(package in file.parents for package in PACKAGES)
    return ours and dis.opname[code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"
