"""The networks of the sweeps as plain jax functions with random weights, for machines without Flax, torch or data.

Shapes, layers and sizes of the batches are those of ``planes.py``; only speed and memory are asked of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from cases.planes import BATCH

import lla_jax as lla

WIDTH, HEADS, DEPTH, PATCH, LETTERS, LENGTH = 64, 4, 2, 4, 128, 64
EPS = 1e-5
STAGES = (16, 32, 64)
SHAPES = {"mlp": (64,), "lenet": (28, 28, 1), "resnet": (32, 32, 3), "vit": (32, 32, 3), "gpt": (LENGTH,)}


class Problem(NamedTuple):
    """What ``lla.evaluate`` takes."""

    loss: lla.Loss
    params: Any
    data: Any


def problem(name: str, batch: int | None = None) -> Problem:
    """One of the networks with random weights and random examples, all of them numpy arrays."""
    rng = np.random.default_rng(0)
    rows, shape = batch or BATCH[name], SHAPES[name]
    if name == "gpt":
        data = tuple(rng.integers(0, LETTERS, (rows, LENGTH)).astype("i4") for _ in range(2))
    else:
        data = rng.random((rows, *shape), "f4"), rng.integers(0, 10, rows).astype("i4")
    params = _weights(_layers(name), rng)
    normed = [layer for layer, leaves in params.items() if name == "resnet" and "scale" in leaves]
    state = {layer: _averages(len(params[layer]["scale"]), rng) for layer in normed}
    return Problem(lla.Loss(_APPLY[name], _cross_entropy, state=state), params, data)


def axes(params: Any) -> Any:
    """The stacked tree of two directions of the size of the weights, numpy arrays."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda w: 0.1 * rng.standard_normal((2, *w.shape), "f4") * (np.abs(w).mean() + 0.01), params)


def _cross_entropy(outputs: Any, batch: Any) -> Any:
    """(B,), of rows of letters their mean."""
    found = -jnp.take_along_axis(jax.nn.log_softmax(outputs), batch[1][..., None], -1)[..., 0]
    return found.reshape(found.shape[0], -1).mean(-1)


# -- weights -----------------------------------------------------------------------------------------------------------


