"""Finds the axes along which a leaf holds several layers, as ``nn.scan``, ``nnx.vmap`` and ``eqx.filter_vmap`` make it.

A stack of L layers keeps its weights in one leaf with an axis of length L, and no tree says so. It shows where the kind
of a layer is known: an Equinox layer knows how many axes its weights have; the bias of a Flax or Haiku layer has one
axis, and that of L layers two, the first of which its kernel has as well. From such leaves the stack is followed upward
through the tree, as long as all leaves have the same length there.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse, is_integer, misuse, warn_caller
from lla_jax.core.called import ask
from lla_jax.core.types import Path, PyTree

Axes = tuple[int, ...]
Stacked = Mapping[str, int | Axes] | Callable[[Path, Any], int | Axes | None]
"""The axes along which leaves hold several layers: by glob, or a function ``(path, leaf) -> axes``, None for none."""

KERNELS, BIASES = ("kernel", "w", "weight"), ("bias", "b", "offset", "beta")
SCALES, EMBEDDINGS = ("scale", "gamma"), ("embedding", "embeddings")
_SHARDINGS = ("out_sharding", "sharding_names", "sharding")
_STACK_NAMES = ("layers", "layer", "stack", "stacked", "blocks", "block", "stages", "stage")
HEADS = ("query", "key", "value")  # whose outputs have two axes, heads and entries
_LIFTED = re.compile(r"(?:Remat|Checkpoint)*((?:(?:Scan|Vmap)(?:Remat|Checkpoint)*)+)[A-Z]\w*_\d+")  # Flax's own names


def stacked_axes(
    stacked: Stacked | None, params: PyTree, layer_ndims: Mapping[Path, int] | None = None
) -> dict[Path, Axes]:
    """The axes of each leaf along which it holds several layers, counted from 0; leaves without any are left out.

    Args:
      stacked: the axes as the user tells them; None to find them in the tree.
      params: the weights.
      layer_ndims: the number of axes that leaves have in one layer, where the model tells.

    Raises:
      ValueError: ``stacked`` of another kind, a glob that matches nothing, or axes that a leaf does not have.
    """
    names, leaves = _tree.paths(params), jax.tree.leaves(params)
    shapes = {path: tuple(np.shape(leaf)) for path, leaf in zip(names, leaves, strict=True)}
    if stacked is None:
        return _find(params, shapes, layer_ndims or {})
    told: dict[Path, Any] = {}
    if isinstance(stacked, Mapping):
        for pattern, axes in stacked.items():
            chosen = _tree.select_leaves(pattern, params, "stacked")
            told |= {path: axes for path, yes in zip(names, chosen, strict=True) if yes}
    elif callable(stacked):
        told = {
            path: ask("stacked", stacked, "f(path, leaf) -> axes", {"path": path, "leaf": leaf})
            for path, leaf in zip(names, leaves, strict=True)
        }
    else:
        raise misuse("stacked", stacked, 'a dict {glob: axis}, such as {"layers/**": 0}, a function, or None')
    checked = {path: _check(path, axes, shapes[path]) for path, axes in told.items() if axes is not None}
    return {path: axes for path, axes in checked.items() if axes}


def _check(path: Path, axes: Any, shape: Axes) -> Axes:
    given, ndim = tuple(axes) if isinstance(axes, tuple | list) else (axes,), len(shape)
    if not all(is_integer(a) and -ndim <= a < ndim for a in given):
        raise Misuse(
            "stacked",
            f"gives {axes!r} for {path!r} of shape {shape}; it must give axes of the leaf, from {-ndim} to {ndim - 1}",
        )
    return tuple(sorted({int(a) % ndim for a in given}))


# --- finding stacks


def _find(params: PyTree, shapes: Mapping[Path, Axes], layer_ndims: Mapping[Path, int]) -> dict[Path, Axes]:
    """The axes of all leaves that belong to a stack; leaves of known layers show where a stack is, or is not."""
    known = _by_name(shapes)
    for path, ndim in layer_ndims.items():
        extra = len(shapes.get(path, ())) - ndim
        if path in shapes and len(known.get(path, ())) != max(extra, 0):  # a name may tell another axis than the first
            known[path] = tuple(range(extra))
        known.setdefault(path, ())
    known |= _by_metadata(params, shapes)
    if "equinox" in sys.modules:
        known |= _by_layer(params)
    found: dict[Path, Axes] = {}
    for path in sorted(known, key=lambda p: len(known[p])):  # a stack in a stack has more axes, and comes later
        if known[path] and len(found.get(path, ())) < len(known[path]):
            found |= _group(path, known, shapes)
    _warn_of_unclear({path: shape for path, shape in shapes.items() if path not in known and path not in found})
    return found


def _warn_of_unclear(shapes: Mapping[Path, Axes]) -> None:
    """Warn of kernels that may be a stack of layers or one layer.

    These are kernels (n, n, n) with biases (n, n), and lone kernels (m, n, n), which a one-dimensional
    convolution has as well.
    """
    lone = [path for path, shape in shapes.items() if _is_lone(path, shape, shapes)]
    if lone:
        more = f" and {len(lone) - 3} others" if len(lone) > 3 else ""
        warn_caller(
            f"stacked: {', '.join(map(repr, lone[:3]))}{more} may be stacks of matrices, as nn.scan and nnx.vmap make "
            "them, or kernels of one layer, which is assumed. Pass filter_axis=loss of lla.from_nnx(...), or "
            f"stacked={{{lone[0]!r}: 0}} if it is a stack, or stacked={{}} if there is none"
        )
    for path, shape in shapes.items():
        *parents, name = path.split("/")
        if name not in KERNELS or len(shape) < 3 or len(set(shape)) > 1 or parents[-1:] in [[head] for head in HEADS]:
            continue
        bias = next((p for p in ("/".join([*parents, b]) for b in BIASES) if shapes.get(p) == shape[1:]), None)
        if bias is not None and shape[0] > 1:
            warn_caller(
                f"stacked: {path!r} of shape {shape}, with a bias of shape {shape[1:]}, may be one layer or a stack of "
                f"{shape[0]}; one layer is assumed. Pass stacked={{{path!r}: 0, {bias!r}: 0}} if it is a stack, or "
                "stacked={} if it is none"
            )


def _is_lone(path: Path, shape: Axes, shapes: Mapping[Path, Axes]) -> bool:
    """Whether a leaf is a kernel of three axes whose name and neighbours do not tell what they are."""
    *parents, name = path.split("/")
    parent = parents[-1].lower() if parents else ""
    told = parent in (*HEADS, "out") or "conv" in parent or re.search(r"_\d+$", parent)
    has_bias = any("/".join([*parents, other]) in shapes for other in (*BIASES, *SCALES))
    square = len(shape) == 3 and shape[0] > 1 and shape[1] == shape[2]  # as the layers of a scan are
    return name == "kernel" and square and not told and not has_bias


def _group(path: Path, known: Mapping[Path, Axes], shapes: Mapping[Path, Axes]) -> dict[Path, Axes]:
    """The axes of all leaves of the largest subtree around a stacked leaf that has the same stack."""
    axes = known[path]
    sizes = [shapes[path][a] for a in axes]

    def fits(other: Path) -> bool:
        shape = shapes[other]
        rest = len(shape) - len(axes)
        same = max(axes) < len(shape) and [shape[a] for a in axes] == sizes
        if other in known:
            return same and len(known[other]) >= len(axes)
        return same and rest >= _least_axes(other)

    group, parents = [path], path.split("/")
    while parents:
        parents = parents[:-1]
        below = [other for other in shapes if other.split("/")[: len(parents)] == parents]
        if not all(map(fits, below)):
            break
        group = below
    has_kernel = any(shapes[other] and _least_axes(other) == 2 for other in group)
    if path.split("/")[-1] in SCALES and not has_kernel:
        return {}  # the scale of a norm over two axes
    return dict.fromkeys(group, axes)


def _least_axes(path: Path) -> int:
    """The smallest number of axes that a leaf of this name has in one layer."""
    name = path.split("/")[-1]
    if name in (*KERNELS, *EMBEDDINGS):
        return 2
    return 1 if name in (*BIASES, *SCALES) else 0


def _by_metadata(params: PyTree, shapes: Mapping[Path, Axes]) -> dict[Path, Axes]:
    """The stack axes that the names of axes tell, of Flax's boxes (linen's ``Partitioned``, nnx's variables)."""

    def axis_names(node: Any) -> Any:
        names = getattr(node, "names", None)
        if names is None and hasattr(node, "get_metadata"):
            metadata = node.get_metadata()
            names = next((metadata[name] for name in _SHARDINGS if metadata.get(name) is not None), None)
        return names if isinstance(names, tuple) or type(names).__name__ == "PartitionSpec" else None

    found: dict[Path, Axes] = {}
    for keys, node in jax.tree.leaves_with_path(params, is_leaf=lambda node: axis_names(node) is not None):
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        axes = tuple(a for a, name in enumerate(axis_names(node) or ()) if name in _STACK_NAMES)
        if axes and len(shapes.get(path, ())) - len(axes) >= _least_axes(path):
            found[path] = axes
    return found


