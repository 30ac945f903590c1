"""Between a command and its user: the factory, folders, progress, messages, and the environment that jax starts in.

Importing this imports no jax.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from lla_jax.cli.errors import where
from lla_jax.cli.options import Mistake, cores
from lla_jax.core.text import duration

if TYPE_CHECKING:
    from lla_jax.core.types import Problem

Progress = Callable[[float, float | None], None]
_FORMAT = "{desc}: {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}{unit} [{elapsed}, {remaining} left]"
_OPEN = "{desc}: {n_fmt}{unit} [{elapsed}]"  # where nobody knows how many there will be


# The environment, folders, progress


def prepare_jax(devices: int | None) -> None:
    """Sets what jax reads when it starts, leaving alone what the user has set."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lla_jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" not in flags:
        count = f"--xla_force_host_platform_device_count={max(1, min(devices or cores(), cores()))}"
        os.environ["XLA_FLAGS"] = f"{flags} {count}".strip()


def writable(folder: Path) -> Path:
    """The folder, made if needed, after a file could be written into it: found before computing, not after."""
    from lla_jax.core import files as _files

    try:
        _files.try_writing(folder)
    except OSError as error:
        raise Mistake(f"--out {folder} is not a folder that can be written to: {error}") from error
    return folder


@contextlib.contextmanager
def bar(label: str, unit: str = "points", estimate: bool = False) -> Iterator[Progress]:
    """A progress bar as a callback ``progress(done, total)``; with ``estimate`` it announces the time of a long run."""
    from tqdm import tqdm

    # where no one watches, a line now and then is enough
    every = 0.2 if sys.stderr.isatty() else 10.0
    began: tuple[float, float] | None = None
    announced = not estimate
    with tqdm(desc=label, unit=f" {unit}", mininterval=every, bar_format=_OPEN, dynamic_ncols=True) as shown:

        def progress(done: float, total: float | None) -> None:
            nonlocal began, announced
            shown.total, shown.bar_format = total, _FORMAT if total else _OPEN
            shown.update(round(done) - shown.n)
            if announced or not total:
                return
            now = time.monotonic()
            if began is None:  # the first chunk also compiled, and says nothing about the others
                began = now, done
                return
            seconds, points = now - began[0], done - began[1]
            if seconds > 1 and points > 0:
                announced = True
                left = (total - done) * seconds / points
                if left > 10:
                    say(f"expected time: about {duration(left)} for the other {total - done:.0f} {unit}")

        yield progress
        if shown.total:  # a part that needed fewer than it announced
            shown.total = shown.n


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings as one line each, without the source line that means nothing to the user of a command."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: say(f"warning: {message}")
        yield


@contextlib.contextmanager
def told() -> Iterator[None]:
    """What the library logs as messages to the user: plans, memory, expected times."""
    log, handler = logging.getLogger("lla_jax"), logging.Handler(logging.INFO)
    handler.emit = lambda record: say(record.getMessage())  # type: ignore[method-assign]
    level = log.level
    log.setLevel(logging.INFO)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def load_problem(spec: str) -> Problem:
    """Imports ``module:factory``, also from the current folder, or ``file.py:factory``, and calls the factory.

    Args:
      spec: module or file, and function, separated by a colon.

    Returns:
      What the factory returns.

    Raises:
      Mistake: if there is no such factory, if it fails, or if it returns something else than a ``Problem``.
    """
    from lla_jax.core.types import Problem

    module_name, colon, name = spec.rpartition(":")
    if not (colon and module_name and name):
        raise Mistake(f"--problem {spec!r} must be MODULE:FUNCTION or FILE.py:FUNCTION, such as lla_jax.demo:problem")
    try:
        module = _module(module_name)
    except Mistake as mistake:
        raise Mistake(f"--problem {spec!r}: {mistake}") from mistake
    except (Exception, SystemExit) as error:
        raise Mistake(f"--problem {spec!r}: importing it failed: {where(error)}") from error
    factory = getattr(module, name, None)
    if not callable(factory):
        raise Mistake(f"--problem {spec!r}: {module_name} has no function {name!r}")
    with contextlib.suppress(ValueError):  # a callable without a signature
        if needed := [
            p.name
            for p in inspect.signature(factory).parameters.values()
            if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        ]:
            raise Mistake(
                f"--problem {spec!r}: the factory must take no arguments, but {name} needs {', '.join(needed)}; "
                "give them defaults, or write a function that calls it"
            )
    say(f"building the problem: {spec}()")
    try:
        problem = factory()
    except (Exception, SystemExit) as error:
        raise Mistake(f"--problem {spec!r}: the factory failed: {where(error)}") from error
    if not isinstance(problem, Problem):
        raise Mistake(
            f"--problem {spec!r}: the factory returned {type(problem).__name__}; it must return "
            "lla_jax.Problem(loss, params, data)"
        )
    return problem


def _module(name: str) -> ModuleType:
    """A module by its name, or by its file: then, as for a script, the modules beside it are found too."""
    path = Path(name)
    here = str(path.parent.resolve() if path.suffix == ".py" else Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    if path.suffix == ".py":
        if not path.is_file():
            raise Mistake(f"there is no file {name}")
        own = path.stem if path.stem not in sys.modules else f"problem_{path.stem}"
        spec = importlib.util.spec_from_file_location(own, path)
        assert spec is not None
        assert spec.loader is not None
        module = sys.modules[own] = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[own]
            raise
        return module
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise Mistake(f"no module {name!r} in {here} or among the installed ones") from error


def say(text: str) -> None:
    """A message to the user on the error stream, so that the output has results only."""
    from tqdm import tqdm

    tqdm.write(f"lla-jax: {text}", sys.stderr)  # above a progress bar, if there is one
