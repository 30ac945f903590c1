"""Keeps displacements of half-precision weights: widens the weights, and measures what a network's own casts lose.

A bfloat16 number has 8 significant bits: theta + a d is theta again wherever |a d| is below |theta| / 512. So weights
of less than 32 bits become float32 before anything is added to them, and the network is called with these. A network
that casts its weights to fewer bits inside still rounds every point; the share of the displacement that is lost there
is measured in its jaxpr, where all values that depend on the weights alone are computed at two neighbouring points.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from lla_jax.core import operands
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import check_choice, warn_caller
from lla_jax.core.jaxprs import bind, equations, interpret
from lla_jax.core.static import ByValue
from lla_jax.core.types import Batch, Loss, PyTree, Recipe

SINGLE = 24  # significant bits of float32
LOST_MOST = 0.05  # share of a displacement that may be lost without a word


def bits(dtype: Any) -> int:
    """Number of significant bits of a floating type: 8 for bfloat16, 11 for float16, 24 for float32."""
    return int(jnp.finfo(dtype).nmant) + 1


def widen(tree: PyTree) -> PyTree:
    """The tree with leaves of less than 32 bits as float32; other leaves, also those that are not floating, stay.

    Masked arrays, which jax does not take, become plain ones; ``tree.check_real`` refuses those with masked entries.
    """

    def wide(x: Any) -> Any:
        x = np.asarray(x) if isinstance(x, np.ma.MaskedArray) else x
        dtype = getattr(x, "dtype", None)
        if isinstance(x, jax.ShapeDtypeStruct) and jnp.issubdtype(x.dtype, jnp.floating):
            return jax.ShapeDtypeStruct(x.shape, _tree.wide(x.dtype), sharding=x.sharding)
        return x.astype(_tree.wide(dtype)) if dtype is not None and jnp.issubdtype(dtype, jnp.floating) else x

    return jax.tree.map(wide, tree)


def types_of(tree: PyTree) -> list[str]:
    """The names of the types of all leaves, each once, as jax holds them."""
    return sorted({str(_tree.shape_dtype(x)[1]) for x in jax.tree.leaves(tree)})


# --- weights of half precision


@dataclass(frozen=True, eq=False)
class _Widened(ByValue):
    """``Loss.apply`` of a network whose weights have fewer than 32 bits, called with weights in float32.

    A network that cannot take them (a convolution of lax refuses operands of two types) gets its inputs in float32 as
    well, and if this does not help, weights of its own types. All of this happens while jax traces.
    """

    apply: Any
    types: tuple[str | None, ...]  # of the leaves of the parameters
    states: tuple[str | None, ...]  # of the leaves of the state, None where they are not floating
    own: bool

    def __call__(self, params: PyTree, state: PyTree, batch: Batch, train: bool, *keys: Any) -> tuple[Any, PyTree]:
        if not self.own:
            for inputs in (batch, widen(batch)):
                try:
                    return self.apply(params, state, inputs, train, *keys)
                except Exception:  # whatever a network says to other types; its own error is raised below
                    continue
        outputs, new = self.apply(_cast(params, self.types), _cast(state, self.states), batch, train, *keys)
        return outputs, widen(new)

    def on_example(self, *args: Any) -> tuple[Any, PyTree]:
        """The same for a single example; see ``losses.outputs_of``."""
        return replace(self, apply=getattr(self.apply, "on_example", self.apply))(*args)


def _cast(tree: PyTree, types: Sequence[str | None]) -> PyTree:
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, [x if t is None else x.astype(t) for x, t in zip(leaves, types, strict=True)])


def _floating_types(tree: PyTree) -> tuple[str | None, ...]:
    floating = (hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(tree))
    return tuple(str(x.dtype) if yes else None for x, yes in zip(jax.tree.leaves(tree), floating, strict=True))


def at_least_single(loss: Loss, params: PyTree) -> tuple[Loss, PyTree]:
    """(loss, params) for computing at moved weights: leaves of less than 32 bits are float32, and so is the state.

    With ``loss.precision == "params"`` the weights are moved in float32 too, and the network is called with weights
    rounded to the types of ``params``.

    Raises:
      ValueError: another ``loss.precision``.
    """
    check_choice("precision", loss.precision, ("float32", "params"))
    wide = widen(params)
    if types_of(wide) == types_of(params):
        return loss, wide
    own = loss.precision == "params"
    apply = _Widened(loss.apply, _floating_types(params), _floating_types(loss.state), own)
    return replace(loss, apply=apply, state=widen(loss.state)), wide


def is_widened(loss: Loss) -> bool:
    """Whether the loss comes from ``at_least_single``, for parameters of less than 32 bits."""
    return isinstance(loss.apply, _Widened)


def describe(loss: Loss, params: PyTree) -> Recipe:
    """The entry "precision" of a recipe: the types of the weights at work, and those given if these are others."""
    given = types_of(params)
    at_work = given if loss.precision == "params" else types_of(widen(params))
    return {"params": at_work} | ({} if given == at_work else {"given": given})


# --- the types inside a network


_MOVES = {
    "broadcast_in_dim",
    "concatenate",
    "copy",
    "dynamic_slice",
    "dynamic_update_slice",
    "expand_dims",
    "gather",
    "pad",
    "reshape",
    "rev",
    "select_n",
    "slice",
    "squeeze",
    "transpose",
}
"""Primitives that move numbers and compute none: data in half precision are exact numbers."""


def lowest_type(jaxpr: Any) -> str:
    """The name of the floating type with the fewest bits in which a jaxpr, nested ones included, computes numbers."""
    every = list(equations(jaxpr))
    computing = [eqn for eqn in every if eqn.primitive.name not in _MOVES and not _inner(eqn)]
    types = {var.aval.dtype for eqn in computing for var in eqn.outvars if hasattr(var.aval, "dtype")}
    floating = sorted(str(dtype) for dtype in types if jnp.issubdtype(dtype, jnp.floating))
    rounded = [eqn.params["mantissa_bits"] for eqn in every if eqn.primitive.name == "reduce_precision"]
    floating += [name for name in ("float16", "bfloat16") if any(n < bits(name) for n in rounded)]
    return min(floating, key=bits, default="float32")


def _inner(eqn: Any) -> list[Any]:
    """The jaxprs inside an equation, with their constants."""
    items = [x for p in eqn.params.values() for x in (p if isinstance(p, tuple | list) else (p,))]
    closed = [core.ClosedJaxpr(x, ()) if hasattr(x, "eqns") and not hasattr(x, "consts") else x for x in items]
    return [x for x in closed if hasattr(getattr(x, "jaxpr", None), "eqns")]


def bits_inside(jaxpr: Any, device: Any) -> tuple[str, int]:
    """(``lowest_type``, the fewest significant bits with which a device computes a jaxpr, matrix products included)."""
    lowest = lowest_type(jaxpr)
    return lowest, min(bits(lowest), operands.BITS.get(operands.format_inside(jaxpr, device), SINGLE))


class Coarse(NamedTuple):
    """Why numbers have fewer bits than float32, in words.

    Args:
      name: the type or format.
      who: who computes in it.
      remedy: what to do.
    """

    name: str
    who: str
    remedy: str


def find_coarse(entry: Mapping[str, Any]) -> Coarse | None:
    """What in a recipe's "precision" has fewer bits than float32: the network's types or the operands of its products.

    None if nothing has.
    """
    digits = entry.get("bits", SINGLE)
    if digits >= SINGLE:
        return None
    if bits(entry["lowest"]) <= digits:
        return Coarse(entry["lowest"], "the network computes", "build the network in float32")
    name = next((name for name, n in operands.BITS.items() if n == digits), f"{digits} bits")
    asked = entry.get("operands", operands.EXACT) != operands.EXACT
    remedy = 'pass execution=lla.Execution(precision="highest")' if asked else "leave precision= out of its products"
    return Coarse(name, "the device multiplies matrices", remedy)


def types_at_work(recipe: Mapping[str, Any], default: Sequence[str] = ()) -> list[str]:
    """The types of the weights, and what ``find_coarse`` finds, which a recipe's "precision" tells."""
    entry = recipe.get("precision", {})
    coarse = find_coarse(entry)
    return list(dict.fromkeys([*entry.get("params", default), *([coarse.name] if coarse else [])]))


