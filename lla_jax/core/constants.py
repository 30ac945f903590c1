"""Finds losses that are constants: they do not depend on the parameters, have no slope, or differ from trace to trace.

jax traces a function once. What it computes with numpy, torch or Python alone, such as a random number, a counter or a
loss that was evaluated elsewhere, is a constant from then on, which only the jaxpr shows.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from lla_jax.core import jaxprs, tries
from lla_jax.core.arguments import Misuse
from lla_jax.core.losses import penalty_of
from lla_jax.core.rows import Model, trace, trace_again, trace_anew
from lla_jax.core.types import Batch

FLAT = {"sign", "floor", "ceil", "round", "stop_gradient"}
"""Primitives with floating results that have no slope."""
INLINED = {name: jaxpr for name, jaxpr in jaxprs.CALLS.items() if not name.startswith("custom_")}
"""Calls whose slope is that of the operations inside; others may have one of their own."""
MOST_COMPARED = 1000  # entries of a constant


def _values(traced: Any, *names: str) -> list[bool]:
    """For every output of a traced ``values_of``, whether it is the value of the loss, or of one of these names."""
    names = names or ("loss",)
    flags = {name: (name in names, None if w is None else False) for name, (_, w) in traced.out_info.items()}
    return jax.tree.leaves(flags)


def _params_of(model: Model) -> slice:
    """Which inputs of a traced ``values_of`` are the parameters."""
    start = len(jax.tree.leaves(model.loss))
    return slice(start, start + len(jax.tree.leaves(model.params)))


def check_fixed_weights(traced: Any, model: Model) -> None:
    """Refuse weights that depend on the parameters."""
    for name in traced.out_info:
        if traced.out_info[name][1] is None:
            continue
        weights = {key: (False, None if w is None else key == name) for key, (_, w) in traced.out_info.items()}
        reads = jaxprs.inputs_of(traced.jaxpr, jax.tree.leaves(weights))
        if any(reads[_params_of(model)]):
            raise Misuse(
                name,
                "returned a pair, whose second entry is the weights of the first, and it depends on the parameters; "
                "weights must be constants. Return the losses alone if it is an auxiliary value (a metric is passed as "
                "metrics={name: f}); for weights that the model computes, return their weighted mean with "
                "per_example=False",
            )


def check_follows(traced: Any, model: Model) -> None:
    """Refuse a loss that no parameter reaches, nor its penalty. That some parameters are not read is allowed.

    So is a constant beside metrics that follow the parameters, where the metrics are what is asked for.

    Raises:
      ValueError: the value of the loss, and of its penalty and metrics, is the same at all parameters.
    """
    reads = jaxprs.inputs_of(traced.jaxpr, _values(traced, *traced.out_info))[_params_of(model)]
    if not any(reads) and not any(jaxprs.inputs_of(_penalty(model), [True]) if model.loss.penalty else ()):
        raise Misuse(
            "loss",
            "it does not depend on params, so that its landscape is flat and its derivatives are zero; it must be "
            "computed from the params that it gets as an argument. Usual causes: it reads parameters, or a model, from "
            "outside in place of its argument; it returns a Python or numpy number, or one that torch has computed "
            "(write it with jax.numpy, or convert the torch module, lla_torch.convert)",
        )


def _penalty(model: Model) -> Any:
    """The jaxpr of the penalty, a function of the parameters."""
    return trace_anew(partial(penalty_of, model.loss), model.params)


def moves(traced: Any, model: Model) -> bool:
    """Whether the loss may have a slope in the parameters: not through integers, comparisons and rounding alone."""
    if model.loss.penalty is not None:
        return True

    def rule(eqn: Any, values: list[Any]) -> list[bool]:
        moving = any(value is True for value in values) and eqn.primitive.name not in FLAT
        return [moving and jnp.issubdtype(getattr(v.aval, "dtype", np.int32), jnp.inexact) for v in eqn.outvars]

    params = _params_of(model)
    inputs = [params.start <= i < params.stop for i in range(len(traced.jaxpr.jaxpr.invars))]
    found = jaxprs.interpret(traced.jaxpr, inputs, rule, INLINED)
    return any(value is True and chosen for value, chosen in zip(found, _values(traced), strict=True))


def refuse_flat() -> Misuse:
    """Make the error for derivatives of a loss without a slope."""
    return Misuse(
        "loss",
        "it depends on params only through integers, comparisons, rounding or stop_gradient, so that all of its "
        "derivatives are zero; it must be differentiable for curvature and gradients. An accuracy or a count is a "
        "metric, metrics={name: f} of lla.evaluate: take the loss that was trained, such as a cross-entropy",
    )


def check_repeats(model: Model, data: Batch, size: int, other: int) -> None:
    """Refuse a loss whose constants or operations differ if it is traced twice.

    The two traces that a check makes anyway, for two numbers of rows, are compared first; only where they differ by
    more than the number of rows, as 1/16 and 1/8 in a mean, the loss is traced again.

    Args:
      model: the loss, parameters and metrics.
      data: arrays.
      size: number of rows for which it was traced.
      other: another one; the same where it was traced for one number alone, and is traced again.

    Raises:
      ValueError: constants or operations differ.
    """
    first = trace(model, data, size).jaxpr
    if other != size:
        second = trace(model, data, other).jaxpr
        if _same(_numbers(first), _numbers(second)) and not _other_operations(first, second, size / other):
            return
    _refuse_other("loss", first, trace_again(model, data, size))


def check_penalty_repeats(model: Model) -> None:
    """Refuse a penalty whose constants or operations differ if it is traced twice."""
    if model.loss.penalty is not None:
        first = jax.make_jaxpr(lambda params: penalty_of(model.loss, params))(model.params)
        _refuse_other("penalty", first, _penalty(model))


def _refuse_other(name: str, first: Any, again: Any) -> None:
    """Raise the error if two traces of one function are not the same program."""
    first, again = jaxprs.needed(first), jaxprs.needed(again)  # without what a first call alone computes, as asserts do
    numbers, others = _numbers(first), _numbers(again)
    kind, shown = "operations", _other_operations(first, again)
    if not shown:
        if len(numbers) != len(others) or _same(numbers, others):
            return
        pair = next((a, b) for a, b in zip(numbers, others, strict=True) if not _same([a], [b]))
        kind, shown = (
            "constants",
            " and ".join(f"{x.item():.4g}" if x.size == 1 else f"an array of shape {x.shape}" for x in pair),
        )
    raise Misuse(
        name,
        f"it has other {kind} each time it is traced ({shown}), of which jax keeps the first; it must depend on its "
        "arguments alone. Usual causes: random numbers of numpy, Python or torch, the clock, a counter or other global "
        "that it changes. Noise is drawn by jax.random from a key: lla.Loss(apply, criterion, key=jax.random.key(0)), "
        "whose apply gets keys as its fifth argument",
    )


def _other_operations(one: Any, two: Any, ratio: float = 1.0) -> str:
    """The first operations of two jaxprs that differ, in words; an empty string if all are the same.

    Args:
      one: a jaxpr.
      two: another one.
      ratio: by which the integers in the operations may differ, as the shapes for two numbers of rows do.
    """
    none = ("none", ())
    for a, b in itertools.zip_longest(_operations(one), _operations(two), fillvalue=none):
        same = a[0] == b[0] and len(a[1]) == len(b[1])
        if not same or any(x != y and not math.isclose(x, ratio * y) for x, y in zip(a[1], b[1], strict=True)):
            return f"{a[0]} and {b[0]}" if a[0] != b[0] else f"{a[0]} of {a[1]} and of {b[1]}"
    return ""


def _operations(closed: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, the integers among its parameters, such as the start of a slice) of every operation of a jaxpr."""
    for eqn in jaxprs.equations(closed.jaxpr):
        leaves = jax.tree.leaves([value for value in eqn.params.values() if isinstance(value, tuple | int)])
        yield eqn.primitive.name, tuple(int(x) for x in leaves if isinstance(x, int | np.integer))


