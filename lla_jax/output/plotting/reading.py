"""Reads a landscape for a picture: sorted coordinates and values, and labels and marks from its recipe."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from textwrap import fill
from typing import Any, Literal, NamedTuple

import numpy as np

from lla_jax.core.arguments import Misuse, check_choice, misuse, show_value
from lla_jax.core.results import Eigenpairs, Estimate, Landscape, Spectrum
from lla_jax.core.types import Directions

Origin = Literal["point", "line"] | None

_LETTERS = "abc"
_KINDS = {
    "adam_moments": "Adam moment",
    "between": "difference of checkpoints",
    "pca": "principal components",
    "orthogonal": "orthogonal pair",
}
_SYMBOLS = {
    "convexity": r"$|\lambda_{\min} / \lambda_{\max}|$",
    "lambda_max": r"$\lambda_{\max}$",
    "lambda_min": r"$\lambda_{\min}$",
}
_LARGEST = 1e280
"""The largest magnitude that is drawn: matplotlib's margins and ticks overflow beyond."""

_DRAWS = {1: "line or train_test", 2: "surface, contour or heatmap", 3: "volume"}
"""The functions that draw a landscape, by its number of axes."""

_PATHS = {
    "Trajectory": "a path: seen = lla.paths.project(path, axes), which trajectory(plane, seen) and film draw",
    "Projection": "a projection: trajectory(plane, seen) and film(plane, seen) draw it, of a curve curve(plane, seen)",
    "Barrier": "a barrier: barrier draws it",
    "Curve": "a curve: barrier draws lla.paths.evaluate(curve, loss, data), curve its plane, and band a band",
    "SpanningTree": "a spanning tree: of its curves draw one, tree.curves[0]",
}
"""How results of ``lla_jax.paths`` are drawn, by the name of their type."""


def quote(names: Iterable[str]) -> str:
    """The names in quotes, with commas, for a message; "none" if there is no name."""
    return ", ".join(map(repr, names)) or "none"


def label(name: str) -> str:
    """The name of a value as pictures show it: a formula for eigenvalues, else with spaces for underscores."""
    return _SYMBOLS.get(name) or name.replace("_", " ")


def _directions(landscape: Landscape) -> Mapping[str, Any]:
    recipe = landscape.recipe.get("directions")
    return recipe if isinstance(recipe, Mapping) else {}


def direction_names(landscape: Landscape) -> list[str]:
    """The recipe's names of the directions; an empty list if it has none.

    "eigenvector 1 (lambda = -2)" becomes "eigenvector 1, λ = -2", and "PC 1: 84 %" becomes "PC 1, 84 %", with spaces at
    which no line is broken.
    """
    names = [str(name) for name in _directions(landscape).get("names") or []]
    pattern = r"^(eigenvector \d+|(?:first|last) eigenvector) \(lambda = (\S+)\)$"
    names = [re.sub(r"^PC (\d+): (\S+) %$", "PC\xa0\\1, \\2\xa0%", name) for name in names]
    return [re.sub(pattern, _eigenvector_name, name) for name in names]


def _eigenvector_name(match: re.Match[str]) -> str:
    return f"{match[1]}, λ\xa0=\xa0{match[2].replace('-', chr(0x2212))}"


def _kind(landscape: Landscape) -> str:
    """How directions were made, such as "random, filter-normalized"; empty where the recipe does not say."""
    recipe = _directions(landscape)
    kind, steps = recipe.get("kind"), recipe.get("normalize") or []
    by = [str(step.get("by")) for step in steps if isinstance(step, Mapping)]
    names = direction_names(landscape)
    named = {"join", "eigenvectors", *names}  # kinds that the names of the directions say
    named |= {"pca"} if any(map(_is_component, names)) else set()
    words = [_KINDS.get(kind, label(kind))] if kind and kind not in named else []
    return ", ".join(words + [f"{name}-normalized" for name in by if name.lower() != "none"])


def _is_component(name: str) -> bool:
    """Whether this is the name of a principal component of a path."""
    return name.startswith(("PC ", "PC\xa0"))


