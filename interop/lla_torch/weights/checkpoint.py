"""Checkpoint files, read into a converted network without running code, and the way back to a state_dict."""

from __future__ import annotations

import os
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch

from lla_torch.program.errors import misuse
from lla_torch.weights.names import Leaf, as_jax, to_array, to_tensor

WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""Levels that DataParallel, torch.compile, FSDP and activation checkpointing put into names."""
_DEPTH = 3  # how deep inside a training checkpoint a state_dict is looked for
_READ_ERRORS = (
    RuntimeError,
    EOFError,
    KeyError,
    ValueError,
    TypeError,
    AttributeError,
    IndexError,
    OSError,
    AssertionError,
)


def load_checkpoint(
    path: str | os.PathLike[str] | Mapping[str, Any],
    net: Any,
    *,
    strict: bool = True,
    dtype: Any = None,
    key: str | None = None,
) -> Any:
    """Load the weights, statistics and buffers of a checkpoint into a copy of a network.

    Args:
      path: a .pth, .pt, .th, .bin or .safetensors file, or a state_dict. A state_dict inside a training checkpoint is
        found, and levels of DataParallel, torch.compile and AveragedModel in the names are left out.
      net: the converted network.
      strict: whether every tensor of the network must be in the file and the other way round. False keeps the network's
        values for missing ones, and warns of them and of unexpected ones; shapes must agree in any case.
      dtype: of the floating tensors: None keeps the file's, "net" takes the network's, or a name such as "float32".
      key: entry to take of a checkpoint that holds several state_dicts, such as "ema"; "a.b" is an entry of an entry.

    Returns:
      A new network; ``net`` stays as it is. ``num_batches_tracked`` may be missing, as in old files.

    Raises:
      FileNotFoundError: no such file.
      ValueError: a file that is no checkpoint or cannot be read, or holds other Python objects than tensors, numbers
        and containers of them (nothing of such a file is executed); no state_dict, or several that fit; names or shapes
        that do not agree (all are listed); tied weights that differ; float64 while jax has no 64 bits.
    """
    place = "path: the state_dict" if isinstance(path, Mapping) else f"path: {os.fspath(path)!r}"
    content = path if isinstance(path, Mapping) else _read(Path(path))
    names = net.tree_map
    state = _match_names(_find_state_dict(content, names, key, place), names.aliases)
    values, differences = _collect_arrays(state, net, strict, dtype, place)
    if differences:
        warnings.warn(f"{place} differs from the network: {differences} (strict=False)", stacklevel=2)
    bad = [name for name, x in values.items() if not np.isfinite(x).all()]
    if bad:
        warnings.warn(f"{place} has entries that are not finite in {bad}; losses will be NaN", stacklevel=2)
    arrays = {
        leaf.full_path: as_jax(values[leaf.name], leaf.name, wide=_is_wide(_find_leaf(net.variables, leaf), leaf))
        for leaf in names.leaves
        if leaf.name in values
    }
    return net.replace(variables=_replace_leaves(net.variables, arrays, ()))


def to_state_dict(net: Any, params: Any = None, state: Mapping[str, Any] | None = None) -> dict[str, torch.Tensor]:
    """Convert a network's arrays to torch's ``state_dict``: every name, torch's layout and order, the same bits.

    Args:
      net: the converted network.
      params: another tree of the parameters' structure: a gradient, one direction, the weights of a grid point.
      state: other collections, as {"batch_stats": ..., "buffers": ...}; those not given are the network's.

    Returns:
      Tensors by torch name, for ``module.load_state_dict``. Tied names share one tensor. Integers have the module's
      type.

    Raises:
      ValueError: an unknown collection, or a leaf that is missing or has another shape than the network's.
    """
    given = {**({} if params is None else {"params": params}), **(state or {})}
    unknown = sorted(set(state or {}) - (set(net.variables) - {"params"}))
    if unknown:
        raise ValueError(
            f"state: it has {unknown}; it must have collections of the network, which are "
            f"{sorted(set(net.variables) - {'params'})}"
        )
    names = net.tree_map
    tensors = {
        leaf.name: _tensor(leaf, _find_leaf(given if leaf.collection in given else net.variables, leaf), names)
        for leaf in names.leaves
        if leaf.persistent
    }
    return {name: tensors[target] for name, target in names.aliases.items() if target in tensors}


def _tensor(leaf: Leaf, array: Any, names: Any) -> torch.Tensor:
    tensor = to_tensor(names.to_torch(leaf, np.asarray(array)))
    own: torch.dtype = getattr(torch, leaf.dtype)
    return tensor if own.is_floating_point or own.is_complex else tensor.to(own)  # int64 is int32 in jax


def _find_leaf(variables: Mapping[str, Any], leaf: Leaf) -> Any:
    node: Any = variables[leaf.collection]
    for part in leaf.path:
        if not isinstance(node, Mapping) or part not in node:
            tree = "params" if leaf.collection == "params" else "state"
            raise ValueError(f"{tree}: {leaf.full_path} is missing; pass a tree of the network's own structure")
        node = node[part]
    return node


def _replace_leaves(tree: Any, arrays: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    if not isinstance(tree, Mapping):
        return arrays.get("/".join(path), tree)
    return {name: _replace_leaves(child, arrays, (*path, name)) for name, child in tree.items()}


# --- files


def _read(path: Path) -> Any:
    if not path.exists():
        raise FileNotFoundError(f"path: {str(path)!r} given, but there is no such file; pass a checkpoint file")
    if not path.is_file():
        raise ValueError(
            f"path: {str(path)!r} is not a file; pass the checkpoint file inside, such as model.safetensors"
        )
    with path.open("rb") as file:
        head = file.read(9)
    if not head:
        raise ValueError(f"path: {str(path)!r} is empty; save the checkpoint again")
    if path.suffix == ".safetensors" or (head[8:] == b"{" and head[:2] != b"PK"):
        return _read_safetensors(path)
    if _is_torchscript(path):
        raise ValueError(
            f"path: {str(path)!r} is a TorchScript archive, which holds a program and is not read; if you trust the "
            "file, save its weights alone: torch.save(torch.jit.load(path).state_dict(), 'weights.pth')"
        )
    return _read_pickle(path)


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.split("/")[-1] == "constants.pkl" for name in archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return False


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, *_READ_ERRORS) as error:
        raise ValueError(
            f"path: {str(path)!r} is not a complete safetensors file ({error}); save or download it again"
        ) from error


def _read_pickle(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        objects = _foreign_objects(path, error)
        if not objects:
            raise ValueError(
                f"path: {str(path)!r} is not a checkpoint of torch.save, or a damaged one (nothing of it was "
                "executed); save or download it again"
            ) from error
        raise ValueError(
            f"path: {str(path)!r} is refused, because it holds Python objects besides tensors, {objects}, and loading "
            "these can run any code. If you trust the file, save the weights of its module alone: "
            "torch.save(module.state_dict(), 'weights.pth'). Harmless types, such as argparse.Namespace, can be "
            "allowed by name: "
            "with torch.serialization.safe_globals([argparse.Namespace]): load_checkpoint(...)"
        ) from error
    except _READ_ERRORS as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"path: {str(path)!r} is not a checkpoint of torch.save, or a damaged one ({reason}); save or download it "
            "again"
        ) from error


def _foreign_objects(path: Path, error: Exception) -> list[str]:
    """Names of the types and functions that the unpickler refused, for the message."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (*_READ_ERRORS, pickle.UnpicklingError):
        names = []  # the old format, or a damaged file
    return sorted(names) or sorted(set(re.findall(r"GLOBAL ([A-Za-z_][\w.]*)", str(error))))


