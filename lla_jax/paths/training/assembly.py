"""Checks the arguments of a training between two solutions, and puts them together with its recipe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from lla_jax.core import examples, operands, precision, recipes
from lla_jax.core.arguments import Misuse, check_integer, check_number, single_key
from lla_jax.core.data import Stream, as_arrays, check_batch_size, check_uncut, num_examples
from lla_jax.core.types import Batch, Execution, Loss, PyTree, Recipe
from lla_jax.execution import plans
from lla_jax.paths.training import optimizers
from lla_jax.paths.training.batch_slopes import has_statistics
from lla_jax.paths.training.batches import Batches
from lla_jax.paths.training.ends import Ends, make_ends
from lla_jax.paths.training.optimizers import Optimizer
from lla_jax.paths.training.stores import Keeper


@dataclass(frozen=True, eq=False)
class Training:
    """What the training of a curve is given, after its check.

    Args:
      ends: the loss, and the two solutions.
      data: the data as they were given.
      batches: its endless mini-batches.
      key: for all further draws.
      steps: number of steps of the optimizer.
      optimizer: moves the free points.
      rates: ``rates(start, count) -> (count,)``, the factors of the updates of the steps from ``start`` on.
      weight_decay: adds weight_decay / 2 |theta|^2 to the loss at a point theta of the curve.
      precision: of matrix products.
      keeper: the store.
      save_every: steps after which the state is kept.
      progress: ``progress(done, total)``, or None.
      recipe: what has been said so far; a method adds its entries.
      compared: the entries of the recipe that a store must share, all but those of the method.
    """

    ends: Ends
    data: Batch | Stream
    batches: Batches
    key: jax.Array
    steps: int
    optimizer: Optimizer
    rates: Callable[[int, int], np.ndarray]
    weight_decay: float
    precision: operands.Precision
    keeper: Keeper
    save_every: int
    progress: Any
    recipe: Recipe
    compared: tuple[str, ...]


def prepare(
    loss: Loss | Callable[..., Any],
    a: PyTree,
    b: PyTree,
    data: Batch | Stream,
    *,
    state_b: PyTree,
    kind: str,
    key: Any,
    steps: int,
    optimizer: Any,
    batch_size: int | None,
    weight_decay: float,
    store: Any,
    save_every: int,
    progress: Any,
    execution: Execution,
) -> Training:
    """Check the arguments of ``connect``, and put them together.

    Raises:
      ValueError: an argument is wrong; it is named.
    """
    plans.check_for_training(execution)
    key = single_key(key)
    steps = check_integer("steps", steps, remedy="such as 1000")
    save_every = check_integer("save_every", save_every, remedy="in steps, such as 10")
    weight_decay = check_number("weight_decay", weight_decay, least=0.0, remedy="such as 5e-4, or 0 for none")
    given = None if optimizer is None else optimizers.as_optimizer(optimizer)
    joined = make_ends(loss, a, b, state_b)
    data = data if isinstance(data, Stream) else as_arrays(data)
    batch_size = _check_batches(data, batch_size)
    train = has_statistics(joined.loss)
    watched = data
    if isinstance(data, Stream):
        watched = examples.watch(data, joined.loss, joined.a, train=train, slopes=True)
    else:
        examples.check(joined.loss, joined.a, data, train=train, most=batch_size, slopes=True)
    batch_key, key = jax.random.split(key)
    distance, size = joined.distance, joined.size
    recipe: Recipe = {
        "kind": kind,
        "steps": steps,
        "optimizer": optimizers.describe_default(distance, size) if given is None else optimizers.describe(given),
        "batch_size": batch_size,
        "weight_decay": weight_decay,
        "data": recipes.describe(data),
        "params": {"a": recipes.fingerprint(a), "b": recipes.fingerprint(b), "size": size, "distance": distance},
        "state": recipes.fingerprint(joined.states),
        "noise": recipes.fingerprint(joined.loss.key),
        "key": recipes.fingerprint(key),
        "precision": {
            **operands.describe(execution.precision, jax.devices()[0]),
            "x64": bool(jax.config.values["jax_enable_x64"]),
            **precision.describe(joined.loss, a),
        },
        "versions": recipes.versions(),
    }
    own = ("steps",) if given is None else ()  # whose schedule depends on the number of steps
    compared = tuple(name for name in recipe if name not in ("steps", "versions")) + own

    def rates(start: int, count: int) -> np.ndarray:
        if given is not None:
            return np.ones(count, np.float32)
        return optimizers.default_rates(start, count, steps, distance, size)

    return Training(
        joined,
        data,
        Batches(watched, batch_key, batch_size, pads=joined.loss.per_example and not train),
        key,
        steps,
        optimizers.default() if given is None else given,
        rates,
        weight_decay,
        execution.precision,
        Keeper(store),
        save_every,
        progress,
        recipe,
        compared,
    )


def _check_batches(data: Batch | Stream, batch_size: Any) -> int | None:
    """The examples per batch; None for all, and for streams.

    Raises:
      ValueError: a size for a stream or a ``whole``, or none that is positive.
    """
    if batch_size is None:
        return None
    batch_size = check_batch_size(batch_size)
    if isinstance(data, Stream):
        raise Misuse("batch_size", f"{batch_size} given, but a stream has its own batches; leave it out")
    check_uncut(data, batch_size)
    return None if batch_size >= num_examples(data) else batch_size
