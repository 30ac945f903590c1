"""Makes and compares recipes, which say in JSON how results were made.

Two recipes are the same if all their entries are the same, floating numbers up to rounding (1e-5 relative). Plans and
versions are not compared. Of random directions the key is compared and not the bits, because another machine draws
slightly different numbers from the same key.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax._version import __version__
from lla_jax.core import files as _files
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse, misuse
from lla_jax.core.data import Stream, num_examples
from lla_jax.core.results import Eigenpairs, Estimate, Spectrum
from lla_jax.core.signatures import explained
from lla_jax.core.types import PyTree
from lla_jax.core.wholes import Whole

LANDSCAPE = (
    "rule",
    "batch_stats",
    "batch_size",
    "metrics",
    "point_metrics",
    "data",
    "extra_data",
    "params",
    "state",
    "noise",
    "key",
    "precision",
    "directions",
)
"""The entries that decide the values of a landscape: all must be the same for one landscape to continue another."""

OPERATOR = ("kind", "params", "data", "select", "masked")
"""The entries that decide which matrix an operator is."""

ROUNDING = 1e-5  # relative difference between machines, orders of summation and plans
START_ANEW = "start anew without resume"
NOT_COMPARED = ("plan", "versions", "lowest", "bits", "lost")  # entries that decide no value


class Differs(Misuse):
    """The error for two recipes that differ and must be the same.

    Args:
      argument: the argument that brought the older recipe.
      changed: {name of an entry: "then -> now"}.
      text: the message, without the argument's name.
      path: the file or folder that holds the older recipe, or None.
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
    """Raise ``Differs``, which lists the changes, unless the named entries are the same in both recipes.

    Args:
      argument: the argument of the call that brought the older recipe.
      what: the older result in words, such as "the partial landscape".
      then: the older recipe.
      now: the newer recipe.
      names: the entries that must be the same; plan and versions are ignored.
      otherwise: the remedy for a user who cannot make them the same, which ends the message.
      path: the file or folder that holds the older result, or None.
    """
    if changed := differences(then, now, names):
        entries = "; ".join(f"{name} ({change})" for name, change in changed.items())
        text = f"{what} differs in {entries}; both recipes must be the same: repeat the arguments it was made with, or"
        raise Differs(argument, changed, f"{text} {otherwise}", path)


def check_resume(resume: Any, recipe: Mapping[str, Any], kind: type[Eigenpairs | Spectrum | Estimate]) -> None:
    """Raise a ValueError unless ``resume`` can be continued by a call with this recipe.

    It must be a ``kind`` with the same recipe, and either partial, as ``on_partial`` gets it, or complete.
    """
    if not isinstance(resume, kind) or (resume.state is None and resume.recipe.get("complete") is not True):
        raise misuse("resume", resume, f"what {recipe['kind']} gave to on_partial; save it there, and pass it here")
    check_same("resume", f"the partial result of {recipe['kind']}", resume.recipe, recipe, recipe, START_ANEW)
    sealed = resume.recipe.get("seal")  # results of before have none
    with reading_state():
        if resume.state is not None and sealed is not None and seal(resume.state)["seal"] != sealed:
            raise ValueError("its arrays are not those that on_partial got")


def seal(state: Mapping[str, Any]) -> dict[str, str]:
    """The entry of a partial result's recipe by which ``check_resume`` knows its state again."""
    return {"seal": fingerprint({name: np.asarray(array) for name, array in state.items()})}


@contextlib.contextmanager
def reading_state() -> Iterator[None]:
    """A context that restores the state of a partial result, which may come from a damaged file."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, AssertionError, OverflowError) as error:
        if isinstance(error, Misuse) and error.argument == "resume":
            raise
        reason = f"{type(error).__name__}: {error}"[:300]
        raise Misuse("resume", f"its state is damaged, or of another version ({reason}); {START_ANEW}") from error


def differences(then: Mapping[str, Any], now: Mapping[str, Any], names: Iterable[str]) -> dict[str, str]:
    """{name: "then -> now"} of the named entries that differ between two recipes; plan and versions are ignored."""
    names = [name for name in names if name not in NOT_COMPARED]
    return {k: _difference(then.get(k), now.get(k)) for k in names if not same(then.get(k), now.get(k))}


def check_same_values(argument: str, then: Mapping[str, Any], now: Mapping[str, Any], path: Path | None = None) -> None:
    """Raise ``Differs`` if the values at the first point differ, which shows that a function changed.

    Nothing is compared if the loss is not deterministic, or if the two recipes have these values over different
    examples because their data were cut in different ways. The arguments are those of ``check_same``.
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
                "was begun; both need the same loss and functions: restore them, or start anew",
                path,
            )


