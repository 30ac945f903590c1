"""Makes the plane report, which compares a landscape with the Hessian at its centre: can its picture be trusted?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import precision, recipes
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse, misuse
from lla_jax.core.interrupts import prompt_interrupts
from lla_jax.core.results import Eigenpairs, Estimate, Landscape
from lla_jax.core.signatures import explained
from lla_jax.core.text import pm, table
from lla_jax.core.types import Directions, PyTree
from lla_jax.curvature import matrices
from lla_jax.curvature.linear_operator import Operator
from lla_jax.curvature.probe import check as check_probe
from lla_jax.curvature.probe import probe
from lla_jax.curvature.units import Unit, adapt

ON_CENTRE = 1e-9  # of an axis' range: a coordinate this close to 0 is the centre
DEPENDENT = 1e-10  # squared sine of the angle between axes that span no plane
COVERS = 2  # a number within so many standard errors of zero may be zero
OTHER_LOSS = 1e-3  # relative difference of the mean losses that no precision of matrix products explains
APART = 0.02  # relative difference of two curvatures, beyond their error, that the report mentions


@explained
@dataclass(frozen=True, eq=False, repr=False)
class PlaneReport:
    """The curvature that a landscape shows at its centre; ``print`` it.

    Args:
      names: of the k axes.
      lengths: (k,) |d_i|.
      projected: (k, k) d_i' H d_j, by Hessian products.
      grid_curvature: (k,) second differences of the loss at the centre, from the nearest grid points; NaN where the
        grid has no cell at the centre or none beside it.
      grid_error: (k,) their uncertainty: truncation, from the next points, and rounding; NaN if unknown.
      slope: (k,) first differences of the loss at the centre, d_i' grad L; NaN as above.
      slope_error: (k,) their uncertainty, likewise.
      eigenvalues: curvatures within the plane, per unit length, descending: those of the Hessian projected on
        orthonormal axes. Fewer than k where axes depend on each other.
      share_lambda_max: the largest of ``eigenvalues``, or 0 if none is positive, over the largest eigenvalue of the
        Hessian; None where the latter is not known.
      share_trace: the sum of ``eigenvalues`` over the trace of the Hessian, an ``Estimate``; NaN where the trace is
        zero within its error, None where it is not given.
      centre: loss at the centre; NaN where the grid has no cell there.
      lowest: lowest finite loss.
      lowest_at: the coordinates of the lowest loss.
      distance: from the centre to the lowest loss, in parameter space.
      nonfinite: fraction of the cells whose loss is not finite, interpolated ones included.
      matrix: kind of matrix that the products are of, such as "hessian".
      products: number of products used.
      warnings: sentences; empty if nothing is wrong.
    """

    names: tuple[str, ...]
    lengths: np.ndarray
    projected: np.ndarray
    grid_curvature: np.ndarray
    grid_error: np.ndarray
    slope: np.ndarray
    slope_error: np.ndarray
    eigenvalues: np.ndarray
    share_lambda_max: float | None
    share_trace: Estimate | None
    centre: float
    lowest: float
    lowest_at: tuple[float, ...]
    distance: float
    nonfinite: float
    matrix: str
    products: int
    warnings: tuple[str, ...]

    @property
    def curvature(self) -> np.ndarray:
        """(k,) d_i' H d_i: the second derivative of the loss by the coordinate."""
        return np.diag(self.projected).copy()

    @property
    def per_length(self) -> np.ndarray:
        """(k,) d_i' H d_i / |d_i|^2: the curvature along the axis; NaN for an axis of length 0."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.curvature / self.lengths**2

    @property
    def centre_is_lowest(self) -> bool:
        """Whether no cell is lower than the centre; False where the grid has no finite cell at the centre."""
        return bool(self.centre <= self.lowest)

    def __repr__(self) -> str:
        found = ", ".join(f"{name} {c:.4g}" for name, c in zip(self.names, self.curvature, strict=True))
        return f"PlaneReport(curvature: {found}; {len(self.warnings)} warnings)"

    def __str__(self) -> str:
        rows = [("axis", "length", "d'Hd", "by the grid", "d'Hd/|d|^2", "slope")]
        for i, name in enumerate(self.names):
            grid = _with_error(self.grid_curvature[i], self.grid_error[i])
            slope = _with_error(self.slope[i], self.slope_error[i])
            row = f"{self.lengths[i]:.4g}", f"{self.curvature[i]:.5g}", grid, f"{self.per_length[i]:.4g}", slope
            rows.append((name, *row))
        text = [table(rows)]
        pairs = [(i, j) for i in range(len(self.names)) for j in range(i)]
        text += [f"d'Hd between {self.names[j]} and {self.names[i]}: {self.projected[i, j]:.5g}" for i, j in pairs]
        text.append(f"curvatures in the plane, per unit length: {', '.join(f'{x:.4g}' for x in self.eigenvalues)}")
        text.append(f"share of lambda_max: {_share(self.share_lambda_max, 'eigenpairs')}")
        text.append(f"share of the trace: {_share(self.share_trace, 'its estimate')}")
        at = ", ".join(f"{x:.4g}" for x in self.lowest_at)
        if not np.isfinite(self.centre):
            text.append(f"centre: no finite cell there; lowest loss {self.lowest:.6g} at ({at})")
        elif self.centre_is_lowest:
            text.append(f"centre: loss {self.centre:.6g}, the lowest cell")
        else:
            less = self.centre - self.lowest
            text.append(
                f"centre: loss {self.centre:.6g}; the lowest cell, {self.lowest:.6g} at ({at}), is lower by {less:.3g} "
                f"and {self.distance:.3g} away"
            )
        text.append(f"cells that are not finite: {self.nonfinite:.1%}")
        text += [f"warning: {w}" for w in self.warnings]
        return "\n".join([f"Plane report ({self.products} products of the {self.matrix})", *text])


def _with_error(value: float, error: float) -> str:
    return "-" if np.isnan(value) else pm(value, error, 5)


def _share(share: float | Estimate | None, argument: str) -> str:
    if share is None:
        return f"not known, for want of {argument}"
    if isinstance(share, Estimate):
        if np.isnan(share.mean):
            return "not known, since the trace is zero within its error"
        return f"({pm(100 * share.mean, 100 * share.sem, 3)})%"
    return f"{100 * share:.3g}%"


@prompt_interrupts()
@explained
def plane_report(
    plane: Landscape,
    axes: Directions,
    H: Any,
    *,
    pairs: Eigenpairs | None = None,
    trace: Estimate | None = None,
) -> PlaneReport:
    """Compare the curvature that a line, plane or volume shows at its centre with the Hessian there.

        curvature along axis i   d_i' H d_i           against  2 (L+ / h+ - L0 (1/h+ + 1/h-) + L- / h-) / (h+ + h-)
        within the plane         eigenvalues of Q' H Q, Q an orthonormal basis of the axes
        shares of the Hessian    max eig(Q'HQ) / lambda_max,  tr(Q'HQ) / tr H

    with L+-, h+- the losses at and distances to the nearest grid points on the axis. A random plane of n parameters
    sees about k/n of the trace, and next to nothing of the sharpest directions; the shares show it.

    Args:
      plane: the landscape that ``evaluate`` gave for these axes, under the add rule. It may be incomplete. Of a refined
        one, only values that are not interpolated are used.
      axes: the directions along which it was evaluated.
      H: the curvature at its centre, ``lla.hessian(loss, params, data)``; it may be restricted by ``select`` or a mask
        if the axes move nothing else.
      pairs: the largest eigenpairs of ``H`` (``which="largest"`` or "magnitude"), for the share of lambda_max, which is
        None without a positive one.
      trace: ``lla.trace(H, key)``, for the share of the trace.

    Returns:
      A ``PlaneReport``, whose ``warnings`` say why the picture should not be trusted. One product per axis is used, and
      one for the probe of ``H`` if it has none yet.

    Raises:
      ValueError: a landscape under another rule or without a loss, of other axes or of other parameters than ``H``;
        axes that move parameters on which ``H`` does not act; an ``H`` that is preconditioned or no operator; a loss
        that is finite at no cell; an ``H`` of another loss, with another value at the centre; ``pairs`` of the smallest
        eigenvalues; ``pairs`` or ``trace`` of another operator, or of another function with the same recipe.

    References: Li et al. 2018, arXiv 1712.09913, section 6 (what a plane hides); Gabdullin 2024, arXiv 2412.10146.
    """
    _check_plane(plane, axes)
    notes = _check_same_centre(plane, H)
    tree = _align_axes(axes, H)
    names = tuple(map(str, axes.recipe.get("names") or (f"d{i + 1}" for i in range(axes.num))))
    projected, gram = _project(H, tree, axes.num)
    lengths = np.sqrt(np.diag(gram))
    inside = _plane_eigenvalues(projected, gram)
    if len(inside) < axes.num:
        notes.append(f"the {axes.num} axes span {len(inside)} dimensions only: they depend on each other")
    loss = plane.only_evaluated("loss")
    finite = np.isfinite(loss)
    if not finite.any():
        text = "its loss is finite at no cell; it must be finite somewhere"
        raise Misuse("plane", f"{text}: evaluate a smaller extent")
    if plane.evaluated is not None:
        notes.append(
            "interpolated values are not used: the lowest cell and the differences are those of evaluated points"
        )
    if plane.recipe.get("complete") is False:
        notes.append("the landscape is incomplete; its other cells count as not finite")
    zero = _centre_cell(plane)
    slope, second, slope_error, error = _differences(plane, loss, zero)
    flat = int(np.argmin(np.where(finite, loss, np.inf)))
    cell = np.unravel_index(flat, loss.shape)
    at = tuple(float(c[i]) for c, i in zip(plane.coords, cell, strict=True))
    centre = math.nan if zero is None else float(loss[zero])
    if zero is None:
        notes.append("the grid has no cell at the centre; an odd number of points over a symmetric range has one")
    else:
        notes += _notes_on_grid(names, np.diag(projected), second, error, slope, slope_error, centre)
    if centre - float(loss[cell]) > 10 * _eps(plane) * abs(centre):
        notes.append("the centre is not the lowest cell: the network is not at a minimum of this picture")
    if (fraction := 1 - float(np.isfinite(plane.values["loss"]).mean())) > 0:
        notes.append(f"{fraction:.1%} of the cells are not finite; a smaller extent avoids them")
    return PlaneReport(
        names,
        lengths,
        projected,
        second,
        error,
        slope,
        slope_error,
        inside,
        share_lambda_max=_share_lambda_max(inside, pairs, H, notes),
        share_trace=_share_trace(inside, trace, H, notes),
        centre=centre,
        lowest=float(loss[cell]),
        lowest_at=at,
        distance=float(np.sqrt(max(0.0, np.asarray(at) @ gram @ np.asarray(at)))),
        nonfinite=fraction,
        matrix=str(H.recipe.get("kind", "operator")),
        products=axes.num,
        warnings=tuple(notes),
    )


def _check_plane(plane: Landscape, axes: Directions) -> None:
    if not isinstance(plane, Landscape) or "loss" not in plane.values:
        raise misuse("plane", plane, "a Landscape with values['loss'], from lla.evaluate")
    if (rule := plane.recipe.get("rule")) != "add":
        text = f"was made by the rule {rule!r}; it must be made by 'add', whose axes are directions in parameter space"
        raise Misuse("plane", f'{text}: evaluate it with rule="add"')
    if not isinstance(axes, Directions) or axes.num != plane.dims:
        raise misuse("axes", axes, f"the {plane.dims} directions that were given to lla.evaluate")
    there = plane.recipe.get("directions", {})
    if not recipes.same(there, dict(axes.recipe) | {"contents": recipes.fingerprint(axes.tree)}):
        raise Misuse(
            "axes",
            f"{axes!r} are not what the landscape was evaluated along; pass the directions that were given to "
            "lla.evaluate, in the same order",
        )


def _check_same_centre(plane: Landscape, H: Any) -> list[str]:
    """Sentences for the report: how data, settings and matrix of the operator differ from those of the landscape.

    Raises:
      ValueError: other parameters, another loss, or a preconditioned operator.
    """
    if not isinstance(H, Operator):
        raise misuse("H", H, "an operator, such as lla.hessian(loss, params, data)")
    if H.scale is not None and "masked" not in H.recipe:
        text = "is preconditioned, and acts on scaled vectors, not on directions in parameter space"
        raise Misuse("H", f"{text}; pass the plain operator")
    if "params" not in H.recipe:  # given, or transformed by jax
        return ["the operator does not say at which parameters it was taken"]
    then, now = ({"params": {"fingerprint": x.recipe.get("params", {}).get("fingerprint")}} for x in (H, plane))
    recipes.check_same("H", "the operator", then, now, now, "pass the operator at the landscape's centre")
    words = {
        "data": "other data",
        "state": "another state (normalization statistics)",
        "noise": "another noise key",
        "batch_stats": f"batch_stats={H.recipe['batch_stats']!r}, the landscape {plane.recipe.get('batch_stats')!r}",
    }
    notes = [f"the operator has {words[name]}" for name in recipes.differences(H.recipe, plane.recipe, words)]
    if H.recipe["batch_size"] not in (None, plane.recipe.get("batch_size")):
        notes.append(f"the operator has batches of {H.recipe['batch_size']}, which are part of this loss")
    if not notes:
        _check_same_loss(plane, H)
    if H.recipe["kind"] != "hessian":
        notes.append(f"the products are those of the {H.recipe['kind']}, the grid's differences those of the loss")
    return notes


def _check_same_loss(plane: Landscape, H: Operator) -> None:
    """Refuse an operator over the landscape's data whose mean loss is not the loss at the centre."""
    cell = _centre_cell(plane)
    centre = math.nan if cell is None else float(plane.only_evaluated("loss")[cell])
    if not math.isfinite(centre) or not plane.recipe.get("deterministic", True) or "loss" not in (there := probe(H)):
        return
    rtol = max(OTHER_LOSS, *(recipes.rounding(x.recipe) for x in (H, plane)))
    if not recipes.is_close(there["loss"], centre, rtol, there["product"][-1]):
        raise Misuse(
            "H",
            f"its mean loss is {there['loss']:.6g}, and that of the landscape at its centre {centre:.6g}; it must be "
            "the operator of the landscape's loss: pass lla.hessian of the loss that the landscape shows (with its "
            "batch_size, where the loss couples the examples of a batch)",
        )


