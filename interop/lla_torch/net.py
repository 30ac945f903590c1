"""``Net``, a converted network with its variables and loss; and the functions that convert a module or a loss."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NoReturn

import jax
import torch
from torch import nn
from torch.utils import _pytree as torch_pytree

import lla_jax
from lla_jax import Loss
from lla_jax.models import static
from lla_jax.models.adapters import check_flag, explained, misuse, prompt_interrupts
from lla_torch.conversion.function import Function, depends_on_params
from lla_torch.conversion.module import Parts, convert_callable, convert_parts, unwrap
from lla_torch.losses.functionals import as_criterion
from lla_torch.losses.losses import Apply, OnLabels, Step, losses_of_step, mean_of_step, torch_criterion
from lla_torch.losses.selection import Choice, selection
from lla_torch.losses.steps import check_dependence, form_of_losses, is_fixed, warn_of_a_mean
from lla_torch.tracing.calls import as_arrays, as_tensors, check_step, refuse_loaders
from lla_torch.tracing.guards import ConversionError
from lla_torch.weights.arguments import check_key, check_module
from lla_torch.weights.names import FilterAxis, NameMap, Names, filter_axis, references


@explained
@dataclass(frozen=True)
class ApplyFunction:
    """The type of ``net.apply``: a network as a function without weights, which compares by value."""

    function: Function

    def __repr__(self) -> str:
        return repr(self.function)

    def __call__(
        self,
        variables: Mapping[str, Any],
        *inputs: Any,
        train: bool = False,
        key: Any = None,
        draws: Sequence[Any] | None = None,
        **named: Any,
    ) -> Any:
        """Compute the network's outputs; a pure function of the variables and the inputs.

        Args:
          variables: as ``net.variables``; other arrays of the same shapes may stand in their places.
          inputs: arrays in torch's layout (N, C, H, W), nested as the example inputs were. The leading axis may be of
            another length, unless the module fixes it.
          train: run the module in train mode; it must have been converted with ``train=True``.
          key: a ``jax.random`` key for the module's random numbers (noise, dropout in train mode). Without it, dropout
            is off, and a module that samples raises an error.
          draws: recorded random numbers to use instead of a key, the second result of ``record``.
          named: inputs by name, as at conversion.

        Returns:
          The outputs, nested as torch's; with ``train=True`` (outputs, state), where the state holds the collections
          of ``variables`` without "params", with running statistics as torch updates them.

        Raises:
          ValueError: variables that are no such dict; inputs of another nesting, shape or type than at conversion;
            random numbers without key and draws, or with both; train mode that was not converted.
        """
        check_variables(variables, None)
        check_flag("train", train)
        check_key(key)
        if not (draws is None or isinstance(draws, Sequence)):
            raise misuse("draws", draws, "a sequence of arrays, the second result of lla_torch.record")
        outputs, state = self.function(variables, inputs, named, train=train, key=key, draws=draws)
        return (outputs, state) if train else outputs


@explained
@dataclass(frozen=True, eq=False, repr=False)
class Net:
    """A converted torch network: its function, its variables, and the map from torch's names to them.

    Args:
      function: the programs in eval mode and, if converted, in train mode; it holds no weights and is equal for all
        networks of one architecture.
      variables: {"params": ..., "batch_stats": ..., "buffers": ..., "constants": ...}, nested by module; collections
        without arrays are left out (except "params").
      tree_map: the torch names and layouts of all arrays, see ``weights.names.NameMap``.
      filter_axis: ``filter_axis(path, leaf)``: the axis of a parameter that indexes its filters, or None.
    """

    function: Function
    variables: dict[str, Any]
    tree_map: NameMap
    filter_axis: FilterAxis
    _refs: Mapping[str, Any] = field(default_factory=dict)
    _meant: ClassVar[dict[str, str]] = {
        "parameters": "net.variables['params']",
        "named_parameters": "net.variables['params']",
        "state_dict": "lla_torch.to_state_dict(net)",
        "load_state_dict": "net = lla_torch.load_checkpoint(state_dict, net)",
        "forward": "net(x)",
        "eval": "net(x), which is in eval mode",
        "train": "net(x, train=True), after convert(..., train=True)",
        "to": "jax.device_put(net.variables, device), and convert(..., dtype=...) for another type",
        "cuda": "jax.device_put(net.variables, device)",
        "cpu": "jax.device_put(net.variables, device)",
    }

    def __getitem__(self, name: Any) -> NoReturn:
        """Raise the error for a network that is taken for the dict of its variables."""
        raise ConversionError(f"net: {self!r} is not indexed; take net.variables[{name!r}]")

    def __iter__(self) -> NoReturn:
        """Raise the error for a network that is unpacked, as if it were a pair of function and variables."""
        raise ConversionError(f"net: {self!r} is not unpacked; take apply, variables = net.apply, net.variables")

    def __repr__(self) -> str:
        size = sum(x.size for x in jax.tree.leaves(self.variables["params"]))
        modes = "eval and train" if self.function.train is not None else "eval"
        kept = [leaf for leaf in self.tree_map.leaves if leaf.collection == "params" and not leaf.trainable]
        frozen = sum(math.prod(leaf.shape) for leaf in kept)
        note = f" ({frozen:,} of them frozen in torch; select=net.trainable leaves these out)" if frozen else ""
        without = "".join(f", without its output {name} ({kind})" for name, kind in self.dropped.items())
        return f"Net({size:,} parameters{note}, {modes}, {len(self.function.eval.instructions)} operators{without})"

    @property
    def dropped(self) -> dict[str, str]:
        """{path: type} of the module's outputs that hold no array and are left out, such as a language model's cache.

        For example {"past_key_values": "DynamicCache"}. Tensors, numbers and None stay, in tuples, lists, dicts and
        dataclasses (which become dicts).
        """
        return dict(self.function.eval.dropped)

    @property
    def names(self) -> dict[str, str]:
        """{torch name: path of its array}, such as {"fc.weight": "params/fc/kernel"}; tied names share one path.

        Such a path is a selection, ``select=net.names["fc.weight"]``; so is "fc/kernel", without the collection.
        """
        by_name = self.tree_map.by_name
        return Names({name: by_name(name).full_path for name in self.tree_map.aliases})

    @property
    def trainable(self) -> tuple[str, ...]:
        """The paths of the parameters that had ``requires_grad`` at conversion, for ``select=net.trainable``.

        The other ones, frozen in torch, are part of ``variables["params"]`` too: directions move them, and the Hessian
        has their rows, unless a selection leaves them out.
        """
        return self.tree_map.trainable

    def replace(self, **changes: Any) -> Net:
        """A copy of the network with the given fields, such as ``variables``, replaced.

        Raises:
          ValueError: an unknown field; variables without one of the network's collections, or with other values of a
            buffer that decided a size or a branch at conversion.
        """
        known = [each.name for each in dataclasses.fields(self) if each.init and each.name[0] != "_"]
        if unknown := sorted(set(changes) - set(known)):
            raise ValueError(
                f"changes: there is no field {unknown[0]!r}; it must be one of {known}. Of other parameters make "
                "variables={**net.variables, 'params': params}"
            )
        if "variables" in changes:
            check_variables(changes["variables"], self.variables)
        net = dataclasses.replace(self, **changes)
        if "variables" in changes and net.function is not None:
            net.function.check_decided(net.variables)
        return net

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """``net.apply(net.variables, *inputs, **named)``: the network's outputs with its own variables."""
        return self.apply(self.variables, *inputs, **named)

    @property
    def apply(self) -> ApplyFunction:
        """The network as a pure function ``apply(variables, *inputs, train=False, key=None, draws=None, **named)``.

        It compares by value, so that ``jax.jit(net.apply)`` of two checkpoints shares a program; see ``ApplyFunction``.
        """
        return ApplyFunction(self.function)

    def loss(
        self,
        criterion: Callable[..., Any] | nn.Module,
        *,
        inputs: Callable[[Any], Any] | None = None,
        labels: Callable[[Any], Any] | None = None,
        outputs: Choice | None = None,
        key: Any = None,
        penalty: Callable[[Any], Any] | None = None,
        per_example: bool | None = None,
    ) -> Loss:
        """Make the loss of the network over data (inputs, labels); its parameters are ``net.variables["params"]``.

            L(theta) = sum_i w_i l_i / sum_i w_i,  l = criterion(net(x), y)

        Args:
          criterion: a JAX function (outputs, labels) -> losses (B, ...) or (losses, weights), or a torch loss module. A
            torch module is converted to losses per example, whose mean over the data set equals torch's
            reduction="mean" over all of it, with class weights and ignored labels counted as torch counts them. torch's
            function of the same loss, such as ``F.cross_entropy``, stands for its module.
          inputs: function of the batch that gives the network's inputs; None: its first entry (the batch itself if it
            is one array). A tuple holds the positional arguments, a dict those by name.
          labels: function of the batch that gives the labels; None: its second entry, or the tuple of all entries but
            the first if there are more than two.
          outputs: what the criterion (and a metric) gets of the network's outputs: a name or number among them, such
            as "logits", or a function of them. None: of several outputs, torch's own losses get the entry "logits", or
            the only array of floats; all other criteria get them all, dicts as dicts.
          key: a ``jax.random`` key for a stochastic loss (dropout, sampling); every example is run with its own key.
          penalty: ``penalty(params)`` added to the mean.
          per_example: False for criteria that couple the examples of a batch. None: True for JAX functions, torch's own
            losses and modules with a ``reduction``, else False.

        Returns:
          A ``lla_jax.Loss`` whose state is ``net.variables`` without "params", or None if there is nothing else.

        Raises:
          ValueError: a criterion that is neither; a torch loss that is a sum, takes other inputs than (outputs, labels)
            or has weights to train; an option of another type; a key for a network that draws no random numbers, or
            whose train mode has both dropout and running statistics.
            A torch loss that cannot be converted raises when it is first called.
        """
        check_key(key)
        if key is not None:
            _check_noise(self.function)
        if not (per_example is None or isinstance(per_example, bool)):
            raise misuse("per_example", per_example, "None, True or False")
        for name, x in (("inputs", inputs), ("labels", labels)):
            if not (x is None or callable(x)):
                raise misuse(name, x, f"None or a function of the batch, such as {name}=lambda batch: batch[{x!r}]")
        if not (penalty is None or callable(penalty)):
            raise misuse("penalty", penalty, "None or a function of the parameters, such as lambda p: 1e-4 * f(p)")
        given = criterion = as_criterion(criterion)
        if isinstance(criterion, nn.Module):
            criterion = torch_criterion(criterion, per_example, convert_callable)
            per_example = criterion.per_example
        state = {name: tree for name, tree in self.variables.items() if name != "params"}
        apply = Apply(self.function, static(inputs), selection(outputs, given))
        on_labels = OnLabels(static(criterion), static(labels))
        separate = True if per_example is None else per_example
        return Loss(apply, on_labels, state or None, key, penalty, separate, self.filter_axis)


