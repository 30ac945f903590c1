"""Moves the free points of a curve by an optax optimizer: the default one, the checks, and its entry in a recipe."""

from __future__ import annotations

import types
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from lla_jax.core import recipes
from lla_jax.core.arguments import Misuse
from lla_jax.core.called import explain
from lla_jax.core.foreign import library_of
from lla_jax.core.identities import ByIdentity, identity
from lla_jax.core.text import stable_repr
from lla_jax.core.types import PyTree

RATE = 0.01  # of the default optimizer, in units of the distance of the ends per parameter, |b - a| / sqrt(n)
FLAT, DECAYED, LEAST = 0.5, 0.9, 0.01  # of the schedule: constant to 50 % of the steps, 1 % of that from 90 % on
MOST_DESCRIBED = 2000  # values of an optimizer that its description names


@dataclass(frozen=True)
class Optimizer:
    """The functions of an optax optimizer.

    Each of P stacked points has a state of its own, so that norms of layers, masks by path and the like mean what they
    mean for one network.

    Args:
      starts: ``init(params) -> state``.
      updates: ``update(gradient, state, params, **extra) -> (update, state)``.
      takes_value: whether ``update`` may be told the loss, as ``value=``.
      identity: by which two optimizers compare, so that an equal one compiles nothing.
    """

    starts: Any = field(compare=False)
    updates: Any = field(compare=False)
    takes_value: bool
    identity: Hashable

    def init(self, points: PyTree) -> PyTree:
        """The state at the start, stacked."""
        with explain(self.starts, "the optimizer's init", "init(params)", {"params": points}, _REMEDY, "optimizer"):
            return jax.vmap(self.starts)(points)

    def move(self, points: PyTree, state: PyTree, gradients: PyTree, value: Any, rate: Any) -> tuple[PyTree, PyTree]:
        """(points, state) after a step; to be traced.

        Args:
          points, state: before.
          gradients: stacked like the points.
          value: the loss, a scalar.
          rate: a factor of the updates: -1 times the learning rate of the default optimizer, and else 1.
        """
        given = {"gradient": gradients, "state": state, "params": points}

        def one(gradient: PyTree, before: PyTree, point: PyTree) -> tuple[PyTree, PyTree]:
            extra = {"value": value} if self.takes_value else {}
            update, after = self.updates(gradient, before, point, **extra)
            moved = jax.tree.map(lambda p, u: (p + rate * u).astype(p.dtype), point, update)
            return moved, after

        with explain(
            self.updates, "the optimizer's update", "update(gradient, state, params)", given, _REMEDY, "optimizer"
        ):
            return jax.vmap(one)(gradients, state, points)


_REMEDY = (
    "It gets the gradient, its state and the parameters of a free point, and the loss as value=, if it takes more; "
    "optimizers that evaluate the loss themselves, such as optax.lbfgs, do not work here: pass optax.adam(rate) or "
    "optax.sgd(rate, momentum=0.9)"
)


def default() -> Optimizer:
    """Adam without a learning rate, which ``default_rates`` gives from outside: so no other pair of ends compiles."""
    import optax

    return as_optimizer(optax.scale_by_adam())


def adam(rate: float) -> Any:
    """Optax's Adam of a constant learning rate."""
    import optax

    return optax.adam(rate)


def default_rates(start: int, count: int, steps: int, distance: float, size: int) -> np.ndarray:
    """(count,) float32, -1 times the default learning rate of the steps from ``start`` on.

    0.01 |b - a| / sqrt(n): constant for the first half of the steps, then falling linearly to 1 % of it at 90 % of
    them, as in the schedule of Garipov et al. 2018, arXiv:1802.10026.

    Args:
      start: number of the first step.
      count: number of steps.
      steps: of the whole training.
      distance: of the ends, |b - a|.
      size: number of parameters n.
    """
    share = (start + np.arange(count)) / steps
    factor = np.interp(share, [FLAT, DECAYED], [1.0, LEAST])
    return np.asarray(-RATE * distance / np.sqrt(size) * factor, np.float32)


def describe_default(distance: float, size: int) -> dict[str, Any]:
    """The entry of a recipe."""
    rate = RATE * distance / float(np.sqrt(size))
    return {"name": "adam", "rate": rate, "schedule": f"constant to {FLAT:g}, to {LEAST:g} at {DECAYED:g} of the steps"}


