"""Gives the adapters their common parts: options, the model's input in a batch, its mode flags, noise per example.

An adapter cuts a model into parameters (which the user passes to every function), other arrays (``Loss.state``) and a
static remainder, and calls the pieces as a pure function. The remainder compares by value, so that two adapters of one
architecture share compiled code. The model itself is never changed.

The mode of the model follows from ``train`` of ``Loss.apply`` and from the ``key`` of the loss:

    batch statistics  =  train          noise (dropout)  =  the loss has a key

so that ``batch_stats="batch"`` does not switch dropout on, and a stochastic loss keeps its running averages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypedDict

import jax
import numpy as np

from lla_jax.core.arguments import Misuse, misuse
from lla_jax.core.types import Batch, FilterAxis, Loss, PyTree

Inputs = str | int | tuple[str | int, ...] | Callable[[Batch], Any] | None
"""The place of the model's input in a batch; see ``Options``."""

TRAIN_FLAGS = ("train", "training", "is_training")


class Options(TypedDict, total=False):
    """The options that ``from_linen``, ``from_nnx`` and ``from_equinox`` have in common.

    Args:
      inputs: where the input of the model is in a batch: an index or name, a tuple of these (several arguments), or a
        function of the batch. None: the first entry of a tuple or list, or the batch itself if it is one array; a dict
        needs a name. If the input is a plain tuple, its entries are the arguments of the model.
      key: a ``jax.random`` key for a stochastic loss: the model is run per example, each with its own key for all of
        its random streams, so that a draw depends neither on the batches nor on the point.
      penalty: ``penalty(params) -> scalar`` added to the mean.
      per_example: False for criteria that couple the examples and return a scalar; see ``Loss``. Default True.
      filter_axis: which axes index the filters; None lets ``directions.normalize`` decide.
      train_kwargs: keyword arguments of the call in train mode, in addition to the flags found in its signature; for a
        flag that is named in both, they decide.
      eval_kwargs: keyword arguments of the call in eval mode, likewise.
      precision: "float32", or "params" to call the model with half-precision weights as they are; see ``Loss``.
    """

    inputs: Inputs
    key: Any
    penalty: Callable[[PyTree], Any] | None
    per_example: bool
    filter_axis: FilterAxis | None
    train_kwargs: Mapping[str, Any] | None
    eval_kwargs: Mapping[str, Any] | None
    precision: Literal["float32", "params"]


DEFAULTS: Options = {
    "inputs": None,
    "key": None,
    "penalty": None,
    "per_example": True,
    "filter_axis": None,
    "train_kwargs": None,
    "eval_kwargs": None,
    "precision": "float32",
}


def loss_of(apply: Callable[..., Any], criterion: Callable[..., Any], state: PyTree, options: Options) -> Loss:
    """Make the ``Loss`` of an adapter, with those of the options that a ``Loss`` has too."""
    names = ("key", "penalty", "per_example", "filter_axis", "precision")
    return Loss(apply, criterion, state, **{name: options[name] for name in names})  # type: ignore[literal-required]


def model_arguments(inputs: Inputs, batch: Batch) -> tuple[Any, ...]:
    """The tuple of positional arguments of the model that ``inputs`` finds in a batch; see ``Options``.

    Raises:
      ValueError: the batch has no such entry, or is a dict and ``inputs`` is None.
    """
    if batch is None and not callable(inputs):
        raise Misuse("data", "None given, but the model takes an input; pass its data")
    if callable(inputs):
        chosen = inputs(batch)
    elif inputs is not None:
        try:
            chosen = tuple(batch[i] for i in inputs) if type(inputs) is tuple else batch[inputs]
        except (TypeError, KeyError, IndexError) as error:
            names = f"the entries {sorted(map(str, batch))}" if isinstance(batch, Mapping) else f"{len(batch)} entries"
            kind = type(batch).__name__
            rule = f"in the batch, a {kind} with {names}: name one of them, or a tuple of several"
            raise misuse("inputs", inputs, rule) from error
    elif isinstance(batch, Mapping):
        raise Misuse(
            "inputs",
            f"None given, but the batch is a dict with the entries {sorted(map(str, batch))}; choose the model's input "
            'by inputs="name", a tuple of names for several arguments, or inputs=lambda batch: ...',
        )
    else:
        chosen = batch[0] if isinstance(batch, tuple | list) else batch
    return chosen if type(chosen) is tuple else (chosen,)


