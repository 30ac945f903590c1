"""The map between torch's names and layouts and those of a Flax tree, for weights, statistics and moments.

    torch                          Flax path (collection first)             stored as
    Linear.weight (out, in)        params/.../kernel                        (in, out)
    Conv.weight (O, I/g, *k)       params/.../kernel                        (*k, I/g, O)
    ConvTranspose.weight           params/.../kernel                        (*k, O/g, I), Flax's transpose_kernel=True
      (I, O/g, *k)
    norm layers' weight            params/.../scale                         as it is
    complex weights (...)          params/..., as above                     real (..., 2): real and imaginary parts
    Embedding.weight               params/.../embedding                     as it is
    RNN, LSTM, GRU weight_*        params/.../kernel_*                      transposed
    MultiheadAttention *_weight    params/.../*_kernel                      transposed
    running_mean, running_var      batch_stats/.../mean, var                as they are
    other buffers                  buffers/...                              as they are
    other tensors of the graph     constants/...                            as they are

The rows of a Linear behind a flatten of images are in Flax's order (H, W, C) instead of (C, H, W). All other tensors
keep their name and layout. A leaf keeps torch's name where another leaf or a submodule of its module has the new one,
and a slash in a name is a dot in its path. Nothing is computed, so the way back gives the same bits.
"""

from __future__ import annotations

import difflib
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import jax
import numpy as np
import torch
from torch import nn

from lla_jax.models.adapters import explained, misuse, warn_caller
from lla_torch.program.views import View, inverse
from lla_torch.weights.arguments import check_module, is_net

NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    *((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()),
)
REAL_TYPES = {"complex64": "float32", "complex128": "float64"}
"""The types of the parts of complex numbers."""
COLLECTIONS = ("params", "batch_stats", "buffers", "constants")


@dataclass(frozen=True)
class Leaf:
    """One tensor of a module and its place in the tree.

    Args:
      name: its torch name, the first one if it has several.
      collection: "params", "batch_stats", "buffers" or "constants".
      path: its path within the collection.
      shape: its shape in torch.
      order, split, merged: how torch's axes lie in the stored array, see ``views.View``.
      filter_axis: the axis of the stored array that indexes its filters; None for one-dimensional arrays.
      persistent: whether it is in the module's ``state_dict``.
      dtype: its type of entries in torch, such as "float32".
      trainable: whether torch trains it: a parameter with ``requires_grad``.
    """

    name: str
    collection: str
    path: tuple[str, ...]
    shape: tuple[int, ...]
    order: tuple[int, ...]
    split: tuple[int, ...] | None = None
    merged: tuple[int, ...] | None = None
    filter_axis: int | None = None
    persistent: bool = True
    dtype: str = "float32"
    trainable: bool = False

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of the stored array, in the layout of the tree."""
        parts = (2,) if self.in_parts else ()
        if self.merged is not None:
            return (*self._rows, self.shape[0], *parts)
        return (*(self.shape[axis] for axis in inverse(self.order)), *parts)

    @property
    def in_parts(self) -> bool:
        """Whether it is a complex weight, stored as a real array whose last axis has real and imaginary parts."""
        return self.collection == "params" and self.dtype in REAL_TYPES

    @property
    def stored_dtype(self) -> str:
        """The type of the stored array's entries."""
        return REAL_TYPES[self.dtype] if self.in_parts else self.dtype

    @property
    def _rows(self) -> tuple[int, ...]:
        return (int(np.prod(self.shape[1:])),)

    @property
    def full_path(self) -> str:
        """The path in ``variables``, with the collection: "params/layer1/0/conv1/kernel"."""
        return "/".join((self.collection, *self.path))


