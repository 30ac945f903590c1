"""From a model to a ``Loss``: Flax linen, Flax nnx, Equinox and plain functions.

An adapter cuts a model into parameters (which the user passes to every verb), other arrays (``Loss.state``) and a
static remainder, and calls the pieces as a pure function. What is static compares by value, so two adapters of one
architecture share compiled code. The model itself is never written to.

How a mode reaches the model (``train`` of ``Loss.apply``, and whether the loss has a ``key``):

    batch statistics  =  train          noise (dropout)  =  the loss has a key

so that ``batch_stats="batch"`` does not bring dropout along, and a stochastic loss keeps its running averages.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from lla_jax.core.static import static
from lla_jax.core.types import Batch, FilterAxis, Loss, PyTree
from lla_jax.models.calling import (
    TRAIN_FLAGS,
    ByValue,
    Inputs,
    Kwargs,
    arguments,
    each_example,
    modes,
    parameters,
    refuse_noisy_statistics,
)

# Flax linen


def _without_dropout(next_fun: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Any) -> Any:
    """A linen interceptor: ``nn.Dropout`` passes its input on, whatever the module's flags say."""
    import flax.linen as nn

    if isinstance(context.module, nn.Dropout) and context.method_name == "__call__":
        return args[0] if args else kwargs["inputs"]
    return next_fun(*args, **kwargs)


@dataclass(frozen=True, eq=False)
class _LinenApply(ByValue):
    module: Any
    inputs: Inputs
    method: Any
    kwargs: tuple[Kwargs, Kwargs | None]
    coupled: bool

    def __call__(
        self, params: PyTree, state: PyTree, batch: Batch, train: bool, keys: Any = None
    ) -> tuple[Any, PyTree]:
        args, state_ = arguments(self.inputs, batch), state or {}
        if keys is not None:
            refuse_noisy_statistics(train, self.coupled)
            return each_example(lambda a, k: self._call(params, state_, a, train, k), args, keys), state
        outputs = self._call(params, state_, args, train)
        if train and state_:
            outputs, new = outputs
            return outputs, {**state_, **new}
        return outputs, state

    def _call(self, params: PyTree, state: PyTree, args: tuple[Any, ...], train: bool, key: Any = None) -> Any:
        import flax.errors
        import flax.linen as nn

        kwargs = self.kwargs[train]
        if kwargs is None:
            raise ValueError(
                f"train=True asks for batch statistics, but the module's call has no flag {', '.join(TRAIN_FLAGS)}, "
                "use_running_average or deterministic. Pass train_kwargs={...} to from_linen: the keyword arguments "
                "that switch its normalization layers to batch statistics ({} if they always use them)."
            )
        mutable = list(state) if train and state and key is None else False
        quiet = nn.intercept_methods(_without_dropout) if train and key is None else contextlib.nullcontext()
        variables = {"params": params, **state}
        try:
            with quiet:
                return self.module.apply(
                    variables, *args, rngs=key, mutable=mutable, method=self.method, **dict(kwargs)
                )
        except flax.errors.InvalidRngError as error:
            raise ValueError(
                f"the module draws random numbers (train={train}), but the loss has no key. Pass key=jax.random.key(0) "
                "to from_linen for a stochastic loss, or eval_kwargs / train_kwargs that switch the noise off."
            ) from error
        except flax.errors.ModifyScopeVariableError as error:
            kind = "without a" if key is None else "with a"
            raise ValueError(
                f"the module updates its variables where they must not change (train={train}, {kind} key). Pass "
                "eval_kwargs / train_kwargs with which it uses its running statistics, e.g. use_running_average=True."
            ) from error


