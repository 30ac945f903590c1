"""Calls the user's functions, and explains the errors that they raise: how they were called, and the likely slip.

Slips are found by trying: where the function works with its arguments swapped, or with labels of another type, this is
what the message advises. Nothing is tried before a call has failed.
"""

from __future__ import annotations

import contextlib
import contextvars
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from lla_jax.core import tries
from lla_jax.core.arguments import Misuse
from lla_jax.core.static import function_of
from lla_jax.core.text import first_line
from lla_jax.core.types import Batch, PyTree
from lla_jax.core.wholes import Whole, call_on_whole, example_of, without_axis

_EXPLAINS = contextvars.ContextVar("explains", default=True)

MOST_SHOWN = 8  # leaves of a tree in a message
OURS = ("lla_jax", "lla_torch")

Slips = Callable[..., tries.Found | None] | str | None
"""How the likely slip is found: by ``slips(f, given)``, a function of ``tries``; or the remedy, a sentence; or None."""


class CallFailed(Misuse):
    """The error for a user's function that raised an error of its own, which is the ``__cause__``."""


@contextlib.contextmanager
def unexplained() -> Iterator[None]:
    """Within this block nothing is tried after a failure: the caller asks only whether a function can be called."""
    token = _EXPLAINS.set(False)
    try:
        yield
    finally:
        _EXPLAINS.reset(token)


def call(f: Callable[[Any, Any], Any], outputs: Any, batch: Batch, metric: str = "") -> Any:
    """The result of a criterion or metric, ``f(outputs, batch)``; that for a ``Whole`` is one row.

    Args:
      f: the user's function. For a ``Whole`` it returns a scalar, an entry for each of its parts (such as nodes), or
        one of these with its weights.
      outputs: of the model, with the leading axis of the examples.
      batch: the batch of a block.
      metric: the name of the metric, if it is one.

    Raises:
      CallFailed: the function raised an error.
    """
    what, given = f"the metric {metric!r}" if metric else "the criterion", {"outputs": outputs, "batch": batch}
    how = "f(outputs, batch)" if metric else "criterion(outputs, batch)"
    with explain(f, what, how, given, tries.of_criterion, "metrics" if metric else "loss"):
        return call_on_whole(f, outputs, batch) if isinstance(batch, Whole) else f(outputs, batch)


@contextlib.contextmanager
def explain(
    f: Callable[..., Any] | None,
    name: str,
    how: str,
    given: Mapping[str, Any],
    slips: Slips = None,
    argument: str = "loss",
) -> Iterator[None]:
    """Turn an error that a user's function raises in this block into a ``CallFailed``; errors of ours pass on.

    Args:
      f: the function; None if ``name`` says it all.
      name: what it is, such as "the criterion".
      how: how it is called, such as "f(outputs, batch)".
      given: the arguments that are shown, by name.
      slips: how the likely slip is found; None if only ``how`` is known.
      argument: the argument that holds the function.

    Raises:
      CallFailed: with the error as its cause.
    """
    try:
        yield
    except Exception as error:
        if passes(error):
            raise
        found, text = _explain(error, f, name, how, given, slips)
        raise CallFailed(argument if found.argument == "loss" else found.argument, text) from error


def ask(argument: str, f: Callable[..., Any], how: str, given: Mapping[str, Any], slips: Slips = None) -> Any:
    """The result of a small function of the user's, ``f(*given.values())``; the arguments are those of ``explain``.

    Raises:
      CallFailed: the function raised an error.
    """
    with explain(f, "the function", how, given, slips, argument):
        return f(*given.values())


@contextlib.contextmanager
def differentiated() -> Iterator[None]:
    """Turn an error that jax raises for a loss without derivatives in this block into a ``CallFailed``."""
    try:
        yield
    except (TypeError, ValueError, NotImplementedError) as error:
        if isinstance(error, Misuse) or not tries.lacks_derivative(error):
            raise
        raise CallFailed("loss", f"its derivative {_describe(error)}. {tries.NO_SLOPE}") from error


def passes(error: Exception) -> bool:
    """Whether an error is raised on purpose by this library, or says that the memory does not suffice."""
    if isinstance(error, Misuse | MemoryError | jax.errors.JaxRuntimeError):
        return True
    if type(error).__name__ == "OutOfMemoryError":  # of torch
        return True
    frames = list(traceback.walk_tb(error.__traceback__))
    ours = bool(frames) and str(frames[-1][0].f_globals.get("__name__", "")).partition(".")[0] in OURS
    return ours and isinstance(error, ValueError)


def _explain(
    error: Exception,
    f: Callable[..., Any] | None,
    name: str,
    how: str,
    given: Mapping[str, Any],
    slips: Slips,
) -> tuple[tries.Found, str]:
    """(the likely slip, the message: which function failed, with what it was called, and what to do)."""
    what = f"{name}{_name_of(f)} {_describe(error)}"
    if not _EXPLAINS.get():
        return tries.Found("loss", ""), what
    called = f"It is called as {how} with {'; '.join(f'{key} {show_shapes(value)}' for key, value in given.items())}"
    if isinstance(given.get("batch"), Whole):
        given = {key: without_axis(x) if key == "outputs" else example_of(x) for key, x in given.items()}
    slips = slips or f"It must take these arguments, {how}, and work with arrays of these shapes"
    found = (
        tries.of_error(error)
        or tries.of_object(f)
        or (tries.Found("loss", slips) if isinstance(slips, str) else slips(f, given))
        or tries.of_data(given, error)
    )
    return found, f"{what}. {called}. {found.remedy}"


def _describe(error: Exception) -> str:
    """What an error says, in a line of at most 300 characters: "failed with KeyError: 'w'"."""
    return f"failed with {type(error).__name__}: {first_line(error)[:300].rstrip('.')}"


def _name_of(f: Any) -> str:
    """The name of a function, in brackets; nothing for a lambda or an object."""
    name = getattr(function_of(f), "__name__", "<lambda>")
    return "" if name == "<lambda>" else f" ({name})"


def show_shapes(value: PyTree) -> str:
    """The types and shapes of a tree of arrays, as in ``(float32 (12, 5), int32 (12,))``."""
    if isinstance(value, Whole):
        return f"the data that lla.whole holds, of these shapes: {show_shapes(example_of(value))}"
    if isinstance(value, Mapping):
        items = [f"{key!r}: {show_shapes(x)}" for key, x in list(value.items())[:MOST_SHOWN]]
        return "{" + ", ".join(items + ["..."] * (len(value) > MOST_SHOWN)) + "}"
    if type(value) in (tuple, list):
        items = [show_shapes(x) for x in value[:MOST_SHOWN]] + ["..."] * (len(value) > MOST_SHOWN)
        text = ", ".join(items)
        return f"[{text}]" if isinstance(value, list) else f"({text}{',' * (len(value) == 1)})"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    leaves = jax.tree.leaves(value)
    if value is not None and not (len(leaves) == 1 and leaves[0] is value):
        return f"{type(value).__name__} of {', '.join(show_shapes(x) for x in leaves[:MOST_SHOWN])}"
    return repr(value) if value is None or isinstance(value, bool | int | float | str) else type(value).__name__
