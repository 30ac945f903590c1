"""Stochastic Lanczos quadrature: a spectrum as nodes and weights, and the density that they make."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import jax
import numpy as np
from scipy.special import ndtr

from lla_jax.core import arguments, recipes
from lla_jax.core.arguments import warn_caller
from lla_jax.core.types import PyTree, Recipe, Spectrum
from lla_jax.curvature import lanczos as _lanczos
from lla_jax.curvature.lanczos import CHUNK, WINDOW
from lla_jax.curvature.linear_operator import Operator, check_given, check_operator
from lla_jax.execution import devices
from lla_jax.execution import progress as _progress
from lla_jax.execution.progress import Progress

log = logging.getLogger("lla_jax")

SHARE = 0.25  # of the free memory that the bases of the probes take
AT_ONCE = 16  # probes at once: more gain nothing
CLOSE = 32.0  # nodes nearer than this times eps max|node| are one: the products are no better than that
FAINT = 1e-6  # a weight below this / n is no eigenvalue's, but rounding's


@dataclass
class _Run:
    """What the probes gave so far, and where the present ones stand."""

    alphas: np.ndarray  # (probes, steps) float64: the diagonals of T
    betas: np.ndarray
    done: np.ndarray  # (probes,) steps that count
    group: int  # probes at a time
    products: int
    first: int = 0  # of the present probes
    at: int = 0  # their steps
    basis: PyTree = None  # None between groups
    scale: np.ndarray = field(default_factory=lambda: np.zeros(0))
    last: np.ndarray = field(default_factory=lambda: np.zeros(0))
    trouble: str | None = None


def spectrum(
    H: Operator,
    key: jax.Array,
    *,
    steps: int = 100,
    probes: int = 4,
    start: Literal["rademacher", "normal"] = "rademacher",
    scheme: Literal["full", "lla"] = "full",
    progress: Progress | None = None,
    on_partial: Callable[[Spectrum], None] | None = None,
    save_every: float | None = None,
    resume: Spectrum | None = None,
) -> Spectrum:
    """The spectrum of an operator by stochastic Lanczos quadrature.

        v'f(A)v  ~  sum_i w_i f(theta_i),   w_i = (first component of the i-th eigenvector of T)^2

    for a random v of norm 1, T being Lanczos' tridiagonal matrix; exact for polynomials up to degree 2 steps - 1. Its
    mean over probes is tr f(A) / n. T's eigenproblem is solved in float64. Nodes that are equal up to the rounding of
    the products (32 eps max |theta|) are one node, and nodes with the weight of rounding none: copies that rounding
    makes of an eigenvalue are no part of the spectrum.

    Args:
      H: a symmetric operator: ``hessian``, ``ggn``, ``fisher`` or ``operators.given``, whose symmetry is checked.
      key: draws the probes; folded with a probe's number.
      steps: Lanczos steps m per probe.
      probes: random start vectors; two or more give standard errors.
      start: distribution of their entries, "rademacher" (signs) or "normal".
      scheme: "full" re-orthogonalises against all vectors before, twice. "lla" against the last 11, once, as LLA does,
        with the copies of eigenvalues that come of it: to reproduce its figures, in the memory of 11 vectors.
      progress: called as ``progress(products, probes * steps)``.
      on_partial: called with the probes there are and the state to continue from, if the run is interrupted (Ctrl-C,
        or any exception), before the exception is raised again.
      save_every: seconds after which ``on_partial`` is called on the way as well, again and again, so that a killed
        process can be continued too. Its recipe then says "running" as "stopped".
      resume: what ``on_partial`` got; continues, and gives the same to the bit as a run that was not interrupted.

    Returns:
      ``Spectrum``. A probe ends early where its space becomes invariant. ``recipe``: "steps_done" (per probe), "nodes"
      (distinct ones per probe), "products", "stopped" (why it ended early, with a warning, or None).

    Raises:
      ValueError: an argument out of its range, vectors that the memory cannot hold, an operator that is not symmetric,
        a first product that is not finite, ``resume`` of another operator or other arguments.

    References: Golub and Meurant 1994; Ghorbani et al. 2019, arXiv 1901.10159. Where we differ from LLA
    (arXiv 2412.10146): (1) full re-orthogonalisation, so that no eigenvalue is counted twice; (2) float64 for T.
    """
    check_operator(H)
    key = arguments.single_key(key)
    if not isinstance(probes, int | np.integer) or isinstance(probes, bool) or probes < 1:
        raise ValueError(f"probes: {probes!r} given; the rule is a positive integer")
    _lanczos.check_start(start)
    if scheme not in ("full", "lla"):
        raise ValueError(f'scheme: {scheme!r} given; the rule is "full" or "lla"')
    n = H.shape[0]
    steps = arguments.clamp_count("steps", steps, n)
    recipe = {
        "kind": "spectrum", "operator": dict(H.recipe), "n": n, "dtype": str(H.dtype), "steps": steps,
        "probes": int(probes), "start": start, "scheme": scheme, "key": recipes.fingerprint(key),
    }  # fmt: skip
    if resume is None:
        group = _group(H, steps, int(probes), scheme)
        used = check_given(H, key)
        table = np.zeros((2, probes, steps))
        run = _Run(table[0], table[1], np.zeros(probes, np.int64), group, used)
    else:
        recipes.check_resume(resume, recipe, Spectrum)
        if resume.state is None:
            return resume
        run = _restored(resume.state, H, _rows(steps, scheme))
    memory = _memory(H, run, _rows(steps, scheme), save_every is not None)

    def hand_over(stopped: str) -> None:
        gone = any(x.is_deleted() for x in jax.tree.leaves(run.basis))
        if on_partial is not None and run.done.any() and not gone:
            on_partial(_result(run, recipe | {"complete": False, "stopped": stopped}, H, _state(run, scheme)))

    progress = _progress.saving(progress, save_every, on_partial, lambda: hand_over("running"))
    try:
        _drive(run, H, key, recipe, progress)
    except BaseException:
        hand_over("interrupted")
        raise
    if not run.done.any():
        raise ValueError(_lanczos.nothing(run.products))
    result = _result(run, recipe | {"complete": True, "stopped": run.trouble, "memory": memory}, H, None)
    if run.trouble:
        warn_caller(
            f"spectrum: {run.trouble}; the {result.probes} of {probes} probes that have steps before it are kept"
        )
    return result


def _rows(steps: int, scheme: str) -> int:
    return steps if scheme == "full" else WINDOW


def _group(H: Operator, steps: int, probes: int, scheme: str) -> int:
    """How many probes run at once: a divisor, so that one shape compiles."""
    nbytes, free = H.memory()
    each = nbytes * _rows(steps, scheme)
    if each > free:
        raise arguments.Misuse(
            "steps",
            f"{steps} vectors take {each / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free; the rule is fewer. At "
            f'most {free // nbytes} steps fit, or use scheme="lla", which keeps {WINDOW} vectors',
        )
    room = min(AT_ONCE, max(1, int(SHARE * free) // each)) if H.on_device else 1
    group = max(g for g in range(1, probes + 1) if probes % g == 0 and g <= room)
    return group


def _memory(H: Operator, run: _Run, rows: int, saved: bool) -> dict[str, int]:
    """What a recipe says of the memory needed at most, and the log before the run."""
    vectors = run.group * rows
    nbytes = _lanczos.needed(H, rows, group=run.group, saved=saved)
    log.info(
        "spectrum: %d of %d probes at a time: %d vectors, %.1f MiB with what is computed beside them (%.0f MiB free)",
        run.group, len(run.alphas), vectors, nbytes / 2**20, H.memory()[1] / 2**20,
    )  # fmt: skip
    return {"vectors": vectors, "bytes": nbytes}


def _drive(run: _Run, H: Operator, key: jax.Array, recipe: Recipe, progress: Progress | None) -> None:
    """Group after group, to the end or to a product that is not finite."""
    probes, steps = run.alphas.shape
    rows, window = _rows(steps, recipe["scheme"]), recipe["scheme"] == "lla"
    total = run.products + (probes - run.first) * steps - run.at * run.group
    while run.first < probes and run.trouble is None:
        if run.basis is None:
            starts = [_lanczos.random(H, key, run.first + i, recipe["start"]) for i in range(run.group)]
            run.scale, run.last, run.at = np.zeros(run.group), np.zeros(run.group), 0
            alone = run.group == 1  # no axis of probes: XLA on a CPU is 50 times slower with one of length 1
            spread = H.space.shards
            run.basis = (
                _lanczos.begin(starts[0], rows=rows, spread=spread)
                if alone
                else _lanczos.begin_batch(starts, rows=rows)
            )
            del starts
        while run.at < steps and run.trouble is None and (run.at == 0 or (run.last > 0).any()):
            try:
                _advance(run, H, window)
            except Exception as error:
                if run.at or run.group == 1 or not devices.out_of_memory(error):
                    raise
                less = max(g for g in range(1, run.group) if run.group % g == 0)
                vars(run).update(basis=None, group=less)
                log.info("spectrum: out of memory; %d probes at a time", less)
                break
            if progress is not None:
                progress(run.products, total)
        else:
            vars(run).update(basis=None, first=run.first + run.group)


def _advance(run: _Run, H: Operator, window: bool) -> None:
    """One call's steps of the present probes, into the table."""
    most, batched = min(CHUNK, run.alphas.shape[1] - run.at) if H.on_device else 1, run.group > 1
    scale, last = (run.scale, run.last) if batched else (run.scale[0], run.last[0])
    found = _lanczos.advance(H, run.basis, run.at, run.at + 1, most, scale, last, window=window, batched=batched)
    coefficients, norms, sizes = (x if batched else x[None] for x in found[1:])
    count = sizes.shape[1]
    finite = np.isfinite(sizes)
    for p in range(run.group):
        probe, alive = run.first + p, run.at == 0 or run.last[p] > 0
        for i in range(count if alive else 0):
            j = run.at + i
            if not finite[p, i]:
                run.trouble = run.trouble or f"product {j + 1} of probe {probe + 1} is not finite"
                break
            run.alphas[probe, j] = coefficients[p, i, j % WINDOW if window else j]
            run.betas[probe, j] = norms[p, i]
            run.done[probe] = j + 1
            if norms[p, i] == 0:
                break
    vars(run).update(  # a run changes at once: an interrupt finds it before a call or after
        basis=_lanczos.store(run.basis, found, run.at + 1, window=window, batched=batched),
        products=run.products + run.group * count, at=run.at + count, last=norms[:, -1],
        scale=np.maximum(run.scale, np.where(finite, sizes, 0).max(1)),
    )  # fmt: skip


