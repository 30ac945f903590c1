"""Checkpoint files, read into a converted network without running code, and the way back to a state_dict."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from lla_jax.models.adapters import check_flag, explained, misuse, warn_caller
from lla_torch.weights.arguments import check_net, floating_type, is_net
from lla_torch.weights.entries import find_state_dict
from lla_torch.weights.files import is_shard, read_file
from lla_torch.weights.fitting import Fit, find_fits, same_shape
from lla_torch.weights.names import Leaf, NameMap, as_jax, map_names, to_array, to_tensor

_OR_NET = "None, 'net',"
_SHOWN = 20  # names in a message
_SPARE = 2**26  # bytes of a checkpoint's other entries


@explained
def load_checkpoint(
    path: str | os.PathLike[str] | Mapping[str, Any],
    net: Any,
    *,
    strict: bool = True,
    dtype: Any = None,
    key: str | None = None,
    prefix: str | None = None,
) -> Any:
    """Load the weights, statistics and buffers of a checkpoint into a copy of a network, converted or still in torch.

        module = lla_torch.load_checkpoint("net.pth", module)
        net = lla_torch.convert(module, example_inputs)  # both have the weights, and certify compares them

    A state_dict inside a training checkpoint is found. Levels of DataParallel, torch.compile and AveragedModel in names
    are left out, and so is the one prefix under which all of the network is in the file (``net.`` of a Lightning
    module) or all of the file in the network. What is beside the network in the file, such as a loss, is not loaded. A
    file of a PEFT adapter is loaded into a network that was converted with this adapter, whose other weights stay; its
    rank and alpha are the network's.

    Args:
      path: a .pth, .pt, .th, .ckpt, .bin or .safetensors file, the .index.json of a model in shards, a folder with one
        of these, or a state_dict.
      net: the converted network, or a torch module, of which a copy is loaded: the file is read as data alone, by the
        same rules for names.
      strict: whether every tensor of the network must be in the file and the other way round. False keeps the network's
        values for missing ones, and warns of them and of unexpected ones; shapes must agree in any case, and half of
        the network's names must be in the file.
      dtype: of the floating tensors: None keeps the file's, "net" takes the network's, or a name such as "float32". A
        torch module keeps its own.
      key: entry to take of a checkpoint that holds several state_dicts, such as "ema"; "a.b" is an entry of an entry.
      prefix: the module to load, such as "student." (needed if several fit): a module of the file that is the network,
        a module of the network that the file is, or one that both have. The other weights of the network stay, and
        other modules of the file are left out; "" leaves these out as well.

    Returns:
      A new network (a module, where one was given); ``net`` stays as it is. ``num_batches_tracked`` may be missing, as
      in old files.

    Raises:
      FileNotFoundError: no such file, or a shard that is missing.
      ValueError: arguments of another type or order; a file that is no checkpoint or cannot be read, is damaged (files
        of torch.save have checksums, safetensors and the format before torch 1.6 have none), unpacks to far more than
        the network, or holds Python objects other than tensors, numbers, containers and harmless records (nothing of
        any file is executed); no state_dict, or several that fit; names or shapes that do not agree; tensors without
        values (meta); tied weights that differ; float64 while jax has no 64 bits.

    Warns:
      UserWarning: names that do not agree, with ``strict=False``; entries that are not finite.
    """
    content, place, file = _check_path(path, net)
    check_flag("strict", strict)
    if not (key is None or isinstance(key, str)):
        raise misuse("key", key, "None or the name of an entry of the checkpoint, such as 'model'")
    prefix = _read_prefix(prefix)
    module = net if isinstance(net, nn.Module) else None
    if module is None:
        check_net(net)
    elif dtype not in (None, "net"):
        raise misuse("dtype", dtype, "None for a torch module, which keeps its own; cast it by module.to")
    names = net.tree_map if module is None else map_names(module)
    owns = {leaf.name: _find_leaf(net.variables, leaf).dtype for leaf in names.leaves} if module is None else {}
    content = read_file(file, _bound(names)) if file is not None else content
    state, fit = find_state_dict(content, names, key, prefix, place)
    differences = [f"{x}: {_shorten(y)}" for x, y in (("missing", fit.missing), ("unexpected", fit.unexpected)) if y]
    values, problems = _collect_arrays(state, fit, names, owns, "net" if module is not None else dtype)
    refused = strict or fit.few
    if problems or (differences and refused) or not fit.taken:
        raise _misfit(state, names, fit, differences if refused else [], problems, place, file)
    if differences:
        warn_caller(
            f"{place} differs from the network: {'; '.join(differences)} (strict=False: missing tensors keep the "
            "network's values, unexpected ones are left out)"
        )
    bad = [name for name, x in values.items() if not np.isfinite(x).all()]
    if bad:
        warn_caller(f"{place} has entries that are not finite in {_shorten(bad)}; losses will be NaN")
    if module is not None:
        return _load_into_copy(module, names, values)
    arrays = {
        leaf.full_path: as_jax(values[leaf.name], leaf.name, wide=_is_wide(owns[leaf.name], leaf))
        for leaf in names.leaves
        if leaf.name in values
    }
    return net.replace(variables=_replace_leaves(net.variables, arrays, ()))


def _check_path(path: Any, net: Any) -> tuple[Any, str, Path | None]:
    """(state_dict or None, the source in messages, file or None) of the first argument.

    Raises:
      ValueError: it is neither a path nor a dict.
    """
    if isinstance(path, Mapping):
        return path, "path: the state_dict", None
    rule = "the path of a checkpoint, or a state_dict, such as module.state_dict()"
    if is_net(path) or (isinstance(path, nn.Module) and isinstance(net, str | os.PathLike)):
        rule += "; the network is the second argument, load_checkpoint(path, net)"
    if not isinstance(path, str | os.PathLike) or isinstance(os.fspath(path), bytes) or not os.fspath(path).strip():
        raise misuse("path", path, rule)
    return None, f"path: {os.fspath(path)!r}", Path(path).expanduser()


def _load_into_copy(module: nn.Module, names: NameMap, values: Mapping[str, np.ndarray]) -> nn.Module:
    """A copy of a module with the given arrays, which are stored ones by leaf name; other tensors stay."""
    result = copy.deepcopy(module)
    tensors = {x.name: _tensor(x, values[x.name], names) for x in names.leaves if x.name in values}
    own = dict((*result.named_parameters(), *result.named_buffers()))
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)
    return result


def _read_prefix(prefix: Any) -> str | None:
    if prefix is not None and not isinstance(prefix, str):
        raise misuse("prefix", prefix, "None or the name of a module, such as 'backbone.'")
    return prefix and prefix.removesuffix(".") + "."


def _bound(names: Any) -> int:
    """Bytes that compressed entries of a checkpoint may unpack to: the network, copies, moments, and some more."""
    return 16 * 8 * sum(math.prod(leaf.shape) for leaf in names.leaves) + _SPARE


@explained
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
    check_net(net)
    if not (state is None or isinstance(state, Mapping)):
        raise misuse("state", state, "None or a dict of collections, such as {'batch_stats': ...}")
    if params is not None and not isinstance(params, Mapping):
        axes = "; of k directions give one: jax.tree.map(lambda x: x[0], directions.tree)"
        raise misuse("params", params, f"a tree like net.variables['params']{axes if hasattr(params, 'tree') else ''}")
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
            known = list(variables[leaf.collection])
            hint = "; did you mean variables['params']?" if "params" in known else ""
            raise ValueError(
                f"{tree}: {leaf.full_path} is missing, it has {known[:10]}; pass a tree of the network's own "
                f"structure, such as net.variables['params']{hint}"
            )
        node = node[part]
    return node


def _replace_leaves(tree: Any, arrays: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    if not isinstance(tree, Mapping):
        return arrays.get("/".join(path), tree)
    return {name: _replace_leaves(child, arrays, (*path, name)) for name, child in tree.items()}


# --- names that differ


def _shorten(names: Sequence[str]) -> str:
    return f"{list(names[:_SHOWN])}" + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _misfit(
    state: Mapping[str, Any],
    names: Any,
    fit: Fit,
    differences: Sequence[str],
    problems: Mapping[str, Sequence[str]],
    place: str,
    file: Path | None,
) -> ValueError:
    """The error for a state_dict that does not fit, with a way to load it that was tried, if there is one."""
    few = (
        f"only {fit.found} of the network's {fit.expected} names are in it (its names are such as {list(state)[:3]}, "
        f"the network's such as {list(names.aliases)[:3]})"
    )
    said = [few] if fit.few else []
    said += [*differences, *(_describe(problem, each) for problem, each in list(problems.items())[:_SHOWN])]
    remedy = "convert the module that was saved"
    if file is not None and fit.missing and fit.unexpected:  # transformers has other names in files than in modules
        remedy += ", or load the file with the library that wrote it and pass its module's state_dict()"
    if file is not None and is_shard(file):
        remedy = "it is one of several shards: pass their folder, or the .index.json beside it"
    elif any(".lora_" in name for name in state) and not any(".lora_" in name for name in names.aliases):
        remedy = (
            "the file holds an adapter: convert the model with its adapter, as from peft.PeftModel.from_pretrained, or "
            "merged into it by merge_and_unload()"
        )
    elif (part := _find_part(state, names, fit, _with_ties(names, problems))) is not None:
        remedy += f", or pass prefix={part!r} to load " + (
            "that module alone, where the network's other weights may stay as they are"
            if part and any(name.startswith(part) for name in names.aliases)
            else "what the network has and to leave out the file's other modules"
        )
    return ValueError(f"{place} does not fit the network: {'; '.join(said)}; {remedy}")


def _with_ties(names: Any, problems: Mapping[str, Sequence[str]]) -> set[str]:
    """The names that have a problem, and those tied to them."""
    bad = {names.aliases[name] for each in problems.values() for name in each}
    return {name for name, leaf in names.aliases.items() if leaf in bad}


def _describe(problem: str, names: Sequence[str]) -> str:
    return f"{names[0]} {problem}" + (f" (the same for {_shorten(names[1:])})" if len(names) > 1 else "")


def _find_part(state: Mapping[str, Any], names: Any, fit: Fit, bad: Collection[str]) -> str | None:
    """The prefix under which most of a state_dict fits; None where that is less than half, or has ``bad`` tensors."""
    prefixes = dict.fromkeys(("", fit.prefix, fit.within, *(name.split(".")[0] + "." for name in names.aliases)))
    fits = {prefix: find_fits(state, names, prefix)[0] for prefix in prefixes}
    fits = {prefix: each for prefix, each in fits.items() if each.complete and each.taken and not each.unexpected}
    fits = {prefix: each for prefix, each in fits.items() if not set(bad) & set(each.taken)}
    best = max(fits, key=lambda prefix: fits[prefix].found, default=None)
    if best is None or 2 * fits[best].found <= min(fit.expected, len(state)):
        return None
    return best


# --- the tensors


def _is_wide(dtype: Any, leaf: Leaf) -> bool:
    """Whether the network keeps an array that is no weight in 64 bits, whatever jax's mode."""
    return leaf.collection != "params" and dtype.name in ("float64", "complex128")