def _align_axes(axes: Directions, H: Any) -> PyTree:
    """The axes as stacked vectors of the operator.

    Raises:
      ValueError: another structure, or axes that move parameters on which the operator does not act.
    """
    params = H.structure if H.is_given else H.centre()
    tree = _tree.align(axes.tree, params, "axes", "the operator's parameters", stacked=True)
    named = zip(_tree.paths(tree), jax.tree.leaves(tree), H.leaf_mask, strict=True)
    left_out = [path for path, leaf, yes in named if not yes and np.any(np.asarray(leaf))]
    tree = matrices.part(tree, H.leaf_mask)
    if H.scale is not None:
        named = zip(_tree.paths(tree), jax.tree.leaves(tree), jax.tree.leaves(H.scale), strict=True)
        left_out += [path for path, leaf, s in named if np.any(np.asarray(leaf) * (np.asarray(s) == 0))]
    if left_out:
        text = f"move {', '.join(left_out)}, on which the operator does not act; they must stay within its selection"
        raise Misuse("axes", f"{text}: use lla.directions.select(axes, ...), or an operator over all parameters")
    tree = jax.tree.map(lambda x, like: jnp.asarray(x, like.dtype), tree, H.structure)
    return H.place(tree)


def _project(H: Any, tree: PyTree, num: int) -> tuple[np.ndarray, np.ndarray]:
    """(D' H D, D' D) of the ``num`` axes D, each (num, num) float64."""
    vectors = _tree.unstack(tree)
    gram = np.array([[float(_tree.dot(v, w)) for w in vectors] for v in vectors]).reshape(num, num)

    def compute(unit: Unit) -> np.ndarray:
        images = _tree.unstack(unit.H.products(tree))
        sizes = [float(_tree.dot(h, h)) / length for h, length in zip(images, np.diag(gram)) if length > 0]
        unit.check(math.sqrt(np.max(sizes, initial=0)) if sizes else 1.0, num)
        return unit.size * np.array([[float(_tree.dot(v, h)) for h in images] for v in vectors])

    projected = adapt(Unit(H), jax.random.key(0), compute)
    return (projected + projected.T) / 2, gram


