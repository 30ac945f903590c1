"""Losses as users bring them, right and wrong, with the float64 value that each should have, or none.

A situation is a network, a criterion, their data and the form in which they are given, drawn choice by choice. The
same functions run under jax for the library and under numpy in float64 for the truth.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lla_jax as lla

FEATURES, CLASSES, TOKENS = 5, 3, 4
EXTENT = 0.5
CURVATURE_STEP = 1e-3

Choose = Callable[[Sequence[Any]], Any]
"""Draws one of several values."""

COUPLINGS = {
    "none": lambda o, xp: o,
    "standardised": lambda o, xp: (o - o.mean(0)) / (o.std(0) + 1e-3),
    "centred": lambda o, xp: o - o.mean(0),
    "summed over the leading axis": lambda o, xp: xp.cumsum(o, 0),
    "scaled by the largest": lambda o, xp: o / (1e-3 + abs(o).max()),
    "by position": lambda o, xp: o * (1 + xp.arange(len(o)).reshape(-1, *[1] * (o.ndim - 1)) % 3),
    "with a neighbour": lambda o, xp: o + 0.5 * xp.roll(o, 1, 0),
}
OUTPUTS = {"scalar": (), "column": (1,), "vector": (CLASSES,), "tokens": (TOKENS, CLASSES)}


@dataclass(frozen=True)
class Situation:
    """One loss with its data; every field is a name or a number, so that a failure can be read and repeated.

    Args:
      outputs: the shape of an example's outputs, a name in ``OUTPUTS``.
      coupling: how examples see each other in the network, a name in ``COUPLINGS``.
      criterion: "squares", "cross-entropy", "contrastive" or "divided by the batch".
      labels: "alike" (the shape of the outputs), "flat" (B,), "column" (B, 1); classes for "cross-entropy".
      reduce: "entries" are kept, or "features": the mean over all axes but the first.
      weights: "none", "of data", "normalised" within the batch, "of outputs": they depend on the parameters.
      form: "per example", "per batch", "plain", "plain with a second value".
      data: "arrays", "blocks" (a small microbatch), "stream" or "list" (of batches).
      dtype: of the parameters.
      count: number of examples.
      seed: of parameters and data.
    """

    outputs: str
    coupling: str
    criterion: str
    labels: str
    reduce: str
    weights: str
    form: str
    data: str
    dtype: str
    count: int
    seed: int

    @property
    def broadcasts(self) -> bool:
        """Whether the difference of outputs and labels has a row and a column of examples."""
        if self.criterion != "squares":
            return False
        return (self.outputs, self.labels) in (("column", "flat"), ("scalar", "column"))

    @property
    def couples(self) -> bool:
        """Whether the loss of an example depends on the others of its batch."""
        return (
            self.coupling != "none"
            or self.broadcasts
            or self.criterion in ("contrastive", "divided by the batch")
            or self.weights == "normalised"
        )

    @property
    def posed(self) -> bool:
        """Whether it has a value that does not depend on how the data are cut, and is given in a right form."""
        right = self.form != "plain with a second value" and self.data != "list" and not self.broadcasts
        if self.form == "per example":
            return right and not self.couples and self.weights != "of outputs"
        # a mean over batches weighs them by their sizes, unless they tell their weights
        return right and (self.data != "stream" or self.weights == "none" or self.form == "per batch")


def draw(choose: Choose) -> Situation:
    """Draw a situation; about half of them are well posed."""
    outputs = choose(list(OUTPUTS))
    wide = outputs in ("vector", "tokens")
    criterion = choose(["squares", "cross-entropy"] if wide else ["squares"])
    if outputs == "vector":
        criterion = choose([criterion] * 3 + ["contrastive", "divided by the batch"])
    labels = "classes" if criterion == "cross-entropy" else "alike"
    if outputs in ("scalar", "column") and criterion == "squares":
        labels = choose(["alike"] * 4 + ["flat" if outputs == "column" else "column"])
    return Situation(
        outputs=outputs,
        coupling=choose(["none"] * 15 + list(COUPLINGS)[1:]),
        criterion=criterion,
        labels=labels,
        reduce=choose(["entries", "features"]),
        weights=choose(["none"] * 6 + ["of data"] * 4 + ["normalised", "of outputs"]),
        form=choose(["per example"] * 8 + ["per batch"] * 2 + ["plain"] * 2 + ["plain with a second value"]),
        data=choose(["arrays"] * 3 + ["blocks"] * 4 + ["stream"] * 4 + ["list"]),
        dtype=choose(["float32"] * 4 + ["float64", "bfloat16", "float16"]),
        count=choose([6, 21]),
        seed=choose(range(1000)),
    )


# --- the functions, under jax.numpy or numpy


def apply(s: Situation, params: Any, batch: Any, xp: Any) -> Any:
    """The outputs of the network for a batch (inputs, labels, weights)."""
    x = batch[0]
    hidden = xp.tanh(x @ params["in"] + params["bias"])
    outputs = (hidden @ params["out"]).reshape(len(x), *OUTPUTS[s.outputs])
    return COUPLINGS[s.coupling](outputs, xp)


def losses(s: Situation, outputs: Any, batch: Any, xp: Any) -> Any:
    """The losses of a batch, as the user's criterion computes them."""
    labels = batch[1]
    if s.criterion == "cross-entropy":
        shifted = outputs - outputs.max(-1, keepdims=True)
        log = shifted - xp.log(xp.exp(shifted).sum(-1, keepdims=True))
        values = -xp.take_along_axis(log, labels[..., None], -1)[..., 0]
    elif s.criterion == "contrastive":
        scores = outputs @ outputs.T
        shifted = scores - scores.max(-1, keepdims=True)
        values = -xp.diagonal(shifted - xp.log(xp.exp(shifted).sum(-1, keepdims=True)))
    else:
        values = (outputs - labels) ** 2
        values = values / len(outputs) if s.criterion == "divided by the batch" else values
    return values.reshape(len(values), -1).mean(1) if s.reduce == "features" else values