def axis_label(landscape: Landscape, k: int, width: int) -> str:
    """The label of axis k, such as "a (units of d1: random)", with the recipe's name of the direction if it has one.

    A label of more than ``width`` characters is broken into lines.
    """
    names, kind = direction_names(landscape), _kind(landscape)
    if landscape.recipe.get("rule") == "curve":
        return f"t ({_directions(landscape).get('curve', 'curve')}, from a to b)"
    name = names[k] if k < len(names) else f"d{k + 1}"
    text = f"{_LETTERS[k]} (units of {name}"
    if _is_component(name):  # of length 1
        text = f"{_LETTERS[k]} (along {name} of the variance"
    line = f"{text}: {kind})" if kind else f"{text})"
    return line if len(line) <= width or not kind else f"{fill(f'{text}:', width)}\n{fill(f'{kind})', width)}"


def _caption(landscape: Landscape) -> str:
    """All axes in one line: "a: gradient; b, c: random", or "a, b: units of random directions"; else empty."""
    letters, names, kind = _LETTERS[: landscape.dims], direction_names(landscape), _kind(landscape)
    if len(names) < landscape.dims:
        return f"{', '.join(letters)}: units of {kind} directions" if kind else ""
    # the number of a random draw tells nothing; that of a principal component does
    pairs = [(re.sub(r"^random \d+$", "random", name), letter) for name, letter in zip(names, letters)]
    groups = [(name, [letter for _, letter in same]) for name, same in groupby(pairs, key=lambda pair: pair[0])]
    return "; ".join(f"{', '.join(group)}: {name}" for name, group in groups) + (f" ({kind})" if kind else "")


def incomplete_note(landscape: Landscape) -> str:
    """A note such as "(incomplete: 5,760 of 40,401 points)"; empty where every point was computed."""
    if landscape.recipe.get("complete", True) is not False:
        return ""
    done, total = landscape.recipe.get("points_done"), 1
    for n in landscape.shape:
        total *= n
    return "(incomplete)" if done is None else f"(incomplete: {done:,} of {total:,} points)"


def origin(landscape: Landscape) -> Origin:
    """Where the trained network is: "point" 0, under the adam rule the "line" a = 0, under a user's rule None."""
    rule = str(landscape.recipe.get("rule", "add"))
    return "point" if rule == "add" else "line" if rule == "adam" or rule.startswith("adam(") else None


def marks(landscape: Landscape, dims: int) -> list[tuple[Any, ...]]:
    """The recipe's named points in the landscape, ``(name, a, b, ...)``: ``dims`` coordinates, filled up with 0."""
    inside = []
    recorded = _directions(landscape).get("marks") or ()
    try:
        for name, at in recorded:
            if not any(at[landscape.dims :]):  # otherwise the point is off the plane
                inside.append((str(name), *[float(t) for t in [*at, 0, 0, 0][:dims]]))
    except (TypeError, ValueError) as error:
        raise misuse(
            'landscape.recipe["directions"]["marks"]', recorded, "[[name, [a, b]], ...], or leave it out"
        ) from error
    return inside


def wrong_object(argument: str, value: Any, rule: str) -> Misuse:
    """Make the error for an object that a function does not draw; it says how this one is drawn."""
    return misuse(argument, value, "; ".join(filter(None, (rule, _how_to_draw(value)))))


def check_landscape(landscape: object, argument: str = "landscape", others: str = "") -> None:
    """Refuse what is no landscape, with how it is drawn.

    Args:
      landscape: the user's argument.
      argument: its name, for the message.
      others: what else it may be, for the message.
    """
    if not isinstance(landscape, Landscape):
        raise wrong_object(argument, landscape, f"a Landscape, as lla.evaluate returns it{others}")