def _plane_eigenvalues(projected: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """Eigenvalues of the projected Hessian in orthonormal axes, descending; (rank,)."""
    lengths = np.sqrt(np.diag(gram))
    scale = np.divide(1, lengths, out=np.zeros_like(lengths), where=lengths > 0)
    sizes, basis = np.linalg.eigh(scale[:, None] * gram * scale)
    keep = sizes > DEPENDENT
    q = scale[:, None] * basis[:, keep] / np.sqrt(sizes[keep])
    if not np.isfinite(projected).all():
        return np.full(keep.sum(), np.nan)
    return np.linalg.eigvalsh(q.T @ projected @ q)[::-1]


def _centre_cell(plane: Landscape) -> tuple[int, ...] | None:
    cell = []
    for c in plane.coords:
        i = int(np.argmin(np.abs(c)))
        if abs(c[i]) > ON_CENTRE * max(np.ptp(c), np.finfo(np.float64).tiny):
            return None
        cell.append(i)
    return tuple(cell)


def _differences(plane: Landscape, loss: np.ndarray, zero: tuple[int, ...] | None) -> np.ndarray:
    """(4, k): slopes and second differences at the centre, and the errors of both; NaN where unknown."""
    results = np.full((4, plane.dims), np.nan)
    for axis in range(plane.dims) if zero is not None else ():
        assert zero is not None
        order = np.argsort(plane.coords[axis], kind="stable")
        x = plane.coords[axis][order]
        line = loss[tuple(slice(None) if i == axis else j for i, j in enumerate(zero))][order]
        at = int(np.flatnonzero(order == zero[axis])[0])
        near, far = (_three_points(x, line, at, reach) for reach in (1, 2))
        rounding = _eps(plane) * near.terms
        results[:2, axis] = near.slope, near.curvature
        results[2, axis] = abs(far.slope - near.slope) / 3 + rounding * near.step
        results[3, axis] = abs(far.curvature - near.curvature) / (3 if near.even else 1) + rounding
    return results


class _Parabola(NamedTuple):
    """A parabola through three points, with its derivatives in the middle; NaN where a point is missing."""

    slope: float = math.nan
    curvature: float = math.nan
    terms: float = math.nan  # sum of the absolute terms of the curvature
    step: float = math.nan  # mean
    even: bool = False  # whether both steps are equal


def _three_points(x: np.ndarray, y: np.ndarray, at: int, reach: int) -> _Parabola:
    """The parabola through point ``at`` and the points ``reach`` indices before and after it."""
    if at - reach < 0 or at + reach >= len(x):
        return _Parabola()
    left, right = x[at] - x[at - reach], x[at + reach] - x[at]
    before, here, after = (float(y[i]) for i in (at - reach, at, at + reach))
    if not (left > 0 and right > 0 and np.isfinite([before, here, after]).all()):
        return _Parabola()
    up, down, mean = (after - here) / right, (here - before) / left, (left + right) / 2
    terms = abs(before) / left + abs(here) * (1 / left + 1 / right) + abs(after) / right
    slope = (left * up + right * down) / (left + right)
    return _Parabola(slope, (up - down) / mean, terms / mean, mean, bool(np.isclose(left, right, rtol=1e-6)))


def _eps(plane: Landscape) -> float:
    return precision.eps_at_work(plane.recipe, ["float32"])


def _notes_on_grid(
    names: Sequence[str],
    by_product: np.ndarray,
    by_grid: np.ndarray,
    error: np.ndarray,
    slope: np.ndarray,
    slope_error: np.ndarray,
    centre: float,
) -> list[str]:
    if not np.isfinite(centre):
        return ["the loss at the centre is not finite"]
    notes = []
    for i, name in enumerate(names):
        exact, shown = float(by_product[i]), float(by_grid[i])
        if np.isnan(shown):
            notes.append(f"along {name} the cells beside the centre are missing or not finite")
            continue
        if abs(shown - exact) > APART * max(abs(exact), abs(shown)) + 3 * np.nan_to_num(error[i]):
            notes.append(
                f"along {name} the product gives {exact:.4g} and the grid {_with_error(shown, error[i])}: the cells "
                "are too far apart to show the curvature at the centre, the loss has kinks (ReLU), or it is another "
                "loss"
            )
        not_zero = abs(slope[i]) > 3 * np.nan_to_num(slope_error[i])
        if not_zero and exact > 0 and slope[i] ** 2 / (2 * exact) > APART * abs(centre):
            notes.append(
                f"along {name} the centre is no stationary point: slope {slope[i]:.3g}; the parabola has its minimum "
                f"at {-slope[i] / exact:.3g}"
            )
    return notes


def _share_lambda_max(inside: np.ndarray, pairs: Eigenpairs | None, H: Any, notes: list[str]) -> float | None:
    if pairs is None:
        return None
    if not isinstance(pairs, Eigenpairs) or pairs.recipe.get("which") == "smallest":
        raise misuse("pairs", pairs, 'lla.eigenpairs(H, key, which="largest" or "magnitude")')
    _check_same_operator(pairs.recipe, H, "pairs", "lla.eigenpairs(H, key)")
    top = float(np.max(pairs.values, initial=-np.inf))
    if not top > 0:
        notes.append("no eigenvalue among the pairs is positive, so that the largest is not known or not positive")
        return None
    return float(np.max(inside, initial=0)) / top if len(inside) else 0.0


def _share_trace(inside: np.ndarray, trace: Estimate | None, H: Any, notes: list[str]) -> Estimate | None:
    if trace is None:
        return None
    if not isinstance(trace, Estimate) or np.ndim(trace.mean):
        raise misuse("trace", trace, "lla.trace(H, key)")
    _check_same_operator(trace.recipe, H, "trace", "lla.trace(H, key)")
    if not abs(trace.mean) > COVERS * np.nan_to_num(trace.sem):
        notes.append("the trace is zero within its error: no share of it can be given")
        return Estimate(math.nan, math.nan, trace.num)
    share = float(inside.sum()) / float(trace.mean)
    return Estimate(share, abs(share * float(trace.sem) / float(trace.mean)), trace.num)


def _check_same_operator(recipe: dict[str, Any], H: Any, argument: str, call: str) -> None:
    """Refuse a result whose recipe says that it belongs to another operator."""
    if there := recipe.get("operator", {}):
        what, remedy = "the operator that it belongs to", f"compute it anew, {call}"
        names = [*recipes.OPERATOR, *(name for name in recipes.OPTIONS if name in there)]
        recipes.check_same(argument, what, there, H.recipe, names, remedy)
        check_probe(argument, what, there, H, remedy)
