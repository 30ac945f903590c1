"""The ``lla_jax.Loss`` of a converted network or step: its ``apply``, and its criterion in JAX or in torch."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from lla_jax.models.adapters import ByValue, ask, misuse, passes, show_shapes
from lla_torch.conversion.function import Function, arguments
from lla_torch.losses.criteria import Criterion, criterion_of, is_per_example
from lla_torch.losses.selection import failure, scores_among
from lla_torch.program.instructions import Instruction, read_argument, run_instruction
from lla_torch.program.noise import Noise
from lla_torch.program.views import View, as_view


@dataclass(frozen=True)
class Apply:
    """``Loss.apply`` of a converted network: ``apply(params, state, batch, train, keys)`` gives (outputs, state).

    With keys, one per example, every example is run alone with its own key; an ``lla_jax.whole`` has a single key.
    ``outputs`` selects what of the network's outputs the criterion gets; None: all.
    """

    function: Function
    inputs: Callable[[Any], Any] | None
    outputs: Callable[[Any], Any] | None = None

    def __repr__(self) -> str:
        return repr(self.function)

    def __call__(self, params: Any, state: Any, batch: Any, train: bool, keys: Any = None) -> tuple[Any, Any]:
        variables = {"params": params, **(state or {})}
        args, kwargs = arguments(self.inputs, batch)
        if keys is None:
            try:
                outputs, new = self.function(variables, args, kwargs, train=train)
            except ValueError as error:
                way = _way_to_inputs(self.function, variables, batch) if self.inputs is None else ""
                if not way:
                    raise
                raise ValueError(f"{error}. {way}") from error
            return self.select(outputs), (new if train and state else state)
        program, noisy = self.function.train, self.function.noisy_in_train
        if (train or noisy) and program is not None and program.mutates:
            raise ValueError(
                "key: a loss with a key runs the network on one example at a time, and batch statistics (train=True) "
                'need all examples of the batch; use batch_stats="frozen", or build the loss without key'
            )

        if np.ndim(keys) == 0:
            return self.select(self.function(variables, args, kwargs, train=noisy, key=keys)[0]), state

        def run_example(args: Any, kwargs: Any, key: Any) -> Any:
            batch_of_one = jax.tree.map(lambda x: x[None], (args, kwargs))
            outputs, _ = self.function(variables, *batch_of_one, train=noisy, key=key)
            return jax.tree.map(lambda x: x[0], outputs)

        return self.select(jax.vmap(run_example)(args, kwargs, keys)), state

    def select(self, outputs: Any) -> Any:
        """What the criterion gets of the network's outputs."""
        if self.outputs is None:
            return outputs
        remedy = "It gets the network's outputs as jax arrays, not tensors"
        return ask("outputs", self.outputs, "outputs(outputs), of jax arrays,", {"outputs": outputs}, remedy)

    def scores(self, criterion: Callable[[Any, Any], Any]) -> tuple[Apply, OfScores] | None:
        """The same losses, cut before the log-softmax with which the network ends: (apply, criterion).

        None if it does not end so, or if a function of the user's comes after it. ``lla_jax.ggn`` asks for it where the
        criterion is linear in the outputs.
        """
        cut = self.function.before_log_probabilities() if self.outputs in (None, scores_among) else None
        return None if cut is None else (Apply(cut[0], self.inputs), OfScores(criterion, cut[1]))


def _way_to_inputs(function: Function, variables: Any, batch: Any) -> str:
    """What the likely slip is with a batch whose first entry the network does not take; "" if none is found."""
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        return ""
    if all(isinstance(x, tuple | list) for x in batch):
        return "A list of batches is no data set: wrap it, lla_torch.stream(batches)"
    try:
        jax.eval_shape(lambda variables, inputs: function(variables, (inputs,), {})[0], variables, batch[1])
    except Exception:  # whatever it is, the second entry is no better
        return ""
    return "The second entry of the batch would do: data are (inputs, labels), in this order"


@dataclass(frozen=True)
class OfScores:
    """A criterion of log-probabilities as one of the scores before them."""

    criterion: Callable[[Any, Any], Any]
    instructions: tuple[Instruction, ...]

    def __call__(self, outputs: Any, batch: Any) -> Any:
        for each in self.instructions:
            own = outputs.dtype
            args = [as_view(outputs), *(read_argument(x, [], own) for x in each.args[1:])]
            kwargs = {name: read_argument(x, [], own) for name, x in each.kwargs}
            outputs = run_instruction(each, args, kwargs, Noise(None, None), own)
            outputs = outputs.logical() if isinstance(outputs, View) else outputs
        return self.criterion(outputs, batch)


ON_LABELS = (
    "It gets the labels alone: write labels for batch[1]. With net.loss(..., labels=lambda batch: batch) it gets the "
    "whole batch"
)


@dataclass(frozen=True)
class OnLabels:
    """A criterion of (outputs, labels) turned into one of (outputs, batch), as ``Loss.criterion`` is called."""

    criterion: Callable[[Any, Any], Any]
    labels: Callable[[Any], Any] | None = None

    def __repr__(self) -> str:
        return getattr(self.criterion, "__qualname__", repr(self.criterion)).rpartition("<locals>.")[2]

    def __call__(self, outputs: Any, batch: Any) -> Any:
        remedy = "It gets the batch and returns the labels"
        labels = ask("labels", self.labels or default_labels, "labels(batch)", {"batch": batch}, remedy)
        given = {"outputs": outputs, "labels": labels}
        return ask("criterion", self.criterion, "criterion(outputs, labels)", given, ON_LABELS)


