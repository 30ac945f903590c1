"""Shared cases: a small network on random data, written plainly, and a counter of backend compilations."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

import lla_jax as lla
from lla_jax.landscape.store import writing as stored

FIXED = lla.Execution(chunk=4, microbatch=8, loop="map", share=False, devices=1)
"""A plan that times nothing, for tests that are not about plans."""

ONE = lla.Execution(devices=1)
KEPT = lla.Execution(devices=1, linearize=True)
ANEW = lla.Execution(devices=1, linearize=False)
"""How operators run on one device: as they choose, with primal values kept, and with them computed at every product."""


@dataclasses.dataclass
class Compilations:
    """Backend compilations seen since the block began."""

    count: int = 0


_OPEN: list[Compilations] = []


def _listen(event: str, duration: float, **kwargs: object) -> None:
    if event.endswith("backend_compile_duration"):
        for seen in _OPEN:
            seen.count += 1


jax.monitoring.register_event_duration_secs_listener(_listen)


@contextlib.contextmanager
def compilations() -> Iterator[Compilations]:
    """Count the backend compilations of a block."""
    seen = Compilations()
    _OPEN.append(seen)
    try:
        yield seen
    finally:
        _OPEN.remove(seen)


def params(seed: int = 0, dtype: str = "float32") -> dict:
    """An MLP 5 -> 6 -> 3 with a scalar gain, as a Flax-like tree."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> np.ndarray:
        return (0.5 * rng.standard_normal(shape)).astype(dtype)

    return {
        "Dense_0": {"kernel": draw(5, 6), "bias": draw(6)},
        "Dense_1": {"kernel": draw(6, 3), "bias": draw(3)},
        "gain": np.asarray(1.5, dtype),
    }


def dataset(n: int = 23, seed: int = 1, dtype: str = "float32") -> tuple[np.ndarray, np.ndarray]:
    """(inputs (n, 5), labels (n,) of 3 classes)."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 5)).astype(dtype), rng.integers(0, 3, n)


def apply(p, state, batch, train):
    hidden = jax.nn.relu(batch[0] @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"])
    return p["gain"] * (hidden @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"]), state


def cross_entropy(outputs, batch):
    return -jnp.take_along_axis(jax.nn.log_softmax(outputs), batch[1][:, None], 1)[:, 0]


def accuracy(outputs, batch):
    return outputs.argmax(-1) == batch[1]


def mlp_loss(**options) -> lla.Loss:
    return lla.Loss(apply, cross_entropy, **options)


def reference_losses(p: dict, data) -> np.ndarray:
    """The same per-example losses in plain numpy, float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), p)
    x, y = data
    hidden = np.maximum(np.asarray(x, np.float64) @ p["Dense_0"]["kernel"] + p["Dense_0"]["bias"], 0)
    z = p["gain"] * (hidden @ p["Dense_1"]["kernel"] + p["Dense_1"]["bias"])
    z = z - z.max(1, keepdims=True)
    return np.log(np.exp(z).sum(1)) - z[np.arange(len(y)), y]


def moved(p: dict, axes: lla.Directions, coord) -> dict:
    """theta + sum_i c_i d_i in numpy float64."""

    def move(leaf, d):
        return np.asarray(leaf, np.float64) + np.tensordot(np.asarray(coord, np.float64), np.asarray(d, np.float64), 1)

    return jax.tree.map(move, p, axes.tree)


def points_computed(monkeypatch) -> list[int]:
    """The numbers of points that stored landscapes compute from now on, one for each chunk."""
    counted: list[int] = []
    real = stored.evaluated

    def counting(job, plan, coords, *rest):
        counted.append(len(coords))
        return real(job, plan, coords, *rest)

    monkeypatch.setattr(stored, "evaluated", counting)
    return counted


class Interrupt:
    """A progress callback that interrupts after some points, like Ctrl-C."""

    def __init__(self, after, times=1):
        self.after, self.times = after, times

    def __call__(self, done, total):
        self.times -= done >= self.after
        if not self.times:
            raise KeyboardInterrupt
