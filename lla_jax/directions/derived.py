"""Derives directions from training and curvature: Adam's moments, gradients, checkpoints and eigenvectors."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import gradients, recipes
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse, check_flag, is_integer, misuse
from lla_jax.core.foreign import library_of
from lla_jax.core.interrupts import prompt_interrupts
from lla_jax.core.results import Eigenpairs
from lla_jax.core.signatures import explained
from lla_jax.core.types import Directions, Path, PyTree, Recipe
from lla_jax.directions import centres
from lla_jax.directions.checks import check_directions


@explained
def adam_moments(opt_state: PyTree, params: PyTree) -> Directions:
    """The first and second moment (m, v) of Adam, raw as the optimizer keeps them, as two directions.

    Args:
      opt_state: an optax state with Adam's (or AMSGrad's) state somewhere inside: chain, masked, inject_hyperparams,
        partition, MultiSteps; or an object with such an ``opt_state`` (``nnx.Optimizer``, ``TrainState``); or nested
        dicts and lists with ``count``, ``mu`` and ``nu``, as checkpoints are restored without their classes.
      params: the parameters. Leaves without moments (masked) get zeros; several Adams on different leaves are merged.

    Returns:
      Two directions with the names "m" and "v". They are not corrected for bias.

    Raises:
      ValueError: no Adam state (the states found are listed); two Adams on one leaf; moments of other leaves or shapes
        than ``params``; a moment that is zero everywhere, as
        before the first step, or not finite.

    References:
      Kingma and Ba 2014, arXiv:1412.6980; as axes: arXiv:2412.10146.
    """
    import optax

    opt_state = getattr(opt_state, "opt_state", opt_state)
    adam = (optax.ScaleByAdamState, optax.ScaleByAmsgradState)
    others: list[str] = []

    def is_adam(node: Any) -> bool:
        if hasattr(node, "_fields"):
            others.append(type(node).__name__)
        return isinstance(node, adam) or _is_restored(node)

    states = [node for node in jax.tree.leaves(opt_state, is_leaf=is_adam) if is_adam(node)]
    if not states:
        kinds = ", ".join(dict.fromkeys(others)) or type(opt_state).__name__
        swapped = any(isinstance(node, adam) for node in jax.tree.leaves(params, is_leaf=is_adam))
        raise Misuse(
            "opt_state", f"holds no Adam moments; its states are: {kinds}; {_advise_state(opt_state, swapped)}"
        )
    _tree.check_real(params)
    names, (leaves, structure) = _tree.paths(params), jax.tree.flatten(params)
    moments = []
    for moment in ("mu", "nu"):
        merged = _merge([s[moment] if _is_restored(s) else getattr(s, moment) for s in states], moment)
        if unknown := sorted(set(merged) - set(names)):
            raise Misuse("opt_state", f"its {moment} has leaves {unknown} that params lack; pass the params it trained")
        filled = [merged.get(p, np.zeros(*_tree.shape_dtype(leaf))) for p, leaf in zip(names, leaves)]
        moments.append(_tree.align(jax.tree.unflatten(structure, filled), params, f"opt_state's {moment}"))
    recipe = centres.add(Recipe(kind="adam_moments", names=["m", "v"]), "Adam's moments", params)
    return check_directions(
        _tree.stack(moments), recipe, "the optimizer has taken no step yet, so pass the state after one"
    )


def _is_restored(node: Any) -> bool:
    """Whether a node is Adam's state as a mapping, without its class."""
    return isinstance(node, Mapping) and all(name in node for name in ("count", "mu", "nu"))


def _advise_state(opt_state: Any, swapped: bool) -> str:
    """What to pass in place of an object without Adam's state."""
    if swapped:
        return "the arguments are swapped: adam_moments(opt_state, params)"
    if library_of(opt_state) == "torch" or (isinstance(opt_state, dict) and "param_groups" in opt_state):
        return "of a PyTorch optimizer take lla_torch.adam_moments"
    if hasattr(opt_state, "init") and hasattr(opt_state, "update"):
        return "this is the optimizer itself: pass its state, of optimizer.init(params) and the steps after it"
    return "pass the state of an Adam optimizer"


def _merge(trees: Sequence[PyTree], moment: str) -> dict[Path, Any]:
    """The leaves of several trees by path; a ValueError if two trees have a leaf of one path."""
    merged: dict[Path, Any] = {}
    for tree in trees:  # the holes of a mask are nodes without leaves, so they do not appear
        for path, leaf in zip(_tree.paths(tree), jax.tree.leaves(tree)):
            if path in merged:
                raise Misuse(
                    "opt_state",
                    f"has several Adam states with {moment} for {path!r}; pass the one you mean, such as opt_state[0]",
                )
            merged[path] = leaf
    return merged