def eps_at_work(recipe: Mapping[str, Any], default: Sequence[str] = ()) -> float:
    """The largest eps of the types of the weights and of what ``find_coarse`` finds; 0 if the recipe tells nothing."""
    entry = recipe.get("precision", {})
    eps = [float(jnp.finfo(name).eps) for name in entry.get("params", default)]
    digits = entry.get("bits", SINGLE)
    return max([0.0, *eps, *([operands.eps_of(digits)] if digits < SINGLE else [])])


class _Pair(NamedTuple):
    """A value that depends on the weights alone, at two neighbouring points."""

    one: Any
    two: Any


_UNKNOWN = object()  # a value that depends on the data


def lost_share(f: Callable[..., Any], one: PyTree, two: PyTree, *data: Any, device: Any = None) -> Any:
    """The share of a displacement of the weights that a network loses by casting its weights to fewer bits.

        |round(u(two)) - round(u(one)) - (u(two) - u(one))| / |u(two) - u(one)|

    over all values u that depend on the weights alone and are cast: weights, and what a network makes of them before
    the cast, or before a matrix product whose operands the device rounds. 0 if nothing is cast, or nothing of it moves.
    Pure.

    Args:
      f: ``f(params, *data)``, which is traced.
      one: the parameters at one point.
      two: the parameters at another.
      data: whatever else ``f`` reads; only its shapes matter.
      device: the device whose products are looked at; None for casts alone.
    """
    shapes = jax.eval_shape(lambda *args: args, one, *data)
    closed = jax.make_jaxpr(f)(*shapes)
    pairs: list[Any] = [_Pair(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)]
    inputs = [*pairs, *[_UNKNOWN] * (len(closed.jaxpr.invars) - len(pairs))]
    lost, moved = _squares(closed, inputs, device)
    return jnp.sqrt(jnp.where(moved > 0, lost / jnp.where(moved > 0, moved, 1), 0))


