"""Compares torch's outputs, loss, gradient and Hessian product with JAX's on the user's own weights and data."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np
import torch
from torch import nn

import lla_jax
from lla_jax import check_examples
from lla_jax.models.adapters import explained, misuse, prompt_interrupts
from lla_torch.certification.computed import cast_batch, jax_numbers, numbers_as_run
from lla_torch.certification.differences import (
    eps_of,
    is_inexact,
    largest_difference,
    median_difference,
    relative_difference,
    rounding_of,
)
from lla_torch.certification.reference import Case, central_differences, torch_numbers
from lla_torch.conversion.module import unwrap
from lla_torch.losses.functionals import as_criterion
from lla_torch.losses.selection import Choice
from lla_torch.net import Net, check_same_parameters
from lla_torch.program.bits import has_64_bits
from lla_torch.program.instructions import DType
from lla_torch.program.program import leaf_at
from lla_torch.tracing.calls import as_tensors, refuse_loaders
from lla_torch.tracing.exporting import why_unusable
from lla_torch.weights.arguments import check_module, check_net
from lla_torch.weights.names import is_float, to_array

TOLERANCES = {
    "outputs": 1e-12,
    "loss": 1e-12,
    "gradient": 1e-10,
    "Hessian product": 1e-9,
    "outputs, train mode": 1e-12,
    "statistics": 1e-12,
}
"""The relative errors allowed in float64."""
SLACK = 10.0
"""In lower precision an error may be this many times the distance of torch's own numbers from its float64 ones: at the
kink of a ReLU, a rounding error decides a sign, and two correct programs differ by more than rounding."""
CAP = 0.1
"""The largest error ever allowed: with a larger one, agreement would mean nothing."""
ILL = 1e-4
"""The largest error allowed in float64 where torch's own numbers move as far if the weights are rounded otherwise."""
CENTRAL = 1e-6
"""The error allowed against central differences."""