@prompt_interrupts()
@explained
def gradient(loss: Any, params: PyTree, data: Any, *, batch_size: int | None = None) -> Directions:
    """The gradient of the loss over all examples and of its penalty, g = dL/dtheta, as one direction (uphill).

    Args:
      loss: a ``Loss`` or a plain ``f(params, batch) -> scalar``.
      params: the parameters at which the gradient is taken.
      data: an array pytree with leading axis N, ``lla.whole(...)``, or ``lla.stream(...)``; None if there are none.
      batch_size: examples per batch for an array pytree; None takes all examples at once.

    Returns:
      One direction with the name "gradient".

    Raises:
      ValueError: parameters that are not real, floating and finite; a gradient that is zero or not finite.
    """
    _tree.check_real(params)
    tree = _tree.align(gradients.mean_gradient(loss, params, data, batch_size=batch_size), params, "the gradient")
    recipe = centres.add(Recipe(kind="gradient", names=["gradient"]), "gradient", params)
    return check_directions(
        _tree.stack([tree]), recipe, "params are a stationary point, or the loss ignores them: pass others"
    )


@explained
def eigenvectors(pairs: Eigenpairs, which: int | slice | Sequence[int] = (0, 1)) -> Directions:
    """Eigenvectors v_i of the Hessian (or of another operator on the parameters) as directions of unit norm.

        L(theta + a v_i + b v_j)  ~  L(theta) + a g'v_i + b g'v_j + (lambda_i a^2 + lambda_j b^2) / 2

    A coordinate of 1 is a distance of 1 in parameter space. The sign of an eigenvector is arbitrary.

    Args:
      pairs: eigenpairs, as ``lla.eigenpairs`` returns them.
      which: indices into ``pairs.values``, each once, or a slice; negative ones count from the end.

    Returns:
      The vectors as ``pairs`` has them, one direction per index, with names such as "eigenvector 1 (lambda = 12.3)";
      the recipe has the eigenvalues and residuals.

    Raises:
      ValueError: ``pairs`` that are no ``Eigenpairs``, have no vectors, or belong to a preconditioned operator; an
        index that does not exist or comes twice; a vector that is not finite or not of unit norm.

    References:
      Böttcher and Wheeler 2022, arXiv:2208.13219.
    """
    if not isinstance(pairs, Eigenpairs):
        raise misuse("pairs", pairs, "Eigenpairs, as lla.eigenpairs returns them")
    if pairs.vectors is None:
        raise Misuse("pairs", f"has {pairs.num} values and no vectors; pass the pairs of an operator on parameters")
    operator = pairs.recipe.get("operator", {})
    if "preconditioned" in operator:
        raise Misuse(
            "pairs",
            "belong to a preconditioned operator, whose vectors are scaled and no directions in parameter space; pass "
            "the pairs of the operator itself",
        )
    chosen = _indices(which, pairs.num)
    tree = pairs.vectors[chosen].tree
    values, residuals = (np.asarray(x, np.float64)[chosen].tolist() for x in (pairs.values, pairs.residuals))
    names = [f"eigenvector {i + 1} (lambda = {value:.3g})" for i, value in zip(chosen, values)]
    recipe = Recipe(kind="eigenvectors", names=names, indices=chosen, values=values, residuals=residuals)
    recipe |= {"operator": operator.get("kind", "given"), **centres.of_operator(operator)}
    axes = check_directions(tree, recipe, "an eigenvector has norm 1, so compute the pairs again")
    lengths = [float(_tree.norm(vector)) for vector in _tree.unstack(tree)]
    if max(abs(length - 1) for length in lengths) > 0.01:  # bfloat16 keeps 0.2 %
        raise Misuse(
            "pairs", f"its vectors {chosen} have norms {lengths}; every norm must be 1, as lla.eigenpairs gives them"
        )
    return axes


def _indices(which: int | slice | Sequence[int], num: int) -> list[int]:
    """The indices as a list, counted from 0; a ValueError if one does not exist among ``num`` pairs or comes twice."""
    if not num:
        raise Misuse("pairs", "holds no pair; compute some with lla.eigenpairs(operator, key, k=...)")
    which = range(num)[which] if isinstance(which, slice) else which
    given: list[Any] = [which] if np.ndim(which) == 0 else list(which)  # type: ignore[arg-type, list-item]
    rule = f"indices of the {num} pair(s), 0 to {num - 1} or -1 to -{num} from the end, each once, such as 0"
    if not given or not all(map(is_integer, given)):
        raise misuse("which", which, rule)
    if not all(-num <= i < num for i in given):
        raise misuse("which", which, f"{rule}; for more pairs, call lla.eigenpairs(operator, key, k=...)")
    if len({i % num for i in given}) < len(given):
        raise misuse("which", which, rule)
    return [int(i) % num for i in given]


