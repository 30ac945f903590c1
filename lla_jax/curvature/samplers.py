"""Samplers of targets for the Monte Carlo Fisher matrix, ``sampler(key, outputs, example) -> example`` for one example.

Options are given by ``functools.partial``, as in ``sample=functools.partial(lla.operators.categorical, axis=0)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse
from lla_jax.core.signatures import explained


@explained
def categorical(
    key: Any, outputs: Any, example: Any, *, temperature: float = 1.0, axis: int = -1, target: int | str = 1
) -> Any:
    """The example with another label, drawn from softmax(outputs / temperature); each entry of it by itself.

    Args:
      key: a ``jax.random`` key.
      outputs: scores of one example, of the label's shape with the classes as a further axis.
      example: a tuple or list ``(inputs, label, ...)`` or a dict; all but the target, such as weights, stays.
      temperature: what the criterion divides the scores by.
      axis: the axis of the classes in ``outputs``.
      target: number or name of the entry of the example that is the integer label. Labels that are no class, such as
        -100 for what is ignored, stay.

    Raises:
      ValueError: the example or the outputs are something else.
    """
    label = _entry(example, target, "categorical")
    is_class = hasattr(label, "dtype") and jnp.issubdtype(label.dtype, jnp.integer)
    scores = jnp.moveaxis(outputs, axis, -1) if getattr(outputs, "ndim", 0) else outputs
    if not is_class or not hasattr(scores, "shape") or scores.shape[:-1] != label.shape:
        raise Misuse(
            "sample",
            "categorical draws classes, which needs examples (inputs, integer label, ...) and scores as outputs, of "
            "the label's shape and a further axis of classes; pass axis= or target=, or another sampler",
        )
    drawn = draw_classes(key, scores / temperature, label)
    return _with_entry(example, target, drawn)


def draw_classes(key: Any, scores: Any, label: Any) -> Any:
    """Classes drawn from softmax(scores) along the last axis, in the label's type; labels that are no class stay."""
    drawn = jax.random.categorical(key, _tree.widen(scores))
    return jnp.where((label >= 0) & (label < scores.shape[-1]), drawn, label).astype(label.dtype)


@explained
def bernoulli(
    key: Any,
    outputs: Any,
    example: Any,
    *,
    temperature: float = 1.0,
    probabilities: bool = False,
    target: int | str = 1,
) -> Any:
    """The example with another target, 0 or 1, that is 1 with probability sigmoid(outputs / temperature).

    Args:
      key: a ``jax.random`` key.
      outputs: logits of one example, as many as the target has entries.
      example: as for ``categorical``.
      temperature: what the criterion divides the logits by.
      probabilities: whether the outputs are the probabilities themselves.
      target: as for ``categorical``.

    Raises:
      ValueError: the example or the outputs are something else.
    """
    old = _entry(example, target, "bernoulli")
    chance = outputs if probabilities else jax.nn.sigmoid(outputs / temperature)
    drawn = jax.random.bernoulli(key, _like(chance, old, "bernoulli"))
    return _with_entry(example, target, drawn.astype(old.dtype))


@explained
def gaussian(key: Any, outputs: Any, example: Any, *, variance: float = 1.0, target: int | str = 1) -> Any:
    """The example with another target, drawn from the normal distribution with mean ``outputs``.

    Args:
      key: a ``jax.random`` key.
      outputs: the means for one example, as many as the target has entries.
      example: as for ``categorical``.
      variance: of every entry: s for the criterion sum((outputs - target)^2) / (2 s), so 1/2 for a sum of squares,
        and D/2 for the mean of D squares.
      target: as for ``categorical``.

    Raises:
      ValueError: the example or the outputs are something else.
    """
    mean = _like(outputs, _entry(example, target, "gaussian"), "gaussian")
    drawn = mean + jnp.sqrt(jnp.asarray(variance, mean.dtype)) * jax.random.normal(key, mean.shape, mean.dtype)
    return _with_entry(example, target, drawn)


@explained
def poisson(key: Any, outputs: Any, example: Any, *, log_rate: bool = True, target: int | str = 1) -> Any:
    """The example with another target, a count drawn from the Poisson distribution with the rate exp(outputs).

    Args:
      key: a ``jax.random`` key of the kind "threefry2x32", jax's default.
      outputs: logarithms of the rates for one example, as many as the target has entries.
      example: as for ``categorical``.
      log_rate: False where the outputs are the rates themselves.
      target: as for ``categorical``.

    Raises:
      ValueError: the example or the outputs are something else.
    """
    old = _entry(example, target, "poisson")
    rate = _like(jnp.exp(outputs) if log_rate else outputs, old, "poisson")
    return _with_entry(example, target, jax.random.poisson(key, rate).astype(old.dtype))


def _entry(example: Any, target: int | str, name: str) -> Any:
    try:
        return example[target]
    except (TypeError, KeyError, IndexError) as error:
        kind = f"a dict with {sorted(map(str, example))}" if isinstance(example, Mapping) else type(example).__name__
        raise Misuse(
            "sample",
            f"{name} looks for the target at {target!r} of an example, which is {kind}; pass target=, such as "
            f'functools.partial(lla.operators.{name}, target="label"), or a function of your own',
        ) from error


def _with_entry(example: Any, target: int | str, value: Any) -> Any:
    if isinstance(example, Mapping):
        return {**example, target: value}
    entries = list(example)
    entries[target] = value  # type: ignore[index]
    return type(example)(*entries) if hasattr(example, "_fields") else type(example)(entries)


def _like(values: Any, old: Any, name: str) -> Any:
    if not hasattr(values, "size") or values.size != jnp.size(old):
        raise Misuse(
            "sample",
            f"{name} draws a target of shape {jnp.shape(old)} from outputs of shape {jnp.shape(values)}; there must be "
            "one output for each entry. Pass target=, or a sampler of your own",
        )
    return values.reshape(jnp.shape(old))
