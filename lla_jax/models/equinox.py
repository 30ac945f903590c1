"""Makes a loss from an Equinox model of single examples and its ``State``, with both kinds of BatchNorm."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Unpack

import jax
import numpy as np

from lla_jax.core.arguments import Misuse, misuse, parameters
from lla_jax.core.called import explain
from lla_jax.core.signatures import complete, explained, show_options
from lla_jax.core.static import ByValue, static
from lla_jax.core.types import Batch, Loss, PyTree
from lla_jax.models.calling import (
    DEFAULTS,
    Inputs,
    Kwargs,
    Options,
    Shapes,
    check_method,
    check_options,
    check_shapes,
    explain_params,
    loss_of,
    mode_kwargs,
    model_arguments,
    model_misuse,
    refuse_noisy_statistics,
    shapes_of,
)

ONE = (
    "It must take one example, without the axis of the batch, over which it is vmapped here; compare the shapes, and "
    "choose the input by inputs="
)


@dataclass(frozen=True, eq=False)
class _Static(ByValue):
    """A pytree without arrays, which compares by all that it and its classes reach."""

    structure: Any
    leaves: tuple[Any, ...]

    @classmethod
    def of(cls, tree: PyTree) -> _Static:
        leaves, structure = jax.tree.flatten(tree)
        return cls(structure, tuple(leaves))

    def look_at(self) -> tuple[Any, ...]:
        """The tree, whose classes and fields the structure would compare by their own equality."""
        return (self.tree(),)

    def tree(self) -> PyTree:
        return jax.tree.unflatten(self.structure, self.leaves)


@dataclass(frozen=True, eq=False)
class _EquinoxApply(ByValue):
    static: tuple[_Static, _Static]
    inputs: Inputs
    method: str
    kwargs: tuple[Kwargs, Kwargs]
    axis_name: str
    takes: frozenset[str]
    stateful: bool
    coupled: bool
    shapes: Shapes

    def __repr__(self) -> str:
        return f"equinox {type(self.static[0].tree()).__name__}"

    def __call__(
        self, params: PyTree, state: PyTree, batch: Batch, train: bool, keys: Any = None
    ) -> tuple[Any, PyTree]:
        in_axes = (0, None if keys is None else 0)

        def mapped(one: Callable[..., Any]) -> Callable[..., Any]:
            out_axes = (0, None) if self.stateful else 0
            return jax.vmap(one, in_axes=in_axes, out_axes=out_axes, axis_name=self.axis_name)

        return self._run(mapped, params, state, batch, train, keys)

    def on_example(
        self, params: PyTree, state: PyTree, example: Batch, train: bool, key: Any = None
    ) -> tuple[Any, PyTree]:
        """The outputs for an ``lla.whole``, which is one example: nothing is vmapped."""
        return self._run(lambda one: one, params, state, example, train, key)

    def _run(
        self, mapped: Callable[..., Any], params: PyTree, state: PyTree, batch: Batch, train: bool, keys: Any
    ) -> tuple[Any, PyTree]:
        import equinox as eqx

        if keys is not None:
            refuse_noisy_statistics(train, self.coupled)
        rest = state["arrays"] if state is not None else None
        check_shapes(params, self.shapes)
        with explain_params(params, self.shapes):
            model = eqx.combine(params, *([] if rest is None else [rest]), self.static[train].tree())
        call, kwargs, name = getattr(model, self.method), dict(self.kwargs[train]), f"the model {type(model).__name__}"
        held = _fill_from_batch(model, state["state"]) if self.stateful and train else state and state["state"]

        def one(args: tuple[Any, ...], key: Any) -> Any:
            extra = {"key": key} if "key" in self.takes else {}
            own = (jax.tree.map(lambda leaf: leaf, held),) if self.stateful else ()  # State.set makes held unusable
            if "state" in self.takes and own:
                extra["state"], own = *own, ()
            with explain(None, name, "model(*args), on one example,", {"args": args}, ONE, "model"):
                return call(*args, *own, **extra, **kwargs)

        results = mapped(one)(model_arguments(self.inputs, batch), keys)
        if not self.stateful:
            return results, state
        outputs, new = results
        if not train:
            return outputs, state
        # counters stay, see from_equinox
        new = jax.tree.map(lambda a, b: b if eqx.is_inexact_array(a) else a, state["state"], new)
        return outputs, {**state, "state": new}


def _equinox_norms(model: PyTree) -> list[Any]:
    import equinox as eqx

    is_norm = lambda node: isinstance(node, eqx.nn.BatchNorm)  # noqa: E731
    return [node for node in jax.tree.leaves(model, is_leaf=is_norm) if is_norm(node)]


def _fill_from_batch(model: PyTree, state: Any) -> Any:
    """The state by which ``BatchNorm(mode="ema")`` in train mode normalizes by the batch, not by running averages."""
    state = jax.tree.map(lambda leaf: leaf, state)
    for norm in _equinox_norms(model):
        if getattr(norm, "ema_first_time_index", None) is not None:
            state = state.set(norm.ema_first_time_index, np.array(True))
    return state


def _debias(model: PyTree, state: Any) -> Any:
    """Divide the statistics of ``BatchNorm(mode="batch")`` in a state by 1 - momentum^counter, and reset the counter.

    Returns:
      A new state; layers whose counter is 0 stay as they are.
    """
    state = jax.tree.map(lambda leaf: leaf, state)
    number = jax.numpy.result_type(float).type
    for norm in _equinox_norms(model):
        index = getattr(norm, "batch_counter", None)
        count = 0 if index is None else int(state.get(index))
        if count:
            scale = number(1) - number(norm.momentum) ** number(count)
            mean, var = (np.asarray(a) for a in state.get(norm.batch_state_index))
            debiased = (mean / scale).astype(mean.dtype), (var / scale).astype(var.dtype)
            state = state.set(norm.batch_state_index, debiased)
            state = state.set(index, state.get(index) * 0)  # of the same (weak) type
    return state


def _equinox_mode(model: PyTree, train: bool, keyed: bool) -> PyTree:
    """A copy of the model whose ``inference`` is ``not train`` in layers with a state, and else ``not keyed``."""
    import equinox as eqx

    def owns_state(node: Any) -> bool:
        return hasattr(node, "inference") and any(isinstance(v, eqx.nn.StateIndex) for v in vars(node).values())

    def flags(tree: PyTree) -> list[Any]:
        nodes = jax.tree.leaves(tree, is_leaf=owns_state)
        return [node.inference for node in nodes if owns_state(node)]

    model = eqx.nn.inference_mode(model, value=not keyed)
    return eqx.tree_at(flags, model, replace_fn=lambda _: not train) if flags(model) else model


@show_options(Options, DEFAULTS)
@explained
def from_equinox(
    model: Any,
    criterion: Callable[[Any, Batch], Any],
    *,
    state: Any = None,
    method: str = "__call__",
    axis_name: str = "batch",
    **options: Unpack[Options],
) -> Loss:
    """The loss of an Equinox model; the parameters are ``equinox.filter(model, equinox.is_inexact_array)``.

        l_i(theta) = criterion(vmap(combine(theta, rest))(x), batch)_i

    The model takes one example and is vmapped, but for an ``lla.whole``, which is one. ``inference`` is set layer by
    layer: layers that own a state (BatchNorm, SpectralNorm) have ``inference = not train``, all others (Dropout)
    ``inference = (key is None)``. Flags in the signature of the model's call are set as in ``from_linen``.

    Args:
      model: an Equinox model that takes one example: ``model(x)``, or ``model(x, state)`` if it has a state, with
        ``key=`` if its call has such an argument.
      criterion: ``criterion(outputs, batch) -> losses (B,)`` or ``(losses, weights)``; see ``Loss``.
      state: the ``equinox.nn.State`` of a model with stateful layers, from ``equinox.nn.make_with_state``.
      method: name of the model's method to call.
      axis_name: the name of the batch axis that the BatchNorm layers of the model were given.
      options: those of ``lla.models.Options``: ``inputs``, ``key``, ``penalty``, ``per_example``, ``filter_axis``,
        ``train_kwargs``, ``eval_kwargs``, ``precision``.

    Returns:
      A ``Loss`` whose state is ``{"arrays": the model's integer and boolean arrays, "state": State or None}``, or None
      if the model has neither.

    Raises:
      ValueError: the model is no ``equinox.Module``; it has stateful layers and no state is given; or a key is given
        and the call has no argument ``key``, or one flag for both noise and batch statistics.

    Differences from calling the model in training mode yourself:
      1. ``BatchNorm(mode="ema")`` normalizes by the statistics of the batch, not by its updated running averages, so
         that, as in all models here, outputs in train mode do not depend on the old averages.
      2. ``BatchNorm(mode="batch")`` divides its statistics by 1 - momentum^counter at inference. This is done once
         here, and the counter is 0 and stays 0: in train mode new = momentum * old + (1 - momentum) * batch, and
         inference uses these statistics as they are. Values at inference are the same.
    """
    import equinox as eqx

    if not isinstance(model, eqx.Module):
        rule = "the equinox.Module itself, which takes one example and is vmapped here"
        if isinstance(model, tuple) and any(isinstance(each, eqx.nn.State) for each in model):
            rule += "; of eqx.nn.make_with_state take both: model, state = ..., and pass state=state"
        raise model_misuse("model", model, rule)
    if type(model).__module__.startswith("equinox._") and hasattr(model, "_fun"):
        raise misuse("model", model, "the model itself, not wrapped by eqx.filter_jit, eqx.filter_vmap or the like")
    if state is not None and not isinstance(state, eqx.nn.State):
        raise misuse("state", state, "the equinox.nn.State of eqx.nn.make_with_state(Model)(...), or None")
    is_index = lambda node: isinstance(node, eqx.nn.StateIndex)  # noqa: E731
    stateful = state is not None
    if not stateful and any(is_index(node) for node in jax.tree.leaves(model, is_leaf=is_index)):
        raise Misuse(
            "state",
            "None given, but the model has stateful layers. Make it with "
            "model, state = equinox.nn.make_with_state(Model)(...) and pass state=state",
        )
    names = parameters(check_method(model, method))
    options = check_options("from_equinox", complete("from_equinox", options, DEFAULTS))
    keyed = options["key"] is not None
    takes = frozenset(name for name in ("key", "state") if name in names)
    if keyed and "key" not in takes:
        raise Misuse(
            "key",
            "given, but the model's call has no argument named key to draw noise from. Write the model as "
            "__call__(self, x, *, key=None), or leave key out",
        )
    coupled = bool(_equinox_norms(model))
    kwargs = mode_kwargs(names, coupled, options)

    def static_part(train: bool) -> _Static:
        return _Static.of(eqx.filter(_equinox_mode(model, train, keyed), eqx.is_array, inverse=True))

    own = shapes_of(eqx.filter(model, eqx.is_inexact_array))
    if not own:
        raise misuse("model", model, "a model with its arrays, not the static half that eqx.partition gives")
    statics = static_part(False), static_part(True)
    arrays = eqx.filter(model, lambda leaf: eqx.is_array(leaf) and not eqx.is_inexact_array(leaf))
    held: dict[str, Any] | None = {"arrays": arrays, "state": _debias(model, state) if stateful else None}
    apply = _EquinoxApply(statics, static(options["inputs"]), method, kwargs, axis_name, takes, stateful, coupled, own)
    if not stateful and not jax.tree.leaves(arrays):
        held = None
    return loss_of(apply, criterion, held, options)
