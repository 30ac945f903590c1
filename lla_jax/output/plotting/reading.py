"""A landscape as a picture needs it: sorted values, and in words and marks what its recipe says of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import groupby
from textwrap import fill
from typing import Any, Literal, NamedTuple

import numpy as np

from lla_jax.core.types import Landscape

Origin = Literal["point", "line"] | None

_LETTERS = "abc"
_KINDS = {
    "adam_moments": "Adam moment",
    "between": "difference of checkpoints",
    "pca": "principal component",
    "orthogonal": "orthogonal pair",
}
_SYMBOLS = {
    "convexity": r"$|\lambda_{\min} / \lambda_{\max}|$",
    "lambda_max": r"$\lambda_{\max}$",
    "lambda_min": r"$\lambda_{\min}$",
}


def quote(names: Iterable[str]) -> str:
    """Names in a message; "none" where there are none."""
    return ", ".join(map(repr, names)) or "none"


def label(name: str) -> str:
    """The name of a value as it stands in a picture."""
    return _SYMBOLS.get(name) or name.replace("_", " ")


def _directions(landscape: Landscape) -> Mapping[str, Any]:
    recipe = landscape.recipe.get("directions")
    return recipe if isinstance(recipe, Mapping) else {}


def direction_names(landscape: Landscape) -> list[str]:
    """Names of the directions; those of eigenvectors with a bracket less, and their value on one line."""
    names = [str(name) for name in _directions(landscape).get("names") or []]
    which = r"^(eigenvector \d+|(?:first|last) eigenvector) \(lambda = (\S+)\)$"
    return [re.sub(which, _eigenvector, name) for name in names]


def _eigenvector(found: re.Match[str]) -> str:
    return f"{found[1]}, λ\xa0=\xa0{found[2].replace('-', chr(0x2212))}"


def _kind(landscape: Landscape) -> str:
    """E.g. "random, filter-normalized"; empty where the recipe does not say."""
    recipe = _directions(landscape)
    kind, steps = recipe.get("kind"), recipe.get("normalize") or []
    by = [str(step.get("by")) for step in steps if isinstance(step, Mapping)]
    says = (
        []
        if not kind or kind in {"join", "eigenvectors", *direction_names(landscape)}
        else [_KINDS.get(kind, label(kind))]
    )
    return ", ".join(says + [f"{name}-normalized" for name in by if name.lower() != "none"])


def axis_label(landscape: Landscape, k: int, width: int) -> str:
    """E.g. "a (units of d1: random)", with the recipe's name of the direction where it has one."""
    names, kind = direction_names(landscape), _kind(landscape)
    text = f"{_LETTERS[k]} (units of {names[k] if k < len(names) else f'd{k + 1}'}"
    whole = f"{text}: {kind})" if kind else f"{text})"
    return whole if len(whole) <= width or not kind else f"{fill(f'{text}:', width)}\n{fill(f'{kind})', width)}"


def _caption(landscape: Landscape) -> str:
    """All axes in one sentence: "a: gradient; b, c: random", or "a, b: units of random directions"."""
    letters, names, kind = _LETTERS[: landscape.dims], direction_names(landscape), _kind(landscape)
    if len(names) < landscape.dims:
        return f"{', '.join(letters)}: units of {kind} directions" if kind else ""
    # the number of a random draw tells nothing; that of a principal component does
    said = [(re.sub(r"^random \d+$", "random", name), letter) for name, letter in zip(names, letters)]
    groups = [(name, [letter for _, letter in same]) for name, same in groupby(said, key=lambda pair: pair[0])]
    return "; ".join(f"{', '.join(group)}: {name}" for name, group in groups) + (f" ({kind})" if kind else "")


def missing(landscape: Landscape) -> str:
    """E.g. "(incomplete: 5,760 of 40,401 points)"; empty where nothing is missing."""
    if landscape.recipe.get("complete", True) is not False:
        return ""
    done, total = landscape.recipe.get("points_done"), 1
    for n in landscape.shape:
        total *= n
    return "(incomplete)" if done is None else f"(incomplete: {done:,} of {total:,} points)"