def check_variables(variables: Any, like: Mapping[str, Any] | None) -> None:
    """Raise a ValueError unless the value is a dict of collections, and has all those of ``like``."""
    if isinstance(variables, Mapping) and set(like or {}) <= set(variables):
        return
    hint = ""
    if isinstance(variables, Mapping):
        hint = ". Of the parameters alone make {**net.variables, 'params': params}"
    elif hasattr(variables, "shape"):
        hint = "; they come first, net.apply(net.variables, x), and net(x) takes the network's own"
    elif isinstance(variables, nn.Module | Net):
        hint = ", not the network itself"
    raise misuse("variables", variables, f"net.variables, or a dict like it, {{'params': ..., ...}}{hint}")


def _check_noise(function: Function) -> None:
    """Raise a ValueError if a key would have no effect, or could not be used for one example at a time."""
    train = function.train
    if train is not None and function.noisy_in_train and train.mutates:
        raise ValueError(
            "key: the network has dropout and running statistics, and train mode switches both together, so there is "
            "no dropout with the running statistics; build the loss without key, or write a step that returns a "
            "scalar: lla_torch.convert_loss(step, module, batch, train=True, key=key)"
        )
    if not function.draws:
        remedy = "" if train is not None else ", or convert(..., train=True) for the module's dropout"
        raise ValueError(f"key: the network draws no random numbers; build the loss without key{remedy}")


