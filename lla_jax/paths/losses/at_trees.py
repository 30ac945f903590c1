"""Computes the loss at the trees of a path, many of them at a time on the device: ``losses_at``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse, misuse
from lla_jax.core.data import Stream
from lla_jax.core.interrupts import check_interrupt, deferred_interrupts
from lla_jax.core.signatures import explained
from lla_jax.core.static import static
from lla_jax.core.types import Batch, Execution, Loss, PyTree
from lla_jax.execution import devices
from lla_jax.execution.progress import AskedProgress, check_on_partial, report_part, takes_progress
from lla_jax.landscape import jobs, planning, points
from lla_jax.landscape.jobs import Job
from lla_jax.landscape.means import Means
from lla_jax.landscape.rules import Rule
from lla_jax.landscape.tasks import Policy, Task
from lla_jax.paths.host_trees import align_exactly, bytes_of, has_floats, stack
from lla_jax.paths.losses.groups import handed_on
from lla_jax.paths.trajectories import Trajectory

GROUP_BYTES = 2**28  # of trees that are on the devices at a time
GROUP_TREES = 256  # so that the weights that choose among them stay small


def pick(params: PyTree, directions: PyTree, coord: Any) -> PyTree:
    """The one of the stacked trees whose coordinate is the largest, to the bit: a rule for coordinates 0 but one 1."""
    at = jnp.argmax(coord)

    def take(p: Any, d: Any) -> Any:
        return jax.lax.dynamic_index_in_dim(d, at, keepdims=False).astype(_tree.wide(p.dtype))

    return jax.tree.map(take, params, directions)


def one_hot(num: int) -> Callable[[np.ndarray], np.ndarray]:
    """The function that gives for indices (C, 1) the weights (C, num): 1 at the index, 0 elsewhere."""

    def weights(index: np.ndarray) -> np.ndarray:
        return (index == np.arange(num)).astype(np.float32)

    return weights


@takes_progress("points")
@deferred_interrupts()
@explained
def losses_at(
    loss: Loss | Callable[[PyTree, Batch], Any],
    trees: Sequence[PyTree],
    data: Batch | Stream,
    *,
    states: Sequence[PyTree] | None = None,
    batch_stats: Policy = "frozen",
    batch_size: int | None = None,
    metrics: Mapping[str, Callable[[Any, Batch], Any]] | None = None,
    extra_data: Mapping[str, Any] | None = None,
    execution: Execution = Execution(),  # noqa: B008 (frozen)
    progress: AskedProgress = None,
    on_partial: Callable[[Means], None] | None = None,
) -> Means:
    """The loss and the metrics at each tree of a path, each under its own state: means with their standard errors.

    Groups of trees are stacked on the devices, at most 256 MiB of them at a time, and one compiled program serves all
    groups. The network gets the numbers of every tree to the bit.

    Args:
      loss: a ``Loss`` or a plain function, as for ``lla.evaluate``.
      trees: T parameter trees of one structure, in a list or a ``Trajectory``.
      data: one data set, a whole, or a stream, which is read once for each group (twice with re-estimated statistics).
      states: the state of the loss at each tree; by default those of the ``Trajectory``. A loss with a state of floats
        needs them, unless ``batch_stats`` is another than "frozen".
      batch_stats: as for ``lla.evaluate``.
      batch_size: as for ``lla.evaluate``.
      metrics: as for ``lla.evaluate``.
      extra_data: as for ``lla.evaluate``.
      execution: as for ``lla.evaluate``.
      progress: True for a bar, or a function called as ``progress(done, total)`` in trees.
      on_partial: called with the means of the groups so far, NaN for the others, if the call is interrupted or fails
        after its first group; the exception is then raised again.

    Returns:
      ``Means``: ``values`` and ``stderr``, {name: (T,)} in float64.

    Raises:
      ValueError: no trees; one with another structure, types or shapes, or with numbers that are not finite, by its
        place; states that are missing, or are not as many as the trees.
    """
    check_on_partial(on_partial)
    num = _check_number(trees)
    state_of = _states_of(trees, states, loss, batch_stats)
    first = trees[0]
    _tree.check_real(first, "trees[0]")
    size = min(num, GROUP_TREES, max(1, GROUP_BYTES // bytes_of(first)))
    index = np.arange(size, dtype=np.float64)
    rule = Rule("pick", static(pick), directions=size, weights=one_hot(size))
    task = Task(
        loss,
        data,
        rule,
        batch_size=batch_size,
        batch_stats=batch_stats,
        metrics=metrics,
        point_metrics=None,
        extra_data=extra_data,
        key=None,
        execution=execution,
    )
    job = jobs.prepare(task, first, (index,), "trees[0]")
    plan = None
    with handed_on(on_partial) as table:
        for lo, group in _groups(job, trees, first, state_of, num):
            check_interrupt()
            if plan is None:
                plan, *_ = planning.choose_plan(group, None)
            hi = min(lo + size, num)
            means, plan = points.compute_means(
                group, plan, index[: hi - lo, None], report_part(progress, lo, hi - lo, num)
            )
            table.put(means, slice(lo, hi), num)
            if progress is not None:
                progress(hi, num)
    return table


def _check_number(trees: Any) -> int:
    if isinstance(trees, Mapping | str) or not (hasattr(trees, "__len__") and hasattr(trees, "__getitem__")):
        raise misuse("trees", trees, "a list of parameter trees of one structure, such as [early, late]")
    if not len(trees):
        raise Misuse("trees", "no trees given; pass at least one, such as [params]")
    return len(trees)


def _states_of(trees: Any, states: Any, loss: Any, policy: str) -> Callable[[int], PyTree] | None:
    """The function that gives the state at the tree of an index; None where the loss's own serves all.

    Raises:
      Misuse: the loss has a state of floats, which belongs to one network, and none is given for the others.
    """
    own = loss.state if isinstance(loss, Loss) else None
    if states is None and isinstance(trees, Trajectory) and trees.has_states:
        return trees.state if jax.tree.leaves(own) else None
    if states is not None:
        if isinstance(states, Mapping | str) or not isinstance(states, Iterable):
            raise misuse("states", states, "a list with the state of each tree, such as [state_a, state_b]")
        given: list[PyTree] = list(states)
        if len(given) != len(trees):
            raise Misuse("states", f"{len(given)} given for {len(trees)} trees; pass one for each, or leave them out")
        return given.__getitem__ if jax.tree.leaves(own) else None
    if policy == "frozen" and has_floats(own):
        raise Misuse(
            "states",
            "none given, and the loss has a state of floats (running averages, such as BatchNorm's), which belong to "
            "one network; pass the state of each tree, states=[...], or batch_stats='reestimate'",
        )
    return None


def _groups(
    job: Job, trees: Any, first: PyTree, state_of: Callable[[int], PyTree] | None, num: int
) -> Iterator[tuple[int, Job]]:
    """Yield (index of the first tree, job with the trees as its directions) for each group; the last is filled up."""
    size = job.num_directions
    for lo in range(0, num, size):
        places = [min(i, num - 1) for i in range(lo, lo + size)]
        group = [align_exactly(trees[i], first, f"trees[{i}]", "trees[0]") for i in range(lo, min(lo + size, num))]
        group += group[-1:] * (size - len(group))
        one = job._replace(directions=devices.replicate(stack(group), job.mesh))
        if state_of is not None:
            states = [_tree.align(state_of(i), job.loss.state, f"states[{i}]", "loss.state") for i in places]
            one = jobs.set_states(one, stack(states), one_hot(size))
        del group
        yield lo, one
