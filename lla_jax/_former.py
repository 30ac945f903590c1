"""Keeps the module paths of the former release, such as ``import lla_jax.plotting``, working for one release.

The stub ``__init__.pyi`` is the table of the new places, by lines such as ``from lla_jax.output import plotting as
plotting``. The attribute ``lla.plotting`` stays, without a warning.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, cast


class Former:
    """Finds ``package.name``, after all other finders, for a public name that is a module in another place.

    It is finder and loader without the base classes of ``importlib.abc``, which take longer to import than the package.

    Args:
      package: the package's name.
      names: its public names.
      load: gives the object of a public name.
    """

    def __init__(self, package: str, names: Sequence[str], load: Callable[[str], Any]):
        self.package, self.names, self.load = package, names, load

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The spec of ``package.name`` if the name is public and a module's, else None."""
        parent, _, name = fullname.rpartition(".")
        known = parent == self.package and name in self.names
        return ModuleSpec(fullname, cast(Any, self)) if known and isinstance(self.load(name), ModuleType) else None

    def create_module(self, spec: ModuleSpec) -> None:
        """Return None, which asks for an empty module; ``exec_module`` replaces it."""

    def exec_module(self, module: ModuleType) -> None:
        """Replace the empty module by the one at the new place, and warn with its name."""
        name = module.__name__.rpartition(".")[2]
        present = self.load(name)
        warnings.warn(
            f"{module.__name__} is now {present.__name__}; import lla_jax as lla and write lla.{name}. The former path "
            "goes with the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        sys.modules[module.__name__] = present


def find_former(package: str, names: Sequence[str], load: Callable[[str], Any]) -> None:
    """Let the former module paths of a package be imported, by a ``Former`` at the end of ``sys.meta_path``.

    A package that is loaded again replaces its finder. Args: as for ``Former``.
    """
    sys.meta_path[:] = [f for f in sys.meta_path if not (isinstance(f, Former) and f.package == package)]
    sys.meta_path.append(Former(package, names, load))
