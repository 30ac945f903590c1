"""Likelihoods of the targets in a batch, and how targets are drawn from them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from lla_jax.core import precision
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse
from lla_jax.core.called import explain
from lla_jax.core.types import Batch, Loss
from lla_jax.core.wholes import Whole, pack
from lla_jax.curvature import criteria, samplers


@dataclass(frozen=True)
class Target:
    """How the target in one leaf of a batch is drawn.

    Args:
      leaf: its number among the leaves of the batch.
      family: "categorical", "Bernoulli", "Poisson" or "Gaussian".
      output: the number of the leaf that it belongs to, among the floating leaves of the outputs.
      axis: the axis of this leaf along which the classes lie.
      form: what the outputs are to the classes: "scores", "log-probabilities" or "probabilities".
      temperature: what the criterion divides the scores by.
      one_hot: whether the target has an entry for each class, instead of its number.
      shift: 1 where the scores of a token belong to the label of the next one, as in language models; else 0.
      low: the smaller one of the two values of a Bernoulli target; the other one is 1.
    """

    leaf: int
    family: str
    output: int = 0
    axis: int = -1
    form: str = "scores"
    temperature: float = 1.0
    one_hot: bool = False
    shift: int = 0
    low: int = 0

    def __str__(self) -> str:
        if self.family != "categorical":
            return self.family
        warm = "" if self.temperature == 1 else f" / {self.temperature:g}"
        ahead = ", of the next token" if self.shift else ""
        return f"categorical over axis {self.axis} of {self.form}{warm}{ahead}"


@dataclass(frozen=True)
class Likelihood:
    """How all targets of a batch are drawn from the model."""

    targets: tuple[Target, ...]

    def __str__(self) -> str:
        return ", ".join(map(str, self.targets))


def draw(sampler: Any, loss: Loss, keys: Any, outputs: Any, batch: Batch) -> Batch:
    """The batch with targets drawn from the model.

    Args:
      sampler: a ``Likelihood``, or ``sample(key, outputs, example) -> example``.
      loss: the loss.
      keys: one for each example, (B,).
      outputs: of the model for the batch.
      batch: B examples.

    Raises:
      ValueError: the sampler returns the target alone.
    """
    outputs = precision.widen(outputs)  # a uniform number in half precision draws what is rare ten times too often
    if not isinstance(sampler, Likelihood):
        given = {"keys": keys, "outputs": outputs, "batch": batch}
        how = "sample(key, outputs, example), vmapped over the examples,"
        with explain(sampler, "the sampler", how, given, argument="sample"):
            drawn = jax.vmap(functools.partial(_draw_one, sampler))(keys, outputs, batch)
        if jax.tree_util.all_leaves([drawn]) and not jax.tree_util.all_leaves([batch]):
            raise Misuse(
                "sample",
                f"it returns an array of shape {drawn.shape[1:]} for an example; it must return the example with the "
                "drawn target in it, such as (example[0], target)",
            )
        return drawn
    leaves, structure = jax.tree.flatten(batch)
    for number, target in enumerate(sampler.targets):
        own = keys if number == 0 else jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        leaves[target.leaf] = _DRAW[target.family](target, loss, own, outputs, batch)
    return jax.tree.unflatten(structure, leaves)


def _draw_one(sampler: Callable[[Any, Any, Any], Any], key: Any, outputs: Any, example: Any) -> Any:
    """The example with a target that the user's sampler draws; of a ``Whole`` it gets and returns the user's data."""
    if not isinstance(example, Whole):
        return sampler(key, outputs, example)
    given = example.data
    drawn = sampler(key, outputs, given)
    is_target = jax.tree_util.all_leaves([drawn]) and not jax.tree_util.all_leaves([given])
    return drawn if is_target else pack(drawn)


def _draw_classes(target: Target, loss: Loss, keys: Any, outputs: Any, batch: Batch) -> Any:
    f = criteria.split_smooth(outputs)[0][target.output]
    old = jnp.asarray(jax.tree.leaves(batch)[target.leaf])
    scores = jnp.moveaxis(f, target.axis, -1) / target.temperature
    scores = jnp.log(scores) if target.form == "probabilities" else scores
    if target.shift:
        now = old[:, 1 : 1 + scores.shape[1]]
        drawn = jax.vmap(samplers.draw_classes)(keys, scores[:, : now.shape[1]], now)
        return old.at[:, 1 : 1 + scores.shape[1]].set(drawn)
    if not target.one_hot:
        scores = scores.reshape(*old.shape, -1)
        return jax.vmap(samplers.draw_classes)(keys, scores, old)
    classes = jax.vmap(jax.random.categorical)(keys, scores)
    drawn = jnp.moveaxis(jax.nn.one_hot(classes, f.shape[target.axis], dtype=old.dtype), -1, target.axis)
    counts = jnp.any(old.reshape(f.shape) != 0, axis=target.axis, keepdims=True)  # a row of zeros is no observation
    return jnp.where(counts, drawn, 0).astype(old.dtype).reshape(old.shape)


def _draw_bernoulli(target: Target, loss: Loss, keys: Any, outputs: Any, batch: Batch) -> Any:
    old, low, high = _slopes_at_two(target, loss, outputs, batch)
    chance = jnp.where(low - high > 0, low / (low - high), 0)
    drawn = jax.vmap(lambda key, p: jax.random.bernoulli(key, p))(keys, jnp.clip(chance, 0, 1))
    keep = is_invalid(old, target.low, 1) | (low == high)
    return jnp.where(keep, old, jnp.where(drawn, 1, target.low).astype(old.dtype))


def _draw_poisson(target: Target, loss: Loss, keys: Any, outputs: Any, batch: Batch) -> Any:
    old, zero, one = _slopes_at_two(target, loss, outputs, batch)
    keep = is_invalid(old, 0, None) | (zero - one <= 0)
    rate = jnp.where(keep, 0, zero / jnp.where(keep, 1, zero - one))
    drawn = jax.vmap(jax.random.poisson)(keys, jnp.maximum(rate, 0))
    return jnp.where(keep, old, drawn.astype(old.dtype))


def _draw_gaussian(target: Target, loss: Loss, keys: Any, outputs: Any, batch: Batch) -> Any:
    old, slope, curvature = expand_in_target(target.leaf, loss, outputs, batch)
    counts = curvature > 0  # not so for entries that are masked, of which NaN in place of a target is one case
    safe = jnp.where(counts, curvature, 1)
    noise = jax.vmap(lambda key: jax.random.normal(key, old.shape[1:], old.dtype))(keys)
    return jnp.where(counts, old - slope / safe + noise / jnp.sqrt(safe), old)


_DRAW: dict[str, Callable[..., Any]] = {
    "categorical": _draw_classes,
    "Bernoulli": _draw_bernoulli,
    "Poisson": _draw_poisson,
    "Gaussian": _draw_gaussian,
}


def put(batch: Batch, leaf: int, value: Any) -> Batch:
    """The batch with a value in place of one of its leaves."""
    leaves, structure = jax.tree.flatten(batch)
    return jax.tree.unflatten(structure, [value if i == leaf else x for i, x in enumerate(leaves)])


def is_invalid(target: Any, low: int, high: int | None) -> Any:
    """Entries that no distribution over [low, high] can give, such as -100, -1 or NaN for what is not observed."""
    if target.dtype == bool:
        return jnp.zeros(target.shape, bool)
    return ~((target >= low) & (target <= (jnp.inf if high is None else high)))


def _slopes_at_two(target: Target, loss: Loss, outputs: Any, batch: Batch) -> tuple[Any, Any, Any]:
    """(target, slopes with each entry of it at its low value, slopes with each at 1), all of the target's shape."""
    old = jnp.asarray(jax.tree.leaves(batch)[target.leaf])
    invalid = is_invalid(old, target.low, 1 if target.family == "Bernoulli" else None)

    def slope_at(value: int) -> Any:
        tried = put(batch, target.leaf, jnp.where(invalid, old, jnp.asarray(value, old.dtype)))
        return criteria.slopes(loss, outputs, batch, tried)[target.output].reshape(old.shape)

    return old, slope_at(target.low), slope_at(1)


def expand_in_target(leaf: int, loss: Loss, outputs: Any, batch: Batch) -> tuple[Any, Any, Any]:
    """(the target as floating array, slope, diagonal curvature) of the total loss as a function of the target."""
    old = _tree.widen(jax.tree.leaves(batch)[leaf])
    slope = jax.grad(lambda y: criteria.total(loss, outputs, batch, put(batch, leaf, y)))
    return old, *jax.jvp(slope, (old,), (jnp.ones_like(old),))
