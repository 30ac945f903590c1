"""What ``evaluate`` is given, checked before anything is computed; every error says what to do."""

from __future__ import annotations

import hashlib
import json
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax._version import __version__
from lla_jax.core import files as _files
from lla_jax.core import tree as _tree
from lla_jax.core.data import Stream, num_examples
from lla_jax.core.types import Eigenpairs, Landscape, PyTree, Spectrum

IDENTITY = (
    "rule", "batch_stats", "batch_size", "metrics", "point_metrics", "data", "extra_data", "params", "state", "noise",
    "key", "precision", "directions",
)  # fmt: skip
"""What two landscapes must share for one to continue the other."""


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


def versions() -> dict[str, str]:
    """Of what the values depend on beyond the recipe."""
    return {"lla_jax": __version__, "jax": jax.__version__, "python": platform.python_version()}


def digest(value: Any) -> str:
    """Hash of a JSON value; 32 hex digits."""
    return hashlib.blake2b(text(value).encode(), digest_size=16).hexdigest()


def text(value: Any) -> str:
    """A JSON value as text, the same for equal values."""
    return json.dumps(value, sort_keys=True, default=_files.plain)


# --- comparing


def check_same(path: Path, manifest: Mapping[str, Any], recipe: Mapping[str, Any]) -> None:
    """Raise a ValueError that says what changed unless ``recipe`` is the manifest's, as far as a recipe tells.

    Drawn directions may differ by rounding: another machine draws the same numbers a little differently.
    """
    then = manifest["recipe"]
    names = [k for k in manifest["identity"] if not _alike(_comparable(k, then), _comparable(k, recipe))]
    if names:
        said = "; ".join(f"{name} ({_difference(then.get(name), recipe.get(name))})" for name in names)
        raise ValueError(
            f"store: {path} holds a landscape that differs in {said}. The rule is the same recipe: repeat the "
            "arguments it was made with, or pass another folder"
        )


def _comparable(name: str, recipe: Mapping[str, Any]) -> Any:
    entry = recipe.get(name)
    if name == "directions" and isinstance(entry, Mapping) and entry.get("kind") == "random":
        return {k: v for k, v in entry.items() if k != "contents"}  # to the bit; the recipe says how to draw them
    return entry


def _alike(one: Any, two: Any) -> bool:
    """Equal, floating numbers to rounding."""
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        return one.keys() == two.keys() and all(_alike(one[k], two[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(map(_alike, one, two))
    if isinstance(one, float) and isinstance(two, float):
        return math.isclose(one, two, rel_tol=1e-5, abs_tol=1e-7)
    return text(one) == text(two)


def _difference(then: Any, now: Any) -> str:
    """What differs, entry by entry where both are dicts."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        names = [k for k in {**then, **now} if not _alike(then.get(k), now.get(k))]
        return ", ".join(f"{k}: {_difference(then.get(k), now.get(k))}" for k in names)
    return f"{_short(then)} -> {_short(now)}"


def _short(value: Any) -> str:
    said = text(value)
    return said if len(said) <= 40 else said[:37] + "..."


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Names under which two recipes differ, of those in ``now``; the operator's plan is no difference."""

    def plain(value: Any) -> Any:
        value = {k: v for k, v in value.items() if k != "plan"} if isinstance(value, Mapping) else value
        return json.loads(json.dumps(value, default=repr))

    return [name for name, value in now.items() if plain(before.get(name)) != plain(value)]


def check_resume(resume: Any, recipe: Mapping[str, Any], kind: type[Eigenpairs | Spectrum]) -> None:
    """Raise a ValueError where ``resume`` is not what ``on_partial`` got from the call that the recipe describes."""
    if not isinstance(resume, kind) or (resume.state is None and resume.recipe.get("complete") is not True):
        raise ValueError(f"resume: {resume!r} given; the rule is what {recipe['kind']} gave to on_partial")
    if differs := differences(resume.recipe, recipe):
        raise ValueError(
            f"resume: was made with another {', '.join(differs)}; the rule is the same operator and arguments"
        )


def describe(data: Any) -> dict[str, Any]:
    """Data as a recipe holds them."""
    if isinstance(data, Stream):
        return {"kind": "stream"}
    return {"kind": "memory", "examples": num_examples(data), "fingerprint": fingerprint(data)}


def fingerprint(tree: PyTree) -> str:
    """Hash of names, shapes, dtypes and contents (above 64 MB a fixed sample of the contents); 16 hex digits."""
    digest = hashlib.blake2b(digest_size=8)
    for path, leaf in zip(_tree.paths(tree), jax.tree_util.tree_leaves(tree), strict=True):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        digest.update(f"{path}:{array.shape}:{array.dtype}".encode())
        rows = array.reshape(-1)
        if array.nbytes > 64_000_000:
            rows = rows[:: -(-array.nbytes // 64_000_000)]
        digest.update(np.ascontiguousarray(rows).tobytes())
    return digest.hexdigest()
