"""Converts torch's loss modules to losses per example, whose weighted mean over a data set is torch's own mean."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import torch
from torch import nn
from torch.utils import _pytree as pytree

from lla_torch.tracing.guards import refuse_losses_of_pairs

NO_CLASS = -100  # the label that converted cross entropies ignore, whatever the module's own is

Kind = Literal["entries", "classes", "examples", "coupled"]


@dataclass(frozen=True)
class Criterion:
    """A converted loss module, called with (outputs, labels); compares by value.

    It returns losses, (losses, weights) or one scalar, see ``kind``.

    Args:
      function: the converted module, unreduced where it can be: ``function(outputs, labels)``.
      kind: what ``function`` returns. "entries": the losses, of shape (B, ...). "classes": the losses times the weight
        of their target class; (losses, weights) is returned, since torch's mean divides by the sum of the weights (if
        labels are probabilities: the values as they are). "examples": terms, whose sums over all axes but the first are
        the losses. "coupled": one scalar for all examples of a batch.
      weight: weights of the classes, or None, for kind "classes".
      ignore_index: the label of weight 0, for kind "classes".
    """

    function: Callable[[Any, Any], Any]
    kind: Kind = "entries"
    weight: tuple[float, ...] | None = None
    ignore_index: int = -100

    def __call__(self, outputs: Any, labels: Any) -> Any:
        if self.kind == "classes" and jnp.shape(labels) != jnp.shape(outputs):  # else probabilities: torch divides by N
            return self._of_classes(outputs, jnp.asarray(labels))
        losses = self.function(outputs, labels)
        if self.kind == "coupled":
            return jnp.mean(losses)
        if self.kind == "examples":
            return jnp.sum(losses, axis=tuple(range(1, losses.ndim)))
        return losses

    def _of_classes(self, outputs: Any, labels: jax.Array) -> tuple[Any, Any]:
        """(losses, weights of the labels' classes); a class that is ignored has its loss, and the weight 0."""
        classes = outputs.shape[1 if outputs.ndim > 1 else 0]
        is_class = (labels >= 0) & (labels < classes)
        counts = labels != self.ignore_index
        unknown = jnp.where(counts, classes, NO_CLASS)  # a label that is no class, and not to be ignored, gives NaN
        losses = self.function(outputs, jnp.where(is_class, labels, unknown))
        if self.weight is None:
            return losses, counts.astype(losses.dtype)
        weights = jnp.asarray(self.weight, losses.dtype)[jnp.where(is_class, labels, 0)]
        losses = jnp.where(weights == 0, 0, losses / jnp.where(weights == 0, 1, weights))
        return losses, jnp.where(counts, weights, 0)


def criterion_of(
    loss_module: nn.Module,
    convert_callable: Callable[[nn.Module, Any, Any], Callable[[Any, Any], Any]],
    example_outputs: Any,
    example_labels: Any,
) -> tuple[Criterion, bool]:
    """Convert a torch loss module to a JAX criterion, and say whether it gives one loss per example.

        sum_i w_i l_i / sum_i w_i  =  module(all outputs, all labels)

    A module with ``reduction="mean"`` (or KLDivLoss with "batchmean") is converted unreduced, one with "none" as it is.
    Cross entropies with class labels come with weights: of their class, and 0 for ``ignore_index``, as torch divides by
    their sum. For modules that are not torch's own the example is used to see whether their mean is that of independent
    losses; where it is not (contrastive losses, means over the positives of a batch), and for modules without
    ``reduction`` that return a scalar, the batch is one coupled loss.

    Args:
      loss_module: the module; ``module(outputs, labels)``. It is not changed.
      convert_callable: ``(module, example_outputs, example_labels) -> f(outputs, labels)``, the conversion of a module
        with these two inputs.
      example_outputs: the net's outputs for a batch: a tensor or nested tensors with leading axis B.
      example_labels: the labels of this batch, likewise.

    Returns:
      (criterion, per_example).

    Raises:
      ValueError: if the loss is a sum, takes other inputs than (outputs, labels), has weights of its own to train, or
        returns neither a scalar nor one entry per example.
    """
    _check(loss_module)
    reduction = getattr(loss_module, "reduction", None)
    unreduced: Any = copy.deepcopy(loss_module)
    if reduction is not None:
        unreduced.reduction = "none"
    example = (example_outputs, example_labels)
    with torch.no_grad(), refuse_losses_of_pairs():
        kind = _kind(loss_module, unreduced, *example)
    if kind == "coupled":
        return Criterion(convert_callable(copy.deepcopy(loss_module), *example), kind), False
    if kind != "classes":
        return Criterion(convert_callable(unreduced, *example), kind), True
    assert isinstance(loss_module, nn.CrossEntropyLoss | nn.NLLLoss)
    unreduced.ignore_index = NO_CLASS  # a class that is ignored has a loss, which Monte Carlo targets need
    function = convert_callable(unreduced, *example)
    soft = isinstance(example_labels, torch.Tensor) and example_labels.is_floating_point()
    return Criterion(function, kind, _class_weights(loss_module, soft), int(loss_module.ignore_index)), True


def _check(module: nn.Module) -> None:
    """Raise a ValueError for a module whose loss no mean over examples can give."""
    name = type(module).__name__
    reduction = getattr(module, "reduction", None)
    if reduction == "sum":
        raise ValueError(
            f'criterion: {name} with reduction="sum" given, whose value would depend on the size of the data set; use '
            'reduction="mean"'
        )
    allowed = ("mean", "none", "batchmean") if isinstance(module, nn.KLDivLoss) else ("mean", "none")
    if reduction is not None and reduction not in allowed:
        raise ValueError(
            f"criterion: {name} with reduction={reduction!r} given; it must be one of {', '.join(map(repr, allowed))}"
        )
    required = [
        p.name
        for p in inspect.signature(module.forward).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(required) > 2:
        raise ValueError(
            f"criterion: {name} takes {', '.join(required)}, but a criterion is called with (outputs, labels); write a "
            "module with a reduction whose forward(outputs, labels) passes these on (of a batch (inputs, target, more) "
            "labels is (target, more)), or write the loss as a step for lla_torch.convert_loss"
        )
    tensors = (*module.named_parameters(), *module.named_buffers())
    trained = [name for name, x in tensors if x.requires_grad]
    if trained:
        raise ValueError(
            f"criterion: {name} has weights of its own to train ({', '.join(trained)}), which the landscape would "
            "leave out; make them part of the net, or freeze them by requires_grad_(False)"
        )


def _kind(module: nn.Module, unreduced: nn.Module, outputs: Any, labels: Any) -> Kind:
    name = f"criterion: {type(module).__name__}"
    reduction = getattr(module, "reduction", None)
    if is_from_torch(module):
        _try_in_torch(unreduced, outputs, labels)
        if reduction == "batchmean":
            return "examples"
        return "classes" if isinstance(module, nn.CrossEntropyLoss | nn.NLLLoss) and reduction == "mean" else "entries"
    losses = unreduced(outputs, labels)
    if not isinstance(losses, torch.Tensor):
        raise ValueError(
            f"{name} returns {type(losses).__name__}; it must return one tensor, such as the sum of several"
        )
    if losses.ndim == 0:
        return "coupled"
    size = _batch_size(labels if _batch_size(labels) is not None else outputs)
    if losses.shape[0] != size:
        raise ValueError(
            f"{name} returns shape {tuple(losses.shape)} for a batch of {size}; it must return a scalar, or a tensor "
            "with the examples as its leading axis"
        )
    if size == 1:
        raise ValueError(
            f"{name} was run on a batch of 1, which does not show whether its losses depend on each other; give at "
            "least 2 examples"
        )
    independent = _is_local(unreduced, losses, outputs, labels) and all(
        _mean_is_of_entries(module, unreduced, outputs, varied) for varied in _variants(module, labels)
    )
    return "entries" if independent else "coupled"


def _try_in_torch(module: nn.Module, outputs: Any, labels: Any) -> None:
    """Let torch refuse what its loss does not take, such as integer labels, which a graph might cut to integers.

    All in float32: other widths are no matter of the loss, and some of them torch's own kernels do not have.
    """
    widened = (
        x.float() if isinstance(x, torch.Tensor) and x.is_floating_point() else x
        for x in pytree.tree_leaves((outputs, labels))
    )
    inputs = pytree.tree_unflatten(widened, pytree.tree_structure((outputs, labels)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        copy.deepcopy(module).float()(*inputs)


def is_per_example(module: nn.Module) -> bool:
    """Whether a module should give one loss per example: torch's own do, and all that have a ``reduction``.

    Raises:
      ValueError: as ``criterion_of``, where the module alone shows the mistake.
    """
    _check(module)
    return hasattr(module, "reduction") or is_from_torch(module)


def is_from_torch(module: nn.Module) -> bool:
    """Whether a module has the forward pass of a loss in torch.nn, unchanged, and no parameters."""
    return not list(module.parameters()) and any(
        base.__module__ == "torch.nn.modules.loss" and type(module).forward is vars(base)["forward"]
        for base in type(module).__mro__
        if "forward" in vars(base)
    )


def _batch_size(value: Any) -> int | None:
    shapes = [v.shape for v in pytree.tree_leaves(value) if isinstance(v, torch.Tensor) and v.ndim > 0]
    return shapes[0][0] if shapes else None


def _variants(module: nn.Module, labels: Any) -> Iterator[Any]:
    """The labels, once as they are and then with the first one ignored or of another class.

    A mean that weights by class, or leaves some labels out, shows itself on one of them.
    """
    yield labels
    if isinstance(labels, torch.Tensor) and labels.ndim > 0 and not labels.is_floating_point():
        for value in (getattr(module, "ignore_index", None), 1):
            if isinstance(value, int):
                changed = labels.clone()
                changed[0] = value
                yield changed


def _mean_is_of_entries(module: nn.Module, unreduced: nn.Module, outputs: Any, labels: Any) -> bool:
    """Whether the module's own mean is the plain mean of its unreduced losses."""
    if getattr(module, "reduction", None) != "mean":
        return True
    try:
        mean, losses = module(outputs, labels), unreduced(outputs, labels)
    except (RuntimeError, ValueError, IndexError):  # a variant that is no valid label
        return True
    return mean.ndim == 0 and torch.allclose(mean, losses.mean(), rtol=1e-4, atol=1e-7)


def _is_local(unreduced: nn.Module, losses: torch.Tensor, outputs: Any, labels: Any) -> bool:
    """Whether the loss of the first example is the same in a batch of its own."""
    size = losses.shape[0]

    def take_first(value: Any) -> Any:
        return value[:1] if isinstance(value, torch.Tensor) and value.ndim > 0 and value.shape[0] == size else value

    try:
        alone = unreduced(pytree.tree_map(take_first, outputs), pytree.tree_map(take_first, labels))
    except (RuntimeError, ValueError, IndexError):  # it takes no batch of one
        return False
    return alone.shape == losses[:1].shape and torch.allclose(alone, losses[:1], rtol=1e-4, atol=1e-7)


def _class_weights(module: nn.CrossEntropyLoss | nn.NLLLoss, soft: bool) -> tuple[float, ...] | None:
    if module.weight is None:
        return None
    weight = tuple(float(w) for w in module.weight.detach().cpu())
    smoothing = getattr(module, "label_smoothing", 0.0)
    if smoothing > 0 and 0.0 in weight and not soft:
        raise ValueError(
            f"criterion: {type(module).__name__} has label_smoothing={smoothing} and a class of weight 0, whose "
            "examples count in the smoothing but not in torch's mean; give the class a small positive weight"
        )
    return weight
