"""Lets estimates be compared with numbers, arrays and each other, and be computed with in numpy and jax."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from lla_jax.core.arguments import Misuse
from lla_jax.core.signatures import MisusedCall


class Comparable(np.lib.mixins.NDArrayOperatorsMixin):
    """The comparisons and the arithmetic of an estimate, which are those of its mean."""

    mean: Any
    sem: Any
    num: int
    recipe: dict[str, Any]

    def __float__(self) -> float:
        raise NotImplementedError

    def __eq__(self, other: Any) -> Any:
        if isinstance(other, Comparable):
            one, two = ((x.mean, x.sem, x.num, x.recipe) for x in (self, other))
            leaves, structure = jax.tree.flatten(one)
            others, other = jax.tree.flatten(two)
            return len({structure, other}) == 1 and all(map(np.array_equal, leaves, others))
        if not self._is_one_array or not isinstance(other, float | int | np.number | np.ndarray | jax.Array):
            return NotImplemented
        if isinstance(self.mean, float) and isinstance(other, float | int):
            return self.mean == other
        return np.lib.mixins.NDArrayOperatorsMixin.__eq__(self, other)

    def __ne__(self, other: Any) -> Any:
        equal = self == other
        return ~equal if isinstance(equal, np.ndarray | np.bool_ | jax.Array) else not equal

    def __hash__(self) -> int:
        return hash(float(self)) if self._is_one_array and np.ndim(self.mean) == 0 else hash(self.num)

    @property
    def _is_one_array(self) -> bool:
        return isinstance(self.mean, float | int | np.number | np.ndarray | jax.Array)

    def __jax_array__(self) -> jax.Array:
        return jax.numpy.asarray(self.mean if isinstance(self.mean, np.ndarray | jax.Array) else float(self))

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        if any(isinstance(x, Comparable) for x in options.get("out", ())):  # of estimate /= 2, which makes a number
            options = {name: value for name, value in options.items() if name != "out"}
        numbers = [np.asarray(x)[()] if isinstance(x, Comparable) else x for x in inputs]
        if method == "__call__" and any(isinstance(x, jax.Array) for x in numbers):  # perhaps under jit
            return getattr(jax.numpy, ufunc.__name__)(*numbers, **options)
        try:
            return getattr(ufunc, method)(*numbers, **options)
        except (TypeError, ValueError) as error:
            if isinstance(error, Misuse):
                raise
            text = f"is a number in numpy.{ufunc.__name__}, which fails with it ({error})"
            remedy = 'write float(estimate) for the number, and f"{estimate}" for a text'
            raise MisusedCall("Estimate", f"{self!r} {text}; {remedy}") from error
