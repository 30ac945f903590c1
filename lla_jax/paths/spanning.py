"""Connects several minima by curves, and keeps those of a minimum spanning tree over their highest losses."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, Unpack

import jax
import numpy as np

from lla_jax.core import files, recipes
from lla_jax.core.arguments import Misuse, check_choice, check_integer, misuse, single_key
from lla_jax.core.data import Stream, as_arrays
from lla_jax.core.interrupts import deferred_interrupts
from lla_jax.core.losses import as_loss
from lla_jax.core.refusals import no_array
from lla_jax.core.signatures import complete, explained, show_options
from lla_jax.core.types import Batch, Execution, Loss, PyTree, Recipe
from lla_jax.execution.progress import AskedProgress, report_part, takes_progress
from lla_jax.paths import graphs
from lla_jax.paths.bands.settings import NOT_GIVEN, BandOptions
from lla_jax.paths.connecting import KINDS, connect
from lla_jax.paths.curves import Curve, line, stack_points
from lla_jax.paths.end_states import align_state
from lla_jax.paths.graphs import Edge
from lla_jax.paths.host_trees import are_equal, has_floats, unstack
from lla_jax.paths.losses.along_curves import policy_of
from lla_jax.paths.losses.at_trees import losses_at

FEW = 4  # minima of which all pairs are connected by default
POINTS = 61  # of a curve at which its losses are computed


@explained
@no_array("holds several curves; take tree.curves, tree.losses or tree.barriers")
@dataclass(frozen=True, eq=False, repr=False)
class SpanningTree:
    """Several minima, connected by the curves of a minimum spanning tree.

    Args:
      names: of the n minima.
      edges: n - 1 pairs (i, j) of numbers of minima, i < j, the lowest first.
      curves: the curve of each edge, from i to j.
      t: (n - 1,) where on its curve each edge is highest.
      losses: (n - 1,) float64, the loss there.
      stderr: (n - 1,) its standard error over the examples; NaN where there is none.
      minima: (n,) the loss of each minimum.
      minima_stderr: (n,) its standard error, likewise.
      barriers: (n, n), the lowest height at which one gets from i to j by curves that were found: the largest loss on
        the way through the tree. On the diagonal the losses of the minima.
      recipe: how it was made; "tried" has the pair and the highest loss of every curve that was trained, and "lines"
        those of all straight lines.
    """

    names: tuple[str, ...]
    edges: tuple[Edge, ...]
    curves: tuple[Curve, ...]
    t: np.ndarray
    losses: np.ndarray
    stderr: np.ndarray
    minima: np.ndarray
    minima_stderr: np.ndarray
    barriers: np.ndarray
    recipe: Recipe

    def __repr__(self) -> str:
        shown = [f"{self.names[i]}-{self.names[j]} {x:.4g}" for (i, j), x in zip(self.edges, self.losses, strict=True)]
        more = f", and {len(shown) - 8} more" if len(shown) > 8 else ""
        return f"SpanningTree({len(self.names)} minima; {', '.join(shown[:8])}{more})"


class _Top(NamedTuple):
    """The highest loss of a curve, its standard error (NaN without) and its t; both ends' losses and errors."""

    loss: float
    stderr: float
    t: float
    ends: tuple[tuple[float, float], tuple[float, float]]