def _squares(closed: Any, inputs: Sequence[Any], device: Any) -> Any:
    """(2,): the squares of the lost and of the whole displacement, added up over all casts in a jaxpr."""
    found = [jnp.zeros(2)]

    def rule(eqn: Any, values: list[Any]) -> list[Any]:
        if device is not None:
            found.extend(_in_product(eqn, values, device))
        if _UNKNOWN in map(_or_none, values):
            found.extend(_inside(eqn, values, device))
            return [_UNKNOWN] * len(eqn.outvars)
        if not any(isinstance(v, _Pair) for v in values):
            return bind(eqn, values)
        each = [bind(eqn, [getattr(v, at) if isinstance(v, _Pair) else v for v in values]) for at in _Pair._fields]
        if _narrows(eqn):
            found.append(_compare(values[0], _Pair(each[0][0], each[1][0])))
        return [_Pair(*pair) for pair in zip(*each, strict=True)]

    interpret(closed, inputs, rule)
    return jnp.sum(jnp.stack(found), 0)


def _in_product(eqn: Any, values: list[Any], device: Any) -> list[Any]:
    """The squares of the operands of a matrix product that the device rounds."""
    name = operands.format_in(eqn, device)
    if name is None or name == operands.EXACT or name not in operands.BITS:
        return []
    pairs = [v for v in values[:2] if isinstance(v, _Pair) and v.one.dtype == np.float32]
    return [_compare(v, _Pair(*(operands.rounded(x, name) for x in v))) for v in pairs]


