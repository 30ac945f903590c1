"""Knows the values of tensors that depend on buffers and constants alone, so that they may decide sizes and branches.

While a module is traced, tensors have no values. Those of buffers, and of tensors made of numbers, are known all the
same, and so are results computed from them alone. Where a value decides a size or a branch (a boolean mask as an index,
``nonzero``, ``unique``, ``.item()``, ``if``), a known one takes its place in the graph as a constant.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as torch_pytree
from torch.utils._python_dispatch import _disable_current_modes

DECIDING = frozenset(
    [
        "nonzero",
        "argwhere",
        "masked_select",
        "unique",
        "unique_consecutive",
        "bincount",
        "histc",
        "one_hot",
        "combinations",
        "equal",
        "allclose",
        "is_nonzero",
        "item",
        "tolist",
        "numpy",
        "__array__",
        "__bool__",
        "__int__",
        "__float__",
        "__index__",
        "__complex__",
        "__contains__",
    ]
)
"""Functions whose results have a size, or are Python values, that depend on the values of their arguments."""
MADE = frozenset(
    [
        "tensor",
        "as_tensor",
        "asarray",
        "from_numpy",
        "scalar_tensor",
        "arange",
        "range",
        "linspace",
        "logspace",
        "ones",
        "zeros",
        "full",
        "eye",
        "tril_indices",
        "triu_indices",
    ]
)
"""Functions that make a tensor of numbers alone."""
SIZED = frozenset(
    [
        *("pad", "view", "reshape", "expand", "repeat", "tile", "unflatten", "interpolate", "unfold", "roll"),
        *("narrow", "split", "chunk", "topk", "new_zeros", "new_ones", "new_full", "new_empty"),
    ]
)
"""Functions of a tensor that take sizes or places, which torch itself would take from tensors of one number."""
FILLED = {"ones_like": 1, "new_ones": 1, "zeros_like": 0, "new_zeros": 0}
"""Functions whose result has the shape of a tensor, or its type, and is filled with one number."""


class Known(NamedTuple):
    """What is known of a traced tensor.

    Args:
      tensor: the traced tensor; it is held, so that its identity stays its own.
      version: torch's count of writes to it when the value was noted; another count makes the value void.
      value: its value; None: that of its buffer, which was not needed so far.
      buffers: names of the buffers that the value depends on.
    """

    tensor: torch.Tensor
    version: int
    value: torch.Tensor | None
    buffers: frozenset[str]


class ConstantValues(TorchFunctionMode):
    """A torch mode that keeps known values beside traced tensors, and lets them decide.

    Args:
      buffers: the module's buffers by name.

    ``deciding`` holds the names of the buffers whose values have decided something: the graph holds for these alone.
    """

    def __init__(self, buffers: Mapping[str, torch.Tensor]):
        super().__init__()
        self.deciding: set[str] = set()
        self._buffers = buffers
        self._known: dict[int, Known | None] = {}

    def hold(self, traced: Mapping[str, torch.Tensor]) -> None:
        """Note which tensors stand for the module's buffers, by name; their values are copied when they are needed."""
        self._known = {id(x): Known(x, _version(x), None, frozenset([n])) for n, x in traced.items()}

    def __torch_function__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        found = None if "out" in kwargs else self._values_of(name, args, kwargs)
        if found is None:
            return self._run(func, name, args, kwargs)
        values, named, buffers = found
        if name == "__iter__" and args[0].ndim:
            return iter(self.__torch_function__(torch.Tensor.unbind, kinds, args))
        if name in DECIDING or (name == "where" and len(values) + len(named) == 1) or _counts(name, args, kwargs):
            value = _compute(func, values, named)
            if value is not _UNKNOWN:
                self.deciding |= buffers
                return torch_pytree.tree_map_only(torch.Tensor, lambda x: self._constant(x, buffers), value)
        result = self._run(func, name, args, kwargs)
        if _writes(name):
            self._write(func, args, values, named)
        else:
            self._note_results(result, func, values, named, buffers)
        return result

    def _run(self, func: Callable[..., Any], name: str, args: Any, kwargs: Any) -> Any:
        picked = self._pick(name, *args, **kwargs) if name in ("masked_select", "repeat_interleave") else None
        if picked is not None:
            return picked
        args, kwargs = self._settle(name, args, kwargs)
        result = func(*args, **kwargs)
        if name in (*FILLED, "full_like", "new_full"):
            self._note_filled(name, result, args, kwargs)
        if _writes(name) and _is_real(args[0]):  # the trace writes to a stand-in
            self._known[id(args[0])] = None
        return result

    # --- what is known

    def _note(self, tensor: torch.Tensor, value: torch.Tensor, buffers: frozenset[str]) -> None:
        self._known[id(tensor)] = Known(tensor, _version(tensor), value, buffers)

    def _note_results(
        self, result: Any, func: Callable[..., Any], values: Any, named: Any, buffers: frozenset[str]
    ) -> None:
        """Note the values of the tensors that a call has returned."""
        traced = torch_pytree.tree_leaves(result)
        if not any(isinstance(x, torch.Tensor) for x in traced):
            return
        for tensor, value in zip(traced, torch_pytree.tree_leaves(_compute(func, values, named))):
            if isinstance(tensor, torch.Tensor) and isinstance(value, torch.Tensor):
                self._note(tensor, value, buffers)

    def _note_filled(self, name: str, result: torch.Tensor, args: Any, kwargs: Any) -> None:
        """Note a result that one number fills, where its shape is fixed."""
        number = FILLED[name] if name in FILLED else kwargs.get("fill_value", args[-1] if args else None)
        if isinstance(number, bool | int | float) and all(isinstance(n, int) for n in result.shape):
            value = _compute(torch.full, (tuple(result.shape), number), {"dtype": result.dtype})
            if value is not _UNKNOWN:
                self._note(result, value, frozenset())

    def _constant(self, value: torch.Tensor, buffers: frozenset[str]) -> torch.Tensor:
        """A value as a constant of the graph."""
        traced = value.clone()
        self._note(traced, _compute(torch.clone, (value,), {}), buffers)  # the graph's own is never written to
        return traced

    def _value(self, x: Any) -> Known | None:
        """What is known of a tensor; a tensor that is not traced is its own value."""
        if not isinstance(x, torch.Tensor):
            return None
        if id(x) not in self._known:
            if not _is_real(x):
                return None
            self._note(x, _compute(torch.clone, (x,), {}), frozenset())
        known = self._known[id(x)]
        if known is None or known.version != _version(x):
            return None
        if known.value is None:
            (name,) = known.buffers
            real = self._buffers.get(name)
            if real is None or not _is_real(real):
                return None
            known = self._known[id(x)] = known._replace(value=_compute(torch.clone, (real,), {}))
        return known

    def _is_unknown(self, x: Any) -> bool:
        """Whether an argument is a tensor of which nothing can be known."""
        return isinstance(x, torch.Tensor) and id(x) not in self._known and not _is_real(x)

    def _values_of(self, name: str, args: Any, kwargs: Any) -> tuple[Any, Any, frozenset[str]] | None:
        """(arguments, named arguments, buffers) with known values in the place of tensors; None if one is unknown."""
        if any(map(self._is_unknown, args)):  # as of most calls, without a look at nested arguments
            return None
        leaves, spec = torch_pytree.tree_flatten((args, kwargs))
        if any(map(self._is_unknown, leaves)):  # before any value is copied
            return None
        buffers: frozenset[str] = frozenset()
        tensors = False
        for i, leaf in enumerate(leaves):
            if isinstance(leaf, torch.Tensor):
                known = self._value(leaf)
                if known is None:
                    return None
                leaves[i], tensors, buffers = known.value, True, buffers | known.buffers
            elif _is_symbolic(leaf):
                return None
        if not tensors and name not in MADE:
            return None
        values, named = torch_pytree.tree_unflatten(leaves, spec)
        return values, named, buffers

    def _write(self, func: Callable[..., Any], args: Any, values: Any, named: Any) -> None:
        """Write to the value what was written to the traced tensor; its views see it, as those of the tensor do."""
        if id(args[0]) not in self._known or self._known[id(args[0])] is None:
            return
        if _compute(func, values, named) is _UNKNOWN:
            return
        place = values[0].untyped_storage().data_ptr()
        for key, known in self._known.items():
            if known is not None and known.value is not None and known.value.untyped_storage().data_ptr() == place:
                self._known[key] = known._replace(version=_version(known.tensor))

    # --- indices

    def _settle(self, name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Arguments with known masks, and known numbers as indices and sizes, so that a result has a fixed size."""
        if name == "__getitem__":
            return (args[0], self._indices(args[1])), kwargs
        if name == "__setitem__" and self._counts_values(*args):
            return (args[0], self._indices(args[1]), args[2]), kwargs
        if name in ("index_put", "index_put_") and len(args) >= 3 and self._counts_values(*args[:3]):
            return (args[0], tuple(self._indices(tuple(args[1]))), *args[2:]), kwargs
        if name in SIZED:
            rest, kwargs = torch_pytree.tree_map(self._number, (tuple(args[1:]), kwargs))
            return (*args[:1], *rest), kwargs
        return args, kwargs

    def _number(self, x: Any) -> Any:
        """A whole number in place of a tensor that is known to hold this one; other values as they are."""
        known = None if not isinstance(x, torch.Tensor) or x.is_floating_point() or x.is_complex() else self._value(x)
        if known is None or known.value is None or known.value.numel() != 1:
            return x
        self.deciding |= known.buffers
        return _compute(torch.Tensor.item, (known.value,), {})

    def _pick(self, name: str, x: Any, by: Any = None, dim: int | None = None, **named: Any) -> torch.Tensor | None:
        """``masked_select`` and ``repeat_interleave`` by known masks and counts, as indices; None of other calls."""
        by = named.get("mask", named.get("repeats", by))
        known = self._value(by)
        if known is None or known.value is None or by.ndim == 0:
            return None
        if name == "masked_select":
            return x[(..., *self._index(by))].flatten() if x.shape[x.ndim - by.ndim :] == by.shape else None
        if by.numel() == 1:
            return None
        self.deciding |= known.buffers
        places = self._constant(_compute(torch.repeat_interleave, (known.value,), {}), known.buffers)
        return x.flatten()[places] if dim is None else x.index_select(dim, places)

    def _counts_values(self, x: torch.Tensor, index: Any, value: Any) -> bool:
        """Whether the entries of a value are counted by a mask: a single one, or one row for all, is not."""
        if not isinstance(value, torch.Tensor) or value.ndim == 0:
            return False
        index = index if isinstance(index, tuple) else (index,)
        masks = [i for i in index if isinstance(i, torch.Tensor) and i.dtype == torch.bool]
        single = all(isinstance(n, int) and n == 1 for n in value.shape)
        rows = len(masks) == 1 and index[0] is masks[0] and value.ndim <= x.ndim - masks[0].ndim
        return bool(masks) and not single and not rows

    def _indices(self, index: Any) -> Any:
        parts = list(index) if isinstance(index, tuple) else [index]
        return tuple(new for part in parts for new in self._index(part)) if parts else index

    def _index(self, part: Any) -> tuple[Any, ...]:
        """The indices in the place of one; a mask of n axes gives n of them, the places where it is set."""
        if isinstance(part, slice):
            return (slice(*(self._number(x) for x in (part.start, part.stop, part.step))),)
        if isinstance(part, list | np.ndarray) and np.asarray(part).dtype == bool and np.ndim(part):
            places = np.nonzero(np.asarray(part))
            return tuple(torch.from_numpy(np.array(p)) for p in places)
        known = self._value(part)
        if known is None or (part.ndim == 0 and part.dtype == torch.bool):
            return (part,)
        if part.ndim == 0:
            return (self._number(part),)
        if part.dtype != torch.bool:
            return (part,)
        self.deciding |= known.buffers
        places = _compute(torch.nonzero, (known.value,), {"as_tuple": True})
        return tuple(self._constant(p, known.buffers) for p in places)


_UNKNOWN = object()


def _compute(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """The value of a call outside of the trace; ``_UNKNOWN`` where it draws random numbers or fails."""
    state = torch.default_generator.get_state()
    try:
        with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
            value = func(*args, **kwargs)
            drawn = not torch.equal(torch.default_generator.get_state(), state)
    except Exception:  # whatever it is, the trace meets it too
        return _UNKNOWN
    if drawn:
        torch.default_generator.set_state(state)
    return _UNKNOWN if drawn else value


def _version(x: torch.Tensor) -> int:
    """torch's count of writes to a tensor; tensors made in inference mode have none."""
    return 0 if x.is_inference() else x._version


def _is_real(x: Any) -> bool:
    """Whether it is a dense tensor with values, not one of a trace."""
    return (
        type(x) is torch.Tensor
        and x.layout == torch.strided
        and x.device.type != "meta"
        and not torch._is_functional_tensor(x)
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    )


def _writes(name: str) -> bool:
    """Whether a function of this name writes to its first argument."""
    if name == "__setitem__" or (
        name.startswith("__i") and name not in ("__index__", "__int__", "__invert__", "__iter__")
    ):
        return True
    return name.endswith("_") and not name.endswith("__")


def _counts(name: str, args: Any, kwargs: Any) -> bool:
    """Whether it is a ``repeat_interleave`` by a tensor whose result has no given size."""
    return name == "repeat_interleave" and "output_size" not in kwargs and isinstance(args[-1], torch.Tensor)


def _is_symbolic(x: Any) -> bool:
    if isinstance(x, torch.Size):
        return any(map(_is_symbolic, x))
    return isinstance(x, torch.SymInt | torch.SymFloat | torch.SymBool)
