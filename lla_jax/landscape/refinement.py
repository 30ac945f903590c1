"""Adaptive refinement: which points of a grid to evaluate next, until the others follow by interpolation.

A round of points is chosen, evaluated by the caller, and told. A coarse lattice comes first; then points where the
error that ``interpolation`` expects is above the tolerance; and when it is nowhere, a look: fresh points, drawn at
random, whose errors bound that of the interpolant (``held_out``). The result is the interpolant that was judged. Where
the look finds larger errors, its points join the others, the expectation is raised to what was found, and refinement
goes on.
"""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from lla_jax.core.arguments import check_choice, check_number, misuse
from lla_jax.core.signatures import explained
from lla_jax.landscape import choosing, filling, held_out
from lla_jax.landscape.filling import Cells, Filling

Scale = Literal["auto", "linear", "log"]

WORTH = 0.7  # of all points: where this many would be evaluated, all are
CAREFUL = 2.5  # times the error that is expected has to be below the tolerance, at least
NOISE = 0.4  # of the errors of points left out: those of noise do not get smaller where points are closer
LASTING = 4  # rounds in a row whose points look like noise are noise; one is where most cells are expected to be off
AS_NOISE = (0.4, 1.6)  # the errors of noise in multiples of the standard errors
FALL = 0.75  # of those of the round before: the errors of a surface fall as fast, those of noise do not
OPEN = 0.05  # of cells that are surely finite may be expected above the tolerance: the bound is that of 95 %
DOUBT = 0.03  # of the cells may be open whether they are finite: then their borders are as sharp as is needed
MOST_RANK, CELLS_PER_RANK = 5, 5000  # a large grid can afford a bound that a few outliers do not raise


@explained
@dataclass(frozen=True)
class Refine:
    """How a landscape is refined, made by ``refine``.

    Args:
      rtol: largest error, in multiples of the picture's range.
      scale: of the picture.
    """

    rtol: float = 0.01
    scale: Scale = "auto"


@explained
def refine(rtol: float = 0.01, *, scale: Scale = "auto") -> Refine:
    """Ask ``evaluate`` for fewer points: those that the surface needs, the others interpolated.

    Args:
      rtol: the error allowed, in multiples of the range of the picture of the loss: 0.01 is a hundredth of the way from
        its lowest to its highest point. It holds for 95 % of the interpolated points with 95 % confidence.
      scale: of the picture: "linear", "log", or "auto", the scale that the pictures choose: logarithmic where all
        values are above 0 and span a factor over 1000.

    Returns:
      A ``Refine``, for ``lla.evaluate(..., refine=lla.refine(rtol=0.01))``.

    Raises:
      ValueError: rtol not between 0 and 1, an unknown scale.
    """
    rtol = check_number("rtol", rtol, remedy="such as 0.01")
    if rtol >= 1:
        raise misuse("rtol", rtol, "below 1, a fraction of the range of the picture such as 0.01")
    check_choice("scale", scale, ("auto", "linear", "log"))
    return Refine(rtol, scale)


class Known(NamedTuple):
    """The values that are known, over the full grid (n1, .., nk).

    Args:
      values: by name; anything where not evaluated, NaN or infinite where the network gave that.
      stderr: by name, as the values.
      evaluated: whether a point was evaluated.
    """

    values: dict[str, np.ndarray]
    stderr: dict[str, np.ndarray]
    evaluated: np.ndarray


class Refined(NamedTuple):
    """A refined landscape.

    Args:
      values: by name, over the full grid: evaluated ones as they are, others interpolated.
      stderr: by name; of interpolated points those of their neighbours and half of the stated error, as the root of the
        sum of squares.
      about: of the refinement, for a recipe.
    """

    values: dict[str, np.ndarray]
    stderr: dict[str, np.ndarray]
    about: dict[str, Any]


class _Look(NamedTuple):
    """Fresh points, and how the interpolant that they judge did.

    Args:
      drawn: their flat indices.
      rank: of the error that bounds, the largest being 1.
      number: of looks so far.
    """

    drawn: np.ndarray
    rank: int
    number: int