@takes_progress("steps")
@deferred_interrupts()
@show_options(BandOptions, NOT_GIVEN)
@explained
def spanning_tree(
    loss: Loss | Callable[[PyTree, Batch], Any],
    minima: Sequence[PyTree],
    data: Batch | Stream,
    key: Any,
    *,
    states: Sequence[PyTree] | None = None,
    kind: Literal["bezier", "polygon", "band"] = "band",
    steps: int = 1000,
    optimizer: Any = None,
    batch_size: int | None = None,
    points: int | None = None,
    displacement: float | None = None,
    weight_decay: float = 0.0,
    connections: int | None = None,
    names: Sequence[str] | None = None,
    store: str | os.PathLike[str] | None = None,
    save_every: int = 1,
    progress: AskedProgress = None,
    execution: Execution = Execution(),  # noqa: B008 (frozen)
    **options: Unpack[BandOptions],
) -> SpanningTree:
    """Connect several minima, and find the lowest ways between them.

    The height of a curve is its highest loss, looked for at 61 points spaced evenly by length, and once more at as many
    beside the highest of them. Of a band that has found its saddle, the saddle stands for the chords beside it. Curves
    are trained in an economical order:

    1. All pairs are connected by straight lines, and n - 1 pairs whose lines are lowest, as a spanning tree, by curves.
    2. As long as there are connections left, the highest edge of the tree is looked at. Without it the tree falls into
       two parts; the pair from both parts that has the lowest line, and no curve yet, is connected. A pair is left out
       if one of its minima is as high as the edge, since it cannot be lower. Then the next lower edge is looked at.

    The result is the minimum spanning tree over the curves that were trained. It is the lowest of all where every pair
    was tried or left out, ``recipe["all"]``.

    Args:
      loss: a ``Loss`` or a plain function, as for ``connect``.
      minima: the parameters of two minima or more, trees of one structure.
      data: as for ``connect``.
      key: a ``jax.random`` key. A pair's draws follow from it and the numbers of both.
      states: the state of the loss at each minimum (BatchNorm statistics); needed if the loss has one of floats.
      kind: of the curves.
      steps: of the training of each curve.
      optimizer: as for ``connect``.
      batch_size: as for ``connect``.
      points: as for ``connect``.
      displacement: as for ``connect``.
      weight_decay: as for ``connect``.
      connections: curves that are trained at most, n - 1 or more. None: all pairs of up to four minima, and 2 (n - 1)
        of more.
      names: of the minima, for errors and pictures; by default their numbers.
      store: a folder, in which each curve has one of its own: the same call goes on from there.
      save_every: as for ``connect``.
      progress: True for a bar, or ``progress(done, total)`` in steps of all connections allowed.
      execution: its ``precision`` is read in trainings, and all of it where losses are computed.
      options: those of a band, as for ``connect``.

    Returns:
      A ``SpanningTree``.

    Raises:
      ValueError: fewer than two minima; two that are the same; states that are missing; as ``connect``.

    References: Draxler et al. 2018, arXiv:1803.00885. Where we differ: (1) the first tree is that of the straight
    lines, not a star; (2) pairs that cannot lower an edge are left out.
    """
    complete("spanning_tree", options, NOT_GIVEN)
    minima, names = _check_minima(minima, names)
    loss, num = as_loss(loss), len(minima)
    states = _check_states(loss, states, num)
    key = single_key(key)
    check_choice("kind", kind, KINDS)
    steps = check_integer("steps", steps, remedy="such as 1000")
    pairs = list(itertools.combinations(range(num), 2))
    most = _check_connections(connections, num, len(pairs))
    folder = None if store is None else files.check_path("store", store, "runs/tree")

    def top_of(curve: Curve) -> _Top:
        return _find_top(curve, loss, data, batch_size, execution)

    straight = {(i, j): line(minima[i], minima[j]) for i, j in pairs}
    lines = {pair: top_of(each) for pair, each in straight.items()}
    lengths = {pair: float(each.lengths(1.0)) for pair, each in straight.items()}
    ends = [next(top.ends[pair.index(k)] for pair, top in lines.items() if k in pair) for k in range(num)]
    curves: dict[Edge, Curve] = {}
    tops: dict[Edge, _Top] = {}
    for pair in _choose(num, _heights(lines), [x for x, _ in ends], tops, most, lengths):
        i, j = pair
        curves[pair] = connect(
            loss if states is None else replace(loss, state=states[i]),
            minima[i],
            minima[j],
            data,
            key=jax.random.fold_in(jax.random.fold_in(key, i), j),
            state_b=None if states is None else states[j],
            kind=kind,
            steps=steps,
            optimizer=optimizer,
            batch_size=batch_size,
            points=points,
            displacement=displacement,
            weight_decay=weight_decay,
            save_every=save_every,
            store=None if folder is None else _folder_of(folder, pair),
            progress=report_part(progress, len(curves) * steps, steps, most * steps),
            execution=Execution(precision=execution.precision),
            **options,
        )
        tops[pair] = top_of(curves[pair])
    heights = _heights(tops)
    edges = graphs.spanning_edges(num, heights, {pair: float(curve.lengths(1.0)) for pair, curve in curves.items()})
    found = [tops[edge] for edge in edges]
    recipe = {
        "kind": "spanning tree",
        "curve": kind,
        "steps": steps,
        "connections": most,
        "key": recipes.fingerprint(key),
        "data": recipes.describe(data if isinstance(data, Stream) else as_arrays(data)),
        "tried": [[*pair, top.loss] for pair, top in tops.items()],
        "lines": [[*pair, top.loss] for pair, top in lines.items()],
        "all": _most_promising(num, _heights(lines), [x for x, _ in ends], tops, lengths) is None,
        "versions": recipes.versions(),
    }
    return SpanningTree(
        names,
        tuple(edges),
        tuple(curves[edge] for edge in edges),
        np.array([top.t for top in found]),
        np.array([top.loss for top in found]),
        np.array([top.stderr for top in found]),
        np.array([x for x, _ in ends]),
        np.array([error for _, error in ends]),
        graphs.barriers([x for x, _ in ends], {edge: heights[edge] for edge in edges}),
        recipe,
    )


def _heights(tops: dict[Edge, _Top]) -> dict[Edge, float]:
    """The highest losses by pair."""
    return {pair: top.loss for pair, top in tops.items()}


def _choose(
    num: int, lines: dict[Edge, float], ends: list[float], tops: dict[Edge, _Top], most: int, lengths: dict[Edge, float]
) -> Iterator[Edge]:
    """The pairs to connect, one after another; ``tops`` has those that are connected already.

    Of lines that differ by rounding alone the shorter come first: a longer one may lead through a third minimum.
    """
    for pair in graphs.spanning_edges(num, lines, lengths):
        if pair not in tops:
            yield pair
    while len(tops) < most and (found := _most_promising(num, lines, ends, tops, lengths)) is not None:
        yield found


