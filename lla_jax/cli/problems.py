"""Loads the user's problem: imports the module or file that --problem names, and calls its factory.

This module imports no jax until a problem is loaded.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from lla_jax._names import nearest
from lla_jax.cli import factories
from lla_jax.cli.errors import locate
from lla_jax.cli.options import Mistake, mistake
from lla_jax.cli.terminal import print_message
from lla_jax.core.text import duration

if TYPE_CHECKING:
    from lla_jax.core.types import Problem

LONG_S = 10.0  # a factory that takes longer is said to have taken it


def load_problem(spec: str) -> Problem:
    """Import ``module:factory``, also from the current folder, or ``file.py:factory``, and call the factory.

    While the user's code runs, ``sys.argv`` has the name alone, and what it prints goes to the error stream.

    Args:
      spec: module or file, and function, separated by a colon. The name may also be that of a ``Problem`` itself.

    Returns:
      The problem that the factory returns.

    Raises:
      Mistake: if there is no such factory, if it fails, or if it returns something else than a ``Problem``.
    """
    from lla_jax.core.types import Problem

    module_name, name = split_name(spec)
    given = f"--problem: {spec!r} given, but"
    try:
        with _apart(module_name):
            module = _import_module(module_name)
    except Mistake as error:
        raise Mistake(f"{given} {error}") from error
    except (Exception, SystemExit) as error:
        raise Mistake(f"{given} importing it failed: {locate(error)}{_advice(error, module_name)}") from error
    factory = getattr(module, name, None)
    if isinstance(factory, Problem):
        return factory
    if not callable(factory):
        raise Mistake(f"{given} {_no_function(module, module_name, name)}; name one that returns a lla_jax.Problem")
    if required := _required_parameters(factory):
        raise Mistake(
            f"{given} {name} needs {', '.join(required)}; the factory must take no arguments: give them defaults, or "
            "write a function that calls it"
        )
    print_message(f"building the problem: {module_name}:{name}() (your own code, which may train or load a network)")
    start = time.monotonic()
    try:
        with _apart(module_name):
            problem = factory()
    except KeyboardInterrupt:
        print_message(f"{name}() was still building the problem; nothing is computed yet")
        raise
    except (Exception, SystemExit) as error:
        raise Mistake(f"{given} the factory failed: {locate(error)}{_advice(error, module_name)}") from error
    if not isinstance(problem, Problem):
        raise Mistake(f"{given} the factory returned {factories.describe(problem)}")
    if (seconds := time.monotonic() - start) > LONG_S:
        print_message(f"the problem is built; {name}() took {duration(seconds)}")
    return problem


def build(spec: str, out: Path) -> tuple[Problem, Path]:
    """The user's problem, and the folder, which stays the same one if the factory goes to another working folder."""
    before = Path.cwd()
    problem = load_problem(spec)
    return problem, out if Path.cwd() == before else before / out


def split_name(spec: str) -> tuple[str, str]:
    """The two parts of module:factory; another text is refused with what was probably meant."""
    module_name, _, name = spec.strip().removesuffix("()").rpartition(":")
    if module_name.rstrip(":") and name:
        return module_name.rstrip(":"), name
    rule, path = "MODULE:FUNCTION or FILE.py:FUNCTION, such as lla_jax.demo:problem", Path(spec.rstrip(":"))
    if path.suffix == ".ipynb":
        rule += "; save the notebook as a script first"
    elif path.is_file() and (found := factories.functions_in(path)):
        rule += f"; {path} has the functions {', '.join(found[:5])}: so write {path}:{found[0]}"
    elif "." in spec and "/" not in spec and path.suffix != ".py" and not spec.startswith("."):
        rule += f"; did you mean {':'.join(spec.rsplit('.', 1))}?"
    raise mistake("problem", repr(spec), rule)


@contextlib.contextmanager
def _apart(name: str) -> Iterator[None]:
    """A context for the user's code: it sees no arguments of lla-jax, and prints on the error stream."""
    argv, sys.argv = sys.argv, [name]
    try:
        with contextlib.redirect_stdout(sys.stderr):  # the standard output has results only
            yield
    finally:
        sys.argv = argv


def _advice(error: BaseException, module_name: str) -> str:
    """What to do about some errors of the user's code, or ""."""
    if isinstance(error, SystemExit):
        return "; it must return instead of leaving the process"
    if isinstance(error, ImportError) and "relative import" in str(error):
        path = Path(module_name)
        dotted = ".".join([path.resolve().parent.name, path.stem])
        return f"; a file has no package, so name the module from the folder above: --problem {dotted}:FUNCTION"
    return ""


def _no_function(module: ModuleType, module_name: str, name: str) -> str:
    """How a module lacks a function, with the one that was probably meant."""
    if hasattr(module, name):
        return f"{name} in {module_name} is {type(getattr(module, name)).__name__}, not a function"
    own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    near = nearest(name, own)
    return f"{module_name} has no function {name!r}" + (f", did you mean {near!r}?" if near else "")


def _required_parameters(factory: Any) -> list[str]:
    """The names of the parameters that have no defaults."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # a callable without a signature
        return []
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in optional]


def _import_module(name: str) -> ModuleType:
    """Import a module by its name or its file. The current folder, or that of the file, is put first in sys.path."""
    path = Path(name).expanduser() if name.startswith("~") else Path(name)
    folder = str(path.parent.resolve() if path.suffix == ".py" else Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    if path.suffix == ".py":
        return _import_file(path)
    if name.startswith(".") or "/" in name or path.suffix == ".ipynb":
        raise Mistake(_no_module(path))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise Mistake(
            f"there is no module {name!r} in {folder} or among the installed ones; check the name, or name a file"
        ) from error


def _no_module(path: Path) -> str:
    """The message for a name that is neither a module nor a Python file."""
    if path.suffix == ".ipynb":
        return f"{path} is a notebook; save it as a script, and name the .py file"
    if path.with_suffix(".py").is_file():
        return f"{path} names no module; did you mean the file {path.with_suffix('.py')}?"
    return f"{path} names no module; name a file that ends in .py, or a module by its full name, such as package.module"


def _import_file(path: Path) -> ModuleType:
    """Import the module in a file, named by the file's stem, or ``problem_{stem}`` where that name is taken."""
    if not path.is_file():
        near = nearest(path.name, [other.name for other in path.parent.glob("*.py")])
        where = f"there is no file {path} in {Path.cwd()}" if not path.is_absolute() else f"there is no file {path}"
        raise Mistake(f"{where}; check the path" + (f", did you mean {path.with_name(near)}?" if near else ""))
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