def as_optimizer(optimizer: Any) -> Optimizer:
    """The optimizer of an ``optax.GradientTransformation``.

    Raises:
      ValueError: another object: an optimizer of another library, a state, a learning rate, a schedule.
    """
    init, update = getattr(optimizer, "init", None), getattr(optimizer, "update", None)
    made = not isinstance(optimizer, type) and callable(init) and callable(update) and isinstance(optimizer, tuple)
    if not made:
        raise Misuse("optimizer", f"{_show(optimizer)} given; it must be an optax optimizer, {_advise(optimizer)}")
    import optax

    extra = isinstance(optimizer, optax.GradientTransformationExtraArgs)
    return Optimizer(init, update, extra, _identity((init, update)))


def _identity(value: Any) -> Hashable:
    """A stand-in for what optax made: its functions are made anew in each call, and compare by all that they hold."""
    if isinstance(value, types.FunctionType) and value.__module__.partition(".")[0] == "optax":
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return (value.__code__, *map(_identity, (cells, value.__defaults__, value.__kwdefaults__)))
    if isinstance(value, tuple | list):
        return (type(value), *map(_identity, value))
    if isinstance(value, dict):
        return (dict, *((key, _identity(x)) for key, x in value.items()))
    try:
        return identity(value)
    except TypeError:  # it may change
        return ByIdentity(value)


def _show(value: Any) -> str:
    plain = isinstance(value, bool | int | float | str | types.NoneType)
    return repr(value) if plain else f"a {getattr(value, '__name__', None) or type(value).__name__}"


def _advise(value: Any) -> str:
    library = library_of(value)
    if library == "torch":
        return "such as optax.sgd(0.01, momentum=0.9); those of PyTorch train torch modules alone"
    if library == "flax.nnx":
        return "such as optax.adam(1e-3): pass it without the nnx.Optimizer around it"
    if any(library_of(x) == "optax" for x in (value, *(value if isinstance(value, tuple | list) else ()))):
        return "such as optax.adam(1e-3), and not its state: pass what made the state by optimizer.init(params)"
    if isinstance(value, type) or callable(value):
        return "such as optax.adam(1e-3): call what makes one, or put a schedule into it, optax.adam(schedule)"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"such as optax.adam({value!r})"
    return "such as optax.adam(1e-3) or optax.sgd(0.01, momentum=0.9)"


# --- its description


def describe(optimizer: Optimizer) -> dict[str, Any]:
    """The entry of a recipe: the names of the functions of an optimizer, and the numbers that they hold.

    Functions of the user's own, such as schedules, are known by their names, numbers and constants; other changes show
    in the values of the first step.
    """
    return {"update": _describe(optimizer.updates, [0], {})}


def _describe(value: Any, count: list[int], met: dict[int, Any]) -> Any:
    """A value as JSON: numbers and strings as they are, functions by their names and all that they hold."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    count[0] += 1
    if id(value) in met or count[0] > MOST_DESCRIBED:
        return "..."
    met[id(value)] = value  # held, so that no other object gets its id

    def inner(x: Any) -> Any:
        return _describe(x, count, met)

    if isinstance(value, types.MethodType):
        return [inner(value.__func__), inner(value.__self__)]
    if isinstance(value, types.FunctionType):
        return _describe_function(value, inner)
    if hasattr(value, "func") and hasattr(value, "keywords"):  # functools.partial
        return [inner(value.func), *map(inner, value.args), {k: inner(v) for k, v in value.keywords.items()}]
    if isinstance(value, Mapping):
        return {str(k): inner(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [inner(x) for x in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return recipes.fingerprint(value) if np.ndim(value) or isinstance(value, jax.Array) else value.tolist()
    if isinstance(value, type) or callable(value):
        return str(getattr(value, "__qualname__", type(value).__qualname__))
    return stable_repr(value)


def _describe_function(f: types.FunctionType, inner: Callable[[Any], Any]) -> Any:
    held: dict[str, Any] = {}
    for name, cell in zip(f.__code__.co_freevars, f.__closure__ or (), strict=True):
        try:
            content = cell.cell_contents
        except ValueError:  # a cell that is still empty
            continue
        held[name] = inner(content)
    for number, default in enumerate(f.__defaults__ or ()):
        held[f"default {number}"] = inner(default)
    if f.__module__.partition(".")[0] not in ("optax", "jax", "functools"):  # the user's own
        held["constants"] = [x for x in f.__code__.co_consts if isinstance(x, int | float) and not isinstance(x, bool)]
    return {f.__qualname__.replace(".<locals>", ""): held} if held else f.__qualname__.replace(".<locals>", "")
