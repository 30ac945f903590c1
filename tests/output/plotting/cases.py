"""Landscapes to draw, and what is read off their pictures: artists, words and pixels."""

from __future__ import annotations

import io

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d import proj3d

from lla_jax.core.results import Landscape
from lla_jax.output import plotting
from lla_jax.paths.projection.projections import Projection

X, Y, Z = np.linspace(-1, 1, 17), np.linspace(-0.5, 2.5, 13), np.linspace(-1, 2, 7)
MIN = (0.5, -0.25)  # on the grid; its mirror image (-0.25, 0.5) is on the page too
RANDOM = {"kind": "random", "normalize": [{"by": "filter", "order": 2}]}
KINDS = ["surface", "contour", "heatmap"]


def bowl(a, b):
    return 0.1 + 2 * (a - MIN[0]) ** 2 + (b - MIN[1]) ** 2 * (1.5 + 0.5 * a)


def make(f=bowl, coords=(X, Y), directions=RANDOM, rule="add", complete=True, stderr=None, **more):
    values = {"loss": f(*np.meshgrid(*coords, indexing="ij")).astype(float), **more}
    recipe = {"directions": directions, "rule": rule, "complete": complete}
    return Landscape(tuple(np.asarray(c, float) for c in coords), values, stderr or {}, recipe)


def with_holes(*cells):
    plane = make()
    for cell, value in zip(cells, (np.nan, np.inf, -np.inf)):
        plane.values["loss"][cell] = value
    return plane


def line(**kwargs):
    """A landscape of one axis, with test data and accuracies."""
    t = np.linspace(-1, 1, 21)
    values = {"test_loss": 0.3 + t**2, "accuracy": np.exp(-(t**2)), "test_accuracy": 0.9 * np.exp(-(t**2))}
    return make(lambda a: 0.1 + 2 * (a - 0.2) ** 2, (t,), **{**values, **kwargs})


def draw(kind, landscape, **kwargs):
    return getattr(plotting, kind)(landscape, **kwargs)


def png(fig: Figure) -> bytes:
    file = io.BytesIO()
    fig.savefig(file, format="png", dpi=60)
    return file.getvalue()


def texts(fig: Figure) -> str:
    fig.canvas.draw_idle()
    legends = [
        t for legend in (*fig.legends, *(ax.get_legend() for ax in fig.axes)) if legend for t in _entries(legend)
    ]
    axes = [t for ax in fig.axes for t in (ax.get_title(), ax.get_xlabel(), ax.get_ylabel(), *map(text_of, ax.texts))]
    return " | ".join([fig.get_suptitle(), *legends, *axes])


def text_of(artist):
    return artist.get_text()


def _entries(legend):
    return [legend.get_title().get_text(), *map(text_of, legend.get_texts())]


def drawn(ax):
    """The coloured artist: contourf, pcolormesh or the surface."""
    return next(artist for artist in ax.collections if artist.get_array() is not None and len(artist.get_array()))


def colour_at(fig, a, b, height=0.0):
    """The rendered colour at plane coordinates (a, b); a surface is looked at from straight above."""
    ax = fig.axes[0]
    canvas = FigureCanvasAgg(fig)
    where = (a, b)
    if hasattr(ax, "plot_surface"):
        ax.set_proj_type("ortho")
        ax.view_init(90, -90)
        canvas.draw()
        where = proj3d.proj_transform(a, b, height, ax.get_proj())[:2]
    canvas.draw()
    x, y = ax.transData.transform(where)
    pixels = np.asarray(canvas.buffer_rgba())[..., :3] / 255
    return pixels[round(pixels.shape[0] - y) - 3 : round(pixels.shape[0] - y) + 4, round(x) - 3 : round(x) + 4]


PLANE_OF_PATH = {"directions": {"kind": "pca", "contents": "a" * 16}, "params": {"fingerprint": "b" * 16}}
"""The entries of a recipe that tell axes and centre."""


def plane_of_path(**more):
    """A plane of 17 x 13 points from (-1, -1) to (1, 1.5), with the recipe of a path's axes."""
    plane = make(coords=(X, np.linspace(-1, 1.5, 13)), **more)
    plane.recipe.update(PLANE_OF_PATH)
    return plane


def seen(coords=None, steps=None, recipe=None, losses=True, far=0.1):
    """A path of six checkpoints, whose gaps are of 10, 20, 10, 10, 10 steps, with losses off and on the plane."""
    coords = (
        np.array([(-0.9, 1.2), (-0.5, 0.9), (0.1, 0.8), (0.3, 0.3), (0.4, -0.1), MIN]) if coords is None else coords
    )
    num = len(coords)
    steps = np.array([0, 10, 30, 40, 50, 60])[:num] if steps is None else np.asarray(steps)
    distance = far * np.sin(np.linspace(0, np.pi, num))
    z = bowl(*coords[:, :2].T)
    values = {"loss": z + distance, "projected_loss": z} if losses else {}
    errors = {name: np.full(num, 0.02) for name in values}
    unknown = np.full(num, np.nan)
    names = tuple(f"step {step}" for step in steps)
    recipe = PLANE_OF_PATH if recipe is None else recipe
    return Projection(coords, distance, steps, names, unknown, values, errors, {}, {}, dict(recipe))