def _most_promising(
    num: int, lines: dict[Edge, float], ends: list[float], tops: dict[Edge, _Top], lengths: dict[Edge, float]
) -> Edge | None:
    """The pair without a curve that may lower the highest edge possible, with the lowest line; None if none may."""
    heights, level = _heights(tops), graphs.levels(lines)
    tree = graphs.spanning_edges(num, heights)
    for edge in reversed(tree):
        one, _ = graphs.across(num, tree, edge)
        able = [
            (level[pair], lengths.get(pair, 0.0), pair)
            for pair in lines
            if pair not in tops
            and (pair[0] in one) != (pair[1] in one)
            and not max(ends[pair[0]], ends[pair[1]]) >= heights[edge]
        ]
        if able:
            return min(able)[-1]
    return None


def _find_top(curve: Curve, loss: Loss, data: Any, batch_size: int | None, execution: Execution) -> _Top:
    """The highest point of a curve, looked for at 61 points and once more beside the highest of them.

    Of a band that has found a saddle, the chords from there to its neighbours do not count: they cut the corners of the
    valley. Every curve has the same number of points, so that all are computed by one compiled program.
    """
    saddle = curve.saddle

    def losses_of(ts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        means = losses_at(
            loss,
            [curve(t) for t in ts],
            data,
            batch_stats=policy_of(None, loss),
            batch_size=batch_size,
            execution=execution,
        )
        return means.values["loss"], means.stderr.get("loss", np.full(len(ts), np.nan))

    spaced = curve.spaced(POINTS)
    ts = np.append(spaced, 0.5 if saddle is None else saddle.t)
    losses, errors = losses_of(ts)
    ends = (losses[0], errors[0]), (losses[POINTS - 1], errors[POINTS - 1])
    counts = np.ones(len(ts), bool)
    if saddle is not None and saddle.converged:
        pivot = int(np.abs(curve.knots - saddle.t).argmin())
        counts = (ts <= curve.knots[pivot - 1]) | (ts >= curve.knots[pivot + 1])
        counts[-1] = True
    at = _highest(losses, counts)
    if at == POINTS or not 0 < at < POINTS - 1 or not np.isfinite(losses[at]):
        return _Top(float(losses[at]), float(errors[at]), float(ts[at]), ends)
    finer = np.append(np.linspace(spaced[at - 1], spaced[at + 1], POINTS), spaced[at])
    more, more_errors = losses_of(finer)
    at = _highest(more, np.ones(len(more), bool))
    return _Top(float(more[at]), float(more_errors[at]), float(finer[at]), ends)


def _highest(losses: np.ndarray, counts: np.ndarray) -> int:
    """The number of the highest loss that counts; one that is no number is the highest."""
    return int(np.argmax(np.where(counts, np.where(np.isnan(losses), np.inf, losses), -np.inf)))


# --- arguments


def _check_minima(minima: Any, names: Any) -> tuple[list[PyTree], tuple[str, ...]]:
    if not isinstance(minima, list | tuple) or len(minima) < 2:
        count = len(minima) if isinstance(minima, list | tuple) else None
        given = "a value that is no list" if count is None else f"{count} given"
        raise Misuse("minima", f"{given}; pass a list of two parameter trees or more, such as [a, b, c]")
    labels = [f"minima[{i}]" for i in range(len(minima))]
    stacked = stack_points(minima, labels)
    minima = unstack(stacked)
    for i, j in itertools.combinations(range(len(labels)), 2):
        if are_equal(minima[i], minima[j]):
            raise Misuse(labels[j], f"equals {labels[i]}, so that there is no way between them; pass each minimum once")
    if names is None:
        return minima, tuple(map(str, range(len(labels))))
    right = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    if not right or len(names) != len(labels) or len(set(names)) != len(labels):
        raise misuse("names", names, f"{len(labels)} different texts, one for each minimum")
    return minima, tuple(names)


def _check_states(loss: Loss, states: Any, num: int) -> list[PyTree] | None:
    if states is None:
        if has_floats(loss.state):
            raise Misuse(
                "states",
                "none given, and the loss has a state of floats (running averages, such as BatchNorm's), which belong "
                "to one network; pass the state of each minimum, states=[...]",
            )
        return None
    if not isinstance(states, list | tuple) or len(states) != num:
        raise misuse("states", states, f"a list of {num} states, one for each minimum")
    if not jax.tree.leaves(loss.state):
        raise misuse("states", states, "left out, since the loss has no state")
    return [align_state(state, loss.state, f"states[{i}]", "loss.state") for i, state in enumerate(states)]


def _check_connections(connections: Any, num: int, pairs: int) -> int:
    if connections is None:
        return pairs if num <= FEW else min(pairs, 2 * (num - 1))
    return min(check_integer("connections", connections, least=num - 1, remedy="which a tree needs"), pairs)


def _folder_of(folder: Path, pair: Edge) -> Path:
    return folder / f"{pair[0]}-{pair[1]}"