def weights_of(s: Situation, outputs: Any, batch: Any, values: Any, xp: Any) -> Any:
    """The weights of the losses, of their shape; None without weights."""
    if s.weights == "none":
        return None
    w = batch[2]
    if s.weights == "normalised":
        w = w / w.sum()
    if s.weights == "of outputs":
        w = (outputs.reshape(len(w), -1).sum(1) > 0) + 0.5
    return xp.broadcast_to(w.reshape(-1, *[1] * (values.ndim - 1)), values.shape)


def mean(s: Situation, params: Any, batch: Any, xp: Any) -> Any:
    """The weighted mean over one batch."""
    outputs = apply(s, params, batch, xp)
    values = losses(s, outputs, batch, xp)
    w = weights_of(s, outputs, batch, values, xp)
    return values.mean() if w is None else (w * values).sum() / w.sum()


# --- what the library gets


def parameters(s: Situation) -> dict[str, np.ndarray]:
    """The parameters, in their dtype."""
    rng = np.random.default_rng(s.seed)
    size = int(np.prod(OUTPUTS[s.outputs]))
    shapes = {"in": (FEATURES, 6), "bias": (6,), "out": (6, size)}
    return {name: rng.standard_normal(shape).astype(jnp.dtype(s.dtype)) for name, shape in shapes.items()}


def direction(s: Situation) -> dict[str, np.ndarray]:
    """A direction of unit norm, float32."""
    rng = np.random.default_rng(s.seed + 1)
    tree = {name: rng.standard_normal(x.shape) for name, x in parameters(s).items()}
    norm = np.sqrt(sum((x**2).sum() for x in tree.values()))
    return {name: (x / norm).astype(np.float32) for name, x in tree.items()}


def batch(s: Situation) -> tuple[np.ndarray, ...]:
    """(inputs, labels, weights) of all examples."""
    rng = np.random.default_rng(s.seed + 2)
    shape = OUTPUTS[s.outputs]
    x = rng.standard_normal((s.count, FEATURES)).astype(np.float32)
    w = rng.integers(1, 4, s.count).astype(np.float32)
    w[1::4] = 0.0
    if s.criterion == "cross-entropy":
        return x, rng.integers(0, CLASSES, (s.count, *shape[:-1])), w
    flat = {"flat": (), "column": (1,)}.get(s.labels, shape)
    return x, rng.standard_normal((s.count, *flat)).astype(np.float32), w


def cut(s: Situation) -> list[tuple[np.ndarray, ...]]:
    """The data in three batches; the last one of another size unless they are given as a list."""
    size = s.count // 3 if s.data == "list" else s.count // 3 + 1
    return [tuple(x[i : i + size] for x in batch(s)) for i in range(0, s.count, size)]


