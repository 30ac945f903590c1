"""One network in the layouts of Flax linen, Flax nnx and Equinox, and a normalization of its tensors in plain numpy."""

from __future__ import annotations

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.core import freeze

from lla_jax.core import tree as _tree
from tests.directions.cases import KEY


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True, name="bn")(nn.Conv(4, (3, 3), name="conv")(x))
        x = nn.LayerNorm(name="ln")(nn.Dense(5, name="dense")(x.mean((1, 2))))
        return nn.Dense(1, name="dead")(x) * self.param("temperature", nn.initializers.ones, ())


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.conv, self.bn = nnx.Conv(2, 4, (3, 3), rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
        self.dense, self.ln = nnx.Linear(4, 5, rngs=rngs), nnx.LayerNorm(5, rngs=rngs)
        self.dead, self.temperature = nnx.Linear(5, 1, rngs=rngs), nnx.Param(jnp.ones(()))


class Eqx(eqx.Module):
    conv: eqx.nn.Conv2d
    bn: eqx.nn.LayerNorm  # Equinox's BatchNorm keeps its weight and bias in the same shapes
    dense: eqx.nn.Linear
    ln: eqx.nn.LayerNorm
    dead: eqx.nn.Linear
    temperature: jax.Array

    def __init__(self, key):
        self.conv, self.bn = eqx.nn.Conv2d(2, 4, 3, key=key), eqx.nn.LayerNorm(4)
        self.dense, self.ln = eqx.nn.Linear(4, 5, key=key), eqx.nn.LayerNorm(5)
        self.dead, self.temperature = eqx.nn.Linear(5, 1, key=key), jnp.ones(())


SHAPES = {
    "conv/kernel": (4, 2, 3, 3),
    "conv/bias": (4,),
    "bn/scale": (4,),
    "bn/bias": (4,),
    "dense/kernel": (5, 4),
    "dense/bias": (5,),
    "ln/scale": (5,),
    "ln/bias": (5,),
    "dead/kernel": (1, 5),
    "dead/bias": (1,),
    "temperature": (),
}
"""Of the network's tensors, filters first."""


def canonical(seed):
    """Tensors with filters first."""
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.normal(size=shape)) for name, shape in SHAPES.items()}


def weights_and_direction():
    """Tensors with filters first; among them a zero filter, a zero tensor and a matrix with one output."""
    w, d = canonical(0), canonical(1)
    w["conv/kernel"][1] = 0
    w["bn/bias"][:] = 0
    w["ln/bias"][2] = 0
    d["conv/kernel"][2] = 0
    d["dead/kernel"][:] = 0
    return w, d


def to_flax(name, x):
    return {2: lambda: x.T, 4: lambda: x.transpose(2, 3, 1, 0)}.get(x.ndim, lambda: x)()


def from_flax(name, x):
    return {2: lambda: x.T, 4: lambda: x.transpose(3, 2, 0, 1)}.get(x.ndim, lambda: x)()


def to_eqx(name, x):
    return x.reshape(4, 1, 1) if name == "conv/bias" else x


def from_eqx(name, x):
    return x.reshape(4) if name == "conv/bias" else x


def eqx_name(path):
    return path.replace("weight", "kernel" if path.split("/")[0] in ("conv", "dense", "dead") else "scale")


def templates():
    linen = jax.eval_shape(Linen().init, KEY, jnp.ones((1, 4, 4, 2)))["params"]
    nnx_state = nnx.state(nnx.eval_shape(lambda: Nnx(nnx.Rngs(0))), nnx.Param)
    equinox = eqx.filter_eval_shape(Eqx, KEY)
    equinox = eqx.filter(equinox, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    same = lambda path: path  # noqa: E731
    return {
        "linen": (linen, same, to_flax, from_flax),
        "frozen": (freeze(linen), same, to_flax, from_flax),
        "nnx": (nnx_state, same, to_flax, from_flax),
        "equinox": (equinox, eqx_name, to_eqx, from_eqx),
    }


LAYOUTS = templates()


def lay_out(template, naming, to, tensors):
    shapes, structure = jax.tree.flatten(template)
    leaves = [to(naming(p), tensors[naming(p)]) for p in _tree.paths(template)]
    assert [x.shape for x in leaves] == [s.shape for s in shapes]
    return jax.tree.unflatten(structure, leaves)


def plain_normalize(w, d, by, order, one_dim, unit):
    """The reference: loops over tensors and filters in float64."""

    def length(x):
        return np.abs(x).sum() if order == 1 else np.sqrt((x**2).sum())

    def scaled(weight, direction):
        if length(direction) == 0:
            return np.zeros_like(direction)
        return direction / length(direction) * (1 if unit else length(weight))

    out = {}
    for name in w:
        weight, direction = w[name], d[name]
        if one_dim == "zero" and not name.endswith("kernel"):
            out[name] = np.zeros_like(direction)
        elif by in ("none", "model"):
            out[name] = direction
        elif by == "weight":
            out[name] = direction * weight
        elif name.endswith("kernel") and by == "filter":
            out[name] = np.stack([scaled(weight[f], direction[f]) for f in range(len(weight))])
        elif one_dim == "entry" and not name.endswith("kernel"):
            pairs = zip(weight.ravel(), direction.ravel())
            out[name] = np.array([scaled(a, b) for a, b in pairs]).reshape(weight.shape)
        else:
            out[name] = scaled(weight, direction)
    if by == "model":
        moving = [name for name in w if np.any(out[name])]
        total = [length(np.concatenate([x[name].ravel() for name in moving])) for x in (w, out)]
        out = {name: x * ((1 if unit else total[0]) / total[1]) for name, x in out.items()}
    return out
