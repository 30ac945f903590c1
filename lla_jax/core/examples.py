"""Checks, once per model and process, that each example has a loss of its own, and that the loss reads all data.

A loss per example is averaged over blocks of any size, so that its value has a meaning only if the loss of an example
does not depend on the others of its block: the user's own data show whether that holds (``apart``, ``pairs``). The
shapes of losses are the same for a block and for its halves, apart from the leading axis.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np

from lla_jax.core import constants, jaxprs
from lla_jax.core import tree as _tree
from lla_jax.core.apart import NothingCounts, check_apart, check_apart_uncut, check_criterion
from lla_jax.core.arguments import Misuse, check_functions, warn_caller
from lla_jax.core.called import show_shapes
from lla_jax.core.data import Stream, as_arrays, check_batch_size, check_uncut, first_batch, num_examples
from lla_jax.core.labels import check_labels
from lla_jax.core.losses import as_loss, is_plain
from lla_jax.core.pairs import find_pairs, odd_length
from lla_jax.core.remembering import remember, shapes_of
from lla_jax.core.rows import ROWS, Metrics, Model, like, sizes, takes, trace
from lla_jax.core.signatures import explained
from lla_jax.core.static import static
from lla_jax.core.types import Batch, Loss, PyTree
from lla_jax.core.wholes import Whole

FIXED = (32, 64, 128, 256, 512, 1024)  # rows of a block of a model that takes multiples of a number
MOST_FIXED = 4096  # rows of a block of a model that takes only its own number

_CHECKED: dict[Hashable, _Verdict] = {}  # of the models that passed


@explained
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
      data: one data set (rows are taken from all of it), or a stream, whose first batch with a weight is read.
      metrics: ``{name: f(outputs, batch) -> (B,)}``, for which the same must hold.
      batch_size: most rows of a block.

    Raises:
      ValueError: losses whose shape grows with the square of the number of examples; losses or weights of an example
        that depend on the other examples; weights that depend on the parameters; losses that do not, or whose constants
        change from trace to trace; a list of batches as data; a function that fails, with its error as the cause.
    """
    pairs = tuple((name, static(f)) for name, f in check_functions("metrics", metrics).items())
    batch_size = batch_size if batch_size is None else check_batch_size(batch_size)
    first = first_batch(data)
    check_uncut(first, batch_size)
    check_first(as_loss(loss), params, data, first, pairs, most=batch_size)


def check_first(
    loss: Loss, params: PyTree, data: Batch | Stream, first: Batch, metrics: Metrics = (), **options: Any
) -> None:
    """Make the check of a data set, or of the first batch of a stream in which some example counts.

    Args:
      loss: the loss.
      params: the parameters.
      data: a data set or a stream.
      first: the data set as arrays, or the first batch of the stream.
      metrics: ((name, function), ...).
      options: those of ``check``.
    """
    try:
        check(loss, params, first, metrics, **options)
        return
    except NothingCounts as error:
        nothing = error
    for batch in data if isinstance(data, Stream) else ():
        with contextlib.suppress(NothingCounts):
            check(loss, params, batch, metrics, **options)
            return
    raise nothing


