"""Tiny problems with a history, for ``lla-jax path`` and ``lla-jax connect``."""

from __future__ import annotations

import contextlib

import numpy as np

from lla_jax.cli import main as cli

MODULE = """
import numpy as np
import lla_jax as lla

RNG = np.random.default_rng(0)
X = RNG.normal(size=(24, 3)).astype(np.float32)

def apply(p, state, batch, train):
    return (batch[0] @ p["w"]) ** 2, state  # w and -w are two solutions

def squares(outputs, batch):
    return (outputs - batch[1]) ** 2

LOSS = lla.Loss(apply, squares)
W = np.array([1.0, -1.0, 0.5], np.float32)
DATA = (X, (X @ W) ** 2)

def at(t):
    return {"w": (W * (1 - np.exp(-t)) + np.array([np.sin(t), np.cos(2 * t), 0.3 * t], np.float32) / (1 + t) / 4)}

def make():
    return lla.Problem(LOSS, {"w": W}, DATA, checkpoints=[at(t) for t in range(5)],
                       metrics={"error": lambda out, batch: abs(out - batch[1])}, extra_data={"test": DATA})

def two():
    return lla.Problem(LOSS, {"w": W}, DATA, checkpoints=[{"w": -W}], extra_data={"test": DATA})

def near():
    return lla.Problem(LOSS, {"w": 1.001 * W}, DATA, checkpoints=[{"w": -1.001 * W}])

def straight():
    return lla.Problem(LOSS, {"w": W}, DATA, checkpoints=[{"w": 3 * W}, {"w": 2 * W}])

def alone():
    return lla.Problem(LOSS, {"w": W}, DATA)

def same():
    return lla.Problem(LOSS, {"w": W}, DATA, checkpoints=[{"w": W}])

def spoilt():
    return lla.Problem(LOSS, {"w": W}, DATA, checkpoints=[at(0), {"w": W * np.nan}])

def other():
    return lla.Problem(LOSS, {"w": W}, DATA, checkpoints=[{"w": np.ones(4, np.float32)}])

def centred(p, state, batch, train):
    h = batch[0] @ p["w"]
    mean = h.mean() if train else state["mean"]
    return (h - mean) ** 2, {"mean": 0.9 * state["mean"] + 0.1 * mean}

def normed(states=True):
    loss = lla.Loss(centred, squares, {"mean": np.float32(0.1)})
    history = [{"mean": np.float32(0.05 * t)} for t in range(5)]
    checkpoints = [at(t) for t in range(5)]
    return lla.Problem(loss, {"w": W}, DATA, checkpoints=checkpoints, states=history if states else ())

def lacking():
    return normed(False)
"""


def history(verb, *arguments, factory="make"):
    """Run a verb on a problem of the module; gives the exit code."""
    return cli.main([str(a) for a in (verb, "--problem", f"history:{factory}", *arguments)])


def stopping(label, after):
    """A progress bar that interrupts, as Ctrl-C would, at a number of one label."""

    @contextlib.contextmanager
    def bar(name, *_, **__):
        def progress(done, total):
            if name == label and done >= after:
                raise KeyboardInterrupt

        yield progress

    return bar


W = np.array([1.0, -1.0, 0.5])
X = np.random.default_rng(0).normal(size=(24, 3)).astype(np.float32).astype(np.float64)


def losses(*weights):
    """The loss of the module at some weights, in float64."""
    return np.array([np.mean(((X @ w) ** 2 - (X @ W) ** 2) ** 2) for w in weights])