def rounds(refine: Refine, coords: tuple[np.ndarray, ...], group: int = 1) -> Generator[np.ndarray, Known, Refined]:
    """Yield the points to evaluate next, round by round, and return the refined landscape.

    It depends on nothing but the values of the points that it asked for: called again with the same values it asks for
    the same points, whatever else is known.

    Args:
      refine: the tolerance.
      coords: the grid, one 1-D array per axis.
      group: number of points that are computed together; rounds are filled up to a multiple of it where that is useful.

    Yields:
      Flat indices (row-major) of points that were not asked for before, int64; is sent all that is known.

    Returns:
      The landscape: values over the full grid and the stated error.
    """
    cells = Cells(tuple(np.asarray(c, float) for c in coords))
    asked = np.zeros(cells.size, bool)
    first = choosing.lattice(cells, group)
    looked = held_out.choose_number(cells.size - len(first), 1, held_out.chance_of_look(0))
    if len(first) + looked < WORTH * cells.size:
        found = yield from _search(refine, cells, asked, group, first)
        if found is not None:
            return found
    return _complete(refine, (yield _ask(asked, np.flatnonzero(~asked))))


def _ask(asked: np.ndarray, flat: np.ndarray) -> np.ndarray:
    asked[flat] = True
    return flat.astype(np.int64)


