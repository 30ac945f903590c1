"""Adam's moments of a torch optimizer, in the layout of the converted weights, for Adam axes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
import torch

from lla_jax import Directions, directions
from lla_jax.models.adapters import explained, misuse
from lla_torch.weights.arguments import check_net, is_net
from lla_torch.weights.fitting import match_names
from lla_torch.weights.names import to_array

_MOMENTS = ("exp_avg", "exp_avg_sq")


@explained
def adam_moments(optimizer_or_state: Any, net: Any, params: Sequence[str] | None = None) -> Directions:
    """First and second moment (m, v) of Adam as two directions, raw as torch keeps them; see ``optax_state``.

    Args:
      optimizer_or_state: the optimizer, or the result of its ``state_dict()``.
      net: the converted network.
      params: torch names of the optimizer's parameters in its order; None: see ``optax_state``.

    Returns:
      Two directions named m and v, not corrected for bias, as from ``lla_jax.directions.adam_moments``.

    Raises:
      ValueError: those of ``optax_state``; an optimizer that has taken no step.
    """
    return directions.adam_moments(optax_state(optimizer_or_state, net, params), net.variables["params"])


@explained
def optax_state(optimizer_or_state: Any, net: Any, params: Sequence[str] | None = None) -> optax.ScaleByAdamState:
    """Convert the state of a torch optimizer with exp_avg and exp_avg_sq (Adam, AdamW, NAdam, RAdam) to optax's.

    Args:
      optimizer_or_state: the optimizer, whose parameters are found in the network by identity, or the result of its
        ``state_dict()``, in a training checkpoint usually the entry "optimizer".
      net: the converted network. For an optimizer without ``params`` its module must still exist.
      params: torch names of the optimizer's parameters in the order of its groups, usually ``[name for name, _ in
        module.named_parameters()]``; levels before the network's names are left out, as in checkpoints. None:
        parameters are found by identity, or by the names in the saved state (torch 2.6 and later keep them if the
        optimizer was made with ``module.named_parameters()``).

    Returns:
      ``optax.ScaleByAdamState``, for ``Problem.opt_state``: mu and nu with zeros where the optimizer has no state
      (frozen or unused parameters), in the moments' own precision; count is the largest step.

    Raises:
      ValueError: another optimizer; parameters that cannot be matched or have moments of another shape; moments that
        are sparse, or complex for real weights.
    """
    check_net(net)
    params = None if params is None else _read_names(params)
    if isinstance(optimizer_or_state, torch.optim.Optimizer):
        source = f"{type(optimizer_or_state).__name__} optimizer"
        if isinstance(optimizer_or_state, torch.optim.SparseAdam):
            raise ValueError(
                "optimizer_or_state: SparseAdam given, whose moments are out of date for rows without gradient; use "
                "Adam or AdamW"
            )
        groups = optimizer_or_state.param_groups
        states = [optimizer_or_state.state.get(p, {}) for group in groups for p in group["params"]]
        tensors = [p for group in groups for p in group["params"]]
        if params is None:
            names = _by_identity(tensors, states, net, source)
        else:
            names = _by_order(params, len(states), net, source)
    else:
        source = "saved state"
        groups, states = _read_saved_state(optimizer_or_state)
        names = _by_order(_saved_names(groups) if params is None else params, len(states), net, source)
    _check_kind(groups, states, source)
    return _assemble(names, states, net, source)


def _read_names(params: Any) -> list[str]:
    """The torch names in ``params``: a sequence or dict of names, or the pairs of ``module.named_parameters()``."""
    names: list[Any] = list(params) if isinstance(params, Iterable) and not isinstance(params, str) else [None]
    names = [each[0] if isinstance(each, tuple) and len(each) == 2 else each for each in names]
    if not all(isinstance(name, str) for name in names):
        raise misuse(
            "params",
            params,
            "torch names in the order of the optimizer, such as [name for name, _ in module.named_parameters()], not "
            "the tensors",
        )
    return names


def _read_saved_state(state: Any) -> tuple[list[Any], list[Any]]:
    if not isinstance(state, Mapping) or not {"state", "param_groups"} <= set(state):
        kind = f"a dict with {sorted(map(str, state))[:20]}" if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(
            f"optimizer_or_state: {kind} given; it must be a torch optimizer or its state_dict() with 'state' and "
            f"'param_groups', in a training checkpoint an entry such as checkpoint['optimizer']{_slip(state)}"
        )
    groups = list(state["param_groups"])
    return groups, [state["state"].get(index, {}) for group in groups for index in group["params"]]


def _slip(state: Any) -> str:
    """What was probably meant by a state of another type."""
    if isinstance(state, str | os.PathLike):
        return "; of a file pass torch.load(path, weights_only=True), or this entry of it"
    if isinstance(state, type):
        return "; this is a class: pass the optimizer that has trained the module"
    if isinstance(state, torch.nn.Module) or is_net(state):
        return "; the network is the second argument"
    if isinstance(state, tuple | list):
        return "; of optax's state make directions by lla_jax.directions.adam_moments(opt_state, params)"
    return ""


def _saved_names(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    if not all("param_names" in group for group in groups):
        raise ValueError(
            "optimizer_or_state: the saved state numbers its parameters and holds no names; pass params=[...], the "
            "torch names in the order in which the optimizer got them, such as [name for name, _ in "
            "module.named_parameters()]"
        )
    return [name for group in groups for name in group["param_names"]]


def _by_order(params: Sequence[str], count: int, net: Any, source: str) -> list[str | None]:
    """Leaf names for torch names in the optimizer's order."""
    params = list(params)
    if len(params) != count:
        raise ValueError(
            f"params: {len(params)} names given, but the {source} has {count} parameters; give one name for each"
        )
    aliases = net.tree_map.aliases
    names = [aliases.get(name) for name in match_names(params, aliases)]
    weights = {leaf.name for leaf in net.tree_map.leaves if leaf.collection == "params"}
    if unknown := [name for name, leaf in zip(params, names) if leaf not in weights]:
        raise ValueError(f"params: {unknown} are not parameters of the network; its parameters are {sorted(weights)}")
    if double := sorted({name for name, leaf in zip(params, names) if names.count(leaf) > 1}):
        raise ValueError(f"params: {double} name a parameter twice (tied ones are one parameter); give each once")
    return list(names)