@dataclass(frozen=True)
class Row:
    """One comparison of torch with JAX: a line of the certificate's table.

    Args:
      quantity: such as "gradient".
      dtype: the precision, such as "float64".
      error: the largest difference divided by torch's largest entry.
      tolerance: the largest error that is allowed.
      note: what is special about this comparison, if anything.
    """

    quantity: str
    dtype: str
    error: float
    tolerance: float
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether the error is within the tolerance; NaN is not."""
        return self.error <= self.tolerance


@explained
@dataclass(frozen=True)
class Certificate:
    """The comparisons of a torch module with its converted network; print it for a table.

    Args:
      rows: one per quantity and precision.
      examples: the number of examples in the batch.
    """

    rows: tuple[Row, ...]
    examples: int

    @property
    def ok(self) -> bool:
        """Whether every row is within its tolerance."""
        return all(row.ok for row in self.rows)

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        head = f"{'':28}{'precision':>10}{'error':>10}{'allowed':>10}"
        lines = [
            f"{r.quantity:28}{r.dtype:>10}{r.error:>10.1e}{r.tolerance:>10.0e}{'' if r.ok else '  FAILS'}"
            f"{'  ' + r.note if r.note else ''}"
            for r in self.rows
        ]
        verdict = "torch and JAX agree to rounding" if self.ok else "torch and JAX DIFFER"
        count = f"{self.examples} example{'s' * (self.examples != 1)}"
        return "\n".join([head, *lines, f"{verdict} on {count} (errors relative to the largest entry)"])

    def __repr__(self) -> str:
        return str(self)


@prompt_interrupts()
@explained
def certify(
    module: nn.Module,
    net: Net,
    batch: Any,
    criterion: nn.Module | None = None,
    *,
    inputs: Callable[[Any], Any] | None = None,
    labels: Callable[[Any], Any] | None = None,
    outputs: Choice | None = None,
    seed: int = 0,
) -> Certificate:
    """Compare a torch module with its converted network: outputs, loss, gradient, a Hessian product, train mode.

    The comparison is made in the module's own precision and, since rounding hides small mistakes there, in float64 as
    well, with the same program and the same weights, cast; and once more as you run it ("as run"): compiled, in jax's
    present mode (32 or 64 bits, precision of matrix products), with the types that ``net.variables`` have. Neither the
    module nor torch's global state nor jax's configuration changes.

    With a criterion, "examples apart" says whether the loss of an example depends on the other examples, or whether a
    loss of the whole batch combines outputs (N, 1) with labels (N,) (``lla_jax.check_examples``). Without one, a note
    says so where the outputs of the batch differ from those of its halves, as they do if the first axis is time, or
    from those of the batch in another order.

    Networks converted with ``train=True`` are compared in train mode too: by the outputs, or where buffers change by
    outputs and buffers ("statistics"). Modules that draw random numbers are compared with torch's draws replayed.
    Integers among the outputs must be equal. Where torch has no second derivative or a wrong one (EmbeddingBag,
    weight_norm), the Hessian product is compared with central differences of torch's gradients, in float64 only. Where
    the module itself computes in a lower type (autocast), the float64 numbers must agree to that type's rounding.
    Modules with parameters of several floating types are compared as they are, without float64. The notes of the rows
    say which of these cases apply.

    Args:
      module: the torch module, with the weights that the network is to have. If it holds others, the table has one row,
        "weights", that says so and what to do.
      net: the network, from ``convert`` or ``load_checkpoint``.
      batch: (inputs, labels), torch tensors or arrays; without a criterion the inputs alone are enough. Or
        ``lla_jax.whole(...)`` of these, one example such as a graph, of whose rows nothing is said.
      criterion: a torch loss module with reduction="mean"; None: mean(w o + o^2 / 2) of the outputs o, with fixed
        random weights w, summed over the arrays of outputs.
      inputs: function of the batch that gives the inputs; None: the first entry.
      labels: function of the batch that gives the labels; None: the second entry. Both get torch's tensors and arrays.
      outputs: what the criterion gets of the module's outputs, see ``Net.loss``; a function is called with torch's
        outputs as well, so it uses what tensors and arrays have in common, such as ``out["logits"].swapaxes(1, 2)``.
      seed: of the vector that the Hessian is applied to.

    Returns:
      A ``Certificate``; ``print`` shows the table, ``.ok`` says whether all errors are within rounding.

    Raises:
      ValueError: arguments of another type or order; a network of another module; batches that the module does not
        take; a criterion that is neither a torch module nor torch's function of one, that fails on the outputs and
        labels, or that does not return a scalar.
    """
    check_module(module)
    check_net(net)
    given: Any = None if criterion is None else as_criterion(criterion)
    module, whole = unwrap(module), isinstance(batch, lla_jax.data.Whole)
    batch = batch.data if isinstance(batch, lla_jax.data.Whole) else batch
    case = _make_case(module, net, batch, given, inputs, labels, outputs, seed)._replace(whole=whole)
    if row := _other_weights(module, net):
        return Certificate((row,), 1 if whole else _count_examples(batch))
    own, exact = case.types[0], torch_numbers(case, "float64")
    case = case._replace(samples=bool(exact["draws"]))  # a recurrent layer may draw, and does so with dropout only
    rounded = exact
    if own == "float64":
        rows = _compare(case, net, own, exact, exact)
    elif len(case.types) > 1:
        rounded = torch_numbers(case, own)
        rows = _compare(case, net, own, rounded, exact)
    else:
        rows_in_float64 = _compare(case, net, "float64", exact, exact)
        rounded = torch_numbers(case, own)
        if not _same_draws(rounded, exact):
            exact |= jax_numbers(case, net, "float64", rounded)
        if any(_is_checked_by_differences(row) for row in rows_in_float64):
            exact["Hessian product"] = None
        rows = [*_compare(case, net, own, rounded, exact), *rows_in_float64]
    rows += [*_compare_as_run(case, net, rounded, exact), *_compare_examples(case, net)]
    return Certificate(tuple(rows), 1 if whole else _count_examples(batch))


def _make_case(
    module: nn.Module, net: Net, batch: Any, criterion: Any, inputs: Any, labels: Any, outputs: Any, seed: int
) -> Case:
    if isinstance(batch, lla_jax.data.Stream):
        raise misuse("batch", batch, "tensors or arrays of one batch, (inputs, labels): next(iter(loader))")
    refuse_loaders("batch", batch)
    _check_rows(batch)
    if criterion is not None and not isinstance(criterion, nn.Module):
        raise misuse(
            "criterion",
            criterion,
            "a torch loss module, such as nn.CrossEntropyLoss(), since torch computes the loss too. Write a function "
            "as a module, or give None to compare the outputs",
        )
    named = dict(module.named_parameters())
    check_same_parameters(module, net.tree_map)
    for number, x in enumerate(x for x in jax.tree.leaves(batch) if isinstance(x, torch.Tensor)):
        if reason := why_unusable(x, "give one with values"):
            raise ValueError(f"batch: tensor number {number} {reason}")
    own = net.function.eval.own.name
    floating = [str(p.dtype).removeprefix("torch.") for p in named.values() if p.is_floating_point()]
    if isinstance(seed, bool) or not (seed is None or (isinstance(seed, int | np.integer) and seed >= 0)):
        raise misuse("seed", seed, "an integer of at least 0")
    rng = np.random.default_rng(seed)
    params = [leaf for leaf in net.tree_map.leaves if leaf.collection == "params" and is_float(leaf.stored_dtype)]
    vector = {x.name: net.tree_map.to_torch(x, rng.standard_normal(x.stored_shape)) for x in params}
    types = tuple(dict.fromkeys([own, *floating]))
    samples, trains = bool(net.function.eval.random), net.function.train is not None
    return Case(module, as_tensors(batch), criterion, inputs, labels, outputs, vector, types, samples, trains)


def _check_rows(batch: Any) -> None:
    """Raise a ValueError for a batch without arrays or without examples."""
    shapes = [x.shape for x in jax.tree.leaves(batch) if hasattr(x, "shape")]
    if not shapes or any(0 in shape[:1] for shape in shapes):
        raise misuse("batch", batch, "tensors or arrays of at least one example, (inputs, labels)")


def _other_weights(module: nn.Module, net: Net) -> Row | None:
    """The row that says that the module holds other weights than the network; None if they are the same.

    Weights that were cast are the same, up to the rounding of the coarser type.
    """
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    errors: dict[str, tuple[float, float]] = {}
    for leaf in net.tree_map.leaves:
        if leaf.name in tensors and leaf.persistent and is_float(leaf.stored_dtype):
            stored = np.asarray(leaf_at(net.variables[leaf.collection], leaf.path))
            own = net.tree_map.to_jax(leaf, to_array(tensors[leaf.name], copy=False))
            allowed = SLACK * max(map(eps_of, (own.dtype.name, stored.dtype.name)))
            error = 0.0 if np.array_equal(own, stored) else relative_difference({"": stored}, {"": own})
            if not error <= allowed and not np.array_equal(own, stored, equal_nan=True):
                errors[leaf.name] = (error, allowed)
    if not errors:
        return None
    error, allowed = max(errors.values())
    note = (
        f"the module holds other weights than the network, in {', '.join(list(errors)[:3])}"
        f"{f' and {len(errors) - 3} more' if len(errors) > 3 else ''}: give it the network's, "
        "module.load_state_dict(lla_torch.to_state_dict(net)), or convert it again. Nothing else is compared"
    )
    return Row("weights", net.function.eval.own.name, error, allowed, note)


def _same_draws(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether torch drew the same numbers in both precisions, which depends on its generator of each distribution."""
    pairs = [(a, b) for name in ("draws", "train draws") for a, b in zip(first.get(name) or (), second.get(name) or ())]
    return all(np.allclose(a.astype(float), b.astype(float), rtol=1e-5, atol=1e-6) for a, b in pairs)


