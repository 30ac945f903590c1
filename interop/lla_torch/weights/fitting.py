"""Which tensor of a file is which of a network, where the file's names have other levels than the network's."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lla_torch.weights.names import NameMap

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Levels that DataParallel, torch.compile, FSDP and activation checkpointing put into names."""
COUNTER = "num_batches_tracked"
"""The buffer of BatchNorm that old files lack."""
_OLD_NAMES = (  # of weight_norm, and of norms in old files of BERT
    (re.compile(r"parametrizations\.(\w+)\.original0$"), r"\1_g"),
    (re.compile(r"parametrizations\.(\w+)\.original1$"), r"\1_v"),
    (re.compile(r"(?<=Norm\.)gamma$"), "weight"),
    (re.compile(r"(?<=Norm\.)beta$"), "bias"),
)
_ADAPTER = re.compile(
    r"(lora|ia3|vera|oft|boft|hada|lokr|hra|ln_tuning|randlora|trainable_tokens|adaption|shira|fourierft|c3a|waveft|vblora|"
    r"delora|glora|gralora|tinylora|unilora|pvera|psoft)_|modules_to_save$"
)
"""Levels of PEFT's tensors, which the adapter's name follows."""
_UNSAVED = "ranknum"
"""The level of AdaLoRA's ranks, which PEFT's files lack and its models keep."""
_LOSS = re.compile(
    r"(^|_)(criterions?|criteria|loss|losses|loss_?fns?|loss_?func\w*|objective|metrics?)(_|\d|$)|^pos_weight$"
)
"""Parts of names that losses, metrics and their buffers have."""


@dataclass(frozen=True)
class Fit:
    """One way to read a file's names.

    Args:
      taken: the file's name of each of the network's names.
      missing: leaves of the network that should be in the file and are not.
      unexpected: names of the file that should be in the network and are not.
      misshapen: leaves of another shape than the file's.
      expected: the number of leaves that should be in the file.
      prefix: what the file's names have before the network's.
      within: what the network's names have before the file's.
    """

    taken: Mapping[str, str]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    misshapen: tuple[str, ...]
    expected: int
    prefix: str
    within: str

    @property
    def complete(self) -> bool:
        """Whether the file has all that is expected, in the right shapes."""
        return not self.missing and not self.misshapen

    @property
    def found(self) -> int:
        """How many of the expected leaves are in the file."""
        return self.expected - len(self.missing)

    @property
    def few(self) -> bool:
        """Whether so little is in the file that the network would stay as it is, more or less."""
        return 2 * self.found < self.expected or not self.taken


@dataclass(frozen=True)
class _Spelling:
    """Names of the file and the network, spelled so that they can be equal; each stands for the name itself.

    Args:
      file: spelled names of the file.
      net: spelled names of the network.
      expected: the leaves that the file should have.
    """

    file: Mapping[str, str]
    net: Mapping[str, str]
    expected: frozenset[str]


def strip_wrappers(name: str) -> str:
    """A torch name without the levels that wrapper modules add to it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def split_names(names: Iterable[str]) -> list[list[str]]:
    """The levels of each name, without wrappers' and by the newer of two names."""
    return [_modernize(strip_wrappers(name)).split(".") for name in names]


def find_fits(state: Mapping[str, Any], names: NameMap, prefix: str | None) -> list[Fit]:
    """The ways to read a file's names under which all is there; if there is none, the one that finds most.

    The network may be a module of the file's (``net.``), or the file a module of the network's; wrappers' levels, the
    name of an adapter and old names of weight_norm are left out of the comparison. What is beside the network in the
    file (a loss, a teacher) is not expected in the network.

    Args:
      state: tensors, or what has a ``shape``, by the file's names.
      names: the network's names.
      prefix: the module to load, in the file, the network or both; None: any.

    Returns:
      Complete fits that differ, or one that is not complete.
    """
    shapes = {leaf.name: leaf.shape for leaf in names.leaves}
    whole: dict[frozenset[tuple[str, str]], Fit] = {}
    best: Fit | None = None
    for adapters in (False, True):
        for spelling in _spellings(state, names, adapters):
            for before, within in _levels(spelling, prefix, names.aliases):
                fit = _fit(spelling, before, within, prefix is not None, state, names.aliases, shapes)
                if fit.complete and fit.taken:
                    leaves = frozenset((names.aliases[name], given) for name, given in fit.taken.items())
                    if leaves not in whole or len(fit.unexpected) < len(whole[leaves].unexpected):
                        whole[leaves] = fit
                elif best is None or _quality(fit) > _quality(best):
                    best = fit
        if whole:
            break
    fits = [fit for leaves, fit in whole.items() if not any(leaves < others for others in whole)]  # of tied tensors
    exact = [fit for fit in fits if not fit.unexpected and len(fit.taken) == len(state)]
    if fits:
        return exact if len(exact) == 1 else fits
    return [] if best is None else [best]


def match_names(given: Sequence[str], known: Iterable[str]) -> list[str]:
    """The network's names for names of an optimizer's parameters, which may have other levels before them.

    Args:
      given: names, all under the same levels.
      known: the network's names.

    Returns:
      As many names, of which some are not ``known`` if no levels fit.
    """
    known = list(known)
    for way in (lambda x: x, strip_wrappers):
        own, spelled = {way(name): name for name in known}, [way(name) for name in given]
        for before, within in itertools.product(["", *_common(spelled)], ["", *_common(list(own))]):
            names = [within + name.removeprefix(before) for name in spelled]
            if all(name in own for name in names):
                return [own[name] for name in names]
    return list(given)


