"""Operators of a given number of parameters, by name, to compare the memory that they take with what is said of it.

``operator("mlp", n)`` is the Hessian of a network with few examples, so that vectors are all that counts;
``"recomputed"`` the same without kept primal values; ``"activations"`` that of a network whose values are as large as
its weights; ``"diagonal"`` an operator of one's own. ``small(name)`` is one of the same kind that takes no memory, for
all that a process loads once.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

NAMES = ("mlp", "recomputed", "activations", "diagonal")
FEW, INPUTS, CLASSES = 8, 64, 10
SMALL = 20_000


def operator(name: str, parameters: int) -> Any:
    """The operator of this name with about so many parameters."""
    import lla_jax as lla

    if name == "diagonal":
        return diagonal(parameters)
    examples = parameters // 4000 if name == "activations" else FEW
    loss, params, data = mlp_of(parameters, examples)
    keep: Any = False if name == "recomputed" else "auto"
    return lla.hessian(loss, params, data, execution=lla.Execution(linearize=keep))


def small(name: str) -> Any:
    """An operator of the same kind, small enough that its memory does not count."""
    return operator(name, SMALL)


def mlp_of(parameters: int, examples: int = FEW) -> tuple[Any, Any, Any]:
    """(loss, params, data) of an MLP with three square layers between a narrow first and last one."""
    import jax
    import jax.numpy as jnp

    width = max(8, int(math.sqrt(parameters / 3 + ((INPUTS + CLASSES) / 6) ** 2) - (INPUTS + CLASSES) / 6))
    sizes = [INPUTS, width, width, width, width, CLASSES]
    rng = np.random.default_rng(0)
    params = {
        f"layer{i}": jnp.asarray(rng.standard_normal((a, b), np.float32) / np.float32(np.sqrt(a)))
        for i, (a, b) in enumerate(itertools.pairwise(sizes))
    }
    x = rng.standard_normal((examples, INPUTS), np.float32)
    return loss_of, params, (jnp.asarray(x), jax.nn.one_hot(rng.integers(0, CLASSES, examples), CLASSES))


def loss_of(params: Any, batch: Any) -> Any:
    """Mean cross-entropy of the network of ``mlp_of``."""
    import jax
    import jax.numpy as jnp

    x, y = batch
    *hidden, last = (params[name] for name in sorted(params))
    for weights in hidden:
        x = jnp.tanh(x @ weights)
    return -(jax.nn.log_softmax(x @ last) * y).sum(-1).mean()


def diagonal(parameters: int) -> Any:
    """A diagonal operator with eigenvalues spread evenly from -1 to 2."""
    import jax
    import jax.numpy as jnp

    import lla_jax as lla

    like = jax.ShapeDtypeStruct((parameters,), jnp.float32)
    return lla.operators.given(lambda v, d: d * v, like, jnp.linspace(-1.0, 2.0, parameters))