def _how_to_draw(value: Any) -> str:
    """How a user draws an object that stands in the wrong place; empty where nothing is known of it."""
    if isinstance(value, Landscape):
        use = _DRAWS.get(value.dims, "evaluate on fewer axes")
        return f"a landscape of {value.dims} ax{'i' if value.dims == 1 else 'e'}s: {use}"
    if isinstance(value, Spectrum):
        return "a spectrum: spectral_density draws it"
    if isinstance(value, Eigenpairs):
        return "eigenpairs: scree draws their values"
    if isinstance(value, Estimate):
        return "an estimate is one number: print it"
    if isinstance(value, Directions):
        return "directions are axes: plane = lla.evaluate(loss, params, data, axes, lla.grid()) is what to draw"
    if type(value).__name__ in _PATHS and type(value).__module__.startswith("lla_jax.paths."):
        return _PATHS[type(value).__name__]
    if isinstance(value, str | Path):
        return f"a file is read first: lla.load({str(value)[:40]!r})"
    if hasattr(value, "mv"):
        return "an operator: draw lla.spectrum(H, key) by spectral_density, or lla.eigenpairs(H, key, k=5) by scree"
    if hasattr(value, "savefig"):
        return 'this is a figure already: save it, fig.savefig("picture.png")'
    if hasattr(value, "landscapes"):
        return 'of a sweep draw one, such as table[0, "filter", 0], or several: panels({"seed 0": table[...], ...})'
    if hasattr(value, "sigma") and hasattr(value, "density"):
        return "this is a density already: pass the spectrum itself, as lla.spectrum returned it"
    if isinstance(value, Mapping | Sequence):
        return _how_to_draw_several(list(value.values() if isinstance(value, Mapping) else value))
    if hasattr(value, "shape"):
        return 'values alone have no coordinates: lla.Landscape((a, b), {"loss": values}, {}, {}) has both'
    return "first compute it: lla.evaluate(loss, params, data, axes, lla.grid())" if callable(value) else ""


def _how_to_draw_several(values: list[Any]) -> str:
    """How a user draws the entries of a list or dict."""
    if values and all(isinstance(value, Landscape) for value in values):
        return "several planes: panels or contour with {name: landscape}; several lines: line(..., ax=ax) for each"
    if values and all(isinstance(value, Spectrum) for value in values):
        return "several spectra: spectral_density({name: spectrum, ...})"
    return "rows of per_layer: layers draws them" if values and hasattr(values[0], "lambda_max") else ""


def read(
    landscape: Any, value: Any, dims: int, function: str, argument: str = "landscape"
) -> tuple[list[np.ndarray], np.ndarray]:
    """(increasing coordinates of each axis, values sorted likewise): copies, with NaN for values that are not finite.

    Args:
      landscape: the user's argument.
      value: the name of the values.
      dims: the number of axes that the picture has.
      function: the name of the plotting function, for messages.
      argument: that of the landscape, for messages.

    Raises:
      ValueError: another type or number of axes, an unknown value, values of another shape than the coordinates.
    """
    several = ", or {name: landscape}" if function == "contour" and argument == "landscape" else ""
    check_landscape(landscape, argument, several)
    if landscape.dims != dims:
        use = f"so use {_DRAWS[landscape.dims]}" if landscape.dims in _DRAWS else "so evaluate on fewer axes"
        axes = "1 axis" if dims == 1 else f"{dims} axes"
        raise Misuse(
            argument, f"{show_value(landscape)} given; {function} draws {axes}, and this has {landscape.dims}, {use}"
        )
    names = "the names of this landscape's values"
    if isinstance(value, Landscape):
        names += "; several landscapes are drawn by panels or contour with {name: landscape}"
    check_choice("value", value, landscape.values, names)
    z = _real(landscape.values[value], f"{argument}.values[{value!r}]")
    if z.shape != landscape.shape:
        raise Misuse(
            argument,
            f"values[{value!r}] has shape {z.shape}, but the coordinates make {landscape.shape}; mend one of them",
        )
    if not isinstance(landscape.recipe, Mapping):
        raise misuse(f"{argument}.recipe", landscape.recipe, "a dict, which may be empty")
    coords = [_coordinates(c, f"{argument}.coords[{k}]") for k, c in enumerate(landscape.coords)]
    orders = [np.argsort(c) for c in coords]
    drawn = np.where(np.abs(z) < _LARGEST, z, np.nan)
    return [c[order] for c, order in zip(coords, orders)], drawn[np.ix_(*orders)]


def _coordinates(c: Any, name: str) -> np.ndarray:
    """The coordinates of an axis as floats, if they can be drawn: finite and all different."""
    values = _real(c, name)
    if values.ndim != 1 or not (np.abs(values) < _LARGEST).all() or len(np.unique(values)) < len(values):
        raise misuse(name, values, "a 1-D array of finite numbers, all different, as lla.grid makes it")
    return values


