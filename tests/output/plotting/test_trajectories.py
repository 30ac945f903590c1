"""A path lies on the plane where its coordinates are, in the order of time, with its distances and both losses."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.colors import to_rgba

from lla_jax.core.arguments import Misuse
from lla_jax.core.types import Directions
from lla_jax.output import plotting
from lla_jax.output.plotting.trajectories import arrows
from tests.output.plotting.cases import PLANE_OF_PATH, plane_of_path, png, seen, texts


def path_line(ax, k=0):
    return [line for line in ax.lines if len(line.get_xdata()) > 2][k]


def labelled(ax, start):
    return next(line for line in ax.lines if str(line.get_label()).startswith(start))


def test_the_path_is_drawn_at_its_coordinates_and_its_ends_are_marked():
    run = seen()
    fig = plotting.trajectory(plane_of_path(), run, title="SGD")
    upper = fig.axes[0]
    np.testing.assert_array_equal(np.column_stack(path_line(upper).get_data()), run.coords)
    for start, at in (("start: step 0", run.coords[0]), ("end: step 60", run.coords[-1])):
        np.testing.assert_array_equal(np.ravel(labelled(upper, start).get_data()), at)
    assert upper.get_title() == "SGD"
    assert "distance off the plane" in " ".join(ax.get_xlabel() for ax in fig.axes)
    png(fig)


def test_the_colour_of_a_checkpoint_is_its_distance_and_the_scale_begins_at_0():
    run = seen(far=0.4)
    fig = plotting.trajectory(plane_of_path(), run)
    dots = next(c for c in fig.axes[0].collections if len(c.get_offsets()) == len(run))
    np.testing.assert_array_equal(dots.get_array(), run.distance)
    assert dots.norm.vmin == 0
    assert dots.norm.vmax == run.distance.max()
    fig.canvas.draw_idle()


@pytest.mark.parametrize("far", [0.0, 1e-7])
def test_what_rounding_makes_is_no_distance_off_the_plane(far):
    run = seen(far=far)
    run.recipe["rounding"] = 2e-7
    fig = plotting.trajectory(plane_of_path(), run)
    assert "all checkpoints lie on the plane" in texts(fig)
    assert len(fig.axes) == 3  # the plane, its colour bar, the losses
    png(fig)


def test_the_end_is_marked_where_it_is_the_centre():
    coords = seen().coords.copy()
    assert "trained network" in texts(plotting.trajectory(plane_of_path(), seen(coords)))
    coords[-1] = 0.0
    fig = plotting.trajectory(plane_of_path(), seen(coords))
    assert "trained network" not in texts(fig)
    assert "end: step 60" in texts(fig)


def test_both_losses_are_drawn_by_step_with_their_errors():
    run = seen()
    lower = plotting.trajectory(plane_of_path(), run).axes[1]
    curves = [line for line in lower.lines if len(line.get_xdata())]
    for line, z, dash in zip(curves, (run.loss, run.projected_loss), ("-", "--"), strict=True):
        np.testing.assert_array_equal(line.get_data(), (run.steps, z))
        assert line.get_linestyle() == dash
    edges = lower.collections[0].get_paths()[0].vertices[:, 1]
    assert np.isclose(edges.min(), (run.loss - 0.02).min())
    assert "± 1 standard error" in texts(lower.figure)


def test_without_losses_the_distance_is_drawn():
    run = seen(losses=False)
    lower = plotting.trajectory(plane_of_path(), run).axes[1]
    np.testing.assert_array_equal(lower.lines[0].get_ydata(), run.distance)
    assert lower.get_ylabel() == "distance off the plane"


def test_the_arrows_point_in_the_direction_of_time():
    fig = plotting.trajectory(plane_of_path(), seen())
    coords = np.array([(-0.9, 0.0), (0.0, 0.0), (0.9, 0.0)])
    found = arrows(coords, fig.axes[0])
    assert len(found) == 3
    assert all(tail[0] < head[0] for tail, head in found)
    assert arrows(coords[:1], fig.axes[0]) == []
    assert arrows(coords * 1e-9, fig.axes[0]) == []


def test_several_runs_have_a_colour_each_and_one_scale_of_distances():
    other = seen(seen().coords[::-1][:4], far=0.7)
    fig = plotting.trajectory(plane_of_path(), {"SGD": seen(), "Adam": other})
    upper = fig.axes[0]
    colours = [labelled(upper, name).get_color() for name in ("SGD", "Adam")]
    assert to_rgba(colours[0]) != to_rgba(colours[1])
    norms = {c.norm.vmax for c in upper.collections if c.get_array() is not None and len(c.get_offsets()) in (4, 6)}
    assert norms == {other.distance.max()}
    assert "run 2" in texts(plotting.trajectory(plane_of_path(), [seen(), other]))


def test_checkpoints_outside_of_the_plane_are_told():
    coords = seen().coords.copy()
    coords[0] = 5.0, 0.0
    with pytest.warns(UserWarning, match="1 of 6 checkpoints lie outside of the plane"):
        fig = plotting.trajectory(plane_of_path(), seen(coords))
    assert "1 of 6 checkpoints outside of the plane" in texts(fig)


@pytest.mark.parametrize(
    ("entry", "key", "words"), [("directions", "contents", "other axes"), ("params", "fingerprint", "another centre")]
)
def test_a_path_of_another_plane_is_refused(entry, key, words):
    foreign = PLANE_OF_PATH | {entry: {**PLANE_OF_PATH[entry], key: "c" * 16}}
    for draw in (plotting.trajectory, plotting.curve, lambda plane, run: plotting.film(plane, run, "x.gif")):
        with pytest.raises(Misuse, match=rf"^seen: projected with {words} than the plane's"):
            draw(plane_of_path(), seen(recipe=foreign))
    with pytest.raises(Misuse, match=r"^seen\['b'\]: projected"):
        plotting.trajectory(plane_of_path(), {"a": seen(), "b": seen(recipe=foreign)})


def test_other_objects_are_refused_with_what_draws_them():
    with pytest.raises(Misuse, match=r"^seen: .*lla\.paths\.project"):
        plotting.trajectory(plane_of_path(), plane_of_path())
    with pytest.raises(Misuse, match=r"^plane: .*a projection: trajectory\(plane, seen\)"):
        plotting.trajectory(seen(), plane_of_path())
    with pytest.raises(Misuse, match=r"this has 3 axes: project onto two"):
        plotting.trajectory(plane_of_path(), seen(np.ones((6, 3))))
    with pytest.raises(Misuse, match=r"^seen: "):
        plotting.trajectory(plane_of_path(), [])


def components(**changes):
    k = np.arange(1, 21)
    shares, walk = 0.5**k / (1 - 0.5**20), 1 / k**2 / (1 / k**2).sum()
    recipe = {"kind": "pca", "explained_variance": shares.tolist(), "random_walk": walk.tolist()} | changes
    return Directions({"w": np.ones((2, 3))}, recipe), shares, walk


def test_explained_variance_stands_beside_that_of_a_random_walk():
    axes, shares, walk = components()
    (ax,) = plotting.explained_variance(axes, components=7).axes
    heights = np.array([patch.get_height() for patch in ax.patches]).reshape(2, 7)
    np.testing.assert_allclose(heights, 100 * np.stack([shares, walk])[:, :7])
    np.testing.assert_allclose(ax.lines[0].get_ydata(), 100 * np.cumsum(shares)[:7])
    png(ax.figure)


@pytest.mark.parametrize("bad", [None, [], "many", [[1.0]], [np.nan]])
def test_axes_without_shares_are_refused(bad):
    with pytest.raises(Misuse, match=r"^axes: .*'random_walk'.*lla\.paths\.pca"):
        plotting.explained_variance(components(random_walk=bad)[0])
    with pytest.raises(Misuse, match=r"^axes: "):
        plotting.explained_variance(np.ones(3))