def _by_identity(tensors: Sequence[Any], states: Sequence[Any], net: Any, source: str) -> list[str | None]:
    """Leaf names of the optimizer's own parameters; None for other modules' parameters, whose moments are zero."""
    living = {id(p): name for name, ref in net._refs.items() if (p := ref()) is not None}
    names = [living.get(id(tensor)) for tensor in tensors]
    remedy = (
        "pass params=[...], the torch names in the order in which the optimizer got them, such as "
        "[name for name, _ in module.named_parameters()]"
    )
    if not living:
        raise ValueError(
            f"optimizer_or_state: the module that was converted no longer exists, so the parameters of the {source} "
            f"cannot be recognized; {remedy}"
        )
    if not any(names):
        raise ValueError(
            f"optimizer_or_state: none of the parameters of the {source} belongs to the module that was converted; "
            f"convert the module that it trains, or {remedy}"
        )
    for i, (tensor, name, state) in enumerate(zip(tensors, names, states)):
        if name is None and any(torch.is_tensor(state.get(k)) and bool(state[k].any()) for k in _MOMENTS):
            raise ValueError(
                f"optimizer_or_state: parameter {i} of the {source}, of shape {tuple(tensor.shape)}, has moments but "
                "is none of the network's; convert a module that holds all parameters that it trains"
            )
    return names


def _check_kind(groups: Sequence[Mapping[str, Any]], states: Sequence[Any], source: str) -> None:
    """Raise a ValueError unless the states are Adam's, or the optimizer is of this kind and has none yet."""
    for state in states:
        if state and not all(torch.is_tensor(state.get(name)) for name in _MOMENTS):
            raise ValueError(
                f"optimizer_or_state: the {source} keeps {sorted(map(str, state))}, not the two moments exp_avg and "
                "exp_avg_sq; use Adam, AdamW, NAdam or RAdam for Adam axes"
            )
        for name in _MOMENTS if state else ():
            if state[name].layout != torch.strided:
                raise ValueError(
                    f"optimizer_or_state: {name} of the {source} is {state[name].layout}; it must be dense, such as "
                    "with nn.Embedding(sparse=False)"
                )
    if "Adamax" in source or (not any(states) and not all("betas" in group for group in groups)):
        raise ValueError(
            f"optimizer_or_state: the {source} keeps no moments exp_avg and exp_avg_sq; use Adam, AdamW, NAdam or "
            "RAdam for Adam axes"
        )


def _assemble(names: Sequence[str | None], states: Sequence[Any], net: Any, source: str) -> optax.ScaleByAdamState:
    by_name = {name: state for name, state in zip(names, states) if name is not None and state}
    steps = [int(state.get("step", 0)) for state in by_name.values()]
    trees = [_tree(by_name, part, net, source) for part in _MOMENTS]
    return optax.ScaleByAdamState(count=np.asarray(max(steps, default=0), np.int32), mu=trees[0], nu=trees[1])


def _tree(states: Mapping[str, Any], part: str, net: Any, source: str) -> Any:
    wrong = [
        f"{name} has {tuple(states[name][part].shape)} instead of {leaf.shape}"
        for name, leaf in ((leaf.name, leaf) for leaf in net.tree_map.leaves)
        if name in states and tuple(states[name][part].shape) != leaf.shape
    ]
    if wrong:
        raise ValueError(
            f"optimizer_or_state: {part} of the {source} has other shapes than the weights: {'; '.join(wrong)}; give "
            "params in the order of the optimizer"
        )
    if mixed := [x.name for x in net.tree_map.leaves if x.name in states and _other_kind(states[x.name][part], x)]:
        raise ValueError(
            f"optimizer_or_state: {part} of the {source} is complex where the weight is real, or the other way round: "
            f"{mixed}; give params in the order of the optimizer"
        )
    arrays = {f"{'/'.join(leaf.path)}": leaf for leaf in net.tree_map.leaves if leaf.collection == "params"}

    def fill_leaf(path: str, like: Any) -> np.ndarray:
        leaf = arrays[path]
        if leaf.name not in states:
            return np.zeros(like.shape, like.dtype)
        array = net.tree_map.to_jax(leaf, to_array(states[leaf.name][part]))
        return array.astype(jax.dtypes.canonicalize_dtype(array.dtype))

    return dict(_map_leaves(net.variables["params"], fill_leaf, ""))


def _other_kind(moment: torch.Tensor, leaf: Any) -> bool:
    return bool(moment.is_complex() != leaf.in_parts)


def _map_leaves(tree: Mapping[str, Any], function: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, child in tree.items():
        path = prefix + name
        is_tree = isinstance(child, Mapping)
        yield name, dict(_map_leaves(child, function, path + "/")) if is_tree else function(path, child)
