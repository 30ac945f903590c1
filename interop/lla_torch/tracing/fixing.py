"""Notes the source lines at which a forward pass fixes the length of an axis, for messages."""

from __future__ import annotations

import contextlib
import re
import sys
import traceback
from collections.abc import Iterator
from typing import Any

from torch.fx.experimental import symbolic_shapes

from lla_torch.tracing.guards import is_library

_AXIS = re.compile(r"\]?\[(\d+)\]\.size\(\)\[(\d+)\]")
"""The end of the name that torch.export gives to a length: number of the tensor, number of the axis."""


@contextlib.contextmanager
def note_fixed_axes() -> Iterator[dict[tuple[int, int], str]]:
    """Context that gives {(tensor, axis): source line}, filled as a trace replaces lengths by numbers.

    Only for messages: where torch's inner function has another form, the dict stays empty.
    """
    places: dict[tuple[int, int], str] = {}
    shapes: Any = symbolic_shapes.ShapeEnv
    replace = getattr(shapes, "_set_replacement", None)
    if replace is None:
        yield places
        return

    def noting(self: Any, symbol: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
        if getattr(target, "is_number", False):
            with contextlib.suppress(Exception):  # it is only for a message
                _note(self, symbol, places)
        return replace(self, symbol, target, *args, **kwargs)

    shapes._set_replacement = noting
    try:
        yield places
    finally:
        shapes._set_replacement = replace


def _note(shapes: Any, symbol: Any, places: dict[tuple[int, int], str]) -> None:
    line = _line()
    for source in shapes.var_to_sources.get(symbol, ()) if line else ():
        name = source.name if isinstance(source.name, str) else source.name()
        found = _AXIS.search(name)
        if found is not None:
            places.setdefault((int(found[1]), int(found[2])), line)


def _line() -> str:
    """The innermost source line of the user's code below the forward pass; "" if there is none."""
    frames = []
    for frame, number in traceback.walk_stack(sys._getframe(1)):
        if frame.f_code.co_qualname == "_FlatCall.forward":
            break
        frames.append((frame.f_code.co_filename, number))
    else:
        return ""
    user = [(file, number) for file, number in frames if not is_library(file)]
    if not user:
        return ""
    file, number = user[0]
    return f"{file}:{number}: {traceback.FrameSummary(file, number, '').line}"
