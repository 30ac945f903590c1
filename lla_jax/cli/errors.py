"""Turns errors into messages of the command line, with its options in place of the library's arguments."""

from __future__ import annotations

import os
import sys
import sysconfig
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lla_jax
from lla_jax.cli.options import ConnectOptions, Mistake, PathOptions

if TYPE_CHECKING:
    from lla_jax.core.arguments import Misuse
    from lla_jax.core.recipes import Differs

LIBRARY = Path(str(lla_jax.__file__)).parent
REMEDY = "choose another --out, or --overwrite it"
SEED = "; if the factory should give the same each time, seed what it draws or trains"
_NAMES = {
    "params": "parameters",
    "state": "state (BatchNorm)",
    "noise": "random key of the loss",
    "precision": "precision of matrix products (--precision), or 64 bits of jax",
    "directions": "checkpoints or optimizer state",
    "functions": "functions (loss or metrics)",
}


# arguments of lla.paths that come from an option, or from an entry of the problem
_SOURCES: dict[type, dict[str, str]] = {
    PathOptions: {"files": "--checkpoints", "path": "--checkpoints", "trees": "Problem.checkpoints"},
    ConnectOptions: {
        "files": "--checkpoint",
        "a": "Problem.params",
        "b": "the second solution",
        "state_b": "the state of the second solution (Problem.states, or that in the file)",
        "store": "--out",
    },
}


def is_mistake(error: Exception) -> bool:
    """Whether an error is the user's mistake: a ``Mistake``, an ``OSError``, or a ``ValueError`` of this library.

    A function of the user's that failed has an error of its own, the cause.
    """
    if isinstance(error, Mistake | OSError):
        return True
    return isinstance(error, ValueError) and _is_ours(error) and not _is_of_function(error)


def message(error: Exception, options: Any) -> str:
    """The message for a mistake of the user, with options in place of arguments and a remedy.

    Args:
      error: raised by a verb.
      options: the verb's.
    """
    if not isinstance(error, ValueError):  # these need no jax
        return str(error)
    from lla_jax.core.arguments import Misuse
    from lla_jax.core.recipes import Differs
    from lla_jax.landscape.store.reading import Incomplete

    match error:
        case Differs(path=Path()):
            drawn = error.argument == "store" and {"params", "data"} & set(error.changed)
            return f"{error.path} was made with other {_changes(error)}\n{REMEDY}{SEED if drawn else ''}"
        case Incomplete():
            return (
                f"{error.path} is not complete, it lacks {error.lacks}. Repeat the command that computes it, which "
                "continues from here, or merge what there is with --partial"
            )
        case Misuse() if (source := _SOURCES.get(type(options), {}).get(error.argument)) and not _of_result(error):
            return f"{source}: {error.text}"
        case Misuse(argument="path", path=Path()) if hasattr(options, "overwrite"):
            return f"{error.text}\n{REMEDY}"
        case Misuse(path=Path()):
            return error.text
        case Misuse(argument="topology"):
            return f"--for: {error.text}"
        case Misuse() if (option := error.argument.removeprefix("execution.")) in vars(options):
            return f"--{option.replace('_', '-')}: {error.text}"
    return str(error)


def _of_result(error: Misuse) -> bool:
    """Whether an error is about a file of the folder, not about a path of training."""
    return error.argument == "path" and error.path is not None


def platform_fault() -> str:
    """What is wrong with JAX_PLATFORMS, if jax was imported and cannot start with it; else ""."""
    platforms = os.environ.get("JAX_PLATFORMS")
    if not platforms or "jax" not in sys.modules or not hasattr(sys.modules["jax"], "devices"):
        return ""
    try:
        sys.modules["jax"].devices()
    except Exception as error:  # jax has several kinds of them
        reason = str(error).partition("(set JAX_PLATFORMS")[0].strip(" .") or type(error).__name__
        return (
            f"JAX_PLATFORMS: {platforms!r} given, and jax cannot start with it ({reason}); unset the variable for the "
            "devices there are, or install the jax of that platform"
        )
    return ""


def _changes(error: Differs) -> str:
    """The options, or the parts of the problem, that differ from those in the folder, in words."""
    if error.argument == "settings":
        return "options: " + ", ".join(f"{name} {text}" for name, text in error.changed.items())
    if error.argument != "store":
        return ", ".join(error.changed)
    # other parameters make other directions
    names = [name for name in error.changed if name != "directions" or "params" not in error.changed]
    return ", ".join(_NAMES.get(name, name) for name in names)


def locate(error: BaseException) -> str:
    """An error of the user's code as one line: its kind, its message, and file and line of the user's last call."""
    cause = error.__cause__ if _is_of_function(error) and error.__cause__ else error
    frames = traceback.extract_tb(cause.__traceback__)
    installed = tuple(sysconfig.get_paths()[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib"))
    foreign = (*installed, str(LIBRARY), "<frozen")
    frame = next((f for f in reversed(frames) if not f.filename.startswith(foreign)), frames[-1])
    text = str(error) if cause is not error else f"{type(error).__name__}: {error}"
    return f"{text} ({frame.filename}:{frame.lineno})"


def _is_of_function(error: BaseException) -> bool:
    """Whether an error says that a function of the user's failed."""
    if not isinstance(error, ValueError):  # the others need no jax
        return False
    from lla_jax.core.called import CallFailed

    return isinstance(error, CallFailed)


def _is_ours(error: BaseException) -> bool:
    """Whether a line of this library, or of ``lla_torch``, raised the error."""
    torch_side = getattr(sys.modules.get("lla_torch"), "__file__", None)
    ours = (str(LIBRARY), *([str(Path(torch_side).parent)] if torch_side else ()))
    return traceback.extract_tb(error.__traceback__)[-1].filename.startswith(ours)
