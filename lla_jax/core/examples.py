"""Checks, once per model and process, that each example has a loss of its own, and that the loss reads all data.

A loss per example is averaged over blocks of any size, so that its value has a meaning only if the loss of an example
does not depend on the others of its block. Rows of the user's own data show whether that holds:

    losses(block) = losses(its two halves) = losses(block, rotated by one row)

up to rounding, and of the same shapes for the block and for its halves, apart from the leading axis.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import jaxprs
from lla_jax.core.arguments import Misuse, warn_caller
from lla_jax.core.data import Stream, as_arrays, num_examples
from lla_jax.core.losses import Block, as_loss, entries_of, note_call, outputs_of
from lla_jax.core.static import static
from lla_jax.core.types import Batch, Loss, PyTree

ROWS = 16  # rows of a block, so that a check costs the losses of 48 examples
MOST_FIXED = 4096  # rows of a block of a model that takes only its own number of rows
MOST_REMEMBERED = 256
ROUNDING, HALF_ROUNDING = 100.0, 4.0  # times eps: differences that rounding explains; the latter in 16 bits
NOISE, HALF_NOISE = 50.0, 8.0  # times the change of a loss if its inputs change by eps, likewise
ASLEEP = 0.1  # entries in place of those of a leaf that is all zero, behind which nothing could be seen

_CHECKED: dict[Hashable, str] = {}  # the warning of each model that passed, or an empty string

Metrics = tuple[tuple[str, Any], ...]


def check_examples(
    loss: Loss | Callable[[PyTree, Batch], Any],
    params: PyTree,
    data: Batch | Stream,
    *,
    metrics: Mapping[str, Callable[[Any, Batch], Any]] | None = None,
    batch_size: int | None = None,
) -> None:
    """Check that each example has a loss of its own, that weights are constants, and that the loss reads the data.

    All functions that take a loss and data make this check by themselves, once per model and process. It costs the
    losses of 48 examples: those of a block of 16 rows are compared with those of its halves and of the block rotated by
    one row, up to rounding. Leaves of the parameters that are all zero are moved first, since no example could be seen
    through them. Of a plain function and of a loss with ``per_example=False`` only the weight and the data are checked.

    Args:
      loss: a ``Loss``, or a plain ``f(params, batch) -> scalar``.
      params: the parameters.
      data: one data set (rows are taken from all of it), or a stream, whose first batch is read.
      metrics: ``{name: f(outputs, batch) -> (B,)}``, for which the same must hold.
      batch_size: most rows of a block.

    Raises:
      ValueError: losses whose shape grows with the square of the number of examples; losses or weights of an example
        that depend on the other examples; weights that depend on the parameters, or of which those of two halves do not
        add up; a list of batches as data.
    """
    if isinstance(data, Stream):
        data = next(iter(data))
    pairs = tuple((name, static(f)) for name, f in (metrics or {}).items())
    check(as_loss(loss), params, as_arrays(data), pairs, most=batch_size)


def check(
    loss: Loss, params: PyTree, data: Batch, metrics: Metrics = (), *, train: bool = False, most: int | None = None
) -> None:
    """The check of ``check_examples``, for arguments that were checked; a model that passed it is not checked again.

    Args:
      loss: the loss.
      params: the parameters.
      data: arrays with leading axis N: a data set, or the first batch of a stream.
      metrics: ((name, function), ...).
      train: whether normalization layers use the statistics of a batch; then its examples are not compared.
      most: most rows of a block; if batches must not be cut, the rows of a batch.
    """
    count = num_examples(data)
    most, apart = min(count, most or count), loss.per_example and not train
    size = max(1, min(ROWS, count, max(2, most)) // 2 * 2) if apart else most
    model = _Model(loss, params, metrics, train)
    key = (*map(_shapes, (model, _like(data, size))), bool(jax.config.values["jax_enable_x64"]))
    if key not in _CHECKED:
        with jax.default_matmul_precision("highest"):
            _CHECKED[key] = _check(model, data, size, most, apart)
        if len(_CHECKED) > MOST_REMEMBERED:  # keys keep the functions in them alive
            del _CHECKED[next(iter(_CHECKED))]
    if _CHECKED[key]:
        warn_caller(_CHECKED[key])


def _check(model: _Model, data: Batch, size: int, most: int, apart: bool) -> str:
    """Make all checks; return a warning, or an empty string."""
    if _takes(model, data, *_sizes(model, size)):
        _check_traced(model, data, size)
        if apart and size > 1:
            _check_apart(model, data, size)
        if not model.loss.per_example:
            return _find_pairs(model, data)
    elif apart and 1 < most <= MOST_FIXED and _takes(model, data, most):
        _check_weights(_trace(model, data, most), model)
        _check_apart_uncut(model, data, most)
    return ""


def check_shapes(loss: Loss, params: PyTree, data: Batch) -> None:
    """The part of ``check`` for which tracing is enough, for functions that are traced themselves."""
    model = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), _Model(loss, params, (), False))
    size = num_examples(data)
    if _takes(model, data, *_sizes(model, size)):
        _check_traced(model, data, size)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Model:
    """What is evaluated on rows of data: a pytree whose static part compares by value."""

    loss: Loss
    params: PyTree
    metrics: Metrics = field(metadata={"static": True})
    train: bool = field(metadata={"static": True})


def _shapes(tree: Any) -> Hashable:
    """The structure of a tree, static parts included, with the shapes and types of its arrays."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((np.shape(x), str(getattr(x, "dtype", type(x)))) for x in leaves)


