"""Describes paths of training, and what lies between two solutions, in words and as plain numbers with their errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lla_jax.core.recipes import fingerprint
from lla_jax.core.text import pm, table
from lla_jax.core.types import Directions
from lla_jax.paths.curves import Curve
from lla_jax.paths.losses.barriers import Barrier
from lla_jax.paths.projection.projections import PROJECTED, Projection

MOST_ROWS = 25  # checkpoints of a table; of more, evenly spaced ones
ALIKE = 0.05  # a share by which a path may exceed a random walk without being told from it
_STATS = {"frozen": "as trained", "batch": "of each batch", "reestimate": "re-estimated at each point"}


def describe_path(axes: Directions, seen: Projection) -> str:
    """Describe a path on the plane of its principal components: shares, distances, and a table of losses.

    Args:
      axes: what ``lla.paths.pca`` returned.
      seen: what ``lla.paths.project`` returned for the same path and axes.
    """
    size = seen.recipe["params"]["size"]
    steps = f"steps {seen.steps[0]:,} to {seen.steps[-1]:,}"
    lines = [f"Path of {len(seen)} checkpoints, {steps}, of {size:,} parameters, on {seen.coords.shape[1]} axes"]
    if "explained_variance" in axes.recipe:
        lines += describe_shares(axes.recipe, seen.coords.shape[1])
    lines += _describe_distance(seen)
    if _has_state(seen.recipe):
        policy = seen.recipe["batch_stats"]
        own = "each checkpoint's own, and on the plane the centre's: losses differ even at distance 0"
        whose = own if policy == "frozen" else _STATS[policy]
        lines.append(f"BatchNorm statistics: {whose}")
    if seen.loss is not None and (worse := int((~np.isfinite(seen.loss)).sum())):
        lines.append(f"The loss is not finite at {worse} of {len(seen)} checkpoints")
    return "\n".join([*lines, _path_table(seen)])


def describe_shares(recipe: Mapping[str, Any], num: int) -> list[str]:
    """Lines that set the shares of the first components of a path beside those of a random walk.

    Args:
      recipe: of the axes that ``lla.paths.pca`` returned.
      num: the number of components.
    """
    shares, walk = (np.asarray(recipe[name], float) for name in ("explained_variance", "random_walk"))
    total = len(shares) + 1
    rows = [
        [f"{name}:", *[_percent(x) for x in each[:num]], f"together {_percent(each[:num].sum())}"]
        for name, each in (("explained variance", shares), (f"random walk of {total} checkpoints", walk))
    ]
    if total <= num + 1:
        meaning = f"{total} checkpoints always lie on {num} axes, so the shares say nothing"
    elif shares[:num].sum() <= walk[:num].sum() + ALIKE:
        meaning = "no more than a random walk has: the shape of the path on these axes says nothing about training"
    else:
        meaning = "more than a random walk has: the path turns less than one"
    return [table(rows, left=(0, num + 1), indent=2), f"  {meaning}"]


def _describe_distance(seen: Projection) -> list[str]:
    """Lines on the largest distance off the axes, beside the extent of the path along them."""
    at, span = int(seen.distance.argmax()), float(np.linalg.norm(np.ptp(seen.coords, axis=0)))
    share = f", {_percent(seen.distance[at] / span)} of the extent of the path along them" if span > 0 else ""
    lines = [f"Largest distance off the axes: {seen.distance[at]:.4g} at step {seen.steps[at]:,}{share}"]
    if seen.loss is not None:
        lines.append("  where it is large, contours do not show the loss of the network, so both losses are below")
    return lines


def _path_table(seen: Projection) -> str:
    num = len(seen)
    shown = np.unique(np.linspace(0, num - 1, min(num, MOST_ROWS)).round().astype(int))
    columns: dict[str, list[str]] = {"step": [f"{seen.steps[t]:,}" for t in shown]}
    for name in [each for each in seen.values if not each.startswith(PROJECTED) and each.endswith("loss")]:
        columns[name] = _cells(seen, name, shown)
        columns[f"{name} of projection"] = _cells(seen, PROJECTED + name, shown)
    columns["distance"] = [f"{seen.distance[t]:.4g}" for t in shown]
    for name, values in seen.curvature.items():
        errors = seen.curvature_error[name]
        columns[name] = [pm(values[t], errors[t]) if np.isfinite(values[t]) else "" for t in shown]
    rows = [list(columns), *map(list, zip(*columns.values(), strict=True))]
    more = f"\n  ({len(shown)} of {num} checkpoints)" if len(shown) < num else ""
    return table(rows, left=(), indent=2) + more


def _cells(seen: Projection, name: str, shown: np.ndarray) -> list[str]:
    errors = seen.stderr.get(name, np.full(len(seen), np.nan))
    return [pm(seen.values[name][t], errors[t]) for t in shown]


def plain_path(axes: Directions, seen: Projection) -> dict[str, Any]:
    """A path on its principal components as lists and numbers, for JSON and other programs; NaN as None."""
    shares = {name: axes.recipe.get(name) for name in ("explained_variance", "random_walk", "rank")}
    arrays = {"coords": seen.coords, "distance": seen.distance, "steps": seen.steps, "recorded": seen.recorded}
    groups = {name: getattr(seen, name) for name in ("values", "stderr", "curvature", "curvature_error")}
    return {
        **shares,
        "names": list(seen.names),
        **{name: _plain(array) for name, array in arrays.items()},
        **{name: {key: _plain(x) for key, x in group.items()} for name, group in groups.items()},
    }


# --- between two solutions


def describe_connection(curve: Curve, barriers: Mapping[str, Barrier]) -> str:
    """Describe a trained curve and the barriers along several curves between the same ends.

    Args:
      curve: what ``lla.paths.connect`` returned.
      barriers: ``{name: what lla.paths.barrier returned}``, the curve's last.
    """
    recipe = curve.recipe
    steps = len(curve.history.get("loss", ()))
    distance = recipe["params"]["distance"]
    first = f"{curve.kind} of {curve.num} points, {steps:,} steps of training"
    lines = [f"Connection of two solutions: {first}; length {float(curve.lengths(1.0)):.4g}, straight {distance:.4g}"]
    if not recipe.get("complete", True):
        lines.append(f"  the training stopped at step {recipe.get('stopped')}, where it was not finite")
    made = next(iter(barriers.values())).recipe
    if _has_state(made):
        lines.append(f"BatchNorm statistics {_STATS[made['batch_stats']]}, the ends included")
    names = [name for name in _value_names(barriers) if name.endswith("loss") or name.endswith("error")]
    lines.append("Barrier: by how much the loss rises above the line between the losses of the ends")
    head = ["", "along", "a", "b", "highest", "at t", "barrier", "at t"]
    rows = [_barrier_row(value, name, each) for value in names for name, each in barriers.items()]
    lines.append(table([head, *rows], left=(0, 1), indent=2))
    lines += _describe_ends(next(iter(barriers.values())))
    name, last = list(barriers.items())[-1]
    lines.append(_verdict(name, last))
    if curve.saddle is not None:
        lines.append(_describe_saddle(curve.saddle))
    return "\n".join(lines)


def _describe_ends(barrier: Barrier) -> list[str]:
    """A line on the losses of the ends under the statistics that they were trained with, where others are used."""
    if "loss" not in barrier.ends:
        return []
    errors = barrier.ends.get("loss_stderr", np.full(2, np.nan))
    a, b = (pm(x, error) for x, error in zip(barrier.ends["loss"], errors, strict=True))
    return [f"  under the statistics they were trained with, the loss is {a} at a and {b} at b"]


def _value_names(barriers: Mapping[str, Barrier]) -> list[str]:
    return list(next(iter(barriers.values())).values)


def _barrier_row(value: str, name: str, barrier: Barrier) -> list[str]:
    z, height = barrier.values[value], barrier.heights[value]
    errors = barrier.errors.get(value, np.full(len(z), np.nan))
    top = int(np.argmax(z))
    cells = [pm(z[i], errors[i]) for i in (0, -1, top)]
    return [value, name, *cells, f"{barrier.coords[top]:.3g}", pm(height.value, height.stderr), f"{height.t:.3g}"]


def _verdict(name: str, barrier: Barrier) -> str:
    """Whether the loss rises along the curve, and how high relative to the higher end."""
    z, height = barrier.losses, barrier.heights["loss"]
    if not np.isfinite(z).all():
        return f"Along the {name} the loss is not finite everywhere"
    end = max(z[0], z[-1])
    ratio = f"; its highest loss is {z.max() / end:.4g} times that of the higher end" if 0 < z.max() < 100 * end else ""
    if height.value <= 0:
        return f"No point of the {name} exceeds the line between the losses of the ends{ratio}"
    if height.value <= 2 * height.stderr:
        text = f"is within two standard errors of none, {pm(height.value, height.stderr)}: more examples would tell"
        return f"The barrier along the {name} {text}{ratio}"
    return f"The {name} keeps a barrier of {pm(height.value, height.stderr)}{ratio}"


def _describe_saddle(saddle: Any) -> str:
    if not np.isfinite(saddle.loss):
        return "Saddle: its loss is not finite"
    if saddle.t in (0.0, 1.0):
        return f"No point of the band exceeds the end {'a' if saddle.t == 0.0 else 'b'}: there is no saddle between"
    plural = "" if saddle.negative == 1 else "s"
    negative = "" if saddle.negative is None else f"; {saddle.negative} negative eigenvalue{plural} of the Hessian"
    state = "" if saddle.converged else "; it did not converge: take more steps"
    return (
        f"Saddle at t = {saddle.t:.4g}: loss {saddle.loss:.6g} (in training), gradient {saddle.gradient_norm:.2g}"
        f"{negative}{state}"
    )


def plain_connection(curve: Curve, barriers: Mapping[str, Barrier]) -> dict[str, Any]:
    """A curve and barriers as lists and numbers, for JSON and other programs; NaN as None."""
    saddle = curve.saddle
    found = None
    if saddle is not None:
        names = ("t", "loss", "gradient_norm", "across", "converged", "negative")
        found = {name: _plain(getattr(saddle, name)) for name in names}
    return {
        "kind": curve.kind,
        "points": curve.num,
        "length": _plain(curve.lengths(1.0)),
        "distance": _plain(curve.recipe["params"]["distance"]),
        "complete": bool(curve.recipe.get("complete", True)),
        "saddle": found,
        "barriers": {
            name: {
                "t": _plain(each.coords),
                "values": {key: _plain(x) for key, x in each.values.items()},
                "stderr": {key: _plain(x) for key, x in each.errors.items()},
                "heights": {
                    key: {field: _plain(x) for field, x in height._asdict().items()}
                    for key, height in each.heights.items()
                },
            }
            for name, each in barriers.items()
        },
    }


def _plain(value: Any) -> Any:
    """A number or an array as JSON has it; what is not finite as None."""
    if value is None or isinstance(value, bool | np.bool_):
        return None if value is None else bool(value)
    return _finite(np.asarray(value).tolist())


def _finite(value: Any) -> Any:
    """A number, or a list of numbers; None for what is not finite."""
    if isinstance(value, list):
        return [_finite(x) for x in value]
    return value if np.isfinite(value) else None


def _has_state(recipe: Mapping[str, Any]) -> bool:
    """Whether the loss of a result had a state."""
    return recipe.get("state") is not None and recipe["state"] != fingerprint(None)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def write(stem: Path, text: str, plain: Mapping[str, Any]) -> list[Path]:
    """Write a description and its numbers, and return the paths.

    Args:
      stem: the path without an ending: ``folder / "path"`` gives path.txt and path.json.
      text: the description.
      plain: the numbers as plain data.
    """
    files = [stem.with_suffix(".txt"), stem.with_suffix(".json")]
    files[0].write_text(text + "\n", encoding="utf-8")
    files[1].write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")
    return files
