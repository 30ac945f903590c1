"""Compares the planes of one network under all normalizations and update rules, in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lla_jax.core import recipes
from lla_jax.core.arguments import Misuse
from lla_jax.core.interrupts import deferred_interrupts
from lla_jax.core.results import Eigenpairs, Landscape
from lla_jax.core.signatures import explained
from lla_jax.core.types import Directions, Execution, Loss, PyTree
from lla_jax.directions import derived, draws, normalization
from lla_jax.execution import progress as _progress
from lla_jax.execution.progress import AskedProgress, takes_progress
from lla_jax.landscape import grids, sweeps
from lla_jax.landscape.refinement import Refine

NORMALIZATIONS: dict[str, Mapping[str, Any]] = {
    "not normalized": {"by": "none"},
    "weight-normalized": {"by": "weight"},
    "filter-normalized (L1)": {"by": "filter", "order": 1},
    "filter-normalized (L2)": {"by": "filter", "order": 2},
}
ADAM_ZOOM = 10.0
_MATRICES = {"ggn": "GGN", "fisher (mc)": "Fisher", "fisher (empirical)": "Empirical Fisher"}


@takes_progress("points")
@deferred_interrupts()
@explained
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
    progress: AskedProgress = None,
    refine: Refine | None = None,
) -> dict[str, Landscape]:
    """Compute a predefined comparison of planes: each pair of axes under every normalization and update rule.

    Random axes give 4 planes: not normalized, weight, filter L1, filter L2. With eigenpairs, the first two eigenvectors
    of the Hessian give the same 4. With an optimizer state, Adam's moments (m, v) give these 4 and 2 under the adam
    rule. So there are 4, 8 (random and Hessian), 10 (random and Adam) or 14 planes.

    Args:
      loss: a ``Loss`` or a plain function.
      params: the centre.
      data: one data set, a whole or a stream, as for ``evaluate``.
      key: the key of the random axes, which are the same for all normalizations.
      grid: the coordinates of two axes; default ``lla.grid(points=21)``. Under the adam rule ``a`` has the
        range and number of points of the first axis, in units of Adam's step, and ``b`` goes from 0.1 to 2 in as many
        points as the second axis has; the second plane under this rule spans a tenth of the range of ``a``.
      pairs: two ``lla.eigenpairs`` or more at ``params``, of which the first two are used, or None.
      opt_state: optax state with Adam moments, or None.
      batch_size: as for ``evaluate``.
      metrics: as for ``evaluate``.
      execution: as for ``evaluate``.
      progress: True for a bar, or a function ``progress(done, total)``, called in points over all planes.
      refine: as for ``evaluate``: each plane is evaluated at as many points as it needs.

    Returns:
      {"random, not normalized": Landscape, ..., "Hessian eigenvectors, not normalized": ..., ...}: first the planes of
      random axes, then of eigenvectors, then of Adam's moments, in the order of the panels of ``lla.plotting.panels``.
      For eigenvectors of another operator, its name stands in place of "Hessian".

    Raises:
      ValueError: a grid of one axis, or of more than two; fewer than two pairs, or pairs of other parameters; no Adam
        moments in ``opt_state``.

    References: Gabdullin 2024, arXiv 2412.10146 ("all_modes"): 4 panels, 8 with Hessian axes, 10 with Adam axes.

    Where we differ from the reference: (1) its tenth panel applies the adam rule to filter-normalized moments, whose
    ratio m / sqrt(v) has lost its meaning; here it is the raw rule over a tenth of the range. (2) Its second random
    axis is made orthogonal to the first; two Gaussian draws already are, up to 1 / sqrt(size). (3) It compares
    random axes with Hessian or with Adam axes; here both may be given, which makes 14 planes.
    """
    plane = grids.grid(points=21) if grid is None else grids.check_grid(grid)
    if len(plane) != 2:
        raise Misuse(
            "grid", f"{len(plane)} axes given; modes are compared on planes, so it must have two, such as lla.grid()"
        )
    axes = {"random": draws.random(key, params, num=2)}
    if pairs is not None:
        vectors = derived.eigenvectors(pairs)
        _check_centre(pairs, params)
        axes[f"{_MATRICES.get(vectors.recipe['operator'], 'Hessian')} eigenvectors"] = vectors
    if opt_state is not None:
        axes["Adam moments"] = derived.adam_moments(opt_state, params)
    normalized = {
        f"{kind}, {name}": _normalize(pair, params, loss, options)
        for kind, pair in axes.items()
        for name, options in NORMALIZATIONS.items()
    }
    comparisons: list[tuple[dict[str, Directions], tuple[Any, ...], str]] = [(normalized, plane, "add")]
    if opt_state is not None:
        a, b = plane
        for zoom, name in ((1.0, "adam rule"), (ADAM_ZOOM, f"adam rule, a/{ADAM_ZOOM:g}")):
            moments_grid = grids.grid(ranges=[(a.min() / zoom, a.max() / zoom), (0.1, 2.0)], points=(len(a), len(b)))
            comparisons.append(({f"Adam moments, {name}": axes["Adam moments"]}, moments_grid, "adam"))
    points = len(plane[0]) * len(plane[1])
    total = points * sum(len(by_name) for by_name, *_ in comparisons)
    planes: dict[str, Landscape] = {}
    done = 0
    for by_name, coords, rule in comparisons:
        report = (
            _progress.report_part(progress, points * len(planes), points * len(by_name), total)
            if refine is None
            else _progress.report_open_part(progress, done, 1)
        )
        table = sweeps.sweep(
            loss,
            [params],
            data,
            axes=by_name,
            grid=coords,
            batch_size=batch_size,
            rule=rule,
            metrics=metrics,
            execution=execution,
            progress=report,
            refine=refine,
        )
        done += sum(plane.recipe["points_done"] for plane in table.landscapes.values())
        planes |= {name: plane for (_, name, _), plane in table.landscapes.items()}
    return planes


def _check_centre(pairs: Eigenpairs, params: PyTree) -> None:
    """Raise a ValueError if the pairs were computed at other parameters, as far as their recipe tells."""
    centre = pairs.recipe.get("operator", {}).get("params")
    if centre is not None:
        then = {"params": {"fingerprint": centre["fingerprint"]}}
        now = {"params": {"fingerprint": recipes.fingerprint(params)}}
        remedy = "compute others, lla.eigenpairs(lla.hessian(loss, params, data), key, k=2)"
        recipes.check_same("pairs", "the operator of the pairs", then, now, now, remedy)


def _normalize(axes: Directions, params: PyTree, loss: Any, options: Mapping[str, Any]) -> Directions:
    filter_axis = loss if isinstance(loss, Loss) else None
    return (
        axes if options["by"] == "none" else normalization.normalize(axes, params, filter_axis=filter_axis, **options)
    )
