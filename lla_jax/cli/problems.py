"""Loads the user's problem: imports the module or file that --problem names, and calls its factory.

This module imports no jax until a problem is loaded.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lla_jax.cli.errors import locate
from lla_jax.cli.options import Mistake, mistake
from lla_jax.cli.terminal import print_message

if TYPE_CHECKING:
    from lla_jax.core.types import Problem


def load_problem(spec: str) -> Problem:
    """Import ``module:factory``, also from the current folder, or ``file.py:factory``, and call the factory.

    Args:
      spec: module or file, and function, separated by a colon.

    Returns:
      The problem that the factory returns.

    Raises:
      Mistake: if there is no such factory, if it fails, or if it returns something else than a ``Problem``.
    """
    from lla_jax.core.types import Problem

    module_name, colon, name = spec.rpartition(":")
    if not (colon and module_name and name):
        raise mistake("problem", repr(spec), "MODULE:FUNCTION or FILE.py:FUNCTION, such as lla_jax.demo:problem")
    given = f"--problem: {spec!r} given, but"
    try:
        module = _import_module(module_name)
    except Mistake as error:
        raise Mistake(f"{given} {error}") from error
    except (Exception, SystemExit) as error:
        raise Mistake(f"{given} importing it failed: {locate(error)}") from error
    factory = getattr(module, name, None)
    if not callable(factory):
        raise Mistake(f"{given} {module_name} has no function {name!r}; name one that returns a lla_jax.Problem")
    if required := _required_parameters(factory):
        raise Mistake(
            f"{given} {name} needs {', '.join(required)}; the factory must take no arguments: give them defaults, or "
            "write a function that calls it"
        )
    print_message(f"building the problem: {spec}()")
    try:
        problem = factory()
    except (Exception, SystemExit) as error:
        raise Mistake(f"{given} the factory failed: {locate(error)}") from error
    if not isinstance(problem, Problem):
        raise Mistake(
            f"{given} the factory returned {type(problem).__name__}; it must return lla_jax.Problem(loss, params, data)"
        )
    return problem


def _required_parameters(factory: Any) -> list[str]:
    """The names of the parameters that have no defaults."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:  # a callable without a signature
        return []
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in optional]


def _import_module(name: str) -> ModuleType:
    """Import a module by its name or its file. The current folder, or that of the file, is put first in sys.path."""
    path = Path(name)
    folder = str(path.parent.resolve() if path.suffix == ".py" else Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    if path.suffix == ".py":
        return _import_file(path)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise Mistake(
            f"there is no module {name!r} in {folder} or among the installed ones; check the name, or name a file"
        ) from error


def _import_file(path: Path) -> ModuleType:
    """Import the module in a file, named by the file's stem, or ``problem_{stem}`` where that name is taken."""
    if not path.is_file():
        raise Mistake(f"there is no file {path}; check the path")
    name = path.stem if path.stem not in sys.modules else f"problem_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
