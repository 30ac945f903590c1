"""Makes streams of lla_jax from torch's loaders, and a ``Problem`` from a trained network, its loss and its data."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
import torch
from torch import nn
from torch.utils import data as torch_data

import lla_jax
from lla_jax.models.adapters import check_flag, explained, first_line, misuse, prompt_interrupts, warn_caller
from lla_torch.conversion.function import arguments
from lla_torch.losses.criteria import is_from_torch
from lla_torch.losses.functionals import as_criterion
from lla_torch.losses.losses import default_labels
from lla_torch.losses.selection import Choice
from lla_torch.weights.arguments import check_module
from lla_torch.weights.names import to_array

_SHUFFLING = (torch_data.RandomSampler, torch_data.SubsetRandomSampler, torch_data.WeightedRandomSampler)
_STREAM, _WHOLE = lla_jax.data.Stream, lla_jax.data.Whole


@dataclass(frozen=True)
class Batches:
    """An iterable, with a length, over the batches of a loader (or of a function that returns one) as numpy arrays."""

    source: Any

    def __iter__(self) -> Iterator[Any]:
        return (arrays(batch) for batch in _open(self.source))

    def __len__(self) -> int:
        return len(self.source)


@explained
def stream(loader: Iterable[Any] | Callable[[], Iterable[Any]], *, shuffle_ok: bool = False) -> lla_jax.data.Stream:
    """Turn a torch ``DataLoader``, or anything that yields batches of tensors, into a stream of batches for lla_jax.

    Args:
      loader: an iterable that starts anew each time, or a function that returns one. Its batches are tensors nested in
        tuples, lists and dicts; lists become tuples, and tensors on the CPU share their memory with the arrays.
      shuffle_ok: whether the examples may come in another order, or randomly augmented, each time. Every result is a
        mean over the data set, but then agrees only to rounding (or to the augmentation) from call to call.

    Returns:
      ``lla_jax.stream`` of numpy batches; a stream is returned as it is. It warns where ``drop_last`` leaves out
      examples.

    Raises:
      ValueError: a bare iterator; a loader that shuffles, or whose first batch is not the same twice, unless
        ``shuffle_ok``; a batch with other values than tensors, arrays and numbers.
    """
    _check_source(loader)
    lla_jax.stream(loader)  # refuses a source that can be read only once
    check_flag("shuffle_ok", shuffle_ok)
    if not shuffle_ok:
        _check_order(loader)
    _warn_of_drop_last(loader)
    return loader if isinstance(loader, _STREAM) else lla_jax.stream(Batches(loader))


def arrays(batch: Any) -> Any:
    """Convert tensors of a nested batch to numpy arrays, which share memory where possible; lists become tuples."""
    return _convert_batch(batch, "batch")


@prompt_interrupts()
@explained
def problem(
    module: nn.Module,
    criterion: Callable[..., Any] | nn.Module,
    loader: Any,
    optimizer: Any = None,
    *,
    metrics: Mapping[str, Callable[[Any, Any], Any]] | None = None,
    extra_data: Mapping[str, Any] | None = None,
    checkpoints: Sequence[str | os.PathLike[str] | Mapping[str, Any]] = (),
    example_inputs: Any = None,
    train: bool = False,
    key: Any = None,
    inputs: Callable[[Any], Any] | None = None,
    labels: Callable[[Any], Any] | None = None,
    outputs: Choice | None = None,
    optimizer_params: Sequence[str] | None = None,
    shuffle_ok: bool = False,
) -> lla_jax.Problem:
    """Turn a trained torch network with its loss and data into a ``lla_jax.Problem``, which a factory returns.

    Args:
      module: the trained module.
      criterion: a torch loss module such as ``nn.CrossEntropyLoss()``, or a JAX function; see ``Net.loss``.
      loader: a tuple or dict of tensors or arrays, or a ``TensorDataset``, which is kept in memory; a ``DataLoader`` or
        any iterable of batches, which is streamed, see ``stream``; or ``lla_jax.whole(...)`` of one example, such as a
        graph. A stream may yield these too.
      optimizer: Adam, AdamW, NAdam or RAdam, or its ``state_dict()``, for Adam axes; see ``optax_state``.
      metrics: ``{name: f(outputs, batch) -> (B,)}`` of JAX functions.
      extra_data: ``{name: data}`` such as {"test": test_loader}, of the same kinds as ``loader``.
      checkpoints: files or state_dicts of the same module at other times, or a single one; see ``load_checkpoint``.
      example_inputs: the module's inputs for the conversion; None: those of two examples of the data.
      train: convert train mode as well, for batch statistics of the batch.
      key: a ``jax.random`` key for dropout or sampling; see ``Net.loss``.
      inputs: function of a batch that gives the module's inputs; None: the batch's first entry.
      labels: function of a batch that gives the labels; None: its second entry.
      outputs: what the criterion gets of the module's outputs; see ``Net.loss``.
      optimizer_params: torch names of the optimizer's parameters in its order, for a state without names.
      shuffle_ok: see ``stream``.

    Returns:
      The problem, with weights in the module's precision, and statistics and buffers of each checkpoint as its states.
      ``lla-jax path --checkpoints`` and ``lla-jax connect --checkpoint`` read files of the module by ``load_path``.

    Raises:
      ValueError: as ``stream``, ``convert``, ``Net.loss``, ``load_checkpoint`` and ``optax_state``; also
        ``optimizer_params`` without ``optimizer``.
    """
    from lla_torch.net import convert
    from lla_torch.paths.loading import load_path
    from lla_torch.weights.checkpoint import load_checkpoint
    from lla_torch.weights.moments import optax_state

    _check_mappings(metrics, extra_data)
    if isinstance(checkpoints, str | os.PathLike | Mapping):
        checkpoints = (checkpoints,)
    if optimizer is None and optimizer_params is not None:
        raise ValueError("optimizer_params: given without optimizer, whose parameters they name; pass both or none")
    check_module(module)
    if is_from_torch(module):
        raise misuse("module", module, "the network; the criterion comes after it: problem(module, criterion, loader)")
    criterion = as_criterion(criterion)
    data = _read_data(loader, "loader", shuffle_ok)
    if labels is None and not isinstance(data, _STREAM | _WHOLE | Mapping):
        default_labels(data)
    args, kwargs = _example_inputs(data, inputs) if example_inputs is None else (example_inputs, {})
    net = convert(module, args, example_kwargs=kwargs, train=train)
    solutions = [load_checkpoint(each, net, dtype="net").variables for each in checkpoints]
    loss = net.loss(criterion, inputs=inputs, labels=labels, outputs=outputs, key=key)
    states = [{name: tree for name, tree in each.items() if name != "params"} for each in solutions]
    return lla_jax.Problem(
        loss=loss,
        params=net.variables["params"],
        data=data,
        opt_state=None if optimizer is None else optax_state(optimizer, net, optimizer_params),
        metrics=dict(metrics or {}),
        extra_data={name: _read_data(d, f"extra_data[{name!r}]", shuffle_ok) for name, d in (extra_data or {}).items()},
        checkpoints=tuple(each["params"] for each in solutions),
        states=() if loss.state is None else tuple(states),
        read=partial(load_path, net=net, dtype="net"),
    )


def _check_mappings(metrics: Any, extra_data: Any) -> None:
    """Raise a ValueError unless metrics and further data have names."""
    if metrics is not None and not (isinstance(metrics, Mapping) and all(map(callable, metrics.values()))):
        raise misuse("metrics", metrics, "a dict of functions, such as {'accuracy': lambda outputs, batch: ...}")
    if extra_data is not None and not isinstance(extra_data, Mapping):
        raise misuse("extra_data", extra_data, "a dict of data by name, such as {'test': test_loader}")


# --- batches


def _convert_batch(value: Any, name: str) -> Any:
    if isinstance(value, _WHOLE):  # its tensors are arrays already
        return value
    if isinstance(value, torch.Tensor):
        return _array(value, name)
    if isinstance(value, Mapping):
        return {key: _convert_batch(v, f"{name}[{key!r}]") for key, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_convert_batch(v, f"{name}.{key}") for key, v in zip(value._fields, value)))
    if isinstance(value, tuple | list):
        return tuple(_convert_batch(v, f"{name}[{i}]") for i, v in enumerate(value))
    if value is None or isinstance(value, np.ndarray | np.generic | jax.Array | int | float):
        return value
    raise ValueError(
        f"{name}: a {type(value).__name__} given; it must be a tensor, or tensors nested in tuples, lists and dicts. "
        "Leave other values out in the loader's collate_fn, or wrap the loader in a function that yields (inputs, "
        "labels)"
    )


def _array(tensor: torch.Tensor, name: str) -> np.ndarray:
    """A tensor as an array: in the tensor's own memory where it lies on the CPU and numpy has the type."""
    if tensor.layout != torch.strided or tensor.is_quantized:
        kind = "quantized" if tensor.is_quantized else tensor.layout
        raise ValueError(f"{name}: a {kind} tensor given; it must be dense: use .to_dense() or .dequantize()")
    return to_array(tensor, copy=False)


