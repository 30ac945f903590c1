"""Each curvature matrix is the derivative of a gradient-like map of the loss over one block of data.

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
from lla_jax.core.arguments import Misuse
from lla_jax.core.types import Loss, PyTree
from lla_jax.curvature import criteria, likelihoods
from lla_jax.execution import heads, rematerialisation, rewriting
from lla_jax.execution.heads import Head
from lla_jax.execution.tokens import cut


@dataclass(frozen=True)
class Matrix:
    """The static description of a curvature matrix; it compares by value.

    Args:
      kind: "hessian", "ggn" or "fisher".
      leaf_mask: for every leaf of the parameters, whether the matrix acts on it.
      train: whether normalization layers use the statistics of the batch.
      sample: for the Fisher matrix, a ``likelihoods.Likelihood``, or ``sample(key, outputs, example) -> example`` with
        a target drawn from the model; None takes the targets of the data.
      samples: draws per example.
      lowered: whether the model is rewritten for a CPU by ``rewriting.rewrite_for_derivatives``.
      head_bytes: the scores of large heads are computed in chunks of so many bytes (``heads.in_chunks``); 0: at once.
      remat: whether values inside of segments of the model are computed again where derivatives need them
        (``rematerialisation.in_segments``), and not held; not for the Fisher matrix.
      differences: whether products of the Hessian are finite differences of the gradient (``differences``).
    """

    kind: str
    leaf_mask: tuple[bool, ...]
    train: bool = False
    sample: Any = None
    samples: int = 1
    lowered: bool = False
    head_bytes: int = 0
    remat: bool = False
    differences: bool = False


def part(params: PyTree, leaf_mask: tuple[bool, ...]) -> PyTree:
    """The tree with None, which is no leaf, in place of the leaves whose entry in ``leaf_mask`` is False."""
    leaves, structure = jax.tree.flatten(params)
    return jax.tree.unflatten(structure, [x if yes else None for x, yes in zip(leaves, leaf_mask, strict=True)])


def merge(params: PyTree, moving: PyTree, leaf_mask: tuple[bool, ...]) -> PyTree:
    """The parameters, with the leaves of ``moving`` in place of those whose entry in ``leaf_mask`` is True."""
    leaves, structure = jax.tree.flatten(params)
    new = iter(jax.tree.leaves(moving))
    return jax.tree.unflatten(structure, [next(new) if yes else x for x, yes in zip(leaves, leaf_mask, strict=True)])


def gradient_map(matrix: Matrix, loss: Loss, params: PyTree, block: losses.Block, key: Any) -> Callable[[PyTree], Any]:
    """Make g of the module's docstring: ``g(part) -> (gradient-like part, (sum of weights, sum of weighted losses))``.

    For the Fisher matrix the last number is the sum of s_i, a mean over the draws.

    Args:
      matrix: the matrix.
      loss: the loss.
      params: theta_0, all parameters.
      block: rows of data; masked rows do not count.
      key: draws the targets of the Monte Carlo Fisher, folded with each example's number.
    """
    start = part(params, matrix.leaf_mask)
    outputs = _outputs(matrix, loss, params, block)
    if matrix.kind == "fisher":
        return _fisher(matrix, loss, outputs, start, block, key)
    if matrix.kind == "hessian":
        total = _total(matrix, loss, outputs, block)
        total = _spare(matrix, _chunk(matrix, total, start)[0], start)

        def gradient(moving: PyTree) -> Any:
            (value, weight), slope = jax.value_and_grad(total, has_aux=True)(moving)
            return slope, (weight, value)

        return gradient
    total, found = _chunk(matrix, _total(matrix, loss, outputs, block), start, start)
    if not found and not matrix.remat:
        return _gauss_newton(loss, outputs, start, block)
    total = _spare(matrix, total, start, start)

    def gauss_newton(moving: PyTree) -> Any:
        (value, weight), slope = jax.value_and_grad(total, argnums=1, has_aux=True)(moving, start)
        return slope, (weight, value)

    return gauss_newton


def find_heads(matrix: Matrix, loss: Loss, params: PyTree, block: losses.Block) -> list[Head]:
    """The heads that ``gradient_map`` computes in chunks; the arguments may be abstract."""
    found: list[Head] = []

    def look(params: PyTree, loss: Loss, block: losses.Block) -> Any:
        start = part(params, matrix.leaf_mask)
        starts = (start,) if matrix.kind == "hessian" else (start, start)
        found.extend(_chunk(matrix, _total(matrix, loss, _outputs(matrix, loss, params, block), block), *starts)[1])
        return ()

    jax.eval_shape(look, params, loss, block)
    return found


def _outputs(matrix: Matrix, loss: Loss, params: PyTree, block: losses.Block) -> Callable[[PyTree], Any]:
    def model(moving: PyTree) -> Any:
        return losses.outputs_of(loss, merge(params, moving, matrix.leaf_mask), loss.state, block, matrix.train)[0]

    start = part(params, matrix.leaf_mask)
    return rewriting.rewrite_for_derivatives(model, start) if matrix.lowered else model


def _total(matrix: Matrix, loss: Loss, outputs: Callable[[PyTree], Any], block: losses.Block) -> Callable[..., Any]:
    """``total(moving) -> (sum w l, sum w)``; for the GGN ``total(moving, line)``.

    The gradient by ``line``, at theta_0, is pulled back along the model's derivative there, and is that of the
    criterion at ``moving``: the gradient-like map of the GGN as a gradient of one function.
    """
    if matrix.kind == "hessian":
        return lambda moving: losses.loss_total(loss, outputs(moving), block)

    def total(moving: PyTree, line: PyTree) -> tuple[Any, Any]:
        values, rebuild = criteria.split_smooth(outputs(moving))
        lines, _ = criteria.split_smooth(outputs(line))
        return losses.loss_total(loss, rebuild([cut(x, y) for x, y in zip(values, lines, strict=True)]), block)

    return total


def _chunk(matrix: Matrix, f: Callable[..., Any], *starts: PyTree) -> tuple[Callable[..., Any], list[Head]]:
    return heads.in_chunks(f, *starts, chunk_bytes=matrix.head_bytes) if matrix.head_bytes else (f, [])


def _spare(matrix: Matrix, f: Callable[..., Any], *starts: PyTree) -> Callable[..., Any]:
    return rematerialisation.in_segments(f, *starts, by=len(starts) - 1) if matrix.remat else f


def _gauss_newton(loss: Loss, outputs: Callable[[PyTree], Any], start: PyTree, block: losses.Block) -> Callable:
    def smooth_outputs(moving: PyTree) -> tuple[list[Any], Any]:
        now = outputs(moving)
        if any(jnp.issubdtype(x.dtype, jnp.complexfloating) for x in jax.tree.leaves(now)):
            text = "the model's outputs are complex; they must be real for ggn"
            raise Misuse("loss", f"{text}: let apply return their real and imaginary parts, such as jnp.real(outputs)")
        smooth, rebuild = criteria.split_smooth(now)
        return smooth, lambda leaves: losses.loss_total(loss, rebuild(leaves), block)

    _, pull = jax.vjp(lambda moving: smooth_outputs(moving)[0], start)

    def gradient(moving: PyTree) -> Any:
        smooth_leaves, total = smooth_outputs(moving)
        (value, weight), slope = jax.value_and_grad(total, has_aux=True)(smooth_leaves)
        return pull(slope)[0], (weight, value)

    return gradient


def _fisher(
    matrix: Matrix, loss: Loss, outputs: Callable[[PyTree], Any], start: PyTree, block: losses.Block, key: Any
) -> Callable:
    def draw_targets(number: Any) -> Any:  # a batch with targets of its own
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, number), block.index)
        return likelihoods.draw(matrix.sample, loss, keys, jax.lax.stop_gradient(outputs(start)), block.batch)

    batches = block.batch if matrix.sample is None else jax.vmap(draw_targets)(jnp.arange(matrix.samples))

    def roots(moving: PyTree) -> tuple[Any, Any]:
        """((B,), or (samples, B), losses times the root of their weight; sum of weights)."""
        now = outputs(moving)
        if matrix.sample is None:
            return losses.loss_roots(loss, now, block)
        each, weights = jax.vmap(lambda drawn: losses.loss_roots(loss, now, block, drawn))(batches)
        return each, weights[0]

    _, pull, _ = jax.vjp(roots, start, has_aux=True)

    def gradient(moving: PyTree) -> Any:
        each, weight = roots(moving)
        slope = each / matrix.samples
        return pull(slope)[0], (weight, slope.sum())

    return gradient
