"""Curves between two ends in parameter space, theta(t) = sum_k b_k(t) P_k: lines, polygon chains and Bezier curves.

References: Garipov et al. 2018, arXiv 1802.10026.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import recipes
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse, check_choice, check_integer, misuse
from lla_jax.core.refusals import no_array
from lla_jax.core.signatures import explained
from lla_jax.core.types import SAVED, PyTree, Recipe
from lla_jax.paths.end_states import stack_states
from lla_jax.paths.host_trees import align_exactly, check_finite, size_of, stack, to_host, unstack
from lla_jax.paths.trajectories import Trajectory, given

Kind = Literal["line", "polygon", "bezier", "band"]
KINDS: tuple[str, ...] = get_args(Kind)
CHAINS = ("line", "polygon", "band")  # straight between their points
PIECES, NODES = 64, 8  # of the quadrature of a length: pieces of [0, 1], and Gauss's nodes in each


@explained
@no_array("holds control points; take curve(t), the parameters at t, or curve.points, whose leaves are stacked")
@dataclass(frozen=True, eq=False, repr=False)
class Curve:
    """A curve theta(t) = sum_k b_k(t) P_k, t in [0, 1], from a = P_1 to b = P_K; both ends are reached to the bit.

        line:           b = (1 - t, t)
        polygon, band:  b_k(t) = max(0, 1 - |t - t_k| / h), linear between the knots t_k, h the gap to the next knot
        bezier:         b_k(t) = C(n, k) t^k (1 - t)^(n - k), k = 0, ..., n = K - 1

    Args:
      kind: "line", "polygon", "bezier" or "band" (a chain whose points, the pivots, were relaxed).
      points: the control points, a tree of the parameters' structure with a leading axis K on every leaf.
      knots: (K,) the t at which a polygon or band passes its points, from 0 to 1; by default evenly spaced. None for
        other kinds.
      states: the states of the loss at a and b (such as BatchNorm statistics), with a leading axis 2; None without.
      history: ``{name: (steps,)}``, what was recorded while the curve was trained.
      recipe: how it was made, as plain data.
      saddle: of a band: its highest point, a ``Saddle``; None otherwise.
    """

    _meant: ClassVar[dict[str, str]] = {
        **SAVED,
        "evaluate": "lla.paths.evaluate(curve, loss, data)",
        "barrier": "lla.paths.barrier(loss, a, b, data, curve=curve)",
        "length": "curve.lengths(1.0)",
    }

    kind: Kind
    points: PyTree
    knots: Any = None
    states: PyTree = None
    history: Mapping[str, np.ndarray] = field(default_factory=dict)
    recipe: Recipe = field(default_factory=dict)
    saddle: Any = None

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        _tree.check_real(self.points, "points")
        object.__setattr__(self, "points", to_host(self.points))
        counts = {leaf.shape[:1] for leaf in jax.tree.leaves(self.points)}
        num = next(iter(counts))[0] if len(counts) == 1 and () not in counts else 0
        if num < 2 or (self.kind == "line" and num != 2):
            rule = "2" if self.kind == "line" else "the number of points, 2 or more"
            remedy = "of a list of trees make lla.paths.bezier([a, middle, b])"
            raise Misuse("points", f"leading axes {sorted(counts)} given; that of every leaf must be {rule}: {remedy}")
        object.__setattr__(self, "knots", _check_knots(self.kind, self.knots, num))
        object.__setattr__(self, "states", _check_states(self.states))

    def __repr__(self) -> str:
        size = size_of(self.points) // self.num
        states = ", with states" if self.states is not None else ""
        return f"Curve({self.kind}, {self.num} x {size:,} parameters, length {self.lengths(1.0):.4g}{states})"

    @property
    def num(self) -> int:
        """Number of control points K, both ends included."""
        return int(jax.tree.leaves(self.points)[0].shape[0])

    @property
    def ends(self) -> tuple[PyTree, PyTree]:
        """The parameters (a, b) at the ends."""
        a, *_, b = unstack(self.points)
        return a, b

    def weights(self, t: Any) -> np.ndarray:
        """The basis functions (..., K) at t (...), in float64; they sum to 1, and are exactly 0 and 1 at the ends."""
        t = check_t(t)
        return bernstein(self.num - 1, t) if self.kind == "bezier" else _hats(self._knots(), t)

    def __call__(self, t: Any) -> PyTree:
        """The parameters at one t in [0, 1], as numpy arrays, in float32 at least; a and b to the bit at 0 and 1."""
        t = check_t(t)
        if t.ndim:
            raise misuse("t", t, "one number in [0, 1]; for several take curve.trajectory(points)")
        return mix(self.points, self.weights(t))

    def state(self, t: Any) -> PyTree:
        """The states of the ends, interpolated linearly at t; None without. Leaves of integers are the nearer end's."""
        if self.states is None:
            return None
        t = float(check_t(t))
        return mix(self.states, np.array([1 - t, t]), widen=False)

    def lengths(self, t: Any) -> Any:
        """The arc length from a to t (...), the integral of |theta'|, in the norm of all parameters.

        It is exact for chains of straight pieces, and computed by quadrature for a Bezier curve.
        """
        t = check_t(t)
        if self.kind in CHAINS:
            return np.interp(t, self._knots(), self._sums())[()]
        edges = np.union1d(np.linspace(0, 1, PIECES + 1), t.ravel())
        nodes, weights = np.polynomial.legendre.leggauss(NODES)
        half = np.diff(edges)[:, None] / 2
        speeds = self._speed(edges[:-1, None] + half * (1 + nodes)) @ weights
        sums = np.concatenate([[0.0], np.cumsum(speeds * half[:, 0])])
        return sums[np.searchsorted(edges, t)][()]

    def spaced(self, points: int = 61, by: str = "length") -> np.ndarray:
        """(points,) increasing t from 0 to 1, evenly spaced along the curve (by="length") or in t (by="t")."""
        num = check_integer("points", points, least=2, remedy="both ends included")
        check_choice("by", by, ("length", "t"))
        even = np.linspace(0, 1, num)
        if by == "t" or (total := float(self.lengths(1.0))) == 0:
            return even
        at = np.union1d(np.linspace(0, 1, 32 * PIECES + 1), self._knots() if self.kind in CHAINS else [])
        lengths = np.asarray(self.lengths(at))
        t = np.interp(even * total, lengths, at)
        if self.kind == "bezier":  # a step of Newton's on the table's answer
            speed = self._speed(t)
            step = (even * total - self.lengths(t)) / np.where(speed > 0, speed, np.inf)
            t = np.clip(t + np.clip(step, -(at[1]), at[1]), 0, 1)
        t[[0, -1]] = 0, 1
        return np.maximum.accumulate(t)

    def trajectory(self, points: int = 61, by: str = "length") -> Trajectory:
        """The points of the curve as a path, evenly spaced along it or in t, with the states interpolated between ends.

        Args:
          points: their number, both ends included.
          by: "length" or "t".
        """
        at = self.spaced(points, by)
        states = None if self.states is None else [self.state(t) for t in at]
        return given([self(t) for t in at], states=states)

    def _knots(self) -> np.ndarray:
        return np.array([0.0, 1.0]) if self.knots is None else self.knots

    @functools.cached_property
    def _steps(self) -> np.ndarray:
        """(K - 1, K - 1): the inner products of the steps from each control point to the next."""
        gram = np.zeros((self.num - 1, self.num - 1))
        for leaf in jax.tree.leaves(self.points):
            steps = np.diff(leaf.reshape(self.num, -1).astype(np.float64), axis=0)
            gram += steps @ steps.T
        return gram

    def _sums(self) -> np.ndarray:
        """(K,): the arc length at each point of a chain."""
        return np.concatenate([[0.0], np.cumsum(np.sqrt(np.diag(self._steps)))])

    def _speed(self, t: np.ndarray) -> np.ndarray:
        """|theta'(t)| of a Bezier curve, n |sum_k B_k(t) (P_k+1 - P_k)| with the basis of degree n - 1."""
        basis = bernstein(self.num - 2, t)
        squares = np.einsum("...i,ij,...j->...", basis, self._steps, basis)
        return (self.num - 1) * np.sqrt(np.maximum(squares, 0))