def from_linen(
    module: Any,
    variables: Mapping[str, Any],
    criterion: Callable[[Any, Batch], Any],
    *,
    inputs: Inputs = None,
    key: Any = None,
    penalty: Callable[[PyTree], Any] | None = None,
    per_example: bool = True,
    filter_axis: FilterAxis | None = None,
    train_kwargs: Mapping[str, Any] | None = None,
    eval_kwargs: Mapping[str, Any] | None = None,
    method: str | Callable[..., Any] | None = None,
) -> Loss:
    """The loss of a Flax linen module; the parameters to pass along with it are ``variables["params"]``.

        l_i(theta) = criterion(module.apply({"params": theta, **state}, x_i, **flags), batch)_i

    The flags are found in the signature of the module's call: ``train``, ``training`` or ``is_training`` (True for
    batch statistics; with a key too, if there is no ``deterministic``), ``use_running_average`` (not train),
    ``deterministic`` (not with a key). Without a key ``nn.Dropout`` is off in train mode, even if one flag drives both.

    Args:
      module: a linen module that takes batches.
      variables: what ``module.init`` returned or training made of it; the collections besides "params" are the state.
      criterion: ``criterion(outputs, batch) -> losses (B,)`` or ``(losses, weights)``; see ``Loss``.
      inputs: where a batch has the module's input: an index or name, a tuple of these (several arguments), or a
        function of the batch. None: the first entry of a tuple or list, or the batch itself if it is one array. An
        input that is a plain tuple is spread over the module's arguments.
      key: a ``jax.random`` key for a stochastic loss: the module is run per example, each with its own key for all of
        its random streams, so that a draw depends neither on the batching nor on the point.
      penalty: ``penalty(params) -> scalar`` added to the mean.
      per_example: False for criteria that couple the examples and return a scalar; see ``Loss``.
      filter_axis: which axes index the filters; None lets ``directions.normalize`` decide.
      train_kwargs: keyword arguments of the call in train mode, over the detected flags.
      eval_kwargs: the same in eval mode.
      method: the module's method to call, instead of ``__call__``.

    Returns:
      A ``Loss`` whose state holds the other collections (None if there are none).

    Raises:
      ValueError: if ``variables`` has no entry "params", or a key is given and one flag is for noise and statistics.
    """
    if not isinstance(variables, Mapping) or "params" not in variables:
        found = sorted(map(str, variables)) if isinstance(variables, Mapping) else type(variables).__name__
        raise ValueError(
            f'variables must be the dict that module.init returns, with the entry "params"; got {found}. '
            'If these are the parameters alone, pass variables={"params": params}.'
        )
    import flax.core

    # "intermediates" is what sow left over from a call: it would grow with every train step
    plain: dict[str, Any] = flax.core.unfreeze(dict(variables))
    state = {name: plain[name] for name in plain if name not in ("params", "intermediates")}
    coupled = bool(state.get("batch_stats"))
    call = method if callable(method) else getattr(type(module), method or "__call__")
    kwargs: tuple[Kwargs, Kwargs | None] = modes(parameters(call), key is not None, coupled, train_kwargs, eval_kwargs)
    if coupled and train_kwargs is None and not kwargs[1]:
        kwargs = (kwargs[0], None)  # no flag is known: train mode would silently be eval mode
    apply = _LinenApply(module, static(inputs), method, kwargs, coupled)
    return Loss(apply, criterion, state or None, key, penalty, per_example, filter_axis)


# Flax nnx


@dataclass(frozen=True, eq=False)
class _NnxApply(ByValue):
    graphdefs: tuple[Any, Any]
    inputs: Inputs
    method: str
    kwargs: tuple[Kwargs, Kwargs]
    takes_rngs: bool
    coupled: bool
    impl: Any  # of the model's random keys

    def __call__(
        self, params: PyTree, state: PyTree, batch: Batch, train: bool, keys: Any = None
    ) -> tuple[Any, PyTree]:
        args = arguments(self.inputs, batch)
        if keys is None:
            outputs, model = self._call(params, state, args, train)
            return outputs, _nnx_statistics(model, state) if train else state
        refuse_noisy_statistics(train, self.coupled)
        return each_example(lambda a, k: self._call(params, state, a, train, k)[0], args, keys), state

    def _call(
        self, params: PyTree, state: PyTree, args: tuple[Any, ...], train: bool, key: Any = None
    ) -> tuple[Any, Any]:
        from flax import nnx

        rest = {} if state is None else _nnx_streams(state, self.impl, key)
        model = nnx.merge(self.graphdefs[train], params, rest, copy=True)
        kwargs = dict(self.kwargs[train])
        if key is not None and self.takes_rngs:
            kwargs["rngs"] = nnx.Rngs(key)
        return getattr(model, self.method)(*args, **kwargs), model


