"""Lets estimates be compared with numbers, arrays and each other, and be computed with in numpy and jax."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from lla_jax.core.arguments import Misuse
from lla_jax.core.signatures import MisusedCall


class Comparable(np.lib.mixins.NDArrayOperatorsMixin):
    """The conversions, the comparisons and the arithmetic of an estimate, which are those of its mean."""

    mean: Any
    sem: Any
    num: int
    recipe: dict[str, Any]

    def __float__(self) -> float:
        if isinstance(self.mean, float | int | np.number) or getattr(self.mean, "shape", None) == ():
            return float(self.mean)
        raise Misuse(
            "Estimate",
            f"{self!r} has a value for each parameter and is no single number; take their tree, estimate.mean, or its "
            'norm, estimate.recipe["norm"]',
        )

    def __int__(self) -> int:
        return int(float(self))

    def __round__(self, digits: int | None = None) -> float:
        return round(float(self), digits)

    def __eq__(self, other: Any) -> Any:
        if isinstance(other, Comparable):
            one, two = ((x.mean, x.sem, x.num, x.recipe) for x in (self, other))
            structure: Any = jax.tree.structure(one)
            alike = bool(structure == jax.tree.structure(two))
            return alike and all(map(np.array_equal, jax.tree.leaves(one), jax.tree.leaves(two)))
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

    @property
    def _number(self) -> Any:
        """The mean where arrays are asked for: an array or a float; a ``Misuse`` for a tree."""
        return self.mean if isinstance(self.mean, np.ndarray | jax.Array) else float(self)

    def __jax_array__(self) -> jax.Array:
        return jax.numpy.asarray(self._number)

    @property
    def __array__(self) -> Any:
        if not self._is_one_array:  # jax.device_get leaves it as it is
            raise AttributeError("__array__")
        return self._as_array

    @property
    def __array_interface__(self) -> Any:
        if self._is_one_array:
            raise AttributeError("__array_interface__")
        return float(self)  # numpy lets the error through

    def _as_array(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.array(self._number, dtype) if copy else np.asarray(self._number, dtype)

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