def _count_examples(batch: Any) -> int:
    shapes = [np.shape(x) for x in jax.tree.leaves(batch) if hasattr(x, "shape")]
    return next((shape[0] for shape in shapes if shape), 1)


# --- comparisons


def _compare(case: Case, net: Net, dtype: str, theirs: dict[str, Any], exact: dict[str, Any]) -> list[Row]:
    ours = jax_numbers(case, net, dtype, theirs)
    parts = {name: [name] for name in ("outputs", "loss", "gradient", "Hessian product")}
    parts |= {"statistics": ["train", "state"]} if "state" in theirs else {"outputs, train mode": ["train"]}
    rows = []
    for quantity, names in parts.items():
        if quantity == "Hessian product" and dtype != "float64" and not _has_product(theirs, exact):
            continue
        if all(name in ours and name in theirs for name in names):
            row = _compare_quantity(
                case, net, quantity, dtype, [[x[name] for name in names] for x in (ours, theirs, exact)]
            )
            if dtype == "float64" and not row.ok:
                row = _allow_for_rounding(case, row, names, exact)
            if quantity == "Hessian product" and dtype == "float64" and not row.ok:
                row = _check_by_differences(case, row, ours[quantity])
            rows.append(row)
    return rows


def _has_product(theirs: dict[str, Any], exact: dict[str, Any]) -> bool:
    return theirs.get("Hessian product") is not None and exact["Hessian product"] is not None