def _nnx_streams(state: PyTree, impl: Any, key: Any = None) -> PyTree:
    """The state with random keys made of their data, or every stream restarted from ``key`` (each in its shape)."""
    from flax import nnx

    is_variable = lambda node: isinstance(node, nnx.Variable)  # noqa: E731
    leaves, structure = jax.tree_util.tree_flatten(state, is_leaf=is_variable)

    def stream(index: int, leaf: Any) -> Any:
        if not isinstance(leaf, nnx.RngKey):
            return leaf
        data = leaf.get_value()
        if key is None:
            return leaf.replace(jax.random.wrap_key_data(data, impl=impl))
        own, shape = jax.random.fold_in(key, index), data.shape[:-1]
        return leaf.replace(jax.random.split(own, shape) if shape else own)

    return jax.tree_util.tree_unflatten(structure, [stream(i, leaf) for i, leaf in enumerate(leaves)])


def _nnx_statistics(model: Any, state: PyTree) -> PyTree:
    """The model's variables in the structure of ``state``; random streams as they were, what ``sow`` added left out."""
    from flax import nnx

    if state is None:
        return None
    new = dict(nnx.to_flat_state(nnx.state(model, nnx.Not(nnx.Any(nnx.Param, nnx.RngState)))))
    return nnx.from_flat_state([(path, new.get(path, old)) for path, old in nnx.to_flat_state(state)])


def from_nnx(
    model: Any,
    criterion: Callable[[Any, Batch], Any],
    *,
    inputs: Inputs = None,
    key: Any = None,
    penalty: Callable[[PyTree], Any] | None = None,
    per_example: bool = True,
    filter_axis: FilterAxis | None = None,
    train_kwargs: Mapping[str, Any] | None = None,
    eval_kwargs: Mapping[str, Any] | None = None,
    method: str = "__call__",
) -> Loss:
    """The loss of a Flax nnx model; the parameters to pass along with it are ``nnx.state(model, nnx.Param)``.

        l_i(theta) = criterion(merge(graphdef, theta, state)(x_i), batch)_i

    Views of the model are used, with ``use_running_average = not train`` and ``deterministic = (key is None)`` set as
    ``model.eval()`` and ``model.train()`` would set them; flags in the signature of its call as in ``from_linen``.

    Args:
      model: an nnx module that takes batches. It is not changed: neither its variables nor its modes nor its counts.
      criterion: ``criterion(outputs, batch) -> losses (B,)`` or ``(losses, weights)``; see ``Loss``.
      key: a ``jax.random`` key for a stochastic loss: the model is run per example, its random streams restarted from
        the example's key (also passed as ``rngs`` if the call has such an argument).
      inputs, penalty, per_example, filter_axis, train_kwargs, eval_kwargs: as in ``from_linen``.
      method: name of the model's method to call.

    Returns:
      A ``Loss`` whose state is an ``nnx.State`` of all variables that are no parameters (None if there are none). The
      parameters may be given as ``nnx.State`` or as its pure dict.

    Raises:
      ValueError: if a key is given and one flag of the call drives noise and batch statistics.
    """
    from flax import nnx

    keyed = key is not None
    names = parameters(getattr(model, method))

    def view(train: bool) -> Any:
        modes = {"use_running_average": not train, "deterministic": not keyed}
        seen = nnx.view(model, raise_if_not_found=False, **modes)
        seen = nnx.with_attributes(seen, raise_if_not_found=False, **modes)
        if keyed:
            return seen
        # for models that pass deterministic=not train to their layers: without a key there is no noise
        seen = nnx.with_attributes(seen, only=nnx.Dropout, raise_if_not_found=False, rate=0.0)
        return nnx.with_attributes(seen, only=nnx.MultiHeadAttention, raise_if_not_found=False, dropout_rate=0.0)

    graphdefs = nnx.graphdef(view(False)), nnx.graphdef(view(True))
    # New variables, so that later training does not reach into the loss. Random keys are kept as their integer data:
    # numpy knows no key arrays, and what handles states (fingerprints, re-estimation) need not know them either.
    is_key = lambda leaf: jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
    state: Any = nnx.state(model, nnx.Not(nnx.Param))
    impl = next((jax.random.key_impl(leaf) for leaf in jax.tree_util.tree_leaves(state) if is_key(leaf)), None)
    state = jax.tree_util.tree_map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, state)
    coupled = bool(jax.tree_util.tree_leaves(nnx.state(model, nnx.BatchStat)))
    kwargs = modes(names, keyed, coupled, train_kwargs, eval_kwargs)
    apply = _NnxApply(graphdefs, static(inputs), method, kwargs, "rngs" in names, coupled, impl)
    state = state if jax.tree_util.tree_leaves(state) else None
    return Loss(apply, criterion, state, key, penalty, per_example, filter_axis)
