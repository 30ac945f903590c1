"""A film has one scale and one camera, time in proportion to steps, the true loss in words, and the same bytes."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from PIL import Image

from lla_jax.core.arguments import Misuse
from lla_jax.output import plotting
from lla_jax.output.plotting import films, reading
from lla_jax.output.plotting import projections as _projections
from tests.output.plotting.cases import MIN, bowl, make, plane_of_path, seen

SMALL = (320, 180)


def frames_of(path):
    with Image.open(path) as image:
        for k in range(image.n_frames):
            image.seek(k)
            yield np.asarray(image.convert("RGB")).astype(int)


def scene(run, kind="surface", plane=None, **options):
    plane = plane_of_path() if plane is None else plane
    options = {"log": False, "cap": None} | options
    content = reading.plane(plane, "loss", "film")
    return films._Scene(content, _projections.read(plane, run, "film"), kind, "loss", title="", pixels=SMALL, **options)


@pytest.fixture(scope="module")
def descent():
    return scene(seen())


@pytest.mark.parametrize("kind", ["surface", "contour"])
def test_a_film_has_its_frames_and_the_same_bytes_again(kind, tmp_path):
    done = []
    options = {"kind": kind, "frames": 3, "size": SMALL, "title": "SGD"}
    path = plotting.film(
        plane_of_path(), seen(), tmp_path / "a.gif", progress=lambda k, of: done.append((k, of)), **options
    )
    assert path == tmp_path / "a.gif"
    shots = list(frames_of(path))
    assert [shot.shape for shot in shots] == [(180, 320, 3)] * 3
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert all((one != two).any() for one, two in itertools.pairwise(shots))
    again = plotting.film(plane_of_path(), seen(), tmp_path / "b.gif", **options)
    assert again.read_bytes() == path.read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.gif", "b.gif"]


def test_what_does_not_move_is_the_same_in_all_frames(tmp_path):
    path = plotting.film(plane_of_path(), seen(), tmp_path / "a.gif", frames=4, size=SMALL)
    shots = np.stack(list(frames_of(path)))
    moves = (shots != shots[0]).any(axis=(0, 3))
    assert moves.any()
    assert not moves[:, 290:].any()  # the colour bar
    assert not moves[165:].any()  # the legend
    assert (shots[0, 0, 0] == 255).all()  # white stays white in 256 colours


def test_time_is_in_proportion_to_steps(descent):
    drawn = descent
    counts = {}
    for k in range(30):
        drawn.draw(k / 30, 0.0)
        at = int(re.search(r"at step (\d+)", drawn.words.get_text())[1])
        counts[at] = counts.get(at, 0) + 1
    assert counts == {0: 5, 10: 10, 30: 5, 40: 5, 50: 5}  # gaps of 10, 20, 10, 10 and 10 steps


def test_every_frame_tells_the_true_loss_of_the_latest_checkpoint(descent):
    run, drawn = seen(), descent
    drawn.draw(0.45, 0.0)
    words = drawn.words.get_text()
    assert words.startswith("step 27\n")
    assert f"loss {run.loss[1]:.4g} ± 0.02\n(at step 10)" in words
    (track,) = drawn.tracks
    foot, head = np.array(track.stem.get_data_3d()).T  # from the surface to the true loss
    np.testing.assert_allclose(foot[:2], run.coords[1])
    np.testing.assert_allclose(foot[2], bowl(*run.coords[1]), rtol=0.02)
    assert head[2] == run.loss[1]


def test_the_path_lies_on_the_surface_up_to_the_time(descent):
    drawn = descent
    drawn.draw(0.25, 0.0)  # step 15, a quarter of the way from step 10 to step 30
    (track,) = drawn.tracks
    a, b, height = (np.nan_to_num(x) for x in np.nan_to_num(track.line.get_data_3d()))
    run = seen()
    now = np.array([x[0] for x in track.now.get_data_3d()])
    np.testing.assert_allclose(now[:2], 0.75 * run.coords[1] + 0.25 * run.coords[2])
    parts = np.stack([np.nan_to_num(track.line.get_data_3d()), np.nan_to_num(track.behind.get_data_3d())]).sum(axis=0)
    np.testing.assert_allclose(parts[2], bowl(parts[0], parts[1]), atol=0.03)
    assert len(a) == len(b) == len(height) == parts.shape[1]


def test_the_scale_holds_the_true_losses_and_all_points_of_the_plane():
    plane = plane_of_path()
    plane.values["loss"][3, 4] = 40.0
    drawn = scene(seen(far=90.0), plane=plane)
    low, high = drawn.ax.get_zlim()
    assert low <= plane.values["loss"].min() + 1e-12
    assert high >= seen(far=90.0).loss.max()
    drawn = scene(seen(), kind="contour")
    assert drawn.draw(1.0, 0.0).shape == (180, 320, 3)


def test_a_surface_turns_without_a_path_and_with_one(tmp_path):
    for run, options in ((None, {}), (seen(), {"turn": 90})):
        path = plotting.film(make(), run, tmp_path / "t.gif", frames=3, size=SMALL, **options)
        one, two, three = frames_of(path)
        assert (one != two).mean() > 0.02
        assert (two != three).mean() > 0.02


def test_a_large_plane_is_thinned_and_keeps_its_lowest_point():
    t = np.linspace(-1, 1, 401)
    plane = make(lambda a, b: 1 + a**2 + b**2, (t, t))
    plane.values["loss"][123, 346] = 0.25
    content = reading.plane(plane, "loss", "film")._replace(mesh=films.MESH)
    drawn = films._Scene(content, [], "surface", "loss", False, None, "", SMALL)
    mesh = next(c for c in drawn.ax.collections if c.get_array() is not None)
    vertices = mesh._faces.reshape(-1, 3)
    assert len(np.unique(vertices[:, 0])) == len(np.unique(vertices[:, 1])) == films.MESH <= 300
    np.testing.assert_allclose(vertices[vertices[:, 2].argmin()], [t[123], t[346], 0.25])
    assert 0.0 in vertices[:, 0]


def test_several_runs_share_one_time(tmp_path):
    late = seen(steps=[30, 60, 70, 80, 90, 120])
    drawn = scene({"SGD": seen(), "Adam": late})
    drawn.draw(0.5, 0.0)
    text = drawn.words.get_text()
    assert text.startswith("step 60\n")
    assert "SGD: loss" in text
    assert "Adam: loss" in text
    assert text.count("(at step 60)") == 1  # of both


def test_a_film_that_is_interrupted_leaves_the_old_one(tmp_path):
    path = tmp_path / "a.gif"
    path.write_bytes(b"old")

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        plotting.film(plane_of_path(), seen(), path, frames=3, size=SMALL, progress=stop)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.gif"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path": "film.avi"}, r"^path: .*\.gif, \.mp4 or \.html"),
        ({"path": "film"}, r"^path: .*\.gif"),
        ({"path": "nowhere/film.gif"}, r"^path: .*folder that exists"),
        ({"path": 3}, r"^path: "),
        ({"kind": "heatmap"}, r"^kind: "),
        ({"frames": 0}, r"^frames: "),
        ({"fps": 0}, r"^fps: "),
        ({"fps": 61}, r"^fps: "),
        ({"size": 300}, r"^size: .*\(width, height\)"),
        ({"size": (300, 2)}, r"^size: "),
        ({"turn": "round"}, r"^turn: "),
        ({"turn": 90, "kind": "contour"}, r"^turn: .*flat"),
        ({"seen": None, "kind": "contour"}, r"^seen: None given, so that nothing moves"),
        ({"seen": None, "turn": 0}, r"^seen: None given, so that nothing moves"),
        ({"seen": "film.gif"}, r"^seen: 'film\.gif' given, a file"),
        ({"seen": seen(steps=[0, 10, 10, 20, 30, 40])}, r"^seen\.steps: .*increasing"),
        ({"value": "accuracy"}, r"^value: "),
    ],
)
def test_what_cannot_be_filmed_is_refused(options, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Misuse, match=words):
        plotting.film(plane_of_path(), **({"seen": seen(), "size": SMALL, "frames": 2} | options))
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_outside_of_the_plane_is_not_drawn_on_it(tmp_path):
    coords = seen().coords.copy()
    coords[0] = -4.0, 0.0
    with pytest.warns(UserWarning, match="outside"):
        plotting.film(plane_of_path(), seen(coords), tmp_path / "a.gif", frames=2, size=SMALL)
    drawn = scene(seen(coords))
    drawn.draw(0.0, 0.0)
    (track,) = drawn.tracks
    assert np.isnan(track.now.get_data_3d()).all()
    assert np.isfinite(track.points[-1]).all()
    np.testing.assert_allclose(track.points[-1, :2], MIN)


def test_a_checkpoint_that_rounding_moves_over_a_border_of_the_plane_is_drawn():
    coords = seen().coords.copy()
    coords[0] = np.nextafter(-1.0, -2.0), np.nextafter(1.5, 2.0)
    drawn = scene(seen(coords))
    drawn.draw(0.0, 0.0)
    (track,) = drawn.tracks
    np.testing.assert_allclose(np.ravel(track.now.get_data_3d()), [-1.0, 1.5, bowl(-1.0, 1.5)])


@pytest.mark.parametrize("num", [1, 2, 6])
def test_letters_can_be_read_and_lie_on_nothing(num):
    several = {f"seed {k}": seen(steps=np.array([0, 10, 30, 40, 50, 60]) + k) for k in range(num)}
    drawn = scene(several if num > 1 else seen())
    drawn.draw(1.0, 0.0)
    texts = [drawn.words, *drawn.legend.get_texts()]
    height = drawn.fig.bbox.height
    assert min(text.get_fontsize() * drawn.fig.dpi / 72 for text in texts) >= height * (0.025 if num == 1 else 0.02)
    words, legend = (each.get_window_extent() for each in (drawn.words, drawn.legend))
    losses, plane = drawn.fig.axes[3].get_window_extent(), drawn.ax.get_window_extent()
    assert legend.y1 <= words.y0
    assert losses.y1 <= legend.y0 + 1
    assert losses.height > 0.3 * height
    assert max(words.x1, legend.x1) < plane.x0