def _compare_quantity(case: Case, net: Net, quantity: str, dtype: str, numbers: list[list[Any]]) -> Row:
    """One comparison; ``numbers`` are JAX's, torch's, and torch's in float64, in one or more parts each."""
    lowest = _lowest_type(
        net.function.train if quantity in ("statistics", "outputs, train mode") else net.function.eval
    )
    allowed = TOLERANCES[quantity] if dtype == "float64" else rounding_of(dtype)
    notes = []
    if len(case.types) > 1 and quantity == "outputs":
        notes.append(f"parameters in {' and '.join(case.types)}, taken as they are")
    if lowest is not None and rounding_of(lowest) > allowed:
        allowed = rounding_of(lowest)
        notes.append(f"the module itself computes in {lowest} in places")
    if dtype != "float64":
        if any(_integers_differ(a, b) for a, b in zip(*numbers[1:], strict=True)):
            numbers = [[_drop_integers(x) for x in y] for y in numbers]
            notes.append("integers are not compared: torch's own differ from its float64 ones")
        distance = largest_difference(*numbers[1:])
        allowed = min(max(allowed, CAP if np.isnan(distance) else SLACK * distance), CAP)
        if not distance <= CAP:
            notes.append(f"torch's own {dtype} numbers are off by {distance:.0e} from its float64 ones")
    return Row(quantity, dtype, largest_difference(*numbers[:2]), allowed, "; ".join(notes))


def _allow_for_rounding(case: Case, row: Row, names: list[str], exact: dict[str, Any]) -> Row:
    """The row in float64 with the error allowed that torch itself makes if the weights are rounded otherwise.

    A sum such as (x + 1e8) - 1e8 loses digits, and how many of them is no matter of the conversion.
    """
    if not row.error <= ILL:
        return row
    moved = torch_numbers(case, "float64", 8 * eps_of("float64"))
    distance = largest_difference([moved[name] for name in names], [exact[name] for name in names])
    if not row.error <= min(ILL, SLACK * distance):
        return row
    note = f"torch's own numbers move by {distance:.0e} if the weights are rounded otherwise"
    return replace(row, tolerance=min(ILL, SLACK * distance), note="; ".join(filter(None, [row.note, note])))


def _check_by_differences(case: Case, row: Row, ours: Any) -> Row:
    """The comparison of JAX's Hessian product with central differences if it is within its tolerance, else ``row``."""
    error = relative_difference(ours, central_differences(case))
    if not error <= CENTRAL:
        return row
    note = "against central differences; torch's own second derivative is missing or wrong"
    return Row(row.quantity, row.dtype, error, CENTRAL, note + ("" if case.types[0] == "float64" else _ONLY))


_ONLY = ", so it is compared in float64 only"


def _is_checked_by_differences(row: Row) -> bool:
    return row.quantity == "Hessian product" and row.note.endswith(_ONLY)


def _lowest_type(program: Any) -> str | None:
    """The coarsest floating type but float64 in a program, the weights' own left out; None if there is none."""
    types = {d.name for i in program.instructions for d in i.dtypes if isinstance(d, DType) and not d.own}
    types = {name for name in types if is_float(name) and name != "float64"}
    return max(types, key=eps_of) if types else None


def _integers_differ(theirs: Any, exact: Any) -> bool:
    """Whether torch's integers in this precision differ from those in float64."""
    return any(not is_inexact(x) and not np.array_equal(x, exact[name]) for name, x in (theirs or {}).items())


def _drop_integers(arrays: Any) -> Any:
    return arrays and {name: x for name, x in arrays.items() if is_inexact(x)}


