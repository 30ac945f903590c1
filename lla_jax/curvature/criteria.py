"""What a criterion is as a function of the outputs: its slopes for given targets, and whether it is curved at all."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from lla_jax.core import jaxprs, losses
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse, warn_caller
from lla_jax.core.called import call
from lla_jax.core.remembering import remember, shapes_of
from lla_jax.core.rows import outputs_of_rows
from lla_jax.core.types import Batch, Loss, PyTree

_SHAPES: dict[Hashable, str] = {}  # of the criteria of this process, in their outputs


def split_smooth(outputs: Any) -> tuple[list[Any], Callable[[list[Any]], Any]]:
    """(the floating leaves of the outputs, ``rebuild(leaves) -> outputs``); other leaves, such as masks, stay."""
    leaves, structure = jax.tree.flatten(outputs)
    smooth = [jnp.issubdtype(x.dtype, jnp.floating) for x in leaves]

    def rebuild(new: list[Any]) -> Any:
        remaining = iter(new)
        every = [next(remaining) if yes else x for x, yes in zip(leaves, smooth, strict=True)]
        return jax.tree.unflatten(structure, every)

    return [x for x, yes in zip(leaves, smooth, strict=True) if yes], rebuild


def total(loss: Loss, outputs: Any, batch: Batch, drawn: Batch) -> Any:
    """The sum of the losses of ``drawn``, a batch with other targets, over the entries of a weight in ``batch``."""
    result = call(loss.criterion, outputs, drawn)
    values, weighted = result if isinstance(result, tuple) else (result, None)
    if weighted is not None:
        weights = call(loss.criterion, outputs, batch)[1]
        values = jnp.where(jnp.asarray(weights) != 0, values, 0)
    return _tree.widen(jnp.asarray(values)).sum()


def slopes(loss: Loss, outputs: Any, batch: Batch, drawn: Batch) -> list[Any]:
    """The gradients of ``total`` with respect to the floating leaves of the outputs."""
    leaves, rebuild = split_smooth(outputs)
    return jax.grad(lambda new: total(loss, rebuild(new), batch, drawn))(leaves)


def shape_in_outputs(loss: Loss, outputs: Any, batch: Batch, moves: Sequence[bool] | None = None) -> str:
    """How the criterion depends on the outputs, read from its jaxpr: "curved", "linear" or "piecewise linear".

    Linear: its slope does not depend on the outputs. Piecewise linear: it does, by comparisons alone, such as a sign.

    Args:
      loss: the loss.
      outputs: the outputs for a batch, as arrays or ``jax.ShapeDtypeStruct``.
      batch: the batch, likewise.
      moves: for each floating leaf of the outputs, whether it depends on the parameters; the others, such as weights
        of examples, are constants here. None: all do.
    """
    every = split_smooth(outputs)[0]
    moves = [True] * len(every) if moves is None else moves

    def slope(leaves: list[Any], outputs: Any, batch: Batch) -> list[Any]:
        fixed, rebuild = split_smooth(outputs)

        def value(new: list[Any]) -> Any:
            moving = iter(new)
            full = [next(moving) if yes else x for x, yes in zip(fixed, moves, strict=True)]
            return total(loss, rebuild(full), batch, batch)

        return jax.grad(value)(leaves)

    def turn(leaves: list[Any], tangents: list[Any], outputs: Any, batch: Batch) -> list[Any]:
        return jax.jvp(lambda new: slope(new, outputs, batch), (leaves,), (tangents,))[1]

    leaves = [x for x, yes in zip(every, moves, strict=True) if yes]
    if _depends(turn, 1, leaves, leaves, outputs, batch):
        return "curved"
    return "piecewise linear" if _depends(slope, 0, leaves, outputs, batch) else "linear"


def _moves(loss: Loss, params: PyTree, block: losses.Block, train: bool) -> list[bool]:
    """For each floating leaf of the outputs, whether it depends on the parameters."""

    def smooth(params: PyTree, loss: Loss, block: losses.Block) -> list[Any]:
        return split_smooth(outputs_of_rows(loss, params, block, train=train))[0]

    closed = jax.make_jaxpr(smooth)(params, loss, block)
    num = len(closed.jaxpr.outvars)
    used = (jaxprs.inputs_of(closed, [i == j for j in range(num)]) for i in range(num))
    return [any(each[: len(jax.tree.leaves(params))]) for each in used]


def _depends(f: Callable[..., Any], position: int, *args: Any) -> bool:
    """Whether a result of ``f(*args)`` depends on the argument at a position, by the jaxpr of ``f``."""
    closed = jax.make_jaxpr(f)(*args)
    used = jaxprs.inputs_of(closed, [True] * len(closed.jaxpr.outvars))
    counts = [len(jax.tree.leaves(arg)) for arg in args]
    start = sum(counts[:position])
    return any(used[start : start + counts[position]])


def leaves_read(loss: Loss, outputs: Any, batch: Batch) -> list[int]:
    """The numbers of the leaves of the batch that the losses, weights left aside, depend on."""
    leaves, structure = jax.tree.flatten(batch)

    def losses(leaves: list[Any], outputs: Any) -> Any:
        result = call(loss.criterion, outputs, jax.tree.unflatten(structure, leaves))
        return result[0] if isinstance(result, tuple) else result

    closed = jax.make_jaxpr(losses)(leaves, outputs)
    used = jaxprs.inputs_of(closed, [True] * len(closed.jaxpr.outvars))
    return [i for i in range(len(leaves)) if used[i]]


def with_curved_criterion(loss: Loss, params: PyTree, block: losses.Block, train: bool) -> Loss:
    """The loss, cut into outputs and a criterion that is curved in them; without curvature its GGN would be zero.

    Where the criterion is linear and ``loss.apply`` offers another cut, ``apply.scores(criterion) -> (apply,
    criterion)`` with the same losses, this one is taken.

    Raises:
      ValueError: the criterion is linear in the outputs.

    Warns:
      UserWarning: the criterion is piecewise linear, and the matrix (but for a penalty) zero in truth.
    """

    def look() -> str:
        outputs = outputs_of_rows.eval_shape(loss, params, block, train=train)
        is_complex = any(jnp.issubdtype(x.dtype, jnp.complexfloating) for x in jax.tree.leaves(outputs))
        if is_complex:
            return "complex"
        return shape_in_outputs(loss, outputs, block.batch, _moves(loss, params, block, train))

    shape = remember(_SHAPES, (shapes_of((loss, params, block)), train), look)
    if shape in ("curved", "complex"):  # complex outputs are refused where the product is made
        return loss
    if shape == "piecewise linear":
        warn_caller(
            "loss: the criterion is piecewise linear in the outputs, as absolute errors and margins are, so that its "
            "Gauss-Newton matrix is zero but for the penalty; use lla.hessian, or a criterion that is curved"
        )
        return loss
    offered = getattr(loss.apply, "scores", lambda criterion: None)(loss.criterion)
    if offered is not None:
        return replace(loss, apply=offered[0], criterion=offered[1])
    raise Misuse(
        "loss",
        "its criterion is linear in the outputs, so that the Gauss-Newton matrix is zero. Where the network ends in "
        "log-softmax, end it before, and use the cross-entropy of its scores as criterion; where a step computes the "
        "losses (lla_torch.convert_loss), convert the network instead: lla_torch.convert(module, inputs).loss(...) of "
        "torch.nn.CrossEntropyLoss() or the like. Or use lla.hessian",
    )