def _like(data: Batch, size: int) -> Batch:
    """The shapes and types of ``size`` rows, for tracing."""
    typed = jax.dtypes.canonicalize_dtype
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), typed(x.dtype)), data)


def _take(data: Batch, index: np.ndarray) -> Batch:
    """Rows of the data as numpy arrays; of arrays on other devices than a CPU only these rows are moved."""

    def take(x: Any) -> np.ndarray:
        on_host = not isinstance(x, jax.Array) or all(d.platform == "cpu" for d in x.devices())
        return np.asarray(x)[index] if on_host else np.asarray(x[index])

    return jax.tree.map(take, data)


def _takes(model: _Model, data: Batch, *sizes: int) -> bool:
    """Whether the model can be called with these numbers of rows; a ``Misuse`` passes on.

    Any other error says that it cannot, as a model of a fixed number of rows; of a true mistake the computation itself,
    which follows, tells more.
    """
    try:
        for size in sizes:
            _trace(model, data, size)
    except Misuse:
        raise
    except Exception:
        return False
    return True


@jax.jit
def _values(model: _Model, rows: Batch, index: Any, noise: Any) -> dict[str, tuple[Any, Any]]:
    """{name: (values, weights or None)} of the loss and the metrics, as the functions return them for some rows.

    Args:
      model: the loss, parameters and metrics.
      rows: (B, ...), examples.
      index: (B,), their numbers in the data set.
      noise: relative changes of parameters and inputs; 0 leaves all as they are, except leaves of zeros.
    """
    loss, params, rows = model.loss, _disturb(model.params, noise, ASLEEP), _disturb(rows, noise, 0.0)
    block = Block(rows, jnp.ones(len(index), bool), index)
    outputs, _ = outputs_of(loss, params, loss.state, block, model.train)
    results = {}
    for name, f in (("loss", loss.criterion), *model.metrics):
        with note_call(name, "f(outputs, batch)", block):
            result = f(outputs, rows)
        if loss.per_example or name != "loss":
            results[name] = entries_of(name, result, len(index))
        else:
            values, weight = result if isinstance(result, tuple) else (result, None)
            results[name] = jnp.asarray(values), None if weight is None else jnp.asarray(weight)
    return results


def _disturb(tree: PyTree, noise: Any, asleep: float) -> PyTree:
    """Floating leaves times 1 + noise u with fixed u between -1 and 1; leaves of zeros become ``asleep`` u."""

    def disturb(x: Any) -> Any:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        u = jnp.sin(1.0 + jnp.arange(x.size)).reshape(x.shape)
        moved = x * (1 + noise * u)
        return (jnp.where(jnp.any(x != 0), moved, asleep * u) if asleep else moved).astype(x.dtype)

    return jax.tree.map(lambda x: disturb(jnp.asarray(x)), tree)


# --- what tracing shows


