"""What a conversion has settled: ``Decided``, the value of a buffer that decided a size or a branch; fixed axes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np


@dataclass(frozen=True)
class Decided:
    """The value of a stored array that decided a size or a branch at conversion.

    Args:
      path: its path in the state.
      shape: its shape.
      dtype: its type.
      content: its bytes.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    content: bytes = field(repr=False)

    @classmethod
    def of(cls, path: tuple[str, ...], array: np.ndarray) -> Decided:
        """The record of an array."""
        return cls(path, array.shape, array.dtype.name, array.tobytes())

    def check(self, found: Any) -> None:
        """Raise a ValueError where another value was found; a value that jax is tracing is not looked at."""
        if isinstance(found, jax.core.Tracer):
            return
        given = np.asarray(found)
        value = np.frombuffer(self.content, jax.numpy.dtype(self.dtype)).reshape(self.shape)
        if given.shape != value.shape or given.tobytes() != value.astype(given.dtype).tobytes():  # NaN is equal to NaN
            raise ValueError(
                f"variables: {'/'.join(self.path)} has other values than at conversion, where they decided a size or "
                "a branch (a mask as an index, .item(), an `if`); convert the module with these values"
            )


def why_fixed(where: str, expected: tuple[int | None, ...]) -> str:
    """The sentence of a message that says what fixes a leading axis."""
    remedy = "as len(x), int(x.shape[0]) and functions of numpy or math do; x.shape[0] leaves it open"
    if expected[:1] in ((), (None,)):
        return "Only leading axes may have other lengths"
    if where:
        return f"The leading axis is fixed at {where}: it takes the length as a number, {remedy}"
    return f"A leading axis is fixed where the forward pass takes its length as a number, {remedy}"
