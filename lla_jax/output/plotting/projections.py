"""Reads the projection of a path for a picture: coordinates in the plane, distances off it, and both losses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lla_jax.core import recipes
from lla_jax.core.arguments import Misuse, misuse, show_value, warn_caller
from lla_jax.core.results import Landscape
from lla_jax.output.plotting import reading
from lla_jax.output.plotting.reading import Plane
from lla_jax.paths.projection.projections import Projection


class Run(NamedTuple):
    """A path of T checkpoints as pictures show it; losses that are not known are NaN, errors too."""

    name: str  # "" for the only one
    steps: np.ndarray  # (T,)
    coords: np.ndarray  # (T, 2), in units of the directions
    distance: np.ndarray  # (T,), off the plane; 0 where rounding can make it
    loss: np.ndarray  # (T,), at the checkpoint
    error: np.ndarray  # (T,), of the loss
    projected: np.ndarray  # (T,), the loss of the projection
    projected_error: np.ndarray  # (T,)
    recorded: np.ndarray  # (T,), while training

    def is_inside(self, plane: Plane) -> np.ndarray:
        """(T,): whether the projection of a checkpoint lies on the part of the plane that is drawn."""
        return plane.holds(*self.coords.T)


def read(landscape: Landscape, seen: Any, function: str) -> list[Run]:
    """The runs of one projection, or of several: a list of them, or a dict by name.

    Args:
      landscape: the plane they are drawn on, whose axes and centre must be theirs.
      seen: the user's argument.
      function: the name of the plotting function, for messages.

    Raises:
      ValueError: no projection, one of another number of axes, or of another plane.
    """
    if isinstance(seen, Mapping | list | tuple) and not len(seen):
        raise misuse("seen", seen, "one projection or more, as lla.paths.project returns them")
    runs = []
    for argument, name, projection in named(seen):
        if not isinstance(projection, Projection):
            raise reading.wrong_object(argument, projection, "what lla.paths.project(path, axes, ...) returned")
        _check_same_plane(argument, landscape, projection)
        runs.append(_run(argument, name, projection, function))
    return runs


def named(seen: Any) -> Iterator[tuple[str, str, Any]]:
    """(argument, name, projection) of each of several; of a single one, which has no name, its own."""
    if isinstance(seen, Mapping):
        yield from ((f"seen[{name!r}]", str(name), each) for name, each in seen.items())
    elif not isinstance(seen, list | tuple):
        yield "seen", "", seen
    else:
        yield from ((f"seen[{i}]", f"run {i + 1}", each) for i, each in enumerate(seen))


def _run(argument: str, name: str, projection: Projection, function: str) -> Run:
    coords = np.asarray(projection.coords, float)
    if coords.ndim != 2 or coords.shape[1] != 2:
        axes = "1 axis" if coords.ndim != 2 or coords.shape[1] == 1 else f"{coords.shape[1]} axes"
        raise Misuse(
            argument,
            f"{show_value(projection)} given; {function} draws paths on two axes, and this has {axes}: project "
            "onto two, such as axes[:2]",
        )
    if not np.isfinite(coords).all() or not len(coords):
        raise misuse(f"{argument}.coords", coords, "finite, one row per checkpoint")

    def column(values: Any) -> np.ndarray:
        return np.full(len(coords), np.nan) if values is None else np.asarray(values, float)

    distance = column(projection.distance)
    return Run(
        name,
        column(projection.steps),
        coords,
        np.where(distance <= _rounding(projection.recipe), 0.0, distance),
        column(projection.loss),
        column(projection.loss_stderr),
        column(projection.projected_loss),
        column(projection.projected_loss_stderr),
        column(projection.recorded),
    )


def _rounding(recipe: Any) -> float:
    """How far rounding alone can move a checkpoint off the plane; 0 where the recipe does not tell."""
    value = recipe.get("rounding") if isinstance(recipe, Mapping) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


def _check_same_plane(argument: str, landscape: Landscape, projection: Projection) -> None:
    """Refuse a path that was projected onto other axes, or around another centre, than those of the plane.

    What one of the recipes does not tell, as those of landscapes that a user made, is not compared.
    """
    for what, entry, key in (("other axes", "directions", "contents"), ("another centre", "params", "fingerprint")):
        prints = [_entry(each.recipe, entry, key) for each in (landscape, projection)]
        if None not in prints and not recipes.same(*prints):
            raise Misuse(
                argument,
                f"projected with {what} than the plane's, where its coordinates mean nothing; pass the same "
                "axes and params to both: lla.paths.project(path, axes, params=p), lla.evaluate(loss, p, data, axes)",
            )


def _entry(recipe: Any, entry: str, key: str) -> Any:
    """An entry of an entry of a recipe, which may come from a damaged file; None where there is none."""
    inner = recipe.get(entry) if isinstance(recipe, Mapping) else None
    return inner.get(key) if isinstance(inner, Mapping) else None


def warn_of_outside(runs: Sequence[Run], plane: Plane, what: str = "checkpoints") -> str:
    """Warn of checkpoints whose projections lie outside of the plane; a note about them, or ""."""
    outside = sum(int((~run.is_inside(plane)).sum()) for run in runs)
    if not outside:
        return ""
    words = f"{outside:,} of {sum(len(run.steps) for run in runs):,} {what}"
    warn_caller(
        f"seen: {words} lie outside of the plane, and are not drawn on it; evaluate the plane on "
        "lla.paths.grid_around(seen)"
    )
    return f"{words} outside of the plane"


def without_star_at_ends(runs: Sequence[Run], plane: Plane) -> Plane:
    """The plane without the star of the trained network where a path ends there, whose own mark it would hide."""
    room = 1e-9 * (np.ptp(plane.x) + np.ptp(plane.y))
    ends = any(np.abs(run.coords[-1]).max() <= room for run in runs)
    return plane._replace(origin=None) if ends and plane.origin == "point" else plane
