"""Recognizes objects of other libraries by the names of their types, and says what to pass in their place.

No library is imported for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax


class Library(NamedTuple):
    """What this library makes of the models of another one.

    Args:
      name: of the other library, in words.
      loss: what makes the loss of a model.
      params: what are the parameters of a model.
    """

    name: str
    loss: str
    params: str


LIBRARIES = {
    "flax.linen": Library(
        "Flax linen",
        "lla.from_linen(module, variables, criterion)",
        "variables['params'] of variables = module.init(key, x)",
    ),
    "flax.nnx": Library("Flax nnx", "lla.from_nnx(model, criterion)", "nnx.state(model, nnx.Param)"),
    "equinox": Library("Equinox", "lla.from_equinox(model, criterion)", "eqx.filter(model, eqx.is_inexact_array)"),
    "torch": Library(
        "PyTorch",
        "net.loss(criterion) of net = lla_torch.convert(module, example_inputs)",
        "net.variables['params'] of net = lla_torch.convert(module, example_inputs)",
    ),
    "lla_torch": Library("lla_torch", "net.loss(criterion)", "net.variables['params']"),
    "haiku": Library(
        "Haiku",
        "lla.Loss(lambda params, state, batch, train: (f.apply(params, ...), state), criterion)",
        "params = f.init(key, x)",
    ),
    "flax.training": Library("Flax, a training state", "the adapter of the model itself", "state.params"),
}
_OPTAX = (
    "this is the state of an optimizer: pass the parameters that it trained, and the state where opt_state is asked for"
)
_KNOWN = (*LIBRARIES, "optax", "lla_jax")


def library_of(value: Any) -> str:
    """The library that made the type of a value (a class counts as its instance), such as "flax.nnx"; else ""."""
    kinds = value.__mro__ if isinstance(value, type) else type(value).__mro__
    modules = [str(getattr(kind, "__module__", "")) + "." for kind in kinds]
    return next((name for module in modules for name in _KNOWN if module.startswith(name + ".")), "")


def advise_params(tree: Any) -> str:
    """What to pass in place of an object that is no tree of parameters; "" if its kind is not known."""
    if isinstance(tree, type):
        return f"{tree.__name__} is a class: pass the trained parameters of an instance"
    if hasattr(tree, "params") and not isinstance(tree, dict) and not hasattr(tree, "loss"):
        return "pass its parameters alone, such as state.params"
    library, name = library_of(tree), type(tree).__name__
    if library == "lla_jax":
        return f"{name} of lla_jax is no tree of parameters: pass it in its own place, and params here"
    if library == "flax.nnx" and name == "State":
        return _advise_state(tree)
    if library in LIBRARIES or library == "optax":
        return _advise(library)
    if isinstance(tree, str | bytes) or hasattr(tree, "__fspath__"):
        return "load the file first, and pass the tree of parameters"
    if callable(tree) and not library:
        return "a function holds no parameters: the loss comes first, then the parameters, then the data"
    if isinstance(tree, Iterator):
        of_torch = "Module." in str(tree)
        return f"an iterator has no leaves: {_advise('torch') if of_torch else 'pass a dict of arrays by name'}"
    if isinstance(tree, tuple | list) and any(library_of(each) == "optax" for each in tree):
        return _OPTAX
    return _advise_leaves(tree)


def _advise_state(state: Any) -> str:
    variables = jax.tree.leaves(state, is_leaf=lambda node: hasattr(node, "get_metadata"))
    if not variables:
        return "the model has no variables of the type that was asked for: pass nnx.state(model, nnx.Param)"
    if all("Param" in [kind.__name__ for kind in type(each).__mro__] for each in variables):
        return ""
    return "the state holds other variables than parameters: pass nnx.state(model, nnx.Param)"


def _advise_leaves(tree: Any) -> str:
    leaves = jax.tree.leaves(tree)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
        return "shapes without values, as jax.eval_shape gives them: pass trained arrays, or those of module.init"
    libraries = {library_of(leaf) for leaf in leaves} - {""}
    return next((_advise(name) for name in _KNOWN if name in libraries and name != "lla_jax"), "")


def _advise(library: str) -> str:
    if library == "optax":
        return _OPTAX
    return f"it is of {LIBRARIES[library].name}: pass {LIBRARIES[library].params}"
