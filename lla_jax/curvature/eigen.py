"""Finds eigenpairs of symmetric operators to a tolerance, and the ends of a spectrum roughly.

``eigenpairs`` finds some pairs at an end of the spectrum, all copies of a repeated eigenvalue among them; ``extremes``
gives the smallest and the largest eigenvalue by a short Lanczos sequence.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from lla_jax.core import arguments, precision, recipes
from lla_jax.core.arguments import misuse, warn_caller
from lla_jax.core.interrupts import deferred_interrupts, wait
from lla_jax.core.results import Eigenpairs
from lla_jax.core.signatures import explained
from lla_jax.core.types import Directions, PyTree, Recipe
from lla_jax.curvature import eigensearch, forecasts, residuals, room, units, warm_starts
from lla_jax.curvature import lanczos as _lanczos
from lla_jax.curvature.eigensearch import Goal, Ritz, Search
from lla_jax.curvature.handing_over import handing_over
from lla_jax.curvature.linear_operator import Operator, check_spectral, no_finite_product
from lla_jax.curvature.probe import describe
from lla_jax.curvature.steps import error_of_differences
from lla_jax.curvature.symmetry import settle
from lla_jax.curvature.units import Unit, adapt
from lla_jax.directions import centres
from lla_jax.execution import progress as _progress
from lla_jax.execution.progress import AskedProgress, takes_progress

log = logging.getLogger("lla_jax")

MEMORY_FRACTION = 0.25  # of the free memory, which the basis takes by default
SPARE = 4  # vectors beyond k that a restart needs
LEAST_WORK = 3  # vectors that a step needs beside the basis at least
ROWS = {True: 32, False: 64}  # rows of the first buffer, whether or not steps are taken one by one
ROUNDING = 8.0  # times eps max|lambda|: the part of a residual that rounding may hide
AGREED = 0.01  # of the tolerance: errors of residuals, as a product for all pairs shows them, that are left as they are
BEFORE: Recipe = {"copies": True, "start": None}  # entries of recipes that those of before do not have


@takes_progress("products")
@explained
def eigenpairs(
    H: Operator,
    key: jax.Array,
    k: int = 1,
    *,
    which: Literal["magnitude", "largest", "smallest"] = "magnitude",
    tol: float = 1e-3,
    max_products: int | None = None,
    max_vectors: int | None = None,
    progress: AskedProgress = None,
    on_partial: Callable[[Eigenpairs], None] | None = None,
    save_every: float | None = None,
    resume: Eigenpairs | None = None,
    copies: bool = True,
    start: Eigenpairs | Directions | None = None,
) -> Eigenpairs:
    """Eigenvalues and eigenvectors at an end of the spectrum, each with its residual; repeated ones repeatedly.

        H v_i = lambda_i v_i + r_i,   |v_i| = 1,   |r_i| <= tol max |lambda|

    Lanczos with full re-orthogonalisation, done twice, and Rayleigh-Ritz in float64. It ends when the wanted pairs have
    converged and a further sequence, begun at random in the complement, has shown that no copy and no larger value was
    missed (wrongly with probability 1e-3), or, failing that, has taken as many steps as those before.

    Args:
      H: a symmetric operator: ``hessian``, ``ggn``, ``fisher`` or ``operators.given``, whose symmetry is checked.
      key: draws the start vectors.
      k: number of pairs.
      which: "magnitude" (largest |lambda| first), "largest" (descending) or "smallest" (ascending, so the most negative
        first).
      tol: residual asked for, relative to the largest |lambda| found. An eigenvalue's error is about its residual
        squared over the distance to the next one.
      max_products: products of H with a vector at most, those for the residuals (1, or k more) included; default
        200 + 20 k.
      max_vectors: vectors held at most, besides k at the end and one for every further sequence; beyond, the search is
        restarted from the best Ritz vectors and takes more products. By default as many as a quarter of the free memory
        holds.
      progress: True for a bar, which also estimates the total, or a function called as ``progress(products, None)``.
      on_partial: called with the pairs found so far, and the state to continue from, if the search is interrupted
        (Ctrl-C, or any exception), before the exception is raised again. The residuals are the search's own estimates.
        A first Ctrl-C leaves out the steps in progress; a second one that comes while a step is stored leaves nothing
        to hand over.
      save_every: seconds after which ``on_partial`` is called on the way as well, again and again, so that a killed
        process can be continued too. Its recipe then says "running" as "stopped".
      resume: a result that ``on_partial`` was called with. The search continues from it, and gives the same to the bit
        as one that was not interrupted.
      copies: False for no further sequence: the search ends when k pairs have converged. It saves about a fifth of the
        products, finds a repeated eigenvalue once, and does not show that no larger one was missed.
      start: earlier pairs, or directions, to begin with, such as those of the same network some training steps before:
        fewer products where they lie near the vectors sought. They may be of any number. What is found is held to the
        same residuals; without ``copies``, an eigenvector that is new, which all of them are orthogonal to, is easily
        missed.

    Returns:
      ``Eigenpairs``: values in the order asked for (Rayleigh quotients), vectors as ``Directions`` of unit norm whose
      entry of largest magnitude is positive, residuals |H v - lambda v|, plus 8 eps max |lambda|, which rounding may
      hide; products used. The residuals are those that the products of the search give, plus how far a further product,
      with the sum of all vectors with random signs, is from what they say; where this shows errors above rounding and
      above a hundredth of ``tol``, each vector gets a product of its own. ``recipe``: "converged" (all residuals within
      tol), "verified" (nothing was missed; False: not ruled out), "stopped" (why it ended early, or None), "residuals"
      ("together", or "each" where every vector was multiplied), "sequences", "restarts". Not converged: a warning, and
      all pairs with the residuals they have.

    Raises:
      ValueError: an argument out of its range, an operator that is not symmetric, a first product that is not finite,
        ``resume`` of another operator, another function or other arguments, ``start`` of another structure or shape.

    References: Lanczos 1950; Wu and Simon 2000 (thick restart). Where we differ from LLA (power iteration with
    deflation, arXiv 2412.10146): (1) it ends on the residual, not on two values that happen to be close; (2) negative
    and repeated values are found like any other; (3) a fraction of the products.
    """
    key, n = check_spectral(H, key), H.shape[0]
    k = arguments.clamp_count("k", k, n)
    arguments.check_choice("which", which, ("magnitude", "largest", "smallest"))
    if arguments.check_number("tol", tol, remedy="and below 1, such as 1e-3") >= 1:
        raise misuse("tol", tol, "a finite number above 0, and below 1, such as 1e-3")
    limit = _check_at_least("max_products", max_products, 2 * k + 2, 200 + 20 * k)
    copies = arguments.check_flag("copies", copies)
    earlier = warm_starts.read(start, H)
    nbytes, free = H.memory()
    affordable = max(k + SPARE, int(MEMORY_FRACTION * free) // nbytes)
    most = min(_check_at_least("max_vectors", max_vectors, min(n, k + SPARE), affordable), n)
    rows = 0 if resume is not None else _first_rows(H, k, most)  # before the probe takes a product
    recipe = {
        "kind": "eigenpairs",
        "operator": describe(H),
        "n": n,
        "dtype": str(H.dtype),
        "k": k,
        "which": which,
        "tol": float(tol),
        "max_vectors": max_vectors,
        "key": recipes.fingerprint(key),
        "copies": copies,
        "start": warm_starts.describe(earlier),
    }
    _progress.check_on_partial(on_partial)
    if resume is not None:
        _check_resume(resume, recipe)
        if resume.state is None:
            return resume
    state = None if resume is None else resume.state
    goal = Goal(k, which, tol, copies, earlier)

    def compute(unit: Unit) -> Eigenpairs:
        H = unit.H
        s = eigensearch.begin(H, key, rows, most, unit.products, earlier) if state is None else _restore(state, H)
        _say_memory(s, H, k)

        def hand_over(stopped: str) -> None:
            if on_partial is not None and s.known and s.basis is not None:
                on_partial(_partial(s, unit, goal, recipe, stopped))

        def expect() -> None:
            _progress.expect_total(progress, forecasts.products_of_pairs(s.errors, k, limit - 1, copies) + 1)

        def after_step(products: int) -> None:
            check()
            unit.check(s.scale, products)
            expect()
            if report is not None:
                report(products, None)

        expect()
        with handing_over(progress, save_every, on_partial, hand_over) as report:
            ended = eigensearch.search(s, H, key, goal, limit - 1, after_step)
            if not s.known:
                unit.check(np.nan, s.products)
                raise no_finite_product(f"product {s.products} is not finite")
            return _finish(s, unit, goal, ended, recipe, _Checks(key, limit, after_step))

    with deferred_interrupts() as check:
        result = adapt(settle(H, key) if state is None else units.of_state(H, state), key, compute)
    _warn(result)
    return result


def _check_resume(resume: Any, recipe: Recipe) -> None:
    if isinstance(resume, Eigenpairs):
        resume = replace(resume, recipe=BEFORE | resume.recipe)
    recipes.check_resume(resume, recipe, Eigenpairs)


def _check_at_least(name: str, value: Any, least: int, default: int) -> int:
    return default if value is None else arguments.check_integer(name, value, least, remedy="for this k, or None")


def _say_memory(s: Search, H: Operator, k: int) -> None:
    """Log the memory that the search needs, and refuse it where a step does not fit beside the basis."""
    nbytes, free = H.memory()
    mib = 2**20
    s.work = s.work or _lanczos.step_bytes(H, s.rows)  # of the first basis, so that a resumed search says the same
    s.bytes_needed = max(s.bytes_needed, room.bases_bytes(H, s.rows, s.work, kept=k))
    if s.work > free:
        most = s.rows - -(-(s.work - free) // nbytes)
        raise _no_room("max_vectors", s.rows, nbytes * s.rows + s.work, free + nbytes * s.rows, most)
    most = room.bases_bytes(H, s.most, s.work, grown_from=s.rows if s.rows < s.most else 0, kept=k)
    begin = (
        f"{s.rows} vectors of {nbytes / mib:.1f} MiB to begin with, {s.bytes_needed / mib:.1f} MiB with the work space"
    )
    log.info("eigenpairs: %s; at most %d, %.1f MiB (%.0f MiB free)", begin, s.most, most / mib, free / mib)


def _first_rows(H: Operator, k: int, most: int) -> int:
    """Rows of the first buffer: as many as fit beside a step, and not fewer than a restart needs."""
    nbytes, free = H.memory()
    least, rows = min(k + SPARE, most), min(max(ROWS[room.goes_one_by_one(H)], 2 * k), most)
    fit = free // nbytes - LEAST_WORK
    if fit < least:
        raise _no_room("k", k, nbytes * (least + LEAST_WORK), free, int(fit) - SPARE)
    return min(rows, int(fit))


def _no_room(name: str, value: int, needed: int, free: int, most: int) -> arguments.Misuse:
    text = f"{value} given, which takes {needed / 2**30:.1f} GiB of memory, and {free / 2**30:.1f} GiB are free"
    return arguments.Misuse(name, f"{text}; it must be at most {max(0, most)}: take fewer, or select fewer parameters")


# --- from the basis to pairs


def _pairs(
    vectors: PyTree,
    values: np.ndarray,
    residuals: np.ndarray,
    products: int,
    recipe: Recipe,
    unit: Unit,
    state: Any,
) -> Eigenpairs:
    H, values, residuals = unit.H, values * unit.size, residuals * unit.size
    about = Recipe(
        kind="eigenvectors",
        values=values.tolist(),
        residuals=residuals.tolist(),
        names=[f"eigenvector {i + 1} (lambda = {value:.3g})" for i, value in enumerate(values)],
        operator=H.recipe.get("kind", "given"),
        **centres.of_operator(H.recipe),
    )
    recipe["products"] = products
    directions = Directions(H.embed(H.place(vectors)), about)
    return Eigenpairs(values, directions, residuals, products, recipe, state)


class _Checks(NamedTuple):
    """How the pairs are checked: the key of the signs, the most products in all, and who is told of each."""

    key: jax.Array
    limit: int
    after_step: Callable[[int], None]


def _finish(s: Search, unit: Unit, goal: Goal, ended: str, recipe: Recipe, checks: _Checks) -> Eigenpairs:
    """The pairs, with residuals that one more product has confirmed, or else with one more product for each."""
    H, tol = unit.H, goal.tol
    ritz = eigensearch.ritz_pairs(s, goal.which)
    num = min(goal.k, len(ritz.values))
    values = ritz.values[:num].astype(H.dtype).astype(np.float64)  # the digits that the products have
    errors, scale = ritz.errors[:num], np.abs(ritz.values).max()
    apart = residuals.disagreement(s, ritz, num, H, checks.key)
    products = s.products + 1
    checks.after_step(products)
    rounding = _lanczos.rounding(H, ROUNDING, scale)
    each = apart / math.sqrt(num)  # of a pair, where the errors of all are as large
    together = bool(each <= max(rounding, AGREED * tol * scale))
    if together:
        vectors = residuals.ritz_vectors(s, ritz, num, H, lambda i, vector: None)
    else:
        vectors, values, errors, products = _check_each(s, ritz, num, H, products, checks)
        scale, each, apart = max(np.abs(values).max(), scale), 0.0, 0.0
        rounding = _lanczos.rounding(H, ROUNDING, scale)
    within = errors + each <= 1.01 * tol * scale + min(rounding, tol * scale)
    in_full = ended in ("verified", "unverified")
    recipe |= {
        "converged": bool(in_full and num == goal.k and within.all()),
        "verified": ended == "verified",
        "stopped": None if in_full else ended,
        "scale": float(scale * unit.size),
        "rounding": float(rounding * unit.size),
        "residuals": "together" if together else "each",
        "sequences": s.draws,
        "restarts": s.restarts,
        "complete": True,
        "memory": {"vectors": s.rows, "bytes": s.bytes_needed},
    }
    indices = eigensearch.order(values, goal.which)
    if (indices != np.arange(num)).any():
        vectors = jax.tree.map(lambda q: q[indices], vectors)
    errors = errors[indices] + (apart + rounding)
    return _pairs(vectors, values[indices], errors, products, recipe, unit, None)


def _check_each(
    s: Search, ritz: Ritz, num: int, H: Operator, products: int, checks: _Checks
) -> tuple[PyTree, np.ndarray, np.ndarray, int]:
    """(vectors, Rayleigh quotients, residuals, products so far) from a product for each pair, as far as they go.

    The residual of a pair without a product, or with one that is not finite, is infinite.
    """
    values, errors = ritz.values[:num].copy(), np.full(num, np.inf)

    def multiply(i: int, vector: PyTree) -> None:
        nonlocal products
        if products < checks.limit:
            value, error = np.asarray(residuals.rayleigh_quotient(vector, wait(H.product(vector))), np.float64)
            products += 1
            if np.isfinite(error):
                values[i], errors[i] = value, error
            checks.after_step(products)

    return residuals.ritz_vectors(s, ritz, num, H, multiply), values, errors, products


def _warn(result: Eigenpairs) -> None:
    recipe = result.recipe
    if recipe["converged"]:
        return
    found = f"eigenpairs: {result.num} of {recipe['k']} pairs, the largest residual {result.residuals.max():.2g}"
    asked = f"tol={recipe['tol']:g} asks for {recipe['tol'] * recipe['scale']:.2g}"
    if recipe["stopped"] == "max_products":
        text = f"{found} after {result.products} products, and {asked}; raise max_products, or tol"
    elif recipe["stopped"]:
        text = f"{found}: it ends there, because {recipe['stopped']}"
    elif np.isinf(result.residuals).any():
        text = f"{found}: the operator is not what it was during the search, and products for the residuals are not "
        text += "finite, or max_products leaves none; look for what changes from call to call, or raise max_products"
    else:
        computed = precision.types_at_work(recipe["operator"], [recipe["dtype"]])
        text = f"{found}, and {asked}, which is below the rounding of the products in {', '.join(computed)}; raise tol"
    warn_caller(text)


# --- saving and resuming

_ARRAYS = ("alphas", "betas", "wanted", "direction")
_COUNTS = (
    "known",
    "filled",
    "outside",
    "longest",
    "products",
    "draws",
    "restarts",
    "checked",
    "rows",
    "most",
    "bytes_needed",
    "work",
)


def _partial(s: Search, unit: Unit, goal: Goal, recipe: Recipe, stopped: str) -> Eigenpairs:
    """The pairs so far, with the state to continue from."""
    H = unit.H
    ritz = eigensearch.ritz_pairs(s, goal.which)
    num = min(goal.k, len(ritz.values))
    state = {f"basis/{i}": _lanczos.to_host(x, s.filled) for i, x in enumerate(jax.tree.leaves(s.basis))}
    state |= {name: getattr(s, name) for name in _ARRAYS}
    state |= {"T": s.T[: s.filled, : s.filled], "scale": np.array(s.scale), "unit": np.array(unit.size)}
    state["counts"] = np.array([getattr(s, name) for name in _COUNTS], np.int64)
    recipe = recipe | {"complete": False, "converged": False, "verified": False, "stopped": stopped}
    recipe |= recipes.seal(state)
    vectors = residuals.ritz_vectors(s, ritz, num, H, lambda i, vector: None)
    return _pairs(vectors, ritz.values[:num], ritz.errors[:num], s.products, recipe, unit, state)


@recipes.reading_state()
def _restore(state: Mapping[str, Any], H: Operator) -> Search:
    numbers: dict[str, Any] = dict(zip(_COUNTS, map(int, state["counts"])))
    filled, rows = numbers["filled"], numbers.pop("rows")
    basis = _lanczos.from_host(H, (np.asarray(state[f"basis/{i}"]) for i in range(len(H.space.shapes))), rows)
    arrays: dict[str, Any] = {name: np.array(state[name]) for name in _ARRAYS}
    return Search(basis, np.pad(state["T"], (0, rows - filled)), scale=float(state["scale"]), **numbers, **arrays)


@explained
class Extremes(NamedTuple):
    """The ends of a spectrum as Ritz values, which lie inside the spectrum.

    Args:
      smallest: the smallest Ritz value; NaN where the products are not finite.
      largest: the largest Ritz value.
      residual: the larger |A x - theta x| of the two, with the error of finite differences if A has one: an exact
        eigenvalue lies within it of either.
      products: products used.
    """

    smallest: float
    largest: float
    residual: float
    products: int


@explained
def extremes(H: Operator, key: jax.Array, steps: int = 30, *, tol: float = 1e-3) -> Extremes:
    """The smallest and the largest eigenvalue, roughly: the ends of a short Lanczos sequence.

    It ends once both residuals are at most ``tol`` times the larger magnitude of the two eigenvalues, which is
    looked at after every call: every product from the host, up to 8 on the device. After ``steps`` products it ends
    without a warning: see ``residual``. Memory: ``steps`` + 1 vectors. Other parameters or masks compile nothing
    anew. The symmetry of a given operator is not checked. For eigenvectors, or for certainty, see ``eigenpairs``.

    Args:
      H: the operator.
      key: draws the start vector (signs).
      steps: products at most; never more than there are parameters.
      tol: relative residual at which it ends.

    Returns:
      ``Extremes``, of the steps before a product that is not finite; all NaN where the first is not.
    """
    key = check_spectral(H, key)
    arguments.check_number("tol", tol, least=0.0, remedy="such as 1e-3")
    steps = min(arguments.check_integer("steps", steps, remedy="such as 30"), H.space.size)
    room.check_room(H, "steps", steps)

    def compute(unit: Unit) -> Extremes:
        ends = Extremes(np.nan, np.nan, np.nan, 0)

        def update(alphas: np.ndarray, betas: np.ndarray) -> bool:
            nonlocal ends
            if not len(alphas):
                return True
            theta, y = np.linalg.eigh(_lanczos.tridiagonal(alphas, betas))
            residual = float(betas[-1] * np.abs(y[-1, [0, -1]]).max())
            off = residual + error_of_differences(unit.H)
            ends = Extremes(float(theta[0]) * unit.size, float(theta[-1]) * unit.size, off * unit.size, 0)
            return residual <= tol * np.abs(theta[[0, -1]]).max()

        basis = _lanczos.begin(_lanczos.random(H, key, 0, "rademacher"), rows=steps + 1, shards=H.space.shards)
        most = min(steps, H.shape[0])
        _, alphas, betas, products = _lanczos.sequence(unit.H, basis, most, stop=update, look=unit.check)
        update(alphas, betas)
        return ends._replace(products=products + unit.products)

    return adapt(Unit(H), key, compute)


def steps_that_fit(H: Operator, name: str, steps: int) -> tuple[int, room.Memory]:
    """(the steps of ``extremes`` that there is room for, with a warning in the log where they are fewer; their memory).

    Args:
      H: the operator, whose mask will be a vector of its own.
      name: of the computation.
      steps: Lanczos steps asked for.
    """
    mask = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), room.stacked_like(H))
    masked = replace(H, space=replace(H.space, scale=mask))  # type: ignore[type-var]
    nbytes, free = H.memory()
    steps = min(steps, H.shape[0])
    work = nbytes + _lanczos.step_bytes(masked, steps + 1)
    most = max(2, (free - work) // nbytes - 1)
    if most < steps:
        log.warning("%s: %d steps in place of %d: the free memory holds no more vectors", name, most, steps)
        steps = most
    return steps, room.Memory(steps + 1, room.bases_bytes(masked, steps + 1, work))
