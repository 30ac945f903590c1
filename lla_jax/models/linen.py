"""Makes a loss from a Flax linen module and its variables."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Unpack

import jax

from lla_jax.core.arguments import Misuse, parameters
from lla_jax.core.signatures import complete, explained, show_options
from lla_jax.core.static import ByValue, static
from lla_jax.core.types import Batch, Loss, PyTree
from lla_jax.models.calling import (
    DEFAULTS,
    TRAIN_FLAGS,
    Inputs,
    Kwargs,
    Options,
    Shapes,
    check_method,
    check_options,
    explain_params,
    loss_of,
    map_examples,
    mode_kwargs,
    model_arguments,
    model_misuse,
    refuse_noisy_statistics,
    shapes_of,
)


def _refuse_none(params: PyTree, expected: Shapes) -> None:
    """Raise an error if parameters have None in place of an array: linen modules pass over it in silence."""
    holes = jax.tree.leaves_with_path(params, is_leaf=lambda node: node is None)
    for keys, leaf in holes:
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        if leaf is None and any(own == path or own.startswith(path + "/") for own, _ in expected):
            raise Misuse("params", f"{path!r} is None, and an array in the model's variables; pass all parameters")


def _skip_dropout(next_fun: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], context: Any) -> Any:
    """A linen interceptor that makes ``nn.Dropout`` return its input, whatever its flags are."""
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
    shapes: Shapes

    def __repr__(self) -> str:
        return f"linen {type(self.module).__name__}"

    def __call__(
        self, params: PyTree, state: PyTree, batch: Batch, train: bool, keys: Any = None
    ) -> tuple[Any, PyTree]:
        args, state_ = model_arguments(self.inputs, batch), state or {}
        _refuse_none(params, self.shapes)
        if keys is not None:
            refuse_noisy_statistics(train, self.coupled)
            return map_examples(lambda a, k: self._call(params, state_, a, train, k), args, keys), state
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
            raise Misuse(
                "train_kwargs",
                f"None given, and the module's call has no flag {', '.join(TRAIN_FLAGS)}, use_running_average or "
                "deterministic for batch statistics (train=True). Pass train_kwargs={...} to from_linen: the keyword "
                "arguments that switch its normalization layers to batch statistics ({} if they always use them)",
            )
        mutable = list(state) if train and state and key is None else False
        quiet = nn.intercept_methods(_skip_dropout) if train and key is None else contextlib.nullcontext()
        variables = {"params": params, **state}
        try:
            with quiet, explain_params(params, self.shapes):
                return self.module.apply(
                    variables, *args, rngs=key, mutable=mutable, method=self.method, **dict(kwargs)
                )
        except flax.errors.InvalidRngError as error:
            raise Misuse(
                "key",
                f"the module draws random numbers (train={train}), but the loss has no key. Pass key=jax.random.key(0) "
                "to from_linen for a stochastic loss, or eval_kwargs / train_kwargs that switch the noise off",
            ) from error
        except flax.errors.ModifyScopeVariableError as error:
            keyed = "without a" if key is None else "with a"
            raise Misuse(
                "train_kwargs" if train else "eval_kwargs",
                f"the module updates its variables, which must not change here (train={train}, {keyed} key). Pass "
                "keyword arguments with which it uses its running statistics, e.g. use_running_average=True",
            ) from error


@show_options(Options, DEFAULTS)
@explained
def from_linen(
    module: Any,
    variables: Mapping[str, Any],
    criterion: Callable[[Any, Batch], Any],
    *,
    method: str | Callable[..., Any] | None = None,
    **options: Unpack[Options],
) -> Loss:
    """The loss of a Flax linen module; its parameters are ``variables["params"]``.

        l_i(theta) = criterion(module.apply({"params": theta, **state}, x_i, **flags), batch)_i

    In train mode (``train=True`` of ``Loss.apply``) the module uses batch statistics. The flags are found in the
    signature of the module's call:

        train, training, is_training   True in train mode, and for a loss with a key if there is no ``deterministic``
        use_running_average            False in train mode
        deterministic                  False for a loss with a key, and in train mode if it is the only flag of a module
                                       with batch statistics

    Without a key ``nn.Dropout`` is off in train mode, even if one flag controls both. A module with batch statistics
    and without such a flag is refused in train mode, unless ``train_kwargs`` is given.

    Args:
      module: a linen module that takes batches.
      variables: the dict of ``module.init``, trained or not; its collections other than "params" and "intermediates"
        are the state.
      criterion: ``criterion(outputs, batch) -> losses (B,)`` or ``(losses, weights)``; see ``Loss``.
      method: the module's method to call, instead of ``__call__``.
      options: those of ``lla.models.Options``: ``inputs``, ``key``, ``penalty``, ``per_example``, ``filter_axis``,
        ``train_kwargs``, ``eval_kwargs``, ``precision``.

    Returns:
      A ``Loss`` whose state is the dict of these collections (None if there are none).

    Raises:
      ValueError: ``variables`` has no entry "params", or a key is given and one flag controls both noise and batch
        statistics.
    """
    import flax.core
    import flax.linen as nn

    if not isinstance(module, nn.Module):
        raise model_misuse("module", module, "a linen module, from_linen(module, variables, criterion)")
    if not isinstance(variables, Mapping) or "params" not in variables:
        given = f"a dict of {sorted(variables)}" if isinstance(variables, Mapping) else type(variables).__name__
        raise Misuse(
            "variables",
            f'{given} given; it must be the dict that module.init returns, with an entry "params". If these are the '
            'parameters alone, pass variables={"params": params}; of a train state {"params": state.params}, and '
            '"batch_stats": state.batch_stats if it has them',
        )
    options = check_options("from_linen", complete("from_linen", options, DEFAULTS))
    # "intermediates", which sow leaves after a call, would grow with every train step
    plain: dict[str, Any] = flax.core.unfreeze(dict(variables))
    if isinstance(plain["params"], Mapping) and "params" in plain["params"]:
        raise Misuse("variables", "its entry 'params' is a dict of variables again; pass variables, not {'params': it}")
    state = {name: plain[name] for name in plain if name not in ("params", "intermediates")}
    coupled = bool(state.get("batch_stats"))
    call = method if callable(method) else check_method(type(module), "__call__" if method is None else method)
    kwargs: tuple[Kwargs, Kwargs | None] = mode_kwargs(parameters(call), coupled, options)
    if coupled and options["train_kwargs"] is None and not kwargs[1]:
        kwargs = (kwargs[0], None)  # without a known flag, train mode would silently be eval mode
    apply = _LinenApply(module, static(options["inputs"]), method, kwargs, coupled, shapes_of(plain["params"]))
    return loss_of(apply, criterion, state or None, options)
