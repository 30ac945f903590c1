"""Finds the parameters of a network among the named arrays of a file.

Names are compared part by part, whatever divides the parts: "params/Dense_0/kernel", "params.Dense_0.kernel" and
"['params']['Dense_0']['kernel']" are one name.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse
from lla_jax.core.types import PyTree
from lla_jax.paths.files.array_files import Source

STATES = ("batch_stats", "state", "model_state", "buffers", "constants")
"""Collections beside the parameters that are a network's state."""

OTHERS = ("opt_state", "optimizer", "opt", "step", "epoch", "rng", "rngs", "key", "header", "metrics", "losses")
"""Collections and entries beside the parameters that are neither."""

_DIVIDERS = re.compile(r"""[/.\[\]'"]+""")
_SUFFIX = ("value", "raw_value")  # in which nnx variables end

Shapes = Mapping[str, tuple[int, ...] | None]


class Match(NamedTuple):
    """Where a file has the leaves of a tree.

    Args:
      names: the file's name for each leaf, in leaf order.
      prefix: what the file's names begin with, in parts; "" for nothing.
    """

    names: tuple[str, ...]
    prefix: str


def normalize(name: str) -> str:
    """A name with its parts joined by "/"."""
    parts = [part for part in _DIVIDERS.split(name) if part]
    return "/".join(parts[:-1] if len(parts) > 1 and parts[-1] in _SUFFIX else parts)


def table(source: Source) -> dict[str, str]:
    """The file's own names by their normalized ones.

    Raises:
      Misuse: two names are one when normalized.
    """
    result: dict[str, str] = {}
    for name in source.shapes:
        if (other := result.setdefault(normalize(name), name)) != name:
            text = f"{source.file.name} has both {other!r} and {name!r}, which differ in dividers only; rename one"
            raise Misuse("files", text, source.file)
    return result


def find(source: Source, like: PyTree, key: str | None, what: str = "like", near: tuple[str, ...] = ()) -> Match:
    """Where the file has the leaves of ``like``: directly, or all under one prefix.

    Args:
      source: the file.
      like: the tree that is looked for.
      key: the prefix to take, or None.
      what: the argument that gave ``like``.
      near: prefixes of which the first that fits is taken, if several fit.

    Raises:
      Misuse: a leaf is missing or has another shape; several prefixes fit.
    """
    wanted = [normalize(path) for path in _tree.paths(like)]
    shapes = [tuple(np.shape(leaf)) for leaf in jax.tree.leaves(like)]
    names = table(source)
    if key is not None:
        prefix = normalize(key)
        if not any(name == prefix or name.startswith(f"{prefix}/") for name in names):
            text = f"{key!r} given, and the names in {source.file.name} are such as {list(source.shapes)[:5]}"
            raise Misuse("key", f"{text}; pass what the names of the parameters begin with", source.file)
        prefixes = [prefix]
    else:
        prefixes = _prefixes(names, wanted)
    fits = {p: [names[_join(p, w)] for w in wanted] for p in prefixes if all(_join(p, w) in names for w in wanted)}
    whole = {p: own for p, own in fits.items() if [source.shapes[name] for name in own] == shapes}
    if not whole:
        raise _misfit(source, names, dict(zip(wanted, shapes)), prefixes, fits, what)
    best = _choose(whole, near)
    if best is None:
        text = f"{source.file.name} has the leaves of {what} under {sorted(whole)}; name the one you mean, such as "
        raise Misuse("key", f"none given, and {text}key={max(whole)!r}", source.file)
    return Match(tuple(whole[best]), best)


def _choose(fits: Iterable[str], near: tuple[str, ...]) -> str | None:
    """The prefix that is meant among those that fit; None if it cannot be told."""
    fits = list(fits)
    fits = [prefix for prefix in fits if not {*prefix.split("/")} & {*OTHERS}] or fits
    if len(fits) == 1:
        return fits[0]
    for prefix in (*near, ""):
        if prefix in fits:
            return prefix
    of_params = [prefix for prefix in fits if prefix.split("/")[-1] == "params"]
    return of_params[0] if len(of_params) == 1 else None


def _join(prefix: str, name: str) -> str:
    return "/".join(part for part in (prefix, name) if part)


def _prefixes(names: Iterable[str], wanted: list[str]) -> list[str]:
    """All that stands before the name of some wanted leaf in a file; the most frequent first."""
    counts: dict[str, int] = {}
    endings = set(wanted)
    for name in names:
        parts = name.split("/")
        for i in range(len(parts) + ("" in endings)):
            if "/".join(parts[i:]) in endings:
                prefix = "/".join(parts[:i])
                counts[prefix] = counts.get(prefix, 0) + 1
    return sorted(counts, key=lambda prefix: (-counts[prefix], len(prefix)))


def _misfit(
    source: Source,
    names: Mapping[str, str],
    wanted: Mapping[str, tuple[int, ...]],
    prefixes: list[str],
    fits: Mapping[str, list[str]],
    what: str,
) -> Misuse:
    """The error for a file that does not have the leaves, with the one that is nearest to the first that is missing."""
    file = source.file.name
    if fits:
        own = fits[next(iter(fits))]
        for (path, shape), name in zip(wanted.items(), own):
            if source.shapes[name] != shape:
                found = source.shapes[name]
                text = f"shape {found}" if found is not None else "no numbers, or Python objects, which are not read"
                rule = f"; it must have shape {shape}, as {path!r} of {what}: these are checkpoints of another network"
                return Misuse("files", f"{file}: {name!r} has {text}{rule}", source.file)
    prefix = prefixes[0] if prefixes else ""
    path = next(path for path in wanted if _join(prefix, path) not in names)
    near = difflib.get_close_matches(_join(prefix, path), names, 1, 0.4)
    told = f"; the nearest is {names[near[0]]!r}, {source.shapes[names[near[0]]]}" if near else ""
    listed = list(source.shapes)[:5]
    text = f"{file} lacks {path!r}, {wanted[path]}, of {what}{told}; its names are such as {listed}"
    tree = "state" if what == "state_like" else "parameters"
    return Misuse("files", f"{text}: pass as {what} the {tree} of the network that was saved", source.file)


def surplus(source: Source, match: Match, taken: Iterable[str]) -> list[str]:
    """Arrays among the parameters of a file that the network does not have, so that it is another network's file.

    Args:
      source: the file.
      match: where its parameters are.
      taken: names that are used: parameters and state.
    """
    names, taken = table(source), set(taken)
    inside = [own for own in names if not match.prefix or own.startswith(f"{match.prefix}/")]
    rest = [names[own] for own in inside if names[own] not in taken and not _is_beside(own, match.prefix)]
    return [name for name in rest if np.prod(source.shapes[name] or (1,)) > 1]


def _is_beside(name: str, prefix: str) -> bool:
    """Whether an array without a prefix is none of the parameters by its name."""
    return not prefix and name.split("/")[0] in (*STATES, *OTHERS)


def find_state(source: Source, match: Match) -> dict[str, str]:
    """The file's names of a network's state beside its parameters, by their paths in it: "batch_stats/BN_0/mean"."""
    root = match.prefix.rpartition("/")[0] if match.prefix else ""
    found: dict[str, str] = {}
    for own, name in table(source).items():
        rest = own[len(root) :].lstrip("/") if not root or own.startswith(f"{root}/") else ""
        if rest.split("/")[0] in STATES and "/" in rest and name not in match.names:
            found[rest] = name
    return found


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Nested dicts of leaves by their paths."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *above, last = path.split("/")
        node = tree
        for part in above:
            node = node.setdefault(part, {})
        node[last] = leaf
    return tree