def _numbers(closed: Any) -> list[np.ndarray]:
    """The constants of a jaxpr, those inside of nested ones included, in order; of long ones the first entries."""
    every = [*closed.consts]
    for eqn in jaxprs.equations(closed.jaxpr):
        every += [var.val for var in eqn.invars if isinstance(var, core.Literal)]
        every += [c for inner in eqn.params.values() for c in getattr(inner, "consts", ())]
    return [_start(x) for x in every]


def _start(x: Any) -> np.ndarray:
    if isinstance(x, jax.core.Tracer):
        if _is_outermost():
            raise Misuse("loss", tries.KEPT)
        return np.zeros(0)  # of a trace around this one, over which the loss closes
    if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.extended):
        x = jax.random.key_data(x)
    return np.asarray(x if np.size(x) <= MOST_COMPARED else x.ravel()[:MOST_COMPARED])


def _is_outermost() -> bool:
    """Whether nothing is being traced around this call, as by a jax.jit or jax.grad of the user's."""
    from jax._src.core import trace_state_clean  # jax tells it nowhere else

    return bool(trace_state_clean())


def _same(one: list[np.ndarray], two: list[np.ndarray]) -> bool:
    if [x.shape for x in one] != [x.shape for x in two]:
        return False
    return all(np.array_equal(a, b, equal_nan=a.dtype.kind in "fc") for a, b in zip(one, two, strict=True))