@dataclass(frozen=True)
class NameMap:
    """The map from torch's names to the tree: a module's tensors, in the order of its ``state_dict``, and constants.

    Args:
      leaves: every distinct tensor once.
      aliases: every torch name and the name of the leaf that it stands for (another one where tensors are tied).
    """

    leaves: tuple[Leaf, ...]
    aliases: Mapping[str, str] = field(hash=False)

    def __repr__(self) -> str:
        return f"NameMap({len(self.leaves)} arrays of {len(self.aliases)} names)"

    def by_name(self, name: str) -> Leaf:
        """The leaf of a torch name, also of a tied one; a ValueError for an unknown name."""
        if name not in self.aliases:
            raise misuse("name", name, f"one of the module's tensors, {list(self.aliases)}")
        return self._by_name[self.aliases[name]]

    @property
    def _by_name(self) -> dict[str, Leaf]:
        table = self.__dict__.get("_table")
        if table is None:
            table = {leaf.name: leaf for leaf in self.leaves}
            object.__setattr__(self, "_table", table)
        return table

    @property
    def trainable(self) -> tuple[str, ...]:
        """The paths of the parameters that torch trains."""
        return tuple(leaf.full_path for leaf in self.leaves if leaf.trainable)

    @staticmethod
    def to_jax(leaf: Leaf, array: np.ndarray) -> np.ndarray:
        """Rearrange an array from torch's layout to the stored layout of a leaf; the entries keep their bits.

        Raises:
          ValueError: an array of another shape than the leaf's in torch.
        """
        array = np.asarray(array)
        if array.shape != leaf.shape:
            raise ValueError(
                f"{leaf.name}: shape {array.shape} given; it must be {leaf.shape}, or convert the module that has "
                "this tensor"
            )
        if leaf.merged is not None:
            assert leaf.split is not None
            array = array.reshape(tuple(leaf.split[i] for i in leaf.order))
        array = array.transpose(inverse(leaf.order))
        array = np.stack([array.real, array.imag], -1) if leaf.in_parts else array
        return np.ascontiguousarray(array).reshape(leaf.stored_shape)

    @staticmethod
    def to_torch(leaf: Leaf, array: Any) -> np.ndarray:
        """Rearrange a leaf's array from the stored layout to torch's layout, as a copy; the entries keep their bits.

        Raises:
          ValueError: an array of another shape than the leaf's stored array.
        """
        array = np.asarray(array)
        if array.shape != leaf.stored_shape:
            raise ValueError(
                f"{leaf.full_path}: shape {array.shape} given; it must be {leaf.stored_shape}, so pass a tree like "
                "net.variables"
            )
        if leaf.in_parts:
            array = _joined(array)
        if leaf.split is not None:
            array = array.reshape(leaf.split)
        return np.array(array.transpose(leaf.order).reshape(leaf.shape), order="C")

    def tree(self, arrays: Mapping[str, Any], collections: Sequence[str] = COLLECTIONS) -> dict[str, Any]:
        """Nest arrays by leaf name into dicts {collection: {...}}; collections without leaves are left out."""
        result: dict[str, Any] = {}
        for leaf in self.leaves:
            if leaf.collection in collections:
                node = result.setdefault(leaf.collection, {})
                for part in leaf.path[:-1]:
                    node = node.setdefault(part, {})
                node[leaf.path[-1]] = arrays[leaf.name]
        return result

    def with_layouts_of(self, other: NameMap) -> NameMap:
        """A copy of the map with the layouts of ``other`` for tensors that both have, by name and shape."""
        known = {(leaf.name, leaf.shape): leaf for leaf in other.leaves if leaf.collection != "constants"}
        layouts = [(known.get((leaf.name, leaf.shape), leaf), leaf.trainable) for leaf in self.leaves]
        return replace(self, leaves=tuple(replace(leaf, trainable=trainable) for leaf, trainable in layouts))

    def with_row_layouts(self, rows: Mapping[str, View]) -> NameMap:
        """A copy of the map in which rows of linear weights lie in the order of their flattened inputs' arrays.

        Args:
          rows: the flattened input of each such weight, by leaf name.
        """

        def reorder(leaf: Leaf) -> Leaf:
            x = rows.get(leaf.name)
            if x is None:
                return leaf
            assert x.split is not None
            split = (*x.split[1:], leaf.shape[0])
            return replace(leaf, split=split, order=(len(split) - 1, *(i - 1 for i in x.order[1:])), merged=leaf.shape)

        return replace(self, leaves=tuple(reorder(leaf) for leaf in self.leaves))


class Names(dict[str, str]):
    """{torch name: path}; of an unknown name the error says which one is near."""

    def __missing__(self, name: Any) -> NoReturn:
        near = difflib.get_close_matches(str(name), self, 1)
        way = f"did you mean {near[0]!r}?" if near else f"names are those of module.state_dict(): {list(self)[:20]}"
        raise KeyError(f"names: {name!r} is no tensor of the network; {way}")


def _joined(parts: np.ndarray) -> np.ndarray:
    """The complex array of real and imaginary parts (..., 2), bit for bit."""
    result = np.empty(parts.shape[:-1], np.complex128 if parts.dtype == np.float64 else np.complex64)
    result.real, result.imag = parts[..., 0], parts[..., 1]
    return result


