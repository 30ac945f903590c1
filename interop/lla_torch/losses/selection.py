"""Selects, among the outputs of a network, those that a criterion is called with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from lla_jax.models import static
from lla_jax.models.adapters import misuse
from lla_torch.losses.criteria import is_from_torch

Choice = str | int | Callable[[Any], Any]


@dataclass(frozen=True)
class Entry:
    """The function that takes one entry of a network's outputs, by its name or number."""

    name: str | int

    def __call__(self, outputs: Any) -> Any:
        known = list(outputs) if isinstance(outputs, Mapping) else range(len(outputs) if _is_sequence(outputs) else 0)
        if self.name not in known and not (isinstance(self.name, int) and -len(known) <= self.name < 0):
            raise ValueError(f"outputs: {self.name!r} given; the network returns {show_outputs(outputs)}")
        return outputs[self.name]


def selection(choice: Choice | None, criterion: Any) -> Callable[[Any], Any] | None:
    """The function that gives a criterion's first argument from a network's outputs; None: all of them.

    Args:
      choice: a name or number of an entry, or a function of the outputs; None: what ``scores_among`` finds if the
        criterion is a loss module of torch's own, which takes one tensor, and otherwise all outputs.
      criterion: the criterion.

    Raises:
      ValueError: a choice of another type.
    """
    if choice is None:
        return scores_among if isinstance(criterion, nn.Module) and is_from_torch(criterion) else None
    if isinstance(choice, str | int) and not isinstance(choice, bool):
        return Entry(choice)
    if not callable(choice):
        raise misuse(
            "outputs",
            choice,
            "a function of the network's outputs, or the name or number of an entry, such as outputs='logits'",
        )
    return static(choice)


def scores_among(outputs: Any) -> Any:
    """The entry "logits" of the outputs, or the only entry of them that is an array of floats; else all outputs."""
    if isinstance(outputs, Mapping) and _is_scores(outputs.get("logits")):
        return outputs["logits"]
    if isinstance(outputs, Mapping) or _is_sequence(outputs):
        entries = [x for x in (outputs.values() if isinstance(outputs, Mapping) else outputs) if x is not None]
        if len([x for x in entries if _is_scores(x)]) == 1 and all(_is_array(x) for x in entries):
            return next(x for x in entries if _is_scores(x))
    return outputs


def needs_selection(outputs: Any, labels: Any) -> bool:
    """Whether a criterion cannot take the outputs as they are: several arrays, or classes on the last axis of many."""
    if not (_is_array(outputs) and _is_array(labels)):
        return not _is_array(outputs)
    return len(outputs.shape) == len(labels.shape) + 1 > 2 and tuple(outputs.shape[:-1]) == tuple(labels.shape)


def failure(error: Exception, module: nn.Module, outputs: Any, labels: Any, by_options: bool = False) -> ValueError:
    """The error for a loss module that fails on the network's outputs and the labels; it says what to select.

    ``by_options``: without options, such as weights of the classes, the loss module takes them.
    """
    if by_options:
        remedy = "without its options it takes them: correct these, such as its weights or reduction"
    elif not _is_array(outputs):
        remedy = "pass outputs=, the name or number of the entry it takes, or a function of the outputs"
        remedy += "" if is_from_torch(module) else "; entries are found by outputs['name'], not by outputs.name"
    elif needs_selection(outputs, labels):
        remedy = (
            "torch has the classes on axis 1: pass outputs=lambda out: out['logits'].swapaxes(1, -1) (of "
            "a network that returns one array: out.swapaxes(1, -1))"
        )
    elif labels_remedy := _way_to_labels(module, outputs, labels):
        remedy = labels_remedy
    else:
        remedy = (
            "they must be as the criterion takes them, such as one shape for both: labels[:, None] for outputs (N, 1), "
            "by outputs= and labels=, functions that give both"
        )
    return ValueError(
        f"criterion: {type(module).__name__} failed on the network's outputs, {show_outputs(outputs)}, with the "
        f"labels, {show_outputs(labels)}: {error}; {remedy}"
    )


def _way_to_labels(module: nn.Module, outputs: Any, labels: Any) -> str:
    """How to get the labels that a loss of classes takes from those given; "" where that is not the matter."""
    if not _is_array(labels):
        return ""
    if not isinstance(module, nn.CrossEntropyLoss | nn.NLLLoss | nn.MultiMarginLoss):
        same = tuple(labels.shape) == tuple(outputs.shape) and "float" not in str(labels.dtype)
        return "they must be floats: labels=lambda batch: batch[1].astype('float32'), of tensors .float()" * same
    shape, expected = tuple(labels.shape), (*outputs.shape[:1], *outputs.shape[2:])
    kind, take = "they must be the numbers of the classes, integers of shape (B,)", "labels=lambda batch: batch[1]"
    if shape == tuple(outputs.shape):
        return f"{kind}: of one-hot rows {take}.argmax(1)"
    if shape in ((*expected, 1), (expected[0], 1, *expected[1:])):
        return f"{kind}: {take}.squeeze({shape.index(1, 1)})"
    return (
        f"{kind}: {take}.astype('int32'), of tensors .long()"
        if shape == expected and any(kind in str(labels.dtype) for kind in ("float", "bool"))
        else ""
    )


def show_outputs(outputs: Any) -> str:
    """Outputs in a message: the names or numbers of their entries, with their shapes."""
    if isinstance(outputs, Mapping):
        return "a dict with " + ", ".join(f"{name!r} {_show(x)}" for name, x in outputs.items())
    if _is_sequence(outputs):
        return f"a {type(outputs).__name__} with " + ", ".join(f"{i} {_show(x)}" for i, x in enumerate(outputs))
    return f"one array of shape {_show(outputs)}"


def _show(x: Any) -> str:
    return str(tuple(x.shape)) if _is_array(x) else f"({type(x).__name__})"


def _is_sequence(x: Any) -> bool:
    return isinstance(x, tuple | list)


def _is_array(x: Any) -> bool:
    return hasattr(x, "shape") and hasattr(x, "dtype")


def _is_scores(x: Any) -> bool:
    """Whether a value is an array (of jax or torch) of floats with an axis of examples."""
    return _is_array(x) and len(x.shape) > 0 and "float" in str(x.dtype)
