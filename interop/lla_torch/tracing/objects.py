"""Copies of the objects among a call's arguments, so that a forward pass that is traced changes none of the user's."""

from __future__ import annotations

import copy
import types
from typing import Any

import torch
from torch import nn

SHARED = torch.Tensor | nn.Module | type | types.ModuleType | types.FunctionType | types.MethodType
"""What a copy has in common with its original: values, networks and code."""


def own_object(x: Any, done: dict[int, Any] | None = None) -> Any:
    """A copy of an object, of the objects in its attributes and of the lists, dicts and sets that hold them.

    A cache of keys and values, for example, is written to by the model that gets it. Tensors and modules inside are the
    same ones, since they are known to the graph by what they are. What cannot be copied is returned as it is.
    """
    done = {} if done is None else done
    if isinstance(x, SHARED) or not (hasattr(x, "__dict__") or isinstance(x, list | dict | set | tuple)):
        return x
    if id(x) in done:
        return done[id(x)]
    if type(x) is tuple:
        return tuple(own_object(value, done) for value in x)
    try:
        own = done[id(x)] = copy.copy(x)
        if isinstance(own, list):
            own[:] = [own_object(value, done) for value in x]
        elif isinstance(own, dict):
            own.update({name: own_object(value, done) for name, value in x.items()})
        if hasattr(own, "__dict__"):
            vars(own).update({name: own_object(value, done) for name, value in vars(x).items()})
    except Exception:  # classes may forbid copies or writes as they like
        done[id(x)] = x
    return done[id(x)]
