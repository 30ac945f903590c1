"""Reads jaxprs, the programs that jax traces: their equations, nested ones included, and what depends on what."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax.extend import core
from jax.interpreters import partial_eval

JITS = {"jit": "jaxpr", "pjit": "jaxpr"}
"""Primitives that call a jaxpr, and the parameter that holds this jaxpr."""

CALLS = JITS | {
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}


def interpret(
    closed: Any,
    inputs: Sequence[Any],
    rule: Callable[[Any, list[Any]], Sequence[Any]],
    calls: Mapping[str, str] = CALLS,
) -> list[Any]:
    """Evaluate the equations of a jaxpr in order by a rule of the caller; return the outputs.

    Args:
      closed: a jaxpr with its constants.
      inputs: the values of its arguments, of any kind that the rule understands.
      rule: ``rule(equation, values) -> results``, one result for every output of the equation.
      calls: the primitives whose jaxprs are inlined: the rule sees their equations in place of the call.
    """

    def evaluate(jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Any]) -> list[Any]:
        known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True))

        def read(var: Any) -> Any:
            return var.val if isinstance(var, core.Literal) else known[var]

        for eqn in jaxpr.eqns:
            values = [read(var) for var in eqn.invars]
            called = eqn.params.get(calls[eqn.primitive.name]) if eqn.primitive.name in calls else None
            if called is None:
                results = rule(eqn, values)
            else:
                results = evaluate(getattr(called, "jaxpr", called), getattr(called, "consts", ()), values)
            known.update(zip(eqn.outvars, results, strict=True))
        return [read(var) for var in jaxpr.outvars]

    return evaluate(closed.jaxpr, closed.consts, inputs)


def bind(eqn: Any, values: Sequence[Any]) -> list[Any]:
    """Evaluate an equation as it stands; return the list of its results."""
    with eqn.ctx.manager:
        out = eqn.primitive.bind(*values, **eqn.primitive.get_bind_params(eqn.params))
    return list(out) if eqn.primitive.multiple_results else [out]


def equations(jaxpr: Any, loops: bool = True) -> Iterator[Any]:
    """Yield all equations and those of nested jaxprs; without ``loops``, only of jaxprs that ``interpret`` inlines."""
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values() if loops or eqn.primitive.name in CALLS else ():
            for item in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(item, "jaxpr", item)
                if hasattr(inner, "eqns"):
                    yield from equations(inner, loops)


def inputs_of(closed: Any, outputs: Sequence[bool]) -> list[bool]:
    """For every input of a jaxpr, whether one of the chosen outputs depends on it.

    Args:
      closed: a jaxpr with its constants.
      outputs: for every output, whether it is chosen.
    """
    _, used = partial_eval.dce_jaxpr(_silent(closed.jaxpr), list(outputs))
    return list(used)


def needed(closed: Any) -> Any:
    """A jaxpr without the equations on which no output depends."""
    jaxpr, _ = partial_eval.dce_jaxpr(_silent(closed.jaxpr), [True] * len(closed.jaxpr.outvars), instantiate=True)
    return closed.replace(jaxpr=jaxpr)


def _silent(jaxpr: Any) -> Any:
    """The jaxpr, nested ones included, without its effects: what ``jax.debug.print`` reads reaches no output."""

    def silent(value: Any) -> Any:
        if isinstance(value, tuple | list):
            return type(value)(map(silent, value)) if type(value) in (tuple, list) else value
        if hasattr(value, "jaxpr") and hasattr(value, "consts"):
            return value.replace(jaxpr=_silent(value.jaxpr))
        return _silent(value) if hasattr(value, "eqns") else value

    if not jaxpr.effects:
        return jaxpr
    eqns = [
        eqn.replace(params={k: silent(x) for k, x in eqn.params.items()}, effects=frozenset()) if eqn.effects else eqn
        for eqn in jaxpr.eqns
    ]
    return jaxpr.replace(eqns=eqns, effects=frozenset())


def float_types(closed: Any) -> set[str]:
    """The names of all floating types of the values in a jaxpr, inputs and nested jaxprs included."""
    values = [*closed.jaxpr.invars, *(var for eqn in equations(closed.jaxpr) for var in eqn.outvars)]
    types = {var.aval.dtype for var in values if hasattr(var.aval, "dtype")}
    return {str(dtype) for dtype in types if jnp.issubdtype(dtype, jnp.floating)}
