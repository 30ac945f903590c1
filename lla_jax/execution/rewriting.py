"""Work saved by structure: what is affine in the coordinates is computed once and shared by all points, and
convolutions and max pooling are put in a form that is fast on a CPU: one for values, another for derivatives.

On the plane theta + a d1 + b d2 every linear image of the weights is affine in (a, b): the first layer's output is
u0 + a u1 + b u2 with u_i = x @ d_i (and u0 = x @ theta). ``affine`` finds all such values in the jaxpr of a function of
the parameters, whatever framework wrote it, computes their k + 1 parts once per block of data, and leaves for each
point only what follows the first nonlinearity. Values are equal to rounding, and for finite data exactly equal at the
centre.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from lla_jax.core.types import PyTree

# linear in the first operand while all others do not depend on the coordinates
_LINEAR = {
    "reshape", "transpose", "broadcast_in_dim", "squeeze", "expand_dims", "neg", "reduce_sum", "slice", "rev", "copy",
    "cumsum", "reduce_window_sum", "gather", "dynamic_slice", "div", "sharding_constraint",
}  # fmt: skip
# linear in all operands together
_JOINT = {"add", "sub", "add_any", "concatenate", "pad"}
_SHIFTS = {"add", "sub", "add_any"}
# linear in either of two operands while the other does not depend on the coordinates
_BILINEAR = {"mul", "dot_general", "conv_general_dilated"}
_CALLS = {  # calls to inline, by the parameter that holds their jaxpr
    "jit": "jaxpr", "pjit": "jaxpr", "closed_call": "call_jaxpr", "core_call": "call_jaxpr", "remat": "jaxpr",
    "checkpoint": "jaxpr", "custom_jvp_call": "call_jaxpr", "custom_vjp_call": "call_jaxpr",
}  # fmt: skip


class _Affine:
    """Parts (v0, v1, ..., vk) of a value v0 + sum_i c_i v_i."""

    def __init__(self, parts: Sequence[Any]):
        self.parts = tuple(parts)

    def at(self, coord: Any) -> Any:
        value = self.parts[0]
        for c, part in zip(coord, self.parts[1:], strict=True):
            value = value + c.astype(part.dtype) * part
        return value


class _Fixed:
    """A factor, index or predicate: the same in every part."""

    def __init__(self, value: Any):
        self.value = value


class _Later:
    """A value that is known only at a point."""


def _bind(eqn: Any, values: Sequence[Any]) -> list[Any]:
    with eqn.ctx.manager:
        out = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return list(out) if eqn.primitive.multiple_results else [out]


def _flatten_calls(closed: Any) -> tuple[list[tuple[Any, list[Any], list[Any]]], list[Any], dict[Any, Any]]:
    """Equations of a jaxpr with calls inlined, as (eqn, inputs, outputs) over fresh ids; outputs; constants by id."""
    equations: list[tuple[Any, list[Any], list[Any]]] = []
    constants: dict[Any, Any] = {}

    def walk(jaxpr: Any, consts: Sequence[Any], names: dict[Any, Any]) -> list[Any]:
        for var, const in zip(jaxpr.constvars, consts, strict=True):
            names[var] = object()
            constants[names[var]] = const

        def name(var: Any) -> Any:
            if isinstance(var, core.Literal):
                key = object()
                constants[key] = var.val
                return key
            return names[var]

        for eqn in jaxpr.eqns:
            inputs = [name(v) for v in eqn.invars]
            inner = eqn.params.get(_CALLS[eqn.primitive.name]) if eqn.primitive.name in _CALLS else None
            if inner is not None:
                closed_inner = inner if hasattr(inner, "consts") else core.ClosedJaxpr(inner, ())
                scope = dict(zip(closed_inner.jaxpr.invars, inputs, strict=True))
                outputs = walk(closed_inner.jaxpr, closed_inner.consts, scope)
            else:
                outputs = [object() for _ in eqn.outvars]
                equations.append((eqn, inputs, outputs))
            names.update(zip(eqn.outvars, outputs, strict=True))
        return [name(v) for v in jaxpr.outvars]

    top = {var: i for i, var in enumerate(closed.jaxpr.invars)}
    outputs = walk(closed.jaxpr, closed.consts, top)
    return equations, outputs, constants


def _propagate(eqn: Any, values: list[Any]) -> list[Any] | None:
    """Affine results of an equation with affine inputs, or None where it is not linear in them."""
    name = eqn.primitive.name
    varying = [isinstance(v, _Affine) for v in values]
    if not _widens(eqn):
        return None  # the parts would be rounded, and their sum with them
    if (name == "gather" and eqn.params["fill_value"]) or (name == "div" and not _nonzero(values[1])):
        return None
    linear = name in _LINEAR or name == "convert_element_type"
    if name in _SHIFTS and varying[0] and not varying[1]:  # only the centre's part is shifted
        (centre,) = _bind(eqn, [values[0].parts[0], values[1]])
        return [_Affine([centre, *(jnp.broadcast_to(part, centre.shape) for part in values[0].parts[1:])])]
    if name in _JOINT:
        inputs = values
    elif (linear and varying[0] and not any(varying[1:])) or (name in _BILINEAR and sum(varying) == 1):
        inputs = [v if isinstance(v, _Affine) else _Fixed(v) for v in values]
    elif name == "select_n" and not varying[0]:
        inputs = [_Fixed(values[0]), *values[1:]]
    else:
        return None
    num_parts = next(len(v.parts) for v in values if isinstance(v, _Affine))
    results = [_bind(eqn, [_part(v, i) for v in inputs]) for i in range(num_parts)]
    return [_Affine(parts) for parts in zip(*results, strict=True)]


def _part(value: Any, i: int) -> Any:
    """Part i of an operand: what does not depend on the coordinates is its own part 0 and zero beyond, unless fixed."""
    if isinstance(value, _Fixed):
        return value.value
    if isinstance(value, _Affine):
        return value.parts[i]
    return jnp.zeros_like(value) if i else value


def _nonzero(divisor: Any) -> bool:
    """Whether a divisor is known not to be zero: 0 * (x / 0) is no part of a sum."""
    return not isinstance(divisor, jax.core.Tracer | _Affine) and bool(np.all(np.asarray(divisor) != 0))


def _widens(eqn: Any) -> bool:
    """Whether results are at least as precise as the floating operands."""
    new = eqn.outvars[0].aval.dtype
    dtypes = [v.aval.dtype for v in eqn.invars if jnp.issubdtype(v.aval.dtype, jnp.floating)]
    return jnp.issubdtype(new, jnp.floating) and all(jnp.promote_types(old, new) == new for old in dtypes)


def affine(f: Callable[[PyTree], Any], params: PyTree, directions: PyTree) -> Callable[[Any], Any]:
    """``h(coord) = f(params + sum_i coord_i d_i)`` with all that is affine in ``coord`` computed now, once.

    Args:
      f: a traceable function of the parameters.
      params: the centre.
      directions: the stacked tree, leading axis k.

    Returns:
      ``h(coord)`` with ``coord`` of shape (k,), to be mapped over points inside the same trace. Only for evaluation:
      custom derivative rules are inlined.
    """
    closed, shape = jax.make_jaxpr(f, return_shape=True)(params)
    equations, outputs, constants = _flatten_calls(closed)
    leaves = jax.tree.leaves(params)
    moves = jax.tree.leaves(directions)
    env: dict[Any, Any] = dict(constants)
    for i, (leaf, move) in enumerate(zip(leaves, moves, strict=True)):
        env[i] = _Affine([leaf, *move])
    later: list[tuple[Any, list[Any], list[Any]]] = []
    for eqn, inputs, outs in equations:
        values = [env[v] for v in inputs]
        results: list[Any] | None
        if any(isinstance(v, _Later) for v in values):
            results = None
        elif any(isinstance(v, _Affine) for v in values):
            results = _propagate(eqn, values)
        else:
            results = _bind(eqn, values)
        if results is None:
            later.append((eqn, inputs, outs))
            results = [_Later()] * len(outs)
        env.update(zip(outs, results, strict=True))

    def at(coord: Any) -> Any:
        local: dict[Any, Any] = {}

        def value(key: Any) -> Any:
            if key not in local:
                known = env[key]
                local[key] = known.at(coord) if isinstance(known, _Affine) else known
            return local[key]

        for eqn, inputs, outs in later:
            local.update(zip(outs, _evaluated(eqn, [value(v) for v in inputs]), strict=True))
        return jax.tree.unflatten(jax.tree.structure(shape), [value(v) for v in outputs])

    return at


# --- max pooling and convolution where only values matter

SLICES_MOST = 16  # entries of a pooling window


def values_only(f: Callable[..., Any]) -> Callable[..., Any]:
    """``f`` with max pooling and convolutions in a form that is fast on a CPU, for evaluation: custom derivative rules
    are inlined.

    A function that has it already stays as it is.
    """

    def g(*args: Any) -> Any:
        closed, shape = jax.make_jaxpr(f, return_shape=True)(*args)
        equations, outputs, known = _flatten_calls(closed)
        if not any(_sliceable(eqn) or _channels_elsewhere(eqn) for eqn, _, _ in equations):
            return f(*args)
        known.update(enumerate(jax.tree.leaves(args)))
        for eqn, inputs, outs in equations:
            known.update(zip(outs, _evaluated(eqn, [known[v] for v in inputs]), strict=True))
        return jax.tree.unflatten(jax.tree.structure(shape), [known[v] for v in outputs])

    return g


def _sliceable(eqn: Any) -> bool:
    name, window = eqn.primitive.name, eqn.params.get("window_dimensions")
    return name == "reduce_window_max" and np.prod(window) <= SLICES_MOST and _tiles(eqn)


def _evaluated(eqn: Any, values: Sequence[Any]) -> list[Any]:
    """``_bind``, but the channels of convolutions come last, and max pooling is the largest of strided slices: one loop
    together with what comes before it, over several entries at a time.
    """
    if _channels_elsewhere(eqn):
        return [_channels_last(eqn, *values)]
    if not _sliceable(eqn):
        return _bind(eqn, values)
    window, (x,) = eqn.params["window_dimensions"], values
    return [functools.reduce(jax.lax.max, (jax.lax.slice(x, at, x.shape, window) for at in np.ndindex(*window)))]


def _channels_elsewhere(eqn: Any) -> bool:
    """Whether a convolution would gain by channels on the last axes; one per channel and one over volumes would not."""
    if eqn.primitive.name != "conv_general_dilated" or eqn.params.get("out_sharding") is not None:
        return False
    p, last = eqn.params, eqn.invars[0].aval.ndim - 1
    numbers, kernel = p["dimension_numbers"], eqn.invars[1].aval.shape
    if p["batch_group_count"] > 1 or last > 3 or (p["feature_group_count"] > 1 and kernel[numbers.rhs_spec[1]] == 1):
        return False
    return (numbers.lhs_spec[1], numbers.out_spec[1], numbers.rhs_spec[:2]) != (last, last, (last, last - 1))


def _channels_last(eqn: Any, images: Any, kernel: Any) -> Any:
    """A convolution with the channels on the last axes, where XLA puts them itself on a CPU, but not in loops."""
    numbers, axes = eqn.params["dimension_numbers"], range(1, images.ndim - 1)
    last = jax.lax.ConvDimensionNumbers(
        (0, images.ndim - 1, *axes),
        (images.ndim - 1, images.ndim - 2, *(i - 1 for i in axes)),
        (0, images.ndim - 1, *axes),
    )
    with eqn.ctx.manager:
        product = eqn.primitive.bind(
            jnp.transpose(images, (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1])),
            jnp.transpose(kernel, (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0])),
            **(eqn.params | {"dimension_numbers": last}),
        )
    return _from_channels_last(product, numbers.out_spec)


def _from_channels_last(x: Any, spec: Sequence[int]) -> Any:
    """(examples, *space, channels) in the order of ``spec``, the axes of examples, channels, *space."""
    return jnp.transpose(x, np.argsort((spec[0], *spec[2:], spec[1])).tolist())


# --- max pooling and convolution of the data, for repeated products

PATCH_MOST = 75  # entries of a patch, such as 5 x 5 x 3: beyond, XLA's convolution is as fast


def lowered(f: Callable[[PyTree], Any], params: PyTree) -> Callable[[PyTree], Any]:
    """``f`` with two operations that are slow on a CPU, and their derivatives more so, written otherwise.

    Convolutions of the data, those whose input no parameter reaches, become patches times kernel: XLA is slow with one
    or three input channels, and a linear map that is kept computes the patches once. Max pooling whose windows do not
    overlap becomes a choice of the first largest entry, a mask that is also kept. Differentiable like ``f``, with which
    it agrees to rounding; what is inside loops and custom rules stays as it is.

    Args:
      f: a traceable function of the parameters.
      params: gives their shapes.
    """
    closed, shape = jax.make_jaxpr(f, return_shape=True)(params)
    structure = jax.tree.structure(shape)

    def rewritten(moving: PyTree) -> Any:
        leaves = jax.tree.leaves(moving)
        outputs = _walk(closed.jaxpr, closed.consts, leaves, [True] * len(leaves))
        return jax.tree.unflatten(structure, [value for value, _ in outputs])

    return rewritten


def _walk(jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any], varies: Sequence[bool]) -> list[tuple[Any, bool]]:
    """(value, whether it depends on the parameters) of every output."""
    known: dict[Any, tuple[Any, bool]] = dict(zip(jaxpr.constvars, ((c, False) for c in consts), strict=True))
    known |= dict(zip(jaxpr.invars, zip(inputs, varies, strict=True), strict=True))

    def read(var: Any) -> tuple[Any, bool]:
        return (var.val, False) if isinstance(var, core.Literal) else known[var]

    for eqn in jaxpr.eqns:
        values, moved = zip(*map(read, eqn.invars), strict=True) if eqn.invars else ((), ())
        if eqn.primitive.name in ("jit", "pjit"):
            inner = eqn.params["jaxpr"]
            found = _walk(inner.jaxpr, inner.consts, values, moved)
        elif eqn.primitive.name == "conv_general_dilated" and not moved[0] and _patchable(eqn):
            found = [(_patch_product(eqn, *values), moved[1])]
        elif eqn.primitive.name == "reduce_window_max" and _tiles(eqn):
            found = [(_pooled(values[0], eqn.params["window_dimensions"]), moved[0])]
        else:
            found = [(value, any(moved)) for value in _bind(eqn, values)]
        known.update(zip(eqn.outvars, found, strict=True))
    return [read(var) for var in jaxpr.outvars]


def _patchable(eqn: Any) -> bool:
    p, kernel = eqn.params, eqn.invars[1].aval.shape
    spec = p["dimension_numbers"].rhs_spec  # (output, input, *spatial) axes of the kernel
    plain = p["feature_group_count"] == p["batch_group_count"] == 1 and set(p["lhs_dilation"]) == {1}
    return plain and len(spec) == 4 and np.prod(kernel) // kernel[spec[0]] <= PATCH_MOST


def _patch_product(eqn: Any, images: Any, kernel: Any) -> Any:
    p = eqn.params
    numbers, strides, dilation = p["dimension_numbers"], p["window_strides"], p["rhs_dilation"]
    x = jnp.transpose(images, (numbers.lhs_spec[0], *numbers.lhs_spec[2:], numbers.lhs_spec[1]))
    w = jnp.transpose(kernel, (*numbers.rhs_spec[2:], numbers.rhs_spec[1], numbers.rhs_spec[0]))
    zero = jnp.zeros((), x.dtype)
    x = jax.lax.pad(x, zero, ((0, 0, 0), *((low, high, 0) for low, high in p["padding"]), (0, 0, 0)))
    height, width = w.shape[:2]
    out = [(n - d * (k - 1) - 1) // s + 1 for n, d, k, s in zip(x.shape[1:3], dilation, w.shape[:2], strides)]

    def shifted(i: int, j: int) -> Any:
        starts = (i * dilation[0], j * dilation[1])
        ends = [a + (n - 1) * s + 1 for a, n, s in zip(starts, out, strides)]
        return jax.lax.slice(x, (0, *starts, 0), (x.shape[0], *ends, x.shape[3]), (1, *strides, 1))

    patches = jnp.concatenate([shifted(i, j) for i in range(height) for j in range(width)], -1)
    product = jax.lax.dot_general(
        patches,
        w.reshape(-1, w.shape[3]),
        (((3,), (0,)), ((), ())),
        precision=p["precision"],
        preferred_element_type=p["preferred_element_type"],
    )  # (examples, height, width, filters)
    return _from_channels_last(product, numbers.out_spec)


def _tiles(eqn: Any) -> bool:
    """Whether pooling windows cover the array without overlap, gap or padding."""
    p, shape = eqn.params, eqn.invars[0].aval.shape
    window = p["window_dimensions"]
    plain = {*p["base_dilation"], *p["window_dilation"]} == {1} and not np.any(p["padding"])
    return plain and p["window_strides"] == window and not np.any(np.remainder(shape, window))


def _pooled(x: Any, window: Sequence[int]) -> Any:
    """The largest entry of every window; its derivative goes to the first one of equals, as XLA's does."""
    split = [size for n, k in zip(x.shape, window, strict=True) for size in (n // k, k)]
    order = [*range(0, 2 * x.ndim, 2), *range(1, 2 * x.ndim, 2)]
    tiles = x.reshape(split).transpose(order).reshape(*split[::2], -1)
    first = jax.lax.argmax(jax.lax.stop_gradient(tiles), x.ndim, np.int32)
    chosen = first[..., None] == jnp.arange(tiles.shape[-1], dtype=np.int32)
    return jnp.where(chosen, tiles, 0).sum(-1)


def profile(f: Callable[..., Any], *args: Any) -> tuple[int, set[str]]:
    """(bytes of the largest intermediate value, names of the primitives) of ``f``; traced, not run."""
    equations = list(_equations(jax.make_jaxpr(f)(*args).jaxpr))
    sizes = [v.aval.size * v.aval.dtype.itemsize for eqn in equations for v in eqn.outvars if hasattr(v.aval, "size")]
    return max(sizes, default=0), {eqn.primitive.name for eqn in equations}


def _equations(jaxpr: Any) -> Iterator[Any]:
    """All equations, those of nested jaxprs included."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            for item in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(item, "jaxpr", item)
                if hasattr(inner, "eqns"):
                    yield from _equations(inner)
