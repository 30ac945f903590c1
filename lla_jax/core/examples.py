"""Checks, once per model and process, that each example has a loss of its own, and that the loss reads all data.

A loss per example is averaged over blocks of any size, so that its value has a meaning only if the loss of an example
does not depend on the others of its block. Rows of the user's own data show whether that holds:

    losses(block) = losses(its two halves) = losses(block, rotated by one row)

up to rounding, and of the same shapes for the block and for its halves, apart from the leading axis.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import jaxprs
from lla_jax.core.arguments import Misuse, warn_caller
from lla_jax.core.data import Stream, as_arrays, num_examples
from lla_jax.core.losses import Block, as_loss, entries_of, note_call, outputs_of, split_result
from lla_jax.core.remembering import remember, shapes_of
from lla_jax.core.static import static
from lla_jax.core.types import Batch, Loss, PyTree

ROWS = 16  # rows of a block, so that a check costs the losses of 48 examples
FIXED = (32, 64, 128, 256, 512, 1024)  # rows of a block of a model that takes multiples of a number
MOST_FIXED = 4096  # rows of a block of a model that takes only its own number
ROUNDING, HALF_ROUNDING = 100.0, 4.0  # times eps: differences that rounding explains; the latter in 16 bits
NOISE, HALF_NOISE = 50.0, 8.0  # times the change of a loss if its inputs change by eps, likewise
UNSTEADY = 10.0  # times the difference between two evaluations of the same rows, likewise
ASLEEP = 0.1  # in place of parameters that are zero, behind which nothing could be seen
SHAKEN = 0.5  # times the parameters and inputs: a change that wakes losses which are all the same

_CHECKED: dict[Hashable, _Verdict] = {}  # of the models that passed

Metrics = tuple[tuple[str, Any], ...]
Values = dict[str, tuple[Any, Any]]
"""{name: (values, weights or None)} of the loss and the metrics for some rows."""


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
    one row, up to rounding. Parameters that are zero are moved first, since no example could be seen through them. Of a
    plain function and of a loss with ``per_example=False`` only the weight and the data are checked.

    Args:
      loss: a ``Loss``, or a plain ``f(params, batch) -> scalar``.
      params: the parameters.
      data: one data set (rows are taken from all of it), or a stream, whose first batch is read.
      metrics: ``{name: f(outputs, batch) -> (B,)}``, for which the same must hold.
      batch_size: most rows of a block.

    Raises:
      ValueError: losses whose shape grows with the square of the number of examples; losses or weights of an example
        that depend on the other examples; weights that depend on the parameters; a list of batches as data.
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
    key = (*map(shapes_of, (model, _like(data, size))), bool(jax.config.values["jax_enable_x64"]))
    verdict = _CHECKED.get(key) or _CHECKED.get((key, most))
    if verdict is None:
        verdict = _check(model, data, size, most, apart)
        if verdict.holds != "now":
            remember(_CHECKED, key if verdict.holds == "always" else (key, most), lambda: verdict)
    if verdict.warning:
        warn_caller(verdict.warning)


class _Verdict(NamedTuple):
    """What was found of a model that passed.

    Args:
      warning: a warning, or an empty string.
      holds: "always", "for this length" (of a model that takes its own number of rows), or "now": the losses of the
        rows were all the same, which shows little.
    """

    warning: str
    holds: str


@jax.default_matmul_precision("highest")
def _check(model: _Model, data: Batch, size: int, most: int, apart: bool) -> _Verdict:
    """Make all checks."""
    if not apart:
        if not _takes(model, data, *_sizes(model, size)):
            return _Verdict("", "now")
        _check_traced(model, data, size)
        if model.loss.per_example:
            _check_criterion(model, data, min(ROWS, size))
        return _Verdict("" if model.loss.per_example else _find_pairs(model, data), "always")
    lengths = [size, *(n for n in FIXED if size < n <= most)]
    length = next((n for n in lengths if _takes(model, data, *_sizes(model, n))), 0)
    if length:
        _check_traced(model, data, length)
        shown = length == 1 or _check_apart(model, data, length)
        return _Verdict("", ("always" if length == size else "for this length") if shown else "now")
    if 1 < most <= MOST_FIXED and _takes(model, data, most):
        _check_weights(_trace(model, data, most), model)
        return _Verdict("", "for this length" if _check_apart_uncut(model, data, most) else "now")
    return _Verdict("", "now")


def check_shapes(loss: Loss, params: PyTree, data: Batch) -> None:
    """The part of ``check`` for which tracing is enough; all of it if the arguments are not traced themselves."""
    if not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((loss, params, data))):
        check(loss, params, as_arrays(data))
        return
    model = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), _Model(loss, params, (), False))
    size = num_examples(data)
    if _takes(model, data, *_sizes(model, size)):
        _check_traced(model, data, size)


def watch(data: Stream, loss: Loss, params: PyTree, metrics: Metrics = (), **options: Any) -> Stream:
    """The stream, whose batches are checked as they come: the first one, and those of other shapes.

    The parameters are not kept alive; without them batches pass, as a model is checked when it is first used.

    Args:
      data: the stream.
      loss: the loss.
      params: the parameters.
      metrics: ((name, function), ...).
      options: those of ``check``.
    """
    leaves, structure = jax.tree.flatten(params)
    alive = [weakref.ref(x) if isinstance(x, jax.Array | np.ndarray) else lambda x=x: x for x in leaves]

    def look(batch: Batch) -> None:
        present = [ref() for ref in alive]
        if all(x is not None for x in present):
            check(loss, jax.tree.unflatten(structure, present), batch, metrics, **options)

    return _Watched(data.source, look, set())


@dataclass(frozen=True, eq=False)
class _Watched(Stream):
    """A stream that shows its batches to ``look``: of all batches with the same further axes the first one, and the
    first one of at least two examples, since one example cannot depend on others."""

    look: Callable[[Batch], None]
    seen: set[Hashable]

    def __iter__(self) -> Iterator[Batch]:
        for batch in super().__iter__():
            shape = shapes_of(jax.tree.map(lambda x: x[0], batch))
            several = num_examples(batch) > 1
            if (shape, True) not in self.seen and (shape, several) not in self.seen:
                self.look(batch)
                self.seen.add((shape, several))
            yield batch


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class _Model:
    """What is evaluated on rows of data: a pytree whose static part compares by value."""

    loss: Loss
    params: PyTree
    metrics: Metrics = field(metadata={"static": True})
    train: bool = field(metadata={"static": True})


def _like(data: Batch, size: int) -> Batch:
    """The shapes and types of ``size`` rows, for tracing."""
    typed = jax.dtypes.canonicalize_dtype
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape[1:]), typed(x.dtype)), data)


def _take(data: Batch, index: np.ndarray) -> Batch:
    """Rows of the data as numpy arrays; of arrays on other devices than a CPU only these rows are moved."""

    def take(x: Any) -> np.ndarray:
        on_host = not isinstance(x, jax.Array) or [d.platform for d in x.devices()] == ["cpu"]
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
def _values(model: _Model, rows: Batch, index: Any, shake: Any, noise: Any) -> Values:
    """{name: (values, weights or None)} of the loss and the metrics, as the functions return them for some rows.

    Args:
      model: the loss, parameters and metrics.
      rows: (B, ...), examples.
      index: (B,), their numbers in the data set.
      shake: relative changes of the parameters; parameters that are zero are changed always.
      noise: relative changes of parameters and data, as of rounding.
    """
    loss, params, rows = model.loss, _disturb(model.params, shake + noise, ASLEEP), _disturb(rows, noise, 0.0)
    block = Block(rows, jnp.ones(len(index), bool), index)
    outputs, _ = outputs_of(loss, params, loss.state, block, model.train)
    results = {}
    for name, f in (("loss", loss.criterion), *model.metrics):
        with note_call(name, "f(outputs, batch)", block):
            result = f(outputs, rows)
        if loss.per_example or name != "loss":
            results[name] = entries_of(name, result, len(index))
        else:
            values, weight = split_result(name, result)
            results[name] = jnp.asarray(values), None if weight is None else jnp.asarray(weight)
    return results


def _disturb(tree: PyTree, noise: Any, asleep: float) -> PyTree:
    """Floating leaves times 1 + noise u with fixed u between -1 and 1; entries of zero become ``asleep`` u."""

    def disturb(x: Any) -> Any:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        u = jnp.sin(1.0 + jnp.arange(x.size)).reshape(x.shape)
        moved = x * (1 + noise * u)
        return (jnp.where(x != 0, moved, asleep * u) if asleep else moved).astype(x.dtype)

    return jax.tree.map(lambda x: disturb(jnp.asarray(x)), tree)


# --- what tracing shows


def _sizes(model: _Model, size: int) -> tuple[int, ...]:
    """The numbers of rows for which the model is traced: a block, and half a block if there are losses per example."""
    return (size, size // 2 or 2) if model.loss.per_example else (size,)


def _trace(model: _Model, data: Batch, size: int) -> Any:
    """The program that computes the values of ``size`` rows; the same one that runs for as many rows later."""
    return _values.trace(
        model, _like(data, size), jax.ShapeDtypeStruct((size,), np.int32), np.float32(0), np.float32(0)
    )


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
    """What is known of a value in a jaxpr whose axes of length N are axes of examples.

    Args:
      of_params: whether it depends on the parameters.
      of_data: whether it depends on the data.
      column: whether its axis of examples has a last axis of length 1 that the user put in, as by ``labels[:, None]``.
      axis: of a value (.., N, .., N, ..) that repeats one with a single axis of examples: the axis that is no copy.
    """

    of_params: bool = False
    of_data: bool = False
    column: bool = False
    axis: int | None = None


def _find_pairs(model: _Model, data: Batch) -> str:
    """The warning of a loss in which outputs (N, 1) meet labels (N,), so that every pair of examples has a number.

    The result of a batch-coupled loss is a scalar, so that only the jaxpr shows it: an operation whose result has two
    axes of examples, one from values of the parameters and one from data alone. Columns that the user made, and
    products of matrices, are taken as meant.
    """
    size = _odd_length(model, data)
    if not size:
        return ""
    traced = _trace(model, data, size)
    loss, params = (len(jax.tree.leaves(tree)) for tree in (model.loss, model.params))
    found: list[str] = []

    def see(eqn: Any, values: list[Any]) -> list[_Seen]:
        known = [v if isinstance(v, _Seen) else _Seen() for v in values]
        shapes = [tuple(getattr(v.aval, "shape", ())) for v in eqn.invars]
        name, results = eqn.primitive.name, []
        for shape in (v.aval.shape for v in eqn.outvars):
            axis, pairs = None, [i for i, n in enumerate(shape) if n == size]
            if len(pairs) == 2 and name == "broadcast_in_dim":
                axis = _kept_axis(eqn, shapes[0], size, known[0], pairs)
            elif len(pairs) == 2 and name != "dot_general" and _meet(known, shapes, shape, pairs, size):
                found.append(name)
            of = any(v.of_params for v in known), any(v.of_data for v in known)
            results.append(_Seen(*of, _is_column(name, known, shapes, shape, size), axis))
        return results

    inputs = [_Seen(loss <= i < loss + params, i >= loss + params) for i in range(len(traced.jaxpr.jaxpr.invars))]
    jaxprs.interpret(traced.jaxpr, inputs, see)
    if not found:
        return ""
    return (
        f"loss: it combines (N, 1) with (N,), by {found[0]}, which gives (N, N) numbers for N examples. Give outputs "
        "and labels one shape, as by outputs[:, 0] or labels[:, None]; if all pairs are meant, put both axes in: "
        "outputs[:, 0][:, None] and labels[None, :]"
    )


def _odd_length(model: _Model, data: Batch) -> int:
    """A number of rows that the model takes and that is the length of no other axis; 0 if there is none."""
    others = {n for x in jax.tree.leaves((model.params, model.loss.state, _like(data, 1))) for n in np.shape(x)}
    lengths = [next(n for n in range(11, 10**6) if n not in others), num_examples(data)]
    for size in lengths:
        if size in others or size < 2 or not _takes(model, data, size):
            continue
        consts = {n for c in _trace(model, data, size).jaxpr.consts for n in np.shape(c)}
        if size not in consts:
            return size
    return 0


def _kept_axis(eqn: Any, shape: tuple[int, ...], size: int, value: _Seen, pairs: list[int]) -> int | None:
    """The axis of examples of a value that is repeated along another one."""
    if shape.count(size) != 1:
        return value.axis
    return int(eqn.params["broadcast_dimensions"][shape.index(size)])


def _meet(
    known: list[_Seen], shapes: list[tuple[int, ...]], shape: tuple[int, ...], pairs: list[int], size: int
) -> bool:
    """Whether a value of the parameters and one of the data alone, each with its own axis of examples, are combined."""
    along: dict[int, list[_Seen]] = {}
    for value, own in zip(known, shapes, strict=True):
        axes = [i for i in pairs if len(own) == len(shape) and own[i] == size]
        axis = axes[0] if len(axes) == 1 else value.axis if len(axes) == 2 else None
        if axis is not None:
            along.setdefault(axis, []).append(value)
    if len(along) != 2:
        return False
    columns, rows = along[pairs[0]], along[pairs[1]]
    of_params = [any(v.of_params for v in each) for each in (columns, rows)]
    of_data = all(any(v.of_data for v in each) for each in (columns, rows))
    return of_data and of_params[0] != of_params[1] and not any(v.column for v in columns)


def _is_column(name: str, known: list[_Seen], shapes: list[tuple[int, ...]], shape: tuple[int, ...], size: int) -> bool:
    """Whether a value is (N, 1) by the user's will: made of (N,), or of such columns alone."""
    if name in ("broadcast_in_dim", "reshape") and shapes[0] == (size,) and shape == (size, 1):
        return known[0].of_params or known[0].of_data
    having = [v.column for v, own in zip(known, shapes, strict=True) if size in own]
    return bool(having) and all(having)


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
    if not isinstance(data, tuple | list) or len(data) < (3 if isinstance(data, tuple) else 2):
        return
    start = len(jax.tree.leaves((model.loss, model.params)))
    reads = iter(jaxprs.inputs_of(traced.jaxpr, [True] * len(traced.jaxpr.out_avals))[start:])
    read = [sum(next(reads) for _ in jax.tree.leaves(entry)) for entry in data]
    alike = [shapes_of(entry) == shapes_of(data[0]) for entry in data]
    unread = [i for i, (r, a) in enumerate(zip(read, alike, strict=True)) if a and not r]
    if unread and not any(read[1:]) and (isinstance(data, list) or all(alike)):
        raise Misuse(
            "data",
            f"a {type(data).__name__} of {len(data)} entries given, and the loss does not read entry {unread[0]}, "
            "which is like entry 0; a data set must be one batch of arrays, such as (inputs, labels). Wrap a list of "
            "batches: lla.stream(batches)",
        )


