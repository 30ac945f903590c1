"""Estimates trace, diagonal and Frobenius norm of an operator from random vectors, to a standard error.

The vectors are numbered, and each is drawn from the key and its number: neither the blocks in which they are taken nor
the kind of loop changes the result beyond rounding.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from functools import partial
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
from lla_jax.core.standard_errors import standard_error, widening
from lla_jax.core.types import PyTree
from lla_jax.curvature import forecasts, room, sketches, stopping
from lla_jax.curvature.flat_rows import NotFinite, ProductCounter
from lla_jax.curvature.linear_operator import Operator, check_spectral, no_finite_product, settle
from lla_jax.curvature.probe import describe
from lla_jax.curvature.random_probes import map_probes, reserve_probes
from lla_jax.curvature.sketches import AT_ONCE
from lla_jax.curvature.stopping import LEAST_DRAWS, PRODUCTS_EACH, Round
from lla_jax.curvature.units import Unit, adapt
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

    Returns:
      ``Estimate`` of floats; ``num`` is the number of draws. The recipe has ``products`` (all of them), ``converged``
      and ``stopped`` (why the draws ended early, or None), ``memory`` ({"vectors", "bytes"}: those held, and all that
      it takes, as the logger ``lla_jax`` says before it starts), ``method``, and ``instead_of`` where another one was
      asked for. Not converged: a warning.

    Raises:
      ValueError: another method; ``rtol`` or ``max_products`` out of range; an operator that is not symmetric; one of
        the first products not finite (later ones end the estimate, with a warning); vectors that the memory cannot
        hold, one at a time.

    References: Hutchinson 1990; Meyer et al. 2020, arXiv 2010.09649 (Hutch++; here the three thirds grow together, and
    the test vectors' products serve every later basis); Epperly et al. 2023, arXiv 2301.07825 (XTrace). Where we differ
    from LLA: (1) it stops on the standard error, not on two means that happen to be close; (2) the error is reported.
    """
    arguments.check_choice("method", method, PRODUCTS_EACH)
    key, unit, about = _check(H, key, rtol, max_products, PRODUCTS_EACH[method])
    recipe = {"kind": "trace", "method": method} | about
    if method == "xtrace" and (lack := _lack_of_room(unit.H, max_products)):
        log.warning("trace: %s: method='hutchinson' is taken in its place, which holds no basis", lack)
        recipe |= {"method": "hutchinson", "instead_of": method}

    def rounds(unit: Unit) -> Iterator[Round]:
        if recipe["method"] == "hutchinson":
            return _probe_rounds(unit, key, max_products, lambda forms: _mean(forms[:, 0]), "trace")
        return _sketch_rounds(unit, key, max_products, method)

    return _estimate(rounds, unit, key, recipe, rtol, max_products, progress)


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
) -> Estimate:
    """The Frobenius norm of an operator, with its standard error.

        |A|_F = sqrt(E |A z|^2), z random signs;   sem = sem of |A z|^2 / (2 |A|_F)

    Args:
      H: as for ``trace``.
      key: draws the vectors.
      rtol: as for ``trace``.
      max_products: as for ``trace``.
      progress: as for ``trace``.

    Returns:
      As for ``trace``.

    Raises:
      ValueError: as for ``trace``.

    References: Hutchinson 1990, for the trace of A'A; the standard error by the delta method.
    """
    key, unit, about = _check(H, key, rtol, max_products, 1)

    def summary(forms: np.ndarray) -> tuple[float, float]:
        mean, sem = _mean(forms[:, 1] ** 2)
        root = math.sqrt(mean)
        return root, sem / (2 * root) if root > 0 else sem

    def rounds(unit: Unit) -> Iterator[Round]:
        return _probe_rounds(unit, key, max_products, summary, "frobenius_norm")

    return _estimate(rounds, unit, key, {"kind": "frobenius_norm"} | about, rtol, max_products, progress)


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

    Returns:
      ``Estimate`` whose mean and sem are trees like a vector (``H.structure``: None in leaves that are not selected),
      of numpy arrays; entries that are masked are 0. Its recipe is as for ``trace``, with ``norm`` and ``norm_sem``.

    Raises:
      ValueError: as for ``trace``.

    References: Bekas et al. 2007.
    """
    key, unit, about = _check(H, key, rtol, max_products, 1)

    def rounds(unit: Unit) -> Iterator[Round]:
        return _diagonal_rounds(unit, key, max_products)

    return _estimate(rounds, unit, key, {"kind": "diagonal"} | about, rtol, max_products, progress)


# --- draws until the standard error is small enough


def _check(
    H: Operator, key: jax.Array, rtol: float, max_products: int, least: int
) -> tuple[jax.Array, Unit, dict[str, Any]]:
    """Check the arguments and a given operator's symmetry.

    Returns:
      The key, the operator with its unit, and the entry "operator" of the recipe.
    """
    key = check_spectral(H, key)
    arguments.check_number("rtol", rtol, least=0.0, remedy="relative to the mean, such as 0.02")
    arguments.check_integer("max_products", max_products, least, remedy="such as 1000")
    return key, settle(H, key), {"operator": describe(H)}


def _mean(draws: np.ndarray) -> tuple[float, float]:
    """Mean of independent draws and its standard error; NaN for one draw."""
    return float(draws.mean()), float(standard_error(draws))


def _estimate(
    rounds: Callable[[Unit], Iterator[Round]],
    unit: Unit,
    key: jax.Array,
    recipe: dict[str, Any],
    rtol: float,
    max_products: int,
    progress: Progress | None,
) -> Estimate:
    """Take rounds until the standard error is small enough; warn if it never is."""
    # fewer draws without any spread are believed where that cannot be luck, as it can with signs on a sparse matrix
    sketch = stopping.method_of(recipe) != "hutchinson"
    rounding = 100 * float(jnp.finfo(unit.H.dtype).eps) if sketch else -1.0

    def take(unit: Unit) -> Round:
        early = not sketch and rtol > 0 and max_products > 2 * LEAST_DRAWS
        for now in rounds(unit):
            interrupts.check_interrupt()
            if progress is not None:
                error = float(now.sem / (rtol * abs(now.mean))) if rtol and now.mean else math.inf
                power = forecasts.SKETCHED if sketch else forecasts.INDEPENDENT
                expect_total(progress, forecasts.products_of_draws(now.products, error, power, max_products))
                progress(now.products, None)
            if now.trouble or stopping.is_precise(now, rtol, rounding):
                break
            if early and now.num >= LEAST_DRAWS:
                stopping.say_early(recipe, now, rtol, max_products)
                early = False
        return now.times(unit.size)

    now = adapt(unit, key, take)
    converged = stopping.is_precise(now, rtol, rounding)
    recipe |= {
        "products": now.products,
        "memory": now.memory.recipe(),
        "converged": converged,
        "stopped": now.trouble,
        "rtol": rtol,
        "max_products": int(max_products),
        "key": recipes.fingerprint(key),
    }
    if now.value is not None:
        recipe |= {"norm": now.mean, "norm_sem": now.sem}
    if now.trouble or not converged:
        warn_caller(stopping.shortfall(recipe, now, rtol))
    mean, sem = now.value() if now.value else (now.mean, now.sem)
    return Estimate(mean, sem, now.num, recipe)


# --- probes


@jax.jit
def _forms(z: PyTree, product: PyTree) -> jax.Array:
    """(z'A z, |A z|) of every probe, (k, 2)."""
    return jax.vmap(lambda x, y: jnp.stack([_tree.dot(x, y), _tree.norm(y)]))(z, product)


def _probe_rounds(
    unit: Unit, key: jax.Array, max_products: int, summary: Callable[[np.ndarray], tuple[float, float]], name: str
) -> Iterator[Round]:
    """Rounds of independent probes; ``summary`` makes (mean, sem) of their ``_forms`` (num, 2)."""
    used, forms = unit.products, np.zeros((0, 2))
    at_once, memory = reserve_probes(unit, name)
    while len(forms) < max_products:
        lo, hi = len(forms), min(len(forms) + AT_ONCE, max_products)
        pieces: list[np.ndarray] = []
        for piece in map_probes(_forms, unit.H, key, lo, hi, at_once):
            pieces.append(np.asarray(piece, np.float64))
            if not np.isfinite(pieces[-1]).all():
                break
        new = np.concatenate(pieces)
        bad = np.flatnonzero(~np.isfinite(new).all(1))
        trouble = f"product {used + int(bad[0]) + 1} is not finite" if len(bad) else None
        used += len(new)
        forms = np.concatenate([forms, new[: bad[0]] if len(bad) else new])
        unit.check(float(forms[:, 1].max()) if len(forms) else math.nan, used)
        if not len(forms):
            raise no_finite_product(trouble)
        yield Round(*summary(forms), len(forms), used, trouble=trouble, memory=memory)
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


def _sketch_rounds(unit: Unit, key: jax.Array, max_products: int, method: str) -> Iterator[Round]:
    """Rounds in which the basis and the test vectors of Hutch++ or XTrace grow together."""
    H, used = unit.H, unit.products
    n, each = H.shape[0], PRODUCTS_EACH[method]
    widest = _widest_basis(H)
    at_once = room.rows_at_once(H, AT_ONCE)

    def memory(rows: int) -> room.Memory:
        return room.sketch_needed(H, rows, at_once, AT_ONCE, unit=unit.size)

    most = min(max_products // each, n, widest)
    first = min(most, LEAST_DRAWS)
    more = f"; at most {most}, {memory(most).bytes / 2**20:.1f} MiB" if most > first else ""
    room.say(method, H, memory(first), f"a basis that grows by {at_once} vectors, to {first} to begin with{more}")
    room.check_fits(H, method, memory(min(most, at_once)))
    keys, times = jax.random.split(key, 3), ProductCounter(H, used, each=room.goes_one_by_one(H, AT_ONCE))
    grow = sketches.grow_for_xtrace if method == "xtrace" else sketches.grow_for_hutch
    sketch, now = sketches.empty(), None
    while len(sketch.core) < n:
        left, wide = max_products + used - times.used, len(sketch.core)
        size = min(AT_ONCE, n - wide, left // each, widest - wide)
        try:
            if size:
                for done in range(0, size, at_once):
                    sketch = grow(sketch, times, keys, min(at_once, size - done))
            elif left < each:
                return
            elif method == "hutch++":  # no room: the rest goes into test vectors
                for done in range(0, min(AT_ONCE, left), at_once):
                    sketch = sketches.draw_tests(sketch, times, keys[1], min(at_once, min(AT_ONCE, left) - done))
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
        if len(sketch.core) == n:  # the basis spans the space
            now = Round(float(np.trace(sketch.core)), 0.0, len(sketch.forms), times.used, exact=True)
        else:
            found = sketches.xtrace(sketch, n) if method == "xtrace" else _mean(sketches.hutch_plus_plus(sketch))
            now = Round(*found, len(sketch.forms), times.used)
        now = now._replace(memory=memory(len(sketch.core)))
        yield now


# --- the diagonal


class Moments(NamedTuple):
    """The number of draws so far, their mean, and the sum of squared deviations from it."""

    num: Any
    mean: PyTree
    squares: PyTree


@partial(jax.jit, donate_argnums=1)
def _times(z: PyTree, product: PyTree) -> PyTree:
    return jax.tree.map(jnp.multiply, z, product)


@partial(jax.jit, donate_argnums=0)
def _merge(so_far: Moments, draws: PyTree) -> tuple[Moments, Any, Any]:
    """Add draws, up to the first that is not finite, to the moments.

    Returns:
      (the moments, the number of draws added, (|mean|^2, the sum of all squared deviations)).
    """
    leaves = jax.tree.leaves(draws)
    finite = jnp.stack([jnp.isfinite(x).all(tuple(range(1, x.ndim))) for x in leaves]).all(0)
    good = jnp.cumprod(finite)
    count = good.sum(dtype=jnp.int32)
    num = so_far.num + count

    def each(mean: Any, squares: Any, x: Any) -> tuple[Any, Any]:
        keep = good.reshape(-1, *[1] * (x.ndim - 1)) > 0
        some, total = (jnp.maximum(c, 1).astype(x.dtype) for c in (count, num))
        here = jnp.where(keep, x, 0).sum(0) / some
        deviations = jnp.where(keep, x - here, 0)
        step = here - mean
        change = step * count.astype(x.dtype) / total
        return mean + change, squares + (deviations**2).sum(0) + step * change * so_far.num.astype(x.dtype)

    pairs = jax.tree.map(each, so_far.mean, so_far.squares, draws)
    mean, squares = (jax.tree.map(lambda _, pair, i=i: pair[i], so_far.mean, pairs) for i in (0, 1))
    norms = _tree.dot(mean, mean), sum(jnp.sum(_tree.widen(x)) for x in jax.tree.leaves(squares))
    return Moments(num, mean, squares), count, norms


def _error(squares: np.ndarray, num: int, factor: float) -> np.ndarray:
    """``factor`` times sqrt(squares / num / (num - 1)), with no copies on the way."""
    error = np.asarray(squares / num)
    error /= num - 1
    np.sqrt(error, out=error)
    error *= factor
    return error


def _diagonal_rounds(unit: Unit, key: jax.Array, max_products: int) -> Iterator[Round]:
    """Rounds of draws of z * (A z), whose mean is the diagonal; only their moments are kept.

    The unit's products were made before, and do not count towards ``max_products``. A product that is not finite ends
    the rounds; if it is the first one, there is an error.
    """
    H, used, done = unit.H, unit.products, 0
    at_once, memory = reserve_probes(unit, "diagonal", held=2)
    mean, squares = (jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), H.structure) for _ in range(2))
    moments = Moments(np.int32(0), H.place(mean), H.place(squares))
    del mean, squares

    def value() -> tuple[PyTree, PyTree]:
        num = int(moments.num)
        with np.errstate(invalid="ignore", divide="ignore"):
            factor = widening(num - 1)
            sem = [_error(np.asarray(x), num, factor) for x in jax.tree.leaves(moments.squares)]
        return jax.tree.map(np.asarray, moments.mean), H.space.tree(sem)

    trouble = None
    while done < max_products and not trouble:
        hi = min(done + AT_ONCE, max_products)
        for piece in map_probes(_times, H, key, done, hi, at_once):
            size = len(jax.tree.leaves(piece)[0])
            moments, count, (mean, squares) = _merge(moments, piece)
            if count < size:
                trouble = f"product {used + int(count) + 1} is not finite"
            used += size
            if trouble:
                break
        done, num = hi, int(moments.num)
        unit.check(math.sqrt(float(mean) + float(squares) / num) if num else math.nan, used)
        if not num:
            raise no_finite_product(trouble)
        sem = widening(num - 1) * math.sqrt(float(squares) / num / (num - 1)) if num > 1 else math.nan
        yield Round(math.sqrt(float(mean)), sem, num, used, value, trouble=trouble, memory=memory)
