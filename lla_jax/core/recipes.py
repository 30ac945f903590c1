"""Recipes: what a result was made of, in JSON; and the one rule for whether two things are the same.

Two recipes are the same where all their entries are, floating numbers up to rounding (1e-5 relative). Plans and
versions are no part of what is compared, and of drawn directions not the bits: another machine draws the same numbers a
little differently, and the recipe says how.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax._version import __version__
from lla_jax.core import files as _files
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse
from lla_jax.core.data import Stream, num_examples
from lla_jax.core.types import Eigenpairs, PyTree, Spectrum

LANDSCAPE = (
    "rule", "batch_stats", "batch_size", "metrics", "point_metrics", "data", "extra_data", "params", "state", "noise",
    "key", "precision", "directions",
)  # fmt: skip
"""What decides the values of a landscape: of these, two must share all for one to continue the other."""

OPERATOR = ("kind", "params", "data", "select", "masked")
"""What decides which matrix an operator is."""

ROUNDING = 1e-5  # relative difference between machines, orders of summation and plans
AFRESH = "start anew without resume"
HOW = ("plan", "versions")  # entries that say how a result was made, and decide no value


class Differs(Misuse):
    """Two things that have to be the same are not.

    Args:
      argument: of the call, whose value differs.
      changed: {name of an entry: "then -> now"}.
      text: the message without the argument's name.
      path: of the file or folder that holds the older one, if it is kept in one.
    """

    def __init__(self, argument: str, changed: Mapping[str, str], text: str, path: Path | None = None):
        super().__init__(argument, text, path)
        self.changed = dict(changed)
        self.args = argument, self.changed, text, path


def check_same(
    argument: str,
    what: str,
    then: Mapping[str, Any],
    now: Mapping[str, Any],
    names: Iterable[str],
    otherwise: str,
    path: Path | None = None,
) -> None:
    """Raise ``Differs``, which says what changed, unless the entries of these names are the same in both recipes.

    Args:
      argument: of the call, that brought the older one.
      what: the older one in words, such as "the partial landscape".
      then: its recipe.
      now: the recipe of what it is taken for.
      names: of the entries that have to be the same.
      otherwise: what to do where they cannot be made the same.
      path: where the older one is kept.
    """
    if changed := differences(then, now, names):
        said = "; ".join(f"{name} ({text})" for name, text in changed.items())
        text = f"{what} differs in {said}. The rule is the same recipe: repeat the arguments it was made with, or"
        raise Differs(argument, changed, f"{text} {otherwise}", path)


def check_resume(resume: Any, recipe: Mapping[str, Any], kind: type[Eigenpairs | Spectrum]) -> None:
    """Raise a ValueError where ``resume`` is not what ``on_partial`` got from the call that the recipe describes."""
    if not isinstance(resume, kind) or (resume.state is None and resume.recipe.get("complete") is not True):
        raise ValueError(f"resume: {resume!r} given; the rule is what {recipe['kind']} gave to on_partial")
    check_same("resume", f"the partial run of {recipe['kind']}", resume.recipe, recipe, recipe, AFRESH)


def differences(then: Mapping[str, Any], now: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """{name: "then -> now"} of those entries that are not the same in two recipes."""
    names = [name for name in names if name not in HOW]
    return {k: _difference(then.get(k), now.get(k)) for k in names if not same(then.get(k), now.get(k))}


def check_same_values(argument: str, then: Mapping[str, Any], now: Mapping[str, Any], path: Path | None = None) -> None:
    """Raise ``Differs`` unless the values at the first point are what they were: this sees functions that changed.

    Of two recipes whose probes are over different examples (a layout that cuts them otherwise), nothing is known. The
    arguments are those of ``check_same``.
    """
    if not now["deterministic"] or then.get("probe_rows") != now["probe_rows"]:
        return
    before = then.get("probe", {})
    for name, value in now["probe"].items():
        if not same_numbers(before.get(name, value), value):
            raise Differs(
                argument,
                {"functions": f"{before[name]} -> {value}"},
                f"{name or 'the penalty'!r} at the first point is {value}, and was {before[name]} when the landscape "
                "was begun; the rule is the same loss and functions. Restore them, or start anew",
                path,
            )


def same(one: Any, two: Any) -> bool:
    """Whether two entries of recipes are the same."""
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        one, two = _decisive(one), _decisive(two)
        return one.keys() == two.keys() and all(same(one[k], two[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return same_numbers(one, two) or (len(one) == len(two) and all(map(same, one, two)))
    return same_numbers(one, two) or _written(one) == _written(two)


def same_numbers(one: Any, two: Any) -> bool:
    """Whether both are floating numbers, or lists of such, that differ by rounding of the largest at most."""
    if not (_are_floats(one) and _are_floats(two)):
        return False
    a, b = np.asarray(one, np.float64), np.asarray(two, np.float64)
    if a.shape != b.shape:
        return False
    finite = np.isfinite(a) & np.isfinite(b)
    scale = np.abs(b[finite]).max(initial=0)
    return np.array_equal(a[~finite], b[~finite], equal_nan=True) and bool(
        np.all(np.abs(a[finite] - b[finite]) <= ROUNDING * scale)
    )


def _are_floats(value: Any) -> bool:
    each = value if isinstance(value, list | tuple) else [value]
    return bool(each) and all(isinstance(x, float | np.floating) for x in each)


def _decisive(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The entries that decide values."""
    told = recipe.get("kind") == "random" and not recipe.get("transformed")  # by the rest, which says how to draw them
    drawn = ("contents",) if told else ()  # hashed to the bit
    return {k: v for k, v in recipe.items() if k not in (*HOW, *drawn)}


