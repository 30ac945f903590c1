"""Plans: how many points and rows a call takes, chosen by timing a few candidates; chunks, and smaller ones when out of
memory.

Nothing here knows what a loss is. A plan is chosen by timing a few candidates on the first chunk, because no fixed rule
holds across models (on a CPU, batching over weights gains on small nets and loses on large ones), and is remembered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from lla_jax.core.data import cuts
from lla_jax.core.types import Execution, PyTree
from lla_jax.execution.devices import out_of_memory

BLOCKS_PER_CALL = 256
MOST_REMEMBERED = 256
ENOUGH_S = 1.0  # below this estimate of the whole job, looking for a better plan costs more than it can save
LONG_S = 0.5  # a call that takes longer is timed well enough the first time
CLEARLY = 0.9  # of the seconds of a better guess: timings of short calls are no more exact than that
SHORT_S = 0.05  # spent on repeating a shorter one
MOST_REPEATS = 10

OF_LANDSCAPES = ("chunk", "microbatch", "loop", "share", "scan", "data_shards")  # what operators do not read
OF_OPERATORS = ("linearize", "processes")  # what landscapes do not read


@dataclass(frozen=True)
class Plan:
    """One way to run a kernel: points per call and device, rows per block, "vmap" or "map" over points, shared affine
    part, and whether one call scans over many blocks."""

    chunk: int
    microbatch: int
    loop: str
    share: bool
    scan: bool = False

    def smaller(self) -> Plan | None:
        """Half the chunk (then half the microbatch), or None when nothing is left to halve."""
        if self.chunk > 1:
            return replace(self, chunk=self.chunk // 2)
        if self.microbatch > 1:
            return replace(self, microbatch=self.microbatch // 2)
        return None


def check(execution: Execution) -> None:
    """Raise a ValueError naming the first field that is out of its range, or that a landscape does not read."""
    readers = "operators (lla.hessian, lla.ggn, lla.fisher, lla.per_layer, lla.convexity)"
    _check_read(execution, OF_OPERATORS, "a landscape", readers)
    for name in ("chunk", "microbatch"):
        value = getattr(execution, name)
        if value != "auto" and (not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1):
            raise ValueError(f'execution.{name}: {value!r} given; the rule is "auto" or a positive integer')
    if execution.loop not in ("auto", "vmap", "map"):
        raise ValueError(f'execution.loop: {execution.loop!r} given; the rule is "auto", "vmap" or "map"')
    for name in ("share", "scan"):
        if getattr(execution, name) not in ("auto", True, False):
            raise ValueError(f'execution.{name}: {getattr(execution, name)!r} given; the rule is "auto", True or False')


def check_for_operator(execution: Execution) -> None:
    """Raise a ValueError naming the first field that is out of its range, or that an operator does not read."""
    readers = "landscapes (lla.evaluate, lla.sweep, lla.all_modes)"
    _check_read(execution, OF_LANDSCAPES, "an operator", readers)
    if execution.linearize not in ("auto", True, False):
        raise ValueError(f'execution.linearize: {execution.linearize!r} given; the rule is "auto", True or False')
    if execution.processes not in ("all", "own"):
        raise ValueError(f'execution.processes: {execution.processes!r} given; the rule is "all" or "own"')


def _check_read(execution: Execution, others: tuple[str, ...], what: str, readers: str) -> None:
    """Raise unless it is an Execution, with the defaults of the fields that only ``readers`` read."""
    if not isinstance(execution, Execution):
        raise ValueError(f"execution: {execution!r} given; the rule is an lla.Execution, e.g. lla.Execution(devices=2)")
    for name in others:
        value, default = getattr(execution, name), getattr(Execution, name)
        if value != default:
            raise ValueError(
                f"execution.{name}: {value!r} given, and {what} does not read it; the rule is the default here, "
                f"{default!r}, since only {readers} read it. Leave it out"
            )


def map_points(f: Callable[[Any], Any], coords: PyTree, loop: str) -> Any:
    """``f`` at every entry of the leading axis of ``coords``: batched ("vmap") or one after another ("map")."""
    if loop == "vmap":
        return jax.vmap(f)(coords)
    if jax.tree.leaves(coords)[0].shape[0] == 1:  # no loop at all: convolutions keep XLA's fast path
        only = f(jax.tree.map(lambda c: c[0], coords))
        return jax.tree.map(lambda x: x[None], only)
    return jax.lax.map(f, coords)


def candidates(
    execution: Execution,
    *,
    points: int,
    rows: int,
    row_bytes: int,
    param_bytes: int,
    whole: bool,
    sharable: bool,
    scannable: bool,
    on_cpu: bool,
) -> list[Plan]:
    """The plans worth timing, best guess first; few, since each has to be compiled.

    Args:
      execution: what the user fixed; "auto" fields are free.
      points: points per device in the whole job.
      rows: examples in a batch.
      row_bytes: bytes of the largest intermediate value per example and point.
      param_bytes: bytes of the parameters.
      whole: the batch may not be cut (batch statistics, batch-coupled losses).
      sharable: the affine part can be shared between points.
      scannable: no convolution, so blocks may be looped over on the device.
      on_cpu: caches matter more than occupancy.
    """
    budget = 2**23 if on_cpu else 2**29
    # as many rows as the largest value of a block has room for in a core's cache
    fit = 1 << max(3, min(8, (2**20 // max(1, row_bytes)).bit_length() - 1))
    # a chunk computes its shared part once; by the cost of a row, because a chunk is also what an interrupt can lose
    many = min(256, max(64, 2**22 // max(1, row_bytes)))

    def batched(microbatch: int, most: int) -> tuple[str, int, int]:
        microbatch = min(rows, microbatch)
        return "vmap", microbatch, min(most, budget // max(1, row_bytes * microbatch + param_bytes))

    if not on_cpu:
        proposals = [batched(4096, 256), batched(512, 256), ("map", 4096, 1)]
    elif scannable:
        proposals = [batched(64, 512), ("map", fit, 1)]
    elif execution.loop == "vmap":
        proposals = [batched(64, 128)]
    else:  # over several weights at once, convolutions are grouped ones, and slow
        proposals = [("map", max(32, fit), many), ("map", 256, 1)]
    plans: list[Plan] = []
    for loop, microbatch, chunk in proposals:
        if execution.chunk != "auto":
            chunk = execution.chunk
        elif chunk < 1 or (loop == "vmap" and chunk == 1):
            continue
        else:
            chunk = min(chunk, points)
            chunk = -(-points // -(-points // chunk))  # equal chunks: the last one is padded, and padding is work
        microbatch = microbatch if execution.microbatch == "auto" else execution.microbatch
        loop = loop if execution.loop == "auto" else execution.loop
        share = sharable and (chunk > 1 if execution.share == "auto" else bool(execution.share))
        plan = Plan(
            chunk,
            rows if whole else min(microbatch, rows),
            "map" if chunk == 1 else loop,
            share,
            (scannable or not on_cpu) if execution.scan == "auto" else bool(execution.scan),
        )
        if plan not in plans:
            plans.append(plan)
    return plans


_REMEMBERED: dict[Hashable, Plan] = {}


def choose(
    remember: Hashable, plans: Callable[[], Sequence[Plan]], seconds: Callable[[Plan], float], total: float
) -> Plan:
    """The fastest plan, or a better guess that is nearly as fast; timed once per key and process.

    Args:
      remember: key under which the choice is kept.
      plans: gives the candidates, best guess first; called only if nothing is remembered.
      seconds: seconds per unit of work under a plan; raises out of memory where the plan does not fit.
      total: units of work in the whole job: a plan that is good enough stops the search.
    """
    if remember in _REMEMBERED:
        return _REMEMBERED[remember]
    proposed = plans()
    best, best_seconds = proposed[-1], np.inf
    for plan in proposed if len(proposed) > 1 else ():
        if best_seconds * total < ENOUGH_S:
            break
        try:
            taken = seconds(plan)
        except Exception as error:
            if not out_of_memory(error):
                raise
            continue
        if taken < CLEARLY * best_seconds:
            best, best_seconds = plan, taken
    _REMEMBERED[remember] = best
    if len(_REMEMBERED) > MOST_REMEMBERED:  # keys hold the functions they compare
        del _REMEMBERED[next(iter(_REMEMBERED))]
    return best


def timed(call: Callable[[], Any]) -> float:
    """Least seconds of a call, after a first one that compiles: the shorter it is, the more often it is repeated."""
    jax.block_until_ready(call())
    best, spent, repeats = np.inf, 0.0, 0
    while repeats < 2 or (spent < SHORT_S and repeats < MOST_REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(call())
        taken = time.perf_counter() - start
        best, spent, repeats = min(best, taken), spent + taken, repeats + 1
        if taken > LONG_S:
            break
    return best


def pad_points(points: np.ndarray, size: int) -> np.ndarray:
    """The points lengthened to ``size`` by repeating the last one: another shape would compile again."""
    return np.concatenate([points, np.repeat(points[-1:], size - len(points), 0)]) if len(points) < size else points


def chunks(compute: Callable[[Plan, int, int], None], first: int, last: int, plan: Plan, width: int) -> Plan:
    """Run ``compute(plan, lo, hi)`` over [first, last), ``plan.chunk`` points for each of ``width`` devices at a time.

    Out of device memory halves the chunk and goes on from where it was. Returns the plan that was in force at the end.
    """
    lo = first
    while lo < last:
        hi = min(lo + plan.chunk * width, last)
        try:
            compute(plan, lo, hi)
        except Exception as error:
            less = plan.smaller() if out_of_memory(error) else None
            if less is None:
                raise
            plan = less
        else:
            lo = hi
    return plan


def calls(plan: Plan, rows: int, count: int, batch_size: int | None, whole: bool) -> Iterator[tuple[Plan, np.ndarray]]:
    """(plan with its microbatch, block starts) of every call over one batch: few shapes, every row in exactly one
    block.
    """
    if whole:
        for start, size in cuts(count, batch_size):
            yield replace(plan, microbatch=size), np.array([start], np.int32)
        return
    size = min(plan.microbatch, rows)
    starts = np.arange(0, rows, size, dtype=np.int32)
    per_call = -(-len(starts) // -(-len(starts) // BLOCKS_PER_CALL)) if plan.scan else 1
    beyond = np.full(-len(starts) % per_call, rows, np.int32)  # a block that starts past the end counts nothing
    for group in np.concatenate([starts, beyond]).reshape(-1, per_call):
        yield replace(plan, microbatch=size), group
