"""Compares the losses of a block of rows with those of its halves, and of the rows in another order.

    losses(block) = losses(its two halves) = losses(block, rotated by one row)

up to rounding, if each example has a loss of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from lla_jax.core.arguments import Misuse
from lla_jax.core.data import num_examples, rows_of
from lla_jax.core.losses import block_of_rows
from lla_jax.core.rows import Model, Run, Values, outputs_of_rows, sizes, spread, take, takes
from lla_jax.core.types import Batch, Loss

ROUNDING, HALF_ROUNDING = 100.0, 4.0  # times eps: differences that rounding explains; the latter in 16 bits
NOISE, HALF_NOISE = 50.0, 8.0  # times the change of a loss if its inputs change by eps, likewise
UNSTEADY = 10.0  # times the difference between two evaluations of the same rows, likewise
SHAKEN = 0.5  # times the parameters: a change that wakes losses which are all the same


class NothingCounts(Misuse):
    """The error for weights that are all 0, as they may be in one batch of a stream."""


def check_apart(model: Model, data: Batch, size: int) -> bool:
    """Compare the losses of a block with those of its halves, and of the block in another order.

    Returns:
      Whether the losses of the block differ from each other; if they are all the same, nothing was shown.
    """
    half = size // 2
    run, run_half = Run(model, data, size), Run(model, data, half)
    rows, index = spread(data, size)
    shake, block = _wake(run, rows, index)
    _check_weights(run, data, block, index)
    _check_numbers(rows, index, block, shake)
    parts = (rows_of((rows, index), start, half) for start in (0, half))
    first, second = (run_half(part, numbers, shake) for part, numbers in parts)
    halves = jax.tree.map(lambda a, b: np.concatenate([a, b]), first, second)
    ways = {"in two halves": halves, "in another order": _rotated(run, rows, index, shake)}
    _compare(run, rows, index, shake, block, ways)
    return _differ(block)


def check_apart_uncut(model: Model, data: Batch, size: int) -> bool:
    """As ``check_apart``, for a model that takes only this number of rows: the first half is put beside itself."""
    run, index, half = Run(model, data, size), np.arange(size, dtype=np.int32), size // 2
    rows, twice = take(data, index), index % half
    shake, block = _wake(run, rows, index)
    _check_weights(run, data, block, index)
    alone = jax.tree.map(lambda x: x[:half], run(jax.tree.map(lambda x: x[twice], rows), index[twice], shake))
    ways = {"beside others": alone, "in another order": _rotated(run, rows, index, shake)}
    _compare(run, rows, index, shake, block, ways)
    return _differ(block)


def _check_weights(run: Run, data: Batch, block: Values, index: np.ndarray) -> None:
    """Refuse weights that are negative or not finite in these rows, or 0 in all rows of the data."""
    for name, (_, weights) in block.items():
        if weights is None:
            continue
        check_weights(name, weights)
        if not np.any(weights) and not any(np.any(run(*rows, 0.0)[name][1]) for rows in _all_rows(data, len(index))):
            raise NothingCounts(
                name, "all of its weights are 0, so that no example counts; at least one must be positive"
            )


def _check_numbers(rows: Batch, index: np.ndarray, block: Values, shake: float) -> None:
    """Refuse rows of the data with NaN or infinity in which the loss is not finite, and counts."""
    values, weights = block["loss"]
    broken = ~np.isfinite(np.asarray(values, np.float64)) & (True if weights is None else np.asarray(weights) != 0)
    of_rows = broken.reshape(len(index), -1).any(1)
    for path, x in jax.tree.leaves_with_path(rows) if shake == 0 and of_rows.any() else ():
        found = index[of_rows & ~np.isfinite(np.asarray(x, np.float64)).reshape(len(index), -1).all(1)]
        if found.size:
            raise Misuse(
                "data",
                f"data{jax.tree_util.keystr(path)} holds NaN or infinity, as in its row {found[0]}, where the loss is "
                "not finite; leave such rows out (np.isfinite), fill them (np.nan_to_num), or give them the weight 0",
            )


def _all_rows(data: Batch, size: int) -> Iterator[tuple[Batch, np.ndarray]]:
    """(rows, their numbers) of all blocks of a size; the last one ends with the last row."""
    count = num_examples(data)
    for start in range(0, count, size):
        index = np.arange(size, dtype=np.int32) + min(start, count - size)
        yield take(data, index), index


def check_weights(name: str, weights: Any) -> None:
    """Refuse weights that are negative or not finite.

    Args:
      name: of the values that have these weights.
      weights: numbers.

    Raises:
      ValueError: such weights.
    """
    weights = np.asarray(weights, np.float64)
    if not np.isfinite(weights).all() or (weights < 0).any():
        wrong = weights[~np.isfinite(weights) | (weights < 0)].flat[0]
        raise Misuse(
            name,
            f"returned the pair (values, weights) with a weight of {wrong:.4g}; weights must be finite and at least 0: "
            "give examples that do not count the weight 0, as by jnp.where(mask, weights, 0)",
        )


def _wake(run: Run, rows: Batch, index: np.ndarray) -> tuple[float, Values]:
    """(change of the parameters with which the losses of the rows differ from each other, the values with it)."""
    for shake in (0.0, SHAKEN, -SHAKEN):
        block = run(rows, index, shake)
        if _differ(block):
            break
    return shake, block


def _differ(values: Values) -> bool:
    """Whether the losses of the rows differ from each other."""
    losses = np.asarray(values["loss"][0], np.float64)
    finite = losses[np.isfinite(losses)]
    return bool(finite.size) and bool(np.ptp(finite) > 0)


def check_criterion(model: Model, data: Batch, size: int) -> None:
    """Compare the losses of blocks whose outputs are given: the network may couple its examples, the criterion not."""
    index = np.arange(size, dtype=np.int32)
    rows, loss = take(data, index), model.loss
    found = outputs_of_rows(loss, model.params, block_of_rows(rows, index), train=model.train)
    outputs = jax.tree.map(np.asarray, found)
    if size < 2 or any(x.shape[:1] != (size,) for x in jax.tree.leaves(outputs)):
        return
    of_given = Loss(lambda p, state, both, train: (both[0], state), lambda o, both: loss.criterion(o, both[1]))
    metrics = tuple((name, lambda o, both, f=f: f(o, both[1])) for name, f in model.metrics)
    given, both = Model(of_given, model.params, metrics, False), (outputs, rows)
    if takes(given, both, *sizes(given, size // 2 * 2)):
        check_apart(given, both, size // 2 * 2)


def _rotated(run: Run, rows: Batch, index: np.ndarray, shake: float) -> Values:
    """The values of the rows, computed from the block whose first row is put at its end."""
    order = np.roll(np.arange(len(index)), -1)
    values = run(jax.tree.map(lambda x: x[order], rows), index[order], shake)
    return jax.tree.map(lambda x: np.roll(x, 1, 0), values)


def _compare(run: Run, rows: Batch, index: np.ndarray, shake: float, block: Values, others: dict[str, Values]) -> None:
    """Refuse a loss or metric whose values for the block differ from others by more than rounding."""
    half_precision = run.eps > np.finfo(np.float32).eps
    allowed, factor = (HALF_ROUNDING, HALF_NOISE) if half_precision else (ROUNDING, NOISE)

    def explained(name: str) -> float:
        """The largest difference that rounding inside of the network, or noise without a key, may make."""
        again, up, down = (run(rows, index, shake, noise)[name] for noise in (0.0, run.eps, -run.eps))
        rounding = max(_difference(block[name], up), _difference(block[name], down))
        return max(UNSTEADY * _difference(block[name], again), factor * rounding)

    for way, values in others.items():
        for name in block:
            difference = _difference(block[name], values[name])
            if difference > allowed * run.eps and difference > explained(name):
                raise Misuse(name, _explain(name, len(index), way, difference))


def _difference(one: tuple[Any, Any], two: tuple[Any, Any]) -> float:
    """The largest difference of values, or of their weights, relative to their own size plus the mean size."""
    (values, weights), (others, other_weights) = one, two
    differences = [] if weights is None else [_relative(weights, other_weights, None)]
    return max([_relative(values, others, weights), *differences])


def _relative(one: Any, two: Any, weights: Any) -> float:
    """The largest relative difference of entries whose weight is not 0; inf where only one of them is finite."""
    a = np.asarray(one, np.float64)[: len(two)]
    b = np.asarray(two, np.float64)
    counts = (
        np.ones(a.shape, bool) if weights is None else np.broadcast_to(np.asarray(weights)[: len(two)] != 0, a.shape)
    )
    finite = np.isfinite(a) & np.isfinite(b)
    if (counts & (np.isfinite(a) != np.isfinite(b))).any():
        return np.inf
    a, b = a[counts & finite], b[counts & finite]
    if not a.size:
        return 0.0
    scale = np.maximum(np.abs(a), np.abs(b)) + np.abs(a).mean()
    return float(np.divide(np.abs(a - b), scale, out=np.zeros_like(a), where=scale > 0).max())


def _explain(name: str, size: int, way: str, difference: float) -> str:
    return (
        f"the values of {size} examples change by {difference:.1g} (relative) if they are computed {way}; the value of "
        "an example must not depend on the other examples of its batch. Usual causes: outputs (N, 1) beside labels "
        "(N,), which broadcast; time as the leading axis, (T, N, F), where the examples belong; statistics over the "
        "batch, such as those of BatchNorm in train mode; division by the size of the batch."
        + (
            " If the loss is to couple the examples, return a scalar and set per_example=False; if these are the parts "
            "of one example, such as the nodes of a graph, pass lla.whole(data)"
            if name == "loss"
            else ""
        )
    )
