"""Makes and compares recipes, which say in JSON how results were made.

Two recipes are the same if all their entries are the same, floating numbers up to rounding (1e-5 relative). Plans and
versions are not compared. Of random directions the key is compared and not the bits, because another machine draws
slightly different numbers from the same key.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
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
from lla_jax.core import operands, precision
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse, misuse
from lla_jax.core.data import Stream, num_examples
from lla_jax.core.results import Eigenpairs, Estimate, Spectrum
from lla_jax.core.signatures import explained
from lla_jax.core.text import stable_repr
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
"""The entries that decide which matrix an operator is; those of ``OPTIONS``, if a recipe has them, do so too."""

OPTIONS = ("state", "noise", "batch_stats", "batch_size", "preconditioned", "samples", "targets")

UNORDERED = ("metrics", "point_metrics")  # entries whose order decides no value
LARGE = 64_000_000  # bytes of a leaf above which fingerprints of before knew a sample only
PIECE = 2**24  # bytes of an array that is not contiguous which are copied at a time
ROUNDING = 1e-5  # relative difference between machines, orders of summation and plans
HALF_STEPS = 4.0  # times eps of a type of half precision: the same
SEAL = "seal"  # the entry by which a change of the rest is found
START_ANEW = "start anew without resume"
NOT_COMPARED = ("plan", "versions", "matmul", "lowest", "bits", "lost", "centres", "probe")
"""Entries that decide no value: of the precision of matrix products its operands do, where devices round them."""


_LEFT_OUT = {"operands": operands.EXACT}  # entries that a recipe may leave out, with what this means


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
    what, (then, now) = f"the partial result of {recipe['kind']}", (r.get("operator") for r in (resume.recipe, recipe))
    check_same("resume", what, resume.recipe, recipe, recipe, START_ANEW)
    check_same_function("resume", what, then, now, START_ANEW)
    before = resume.recipe.get(SEAL)  # results of before have none
    with reading_state():
        if resume.state is not None and before is not None and not same(seal(resume.state)[SEAL], before):
            raise ValueError("its arrays are not those that on_partial got")


def seal(state: Mapping[str, Any]) -> dict[str, str]:
    """The entry of a partial result's recipe by which ``check_resume`` knows its state again."""
    return {SEAL: fingerprint({name: np.asarray(array) for name, array in state.items()})}


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
    then, now = ({k: _sort(k, v) for k, v in operands.of_before(recipe).items()} for recipe in (then, now))
    names = [name for name in names if name not in NOT_COMPARED]
    pairs = {name: tuple(recipe.get(name, _LEFT_OUT.get(name)) for recipe in (then, now)) for name in names}
    return {name: _difference(*pair) for name, pair in pairs.items() if not same(*pair)}


def _sort(name: str, value: Any) -> Any:
    """An entry whose order says nothing, sorted; any other as it is."""
    return sorted(value, key=str) if name in UNORDERED and isinstance(value, list) else value


def check_same_function(
    argument: str, what: str, then: Any, now: Any, otherwise: str, path: Path | None = None
) -> None:
    """Raise ``Differs`` if the probes of two operators differ, which shows that the function changed.

    The product with the fixed vector is compared relative to its norm, and the mean loss relative to itself or, where
    it is smaller, to that norm: a loss of zero up to rounding says nothing. Recipes of before have no probe, and of a
    loss that changes from call to call it says nothing; these are not compared.

    Args:
      argument: the argument of the call that brought the older recipe.
      what: the older result in words, such as "the partial result of spectrum".
      then: the recipe of the older result's operator.
      now: the recipe of the operator now.
      otherwise: the remedy for a user who cannot restore the function.
      path: the file or folder that holds the older result, or None.
    """
    if not (has_probe(then) and has_probe(now)):
        return
    try:
        (product, loss), (new_product, new_loss) = (_numbers_of(recipe["probe"]) for recipe in (then, now))
        rtol, norms = max(rounding(then), rounding(now)), (product[-1], new_product[-1])
        pairs = list(zip(product, new_product, strict=True))
        same_product = all(is_close(one, two, rtol, max(norms)) for one, two in pairs)
    except (LookupError, TypeError, ValueError) as error:
        raise Misuse(argument, f"{what} has a damaged recipe ({error}); {otherwise}", path) from error
    changes = [] if same_product else [f"the norm of a product: {norms[0]:.6g} -> {norms[1]:.6g}"]
    changes += [] if is_close(loss, new_loss, rtol, max(norms)) else [f"the mean loss: {loss:.6g} -> {new_loss:.6g}"]
    if changes:
        text = f"{what} belongs to another function ({', '.join(changes)}); both must be the same: restore it"
        raise Differs(argument, {"functions": ", ".join(changes)}, f"{text}, or {otherwise}", path)


