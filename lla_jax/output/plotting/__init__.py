"""Draws landscapes and curvature with matplotlib's ``Figure`` alone: no pyplot, no global state.

Every function returns a ``Figure``, as wide as one column (3.5 in) or two (7 in). ``fig.savefig("plane.png")`` writes
it, a notebook shows it as the last value of a cell, and ``fig.show()`` opens a window where there is a screen. The x
axis is ``coords[0]`` and the y axis ``coords[1]``, in units of the directions: ``values[i, j]`` is drawn at
``(coords[0][i], coords[1][j])``. ``cap`` and ``log`` act on the picture only, and its label says so. Non-finite cells
are hatched, or holes in a surface. A result that was interrupted is titled "incomplete". The directions a, b (and c)
are named on the axes or, for surfaces and panels, below the picture.
"""

from typing import Any

from lla_jax import _lazy

_load, __dir__, __all__ = _lazy.attach(__name__)
_PYPLOT = ("show", "savefig", "figure", "subplots", "close", "title", "plot")


def __getattr__(name: str) -> Any:
    if name in _PYPLOT:
        raise AttributeError(
            f"lla_jax.plotting has no {name!r}: its functions return a figure, such as fig = plotting.surface(plane); "
            f'fig.savefig("plane.png") writes it, and in a notebook it is shown as the last value of a cell. '
            f"There are {', '.join(__all__)}"
        )
    return _load(name)