def _search(
    refine: Refine, cells: Cells, asked: np.ndarray, group: int, first: np.ndarray
) -> Generator[np.ndarray, Known, Refined | None]:
    """Refine until a look finds the errors small enough; None where all points are worth evaluating."""
    known = yield _ask(asked, first)
    careful, looks, is_noise, noisy, size = CAREFUL, 0, False, 0, math.inf
    for number in itertools.count():
        one = _fit(refine, cells, np.flatnonzero(asked), known)
        if one is None:
            return None
        flat = choosing.candidates(one, asked, number)
        excess = _excess(refine, one, flat, careful)
        left = np.flatnonzero(~asked)
        too_many = asked.sum() + choosing.count_needed(one, flat, excess, len(left)) > WORTH * cells.size
        if too_many and looks:
            return None
        few = 0 if filling.doubt(one, flat).any() else OPEN * len(flat)
        # for a few cells a call costs as much as for a group
        if (excess > 1).sum() > max(group // 4, few) and not too_many and not is_noise:
            chosen = choosing.choose(one, asked, flat, excess, group)
            known = yield _ask(asked, chosen)
            size, before = _in_standard_errors(one, chosen, known), size
            noisy = noisy + 1 if _is_noise(size, before) else 0
            is_noise = noisy >= (1 if (excess > 1).mean() > 0.5 else LASTING)
            continue
        look = _draw(left, looks, cells.size, group, one)
        if asked.sum() + len(look.drawn) > WORTH * cells.size:
            return None
        looks = look.number
        known = yield _ask(asked, look.drawn)
        bound = _bound(refine, one, known, look, asked)
        size, before = _in_standard_errors(one, look.drawn, known), size
        is_noise = _is_noise(size, before)
        if bound <= refine.rtol or (is_noise and math.isfinite(bound)):
            return _fill(refine, one, known, look, asked)
        careful, is_noise, noisy = max(careful, _observe(one, look.drawn, known)), False, 0
    return None


def _name(known: Known) -> str:
    """The value that is refined: the loss."""
    return "loss" if "loss" in known.values else next(iter(known.values))


def _scale(refine: Refine, name: str, known: Known) -> str:
    return refine.scale if name == _name(known) else "auto"


def _fit(refine: Refine, cells: Cells, at: np.ndarray, known: Known) -> Filling | None:
    return filling.fill(cells, at, known.values[_name(known)].ravel()[at], refine.scale)


def _excess(refine: Refine, one: Filling, flat: np.ndarray, careful: float) -> np.ndarray:
    """The expected errors of cells (q,) in multiples of the tolerance; above 1 where it is open if a cell is finite."""
    excess = careful * filling.expect(one, flat) / (refine.rtol * filling.span(one.values, one.log) or 1.0)
    doubted = filling.doubt(one, flat)
    return np.where(doubted, np.maximum(excess, 2.0), excess) if doubted.mean() > DOUBT else excess


def _draw(left: np.ndarray, looks: int, size: int, group: int, one: Filling) -> _Look:
    """Fresh points at random among the cells without a value; the values seed them, so that planes differ in theirs."""
    chance = held_out.chance_of_look(looks)
    least = held_out.choose_number(len(left), 1 + min(size // CELLS_PER_RANK, MOST_RANK - 1), chance)
    number = min(choosing.round_up(least, group), len(left))
    while number < len(left) and not held_out.choose_rank(len(left), number, chance):
        number += 1  # the 5 % of the rest are whole cells: where a few more points leave one less, none may bound it
    seed = zlib.crc32(np.ascontiguousarray(one.values, "<f8").tobytes())
    drawn = np.random.default_rng([seed, looks]).choice(left, number, replace=False)
    return _Look(np.sort(drawn), held_out.choose_rank(len(left), number, chance), looks + 1)


def _bound(refine: Refine, one: Filling, known: Known, look: _Look, asked: np.ndarray, name: str = "") -> float:
    """The bound of the error, in multiples of the range; infinite if the fresh points change the picture's scale."""
    name = name or _name(known)
    values = known.values[name].ravel()
    if filling.is_log(values[asked], _scale(refine, name, known)) != one.log:
        return math.inf
    error = np.sort(filling.errors(one, look.drawn, values[look.drawn]))[-look.rank]
    return float(error / (filling.span(values[asked], one.log) or 1.0))


def _observe(one: Filling, flat: np.ndarray, known: Known) -> float:
    """The errors found, in multiples of the expected ones: such that 9 in 10 are within."""
    error = filling.errors(one, flat, known.values[_name(known)].ravel()[flat])
    error, expected = error[np.isfinite(error)], filling.expect(one, flat)[np.isfinite(error)]
    seen = error > 0
    return float(np.percentile(error[seen] / np.maximum(expected[seen], 1e-300), 90)) if seen.any() else 0.0


def _in_standard_errors(one: Filling, flat: np.ndarray, known: Known) -> float:
    """The median of the errors found in multiples of the standard errors; NaN if they are no noise for another reason.

    Noise is as large at points left out, which are farther from others.
    """
    name = _name(known)
    if name not in known.stderr:
        return math.nan
    values, deviation = known.values[name].ravel()[flat], known.stderr[name].ravel()[flat]
    error = filling.errors(one, flat, values)
    good = np.isfinite(error) & np.isfinite(deviation) & (deviation > 0)
    if good.sum() < max(8, len(flat) / 2) or np.median(error[good] / filling.missed(one, flat[good])) <= NOISE:
        return math.nan
    return float(np.median(error[good] / (deviation[good] / (values[good] if one.log else 1.0))))


def _is_noise(size: float, before: float) -> bool:
    """Whether errors are noise that the standard errors know of: they are as large, and no smaller than the last ones.

    Examples that are common to all points make no noise: the errors of a smooth surface fall below them.

    Args:
      size: the errors found, in standard errors.
      before: those found before; infinite if there were none, NaN if they were no noise.
    """
    low, high = AS_NOISE
    falls = math.isfinite(before) and size < FALL * before
    return low < size < high and not falls


def _fill(refine: Refine, one: Filling, known: Known, look: _Look, asked: np.ndarray) -> Refined:
    """The refined landscape, as the look found it: by the interpolants of the points before the look."""
    left = np.flatnonzero(~known.evaluated.ravel())
    fits = {name: _fit_like(one, known, name) for name in known.values}
    deviations = {name: _fit_stderr(one, fits[name], given) for name, given in known.stderr.items()}
    found = filling.predict_each([*fits.values(), *deviations.values()], left)
    values, stderr = {}, {}
    for (name, fit), new in zip(fits.items(), found):
        values[name] = _put(known.values[name], left, np.exp(new) if fit is not None and fit.log else new)
    bounds = {
        name: math.inf if fit is None else _bound(refine, fit, known, look, asked, name) for name, fit in fits.items()
    }
    logs = {name: fit is not None and fit.log for name, fit in fits.items()}
    for name, new in zip(deviations, found[len(fits) :]):
        half = bounds[name] * filling.span(known.values[name].ravel()[asked], logs[name]) / 2
        unit = values[name].ravel()[left] if logs[name] else 1.0
        stderr[name] = _put(known.stderr[name], left, np.hypot(new, half * unit))
    name = _name(known)
    met = bounds[name] <= refine.rtol
    reason = f"the errors of {len(look.drawn)} fresh points"
    if not met:
        reason = "the errors are as large as the standard errors of the points, below which nothing is refined"
    about = _about(refine, known, logs, bounds, met, reason)
    about["percentile"] = min(_percentile(fits[name], bounds[name], known, asked, name) for name in bounds)
    return Refined(values, stderr, about | {"held_out": len(look.drawn), "looks": look.number})


def _percentile(one: Filling | None, bound: float, known: Known, asked: np.ndarray, name: str) -> float:
    """The percentile that is bounded: less than 95 where other known points are many, and lie where errors are small.

    The bound is of all points that were not asked for. How many of the known ones are above it is seen.
    """
    others = np.flatnonzero(known.evaluated.ravel() & ~asked)
    if one is None or not math.isfinite(bound) or not len(others):
        return held_out.PERCENTILE
    values = known.values[name].ravel()
    unit = filling.span(values[asked], one.log) or 1.0
    seen = int((filling.errors(one, others, values[others]) > bound * unit).sum())
    unasked = int((~asked).sum())
    return held_out.percentile_of(unasked - len(others), max(0, held_out.most_above(unasked) - seen))


def _fit_like(one: Filling, known: Known, name: str) -> Filling | None:
    """What fills another value at the same points; None if it is finite hardly anywhere."""
    if name == _name(known):
        return one
    return filling.fill(one.cells, one.at, known.values[name].ravel()[one.at], "auto", one)


def _fit_stderr(one: Filling, fit: Filling | None, given: np.ndarray) -> Filling | None:
    return None if fit is None else filling.fill(one.cells, one.at, given.ravel()[one.at], "linear", one)


def _put(given: np.ndarray, left: np.ndarray, new: np.ndarray) -> np.ndarray:
    """The values (n1, .., nk) with new ones at the cells ``left``."""
    found = np.array(given, np.float64)
    found.ravel()[left] = new
    return found


def _complete(refine: Refine, known: Known) -> Refined:
    """The landscape of which all points were evaluated."""
    logs = {name: filling.is_log(values, _scale(refine, name, known)) for name, values in known.values.items()}
    reason = "all points were evaluated: fewer would not do, or not save much"
    about = _about(refine, known, logs, dict.fromkeys(known.values, 0.0), True, reason)
    return Refined(dict(known.values), dict(known.stderr), about | {"held_out": 0, "looks": 0})


def _about(
    refine: Refine, known: Known, logs: dict[str, bool], bounds: dict[str, float], met: bool, reason: str
) -> dict[str, Any]:
    """What the recipe says; errors that have no bound are None."""
    scales = {name: "log" if log else "linear" for name, log in logs.items()}
    stated = {name: bound if math.isfinite(bound) else None for name, bound in bounds.items()}
    return {
        "points": int(known.evaluated.sum()),
        "of": int(known.evaluated.size),
        "rtol": refine.rtol,
        "scale": scales[_name(known)],
        "scales": scales,
        "error": stated[_name(known)],
        "errors": stated,
        "level": held_out.LEVEL,
        "percentile": held_out.PERCENTILE,
        "met": met,
        "reason": reason,
    }
