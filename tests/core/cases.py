"""A data set, a landscape of three points, and batches of any sizes."""

import itertools

import jax

import lla_jax as lla
from tests.helpers import FIXED, dataset, mlp_loss, params

DATA = dataset()
N = len(DATA[1])
LINE = lla.grid(extent=0.5, points=3, dims=1)


def cut(data, sizes):
    """Batches of the given sizes, repeated until the data are used up."""
    start, batches = 0, []
    for size in itertools.cycle(sizes):
        if start >= len(data[1]):
            return batches
        batches.append(jax.tree.map(lambda x, s=start, n=size: x[s : s + n], data))
        start += size


def run(axis, data, loss=None, **options):
    return lla.evaluate(loss or mlp_loss(), params(), data, axis, LINE, **({"execution": FIXED} | options))