# --- what values show


def _check_apart(model: _Model, data: Batch, size: int) -> bool:
    """Compare the losses of a block with those of its halves, and of the block in another order.

    Returns:
      Whether the losses of the block differ from each other; if they are all the same, nothing was shown.
    """
    half = size // 2
    run, run_half = _Run(model, data, size), _Run(model, data, half)
    index = np.linspace(0, num_examples(data) - 1, size).astype(np.int32)
    rows = _take(data, index)
    shake, block = _wake(run, rows, index)
    first, second = (run_half(_cut(rows, *ends), index[slice(*ends)], shake) for ends in ((0, half), (half, size)))
    halves = jax.tree.map(lambda a, b: np.concatenate([a, b]), first, second)
    ways = {"in two halves": halves, "in another order": _rotated(run, rows, index, shake)}
    _compare(run, rows, index, shake, block, ways)
    return _differ(block)


def _check_apart_uncut(model: _Model, data: Batch, size: int) -> bool:
    """As ``_check_apart``, for a model that takes only this number of rows: the first half is put beside itself."""
    run, index, half = _Run(model, data, size), np.arange(size, dtype=np.int32), size // 2
    rows, twice = _take(data, index), index % half
    shake, block = _wake(run, rows, index)
    alone = jax.tree.map(lambda x: x[:half], run(jax.tree.map(lambda x: x[twice], rows), index[twice], shake))
    ways = {"beside others": alone, "in another order": _rotated(run, rows, index, shake)}
    _compare(run, rows, index, shake, block, ways)
    return _differ(block)