def _check_source(loader: Any) -> None:
    """Refuse what is no source of batches, and data in memory, whose rows or arrays would be taken for batches."""
    rule = "a DataLoader, another iterable of batches that starts anew each time, or a function that returns one"
    if isinstance(loader, torch_data.TensorDataset):
        raise misuse("loader", loader, f"{rule}; a TensorDataset in memory is dataset.tensors, which needs no stream")
    if isinstance(loader, torch_data.Dataset) and not isinstance(loader, Iterable):
        raise misuse("loader", loader, f"{rule}; of a data set make one, DataLoader(dataset, batch_size=256)")
    if isinstance(loader, str | os.PathLike | Mapping | nn.Module | type):
        raise misuse("loader", loader, rule)
    kinds = [(x.ndim, str(x.dtype)) for x in loader if _is_array(x)] if isinstance(loader, tuple | list) else []
    if _is_array(loader) or (kinds and (isinstance(loader, tuple) or len(set(kinds)) > 1)):
        raise misuse(
            "loader",
            loader,
            f"{rule}; data in memory, (x, y), need no stream: pass them as they are, or [(x, y)] as one batch",
        )


def _is_array(x: Any) -> bool:
    return isinstance(x, torch.Tensor | np.ndarray | jax.Array)


def _open(source: Any) -> Iterable[Any]:
    if isinstance(source, Iterable) or not callable(source):
        return source
    try:
        opened = source()
    except Exception as error:
        raise ValueError(
            f"loader: the function that should return a loader failed ({type(error).__name__}: {first_line(error)}); "
            "it is called without arguments, such as lambda: DataLoader(dataset, 256)"
        ) from error
    if not isinstance(opened, Iterable):
        raise misuse("loader", opened, "what the function returns: an iterable of batches, such as a DataLoader")
    return opened