@dataclass(frozen=True)
class FilterAxis:
    """``filter_axis(path, leaf)`` for ``Loss``: the axis of a parameter that indexes its filters, or None."""

    axes: tuple[tuple[str, int | None], ...]

    def __repr__(self) -> str:
        return f"FilterAxis({len(self.axes)} parameters)"

    def __call__(self, path: str, leaf: Any) -> int | None:
        axes = dict(self.axes)
        if path not in axes:
            raise ValueError(
                f"filter_axis: that of a network without the parameter {path!r} given; it must be that of the network "
                f"whose parameters these are: its net.filter_axis, or its loss. The network has {', '.join(axes)}"
            )
        axis, ndim = axes[path], len(getattr(leaf, "shape", ()))
        if axis is not None and axis >= ndim:
            raise ValueError(
                f"filter_axis: axis {axis} of {path!r} given, which has {ndim} axes here; it must be that of the "
                "network whose parameters these are: its net.filter_axis, or its loss"
            )
        return axis


def filter_axis(names: NameMap) -> FilterAxis:
    """The filter axes of a module's parameters: the axis of the outputs, as in torch; None for one-dimensional ones."""
    return FilterAxis(tuple(("/".join(x.path), x.filter_axis) for x in names.leaves if x.collection == "params"))


def _flax_name(owner: nn.Module, name: str, tensor: torch.Tensor) -> tuple[str, bool, int | None]:
    """(name in the tree, whether the first two axes are stored last and swapped, filter axis there or None) of a leaf.

    The leaf keeps its name if another leaf or a submodule of its module has the new one.
    """
    own, ndim = {**owner._parameters, **owner._modules}, tensor.ndim
    free = lambda new: new if new == name or new not in own else name  # noqa: E731
    one_dim = sum(n > 1 for n in tensor.shape) <= 1
    if isinstance(owner, nn.Linear | nn.modules.conv._ConvNd) and name == "weight" and ndim >= 2:
        transposed = isinstance(owner, nn.modules.conv._ConvTransposeNd)
        return free("kernel"), True, ndim - 2 if transposed else ndim - 1
    if isinstance(owner, nn.RNNBase | nn.RNNCellBase) and name.startswith("weight") and ndim == 2:
        return free("kernel" + name.removeprefix("weight")), True, 1
    if isinstance(owner, nn.MultiheadAttention) and name.endswith("weight") and ndim == 2:
        return free(name.removesuffix("weight") + "kernel"), True, 1
    if isinstance(owner, nn.Embedding | nn.EmbeddingBag) and name == "weight":
        return free("embedding"), False, 0
    if isinstance(owner, NORMS) and name == "weight":
        return free("scale"), False, None if one_dim else 0
    return name, False, None if one_dim else 0


def map_names(module: nn.Module, constants: Mapping[str, torch.Tensor] | None = None) -> NameMap:
    """Give every parameter and buffer of a module, and further tensors of its graph, a place in the tree.

    Args:
      module: the torch module.
      constants: tensors by name that are neither parameters nor buffers.
    """
    leaves: list[Leaf] = []
    aliases: dict[str, str] = {}
    seen: dict[int, str] = {}
    statistics = {"running_mean": "mean", "running_var": "var"}

    def add(name: str, tensor: torch.Tensor, collection: str, path: tuple[str, ...], **more: Any) -> None:
        aliases[name] = seen.setdefault(id(tensor), name)
        if aliases[name] == name:
            dtype = str(tensor.dtype).removeprefix("torch.")
            order = more.pop("order", tuple(range(tensor.ndim)))
            path = tuple(part.replace("/", ".") for part in path)  # torch's own names have no dots
            leaves.append(Leaf(name, collection, path, tuple(tensor.shape), order, dtype=dtype, **more))

    for prefix, owner in module.named_modules(remove_duplicate=False):
        parts = tuple(prefix.split(".")) if prefix else ()
        for name, tensor in owner._parameters.items():
            if tensor is not None:
                new, reverse, axis = _flax_name(owner, name, tensor)
                n = tensor.ndim
                order = (n - 1, n - 2, *range(n - 2)) if reverse else tuple(range(n))
                more = {"order": order, "filter_axis": axis, "trainable": tensor.requires_grad}
                add(".".join((*parts, name)), tensor, "params", (*parts, new), **more)
        for name, tensor in owner._buffers.items():
            if tensor is not None:
                is_norm = isinstance(owner, nn.modules.batchnorm._NormBase) and name in statistics
                new = statistics.get(name, name) if statistics.get(name) not in owner._modules else name
                where = ("batch_stats", (*parts, new)) if is_norm else ("buffers", (*parts, name))
                persistent = name not in owner._non_persistent_buffers_set
                add(".".join((*parts, name)), tensor, *where, persistent=persistent)
    for name, tensor in (constants or {}).items():
        if name not in aliases:
            add(name, tensor, "constants", tuple(name.split(".")), persistent=False)
    return NameMap(tuple(leaves), aliases)