def _wake(run: _Run, rows: Batch, index: np.ndarray) -> tuple[float, Values]:
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


def _check_criterion(model: _Model, data: Batch, size: int) -> None:
    """Compare the losses of blocks whose outputs are given: the network may couple its examples, the criterion not."""
    index = np.arange(size, dtype=np.int32)
    rows, loss = _take(data, index), model.loss
    outputs = jax.tree.map(np.asarray, _outputs(model, rows, index))
    if size < 2 or any(x.shape[:1] != (size,) for x in jax.tree.leaves(outputs)):
        return
    of_given = Loss(lambda p, state, both, train: (both[0], state), lambda o, both: loss.criterion(o, both[1]))
    metrics = tuple((name, lambda o, both, f=f: f(o, both[1])) for name, f in model.metrics)
    given, both = _Model(of_given, model.params, metrics, False), (outputs, rows)
    if _takes(given, both, *_sizes(given, size // 2 * 2)):
        _check_apart(given, both, size // 2 * 2)


@jax.jit
def _outputs(model: _Model, rows: Batch, index: Any) -> Any:
    block = Block(rows, jnp.ones(len(index), bool), index)
    return outputs_of(model.loss, model.params, model.loss.state, block, model.train)[0]


class _Run:
    """The compiled values of a number of rows, which are run a few times: compiling fast matters more than running."""

    def __init__(self, model: _Model, data: Batch, size: int):
        traced = _trace(model, data, size)
        fast = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
        self.model, self.compiled = model, traced.lower().compile(fast)
        self.eps = max((float(jnp.finfo(name).eps) for name in jaxprs.float_types(traced.jaxpr)), default=0.0)

    def __call__(self, rows: Batch, index: np.ndarray, shake: float, noise: float = 0.0) -> Values:
        """The values as numpy arrays: two programs with collectives that run at once can deadlock on a CPU."""
        typed = jax.tree.map(lambda x: x.astype(jax.dtypes.canonicalize_dtype(x.dtype)), rows)
        return jax.tree.map(np.asarray, self.compiled(self.model, typed, index, np.float32(shake), np.float32(noise)))


def _cut(rows: Batch, start: int, end: int) -> Batch:
    return jax.tree.map(lambda x: x[start:end], rows)


def _rotated(run: _Run, rows: Batch, index: np.ndarray, shake: float) -> Values:
    """The values of the rows, computed from the block whose first row is put at its end."""
    values = run(jax.tree.map(lambda x: np.roll(x, -1, 0), rows), np.roll(index, -1), shake)
    return jax.tree.map(lambda x: np.roll(x, 1, 0), values)


def _compare(run: _Run, rows: Batch, index: np.ndarray, shake: float, block: Values, others: dict[str, Values]) -> None:
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
            " If the loss is to couple the examples, return a scalar and set per_example=False"
            if name == "loss"
            else ""
        )
    )