def same(one: Any, two: Any) -> bool:
    """Whether two entries of recipes are the same, by the rules of this module."""
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        one, two = _decisive(one), _decisive(two)
        return one.keys() == two.keys() and all(same(one[k], two[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return same_numbers(one, two) or (len(one) == len(two) and all(map(same, one, two)))
    return same_numbers(one, two) or _to_text(one) == _to_text(two)


def same_numbers(one: Any, two: Any) -> bool:
    """Whether both are floating numbers, or equally long lists of them, that differ by rounding at most.

    Rounding is 1e-5 of the largest entry of ``two``; entries that are NaN or infinite must be equal.
    """
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
    numbers = value if isinstance(value, list | tuple) else [value]
    return bool(numbers) and all(isinstance(x, float | np.floating) for x in numbers)


def _decisive(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a recipe that decide values; the bits of random directions are left out."""
    is_random = recipe.get("kind") == "random" and not recipe.get("transformed")
    bits = ("contents",) if is_random else ()  # the other entries say how random directions are drawn
    return {k: v for k, v in recipe.items() if k not in (*NOT_COMPARED, *bits)}


def _difference(then: Any, now: Any) -> str:
    """The difference in words: "then -> now", entry by entry if both are dicts."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        then, now = _decisive(then), _decisive(now)
        return ", ".join(f"{k}: {change}" for k, change in differences(then, now, {**then, **now}).items())
    return f"{_shorten(then)} -> {_shorten(now)}"


def _to_text(value: Any) -> str:
    """The value as JSON; the repr of parts that JSON cannot hold."""
    return json.dumps(value, sort_keys=True, default=lambda x: x.tolist() if hasattr(x, "tolist") else repr(x))


def _shorten(value: Any) -> str:
    text = _to_text(value)
    return text if len(text) <= 40 else text[:37] + "..."


# --- entries of recipes


def versions() -> dict[str, str]:
    """The versions of lla_jax, jax and Python, by name."""
    return {"lla_jax": __version__, "jax": jax.__version__, "python": platform.python_version()}


def digest(value: Any) -> str:
    """A hash of a JSON value; 32 hex digits."""
    text = json.dumps(value, sort_keys=True, default=_files.to_plain)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@explained
def describe(data: Any) -> dict[str, Any]:
    """The entry of a recipe that describes data: number of examples and fingerprint; of a stream, its kind alone.

    The number of examples of a ``Whole`` is 1, and its entry says that it is whole.
    """
    if isinstance(data, Stream):
        return {"kind": "stream"}
    entry = {"kind": "memory", "examples": num_examples(data), "fingerprint": fingerprint(data)}
    return entry | ({"whole": True} if isinstance(data, Whole) else {})


@explained
def fingerprint(tree: PyTree) -> str:
    """A hash of the names, shapes, dtypes and contents of all leaves; 16 hex digits.

    Of a leaf above 64 MB a fixed sample of the contents is read. Of a ``Whole`` its other
    leaves count too.
    """
    digest = hashlib.blake2b(digest_size=8)
    if isinstance(tree, Whole):
        rest = repr((tree.form.structure, [(number, value) for number, _, value in tree.form.fixed]))
        digest.update(re.sub(r" at 0x[0-9a-f]+", "", rest).encode())  # addresses differ between processes
    for path, leaf in zip(_tree.paths(tree), jax.tree.leaves(tree), strict=True):
        leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf, _tree.shape_dtype(leaf)[1])  # a Python number
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        digest.update(f"{path}:{array.shape}:{array.dtype}".encode())
        rows = array.reshape(-1)
        if array.nbytes > 64_000_000:
            rows = rows[:: -(-array.nbytes // 64_000_000)]
        digest.update(np.ascontiguousarray(rows).tobytes())
    return digest.hexdigest()
