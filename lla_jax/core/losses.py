"""Losses over a block of examples, the weighted sums that every mean and standard error is made of, the mean gradient.

A loss over a data set is (sum w l) / (sum w) however the data are cut, because only sums are added up, and a row that
is not to be counted is masked out.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import tree as _tree
from lla_jax.core.data import Stream, host_batches, num_examples, pad_rows, to_numpy
from lla_jax.core.static import static
from lla_jax.core.types import Batch, Loss, PyTree


class Sums(NamedTuple):
    """Weighted sums over examples, about a shift m: e_i = s_i - m w_i, of example i's weighted sum s_i and weight w_i.

    A block of examples is summed on a device about its own mean, so that float32 loses nothing to cancellation; blocks
    are added up on the host in float64, about the shift 0.

    Args:
      n: examples of a weight other than 0.
      w: sum w_i.
      m: the shift.
      e: sum e_i.
      ww: sum w_i^2.
      we: sum w_i e_i.
      ee: sum e_i^2.
    """

    n: Any
    w: Any
    m: Any
    e: Any
    ww: Any
    we: Any
    ee: Any

    @property
    def mean(self) -> Any:
        """(sum s_i) / (sum w_i) = m + (sum e_i) / (sum w_i)."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.m + self.e / self.w

    @property
    def standard_error(self) -> Any:
        """Of the mean, with the example as the unit: sqrt(n/(n-1) sum (s_i - mean w_i)^2) / sum w_i.

        For weights 1 this is std(l, ddof=1) / sqrt(n); for token weights it is the ratio estimator's. NaN for one
        example.
        """
        n, w, _, e, ww, we, ee = self
        with np.errstate(invalid="ignore", divide="ignore"):
            d = e / w  # from the shift to the mean
            squares = np.maximum(ee - 2 * d * we + d * d * ww, 0) * (n / (n - 1))
            return np.sqrt(squares) / w

    def about_zero(self) -> Sums:
        """The same sums about the shift 0; only such sums add up."""
        n, w, m, e, ww, we, ee = self
        return Sums(n, w, np.zeros_like(m), e + m * w, ww, we + m * ww, ee + 2 * m * we + m * m * ww)


def pack(sums: Sums) -> Any:
    """(..., 7): sums as one array, in which they leave a device and are added up.

    Seven arrays cost more to hand over than one: a plane of small calls on two CPU devices took 1.6 times as long, and
    one whose points are looped over on the device 1.3 times.
    """
    return jnp.stack(sums, -1)


def unpack(packed: Any) -> Sums:
    """The sums in an array that ``pack`` or ``total`` made."""
    return Sums(*(packed[..., i] for i in range(len(Sums._fields))))


def total(blocks: Any) -> np.ndarray:
    """(..., 7): packed sums over S blocks (..., S, 7), in float64 about the shift 0."""
    with np.errstate(invalid="ignore", over="ignore"):
        about_zero = unpack(np.asarray(blocks, np.float64)).about_zero()
        return np.stack(about_zero, -1).sum(-2)


@dataclass(frozen=True)
class _Scalar:
    """A plain ``f(params, batch) -> scalar`` as ``Loss.apply``; compares by the function it wraps."""

    f: Callable[[PyTree, Batch], Any]

    def __call__(self, params: PyTree, state: PyTree, batch: Batch, train: bool) -> tuple[Any, PyTree]:
        return self.f(params, batch), state


def _identity(outputs: Any, batch: Batch) -> Any:
    return outputs


def as_loss(loss: Loss | Callable[[PyTree, Batch], Any]) -> Loss:
    """A ``Loss`` as it is; a plain ``f(params, batch) -> scalar`` as a batch-coupled one (its examples are not
    visible).

    The value over a data set is then the mean over batches weighted by their sizes, and there is no standard error.
    """
    if isinstance(loss, Loss):
        return loss
    if not callable(loss):
        raise ValueError(f"loss: expected lla.Loss or f(params, batch) -> scalar, got {type(loss).__name__}")
    return Loss(_Scalar(static(loss)), _identity, per_example=False)


class Block(NamedTuple):
    """Rows of a data set as a kernel sees them: which of them count, and their numbers in the whole data set."""

    batch: Batch
    mask: Any  # (B,) bool
    index: Any  # (B,) int32