@explained
def trainable(module: Any) -> tuple[str, ...]:
    """The paths of the parameters with ``requires_grad``, a selection for ``select=``; as ``net.trainable``.

        loss, params = lla_torch.convert_loss(step, module, batch)
        H = lla.hessian(loss, params, data, select=lla_torch.trainable(module))

    Parameters without it (frozen ones) are part of the parameters of a converted network or loss as all others are:
    directions move them, and the Hessian has their rows, unless a selection leaves them out.

    Args:
      module: the torch module, or its converted network.
    """
    if is_net(module):
        return tuple(module.trainable)
    check_module(module)
    return map_names(module).trainable


def references(module: nn.Module) -> dict[str, weakref.ref[nn.Parameter]]:
    """Weak references to a module's parameters, by torch name."""
    return {name: weakref.ref(parameter) for name, parameter in module.named_parameters()}


def to_array(tensor: torch.Tensor, copy: bool = True) -> np.ndarray:
    """Convert a tensor, also bfloat16 or float8, to a numpy array; ``copy=False`` shares its memory if possible.

    Raises:
      ValueError: a tensor on the meta device.
    """
    if tensor.is_meta:
        raise ValueError(
            f"a tensor of shape {tuple(tensor.shape)} is on the meta device and has no values; make it on the CPU"
        )
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    name = str(tensor.dtype).removeprefix("torch.")
    if name == "bfloat16" or name.startswith("float8"):
        import ml_dtypes

        bits = tensor.view(torch.uint16 if name == "bfloat16" else torch.uint8).numpy()
        array = bits.view(getattr(ml_dtypes, name))
    else:
        array = tensor.numpy()
    return array.copy() if copy else array


def to_tensor(array: Any) -> torch.Tensor:
    """Copy an array, also of bfloat16 or float8, to a tensor."""
    array = np.array(array, order="C")
    name = array.dtype.name
    if name == "bfloat16" or name.startswith("float8"):
        bits = torch.from_numpy(array.view(np.uint16 if name == "bfloat16" else np.uint8))
        return bits.view(getattr(torch, name))
    return torch.from_numpy(array)


def as_jax(array: np.ndarray, name: str, dtype: Any = None, wide: bool = False) -> jax.Array:
    """Copy an array to a jax array; integers beyond 32 bits keep their 64 bits, also where jax's default has 32.

    Args:
      array: the array.
      name: its name in messages.
      dtype: the type that real floats get; None: their own.
      wide: whether it is no weight and keeps its 64 bits whatever ``dtype`` is, see ``keeps_64_bits``.

    Raises:
      ValueError: weights of 64 bits while jax has no 64-bit types.
    """
    if np.issubdtype(array.dtype, np.integer):
        wide = array.dtype.itemsize == 8 and not np.array_equal(array.astype(jax.numpy.int32), array)
    if wide:
        with jax.enable_x64(True):
            return jax.numpy.array(array, copy=True)
    target = np.dtype(array.dtype if dtype is None or not is_float(array.dtype) else jax.numpy.dtype(dtype))
    if target in (np.dtype("float64"), np.dtype("complex128")) and jax.dtypes.canonicalize_dtype(target) != target:
        raise ValueError(
            f"{name}: {target.name} given, which jax has only after jax.config.update('jax_enable_x64', True); call "
            "that first, or pass dtype='float32'"
        )
    with np.errstate(over="ignore"):
        cast = array.astype(target, copy=False)
    if cast is not array and is_float(target) and (lost := int(np.isinf(cast).sum() - np.isinf(array).sum())) > 0:
        warn_caller(
            f"{name}: {lost} entries are beyond the range of {target.name} and become infinite; pass another dtype"
        )
    return jax.numpy.array(cast, copy=True)


def keeps_64_bits(leaf: Leaf, own: str) -> bool:
    """Whether an array is no weight and has 64-bit floats between weights of the type ``own``."""
    return leaf.collection != "params" and leaf.dtype in ("float64", "complex128") and own != "float64"


def is_float(dtype: Any) -> bool:
    """Whether a type, or its name, is a real floating one, bfloat16 and float8 included."""
    return bool(jax.numpy.issubdtype(jax.numpy.dtype(dtype), jax.numpy.floating))
