"""Gives the adapters their common parts: options, the model's input in a batch, its mode flags, noise per example.

An adapter cuts a model into parameters (which the user passes to every function), other arrays (``Loss.state``) and a
static remainder, and calls the pieces as a pure function. The remainder compares by value, so that two adapters of one
architecture share compiled code. The model itself is never changed.

The mode of the model follows from ``train`` of ``Loss.apply`` and from the ``key`` of the loss:

    batch statistics  =  train          noise (dropout)  =  the loss has a key

so that ``batch_stats="batch"`` does not switch dropout on, and a stochastic loss keeps its running averages.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, TypedDict

import jax
import numpy as np

from lla_jax.core.arguments import Misuse, is_integer, misuse, single_key
from lla_jax.core.called import ask, passes, show_shapes
from lla_jax.core.foreign import LIBRARIES, advise_params, library_of
from lla_jax.core.tree import paths
from lla_jax.core.types import Batch, FilterAxis, Loss, Path, PyTree

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


def model_misuse(name: str, value: Any, rule: str) -> Misuse:
    """Make (not raise) the error for an object that is no model of an adapter's library.

    Args:
      name: the argument's name.
      value: the object.
      rule: what it must be.
    """
    if isinstance(value, type):
        return Misuse(
            name, f"the class {value.__name__} given; it must be {rule}: make one of it, {value.__name__}(...)"
        )
    library = LIBRARIES.get(library_of(value))
    meant = f". This is of {library.name}; the loss of its models is {library.loss}" if library else ""
    return misuse(name, value, f"{rule}{meant}")


def check_method(model: Any, method: Any) -> Any:
    """Return the method of a model by its name.

    Raises:
      Misuse: the name is no string, or the model has no such method.
    """
    call = getattr(model, method, None) if isinstance(method, str) else None
    if not callable(call):
        kind = model if isinstance(model, type) else type(model)
        names = [name for name, each in vars(kind).items() if callable(each) and name[:1] != "_"]
        own = f" It has {', '.join(names)}." if names else ""
        raise misuse("method", method, f"the name of a method of {kind.__name__}, such as '__call__'.{own}".rstrip("."))
    return call


Shapes = tuple[tuple[Path, tuple[int, ...]], ...]
"""The paths and shapes of the parameters of a model."""


def shapes_of(params: PyTree) -> Shapes:
    """The paths and shapes of all leaves."""
    return tuple((path, tuple(np.shape(leaf))) for path, leaf in zip(paths(params), jax.tree.leaves(params)))


@contextlib.contextmanager
def explain_params(params: PyTree, expected: Shapes, exact: bool = False) -> Iterator[None]:
    """Explain an error that is raised in this block by parameters of another network, if they are.

    Args:
      params: the parameters with which the model is called.
      expected: the paths and shapes of the model's own parameters.
      exact: whether the model refuses further leaves.

    Raises:
      Misuse: the block failed, and the parameters are not like the model's own.
    """
    try:
        yield
    except Exception as error:
        if not passes(error) and (difference := difference_of(params, expected, exact)):
            raise Misuse("params", difference) from error
        raise


def check_shapes(params: PyTree, expected: Shapes) -> None:
    """Raise an error if a leaf has another shape than the model's own parameter of this path."""
    own = dict(expected)
    if any(own.get(path, shape) != shape for path, shape in shapes_of(params)):
        raise Misuse("params", difference_of(params, expected))


