"""Slips in pictures and films of paths, barriers, curves and bands, and in problems with checkpoints."""

from __future__ import annotations

import functools
from typing import Any
from unittest import mock

import lla_jax as lla
from lla_jax import paths, plotting
from lla_jax.output.plotting import film_files
from tests.slips.drawn import LINE as DRAWN_LINE
from tests.slips.drawn import PLANE as DRAWN_PLANE
from tests.slips.slip import table
from tests.slips.small import PARAMS
from tests.slips.walks import AXES, COORDS, DATA, LOSS, PATH, SEEN, STATE, B, rows

SLIPS, slip = table()
row = rows(slip)

CURVE = paths.bezier([PARAMS, PATH[0], B])


@functools.cache
def plane() -> Any:
    """The plane of the path."""
    return lla.evaluate(LOSS, PARAMS, DATA, AXES, paths.grid_around(SEEN, points=3))


@functools.cache
def other() -> Any:
    """The projection of a path on other axes."""
    axes = lla.directions.between(PARAMS, B, PATH[0])
    return paths.project(CURVE, axes, params=PARAMS)


def trajectory(*arguments: Any, **options: Any) -> Any:
    return plotting.trajectory(plane(), *arguments, **options)


def film(seen: Any = SEEN, path: Any = "descent.gif", **options: Any) -> Any:
    with mock.patch.object(film_files, "_ffmpeg", return_value=None):
        return plotting.film(plane(), seen, path, **options)


row(
    "a_picture_with_both_swapped",
    lambda: plotting.trajectory(SEEN, plane()),
    "plane: Projection given",
    "(plane, seen)",
)
row("a_picture_without_a_path", lambda: trajectory(), "seen: missing", "lla.paths.project")
row("a_picture_of_trees", lambda: trajectory(PATH), "seen[0]: dict given", "lla.paths.project")
row("a_picture_of_coordinates", lambda: trajectory(COORDS), "seen: ndarray", "lla.paths.project")
row("a_picture_on_another_plane", lambda: trajectory(other()), "seen: projected with other axes than the plane's")
row("a_picture_of_no_runs", lambda: trajectory([]), "seen: [] given")
row("a_picture_of_another_value", lambda: trajectory(SEEN, "acc"), "value: 'acc' given", "'loss'")
row("a_path_on_a_line", lambda: plotting.trajectory(DRAWN_LINE, SEEN), "plane: ", "draws 2 axes, and this has 1")
row("shares_of_coordinates", lambda: plotting.explained_variance(COORDS), "axes: ndarray", "lla.paths.pca(path)")
row("shares_of_a_pair", lambda: plotting.explained_variance((AXES, COORDS)), "axes: tuple given", "axes, coords =")
row("a_barrier_that_is_a_number", lambda: plotting.barrier(0.3), "b: 0.3 given", "lla.paths.barrier")
row("a_barrier_that_is_a_plane", lambda: plotting.barrier(DRAWN_PLANE), "b: Landscape", "one axis")
row("a_barrier_that_is_a_curve", lambda: plotting.barrier(CURVE), "b: Curve", "lla.paths.evaluate(curve")
row("barriers_without_names", lambda: plotting.barrier([]), "b: [] given")
row("a_curve_that_is_not_projected", lambda: plotting.curve(plane(), CURVE), "seen: Curve", "lla.paths.project")
row("a_band_of_a_bezier", lambda: plotting.band(CURVE), "curve: ", "this is a bezier")
row("a_film_of_a_file", lambda: plotting.film(plane(), "d.gif"), "seen: 'd.gif' given", "path='d.gif'")
row("a_film_of_another_ending", lambda: film(path="d.avi"), "path: 'd.avi' given", ".gif, .mp4 or .html")
row("a_film_into_no_folder", lambda: film(path="none/d.gif"), "path: 'none/d.gif' given", "make 'none'")
row("a_film_without_ffmpeg", lambda: film(path="d.mp4"), "there is no ffmpeg", "'d.gif' or 'd.html'")
row("a_film_of_no_frames", lambda: film(frames=0), "frames: 0 given", "such as 60")
row("a_film_of_one_size", lambda: film(size=1080), "size: 1080 given", "(1280, 720)")
row("contours_that_turn", lambda: film(kind="contour", turn=90), "turn: 90 given", "flat")
row("a_film_in_which_nothing_moves", lambda: film(None, kind="contour"), "seen: None given", "nothing moves")
row("a_path_saved", lambda: lla.save(paths.given(PATH), "x"), "x: Trajectory given", "lla.paths.record")

# --- problems with checkpoints


def problem(**options: Any) -> lla.Problem:
    return lla.Problem(LOSS, PARAMS, DATA, **options)


row("fewer_checkpoints_than_states", lambda: problem(checkpoints=[B], states=[STATE] * 2), "states: 2 given for 1")
row("one_state_for_all", lambda: problem(checkpoints=[B], states=STATE), "states: ", "a list of the loss's states")
row("one_checkpoint_alone", lambda: problem(checkpoints=B), "checkpoints: dict given", "[early, late]")
row("states_beside_a_path", lambda: problem(checkpoints=paths.given(PATH), states=[STATE]), "states: given with a path")
row("a_reader_by_name", lambda: problem(read="npz"), "read: 'npz' given", "a function")
