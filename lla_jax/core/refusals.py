"""Says what to write where a result is used as an array, a sequence or a number that it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from lla_jax.core.arguments import Misuse
from lla_jax.core.signatures import MisusedCall

Class = TypeVar("Class", bound=type)

NUMBER = tuple(f"__{name}__" for name in ("float", "int", "neg", "abs", "round", "lt", "le", "gt", "ge"))
TWO = ("add", "sub", "mul", "truediv", "matmul", "pow", "mod", "floordiv")
ASKED = ("__array_interface__", "__jax_array__")
"""Attributes that numpy and jax look at, of which they let an error through. (``jax.device_get`` would call
``__array__``, and should return a result as it is; jax refuses by itself what has a method ``__jax_array__``.)"""

AS_ARRAY = (*ASKED, *NUMBER, *(f"__{side}{name}__" for name in TWO for side in ("", "r")))
"""Methods of arrays and numbers."""

AS_SEQUENCE = ("__iter__", "__getitem__", "__setitem__", "__len__", "__contains__")


def refuse(text: str, error: type[Misuse] = MisusedCall) -> Callable[..., NoReturn]:
    """A method that raises the error for a use that an object does not have; it is a TypeError as Python's own, too.

    Args:
      text: what the object is, and what to write instead; it follows the object's repr.
      error: the error's type; jax catches those that are TypeErrors.
    """

    def method(self: Any, *args: Any, **options: Any) -> NoReturn:
        raise error(type(self).__name__, f"{self!r} {text}")

    return method


def no_array(text: str, uses: tuple[str, ...] = (*AS_ARRAY, *AS_SEQUENCE)) -> Callable[[Class], Class]:
    """A decorator for classes whose objects are no arrays: their use as arrays, numbers or sequences says what to do.

    Args:
      text: as for ``refuse``.
      uses: the methods that refuse; those that the class defines stay.
    """

    def decorate(cls: Class) -> Class:
        for name in uses:
            if name not in vars(cls):
                refusal = refuse(text, Misuse if name == "__jax_array__" else MisusedCall)
                setattr(cls, name, property(refusal) if name in ASKED else refusal)
        if "__float__" in uses and "__format__" not in vars(cls):
            setattr(cls, "__format__", _format(refuse(text)))  # noqa: B010
        if "__len__" in uses and "__bool__" not in vars(cls):
            cls.__bool__ = lambda self: True  # type: ignore[attr-defined]  # Python would ask for the length
        return cls

    return decorate


def _format(refusal: Callable[..., NoReturn]) -> Callable[[Any, str], str]:
    """The method for f"{result}" that refuses f"{result:.3f}"."""
    return lambda self, form: refusal(self) if form else str(self)