def fingerprints(curve: Curve) -> list[str]:
    """A short text for each control point of a curve, by which it is known again."""
    return [recipes.fingerprint(point) for point in unstack(curve.points)]


def bernstein(degree: int, t: Any) -> np.ndarray:
    """The Bernstein polynomials C(n, k) t^k (1 - t)^(n - k), k = 0, ..., n, at t (...): (..., n + 1)."""
    t = np.asarray(t, np.float64)[..., None]
    k = np.arange(degree + 1)
    return np.array([math.comb(degree, i) for i in k], np.float64) * t**k * (1 - t) ** (degree - k)


def _hats(knots: np.ndarray, t: np.ndarray) -> np.ndarray:
    """The functions (..., K) at t (...) that are 1 at one of K knots, 0 at the others, and linear between."""
    piece = np.clip(np.searchsorted(knots, t, side="right") - 1, 0, len(knots) - 2)
    part = (t - knots[piece]) / (knots[piece + 1] - knots[piece])
    weights = np.zeros((*t.shape, len(knots)))
    np.put_along_axis(weights, piece[..., None], 1 - part[..., None], -1)
    np.put_along_axis(weights, piece[..., None] + 1, part[..., None], -1)
    return weights


def mix(stacked: PyTree, weights: np.ndarray, widen: bool = True) -> PyTree:
    """sum_k w_k P_k of stacked trees, in float64 on the host; a tree whose weight is 1 is returned to the bit.

    Args:
      stacked: a tree with a leading axis K on every leaf.
      weights: (K,).
      widen: whether floating leaves of less than 32 bits become float32.
    """
    nearest = int(weights.argmax())

    def one(leaf: np.ndarray) -> np.ndarray:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf[nearest]
        dtype = _tree.wide(leaf.dtype) if widen else leaf.dtype
        if weights[nearest] == 1:
            return np.asarray(leaf[nearest].astype(dtype))
        return np.asarray(np.tensordot(weights, leaf.astype(np.float64), 1).astype(dtype))

    return jax.tree.map(one, stacked)


