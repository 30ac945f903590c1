"""What a landscape's recipe says in words: axis labels, captions, titles, and where its known points are."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import groupby
from textwrap import fill
from typing import Any, Literal

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


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names)) or "none"


def _pretty(name: str) -> str:
    return _SYMBOLS.get(name) or name.replace("_", " ")


def _wrapped(text: str, width: int) -> str:
    """Lines of at most ``width`` characters; a formula is left in one piece."""
    return "\n".join(line if "$" in line else fill(line, width, break_on_hyphens=False) for line in text.split("\n"))


def _broken(title: str, width: int) -> str:
    """As ``_wrapped``; a line that is too long is broken at its last comma if its parts are short enough."""
    lines = []
    for line in title.split("\n"):
        head, comma, tail = line.rpartition(", ")
        fits = comma and len(line) > width >= max(len(head) + 1, len(tail))
        lines.append(f"{head},\n{tail}" if fits else line)
    return _wrapped("\n".join(lines), width)


def _lines(caption: str, width: int) -> str:
    """A caption that is too long has a line for each axis."""
    apart = caption if len(caption) <= width else caption.replace("; ", ";\n").replace(" (", "\n(")
    return _wrapped(apart, width)


def _directions(landscape: Landscape) -> Mapping[str, Any]:
    recipe = landscape.recipe.get("directions")
    return recipe if isinstance(recipe, Mapping) else {}


def _names(landscape: Landscape) -> list[str]:
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
    says = [] if not kind or kind in {"join", "eigenvectors", *_names(landscape)} else [_KINDS.get(kind, _pretty(kind))]
    return ", ".join(says + [f"{name}-normalized" for name in by if name.lower() != "none"])


def _axis_label(landscape: Landscape, k: int, width: int) -> str:
    """E.g. "a (units of d1: random)", with the recipe's name of the direction where it has one."""
    names, kind = _names(landscape), _kind(landscape)
    text = f"{_LETTERS[k]} (units of {names[k] if k < len(names) else f'd{k + 1}'}"
    whole = f"{text}: {kind})" if kind else f"{text})"
    return whole if len(whole) <= width or not kind else f"{fill(f'{text}:', width)}\n{fill(f'{kind})', width)}"


def _caption(landscape: Landscape) -> str:
    """All axes in one sentence: "a: gradient; b, c: random", or "a, b: units of random directions"."""
    letters, names, kind = _LETTERS[: landscape.dims], _names(landscape), _kind(landscape)
    if len(names) < landscape.dims:
        return f"{', '.join(letters)}: units of {kind} directions" if kind else ""
    # the number of a random draw tells nothing; that of a principal component does
    said = [(re.sub(r"^random \d+$", "random", name), letter) for name, letter in zip(names, letters)]
    groups = [(name, [letter for _, letter in same]) for name, same in groupby(said, key=lambda pair: pair[0])]
    return "; ".join(f"{', '.join(group)}: {name}" for name, group in groups) + (f" ({kind})" if kind else "")


def _told(title: str, caption: str) -> bool:
    """Whether a title says already what the caption would."""
    words = set(re.findall(r"[a-z-]{4,}", caption.lower())) - {"units", "directions"}
    return bool(words) and all(word in title.lower() for word in words)


def _common(names: list[str]) -> str:
    """One label for several values: the words they all end in ("loss"), else all of them if that is short."""
    if len(names) == 1:
        return _pretty(names[0])
    words = [name.split("_")[::-1] for name in names]
    same = [group[0] for group in zip(*words)]
    count = next((i for i, group in enumerate(zip(*words)) if len(set(group)) > 1), len(same))
    every = ", ".join(map(_pretty, names))
    return " ".join(same[:count][::-1]) or (every if len(every) <= 36 else "value")


def _unfinished(landscape: Landscape) -> str:
    """ "" or "(incomplete: 5,760 of 40,401 points)"."""
    if landscape.recipe.get("complete", True) is not False:
        return ""
    done, total = landscape.recipe.get("points_done"), 1
    for n in landscape.shape:
        total *= n
    return "(incomplete)" if done is None else f"(incomplete: {done:,} of {total:,} points)"


def _origin(landscape: Landscape) -> Origin:
    """Where the trained network is: all of a = 0 under the adam rule; nobody knows under a rule of the user's."""
    rule = str(landscape.recipe.get("rule", "add"))
    return "point" if rule == "add" else "line" if rule == "adam" or rule.startswith("adam(") else None


def _marks(landscape: Landscape, dims: int) -> list[tuple[Any, ...]]:
    """The recipe's named points ``(name, a, b, ...)`` that lie in the plane; ``dims`` coordinates, filled up with 0."""
    marks = []
    for name, at in _directions(landscape).get("marks") or ():
        if not any(at[landscape.dims :]):  # else it is off the plane
            marks.append((str(name), *[float(t) for t in [*at, 0, 0, 0][:dims]]))
    return marks


# ------------------------------------------------------------------------------------------- reading a landscape


def _read(landscape: object, value: str, dims: int, who: str) -> tuple[list[np.ndarray], np.ndarray]:
    """Increasing coordinates, and ``values[value]`` with NaN for what is not finite: a copy."""
    if not isinstance(landscape, Landscape):
        several = "; contour takes {name: landscape} too" if who == "contour" else "; panels draws several"
        raise ValueError(f"landscape of type {type(landscape).__name__} is not a Landscape, give {who} one{several}")
    if landscape.dims != dims:
        use = {1: "line or train_test", 2: "surface, contour or heatmap", 3: "volume"}.get(landscape.dims, "a slice")
        axes = "1 axis" if dims == 1 else f"{dims} axes"
        raise ValueError(f"{who} draws {axes}, this landscape has {landscape.dims}: {landscape.shape}; use {use}")
    if not isinstance(value, str) or value not in landscape.values:
        raise ValueError(f"value={value!r} is not in this landscape; it has {_listed(landscape.values)}, give one name")
    z = np.asarray(landscape.values[value], dtype=float)
    if z.shape != landscape.shape:
        raise ValueError(f"values[{value!r}] has shape {z.shape}, but the coordinates make {landscape.shape}")
    orders = [np.argsort(c) for c in landscape.coords]
    coords = [np.asarray(c, float)[order] for c, order in zip(landscape.coords, orders)]
    return coords, np.where(np.isfinite(z), z, np.nan)[np.ix_(*orders)]
