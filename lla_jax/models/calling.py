"""Calling a network as its library wants it: the adapters' common options, the input in a batch, mode flags, noise.

An adapter cuts a model into parameters (which the user passes to every verb), other arrays (``Loss.state``) and a
static remainder, and calls the pieces as a pure function. What is static compares by value, so two adapters of one
architecture share compiled code. The model itself is never written to.

How a mode reaches the model (``train`` of ``Loss.apply``, and whether the loss has a ``key``):

    batch statistics  =  train          noise (dropout)  =  the loss has a key

so that ``batch_stats="batch"`` does not bring dropout along, and a stochastic loss keeps its running averages.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypedDict

import jax
import numpy as np

from lla_jax.core.types import Batch, FilterAxis, Loss, PyTree

Inputs = str | int | tuple[str | int, ...] | Callable[[Batch], Any] | None
"""Where a batch has the model's input; see ``from_linen``."""

TRAIN_FLAGS = ("train", "training", "is_training")


class Options(TypedDict, total=False):
    """The options that ``from_linen``, ``from_nnx`` and ``from_equinox`` have in common.

    Args:
      inputs: where a batch has the model's input: an index or name, a tuple of these (several arguments), or a
        function of the batch. None: the first entry of a tuple or list, or the batch itself if it is one array. An
        input that is a plain tuple is spread over the model's arguments.
      key: a ``jax.random`` key for a stochastic loss: the model is run per example, each with its own key for all of
        its random streams, so that a draw depends neither on the batching nor on the point.
      penalty: ``penalty(params) -> scalar`` added to the mean.
      per_example: False for criteria that couple the examples and return a scalar; see ``Loss``. Default True.
      filter_axis: which axes index the filters; None lets ``directions.normalize`` decide.
      train_kwargs: keyword arguments of the call in train mode, over the flags found in its signature.
      eval_kwargs: the same in eval mode.
    """

    inputs: Inputs
    key: Any
    penalty: Callable[[PyTree], Any] | None
    per_example: bool
    filter_axis: FilterAxis | None
    train_kwargs: Mapping[str, Any] | None
    eval_kwargs: Mapping[str, Any] | None


DEFAULTS: Options = {
    "inputs": None,
    "key": None,
    "penalty": None,
    "per_example": True,
    "filter_axis": None,
    "train_kwargs": None,
    "eval_kwargs": None,
}


def loss_of(apply: Callable[..., Any], criterion: Callable[..., Any], state: PyTree, options: Options) -> Loss:
    """The loss that calls a model by ``apply``."""
    names = ("key", "penalty", "per_example", "filter_axis")
    return Loss(apply, criterion, state, **{name: options[name] for name in names})  # type: ignore[literal-required]


def arguments(inputs: Inputs, batch: Batch) -> tuple[Any, ...]:
    """The model's positional arguments in a batch; an input that is itself a plain tuple is spread."""
    if callable(inputs):
        found = inputs(batch)
    elif inputs is not None:
        try:
            found = tuple(batch[i] for i in inputs) if type(inputs) is tuple else batch[inputs]
        except (TypeError, KeyError, IndexError) as error:
            has = sorted(map(str, batch)) if isinstance(batch, Mapping) else f"a {type(batch).__name__} of {len(batch)}"
            raise ValueError(
                f"inputs: {inputs!r} is not in the batch, which is {has}; name or number what is"
            ) from error
    elif isinstance(batch, Mapping):
        raise ValueError(
            f"inputs=None, but the batch is a dict with the entries {sorted(map(str, batch))}, so the model's input is "
            'not known. Pass inputs="name", a tuple of names for several arguments, or inputs=lambda batch: ...'
        )
    else:
        found = batch[0] if isinstance(batch, tuple | list) else batch
    return found if type(found) is tuple else (found,)


def parameters(call: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The parameters of a callable by name; none where it does not tell."""
    try:
        return inspect.signature(call).parameters
    except (TypeError, ValueError):  # some callables tell nothing of their arguments
        return {}


Kwargs = tuple[tuple[str, Any], ...]


def modes(names: Mapping[str, Any], coupled: bool, options: Options) -> tuple[Kwargs, Kwargs]:
    """Keyword arguments of the model's call in (eval, train) mode, by the flags that its signature has."""
    keyed, train_kwargs, eval_kwargs = options["key"] is not None, options["train_kwargs"], options["eval_kwargs"]
    train_flags = [name for name in TRAIN_FLAGS if name in names]
    deterministic, running = "deterministic" in names, "use_running_average" in names
    one_switch = bool(train_flags) + deterministic + running == 1
    if keyed and coupled and one_switch and not running and eval_kwargs is None:
        flag = train_flags[0] if train_flags else "deterministic"
        raise ValueError(
            f"key is given and the model has batch statistics, but its call has the one flag {flag!r} for both noise "
            "and batch statistics, so noise cannot be had with running averages. Give the model two flags "
            "(deterministic and use_running_average), or say with eval_kwargs={...} how to call it."
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
    """Raise where one example at a time would have to give statistics of a batch."""
    if train and coupled:
        raise ValueError(
            "the loss has a key, so the model is run one example at a time, and batch statistics (train=True) need the "
            'whole batch. Use batch_stats="frozen", or build the loss without key.'
        )


def each_example(call: Callable[..., Any], args: tuple[Any, ...], keys: Any) -> Any:
    """A model that takes batches, run per example with its own key: noise then does not depend on the batching."""

    def unbatch(leaf: Any) -> Any:
        if np.shape(leaf)[:1] != (1,):
            raise ValueError(
                f"the loss has a key, so the model is run on single examples (batches of 1), and an output has shape "
                f"{np.shape(leaf)}; every output must have the examples as its leading axis."
            )
        return leaf[0]

    def one(args: tuple[Any, ...], key: Any) -> Any:
        outputs = call(jax.tree.map(lambda leaf: leaf[None], args), key)
        return jax.tree.map(unbatch, outputs)

    return jax.vmap(one)(args, keys)
