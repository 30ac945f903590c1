"""Public names of a package, loaded when they are first used (PEP 562): its stub ``__init__.pyi`` is their one list."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_IMPORT = re.compile(r"^from (\S+) import (\w+) as (\w+)$", re.MULTILINE)


def attach(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package, read off the stub beside its ``__init__``.

    Args:
      package: its ``__name__``.

    Returns:
      The three, to be assigned in the package. A name is imported when it is first asked for, and kept.
    """
    module = sys.modules[package]
    stub = Path(str(module.__file__)).with_suffix(".pyi").read_text(encoding="utf-8")
    places = {name: (source, given) for source, given, name in _IMPORT.findall(stub)}
    names = sorted(places)

    def load(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it has: {', '.join(names)}")
        source, given = places[name]
        place = importlib.import_module(source)
        is_package = hasattr(place, "__path__")  # then what it gives is a module
        value = importlib.import_module(f"{source}.{given}") if is_package else getattr(place, given)
        setattr(module, name, value)
        return value

    return load, lambda: list(names), names