def _real(values: Any, name: str) -> np.ndarray:
    """Values as an array of floats, if they are real numbers."""
    try:
        z = np.asarray(values)
        if not np.iscomplexobj(z):
            return z.astype(float)
    except (TypeError, ValueError, RuntimeError) as error:
        raise misuse(name, values, "an array of real numbers, one for each point") from error
    raise misuse(name, z, "real; draw abs(values) or values.real")


class Plane(NamedTuple):
    """The content of a picture of two axes: increasing coordinates, values (NaN where not finite), labels, marks."""

    x: np.ndarray
    y: np.ndarray
    z: np.ndarray
    labels: tuple[str, str]  # "a (units of d1: random)"
    caption: str  # "a, b: units of random directions"
    marks: list[tuple[str, float, float]]
    origin: Origin  # the trained network: at the "point" (0, 0), on the "line" a = 0 (adam), or not in the picture
    incomplete: str  # "(incomplete: 3 of 9 points)"
    evaluated: np.ndarray | None = None  # (m, 2), the points (a, b) whose values are not interpolated; None: all are
    interpolated: str = ""  # "420 of 1,681 points evaluated, ...", with the error of the others
    mesh: int = 121  # the most vertices per axis of a surface; odd, so that a centre cell stays

    def holds(self, a: Any, b: Any) -> np.ndarray:
        """Whether points (a, b) lie on the part of the plane that is drawn, where rounding may move them over a border.

        Args:
          a: the first coordinate of each point.
          b: the second one, of the same shape.
        """
        pads = 1e-9 * np.ptp(self.x), 1e-9 * np.ptp(self.y)
        inside: np.ndarray = (a >= self.x[0] - pads[0]) & (a <= self.x[-1] + pads[0])
        return inside & (b >= self.y[0] - pads[1]) & (b <= self.y[-1] + pads[1])


def plane(landscape: Landscape, value: str, function: str, least: int = 2, argument: str = "landscape") -> Plane:
    """The picture's content from a landscape of two axes; refused with fewer than ``least`` points on an axis."""
    (x, y), z = read(landscape, value, 2, function, argument)
    return assemble(landscape, x, y, z, least, function)._replace(**refined(landscape, value, x, y))


def evaluated(landscape: Landscape) -> np.ndarray | None:
    """Which values are not interpolated, in the order of ``read``; None if none is, or the landscape is unfinished."""
    if landscape.evaluated is None or incomplete_note(landscape):
        return None
    return np.asarray(landscape.evaluated)[np.ix_(*(np.argsort(c) for c in landscape.coords))]


def refined(landscape: Landscape, value: str, x: np.ndarray, y: np.ndarray, k: int | None = None) -> dict[str, Any]:
    """The fields "evaluated" and "interpolated" of a ``Plane``; none of them where no value is interpolated.

    Args:
      landscape: the landscape.
      value: the name of the values.
      x: the increasing coordinates of the first axis.
      y: those of the second.
      k: the index of the slice of a volume.
    """
    if (mask := evaluated(landscape)) is None:
        return {}
    i, j = np.nonzero(mask if k is None else mask[:, :, k])
    return {"evaluated": np.stack([x[i], y[j]], -1), "interpolated": landscape.describe_refinement(value)}


def assemble(landscape: Landscape, x: np.ndarray, y: np.ndarray, z: np.ndarray, least: int, function: str) -> Plane:
    """A plane of these values, with labels and marks from the recipe; marks outside of x and y are dropped."""
    if min(z.shape) < least:
        remedy = "evaluate more points" if function == "volume" else "use heatmap"
        raise Misuse(
            "landscape", f"{z.shape} points given, but {function} needs {least} points or more per axis; {remedy}"
        )
    inside = [(n, a, b) for n, a, b, _ in marks(landscape, 3) if x[0] <= a <= x[-1] and y[0] <= b <= y[-1]]
    marked = origin(landscape)
    if not x[0] <= 0 <= x[-1] or (marked == "point" and not y[0] <= 0 <= y[-1]):
        marked = None
    labels = axis_label(landscape, 0, 44), axis_label(landscape, 1, 36)
    return Plane(x, y, z, labels, _caption(landscape), inside, marked, incomplete_note(landscape))