def block_at(data: Batch, start: Any, size: int, count: Any, offset: Any) -> Block:
    """``size`` rows from ``start``, masked to those in [start, count); traced, so that one shape serves every block.

    At the end of the data the window is moved back to fit and the rows that an earlier block had are masked out: no
    padding and no second copy of the data.
    """
    rows = jax.tree.leaves(data)[0].shape[0]
    first = jnp.minimum(start, rows - size)
    batch = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, size), data)
    row = first + jnp.arange(size)
    return Block(batch, (row >= start) & (row < count), offset + row)


def outputs_of(loss: Loss, params: PyTree, state: PyTree, block: Block, train: bool) -> tuple[Any, PyTree]:
    """``loss.apply`` on a block, with per-example keys when the loss draws noise: (outputs, new state)."""
    keys = () if loss.key is None else (jax.vmap(jax.random.fold_in, (None, 0))(loss.key, block.index),)
    with noting("the model", "apply(params, state, batch, train)", block):
        result = loss.apply(params, state, block.batch, train, *keys)
    if not isinstance(result, tuple) or len(result) != 2:
        raise ValueError(
            f"loss: apply returned a {type(result).__name__}; the rule is a pair, apply(params, state, batch, train) "
            "-> (outputs, new_state), with the state as it came if there is none"
        )
    return result


@contextlib.contextmanager
def noting(what: str, call: str, block: Block) -> Iterator[None]:
    """Tell the author of a function that failed how it was called; the error and its type stay theirs."""
    try:
        yield
    except (TypeError, IndexError, KeyError, AttributeError) as error:
        shapes = jax.tree.map(lambda x: tuple(x.shape), block.batch)
        error.add_note(
            f"{what} failed; it is called as {call} with a batch of these shapes (leading axis: examples): {shapes}. A "
            "list of batches is no data set: wrap it, lla.stream(batches)"
        )
        raise


def _real(name: str, values: Any) -> Any:
    values = jnp.asarray(values)
    if jnp.issubdtype(values.dtype, jnp.complexfloating):
        raise ValueError(f"{name}: is complex ({values.dtype}); the rule is real values, e.g. take its absolute value")
    return values


def _per_example(name: str, result: Any, mask: Any) -> tuple[Any, Any]:
    """(s, w): weighted sum and weight of every example, zero where masked."""
    values, weights = result if isinstance(result, tuple) else (result, None)
    values = _real(name, values)
    size = mask.shape[0]
    if values.ndim == 0 or values.shape[0] != size:
        hint = "set per_example=False if the loss couples the examples of a batch" if name == "loss" else "return (B,)"
        raise ValueError(
            f"{name}: returned shape {values.shape} for a batch of {size} examples; the rule is one value per example, "
            f"leading axis {size}; {hint}"
        )
    dtype, shape = jnp.promote_types(values.dtype, jnp.float32), values.shape
    values = values.astype(dtype).reshape(size, -1)
    if weights is None:
        entries = values.shape[1]
        return jnp.where(mask, values.sum(1), 0), mask.astype(dtype) * entries
    weights = jnp.asarray(weights)
    if weights.shape != shape:
        raise ValueError(f"{name}: losses have shape {shape}, their weights {weights.shape}; the shapes must be equal")
    weights = weights.astype(dtype).reshape(size, -1)
    # a token of weight 0 may carry any loss, NaN included
    total = jnp.where(weights != 0, weights * values, 0).sum(1)
    return jnp.where(mask, total, 0), jnp.where(mask, weights.sum(1), 0)


def example_sums(name: str, result: Any, mask: Any) -> Sums:
    """Sums of a per-example result ``(B, ...)`` or ``(values, weights)`` over the masked-in rows, about their mean."""
    s, w = _per_example(name, result, mask)
    weight = w.sum()
    m = s.sum() / weight
    m = jnp.where(jnp.isfinite(m), m, 0)
    e = s - m * w
    return Sums((w != 0).sum().astype(s.dtype), weight, m, e.sum(), (w * w).sum(), (w * e).sum(), (e * e).sum())