# --- order


def _check_order(loader: Any) -> None:
    remedy = (
        "lla_jax reads the data many times and needs the same examples in the same order: pass a loader with "
        "shuffle=False and no random augmentation, or shuffle_ok=True"
    )
    for sampler in _samplers(loader):
        if isinstance(sampler, _SHUFFLING):
            raise ValueError(f"loader: it has shuffle=True or the like ({type(sampler).__name__}); {remedy}")
    with torch.random.fork_rng(devices=[]):
        first, second = (_first_batch(loader) for _ in range(2))
    if lla_jax.data.fingerprint(first) != lla_jax.data.fingerprint(second):
        raise ValueError(f"loader: its first batch is another one when it is read again; {remedy}")


def _samplers(loader: Any) -> list[Any]:
    batch_sampler = getattr(loader, "batch_sampler", None)
    return [getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None)]


def _first_batch(source: Any) -> Any:
    for batch in itertools.islice(Batches(source), 1):
        return lla_jax.data.to_numpy(batch)
    raise ValueError("loader: it yielded no batch; pass a loader with at least one (drop_last=True drops a short one)")


def _warn_of_drop_last(loader: Any) -> None:
    """Warn of examples that ``drop_last`` leaves out."""
    batches: Any = getattr(loader, "batch_sampler", None)
    if not getattr(batches, "drop_last", False):
        return
    try:
        count, size = len(batches.sampler), int(batches.batch_size)
    except (TypeError, AttributeError):  # a data set or sampler without length
        warn_caller("loader: drop_last=True may leave out examples of the last batch; use False")
        return
    if dropped := count % size:
        warn_caller(
            f"loader: drop_last=True leaves out {dropped} of {count} examples; use drop_last=False (a shorter batch "
            "counts with the weight of its examples)"
        )


# --- problems


def _read_data(source: Any, name: str, shuffle_ok: bool) -> Any:
    if isinstance(source, _STREAM | _WHOLE):
        return source
    if isinstance(source, torch_data.TensorDataset):
        return arrays(source.tensors)
    if isinstance(source, str | os.PathLike):
        raise misuse(name, source, "the data themselves: a tuple of arrays, such as of numpy.load(path), or a loader")
    if isinstance(source, torch_data.Dataset):
        raise ValueError(
            f"{name}: a {type(source).__name__} yields single examples; wrap it in a loader, such as "
            "DataLoader(dataset, 256)"
        )
    if _is_array(source) or isinstance(source, tuple | Mapping):
        data = arrays(source)
        lla_jax.data.num_examples(data)
        return data
    if isinstance(source, list) and any(map(_is_array, source)):
        raise ValueError(
            f"{name}: a list of tensors can mean (inputs, labels) or batches of inputs; pass a tuple for the former, "
            "lla_torch.stream(list) for the latter"
        )
    return stream(source, shuffle_ok=shuffle_ok)


def _example_inputs(data: Any, inputs: Callable[[Any], Any] | None) -> tuple[Any, dict[str, Any]]:
    """(positional, by name): the module's inputs for two examples of the data, or all of a whole, as tensors."""
    batch = _first_batch(data) if isinstance(data, _STREAM) else data
    if isinstance(batch, _WHOLE):
        return arguments(inputs, batch.data)
    batch = jax.tree.map(lambda x: np.resize(x[:2], (2, *x.shape[1:])), batch)  # twice the same if there is only one
    return arguments(inputs, batch)
