"""Eigenvectors of a curvature as the axes of a landscape; public as ``directions.eigenvectors``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lla_jax.core import tree as _tree
from lla_jax.core.types import Directions, Eigenpairs, Recipe
from lla_jax.directions.normalization import checked


def eigenvectors(pairs: Eigenpairs, which: int | Sequence[int] = (0, 1)) -> Directions:
    """Eigenvectors v_i of the Hessian (or of another operator on the parameters) as directions of unit norm.

        L(theta + a v_i + b v_j)  ~  L(theta) + a g'v_i + b g'v_j + (lambda_i a^2 + lambda_j b^2) / 2

    A coordinate of 1 is a distance of 1 in parameter space. The sign of an eigenvector is arbitrary.

    Args:
      pairs: what ``lla.eigenpairs`` returned.
      which: indices into ``pairs.values``, each once; negative ones count from the end.

    Returns:
      The vectors as ``pairs`` has them, named such as "eigenvector 1 (lambda = 12.3)"; the recipe has the chosen
      values and residuals.

    Raises:
      ValueError: not ``Eigenpairs``, without vectors, or of a preconditioned operator; an index that does not exist or
        comes twice; a vector that is not finite or not of unit norm.

    References:
      Böttcher and Wheeler 2022, arXiv:2208.13219.
    """
    if not isinstance(pairs, Eigenpairs):
        raise ValueError(f"pairs: got {type(pairs).__name__}; the rule is Eigenpairs, as lla.eigenpairs returns them")
    if pairs.vectors is None:
        raise ValueError(
            f"pairs: has {pairs.num} values and no vectors; the rule is pairs of an operator on parameters"
        )
    operator = pairs.recipe.get("operator", {})
    if "preconditioned" in operator:
        raise ValueError(
            "pairs: of a preconditioned operator, whose vectors are scaled: no directions in parameter space; pass the "
            "pairs of the plain operator"
        )
    chosen = _indices(which, pairs.num)
    tree = pairs.vectors[chosen].tree
    values, residuals = (np.asarray(x, np.float64)[chosen].tolist() for x in (pairs.values, pairs.residuals))
    names = [f"eigenvector {i + 1} (lambda = {value:.3g})" for i, value in zip(chosen, values)]
    recipe = Recipe(kind="eigenvectors", names=names, indices=chosen, values=values, residuals=residuals)
    recipe["operator"] = operator.get("kind", "given")
    axes = checked(tree, recipe, "an eigenvector has norm 1; compute the pairs again")
    lengths = [float(_tree.norm(vector)) for vector in _tree.unstack(tree)]
    if max(abs(length - 1) for length in lengths) > 0.01:  # bfloat16 keeps 0.2 %
        raise ValueError(f"pairs: its vectors {chosen} have norms {lengths}; the rule is 1, as lla.eigenpairs has them")
    return axes


def _indices(which: int | Sequence[int], num: int) -> list[int]:
    """Indices from 0, after making sure that each exists, and once."""
    if not num:
        raise ValueError("pairs: holds no pair; compute some with lla.eigenpairs(operator, key, k=...)")
    given: list[Any] = [which] if np.ndim(which) == 0 else list(which)  # type: ignore[arg-type]
    rule = f"the rule is indices of the {num} pair(s), 0 to {num - 1} or -1 to -{num} from the end, each once"
    if not given or not all(isinstance(i, int | np.integer) and not isinstance(i, bool) for i in given):
        raise ValueError(f"which: {which!r} given; {rule}")
    if not all(-num <= i < num for i in given):
        raise ValueError(f"which: {which!r} given; {rule}. More pairs: lla.eigenpairs(operator, key, k=...)")
    if len({i % num for i in given}) < len(given):
        raise ValueError(f"which: {which!r} given; {rule}")
    return [int(i) % num for i in given]
