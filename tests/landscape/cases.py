"""Losses at every point of a grid in plain numpy, and a loss that is not finite on a half of a line."""

from __future__ import annotations

import itertools

import jax
import numpy as np

import lla_jax as lla
from tests.helpers import FIXED, dataset, moved, reference_losses

DATA = dataset()
RTOL = 2e-6


def reference(p, axes, coords, data):
    """(mean, standard error) at every point, one by one, in numpy float64."""
    shape = tuple(map(len, coords))
    mean, error = np.zeros(shape), np.zeros(shape)
    for index in itertools.product(*map(range, shape)):
        losses = reference_losses(moved(p, axes, [c[i] for c, i in zip(coords, index, strict=True)]), data)
        mean[index], error[index] = losses.mean(), losses.std(ddof=1) / np.sqrt(len(losses))
    return mean, error


def hole(w, batch):
    return jax.numpy.log(w[0]) + 0 * batch.sum()


HOLE = (np.array([0.0], np.float32), np.zeros((2, 1), np.float32))
ALONG = lla.directions.given(np.array([1.0], np.float32))
LINE = {"grid": lla.grid(points=5, dims=1), "execution": FIXED}
