"""Computes the curvature at the checkpoints of a path: trace and extreme eigenvalues of the Hessian."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np

from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse, check_integer, misuse, single_key
from lla_jax.core.interrupts import check_interrupt
from lla_jax.core.types import Execution, Loss
from lla_jax.curvature import eigen, estimates, operators
from lla_jax.execution.progress import Progress
from lla_jax.paths.host_trees import has_floats
from lla_jax.paths.trajectories import Trajectory

ENDS: dict[str, Literal["largest", "smallest"]] = {"lambda_max": "largest", "lambda_min": "smallest"}
NAMES = ("trace", *ENDS)


class Asked(NamedTuple):
    """The curvature that is asked for.

    Args:
      names: some of ``NAMES``.
      every: at every how many checkpoints.
      key: draws the vectors; None where nothing is asked for.
    """

    names: tuple[str, ...]
    every: int
    key: Any


def check_curvature(names: Any, every: Any, key: Any, loss: Any, batch_stats: str) -> Asked:
    """What is asked for, checked.

    Raises:
      Misuse: an unknown name, no key, no loss, or a policy that the Hessian does not know.
    """
    asked = (names,) if isinstance(names, str) else names
    rule = f"some of {', '.join(map(repr, NAMES))}, such as curvature=('trace', 'lambda_max')"
    if not isinstance(asked, list | tuple) or not all(isinstance(x, str) and x in NAMES for x in asked):
        raise misuse("curvature", names, rule)
    if len(set(asked)) < len(asked):
        raise misuse("curvature", names, f"{rule}, each once")
    every = check_integer("curvature_every", every, remedy="at every how many checkpoints")
    if not asked:
        return Asked((), every, None)
    if loss is None:
        raise Misuse("curvature", f"{names!r} given without a loss; pass loss= and data= too")
    if key is None:
        raise Misuse("key", "None given, and curvature draws vectors; pass one, such as key=jax.random.key(0)")
    if batch_stats == "reestimate":
        raise Misuse(
            "curvature",
            f"{names!r} given with batch_stats='reestimate', which a Hessian does not know; pass a path with states "
            "and batch_stats='frozen', or 'batch'",
        )
    return Asked(tuple(asked), every, single_key(key))


def curvatures_along(
    loss: Any,
    path: Trajectory,
    data: Any,
    at: Sequence[int],
    asked: Asked,
    options: Mapping[str, Any],
    into: tuple[MutableMapping[str, np.ndarray], MutableMapping[str, np.ndarray]],
    progress: Progress | None,
) -> None:
    """Compute the curvature at some checkpoints, with one operator, into arrays that are NaN elsewhere.

    What they hold already stays. Each checkpoint is computed by itself, so that what is continued is the same to the
    bit: to begin with the eigenvector of the checkpoint before would save a tenth of the products.

    Args:
      loss: the loss.
      path: the T checkpoints.
      data: the data.
      at: the indices of the checkpoints.
      asked: the names and the key.
      options: "batch_size", "batch_stats" and "execution" of ``project``.
      into: the dicts {name: (T,)} of values and of their errors, which are filled from checkpoint to checkpoint.
      progress: called with the number of checkpoints done.
    """
    values, errors = into
    for name in asked.names:
        for numbers in into:
            numbers.setdefault(name, np.full(len(path), np.nan))
    plan = options["execution"]
    execution = Execution(devices=plan.devices, precision=plan.precision)
    common = {name: options[name] for name in ("batch_size", "batch_stats")} | {"execution": execution}
    own_states = isinstance(loss, Loss) and has_floats(loss.state) and path.has_states
    H: Any = None
    for number, t in enumerate(at):
        check_interrupt()
        names = [name for name in asked.names if np.isnan(values[name][t])]
        if names and own_states:  # an operator keeps the state of its loss
            state = _tree.align(path.state(t), loss.state, f"state of path[{t}]", "loss.state")
            H = operators.hessian(replace(loss, state=state), path[t], data, **common)
        elif names:
            H = operators.hessian(loss, path[t], data, **common) if H is None else H.at(path[t])
        for name in names:
            value, error = _compute(name, H, asked.key)
            values[name][t], errors[name][t] = value, error
        if progress is not None:
            progress(number + 1, len(at))


def _compute(name: str, H: Any, key: Any) -> tuple[float, float]:
    """(value, its standard error or residual)."""
    if name == "trace":
        estimate = estimates.trace(H, key)
        return float(estimate.mean), float(estimate.sem)
    pairs = eigen.eigenpairs(H, key, 1, which=ENDS[name])
    return float(pairs.values[0]), float(pairs.residuals[0])
