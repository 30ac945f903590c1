"""Directions that training or the Hessian give: Adam's moments, gradients, differences of checkpoints, eigenvectors."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import losses
from lla_jax.core import tree as _tree
from lla_jax.core.types import Directions, Eigenpairs, Path, PyTree, Recipe
from lla_jax.directions.checks import checked


def adam_moments(opt_state: PyTree, params: PyTree) -> Directions:
    """First and second moment (m, v) of Adam, raw as the optimizer keeps them, as two directions.

    Args:
      opt_state: an optax state that holds Adam's anywhere inside: chain, masked, inject_hyperparams, partition,
        MultiSteps; or an object with such an ``opt_state`` (``nnx.Optimizer``, ``TrainState``).
      params: the parameters. Leaves without moments (masked) get zeros; several Adams on different leaves are merged.

    Returns:
      Two directions named m and v. They are not corrected for bias.

    Raises:
      ValueError: no Adam state (the states found are listed); two Adams on one leaf; moments of other leaves or shapes
        than ``params``; an optimizer that has taken no step (both moments zero).

    References:
      Kingma and Ba 2014, arXiv:1412.6980; as axes: arXiv:2412.10146.
    """
    import optax

    opt_state = getattr(opt_state, "opt_state", opt_state)
    adam = (optax.ScaleByAdamState, optax.ScaleByAmsgradState)
    seen: list[str] = []

    def is_adam(node: Any) -> bool:
        if hasattr(node, "_fields"):
            seen.append(type(node).__name__)
        return isinstance(node, adam)

    states = [node for node in jax.tree.leaves(opt_state, is_leaf=is_adam) if isinstance(node, adam)]
    if not states:
        found = ", ".join(dict.fromkeys(seen)) or type(opt_state).__name__
        raise ValueError(
            f"opt_state holds no Adam moments; its states are: {found}. Pass the state of an Adam optimizer"
        )
    names, (leaves, structure) = _tree.paths(params), jax.tree.flatten(params)
    moments = []
    for what in ("mu", "nu"):
        merged = _merge([getattr(state, what) for state in states], what)
        if unknown := sorted(set(merged) - set(names)):
            raise ValueError(f"opt_state's {what} has leaves {unknown} that params lack; pass the params it trained")
        filled = [merged.get(p, np.zeros(*_tree.shape_dtype(leaf))) for p, leaf in zip(names, leaves)]
        moments.append(_tree.align(jax.tree.unflatten(structure, filled), params, f"opt_state's {what}"))
    recipe = Recipe(kind="adam_moments", names=["m", "v"])
    return checked(_tree.stack(moments), recipe, "the optimizer has taken no step yet")


def _merge(trees: Sequence[PyTree], what: str) -> dict[Path, Any]:
    merged: dict[Path, Any] = {}
    for tree in trees:  # the holes of a mask are nodes without leaves, so they do not appear
        for path, leaf in zip(_tree.paths(tree), jax.tree.leaves(tree)):
            if path in merged:
                raise ValueError(
                    f"opt_state has several Adam states with {what} for {path!r}; pass the one you mean, such as "
                    "opt_state[0]"
                )
            merged[path] = leaf
    return merged


def gradient(loss: Any, params: PyTree, data: Any, *, batch_size: int | None = None) -> Directions:
    """The gradient of the mean loss over the whole data set, g = dL/dtheta, as one direction (uphill).

    Args:
      loss: a ``Loss`` or a plain ``f(params, batch) -> scalar``.
      params: the parameters at which it is taken.
      data: an array pytree with leading axis N, or ``lla.stream(...)``.
      batch_size: examples per batch for an array pytree; None takes all at once.

    Returns:
      One direction named gradient.

    Raises:
      ValueError: parameters that are not real, floating and finite; a gradient that is zero or not finite.
    """
    _tree.check_real(params)
    tree = _tree.align(losses.mean_gradient(loss, params, data, batch_size=batch_size), params, "the gradient")
    recipe = Recipe(kind="gradient", names=["gradient"])
    return checked(_tree.stack([tree]), recipe, "the parameters are a stationary point, or the loss ignores them")


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


def between(
    a: PyTree, b: PyTree, *more: PyTree, orthogonal: bool = False, names: Sequence[str] | None = None
) -> Directions:
    """Differences of checkpoints: d_1 = b - a, d_2 = c - a, ...; the line, plane or volume through all of them.

    With ``orthogonal`` the differences are made orthogonal in turn (Gram-Schmidt) and all as long as b - a, so that
    distances and angles in a picture with equal axes are those of parameter space. In either case ``recipe["marks"]``
    has the coordinates x of every checkpoint, a + sum_i x_i d_i, with a at the origin.

    Args:
      a: the centre, to be passed as ``params`` to ``evaluate``.
      b: a second checkpoint of the same structure.
      *more: a third checkpoint for a plane, a fourth for a volume.
      orthogonal: whether the axes shall be orthogonal and of equal length.
      names: of the checkpoints in pictures, one each; default "A", "B", ...

    Returns:
      One direction per checkpoint besides ``a``, in float32 at least. Batch statistics are no part of them.

    Raises:
      ValueError: checkpoints of different structure or shape, with entries that are not finite, equal to ``a``, or
        (with ``orthogonal``) on one line or plane with those before.

    References:
      Goodfellow et al. 2014, arXiv:1412.6544 (line); Garipov et al. 2018, arXiv:1802.10026 (plane through three).
    """
    points = [a, b, *more]
    names = [string.ascii_uppercase[i % 26] for i in range(len(points))] if names is None else [str(n) for n in names]
    if len(names) != len(points):
        raise ValueError(f"names: {len(names)} given for {len(points)} checkpoints; give one each, that of a first")
    for name, point in zip(names, points):
        _tree.check_real(point, name)
    leaves = [jax.tree.leaves(_tree.align(p, a, name, names[0])) for name, p in zip(names, points)]
    diffs = [[np.asarray(x, np.float64) - np.asarray(y, np.float64) for x, y in zip(p, leaves[0])] for p in leaves[1:]]
    lengths = [_host_dot(d, d) ** 0.5 for d in diffs]
    if 0 in lengths:
        raise ValueError(f"{names[1 + lengths.index(0)]} equals {names[0]}; pass checkpoints that differ")
    axes = _equal_orthogonal(diffs, lengths, names[1:]) if orthogonal else diffs
    if orthogonal:
        coords = np.array([[_host_dot(d, e) / _host_dot(e, e) for e in axes] for d in diffs])
    else:
        coords = np.eye(len(diffs))
    recipe = Recipe(
        kind="between",
        names=[
            f"{name} orthogonal" if orthogonal and i else f"{name} - {names[0]}" for i, name in enumerate(names[1:])
        ],
        orthogonal=bool(orthogonal),
        marks=[[names[0], [0.0] * len(axes)], *([n, c.tolist()] for n, c in zip(names[1:], coords))],
    )
    stacked = [
        jnp.asarray(np.stack(column), jnp.promote_types(_tree.shape_dtype(ref)[1], jnp.float32))
        for column, ref in zip(zip(*axes), leaves[0])
    ]
    return Directions(jax.tree.unflatten(jax.tree.structure(a), stacked), recipe)


def _host_dot(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> float:
    return float(sum(np.vdot(x, y) for x, y in zip(a, b)))


def _equal_orthogonal(diffs: list[list[np.ndarray]], lengths: list[float], names: list[str]) -> list[list[np.ndarray]]:
    axes: list[list[np.ndarray]] = []
    for name, diff, length in zip(names, diffs, lengths):
        rest = _remove(diff, axes)
        size = _host_dot(rest, rest) ** 0.5
        if size <= 1e-6 * length:  # parameters are float32: less than that is their rounding
            raise ValueError(
                f"{name} lies on the line or plane of the checkpoints before it; use orthogonal=False or leave it out"
            )
        axes.append([x * (lengths[0] / size) for x in rest])
    return axes


def _remove(vector: list[np.ndarray], axes: list[list[np.ndarray]]) -> list[np.ndarray]:
    """The part of ``vector`` orthogonal to ``axes``; done twice, since once leaves rounding errors."""
    for axis in [*axes, *axes]:
        share = _host_dot(axis, vector) / _host_dot(axis, axis)
        vector = [x - share * y for x, y in zip(vector, axis)]
    return vector
