"""Trains the free control points of a Bezier curve or a polygon between two solutions.

    min over P_1 ... P_{K-2} of E_{t ~ U(0, 1)} [ L(theta(t)) + weight_decay / 2 |theta(t)|^2 ]
    theta(t) = sum_k w_k(t) P_k

Each step draws one t and one batch. The gradient in P_k is w_k(t) times that at theta(t), so that a step costs one
gradient of the network, however many control points there are. The ends are never touched. The curve has the mean of
the control points over the steps, those of late steps with the most weight: with a constant learning rate the last
ones would scatter, since every t pulls at them in its own way.

References: Garipov et al. 2018, arXiv:1802.10026; Shamir and Zhang 2012, arXiv:1212.1824 (polynomial-decay averaging).
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import interrupts, operands, randomness, recipes
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse, check_integer, check_number, warn_caller
from lla_jax.core.recipes import Differs
from lla_jax.core.types import Loss, PyTree, Select
from lla_jax.paths.host_trees import distance
from lla_jax.paths.training import bases
from lla_jax.paths.training.assembly import Training
from lla_jax.paths.training.batch_slopes import slope, with_fresh_noise
from lla_jax.paths.training.batches import Draw, block_of
from lla_jax.paths.training.optimizers import Optimizer
from lla_jax.paths.training.stores import Kept, from_arrays, to_arrays

POINTS, DISPLACEMENT = 3, 0.05  # by default
STRATA = 32  # parts of [0, 1] into which as many successive draws of t fall, one into each
MOST_STEPS = 256  # of a call
LATE = 7  # the weight of step s of S in the mean is about (s / S)^7, so that most is in the last quarter
CALL_S = 0.1  # for which a call takes as many steps as fit
KERNEL_AXES = 3  # of weights of convolutions at least; their loops on a CPU leave XLA's fast path
SAME_LOSS, SAME_MOVE = 1e-4, 1e-2  # relative differences of a first step that is repeated, perhaps elsewhere


class Steps(NamedTuple):
    """Some steps of a training.

    Args:
      first: number of the first step.
      count: number of steps, at most C.
      ts: (C,), the t of each step.
      rates: (C,), the factors of the updates.
      decay: the weight decay.
    """

    first: Any
    count: Any
    ts: Any
    rates: Any
    decay: Any


class Seen(NamedTuple):
    """What some steps showed.

    Args:
      losses: (C,), the loss of each step's batch at its t, without the weight decay.
      done: number of steps that were taken, and with one that failed also this one.
      good: whether all were finite; a step that was not has changed nothing.
    """

    losses: Any
    done: Any
    good: Any


@functools.partial(
    jax.jit,
    static_argnames=("optimizer", "kind", "chosen", "precision", "loops"),
    donate_argnames=("free", "mean", "memory"),
)
def _advance(
    loss: Loss,
    a: PyTree,
    b: PyTree,
    free: PyTree,
    mean: PyTree,
    memory: PyTree,
    draw: Draw,
    steps: Steps,
    *,
    optimizer: Optimizer,
    kind: str,
    chosen: tuple[bool, ...],
    precision: operands.Precision,
    loops: bool,
) -> tuple[PyTree, PyTree, PyTree, Seen]:
    """Take steps: (free control points, their mean, memory of the optimizer, what was seen); one without ``loops``."""
    num, structure = 2 + jax.tree.leaves(free)[0].shape[0], jax.tree.structure(free)
    moves = jax.tree.unflatten(structure, chosen)

    def one(i: Any, free: PyTree, mean: PyTree, memory: PyTree) -> tuple[PyTree, PyTree, PyTree, Any, Any]:
        w = bases.weights(kind, num, steps.ts[i].astype(float))
        theta = bases.combine(w, a, free, b)
        block = block_of(draw if draw.rows is None else draw._replace(rows=draw.rows[i]))
        with jax.default_matmul_precision(precision):
            value, gradient = slope(with_fresh_noise(loss, steps.first + i), theta, block)
        gradient = jax.tree.map(lambda g, p: g + steps.decay.astype(g.dtype) * p, gradient, theta)
        gradient = jax.tree.map(lambda g, yes: g if yes else jnp.zeros_like(g), gradient, moves)
        moved, after = optimizer.move(free, memory, bases.scale(w, gradient), value, steps.rates[i])
        moved = jax.tree.map(lambda new, old, yes: new if yes else old, moved, free, moves)
        share = (LATE + 1) / (LATE + 1 + (steps.first + i).astype(float))
        late = jax.tree.map(lambda m, p: m + share.astype(m.dtype) * (p - m), mean, moved)
        finite = [jnp.isfinite(x).all() for x in jax.tree.leaves((gradient, moved))]
        good = jnp.stack(finite).all() & ~jnp.isinf(value)
        new, old = (moved, late, after), (free, mean, memory)
        return *jax.tree.map(functools.partial(jnp.where, good), new, old), value, good

    if not loops:
        free, mean, memory, value, good = one(0, free, mean, memory)
        return free, mean, memory, Seen(value[None], jnp.int32(1), good)

    def more(carry: Any) -> Any:
        return (carry[-1].done < steps.count) & carry[-1].good

    def body(carry: Any) -> Any:
        free, mean, memory, seen = carry
        free, mean, memory, value, good = one(seen.done, free, mean, memory)
        return free, mean, memory, Seen(seen.losses.at[seen.done].set(value), seen.done + 1, good)

    dtype = jax.eval_shape(one, jnp.int32(0), free, mean, memory)[3].dtype
    seen = Seen(jnp.zeros(len(steps.rates), dtype), jnp.int32(0), jnp.bool_(True))
    return jax.lax.while_loop(more, body, (free, mean, memory, seen))


@functools.partial(jax.jit, static_argnames="num")
def draw_ts(key: Any, start: Any, num: int) -> Any:
    """(num,) float32, the t of ``num`` steps from ``start`` on, each uniform on [0, 1], from key and step alone.

    Of every 32 steps in turn, one falls into each 32nd part of [0, 1], in random order. Each t is uniform, and the sum
    of their gradients has less noise than that of independent draws.
    """
    part_key, place_key = jax.random.split(key)

    def one(step: Any) -> Any:
        order = jax.random.permutation(jax.random.fold_in(part_key, step // STRATA), STRATA)
        place = jax.random.uniform(jax.random.fold_in(place_key, step), dtype=jnp.float32)
        return (order[step % STRATA] + place) / STRATA

    return jax.vmap(one)(start + jnp.arange(num))


class Fit:
    """The training of the free control points, step by step, with its store.

    Args:
      training: what is given.
      points: number of control points, the ends included.
      displacement: how far the start lies beside the straight line, in units of |b - a|.
      select: which parameters are trained; None for all.
    """

    def __init__(self, training: Training, points: int, displacement: float, select: Select | None = None):
        self.training, self.points = training, points
        self.chosen = tuple(_tree.select_leaves(select, training.ends.a))
        selected = None if select is None else _tree.describe(select, training.ends.a, self.chosen)
        self.recipe = {**training.recipe, "points": points, "displacement": displacement, "select": selected}
        start_key, self.key = jax.random.split(training.key)
        ends = training.ends
        self.a, self.b, self.loss = (jax.tree.map(jnp.asarray, x) for x in (ends.a, ends.b, ends.loss))
        self.start = start_of(training, start_key, points, displacement, self.chosen)
        self.free: PyTree = jax.tree.map(jnp.asarray, self.start)
        self.mean: PyTree = jax.tree.map(jnp.array, self.start)
        self.memory = training.optimizer.init(self.free)
        kernels = any(np.ndim(x) >= KERNEL_AXES for x in jax.tree.leaves(ends.a))
        self.loops = not training.batches.is_stream and not (kernels and jax.default_backend() == "cpu")
        self.losses: list[float] = []
        self.ts: list[float] = []
        self.failed = False  # whether the last of the losses belongs to a step that was not finite
        self.moved: float | None = None  # by the first step
        self.pending: Seen | None = None  # what the devices may still compute
        self._drawn: tuple[int, list[float]] = (-1, [])  # the number of a group of steps, and their t

    @property
    def step(self) -> int:
        """Number of steps that were taken."""
        return len(self.losses) - self.failed

    def run(self) -> None:
        """Train to the end, from the beginning or from what is kept."""
        training = self.training
        kept = training.keeper.load(self.recipe, (*training.compared, "points", "displacement", "select"))
        if kept is not None and kept.header["step"] + bool(kept.header.get("failed")) > 0:
            self._repeat_first(kept)
        draws = training.batches.from_step(self.step)
        saved, calls, seconds = self.step, 0, CALL_S
        try:
            while self.step < training.steps and not self.failed:
                interrupts.check_interrupt()
                count = min(int(max(1, CALL_S / seconds)), MOST_STEPS) if self.loops else 1
                count = min(count, training.steps - self.step)
                if training.keeper.path is not None:
                    count = min(count, training.save_every - (self.step - saved))
                begun = time.perf_counter()
                self._advance(draws, count)
                calls += 1
                if calls > 1:  # the first call has compiled
                    seconds = (time.perf_counter() - begun) / count
                if self.step - saved >= training.save_every or self.step == training.steps or self.failed:
                    self._save()
                    saved = self.step
                if training.progress is not None:
                    training.progress(self.step, training.steps)
        except BaseException as error:
            if not isinstance(error, OSError):  # of the store itself
                self._flush(saved)
            raise
        if self.failed:
            warn_caller(
                f"steps: the loss or its gradient is not finite at step {self.step} (loss {self.losses[-1]:g} at t = "
                f"{self.ts[-1]:.3f}); the curve after the {self.step} steps before is returned, its recipe says so: "
                "lower the learning rate of the optimizer, or clip its gradients"
            )

    def _advance(self, draws: Iterator[Draw], count: int) -> None:
        """Take some steps, and note what they showed; in a loop of the device, the batches are read from there."""
        training, step, most = self.training, self.step, MOST_STEPS if self.loops else 1
        draw = training.batches.of_step(step) if self.loops else next(draws)
        if draw.rows is not None:
            rows = training.batches.several_rows(step, count)
            draw = draw._replace(rows=np.concatenate([rows, np.zeros((most - count, rows.shape[1]), rows.dtype)]))
        ts, rates = np.zeros((2, most), np.float32)
        ts[:count], rates[:count] = [self._t(step + i) for i in range(count)], training.rates(step, count)
        steps = Steps(np.int32(step), np.int32(count), ts, rates, np.float32(training.weight_decay))
        self.free, self.mean, self.memory, self.pending = _advance(
            self.loss,
            self.a,
            self.b,
            self.free,
            self.mean,
            self.memory,
            draw,
            steps,
            optimizer=training.optimizer,
            kind=self.recipe["kind"],
            chosen=self.chosen,
            precision=training.precision,
            loops=self.loops,
        )
        interrupts.wait(self.pending)
        self._collect()

    def _collect(self) -> None:
        """Note what the last call has seen."""
        if self.pending is None:
            return
        seen, self.pending = jax.device_get(self.pending), None
        if not self.losses:  # of one step, since the first call takes no more
            self.moved = distance(self.start, self.free)
        self.ts += [self._t(self.step + i) for i in range(int(seen.done))]
        self.losses += np.asarray(seen.losses[: seen.done], np.float64).tolist()
        self.failed = not bool(seen.good)

    def _t(self, step: int) -> float:
        """The t of a step."""
        group, number = divmod(step, MOST_STEPS)
        if self._drawn[0] != group:
            drawn = np.asarray(draw_ts(self.key, group * MOST_STEPS, MOST_STEPS), np.float64)
            self._drawn = group, drawn.tolist()
        return self._drawn[1][number]

    # --- the store

    def _flush(self, saved: int) -> None:
        """Keep what an error or an interrupt leaves finished."""
        with contextlib.suppress(RuntimeError):  # arrays that a failed call has donated
            self._collect()
            if self.step > saved:
                self._save()

    def _save(self) -> None:
        if self.training.keeper.path is None:
            return
        first = {"loss": self.losses[0], "t": self.ts[0], "moved": self.moved}
        header = {"recipe": self.recipe, "step": self.step, "failed": self.failed, "first": first}
        arrays = {"loss": np.array(self.losses), "t": np.array(self.ts)}
        arrays |= to_arrays("point", self.free) | to_arrays("mean", self.mean) | to_arrays("memory", self.memory)
        self.training.keeper.save(header, arrays)

    def _repeat_first(self, kept: Kept) -> None:
        """Repeat the first step, which must be that of the store, and take the state from there."""
        training, keeper = self.training, self.training.keeper
        try:
            step, failed = kept.header["step"], bool(kept.header["failed"])
            state = {"point": self.free, "mean": self.mean, "memory": self.memory}
            free, mean, memory = (from_arrays(name, kept.arrays, x) for name, x in state.items())
            losses, ts = (np.asarray(kept.arrays[name], np.float64) for name in ("loss", "t"))
            if losses.shape != (step + failed,) or ts.shape != losses.shape:
                raise ValueError("its losses are not as many as its steps")
            first: Mapping[str, Any] = kept.header["first"]
            then = [first["loss"], first["t"], first["moved"]]
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise keeper.damaged(error) from error
        if step > training.steps:
            change = {"steps": f"{step} -> {training.steps}"}
            text = f"{training.keeper.path} holds {step} steps, and {training.steps} are asked for; ask for as many"
            raise Differs("store", change, f"{text}, or pass another folder", training.keeper.path)
        self._advance(training.batches.from_step(0), 1)
        now = [self.losses[0], self.ts[0], distance(self.start, self.free)]
        for name, x, y, rtol in zip(("loss", "t", "distance"), then, now, (SAME_LOSS, SAME_LOSS, SAME_MOVE)):
            if not recipes.is_close(float(x), float(y), rtol, 0.0):
                what = {"loss": "its loss", "t": "its t", "distance": "the distance that it moves"}[name]
                text = f"{what}: {x:.6g} -> {y:.6g}"
                raise keeper.other_training(text, "the loss, the optimizer")
        self.free, self.mean, self.memory, self.failed = free, mean, memory, failed
        self.losses, self.ts, self.moved = losses.tolist(), ts.tolist(), then[2]


def start_of(
    training: Training, key: Any, points: int, displacement: float, chosen: Sequence[bool] | None = None
) -> PyTree:
    """The free control points at the start, stacked: on the straight line, and displaced to one side of it.

    The displacement is the same for all of them: displacement |b - a| times a random unit vector perpendicular to the
    line, and 0 in leaves that are not ``chosen``. Where the landscape is symmetric about the line, nothing else would
    push the curve aside.

    Args:
      training: has the ends.
      key: draws the direction.
      points: number of control points K, the ends included.
      displacement: in units of |b - a|.
      chosen: whether each leaf is displaced; None for all.

    Returns:
      A tree on the host with a leading axis K - 2 on every leaf.
    """
    a, b = training.ends.a, training.ends.b
    leaves, structure = jax.tree.flatten(a)
    ends = [
        (np.asarray(x, np.float64), np.asarray(y, np.float64)) for x, y in zip(leaves, jax.tree.leaves(b), strict=True)
    ]
    flat = np.asarray(randomness.draw_flat(key, training.ends.size, "normal"), np.float64)
    sizes = np.cumsum([np.size(x) for x in leaves])[:-1]
    aside = [x.reshape(np.shape(y)) for x, y in zip(np.split(flat, sizes), leaves, strict=True)]
    along = [(y - x) * yes for (x, y), yes in zip(ends, chosen or [True] * len(leaves), strict=True)]
    aside = [d * yes for d, yes in zip(aside, chosen or [True] * len(leaves), strict=True)]
    square = sum(np.vdot(v, v) for v in along)
    share = sum(np.vdot(v, d) for v, d in zip(along, aside, strict=True)) / square if square else 0.0
    aside = [d - share * v for d, v in zip(aside, along, strict=True)]
    length = float(np.sqrt(sum(np.vdot(d, d) for d in aside)))
    # one parameter leaves no room beside the line
    factor = displacement * training.ends.distance / length if length > 1e-6 * np.sqrt(flat.size) else 0.0
    ts = np.arange(1, points - 1) / (points - 1)
    stacked = [
        np.stack([x + t * (y - x) + factor * d for t in ts]).astype(_tree.shape_dtype(leaf)[1])
        for (x, y), d, leaf in zip(ends, aside, leaves, strict=True)
    ]
    return jax.tree.unflatten(structure, stacked)


def check_start(kind: str, points: Any = POINTS, displacement: Any = DISPLACEMENT) -> dict[str, Any]:
    """{"points": the number of control points, "displacement": a float}, after a check.

    Raises:
      ValueError: fewer than one free control point; a displacement that is no number of at least 0.
    """
    if isinstance(points, int) and not isinstance(points, bool) and points == 2:
        raise Misuse("points", f"2 given, which are the ends alone; a {kind} needs a free control point: points=3")
    points = check_integer("points", points, least=3, remedy="the ends included, such as 3")
    return {"points": points, "displacement": check_displacement(displacement)}


def check_displacement(value: Any) -> float:
    """The displacement as a float; a ValueError unless it is a number of at least 0."""
    return check_number("displacement", value, least=0.0, remedy="in units of |b - a|, such as 0.05")
