"""Computations in 64 bits inside of programs in 32, with derivatives, in jax's default mode.

``jax.enable_x64`` holds while a function is traced. Its derivatives are traced later, when the context is left, and jax
would cut their 64-bit values. So the function is one primitive, whose rules trace derivatives and batches in the
context.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core
from jax.interpreters import ad, batching, mlir


def bits_of(wide: bool) -> contextlib.AbstractContextManager[Any]:
    """The context with 64-bit types if ``wide``, else the present one."""
    return jax.enable_x64(True) if wide else contextlib.nullcontext()


def is_wide(dtype: Any) -> bool:
    """Whether a type, or None, is one that jax's default mode cuts to 32 bits."""
    return dtype is not None and str(dtype) in ("int64", "uint64", "float64", "complex128")


def has_64_bits() -> bool:
    """Whether jax has 64-bit types at present."""
    return bool(jax.dtypes.canonicalize_dtype(np.int64) == np.int64)


def in_64_bits(f: Callable[..., Any], *args: Any) -> Any:
    """Compute f(*args) with 64-bit types, also where jax's default has 32; the derivatives of every order as well.

    Args:
      f: a function of arrays that jax can trace.
      args: arrays, nested; the results may be as well.
    """
    if has_64_bits():
        return f(*args)
    with jax.enable_x64(True):
        closed, shapes = jax.make_jaxpr(f, return_shape=True)(*args)
    results = _call.bind(*closed.consts, *jax.tree.leaves(args), jaxpr=_open(closed))
    return jax.tree.unflatten(jax.tree.structure(shapes), results)


_call = core.Primitive("in_64_bits")
_call.multiple_results = True


def _open(closed: Any) -> Any:
    """The jaxpr with its constants as first arguments, which a tracer among them has to be."""
    jaxpr = closed.jaxpr
    return core.ClosedJaxpr(jaxpr.replace(invars=[*jaxpr.constvars, *jaxpr.invars], constvars=[]), ())


def _bind(f: Callable[..., Any], *args: Any) -> list[Any]:
    """Bind the primitive of another function of arrays that returns a list."""
    with jax.enable_x64(True):
        closed = jax.make_jaxpr(f)(*args)
    return list(_call.bind(*closed.consts, *args, jaxpr=_open(closed)))


def _evaluate(*args: Any, jaxpr: Any) -> list[Any]:
    with jax.enable_x64(True):
        return list(core.jaxpr_as_fun(jaxpr)(*args))


def _differentiate(primals: Sequence[Any], tangents: Sequence[Any], *, jaxpr: Any) -> tuple[list[Any], list[Any]]:
    results = _call.bind(*primals, jaxpr=jaxpr)
    moving = [i for i, t in enumerate(tangents) if not isinstance(t, ad.Zero)]
    inexact = [jnp.issubdtype(x.dtype, jnp.inexact) for x in results]
    zeros = [ad.Zero(jax.typeof(x).to_tangent_aval()) for x in results]
    if not moving or not any(inexact):
        return results, zeros
    count = len(primals)

    def tangents_of(*args: Any) -> list[Any]:
        primals = list(args[:count])

        def f(*moved: Any) -> list[Any]:
            for i, x in zip(moving, moved, strict=True):
                primals[i] = x
            return [x for x, real in zip(_evaluate(*primals, jaxpr=jaxpr), inexact, strict=True) if real]

        return jax.jvp(f, tuple(args[i] for i in moving), args[count:])[1]

    found = iter(_bind(tangents_of, *primals, *(tangents[i] for i in moving)))
    return results, [next(found) if real else zero for real, zero in zip(inexact, zeros, strict=True)]


def _transpose(cotangents: Sequence[Any], *args: Any, jaxpr: Any) -> list[Any]:
    linear = [i for i, x in enumerate(args) if ad.is_undefined_primal(x)]
    known = [x for x in args if not ad.is_undefined_primal(x)]
    given = [i for i, c in enumerate(cotangents) if not isinstance(c, ad.Zero)]

    def back(known: Sequence[Any], given_cotangents: Sequence[Any]) -> list[Any]:
        def f(*moved: Any) -> list[Any]:
            rest, movable = iter(known), iter(moved)
            values = [next(movable) if i in linear else next(rest) for i in range(len(args))]
            results = _evaluate(*values, jaxpr=jaxpr)
            return [results[i] for i in given]

        shapes = [jax.ShapeDtypeStruct(args[i].aval.shape, args[i].aval.dtype) for i in linear]
        return list(jax.linear_transpose(f, *shapes)(list(given_cotangents)))

    count = len(known)
    flat = lambda *values: back(values[:count], values[count:])  # noqa: E731
    found = iter(_bind(flat, *known, *(cotangents[i] for i in given)))
    return [next(found) if i in linear else None for i in range(len(args))]


def _batch(args: Sequence[Any], axes: Sequence[Any], *, jaxpr: Any) -> tuple[list[Any], list[int]]:
    results = _bind(jax.vmap(lambda *values: _evaluate(*values, jaxpr=jaxpr), tuple(axes)), *args)
    return results, [0] * len(results)


def _lower(context: Any, *args: Any, jaxpr: Any) -> Any:
    with jax.enable_x64(True):
        return mlir.lower_fun(_evaluate, multiple_results=True)(context, *args, jaxpr=jaxpr)


_call.def_impl(_evaluate)
_call.def_abstract_eval(lambda *_, jaxpr: jaxpr.out_avals)
ad.primitive_jvps[_call] = _differentiate
ad.primitive_transposes[_call] = _transpose
batching.primitive_batchers[_call] = _batch
mlir.register_lowering(_call, _lower)


def is_beyond_32_bits(x: Any) -> bool:
    """Whether an input holds integers that jax's default mode would cut: by its values, or by its type if traced."""
    if isinstance(x, int | np.integer):
        x = np.asarray(x)
    if str(getattr(x, "dtype", None)) not in ("int64", "uint64"):
        return False
    return not isinstance(x, np.ndarray) or bool(x.size and (x.min() < 1 - 2**31 or x.max() >= 2**31))
