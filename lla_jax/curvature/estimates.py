"""Estimates trace, diagonal and Frobenius norm of an operator from random vectors, to a standard error.

The vectors are numbered, and each is drawn from the key and its number: neither the blocks in which they are taken nor
the kind of loop changes the result beyond rounding.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import arguments, interrupts, recipes
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import warn_caller
from lla_jax.core.interrupts import deferred_interrupts
from lla_jax.core.results import Estimate
from lla_jax.core.signatures import explained
from lla_jax.core.standard_errors import standard_error
from lla_jax.core.types import PyTree
from lla_jax.curvature import diagonals, forecasts, room, sketches, stopping, units
from lla_jax.curvature.flat_rows import NotFinite, ProductCounter
from lla_jax.curvature.handing_over import handing_over
from lla_jax.curvature.linear_operator import Operator, check_spectral, no_finite_product
from lla_jax.curvature.probe import describe
from lla_jax.curvature.random_probes import map_probes, reserve_probes
from lla_jax.curvature.sketches import AT_ONCE
from lla_jax.curvature.stopping import LEAST_DRAWS, PRODUCTS_EACH, Round, State
from lla_jax.curvature.symmetry import settle
from lla_jax.curvature.units import Unit, adapt
from lla_jax.execution import progress as _progress
from lla_jax.execution.progress import AskedProgress, Progress, expect_total, takes_progress

log = logging.getLogger("lla_jax")

MEMORY_FRACTION = 0.25  # of the free memory, which the basis of a sketch may take


@takes_progress("products")
@deferred_interrupts()
@explained
def trace(
    H: Operator,
    key: jax.Array,
    *,
    method: str = "xtrace",
    rtol: float = 0.02,
    max_products: int = 1000,
    progress: AskedProgress = None,
    on_partial: Callable[[Estimate], None] | None = None,
    save_every: float | None = None,
    resume: Estimate | None = None,
) -> Estimate:
    """The trace of an operator, with its standard error.

        hutchinson   mean of z'A z, z random signs: variance 2 (|A|_F^2 - sum_i A_ii^2); exact for a diagonal operator
        hutch++      tr Q'A Q + mean of z'(I - Q Q') A (I - Q Q') z, Q a basis of A S for random signs S; a third of the
                     products each for A S, A Q and A z: exact up to rank products / 3
        xtrace       the same with Q from all vectors but one, which is z, averaged over all choices of it; the
                     products A S and A Q serve both terms: exact below rank products / 2

    "hutch++" and "xtrace" pay where few eigenvalues make most of the trace, as in trained networks, and are exact where
    there are few parameters; they hold a vector for each draw, and "hutchinson" none. Draws are added until there are
    at least 16 and the standard error is at most rtol |mean|, or until the estimate is exact up to rounding. Where a
    quarter of the free memory does not hold the 16 vectors that XTrace takes at least, "hutchinson" is taken instead.

    Args:
      H: a symmetric operator: ``hessian``, ``ggn``, ``fisher`` or ``operators.given``, whose symmetry is checked.
      key: draws the vectors.
      method: "hutchinson", "hutch++" or "xtrace".
      rtol: standard error asked for, relative to the mean; 0 uses all products.
      max_products: most products to use; the 2 that check a given operator's symmetry and the one of its probe
        come on top.
      progress: True for a bar, which also estimates the total, or a function called with (products so far, None).
      on_partial: called with the ``Estimate`` of the draws so far and the state to continue from, if the computation is
        interrupted (Ctrl-C, or any exception), before the exception is raised again. A first Ctrl-C leaves
        out the draws in progress.
      save_every: seconds after which ``on_partial`` is called on the way as well, again and again, so that a killed
        process can be continued too. Its recipe then says "running" as "stopped".
      resume: a result that ``on_partial`` was called with. The computation continues from it, and gives the same to the
        bit as one that was not interrupted.

    Returns:
      ``Estimate`` of floats; ``num`` is the number of draws. The recipe has ``products`` (all of them), ``converged``
      and ``stopped`` (why the draws ended early, or None), ``memory`` ({"vectors", "bytes"}: those held, and all that
      it takes, as the logger ``lla_jax`` says before it starts), ``method``, and ``instead_of`` where another one was
      asked for. Not converged: a warning.

    Raises:
      ValueError: another method; ``rtol`` or ``max_products`` out of range; an operator that is not symmetric; one of
        the first products not finite (later ones end the estimate, with a warning); vectors that the memory cannot
        hold, one at a time; ``resume`` of another operator or other arguments.

    References: Hutchinson 1990; Meyer et al. 2020, arXiv 2010.09649 (Hutch++; here the three thirds grow together, and
    the test vectors' products serve every later basis); Epperly et al. 2023, arXiv 2301.07825 (XTrace). Where we differ
    from LLA: (1) it stops on the standard error, not on two means that happen to be close; (2) the error is reported.
    """
    arguments.check_choice("method", method, PRODUCTS_EACH)
    key = _check(H, key, rtol, max_products, PRODUCTS_EACH[method])
    about = {"kind": "trace", "method": method}
    before = resume.recipe if isinstance(resume, Estimate) else {}
    if before.get("instead_of") == method == "xtrace":
        about |= {"method": "hutchinson", "instead_of": method}
    elif method == "xtrace" and not before and (lack := _lack_of_room(H, max_products)):
        log.warning("trace: %s: method='hutchinson' is taken in its place, which holds no basis", lack)
        about |= {"method": "hutchinson", "instead_of": method}

    def rounds(unit: Unit, state: State) -> Iterator[Round]:
        if about["method"] == "hutchinson":
            return _probe_rounds(unit, key, max_products, lambda forms: _mean(forms[:, 0]), "trace", state)
        return _sketch_rounds(unit, key, max_products, method, state)

    call = Call(rtol, max_products, progress, on_partial, save_every, resume)
    return _estimate(rounds, H, key, about, call)


@takes_progress("products")
@deferred_interrupts()
@explained
def frobenius_norm(
    H: Operator,
    key: jax.Array,
    *,
    rtol: float = 0.02,
    max_products: int = 1000,
    progress: AskedProgress = None,
    on_partial: Callable[[Estimate], None] | None = None,
    save_every: float | None = None,
    resume: Estimate | None = None,
) -> Estimate:
    """The Frobenius norm of an operator, with its standard error.

        |A|_F = sqrt(E |A z|^2), z random signs;   sem = sem of |A z|^2 / (2 |A|_F)

    Args:
      H: as for ``trace``.
      key: draws the vectors.
      rtol: as for ``trace``.
      max_products: as for ``trace``.
      progress: as for ``trace``.
      on_partial: as for ``trace``.
      save_every: as for ``trace``.
      resume: as for ``trace``.

    Returns:
      As for ``trace``.

    Raises:
      ValueError: as for ``trace``.

    References: Hutchinson 1990, for the trace of A'A; the standard error by the delta method.
    """
    key = _check(H, key, rtol, max_products, 1)

    def summary(forms: np.ndarray) -> tuple[float, float]:
        mean, sem = _mean(forms[:, 1] ** 2)
        root = math.sqrt(mean)
        return root, sem / (2 * root) if root > 0 else sem

    def rounds(unit: Unit, state: State) -> Iterator[Round]:
        return _probe_rounds(unit, key, max_products, summary, "frobenius_norm", state)

    call = Call(rtol, max_products, progress, on_partial, save_every, resume)
    return _estimate(rounds, H, key, {"kind": "frobenius_norm"}, call)


@takes_progress("products")
@deferred_interrupts()
@explained
def diagonal(
    H: Operator,
    key: jax.Array,
    *,
    rtol: float = 0.1,
    max_products: int = 1000,
    progress: AskedProgress = None,
    on_partial: Callable[[Estimate], None] | None = None,
    save_every: float | None = None,
    resume: Estimate | None = None,
) -> Estimate:
    """The diagonal of an operator, with the standard error of every entry.

        diag A = E z * (A z), z random signs;   variance of entry i: sum over j != i of A_ij^2

    Memory is constant: running means, 4 vectors and the work of a product where vectors are large. Draws are added
    until there are at least 16 and |sem| <= rtol |mean| (2-norms over all entries). That takes about
    (off / (rtol on))^2 products, with the norms of the entries beside the diagonal and on it; where these are more than
    twice ``max_products``, the logger ``lla_jax`` says so after 16 draws.

    Args:
      H: as for ``trace``.
      key: draws the vectors.
      rtol: standard error asked for, in norm, relative to that of the mean; 0 uses all products.
      max_products: as for ``trace``.
      progress: as for ``trace``.
      on_partial: as for ``trace``.
      save_every: as for ``trace``.
      resume: as for ``trace``.

    Returns:
      ``Estimate`` whose mean and sem are trees like a vector (``H.structure``: None in leaves that are not selected),
      of numpy arrays; entries that are masked are 0. Its recipe is as for ``trace``, with ``norm`` and ``norm_sem``.

    Raises:
      ValueError: as for ``trace``.

    References: Bekas et al. 2007.
    """
    key = _check(H, key, rtol, max_products, 1)

    def rounds(unit: Unit, state: State) -> Iterator[Round]:
        return diagonals.rounds(unit, key, max_products, state)

    call = Call(rtol, max_products, progress, on_partial, save_every, resume)
    return _estimate(rounds, H, key, {"kind": "diagonal"}, call)


# --- draws until the standard error is small enough


class Call(NamedTuple):
    """The arguments that all estimates share."""

    rtol: float
    max_products: int
    progress: Progress | None
    on_partial: Callable[[Estimate], None] | None
    save_every: float | None
    resume: Estimate | None


def _check(H: Operator, key: jax.Array, rtol: float, max_products: int, least: int) -> jax.Array:
    """Check the arguments; returns the key."""
    key = check_spectral(H, key)
    arguments.check_number("rtol", rtol, least=0.0, remedy="relative to the mean, such as 0.02")
    arguments.check_integer("max_products", max_products, least, remedy="such as 1000")
    return key


def _mean(draws: np.ndarray) -> tuple[float, float]:
    """Mean of independent draws and its standard error; NaN for one draw."""
    return float(draws.mean()), float(standard_error(draws))


def _estimate(
    rounds: Callable[[Unit, State], Iterator[Round]], H: Operator, key: jax.Array, about: dict[str, Any], call: Call
) -> Estimate:
    """Take rounds until the standard error is small enough; warn if it never is."""
    _progress.check_on_partial(call.on_partial)
    room.check_fits(H, about["kind"], room.Memory(2, 2 * H.space.nbytes))  # before products are taken
    unit = settle(H, key) if call.resume is None else None
    recipe = about | {
        "rtol": call.rtol,
        "max_products": int(call.max_products),
        "key": recipes.fingerprint(key),
        "operator": describe(H),
    }
    state: State = None
    if call.resume is not None:
        recipes.check_resume(call.resume, recipe, Estimate)
        if call.resume.state is None:
            return call.resume
        state = call.resume.state
    now = adapt(
        unit or units.of_state(H, state or {}), key, lambda unit: _take(rounds(unit, state), unit, recipe, call)
    )
    converged = stopping.is_precise(now, call.rtol, _rounding(recipe, H))
    if now.trouble or not converged:
        warn_caller(stopping.shortfall(recipe, now, call.rtol))
    return _result(now, recipe, complete=True, converged=converged, stopped=now.trouble)


def _take(rounds: Iterator[Round], unit: Unit, recipe: dict[str, Any], call: Call) -> Round:
    """The last of the rounds that are taken, times the unit."""
    now: Round | None = None
    rtol, rounding = call.rtol, _rounding(recipe, unit.H)
    early = not _is_sketch(recipe) and rtol > 0 and call.max_products > 2 * LEAST_DRAWS

    def hand_over(stopped: str) -> None:
        if call.on_partial is not None and now is not None:
            state = now.state() | {"unit": np.array(unit.size)}
            more = {"complete": False, "converged": False, "stopped": stopped} | recipes.seal(state)
            call.on_partial(replace(_result(now.times(unit.size), recipe, **more), state=state))

    with handing_over(call.progress, call.save_every, call.on_partial, hand_over) as report:
        for now in rounds:
            interrupts.check_interrupt()
            _expect(now, recipe, call)
            if report is not None:
                report(now.products, None)
            if now.trouble or (now.whole and stopping.is_precise(now, rtol, rounding)):
                break
            if early and now.num >= LEAST_DRAWS:
                stopping.say_early(recipe, now, rtol, call.max_products)
                early = False
    assert now is not None
    return now.times(unit.size)


def _is_sketch(recipe: dict[str, Any]) -> bool:
    return stopping.method_of(recipe) != "hutchinson"


def _rounding(recipe: dict[str, Any], H: Operator) -> float:
    """The relative error up to which fewer draws are believed; negative for none.

    They are where having no spread cannot be luck, as it can with signs on a sparse matrix.
    """
    return 100 * float(jnp.finfo(H.dtype).eps) if _is_sketch(recipe) else -1.0


def _expect(now: Round, recipe: dict[str, Any], call: Call) -> None:
    """Tell the bar about how many products there will be."""
    if call.progress is None:
        return
    error = float(now.sem / (call.rtol * abs(now.mean))) if call.rtol and now.mean else math.inf
    power = forecasts.SKETCHED if _is_sketch(recipe) else forecasts.INDEPENDENT
    expect_total(call.progress, forecasts.products_of_draws(now.products, error, power, call.max_products))


def _result(now: Round, recipe: dict[str, Any], **more: Any) -> Estimate:
    found = recipe | {"products": now.products, "memory": now.memory.recipe()} | more
    if now.value is None:
        return Estimate(now.mean, now.sem, now.num, found)
    return Estimate(*now.value(), now.num, found | {"norm": now.mean, "norm_sem": now.sem})


# --- probes


@jax.jit
def _forms(z: PyTree, product: PyTree) -> jax.Array:
    """(z'A z, |A z|) of every probe, (k, 2)."""

    def forms(x: PyTree, y: PyTree) -> jax.Array:
        return jnp.stack([_tree.dot(x, y), _tree.norm(y)])

    if jax.tree.leaves(z)[0].shape[0] == 1:  # a sum over a row of one long leaf takes four such rows on a CPU
        return forms(*(jax.tree.map(lambda x: x[0], tree) for tree in (z, product)))[None]
    return jax.vmap(forms)(z, product)


def _probe_rounds(
    unit: Unit,
    key: jax.Array,
    max_products: int,
    summary: Callable[[np.ndarray], tuple[float, float]],
    name: str,
    state: State,
) -> Iterator[Round]:
    """Rounds of independent probes; ``summary`` makes (mean, sem) of their ``_forms`` (num, 2)."""
    at_once, memory = reserve_probes(unit, name)
    used, forms, trouble = unit.products, np.zeros((0, 2)), None

    def now() -> Round:
        whole = len(forms) % AT_ONCE == 0 or len(forms) == max_products
        counts = np.array([used, at_once])
        here = {"forms": forms, "counts": counts}
        mean, sem = summary(forms)
        return Round(mean, sem, len(forms), used, trouble=trouble, memory=memory, state=lambda: here, whole=whole)

    if state is not None:
        with recipes.reading_state():
            forms, (used, at_once) = np.array(state["forms"], np.float64), map(int, state["counts"])
        yield now()
    for piece in map_probes(_forms, unit.H, key, len(forms), max_products, at_once):
        new = np.asarray(piece, np.float64)
        bad = np.flatnonzero(~np.isfinite(new).all(1))
        trouble = f"product {used + int(bad[0]) + 1} is not finite" if len(bad) else None
        used += len(new)
        forms = np.concatenate([forms, new[: bad[0]] if len(bad) else new])
        unit.check(float(forms[:, 1].max()) if len(forms) else math.nan, used)
        if not len(forms):
            raise no_finite_product(trouble)
        yield now()
        if trouble:
            return


# --- sketches


def _widest_basis(H: Operator) -> int:
    """The number of vectors that the basis of a sketch may have."""
    nbytes, free = H.memory()
    return max(1, int(MEMORY_FRACTION * free) // nbytes)


def _lack_of_room(H: Operator, max_products: int) -> str:
    """Why the basis of XTrace cannot have the draws that its error takes, in words, or ""."""
    rows, (nbytes, free) = min(LEAST_DRAWS, H.shape[0], max_products // PRODUCTS_EACH["xtrace"]), H.memory()
    if rows <= (widest := _widest_basis(H)):
        return ""
    basis = f"the basis of XTrace has {rows} vectors of {nbytes / 2**20:.0f} MiB at least"
    return f"{basis}, and a quarter of the free memory ({free / 2**20:.0f} MiB) holds {widest}"


def _sketch_rounds(unit: Unit, key: jax.Array, max_products: int, method: str, state: State) -> Iterator[Round]:
    """Rounds in which the basis and the test vectors of Hutch++ or XTrace grow together."""
    H, each = unit.H, PRODUCTS_EACH[method]
    n, widest, at_once, extra = H.shape[0], _widest_basis(H), room.rows_at_once(H, AT_ONCE), unit.products
    keys, times = jax.random.split(key, 3), ProductCounter(H, unit.products, each=room.goes_one_by_one(H))
    grow = sketches.grow_for_xtrace if method == "xtrace" else sketches.grow_for_hutch
    sketch, now = sketches.empty(), None
    if state is not None:
        with recipes.reading_state():
            times.used, at_once, widest, extra = map(int, state["counts"])
            sketch = sketches.of_state(H, state)

    def memory(rows: int) -> room.Memory:
        return room.sketch_needed(H, rows, at_once, unit=unit.size)

    most = min(max_products // each, n, widest)
    first = min(most, LEAST_DRAWS)
    more = f"; at most {most}, {memory(most).bytes / 2**20:.1f} MiB" if most > first else ""
    room.say(method, H, memory(first), f"a basis that grows by {at_once} vectors, to {first} to begin with{more}")
    room.check_fits(H, method, memory(min(most, at_once)))

    def look() -> Round:
        rows, draws = len(sketch.core), len(sketch.forms)
        if rows == n:  # the basis spans the space
            found = float(np.trace(sketch.core)), 0.0
        else:
            found = sketches.xtrace(sketch, n) if method == "xtrace" else _mean(sketches.hutch_plus_plus(sketch))
        ends = rows == n or rows == widest == draws or max_products + extra - times.used < each
        whole, counts = ends or draws % AT_ONCE == 0, np.array([times.used, at_once, widest, extra])

        def here(sketch: sketches.Sketch = sketch) -> dict[str, np.ndarray]:
            return sketches.as_state(sketch) | {"counts": counts}

        return Round(*found, draws, times.used, exact=rows == n, memory=memory(rows), state=here, whole=whole)

    if state is not None:
        now = look()
        yield now
    while len(sketch.core) < n:
        left, wide = max_products + extra - times.used, len(sketch.core)
        block = min(AT_ONCE - len(sketch.forms) % AT_ONCE, at_once)
        size = min(block, n - wide, left // each, widest - wide)
        try:
            if size:
                sketch = grow(sketch, times, keys, size)
            elif left < each:
                return
            elif method == "hutch++":  # no room: the rest goes into test vectors
                sketch = sketches.draw_tests(sketch, times, keys[1], min(block, left))
            elif now is not None:
                reason = "a larger basis takes more than a quarter of the free memory; method='hutchinson' needs none"
                yield now._replace(trouble=reason)
                return
        except NotFinite as error:
            if now is None:
                unit.check(math.nan, times.used)
                raise no_finite_product(error) from None
            yield now._replace(products=times.used, trouble=str(error))
            return
        unit.check(float(np.abs(sketch.product).max()), times.used)
        now = look()
        yield now
