"""A linear model of two classes, and the verbs that take it, for tables of slips."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

import lla_jax as lla

X = np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3)
Y = np.arange(8) % 2
PARAMS = {"w": np.array([[0.5, -0.3], [0.2, 0.4], [-0.7, 0.1]], np.float32)}
LINE = lla.directions.random(jax.random.key(0), PARAMS, num=1)
GRID = lla.grid(points=3, dims=1)
ONE = lla.Execution(devices=1)


def apply(p, state, batch, train):
    return batch[0] @ p["w"], state


def by_class(outputs, batch):
    return optax.softmax_cross_entropy_with_integer_labels(outputs, batch[1])


def plain(p, batch):
    return by_class(batch[0] @ p["w"], batch).mean()


def of(criterion: Callable[..., Any] = by_class, model: Callable[..., Any] = apply, **options: Any) -> lla.Loss:
    return lla.Loss(model, criterion, **options)


def check(loss: Any, data: Any = (X, Y), **options: Any) -> None:
    lla.check_examples(loss, PARAMS, data, **options)


def hessian(loss: Any, data: Any = (X, Y), **options: Any) -> Any:
    return lla.hessian(loss, PARAMS, data, execution=ONE, **options)


def evaluate(loss: Any, data: Any = (X, Y), **options: Any) -> Any:
    execution = lla.Execution(chunk=4, microbatch=8, loop="map", share=False, devices=1)
    return lla.evaluate(loss, PARAMS, data, LINE, GRID, execution=execution, **options)