def difference_of(params: PyTree, expected: Shapes, exact: bool = False) -> str:
    """How parameters differ from those of the model, with a remedy; "" if they do not."""
    given, own = dict(shapes_of(params)), dict(expected)
    missing = [path for path in own if path not in given]
    changed = [path for path in own if path in given and given[path] != own[path]]
    keys = ["/".join(map(str, key)) if isinstance(key, tuple) else key for key in _keys(params)]
    if own and any("/" in str(key) for key in keys) and set(own) <= set(keys):
        return f"a flat dict of {_few(keys)} given; nest it, flax.traverse_util.unflatten_dict"
    extra = [path for path in given if path not in own]
    if exact and extra and not missing and not changed:
        return (
            f"they have {_few(extra)}, which are no parameters of the model of this loss; pass those alone, such as "
            "nnx.state(model, nnx.Param)"
        )
    if not missing and not changed:
        return ""
    if changed and not missing:
        return (
            f"{changed[0]!r} has shape {given[changed[0]]}, and in the model of this loss {own[changed[0]]}; these are "
            "the parameters of another network: pass those of this one, or make the loss of the other"
        )
    shown = f"they lack {_few(missing)}, which the model of this loss has, and have {_few(list(given))}"
    if set(own) <= {path.partition("/")[2] for path in given if path.startswith("params/")}:
        return f'{shown}; these are all variables: pass variables["params"]'
    if inside := _prefix(given, own):
        place = "".join(f"[{key if key.isdigit() else repr(key)}]" for key in inside.split("/")[:-1])
        return f"{shown}; those of this model are a part of them: pass params{place}"
    remedy = (
        "pass those of this model: of a linen module variables['params'], of an nnx model nnx.state(model, nnx.Param), "
        "of an Equinox model eqx.filter(model, eqx.is_inexact_array)"
    )
    return f"{shown}; {(library_of(params) != 'equinox' and advise_params(params)) or remedy}"


def _prefix(given: Iterable[Path], own: Mapping[Path, Any]) -> str:
    """The beginning under which given paths have all of the model's own, such as "state/params/"; "" if none has."""
    paths, first = set(given), next(iter(own), "")
    begins = [path.removesuffix(first) for path in paths if first and path.endswith("/" + first)]
    return next((begin for begin in begins if {begin + path for path in own} <= paths), "")


def _keys(params: PyTree) -> list[Any]:
    return list(params) if isinstance(params, Mapping) else []


def _few(names: list[Path]) -> str:
    more = f" and {len(names) - 3} others" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more


def check_options(function: str, options: Options) -> Options:
    """Return the options with ``inputs`` as a tuple where a list was given, after a check of their kinds.

    Args:
      function: the name of the adapter, such as "from_linen".
      options: all options.

    Raises:
      Misuse: an option is of another kind.
    """
    inputs = options["inputs"]
    inputs = tuple(inputs) if isinstance(inputs, list) else inputs
    names = inputs if type(inputs) is tuple else (inputs,)
    if not (inputs is None or callable(inputs) or all(isinstance(x, str) or is_integer(x) for x in names)):
        raise misuse(
            "inputs",
            inputs,
            "the index or name of the model's input in a batch, such as 0, a tuple of these, or a "
            "function of the batch",
        )
    if options["key"] is not None:
        single_key(options["key"])
    for name in ("train_kwargs", "eval_kwargs"):
        if not isinstance(options[name], Mapping | None):  # type: ignore[literal-required]
            value = options[name]  # type: ignore[literal-required]
            raise misuse(name, value, f"a dict of keyword arguments, such as {function}(..., {name}={{'train': True}})")
    axis = options["filter_axis"]
    if not (axis is None or is_integer(axis) or callable(axis)):
        raise misuse("filter_axis", axis, "an int, such as -1, a function (path, leaf) -> axes, or None")
    return {**options, "inputs": inputs}


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
        chosen = _call_inputs(inputs, batch)
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


def _call_inputs(inputs: Callable[[Batch], Any], batch: Batch) -> Any:
    """What a function of the user finds in a batch."""
    remedy = "It must take the batch and return the model's input, such as lambda batch: batch[0]"
    chosen = ask("inputs", inputs, "inputs(batch)", {"batch": batch}, remedy)
    if chosen is None:
        shapes = f"a batch {show_shapes(batch)}"
        raise Misuse(
            "inputs", f"the function returned None for {shapes}; it must return the model's input, such as batch[0]"
        )
    return chosen


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

    open_ended = any(getattr(each, "kind", None) == each.VAR_KEYWORD for each in names.values()) or not names
    for option, kwargs in (("train_kwargs", train_kwargs), ("eval_kwargs", eval_kwargs)):
        if (unknown := sorted(set(kwargs or {}) - set(names))) and not open_ended:
            raise Misuse(
                option,
                f"{unknown[0]!r} given, which is no argument of the model's call; its arguments are: "
                f"{', '.join(names)}: name one of these",
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
