"""Makes a loss from a Flax nnx model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Unpack

import jax

from lla_jax.core.arguments import Misuse, parameters
from lla_jax.core.signatures import complete, explained, show_options
from lla_jax.core.static import ByValue, static
from lla_jax.core.tree import paths
from lla_jax.core.types import Batch, Loss, Path, PyTree
from lla_jax.models.calling import (
    DEFAULTS,
    Inputs,
    Kwargs,
    Options,
    Shapes,
    check_method,
    check_options,
    check_shapes,
    difference_of,
    explain_params,
    loss_of,
    map_examples,
    mode_kwargs,
    model_arguments,
    model_misuse,
    refuse_noisy_statistics,
    shapes_of,
)


@dataclass(frozen=True, eq=False)
class _NnxApply(ByValue):
    graphdefs: tuple[Any, Any]
    inputs: Inputs
    method: str
    kwargs: tuple[Kwargs, Kwargs]
    takes_rngs: bool
    coupled: bool
    impl: Any  # implementation of the model's random keys
    layer_ndims: tuple[tuple[Path, int], ...]  # the number of axes of kernels and biases in one layer, for normalize
    shapes: Shapes

    def __repr__(self) -> str:
        root = next(iter(getattr(self.graphdefs[0], "nodes", ())), None)
        return f"nnx {getattr(getattr(root, 'type', None), '__name__', 'model')}"

    def __call__(
        self, params: PyTree, state: PyTree, batch: Batch, train: bool, keys: Any = None
    ) -> tuple[Any, PyTree]:
        from flax import nnx

        args = model_arguments(self.inputs, batch)
        check_shapes(params, self.shapes)
        if isinstance(params, nnx.Module) and dict(shapes_of(params)).keys() == dict(self.shapes).keys():
            params = nnx.state(params, nnx.Param)  # a model without other variables stands for its parameters
        params = _in_order(params, self.shapes)
        if keys is None:
            outputs, model = self._call(params, state, args, train)
            return outputs, _nnx_statistics(model, state) if train else state
        refuse_noisy_statistics(train, self.coupled)
        return map_examples(lambda a, k: self._call(params, state, a, train, k)[0], args, keys), state

    def _call(
        self, params: PyTree, state: PyTree, args: tuple[Any, ...], train: bool, key: Any = None
    ) -> tuple[Any, Any]:
        from flax import nnx

        rest = {} if state is None else _nnx_streams(state, self.impl, key)
        with explain_params(params, self.shapes, exact=True):
            model = nnx.merge(self.graphdefs[train], params, rest, copy=True)
        kwargs = dict(self.kwargs[train])
        if key is not None and self.takes_rngs:
            kwargs["rngs"] = nnx.Rngs(key)
        return getattr(model, self.method)(*args, **kwargs), model


def _in_order(params: PyTree, shapes: Shapes) -> PyTree:
    """The parameters with their leaves in the model's order, in which ``nnx.merge`` takes them whatever their paths.

    Orders differ where a checkpoint was restored with "10" before "2" as keys of a list.

    Raises:
      Misuse: the parameters have other paths than those of the model.
    """
    from flax import nnx

    own, flat = [path for path, _ in shapes], _flat(params)
    if [*flat] == own:
        return params
    difference = difference_of(params, shapes, exact=True)
    if difference or {*flat} != {*own}:
        raise Misuse("params", difference or f"their paths are {[*flat][:3]}, and in the model of this loss {own[:3]}")
    keys = {path: tuple(int(key) if key.isdigit() else key for key in path.split("/")) for path in own}
    ordered = nnx.from_flat_state([(keys[path], flat[path]) for path in own])
    if [*_flat(ordered)] != own:
        raise Misuse("params", "their keys are in another order than in the model; pass nnx.state(model, nnx.Param)")
    return ordered


def _flat(params: PyTree) -> dict[Path, Any]:
    """{path: leaf} of nested or flat parameters, in the order of their leaves."""
    pairs = params.items() if isinstance(params, Mapping) else params
    if isinstance(pairs, Iterable) and all(isinstance(pair, tuple) and isinstance(pair[0], tuple) for pair in pairs):
        return {"/".join(map(str, path)): leaf for path, leaf in pairs}  # as nnx.to_flat_state gives them
    return dict(zip(paths(params), jax.tree.leaves(params), strict=True))


def _nnx_streams(state: PyTree, impl: Any, key: Any = None) -> PyTree:
    """The state with random keys in place of their integer data; if ``key`` is given, with keys folded from it."""
    from flax import nnx

    is_variable = lambda node: isinstance(node, nnx.Variable)  # noqa: E731
    leaves, structure = jax.tree.flatten(state, is_leaf=is_variable)

    def stream(index: int, leaf: Any) -> Any:
        if not isinstance(leaf, nnx.RngKey):
            return leaf
        data = leaf.get_value()
        if key is None:
            return leaf.replace(jax.random.wrap_key_data(data, impl=impl))
        own, shape = jax.random.fold_in(key, index), data.shape[:-1]
        return leaf.replace(jax.random.split(own, shape) if shape else own)

    return jax.tree.unflatten(structure, [stream(i, leaf) for i, leaf in enumerate(leaves)])


def _nnx_statistics(model: Any, state: PyTree) -> PyTree:
    """The model's new variables in the structure of ``state``; random streams stay, and sown values are left out."""
    from flax import nnx

    if state is None:
        return None
    new = dict(nnx.to_flat_state(nnx.state(model, nnx.Not(nnx.Any(nnx.Param, nnx.RngState)))))
    return nnx.from_flat_state([(path, new.get(path, old)) for path, old in nnx.to_flat_state(state)])


