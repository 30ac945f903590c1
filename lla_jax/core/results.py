"""The results of computations: landscapes, estimates, eigenpairs and spectra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import numpy as np

from lla_jax.core.arguments import MissingEntry, Misuse, misuse
from lla_jax.core.comparable import Comparable
from lla_jax.core.refusals import AS_SEQUENCE, no_array
from lla_jax.core.signatures import explained
from lla_jax.core.text import pm
from lla_jax.core.types import SAVED, Recipe, pick


@explained
@no_array('holds several arrays; take plane.values["loss"] and plane.coords, or draw it with lla.plotting')
@dataclass(frozen=True, eq=False, repr=False)
class Landscape:
    """Losses (and metrics) on a grid of points around a network.

    Args:
      coords: the coordinates, one 1-D float64 array per axis, in units of the direction.
      values: ``{name: (n1, ..., nk)}`` float64; ``values["loss"][i, j]`` is the loss at
        ``rule(params, directions, (coords[0][i], coords[1][j]))``. NaN or inf where the network gave it.
      stderr: ``{name: (n1, ..., nk)}``: standard errors over the examples; absent where not defined.
      recipe: directions, rule, batch_stats policy, data fingerprint, plan, precision, versions; JSON-able.
      evaluated: (n1, ..., nk) bool, the points at which the network was evaluated, where ``refine=`` interpolated the
        others, with the error in ``recipe["refinement"]``; None where no value is interpolated.
    """

    _meant: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("plot", "show"), "lla.plotting.surface(plane), contour or line"),
        **dict.fromkeys(("min", "max", "mean", "argmin"), 'values["loss"], which is an array'),
        **SAVED,
        "grid": "coords",
    }

    coords: tuple[np.ndarray, ...]
    values: dict[str, np.ndarray]
    stderr: dict[str, np.ndarray]
    recipe: dict[str, Any]
    evaluated: np.ndarray | None = None

    def __repr__(self) -> str:
        directions = self.recipe.get("directions") if isinstance(self.recipe, Mapping) else None
        kind = f" {directions['kind']}" if isinstance(directions, Mapping) and directions.get("kind") else ""
        ranges = [f"{name} {_describe_range(values)}" for name, values in self.values.items()]
        note = f"; {text}" if (text := self.describe_refinement()) else ""
        return f"Landscape({', '.join([' x '.join(map(str, self.shape)) + kind, *ranges])}{note})"

    def __post_init__(self) -> None:
        for argument, each in (("values", self.values), ("stderr", self.stderr)):
            if not isinstance(each, Mapping):
                raise misuse(argument, each, f"a dict of arrays by name, such as {{'loss': {argument}}}")
        shape = tuple(np.shape(c) for c in self.coords) if isinstance(self.coords, tuple | list | np.ndarray) else ((),)
        if any(len(each) != 1 for each in shape):
            raise Misuse("coords", f"axes of shapes {shape} given; pass one 1-D array of coordinates per axis")
        for argument in ("values", "stderr"):
            for name, each in getattr(self, argument).items():
                if np.shape(each) != self.shape:
                    raise Misuse(
                        argument,
                        f"{name!r} has shape {np.shape(each)}, and the coords {self.shape}; pass one value per point",
                    )
        if self.evaluated is not None:
            mask = np.asarray(self.evaluated)
            if mask.dtype != bool or mask.shape != self.shape:
                rule = f"a bool array of the shape of the coords, {self.shape}, or None where no value is interpolated"
                raise misuse("evaluated", self.evaluated, rule)

    def __getitem__(self, name: str) -> np.ndarray:
        """The values of this name: ``plane["loss"]`` is ``plane.values["loss"]``."""
        if not isinstance(name, str):
            raise misuse("name", name, f"the name of a value: {', '.join(self.values)}; of points index plane['loss']")
        if name not in self.values:
            raise MissingEntry("name", f"{name!r} given; the landscape has the values {', '.join(self.values)}")
        return self.values[name]

    def __contains__(self, name: object) -> bool:
        return name in self.values

    @property
    def shape(self) -> tuple[int, ...]:
        """Points per axis (n1, ..., nk)."""
        return tuple(len(c) for c in self.coords)

    @property
    def dims(self) -> int:
        """Number of axes k."""
        return len(self.coords)

    def describe_refinement(self, name: str = "loss") -> str:
        """What is interpolated, and its error in words; empty where every value comes from the network.

        Such as "420 of 1,681 points evaluated, the rest within 0.8 % of the range (95 %)".

        Args:
          name: the name of the value whose error is told.
        """
        if self.evaluated is None:
            return ""
        about = self.recipe.get("refinement") if isinstance(self.recipe, Mapping) else None
        points = f"{np.count_nonzero(self.evaluated):,} of {self.evaluated.size:,} points evaluated"
        if isinstance(self.recipe, Mapping) and self.recipe.get("complete") is False:
            return f"{points} so far"
        return f"{points}, the rest {describe_error(about if isinstance(about, Mapping) else {}, name)}"

    def only_evaluated(self, name: str) -> np.ndarray:
        """(n1, ..., nk): the values of this name where the network was evaluated, and NaN where they are interpolated.

        Args:
          name: a name in ``values``.
        """
        values = np.asarray(self[name], np.float64)
        return values if self.evaluated is None else np.where(self.evaluated, values, np.nan)


def describe_error(about: Mapping[str, Any], name: str = "loss") -> str:
    """The error of interpolated values in words, from the entry "refinement" of a recipe, perhaps of a file.

    Args:
      about: the entry: "errors" has, by name, the share of the range below which the errors of most points are.
      name: the name of the value.
    """
    errors, scales, level = (about.get(key) for key in ("errors", "scales", "level"))
    error = errors.get(name) if isinstance(errors, Mapping) else about.get("error") if name == "loss" else None
    if not isinstance(error, float | int) or not np.isfinite(error):
        return "interpolated, with an unknown error"
    scale = scales.get(name) if isinstance(scales, Mapping) else about.get("scale") if name == "loss" else None
    text = f"within {100 * error:.2g} % of the {'logarithmic range' if scale == 'log' else 'range'}"
    share = about.get("percentile", 95.0)  # less where many points were known before, which say little of the others
    if isinstance(share, float | int) and 0 <= share < 95:
        text += f" for {int(share)} % of them"
    return text + (f" ({100 * level:.0f} %)" if isinstance(level, float) and 0 < level < 1 else "")


@explained
@no_array("is a mean with its error; take estimate.mean and estimate.sem", AS_SEQUENCE)
@dataclass(frozen=True, eq=False)
class Estimate(Comparable):
    """A number with its standard error: mean +- 2 sem holds the truth in about 95 of 100 cases.

    Where a number is needed, as in ``float(estimate)``, ``estimate / 2`` or ``estimate > 0``, it is its mean, and the
    result has no error. ``f"{estimate:.3f}"`` shows the mean in this format, and the error with two digits.

    Args:
      mean: the estimate, a float (or, for ``diagonal``, a parameter tree).
      sem: its standard error, of the same kind; NaN where one draw leaves it unknown, 0 where the value is exact. It is
        wider than the plain one, s / sqrt(num), where that would not hold the truth: of few or skewed draws, of draws
        that are not independent, and of criteria that depend on the steps (recipe: "statistical" and "systematic").
      num: number of independent draws (probes, test vectors) over which the mean is taken.
      recipe: how it was made: steps, probes, scheme, products, whether it converged; JSON-able.
      state: arrays from which an interrupted computation continues; None in a finished result.
    """

    _meant: ClassVar[dict[str, str]] = {
        **SAVED,
        "value": "mean",
        **dict.fromkeys(("std", "stderr", "error", "standard_error", "se", "uncertainty"), "sem"),
    }

    mean: Any
    sem: Any
    num: int
    recipe: dict[str, Any] = field(default_factory=dict)
    state: dict[str, np.ndarray] | None = None

    def __repr__(self) -> str:
        if not isinstance(self.mean, float | int | np.number):
            recipe = self.recipe
            size, sem = (recipe.get(name) for name in ("norm", "norm_sem"))
            norm = f", norm {pm(size, sem, 6)}" if isinstance(size, float) and isinstance(sem, float) else ""
            return f"Estimate(of {len(jax.tree.leaves(self.mean))} arrays{norm}, num={self.num})"
        unknown = ", no error from one draw" if self.num == 1 and np.isnan(self.sem) else ""
        return f"Estimate({pm(float(self.mean), self.sem, 6)}{unknown}, num={self.num})"

    def __bool__(self) -> bool:
        raise Misuse(
            "Estimate", f"{self!r} is neither true nor false; write estimate is not None, or estimate > 0 for its mean"
        )

    def __format__(self, form: str) -> str:
        if not form:
            return str(self)
        try:
            return f"{float(self):{form}}" + ("" if np.isnan(self.sem) else f" +- {self.sem:.2g}")
        except ValueError as error:
            if isinstance(error, Misuse):
                raise
            raise misuse("format", form, 'a format of numbers, such as ".3f", ".4g" or "10.2e"') from error


@explained
@no_array(
    "holds values and vectors; take values, vectors = pairs.values, pairs.vectors, or one after another: "
    "for value, vector in zip(pairs.values, pairs.vectors)"
)
@dataclass(frozen=True, eq=False, repr=False)
class Eigenpairs:
    """Eigenvalues and eigenvectors of a symmetric operator, each with its error.

    Args:
      values: (k,) float64, in the order asked for.
      vectors: k ``Directions`` of unit norm over all parameters (zero outside of a selection), or None if the operator
        does not act on parameters.
      residuals: (k,) float64, ||H v - lambda v||, confirmed by one more product, plus rounding: some exact
        eigenvalue is no farther than that from the one in ``values``.
      products: number of products with the operator that were used.
      recipe: operator, which, tol, whether all converged; JSON-able.
      state: arrays from which an interrupted computation continues; None in a finished result.
    """

    _meant: ClassVar[dict[str, str]] = SAVED

    values: np.ndarray
    vectors: Any
    residuals: np.ndarray
    products: int
    recipe: dict[str, Any]
    state: dict[str, np.ndarray] | None = None

    def __repr__(self) -> str:
        each = ", ".join(pm(v, r, 6) for v, r in zip(self.values, self.residuals, strict=True))
        return f"Eigenpairs({each}; {self.products} products)"

    @property
    def num(self) -> int:
        """Number of pairs k."""
        return len(self.values)

    def __len__(self) -> int:
        return self.num

    def __bool__(self) -> bool:
        return True  # also of no pairs

    def __getitem__(self, index: int | slice | Sequence[int]) -> Eigenpairs:
        """Some of the pairs, such as ``pairs[:2]``; an int keeps a leading axis (k = 1)."""
        picked = pick(index, self.num, "pairs")
        recipe = Recipe(self.recipe)
        recipe["chosen"] = [int(i) for i in np.asarray(recipe.get("chosen", range(self.num)))[picked]]
        vectors = None if self.vectors is None else self.vectors[picked]
        return Eigenpairs(self.values[picked], vectors, self.residuals[picked], self.products, recipe)


@explained
@no_array("holds spectrum.nodes and spectrum.weights; lla.density(spectrum) makes the curve, lla.plotting its picture")
@dataclass(frozen=True, eq=False, repr=False)
class Spectrum:
    """A spectral density from stochastic Lanczos quadrature: nodes and weights, one row per probe.

        tr f(H) / n  ~  mean over probes p of  sum_i weights[p, i] f(nodes[p, i])

    Args:
      nodes: (probes, steps) float64, Ritz values in ascending order. A probe that ended early (an invariant subspace)
        repeats its last node with weight 0.
      weights: (probes, steps) float64, not negative; every row sums to 1.
      recipe: operator, steps, probes, start distribution, scheme, products; JSON-able.
      state: arrays from which an interrupted computation continues; None in a finished result.
    """

    _meant: ClassVar[dict[str, str]] = {
        **SAVED,
        "eigenvalues": "nodes, its Ritz values",
        "density": "lla.density(spectrum)",
        "plot": "lla.plotting.spectral_density(spectrum)",
    }

    nodes: np.ndarray
    weights: np.ndarray
    recipe: dict[str, Any]
    state: dict[str, np.ndarray] | None = None

    def __post_init__(self) -> None:
        shape = np.shape(self.nodes)
        if len(shape) != 2 or np.shape(self.weights) != shape:
            text = f"nodes of shape {shape} and weights of shape {np.shape(self.weights)} given; both must be "
            raise Misuse("nodes", f"{text}(probes, steps): of one probe pass nodes[None] and weights[None]")

    def __repr__(self) -> str:
        probes, steps = self.nodes.shape
        ends = f"{self.nodes.min():.4g} .. {self.nodes.max():.4g}" if self.nodes.size else "empty"
        return f"Spectrum({probes} probes x {steps} steps, {ends})"

    @property
    def probes(self) -> int:
        """Number of probes (rows)."""
        return len(self.nodes)


def _describe_range(values: Any) -> str:
    """The range of the values of a landscape, in a few words."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiubc" and array.dtype.name != "bfloat16":  # made by the user
        return f"of {array.dtype}"
    return f"{np.nanmin(array):.4g} .. {np.nanmax(array):.4g}" if np.isfinite(array).any() else "not finite"