def _layers(name: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name of a layer, shape of its kernel, or of its scale where it has one axis)."""
    if name == "mlp":
        yield from (("fc1", (64, 32)), ("fc2", (32, 10)))
    elif name == "lenet":
        yield from (("conv1", (5, 5, 1, 6)), ("conv2", (5, 5, 6, 16)))
        yield from (("fc1", (400, 120)), ("fc2", (120, 84)), ("fc3", (84, 10)))
    elif name == "resnet":
        yield from (("conv1", (3, 3, 3, 16)), ("norm1", (16,)))
        for at, inside, outside in _blocks():
            yield from ((f"{at}conv1", (3, 3, inside, outside)), (f"{at}norm1", (outside,)))
            yield from ((f"{at}conv2", (3, 3, outside, outside)), (f"{at}norm2", (outside,)))
        yield "head", (64, 10)
    else:
        yield ("patch", (3 * PATCH**2, WIDTH)) if name == "vit" else ("token", (LETTERS, WIDTH))
        yield "position", (64, WIDTH)
        for i in range(DEPTH):
            yield from ((f"{i}norm1", (WIDTH,)), (f"{i}qkv", (WIDTH, 3 * WIDTH)), (f"{i}mixed", (WIDTH, WIDTH)))
            yield from ((f"{i}norm2", (WIDTH,)), (f"{i}wide", (WIDTH, 4 * WIDTH)), (f"{i}narrow", (4 * WIDTH, WIDTH)))
        yield from (("norm", (WIDTH,)), ("head", (WIDTH, 10 if name == "vit" else LETTERS)))


def _blocks() -> Iterator[tuple[str, int, int]]:
    """(name, channels in, channels out) of the nine blocks of ResNet-20."""
    inside = STAGES[0]
    for stage, outside in enumerate(STAGES):
        for number in range(3):
            yield f"{stage}{number}", inside, outside
            inside = outside


def _weights(layers: Iterator[tuple[str, tuple[int, ...]]], rng: np.random.Generator) -> dict[str, dict[str, Any]]:
    params: dict[str, dict[str, Any]] = {}
    for name, shape in layers:
        leaves = {"scale": np.ones(shape, "f4")} if len(shape) == 1 else {"kernel": _kernel(shape, rng)}
        has_bias = shape[:2] != (3, 3) and name not in ("token", "position")
        params[name] = leaves | ({"bias": np.zeros(shape[-1], "f4")} if has_bias else {})
    return params


def _kernel(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal(shape, "f4") * np.float32(np.prod(shape[:-1]) ** -0.5)


def _averages(size: int, rng: np.random.Generator) -> dict[str, Any]:
    return {"mean": 0.1 * rng.standard_normal(size, "f4"), "var": 1 + 0.1 * rng.random(size, "f4")}


# -- networks ----------------------------------------------------------------------------------------------------------


def _dense(x: Any, p: Any) -> Any:
    return x @ p["kernel"] + p["bias"]


def _conv(x: Any, p: Any, padding: int, stride: int = 1) -> Any:
    numbers = ("NHWC", "HWIO", "NHWC")
    y = jax.lax.conv_general_dilated(x, p["kernel"], (stride,) * 2, [(padding,) * 2] * 2, dimension_numbers=numbers)
    return y + p["bias"] if "bias" in p else y


def _pool(x: Any) -> Any:
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def _mlp(params: Any, state: Any, batch: Any, train: bool) -> Any:
    return _dense(jax.nn.relu(_dense(batch[0], params["fc1"])), params["fc2"]), state


def _lenet(params: Any, state: Any, batch: Any, train: bool) -> Any:
    x = _pool(jax.nn.relu(_conv(batch[0], params["conv1"], 2)))
    x = _pool(jax.nn.relu(_conv(x, params["conv2"], 0)))
    x = x.reshape(x.shape[0], -1)
    for name in ("fc1", "fc2"):
        x = jax.nn.relu(_dense(x, params[name]))
    return _dense(x, params["fc3"]), state


def _resnet(params: Any, state: Any, batch: Any, train: bool) -> Any:
    """In eval mode, with the running averages of the state."""

    def normed(x: Any, conv: str, norm: str, stride: int = 1) -> Any:
        y, p, s = _conv(x, params[conv], 1, stride), params[norm], state[norm]
        return (y - s["mean"]) * jax.lax.rsqrt(s["var"] + EPS) * p["scale"] + p["bias"]

    x = jax.nn.relu(normed(batch[0], "conv1", "norm1"))
    for at, inside, outside in _blocks():
        stride, half = (2, (outside - inside) // 2) if outside > inside else (1, 0)
        inner = jax.nn.relu(normed(x, f"{at}conv1", f"{at}norm1", stride))
        inner = normed(inner, f"{at}conv2", f"{at}norm2")
        x = jax.nn.relu(inner + jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (half, half))))
    return _dense(x.mean((1, 2)), params["head"]), state


def _layer_norm(x: Any, p: Any) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + EPS) * p["scale"] + p["bias"]


def _transformer(causal: bool, params: Any, x: Any) -> Any:
    x = x + params["position"]["kernel"]
    for i in range(DEPTH):
        qkv = _dense(_layer_norm(x, params[f"{i}norm1"]), params[f"{i}qkv"])
        q, k, v = jnp.moveaxis(qkv.reshape(*x.shape[:2], 3, HEADS, -1), 2, 0)
        scores = jnp.einsum("bihd,bjhd->bhij", q, k) / q.shape[-1] ** 0.5
        if causal:
            scores = jnp.where(jnp.tri(x.shape[1], dtype=bool), scores, -jnp.inf)
        seen = jnp.einsum("bhij,bjhd->bihd", jax.nn.softmax(scores), v).reshape(x.shape)
        x = x + _dense(seen, params[f"{i}mixed"])
        inner = jax.nn.gelu(_dense(_layer_norm(x, params[f"{i}norm2"]), params[f"{i}wide"]))
        x = x + _dense(inner, params[f"{i}narrow"])
    return _layer_norm(x, params["norm"])


def _vit(params: Any, state: Any, batch: Any, train: bool) -> Any:
    x, side = batch[0], batch[0].shape[1] // PATCH
    x = x.reshape(len(x), side, PATCH, side, PATCH, 3).transpose(0, 1, 3, 2, 4, 5).reshape(len(x), side**2, -1)
    x = _transformer(False, params, _dense(x, params["patch"]))
    return _dense(x.mean(1), params["head"]), state


def _gpt(params: Any, state: Any, batch: Any, train: bool) -> Any:
    x = _transformer(True, params, params["token"]["kernel"][batch[0]])
    return _dense(x, params["head"]), state


_APPLY: dict[str, Callable[..., Any]] = {"mlp": _mlp, "lenet": _lenet, "resnet": _resnet, "vit": _vit, "gpt": _gpt}


def count(params: Any) -> int:
    """Number of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
