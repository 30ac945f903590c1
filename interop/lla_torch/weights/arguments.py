"""Checks of arguments that are modules, converted networks or types, with what to do about the usual mix-ups."""

from __future__ import annotations

import os
import types
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import torch
from torch import nn

from lla_jax.models.adapters import library_of, misuse, single_key


def check_module(module: Any) -> None:
    """Raise a ValueError unless the value is a torch module; it says how to get one from what was given."""
    if not isinstance(module, nn.Module):
        raise misuse("module", module, f"a torch.nn.Module{_way_to_a_module(module)}")
    if "_modules" not in vars(module):
        raise ValueError(
            f"module: {type(module).__name__} given, which is not set up; begin its __init__ with super().__init__()"
        )
    if isinstance(module, torch.fx.GraphModule) and "eval" in vars(module):  # which torch puts there to refuse it
        raise ValueError("module: the graph of an exported program given; it must be the module that was exported")


def _way_to_a_module(value: Any) -> str:
    """How a module is found or made where something else was given."""
    if isinstance(value, type):
        return f", an object and not its class: make one, {value.__name__}(...)"
    if isinstance(value, str | os.PathLike):
        return (
            "; a file holds weights alone: build the module, and load the file into its network, "
            "load_checkpoint(path, convert(module, example_inputs))"
        )
    if isinstance(value, torch.export.ExportedProgram):
        return ": pass the one that was exported"
    if is_net(value):
        return "; this is its converted network already"
    if isinstance(value, Mapping):
        return "; a dict holds weights alone: build the module, and give it these by module.load_state_dict"
    if isinstance(value, types.MethodType) and isinstance(value.__self__, nn.Module):
        return f"; pass the module itself, not its method {value.__name__}"
    if isinstance(value, torch.optim.Optimizer):
        return "; pass the module that it trains"
    if isinstance(value, list | tuple) and any(isinstance(x, nn.Module) for x in value):
        return "; of several that follow each other make one, nn.Sequential(*modules)"
    if hasattr(value, "shape") or isinstance(value, list | tuple):
        return ", the first argument, before inputs and batches"
    if library_of(value).startswith(("flax", "equinox")):
        return "; a Flax or Equinox model needs no conversion: lla_jax.from_linen, from_nnx or from_equinox"
    inner = [x for x in ("model", "module", "net") if isinstance(getattr(value, x, None), nn.Module)]
    if inner:
        return f"; pass the one inside, .{inner[0]}"
    return ", such as one whose forward calls a function"


def is_net(value: Any) -> bool:
    """Whether a value is a converted network, by what this package reads of it."""
    return hasattr(value, "tree_map") and hasattr(value, "variables")


def check_net(net: Any) -> None:
    """Raise a ValueError unless the value is a converted network."""
    if is_net(net):
        return
    way = "as net = lla_torch.convert(module, example_inputs) gives it"
    if isinstance(net, str | os.PathLike):
        way += "; the path is the first argument"
    elif isinstance(net, Mapping):
        way += ", not the dict of its weights"
    raise misuse("net", net, f"the converted network, {way}")


def floating_type(dtype: Any, others: str = "None") -> Any:
    """A floating type of numpy, jax or torch, or its name, as a numpy type.

    Args:
      dtype: the type.
      others: the further values that the argument may have, for the message.

    Raises:
      ValueError: it is no floating type.
    """
    try:
        result = jnp.dtype(str(dtype).removeprefix("torch.") if isinstance(dtype, torch.dtype) else dtype)
    except TypeError:
        result = None
    if result is None or not jnp.issubdtype(result, jnp.floating):
        raise misuse("dtype", dtype, f"{others} or a floating type, such as 'float32'")
    return result


def check_key(key: Any) -> None:
    """Raise a ValueError unless the value is None or one key of ``jax.random``."""
    if key is not None:
        single_key(key)
