"""Errors in the words of the command line: whose they are, and its options in place of the library's arguments."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lla_jax
from lla_jax.cli.options import HessianOptions, LandscapeOptions, Mistake

if TYPE_CHECKING:
    from lla_jax.core.recipes import Differs

LIBRARY = Path(str(lla_jax.__file__)).parent
ELSEWHERE = "choose another --out, or --overwrite it"
_CHANGED = {
    "params": "parameters",
    "state": "state (BatchNorm)",
    "noise": "random key of the loss",
    "precision": "precision settings of jax",
    "directions": "checkpoints or optimizer state",
    "functions": "functions (loss or metrics)",
}


def by_user(error: Exception) -> bool:
    """Whether the user can mend it, since we raised it with a message, rather than what we called."""
    return isinstance(error, Mistake | OSError) or (isinstance(error, ValueError) and _by_us(error))


def words(error: Exception, options: Any) -> str:
    """A mistake of the user, in a message.

    Args:
      error: raised by a verb.
      options: of the verb.
    """
    if not isinstance(error, ValueError):  # and nothing has to import jax
        return str(error)
    from lla_jax.core.arguments import Misuse
    from lla_jax.core.recipes import Differs
    from lla_jax.landscape.store.reading import Incomplete

    match error:
        case Differs(path=Path()):
            return f"{error.path} was made with other {_changed(error)}\n{ELSEWHERE}"
        case Incomplete():
            return (
                f"{error.path} is not complete, it lacks {error.lacks}. Run what computes it again, which goes on from "
                "here, or take what there is with --partial"
            )
        case Misuse(argument="path", path=Path()) if isinstance(options, HessianOptions | LandscapeOptions):
            return f"{error.text}\n{ELSEWHERE}"
        case Misuse(path=Path()):
            return error.text
        case Misuse() if (option := error.argument.removeprefix("execution.")) in vars(options):
            return f"--{option.replace('_', '-')}: {error.text}"
    return str(error)


def _changed(error: Differs) -> str:
    """What is not the same as in the folder."""
    if error.argument == "made":
        return "options: " + ", ".join(f"{name} {text}" for name, text in error.changed.items())
    if error.argument != "store":
        return ", ".join(error.changed)
    names = [name for name in error.changed if name != "directions" or "params" not in error.changed]  # these follow
    return ", ".join(_CHANGED.get(name, name) for name in names)


def where(error: BaseException) -> str:
    """An error in the user's code in a line: what it is, and the last line of theirs that it passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    installed = tuple(sysconfig.get_paths()[kind] for kind in ("stdlib", "platstdlib", "purelib", "platlib"))
    foreign = (*installed, str(LIBRARY), "<frozen")
    frame = next((f for f in reversed(frames) if not f.filename.startswith(foreign)), frames[-1])
    return f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"


def _by_us(error: BaseException) -> bool:
    return traceback.extract_tb(error.__traceback__)[-1].filename.startswith(str(LIBRARY))
