"""Says what to write where a result is used as an array, a sequence or a number that it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from lla_jax.core.signatures import MisusedCall

Class = TypeVar("Class", bound=type)

AS_NUMBER = tuple(f"__{name}__" for name in ("float", "int", "lt", "le", "gt", "ge"))
TWO = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
ARITHMETIC = ("__neg__", "__abs__", *(f"__{side}{name}__" for name in TWO for side in ("", "r")))
AS_ARRAY = ("__array__", "__jax_array__", "__matmul__", "__rmatmul__", *AS_NUMBER, *ARITHMETIC)
"""Methods of arrays and numbers."""

AS_SEQUENCE = ("__iter__", "__getitem__", "__len__")


def refuse(text: str, name: str = "") -> Callable[..., NoReturn]:
    """A method that raises the error for a use that an object does not have; it is a TypeError as Python's own, too.

    Args:
      text: what the object is, and what to write instead; it follows the object's repr.
      name: of the argument that the object usually is; empty for the name of its class.
    """

    def method(self: Any, *args: Any, **options: Any) -> NoReturn:
        raise MisusedCall(name or type(self).__name__, f"{self!r} {text}")

    return method


def no_array(text: str, uses: tuple[str, ...] = (*AS_ARRAY, *AS_SEQUENCE), name: str = "") -> Callable[[Class], Class]:
    """A decorator for classes whose objects are no arrays: their use as arrays, numbers or sequences says what to do.

    Args:
      text: as for ``refuse``.
      uses: the methods that refuse; those that the class defines stay.
      name: as for ``refuse``.
    """

    def decorate(cls: Class) -> Class:
        for use in uses:
            if use not in vars(cls):
                setattr(cls, use, refuse(text, name))
        if "__len__" in uses and "__bool__" not in vars(cls):
            cls.__bool__ = lambda self: True  # type: ignore[attr-defined]  # Python would ask for the length
        return cls

    return decorate
