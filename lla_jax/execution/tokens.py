"""Follows an axis of tokens through the equations of a jaxpr, and evaluates an equation for a part of the tokens.

An axis is followed as far as every equation treats the entries along it independently of each other: elementwise
operations, reductions and gathers along other axes, and moves of axes. What mixes tokens has no rule.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from lla_jax.core.jaxprs import bind


class Tokens(NamedTuple):
    """Where the n tokens lie in an array: token t has the ``per`` rows from ``(start + t) * per`` on, of one axis."""

    axis: int
    start: int = 0
    per: int = 1


class NoRule(Exception):
    """The equation mixes tokens, or is not known."""


class Other(Exception):
    """The axis can be followed if other tokens are taken: their number, and the first one."""

    def __init__(self, num: int, start: int):
        super().__init__(num, start)
        self.num, self.start = num, start


# --- the outputs of a network, seen from two sides

cut_p = core.Primitive("cut")
cut_p.def_impl(lambda value, _: value)
cut_p.def_abstract_eval(lambda value, _: value)
mlir.register_lowering(cut_p, mlir.lower_fun(lambda value, _: value, multiple_results=False))
batching.defvectorized(cut_p)


def _cut_jvp(primals: Sequence[Any], tangents: Sequence[Any]) -> tuple[Any, Any]:
    given = [ad.instantiate_zeros(t) for t in tangents if not isinstance(t, ad.Zero)]
    return cut_p.bind(*primals), sum(given[1:], given[0])


ad.primitive_jvps[cut_p] = _cut_jvp


def cut(value: Any, line: Any) -> Any:
    """``value``, whose derivative is the sum of those of both arguments: ``value + (line - stop_gradient(line))``.

    A gradient with respect to what ``line`` depends on alone is pulled back along ``line``; its own derivative goes
    along ``value``. Nothing computes the value of ``line``.
    """
    return cut_p.bind(value, line)


# --- rules

# fmt: off
ELEMENTWISE = {
    "abs", "acos", "acosh", "add", "add_any", "and", "asin", "asinh", "atan", "atan2", "atanh", "cbrt", "ceil",
    "clamp", "convert_element_type", "copy", "copy_p", "cos", "cosh", "cut", "digamma", "div", "eq", "erf", "erf_inv",
    "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "imag", "integer_pow", "is_finite", "le", "lgamma", "log",
    "log1p", "logistic", "lt", "max", "min", "mul", "ne", "neg", "nextafter", "not", "or", "population_count", "pow",
    "real", "reduce_precision", "rem", "round", "rsqrt", "select_n", "sign", "sin", "sinh", "sqrt", "square",
    "stop_gradient", "sub", "tan", "tanh", "xor",
}
REDUCING = {
    "reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "argmax", "argmin",
}
# fmt: on
ALONG = {"cumsum": "axis", "cummax": "axis", "cummin": "axis", "cumlogsumexp": "axis", "concatenate": "dimension"}
"""Primitives that mix the entries along one axis, and the parameter that names it."""

Links = Iterator[tuple[list[int | None], int]]
"""Pairs (axis of each input, None where it has none; axis of the output) along which entries belong to each other."""


def _links(eqn: Any, iota: Callable[[Any, int], bool]) -> Links:
    """The axes of an equation that does not mix the entries along them."""
    name, p = eqn.primitive.name, eqn.params
    out = eqn.outvars[0].aval.shape
    shapes = [v.aval.shape for v in eqn.invars]
    if name in ELEMENTWISE or name in ALONG:
        for j in range(len(out)):
            if j != p.get(ALONG.get(name, "")):
                yield [j if len(s) == len(out) and (s[j] == out[j]) else None for s in shapes], j
    elif name in REDUCING:
        yield from _links_of_rest(shapes[0], p["axes"])
    elif name == "broadcast_in_dim":
        where = {j: a for a, j in enumerate(p["broadcast_dimensions"]) if shapes[0][a] == out[j]}
        yield from (([where.get(j)], j) for j in range(len(out)))
    elif name == "squeeze":
        yield from _links_of_rest(shapes[0], p["dimensions"])
    elif name == "transpose":
        yield from (([a], j) for j, a in enumerate(p["permutation"]))
    elif name == "iota":
        yield from (([], j) for j in range(len(out)) if j != p["dimension"])
    elif name == "dot_general":
        yield from _links_of_dot(eqn)
    elif name == "gather":
        yield from _links_of_gather(eqn, iota)


def _links_of_rest(shape: Sequence[int], gone: Sequence[int]) -> Links:
    for j, a in enumerate(a for a in range(len(shape)) if a not in gone):
        yield [a], j


def _links_of_dot(eqn: Any) -> Links:
    (contracted, batch) = eqn.params["dimension_numbers"]
    yield from (([a, b], j) for j, (a, b) in enumerate(zip(*batch, strict=True)))
    j = len(batch[0])
    for side in (0, 1):
        for a in range(eqn.invars[side].aval.ndim):
            if a not in contracted[side] and a not in batch[side]:
                yield [a, None] if side == 0 else [None, a], j
                j += 1


def _links_of_gather(eqn: Any, iota: Callable[[Any, int], bool]) -> Links:
    p, n = eqn.params, eqn.params["dimension_numbers"]
    operand, indices = (v.aval.shape for v in eqn.invars)
    batching_dims = tuple(n.operand_batching_dims)
    kept = [a for a in range(len(operand)) if a not in n.collapsed_slice_dims and a not in batching_dims]
    for a, j in zip(kept, n.offset_dims, strict=True):
        if p["slice_sizes"][a] == operand[a] and a not in n.start_index_map:
            yield [a, None], j
    others = [j for j in range(eqn.outvars[0].aval.ndim) if j not in n.offset_dims]
    for i, j in enumerate(others):
        if i in n.start_indices_batching_dims:
            yield [batching_dims[n.start_indices_batching_dims.index(i)], i], j
            continue
        own = [a for c, a in enumerate(n.start_index_map) if a in n.collapsed_slice_dims and operand[a] == indices[i]]
        own = [a for a in own if len(others) == 1 and iota(eqn.invars[1], n.start_index_map.index(a))]
        yield from (([a, i], j) for a in own[:1])
        if not own:
            yield [None, i], j


def _through_reshape(old: Sequence[int], new: Sequence[int], at: Tokens) -> Tokens:
    """The tokens of a reshaped array: rows along an axis that becomes larger or smaller stay side by side."""
    before, size = math.prod(old[: at.axis]), old[at.axis]
    found = [j for j in range(len(new)) if math.prod(new[:j]) == before and (new[j] != 1 or size == 1)]
    if not found:
        raise NoRule
    rows = new[found[0]]
    if rows % size == 0:
        return Tokens(found[0], at.start, at.per * (rows // size))
    if size % rows:
        raise NoRule
    if at.per % (size // rows):
        raise Other(rows, 0)
    return Tokens(found[0], at.start, at.per // (size // rows))


def forward(eqn: Any, i: int, at: Tokens, num: int, iota: Callable[[Any, int], bool]) -> Tokens:
    """Where the tokens of input ``i`` lie in the output of an equation.

    Raises:
      NoRule: the equation mixes tokens.
      Other: it does not, for other tokens.
    """
    if len(eqn.outvars) != 1:
        raise NoRule
    out = eqn.outvars[0].aval.shape
    if eqn.primitive.name == "reshape":
        return _through_reshape(eqn.invars[0].aval.shape, out, at)
    if eqn.primitive.name == "slice":
        low, rows = _sliced(eqn, at.axis)
        if rows == eqn.invars[0].aval.shape[at.axis]:
            return at
        if at.per != 1:
            raise NoRule
        if (at.start, num) != (low, rows):
            raise Other(rows, low)
        return Tokens(at.axis)
    for ins, j in _links(eqn, iota):
        if ins[i] == at.axis:
            return at._replace(axis=j)
    raise NoRule


def backward(eqn: Any, at: Tokens, iota: Callable[[Any, int], bool]) -> list[Tokens | None]:
    """Where the tokens of the output lie in every input; None in an input that has none.

    Raises:
      NoRule: the equation mixes tokens.
    """
    if eqn.primitive.name == "reshape":
        try:
            return [_through_reshape(eqn.outvars[0].aval.shape, eqn.invars[0].aval.shape, at)]
        except Other:
            raise NoRule from None
    if eqn.primitive.name == "slice":
        low, _ = _sliced(eqn, at.axis)
        if low and at.per != 1:
            raise NoRule
        return [at._replace(start=at.start + low)]
    for ins, j in _links(eqn, iota):
        if j == at.axis:
            return [None if a is None else at._replace(axis=a) for a in ins]
    raise NoRule


def _sliced(eqn: Any, axis: int) -> tuple[int, int]:
    """(first row, number of rows) of a slice along an axis."""
    p = eqn.params
    if p["strides"] is not None and p["strides"][axis] != 1:
        raise NoRule
    return p["start_indices"][axis], p["limit_indices"][axis] - p["start_indices"][axis]


# --- equations for a part of the tokens


def evaluate(eqn: Any, values: Sequence[Any], ins: Sequence[Tokens | None], out: Tokens, num: int) -> Any:
    """The result of an equation for ``num`` tokens, from inputs that hold these tokens."""
    rows, name, p = num * out.per, eqn.primitive.name, eqn.params
    if name == "slice":
        start, limit = list(p["start_indices"]), list(p["limit_indices"])
        start[out.axis], limit[out.axis] = 0, rows
        return jax.lax.slice(values[0], start, limit, p["strides"])
    if name == "reshape":
        return jnp.reshape(values[0], _with(eqn.outvars[0].aval.shape, out.axis, rows))
    if name == "broadcast_in_dim":
        shape = _with(p["shape"], out.axis, rows)
        return jax.lax.broadcast_in_dim(values[0], shape, p["broadcast_dimensions"])
    if name == "iota":
        return jax.lax.broadcasted_iota(p["dtype"], _with(p["shape"], out.axis, rows), p["dimension"])
    if name != "gather":
        (result,) = bind(eqn, values)
        return result
    operand, indices = values
    n, sizes = p["dimension_numbers"], list(p["slice_sizes"])
    at = None if ins[0] is None else ins[0].axis
    if at is not None and out.axis in n.offset_dims:
        sizes[at] = rows
    elif at is not None and at in n.collapsed_slice_dims:  # each token reads its own row, which has another number now
        column = n.start_index_map.index(at)
        indices = indices.at[..., column].set(jnp.arange(rows, dtype=indices.dtype))
    with eqn.ctx.manager:
        return eqn.primitive.bind(operand, indices, **(p | {"slice_sizes": tuple(sizes)}))


def _with(shape: Sequence[int], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


def numbers_its_rows(var: Any, column: int, producers: dict[Any, Any]) -> bool:
    """Whether a column of the indices of a gather, (N, k), is 0, 1, ..., N - 1 whatever the arguments are."""
    eqn = producers.get(var)
    if eqn is None or eqn.primitive.name != "concatenate" or var.aval.ndim != 2 or eqn.params["dimension"] != 1:
        return False
    pieces = eqn.invars
    if column >= len(pieces) or any(v.aval.shape[1] != 1 for v in pieces):
        return False
    found = _constant(pieces[column], producers)
    return found is not None and bool(np.array_equal(np.asarray(found)[:, 0], np.arange(var.aval.shape[0])))


def _constant(var: Any, producers: dict[Any, Any]) -> Any:
    """The value of a variable that depends on no argument; None for others."""
    if isinstance(var, core.Literal):
        return var.val
    eqn = producers.get(var)
    if eqn is None or len(eqn.outvars) != 1 or eqn.primitive.name not in ELEMENTWISE | {"iota", "broadcast_in_dim"}:
        return None
    values = [_constant(v, producers) for v in eqn.invars]
    if any(v is None for v in values):
        return None
    with jax.ensure_compile_time_eval():
        return bind(eqn, [jnp.asarray(v) for v in values])[0]
