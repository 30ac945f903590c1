"""Slips with paths of training: their trees and files, recordings, components, projections and grids."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

import lla_jax as lla
from lla_jax import paths
from tests.slips.slip import table
from tests.slips.small import PARAMS
from tests.slips.walks import (
    AXES,
    CENTRED,
    COORDS,
    DATA,
    KEY,
    LOSS,
    NAN,
    OTHER,
    PATH,
    RENAMED,
    SEEN,
    STATE,
    STRAIGHT,
    B,
    rows,
)

SLIPS, slip = table()
row = rows(slip)
T = paths.given(PATH)

# --- components
row("pca_of_an_array", lambda: paths.pca(np.ones((4, 6))), "path", "list(array)")
row("pca_of_one_tree", lambda: paths.pca(PARAMS), "path: dict given", "make [params]")
row("pca_of_one_checkpoint", lambda: paths.pca([PARAMS]), "path: has 1 checkpoint", "at least 2")
row("pca_of_nothing", lambda: paths.pca([]), "path: has no checkpoints")
row("pca_of_a_folder", lambda: paths.pca("runs/traj"), "path: 'runs/traj' given", "lla.paths.load(folder)")
row("pca_of_none", lambda: paths.pca(None), "path: None given")
row("pca_of_identical_trees", lambda: paths.pca([PARAMS] * 3), "path: its 3 checkpoints are identical")
row("a_plane_of_a_straight_path", lambda: paths.pca(STRAIGHT), "rank 1", "num=2 given", "pass num=1", "join")
row("more_components_than_there_are", lambda: paths.pca(PATH, num=10), "rank 4", "num=10 given", "pass num=4")
row("pca_with_a_tree_of_nan", lambda: paths.pca([PARAMS, NAN, B]), "path[1]['w'] has 6 NaN", "find out where")
row("pca_of_other_shapes", lambda: paths.pca([PARAMS, OTHER]), "path[1]['w'] has shape (4, 2)", "(3, 2)")
row("pca_of_other_names", lambda: paths.pca([PARAMS, RENAMED]), "path[1]", "lacks ['w'] and has ['v']")
row("no_components", lambda: paths.pca(PATH, num=0), "num: 0 given", "at least 1")
row("components_as_text", lambda: paths.pca(PATH, num="2"), "num: '2' given")
row("the_number_in_place_of_the_centre", lambda: paths.pca(PATH, 2), "params: 2 given", "num=2")
row("a_centre_of_another_network", lambda: paths.pca(PATH, OTHER), "params['w'] has shape (4, 2)")
row("a_centre_of_nan", lambda: paths.pca(PATH, NAN), "params['w'] has 6 NaN")
row("trajectories_among_trees", lambda: paths.pca([T, PARAMS]), "path: its entry 0 is a trajectory", "given([tree])")
row("runs_of_two_networks", lambda: paths.pca([T, paths.given([OTHER])]), "path[1]['w'] has shape (4, 2)")
row("pca_of_integers", lambda: paths.pca([{"w": np.ones((3, 2), int)}] * 2), "path[0]['w'] has dtype int")
row("components_by_another_name", lambda: paths.pca(PATH, k=2), "no such argument", "path, params, num")

# --- projections


def project(path: Any = PATH, axes: Any = AXES, **options: Any) -> Any:
    return paths.project(path, axes, **options)


def losses(path: Any = PATH, loss: Any = LOSS, **options: Any) -> Any:
    return project(path, loss=loss, data=DATA, **options)


row("path_and_axes_swapped", lambda: project(AXES, PATH), "axes: list given", "lla.Directions")
row("what_pca_returned_as_axes", lambda: project(axes=(AXES, COORDS)), "axes: tuple given", "lla.Directions")
row("another_centre", lambda: project(params=B), "params: the parameters given are not the centre that the axes")
row("a_path_with_another_end", lambda: project(PATH[:3]), "path[-1], the default, is not the centre that the axes")
row("parallel_axes", lambda: project(axes=lla.directions.given(B, B)), "axes: its 2 directions are linearly dependent")
row("data_without_a_loss", lambda: project(data=DATA), "data: given without a loss")
row("loss_and_data_swapped", lambda: project(loss=DATA, data=LOSS), "loss: tuple given", "lla.Loss")
row("a_loss_by_name", lambda: project(loss="loss", data=DATA), "loss: 'loss' given")
row("a_loss_without_data", lambda: project(loss=LOSS), "data: the model (apply) failed")
row("an_unknown_policy", lambda: losses(batch_stats="own"), "batch_stats: 'own' given", "'reestimate'")
row("a_path_without_states", lambda: losses(loss=CENTRED), "path: holds no states", "batch_stats='reestimate'")
row("an_unknown_curvature", lambda: losses(curvature="hessian", key=KEY), "curvature: 'hessian' given", "'lambda_max'")
row("a_curvature_without_a_key", lambda: losses(curvature="trace"), "key: None given", "jax.random.key(0)")
row("a_curvature_with_a_seed", lambda: losses(curvature="trace", key=0), "key: 0 given", "jax.random.key(0)")
row(
    "a_curvature_without_a_loss", lambda: project(curvature="trace", key=KEY), "curvature: 'trace' given without a loss"
)
row("a_curvature_at_no_checkpoint", lambda: losses(curvature="trace", curvature_every=0, key=KEY), "curvature_every: 0")
row("a_number_to_resume", lambda: project(resume=3), "resume: 3 given", "on_partial")
row("another_path_to_resume", lambda: project([*PATH[:3], B, PARAMS], resume=SEEN), "resume: belongs to another path")
row("an_execution_by_name", lambda: project(execution="fast"), "execution: 'fast' given", "lla.Execution(")
row("a_metric_with_the_name_of_a_projection", lambda: losses(metrics={"projected_x": len}), "'projected_x'", "rename")
row("further_data_without_a_name", lambda: losses(extra_data=DATA), "extra_data: tuple given", "{'test':")

# --- grids
row("a_grid_around_axes", lambda: paths.grid_around(AXES), "seen: Directions", "lla.paths.project")
row("a_grid_around_a_path", lambda: paths.grid_around(PATH), "seen: list given", "lla.paths.project")
row("a_grid_around_words", lambda: paths.grid_around(np.array([["a", "b"]])), "seen: ", "coordinates of shape (T, k)")
row(
    "a_grid_around_nan", lambda: paths.grid_around(np.full((3, 2), np.nan)), "seen: has coordinates that are not finite"
)
row("a_negative_margin", lambda: paths.grid_around(SEEN, -1), "margin: -1 given", "such as 0.2")
row("a_grid_of_two_points", lambda: paths.grid_around(SEEN, points=2), "points: 2 given", "at least 3")
row("a_grid_of_three_axes", lambda: paths.grid_around(SEEN, points=(3, 3, 3)), "points: (3, 3, 3) given", "2 axes")

# --- trajectories
row("a_trajectory_of_a_tree", lambda: paths.given(PARAMS), "trees: dict given", "make [params]")
row("fewer_states_than_trees", lambda: paths.given(PATH, [STATE]), "states: 1 given for 5 checkpoints")
row("states_that_are_none", lambda: paths.given(PATH, [None] * 5), "states: entry 0 is None")
row("steps_that_fall", lambda: paths.given(PATH, steps=[4, 3, 2, 1, 0]), "steps: 4 is followed by 3", "increase")
row("steps_with_fractions", lambda: paths.given(PATH, steps=[0.5] * 5), "steps: ", "a list of integers")
row("steps_of_unequal_lists", lambda: paths.given(PATH, steps=[[1], [1, 2]]), "steps: ", "a list of integers")
row("losses_as_text", lambda: paths.given(PATH, losses="low"), "losses: 'low' given", "NaN where none is known")
row("a_checkpoint_that_is_not_there", lambda: T[9], "index: 9 given", "5 checkpoints")
row("a_trajectory_as_array", lambda: np.asarray(T), "Trajectory", "take path[i]")
row("the_parameters_of_a_trajectory", lambda: T.params, "did you mean path[i]")

# --- recordings


def track(*calls: Any, folder: str = "new") -> None:
    record = paths.record(folder, every=1)
    for call in calls:
        record(*call)


def record_nan() -> None:
    track((PARAMS, 0), (NAN, 1))
    paths.pca(paths.load("new"))


row("a_recording_into_a_file", lambda: paths.record("text"), "folder: text is a file", in_folder=True)
row("a_recording_of_no_step", lambda: paths.record("new", every=0), "every: 0 given", in_folder=True)
row("folder_and_distance_swapped", lambda: paths.record(10, "new"), "folder: 10 given", "'runs/traj'")
row("unknown_differences", lambda: paths.record("new", differences="int8"), "differences: 'int8'", in_folder=True)
row("step_and_parameters_swapped", lambda: track((3, PARAMS)), "step: dict given", "an integer", in_folder=True)
row("a_step_before_the_last", lambda: track((PARAMS, 5), (PARAMS, 3)), "step: 3 given", "at least 5", in_folder=True)
row("a_loss_as_text", lambda: track((PARAMS, 1, "low")), "loss: 'low' given", "a number", in_folder=True)
row("a_state_sometimes", lambda: track((PARAMS, 0, None, STATE), (PARAMS, 1)), "state: given then", in_folder=True)
row("another_network_later", lambda: track((PARAMS, 0), (OTHER, 1)), "params: its leaf 'w' is", in_folder=True)
row("a_folder_of_another_network", lambda: track((OTHER, 9), folder="rec"), "of another network", in_folder=True)
row("a_recording_within_jit", lambda: jax.jit(lambda p: track((p, 1)))(PARAMS), "jax.jit", in_folder=True)
row("a_recording_of_nan", lambda: record_nan(), "(step 1)['w'] has 6 NaN", in_folder=True)
row("a_folder_that_is_absent", lambda: paths.load("absent"), "folder: absent does not exist", in_folder=True)
row("an_empty_folder", lambda: paths.load("empty"), "folder: empty holds no recorded steps", in_folder=True)
row("a_recording_like_another", lambda: paths.load("rec", OTHER), "(4, 2), as in like", in_folder=True)
row("a_state_that_is_not_recorded", lambda: paths.load("rec", state_like=STATE), "state_like: given", in_folder=True)

# --- files


def read(files: Any, like: Any = PARAMS, **options: Any) -> Any:
    return paths.from_checkpoints(files, like, **options)


row("a_pattern_of_nothing", lambda: read("x*.npz"), "files: x*.npz matches no file", in_folder=True)
row("a_file_that_is_absent", lambda: read(["x.npz"]), "files: there is no file x.npz", in_folder=True)
row("a_damaged_file", lambda: read(["bad.npz"]), "files: bad.npz", "damaged", in_folder=True)
row("a_file_of_another_network", lambda: read(["other.npz"]), "other.npz: 'w' has shape (4, 2)", in_folder=True)
row("a_file_of_nan", lambda: paths.pca(read(["good0.npz", "spoilt.npz"])), "(spoilt.npz)['w'] has 6", in_folder=True)
row("a_file_of_torch", lambda: read(["net.pth"]), "lla_torch.load_path(files, net)", in_folder=True)
row("a_folder_of_nothing", lambda: read(["empty"]), "files: empty is a folder with nothing in it", in_folder=True)
row("trees_in_place_of_files", lambda: read(PATH), "files: dict given", "paths of checkpoints")
row("files_and_parameters_swapped", lambda: read(PARAMS, ["a.npz"]), "files: dict given")
row("a_file_without_a_state", lambda: read(["good0.npz"], state_like=STATE), "lacks 'mean'", in_folder=True)
row("a_name_that_nothing_begins_with", lambda: read(["good0.npz"], key="ema"), "key: 'ema' given", in_folder=True)
