"""Computes losses of blocks of examples, and weighted sums of them that give all means, standard errors and gradients.

The loss over a data set is (sum w l) / (sum w) however the data are cut: every block gives sums, the sums are added up,
and rows that must not count are masked out.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import tree as _tree
from lla_jax.core import tries
from lla_jax.core.arguments import Misuse, misuse, parameters, single_key
from lla_jax.core.called import call, explain
from lla_jax.core.foreign import library_of
from lla_jax.core.signatures import explained
from lla_jax.core.static import function_of, renew, static
from lla_jax.core.types import Batch, Loss, Problem, PyTree
from lla_jax.core.wholes import Whole, example_of, is_array, with_axis


@explained
class Sums(NamedTuple):
    """Weighted sums over examples: example i has the weighted loss s_i, the weight w_i, and e_i = s_i - m w_i.

    For a block summed on a device the shift m is the block's own mean, so that float32 loses nothing to cancellation.
    The sums of several blocks are added up on the host in float64, with the shift 0.

    Args:
      n: number of examples whose weight is not 0.
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
        """The mean (sum s_i) / (sum w_i) = m + (sum e_i) / (sum w_i); NaN if all weights are 0."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.m + self.e / self.w

    @property
    def standard_error(self) -> Any:
        """Standard error of the mean over independent examples: sqrt(n/(n-1) sum (s_i - mean w_i)^2) / sum w_i.

        For weights 1 this is std(l, ddof=1) / sqrt(n); for token weights it is the standard error of a ratio estimator.
        One example has none: its standard error is NaN.
        """
        n, w, _, e, ww, we, ee = self
        with np.errstate(invalid="ignore", divide="ignore"):
            d = e / w  # distance of the mean from the shift
            squares = np.maximum(ee - 2 * d * we + d * d * ww, 0) * (n / (n - 1))
            return np.where(np.equal(n, 1), np.nan, np.sqrt(squares) / w)[()]  # rounding may leave a square of one

    def about_zero(self) -> Sums:
        """The same sums with the shift 0; sums of several blocks can be added up only with one shift."""
        n, w, m, e, ww, we, ee = self
        return Sums(n, w, np.zeros_like(m), e + m * w, ww, we + m * ww, ee + 2 * m * we + m * m * ww)


def pack(sums: Sums) -> Any:
    """Stack the seven sums, each of shape (...), into one array (..., 7), the form in which they leave a device.

    Seven arrays cost more to return than one: with them a plane of many small calls on two CPU devices took 1.6 times
    as long, and a plane whose points are looped over on the device 1.3 times as long.
    """
    return jnp.stack(sums, -1)


def unpack(packed: Any) -> Sums:
    """The ``Sums`` in an array (..., 7) that ``pack`` or ``total`` made."""
    return Sums(*(packed[..., i] for i in range(len(Sums._fields))))


def total(blocks: Any) -> np.ndarray:
    """Add up the packed sums (..., S, 7) of S blocks on the host: packed sums (..., 7) in float64, with the shift 0."""
    with np.errstate(invalid="ignore", over="ignore"):
        about_zero = unpack(np.asarray(blocks, np.float64)).about_zero()
        return np.stack(about_zero, -1).sum(-2)


def penalty_of(loss: Loss, params: PyTree) -> Any:
    """The penalty of a loss that has one, a scalar array.

    Raises:
      ValueError: it is no scalar.
    """
    assert loss.penalty is not None
    remedy = "It gets the parameters alone, and returns a scalar, such as jnp.sum(params['w'] ** 2)"
    with explain(loss.penalty, "the penalty", "penalty(params)", {"params": params}, remedy, "penalty"):
        value = loss.penalty(params)
    shape = jnp.shape(value) if is_array(value) else None
    if shape != ():
        what = f"a {type(value).__name__}" if shape is None else f"shape {shape}"
        raise Misuse(
            "penalty", f"returned {what}; it must return a scalar, such as the sum over all leaves: jnp.sum(w**2)"
        )
    return jnp.asarray(value)


@dataclass(frozen=True)
class _Scalar:
    """A plain ``f(params, batch) -> scalar`` as ``Loss.apply``; two are equal if their functions are."""

    f: Any  # f(params, batch)

    def __call__(self, params: PyTree, state: PyTree, batch: Batch, train: bool) -> tuple[Any, PyTree]:
        value = self.f(params) if batch is None and _takes_params_alone(self.f) else self.f(params, batch)
        if not is_array(value):
            raise Misuse(
                "loss",
                f"a plain function returned a {type(value).__name__}; it must return one scalar. Drop auxiliary values "
                "(lambda params, batch: f(params, batch)[0]); for a batch with a weight of its own use lla.Loss(apply, "
                "criterion, per_example=False), whose criterion returns (scalar, weight)",
            )
        return value, state


def _takes_params_alone(f: Any) -> bool:
    """Whether a function has room for the parameters and not for data."""
    kinds = [parameter.kind for parameter in parameters(function_of(f)).values()]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return inspect.Parameter.VAR_POSITIONAL not in kinds and sum(kind in positional for kind in kinds) == 1


def is_plain(loss: Loss) -> bool:
    """Whether a loss was made of a plain function, whose outputs are its value."""
    return isinstance(loss.apply, _Scalar)


def _identity(outputs: Any, batch: Batch) -> Any:
    return outputs


@explained
def as_loss(loss: Loss | Callable[[PyTree, Batch], Any]) -> Loss:
    """Return a ``Loss`` as it is, and wrap a plain ``f(params, batch) -> scalar`` as a batch-coupled ``Loss``.

    If objects that its functions reach were changed since it was made, another ``Loss`` is returned, which compiles
    anew.

    A plain function shows no losses of single examples. Its value over a data set is the mean over batches, weighted by
    their sizes, and there is no standard error.

    Raises:
      ValueError: ``loss`` is neither.
    """
    if isinstance(loss, Loss):
        if loss.key is not None:
            single_key(loss.key)  # checked, and used as it came
        return renew(loss)
    if isinstance(loss, Problem):
        raise misuse("loss", loss, "a loss: pass problem.loss, and with it problem.params and problem.data")
    if getattr(loss, "__name__", "") == "apply" and str(getattr(loss, "__module__", "")).startswith("flax.linen"):
        rule = "a loss; the apply of a module gives outputs, and lla.from_linen(module, variables, criterion) a loss"
        raise misuse("loss", loss, rule)
    if callable(getattr(loss, "loss", None)) and (library_of(loss) == "lla_torch" or not callable(loss)):
        raise misuse("loss", loss, "a loss and not a network; this one makes it: net.loss(criterion)")
    if not callable(loss) or isinstance(loss, type):
        raise misuse(
            "loss",
            loss,
            f"an lla.Loss, as lla.from_linen makes it, or a function f(params, batch) -> scalar{_of_pair(loss)}",
        )
    return Loss(_Scalar(static(loss)), _identity, per_example=False)


def _of_pair(given: Any) -> str:
    """What to do with a pair (loss, params) that is given as the loss."""
    pair = isinstance(given, tuple | list) and any(isinstance(each, Loss) for each in given)
    return "; of the pair that lla_torch.convert_loss returns pass the first: loss, params = ..." if pair else ""


class Block(NamedTuple):
    """Examples as a kernel gets them, with a mask of the rows that count and the index of each row in the data set."""

    batch: Batch
    mask: Any  # (B,) bool
    index: Any  # (B,) int32


def block_of_rows(batch: Batch, index: Any) -> Block:
    """The block of all rows of a batch, whose numbers in the data set are ``index`` (B,)."""
    batch = with_axis(batch) if isinstance(batch, Whole) else batch
    return Block(batch, jnp.ones(len(index), bool), index)


def block_at(data: Batch, start: Any, size: int, count: Any, offset: Any) -> Block:
    """Cut the block of ``size`` rows from row ``start`` on; its shape is the same for every start.

    At the end of the data the window is moved back until it fits, and the rows of earlier blocks are masked out: this
    needs no padding and no second copy of the data.

    Args:
      data: arrays with a leading axis of at least ``size`` rows; or a ``Whole``, which is one row.
      start: index of the first row that counts.
      size: number of rows of the block.
      count: index after the last row that counts, such as the number of rows without padding.
      offset: index in the data set of the first row of ``data``.
    """
    if isinstance(data, Whole):
        row = jnp.zeros(1, jnp.int32)
        return Block(with_axis(data), (row >= start) & (row < count), offset + row)
    leaves = jax.tree.leaves(data)
    chex.assert_equal_shape_prefix(leaves, 1)
    low = jnp.minimum(start, leaves[0].shape[0] - size)
    batch = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, low, size), data)
    row = low + jnp.arange(size)
    return Block(batch, (row >= start) & (row < count), offset + row)


def outputs_of(loss: Loss, params: PyTree, state: PyTree, block: Block, train: bool) -> tuple[Any, PyTree]:
    """Call ``loss.apply`` on a block: (outputs, new state).

    For a ``Whole`` it is ``loss.apply.on_example`` where an adapter has it, whose model takes single examples. A loss
    with a key gets one key per example, folded with the example's index; for a ``Whole`` it is a single key.

    Raises:
      ValueError: ``apply`` does not return a pair.
    """
    keys: tuple[Any, ...] = ()
    if loss.key is not None:
        keys = (jax.vmap(jax.random.fold_in, (None, 0))(loss.key, block.index),)
    whole = isinstance(block.batch, Whole)
    keys = tuple(single_key(each[0]) for each in keys) if whole else keys
    apply = getattr(loss.apply, "on_example", loss.apply) if whole else loss.apply
    with _explain_model(apply, params, state, block.batch, train, keys):
        result = apply(params, state, example_of(block.batch), train, *keys)
    if not isinstance(result, tuple) or len(result) != 2:
        what = "an array" if hasattr(result, "shape") else f"a {type(result).__name__}"
        raise Misuse(
            "loss",
            f"apply returned {what}; it must return a pair, apply(params, state, batch, train) -> "
            "(outputs, new_state). Return (outputs, state), with the given state, if there is no new one",
        )
    return (with_axis(result[0]), result[1]) if whole else result


def _explain_model(apply: Any, params: PyTree, state: PyTree, batch: Batch, train: bool, keys: tuple[Any, ...]) -> Any:
    """The context in which ``apply`` of a loss, or a plain function, is called."""
    if isinstance(apply, _Scalar):
        given = {"params": params, "batch": batch}
        return explain(apply.f, "the function", "f(params, batch)", given, tries.of_function)
    given = {"params": params, "state": state, "batch": batch, "train": train} | ({"keys": keys[0]} if keys else {})
    return explain(apply, "the model", f"apply({', '.join(given)})", given, tries.of_model)


def check_real(name: str, values: Any) -> Any:
    """The values as an array, after a check that they are not complex."""
    values = jnp.asarray(values)
    if jnp.issubdtype(values.dtype, jnp.complexfloating):
        raise Misuse(name, f"is complex ({values.dtype}); it must be real: take, for example, its absolute value")
    return values


def split_result(name: str, result: Any) -> tuple[Any, Any]:
    """(values, weights or None) of what a criterion or metric returned: arrays, or a pair of arrays.

    Raises:
      ValueError: it is neither numbers nor such a pair: a dict, None, a tuple of another length, or a pair whose
        second entry is no array, such as a dict of auxiliary values.
    """
    if not isinstance(result, tuple):
        if not is_array(result) and not isinstance(result, list):
            raise Misuse(
                name,
                f"returned a {type(result).__name__}; it must return an array, or the pair (values, weights). Return "
                "the entry that counts (losses['total'] of a dict), and pass others as metrics={name: f}",
            )
        return result, None
    if len(result) != 2 or not is_array(result[1]) or not (is_array(result[0]) or isinstance(result[0], list)):
        shown = ", ".join(type(each).__name__ for each in result)
        raise Misuse(
            name,
            f"returned a tuple of {shown}; it must return values, or the pair (values, weights). Leave auxiliary "
            "values out, and pass them as metrics={name: f}",
        )
    return result


def entries_of(name: str, result: Any, size: int) -> tuple[Any, Any]:
    """(values, weights or None), both of shape (B, ...) or (B,): the entries, such as tokens, of every example.

    Args:
      name: the name of the values in errors, such as "loss".
      result: values, or ``(values, weights)``, as a criterion or metric returns them.
      size: B, the number of examples.

    Raises:
      ValueError: complex values, values without the leading axis B, or weights of another shape.
    """
    values, weights = split_result(name, result)
    values = check_real(name, values)
    if values.ndim == 0 or values.shape[0] != size:
        mean = "leave the mean out, or " if values.ndim == 0 else ""
        couples = "set per_example=False if the loss couples the examples of a batch"
        hint = mean + (couples if name == "loss" else "return (B,)")
        raise Misuse(
            name,
            f"returned shape {values.shape} for a batch of {size} examples; it must return one value per example, "
            f"with leading axis {size}: {hint}",
        )
    if weights is None:
        return values, None
    weights = jnp.asarray(weights)
    if weights.shape != values.shape:
        raise Misuse(
            name,
            f"losses have shape {values.shape}, their weights {weights.shape}; the shapes must be equal: give every "
            "loss its weight, e.g. with jnp.broadcast_to(weights, losses.shape)",
        )
    return values, weights


def sum_entries(name: str, result: Any, mask: Any) -> tuple[Any, Any]:
    """(s, w), both (B,): the weighted sum of an example's entries (such as tokens), and the sum of their weights.

    Without weights every entry has the weight 1. Examples that are masked out have s = w = 0.
    """
    size = mask.shape[0]
    values, weights = entries_of(name, result, size)
    dtype = _tree.wide(values.dtype)
    values = values.astype(dtype).reshape(size, -1)
    if weights is None:
        return jnp.where(mask, values.sum(1), 0), mask.astype(dtype) * values.shape[1]
    weights = weights.astype(dtype).reshape(size, -1)
    # a token of weight 0 may carry any loss, NaN included
    weighted = jnp.where(weights != 0, weights * values, 0).sum(1)
    return jnp.where(mask, weighted, 0), jnp.where(mask, weights.sum(1), 0)


def example_sums(name: str, result: Any, mask: Any) -> Sums:
    """The sums of per-example values over the rows that count, with their mean as the shift.

    Args:
      name: the name of the values in errors, such as "loss".
      result: values of shape (B, ...), or ``(values, weights)`` of equal shapes; default weights are 1.
      mask: (B,), the rows that count.

    Raises:
      ValueError: complex values, values without the leading axis B, or weights of another shape.
    """
    s, w = sum_entries(name, result, mask)
    chex.assert_equal_shape([s, w, mask])
    weight = w.sum()
    m = s.sum() / weight
    m = jnp.where(jnp.isfinite(m), m, 0)
    e = s - m * w
    return Sums((w != 0).sum().astype(s.dtype), weight, m, e.sum(), (w * w).sum(), (w * e).sum(), (e * e).sum())


def check_scalar(shape: tuple[int, ...]) -> None:
    """Raise a ValueError unless the loss of a whole batch has the shape of a scalar."""
    if shape:
        raise Misuse(
            "loss",
            f"returned shape {shape}; a batch-coupled or plain loss must return a scalar per batch. Reduce it "
            "(e.g. .mean()), or use lla.Loss(apply, criterion) with one loss per example",
        )


def batch_sums(result: Any, mask: Any) -> Sums:
    """The sums of a batch-coupled loss, which count the batch as one example and give no standard error.

    Args:
      result: a scalar, whose weight is the number of examples, or ``(scalar, weight)``.
      mask: (B,), read for the number of examples only.

    Raises:
      ValueError: the result is complex or not a scalar.
    """
    value, weight = split_result("loss", result)
    value, weight = check_real("loss", value), mask.shape[0] if weight is None else weight
    check_scalar(value.shape)
    value = value.astype(_tree.wide(value.dtype))
    weight = jnp.asarray(weight, value.dtype)
    zero = jnp.zeros_like(value)
    # a batch of weight 0 may have any loss, NaN included
    weighted = jnp.where(weight != 0, weight * value, zero)
    return Sums(jnp.ones_like(value), weight, zero, weighted, zero, zero, zero)


def loss_sums(loss: Loss, outputs: Any, block: Block) -> Sums:
    """The sums over a block of the loss that the criterion gives for ``outputs``, without the penalty."""
    result = call(loss.criterion, outputs, block.batch)
    if _counts_examples(loss, result, block):
        return example_sums("loss", result, block.mask)
    return batch_sums(result, block.mask)


def _counts_examples(loss: Loss, result: Any, block: Block) -> bool:
    """Whether the criterion's result for a block has a row for each example, as that for a ``Whole`` always has.

    Raises:
      ValueError: a loss with ``per_example=False`` gives a ``Whole`` several entries.
    """
    if not isinstance(block.batch, Whole):
        return loss.per_example
    if not loss.per_example:
        check_scalar(jnp.shape(split_result("loss", result)[0])[1:])
    return True


def loss_total(loss: Loss, outputs: Any, block: Block) -> tuple[Any, Any]:
    """(sum w l, sum w) over a block without the penalty, two scalars that can be differentiated."""
    result = call(loss.criterion, outputs, block.batch)
    if _counts_examples(loss, result, block):
        s, w = sum_entries("loss", result, block.mask)
        return s.sum(), w.sum()
    sums = batch_sums(result, block.mask)
    return sums.e, sums.w


def loss_roots(loss: Loss, outputs: Any, block: Block, drawn: Batch | None = None) -> tuple[Any, Any]:
    """(roots, weight) for the Fisher matrix of a per-example loss: the squared gradient of sqrt(w) l has the weight w.

    Args:
      loss: the loss.
      outputs: of the model for the block.
      block: the rows, with the targets of the data.
      drawn: the batch with other targets, whose losses are taken. The weights are always those of the data, also where
        they follow from the targets (a class weight, an ignored label).

    Returns:
      ``roots`` (B,): for each example, the sum of sqrt(w) l over its entries (such as tokens), 0 where masked; and the
      scalar ``weight``, the sum of w over all entries that count. Without weights every w is 1. Of a ``Whole`` each
      entry, such as a node, is an observation of its own, and B their number.
    """
    result = call(loss.criterion, outputs, block.batch if drawn is None else drawn)
    if drawn is not None and isinstance(result, tuple):
        result = (result[0], call(loss.criterion, outputs, block.batch)[1])
    mask = block.mask
    if isinstance(block.batch, Whole):
        result = jax.tree.map(jnp.ravel, result)
        mask = jnp.broadcast_to(mask, jnp.shape(jax.tree.leaves(result)[0]))
    if not isinstance(result, tuple):
        s, w = sum_entries("loss", result, mask)
        return s, w.sum()
    losses, weights = result
    roots, _ = sum_entries("loss", (losses, jnp.sqrt(jnp.asarray(weights))), mask)
    return roots, sum_entries("loss", result, mask)[1].sum()