def _result(run: _Run, recipe: Recipe, H: Operator, state: dict[str, np.ndarray] | None) -> Spectrum:
    kept = np.flatnonzero(run.done)
    nodes, weights = np.zeros((2, len(kept), run.alphas.shape[1]))
    counts = []
    for row, p in enumerate(kept):
        theta, w = _rule(run.alphas[p, : run.done[p]], run.betas[p, : run.done[p]], recipe, H)
        counts.append(len(theta))
        nodes[row], weights[row, : len(w)] = np.pad(theta, (0, nodes.shape[1] - len(theta)), mode="edge"), w
    recipe |= {"products": run.products, "steps_done": run.done[kept].tolist(), "nodes": counts}
    return Spectrum(nodes, weights, recipe, state)


def _rule(alphas: np.ndarray, betas: np.ndarray, recipe: Recipe, H: Operator) -> tuple[np.ndarray, np.ndarray]:
    """Nodes, ascending, and weights of the Gauss rule; what rounding split is put together again."""
    nodes, vectors = np.linalg.eigh(_lanczos.tridiagonal(alphas, betas))
    weights = vectors[0] ** 2
    if recipe["scheme"] == "full":
        near = _lanczos.rounding(H, CLOSE) * np.abs(nodes).max()
        seen = weights > min(FAINT / recipe["n"], _lanczos.rounding(H, 100) ** 2)
        nodes, weights = nodes[seen], weights[seen]
        group, begun = np.zeros(len(nodes), int), 0
        for i in range(1, len(nodes)):
            begun = begun if nodes[i] - nodes[begun] <= near else i
            group[i] = group[i - 1] + (begun == i)
        mass = np.bincount(group, weights)
        nodes, weights = np.bincount(group, weights * nodes) / mass, mass
    return nodes, weights / weights.sum()