def check(
    loss: Loss,
    params: PyTree,
    data: Batch,
    metrics: Metrics = (),
    *,
    train: bool = False,
    most: int | None = None,
    slopes: bool = False,
) -> None:
    """The check of ``check_examples``, for arguments that were checked; a model that passed it is not checked again.

    Args:
      loss: the loss.
      params: the parameters.
      data: arrays with leading axis N: a data set, or the first batch of a stream.
      metrics: ((name, function), ...).
      train: whether normalization layers use the statistics of a batch; then the criterion alone is compared.
      most: most rows of a block; if batches must not be cut, the rows of a batch.
      slopes: whether the loss is to be differentiated.
    """
    count = num_examples(data)
    most, apart = min(count, most or count), loss.per_example and not train
    size = max(1, min(ROWS, count, max(2, most)) // 2 * 2) if apart else most
    model = Model(loss, params, metrics, train)
    key = shapes_of((model, like(data, size)))
    verdict = _CHECKED.get(key) or _CHECKED.get((key, most))
    if verdict is None:
        verdict = _check(model, data, size, most, apart)
        if verdict.holds != "now":
            remember(_CHECKED, key if verdict.holds == "always" else (key, most), lambda: verdict)
    if verdict.rows and not is_plain(loss):
        check_labels(model, data, verdict.rows, (key, verdict.rows))
    if slopes and not verdict.moves:
        raise constants.refuse_flat()
    if verdict.warning:
        warn_caller(verdict.warning)


class _Verdict(NamedTuple):
    """What was found of a model that passed.

    Args:
      warning: a warning, or an empty string.
      holds: "always", "for this length" (of a model that takes its own number of rows), or "now": the losses of the
        rows were all the same, which shows little.
      moves: whether the loss may have a slope in the parameters.
      rows: a number of rows that the model takes; 0 if none was found.
    """

    warning: str
    holds: str
    moves: bool = True
    rows: int = 0


@jax.default_matmul_precision("highest")
def _check(model: Model, data: Batch, size: int, most: int, apart: bool) -> _Verdict:
    """Make all checks."""
    if isinstance(data, Whole):  # which has no other examples to depend on
        return _Verdict("", "always", _check_constants(model, data, 1, 1))
    if not apart:
        trace(model, data, size)  # raises the error of a model that fails
        if not takes(model, data, *sizes(model, size)):
            return _Verdict("", "now")
        moves = _check_traced(model, data, size)
        if model.loss.per_example:
            check_criterion(model, data, min(ROWS, size))
        return _Verdict("" if model.loss.per_example else find_pairs(model, data), "always", moves, size)
    lengths = [size, *(n for n in FIXED if size < n <= most)]
    length = next((n for n in lengths if takes(model, data, *sizes(model, n))), 0)
    if length:
        moves = _check_traced(model, data, length)
        shown = length == 1 or check_apart(model, data, length)
        if not shown and most > length:  # such as two of three rows
            shown = check_apart_uncut(model, data, min(most, FIXED[0]))
        return _Verdict("", ("always" if length == size else "for this length") if shown else "now", moves, length)
    if 1 < most <= MOST_FIXED and takes(model, data, most):
        moves = _check_constants(model, data, most, most)
        return _Verdict("", "for this length" if check_apart_uncut(model, data, most) else "now", moves, most)
    if most <= MOST_FIXED:
        trace(model, data, most)  # raises the error of a model that fails
    return _Verdict("", "now")


def check_shapes(loss: Loss, params: PyTree, data: Batch) -> None:
    """The part of ``check`` for which tracing is enough; all of it if the arguments are not traced themselves."""
    if not _tree.is_traced((loss, params, data)):
        check(loss, params, as_arrays(data))
        return
    model = jax.tree.map(_tree.struct_of, Model(loss, params, (), False))
    if isinstance(data, Whole):
        _check(model, data, 1, 1, False)
        return
    size = num_examples(data)
    if takes(model, data, *sizes(model, size)):
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

    return _Watched(data.source, look, set(), passes=data.passes)


@dataclass(frozen=True, eq=False)
class _Watched(Stream):
    """A stream that shows its batches to ``look``: of all batches with the same further axes the first one, and the
    first one of at least two examples, since one example cannot depend on others."""

    look: Callable[[Batch], None]
    seen: set[Hashable]

    def __iter__(self) -> Iterator[Batch]:
        first: Batch = None
        for number, batch in enumerate(super().__iter__()):
            first = batch if number == 0 else first
            shape = shapes_of(batch if isinstance(batch, Whole) else jax.tree.map(lambda x: x[0], batch))
            several = num_examples(batch) > 1
            if (shape, True) not in self.seen and (shape, several) not in self.seen:
                try:
                    self.look(batch)
                    self.seen.add((shape, several))
                except NothingCounts:  # the next batch is looked at
                    pass
                except Misuse as error:
                    if number == 0:
                        raise
                    shown = f"batch {number} of the stream is {show_shapes(batch)}, and batch 0 {show_shapes(first)}"
                    raise type(error)("data", f"{shown}; for it {error.argument}: {error.text}") from error
            yield batch


# --- what tracing shows


def _check_traced(model: Model, data: Batch, size: int) -> bool:
    """Check the shapes of the losses, their constants, and that all data are read; whether the loss has a slope."""
    other = sizes(model, size)[-1] if model.loss.per_example else odd_length(model, data) or size
    traced = trace(model, data, size)
    if model.loss.per_example:
        _check_shapes(traced.out_info, size, trace(model, data, other).out_info, other)
    _check_reads(traced, model, data)
    return _check_constants(model, data, size, other)


def _check_constants(model: Model, data: Batch, size: int, other: int) -> bool:
    """Check that weights do not depend on the parameters, and losses do; whether the loss may have a slope."""
    traced = trace(model, data, size)
    constants.check_penalty_repeats(model)
    constants.check_fixed_weights(traced, model)
    constants.check_follows(traced, model)
    constants.check_repeats(model, data, size, other)
    return constants.moves(traced, model)


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


def _check_reads(traced: Any, model: Model, data: Batch) -> None:
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
