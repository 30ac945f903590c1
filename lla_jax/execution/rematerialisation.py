"""Computes values again where derivatives need them, instead of holding all of them (Griewank and Walther 2000).

The equations of a traced function are cut into segments, whatever wrote it. A gradient holds what goes from segment to
segment, and what is inside of one segment at a time: about the root of all that it held before, for one more
computation of the function. The steps of a loop are segments of their own.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core

from lla_jax.core.jaxprs import bind
from lla_jax.core.types import PyTree
from lla_jax.execution.heads import flatten

NUMBERS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # of segments that are tried


def in_segments(f: Callable[..., Any], *args: PyTree, by: int = 0) -> Callable[..., Any]:
    """``f`` in segments whose inner values a gradient does not hold; values are the same to rounding.

    Args:
      f: a traceable function.
      args: arguments of the shapes and dtypes with which the new function is called.
      by: the number of the argument by which the gradient is taken. Other derivatives of the new function are those of
        this gradient, or by other arguments.
    """
    flat, shape = flatten(f, *args)
    if flat.effects:
        return f
    bounds = _bounds(flat)
    counts = [len(jax.tree.leaves(arg)) for arg in args]
    depend = set(flat.jaxpr.invars[sum(counts[:by]) : sum(counts[: by + 1])])
    for eqn in flat.jaxpr.eqns:
        if depend & _read([eqn]):
            depend.update(eqn.outvars)

    def g(*args: PyTree) -> Any:
        known = dict(zip(flat.jaxpr.constvars, flat.consts, strict=True))
        known.update(zip(flat.jaxpr.invars, jax.tree.leaves(args), strict=True))
        for low, high in itertools.pairwise(bounds):
            _run(flat, known, low, high, depend)
        leaves = [v.val if isinstance(v, core.Literal) else known[v] for v in flat.jaxpr.outvars]
        return jax.tree.unflatten(jax.tree.structure(shape), leaves)

    return g


def _run(flat: Any, known: dict[Any, Any], low: int, high: int, depend: set[Any]) -> None:
    """Evaluate the equations from ``low`` to ``high`` as one segment; what later ones read is added to ``known``."""
    eqns = flat.jaxpr.eqns[low:high]
    later = _read(flat.jaxpr.eqns[high:]) | {v for v in flat.jaxpr.outvars if not isinstance(v, core.Literal)}
    read = _read(eqns)
    inputs = [v for v in known if v in read]
    outputs = [v for eqn in eqns for v in eqn.outvars if v in later]

    def segment(values: Sequence[Any]) -> list[Any]:
        inside = dict(zip(inputs, values, strict=True))
        for eqn in eqns:
            operands = [v.val if isinstance(v, core.Literal) else inside[v] for v in eqn.invars]
            inside.update(zip(eqn.outvars, bind(_spare_steps(eqn), operands), strict=True))
        return [inside[v] for v in outputs]

    run = _spare(segment) if depend & set(outputs) else segment
    known.update(zip(outputs, run([known[v] for v in inputs]), strict=True))


def _spare(segment: Callable[[Sequence[Any]], list[Any]]) -> Callable[[Sequence[Any]], list[Any]]:
    """The segment, whose gradient computes it again.

    That is inside of a branch that is always taken, which the compiler does not know: it would compute the values once,
    and hold them (on a CPU it removes the barriers of ``jax.checkpoint``).
    """

    def backward(values: list[Any], slopes: list[Any]) -> tuple[list[Any]]:
        moving = [i for i, x in enumerate(values) if jnp.issubdtype(x.dtype, jnp.inexact)]
        smooth = [i for i, x in enumerate(slopes) if x.dtype != jax.dtypes.float0]

        def pull(values: list[Any], slopes: list[Any]) -> list[Any]:
            def some(new: list[Any]) -> list[Any]:
                found = segment(_put(values, moving, new))
                return [found[i] for i in smooth]

            return jax.vjp(some, [values[i] for i in moving])[1](slopes)[0]

        def zeros(values: list[Any], slopes: list[Any]) -> list[Any]:
            return [jnp.zeros_like(values[i]) for i in moving]

        given = [slopes[i] for i in smooth]
        always = jnp.logical_not(jnp.real(given[0]).ravel()[0] > jnp.inf)
        found = jax.checkpoint(functools.partial(jax.lax.cond, always, pull, zeros))(values, given)
        return (_put([None] * len(values), moving, found),)

    run = jax.custom_vjp(segment)
    run.defvjp(lambda values: (segment(values), values), backward)
    return run


def _put(values: Sequence[Any], at: Sequence[int], new: Sequence[Any]) -> list[Any]:
    """The values with new ones at some places."""
    changed = list(values)
    for i, x in zip(at, new, strict=True):
        changed[i] = x
    return changed


def _spare_steps(eqn: Any) -> Any:
    """The equation, and for a loop with a fixed number of steps: each step computed again where derivatives need it."""
    if eqn.primitive.name != "scan" or eqn.effects:
        return eqn
    body = eqn.params["jaxpr"]
    step = jax.checkpoint(core.jaxpr_as_fun(body), prevent_cse=False)
    return eqn.replace(params=eqn.params | {"jaxpr": jax.make_jaxpr(step)(*body.in_avals)})


def _read(eqns: Sequence[Any]) -> set[Any]:
    return {v for eqn in eqns for v in eqn.invars if not isinstance(v, core.Literal)}


def _nbytes(var: Any) -> int:
    return var.aval.size * var.aval.dtype.itemsize if hasattr(var.aval, "size") else 0


def _bounds(flat: Any) -> list[int]:
    """Where the segments begin and end: with the least bytes held between all of them and inside of the largest."""
    eqns = flat.jaxpr.eqns
    sizes = [sum(map(_nbytes, eqn.outvars)) for eqn in eqns]
    sums = list(itertools.accumulate(sizes, initial=0))
    live = _live(flat)
    best: tuple[int, list[int]] | None = None
    for number in NUMBERS:
        bounds = [0]
        for k in range(1, number):
            goal, near = sums[-1] * k / number, sums[-1] / (2 * number)
            found = [i for i in range(bounds[-1] + 1, len(eqns)) if abs(sums[i] - goal) <= near]
            bounds += [min(found, key=lambda i: (live[i], abs(sums[i] - goal)))] if found else []
        bounds.append(len(eqns))
        held = sum(live[i] for i in bounds[1:-1]) + max(sums[j] - sums[i] for i, j in itertools.pairwise(bounds))
        if best is None or held < best[0]:
            best = held, bounds
    assert best is not None
    return best[1]


def _live(flat: Any) -> list[int]:
    """For each number of equations: bytes of the values that these make and later ones read."""
    eqns, last = flat.jaxpr.eqns, {}
    for i, eqn in enumerate(eqns):
        last.update({v: i for v in eqn.invars if not isinstance(v, core.Literal)})
    changes = [0] * (len(eqns) + 2)
    for i, eqn in enumerate(eqns):
        for v in eqn.outvars:
            changes[i + 1] += _nbytes(v)
            changes[last.get(v, i) + 1] -= _nbytes(v)
    return list(itertools.accumulate(changes))