# --- interrupted and continued

_TABLE = ("alphas", "betas", "done", "scale", "last")
_COUNTS = ("group", "products", "first", "at")


def _state(run: _Run, scheme: str) -> dict[str, np.ndarray]:
    table = (run.alphas, run.betas, run.done, run.scale, run.last)
    counts = np.array([getattr(run, name) for name in _COUNTS], np.int64)
    filled = slice(run.at + 1 if scheme == "full" else WINDOW)
    at = filled if run.group == 1 else (slice(None), filled)
    leaves = {f"basis/{i}": np.asarray(x)[at] for i, x in enumerate(jax.tree.leaves(run.basis))}
    return {name: np.array(x) for name, x in zip(_TABLE, table, strict=True)} | {"counts": counts} | leaves


def _restored(state: Mapping[str, Any], H: Operator, rows: int) -> _Run:
    counts: dict[str, Any] = dict(zip(_COUNTS, map(int, state["counts"]), strict=True))
    table: dict[str, Any] = {name: np.array(state[name]) for name in _TABLE}
    if "basis/0" not in state:
        return _Run(**table, **counts)
    axis = 0 if counts["group"] == 1 else 1
    leaves = [np.asarray(state[f"basis/{i}"]) for i in range(len(H.space.shapes))]
    whole = [np.pad(x, [(0, (rows - x.shape[a]) * (a == axis)) for a in range(x.ndim)]) for x in leaves]
    return _Run(**table, **counts, basis=_lanczos.from_host(H, whole))


