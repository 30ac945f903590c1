"""A tiny problem in a module of its own, the commands that run it, and a progress bar that interrupts."""

from __future__ import annotations

import contextlib

from lla_jax.cli import main as cli

TINY = """
import numpy as np
import lla_jax as lla

CALLS = []

def squares(params, batch):
    x, y = batch
    return ((x @ params["layer"]["kernel"] + params["layer"]["bias"] - y) ** 2).mean()

def make(scale=1.0):
    CALLS.append(1)
    x = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
    kernel = scale * np.array([1.0, -2.0, 0.5], np.float32)
    params = {"layer": {"kernel": kernel, "bias": np.full(1, 0.25, np.float32)}}
    other = {"layer": {"kernel": kernel + 1, "bias": np.zeros(1, np.float32)}}
    return lla.Problem(squares, params, (x, x @ kernel), checkpoints=[other])

def another():
    return make(2.0)

def number():
    return 3

def broken():
    return {}["missing"]

def deep():
    import json
    json.loads("{")

def leaves():
    raise SystemExit("usage: train.py")

def needs(data, *, size, seed=0):
    return make()

def shifted(by=-100.0):
    problem = make()
    return lla.Problem(lambda p, b: squares(p, b) + by, problem.params, problem.data)

def with_state():
    problem = make()
    loss = lla.Loss(lambda p, s, b, train: (b[0] @ p["layer"]["kernel"], s), lambda o, b: (o - b[1]) ** 2, np.ones(2))
    return lla.Problem(loss, problem.params, problem.data, checkpoints=problem.checkpoints)

def steep():
    return shifted(1e-4)

def wrong_shapes():
    return lla.Problem(lambda p, b: (b[0].T @ p["layer"]["kernel"]).sum(), make().params, make().data)

def diverged():
    problem = make()
    problem.params["layer"]["kernel"] = np.full(3, np.nan, np.float32)
    return problem
"""


def run(*arguments):
    return cli.main([str(a) for a in arguments])


def tiny_run(*arguments, factory="make"):
    return run("landscape", "--problem", f"tiny_problem:{factory}", *arguments)


def stopping(after):
    """A progress bar during which the user presses Ctrl-C."""

    @contextlib.contextmanager
    def bar(label, unit="points", estimate=False):
        def progress(done, total):
            if done >= after:
                raise KeyboardInterrupt

        yield progress

    return bar
