"""Shared cases of the curvature tests: operators of small networks and of matrices, and dense references."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import warnings
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import lla_jax as lla
from lla_jax.curvature import operators
from tests import helpers
from tests.helpers import ANEW, KEPT, ONE, dataset, flat, mlp_loss, params

KEY = jax.random.key(0)
DOUBLE, SINGLE = 1e-12, 1e-6  # "equal to rounding", relative to the largest entry


PROBE = 1  # product of the probe, which no result counts


DATA = helpers.dataset(11)


LOSS = helpers.mlp_loss()


ones = jax.tree.map(np.ones_like, helpers.params())


MAKERS = {
    "hessian": lla.hessian,
    "ggn": lla.ggn,
    "fisher": functools.partial(lla.fisher, key=jax.random.key(1)),
}


def make(devices: Any = 1, linearize: Any = "auto", **options: Any) -> Any:
    how = lla.Execution(devices=devices, linearize=linearize)
    return lla.hessian(LOSS, helpers.params(), DATA, execution=how, **options)


def _coupled(outputs, batch):
    return helpers.cross_entropy(outputs, batch).mean()


COUPLED = lla.Loss(helpers.apply, _coupled, per_example=False)


PENALIZED = helpers.mlp_loss(penalty=lambda p: jnp.sum(p["Dense_0"]["kernel"] ** 4))


BATCHES = lla.stream([tuple(x[i : i + 4] for x in DATA) for i in range(0, 11, 4)])


HALF = jax.tree.map(lambda x: (np.arange(x.size) % 2 == 0).reshape(x.shape), helpers.params())


def _spread(p: Any) -> Any:
    over = Mesh(np.array(jax.devices()[:2]), ("model",))
    kernel = jax.device_put(p["Dense_0"]["kernel"], NamedSharding(over, PartitionSpec(None, "model")))
    return p | {"Dense_0": p["Dense_0"] | {"kernel": kernel}}


MADE: dict[str, Any] = {
    "recomputed": lambda p: lla.hessian(PENALIZED, p, DATA, execution=ANEW, batch_size=4),
    "kept": lambda p: lla.hessian(PENALIZED, p, DATA, execution=KEPT),
    "kept in blocks on two devices": lambda p: lla.ggn(
        LOSS, p, DATA, execution=lla.Execution(devices=2, linearize=True), batch_size=2
    ),
    "recomputed on two devices": lambda p: lla.ggn(LOSS, p, DATA, execution=lla.Execution(devices=2, linearize=False)),
    "drawn targets": lambda p: lla.fisher(LOSS, p, DATA, KEY, samples=2, execution=ONE),
    "streamed": lambda p: lla.hessian(PENALIZED, p, BATCHES, execution=ONE),
    "streamed over two devices": lambda p: lla.hessian(LOSS, p, BATCHES, execution=lla.Execution(devices=2)),
    "selected": lambda p: lla.hessian(LOSS, p, DATA, select="**/kernel", execution=ONE),
    "selected and streamed": lambda p: lla.hessian(LOSS, p, BATCHES, select="**/kernel", execution=ONE),
    "coupled": lambda p: lla.hessian(COUPLED, p, DATA, batch_size=4),
    "coupled and streamed": lambda p: lla.hessian(COUPLED, p, BATCHES),
    "masked": lambda p: operators.masked(lla.hessian(LOSS, p, DATA, execution=ONE), HALF),
    "masked and streamed": lambda p: operators.masked(lla.hessian(LOSS, p, BATCHES, execution=ONE), HALF),
    "preconditioned": lambda p: operators.preconditioned(lla.hessian(LOSS, p, DATA, execution=ONE), ones),
    "spread over devices": lambda p: lla.hessian(LOSS, _spread(p), DATA),
}


# --- matrices of known spectrum


class Counted:
    """A product on the host that counts its calls."""

    def __init__(self, a):
        self.a, self.count = a, 0

    def __call__(self, v):
        self.count += 1
        return jnp.asarray(self.a @ np.asarray(v))


def counted(a):
    product = Counted(a)
    return operators.given(product, jnp.zeros(len(a), a.dtype), traceable=False), product


def check_pairs(pairs, a, wanted, tol):
    """Every pair within its residual of an exact one; the residuals what they are said to be; orthonormal vectors."""
    a = np.asarray(a, np.float64)
    exact, scale = np.linalg.eigvalsh(a), np.abs(wanted).max()
    vectors = flat(pairs.vectors.tree, 1)
    distance = np.abs(exact[:, None] - pairs.values).min(0)
    assert (distance <= pairs.residuals).all(), (distance, pairs.residuals)
    true = np.linalg.norm(a @ vectors.T - vectors.T * pairs.values, axis=0)
    assert (true <= 1.001 * pairs.residuals).all(), (true, pairs.residuals)
    assert (pairs.residuals <= 1.02 * tol * scale).all()
    assert np.abs(pairs.values - wanted).max() <= tol * scale
    assert np.abs(vectors @ vectors.T - np.eye(len(wanted))).max() < max(1e-5, 1e3 * tol**2)
    assert (vectors[np.arange(len(vectors)), np.abs(vectors).argmax(1)] > 0).all()
    assert pairs.recipe["converged"] is True
    assert pairs.recipe["stopped"] is None


COPIES = np.concatenate([[10.0] * 3, [7.03, 7.02, 7.01, 7.0], [-4.0], np.linspace(-0.5, 1, 292)])
"""A threefold top value, a cluster, a negative value and a bulk."""


def conv_params(rng):
    draw = lambda *shape: 0.4 * rng.standard_normal(shape)  # noqa: E731
    return {
        "conv": {"kernel": draw(3, 3, 2, 6), "bias": draw(6)},
        "norm": {"scale": 1 + 0.1 * draw(6), "bias": draw(6)},
        "dense": {"kernel": draw(6 * 9, 4), "bias": draw(4)},
    }


def conv_apply(p, state, batch, train):
    x = jax.lax.conv_general_dilated(
        batch[0], p["conv"]["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    x = x + p["conv"]["bias"]
    mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (state["mean"], state["var"])
    x = jnp.tanh((x - mean) / jnp.sqrt(var + 1e-5) * p["norm"]["scale"] + p["norm"]["bias"])
    return x.reshape(len(x), -1) @ p["dense"]["kernel"] + p["dense"]["bias"], state


def attention_params(rng):
    draw = lambda *shape: 0.5 * rng.standard_normal(shape)  # noqa: E731
    return {"qkv": draw(6, 3, 2, 4), "out": draw(2, 4, 6), "mlp": draw(6, 12), "head": draw(12, 4), "bias": draw(4)}


def attention_apply(p, state, batch, train):
    x = batch[0]
    q, k, v = jnp.einsum("btd,dchk->cbthk", x, p["qkv"])
    weights = jax.nn.softmax(jnp.einsum("bqhk,bshk->bhqs", q, k) / 2, -1)
    x = x + jnp.einsum("bhqs,bshk,hkd->bqd", weights, v, p["out"])
    return jax.nn.gelu(x @ p["mlp"]).mean(1) @ p["head"] + p["bias"], state


def network(name, dtype):
    rng = np.random.default_rng(0)
    if name == "mlp":
        return mlp_loss(), params(0, dtype), dataset(23, 1, dtype)
    make, apply, shape = {
        "cnn": (conv_params, conv_apply, (12, 6, 6, 2)),
        "attention": (attention_params, attention_apply, (12, 5, 6)),
    }[name]
    p = make(rng)
    data = rng.standard_normal(shape).astype(dtype), rng.integers(0, 4, len(np.empty(shape)))
    state = {"mean": np.full(6, 0.1, dtype), "var": np.full(6, 0.7, dtype)} if name == "cnn" else None
    return lla.Loss(apply, cross_entropy, state=state), jax.tree.map(lambda x: x.astype(dtype), p), data


def dense_hessian(loss, p, data):
    """By jax.hessian, in float64."""
    with jax.enable_x64(True):
        p, data = jax.tree.map(lambda x: np.asarray(x, np.float64) if x.dtype.kind == "f" else x, (p, data))
        vector, unravel = jax.flatten_util.ravel_pytree(p)
        state = jax.tree.map(lambda x: np.asarray(x, np.float64), loss.state)
        mean = lambda v: cross_entropy(loss.apply(unravel(v), state, data, False)[0], data).mean()  # noqa: E731
        return np.asarray(jax.jit(jax.hessian(mean))(vector))


# --- float64

N, C = 7, 3


def cast(tree: Any, dtype: str = "float64") -> Any:
    """Floating leaves in another precision."""
    return jax.tree.map(
        lambda x: x.astype(dtype) if np.issubdtype(x.dtype, np.floating) else x, jax.tree.map(np.asarray, tree)
    )


def cross_entropy(outputs, batch):
    return -jnp.take_along_axis(jax.nn.log_softmax(outputs), batch[1][..., None], -1)[..., 0]


def weighted_entropy(outputs, batch):
    return cross_entropy(outputs, batch), batch[2]


def mlp(p, state, batch, train):
    return jnp.tanh(batch[0] @ p["first"]["kernel"] + p["first"]["bias"]) @ p["last"]["kernel"] + p["shift"], state


MLP = lla.Loss(mlp, cross_entropy)


WEIGHTED = lla.Loss(mlp, weighted_entropy)


def mlp_params(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    return {
        "first": {"kernel": rng.standard_normal((4, 5)), "bias": rng.standard_normal(5)},
        "last": {"kernel": rng.standard_normal((5, C))},
        "shift": np.asarray(0.3),
    }


def rows(n: int = N, *shape: int, labels: tuple[int, ...] = (), seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, *(shape or (4,)))), rng.integers(0, C, (n, *labels))


def weights(n: int = N, *shape: int) -> np.ndarray:
    """Between 0 and 3, and one of them zero."""
    found = np.random.default_rng(2).uniform(0, 3, (n, *shape))
    found.flat[1] = 0
    return found


def mean_loss(loss: lla.Loss, data: Any, train: bool = False):
    """The loss over all data, written plainly."""

    def value(p):
        result = loss.criterion(loss.apply(p, loss.state, data, train)[0], data)
        losses, w = result if isinstance(result, tuple) else (result, jnp.ones(result.shape))
        return jnp.sum(losses * w) / jnp.sum(w) + (0 if loss.penalty is None else loss.penalty(p))

    return value


def reference(f, params: Any) -> np.ndarray:
    """The Hessian of f, dense, entries in the order of the raveled leaves."""
    flat, unravel = ravel_pytree(params)
    return np.asarray(jax.jit(jax.hessian(lambda x: f(unravel(x))))(flat))


def pieces(data: Any, *cuts: int) -> Any:
    """The data as a stream of unequal batches."""
    return lla.stream([tuple(x[a:b] for x in data) for a, b in zip((0, *cuts), (*cuts, len(data[0])), strict=True)])


CUTS: dict[str, Any] = {
    "batches of 3": {"batch_size": 3},
    "batches of 4": {"batch_size": 4},
    "a batch larger than the data": {"batch_size": 100},
    "recomputed": {"execution": ANEW},
    "recomputed in batches": {"execution": ANEW, "batch_size": 3},
    "2 devices": {"execution": lla.Execution(devices=2)},
    "4 devices": {"execution": lla.Execution(devices=4)},
    "2 devices in batches, recomputed": {"execution": lla.Execution(devices=2, linearize=False), "batch_size": 3},
    "streamed": {"data": (2, 7, 8)},
    "streamed in batches over 2 devices": {"data": (5,), "batch_size": 2, "execution": lla.Execution(devices=2)},
}


def cut(make, data: Any, how: dict) -> Any:
    """An operator over the same data, cut and driven another way."""
    options = {"execution": ONE} | how
    return make(pieces(data, *options.pop("data")) if "data" in options else data, **options)


def inner(u, v) -> float:
    return float(np.asarray(ravel_pytree(u)[0], np.float64) @ np.asarray(ravel_pytree(v)[0], np.float64))


# --- interrupts


class Interrupts:
    """A progress callback that interrupts once, at a number of products."""

    def __init__(self, at, error):
        self.at, self.error = at, error

    def __call__(self, done, total):
        if done >= self.at:
            raise self.error


def interrupted(call, at, error=KeyboardInterrupt, **options):
    parts = []
    with pytest.raises(error):
        call(progress=Interrupts(at, error), on_partial=parts.append, **options)
    (part,) = parts
    assert part.recipe["complete"] is False
    state = {name: np.array(x) for name, x in part.state.items()}  # arrays, as a file gives them back
    assert all(x.dtype.kind in "fiub" for x in state.values())
    return dataclasses.replace(part, state=state)


# --- estimates


def symmetric(n=30, shift=3.0, seed=0, dtype=np.float32):
    """A random symmetric matrix; ``shift`` is added to its diagonal."""
    A = np.random.default_rng(seed).standard_normal((n, n))
    return ((A + A.T) / 2 + shift * np.eye(n)).astype(dtype)


@contextlib.contextmanager
def quiet():
    """No warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
