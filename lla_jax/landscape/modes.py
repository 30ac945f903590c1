"""One network on the planes of all kinds of axes, in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lla_jax.core import recipes
from lla_jax.core.types import Directions, Eigenpairs, Execution, Landscape, Loss, PyTree
from lla_jax.directions import derived, draws, normalization
from lla_jax.execution import progress as _progress
from lla_jax.execution.progress import Progress
from lla_jax.landscape import grids, sweeps

NORMALIZATIONS: dict[str, Mapping[str, Any]] = {
    "not normalized": {"by": "none"},
    "weight-normalized": {"by": "weight"},
    "filter-normalized (L1)": {"by": "filter", "order": 1},
    "filter-normalized (L2)": {"by": "filter", "order": 2},
}
ADAM_ZOOM = 10.0
_MATRICES = {"ggn": "GGN", "fisher (mc)": "Fisher", "fisher (empirical)": "Empirical Fisher"}


def all_modes(
    loss: Loss | Callable[[PyTree, Any], Any],
    params: PyTree,
    data: Any,
    key: Any,
    *,
    grid: Sequence[Any] | None = None,
    pairs: Eigenpairs | None = None,
    opt_state: PyTree = None,
    batch_size: int | None = None,
    metrics: Mapping[str, Callable[[Any, Any], Any]] | None = None,
    execution: Execution = Execution(),  # noqa: B008 (frozen)
    progress: Progress | None = None,
) -> dict[str, Landscape]:
    """The predefined comparison: one pair of axes under every normalization and update rule.

    Random axes give 4 planes: not normalized, weight, filter L1, filter L2. With eigenpairs, the first two eigenvectors
    of the Hessian give the same 4. With an optimizer state, Adam's moments (m, v) give these 4 and 2 under the adam
    rule. So there are 4, 8 (random and Hessian), 10 (random and Adam) or 14 planes.

    Args:
      loss: a ``Loss`` or a plain function.
      params: the centre.
      data: one data set or a stream.
      key: draws the random axes, the same ones for all normalizations.
      grid: two axes; default ``lla.grid(points=21)``. The adam rule takes its ``a`` axis, in units of the step, and as
        many b from 0.1 to 2; its second plane spans a tenth of that ``a``.
      pairs: two ``lla.eigenpairs`` or more at ``params``, or None.
      opt_state: optax state with Adam moments, or None.
      batch_size: as for ``evaluate``.
      metrics: as for ``evaluate``.
      execution: as for ``evaluate``.
      progress: ``progress(done, total)`` in points over all planes.

    Returns:
      {"random, filter-normalized (L2)": Landscape, "Hessian eigenvectors, not normalized": ..., ...}: random, Hessian,
      Adam, in the order of the panels of ``lla.plotting.panels``. Pairs of another operator are called by its name.

    Raises:
      ValueError: a grid that has not two axes; fewer than two pairs, or pairs of other parameters; no Adam moments in
        ``opt_state``.

    References: Gabdullin 2024, arXiv 2412.10146 ("all_modes"): 4 panels, 8 with Hessian axes, 10 with Adam axes.

    Where we differ from the reference: (1) its tenth panel applies the adam rule to filter-normalized moments, whose
    ratio m / sqrt(v) has lost its meaning; here it is the raw rule over a tenth of the range. (2) Its second random
    axis is made orthogonal to the first; two Gaussian draws are so already to 1 / sqrt(size). (3) It draws
    Hessian or Adam axes beside the random ones; here both may be, and then there are 14.
    """
    plane = grids.grid(points=21) if grid is None else tuple(grid)
    if len(plane) != 2:
        raise ValueError(f"grid: {len(plane)} axes given; the comparison of modes draws planes, so the rule is two")
    axes = {"random": draws.random(key, params, num=2)}
    if pairs is not None:
        vectors = derived.eigenvectors(pairs)
        _check_centre(pairs, params)
        axes[f"{_MATRICES.get(vectors.recipe['operator'], 'Hessian')} eigenvectors"] = vectors
    if opt_state is not None:
        axes["Adam moments"] = derived.adam_moments(opt_state, params)
    named = {
        f"{kind}, {name}": _normalized(pair, params, options)
        for kind, pair in axes.items()
        for name, options in NORMALIZATIONS.items()
    }
    sweeps_of: list[tuple[dict[str, Directions], tuple[Any, ...], str]] = [(named, plane, "add")]
    if opt_state is not None:
        a, b = plane
        for zoom, name in ((1.0, "adam rule"), (ADAM_ZOOM, f"adam rule, a/{ADAM_ZOOM:g}")):
            steps = grids.grid(ranges=[(a.min() / zoom, a.max() / zoom), (0.1, 2.0)], points=(len(a), len(b)))
            sweeps_of.append(({f"Adam moments, {name}": axes["Adam moments"]}, steps, "adam"))
    points = len(plane[0]) * len(plane[1])
    total = points * sum(len(drawn) for drawn, *_ in sweeps_of)
    found: dict[str, Landscape] = {}
    for drawn, coords, rule in sweeps_of:
        table = sweeps.sweep(
            loss,
            [params],
            data,
            axes=drawn,
            grid=coords,
            batch_size=batch_size,
            rule=rule,
            metrics=metrics,
            execution=execution,
            progress=_progress.span(progress, points * len(found), points * len(drawn), total),
        )
        found |= {name: plane for (_, name, _), plane in table.landscapes.items()}
    return found


def _check_centre(pairs: Eigenpairs, params: PyTree) -> None:
    there = pairs.recipe.get("operator", {}).get("params")
    if there is not None:
        here = {"params": {"fingerprint": recipes.fingerprint(params)}}
        then = {"params": {"fingerprint": there["fingerprint"]}}
        otherwise = "compute others, lla.eigenpairs(lla.hessian(loss, params, data), key, k=2)"
        recipes.check_same("pairs", "the operator of the pairs", then, here, here, otherwise)


def _normalized(axes: Directions, params: PyTree, options: Mapping[str, Any]) -> Directions:
    return axes if options["by"] == "none" else normalization.normalize(axes, params, **options)
