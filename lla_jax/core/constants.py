"""Finds losses that are constants: they do not depend on the parameters, have no slope, or differ from trace to trace.

jax traces a function once. What it computes with numpy, torch or Python alone, such as a random number, a counter or a
loss that was evaluated elsewhere, is a constant from then on, which only the jaxpr shows.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from lla_jax.core import jaxprs, tries
from lla_jax.core.arguments import Misuse
from lla_jax.core.rows import Model, trace, trace_again
from lla_jax.core.types import Batch

FLAT = {"sign", "floor", "ceil", "round", "stop_gradient"}
"""Primitives with floating results that have no slope."""
INLINED = jaxprs.JITS | {"remat": "jaxpr", "remat2": "jaxpr", "checkpoint": "jaxpr", "closed_call": "call_jaxpr"}
MOST_COMPARED = 1000  # entries of a constant


def _values(traced: Any, *names: str) -> list[bool]:
    """For every output of a traced ``values_of``, whether it is the value of the loss, or of one of these names."""
    names = names or ("loss",)
    flags = {name: (name in names, None if w is None else False) for name, (_, w) in traced.out_info.items()}
    return jax.tree.leaves(flags)


def check_weights(traced: Any, model: Model) -> None:
    """Refuse weights that depend on the parameters."""
    start = len(jax.tree.leaves(model.loss))
    for name in traced.out_info:
        weights = {key: (False, None if w is None else key == name) for key, (_, w) in traced.out_info.items()}
        reads = jaxprs.inputs_of(traced.jaxpr, jax.tree.leaves(weights))
        if any(reads[start : start + len(jax.tree.leaves(model.params))]):
            raise Misuse(
                name,
                "returned a pair, whose second entry is the weights of the first, and it depends on the parameters; "
                "weights must be constants. Return the losses alone if it is an auxiliary value (a metric is passed as "
                "metrics={name: f}); for weights that the model computes, return their weighted mean with "
                "per_example=False",
            )


def check_follows(traced: Any, model: Model) -> None:
    """Refuse a loss that no parameter reaches. That some parameters are not read is allowed.

    So is a constant beside metrics that follow the parameters, where the metrics are what is asked for.

    Raises:
      ValueError: the value of the loss, and of its penalty and metrics, is the same at all parameters.
    """
    if model.loss.penalty is not None:
        return
    start = len(jax.tree.leaves(model.loss))
    reads = jaxprs.inputs_of(traced.jaxpr, _values(traced, *traced.out_info))
    if not any(reads[start : start + len(jax.tree.leaves(model.params))]):
        raise Misuse(
            "loss",
            "it does not depend on params, so that its landscape is flat and its derivatives are zero; it must be "
            "computed from the params that it gets as an argument. Usual causes: it reads parameters, or a model, from "
            "outside in place of its argument; it returns a Python or numpy number, or one that torch has computed "
            "(write it with jax.numpy, or convert the torch module, lla_torch.convert)",
        )


def moves(traced: Any, model: Model) -> bool:
    """Whether the loss may have a slope in the parameters: not through integers, comparisons and rounding alone."""
    if model.loss.penalty is not None:
        return True
    start = len(jax.tree.leaves(model.loss))
    end = start + len(jax.tree.leaves(model.params))

    def rule(eqn: Any, values: list[Any]) -> list[bool]:
        moving = any(value is True for value in values) and eqn.primitive.name not in FLAT
        return [moving and jnp.issubdtype(getattr(v.aval, "dtype", np.int32), jnp.inexact) for v in eqn.outvars]

    inputs = [start <= i < end for i in range(len(traced.jaxpr.jaxpr.invars))]
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
    """Refuse a loss whose constants differ if it is traced twice.

    The two traces that a check makes anyway, for two numbers of rows, are compared first; only where their constants
    differ, as 1/16 and 1/8 in a mean, the loss is traced again.

    Args:
      model: the loss, parameters and metrics.
      data: arrays.
      size: number of rows for which it was traced.
      other: another one; the same where it was traced for one number alone, and is traced again.

    Raises:
      ValueError: constants differ.
    """
    first = trace(model, data, size).jaxpr
    if other != size and _same(_numbers(first), _numbers(trace(model, data, other).jaxpr)):
        return
    numbers, again = _numbers(first), _numbers(trace_again(model, data, size))
    if len(numbers) != len(again) or _same(numbers, again):
        return
    one, two = next((a, b) for a, b in zip(numbers, again, strict=True) if not _same([a], [b]))
    shown = " and ".join(f"{x.item():.4g}" if x.size == 1 else f"an array of shape {x.shape}" for x in (one, two))
    raise Misuse(
        "loss",
        f"it has other constants each time it is traced ({shown}), of which jax keeps the first; it must depend on its "
        "arguments alone. Usual causes: random numbers of numpy, Python or torch, the clock, a counter or other global "
        "that it changes. Noise is drawn by jax.random from a key: lla.Loss(apply, criterion, key=jax.random.key(0)), "
        "whose apply gets keys as its fifth argument",
    )


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