Kwargs = tuple[tuple[str, Any], ...]


def mode_kwargs(names: Mapping[str, Any], coupled: bool, options: Options) -> tuple[Kwargs, Kwargs]:
    """The keyword arguments of the model's call, as sorted items, in (eval, train) mode.

    Args:
      names: the parameters of the call, among which the known flags are set (see ``from_linen``).
      coupled: whether the model has layers with batch statistics.
      options: ``key``, ``train_kwargs`` and ``eval_kwargs`` are read.

    Raises:
      ValueError: a key is given, and one flag controls both noise and batch statistics.
    """
    keyed, train_kwargs, eval_kwargs = options["key"] is not None, options["train_kwargs"], options["eval_kwargs"]
    train_flags = [name for name in TRAIN_FLAGS if name in names]
    deterministic, running = "deterministic" in names, "use_running_average" in names
    one_switch = bool(train_flags) + deterministic + running == 1
    if keyed and coupled and one_switch and not running and eval_kwargs is None:
        flag = train_flags[0] if train_flags else "deterministic"
        raise Misuse(
            "key",
            f"given, but the model's call has one flag {flag!r} for both noise and batch statistics, so noise with "
            "running averages is not possible. Give the model two flags (deterministic and use_running_average), or "
            "pass eval_kwargs={...} with the keyword arguments of the call",
        )

    def flags(train: bool) -> dict[str, Any]:
        values: dict[str, Any] = dict.fromkeys(train_flags, train or (keyed and not deterministic))
        if deterministic:
            values["deterministic"] = not (keyed or (train and coupled and one_switch))
        if running:
            values["use_running_average"] = not train
        return values

    in_eval, in_train = {**flags(False), **(eval_kwargs or {})}, {**flags(True), **(train_kwargs or {})}
    return tuple(sorted(in_eval.items())), tuple(sorted(in_train.items()))


def refuse_noisy_statistics(train: bool, coupled: bool) -> None:
    """Raise a ValueError if a loss with a key, which runs its model per example, needs the statistics of a batch.

    Args:
      train: whether the model is called in train mode.
      coupled: whether the model has layers with batch statistics.
    """
    if train and coupled:
        raise Misuse(
            "key",
            "the loss has one, so the model is run one example at a time, and batch statistics (train=True) need all "
            'examples of a batch; use batch_stats="frozen", or build the loss without key',
        )


def map_examples(call: Callable[..., Any], args: tuple[Any, ...], keys: Any) -> Any:
    """Run a model that takes batches on one example at a time, so that its noise does not depend on the batch.

    Args:
      call: ``call(arguments, key) -> outputs``, for a batch of 1.
      args: the arguments for the whole batch, with leading axis B.
      keys: (B,), a key per example; or the key of an ``lla.whole``, on which the model is run as it is.

    Returns:
      The outputs, with leading axis B.

    Raises:
      ValueError: an output does not have the examples as its leading axis.
    """

    if np.ndim(keys) == 0:
        return call(args, keys)

    def unbatch(leaf: Any) -> Any:
        if np.shape(leaf)[:1] != (1,):
            raise Misuse(
                "key",
                f"the loss has one, so the model is run on batches of 1, and an output has shape {np.shape(leaf)}; "
                "every output must have the examples as its leading axis: change the model, or build the loss without "
                "key",
            )
        return leaf[0]

    def one(args: tuple[Any, ...], key: Any) -> Any:
        return jax.tree.map(unbatch, call(jax.tree.map(lambda leaf: leaf[None], args), key))

    return jax.vmap(one)(args, keys)