def default_labels(batch: Any) -> Any:
    """The labels of a batch (inputs, labels), or all entries but the first of a longer one.

    Raises:
      ValueError: the batch is something else.
    """
    if not isinstance(batch, tuple | list) or len(batch) < 2:
        raise ValueError(
            f"labels: None given, but the batch is {show_shapes(batch)}, not (inputs, labels); pass data with labels, "
            "(x, y), or labels=lambda batch: ... and inputs=lambda batch: ..."
        )
    return batch[1] if len(batch) == 2 else tuple(batch[1:])


@dataclass(frozen=True)
class Step:
    """``Loss.apply`` of a converted step, as ``Apply``; its outputs are the losses."""

    function: Function

    def __repr__(self) -> str:
        return f"step of {self.function!r}"

    def __call__(self, params: Any, state: Any, batch: Any, train: bool, keys: Any = None) -> tuple[Any, Any]:
        if keys is not None:
            return Apply(self.function, _as_inputs)(params, state, batch, train, keys)
        key = jax.random.wrap_key_data(state["key"]) if "key" in (state or {}) else None
        outputs, new = self.function({"params": params, **(state or {})}, (batch,), {}, train=train, key=key)
        return outputs, (new if train and state else state)


def _as_inputs(batch: Any) -> tuple[Any]:
    return (batch,)


def losses_of_step(outputs: Any, batch: Any) -> Any:
    """The criterion of a ``Step``: the outputs, which are the losses already, or (losses, weights)."""
    return tuple(outputs) if isinstance(outputs, list) else outputs


def mean_of_step(outputs: Any, batch: Any) -> Any:
    """The criterion of a ``Step`` that gives (sum, weight): (sum / weight, weight), and 0 for a weight of 0."""
    total, weight = outputs
    return total / jnp.where(weight == 0, 1, weight), weight


@dataclass(frozen=True, eq=False)
class TorchCriterion(ByValue):
    """A torch loss module as a criterion of (outputs, labels); compares by all that the module reaches.

    It is converted when it is first called, since the shapes and types of the outputs decide what it computes.

    Args:
      module: the loss module.
      per_example: whether it shall return one loss per example.
      convert: ``(module, outputs, labels) -> f(outputs, labels)``.
    """

    module: nn.Module
    per_example: bool
    convert: Callable[..., Callable[..., Any]]

    def look_at(self) -> tuple[Any, ...]:
        """The module; whose ``convert`` it is does not matter."""
        return (self.module, self.per_example)

    def __repr__(self) -> str:
        return f"torch {type(self.module).__name__}"

    @functools.cached_property
    def _criteria(self) -> dict[Any, Criterion]:
        """The converted modules, by structure, shapes and types of the arguments."""
        return {}

    def __call__(self, outputs: Any, labels: Any) -> Any:
        leaves, structure = jax.tree.flatten((outputs, labels))
        kinds = (structure, tuple((x.shape[1:], x.dtype.name) for x in leaves))
        if kinds not in self._criteria:
            with jax.ensure_compile_time_eval():
                examples = jax.tree.map(_example_tensor, (outputs, labels))
                try:
                    criterion, per_example = criterion_of(self.module, self.convert, *examples)
                except Exception as error:
                    own = _own_failure(self.module, *examples) if passes(error) else error
                    if own is None:
                        raise
                    raise failure(
                        own, self.module, outputs, labels, _works_without_options(self.module, *examples)
                    ) from own
            if per_example != self.per_example:
                raise ValueError(
                    f"per_example: {self.per_example} given, but {type(self.module).__name__} returns "
                    f"{'one loss per example' if per_example else 'one number for all examples of a batch'}; pass "
                    f"per_example={per_example} to net.loss"
                )
            self._criteria[kinds] = criterion
        return self._criteria[kinds](outputs, labels)


def _own_failure(module: nn.Module, outputs: Any, labels: Any) -> Exception | None:
    """The error of a loss module on outputs and labels in torch, where nothing is converted; None if it has none.

    Its ValueErrors may be about the values of the labels, which are none of the user's, and do not count.
    """
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module(outputs, labels)
    except (TypeError, RuntimeError, IndexError) as error:
        return None if passes(error) else error
    except Exception:
        return None
    return None


def _works_without_options(module: nn.Module, outputs: Any, labels: Any) -> bool:
    """Whether one of torch's losses that fails computes these outputs and labels as soon as it has no options."""
    plain = type(module).__module__ == "torch.nn.modules.loss"
    return plain and _own_failure(type(module)(), outputs, labels) is None


def _example_tensor(x: Any) -> torch.Tensor:
    """A tensor of the shape (with at least two rows) and type of an array, with random numbers or the label 0."""
    rows = (max(2, x.shape[0]), *x.shape[1:]) if x.ndim else ()
    if jax.numpy.issubdtype(x.dtype, jax.numpy.complexfloating):
        return torch.zeros(rows, dtype=getattr(torch, x.dtype.name))
    if not jax.numpy.issubdtype(x.dtype, jax.numpy.floating):
        return torch.zeros(rows, dtype=torch.bool if x.dtype == bool else torch.int64)
    numbers = np.random.default_rng(0).random(rows)
    return torch.tensor(numbers).to(getattr(torch, x.dtype.name))


def torch_criterion(module: nn.Module, per_example: bool | None, convert: Callable[..., Any]) -> TorchCriterion:
    """The criterion of a torch loss module; with ``per_example=None``, ``is_per_example(module)`` decides.

    Raises:
      ValueError: as ``is_per_example``; a tensor of the module, such as class weights, that holds no values.
    """
    for name, x in (*module.named_parameters(), *module.named_buffers()):
        if x.is_meta:
            raise misuse("criterion", module, f"a loss whose tensor {name!r} has values; it is on the meta device")
    return TorchCriterion(module, is_per_example(module) if per_example is None else per_example, convert)