# --- the state_dict in a file


def _find_state_dict(content: Any, names: Any, key: str | None, place: str) -> dict[str, torch.Tensor]:
    """The state_dict in a file's content; the one that fits the network if there are several."""
    if key is not None:
        content, place = _find_entry(content, key, place), f"{place}, key={key!r},"
    candidates = dict(_candidates(content, "", 0))
    if not candidates:
        raise ValueError(
            f"{place} holds no state_dict (names and tensors) but {_outline(content)}; save module.state_dict(), or "
            "pass the key= of the entry that holds it"
        )
    if len(candidates) > 1:
        fits = {k: v for k, v in candidates.items() if not _name_differences(_match_names(v, names.aliases), names)}
        if len(fits) != 1:
            several = (
                f"the state_dicts {sorted(fits)} that fit"
                if fits
                else f"state_dicts {sorted(candidates)}, none of which fits"
            )
            example = min(fits or candidates)
            raise ValueError(f"{place} holds {several}; name the one you mean, such as key={example!r}")
        candidates = fits
    return next(iter(candidates.values()))


def _outline(content: Any) -> str:
    """An object of a file in a message: the names of a dict, or the type."""
    return f"a dict with {sorted(map(str, content))[:20]}" if isinstance(content, Mapping) else type(content).__name__


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


def _candidates(content: Any, key: str, depth: int) -> Iterable[tuple[str, dict[str, torch.Tensor]]]:
    if not isinstance(content, Mapping) or depth > _DEPTH:
        return
    extra = lambda k: isinstance(k, str) and k.endswith("_extra_state")  # noqa: E731
    named = all(isinstance(k, str) and (torch.is_tensor(v) or extra(k)) for k, v in content.items())
    if named and any(torch.is_tensor(v) for v in content.values()):
        yield key, dict(content)
        return
    for name, value in content.items():
        if isinstance(name, str):
            yield from _candidates(value, f"{key}.{name}" if key else name, depth + 1)


