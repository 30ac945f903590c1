"""Says of an unknown name which known one it is most like; imports no jax."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

LIKE = 0.6  # of names that may have been taken for each other

_STUB_LINE = re.compile(r"^from (\S+) import (\w+) as (\w+)$", re.MULTILINE)
"""A line of a stub: (source, original name, public name)."""

_MEANT = {
    **dict.fromkeys(("from_torch", "from_pytorch", "convert"), "lla_torch.convert(module, example_inputs)"),
    **dict.fromkeys(("from_haiku", "from_function"), "lla.Loss(apply, criterion, state=state)"),
    "from_flax": "lla.from_linen or lla.from_nnx",
    "open": "lla.load(path)",
    "compute": "lla.evaluate",
}
"""Names that people try, and what there is in their place."""


def nearest(name: str, known: Iterable[str], least: float = LIKE) -> str | None:
    """The known name that is most like a name, as a whole or in one of its words; None if none is.

    Args:
      name: the unknown name; its case and hyphens do not matter.
      known: the names that exist.
      least: how alike they must be, from 0 to 1.
    """
    plain = name.lower().replace("-", "_")
    scores = {each: _likeness(plain, each.lower()) for each in known}
    by_case = sorted(scores, key=lambda each: each[:1].isupper() != name[:1].isupper())  # a class for a class
    best = max(by_case, key=lambda each: scores[each], default=None)
    return best if best is not None and scores[best] >= least else None


def _likeness(one: str, other: str) -> float:
    """How alike two names are, from 0 to 1: the mean of the names as a whole and of their most alike words."""
    from difflib import SequenceMatcher

    def ratio(a: str, b: str) -> float:
        begins = 0.75 if len(a) > 2 and a[:3] == b[:3] else 0.0
        return max(SequenceMatcher(None, a, b).ratio(), begins)

    words = max((ratio(a, b) for a in one.split("_") for b in other.split("_") if a and b), default=0.0)
    return 0.8 * max(words, ratio(one, other)) + 0.2 * ratio(one, other)


def no_such_name(owner: str, name: str, known: Iterable[str], meant: str | None = None) -> str:
    """The text for an attribute that does not exist: the nearest one that does, and all others.

    Args:
      owner: what lacks it, such as "Spectrum".
      name: the name that was asked for.
      known: the names that exist.
      meant: what was meant, if that is known better than by the likeness of names.
    """
    known = list(known)
    near = meant or nearest(name, known)
    return f"{owner} has no attribute {name!r}; {f'did you mean {near}? It' if near else 'it'} has: {', '.join(known)}"


def place_of(name: str) -> str | None:
    """Where a name is public in another module than the one that was asked, as in "lla.runs.merge"; else None."""
    root = Path(__file__).parent
    public_names = read_stub(root)
    if name in public_names:
        return f"lla.{name}"
    for alias, (source, original) in reversed(public_names.items()):  # lla.runs before lla.landscape, which it is
        folder = root.parent / Path(*source.split("."), original)
        if (folder / "__init__.pyi").is_file() and name in read_stub(folder):
            return f"lla.{alias}.{name}"
    return _MEANT.get(name)


@functools.cache
def read_stub(folder: Path) -> dict[str, tuple[str, str]]:
    """{public name: (source, original name)} of the stub of a package."""
    text = (folder / "__init__.pyi").read_text(encoding="utf-8")
    return {name: (source, original) for source, original, name in _STUB_LINE.findall(text)}


class NoSuchName(AttributeError):
    """The error for an attribute that does not exist; its text is made when it is read, since ``hasattr`` reads none.

    Args:
      explain: makes the text.
    """

    def __init__(self, explain: Callable[[], str]):
        super().__init__()
        self.explain = explain

    def __str__(self) -> str:
        return self.explain()

    def __reduce__(self) -> Any:
        return AttributeError, (str(self),)


class PublicModule(ModuleType):
    """A module whose unknown names are explained, and which says what to do if it is called as a function."""

    def __call__(self, *args: Any, **options: Any) -> NoReturn:
        """Raise the error for a module that is taken for a function."""
        raise TypeError(f"{self.__name__} is a module, not a function; call one of its own: {', '.join(public(self))}")


def public(module: ModuleType) -> list[str]:
    """The public names of a module: ``__all__``, or the functions and classes that it defines."""
    names = vars(module).get("__all__")
    if names is not None:
        return list(names)
    own = {name: getattr(value, "__module__", None) for name, value in vars(module).items()}
    return sorted(name for name, place in own.items() if place == module.__name__ and not name.startswith("_"))


def explain_module(module: ModuleType) -> None:
    """Make a module that is a public name explain its unknown names, and a call of it."""
    module.__class__ = PublicModule

    def refuse(name: str) -> NoReturn:
        if name.startswith("__"):  # asked by Python of every module
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")
        raise NoSuchName(lambda: no_such_name(f"module {module.__name__!r}", name, public(module), place_of(name)))

    vars(module).setdefault("__getattr__", refuse)
