"""The state_dict among the entries of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
import torch

from lla_jax.models.adapters import misuse
from lla_torch.weights.fitting import Fit, find_fits, split_names, strip_wrappers

_DEPTH = 3  # how deep inside a training checkpoint a state_dict is looked for


def find_state_dict(
    content: Any, names: Any, key: str | None, prefix: str | None, place: str
) -> tuple[dict[str, torch.Tensor], Fit]:
    """Find the state_dict in a file's content, the one that fits the network if there are several, and how it fits.

    Args:
      content: what a file holds: a dict, maybe nested.
      names: the network's ``NameMap``.
      key: the entry to search, or None.
      prefix: the module to load, or None; see ``find_fits``.
      place: the file in messages.

    Returns:
      The state_dict by the file's names, and the fit, which need not be complete.

    Raises:
      ValueError: no state_dict; several entries or modules that fit; none of several that fits; an unknown ``key`` or
        ``prefix``.
    """
    if key is not None:
        content, place = _find_entry(content, key, place), f"{place}, key={key!r},"
    candidates = dict(_candidates(content, "", 0, {}))
    if not candidates:
        raise ValueError(f"{place} holds no state_dict (names and tensors) but {_outline(content)}; {_way(content)}")
    given = [name for state in candidates.values() for name in state]
    shown = (*names.aliases, *given)
    if prefix and not any(name.startswith(prefix) for name in (*shown, *map(strip_wrappers, shown))):
        rule = f"a module of the network, or of the file, whose names are such as {given[:3]}"
        raise misuse("prefix", prefix, rule)
    own = {level for levels in split_names(names.aliases) for level in levels}
    related = [name for name, state in candidates.items() if any(x[-1] in own for x in split_names(state))]
    related = related or list(candidates)[:1]  # not the thousand dicts of moments that an optimizer may hold
    fits = {name: find_fits(candidates[name], names, prefix) for name in related}
    whole = {name: each for name, each in fits.items() if each[0].complete and each[0].taken}
    whole = {name: each for name, each in whole.items() if not each[0].unexpected} or whole
    if len(whole) > 1:
        raise ValueError(
            f"{place} holds the state_dicts {sorted(whole)} that fit; name the one you mean, such as "
            f"key={min(name for name in whole if name)!r}"
        )
    best = next(iter(whole)) if whole else max(fits, key=lambda name: fits[name][0].found)
    if len(candidates) > 1 and not whole and fits[best][0].few:
        raise ValueError(
            f"{place} holds state_dicts {sorted(candidates)[:20]}, none of which fits; convert the module that was "
            f"saved, or name the one you mean, such as key={best!r}, to see how it differs"
        )
    found = sorted({fit.prefix for fit in fits[best]})
    if len(found) > 1:
        raise ValueError(
            f"{place} holds several modules that fit the network, under the prefixes {found}; name the one you mean, "
            f"such as prefix={found[-1]!r}"
        )
    if len(fits[best]) > 1:
        places = [next(iter(fit.taken.items())) for fit in fits[best]]
        raise ValueError(
            f"{place} fits several parts: {places[0][1]!r} may be any of {[own for own, _ in places]}; "
            "pass a state_dict with the network's names"
        )
    return candidates[best], fits[best][0]


def _outline(content: Any) -> str:
    """An object of a file in a message: the names of a dict, or the type."""
    return f"a dict with {sorted(map(str, content))[:20]}" if isinstance(content, Mapping) else type(content).__name__


def _way(content: Any) -> str:
    """What to do about a content without a state_dict."""
    if isinstance(content, Mapping) and {"state", "param_groups"} <= set(content):
        return "it is that of an optimizer, for lla_torch.adam_moments; pass the file or entry with the weights"
    if isinstance(content, Mapping) and any(hasattr(x, "shape") for x in jax.tree.leaves(dict(content))):
        return (
            "a tree of arrays needs no loading: net.replace(variables={**net.variables, 'params': tree}); of a file "
            "pass the key= of the entry that holds module.state_dict()"
        )
    return "save module.state_dict(), or pass the key= of the entry that holds it"


def _find_entry(content: Any, key: str, place: str) -> Any:
    rest = key
    while rest:
        if not isinstance(content, Mapping):
            raise ValueError(f"key: {key!r} leads into a {type(content).__name__} of {place}; leave out {rest!r}")
        part = rest if rest in content else rest.split(".")[0]
        if part not in content:
            raise ValueError(
                f"key: {key!r} given; it must be one of the entries of {place}, which are "
                f"{sorted(map(str, content))[:20]}"
            )
        content, rest = content[part], rest[len(part) + 1 :]
    return content


def _candidates(
    content: Any, key: str, depth: int, seen: dict[int, int]
) -> Iterable[tuple[str, dict[str, torch.Tensor]]]:
    """The state_dicts of a file's content, with their keys: dicts of tensors, maybe with a few other entries.

    A dict that is at several keys is one state_dict, and a few of them that hold each other many times are soon read:
    ``seen`` has the depth at which each was met.
    """
    if not isinstance(content, Mapping) or depth > _DEPTH or seen.get(id(content), _DEPTH + 1) <= depth:
        return
    met = id(content) in seen
    seen[id(content)] = depth
    tensors = {k: _as_tensor(v) for k, v in content.items() if isinstance(k, str) and _is_tensor(v)}
    extra = {k: v for k, v in content.items() if str(k).endswith("_extra_state") and k not in tensors}
    others = [k for k in content if k not in tensors and k not in extra]
    if tensors and len(tensors) > len(others) and not met:
        yield key, {**tensors, **{k: v for k, v in extra.items() if v is not None}}
    for name in others:
        if isinstance(name, str):
            yield from _candidates(content[name], f"{key}.{name}" if key else name, depth + 1, seen)


def _is_tensor(value: Any) -> bool:
    return torch.is_tensor(value) or (isinstance(value, np.ndarray) and value.dtype.kind in "biufc")


def _as_tensor(value: Any) -> torch.Tensor:
    return (
        value if torch.is_tensor(value) else torch.from_numpy(np.array(value, value.dtype.newbyteorder("="), order="C"))
    )
