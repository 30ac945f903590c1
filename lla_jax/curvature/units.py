"""Chooses the unit of an operator's numbers, so that its products are neither too large nor too small for their type.

Squares of numbers beyond 1e19 overflow in float32, and those of numbers below 1e-19 are flushed to zero. An operator of
such a size is divided by its own size, a power of four, and the results are multiplied by it on the host, in float64.
Half of the factor scales the vector before the product and half the product: neither overflows on the way. An operator
of ordinary size stays as it is. No product is spent on the question: the sizes of the computation's own ones are looked
at, and where one is out of range, it starts again in another unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import recipes
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse, warn_caller
from lla_jax.core.results import Spectrum
from lla_jax.curvature.space import draw_one

T = TypeVar("T")

NEAR = 1e3  # times the least number of a type: smaller products may have terms that are flushed to zero
ORDINARY = 1e20  # the largest node of a spectrum whose powers are taken as they are; its inverse is the least one


class OutOfRange(Exception):
    """The size of the products is out of the ordinary range."""

    def __init__(self, size: float, products: int):
        super().__init__(size, products)
        self.size, self.products = size, products


class Unit(NamedTuple):
    """An operator divided by a unit.

    Args:
      H: the operator, divided by ``size``.
      size: the unit, a power of four; 1 for an operator of ordinary size.
      products: products used so far.
      settled: whether the size of the products has been looked at.
    """

    H: Any
    size: float = 1.0
    products: int = 0
    settled: bool = False

    def check(self, size: float, products: int) -> None:
        """Look at the size |A v| of the products; ``products`` is their number so far.

        Raises:
          OutOfRange: it is zero, not finite, or out of the range in which squares are exact; caught by ``adapt``.
        """
        if not self.settled and not is_ordinary(self.H, size):
            raise OutOfRange(size, products)


def is_ordinary(H: Any, size: float) -> bool:
    """Whether products of this size, and remainders a million times smaller, can be squared in the operator's type."""
    half = _exponents(H)
    return bool(2.0 ** -max(half // 2, half - 20) <= size <= 2.0 ** (half // 2))


def adapt(unit: Unit, key: jax.Array, compute: Callable[[Unit], T]) -> T:
    """``compute(unit)``; if the size of the products is out of range, once more in the operator's own unit.

    Args:
      unit: the operator.
      key: draws the vector that the size is taken of.
      compute: makes a result; it shows ``Unit.check`` the size of its products as they come.
    """
    try:
        return compute(unit)
    except OutOfRange as error:
        size, products = error.size, error.products
    return compute(find_unit(unit, size, products, key))


def find_unit(unit: Unit, size: float, products: int, key: jax.Array) -> Unit:
    """The operator in a unit of its own, from one or two products; as it is, if it is zero or has no finite products.

    Args:
      unit: the operator, as it is.
      size: the size of its products, out of the ordinary range.
      products: products used so far.
      key: draws the vector to multiply.
    """
    H, sign = unit.H, 1 if size < 1 else -1
    vector = H.space.wait_for(H.place(draw_one(H.space, key, np.uint32(0), distribution="rademacher")))
    for power in (sign * _exponents(H), sign * (_exponents(H) // 2)):
        largest = float(_tree.largest(_divide(H, -power).product(vector)))
        products += 1
        if math.isfinite(largest) and largest > 0:
            exponent = math.frexp(largest)[1] // 2 - power
            _warn_of_flushing(H, largest / 4.0**power)
            return Unit(_divide(H, exponent), 4.0**exponent, products, True)
        if (largest == 0) == (sign > 0):  # zero though enlarged, or not finite though made small
            break
    return unit._replace(settled=True)  # the products for nothing are not counted


@recipes.reading_state()
def of_state(H: Any, state: Mapping[str, Any]) -> Unit:
    """The operator in the unit of a saved state, whose entry "unit" is its size; states of before have none."""
    size = np.asarray(state.get("unit", 1.0))
    if size.shape or not np.isfinite(size) or size <= 0:
        text = f"its unit is {size.tolist()}; it must be a number above 0, as in the result that on_partial got"
        raise Misuse("resume", f"{text}: {recipes.START_ANEW}")
    return Unit(H if size == 1 else _divide(H, round(math.log(size, 4))), float(size), settled=True)


def of_spectrum(spec: Spectrum) -> tuple[Spectrum, float]:
    """(a spectrum in a unit in which its nodes have powers, the unit): a power of two, and 1 for an ordinary one."""
    nodes = np.asarray(spec.nodes, np.float64)
    largest = float(np.abs(nodes).max(initial=0))
    if not 0 < largest < math.inf or 1 / ORDINARY <= largest <= ORDINARY:
        return spec, 1.0
    exponent = math.frexp(largest)[1] - 1
    return replace(spec, nodes=np.ldexp(nodes, -exponent)), math.ldexp(1.0, exponent)


def _exponents(H: Any) -> int:
    """Half of the range of exponents of the narrowest type among the leaves: 63 in float32, 511 in float64."""
    return min(-int(jnp.finfo(dtype).minexp) // 2 for _, dtype in H.space.shapes)


def _warn_of_flushing(H: Any, largest: float) -> None:
    """Warn where a product is so near to the least number of its type that jax may count entries of A as zero."""
    least = max(float(jnp.finfo(dtype).tiny) for _, dtype in H.space.shapes)
    if largest < NEAR * least and not (H.is_given and H.multiplier.product is None):
        warn_caller(
            f"H: its products are about {largest:.1g}, and jax counts numbers below {least:.2g} as zero on the way to "
            "them; for all digits multiply the loss or matrix by 1e20 (and divide the results), or compute in float64"
        )


def _divide(H: Any, exponent: int) -> Any:
    """The operator divided by 4^exponent: S A S with S = 2^-exponent, times the scale that it has."""
    space, factor = H.space, 2.0**-exponent
    if space.scale is None:
        scale = jax.tree.map(lambda x: np.full(x.shape, factor, x.dtype), space.structure)
    else:
        scale = jax.tree.map(lambda s: s * np.asarray(factor, s.dtype), space.scale)
    return replace(H, space=replace(space, scale=H.place(jax.tree.map(jnp.asarray, scale))))
