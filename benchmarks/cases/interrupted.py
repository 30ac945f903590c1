"""A problem whose verbs take some seconds each, and scripts that compute, keep what is unfinished and continue it."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lla_jax as lla

WIDTH, ROWS = 192, 2000


def loss(params: Any, batch: Any) -> jax.Array:
    """The cross-entropy of an MLP with two hidden layers."""
    x = batch[0]
    for name in ("first", "second"):
        x = jnp.tanh(x @ params[name])
    return -jnp.take_along_axis(jax.nn.log_softmax(x @ params["last"]), batch[1][:, None], 1).mean()


def problem() -> lla.Problem:
    """The problem, without training: its factory is quick, and the same each time."""
    draw = np.random.default_rng(0)
    shapes = {"first": (64, WIDTH), "second": (WIDTH, WIDTH), "last": (WIDTH, 10)}
    params = {name: (draw.normal(size=s) / np.sqrt(s[0])).astype("float32") for name, s in shapes.items()}
    data = draw.normal(size=(ROWS, 64)).astype("float32"), draw.integers(0, 10, ROWS)
    return lla.Problem(loss, params, data)


def slow_problem() -> lla.Problem:
    """The same after three seconds of sleep and garbage, as of a factory that trains."""
    import gc
    import time

    end = time.monotonic() + 3
    while time.monotonic() < end:
        gc.collect()
        time.sleep(0.01)
    return problem()


PLAN = lla.Execution(chunk=4, microbatch=500, loop="map", share=False)


def prepare(case: str, folder: pathlib.Path) -> Callable[[], Any]:
    """The call of a case, which continues from what is kept in the folder."""
    made = problem()
    args = made.loss, made.params, made.data
    key, partial = jax.random.key(0), folder / "partial.npz"
    axes = lla.directions.normalize(lla.directions.random(key, made.params), made.params)
    kept: dict[str, Any] = {"on_partial": lambda result: lla.save(result, partial)}
    if partial.exists():
        kept["resume"] = lla.load(partial, made.params)
    calls: dict[str, Callable[[], Any]] = {
        "evaluate in memory": lambda: lla.evaluate(*args, axes, lla.grid(points=21), execution=PLAN, **kept),
        "eigenpairs": lambda: lla.eigenpairs(lla.hessian(*args), key, 3, **kept),
        "spectrum": lambda: lla.spectrum(lla.hessian(*args), key, steps=50, probes=2, **kept),
        "convexity": lambda: lla.convexity(*args, axes, lla.grid(points=3), key, steps=8, **kept),
        "sweep": lambda: lla.sweep(
            loss, [made.params], made.data, grid=lla.grid(points=11), seeds=range(4), store=folder, execution=PLAN
        ),
        "trace": lambda: lla.trace(lla.hessian(*args), key, rtol=0, max_products=150, **kept),
        "per_layer": lambda: lla.per_layer(*args, key, rtol=0.02, **kept),
    }
    return calls[case]


def numbers(result: Any) -> list[bytes]:
    """The numbers of a result, for a comparison to the bit."""
    if isinstance(result, lla.Landscape):
        return [x.tobytes() for x in result.values.values()]
    if isinstance(result, lla.Eigenpairs):
        return [np.asarray(x).tobytes() for x in (result.values, result.residuals, *jax.tree.leaves(result.vectors))]
    if isinstance(result, lla.Spectrum):
        return [result.nodes.tobytes(), result.weights.tobytes()]
    if isinstance(result, lla.Estimate):
        return [np.float64(x).tobytes() for x in (result.mean, result.sem)]
    if isinstance(result, tuple):  # the rows of layers
        return [np.float64([row.trace.mean, row.lambda_max, row.lambda_min]).tobytes() for row in result]
    return [x for plane in result.landscapes.values() for x in numbers(plane)]  # of a sweep