def _by_layer(params: PyTree) -> dict[Path, Axes]:
    """The stack axes, perhaps none, of the arrays of Equinox layers, which know the number of their axes."""
    nn = sys.modules["equinox"].nn

    def expected(layer: Any) -> dict[str, int]:
        if isinstance(layer, nn.Conv | nn.ConvTranspose):
            return {"weight": layer.num_spatial_dims + 2, "bias": layer.num_spatial_dims + 1}
        if isinstance(layer, nn.LayerNorm | nn.RMSNorm):
            return {"weight": len(layer.shape), "bias": len(layer.shape)}
        if isinstance(layer, nn.GroupNorm | nn.BatchNorm):
            return {"weight": 1, "bias": 1}
        if isinstance(layer, nn.GRUCell | nn.LSTMCell):
            return {"weight_ih": 2, "weight_hh": 2, "bias": 1, "bias_n": 1}
        if isinstance(layer, nn.Linear | nn.Embedding):
            return {"weight": 2, "bias": 1}
        return {}

    found: dict[Path, Axes] = {}
    layers = jax.tree.leaves_with_path(params, is_leaf=lambda node: bool(expected(node)))
    for keys, layer in layers:
        for name, ndim in expected(layer).items():
            array = getattr(layer, name, None)
            if array is not None and hasattr(array, "ndim"):
                parent = jax.tree_util.keystr(keys, simple=True, separator="/")
                found[f"{parent}/{name}" if parent else name] = tuple(range(max(0, array.ndim - ndim)))
    return found