def _difference(then: Any, now: Any) -> str:
    """What differs, entry by entry where both are dicts."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        then, now = _decisive(then), _decisive(now)
        return ", ".join(f"{k}: {text}" for k, text in differences(then, now, {**then, **now}).items())
    return f"{_short(then)} -> {_short(now)}"


def _written(value: Any) -> str:
    """As it would be in a file; what no file takes, as it shows itself."""
    return json.dumps(value, sort_keys=True, default=lambda x: x.tolist() if hasattr(x, "tolist") else repr(x))


def _short(value: Any) -> str:
    said = _written(value)
    return said if len(said) <= 40 else said[:37] + "..."


# --- what recipes hold


def versions() -> dict[str, str]:
    """Of what the values depend on beyond the recipe."""
    return {"lla_jax": __version__, "jax": jax.__version__, "python": platform.python_version()}


def digest(value: Any) -> str:
    """Hash of a JSON value; 32 hex digits."""
    return hashlib.blake2b(text(value).encode(), digest_size=16).hexdigest()


def text(value: Any) -> str:
    """A JSON value as text, the same for equal values."""
    return json.dumps(value, sort_keys=True, default=_files.plain)


def describe(data: Any) -> dict[str, Any]:
    """Data as a recipe holds them."""
    if isinstance(data, Stream):
        return {"kind": "stream"}
    return {"kind": "memory", "examples": num_examples(data), "fingerprint": fingerprint(data)}


def fingerprint(tree: PyTree) -> str:
    """Hash of names, shapes, dtypes and contents (above 64 MB a fixed sample of the contents); 16 hex digits."""
    digest = hashlib.blake2b(digest_size=8)
    for path, leaf in zip(_tree.paths(tree), jax.tree.leaves(tree), strict=True):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        digest.update(f"{path}:{array.shape}:{array.dtype}".encode())
        rows = array.reshape(-1)
        if array.nbytes > 64_000_000:
            rows = rows[:: -(-array.nbytes // 64_000_000)]
        digest.update(np.ascontiguousarray(rows).tobytes())
    return digest.hexdigest()
