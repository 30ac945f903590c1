"""Cases for tests of all rooms: plans, a small network on random data, a table of models, compilations counted."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

import lla_jax as lla
from lla_jax.core import losses, rows
from lla_jax.curvature import operators
from lla_jax.curvature.linear_operator import Operator
from lla_jax.landscape.store import writing as stored

FIXED = lla.Execution(chunk=4, microbatch=8, loop="map", share=False, devices=1)
"""A plan that times nothing, for tests that are not about plans."""

ONE = lla.Execution(devices=1)
KEPT = lla.Execution(devices=1, linearize=True)
ANEW = lla.Execution(devices=1, linearize=False)
"""Operators on one device: as they choose, with primal values kept, and with them computed for every product."""


# --- compilations


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


# --- the network of most tests


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


def few_rows(data) -> losses.Block:
    """A block of at most 8 rows that lie apart in the data."""
    return losses.block_of_rows(*rows.spread(data, min(8, len(jax.tree.leaves(data)[0]))))


# --- table of models


class Model(NamedTuple):
    """A loss with parameters and data: what every function of the library takes first."""

    loss: lla.Loss
    params: Any
    data: Any


def _draw(seed: int, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: (0.5 * rng.standard_normal(shape)).astype("float32") for name, shape in shapes.items()}


def _labelled(seed: int, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    """(inputs of a shape, labels of 3 classes)."""
    return _draw(seed, {"x": shape})["x"], np.arange(shape[0]) % 3


def _convolve(p, state, batch, train):
    """Convolution, max pooling, convolution and mean, from images (n, 8, 8, 1) to scores (n, 3)."""

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    hidden = jax.nn.relu(convolve(batch[0], p["first"]) + p["bias"])
    hidden = jax.lax.reduce_window(hidden, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    return convolve(hidden, p["second"]).mean((1, 2)), state


def _attend(p, state, batch, train):
    """One head of attention, from tokens (n, 4, 5) to their mean scores (n, 3)."""
    query, key, value = (batch[0] @ p[name] for name in ("query", "key", "value"))
    return (jax.nn.softmax(query @ key.swapaxes(1, 2)) @ value @ p["out"]).mean(1), state


def _vary(outputs, batch):
    """A batch-coupled loss: the variance of the first score within the batch."""
    return outputs[:, 0].var()


def _weigh(outputs, batch):
    """Losses with weights that differ between examples."""
    return cross_entropy(outputs, batch), 1.0 + batch[1]


_CONVOLUTIONS = {"first": (3, 3, 1, 2), "bias": (2,), "second": (3, 3, 2, 3)}
_HEAD = {"query": (5, 4), "key": (5, 4), "value": (5, 4), "out": (4, 3)}

MODELS = {
    "mlp": Model(mlp_loss(), params(), dataset(11)),
    "penalty": Model(mlp_loss(penalty=lambda p: 0.1 * p["gain"] ** 2), params(), dataset(11)),
    "weighted": Model(lla.Loss(apply, _weigh), params(), dataset(11)),
    "batch-coupled": Model(lla.Loss(apply, _vary, per_example=False), params(), dataset(11)),
    "cnn": Model(lla.Loss(_convolve, cross_entropy), _draw(2, _CONVOLUTIONS), _labelled(3, 7, 8, 8, 1)),
    "attention": Model(lla.Loss(_attend, cross_entropy), _draw(4, _HEAD), _labelled(5, 7, 4, 5)),
}
"""{name: (loss, params, data)} of small fixed shapes, for tests that must hold for every model."""


# --- landscapes


def points_computed(monkeypatch, module=stored) -> list[int]:
    """The numbers of points that stored landscapes, or those of a module, compute from now on, one for each call."""
    counted: list[int] = []
    real = module.compute_means

    def counting(job, plan, coords, *rest):
        counted.append(len(coords))
        return real(job, plan, coords, *rest)

    monkeypatch.setattr(module, "compute_means", counting)
    return counted


class Interrupt:
    """A progress callback that interrupts after some points, like Ctrl-C."""

    def __init__(self, after, times=1):
        self.after, self.times = after, times

    def __call__(self, done, total):
        self.times -= done >= self.after
        if not self.times:
            raise KeyboardInterrupt


# --- operators

VALUES = np.concatenate([[9.0, -4.0, 2.5], np.linspace(-1, 1, 37)])
"""Eigenvalues of a matrix that the tests share: three outside of a bulk."""


def symmetric_matrix(values, dtype: str = "float32", seed: int = 0) -> np.ndarray:
    """A symmetric matrix with these eigenvalues."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.standard_normal((len(values), len(values))))
    a = (q * np.asarray(values)) @ q.T
    return ((a + a.T) / 2).astype(dtype)


def as_tree(v):
    """A vector as a tree of two leaves, the second of shape (5, 2)."""
    return {"head": v[:-10], "tail": v[-10:].reshape(5, 2)}


def flat(tree, lead: int = 0) -> np.ndarray:
    """A vector, or stacked vectors with ``lead`` = 1, as a float64 array."""
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]
    return np.concatenate([x.reshape(*x.shape[:lead], -1) for x in leaves], -1)