def _by_name(shapes: Mapping[Path, Axes]) -> dict[Path, Axes]:
    """The stack axes, perhaps none, of leaves whose names and neighbours tell them, as in Flax and Haiku trees."""
    found: dict[Path, Axes] = {}
    for path, shape in shapes.items():
        *parents, name = path.split("/")
        lifted = _lifted(parents)
        if path in found:
            continue
        if lifted == 1 and (root := _lifted_root(parents)):
            found |= _in_lifted(root, {p: n for p, n in shapes.items() if p.startswith(root + "/")})
        elif lifted and len(shape) - lifted >= max(1, _least_axes(path)):
            found[path] = tuple(range(lifted))
        elif name in KERNELS:
            found |= _with_bias(path, shapes)
        elif name in SCALES and sum(n != 1 for n in shape) > 1:
            found[path] = tuple(range(len(shape) - 1))
        elif name in EMBEDDINGS and parents and re.fullmatch(r"Embed_\d+", parents[-1]):
            found[path] = tuple(range(len(shape) - 2))
    return found


def _lifted_root(parents: Sequence[str]) -> Path:
    """The path of the module that Flax lifted; '' for none."""
    ends = [i + 1 for i, name in enumerate(parents) if _LIFTED.fullmatch(name)]
    return "/".join(parents[: ends[0]]) if ends else ""


