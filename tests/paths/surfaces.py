"""Functions of two parameters whose minima, saddles and barriers are known."""

import jax.numpy as jnp
import numpy as np

_A, _X, _Y = (np.array(each, np.float32) for each in ([-200, -100, -170, 15], [1, 0, -0.5, -1], [0, 0.5, 1.5, 1]))
_a, _b, _c = (np.array(each, np.float32) for each in ([-1, -1, -6.5, 0.7], [0, 0, 11, 0.6], [-10, -10, -6.5, 0.7]))


def mueller_brown(p, batch):
    """The surface of Mueller and Brown 1979: minima -146.6995, -108.1667, -80.7678, saddles -40.6648, -72.2489."""
    x, y = p["x"] - _X, p["y"] - _Y
    return jnp.sum(_A * jnp.exp(_a * x**2 + _b * x * y + _c * y**2))


def ring(p, batch):
    """Zero on the circle of radius 1, and 1 in the middle of it."""
    return (p["x"] ** 2 + p["y"] ** 2 - 1) ** 2


def bowl(p, batch):
    """A convex quadratic."""
    return p["x"] ** 2 + 3 * p["y"] ** 2


def point(x, y):
    return {"x": np.float32(x), "y": np.float32(y)}


LOW, HIGH, MIDDLE = point(-0.558224, 1.441726), point(0.623499, 0.028038), point(-0.050011, 0.466694)
"""The minima of the Mueller-Brown surface at -146.6995, -108.1667 and -80.7678."""