def batch_sums(result: Any, mask: Any) -> Sums:
    """The same for a batch-coupled loss: its scalar, weighted by the number of examples (or ``(scalar, weight)``)."""
    value, weight = result if isinstance(result, tuple) else (result, mask.shape[0])
    value = _real("loss", value)
    if value.ndim:
        raise ValueError(
            f"loss: returned shape {value.shape}; the rule for a batch-coupled or plain loss is a scalar per batch. "
            "Reduce it (e.g. .mean()), or use lla.Loss(apply, criterion) with one loss per example"
        )
    value = value.astype(jnp.promote_types(value.dtype, jnp.float32))
    weight = jnp.asarray(weight, value.dtype)
    zero = jnp.zeros_like(value)
    # a batch of weight 0 may have any loss, NaN included
    weighted = jnp.where(weight != 0, weight * value, zero)
    return Sums(jnp.ones_like(value), weight, zero, weighted, zero, zero, zero)


def loss_sums(loss: Loss, outputs: Any, block: Block) -> Sums:
    """The sums of the loss itself over a block."""
    with noting("the criterion", "criterion(outputs, batch)", block):
        result = loss.criterion(outputs, block.batch)
    return example_sums("loss", result, block.mask) if loss.per_example else batch_sums(result, block.mask)


def loss_total(loss: Loss, outputs: Any, block: Block) -> tuple[Any, Any]:
    """(sum w l, sum w) of a block: what derivatives are taken of."""
    with noting("the criterion", "criterion(outputs, batch)", block):
        result = loss.criterion(outputs, block.batch)
    if loss.per_example:
        s, w = _per_example("loss", result, block.mask)
        return s.sum(), w.sum()
    sums = batch_sums(result, block.mask)
    return sums.e, sums.w


def loss_roots(loss: Loss, outputs: Any, block: Block) -> tuple[Any, Any]:
    """((B,) sum sqrt(w) l, sum w): the squares of the first one's gradients weigh w, as a Fisher matrix needs."""
    with noting("the criterion", "criterion(outputs, batch)", block):
        result = loss.criterion(outputs, block.batch)
    if not isinstance(result, tuple):
        return _per_example("loss", result, block.mask)[0], _per_example("loss", result, block.mask)[1].sum()
    losses, weights = result
    roots, _ = _per_example("loss", (losses, jnp.sqrt(jnp.asarray(weights))), block.mask)
    return roots, _per_example("loss", result, block.mask)[1].sum()


@functools.partial(jax.jit, static_argnames="size")
def _add_gradient(
    total: PyTree, weight: Any, loss: Loss, params: PyTree, data: Batch, count: Any, offset: Any, *, size: int
):
    block = block_at(data, 0, size, count, offset)

    def weighted(p: PyTree) -> tuple[Any, Any]:
        sums = loss_sums(loss, outputs_of(loss, p, loss.state, block, False)[0], block)
        return sums.m * sums.w + sums.e, sums.w

    grads, w = jax.grad(weighted, has_aux=True)(params)
    return _tree.axpy(1.0, grads, total), weight + w


@jax.jit
def _finish_gradient(total: PyTree, weight: Any, loss: Loss, params: PyTree) -> PyTree:
    grads = jax.tree.map(lambda g: g / weight.astype(g.dtype), total)
    return grads if loss.penalty is None else _tree.axpy(1.0, jax.grad(loss.penalty)(params), grads)


def mean_gradient(
    loss: Loss | Callable, params: PyTree, data: Batch | Stream, *, batch_size: int | None = None
) -> PyTree:
    """Gradient of the loss over the whole data set, (sum_i w_i grad l_i) / (sum_i w_i) + grad penalty.

    Args:
      loss: a ``Loss``, or a plain ``f(params, batch) -> scalar``; normalization layers use frozen statistics.
      params: where to take it.
      data: one data set or a stream; ``batch_size`` rows at a time (default: all, or the stream's own batches).
      batch_size: see above.

    Returns:
      A tree like ``params``.
    """
    loss = as_loss(loss)
    total = jax.tree.map(lambda p: np.zeros(p.shape, p.dtype), params)
    weight: Any = np.zeros((), np.float32)
    rows = 0
    for batch, offset in host_batches(data, batch_size):
        count = num_examples(batch)
        rows = max(rows, count)
        if loss.per_example:  # one shape for all batches
            batch = pad_rows(to_numpy(batch), rows)
        size = num_examples(batch)
        total, weight = _add_gradient(total, weight, loss, params, batch, np.int32(count), np.int32(offset), size=size)
    return _finish_gradient(total, weight, loss, params)
