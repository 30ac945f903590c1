"""Draws landscapes and curvature with matplotlib's ``Figure`` alone: no pyplot, no global state.

Every function returns a ``Figure`` (``fig.savefig("plane.png")``), as wide as one column (3.5 in) or two (7 in). The x
axis is ``coords[0]`` and the y axis ``coords[1]``, in units of the directions: ``values[i, j]`` is drawn at
``(coords[0][i], coords[1][j])``. ``cap`` and ``log`` act on the picture only, and its label says so. Non-finite cells
are hatched, or holes in a surface. A result that was interrupted is titled "incomplete". The directions a, b (and c)
are named on the axes or, for surfaces and panels, below the picture.
"""

from lla_jax import _lazy

__getattr__, __dir__, __all__ = _lazy.attach(__name__)