def _or_none(value: Any) -> Any:
    """The mark of an unknown value, or None: arrays are not to be compared."""
    return value if value is _UNKNOWN else None


def _narrows(eqn: Any) -> bool:
    if eqn.primitive.name == "reduce_precision":
        return True
    if eqn.primitive.name != "convert_element_type":
        return False
    old, new = eqn.invars[0].aval.dtype, eqn.outvars[0].aval.dtype
    return jnp.issubdtype(old, jnp.floating) and jnp.issubdtype(new, jnp.floating) and bits(new) < bits(old)


def _compare(exact: _Pair, rounded: _Pair) -> Any:
    """(2,): the squares of the lost and of the whole displacement of one value."""
    moved = exact.two - exact.one
    got = rounded.two.astype(moved.dtype) - rounded.one.astype(moved.dtype)
    return jnp.stack([jnp.sum(jnp.square(x.astype(jnp.float32))) for x in (got - moved, moved)])


def _inside(eqn: Any, values: list[Any], device: Any) -> list[Any]:
    """The squares of the casts inside a loop or a branch whose other inputs depend on the data."""
    name, p = eqn.primitive.name, eqn.params
    if name == "scan":
        head, carry = _scan_counts(eqn)
        slices = {i: v for i, v in enumerate(values[head + carry :]) if v is not _UNKNOWN}
        num = len(values) - head - carry

        def body(slices: dict[int, Any]) -> Any:
            entries = [slices.get(i, _UNKNOWN) for i in range(num)]
            return _squares(p["jaxpr"], [*values[:head], *[_UNKNOWN] * carry, *entries], device)

        return [jnp.sum(jax.vmap(body)(slices), 0) if slices else body({})]
    if name == "while":
        consts = values[p["cond_nconsts"] :][: p["body_nconsts"]]
        rest = len(p["body_jaxpr"].jaxpr.invars) - len(consts)
        return [_squares(p["body_jaxpr"], [*consts, *[_UNKNOWN] * rest], device)]
    if name == "cond":
        return [_squares(branch, values[1:], device) for branch in p["branches"]]
    return [_squares(each, values, device) for each in _inner(eqn) if len(each.jaxpr.invars) == len(values)]


def _scan_counts(eqn: Any) -> tuple[int, int]:
    """(number of constants, number of carried values) of a scan, read from shapes: versions of jax name them otherwise.

    The entries of an array that is scanned, or stacked as a result, have one axis less than the array.
    """
    inner = eqn.params["jaxpr"].jaxpr
    scanned = sum(x.aval.ndim > y.aval.ndim for x, y in zip(eqn.invars, inner.invars, strict=True))
    carry = sum(x.aval.ndim == y.aval.ndim for x, y in zip(eqn.outvars, inner.outvars, strict=True))
    return len(eqn.invars) - carry - scanned, carry


def warn_of_lost(share: float, entry: Mapping[str, Any], precision: str) -> None:
    """Warn if a share of the displacement between neighbouring points is lost that changes the picture.

    Args:
      share: the share.
      entry: the recipe's "precision".
      precision: that of the loss.
    """
    coarse = find_coarse(entry)
    if share <= LOST_MOST or coarse is None:
        return
    own = coarse.name == entry["lowest"]
    remedy = f"{coarse.remedy}{' (dtype=jnp.float32, no autocast)' if own else ''}, or take a larger extent"
    remedy = (
        'leave out precision="params", or take a larger extent'
        if own and precision == "params"
        else f"{remedy} or fewer points"
    )
    warn_caller(
        f"params: {'the network' if own else 'a matrix product'} rounds its weights to {coarse.name}, {entry['bits']} "
        f"significant bits, and {share:.0%} of the displacement from the centre to the next point of the grid is lost; "
        f"the landscape is wrong in its details, such as the curvature: {remedy}"
    )
