"""What ``evaluate`` is given, checked before anything is computed; every error says what to do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import tree as _tree
from lla_jax.core.static import static
from lla_jax.core.types import Directions, Landscape, Loss, PyTree

POLICIES = ("frozen", "batch", "reestimate")
IDENTITY = (
    "rule", "batch_stats", "batch_size", "metrics", "point_metrics", "data", "extra_data", "params", "state", "noise",
    "key", "precision", "directions",
)  # fmt: skip
"""What two landscapes must share for one to continue the other."""


def check_grid(grid: Sequence[Any]) -> tuple[np.ndarray, ...]:
    try:
        coords = tuple(np.asarray(c, np.float64) for c in grid)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"grid: expected one 1-D array of coordinates per axis, e.g. lla.grid(); got {grid!r}"
        ) from error
    for i, c in enumerate(coords):
        if c.ndim != 1 or not len(c) or not np.isfinite(c).all():
            raise ValueError(
                f"grid: axis {i} has shape {c.shape}; the rule is a non-empty 1-D array of finite coordinates"
            )
    if not coords:
        raise ValueError("grid: has no axis; pass e.g. lla.grid(extent=1.0, points=41, dims=2)")
    return coords


def single_key(key: Any) -> jax.Array:
    """The key, if it is one ``jax.random`` key; of the new kind, if it is of the old."""
    dtype = getattr(key, "dtype", None)
    if dtype is not None and not jnp.issubdtype(dtype, jax.dtypes.prng_key) and dtype == np.uint32 and key.ndim == 1:
        key, dtype = (wrapped := jax.random.wrap_key_data(key)), wrapped.dtype  # a key of the old kind
    if dtype is None or not jnp.issubdtype(dtype, jax.dtypes.prng_key) or key.shape != ():
        got = repr(key) if np.ndim(key) == 0 else type(key).__name__
        raise ValueError(f"key: got {got}; the rule is one jax.random key first, such as jax.random.key(0)")
    return key


def check_policy(batch_stats: str, loss: Any) -> None:
    if batch_stats not in POLICIES:
        raise ValueError(f"batch_stats: {batch_stats!r} given; the rule is one of {', '.join(POLICIES)}")
    if batch_stats == "frozen":
        return
    if not isinstance(loss, Loss):
        raise ValueError(
            f"batch_stats: {batch_stats!r} needs a model whose normalization layers are visible; a plain function has "
            "only 'frozen'. Use lla.from_linen, from_nnx, from_equinox or lla.Loss(apply, criterion, state=...)"
        )
    if batch_stats == "reestimate" and not jax.tree_util.tree_leaves(loss.state):
        raise ValueError("batch_stats: 'reestimate' given, but the loss has no state to re-estimate; use 'frozen'")


def check_metrics(metrics: Any, point_metrics: Any, loss: Any) -> tuple[tuple, tuple]:
    for argument, functions in (("metrics", metrics), ("point_metrics", point_metrics)):
        if functions is not None and not isinstance(functions, Mapping):
            raise ValueError(f"{argument}: got {type(functions).__name__}; the rule is {{name: function}}")
    metrics, point_metrics = dict(metrics or {}), dict(point_metrics or {})
    for argument, functions in (("metrics", metrics), ("point_metrics", point_metrics)):
        for name, f in functions.items():
            if not isinstance(name, str) or not name or name == "loss" or not callable(f):
                raise ValueError(
                    f"{argument}: entry {name!r}: {f!r}; the rule is a name other than 'loss' and a function"
                )
    if both := set(metrics) & set(point_metrics):
        raise ValueError(f"point_metrics: {sorted(both)} are names of metrics already; rename them")
    if metrics and not isinstance(loss, Loss):
        raise ValueError(
            "metrics: need the model's outputs, which a plain function hides; use lla.Loss(apply, criterion)"
        )
    return tuple((k, static(f)) for k, f in metrics.items()), tuple((k, static(f)) for k, f in point_metrics.items())


def names(prefixes: Sequence[str], metrics: Sequence[str], point_metrics: Sequence[str]) -> None:
    """Raise if two values would have the same name, such as a metric "test_loss" beside a data set "test"."""
    all_names = [prefix + name for prefix in prefixes for name in ("loss", *metrics)] + list(point_metrics)
    if twice := sorted({name for name in all_names if all_names.count(name) > 1}):
        raise ValueError(
            f"metrics: {twice} would name two values each; the rule is one value a name, and a data set's name is put "
            "before its values. Rename a metric or an entry of extra_data"
        )


def aligned(directions: Directions, params: PyTree, axes: int, adam: bool) -> PyTree:
    """The directions' tree in the structure of the parameters.

    Raises:
      ValueError: another structure, shape or number than the grid's, or not what the rule needs.
    """
    tree = _tree.align(directions.tree, params, "directions", stacked=True)
    if directions.num != axes:
        raise ValueError(
            f"grid: {axes} axes for {directions.num} directions; the rule is one axis per direction, e.g. "
            f"lla.grid(dims={directions.num}) or axes[:{axes}]"
        )
    recipe = directions.recipe
    raw = recipe.get("kind") == "adam_moments" and not recipe.get("normalize")
    if adam and not (raw and recipe.get("chosen", [0, 1]) == [0, 1]):
        raise ValueError(
            f"directions: the adam rule needs Adam's raw moments (m, v), got {dict(recipe)}; use "
            "lla.directions.adam_moments(opt_state, params) without normalize"
        )
    return tree


def resumable(resume: Landscape, recipe: Mapping[str, Any], coords: Sequence[np.ndarray]) -> None:
    """Raise unless ``resume`` is a landscape of the same recipe and grid, as far as a recipe tells."""
    if not isinstance(resume, Landscape):
        raise ValueError(f"resume: got {type(resume).__name__}; the rule is a Landscape, e.g. lla.load(path)")
    changed = [k for k in IDENTITY if _json(resume.recipe.get(k)) != _json(recipe[k])]
    same_grid = len(resume.coords) == len(coords) and all(map(np.array_equal, resume.coords, coords))
    if changed := [*changed, *([] if same_grid else ["grid"])]:
        raise ValueError(
            f"resume: the partial landscape differs in {', '.join(changed)}; the rule is the same recipe and grid. "
            "Repeat the arguments it was made with, or start anew without resume"
        )


def same_probe(then: Mapping[str, Any], now: Mapping[str, Any], argument: str) -> None:
    """Raise unless the values at the first point are what they were: this sees functions that changed.

    Of two recipes whose probes are over different examples (a layout that cuts them otherwise), nothing is known.
    """
    if not now["deterministic"] or then.get("probe_rows") != now["probe_rows"]:
        return
    before = then.get("probe", {})
    for name, value in now["probe"].items():
        if not np.isclose(value, before.get(name, value), rtol=1e-5, atol=1e-30, equal_nan=True):
            raise ValueError(
                f"{argument}: {name or 'the penalty'!r} at the first point is {value}, and was {before[name]} when the "
                "landscape was begun; the rule is the same loss and functions. Restore them, or start anew"
            )


def _json(value: Any) -> str:
    """As it would be in a file: tuples are lists, and NaN equals itself."""
    return json.dumps(value, sort_keys=True, default=lambda x: x.tolist() if hasattr(x, "tolist") else repr(x))
