"""Connects two solutions by a curve along which the loss stays low."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np

from lla_jax.core import called
from lla_jax.core.arguments import check_choice, misuse
from lla_jax.core.data import Stream
from lla_jax.core.interrupts import deferred_interrupts
from lla_jax.core.signatures import explained
from lla_jax.core.types import Batch, Execution, Loss, PyTree, Select
from lla_jax.execution.progress import AskedProgress, takes_progress
from lla_jax.paths.curves import Curve
from lla_jax.paths.training import assembly, control_points

KINDS = ("bezier", "polygon", "band")


@takes_progress("steps")
@deferred_interrupts()
@called.differentiated()
@explained
def connect(
    loss: Loss | Callable[[PyTree, Batch], Any],
    a: PyTree,
    b: PyTree,
    data: Batch | Stream,
    *,
    key: Any,
    state_b: PyTree = None,
    kind: Literal["bezier", "polygon", "band"] = "bezier",
    steps: int = 2000,
    optimizer: Any = None,
    batch_size: int | None = None,
    points: int | None = None,
    displacement: float | None = None,
    select: Select | None = None,
    weight_decay: float = 0.0,
    store: str | os.PathLike[str] | None = None,
    save_every: int = 1,
    progress: AskedProgress = None,
    execution: Execution = Execution(),  # noqa: B008 (frozen)
    cycles: int | None = None,
    insert: int | None = None,
    samples: int | None = None,
    climb: int | None = None,
    tolerance: float | None = None,
    curvature: bool | None = None,
) -> Curve:
    """Train a curve from ``a`` to ``b`` along which the loss stays low.

        min E_{t ~ U(0, 1)} [ L(theta(t)) + weight_decay / 2 |theta(t)|^2 ],   theta(0) = a, theta(1) = b

    over the free control points of a Bezier curve or a polygon; ``kind="band"`` is a nudged elastic band. Each step
    draws one t and one batch. The network is in train mode: BatchNorm uses the statistics of the batch, and a loss with
    a key draws new noise at each step. The ends are kept to the bit.

    Args:
      loss: a ``Loss``, whose state (BatchNorm statistics) is that of ``a``, or a plain ``f(params, batch) -> scalar``.
      a, b: the two solutions, trees of one structure.
      data: one data set, ``lla.whole(...)``, ``lla.stream(...)``, or None for a loss without data. A stream is read
        again and again.
      key: a ``jax.random`` key: all draws follow from it.
      state_b: the state of ``b``; needed if the loss has one.
      kind: "bezier", "polygon" (straight pieces between control points at equal distances of t), or "band".
      steps: number of steps of the optimizer.
      optimizer: an optax optimizer, such as ``optax.sgd(0.01, momentum=0.9)``; of several free control points each has
        a state of its own. None: Adam, at 1 % of the distance of the ends per parameter, 0.01 |b - a| / sqrt(n),
        constant for half of the steps, and then falling linearly to 1 % of that at 90 % of them.
      batch_size: examples per batch of a data set, shuffled anew in each epoch; what is left of an epoch below a batch
        is dropped. None: all examples at each step.
      points: number of control points, the ends included; default 3. Of a band: the inner pivots at the start.
      displacement: how far the control points lie beside the straight line at the start, in units of |b - a|, all to
        the same random side: where the landscape is symmetric about the line, nothing else pushes the curve aside.
        Default 0.05.
      select: which parameters are trained, by their paths (``"**/kernel"``, a regular expression, a predicate): the
        others stay on the straight line, such as a pretrained part that both ends share. Not for a band.
      weight_decay: applied to theta(t), not to the control points.
      store: a folder in which the state is kept after every ``save_every`` steps; the same call goes on from it, with
        the same result to the bit. With an optimizer of your own, ``steps`` may be larger then.
      save_every: steps between two writings. A kill loses the steps since the last one, and Ctrl-C none.
      progress: True for a bar, or ``progress(done, total)``, in steps.
      execution: its ``precision`` is read.
      cycles: of a band, as all that follow: parts of the training, with new pivots before each but the first; default
        14.
      insert: new pivots per cycle at most; default 2.
      samples: points between two pivots at which the band is looked at; default 9.
      climb: steps of the climbing image at most; default 300, or fewer where that would be more than the training.
      tolerance: of the norm of the gradient at the saddle; default 1e-3.
      curvature: whether the negative eigenvalues of the Hessian at the saddle are counted; default False.

    Returns:
      A ``Curve``. Its ``history`` has the "loss" of the batch at each step, without the weight decay, and its "t".
      If a loss or gradient is not finite, the training ends with a warning: the curve is that of the last finite step,
      its recipe has ``complete`` False and the step as ``stopped``, and the last loss of the history is the one that
      failed. A band has its highest point in ``saddle``; its history has the largest loss of the pivots at each step,
      "cycle_pivots" and "cycle_max_loss" at the end of each cycle, and "pivot_t" and "pivot_loss" in the end, by the
      loss of all examples in train mode.

    Raises:
      ValueError: ends of different structure, not finite or equal; a second state that is missing; an object that is no
        optax optimizer; a store that holds another training (the difference is named) or a damaged file.

    References:
      Garipov et al. 2018, arXiv:1802.10026. As there, t is uniform and the weight decay acts on theta(t). Where we
      differ: (1) of 32 draws of t in turn one falls into each 32nd part of [0, 1], which leaves less noise in the
      control points; (2) the curve has the mean of the control points over the steps, late ones with the most weight
      (Shamir and Zhang 2012, arXiv:1212.1824, polynomial-decay averaging with eta = 7), since with a constant learning
      rate the last ones scatter; (3) the start is displaced from the straight line; (4) Adam is the default.
    """
    check_choice("kind", kind, KINDS)
    is_band = kind == "band"
    of_band: dict[str, Any] = {"cycles": cycles, "insert": insert, "samples": samples, "climb": climb}
    of_band |= {"tolerance": tolerance, "curvature": curvature}
    of_band = {name: value for name, value in of_band.items() if value is not None}
    if of_band and not is_band:
        name, value = next(iter(of_band.items()))
        raise misuse(name, value, f'left out for kind="{kind}", since it belongs to kind="band"')
    if is_band and select is not None:
        raise misuse("select", select, 'left out for kind="band", whose pivots move in all parameters')
    asked = {"points": points, "displacement": displacement}
    start: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if not is_band:
        start = control_points.check_start(kind, **start)
    prepared = assembly.prepare(
        loss,
        a,
        b,
        data,
        state_b=state_b,
        kind=kind,
        key=key,
        steps=steps,
        optimizer=optimizer,
        batch_size=batch_size,
        weight_decay=weight_decay,
        store=store,
        save_every=save_every,
        progress=progress,
        execution=execution,
    )
    if is_band:
        from lla_jax.paths.bands.training import connect_band

        return connect_band(prepared, **start, **of_band)
    return _fit(prepared, select, **start)


def _fit(prepared: assembly.Training, select: Select | None, points: int, displacement: float) -> Curve:
    fit = control_points.Fit(prepared, points, displacement, select)
    fit.run()
    ends = prepared.ends
    stacked = jax.tree.map(
        lambda x, inner, y: np.concatenate([np.asarray(x)[None], np.asarray(inner), np.asarray(y)[None]]),
        ends.a,
        fit.mean,
        ends.b,
    )
    recipe = {**fit.recipe, "complete": not fit.failed, "stopped": fit.step if fit.failed else None}
    kind = fit.recipe["kind"]
    return Curve(
        kind=kind,
        points=stacked,
        knots=np.linspace(0, 1, points) if kind == "polygon" else None,
        states=ends.states,
        history={"loss": np.array(fit.losses), "t": np.array(fit.ts)},
        recipe=recipe,
    )