def ravel(tree) -> np.ndarray:
    """All entries of a tree, in their own dtype."""
    return np.asarray(ravel_pytree(tree)[0])


def error(found, expected) -> float:
    """Largest difference relative to the largest entry."""
    return float(np.abs(ravel(found) - ravel(expected)).max() / np.abs(ravel(expected)).max())


def times(v, a):
    """A v for a vector as ``as_tree`` makes it."""
    return as_tree(jnp.matmul(a, jnp.concatenate([v["head"], v["tail"].reshape(-1)]), precision="highest"))


def tree_operator(a: np.ndarray, traceable: bool = True):
    """A matrix as an operator on trees; not traceable: its products are computed from the host."""
    like = as_tree(jnp.zeros(len(a), a.dtype))
    if traceable:
        return operators.given(times, like, jnp.asarray(a))
    return operators.given(lambda v: times(v, a), like, traceable=False)


def vector_operator(a: np.ndarray, traceable: bool = True):
    """A matrix as an operator on vectors, likewise."""
    like = jnp.zeros(len(a), a.dtype)
    if traceable:
        return operators.given(lambda v, a: jnp.matmul(a, v, precision="highest"), like, jnp.asarray(a))
    return operators.given(lambda v: jnp.asarray(a @ np.asarray(v)), like, traceable=False)


class Breaks:
    """A product that is not finite from the given one on; counts."""

    def __init__(self, a, at):
        self.a, self.at, self.count = a, at, 0

    def __call__(self, v):
        self.count += 1
        out = times(v, self.a)
        return jax.tree.map(lambda x: x * np.nan, out) if self.count >= self.at else out


def breaking_operator(at: int, a: np.ndarray | None = None):
    """(an operator whose products are not finite from the given one on, its product)."""
    a = symmetric_matrix(VALUES) if a is None else a
    product = Breaks(a, at)
    return operators.given(product, as_tree(jnp.zeros(len(a))), traceable=False), product


@functools.cache
def _network_matrices() -> tuple[np.ndarray, np.ndarray]:
    """(Hessian, Gauss-Newton matrix) of the network's mean loss over 11 examples, dense, by jax in float64."""
    with jax.enable_x64(True):
        data = dataset(11, dtype="float64")
        vector, unravel = ravel_pytree(params(dtype="float64"))

        def outputs(v):
            return apply(unravel(v), None, data, False)[0]

        hessian = jax.jit(jax.hessian(lambda v: cross_entropy(outputs(v), data).mean()))(vector)
        J, s = jax.jit(jax.jacobian(outputs))(vector), jax.nn.softmax(outputs(vector))
        middle = jnp.einsum("ij,jk->ijk", s, jnp.eye(3)) - s[:, :, None] * s[:, None]
        return np.asarray(hessian), np.einsum("iap,iab,ibq->pq", J, middle, J) / 11


def _hessian(**options):
    data = lla.stream([tuple(x[i : i + 4] for x in dataset(11)) for i in (0, 4, 8)])
    source = data if options.pop("streamed", False) else dataset(11)
    return lla.hessian(mlp_loss(), params(), source, **{"execution": ONE, **options})


def _masked():
    a, mask = symmetric_matrix(VALUES), np.arange(40) % 3 > 0
    return operators.masked(vector_operator(a), mask), np.where(np.outer(mask, mask), a, 0).astype(np.float64)


def _preconditioned():
    moment = jax.tree.map(lambda x: np.linspace(1, 4, x.size, dtype=np.float32).reshape(x.shape), params())
    scale = 1 / np.sqrt(np.sqrt(flat(moment)) + 1e-8)
    return operators.preconditioned(_hessian(), moment), scale[:, None] * _network_matrices()[0] * scale


def _of_kernels():
    chosen = flat(jax.tree.map_with_path(lambda path, x: np.full(x.shape, "kernel" in str(path)), params())) > 0
    return _hessian(select="**/kernel"), _network_matrices()[0][np.ix_(chosen, chosen)]


def _of_matrix(make, traceable):
    return make(symmetric_matrix(VALUES), traceable), symmetric_matrix(VALUES).astype(np.float64)


OPERATORS: dict[str, Callable[[], tuple[Operator, np.ndarray]]] = {
    "matrix": lambda: _of_matrix(vector_operator, True),
    "matrix on the host": lambda: _of_matrix(vector_operator, False),
    "matrix on trees": lambda: _of_matrix(tree_operator, True),
    "masked": _masked,
    "hessian": lambda: (_hessian(), _network_matrices()[0]),
    "hessian on two devices": lambda: (_hessian(execution=lla.Execution(devices=2)), _network_matrices()[0]),
    "hessian of a stream": lambda: (_hessian(streamed=True), _network_matrices()[0]),
    "hessian of kernels": _of_kernels,
    "preconditioned": _preconditioned,
    "ggn": lambda: (lla.ggn(mlp_loss(), params(), dataset(11), execution=KEPT), _network_matrices()[1]),
}
"""Name -> (an operator, its matrix in float64, with entries in the order of the raveled leaves)."""