def origin(landscape: Landscape) -> Origin:
    """Where the trained network is: all of a = 0 under the adam rule; nobody knows under a rule of the user's."""
    rule = str(landscape.recipe.get("rule", "add"))
    return "point" if rule == "add" else "line" if rule == "adam" or rule.startswith("adam(") else None


def marks(landscape: Landscape, dims: int) -> list[tuple[Any, ...]]:
    """The recipe's named points ``(name, a, b, ...)`` that lie in the plane; ``dims`` coordinates, filled up with 0."""
    found = []
    for name, at in _directions(landscape).get("marks") or ():
        if not any(at[landscape.dims :]):  # else it is off the plane
            found.append((str(name), *[float(t) for t in [*at, 0, 0, 0][:dims]]))
    return found


def read(landscape: object, value: str, dims: int, who: str) -> tuple[list[np.ndarray], np.ndarray]:
    """Increasing coordinates, and ``values[value]`` with NaN for what is not finite: a copy."""
    if not isinstance(landscape, Landscape):
        several = "; contour takes {name: landscape} too" if who == "contour" else "; panels draws several"
        raise ValueError(f"landscape of type {type(landscape).__name__} is not a Landscape, give {who} one{several}")
    if landscape.dims != dims:
        use = {1: "line or train_test", 2: "surface, contour or heatmap", 3: "volume"}.get(landscape.dims, "a slice")
        axes = "1 axis" if dims == 1 else f"{dims} axes"
        raise ValueError(f"{who} draws {axes}, this landscape has {landscape.dims}: {landscape.shape}; use {use}")
    if not isinstance(value, str) or value not in landscape.values:
        raise ValueError(f"value={value!r} is not in this landscape; it has {quote(landscape.values)}, give one name")
    z = np.asarray(landscape.values[value], dtype=float)
    if z.shape != landscape.shape:
        raise ValueError(f"values[{value!r}] has shape {z.shape}, but the coordinates make {landscape.shape}")
    orders = [np.argsort(c) for c in landscape.coords]
    coords = [np.asarray(c, float)[order] for c, order in zip(landscape.coords, orders)]
    return coords, np.where(np.isfinite(z), z, np.nan)[np.ix_(*orders)]


class Plane(NamedTuple):
    """One 2-axis picture's content: increasing coordinates, values (NaN where not finite), and what to mark."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    labels: tuple[str, str]  # "a (units of d1: random)"
    caption: str  # "a, b: units of random directions"
    marks: list[tuple[str, float, float]]
    origin: Origin  # where the rule gives the network itself: (0, 0), or all of a = 0 (adam)
    missing: str  # "(incomplete: 3 of 9 points)"


def plane(landscape: Landscape, value: str, who: str, least: int = 2) -> Plane:
    """A landscape of two axes, of which the picture ``who`` needs ``least`` points each."""
    (x, y), z = read(landscape, value, 2, who)
    return assemble(landscape, x, y, z, least, who)


def assemble(landscape: Landscape, x: np.ndarray, y: np.ndarray, z: np.ndarray, least: int, who: str) -> Plane:
    """A plane with what its landscape's recipe says of it; marks outside are dropped."""
    if min(z.shape) < least:
        raise ValueError(f"{who} needs {least} points or more per axis, this landscape has {z.shape}; use heatmap")
    inside = [(n, a, b) for n, a, b, _ in marks(landscape, 3) if x[0] <= a <= x[-1] and y[0] <= b <= y[-1]]
    centre = origin(landscape)
    if not x[0] <= 0 <= x[-1] or (centre == "point" and not y[0] <= 0 <= y[-1]):
        centre = None
    labels = axis_label(landscape, 0, 44), axis_label(landscape, 1, 36)
    return Plane(x, y, z, labels, _caption(landscape), inside, centre, missing(landscape))
