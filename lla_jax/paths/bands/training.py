"""Trains a nudged elastic band between two solutions, adds pivots where needed, and finds the saddle on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

import jax
import numpy as np

from lla_jax.core import tree as _tree
from lla_jax.core.arguments import warn_caller
from lla_jax.core.interrupts import deferred_interrupts, wait
from lla_jax.core.types import PyTree, Recipe
from lla_jax.paths.bands import states
from lla_jax.paths.bands.climbing import floor_of, start_climb
from lla_jax.paths.bands.polylines import knots_of
from lla_jax.paths.bands.saddle_search import climb_once, find_highest, is_over, lowest_eigenvalues
from lla_jax.paths.bands.saddles import Saddle
from lla_jax.paths.bands.settings import Settings
from lla_jax.paths.bands.states import State, Top
from lla_jax.paths.bands.steps import insert_pivots, take_step
from lla_jax.paths.curves import Curve
from lla_jax.paths.host_trees import stack
from lla_jax.paths.training.assembly import Training
from lla_jax.paths.training.batch_slopes import with_fresh_noise
from lla_jax.paths.training.full_slopes import Pass, full_slope, one_pass

SAME_HEIGHT = 0.01  # of the height of the band above the higher end
FLAT = 1e-4  # of the height at which a band began: lower ones lie in one valley
CLIMB_MOST = 300  # steps of the climbing image by default


def connect_band(training: Training, **options: Any) -> Curve:
    """Train a nudged elastic band, and let its highest point climb to a saddle.

    In each step all inner pivots get the gradients of one batch, without their parts along the band: g - (g.t) t with
    the improved tangent t. Then the pivots are put back to their shares of the band's length, in place of springs. In
    the end the highest point, looked for on the pivots and between them, moves up along the band and down across it.

    Args:
      training: the ends and how to train, as ``connect`` has checked them.
      options: those of ``Settings``.

    Returns:
      A ``Curve`` of kind "band" with its pivots, their knots by length, and its ``saddle``. ``history``: "loss"
      (steps,), the largest loss of the pivots on the batch of each step; "cycle_pivots" and "cycle_max_loss" (cycles,),
      the number of all pivots and the largest loss in the last step of each cycle; "pivot_t" and "pivot_loss" (K,),
      where the pivots lie and their losses over all examples in the end.

    Raises:
      ValueError: an option out of its range; a store with another training.

    Warns:
      UserWarning: the climbing image has not converged; numbers that are not finite ended the training, in which case
        there is no saddle.

    References: Draxler et al. 2018, arXiv:1803.00885; Henkelman, Uberuaga and Jonsson 2000 (climbing image). Where we
    differ from the former: (1) pivots are inserted only where a gap exceeds a tenth of the losses' range and lies above
    both ends; (2) they keep their shares of the length, and are not spaced anew; (3) the climbing image.
    """
    settings = Settings(**options)
    entries = asdict(settings)
    recipe = {**training.recipe, "points": entries.pop("points"), "displacement": entries.pop("displacement")}
    recipe["band"] = entries
    over = one_pass(training.batches, training.ends.loss)
    most = _climb_steps(training, settings, over)
    begun = states.start(training, settings.points, settings.displacement)
    state = states.load(training, recipe)
    if state is None:
        state = begun
    elif state.losses:
        first = next(_steps(training, settings, begun, over, most))
        states.check_first_loss(training, state, first.losses[0])
    state = _follow(training, recipe, state, _steps(training, settings, state, over, most), training.steps + most)
    return _finish(training, settings, recipe, state, over)


# --- the training


def _follow(training: Training, recipe: Recipe, state: State, steps: Iterator[State], total: int) -> State:
    """Take all steps, keep them, and tell the progress; the last state."""
    kept = state
    with deferred_interrupts() as check:
        try:
            check()
            for state in steps:
                if state.done % training.save_every == 0:
                    states.save(training, recipe, state)
                    kept = state
                if training.progress is not None:
                    training.progress(state.done, total)
                check()
            if training.progress is not None and state.done < total:  # the climb was short
                training.progress(total, total)
        finally:  # after an interrupt, too
            if state is not kept:
                states.save(training, recipe, state)
    return state


def _climb_steps(training: Training, settings: Settings, over: Pass) -> int:
    if settings.climb is not None:
        return settings.climb
    return min(CLIMB_MOST, max(1, training.steps * settings.points // over.count))


def _steps(training: Training, settings: Settings, state: State, over: Pass, most: int) -> Iterator[State]:
    """The states after each further step, of the optimizer and then of the climbing image."""
    loss, precision = training.ends.loss, training.precision
    starts = [training.steps * cycle // settings.cycles for cycle in range(1, settings.cycles)]
    draws = training.batches.from_step(state.step)
    while state.step < training.steps and not state.failed:
        step, draw, band = state.step, next(draws), state.band
        fresh = with_fresh_noise(loss, step)
        for _ in range(starts.count(step) if step else 0):
            band = insert_pivots(band, fresh, draw, settings.samples, settings.insert, precision)
        rate = training.rates(step, 1)[0]
        band, highest, good = take_step(band, fresh, draw, training.weight_decay, training.optimizer, rate, precision)
        losses = (*state.losses, highest)
        if not good:
            state = state._replace(losses=losses, failed=True)
        else:
            ends = step + 1 in starts or step + 1 == training.steps
            state = State(step + 1, band, losses, state.cycles + ends * ((len(band.pivots), highest),))
        yield state
    if state.failed:
        return
    if state.top is None:
        best = find_highest(loss, state.band.pivots, over, settings.samples, precision)
        state = state._replace(top=Top(best.low, best.weight, best.loss, best.losses, start_climb(best.params)))
        yield state
    top = state.top
    assert top is not None
    two = top.neighbours()
    if two is None:
        return
    neighbours, beside = _tree.stack([state.band.pivots[i] for i in two]), top.losses[list(two)]
    floor = floor_of(top.loss, beside, top.losses[[0, -1]])
    while not is_over(top.climb, most, settings.tolerance):
        top = top._replace(climb=wait(climb_once(top.climb, neighbours, beside, floor, loss, over, precision)))
        state = state._replace(top=top)
        yield state


# --- the result


def _finish(training: Training, settings: Settings, recipe: Recipe, state: State, over: Pass) -> Curve:
    pivots, saddle, losses = list(state.band.pivots), None, np.zeros(0)
    if state.failed:
        warn_caller(
            f"steps: a loss or gradient of the band is not finite at step {state.step} (largest loss "
            f"{state.losses[-1]:g}); the band after the {state.step} steps before is returned, its recipe says so: "
            "lower the learning rate of the optimizer, or clip its gradients"
        )
    else:
        pivots, losses, at, found = _with_top(training, settings, pivots, state, over)
        saddle = replace(found, t=float(knots_of(pivots)[at]))
        if settings.curvature:
            size, draws = recipe["batch_size"], jax.random.fold_in(training.key, 1)
            lowest, negative = lowest_eigenvalues(
                training.ends.loss, saddle.params, training.data, draws, size, training.precision
            )
            saddle = replace(saddle, eigenvalues=lowest, negative=negative)
    points = stack(pivots)
    knots = knots_of(pivots)
    history = {
        "loss": np.array(state.losses),
        "cycle_pivots": np.array([count for count, _ in state.cycles]),
        "cycle_max_loss": np.array([value for _, value in state.cycles]),
        "pivot_t": knots,
        "pivot_loss": losses,
    }
    recipe = {**recipe, "complete": not state.failed, "stopped": state.step if state.failed else None}
    return Curve("band", points, knots, training.ends.states, history, recipe, saddle)


def _with_top(
    training: Training, settings: Settings, pivots: list[PyTree], state: State, over: Pass
) -> tuple[list[PyTree], np.ndarray, int, Saddle]:
    """(the pivots with the top among them, their losses, its number, what is known of it)."""
    top = state.top
    assert top is not None
    loss, precision, climb = training.ends.loss, training.precision, top.climb
    at, is_end = top.low + (top.weight > 0), top.neighbours() is None
    if is_end or not np.isfinite(float(climb.best_norm)):  # no step was taken
        params = pivots[at] if is_end else climb.params
        value, gradient = full_slope(loss, params, over, precision)
        norm = across = float(_tree.norm(gradient))
    else:
        params, value = climb.best, float(climb.best_loss)
        norm, across = float(climb.best_norm), float(climb.best_across)
    small = not is_end and norm <= settings.tolerance
    others = np.delete(top.losses, slice(max(at - 1, 0), at + 2 - (top.weight > 0)))  # all pivots but those beside it
    higher = float(others.max(initial=-np.inf))
    converged = small and not higher - value > SAME_HEIGHT * (top.loss - max(top.losses[[0, -1]]))
    begun = float(np.nanmax(state.losses, initial=top.loss)) - max(top.losses[[0, -1]])
    if small and not converged and higher - value > FLAT * begun:  # a band that has come down has no top
        warn_caller(
            f"steps: another pivot of the band has the loss {higher:.6g}, above that of the saddle to which its "
            f"highest point has climbed, {value:.6g}; saddle.converged is False: pass more steps="
        )
    if not is_end and not small and int(climb.step):
        warn_caller(
            f"tolerance: {settings.tolerance:g} not reached by the climbing image in {int(climb.step)} steps; at "
            f"curve.saddle the gradient has the norm {norm:.2g}, and converged is False: pass more steps=, a larger "
            "climb= or a larger tolerance="
        )
    losses, params = list(top.losses), jax.tree.map(np.asarray, params)
    if not is_end:
        keep = slice(at, at + (top.weight == 0))
        pivots[keep], losses[keep] = [params], [value]
    return pivots, np.array(losses), at, Saddle(0.0, params, float(value), norm, across, converged)