def _in_lifted(root: Path, shapes: Mapping[Path, Axes]) -> dict[Path, Axes]:
    """The stack axes of the leaves of a module under one ``nn.scan`` or ``nn.vmap``: the same axis of all of them.

    ``variable_axes`` chooses the axis, mostly the first. All leaves have one length along it, and without it a bias is
    the end of its kernel.
    """
    stacked = {path: shape for path, shape in shapes.items() if len(shape) > max(1, _least_axes(path))}
    pairs = [
        (path, bias)
        for path in stacked
        for bias in ("/".join([*path.split("/")[:-1], name]) for name in BIASES)
        if path.split("/")[-1] in KERNELS and bias in stacked
    ]

    def layer(path: Path, axis: int) -> Axes:
        shape = stacked[path]
        return _without(shape, (axis % len(shape),))

    def fits(axis: int) -> bool:
        one_length = len({shape[axis] for shape in stacked.values()}) == 1
        return one_length and all(layer(k, axis)[-len(layer(b, axis)) :] == layer(b, axis) for k, b in pairs)

    def square(axis: int) -> bool:
        kernels = [layer(path, axis) for path in stacked if path.split("/")[-1] in KERNELS]
        return bool(kernels) and all(len(set(shape[-2:])) == 1 for shape in kernels)

    good = [axis for axis in (0, 1, -1) if fits(axis)] or [0]
    axis, others = good[0], good[1:]
    if (pairs and 1 in others) or (any(map(square, others)) and not square(axis)):
        warn_caller(
            f"stacked: the leaves of {root!r} may be stacked along their axis {axis} or {' or '.join(map(str, others))}"
            f"; {axis} is assumed. Pass stacked={{'{root}/**': AXIS}}, with the axis in variable_axes of nn.scan or "
            "nn.vmap"
        )
    return {path: (axis % len(shape),) for path, shape in stacked.items()}


def _lifted(parents: Sequence[str]) -> int:
    """The number of axes that names of modules tell, as Flax gives them to lifted modules and Haiku to layer stacks."""
    flax = [match[1] for match in map(_LIFTED.fullmatch, parents) if match]
    return sum(len(re.findall("Scan|Vmap", name)) for name in flax) + "/".join(parents).count("__layer_stack_")


def _with_bias(path: Path, shapes: Mapping[Path, Axes]) -> dict[Path, Axes]:
    """The stack axes of a kernel and of its bias; nothing if the kernel has no bias and its layer is not known."""
    *parents, _ = path.split("/")
    parent, kernel = parents[-1] if parents else "", shapes[path]
    outputs = 2 if parent in HEADS else 1
    biases = ["/".join([*parents, name]) for name in BIASES]
    bias_path = next((name for name in biases if name in shapes), None)
    if bias_path is None:
        extra = len(kernel) - (2 if re.fullmatch(r"Dense_\d+", parent) else len(kernel))
        return {path: tuple(range(extra))} if extra > 0 else {}
    bias = shapes[bias_path]
    extra = len(bias) - outputs
    if sum(n != 1 for n in bias) <= 1 or extra <= 0:
        return {path: (), bias_path: ()} if extra == 0 else {}
    if len(kernel) - extra < 2:
        return {}
    if outputs == 1 and kernel[-len(bias) :] == bias and not re.fullmatch(r"Dense_\d+", parent):
        return {}  # a bias of several axes, as that of a general linear layer
    candidates = [tuple(range(extra))] if extra > 1 else [(a,) for a in range(min(len(bias), len(kernel)))]
    for axes in candidates:
        rest, own = _without(kernel, axes), _without(bias, axes)
        ends = (rest[-len(own) :], rest[: len(own)]) if path.endswith("weight") else (rest[-len(own) :],)
        if [kernel[a] for a in axes] == [bias[a] for a in axes] and own in ends:
            return {path: axes, bias_path: axes}
    return {}


def _without(shape: Axes, axes: Axes) -> Axes:
    return tuple(n for a, n in enumerate(shape) if a not in axes)