# --- as the user runs it


def _compare_as_run(case: Case, net: Net, theirs: dict[str, Any], exact: dict[str, Any]) -> list[Row]:
    """The comparison of outputs, loss and gradient in jax's present mode with torch's numbers in the module's types."""
    own = case.types[0]
    try:
        ours, note = numbers_as_run(case, net, theirs)
    except ValueError as error:
        return [Row("outputs, as run", own, float("nan"), 0.0, str(error))]
    rows: list[Row] = []
    for quantity in ("outputs", "loss", "gradient"):
        if quantity in ours and quantity in theirs:
            row = _compare_quantity(case, net, quantity, own, [[x[quantity]] for x in (ours, theirs, exact)])
            rounding, reasons = _rounding_in_mode(net, own)
            row = replace(
                row, tolerance=max(row.tolerance, rounding), note="; ".join(filter(None, [row.note, *reasons]))
            )
            if own == "float64" and not row.ok:
                row = _allow_for_rounding(case, row, [quantity], exact)
            if row.ok and quantity != "loss":
                row = _check_entries(case, row, quantity, ours[quantity], theirs[quantity], rounding)
            notes = filter(None, [_mode() if not rows else "", row.note, note if quantity == "outputs" else ""])
            rows.append(replace(row, quantity=f"{quantity}, as run", note="; ".join(notes)))
    return rows


def _matmul_precision() -> Any:
    """jax's present setting of the precision of matrix products; None for the device's default."""
    return jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]


def _mode() -> str:
    """The settings of jax that decide about rounding, in words."""
    bits = 64 if has_64_bits() else 32
    return f"compiled, {bits}-bit types, matrix products at {_matmul_precision() or 'default'}"


def _rounding_in_mode(net: Net, own: str) -> tuple[float, list[str]]:
    """(relative error, reasons): the rounding of the types at work, and of matrix products on this device."""
    types = {x.dtype.name for x in jax.tree.leaves(net.variables["params"]) if is_float(x.dtype)}
    lowest, reasons = max(types, key=eps_of, default=own), []
    if rounding_of(lowest) > rounding_of(own):
        reasons.append(f"the weights are {lowest} here")
    rounding = max(map(rounding_of, filter(None, [own, lowest, _lowest_type(net.function.eval)])))
    if jax.default_backend() != "cpu" and _matmul_precision() not in ("highest", "float32"):
        reasons.append("this device rounds matrix products")
        rounding = max(rounding, rounding_of("bfloat16"))
    return rounding, reasons


def _check_entries(case: Case, row: Row, quantity: str, ours: Any, theirs: Any, rounding: float) -> Row:
    """The row; or one that fails, if the median entry differs by more than if the weights were rounded otherwise.

    A difference of ``rounding`` is always allowed. What a module rounds on purpose is far from its float64 numbers, so
    that the largest difference may be as large.
    """
    middle = median_difference(ours, theirs)
    if middle <= rounding:
        return row
    moved = torch_numbers(case, row.dtype, eps_of(row.dtype))[quantity]
    allowed = max(rounding, SLACK * median_difference(moved, theirs))
    note = "; ".join(filter(None, [row.note, "the median entry is compared"]))
    return row if middle <= allowed else replace(row, error=middle, tolerance=allowed, note=note)


def _compare_examples(case: Case, net: Net) -> list[Row]:
    """The row that says whether each example has a loss of its own, or whether a loss of the batch combines pairs."""
    if case.criterion is None or case.whole:
        return []
    loss = net.loss(case.criterion, inputs=case.inputs, labels=case.labels, outputs=case.outputs)
    own = case.types[0]
    data = cast_batch(case, own)
    rows = {np.shape(x)[:1] for x in jax.tree.leaves(data, is_leaf=lambda x: x is None)}
    if case.samples or len(rows) != 1 or () in rows:
        return []
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            check_examples(loss, net.variables["params"], data)
    except ValueError as error:
        return [Row("examples apart", own, float("inf"), 0.0, str(error))]
    if not (loss.per_example or caught):
        return []
    return [Row("examples apart", own, float("inf") if caught else 0.0, 0.0, "; ".join(str(w.message) for w in caught))]