def _collect_arrays(
    state: Mapping[str, Any], fit: Fit, names: Any, owns: Mapping[str, Any], dtype: Any
) -> tuple[dict[str, np.ndarray], dict[str, list[str]]]:
    """Stored arrays by leaf name, and what is wrong with others: the names by problem.

    ``owns`` has the types of the network's arrays by leaf name; others have those of the torch module.
    """
    target = dtype if dtype is None or (isinstance(dtype, str) and dtype == "net") else floating_type(dtype, _OR_NET)
    problems: dict[str, list[str]] = {}
    values: dict[str, np.ndarray] = {}
    for name, given in fit.taken.items():
        leaf = names.by_name(name)
        own = owns.get(leaf.name, leaf.stored_dtype)
        problem, array = _to_stored_array(state[given], leaf, own, target, names)
        if problem is None and leaf.name in values and array.tobytes() != values[leaf.name].tobytes():  # type: ignore[union-attr]
            others = [x for x in fit.taken if names.aliases[x] == leaf.name and x != name]
            problem = f"and {others[0]} are tied in the network but differ in the file"
        if problem is not None:
            problems.setdefault(problem, []).append(name)
        else:
            values[leaf.name] = array  # type: ignore[assignment]
    return values, problems


def _to_stored_array(
    tensor: Any, leaf: Leaf, own: Any, target: Any, names: Any
) -> tuple[str | None, np.ndarray | None]:
    """(what is wrong, None) or (None, the stored array) of one tensor."""
    if problem := unreadable(tensor):
        return problem, None
    if not same_shape(tensor.shape, leaf.shape):
        again = " and as many entries: reshape it" if tensor.numel() == math.prod(leaf.shape) else ""
        return f"has shape {tuple(tensor.shape)}, but the network's has {leaf.shape}{again}", None
    array = to_array(tensor).reshape(leaf.shape)
    own = jnp.dtype(own)
    if jnp.issubdtype(own, jnp.inexact):
        if not _same_kind(array.dtype, leaf.dtype if leaf.in_parts else own):
            quantized = array.dtype.kind in "iu" and array.dtype.itemsize == 1
            hint = " (quantized weights must be saved as floats)" if quantized else ""
            expected = leaf.dtype if leaf.in_parts else own.name
            return f"is {array.dtype.name}, but the network's is {expected}{hint}", None
        array = names.to_jax(leaf, array)
        new = own if target == "net" else target
        if new is not None:
            new = jnp.promote_types(new, jnp.complex64) if np.iscomplexobj(array) else new
            with np.errstate(over="ignore"):  # load_checkpoint warns of entries that are not finite
                array = array.astype(new)
        return None, array
    exact = array.astype(own)
    if not np.array_equal(exact, array):
        return f"is {array.dtype.name} and does not fit into the network's {own.name}", None
    return None, names.to_jax(leaf, exact)


def unreadable(tensor: torch.Tensor) -> str | None:
    """What keeps a tensor from being an array, with a way out; None if nothing does."""
    if tensor.is_meta:
        return (
            "is on the meta device and has no values, but must hold them: save the model after its weights are loaded"
        )
    if tensor.is_quantized:
        return "is quantized, but must be a dense tensor: save tensor.dequantize()"
    if tensor.layout != torch.strided or tensor.is_nested:
        return (
            f"is {'nested' if tensor.is_nested else tensor.layout}, but must be a dense tensor: save tensor.to_dense()"
        )
    if hasattr(tensor, "full_tensor"):
        return "is a part of a distributed tensor, but must be all of it: save tensor.full_tensor()"
    if hasattr(tensor, "__tensor_flatten__"):
        return f"is a {type(tensor).__name__}, but must be a dense tensor: save the weights before they are quantized"
    return None


def _same_kind(a: Any, b: Any) -> bool:
    return any(jnp.issubdtype(a, kind) and jnp.issubdtype(b, kind) for kind in (jnp.floating, jnp.complexfloating))
