"""Results to be drawn, for the tables of slips in pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import lla_jax as lla

A, B, C = np.linspace(-1, 1, 5), np.linspace(-1, 1, 4), np.linspace(-1, 1, 3)


def landscape(*coords: np.ndarray, **values: Any) -> lla.Landscape:
    """A bowl over these coordinates, with an accuracy."""
    bowl = sum(np.meshgrid(*[c**2 for c in coords], indexing="ij")) - 0.5
    return lla.Landscape(coords, {"loss": bowl, "accuracy": np.exp(-bowl)} | values, {}, {"rule": "add"})


def holes(shape: tuple[int, ...] = (5, 4)) -> lla.Landscape:
    """A plane without any finite cell."""
    return landscape(A, B, loss=np.full(shape, np.nan))


def spectrum(scale: float = 1.0) -> lla.Spectrum:
    return lla.Spectrum(scale * np.array([[-1.0, 0.0, 5.0]]), np.array([[0.2, 0.7, 0.1]]), {"n": 10, "steps": 3})


def pairs(*values: float) -> lla.Eigenpairs:
    return lla.Eigenpairs(np.array(values), None, np.full(len(values), 0.1), 9, {})


def axes(**options: Any) -> Axes:
    return Figure().add_subplot(**options)


PLANE, LINE, VOLUME = landscape(A, B), landscape(A), landscape(A, B, C)


class Operator:
    """Stands for an operator: it has products."""

    def mv(self, v: Any) -> Any:
        return v
