"""Tells for which parameters directions were made: their centres, of which recipes keep a norm or a fingerprint.

Filters that are normalized to one network, its gradient, eigenvectors and moments say nothing about another one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lla_jax.core import precision, recipes
from lla_jax.core.arguments import warn_caller
from lla_jax.core.types import PyTree, Recipe

SAME_TYPES, OTHER_TYPES = 1e-6, 2.0**-8  # relative differences of norms that rounding makes


def norm_of(weights: Sequence[Any]) -> float:
    """The norm of all leaves together, in float64 on the host."""
    arrays = (np.asarray(x).ravel().astype(np.float64) for x in weights)  # one copy at a time
    return float(np.sqrt(sum(np.vdot(x, x) for x in arrays)))


def add(
    recipe: Mapping[str, Any], what: str, params: PyTree, norm: float | None = None, fingerprint: str | None = None
) -> Recipe:
    """The recipe of directions with one centre more.

    Args:
      recipe: the recipe.
      what: the part of the directions that belongs to the parameters, such as "gradient".
      params: the parameters.
      norm: of the parameters, where it is known.
      fingerprint: of the parameters, for directions that belong to a point and not to a network alone.
    """
    norm = norm_of(jax.tree.leaves(params)) if norm is None else norm
    entry = {"what": what, "norm": norm, "types": precision.types_of(params)}
    entry |= {} if fingerprint is None else {"fingerprint": fingerprint}
    return Recipe(recipe, centres=[*_centres_of(recipe), entry])


def _centres_of(recipe: Mapping[str, Any]) -> list[Any]:
    """The centres in a recipe, which may come from a damaged file."""
    found = recipe.get("centres")
    return found if isinstance(found, list) else []


def of_operator(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The entry "centres" of eigenvectors, by the recipe of their operator; nothing if it tells no parameters."""
    described, kinds = recipe.get("params"), recipe.get("precision", {})
    types = kinds.get("given", kinds.get("params"))
    if not described or not types:
        return {}
    entry = {"what": "eigenvectors", "fingerprint": described["fingerprint"], "types": sorted(types)}
    return {"centres": [entry]}


def warn_of_others(name: str, recipe: Mapping[str, Any], params: PyTree, fingerprint: str) -> None:
    """Warn if directions were made for other parameters than those around which they are used.

    Axes between checkpoints, whose line belongs to all its points, are not warned of, nor are directions that are
    joined with one of these parameters, or whose arrays were changed since. Recipes of before tell no centres.

    Args:
      name: the argument's name.
      recipe: the recipe of the directions.
      params: the centre of the landscape.
      fingerprint: of the centre.
    """
    foreign = foreign_parts(recipe, params, fingerprint)
    if foreign:
        warn_caller(
            f"{name}: made for other parameters than params ({', '.join(foreign)}), so that their scale or slopes are "
            "not those of this network; make them for params, or to compare networks along the same axes use "
            "lla.sweep, which takes them for all"
        )


def foreign_parts(recipe: Mapping[str, Any], params: PyTree, fingerprint: str, origins: bool = False) -> list[str]:
    """What belongs to other parameters, such as "gradient"; nothing if some part of the directions belongs to these.

    Args:
      recipe: the recipe of the directions; a damaged one tells nothing.
      params: the parameters.
      fingerprint: of the parameters.
      origins: whether coordinates along the directions matter, which begin at the first of the checkpoints between
        which they lie.
    """
    try:
        return _foreign(recipe, params, fingerprint, origins)
    except (LookupError, TypeError, AttributeError):
        return []


def _foreign(recipe: Mapping[str, Any], params: PyTree, fingerprint: str, origins: bool) -> list[str]:
    parts = [part for part in _parts(recipe, origins) if part]
    if not parts:
        return []
    norm, types = norm_of(jax.tree.leaves(params)), precision.types_of(params)
    foreign = [[str(e["what"]) for e in part if not _is_same(e, norm, types, fingerprint)] for part in parts]
    return list(dict.fromkeys(what for part in foreign for what in part)) if all(foreign) else []


def _parts(recipe: Mapping[str, Any], origins: bool) -> list[list[Mapping[str, Any]]]:
    """The centres of each of the directions that are joined in a recipe, those of the whole included."""
    if (recipe.get("kind") == "between" and not origins) or recipe.get("transformed"):
        return []
    own = _centres_of(recipe)
    inner = [part for each in recipe.get("parts", []) for part in _parts(each, origins)]
    return [part + own for part in inner] or [own]


def _is_same(entry: Mapping[str, Any], norm: float, types: list[str], fingerprint: str) -> bool:
    """Whether a centre is that of the parameters, as far as it can be told: of another type, hashes tell nothing."""
    same_types = entry["types"] == types
    if "fingerprint" in entry and same_types:
        return recipes.same(entry["fingerprint"], fingerprint)
    if "norm" not in entry:
        return True
    rounding = SAME_TYPES if same_types else OTHER_TYPES
    return bool(abs(entry["norm"] - norm) <= rounding * norm)
