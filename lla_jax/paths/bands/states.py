"""How far a band is, its start, and its store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from lla_jax.core import recipes
from lla_jax.core.types import PyTree, Recipe
from lla_jax.paths.bands.climbing import Climb, start_climb
from lla_jax.paths.bands.steps import Band
from lla_jax.paths.host_trees import unstack
from lla_jax.paths.training.assembly import Training
from lla_jax.paths.training.control_points import SAME_LOSS, start_of
from lla_jax.paths.training.stores import from_arrays, to_arrays


class Top(NamedTuple):
    """Where the highest point of the trained band is, and how far it has climbed.

    Args:
      low: the number of the pivot that it is, or that lies before it.
      weight: how far it lies from that pivot to the next one; 0 for the pivot itself.
      loss: where the climb began, over all examples.
      losses: (K,) of the pivots, likewise.
      climb: the climbing image.
    """

    low: int
    weight: float
    loss: float
    losses: np.ndarray
    climb: Climb

    def neighbours(self) -> tuple[int, int] | None:
        """The numbers of the pivots before and behind it; None where it is an end."""
        if self.weight:
            return self.low, self.low + 1
        return None if self.low in (0, len(self.losses) - 1) else (self.low - 1, self.low + 1)


class State(NamedTuple):
    """How far a band is.

    Args:
      step: steps of the optimizer that are done.
      band: the pivots.
      losses: the largest loss of the pivots in each step; one more than ``step`` where a step failed.
      cycles: (number of pivots, the largest loss) at the end of each cycle that is done.
      top: None before the climb.
      failed: whether the last loss belongs to a step that was not finite.
    """

    step: int
    band: Band
    losses: tuple[float, ...]
    cycles: tuple[tuple[int, float], ...]
    top: Top | None = None
    failed: bool = False

    @property
    def done(self) -> int:
        """Steps of the optimizer and of the climbing image."""
        return self.step + (0 if self.top is None else int(self.top.climb.step))


def start(training: Training, points: int, displacement: float) -> State:
    """The straight line with ``points`` inner pivots, which are all displaced to one side of it."""
    ends = training.ends
    inner = jax.tree.map(jax.numpy.asarray, start_of(training, training.key, points + 2, displacement))
    first, last = (jax.tree.map(jax.numpy.asarray, x) for x in (ends.a, ends.b))
    pivots = [first, *unstack(inner), last]
    band = Band(pivots, np.linspace(0, 1, points + 2), [_memory(training, first)] * points)
    return State(0, band, (), ())


def _memory(training: Training, params: PyTree) -> PyTree:
    """The optimizer's memory before the first step, as for one stacked point."""
    return training.optimizer.init(jax.tree.map(lambda x: x[None], params))


def names(training: Training) -> tuple[str, ...]:
    """The entries of its recipe that a store must share: the cycles follow from the number of steps."""
    return tuple(dict.fromkeys((*training.compared, "steps", "points", "displacement", "band")))


def save(training: Training, recipe: Recipe, state: State) -> None:
    """Keep a state in the store, if there is one."""
    if training.keeper.path is None:
        return
    band, top = state.band, state.top
    header = {
        "recipe": recipe,
        "step": state.step,
        "failed": state.failed,
        "pivots": len(band.pivots),
        "cycles": [list(each) for each in state.cycles],
        "top": None if top is None else [top.low, top.weight, top.loss],
    }
    arrays = {"knots": band.knots, "loss": np.array(state.losses, np.float64)}
    arrays |= to_arrays("pivot", band.pivots[1:-1]) | to_arrays("memory", band.memory)
    if top is not None:
        arrays |= {"pivot loss": top.losses} | to_arrays("climb", top.climb)
    training.keeper.save(header, arrays)


def load(training: Training, recipe: Recipe) -> State | None:
    """The state in the store; None if there is none.

    Raises:
      ValueError: it is that of another training, or damaged.
    """
    kept = training.keeper.load(recipe, names(training))
    if kept is None:
        return None
    try:
        return _read(training, kept.header, kept.arrays)
    except Exception as error:  # of a changed file, of any type
        raise training.keeper.damaged(error) from error


def _read(training: Training, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> State:
    count, step, failed = int(header["pivots"]), int(header["step"]), bool(header["failed"])
    knots, losses = arrays["knots"], arrays["loss"]
    right = knots.shape == (count,) and count >= 3 and losses.shape == (step + failed,) and step <= training.steps
    if not right or not (np.diff(knots) > 0).all() or knots[0] != 0 or knots[-1] != 1:
        raise ValueError("its arrays are not as long as its header says")
    first, last = (jax.tree.map(jax.numpy.asarray, x) for x in (training.ends.a, training.ends.b))
    inner = from_arrays("pivot", arrays, [first] * (count - 2))
    memory = from_arrays("memory", arrays, [_memory(training, first)] * (count - 2))
    band = Band([first, *inner, last], knots.astype(np.float64), memory)
    cycles = tuple((int(n), float(v)) for n, v in header["cycles"])
    top = None
    if header["top"] is not None:
        (low, *numbers), pivot_losses = header["top"], arrays["pivot loss"]
        low, weight, loss = int(low), *map(float, numbers)
        inside = 0 <= low < count and 0 <= weight < 1 and low + (weight > 0) < count
        if not inside or step < training.steps or pivot_losses.shape != (count,):
            raise ValueError("its highest point lies outside of the band")
        top = Top(low, weight, loss, pivot_losses, from_arrays("climb", arrays, start_climb(first)))
    return State(step, band, tuple(losses.tolist()), cycles, top, failed)


def check_first_loss(training: Training, kept: State, now: float) -> None:
    """Raise an error unless the loss of the first step, computed again, is that of the store: a function has no name.

    Raises:
      Differs: it is another one.
    """
    then = kept.losses[0]
    if not recipes.is_close(then, now, SAME_LOSS, 0.0):
        text = f"its loss: {then:.6g} -> {now:.6g}"
        raise training.keeper.other_training(text, "the loss")