def check_t(t: Any) -> np.ndarray:
    """t as a float64 array; a ValueError unless all are numbers from 0 to 1."""
    array = as_numbers(t)
    if array is None or not (array.size and (array >= 0).all() and (array <= 1).all()):
        raise misuse("t", t, "a number from 0 (the end a) to 1 (the end b), or an array of such")
    return array


def as_numbers(value: Any) -> np.ndarray | None:
    """A float64 array of numbers; None of what are none, texts of numbers included."""
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        return None
    return array.astype(np.float64) if array.dtype.kind in "fiu" else None


def _check_knots(kind: str, knots: Any, num: int) -> np.ndarray | None:
    if kind not in ("polygon", "band"):
        if knots is not None:
            raise misuse("knots", knots, f"None for a {kind}, which has none")
        return None
    if knots is None:
        return np.linspace(0, 1, num)
    rule = f"{num} increasing numbers from 0 to 1, one for each point, such as np.linspace(0, 1, {num})"
    array = as_numbers(knots)
    if array is None or array.shape != (num,) or array[0] != 0 or array[-1] != 1 or not (np.diff(array) > 0).all():
        raise misuse("knots", knots, rule)
    return array


def _check_states(states: PyTree) -> PyTree:
    if not jax.tree.leaves(states):
        return None
    for path, leaf in zip(_tree.paths(states), jax.tree.leaves(states), strict=True):
        if np.shape(leaf)[:1] != (2,):
            raise Misuse(
                "states", f"[{path!r}] has shape {np.shape(leaf)}; it must have a leading axis of 2, the states of a, b"
            )
    check_finite(states, "states")
    return to_host(states)


def stack_points(points: Any, names: Sequence[str]) -> PyTree:
    """The control points in the structure of the first, stacked on the host, after a check that each is finite.

    Args:
      points: K trees.
      names: those of the trees, for errors.

    Raises:
      Misuse: a tree has another structure, other shapes or other types than the first, or is not finite; by its name.
    """
    return stack([align_exactly(point, points[0], name, names[0]) for point, name in zip(points, names, strict=True)])


@explained
def line(a: PyTree, b: PyTree, state_a: PyTree = None, state_b: PyTree = None) -> Curve:
    """The straight line (1 - t) a + t b.

    Args:
      a: the parameters at t = 0.
      b: the parameters at t = 1, of the same structure, shapes and types.
      state_a: the state of the loss at a, such as its BatchNorm statistics; None without.
      state_b: that at b.

    Raises:
      ValueError: trees of other structures, shapes or types; entries that are not finite; one state without the other.
    """
    return Curve("line", stack_points([a, b], ["a", "b"]), states=stack_states(state_a, state_b))


@explained
def bezier(points: Sequence[PyTree], state_a: PyTree = None, state_b: PyTree = None) -> Curve:
    """The Bezier curve of control points P_0, ..., P_n: sum_k C(n, k) t^k (1 - t)^(n - k) P_k.

    Args:
      points: parameter trees of one structure, two or more; the curve begins at the first and ends at the last.
      state_a: the state of the loss at the first; None without.
      state_b: that at the last.

    Raises:
      ValueError: as ``line``.
    """
    names = _check_points(points)
    return Curve("bezier", stack_points(points, names), states=stack_states(state_a, state_b))


@explained
def polygon(points: Sequence[PyTree], knots: Any = None, state_a: PyTree = None, state_b: PyTree = None) -> Curve:
    """The chain of straight pieces through its control points.

    Args:
      points: as for ``bezier``.
      knots: (K,) the t of each point, increasing from 0 to 1; by default evenly spaced.
      state_a: the state of the loss at the first point; None without.
      state_b: that at the last.

    Raises:
      ValueError: as ``line``; knots that do not increase from 0 to 1.
    """
    names = _check_points(points)
    return Curve("polygon", stack_points(points, names), knots, states=stack_states(state_a, state_b))


def _check_points(points: Any) -> list[str]:
    if not isinstance(points, list | tuple | Trajectory) or len(points) < 2:
        raise misuse("points", points, "a list of two or more parameter trees, such as [a, middle, b]")
    return [f"points[{i}]" for i in range(len(points))]
