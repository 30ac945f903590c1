"""Films the descent of a training over a plane, or a surface that turns.

All frames have one scale of heights and colours. The camera stands still or turns evenly: while it stands still, the
surface is drawn once, and in each frame only the path.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.transforms import blended_transform_factory
from mpl_toolkits.mplot3d.art3d import Line3D

from lla_jax.core.arguments import Misuse, check_choice, check_integer, misuse
from lla_jax.core.interrupts import deferred_interrupts
from lla_jax.core.results import Landscape
from lla_jax.core.signatures import explained
from lla_jax.core.text import SIGN, pm
from lla_jax.execution.progress import AskedProgress, takes_progress
from lla_jax.output.plotting import film_files, reading, scales, style, surfaces
from lla_jax.output.plotting import projections as _projections
from lla_jax.output.plotting.figures import new_figure
from lla_jax.output.plotting.planes import picture
from lla_jax.output.plotting.projections import Run
from lla_jax.output.plotting.reading import Plane
from lla_jax.output.plotting.scales import Scale
from lla_jax.output.plotting.trajectories import draw_losses

MESH = 299  # the most vertices per axis of a filmed surface; odd, so that a centre cell stays
_HEIGHT = 3.4  # inches, so that letters are as large as in a figure of this height: read at half the size too
_SIDE = 145.0  # points of this height for words and legend above the losses; where they need more they are smaller
_ZOOM = 1.1  # of the surface in its axes, which leave a wide margin
_BETWEEN = 2000  # points about that draw a path between its checkpoints, on the surface
_TOLD = 3  # the most runs whose losses are told in words; of more, the dots beside the plane show them
_WORDS = 30  # characters of a line beside the plane
_TOP: dict[str, Any] = {"marker": "D", "markersize": 4, **style.POINT, "color": style.COLOURS[1]}
_PATH: dict[str, Any] = {"linewidth": 1.8, "solid_capstyle": "round", "zorder": 20}


@takes_progress("frames")
@explained
def film(
    plane: Landscape,
    seen: Any = None,
    path: str | os.PathLike[str] = "descent.gif",
    *,
    value: str = "loss",
    kind: Literal["surface", "contour"] = "surface",
    log: bool = False,
    cap: float | None = None,
    frames: int = 60,
    fps: int = 15,
    size: tuple[int, int] = (1280, 720),
    turn: float | None = None,
    title: str | None = None,
    progress: AskedProgress = None,
) -> Path:
    """Film the descent of a training over a plane, or a surface that turns, as .gif, .mp4 (by ffmpeg) or .html.

    Time is in proportion to steps: between two checkpoints that are twice as far apart there are twice as many frames.
    The path lies on the surface, at the height of the plane where the projections of its checkpoints are. A stem leads
    from there to the true loss of the latest checkpoint, which every frame of up to three runs names with its step;
    where the path is behind the surface it is dotted. All frames have one scale and one camera, which stands still or
    turns evenly. The same input makes the same bytes.

    Args:
      plane: a landscape of two axes. Of more than 299 points along an axis a surface shows evenly spaced ones, and the
        lowest; its scale is that of all points.
      seen: what ``lla.paths.project`` returned, with the plane's axes and centre; a list of several runs, or a dict of
        them by name; or None for a surface that turns.
      path: the file; an existing one is replaced when the film is whole. A page (.html) holds all that it shows.
      value: a name in ``plane.values``.
      kind: "surface" or "contour".
      log, cap: as in ``surface``.
      frames: their number.
      fps: frames per second. A film that repeats (.gif, .html) rests on its last frame for a moment.
      size: (width, height) in pixels, such as (1920, 1080).
      turn: degrees by which the camera turns in the whole film; by default 0, and 360 without a path.
      title: text above.
      progress: True for a bar, or a function ``progress(done, total)``.

    Returns:
      the path of the film.

    Raises:
      ValueError: as ``trajectory``; another ending, no ffmpeg for .mp4, a film in which nothing moves.
      OSError: the folder cannot be written.

    Warns:
      UserWarning: checkpoints lie outside of the plane.
    """
    if isinstance(seen, str | os.PathLike):
        raise Misuse("seen", f"{str(seen)!r} given, a file; without a path call film(plane, path={str(seen)!r})")
    target = film_files.check_target(path)
    check_choice("kind", kind, ("surface", "contour"))
    check_integer("frames", frames, remedy="such as 60")
    rate, pixels = film_files.check_rate(fps), film_files.check_size(size)
    degrees = _check_turn(turn, kind, seen)
    content = reading.plane(plane, value, "film", argument="plane")._replace(mesh=MESH)
    runs = [] if seen is None else _projections.read(plane, seen, "film")
    _check_time(runs)
    note = _projections.warn_of_outside(runs, content)
    with deferred_interrupts() as check:
        scene = _Scene(content, runs, kind, value, log, cap, style.join(title, note, by="\n"), pixels)

        def shots() -> Iterator[np.ndarray]:
            for k in range(frames):
                check()
                yield scene.draw((k + 1) / frames if frames == 1 else k / (frames - 1), degrees * k / frames)
                if progress is not None:
                    progress(k + 1, frames)

        last = scene.draw(1.0, degrees * (frames - 1) / frames)
        film_files.write(target, shots(), last, rate, title or f"{reading.label(value)} of a plane")
    return target


def _check_turn(turn: Any, kind: str, seen: Any) -> float:
    """The degrees by which the camera turns, after a check that something moves."""
    if turn is None:
        turn = 360.0 if seen is None and kind == "surface" else 0.0
    if isinstance(turn, bool) or not isinstance(turn, int | float | np.number) or not np.isfinite(turn):
        raise misuse("turn", turn, "degrees, such as 360 for a full turn, or None")
    if turn and kind == "contour":
        raise Misuse("turn", f"{turn!r} given with kind='contour', which is flat; leave turn out, or film a surface")
    if not turn and seen is None:
        raise Misuse(
            "seen", "None given, so that nothing moves; pass what lla.paths.project returned, or a turn of a surface"
        )
    return float(turn)


def _check_time(runs: Sequence[Run]) -> None:
    """Refuse runs whose steps do not increase: a film has one time."""
    for run in runs:
        if not np.isfinite(run.steps).all() or (np.diff(run.steps) <= 0).any():
            raise misuse(
                "seen.steps", run.steps, "increasing from checkpoint to checkpoint, since it is the time of the film"
            )


class _Scene:
    """A plane, drawn once for each camera, on which paths are drawn up to a time.

    Args:
      plane: the plane's content.
      runs: the paths, of which there may be none.
      kind: "surface" or "contour".
      value, log, cap, title: as for ``film``.
      pixels: (width, height).
    """

    def __init__(
        self,
        plane: Plane,
        runs: Sequence[Run],
        kind: Any,
        value: str,
        log: bool,
        cap: float | None,
        title: str,
        pixels: tuple[int, int],
    ):
        width, height = pixels
        self.fig = new_figure(_HEIGHT * width / height, _HEIGHT)
        self.fig.dpi = height / _HEIGHT
        inches = (np.array(pixels) + 0.5) / self.fig.dpi  # matplotlib rounds the pixels down
        self.fig.set_size_inches(*inches)
        self.canvas = FigureCanvasAgg(self.fig)
        side = losses = None
        grid = self.fig.add_gridspec(2, 2 if runs else 1, width_ratios=(1, 1.9) if runs else None)
        ax: Any = self.fig.add_subplot(grid[:, -1], projection="3d" if kind == "surface" else None)
        least = _span(runs, log, cap) if value == "loss" else None
        plane = _projections.without_star_at_ends(runs, plane)
        found: list[Scale] = []
        picture(
            kind,
            {"": plane},
            value,
            ax=ax,
            log=log,
            cap=cap,
            title=title,
            least=least,
            legend=False,
            extra=lambda _ax, _plane, scale: found.append(scale),
        )
        if kind == "surface":
            ax.set_box_aspect(None, zoom=_ZOOM)
        if runs:
            side, losses = self.fig.add_subplot(grid[0, 0]), self.fig.add_subplot(grid[1, 0])
            side.axis("off")
            draw_losses(losses, runs, log)
        self.words = self.fig.text(0.012, 0.975, "", va="top", fontsize=style.SIZE, linespacing=1.25)
        self.tracks = [
            _Track(ax, losses, plane, found[0], run, style.RUNS[k % 6] if len(runs) > 1 else "white", value == "loss")
            for k, run in enumerate(runs)
        ]
        if any(track.top is not None for track in self.tracks):
            ax.plot([], [], label="loss of the latest checkpoint", **_TOP)
        self.ax, self.runs = ax, runs
        self.azimuth = getattr(ax, "azim", 0.0)
        self.ends = (min(run.steps[0] for run in runs), max(run.steps[-1] for run in runs)) if runs else (0.0, 0.0)
        caption = style.wrap(plane.caption, _WORDS if runs else 90) if kind == "surface" else ""
        if side is None or losses is None:
            style.legend(self.fig, [ax], outside=True, title=caption)
        else:
            self.legend = _explain(grid, side, [ax, losses], caption, self.words, runs)
        self.fig.draw_without_rendering()
        self.fig.set_layout_engine("none")  # which would move the axes with the labels of their ticks
        self.turned: float | None = None
        self.background: Any = None

    def draw(self, time: float, turned: float) -> np.ndarray:
        """The frame (height, width, 3) at a time from 0 to 1, with the camera turned by some degrees."""
        moving = [artist for track in self.tracks for artist in track.artists] + [self.words]
        if turned != self.turned:
            if turned:
                self.ax.view_init(self.ax.elev, self.azimuth + turned)
            for artist in moving:
                artist.set_visible(False)
            self.canvas.draw()
            for track in self.tracks:
                track.look()
            self.background, self.turned = self.canvas.copy_from_bbox(self.fig.bbox), turned
            for artist in moving:
                artist.set_visible(True)
        self.canvas.restore_region(self.background)
        step = self.ends[0] + time * (self.ends[1] - self.ends[0])
        if self.tracks:
            self.words.set_text(_describe(step, self.runs, [track.move(step) for track in self.tracks]))
        for artist in moving:
            (artist.axes or self.fig).draw_artist(artist)
        return np.array(self.canvas.buffer_rgba())[..., :3]


def _span(runs: Sequence[Run], log: bool, cap: float | None) -> tuple[float, float] | None:
    """The interval of heights that the true losses of the paths need; None without any."""
    known = np.concatenate([run.loss for run in runs]) if runs else np.array([])
    known = known[np.isfinite(known) & ((known > 0) | (not log))]
    if not known.size:
        return None
    heights = scales.heights(known, log, cap)
    return float(heights.min()), float(heights.max())


class _Track:
    """A path on a plane, as artists that move with the time.

    Args:
      ax: the axes of the plane.
      losses: those of the losses.
      plane, scale: what is drawn, and how.
      run: the path.
      colour: of its line.
      stems: whether heights are losses, so that a stem may lead to the true one.
    """

    def __init__(self, ax: Any, losses: Any, plane: Plane, scale: Scale, run: Run, colour: str, stems: bool):
        self.ax, self.run, self.plane = ax, run, plane
        self.solid = ax.name == "3d"
        self.z = scales.heights(plane.z, scale.log, scale.cap)
        self.steps = _subdivide(run.steps)
        self.points = self._on_plane(self.steps)
        self.hidden = np.zeros(len(self.points), bool)
        self.true = scales.heights(np.where((run.loss > 0) | (not scale.log), run.loss, np.nan), scale.log, scale.cap)
        outline = [style.withStroke(linewidth=3.0, foreground="black")]
        label = run.name or "path of the training"
        self.line = self._add([], {"color": colour, "path_effects": outline, "label": label, **_PATH})
        self.behind = self._add([], {"color": colour, "linestyle": ":", **_PATH, "linewidth": 1.2, "zorder": 19})
        point = {"marker": "o", "markersize": 6, **style.POINT, "color": colour, "zorder": 22}
        self.now = self._add([], point)
        self.artists: list[Artist] = [self.line, self.behind, self.now]
        self.stem = self.top = None
        if self.solid and stems and np.isfinite(self.true).any():
            self.stem = self._add([], {"color": "black", "linewidth": 1.0, "zorder": 21})
            self.top = self._add([], {**_TOP, "zorder": 22})
            self.artists += [self.stem, self.top]
        self.dot = None
        if losses is not None and np.isfinite(run.loss).any():
            (self.dot,) = losses.plot(
                [],
                [],
                marker="o",
                markersize=4,
                zorder=5,
                color=colour if run.name else style.COLOURS[1],
                markeredgecolor="black",
                linestyle="none",
            )
            self.artists.append(self.dot)

    def _add(self, points: Any, look: dict[str, Any]) -> Any:
        """An empty line on the axes of the plane, in three dimensions on a surface."""
        if self.solid:
            line: Any = Line3D([], [], [], **look)
            self.ax.add_line(line)
            return line
        (line,) = self.ax.plot([], [], **look)
        return line

    def _on_plane(self, steps: np.ndarray) -> np.ndarray:
        """The points (n, 3) of the path at steps: coordinates, and the surface there; NaN outside of the plane."""
        a, b = (np.interp(steps, self.run.steps, c) for c in self.run.coords.T)
        heights = surfaces.heights_at(self.plane, self.z, a, b)
        points = np.stack([a, b, heights], axis=-1)
        points[~self.plane.holds(a, b)] = np.nan
        return points

    def _set(self, line: Any, points: np.ndarray) -> None:
        if self.solid:
            line.set_data_3d(*points.T)
        else:
            line.set_data(*points[:, :2].T)

    def look(self) -> None:
        """See which points of the path the surface hides from where the camera is now."""
        self.hidden = self._hides(self.points)

    def move(self, step: float) -> int:
        """Move to a step, and return the number of the latest checkpoint."""
        run = self.run
        at = int(np.clip(np.searchsorted(run.steps, step * (1 + 1e-12), side="right") - 1, 0, len(run.steps) - 1))
        now = self._on_plane(np.array([np.clip(step, run.steps[0], run.steps[-1])]))
        before = self.steps < step
        so_far = np.concatenate([self.points[before], now])
        hidden = np.append(self.hidden[before], self._hides(now))
        self._set(self.line, np.where(hidden[:, None], np.nan, so_far))
        self._set(self.behind, np.where(hidden[:, None], so_far, np.nan))
        self._set(self.now, now)
        if self.stem is not None and self.top is not None:
            foot = self._on_plane(run.steps[at : at + 1].astype(float))
            head = np.array([[*foot[0, :2], self.true[at]]])
            self._set(self.stem, np.concatenate([foot, head]))
            self._set(self.top, head)
        if self.dot is not None:
            self.dot.set_data([run.steps[at]], [run.loss[at]])
        return at

    def _hides(self, points: np.ndarray) -> np.ndarray:
        """Whether the surface lies before each point, from where the camera is."""
        if not self.solid:
            return np.zeros(len(points), bool)
        known = np.flatnonzero(np.isfinite(points).all(axis=1))
        hidden = np.zeros(len(points), bool)
        for lo in range(0, len(known), _BETWEEN):  # each is looked at through some hundred points of its sight
            block = known[lo : lo + _BETWEEN]
            hidden[block] = surfaces.is_hidden_at(self.ax, self.plane, self.z, points[block])
        return hidden


def _subdivide(steps: np.ndarray) -> np.ndarray:
    """Steps between checkpoints too, so that a straight piece of a path follows the surface under it."""
    if len(steps) < 2:
        return steps.astype(float)
    pieces = int(np.clip(_BETWEEN // len(steps), 1, 24))
    share = np.arange(pieces) / pieces
    return np.append((steps[:-1, None] + share * np.diff(steps)[:, None]).ravel(), steps[-1])


def _describe(step: float, runs: Sequence[Run], latest: Sequence[int]) -> str:
    """The step, and the true loss of the latest checkpoint of each run, such as "loss 0.432 ± 0.002 (at step 100)"."""
    lines = [f"step {step:,.0f}"]
    if len(runs) > _TOLD:
        return lines[0]
    places = [f"(at step {run.steps[at]:,.0f})" for run, at in zip(runs, latest)]
    for run, at, place in zip(runs, latest, places):
        known = np.isfinite(run.loss[at])
        loss = f"loss {pm(run.loss[at], run.error[at]).replace(SIGN, ' ± ')}" if known else "checkpoint"
        lines.append(style.wrap(style.join(run.name, loss, by=": "), _WORDS))
        if len(set(places)) > 1:
            lines.append(place)
    return "\n".join(lines if len(set(places)) > 1 else [*lines, places[0]])


def _explain(grid: Any, side: Any, axes: Sequence[Any], caption: str, words: Any, runs: Sequence[Run]) -> Any:
    """Make room above the losses for words and legend, and draw the legend there, which is returned.

    Args:
      grid: the grid of the figure.
      side: the empty axes above the losses.
      axes: those whose labels are listed.
      caption: what a and b are, for a surface.
      words: the text of each frame, whose size is set.
      runs: the paths.
    """
    entries = {label: handle for ax in axes for handle, label in zip(*ax.get_legend_handles_labels())}
    same = all(np.array_equal(run.steps, runs[0].steps) for run in runs)
    told = runs if len(runs) <= _TOLD else []
    lines = 2 + sum((1 if same else 2) + (len(run.name) > _WORDS - 20) for run in told)
    need = 1.3 * style.SIZE * lines + 1.5 * style.SMALL * (len(entries) + len(caption.splitlines()) + 1)
    share = min(1.0, _SIDE / need)
    words.set_fontsize(share * style.SIZE)
    size = share * style.SMALL
    grid.set_height_ratios((share * need, 72 * _HEIGHT - share * need))
    drawn = side.legend(
        entries.values(),
        entries,
        loc="lower left",
        bbox_to_anchor=(0.012, 0),
        bbox_transform=blended_transform_factory(side.figure.transFigure, side.transAxes),
        borderaxespad=0,
        borderpad=0,
        labelspacing=0.3,
        handlelength=2.4,
        frameon=False,
        fontsize=size,
        title=caption or None,
        title_fontsize=size,
        alignment="left",
    )
    drawn.set_in_layout(False)
    return drawn