def _layer_ndims(model: Any) -> tuple[tuple[Path, int], ...]:
    """The number of axes that the leaves of known layers have; ``nnx.vmap`` gives them more, and says so nowhere."""
    from flax import nnx

    def expected(node: Any) -> dict[str, int]:
        if isinstance(node, nnx.Conv):
            return {"kernel": len(node.kernel_size) + 2, "bias": 1}
        if isinstance(node, nnx.Linear):
            return {"kernel": 2, "bias": 1}
        return {"embedding": 2} if isinstance(node, nnx.Embed) else {}

    return tuple(
        ("/".join(map(str, (*path, name))), ndim)
        for path, node in nnx.iter_graph(model)
        for name, ndim in expected(node).items()
    )


@show_options(Options, DEFAULTS)
@explained
def from_nnx(
    model: Any,
    criterion: Callable[[Any, Batch], Any],
    *,
    method: str = "__call__",
    **options: Unpack[Options],
) -> Loss:
    """The loss of a Flax nnx model; its parameters are ``nnx.state(model, nnx.Param)``.

        l_i(theta) = criterion(merge(graphdef, theta, state)(x_i), batch)_i

    The loss uses copies of the model whose layers have ``use_running_average = not train`` and ``deterministic = (key
    is None)``, set as ``model.eval()`` and ``model.train()`` would set them; flags in the signature of the model's call
    are as in ``from_linen``. Without a key the rates of ``nnx.Dropout`` and ``nnx.MultiHeadAttention`` are 0, so that
    there is no dropout in train mode either, even if one flag controls both.

    Args:
      model: an nnx module that takes batches. Its variables, modes and counts of random draws are not changed.
      criterion: ``criterion(outputs, batch) -> losses (B,)`` or ``(losses, weights)``; see ``Loss``.
      method: name of the model's method to call.
      options: those of ``lla.models.Options``: ``inputs``, ``key``, ``penalty``, ``per_example``, ``filter_axis``,
        ``train_kwargs``, ``eval_kwargs``, ``precision``. With a key, the random streams of the model start
        from the key of each example; if the call has an argument ``rngs``, it gets an ``nnx.Rngs`` of this key.

    Returns:
      A ``Loss`` whose state is an ``nnx.State`` of all variables except the parameters, with random keys as their
      integer data (None if there are none). The parameters may be given as ``nnx.State``, as its pure
      dict, or as a model without other variables.

    Raises:
      ValueError: a key is given and one flag of the call controls both noise and batch statistics.
    """
    from flax import nnx

    if not isinstance(model, nnx.Module):
        raise model_misuse("model", model, "the nnx model itself, from_nnx(model, criterion), not a part of it")
    options = check_options("from_nnx", complete("from_nnx", options, DEFAULTS))
    keyed = options["key"] is not None
    names = parameters(check_method(model, method))
    own = nnx.state(model, nnx.Param)
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(nnx.state(model))):
        raise Misuse("model", "holds shapes without values, as nnx.eval_shape gives them; pass a model with values")

    def view(train: bool) -> Any:
        modes = {"use_running_average": not train, "deterministic": not keyed}
        copy = nnx.view(model, raise_if_not_found=False, **modes)
        copy = nnx.with_attributes(copy, raise_if_not_found=False, **modes)
        if keyed:
            return copy
        # without a key there is no noise, even in models that pass deterministic=not train to their layers
        copy = nnx.with_attributes(copy, only=nnx.Dropout, raise_if_not_found=False, rate=0.0)
        return nnx.with_attributes(copy, only=nnx.MultiHeadAttention, raise_if_not_found=False, dropout_rate=0.0)

    graphdefs = nnx.graphdef(view(False)), nnx.graphdef(view(True))
    # New variables, so that later training does not change the loss. Random keys are kept as their integer data:
    # numpy has no key arrays, and functions of states (fingerprints, re-estimation) need not know them either.
    is_key = lambda leaf: jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)  # noqa: E731
    state: Any = nnx.state(model, nnx.Not(nnx.Param))
    impl = next((jax.random.key_impl(leaf) for leaf in jax.tree.leaves(state) if is_key(leaf)), None)
    state = jax.tree.map(lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf, state)
    coupled = bool(jax.tree.leaves(nnx.state(model, nnx.BatchStat)))
    kwargs = mode_kwargs(names, coupled, options)
    inputs, ndims = static(options["inputs"]), _layer_ndims(model)
    apply = _NnxApply(graphdefs, inputs, method, kwargs, "rngs" in names, coupled, impl, ndims, shapes_of(own))
    state = state if jax.tree.leaves(state) else None
    return loss_of(apply, criterion, state, options)