def _match_names(state: Mapping[str, Any], expected: Iterable[str]) -> dict[str, Any]:
    """The state_dict by the network's names: the variant without wrappers' levels, or with them, that fits best."""
    expected = set(expected)
    variants = [{name: name for name in state}, {name: strip_wrappers(name) for name in state}]
    averaged = [name for name in state if name != "n_averaged"]
    if len(averaged) < len(state) and all(name.startswith("module.") for name in averaged):
        variants.append({name: strip_wrappers(name) for name in averaged})
    for variant in list(variants):
        inner = {name: new.removeprefix("model.") for name, new in variant.items()}
        if all(new.startswith("model.") for new in variant.values()) and set(inner.values()) <= expected:
            variants.append(inner)
    usable = [v for v in variants if len(set(v.values())) == len(v)]
    best = min(usable, key=lambda v: len(set(v.values()) ^ expected))
    return {new: state[name] for name, new in best.items()}


def strip_wrappers(name: str) -> str:
    """A torch name without the levels that wrapper modules add to it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


# --- the tensors


def _name_differences(state: Mapping[str, Any], names: Any) -> dict[str, list[str]]:
    """Names that the file lacks ("missing") or the network lacks ("unexpected")."""
    aliases = names.aliases
    present = {aliases[name] for name in state if name in aliases}
    counter = "num_batches_tracked"
    missing = [x.name for x in names.leaves if x.persistent and x.name not in present and not x.name.endswith(counter)]
    unexpected = [name for name in state if name not in aliases and name.split(".")[-1] != counter]
    return {k: v for k, v in (("missing", missing), ("unexpected", unexpected)) if v}


def _is_wide(array: Any, leaf: Leaf) -> bool:
    """Whether the network keeps an array that is no weight in 64 bits, whatever jax's mode."""
    return leaf.collection != "params" and array.dtype.name in ("float64", "complex128")


def _collect_arrays(
    state: Mapping[str, Any], net: Any, strict: bool, dtype: Any, place: str
) -> tuple[dict[str, np.ndarray], str]:
    """Stored arrays by leaf name, and a note on missing and unexpected names unless ``strict``."""
    names, target = net.tree_map, _target_dtype(dtype)
    differences = [f"{k}: {v}" for k, v in _name_differences(state, names).items()]
    note = "" if strict else "; ".join(differences)
    errors = differences if strict else []
    values: dict[str, np.ndarray] = {}
    for name, tensor in state.items():
        if name not in names.aliases:
            continue
        leaf = names.by_name(name)
        error, array = _to_stored_array(name, tensor, leaf, _find_leaf(net.variables, leaf).dtype, target, names)
        if error is None and leaf.name in values and array.tobytes() != values[leaf.name].tobytes():  # type: ignore[union-attr]
            error = f"{name} and {leaf.name} are tied in the network but differ in the file"
        if error is not None:
            errors.append(error)
        else:
            values[leaf.name] = array  # type: ignore[assignment]
    if errors:
        remedy = "convert the module that was saved" + (", or pass strict=False" if strict and differences else "")
        raise ValueError(f"{place} does not fit the network: {'; '.join(errors)}; {remedy}")
    return values, note


def _target_dtype(dtype: Any) -> Any:
    if dtype is None or (isinstance(dtype, str) and dtype == "net"):
        return dtype
    try:
        result = jnp.dtype(str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype)
    except TypeError:
        result = None
    if result is None or not jnp.issubdtype(result, jnp.floating):
        raise misuse("dtype", dtype, "None, 'net', or a floating type, such as 'float32'")
    return result


def _to_stored_array(
    name: str, tensor: Any, leaf: Leaf, own: Any, target: Any, names: Any
) -> tuple[str | None, np.ndarray | None]:
    """(message, None) or (None, the stored array) of one tensor."""
    if tensor.layout != torch.strided or tensor.is_quantized:
        return f"{name} is {'quantized' if tensor.is_quantized else tensor.layout}, but must be a dense tensor", None
    if tuple(tensor.shape) != leaf.shape:
        return f"{name} has shape {tuple(tensor.shape)}, but the network's has {leaf.shape}", None
    array = to_array(tensor)
    own = jnp.dtype(own)
    if jnp.issubdtype(own, jnp.inexact):
        if not _same_kind(array.dtype, leaf.dtype if leaf.in_parts else own):
            return f"{name} is {array.dtype.name}, but the network's is {leaf.dtype if leaf.in_parts else own}", None
        array = names.to_jax(leaf, array)
        new = own if target == "net" else target
        if new is not None:
            new = jnp.promote_types(new, jnp.complex64) if np.iscomplexobj(array) else new
            with np.errstate(over="ignore"):  # load_checkpoint warns of entries that are not finite
                array = array.astype(new)
        return None, array
    else:
        exact = array.astype(own)
        if not np.array_equal(exact, array):
            return f"{name} is {array.dtype.name} and does not fit into the network's {own.name}", None
        array = exact
    return None, names.to_jax(leaf, array)


def _same_kind(a: Any, b: Any) -> bool:
    return any(jnp.issubdtype(a, kind) and jnp.issubdtype(b, kind) for kind in (jnp.floating, jnp.complexfloating))
