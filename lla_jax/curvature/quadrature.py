"""Computes a spectrum by stochastic Lanczos quadrature, as nodes and weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import numpy as np

from lla_jax.core import arguments, recipes
from lla_jax.core.arguments import warn_caller
from lla_jax.core.interrupts import deferred_interrupts
from lla_jax.core.results import Spectrum
from lla_jax.core.signatures import explained
from lla_jax.core.types import PyTree, Recipe
from lla_jax.curvature import lanczos as _lanczos
from lla_jax.curvature import units
from lla_jax.curvature.handing_over import handing_over
from lla_jax.curvature.lanczos import WINDOW
from lla_jax.curvature.linear_operator import Operator, check_spectral, no_finite_product
from lla_jax.curvature.probe import describe
from lla_jax.curvature.room import STEPS_PER_CALL, bases_bytes, check_room, goes_one_by_one
from lla_jax.curvature.symmetry import settle
from lla_jax.curvature.units import Unit, adapt
from lla_jax.execution import devices
from lla_jax.execution import progress as _progress
from lla_jax.execution.progress import AskedProgress, takes_progress

log = logging.getLogger("lla_jax")

MEMORY_FRACTION = 0.25  # of the free memory, which the bases of the probes may take
MOST_NODES = 10**8  # of all probes, whose table takes 16 bytes for each
AT_ONCE = 16  # probes at once: more gain nothing
CLOSE = 32.0  # nodes nearer than this times eps max|node| count as one: the products are no better than that
SPENT = 100.0  # times eps max|node|: a remainder below it adds nothing to a sequence
FAINT = 1e-6  # a weight below this / n comes from rounding, not from an eigenvalue


@dataclass
class _Sequences:
    """The results of the probes so far, and the state of the present ones.

    Every change takes the basis first and puts it back last: without it, the present probes begin anew.
    """

    alphas: np.ndarray  # (probes, steps) float64: the diagonals of T
    betas: np.ndarray
    done: np.ndarray  # (probes,) steps that count
    group: int  # probes at a time
    products: int
    start: int = 0  # number of the first of the present probes
    at: int = 0  # steps that the present probes have taken
    basis: PyTree = None  # None between groups
    scale: np.ndarray = field(default_factory=lambda: np.zeros(0))  # largest |A q| of each present probe
    last: np.ndarray = field(default_factory=lambda: np.zeros(0))  # their last betas
    trouble: str | None = None
    nbytes: int = 0  # needed at most, as logged
    logged: int = 0  # the group for which they were

    def take_basis(self) -> PyTree:
        """Take the basis out of the state, to change it or to give it to a program that destroys it."""
        basis, self.basis = self.basis, None
        return basis


@takes_progress("products")
@explained
def spectrum(
    H: Operator,
    key: jax.Array,
    *,
    steps: int = 100,
    probes: int = 4,
    start: Literal["rademacher", "normal"] = "rademacher",
    scheme: Literal["full", "lla"] = "full",
    progress: AskedProgress = None,
    on_partial: Callable[[Spectrum], None] | None = None,
    save_every: float | None = None,
    resume: Spectrum | None = None,
) -> Spectrum:
    """The spectrum of an operator by stochastic Lanczos quadrature.

        v'f(A)v  ~  sum_i w_i f(theta_i),   w_i = (first component of the i-th eigenvector of T)^2

    for a random v of norm 1, T being Lanczos' tridiagonal matrix; exact for polynomials up to degree 2 steps - 1. Its
    mean over probes is tr f(A) / n. T's eigenproblem is solved in float64. With scheme "full",
    nodes that are equal up to the rounding of the products (32 eps max |theta|) are merged, and nodes with a weight of
    rounding are dropped: copies that rounding makes of an eigenvalue are no part of the spectrum.

    Args:
      H: a symmetric operator: ``hessian``, ``ggn``, ``fisher`` or ``operators.given``, whose symmetry is checked.
      key: draws the probes; folded with a probe's number.
      steps: Lanczos steps m per probe.
      probes: random start vectors; two or more give standard errors.
      start: distribution of their entries, "rademacher" (signs) or "normal".
      scheme: "full" re-orthogonalises against all vectors before, twice. "lla" against the last 11, once, as LLA does,
        with the copies of eigenvalues that come of it: to reproduce its figures, in the memory of 11 vectors.
      progress: True for a bar, or a function called as ``progress(products, total)``, with the products that all
        steps of all probes take.
      on_partial: called with the ``Spectrum`` of the steps so far and the state to continue from, if the computation is
        interrupted (Ctrl-C, or any exception), before the exception is raised again. A first Ctrl-C leaves out the
        steps in progress; after a second one that comes while a step is stored, the present probes begin anew.
      save_every: seconds after which ``on_partial`` is called on the way as well, again and again, so that a killed
        process can be continued too. Its recipe then says "running" as "stopped".
      resume: a result that ``on_partial`` was called with. The computation continues from it, and gives the same to the
        bit as one that was not interrupted.

    Returns:
      ``Spectrum``. A probe ends early where its space becomes invariant. ``recipe``: "steps_done" (per probe), "nodes"
      (distinct ones per probe), "exhausted" (per probe: whether its space became invariant, so that its nodes are
      eigenvalues and more steps would change nothing), "products", "stopped" (why it ended early, with a warning, or
      None).

    Raises:
      ValueError: an argument out of its range, vectors that the memory cannot hold, an operator that is not symmetric,
        a first product that is not finite, ``resume`` of another operator, another function or other arguments.

    References: Golub and Meurant 1994; Ghorbani et al. 2019, arXiv 1901.10159. Where we differ from LLA
    (arXiv 2412.10146): (1) full re-orthogonalisation, so that no eigenvalue is counted twice; (2) float64 for T.
    """
    key = check_spectral(H, key)
    probes = arguments.check_integer("probes", probes, remedy="such as 4")
    _lanczos.check_start(start)
    arguments.check_choice("scheme", scheme, ("full", "lla"))
    n = H.shape[0]
    steps = arguments.clamp_count("steps", steps, n)
    if probes * steps > MOST_NODES:
        text = f"{probes} given, with {steps} steps each"
        raise arguments.Misuse("probes", f"{text}; it must be at most {MOST_NODES // steps}, such as 4: take fewer")
    if resume is None:  # before the probe takes a product
        check_room(H, "steps", _rows(steps, scheme), f', or scheme="lla", which keeps {WINDOW} vectors')
    recipe = {
        "kind": "spectrum",
        "operator": describe(H),
        "n": n,
        "dtype": str(H.dtype),
        "steps": steps,
        "probes": probes,
        "start": start,
        "scheme": scheme,
        "key": recipes.fingerprint(key),
    }
    _progress.check_on_partial(on_partial)
    if resume is not None:
        recipes.check_resume(resume, recipe, Spectrum)
        if resume.state is None:
            return resume
    state = None if resume is None else resume.state

    def compute(unit: Unit) -> Spectrum:
        H = unit.H
        if state is None:
            group = _group(H, steps, probes, scheme)
            alphas, betas = np.zeros((2, probes, steps))
            s = _Sequences(alphas, betas, np.zeros(probes, np.int64), group, unit.products)
        else:
            s = _restore(state, H, _rows(steps, scheme))

        def hand_over(stopped: str) -> None:
            if on_partial is not None and s.done.any():
                on_partial(_result(s, recipe | {"complete": False, "stopped": stopped}, unit, _state(s, unit, scheme)))

        def after_step(products: int, total: int) -> None:
            check()
            unit.check(float(s.scale.max()) if s.done.any() else np.nan, products)
            if report is not None:
                report(products, total)

        with handing_over(progress, save_every, on_partial, hand_over) as report:
            _run_groups(s, H, key, recipe, after_step)
        if not s.done.any():
            raise no_finite_product(f"product {s.products} is not finite")
        memory = {"vectors": s.logged * _rows(steps, scheme), "bytes": s.nbytes}
        result = _result(s, recipe | {"complete": True, "stopped": s.trouble, "memory": memory}, unit, None)
        if s.trouble:
            left = f"the {result.probes} of {probes} probes that have steps before it are kept"
            warn_caller(f"spectrum: {s.trouble}; {left}")
        return result

    with deferred_interrupts() as check:
        return adapt(settle(H, key) if state is None else units.of_state(H, state), key, compute)


def _rows(steps: int, scheme: str) -> int:
    return steps if scheme == "full" else WINDOW


def _group(H: Operator, steps: int, probes: int, scheme: str) -> int:
    """The number of probes computed at once: a divisor of all, so that one shape compiles."""
    nbytes, free = H.memory()
    each = nbytes * _rows(steps, scheme)
    room = 1 if goes_one_by_one(H) else min(AT_ONCE, max(1, int(MEMORY_FRACTION * free) // each))
    return max(g for g in range(1, probes + 1) if probes % g == 0 and g <= room)


def _fits(s: _Sequences, H: Operator, rows: int, window: bool) -> bool:
    """Whether a step of the present group fits beside its bases; what it needs is logged, once for each size.

    Raises:
      ValueError: a single probe does not fit.
    """
    if s.logged == s.group:
        return True
    nbytes, free = H.memory()
    work = _lanczos.step_bytes(H, rows, group=s.group, window=window)
    if work > free:
        if s.group > 1:
            return False
        text = f"{rows} vectors, beside which a step takes {work / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free"
        most = max(0, rows - -(-(work - free) // nbytes))
        raise arguments.Misuse("steps", f"{text}; there is room for {most}: take fewer steps")
    s.logged, s.nbytes = s.group, max(s.nbytes, bases_bytes(H, rows, work, group=s.group))
    text = f"{s.group * rows} vectors, {s.nbytes / 2**20:.1f} MiB with the work space"
    log.info("spectrum: %d of %d probes at a time: %s (%.0f MiB free)", s.group, len(s.alphas), text, free / 2**20)
    return True


def _take_fewer(s: _Sequences) -> None:
    """Begin the present group anew with fewer probes."""
    s.basis = None
    s.group = max(g for g in range(1, s.group) if s.group % g == 0)
    log.info("spectrum: out of memory; from now on %d probes at a time", s.group)


def _run_groups(
    s: _Sequences, H: Operator, key: jax.Array, recipe: Recipe, after_step: Callable[[int, int], None]
) -> None:
    """Compute one group of probes after another, to the end or to a product that is not finite."""
    probes, steps = s.alphas.shape
    rows, window = _rows(steps, recipe["scheme"]), recipe["scheme"] == "lla"
    total = s.products + (probes - s.start) * steps - s.at * s.group
    while s.start < probes and s.trouble is None:
        if s.basis is None:
            s.scale, s.last, s.at = np.zeros(s.group), np.zeros(s.group), 0
            s.basis = _begin_group(s, H, key, recipe["start"], rows)
        if not _fits(s, H, rows, window):
            _take_fewer(s)
            continue
        while s.at < steps and s.trouble is None and (s.at == 0 or (s.last > 0).any()):
            try:
                _advance(s, H, window)
            except Exception as error:
                if s.at or s.group == 1 or not devices.is_out_of_memory(error):
                    raise
                _take_fewer(s)
                break
            after_step(s.products, total)
        else:
            s.basis = None
            s.start += s.group


def _begin_group(s: _Sequences, H: Operator, key: jax.Array, distribution: str, rows: int) -> PyTree:
    """The bases of the present probes. One probe has no axis of probes: XLA on a CPU is 50 times slower with one of
    length 1."""
    starts = [_lanczos.random(H, key, s.start + i, distribution) for i in range(s.group)]
    if s.group == 1:
        return _lanczos.begin(starts[0], rows=rows, shards=H.space.shards)
    return _lanczos.begin_batch(starts, rows=rows)


def _advance(s: _Sequences, H: Operator, window: bool) -> None:
    """Take the steps of one call for the present probes, and write them into the table."""
    batched = s.group > 1
    most = min(STEPS_PER_CALL, s.alphas.shape[1] - s.at) if batched or not goes_one_by_one(H) else 1
    scale, last = (s.scale, s.last) if batched else (s.scale[0], s.last[0])
    steps = _lanczos.advance(H, s.basis, s.at, s.at + 1, most, scale, last, window=window, batched=batched)
    coefficients, norms, sizes = (x if batched else x[None] for x in steps[1:])
    count = sizes.shape[1]
    finite = np.isfinite(sizes)
    basis = _lanczos.store(s.take_basis(), steps, s.at + 1, window=window, batched=batched)
    for p in range(s.group):
        probe, alive = s.start + p, s.at == 0 or s.last[p] > 0
        for i in range(count if alive else 0):
            j = s.at + i
            if not finite[p, i]:
                s.trouble = s.trouble or f"product {j + 1} of probe {probe + 1} is not finite"
                break
            s.alphas[probe, j] = coefficients[p, i, j % WINDOW if window else j]
            s.betas[probe, j] = norms[p, i]
            s.done[probe] = j + 1
            if norms[p, i] == 0:
                break
    s.products += s.group * count
    s.at += count
    s.last = norms[:, -1]
    s.scale = np.maximum(s.scale, np.where(finite, sizes, 0).max(1))
    s.basis = basis


def _result(s: _Sequences, recipe: Recipe, unit: Unit, state: dict[str, np.ndarray] | None) -> Spectrum:
    H = unit.H
    kept = np.flatnonzero(s.done)
    nodes, weights = np.zeros((2, len(kept), s.alphas.shape[1]))
    counts, exhausted = [], []
    for row, p in enumerate(kept):
        alphas, betas = s.alphas[p, : s.done[p]], s.betas[p, : s.done[p]]
        theta, w = _rule(alphas, betas, recipe, H)
        counts.append(len(theta))
        spent = betas.min() <= _lanczos.rounding(H, SPENT, np.abs(theta).max())
        exhausted.append(bool(spent or s.done[p] == recipe["n"]))
        nodes[row], weights[row, : len(w)] = np.pad(theta, (0, nodes.shape[1] - len(theta)), mode="edge"), w
    recipe |= {"products": s.products, "steps_done": s.done[kept].tolist(), "nodes": counts}
    recipe["exhausted"] = exhausted
    recipe = recipe if state is None else recipe | recipes.seal(state)
    return Spectrum(nodes * unit.size, weights, recipe, state)


def _rule(alphas: np.ndarray, betas: np.ndarray, recipe: Recipe, H: Operator) -> tuple[np.ndarray, np.ndarray]:
    """(nodes, ascending; weights) of the Gauss rule; with scheme "full" nodes that rounding split are merged again."""
    nodes, vectors = np.linalg.eigh(_lanczos.tridiagonal(alphas, betas))
    weights = vectors[0] ** 2
    if recipe["scheme"] == "full":
        largest = float(np.abs(nodes).max()) or 1.0
        near = _lanczos.rounding(H, CLOSE, largest)
        seen = weights > min(FAINT / recipe["n"], (_lanczos.rounding(H, 100, largest) / largest) ** 2)
        nodes, weights = nodes[seen], weights[seen]
        group, start = np.zeros(len(nodes), int), 0
        for i in range(1, len(nodes)):
            start = start if nodes[i] - nodes[start] <= near else i
            group[i] = group[i - 1] + (start == i)
        mass = np.bincount(group, weights)
        nodes, weights = np.bincount(group, weights * nodes) / mass, mass
    return nodes, weights / weights.sum()


# --- saving and resuming

_TABLE = ("alphas", "betas", "done", "scale", "last")
_COUNTS = ("group", "products", "start", "at")


def _state(s: _Sequences, unit: Unit, scheme: str) -> dict[str, np.ndarray]:
    """The state as named arrays, from which ``_restore`` makes it again."""
    table = (s.alphas, s.betas, s.done, s.scale, s.last)
    counts = np.array([getattr(s, name) for name in _COUNTS], np.int64)
    filled = slice(s.at + 1 if scheme == "full" else WINDOW)
    at = filled if s.group == 1 else (slice(None), filled)
    leaves = {f"basis/{i}": np.asarray(x)[at] for i, x in enumerate(jax.tree.leaves(s.basis))}
    return (
        {name: np.array(x) for name, x in zip(_TABLE, table, strict=True)}
        | {"counts": counts, "unit": np.array(unit.size)}
        | leaves
    )


@recipes.reading_state()
def _restore(state: Mapping[str, Any], H: Operator, rows: int) -> _Sequences:
    counts: dict[str, Any] = dict(zip(_COUNTS, map(int, state["counts"]), strict=True))
    table: dict[str, Any] = {name: np.array(state[name]) for name in _TABLE}
    if "basis/0" not in state:
        return _Sequences(**table, **counts)
    axis = 0 if counts["group"] == 1 else 1
    leaves = (np.asarray(state[f"basis/{i}"]) for i in range(len(H.space.shapes)))
    return _Sequences(**table, **counts, basis=_lanczos.from_host(H, leaves, rows, axis))


def exhausted(spec: Spectrum) -> list[bool]:
    """For each probe whether its nodes and weights are its measure, so that more steps would change nothing.

    A spectrum whose recipe does not say how many parameters there are, as one made by hand, is taken as it stands.
    """
    recipe = spec.recipe
    if "n" not in recipe:
        return [True] * spec.probes
    if "exhausted" in recipe:
        return list(recipe["exhausted"])
    early = recipe["n"] if recipe.get("stopped") else min(recipe["n"], recipe.get("steps", math.inf))
    return [done == recipe["n"] or done < early for done in recipe.get("steps_done", [0] * spec.probes)]
