"""Eigenvalues and eigenvectors of symmetric operators, and their spectra.

``eigenpairs`` finds some pairs to a tolerance, all copies of a repeated eigenvalue among them; ``spectrum`` and
``density`` show where all eigenvalues lie; ``extremes`` gives the two ends roughly.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import arguments, recipes
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import warn_caller
from lla_jax.core.types import Directions, Eigenpairs, PyTree, Recipe
from lla_jax.curvature import eigensearch
from lla_jax.curvature import lanczos as _lanczos
from lla_jax.curvature.eigensearch import Ritz, Search
from lla_jax.curvature.linear_operator import Operator, check_given, check_operator
from lla_jax.execution import progress as _progress
from lla_jax.execution import sharding
from lla_jax.execution.progress import Progress

log = logging.getLogger("lla_jax")

SHARE = 0.25  # of the free memory that the basis takes by default
SPARE = 4  # vectors beyond k that a restart needs
ROWS = {True: 64, False: 32}  # rows of the first buffer, on the device or not
ROUNDING = 8.0  # times eps max|lambda|: what rounding may hide from a residual


def eigenpairs(
    H: Operator,
    key: jax.Array,
    k: int = 1,
    *,
    which: Literal["magnitude", "largest", "smallest"] = "magnitude",
    tol: float = 1e-3,
    max_products: int | None = None,
    max_vectors: int | None = None,
    progress: Progress | None = None,
    on_partial: Callable[[Eigenpairs], None] | None = None,
    save_every: float | None = None,
    resume: Eigenpairs | None = None,
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
      max_products: products of H with a vector at most, those for the residuals (k) included; default 200 + 20 k.
      max_vectors: vectors held at most, besides k at the end and one for every further sequence; beyond, the search is
        restarted from the best Ritz vectors and takes more products. By default what a quarter of the free memory
        holds.
      progress: called as ``progress(products, None)``.
      on_partial: called with what is there, and the state to continue from, if the search is interrupted (Ctrl-C, or
        any exception), before the exception is raised again. Its residuals are the search's own estimates.
      save_every: seconds after which ``on_partial`` is called on the way as well, again and again, so that a killed
        process can be continued too. Its recipe then says "running" as "stopped".
      resume: what ``on_partial`` got; continues, and gives the same to the bit as a search that was not interrupted.

    Returns:
      ``Eigenpairs``: values in the order asked for (Rayleigh quotients), vectors as ``Directions`` of unit norm whose
      largest entry is positive, residuals |H v - lambda v| from a product of their own, plus 8 eps max |lambda|, what
      rounding may hide; products used. ``recipe``: "converged" (all residuals within tol), "verified" (nothing was
      missed; False: not ruled out), "stopped" (why it ended early, or None), "sequences", "restarts". Not converged: a
      warning, and all pairs with the residuals they have.

    Raises:
      ValueError: an argument out of its range, an operator that is not symmetric, a first product that is not finite,
        ``resume`` of another operator or other arguments.

    References: Lanczos 1950; Wu and Simon 2000 (thick restart). Where we differ from LLA (power iteration with
    deflation, arXiv 2412.10146): (1) it ends on the residual, not on two values that happen to be close; (2) negative
    and repeated values are found like any other; (3) a fraction of the products.
    """
    check_operator(H)
    key, n = arguments.single_key(key), H.shape[0]
    k = arguments.clamp_count("k", k, n)
    if which not in ("magnitude", "largest", "smallest"):
        raise ValueError(f'which: {which!r} given; the rule is "magnitude", "largest" or "smallest"')
    if not isinstance(tol, float | int | np.floating) or not 0 < tol < 1:
        raise ValueError(f"tol: {tol!r} given; the rule is a number between 0 and 1, such as 1e-3")
    limit = _at_least("max_products", max_products, 2 * k + 2, 200 + 20 * k)
    nbytes, free = H.memory()
    most = _at_least("max_vectors", max_vectors, min(n, k + SPARE), max(k + SPARE, int(SHARE * free) // nbytes))
    recipe = {
        "kind": "eigenpairs", "operator": dict(H.recipe), "n": n, "dtype": str(H.dtype), "k": k, "which": which,
        "tol": float(tol), "max_vectors": max_vectors, "key": recipes.fingerprint(key),
    }  # fmt: skip
    if resume is None:
        rows = min(max(ROWS[H.on_device], 2 * k), most, n)
        used = check_given(H, key)
        s = eigensearch.begin(H, key, rows, min(most, n), used)
    else:
        recipes.check_resume(resume, recipe, Eigenpairs)
        if resume.state is None:
            return resume
        s = _restored(resume.state, H)
    s.saved = save_every is not None
    s.needed = max(s.needed, _lanczos.needed(H, s.rows, saved=s.saved, kept=2 * k))
    log.info(
        "eigenpairs: %d vectors of %.1f MiB to begin with, %.1f MiB with what is computed beside them; at most %d, "
        "%.1f MiB (%.0f MiB free)",
        s.rows, nbytes / 2**20, s.needed / 2**20, s.most,
        _lanczos.needed(H, s.most, saved=s.saved, grown_from=s.rows) / 2**20, free / 2**20,
    )  # fmt: skip

    def hand_over(stopped: str) -> None:
        if on_partial is not None and s.known and not s.gone:
            on_partial(_partial(s, H, k, which, recipe, stopped))

    progress = _progress.saving(progress, save_every, on_partial, lambda: hand_over("running"))
    try:
        ended = eigensearch.search(s, H, key, k, which, tol, limit - k, progress)
        if not s.known:
            raise ValueError(_lanczos.nothing(s.products))
        result = _finished(s, H, k, which, tol, ended, recipe, progress)
    except BaseException:
        hand_over("interrupted")
        raise
    _warn(result)
    return result


def _at_least(name: str, value: Any, least: int, default: int) -> int:
    if value is None:
        return default
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}: {value!r} given; the rule is an integer of at least {least} for this k")
    return int(value)


# --- from the basis to pairs


@partial(jax.jit, static_argnames="spread")
def _vector(coefficients: jax.Array, basis: PyTree, *, spread: Any) -> PyTree:
    """A Ritz vector, of norm 1 and with its largest entry positive."""
    vector = _lanczos.combine(coefficients, basis)
    leaves = jax.tree.leaves(vector)
    high, low = (jnp.stack([_tree.wide(f(x)) for x in leaves]) for f in (jnp.max, jnp.min))  # no leaf is reshaped
    size = _tree.norm(vector)
    factor = jnp.where(high.max() >= -low.min(), 1, -1) / jnp.where(size > 0, size, 1)
    return sharding.pinned(jax.tree.map(lambda x: x * factor.astype(x.dtype), vector), spread)


@jax.jit
def _judged(vector: PyTree, product: PyTree) -> jax.Array:
    """(Rayleigh quotient, residual)."""
    value = _tree.dot(vector, product) / _tree.dot(vector, vector)
    rest = jax.tree.map(lambda a, v: a - value * v, product, vector)
    return jnp.stack([value, _tree.norm(rest) / _tree.norm(vector)])


def _ritz_vector(s: Search, ritz: Ritz, i: int, H: Operator) -> PyTree:
    coefficients = np.zeros(s.rows, H.dtype)
    coefficients[: s.known] = ritz.vectors[:, i]
    return H.space.settle(_vector(coefficients, s.basis, spread=H.space.shards))


def _pairs(
    vectors: list[PyTree],
    values: np.ndarray,
    residuals: np.ndarray,
    products: int,
    recipe: Recipe,
    H: Operator,
    state: Any,
) -> Eigenpairs:
    about = Recipe(
        kind="eigenvectors", values=values.tolist(), residuals=residuals.tolist(),
        names=[f"eigenvector {i + 1} (lambda = {value:.3g})" for i, value in enumerate(values)],
        operator=H.recipe.get("kind", "given"),
    )  # fmt: skip
    recipe["products"] = products
    return Eigenpairs(
        values, Directions(H.embed(H.place(_tree.stack(vectors))), about), residuals, products, recipe, state
    )


def _finished(
    s: Search, H: Operator, k: int, which: str, tol: float, ended: str, recipe: Recipe, progress: Progress | None
) -> Eigenpairs:
    """The pairs, each judged by a product of its own."""
    ritz = eigensearch.ritz_pairs(s, which)
    num = min(k, len(ritz.values))
    vectors, judged = [], []
    for i in range(num):
        vectors.append(_ritz_vector(s, ritz, i, H))
        judged.append(np.asarray(_judged(vectors[i], H.product(vectors[i])), np.float64))
        if progress is not None:
            progress(s.products + i + 1, None)
    values, residuals = np.stack(judged).T
    bad = ~np.isfinite(residuals)
    values, residuals = np.where(bad, ritz.values[:num], values), np.where(bad, np.inf, residuals)
    scale = max(np.abs(values).max(), np.abs(ritz.values).max())
    rounding = _lanczos.rounding(H, ROUNDING) * scale
    within = residuals <= 1.01 * tol * scale + min(rounding, tol * scale)
    chosen = eigensearch.order(values, which)
    searched = ended in ("verified", "unverified")
    recipe |= {
        "converged": bool(searched and num == k and within.all()), "verified": ended == "verified",
        "stopped": None if searched else ended, "scale": float(scale), "rounding": float(rounding),
        "sequences": s.draws, "restarts": s.restarts, "complete": True,
        "memory": {"vectors": s.rows, "bytes": s.needed},
    }  # fmt: skip
    residuals = residuals + rounding
    return _pairs([vectors[i] for i in chosen], values[chosen], residuals[chosen], s.products + num, recipe, H, None)


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
    else:
        computed = recipe["operator"].get("precision", {}).get("params", [recipe["dtype"]])
        text = f"{found}, and {asked}, which is below the rounding of the products in {', '.join(computed)}; raise tol"
    warn_caller(text)


# --- interrupted and continued

_COUNTS = (
    "known", "filled", "outside", "longest", "products", "draws", "restarts", "checked", "rows", "most", "needed",
)  # fmt: skip


def _partial(s: Search, H: Operator, k: int, which: str, recipe: Recipe, stopped: str) -> Eigenpairs:
    ritz = eigensearch.ritz_pairs(s, which)
    num = min(k, len(ritz.values))
    state = {f"basis/{i}": np.asarray(x[: s.filled]) for i, x in enumerate(jax.tree.leaves(s.basis))}
    state |= {
        "T": s.T[: s.filled, : s.filled],
        "alphas": s.alphas, "betas": s.betas, "wanted": s.wanted, "direction": s.direction, "scale": np.array(s.scale),
        "counts": np.array([getattr(s, name) for name in _COUNTS], np.int64),
    }  # fmt: skip
    recipe = recipe | {"complete": False, "converged": False, "verified": False, "stopped": stopped}
    vectors = [_ritz_vector(s, ritz, i, H) for i in range(num)]
    return _pairs(vectors, ritz.values[:num], ritz.errors[:num], s.products, recipe, H, state)


def _restored(state: Mapping[str, Any], H: Operator) -> Search:
    numbers: dict[str, Any] = dict(zip(_COUNTS, map(int, state["counts"])))
    filled, rows = numbers["filled"], numbers.pop("rows")
    kept = (np.asarray(state[f"basis/{i}"]) for i in range(len(H.space.shapes)))
    leaves = [np.pad(x, [(0, rows - filled), *[(0, 0)] * (x.ndim - 1)]) for x in kept]
    basis = _lanczos.from_host(H, leaves)
    arrays: dict[str, Any] = {name: np.array(state[name]) for name in ("alphas", "betas", "wanted", "direction")}
    return Search(basis, np.pad(state["T"], (0, rows - filled)), scale=float(state["scale"]), **numbers, **arrays)


class Extremes(NamedTuple):
    """The ends of a spectrum, as Lanczos sees them: Ritz values, which lie inside.

    Args:
      smallest: the smallest Ritz value; NaN where the products are not finite.
      largest: the largest.
      residual: the larger of their |A x - theta x|: an exact eigenvalue lies within it of either.
      products: products used.
    """

    smallest: float
    largest: float
    residual: float
    products: int


def extremes(H: Operator, key: jax.Array, steps: int = 30, *, tol: float = 1e-3) -> Extremes:
    """The smallest and the largest eigenvalue, roughly: the ends of a short Lanczos run.

    It ends before ``steps`` products where both residuals are at most ``tol`` times the larger of the two in
    magnitude. New weights or masks compile nothing anew. For eigenvectors, or for certain, see ``eigenpairs``.

    Args:
      H: the operator.
      key: draws the start vector (signs).
      steps: products at most; more than there are parameters are not done.
      tol: relative residual at which it ends.

    Returns:
      ``Extremes``.
    """
    check_operator(H)
    ends = Extremes(np.nan, np.nan, np.nan, 0)

    def known(alphas: np.ndarray, betas: np.ndarray) -> bool:
        nonlocal ends
        if not len(alphas):
            return True
        theta, y = np.linalg.eigh(_lanczos.tridiagonal(alphas, betas))
        residual = float(betas[-1] * np.abs(y[-1, [0, -1]]).max())
        ends = Extremes(float(theta[0]), float(theta[-1]), residual, 0)
        return residual <= tol * np.abs(theta[[0, -1]]).max()

    basis = _lanczos.begin(_lanczos.random(H, key, 0, "rademacher"), rows=steps + 1, spread=H.space.shards)
    _, alphas, betas, products = _lanczos.sequence(H, basis, min(steps, H.shape[0]), ends=known)
    known(alphas, betas)
    return ends._replace(products=products)