def _make_net(parts: Parts) -> Net:
    return Net(parts.function, parts.variables, parts.names, filter_axis(parts.names), references(parts.module))


@prompt_interrupts()
@explained
def convert(
    module: nn.Module,
    example_inputs: Any,
    *others: Any,
    example_kwargs: Mapping[str, Any] | None = None,
    train: bool = False,
    dtype: Any = None,
) -> Net:
    """Convert a torch module to a pure JAX function with a Flax tree of variables.

    The module and torch's global state are left as they are; the weights are copied.

    Args:
      module: any module that torch.export can trace.
      example_inputs: a tensor or array, or a tuple of the module's positional arguments. Leading axes may have another
        length later; other axes are fixed, and so are arguments that are no tensors.
      others: further positional arguments, where they are not given as a tuple: ``convert(module, x, y)``.
      example_kwargs: arguments by name.
      train: convert ``module.train()`` as well, for batch statistics and dropout.
      dtype: precision of the weights, such as "float32" or "bfloat16"; None: the module's own. The function follows
        its weights, so ``net.variables`` may be cast later too.

    Returns:
      The network, see ``Net``.

    Raises:
      ConversionError: an operator that is not in the table, or code that torch.export cannot trace; the message names
        the module and the source line.
      ValueError: float64 weights while jax has no 64-bit types (other values that need 64 bits have them in any mode);
        example_kwargs with a name that ``Net.apply`` has for
        itself (train, key, draws).
    """
    check_module(module)
    if not (example_kwargs is None or isinstance(example_kwargs, Mapping)):
        raise misuse("example_kwargs", example_kwargs, "a dict of the module's arguments by name, such as {'x': x}")
    example_inputs = (example_inputs, *others) if others else example_inputs
    if taken := {"train", "key", "draws"} & set(example_kwargs or {}):
        raise ValueError(f"example_kwargs: {sorted(taken)} are arguments of net.apply itself; pass them by position")
    try:
        return _make_net(convert_parts(module, example_inputs, example_kwargs or {}, train, dtype))
    except ConversionError as error:
        if not isinstance(example_inputs, Mapping):
            raise
        raise ConversionError(
            f"example_inputs: a {type(example_inputs).__name__} given, which the module got as its one argument; to "
            f"pass its entries by name, call convert(module, (), example_kwargs=...). {error}"
        ) from error