def _numbers_of(probe: Mapping[str, Any]) -> tuple[list[float], float]:
    """(the numbers of the product, the mean loss or NaN)."""
    return [float(x) for x in probe["product"]], float(probe.get("loss", math.nan))


def has_probe(operator: Any) -> bool:
    """Whether the recipe of an operator has numbers by which its function is known again."""
    probe = operator.get("probe") if isinstance(operator, Mapping) else None
    return isinstance(probe, Mapping) and "product" in probe


def without_probe(operator: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of an operator without the numbers of its function, for another one that is made of it."""
    return {k: v for k, v in operator.items() if k != "probe" or not has_probe(operator)}


def rounding(recipe: Mapping[str, Any]) -> float:
    """The relative difference that rounding makes between two machines or plans: more where halves are at work."""
    eps = precision.eps_at_work(recipe)
    return max(ROUNDING, HALF_STEPS * eps) if eps > operands.eps_of(precision.SINGLE) else ROUNDING


def is_close(one: float, two: float, rtol: float, least: float) -> bool:
    """Whether two numbers differ by ``rtol`` times the largest of their magnitudes and ``least`` at most.

    Those that are not finite must be equal.
    """
    if not (math.isfinite(one) and math.isfinite(two)):
        return one == two or (math.isnan(one) and math.isnan(two))
    scale = max(abs(one), abs(two), least if math.isfinite(least) else 0.0)
    return abs(one - two) <= rtol * scale


def same(one: Any, two: Any) -> bool:
    """Whether two entries of recipes are the same, by the rules of this module."""
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        one, two = _decisive(one), _decisive(two)
        return one.keys() == two.keys() and all(same(one[k], two[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return same_numbers(one, two) or (len(one) == len(two) and all(map(same, one, two)))
    return same_numbers(one, two) or _to_text(one) == _to_text(two) or _are_same_prints(one, two)


def _are_same_prints(one: Any, two: Any) -> bool:
    """Whether two fingerprints agree: those of what was given, or those of what jax computes with."""
    if not (isinstance(one, str) and isinstance(two, str)):
        return False
    return any(_is_same_print(a, b) for a in one.split("~") for b in two.split("~"))


def _is_same_print(one: str, two: str) -> bool:
    """Whether both are one fingerprint, perhaps one of before, which reads a sample of large leaves."""
    short, long = sorted((one, two), key=len)
    return re.fullmatch("[0-9a-f]{16}(-[0-9a-f]{16})?", short) is not None and (
        short == long or (len(short) == 16 and long.startswith(short + "-"))
    )


def same_numbers(one: Any, two: Any, rounding: float = ROUNDING) -> bool:
    """Whether both are floating numbers, or equally long lists of them, that differ by rounding at most.

    Rounding is relative to the largest entry of ``two``; entries that are NaN or infinite must be equal.
    """
    if not (_are_floats(one) and _are_floats(two)):
        return False
    a, b = np.asarray(one, np.float64), np.asarray(two, np.float64)
    if a.shape != b.shape:
        return False
    finite = np.isfinite(a) & np.isfinite(b)
    scale = np.abs(b[finite]).max(initial=0)
    return np.array_equal(a[~finite], b[~finite], equal_nan=True) and bool(
        np.all(np.abs(a[finite] - b[finite]) <= rounding * scale)
    )


def _are_floats(value: Any) -> bool:
    numbers = value if isinstance(value, list | tuple) else [value]
    return bool(numbers) and all(isinstance(x, float | np.floating) for x in numbers)


def _decisive(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a recipe that decide values; the bits of random directions are left out."""
    is_random = recipe.get("kind") == "random" and not recipe.get("transformed")
    bits = ("contents",) if is_random else ()  # the other entries say how random directions are drawn
    kept = {k: v for k, v in recipe.items() if k not in (*NOT_COMPARED, *bits)}
    return {k: v for k, v in kept.items() if k not in _LEFT_OUT or v != _LEFT_OUT[k]}


def _difference(then: Any, now: Any) -> str:
    """The difference in words: "then -> now", entry by entry if both are dicts."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        then, now = _decisive(then), _decisive(now)
        return ", ".join(f"{k}: {change}" for k, change in differences(then, now, {**then, **now}).items())
    return f"{_shorten(then)} -> {_shorten(now)}"


def _to_text(value: Any) -> str:
    """The value as JSON; the repr of parts that JSON cannot hold."""
    return json.dumps(value, sort_keys=True, default=lambda x: x.tolist() if hasattr(x, "tolist") else stable_repr(x))


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


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a JSON file with a seal, by which ``unsealed`` finds a change of the other entries."""
    return {**content, SEAL: digest(content)}


def unsealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a JSON file without its seal; files of before have none.

    Raises:
      ValueError: the seal is not that of the other entries.
    """
    rest = {name: value for name, value in content.items() if name != SEAL}
    if content.get(SEAL) not in (None, digest(rest)):
        raise ValueError("its contents were changed")
    return rest


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

    Where leaves are above 64 MB, a dash and 16 hex digits more follow, a hash of all their bytes: the first 16 know a
    sample of these leaves only, as the whole fingerprint did before, and so agree with recipes of before. Of a
    ``Whole`` its other leaves count too. Where jax narrows leaves, such as labels in int64 to int32, "~" and the
    fingerprint of what jax computes with follow, so that both types are the same (``same``).
    """
    given, narrowed = _Hash(), None
    if isinstance(tree, Whole):
        rest = repr((tree.form.structure, [(number, value) for number, _, value in tree.form.fixed]))
        given.small.update(re.sub(r" at 0x[0-9a-f]+", "", rest).encode())  # addresses differ between processes
    for path, leaf in zip(_tree.paths(tree), jax.tree.leaves(tree), strict=True):
        leaf = leaf if hasattr(leaf, "dtype") else np.asarray(leaf, _tree.shape_dtype(leaf)[1])  # a Python number
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        array = np.asarray(leaf)
        dtype = jax.dtypes.canonicalize_dtype(array.dtype)
        if narrowed is None and dtype != array.dtype:
            narrowed = given.copy()
        given.add(path, array)
        if narrowed is not None:
            narrowed.add(path, array.astype(dtype, copy=False))
    return str(given) if narrowed is None else f"{given}~{narrowed}"


class _Hash:
    """The hashes of a fingerprint: of small leaves and samples of large ones, and of all bytes of large ones."""

    def __init__(self) -> None:
        self.small, self.large = hashlib.blake2b(digest_size=8), hashlib.sha256(usedforsecurity=False)
        self.has_large = False

    def copy(self) -> _Hash:
        """A hash that goes on from here by itself."""
        other = _Hash()
        other.small, other.large, other.has_large = self.small.copy(), self.large.copy(), self.has_large
        return other

    def add(self, path: str, array: np.ndarray) -> None:
        """Add a leaf."""
        self.small.update(f"{path}:{array.shape}:{array.dtype}".encode())
        if array.nbytes <= LARGE:
            self.small.update(np.ascontiguousarray(array.reshape(-1)).tobytes())
            return
        self.has_large = True
        rows = array.reshape(-1) if array.flags.c_contiguous else array.flat
        self.small.update(np.ascontiguousarray(rows[:: -(-array.nbytes // LARGE)]).tobytes())
        for piece in _pieces(array):
            self.large.update(piece.data)

    def __str__(self) -> str:
        return self.small.hexdigest() + (f"-{self.large.hexdigest()[:16]}" if self.has_large else "")


def _pieces(array: np.ndarray) -> Iterator[np.ndarray]:
    """The bytes of an array in row-major order, in pieces; only an array that is not contiguous is copied for it."""
    if array.flags.c_contiguous:
        yield array.reshape(-1).view(np.uint8)
    elif array.nbytes > PIECE:  # as many rows at a time as fit, of which a single one may be too large
        step = max(1, PIECE * len(array) // array.nbytes)
        for start in range(0, len(array), step):
            yield from _pieces(array[start] if step == 1 else array[start : start + step])
    else:
        yield np.ascontiguousarray(array).reshape(-1).view(np.uint8)
