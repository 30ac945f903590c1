"""A loss from a Flax linen module."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Unpack

from lla_jax.core.arguments import complete, show_options
from lla_jax.core.static import ByValue, static
from lla_jax.core.types import Batch, Loss, PyTree
from lla_jax.models.calling import (
    DEFAULTS,
    TRAIN_FLAGS,
    Inputs,
    Kwargs,
    Options,
    arguments,
    each_example,
    loss_of,
    modes,
    parameters,
    refuse_noisy_statistics,
)


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


@show_options(Options, DEFAULTS)
def from_linen(
    module: Any,
    variables: Mapping[str, Any],
    criterion: Callable[[Any, Batch], Any],
    *,
    method: str | Callable[..., Any] | None = None,
    **options: Unpack[Options],
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
      method: the module's method to call, instead of ``__call__``.
      options: ``inputs``, ``key``, ``penalty``, ``per_example``, ``filter_axis``, ``train_kwargs``, ``eval_kwargs``, as
        ``lla.models.Options`` says.

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

    options = complete("from_linen", options, DEFAULTS)
    # "intermediates" is what sow left over from a call: it would grow with every train step
    plain: dict[str, Any] = flax.core.unfreeze(dict(variables))
    state = {name: plain[name] for name in plain if name not in ("params", "intermediates")}
    coupled = bool(state.get("batch_stats"))
    call = method if callable(method) else getattr(type(module), method or "__call__")
    kwargs: tuple[Kwargs, Kwargs | None] = modes(parameters(call), coupled, options)
    if coupled and options["train_kwargs"] is None and not kwargs[1]:
        kwargs = (kwargs[0], None)  # no flag is known: train mode would silently be eval mode
    apply = _LinenApply(module, static(options["inputs"]), method, kwargs, coupled)
    return loss_of(apply, criterion, state or None, options)
