"""What a conversion has settled: ``Decided``, the value of a buffer that decided a size or a branch; fixed axes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_torch.program.bits import bits_of, in_64_bits, is_wide


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

    def check(self, found: Any) -> Any:
        """Raise a ValueError where another value was found.

        A value that jax is tracing cannot be looked at: there, whether it is the same is returned, as a traced bool.
        """
        value = np.frombuffer(self.content, jnp.dtype(self.dtype)).reshape(self.shape)
        same_shape = np.shape(found) == self.shape
        if same_shape and isinstance(found, jax.core.Tracer):
            with bits_of(is_wide(found.dtype)):
                return jnp.array_equal(found, value.astype(found.dtype), equal_nan=True)
        if not same_shape or not np.array_equal(given := np.asarray(found), value.astype(given.dtype), equal_nan=True):
            raise ValueError(
                f"variables: {'/'.join(self.path)} has other values than at conversion, where they decided a size or "
                "a branch (a mask as an index, .item(), an `if`); convert the module with these values"
            )
        return None


def nan_unless(conditions: Sequence[Any], results: Sequence[Any]) -> list[Any]:
    """The results, with NaN in the place of all numbers, and of their derivatives, unless all conditions hold.

    Compiled code cannot raise, and a number that looks right would be worse than none.
    """
    holds = functools.reduce(jnp.logical_and, conditions)

    def marked(x: Any) -> Any:
        if not jnp.issubdtype(getattr(x, "dtype", bool), jnp.inexact):
            return x
        multiply = functools.partial(in_64_bits, _times_one_or_nan) if is_wide(x.dtype) else _times_one_or_nan
        return multiply(x, holds)

    return [marked(x) for x in results]


def _times_one_or_nan(x: Any, holds: Any) -> Any:
    return x * jnp.where(holds, 1, jnp.nan).astype(x.dtype)  # a factor, as the derivatives of a choice would be zero


def why_fixed(where: str, expected: tuple[int | None, ...]) -> str:
    """The sentence of a message that says what fixes a leading axis."""
    remedy = "as len(x), int(x.shape[0]) and functions of numpy or math do; x.shape[0] leaves it open"
    if expected[:1] in ((), (None,)):
        return "Only leading axes may have other lengths"
    if where:
        return f"The leading axis is fixed at {where}: it takes the length as a number, {remedy}"
    return f"A leading axis is fixed where the forward pass takes its length as a number, {remedy}"
