"""Loads the public names of a package when they are first used (PEP 562); the stub ``__init__.pyi`` lists them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from lla_jax._names import NoSuchName, explain_module, no_such_name, place_of, read_stub


def attach(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Make ``__getattr__``, ``__dir__`` and ``__all__`` of a package from the stub beside its ``__init__``.

    Args:
      package: its ``__name__``.

    Returns:
      ``(__getattr__, __dir__, __all__)``, to be assigned in the package. A name is imported when it is first asked for,
      and then kept as an attribute of the package. Of each line ``from a import b as c`` of the stub, c is a name.
    """
    module = sys.modules[package]
    sources = read_stub(Path(str(module.__file__)).parent)
    names = sorted(sources)

    def load(name: str) -> Any:
        if name not in sources:
            raise NoSuchName(lambda: no_such_name(f"module {package!r}", name, names, place_of(name)))
        source, original = sources[name]
        interrupts = importlib.import_module("lla_jax.core.interrupts")
        with interrupts.prompt_interrupts():  # imports take seconds, in which jax's callback of gc loses a Ctrl-C
            origin = importlib.import_module(source)
            is_package = hasattr(origin, "__path__")  # then the name is that of a module in it
            value = importlib.import_module(f"{source}.{original}") if is_package else getattr(origin, original)
        if isinstance(value, ModuleType):
            explain_module(value)
        setattr(module, name, value)
        return value

    return load, lambda: list(names), names
