"""The curvature of a loss over one block of data, as a gradient-like map whose derivative is the matrix asked for.

With f the model, l the criterion, theta_0 the parameters:

    Hessian   g(theta) = grad sum_i w_i l_i(f(theta))              g' = sum_i w_i grad^2 l_i
    GGN       g(theta) = J(theta_0)' grad_f sum_i w_i l_i(f(theta))   g' = J' (grad_f^2 l) J
    Fisher    g(theta) = G(theta_0)' s(theta), G = s'                 g' = G' G,  s_i = sqrt(w_i) l_i

so that one product is one ``jvp`` of g, and ``linearize`` keeps what does not depend on the vector.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lla_jax.core import losses
from lla_jax.core.types import Loss, PyTree
from lla_jax.execution import rewriting


@dataclass(frozen=True)
class Matrix:
    """Which matrix: the static part of a product; compares by value.

    Args:
      kind: "hessian", "ggn" or "fisher".
      chosen: which leaves of the parameters it acts on.
      train: whether normalization layers use the statistics of the batch.
      sample: for the Fisher matrix, ``sample(key, outputs, example) -> example`` with a target drawn from the model;
        None takes the targets of the data.
      samples: draws per example.
      lowered: whether the model is rewritten for a CPU by ``rewriting.lowered``.
    """

    kind: str
    chosen: tuple[bool, ...]
    train: bool = False
    sample: Any = None
    samples: int = 1
    lowered: bool = False


def part(params: PyTree, chosen: tuple[bool, ...]) -> PyTree:
    """The chosen leaves; None, which is no leaf, in place of the others."""
    leaves, structure = jax.tree.flatten(params)
    return jax.tree.unflatten(structure, [x if yes else None for x, yes in zip(leaves, chosen, strict=True)])


def merged(params: PyTree, moving: PyTree, chosen: tuple[bool, ...]) -> PyTree:
    """The parameters with the chosen leaves replaced."""
    leaves, structure = jax.tree.flatten(params)
    new = iter(jax.tree.leaves(moving))
    return jax.tree.unflatten(structure, [next(new) if yes else x for x, yes in zip(leaves, chosen, strict=True)])


def gradient_map(matrix: Matrix, loss: Loss, params: PyTree, block: losses.Block, key: Any) -> Callable[[PyTree], Any]:
    """``g(part) -> (gradient-like part, (sum of weights, sum of weighted losses))``; see the module.

    Args:
      matrix: which one.
      loss: the loss.
      params: theta_0, whole.
      block: rows of data; masked ones count nothing.
      key: draws the targets of the Monte Carlo Fisher, folded with each example's number.
    """
    start = part(params, matrix.chosen)

    def model(moving: PyTree) -> Any:
        return losses.outputs_of(loss, merged(params, moving, matrix.chosen), loss.state, block, matrix.train)[0]

    outputs = rewriting.lowered(model, start) if matrix.lowered else model
    if matrix.kind == "hessian":

        def total(moving: PyTree) -> tuple[Any, Any]:
            return losses.loss_total(loss, outputs(moving), block)

        def gradient(moving: PyTree) -> Any:
            (value, weight), found = jax.value_and_grad(total, has_aux=True)(moving)
            return found, (weight, value)

        return gradient
    if matrix.kind == "ggn":
        return _gauss_newton(loss, outputs, start, block)
    return _fisher(matrix, loss, outputs, start, block, key)


def _gauss_newton(loss: Loss, outputs: Callable[[PyTree], Any], start: PyTree, block: losses.Block) -> Callable:
    def floating(moving: PyTree) -> tuple[list[Any], Any]:
        leaves, structure = jax.tree.flatten(outputs(moving))
        if any(jnp.issubdtype(x.dtype, jnp.complexfloating) for x in leaves):
            raise ValueError(
                "loss: the model's outputs are complex; the rule for ggn is real ones, so let apply return their real "
                "and imaginary parts"
            )
        smooth = [jnp.issubdtype(x.dtype, jnp.floating) for x in leaves]
        rest = [None if yes else x for x, yes in zip(leaves, smooth, strict=True)]

        def total(found: list[Any]) -> tuple[Any, Any]:
            new = iter(found)
            whole = [next(new) if yes else x for x, yes in zip(rest, smooth, strict=True)]
            return losses.loss_total(loss, jax.tree.unflatten(structure, whole), block)

        return [x for x, yes in zip(leaves, smooth, strict=True) if yes], total

    _, pull = jax.vjp(lambda moving: floating(moving)[0], start)

    def gradient(moving: PyTree) -> Any:
        found, total = floating(moving)
        (value, weight), slope = jax.value_and_grad(total, has_aux=True)(found)
        return pull(slope)[0], (weight, value)

    return gradient


def _fisher(
    matrix: Matrix, loss: Loss, outputs: Callable[[PyTree], Any], start: PyTree, block: losses.Block, key: Any
) -> Callable:
    def drawn(number: Any) -> Any:  # a batch with targets of its own
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, number), block.index)
        with losses.noting("sample", "sample(key, outputs, example) for one example", block):
            return jax.vmap(matrix.sample)(keys, jax.lax.stop_gradient(outputs(start)), block.batch)

    batches = block.batch if matrix.sample is None else jax.vmap(drawn)(jnp.arange(matrix.samples))

    def roots(moving: PyTree) -> tuple[Any, Any]:
        """((B,), or (samples, B), losses times the root of their weight; sum of weights)."""
        found = outputs(moving)
        if matrix.sample is None:
            return losses.loss_roots(loss, found, block)
        each, weights = jax.vmap(lambda batch: losses.loss_roots(loss, found, block._replace(batch=batch)))(batches)
        return each, weights[0]

    _, pull, _ = jax.vjp(roots, start, has_aux=True)

    def gradient(moving: PyTree) -> Any:
        found, weight = roots(moving)
        slope = found / matrix.samples
        return pull(slope)[0], (weight, slope.sum())

    return gradient


def categorical(key: Any, outputs: Any, example: Any) -> Any:
    """An example ``(inputs, label, ...)`` with its label drawn from softmax(outputs), entry by entry.

    Args:
      key: a ``jax.random`` key.
      outputs: scores ``(*label.shape, C)`` of one example.
      example: a tuple or list whose second entry is an integer array; what follows, such as weights, stays.

    Raises:
      ValueError: the example or the outputs are something else.
    """
    several = isinstance(example, tuple | list) and len(example) >= 2
    label: Any = example[1] if several else None
    whole = hasattr(label, "dtype") and jnp.issubdtype(label.dtype, jnp.integer)
    if not whole or not hasattr(outputs, "shape") or outputs.shape[:-1] != label.shape:
        raise ValueError(
            "sample: by default targets are drawn as classes, which needs batches (inputs, integer labels, ...) and "
            "scores (..., C) as outputs; pass sample=f(key, outputs, example) -> example with a target drawn from the "
            "model"
        )
    return (example[0], jax.random.categorical(key, outputs).astype(label.dtype), *example[2:])