def problem(s: Situation) -> tuple[Any, Any, lla.Execution]:
    """(loss, data, execution) for the library."""

    def run(params: Any, state: Any, batch: Any, train: bool) -> tuple[Any, Any]:
        return apply(s, params, batch, jnp), state

    def criterion(outputs: Any, batch: Any) -> Any:
        values = losses(s, outputs, batch, jnp)
        w = weights_of(s, outputs, batch, values, jnp)
        return values if w is None else (values, w)

    def together(outputs: Any, batch: Any) -> Any:
        values = losses(s, outputs, batch, jnp)
        w = weights_of(s, outputs, batch, values, jnp)
        return values.mean() if w is None else ((w * values).sum() / w.sum(), batch[2].sum())

    def plain(params: Any, batch: Any) -> Any:
        return mean(s, params, batch, jnp)

    loss = {
        "per example": lla.Loss(run, criterion),
        "per batch": lla.Loss(run, together, per_example=False),
        "plain": plain,
        "plain with a second value": lambda params, batch: (plain(params, batch), jnp.mean(batch[0])),
    }[s.form]
    data = {"stream": lambda: lla.stream(cut(s)), "list": lambda: cut(s)}.get(s.data, lambda: batch(s))()
    block = 4 if s.data == "blocks" else 64
    return loss, data, lla.Execution(chunk=3, microbatch=block, loop="map", share=False, devices=1)


def truth(s: Situation, shift: float) -> float:
    """The value at a distance along the direction, in float64; of coupled examples, the mean over the batches."""
    moved = {k: p.astype(np.float64) + shift * direction(s)[k].astype(np.float64) for k, p in parameters(s).items()}
    own = s.couples or s.weights == "of outputs"  # a batch has a value of its own, which no other batch shares
    batches = cut(s) if own and s.form != "per example" and s.data == "stream" else [batch(s)]
    exact = [tuple(x.astype(np.float64) if x.dtype.kind == "f" else x for x in each) for each in batches]
    told = s.form == "per batch" and s.weights != "none"
    weights = [each[2].sum() if told else len(each[0]) for each in exact]
    return float(np.average([mean(s, moved, each, np) for each in exact], weights=weights))


# --- the verdict


@dataclass(frozen=True)
class Verdict:
    """What came of a situation.

    Args:
      outcome: "right", "wrong", "refused" (one of our errors), "warned", or "broken" (another error).
      text: the values, or the message.
    """

    outcome: str
    text: str


def judge(s: Situation, curvature: bool = False) -> Verdict:
    """Compute a line of three points, or the curvature along the direction, and compare it with the truth."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            found, expected, allowed = (_curvature if curvature else _line)(s)
        except ValueError as error:
            return Verdict("refused", str(error))
        except Exception as error:
            advised = "lla.stream(" in "".join(getattr(error, "__notes__", ()))
            return Verdict("refused" if advised else "broken", f"{type(error).__name__}: {error}")
    text = f"{found} for {expected}"
    if np.allclose(found, expected, rtol=allowed, atol=allowed):
        return Verdict("warned" if heard else "right", text if not heard else str(heard[0].message))
    return Verdict("warned", str(heard[0].message)) if heard else Verdict("wrong", text)


def _line(s: Situation) -> tuple[Any, Any, float]:
    loss, data, execution = problem(s)
    axis = lla.directions.given(direction(s))
    grid = lla.grid(ranges=[(-EXTENT, EXTENT)], points=3, dims=1)
    found = lla.evaluate(loss, parameters(s), data, axis, grid, execution=execution).values["loss"]
    return found, np.array([truth(s, c) for c in (-EXTENT, 0.0, EXTENT)]), 1e-4


def _curvature(s: Situation) -> tuple[Any, Any, float]:
    loss, data, _ = problem(s)
    H = lla.hessian(loss, parameters(s), data, execution=lla.Execution(devices=1))
    d = direction(s)
    image = H.mv(jax.tree.map(jnp.asarray, d)) if hasattr(H, "mv") else H(d)
    found = sum(float(np.vdot(d[name], np.asarray(image[name], np.float64))) for name in d)
    h = CURVATURE_STEP
    expected = (truth(s, h) - 2 * truth(s, 0.0) + truth(s, -h)) / h**2
    return found, expected, 2e-3