# --- the density


class Density(NamedTuple):
    """A spectral density on a grid.

    Args:
      x: (points,) float64, eigenvalues, ascending.
      density: (points,) per unit of ``t``: the mean over the probes, sum(density) (t[1] - t[0]) = 1.
      sem: (points,) its standard error over the probes; NaN for one probe.
      t: (points,) the coordinate, evenly spaced: ``x`` itself ("linear") or sign(x) log10(1 + |x| / threshold).
      sigma: standard deviation of the Gaussians, in units of ``t``.
      scale: "linear" or "symlog".
      threshold: of "symlog", in units of ``x``; 0 for "linear".
    """

    x: np.ndarray
    density: np.ndarray
    sem: np.ndarray
    t: np.ndarray
    sigma: float
    scale: str
    threshold: float


def density(
    spec: Spectrum,
    *,
    points: int = 1000,
    width: float = 0.01,
    scale: Literal["linear", "symlog"] = "linear",
    threshold: float | None = None,
) -> Density:
    """The spectral density: a mixture of Gaussians around the nodes, of mass 1.

        rho(t) = mean over probes of sum_i w_i N(t; t_i, sigma^2),   sigma = width (max t_i - min t_i)

    averaged over the cells of the grid, so that a Gaussian narrower than a cell keeps its mass. The grid reaches
    5 sigma beyond all nodes of all probes.

    Args:
      spec: what ``spectrum`` returned.
      points: of the grid.
      width: standard deviation of a Gaussian, relative to the range of the nodes (where that is zero, to the largest
        |node|, or to 1).
      scale: "linear", or "symlog": Gaussians, grid and mass in the coordinate t = sign(x) log10(1 + |x| / threshold).
      threshold: below it "symlog" is about linear; by default 1e-4 of the largest |node|.

    Returns:
      ``Density``.

    Raises:
      ValueError: an argument out of its range; an empty spectrum; a threshold with "linear".

    References: Lin et al. 2016, arXiv 1308.5467. Where we differ from LLA: (1) the width is relative to the range;
    (2) the grid holds the ends of every probe, not their means; (3) no constant is added.
    """
    if not isinstance(spec, Spectrum) or not spec.nodes.size:
        raise ValueError(f"spec: {spec!r} given; the rule is what lla.spectrum returned, with a probe at least")
    if not isinstance(points, int | np.integer) or isinstance(points, bool) or points < 2:
        raise ValueError(f"points: {points!r} given; the rule is an integer from 2")
    if not isinstance(width, float | int | np.floating) or not 0 < width < np.inf:
        raise ValueError(f"width: {width!r} given; the rule is a positive number, relative to the range of the nodes")
    if scale not in ("linear", "symlog"):
        raise ValueError(f'scale: {scale!r} given; the rule is "linear" or "symlog"')
    if scale == "linear" and threshold is not None:
        raise ValueError(f'threshold: {threshold!r} given with scale="linear", which has none; use scale="symlog"')
    largest = float(np.abs(spec.nodes).max())
    knee = 1e-4 * (largest or 1.0) if threshold is None else float(threshold)
    if not 0 < knee < np.inf:
        raise ValueError(f"threshold: {threshold!r} given; the rule is a positive number, in units of eigenvalues")
    nodes = spec.nodes if scale == "linear" else np.sign(spec.nodes) * np.log10(1 + np.abs(spec.nodes) / knee)
    low, high = nodes.min(), nodes.max()
    span = float(high - low)
    if span <= CLOSE * np.finfo(np.float64).eps * np.abs(nodes).max():
        span = float(np.abs(nodes).max()) or 1.0
    sigma = width * span
    edges = np.linspace(low - 5 * sigma, high + 5 * sigma, points + 1)
    cell = edges[1] - edges[0]
    each = np.zeros((spec.probes, points))
    for row, (theta, weights) in enumerate(zip(nodes, spec.weights, strict=True)):
        for t, w in zip(theta, weights, strict=True):
            if w > 0:
                each[row] += w * np.diff(ndtr((edges - t) / sigma))
    each /= each.sum(1, keepdims=True) * cell
    t = (edges[1:] + edges[:-1]) / 2
    x = t if scale == "linear" else np.sign(t) * knee * (10.0 ** np.abs(t) - 1)
    many = spec.probes > 1
    sem = each.std(0, ddof=1) / np.sqrt(spec.probes) if many else np.full(points, np.nan)
    return Density(x, each.mean(0), sem, t, float(sigma), scale, knee if scale == "symlog" else 0.0)
