"""A slip: a wrong call that people make, with the words that must stand in what it says."""

from __future__ import annotations

import contextlib
import dis
import io
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple
from unittest import mock

import lla_jax
from lla_jax.cli import main as cli

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


class Refused(Exception):
    """What a command line says on the error stream before it ends with a code of misuse."""


def command(*arguments: Any, files: Mapping[str, str] | None = None) -> None:
    """Run ``lla-jax`` with these arguments in this process, in a new folder with some files; it must be refused.

    Args:
      *arguments: those of the command line.
      files: {name: text} of files in the folder.

    Raises:
      Refused: with the message, if the exit code is that of misuse or failure and there is no traceback.
    """
    before, modules, path = Path.cwd(), set(sys.modules), list(sys.path)
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(cli, "prepare_jax"):
        for name, text in (files or {}).items():
            (Path(folder) / name).parent.mkdir(parents=True, exist_ok=True)
            (Path(folder) / name).write_text(text)
        said = io.StringIO()
        try:
            os.chdir(folder)
            with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
                code: Any = cli.main([str(word) for word in arguments])
        except SystemExit as error:
            code = error.code
        finally:
            os.chdir(before)
            sys.path[:] = path
            for name in set(sys.modules) - modules:  # the next command has another module of this name
                if getattr(sys.modules[name], "__file__", None) and folder in str(sys.modules[name].__file__):
                    del sys.modules[name]
    text = said.getvalue()
    assert "Traceback" not in text, text
    assert text.count("error: ") == 1 or not code, text
    if code:
        assert code in (cli.FAILURE, cli.MISUSE), code
        raise Refused(text)


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
        assert isinstance(error, Refused) or raised_on_purpose(error.__traceback__), "".join(
            traceback.format_exception(error)
        )
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