def _sizes(model: _Model, size: int) -> tuple[int, ...]:
    """The numbers of rows for which the model is traced: a block, and half a block if there are losses per example."""
    return (size, size // 2 or 2) if model.loss.per_example else (size,)


def _trace(model: _Model, data: Batch, size: int) -> Any:
    """The program that computes the values of ``size`` rows; the same one that runs for as many rows later."""
    return _values.trace(model, _like(data, size), jax.ShapeDtypeStruct((size,), np.int32), np.float32(0))


def _check_traced(model: _Model, data: Batch, size: int) -> None:
    """Check the shapes of the losses, what their weights depend on, and that all data are read."""
    traced = _trace(model, data, size)
    _check_weights(traced, model)
    _check_reads(traced, model, data)
    if model.loss.per_example:
        _, other = _sizes(model, size)
        _check_shapes(traced.out_info, size, _trace(model, data, other).out_info, other)


def _check_shapes(results: Any, size: int, others: Any, other_size: int) -> None:
    """Refuse losses whose further axes change with the number of examples."""
    for name in results:
        shape, other = results[name][0].shape, others[name][0].shape
        if shape[1:] != other[1:]:
            raise Misuse(
                name,
                f"has shape {shape} for {size} examples and {other} for {other_size}; it must have one value per "
                "example, or further axes of fixed length. Outputs (N, 1) less labels (N,) are (N, N): give both one "
                "shape, as by outputs[:, 0] or labels[:, None]",
            )


class _Seen(NamedTuple):
    """What is known of a value in a jaxpr: whether it depends on the parameters, and whether an axis was put in."""

    depends: bool
    expanded: bool = False


def _find_pairs(model: _Model, data: Batch) -> str:
    """The warning of a loss in which outputs (N, 1) meet labels (N,), so that every pair of examples has a number.

    The result of a batch-coupled loss is a scalar, so that only the jaxpr shows it: an operation of (N, 1) with (1, N),
    of which one depends on the parameters and the other does not. Axes that the user put in are taken as meant.
    """
    dims = {n for x in jax.tree.leaves((model.params, model.loss.state, _like(data, 1))) for n in np.shape(x)}
    size = next(n for n in range(11, 10**6) if n not in dims)  # an axis of this length is one of examples
    if not _takes(model, data, size):
        return ""
    traced = _trace(model, data, size)
    loss, params = (len(jax.tree.leaves(tree)) for tree in (model.loss, model.params))
    pairs: list[str] = []

    def see(eqn: Any, values: list[Any]) -> list[_Seen]:
        known = [v if isinstance(v, _Seen) else _Seen(False) for v in values]
        shapes = [tuple(getattr(v.aval, "shape", ())) for v in eqn.invars]
        if shapes in ([(size, 1), (1, size)], [(1, size), (size, 1)]):
            column = known[shapes.index((size, 1))]
            if known[0].depends != known[1].depends and not column.expanded:
                pairs.append(eqn.primitive.name)
        expanded = eqn.primitive.name in ("broadcast_in_dim", "reshape", "expand_dims") and shapes[0] == (size,)
        return [_Seen(any(v.depends for v in known), expanded) for _ in eqn.outvars]

    inputs = [_Seen(loss <= i < loss + params) for i in range(len(traced.jaxpr.jaxpr.invars))]
    jaxprs.interpret(traced.jaxpr, inputs, see)
    if not pairs:
        return ""
    return (
        f"loss: it combines (N, 1) with (N,), by {pairs[0]}, which gives (N, N) numbers for N examples. Give "
        "outputs and labels one shape, as by outputs[:, 0] or labels[:, None]; if all pairs are meant, put both "
        "axes in: outputs[:, 0][:, None] and labels[None, :]"
    )


def _check_weights(traced: Any, model: _Model) -> None:
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


def _check_reads(traced: Any, model: _Model, data: Batch) -> None:
    """Refuse a list of batches in place of a data set: entries like the first one that nothing reads."""
    if not isinstance(data, list) or len(data) < 2:
        return
    start = len(jax.tree.leaves((model.loss, model.params)))
    reads = iter(jaxprs.inputs_of(traced.jaxpr, [True] * len(traced.jaxpr.out_avals))[start:])
    read = [sum(next(reads) for _ in jax.tree.leaves(entry)) for entry in data]
    alike = [_shapes(entry) == _shapes(data[0]) for entry in data]
    if unread := [i for i, (r, a) in enumerate(zip(read, alike, strict=True)) if a and not r]:
        raise Misuse(
            "data",
            f"a list of {len(data)} entries given, of which the loss does not read entry {unread[0]}, an array like "
            "entry 0; a data set must hold the arrays of one batch, such as (inputs, labels). Wrap a list of batches: "
            "lla.stream(batches)",
        )


# --- what values show


def _check_apart(model: _Model, data: Batch, size: int) -> None:
    """Compare the losses of a block with those of its halves, and of the block in another order."""
    half = size // 2
    index = np.linspace(0, num_examples(data) - 1, size).astype(np.int32)
    rows = _take(data, index)
    first, second = (_numbers(model, _cut(rows, *ends), index[slice(*ends)]) for ends in ((0, half), (half, size)))
    halves = jax.tree.map(lambda a, b: np.concatenate([a, b]), first, second)
    _compare(model, rows, index, {"in two halves": halves, "from rows in another order": _rotated(model, rows, index)})


def _check_apart_uncut(model: _Model, data: Batch, size: int) -> None:
    """As ``_check_apart``, for a model that takes only this number of rows: the first half is put beside itself."""
    index = np.arange(size, dtype=np.int32)
    rows, half = _take(data, index), size // 2
    twice = index % half
    alone = jax.tree.map(lambda x: x[:half], _numbers(model, jax.tree.map(lambda x: x[twice], rows), index[twice]))
    _compare(model, rows, index, {"beside others": alone, "from rows in another order": _rotated(model, rows, index)})


def _cut(rows: Batch, start: int, end: int) -> Batch:
    return jax.tree.map(lambda x: x[start:end], rows)


def _numbers(model: _Model, rows: Batch, index: np.ndarray, noise: float = 0.0) -> dict[str, tuple[Any, Any]]:
    """The values as numpy arrays: two programs with collectives that run at once can deadlock on a CPU."""
    return jax.tree.map(np.asarray, _values(model, rows, index, np.float32(noise)))


def _rotated(model: _Model, rows: Batch, index: np.ndarray) -> dict[str, tuple[Any, Any]]:
    """The values of the rows, computed from the block whose first row is put at its end."""
    values = _numbers(model, jax.tree.map(lambda x: np.roll(x, -1, 0), rows), np.roll(index, -1))
    return jax.tree.map(lambda x: np.roll(x, 1, 0), values)


def _compare(model: _Model, rows: Batch, index: np.ndarray, others: dict[str, dict[str, tuple[Any, Any]]]) -> None:
    """Refuse a loss or metric whose values for the block differ from others by more than rounding."""
    block = _numbers(model, rows, index)
    eps = _eps(_trace(model, rows, len(index)).jaxpr)
    allowed = eps * (HALF_ROUNDING if eps > np.finfo(np.float32).eps else ROUNDING)
    for way, values in others.items():
        for name in block:
            difference = _difference(block[name], values[name])
            if difference > allowed and difference > _explained(model, rows, index, name, block[name], eps):
                raise Misuse(name, _explain(name, len(index), way, difference))


def _explained(model: _Model, rows: Batch, index: np.ndarray, name: str, block: tuple[Any, Any], eps: float) -> float:
    """The largest relative difference that rounding in the network may make; inf if values are not steady."""
    again = _numbers(model, rows, index)[name]
    if _difference(block, again) > 0:  # noise without a key, of which the computation itself speaks
        return np.inf
    factor = HALF_NOISE if eps > np.finfo(np.float32).eps else NOISE
    return factor * max(_difference(block, _numbers(model, rows, index, sign * eps)[name]) for sign in (1, -1))


def _eps(closed: Any) -> float:
    """The eps of the coarsest floating type in a jaxpr."""
    return max((float(jnp.finfo(name).eps) for name in jaxprs.float_types(closed)), default=0.0)


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
            " If the loss is to couple the examples, return a scalar and set per_example=False"
            if name == "loss"
            else ""
        )
    )
