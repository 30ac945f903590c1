"""Makes plans, which cut a computation into chunks of points and blocks of examples, chooses the fastest, runs it.

Nothing here knows of losses. A few candidates are timed on the first chunk, because no fixed choice suits all models
(on a CPU, batching over weights gains on small networks and loses on large ones); the choice is remembered.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import numpy as np

from lla_jax.core import interrupts, remembering
from lla_jax.core.arguments import Misuse, check_choice, check_integer, misuse
from lla_jax.core.data import cuts
from lla_jax.core.operands import check_precision
from lla_jax.core.signatures import explained
from lla_jax.core.types import Execution, PyTree
from lla_jax.execution.devices import is_out_of_memory

BLOCKS_PER_CALL = 256
ENOUGH_S = 1.0  # if the estimated time of the computation is shorter, more timing costs more than it can save
LONG_S = 0.5  # a call that takes longer is timed only once
FASTER = 0.9  # a later guess wins only below this fraction of the best time so far: timings of short calls are inexact
SHORT_S = 0.05  # time spent on repeating a short call
MOST_REPEATS = 10
MOST_PADDED = 4096  # a larger chunk is cut to the number of points, since what is padded takes memory

LANDSCAPE_FIELDS = ("chunk", "microbatch", "loop", "share", "scan", "data_shards")  # operators do not read them
OPERATOR_FIELDS = ("linearize", "remat", "processes")  # landscapes do not read them
TRAINING_FIELDS = ("devices", *LANDSCAPE_FIELDS, *OPERATOR_FIELDS)  # all but the precision


@explained
@dataclass(frozen=True)
class Plan:
    """One way to execute a kernel.

    Args:
      chunk: points per call and device.
      microbatch: rows per block.
      loop: "vmap" or "map" over the points.
      share: whether values that are affine in the coordinates are computed once for all points of a chunk.
      scan: whether one call loops over many blocks.
    """

    chunk: int
    microbatch: int
    loop: str
    share: bool
    scan: bool = False

    def smaller(self) -> Plan | None:
        """The plan with half the chunk, or with half the microbatch if the chunk is 1; None if both are 1."""
        if self.chunk > 1:
            return replace(self, chunk=self.chunk // 2)
        if self.microbatch > 1:
            return replace(self, microbatch=self.microbatch // 2)
        return None


def check_for_landscape(execution: Execution) -> None:
    """Raise a ValueError if a field has a wrong value, or if one that a landscape does not read is not its default.

    ``devices`` and ``data_shards`` are checked where they are used.
    """
    readers = "operators (lla.hessian, lla.ggn, lla.fisher, lla.per_layer, lla.convexity)"
    _check_fields(execution, OPERATOR_FIELDS, "a landscape", readers)
    for name in ("chunk", "microbatch"):
        value = getattr(execution, name)
        if not isinstance(value, str) or value != "auto":
            check_integer(f"execution.{name}", value, remedy='or "auto"')
    check_choice("execution.loop", execution.loop, ("auto", "vmap", "map"))
    check_precision(execution.precision)
    for name in ("share", "scan"):
        check_choice(f"execution.{name}", getattr(execution, name), ("auto", True, False))


def check_for_operator(execution: Execution) -> None:
    """Raise a ValueError if a field has a wrong value, or if one that an operator does not read is not its default.

    ``devices`` is checked where it is used.
    """
    readers = "landscapes (lla.evaluate, lla.sweep, lla.all_modes)"
    _check_fields(execution, LANDSCAPE_FIELDS, "an operator", readers)
    check_precision(execution.precision)
    for name in ("linearize", "remat"):
        check_choice(f"execution.{name}", getattr(execution, name), ("auto", True, False))
    check_choice("execution.processes", execution.processes, ("all", "own"))


def check_for_training(execution: Execution) -> None:
    """Raise a ValueError if the precision has a wrong value, or if another field is not its default."""
    _check_fields(execution, TRAINING_FIELDS, "the training of a curve", "landscapes and operators")
    check_precision(execution.precision)


def _check_fields(execution: Execution, unread: tuple[str, ...], caller: str, readers: str) -> None:
    """Raise a ValueError unless it is an Execution whose ``unread`` fields have their defaults.

    Args:
      execution: the value to check.
      unread: the fields that the caller does not read.
      caller: the caller in words, such as "a landscape".
      readers: the functions that read these fields, in words.
    """
    if isinstance(execution, Mapping):
        raise misuse("execution", execution, "an lla.Execution: lla.Execution(**{...})")
    if not isinstance(execution, Execution):
        raise misuse("execution", execution, "an lla.Execution, such as lla.Execution(devices=2)")
    for name in unread:
        value, default = getattr(execution, name), getattr(Execution, name)
        if isinstance(value, np.ndarray) or value != default:
            raise Misuse(
                f"execution.{name}",
                f"{value!r} given, and {caller} does not read it; it must be {default!r}, the default: leave it out, "
                f"since only {readers} read it",
            )


def map_points(f: Callable[[Any], Any], coords: PyTree, loop: str) -> Any:
    """Call ``f`` at every entry of the leading axis of ``coords``, batched ("vmap") or in a loop ("map").

    The results are stacked along a leading axis. A single entry needs no loop.
    """
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
    uncut: bool,
    sharable: bool,
    scannable: bool,
    on_cpu: bool,
) -> list[Plan]:
    """The plans worth timing, best guess first; they are few, because each must be compiled.

    On an accelerator they are four: points one by one in a loop on the device, with the affine part shared and
    without, and points as a batch, with many examples and with few. The TPU's compiler estimates (v5e, a point): a
    small MLP 1.1 us as a batch, 16 and 25 us one by one; LeNet 2.5 times as long as a batch as one by one, since a
    convolution over a batch of weights is a grouped one; ResNet-20 about the same. So without convolutions the batches
    come first, with them the loops (``benchmarks/tpu.py``).

    Args:
      execution: the choices of the user; "auto" fields are free.
      points: points per device in the landscape.
      rows: examples in a batch.
      row_bytes: bytes of the largest intermediate value per example and point.
      param_bytes: bytes of the parameters.
      uncut: whether the batch must not be cut (batch statistics, batch-coupled losses).
      sharable: whether the affine part can be shared between points.
      scannable: whether there are no convolutions, so that batches over weights, and on a CPU loops over blocks, are
        fast.
      on_cpu: whether the devices are CPUs, where caches matter more than occupancy.
    """
    budget = 2**23 if on_cpu else 2**29
    # the number of rows for which the largest value of a block fits into the cache of a core
    fit = 1 << max(3, min(8, (2**20 // max(1, row_bytes)).bit_length() - 1))
    # Many points share their affine part; fewer if a row is costly, because an interrupt loses up to a chunk.
    many = min(256, max(64, 2**22 // max(1, row_bytes)))

    def vmap(microbatch: int, most: int) -> _Proposal:
        microbatch = min(rows, microbatch)
        return _Proposal("vmap", microbatch, min(most, budget // max(1, row_bytes * microbatch + param_bytes)))

    if not on_cpu:
        rest = min(4096, max(1, budget // max(1, row_bytes)))
        one_by_one = [_Proposal("map", rest, many), _Proposal("map", rest, many, share=False)]
        batches = [vmap(4096, 256), vmap(512, 256)]
        proposals = batches + one_by_one if scannable else one_by_one + batches
    elif scannable:
        proposals = [vmap(64, 512), _Proposal("map", fit, 1)]
    elif execution.loop == "vmap":
        proposals = [vmap(64, 128)]
    else:  # batched over weights, convolutions become grouped ones, which are slow
        proposals = [_Proposal("map", max(32, fit), many), _Proposal("map", 256, 1)]
    plans: list[Plan] = []
    for loop, microbatch, chunk, shares in proposals:
        if execution.chunk != "auto":
            chunk = min(execution.chunk, max(MOST_PADDED, points))
        elif chunk < 1 or (loop == "vmap" and chunk == 1):
            continue
        else:
            chunk = min(chunk, points)
            chunk = -(-points // -(-points // chunk))  # equal chunks: the last one is padded, and padding is work
        microbatch = microbatch if execution.microbatch == "auto" else execution.microbatch
        loop = loop if execution.loop == "auto" else execution.loop
        share = sharable and (shares and chunk > 1 if execution.share == "auto" else bool(execution.share))
        plan = Plan(
            chunk,
            rows if uncut else min(microbatch, rows),
            "map" if chunk == 1 else loop,
            share,
            (scannable or not on_cpu) if execution.scan == "auto" else bool(execution.scan),
        )
        if plan not in plans:
            plans.append(plan)
    return plans


class _Proposal(NamedTuple):
    """A plan in the words of ``Plan``, before the choices of the user and the sizes of the job."""

    loop: str
    microbatch: int
    chunk: int
    share: bool = True


_REMEMBERED: dict[Hashable, Plan] = {}


def choose_fastest(
    remember: Hashable, plans: Callable[[], Sequence[Plan]], seconds: Callable[[Plan], float], total: float
) -> Plan:
    """Time the candidates, and return the fastest plan, or an earlier candidate that is nearly as fast.

    The choice is kept for later calls of this process with the same key. A single candidate is not timed. If no
    candidate fits into memory, the last one is returned.

    Args:
      remember: the key under which the choice is kept.
      plans: returns the candidates, best guess first; called only if no choice is remembered.
      seconds: returns the seconds per unit of work under a plan, or raises an error if memory does not suffice.
      total: units of work in the computation; the search ends at a plan under which they take less than a second.
    """
    return remembering.remember(_REMEMBERED, remember, lambda: _time_all(plans, seconds, total))


def _time_all(plans: Callable[[], Sequence[Plan]], seconds: Callable[[Plan], float], total: float) -> Plan:
    proposals = plans()
    best, best_seconds = proposals[-1], np.inf
    for plan in proposals if len(proposals) > 1 else ():
        if best_seconds * total < ENOUGH_S:
            break
        try:
            taken = seconds(plan)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            continue
        if taken < FASTER * best_seconds:
            best, best_seconds = plan, taken
    return best


def time_call(call: Callable[[], Any]) -> float:
    """The least seconds that a call takes, after a first call that compiles; short calls are repeated more often."""
    interrupts.wait(call())
    best, spent, repeats = np.inf, 0.0, 0
    while repeats < 2 or (spent < SHORT_S and repeats < MOST_REPEATS):
        interrupts.check_interrupt()
        start = time.perf_counter()
        jax.block_until_ready(call())
        taken = time.perf_counter() - start
        best, spent, repeats = min(best, taken), spent + taken, repeats + 1
        if taken > LONG_S:
            break
    return best


def pad_points(points: np.ndarray, size: int) -> np.ndarray:
    """Pad an array of points to ``size`` rows with copies of the last one, as another shape would compile again."""
    return np.concatenate([points, np.repeat(points[-1:], size - len(points), 0)]) if len(points) < size else points


def run_chunks(compute: Callable[[Plan, int, int], None], start: int, end: int, plan: Plan, width: int) -> Plan:
    """Call ``compute(plan, lo, hi)`` for every chunk of the points [start, end), and return the plan at the end.

    A chunk has ``plan.chunk`` points for each of ``width`` devices. If a device runs out of memory, ``compute`` is
    called again for this chunk and the later ones with ``plan.smaller()``; the error passes if there is none.
    """
    lo = start
    while lo < end:
        hi = min(lo + plan.chunk * width, end)
        try:
            compute(plan, lo, hi)
        except Exception as error:
            smaller = plan.smaller() if is_out_of_memory(error) else None
            if smaller is None:
                raise
            plan = smaller
        else:
            lo = hi
    return plan


def split_calls(
    plan: Plan, rows: int, count: int, batch_size: int | None, uncut: bool
) -> Iterator[tuple[Plan, np.ndarray]]:
    """Yield (plan, starts of the blocks) for every call over one batch; every row that counts is in exactly one block.

    All calls have equally many blocks: the last is filled up with blocks that start at ``rows``, where no row counts.

    Args:
      plan: the chosen plan; the plans yielded differ only in the microbatch, which is the size of the blocks.
      rows: number of rows of the batch, padding included.
      count: number of rows without padding.
      batch_size: rows per block if ``uncut``, or None for one block.
      uncut: whether a block must be a complete batch, one per call.
    """
    if uncut:
        for start, size in cuts(count, batch_size):
            yield replace(plan, microbatch=size), np.array([start], np.int32)
        return
    size = min(plan.microbatch, rows)
    starts = np.arange(0, rows, size, dtype=np.int32)
    per_call = -(-len(starts) // -(-len(starts) // BLOCKS_PER_CALL)) if plan.scan else 1
    padding = np.full(-len(starts) % per_call, rows, np.int32)  # no row counts in a block that starts at the end
    for group in np.concatenate([starts, padding]).reshape(-1, per_call):
        yield replace(plan, microbatch=size), group