def _quality(fit: Fit) -> tuple[int, int, int]:
    return (fit.found - len(fit.misshapen), fit.found, -len(fit.unexpected))


def _spellings(state: Mapping[str, Any], names: NameMap, adapters: bool) -> Iterator[_Spelling]:
    """Spellings of all names: as they are, without wrappers' levels, by old names; or those of an adapter alone."""
    net, leaves = list(names.aliases), {leaf.name for leaf in names.leaves if leaf.persistent}
    expected = frozenset(name for name in leaves if not name.endswith(COUNTER))
    if adapters:
        for adapter in _adapters(state, net):
            own = [name for name in net if adapter in name.split(".") and _UNSAVED not in name.split(".")]
            short = {**{name: name for name in net}, **{_without_adapter(name, adapter): name for name in own}}
            file = {_without_adapter(strip_wrappers(name), ""): name for name in state}
            yield _Spelling(file, short, frozenset(names.aliases[name] for name in own) & expected)
        return
    ways: tuple[Callable[[str], str], ...] = (lambda x: x, strip_wrappers, lambda x: _modernize(strip_wrappers(x)))
    seen = []
    for way in ways:
        spelled = [way(name) for name in state], [way(name) for name in net]
        if spelled not in seen and all(len(set(each)) == len(each) for each in spelled):
            seen.append(spelled)
            yield _Spelling(dict(zip(spelled[0], state)), dict(zip(spelled[1], net)), expected)


def _modernize(name: str) -> str:
    for old, new in _OLD_NAMES:
        name = old.sub(new, name)
    return name


def _adapters(state: Mapping[str, Any], net: Sequence[str]) -> list[str]:
    """Names of the network's adapters, if the file has an adapter's tensors without its name."""
    if not any(_ADAPTER.match(part) for name in state for part in name.split(".")):
        return []
    found: dict[str, None] = {}
    for parts in (name.split(".") for name in net):
        pairs = itertools.pairwise(parts)
        found |= {after: None for before, after in pairs if _ADAPTER.match(before) and not after.isdigit()}
    return [adapter for adapter in found if adapter not in ("weight", "bias")]


def _without_adapter(name: str, adapter: str) -> str:
    """An adapter's name as PEFT saves it: without the adapter's level, and those of magnitudes and whole modules."""
    short = ".".join(part for part in name.split(".") if part not in (adapter, "modules_to_save"))
    return short.removesuffix(".weight") if short.endswith(".lora_magnitude_vector.weight") else short


def _levels(spelling: _Spelling, prefix: str | None, aliases: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Pairs (what the file's names have before the network's, what the network's have before the file's)."""
    if prefix is not None:
        yield prefix, ""
        if any(name.startswith(prefix) for name in spelling.net):
            yield from ((prefix, prefix), ("", prefix))
        return
    yield "", ""
    net, file = list(spelling.net), list(spelling.file)
    pairs: dict[tuple[str, str], None] = {}
    for within in ["", *_common(net)]:  # the network is a module of the file's
        for own in _some([name for name, x in spelling.net.items() if aliases[x] in spelling.expected]):
            rest = own[len(within) :]
            pairs |= {(name.removesuffix(rest), within): None for name in file if ("." + name).endswith("." + rest)}
    for before in ["", *_common(file)]:  # the file is a module of the network's
        for given in _some(file):
            rest = given[len(before) :]
            pairs |= {(before, name.removesuffix(rest)): None for name in net if ("." + name).endswith("." + rest)}
    yield from pairs


def _some(names: list[str]) -> list[str]:
    """A few names, of which a file that fits has at least one."""
    return names[:: max(1, len(names) // 4)]


def _common(names: Sequence[str]) -> list[str]:
    """The levels that all names begin with: "a.", "a.b."."""
    if not names:
        return []
    result: list[str] = []
    for part in names[0].split(".")[:-1]:
        longer = (result[-1] if result else "") + part + "."
        if not all(name.startswith(longer) for name in names):
            break
        result.append(longer)
    return result


def _fit(
    spelling: _Spelling,
    before: str,
    within: str,
    chosen: bool,
    state: Mapping[str, Any],
    aliases: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
) -> Fit:
    inside = {name: x for name, x in spelling.file.items() if name.startswith(before)}
    taken = {
        spelling.net[new]: x for name, x in inside.items() if (new := within + name[len(before) :]) in spelling.net
    }
    expected = spelling.expected
    if chosen and within:  # that module alone
        own = {x for name, x in spelling.net.items() if name.startswith(within)}
        expected = expected & {aliases[x] for x in own}
    present = {aliases[name] for name in taken}
    modules = {name[len(within) :].split(".")[0] for name in spelling.net if name.startswith(within)}
    used = set(taken.values())
    unexpected = [
        x
        for name, x in inside.items()
        if x not in used
        and not name.endswith(COUNTER)
        and not any(map(_LOSS.search, name[len(before) :].split(".")))
        and not (chosen and name[len(before) :].split(".")[0] not in modules)
    ]
    misshapen = [name for name, x in taken.items() if not same_shape(state[x].shape, shapes[aliases[name]])]
    return Fit(
        taken,
        tuple(name for name in shapes if name in expected and name not in present),
        tuple(unexpected),
        tuple(misshapen),
        len(expected),
        before,
        within,
    )


def same_shape(given: Sequence[int], own: Sequence[int]) -> bool:
    """Whether a tensor of a file has a leaf's shape; as in torch, one entry will do for a number."""
    return tuple(given) == tuple(own) or (tuple(own) == () and tuple(given) == (1,))