@explained
def between(
    a: PyTree, b: PyTree, *more: PyTree, orthogonal: bool = False, names: Sequence[str] | None = None
) -> Directions:
    """Differences of checkpoints, d_1 = b - a, d_2 = c - a, ...; the line, plane or volume through all of them.

    With ``orthogonal`` the differences are made orthogonal in turn (Gram-Schmidt) and all as long as b - a, so that
    distances and angles in a picture with equal axes are those of parameter space. With and without it,
    ``recipe["marks"]`` has the coordinates x of every checkpoint, a + sum_i x_i d_i, with a at the origin.

    Args:
      a: the centre, to be passed as ``params`` to ``evaluate``.
      b: a second checkpoint of the same structure.
      *more: a third checkpoint for a plane, a fourth for a volume.
      orthogonal: whether the axes shall be orthogonal and of equal length.
      names: the names of the checkpoints in pictures, one each, a's first; default "A", "B", ...

    Returns:
      One direction for every checkpoint except ``a``, in float32 at least, with names such as "B - A". Batch statistics
      are no part of them.

    Raises:
      ValueError: checkpoints of different structure or shape, with entries that are not finite, equal to ``a``, or
        (with ``orthogonal``) on the line or plane of the checkpoints before.

    References:
      Goodfellow et al. 2014, arXiv:1412.6544 (line); Garipov et al. 2018, arXiv:1802.10026 (plane through three).
    """
    points = [a, b, *more]
    check_flag("orthogonal", orthogonal)
    if isinstance(names, str):
        raise misuse("names", names, f"one name for each of the {len(points)} checkpoints, that of a first")
    names = [string.ascii_uppercase[i % 26] for i in range(len(points))] if names is None else [str(n) for n in names]
    if len(names) != len(points):
        raise misuse("names", names, f"one name for each of the {len(points)} checkpoints, that of a first")
    for name, point in zip(names, points):
        _tree.check_real(point, name)
    leaves = [jax.tree.leaves(_tree.align(p, a, name, names[0])) for name, p in zip(names, points)]
    diffs = [[np.asarray(x, np.float64) - np.asarray(y, np.float64) for x, y in zip(p, leaves[0])] for p in leaves[1:]]
    lengths = [_dot(d, d) ** 0.5 for d in diffs]
    if 0 in lengths:
        raise ValueError(f"checkpoints: {names[1 + lengths.index(0)]} equals {names[0]}; pass checkpoints that differ")
    axes = _equal_orthogonal(diffs, lengths, names[1:]) if orthogonal else diffs
    coords = np.array([[_dot(d, e) / _dot(e, e) for e in axes] for d in diffs]) if orthogonal else np.eye(len(diffs))
    recipe = Recipe(
        kind="between",
        names=[
            f"{name} orthogonal" if orthogonal and i else f"{name} - {names[0]}" for i, name in enumerate(names[1:])
        ],
        orthogonal=bool(orthogonal),
        marks=[[names[0], [0.0] * len(axes)], *([n, c.tolist()] for n, c in zip(names[1:], coords))],
    )
    recipe = centres.add(recipe, f"differences from {names[0]}", a, fingerprint=recipes.fingerprint(a))
    stacked = [
        jnp.asarray(np.stack(column), _tree.wide(_tree.shape_dtype(ref)[1]))
        for column, ref in zip(zip(*axes), leaves[0])
    ]
    return Directions(jax.tree.unflatten(jax.tree.structure(a), stacked), recipe)


def _dot(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> float:
    """The inner product of two lists of leaves, in float64 on the host."""
    return float(sum(np.vdot(x, y) for x, y in zip(a, b)))


def _equal_orthogonal(diffs: list[list[np.ndarray]], lengths: list[float], names: list[str]) -> list[list[np.ndarray]]:
    """Make the differences orthogonal in turn (Gram-Schmidt), and all of them as long as the first."""
    axes: list[list[np.ndarray]] = []
    for name, diff, length in zip(names, diffs, lengths):
        rest = _remove(diff, axes)
        size = _dot(rest, rest) ** 0.5
        if size <= 1e-6 * length:  # float32 parameters: anything smaller is rounding
            raise ValueError(
                f"checkpoints: {name} lies on the line or plane of the checkpoints before it; use orthogonal=False or "
                "leave it out"
            )
        axes.append([x * (lengths[0] / size) for x in rest])
    return axes


def _remove(vector: list[np.ndarray], axes: list[list[np.ndarray]]) -> list[np.ndarray]:
    """The part of ``vector`` orthogonal to ``axes``; projected twice, since once leaves rounding errors."""
    for axis in [*axes, *axes]:
        factor = _dot(axis, vector) / _dot(axis, axis)
        vector = [x - factor * y for x, y in zip(vector, axis)]
    return vector