@prompt_interrupts()
@explained
def convert_loss(
    step: Callable[[nn.Module, Any], Any],
    module: nn.Module,
    example_batch: Any,
    *,
    train: bool = False,
    key: Any = None,
    dtype: Any = None,
    net: Net | None = None,
) -> tuple[Loss, Any]:
    """Convert a loss that a torch function computes, with several outputs, inner layers, auxiliary heads or penalties.

    Args:
      step: ``step(module, batch)`` in torch. It returns one of

        - one loss per example (B,), which allows microbatches and gives standard errors;
        - (losses, weights) of one shape (B, ...), such as tokens and a mask;
        - (sum, weight), two scalars: the sum of the losses of a batch and that of their weights (the number of tokens
          that count). The value over several batches is the sum of all sums by the sum of all weights;
        - a scalar, the mean over the batch. The value over several batches is their mean weighted by size, which is
          exact for means over examples only; for means over tokens, whose numbers differ, return (sum, weight).
      module: the module, converted in eval mode as ``convert`` does.
      example_batch: a batch as the loader gives it, nested; or ``lla_jax.whole(...)`` of one example that stays whole,
        such as a graph or sets of points. Its losses may be those of any parts, such as nodes.
      train: convert train mode as well (``batch_stats="batch"``).
      key: a ``jax.random`` key for losses that sample. With a scalar loss all examples of a batch use the same key, and
        dropout is on where batch statistics are (``batch_stats="batch"`` or "reestimate").
      dtype: precision of the weights; None: the module's own.
      net: the module's network as ``convert`` gives it, whose layouts are kept, so that both have the same parameters.
        Without it, a Linear behind a flatten has its rows in torch's order if the step does not run it.

    Returns:
      (loss, params): a ``lla_jax.Loss`` over batches nested as the example, and the parameters, in the tree that
      ``convert`` gives for the layers that the step runs.

    Raises:
      ConversionError, ValueError: as ``convert``; a step that is no function; a loss of none of these forms, or that
        does not depend on the parameters; weights that depend on the parameters;
        a key for a step that draws no random numbers, or a key with batch statistics and losses per example.

    Warns:
      UserWarning: the loss is detached from the parameters; the step returns (mean, weight) in place of (sum, weight),
        and takes this number of examples only. Of other steps ``lla_jax`` says so where the loss is used.
    """
    check_step(step, module)
    check_module(module)
    check_key(key)
    refuse_loaders("example_batch", example_batch)
    if net is not None and not isinstance(net, Net):
        raise misuse("net", net, "the network of this module, as lla_torch.convert gives it, or None")
    whole = isinstance(example_batch, lla_jax.data.Whole)
    example_batch = as_tensors(example_batch.data if whole else example_batch)
    layouts = None if net is None else net.tree_map
    if layouts is not None:
        check_same_parameters(unwrap(module), layouts)
    net = _make_net(convert_parts(module, (example_batch,), {}, train, dtype, step, layouts))
    examples = torch_pytree.tree_leaves(example_batch)
    lengths = {x.shape[:1] for x in examples if isinstance(x, torch.Tensor)}
    whole = whole or len(lengths) != 1 or () in lengths
    rows = next((x.shape[0] for x in examples if isinstance(x, torch.Tensor) and x.ndim), None)
    shape = jax.eval_shape(
        lambda v, k: net.function(v, (as_arrays(example_batch),), {}, key=k)[0], net.variables, jax.random.key(0)
    )
    coupled, weighted = form_of_losses(shape, rows, whole)
    check_dependence(net.function.eval)
    if weighted and any(
        program and depends_on_params(program, 1) for program in (net.function.eval, net.function.train)
    ):
        raise ValueError(
            "step: the second value that it returns depends on the parameters, so it is no weight; a step returns "
            "(losses, weights) or (sum, weight), with weights that depend on the batch alone. Leave logits, metrics "
            "and other values out"
        )
    if coupled and weighted and rows is not None and not whole and is_fixed(net, example_batch, rows):
        warn_of_a_mean(step, module, example_batch, rows)
    state = {name: tree for name, tree in net.variables.items() if name != "params"}
    if key is not None and (not coupled or not net.function.draws):
        _check_noise(net.function)
    if coupled and key is not None:
        state["key"] = jax.random.key_data(key)
    criterion = mean_of_step if coupled and weighted else losses_of_step
    loss = Loss(
        Step(net.function), criterion, state or None, None if coupled else key, None, not coupled, net.filter_axis
    )
    return loss, net.variables["params"]


def check_same_parameters(module: nn.Module, names: NameMap) -> None:
    """Raise a ValueError if a network lacks parameters of a module, or has them in other shapes."""
    shapes = {name: names.by_name(name).shape for name in names.aliases}
    named = module.named_parameters()
    differ = [name for name, p in named if name in shapes and shapes[name] != tuple(p.shape)]
    missing = [name for name, _ in module.named_parameters() if name not in shapes]
    if missing or differ:
        lacks = [f"lacks the module's parameters {missing}"] if missing else []
        shaped = [f"has other shapes of {differ}"] if differ else []
        raise ValueError(f"net: it {' and '.join([*lacks, *shaped])}; convert this very module")
