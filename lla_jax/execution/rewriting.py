"""Rewrites the jaxpr of a function: shares affine values between points, and speeds up convolutions and max pooling.

On the plane theta + a d1 + b d2 every linear image of the weights is affine in (a, b): the output of the first layer is
u0 + a u1 + b u2 with u_i = x @ d_i (and u0 = x @ theta). ``share_affine`` finds all such values in the jaxpr of a
function of the parameters, whatever framework wrote it, and computes their k + 1 parts once per block of data: only the
rest, from the first nonlinearity on, is computed at every point. Values are equal to rounding, and for finite data
exactly equal at the centre, if the function is evaluated in the same forms. ``rewrite_for_values`` and
``rewrite_for_derivatives`` give convolutions and max pooling forms that are fast on a CPU, the first for values only
and the second for derivatives too; ``rewrite_products`` does so with the convolutions that differentiation made.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import precision
from lla_jax.core.jaxprs import JITS, bind, equations, interpret
from lla_jax.core.types import PyTree
from lla_jax.execution import convolutions


class Profile(NamedTuple):
    """Numbers of a traced function.

    Args:
      nbytes: bytes of its largest intermediate value.
      primitives: names of its primitives.
      lowest: name of the floating type with the fewest bits among its values.
      bits: the fewest significant bits, those of the operands of matrix products on a device included.
    """

    nbytes: int
    primitives: set[str]
    lowest: str
    bits: int


def profile(f: Callable[..., Any], *args: Any, device: Any = None) -> Profile:
    """Trace ``f`` without running it, and describe it, for a device if one is given."""
    jaxpr = jax.make_jaxpr(f)(*args).jaxpr
    found = list(equations(jaxpr))
    sizes = [v.aval.size * v.aval.dtype.itemsize for eqn in found for v in eqn.outvars if hasattr(v.aval, "size")]
    names = {eqn.primitive.name for eqn in found}
    return Profile(max(sizes, default=0), names, *precision.bits_inside(jaxpr, device))


def flops(f: Callable[..., Any], *args: Any) -> int:
    """The floating point operations of the matrix products of ``f``, which is only traced; those in a loop count once.

    A product takes two for every entry of its result and every entry that is summed over.
    """
    total = 0
    for eqn in equations(jax.make_jaxpr(f)(*args).jaxpr):
        if eqn.primitive.name == "dot_general":
            (summed, _), _ = eqn.params["dimension_numbers"]
            total += 2 * eqn.outvars[0].aval.size * math.prod(eqn.invars[0].aval.shape[i] for i in summed)
    return total


# --- values that are affine in the coordinates

_LINEAR = {
    "broadcast_in_dim",
    "convert_element_type",
    "copy",
    "cumsum",
    "div",
    "dynamic_slice",
    "expand_dims",
    "gather",
    "neg",
    "reduce_sum",
    "reduce_window_sum",
    "reshape",
    "rev",
    "sharding_constraint",
    "slice",
    "squeeze",
    "transpose",
}
"""Primitives that are linear in the first operand if the other operands do not depend on the coordinates."""

_JOINTLY_LINEAR = ("add", "sub", "add_any", "concatenate", "pad")  # linear in all operands together
_SHIFTS = ("add", "sub", "add_any")
_BILINEAR = ("mul", "dot_general", "conv_general_dilated")  # linear in each operand if the other is constant


class _Affine:
    """A value v0 + sum_i c_i v_i that is affine in the coordinates c, kept as its parts (v0, v1, ..., vk)."""

    def __init__(self, parts: Sequence[Any]):
        self.parts = tuple(parts)

    def at(self, coord: Any) -> Any:
        value = self.parts[0]
        for c, part in zip(coord, self.parts[1:], strict=True):
            value = value + c.astype(part.dtype) * part
        return value


class _Fixed:
    """A factor, index or predicate: an operand that is used as it is for every part of an affine value."""

    def __init__(self, value: Any):
        self.value = value


class _AtPoint:
    """A value that is computed at every point."""


def _propagate(eqn: Any, values: list[Any], evaluate: Callable[[Any, list[Any]], list[Any]]) -> list[Any] | None:
    """The affine results of an equation with affine inputs, or None if it has to be evaluated at every point.

    It has to if it is not linear in these inputs, might divide by 0, or rounds its results to fewer digits.
    ``evaluate`` gives the results of the equation for one part of the inputs.
    """
    name = eqn.primitive.name
    varying = [isinstance(v, _Affine) for v in values]
    if not _widens(eqn):
        return None  # the parts would be rounded, and their sum with them
    if (name == "gather" and eqn.params["fill_value"]) or (name == "div" and not _nonzero(values[1])):
        return None
    if name in _SHIFTS and varying[0] and not varying[1]:  # only the centre's part is shifted
        (centre,) = bind(eqn, [values[0].parts[0], values[1]])
        return [_Affine([centre, *(jnp.broadcast_to(part, centre.shape) for part in values[0].parts[1:])])]
    if name in _JOINTLY_LINEAR:
        inputs = values
    elif (name in _LINEAR and varying[0] and not any(varying[1:])) or (name in _BILINEAR and sum(varying) == 1):
        inputs = [v if isinstance(v, _Affine) else _Fixed(v) for v in values]
    elif name == "select_n" and not varying[0]:
        inputs = [_Fixed(values[0]), *values[1:]]
    else:
        return None
    num_parts = next(len(v.parts) for v in values if isinstance(v, _Affine))
    results = [evaluate(eqn, [_part(v, i) for v in inputs]) for i in range(num_parts)]
    return [_Affine(parts) for parts in zip(*results, strict=True)]


def _part(value: Any, i: int) -> Any:
    """Part i of an operand; a constant is its own part 0, with zeros as its other parts, and a factor is every part."""
    if isinstance(value, _Fixed):
        return value.value
    if isinstance(value, _Affine):
        return value.parts[i]
    return jnp.zeros_like(value) if i else value


def _nonzero(divisor: Any) -> bool:
    """Whether a divisor is known while tracing and has no zeros; 0 * (x / 0) would not be 0 at the centre."""
    return not isinstance(divisor, jax.core.Tracer | _Affine) and bool(np.all(np.asarray(divisor) != 0))


def _widens(eqn: Any) -> bool:
    """Whether the result is floating, and at least as precise as all floating operands."""
    new = eqn.outvars[0].aval.dtype
    dtypes = [v.aval.dtype for v in eqn.invars if jnp.issubdtype(v.aval.dtype, jnp.floating)]
    return jnp.issubdtype(new, jnp.floating) and all(jnp.promote_types(old, new) == new for old in dtypes)


def share_affine(
    f: Callable[[PyTree], Any], params: PyTree, directions: PyTree, for_cpu: bool = False, join: bool = True
) -> Callable[[Any], Any]:
    """Make ``h(coord) = f(params + sum_i coord_i d_i)``; values that are affine in ``coord`` are computed here, once.

    Args:
      f: a traceable function of the parameters.
      params: the centre.
      directions: the stacked tree, leading axis k.
      for_cpu: whether the program gets the forms of ``rewrite_for_values``.
      join: as in ``rewrite_for_values``.

    Returns:
      ``h(coord)`` with ``coord`` of shape (k,), to be mapped over points inside the same trace. It must not be
      differentiated, because custom derivative rules are lost.
    """
    closed, shape = jax.make_jaxpr(f, return_shape=True)(params)
    evaluate = functools.partial(_evaluate_fast, join=join) if for_cpu else bind
    at_points: list[tuple[Any, list[Any], list[_AtPoint]]] = []

    def share(eqn: Any, values: list[Any]) -> Sequence[Any]:
        if not any(isinstance(value, _Affine | _AtPoint) for value in values):
            return bind(eqn, values)
        if not any(isinstance(value, _AtPoint) for value in values):
            results = _propagate(eqn, values, evaluate)
            if results is not None:
                return results
        later = [_AtPoint() for _ in eqn.outvars]
        at_points.append((eqn, values, later))
        return later

    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(directions), strict=True)
    outputs = interpret(closed, [_Affine([leaf, *moves]) for leaf, moves in pairs], share)

    def at(coord: Any) -> Any:
        known: dict[Any, Any] = {}

        def value(shared: Any) -> Any:
            if isinstance(shared, _Affine) and shared not in known:
                known[shared] = shared.at(coord)
            return known[shared] if isinstance(shared, _Affine | _AtPoint) else shared

        for eqn, values, results in at_points:
            known.update(zip(results, evaluate(eqn, [value(x) for x in values]), strict=True))
        return jax.tree.unflatten(jax.tree.structure(shape), [value(x) for x in outputs])

    return at


# --- max pooling and convolution, for values only

SLICES_MOST = 16  # entries of the largest pooling window that becomes slices


def rewrite_for_values(f: Callable[..., Any], join: bool = True) -> Callable[..., Any]:
    """Give max pooling and convolutions in ``f`` a form that is fast on a CPU; the values are equal to rounding.

    The new function must not be differentiated, because custom derivative rules are lost. Where there is nothing to
    rewrite it calls ``f`` itself.

    Args:
      f: a traceable function.
      join: whether convolutions with few channels compute several pixels as channels of one, which pays unless the
        new function is batched over weights.
    """

    def g(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(f, return_shape=True)(*args)
        found = equations(closed.jaxpr, loops=False)
        if not any(_sliceable(x) or convolutions.channels_elsewhere(x) or (join and _joinable(x)) for x in found):
            return f(*args)
        evaluate = functools.partial(_evaluate_fast, join=join)
        return jax.tree.unflatten(jax.tree.structure(shape), interpret(closed, jax.tree.leaves(args), evaluate))

    return g


def _joinable(eqn: Any) -> bool:
    return convolutions.pixels_to_join(eqn) > 1


def _sliceable(eqn: Any) -> bool:
    name, window = eqn.primitive.name, eqn.params.get("window_dimensions")
    return name == "reduce_window_max" and np.prod(window) <= SLICES_MOST and _tiles(eqn)


def _evaluate_fast(eqn: Any, values: Sequence[Any], join: bool) -> list[Any]:
    """The results of an equation: a convolution is done with channels last, max pooling as the maximum of slices.

    XLA joins the strided slices and the operations before them into one loop over several entries at a time. With
    ``join``, a convolution with few channels computes several pixels as channels of one.
    """
    pixels = convolutions.pixels_to_join(eqn) if join else 1
    if pixels > 1 or convolutions.channels_elsewhere(eqn):
        return [convolutions.channels_last(eqn, values[0], values[1], pixels)]
    if not _sliceable(eqn):
        return bind(eqn, values)
    window, (x,) = eqn.params["window_dimensions"], values
    return [functools.reduce(jax.lax.max, (jax.lax.slice(x, at, x.shape, window) for at in np.ndindex(*window)))]


# --- convolution, for values and derivatives


def rewrite_products(f: Callable[..., Any]) -> Callable[..., Any]:
    """Give convolutions with few channels in ``f``, such as those that differentiation made, their form for a CPU.

    The values are equal to rounding, and the new function is differentiable like ``f``: the insides of loops and
    custom rules stay as they are. Where there is nothing to rewrite it calls ``f`` itself.
    """

    def rule(eqn: Any, values: list[Any]) -> list[Any]:
        pixels = convolutions.pixels_to_join(eqn)
        return [convolutions.channels_last(eqn, values[0], values[1], pixels)] if pixels > 1 else bind(eqn, values)

    def g(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(f, return_shape=True)(*args)
        if not any(map(_joinable, equations(closed.jaxpr, loops=False))):
            return f(*args)
        return jax.tree.unflatten(jax.tree.structure(shape), interpret(closed, jax.tree.leaves(args), rule, JITS))

    return g


# --- max pooling and convolution of the data, for derivatives


class _Moving:
    """A value that depends on the parameters."""

    def __init__(self, value: Any):
        self.value = value


def rewrite_for_derivatives(f: Callable[[PyTree], Any], params: PyTree) -> Callable[[PyTree], Any]:
    """Give convolutions and max pooling in ``f`` forms that are faster on a CPU, also in derivatives.

    Convolutions of the data, whose input does not depend on the parameters, become patches times kernel: XLA is slow
    with one or three input channels, and if primal values are kept, the patches are computed once. Max pooling whose
    windows do not overlap becomes a choice of the first largest entry by a mask, which is kept too. The new function
    agrees with ``f`` to rounding and is differentiable like ``f``; the insides of loops and custom rules stay as they
    are.

    Args:
      f: a traceable function of the parameters.
      params: parameters of the shapes and dtypes with which the new function is called.
    """
    closed, shape = jax.make_jaxpr(f, return_shape=True)(params)

    def g(params: PyTree) -> Any:
        inputs = [_Moving(leaf) for leaf in jax.tree.leaves(params)]
        outputs = interpret(closed, inputs, _evaluate_for_derivatives, JITS)
        values = [x.value if isinstance(x, _Moving) else x for x in outputs]
        return jax.tree.unflatten(jax.tree.structure(shape), values)

    return g


def _evaluate_for_derivatives(eqn: Any, inputs: list[Any]) -> list[Any]:
    """The results of an equation in its faster form; they are wrapped as ``_Moving`` if an input is."""
    moving = [isinstance(x, _Moving) for x in inputs]
    values = [x.value if isinstance(x, _Moving) else x for x in inputs]
    if not moving[0] and convolutions.is_patchable(eqn):
        results = [convolutions.patch_product(eqn, *values)]
    elif eqn.primitive.name == "reduce_window_max" and _tiles(eqn):
        results = [_choose_largest(values[0], eqn.params["window_dimensions"])]
    else:
        results = bind(eqn, values)
    return [_Moving(x) for x in results] if any(moving) else results


def _tiles(eqn: Any) -> bool:
    """Whether the windows of a pooling equation cover the array without overlaps, gaps or padding."""
    p, shape = eqn.params, eqn.invars[0].aval.shape
    window = p["window_dimensions"]
    plain = {*p["base_dilation"], *p["window_dilation"]} == {1} and not np.any(p["padding"])
    return plain and p["window_strides"] == window and not np.any(np.remainder(shape, window))


def _choose_largest(x: Any, window: Sequence[int]) -> Any:
    """The largest entry of every window; of several equal ones, the first gets the derivative, as in XLA."""
    split = [size for n, k in zip(x.shape, window, strict=True) for size in (n // k, k)]
    order = [*range(0, 2 * x.ndim, 2), *range(1, 2 * x.ndim, 2)]
    tiles = x.reshape(split).transpose(order).reshape(*split[::2], -1)
    first = jax.lax.argmax(jax.lax.stop_gradient(tiles), x.ndim, np.int32)
    chosen = first[..., None] == jnp.arange(tiles.shape[-1], dtype=np.int32)
    return jnp.where(chosen, tiles, 0).sum(-1)
