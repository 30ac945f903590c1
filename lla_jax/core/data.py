"""Checks data sets and streams, and cuts them into batches.

An array pytree (tuple, dict, ...) is ONE data set with a leading axis N. A source that yields batches has to be wrapped
by ``stream``, and data without a common leading axis, which are one example, by ``whole``.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse, check_integer, misuse
from lla_jax.core.called import show_shapes
from lla_jax.core.copies import own
from lla_jax.core.interrupts import GRACE_S, prompt_interrupts
from lla_jax.core.passes import Passes
from lla_jax.core.signatures import explained
from lla_jax.core.text import name_of
from lla_jax.core.types import Batch, PyTree
from lla_jax.core.wholes import Whole, pack


@explained
@dataclass(frozen=True)
class Stream:
    """A source of batches that can be read again from the start; made by ``stream``, and iterated as numpy batches.

    A batch is copied before the next one is read, so the source may fill the same arrays again.
    """

    source: Callable[[], Iterable[Batch]] | Iterable[Batch]
    passes: Passes = field(default_factory=Passes, repr=False, compare=False, kw_only=True)

    def __repr__(self) -> str:
        num, source = self.num_batches, self.source
        name = name_of(source) if hasattr(source, "__qualname__") else type(source).__name__
        return f"Stream({name}{'' if num is None else f' of {num} batches'})"

    def __iter__(self) -> Iterator[Batch]:
        return self.passes.watch(self._batches(), self._batches)

    def _batches(self) -> Iterator[Batch]:
        """The batches of one pass."""
        first: Batch = None
        for number, each in enumerate(_read(self.source)):
            batch = own(_batch_of(each, number))
            first = batch if number == 0 else first
            if isinstance(batch, Whole) != isinstance(first, Whole):
                raise Misuse(
                    "data", "the stream yields batches of rows and lla.whole(...); it must mark all of them or none"
                )
            if not isinstance(batch, Whole) and not _alike(batch, first):
                raise Misuse(
                    "data",
                    f"batch {number} of the stream is {show_shapes(batch)}, and batch 0 {show_shapes(first)}; all "
                    "batches must have one structure, such as (inputs, labels)",
                )
            yield batch
        if first is None:
            raise Misuse(
                "data",
                "the stream yielded no batch; pass a loader or factory that yields at least one, each time "
                "that it is read",
            )

    @property
    def num_batches(self) -> int | None:
        """Number of batches, or None if the source does not know it."""
        try:
            return len(self.source)  # type: ignore[arg-type]
        except TypeError:  # some loaders have a __len__ that raises
            return None


@explained
def stream(loader_or_factory: Callable[[], Iterable[Batch]] | Iterable[Batch]) -> Stream:
    """Wrap a loader (or a function that returns one) as streamed data, held in memory one batch at a time.

    Args:
      loader_or_factory: an iterable that starts anew each time it is iterated (a torch ``DataLoader``, a list of
        batches), or a callable without arguments that returns an iterable. Batches are pytrees of arrays with a common
        leading axis; their sizes may differ. Each may also be one example, ``whole(...)``, such as a graph.

    Returns:
      A ``Stream``, accepted wherever data are.

    Raises:
      ValueError: for a bare iterator or generator, which could be read only once; for what is no source of batches,
        such as an array, a dict or a data set of single examples. While the stream is read: a factory that fails or
        returns the same iterator again, and batches of another structure than the first one.
    """
    source = loader_or_factory
    if isinstance(source, Stream):
        return source
    if isinstance(source, Iterator):
        raise Misuse(
            "stream",
            f"the one-shot iterator {type(source).__name__} given, but data are read more than once; pass "
            "the loader itself or a factory, e.g. lla.stream(lambda: make_batches()); if iter() starts it anew, "
            "lla.stream(lambda: loader)",
        )
    if isinstance(source, type) or (callable(source) and not isinstance(source, Iterable)):
        return Stream(_Factory(source))
    _check_source(source)
    return Stream(source)


def _check_source(source: Any) -> None:
    """Refuse what yields no batches: an array, a dict, a string, a data set of single examples, or a whole one."""
    if _yields_examples(source):
        kind = type(source).__name__
        text = "which yields single examples; wrap it in a loader of batches, such as torch.utils.data.DataLoader("
        raise Misuse("stream", f"a {kind} given, {text}dataset, batch_size=256)")
    if isinstance(source, str | bytes | Mapping) or hasattr(source, "__array__"):
        raise misuse(
            "stream", source, "a loader, a list of batches or a factory; data in memory are passed without stream"
        )
    if not isinstance(source, Iterable) and not hasattr(type(source), "__getitem__"):  # with which Python iterates too
        raise misuse("stream", source, "a loader or a factory of one, such as lambda: make_batches()")
    arrays = type(source) is tuple and all(hasattr(x, "shape") and len(x.shape) for x in source)
    if arrays and len({(tuple(x.shape[1:]), str(x.dtype)) for x in source}) > 1:
        rule = "a source of batches: pass this tuple as the data, without stream, or lla.stream([data]) for one batch"
        raise misuse("stream", source, rule)


def _yields_examples(source: Any) -> bool:
    """Whether a source is a data set in torch's sense, which gives single examples by their numbers.

    Those that are iterated may yield batches.
    """
    kinds = [kind for kind in type(source).__mro__ if kind.__module__.startswith("torch.utils.data")]
    names = {kind.__name__ for kind in kinds}
    return "Dataset" in names and "IterableDataset" not in names


class _Factory:
    """A function that returns the batches anew each time; it compares by the function.

    It keeps the last iterator of Python's own, weakly where it can: one that is returned again has been read already.
    An iterator of another class may start anew when it is iterated.
    """

    def __init__(self, f: Callable[[], Iterable[Batch]]):
        self.f = f
        self.__qualname__ = name_of(f)
        self.last: Any = None  # a function that returns it, as a weak reference does

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"last": None}

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Factory) and self.f == other.f

    def __hash__(self) -> int:
        return hash(self.f)

    def __call__(self) -> Iterable[Batch]:
        try:
            batches = self.f()
        except Misuse:
            raise
        except Exception as error:
            raise Misuse(
                "stream",
                f"the factory failed with {type(error).__name__}: {error}; it is called without arguments, and must "
                "return the batches anew each time, such as lambda: make_batches(data)",
            ) from error
        if type(batches).__module__ in ("builtins", "itertools") and isinstance(batches, Iterator):
            if self.last is not None and batches is self.last():
                raise Misuse(
                    "stream",
                    f"the factory returned the same {type(batches).__name__} a second time, which has been read "
                    "already; it must make a new one in each call, such as lambda: make_batches() in place of "
                    "lambda: batches",
                )
            try:
                self.last = weakref.ref(batches)
            except TypeError:  # those of lists, zip and map hold nothing that has to be freed
                self.last = lambda: batches
        else:
            _check_source(batches)
        return batches


def _read(source: Any) -> Iterator[Batch]:
    """The batches of a source; an error of its own becomes one that names the batch, with the error as its cause."""
    with prompt_interrupts(GRACE_S):
        batches = iter(source() if isinstance(source, _Factory) else source)
    number = 0
    while True:
        try:
            with prompt_interrupts(GRACE_S):
                batch = next(batches)
        except StopIteration:
            return
        except (Misuse, MemoryError):
            raise
        except Exception as error:
            raise Misuse(
                "data",
                f"the stream failed at its batch {number} with {type(error).__name__}: {error}; the loader must yield "
                "all of its batches, each time that it is read",
            ) from error
        yield batch
        number += 1


def _alike(one: Batch, other: Batch) -> bool:
    structure: Any = jax.tree.structure(one)
    return bool(structure == jax.tree.structure(other))


def _batch_of(each: Any, number: int) -> Batch:
    """A batch of a stream as numpy arrays, after a check; errors name its number."""
    if each is None:
        raise Misuse("data", f"batch {number} of the stream is None; every batch must be arrays, (inputs, labels)")
    try:
        return to_numpy(each)
    except Misuse as error:
        raise Misuse("data", f"{error.text} (batch {number} of the stream)") from error


@explained
def whole(data: PyTree = None) -> Whole:
    """Mark data as one example that must stay whole: a graph, sets of points, a list of boxes, or no data at all.

    Nothing is cut, padded, put in another order or copied, and the loss gets the data as they were given here:

        L(theta) = sum_j w_j l_j / sum_j w_j  +  penalty(theta)

    where j counts the parts for which the loss has an entry, such as nodes: a plain ``f(params, data)`` returns the
    mean itself, and the criterion of a ``Loss`` a scalar, an array of entries l, or (l, w) of one shape. Metrics return
    the same. In a stream, ``stream(lambda: (lla.whole(g) for g in graphs))``, i runs over the wholes, which may have
    any sizes: (sum_i sum_j w_ij l_ij) / (sum_i sum_j w_ij). There a scalar has the weight 1, and so all wholes count
    alike; entries count each.

    Args:
      data: nested arrays of any shapes (in tuples, dicts, classes that jax knows, such as sparse ``BCOO``). Leaves that
        are Python numbers or strings stay what they are, so that they may be sizes: a program is compiled for each
        value. None: there are no data, and the loss is called as ``f(params)``, or as ``f(params, None)`` if it
        takes two arguments; ``data=None`` is short for ``data=lla.whole()``.

    Returns:
      The marked data, accepted wherever data are: one example, so that there is no standard error, and no
      ``batch_size``. A pytree of the arrays.

    Raises:
      ValueError: a stream, or a leaf that is neither an array nor a number.

    Example:
      >>> data = lla.whole({"x": features, "edges": edge_index, "y": labels, "train": mask})
      >>> plane = lla.evaluate(loss, params, data, axes, lla.grid(points=25, dims=2))
    """
    if isinstance(data, Whole):
        return data
    if isinstance(data, Stream):
        raise Misuse("data", "a stream given; mark its batches: lla.stream(lambda: (lla.whole(each) for each in ...))")
    return pack(data if data is None else as_arrays(data))


def check_uncut(data: Any, batch_size: int | None) -> None:
    """Raise a ValueError if a ``batch_size`` is given for data that stay whole."""
    if isinstance(data, Whole) and batch_size is not None:
        raise Misuse(
            "batch_size", f"{batch_size!r} given, but lla.whole(data) is one example, which is never cut; leave it out"
        )


@explained
def to_numpy(batch: Batch) -> Batch:
    """Convert the leaves of a batch (jax arrays, torch tensors) to numpy, and check them as ``num_examples`` does."""

    def fetch(leaf: Any) -> Any:
        is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
        return np.asarray(leaf) if isinstance(leaf, jax.Array) and not is_key else leaf

    batch = jax.tree.map(fetch, as_arrays(batch))
    num_examples(batch)
    return batch


def first_batch(data: Batch | Stream) -> Batch:
    """The first batch of a stream; of data in memory all of them, as arrays."""
    return next(iter(data)) if isinstance(data, Stream) else as_arrays(data)


@explained
def as_arrays(data: Batch) -> Batch:
    """Convert torch tensors and other foreign arrays in the data to numpy, and mappings of other classes to dicts.

    jax arrays and numbers stay as they are. None, for no data, becomes ``whole()``.
    """
    if data is None:
        return whole()

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, Mapping):
            return as_arrays(dict(leaf))
        if type(leaf).__module__.startswith("scipy.sparse"):
            raise Misuse("data", f"a {type(leaf).__name__} of shape {leaf.shape} given; jax needs its .toarray()")
        if isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer) and leaf.is_deleted():
            raise Misuse(
                "data",
                f"an array of shape {leaf.shape} was deleted, as jax does with arguments that are donated "
                "(donate_argnums); pass a copy that is kept, such as np.asarray(x) made before",
            )
        return _on_host(leaf) if hasattr(leaf, "__array__") and not isinstance(leaf, jax.Array) else leaf

    return jax.tree.map(convert, data)


def _on_host(leaf: Any) -> np.ndarray:
    """The leaf as a numpy array, after a check that neither a mask nor high bits of integers are lost on the way.

    Raises:
      ValueError: a masked array with masked entries; objects, strings or dates; a tensor that is sparse, masked, nested
        or quantized; integers beyond 32 bits while jax has no 64-bit types.
    """
    if isinstance(leaf, np.ma.MaskedArray) and np.ma.getmaskarray(leaf).any():
        raise Misuse(
            "data",
            f"a masked array of shape {leaf.shape} given, whose mask would be lost; it must be an array without masked "
            "entries. Fill it (x.filled(0)), and pass the mask as a further array of the data, so that the criterion "
            "can return (losses, weights)",
        )
    array = as_numpy(leaf)
    if array.dtype == object or array.dtype.kind in "USMm":
        raise Misuse(
            "data",
            f"an array of shape {array.shape} and dtype {array.dtype} given; it must hold numbers of one type: convert "
            "it (x.astype(np.float32)), pad rows of different lengths, and number strings (np.unique(..., "
            "return_inverse=True)[1])",
        )
    if array.dtype in (np.int64, np.uint64) and array.size and not jax.config.values["jax_enable_x64"]:
        kept = np.iinfo(np.int32 if array.dtype == np.int64 else np.uint32)
        low, high = array.min(), array.max()
        if low < kept.min or high > kept.max:
            raise Misuse(
                "data",
                f"integers from {low} to {high} given, of which jax keeps 32 bits in its default mode; they must be "
                f"from {kept.min} to {kept.max}: reduce them (ids % size), or switch "
                "jax_enable_x64 on (JAX_ENABLE_X64=1)",
            )
    return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))  # jax takes no other


def as_numpy(leaf: Any) -> np.ndarray:
    """The leaf as a numpy array; torch tensors are detached, and those of bfloat16 become float32.

    Raises:
      ValueError: an array that numpy cannot hold, such as a sparse, masked, nested or quantized tensor.
    """
    if hasattr(leaf, "detach") and hasattr(leaf, "resolve_conj"):
        if leaf.device.type == "meta":
            text = "is on the device meta, and has no numbers; it must be a tensor with data, on a CPU or GPU"
            raise Misuse("data", f"a tensor of shape {tuple(leaf.shape)} {text}: load it first")
        if _is_dense(leaf):
            leaf = leaf.detach().cpu().resolve_conj().resolve_neg()
            leaf = leaf.float() if str(leaf.dtype) == "torch.bfloat16" else leaf
        else:
            raise Misuse(
                "data",
                f"a {type(leaf).__name__} of dtype {leaf.dtype} given that is sparse, masked, nested or quantized; it "
                "must be a plain tensor: use x.to_dense(), x.dequantize(), or pad it and pass the mask as a further "
                "array",
            )
    try:
        return np.asarray(leaf)
    except Exception as error:
        text = f"a {type(leaf).__name__} given, of which numpy makes no array ({type(error).__name__}: {error})"
        raise Misuse("data", f"{text}; pass numpy or jax arrays of numbers") from error


def _is_dense(tensor: Any) -> bool:
    plain = type(tensor).__name__ in ("Tensor", "Parameter")
    return plain and str(tensor.layout) == "torch.strided" and not (tensor.is_quantized or tensor.is_nested)


@explained
def num_examples(data: Batch) -> int:
    """The length N of the leading axis that all leaves share; 1 for a ``Whole``.

    Raises:
      ValueError: there are no leaves, a leaf is a scalar or an object, lengths differ, or N = 0.
    """
    if isinstance(data, Whole):
        return 1
    paths, leaves = _tree.paths(data), jax.tree.leaves(data)
    if not leaves:
        raise Misuse(
            "data",
            "holds no array; pass e.g. (inputs, labels) with a common leading axis, lla.stream(loader), or None for a "
            "loss without data",
        )
    for path, leaf in zip(paths, leaves, strict=True):
        is_array = isinstance(getattr(leaf, "shape", None), tuple)
        is_object = is_array and leaf.dtype == object
        if not is_array or is_object:
            what = "an array of objects, not of numbers" if is_object else f"a {type(leaf).__name__}, not an array"
            raise Misuse("data", f"leaf {path!r} is {what}; {_remedy_for(leaf, data)}")
        if len(leaf.shape) == 0:
            raise Misuse(
                "data",
                f"leaf {path!r} is a scalar, without the leading axis N of the examples; pass one for each of them, or "
                "let the loss hold it; if these are one example that must stay whole, pass lla.whole(data); if they "
                "are a list of single examples, stack them: jax.tree.map(lambda *x: np.stack(x), *data)",
            )
    lengths = {path: int(leaf.shape[0]) for path, leaf in zip(paths, leaves, strict=True)}
    if len(set(lengths.values())) > 1:
        raise Misuse(
            "data",
            f"leaves of different length {lengths}; pass leaves with one entry for each of N examples, or wrap a list "
            "of batches, lla.stream(batches); if these are one example that must stay whole, such as a graph or "
            "sets of points, pass lla.whole(data)",
        )
    n = next(iter(lengths.values()))
    if n == 0:
        raise Misuse("data", "empty, the leading axis has length 0; pass at least one example")
    return n


def _remedy_for(leaf: Any, data: Any) -> str:
    """What to pass in place of data with a leaf that is no array."""
    if isinstance(leaf, bool | int | float | complex) and leaf is not data:
        return (
            "lists of numbers are no arrays: pass np.asarray of them, (np.asarray(inputs), np.asarray(labels)); leave "
            "out a number that is the same for all examples, or repeat it, np.full(N, x); "
            "data that are one example, such as a graph with its number of nodes, are passed as lla.whole(data)"
        )
    if isinstance(leaf, str) and leaf is not data:
        return "leave names and texts out of the data, or number them: np.unique(texts, return_inverse=True)[1]"
    if _yields_examples(leaf):
        return (
            "a data set of single examples is read by a loader: lla.stream(torch.utils.data.DataLoader(dataset, "
            "batch_size=256))"
        )
    if isinstance(leaf, Iterator):
        return "an iterator is read once: pass a factory of it, lla.stream(lambda: make_batches())"
    return (
        "pass arrays with leading axis N, wrap a loader as lla.stream(loader), or data that are one example, such as a "
        "graph with its number of nodes, as lla.whole(data)"
    )


def pad_rows(batch: Batch, rows: int) -> Batch:
    """Pad a numpy batch to ``rows`` rows with copies of its first example (real values, so that no NaN arises)."""
    padding = rows - num_examples(batch)
    return jax.tree.map(lambda x: np.concatenate([x, np.repeat(x[:1], padding, 0)]) if padding else x, batch)


def host_batches(data: Batch | Stream, batch_size: int | None) -> Iterator[tuple[Batch, int]]:
    """Yield (batch, index of its first example) in order.

    A data set is cut into batches of ``batch_size`` (None: one batch), of which the last may be smaller; a stream has
    its own batches.
    """
    if isinstance(data, Stream):
        offset = 0
        for batch in data:
            yield batch, offset
            offset += num_examples(batch)
        return
    for start, size in cuts(num_examples(data), None if batch_size is None else check_batch_size(batch_size)):
        yield rows_of(data, start, size), start


def rows_of(batch: Batch, start: int, size: int) -> Batch:
    """Rows [start, start + size) of every leaf; all of a ``Whole``."""
    return batch if isinstance(batch, Whole) else jax.tree.map(lambda x: x[start : start + size], batch)


def cuts(count: int, batch_size: int | None) -> list[tuple[int, int]]:
    """(start, size) of every batch that ``count`` rows are cut into; the last may be smaller. None makes one batch."""
    size = min(count, batch_size or count)
    return [(start, min(size, count - start)) for start in range(0, count, size)]


def check_batch_size(batch_size: int) -> int:
    """Return ``batch_size`` as an int; raise a ValueError unless it is a positive integer."""
    return check_integer("batch_size", batch_size, remedy="or None for all examples at once")


def check_extra(extra: Mapping[str, Any] | None) -> dict[str, Any]:
    """The further data sets by name, {} for None; a ValueError unless every name is a non-empty string."""
    if extra is not None and not isinstance(extra, Mapping):
        raise misuse("extra_data", extra, "a dict of data sets by name, such as {'test': (x, y)}")
    extra = dict(extra or {})
    for name in extra:
        if not isinstance(name, str) or not name:
            raise Misuse("extra_data", f"name {name!r} given; it must be a non-empty string, such as 'test'")
    return extra
