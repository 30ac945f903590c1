"""Does vector arithmetic on pytrees, checks and aligns them, and selects leaves by path.

A vector is a pytree of arrays; a stacked tree holds k vectors, one per entry of a leading axis of every leaf. The
arithmetic is jitted: it costs one compilation per structure, and works inside other jitted functions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import tree_util

from lla_jax.core.arguments import Misuse, MisusedLeaf, check_choice, misuse, show_value
from lla_jax.core.called import ask
from lla_jax.core.foreign import advise_params, library_of
from lla_jax.core.types import Path, PyTree, Select


def paths(tree: PyTree) -> list[Path]:
    """Names of the leaves, in leaf order: keys joined by "/", without the ".value" that nnx variables end in.

    Args:
      tree: any pytree; linen, nnx, Equinox, Haiku and plain containers alike.

    Returns:
      One string per leaf, such as ``"Conv_0/kernel"``; ``""`` for a tree that is a single leaf.
    """
    return [_name(keys) for keys, _ in jax.tree.leaves_with_path(tree)]


def _name(keys: tuple[Any, ...]) -> Path:
    if len(keys) > 1 and keys[-1] in (tree_util.GetAttrKey("value"), tree_util.GetAttrKey("raw_value")):
        keys = keys[:-1]
    return tree_util.keystr(keys, simple=True, separator="/")


def select_leaves(select: Select | None, tree: PyTree, name: str = "select") -> list[bool]:
    """Tell for every leaf whether a selection takes it.

    Args:
      select: None for all leaves; a glob over the whole path (``*`` and ``?`` stay within one level, ``**`` spans any
        number of levels, none included); a compiled regular expression, searched for in the path; a predicate
        ``(path, leaf) -> bool``; or a sequence, set or array of these, one of which must match. A glob that begins
        with the name of the collection, "params/", and matches no path, is taken without it: so are the names of whole
        variables.
      tree: the tree to select from.
      name: the argument's name, for the error.

    Returns:
      One bool per leaf, in leaf order.

    Raises:
      ValueError: nothing matches (the message lists all paths), or ``select`` is of another kind.
    """
    leaves = jax.tree.leaves(tree)
    if select is None:
        return [True] * len(leaves)
    select, names = _as_sequence(select), paths(tree)
    matches = _matcher(select, names, name)
    chosen = [matches(path, leaf) for path, leaf in zip(names, leaves, strict=True)]
    if not any(chosen):
        raise Misuse(name, _explain_no_match(select, names))
    return chosen


def _as_sequence(select: Any) -> Any:
    """Sets and arrays of paths as lists; any other selection as it is."""
    if isinstance(select, set | frozenset):
        return sorted(select, key=str)
    if isinstance(select, np.ndarray) and select.dtype.kind in "UO":
        return select.ravel().tolist()
    return select


def _explain_no_match(select: Any, names: Sequence[Path]) -> str:
    """The error's text for a selection that matches no leaf, with the one that was perhaps meant."""
    listed = f"the leaves are: {', '.join(names)}"
    if isinstance(select, Sequence) and not isinstance(select, str) and not select:
        frozen = "a network whose parameters are all frozen has no trainable ones: unfreeze some, or leave this out"
        return f"{show_value(select)} is empty and matches no leaf; {listed}; {frozen}"
    whole = isinstance(select, tuple | list) and all(isinstance(part, str) for part in select)
    text = "/".join(select) if whole else select if isinstance(select, str) else ""
    guesses = [text, f"{text}/**", f"**/{text}", f"**/{text}/**", text.replace(".", "/")]
    meant = next((g for g in guesses if text and g != select and any(map(_glob(g).search, names))), None)
    if meant is None and isinstance(select, str) and _compiles(select) and any(re.search(select, n) for n in names):
        return f"{select!r} matches no leaf; for a regular expression pass re.compile({select!r}); {listed}"
    shown = repr(select) if isinstance(select, str | tuple | list) else show_value(select)
    return f"{shown} matches no leaf; {listed}" + (f"; did you mean {meant!r}?" if meant else "")


def _compiles(pattern: str) -> bool:
    try:
        return bool(pattern) and re.compile(pattern) is not None
    except re.error:
        return False


def describe(select: Select, tree: PyTree, chosen: Sequence[bool]) -> dict[str, Any]:
    """The entry of a recipe that describes a selection: its text, for readers, and the paths it chose."""
    select = _as_sequence(select)
    parts = select if isinstance(select, Sequence) and not isinstance(select, str) else [select]
    text = ", ".join(p if isinstance(p, str) else getattr(p, "pattern", type(p).__name__) for p in parts)
    return {"text": text, "paths": [path for path, yes in zip(paths(tree), chosen, strict=True) if yes]}


_SELECTION = (
    'a glob such as "**/kernel", a compiled regular expression, a predicate (path, leaf) -> bool, or a sequence of '
    "these"
)


def _matcher(select: Select, names: Sequence[Path], name: str = "select") -> Callable[[Path, Any], bool]:
    if isinstance(select, str):
        whole = _glob(select)
        select = whole if any(map(whole.search, names)) else _glob(select.removeprefix("params/"))
    if isinstance(select, re.Pattern):
        if isinstance(select.pattern, bytes):
            raise misuse(name, select, "a regular expression of text, not of bytes: re.compile('...')")
        return lambda path, leaf: select.search(path) is not None
    if callable(select) and not isinstance(select, type):
        return lambda path, leaf: _says_yes(name, select, path, leaf)
    if isinstance(select, Sequence) and not isinstance(select, bytes):
        matchers = [_matcher(s, names, name) for s in select]
        return lambda path, leaf: any(match(path, leaf) for match in matchers)
    raise misuse(name, select, _SELECTION)


def _says_yes(name: str, predicate: Callable[[Path, Any], Any], path: Path, leaf: Any) -> bool:
    yes = ask(name, predicate, "predicate(path, leaf) -> bool", {"path": path, "leaf": leaf})
    if getattr(yes, "size", 1) != 1:
        rule = "it is called as predicate(path, leaf) -> bool: reduce it, such as by .any()"
        raise Misuse(name, f"returned an array of shape {np.shape(yes)} for {path!r}; {rule}")
    return bool(yes)


_WILDCARDS = {"**/": r"(?:[^/]+/)*", "/**": r"(?:/[^/]+)*", "**": r".*", "*": r"[^/]*", "?": r"[^/]"}


def _glob(pattern: str) -> re.Pattern[str]:
    pieces = re.split(r"(\*\*/|/\*\*$|\*\*|\*|\?)", pattern)
    return re.compile(r"\A" + "".join(_WILDCARDS.get(p) or re.escape(p) for p in pieces) + r"\Z")


def struct_of(x: Any, shape: tuple[int, ...] | None = None) -> jax.ShapeDtypeStruct:
    """The shape and type of an array, for tracing: the type that jax makes of it, in its 32-bit mode too.

    Args:
      x: an array of numpy or jax, or of keys.
      shape: in place of its own.
    """
    of_keys = jnp.issubdtype(x.dtype, jax.dtypes.extended)
    dtype = x.dtype if of_keys else jax.dtypes.canonicalize_dtype(x.dtype)
    return jax.ShapeDtypeStruct(x.shape if shape is None else shape, dtype)


def shape_dtype(leaf: Any) -> tuple[tuple[int, ...], np.dtype]:
    """The shape and the jax dtype of a leaf (an array or a Python number), which is not moved to a device."""
    return tuple(np.shape(leaf)), np.dtype(jax.dtypes.canonicalize_dtype(jnp.result_type(leaf)))


def is_traced(tree: PyTree) -> bool:
    """Whether a leaf is an array of a program that jax traces, which has no numbers yet."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


def check_real(tree: PyTree, name: str = "params", *, finite: bool = True) -> None:
    """Raise an error unless every leaf is real, floating and finite: the check of every tree of parameters.

    Args:
      tree: a pytree of arrays.
      name: the argument's name, for the error.
      finite: whether the entries must be finite; False looks at the types alone, and reads no array.

    Raises:
      ValueError: the tree is empty, or a leaf is not an array, not real floating, or not finite; it names the leaf, and
        says what to pass in place of an object of another library.
    """
    try:
        leaves = jax.tree.leaves_with_path(tree)
    except ValueError as error:
        if "sorting" not in str(error):
            raise
        text = "a dict in it has keys of several types, which jax cannot sort; make them strings"
        raise Misuse(name, text) from error
    if library_of(tree) in ("lla_jax", "lla_torch", "optax"):
        raise Misuse(name, f"{show_value(tree)} given; {advise_params(tree)}")
    if not leaves:
        advice = advise_params(tree) or "pass the tree of trained parameters, e.g. variables['params']"
        raise Misuse(name, f"has no array leaves; {advice}")
    for keys, leaf in leaves:
        if fault := _fault_of_type(leaf) or (_fault_of_values(leaf) if finite else None):
            text, remedy = fault
            text = f"{text}; {advise_params(tree) or remedy}"
            raise MisusedLeaf(name, f"[{_name(keys)!r}] {text}") if keys else Misuse(name, text)


def _fault_of_type(leaf: Any) -> tuple[str, str] | None:
    """(what is wrong with the type of a leaf of a tree of parameters, a remedy); None if it is real and floating."""
    if isinstance(leaf, jax.core.Tracer):
        return "is traced", "call this outside of jax.jit, jax.grad and jax.vmap, since values are read on the host"
    if isinstance(leaf, jax.Array) and leaf.is_deleted():
        return "was deleted", "its buffer was donated to a jitted function, such as a training step: pass a copy"
    if type(leaf).__module__.startswith("scipy.sparse"):
        return f"is {show_value(leaf)}", "pass its .toarray()"
    try:
        dtype = jnp.result_type(leaf)
    except (TypeError, ValueError):
        if isinstance(leaf, np.ndarray):
            return f"has dtype {leaf.dtype}, which jax does not know", "convert it, such as x.astype(np.float32)"
        filtered = "pass only trained arrays, e.g. eqx.filter(model, eqx.is_inexact_array)"
        return f"is {show_value(leaf)}, not an array", filtered
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return f"is {show_value(leaf)}, a shape without values", "pass trained arrays"
    if not jnp.issubdtype(dtype, jnp.floating):
        return (
            f"has dtype {dtype}; it must be real floating, as every leaf",
            "from an nnx model take nnx.state(model, nnx.Param), from variables variables['params']; keep other arrays "
            "in the loss's state, or split a complex parameter into its real and imaginary parts",
        )
    if isinstance(leaf, np.ma.MaskedArray) and np.ma.getmaskarray(leaf).any():
        remedy = "it must have no masked entries: fill them, such as x.filled(0)"
        return "is a masked array, whose mask would be lost", remedy
    return None


def _fault_of_values(leaf: Any) -> tuple[str, str] | None:
    """(what is wrong with the entries of a floating leaf, a remedy); None if they are finite."""
    array = np.asarray(leaf)
    bad = int(array.size - np.isfinite(array).sum())
    if bad:
        remedy = "all must be finite: find out where they come from, or replace them"
        return f"has {bad} NaN or infinite entries of {array.size}", remedy
    return _overflow_of(array, jnp.result_type(leaf))


def _overflow_of(array: np.ndarray, dtype: np.dtype) -> tuple[str, str] | None:
    """The fault of a float64 array whose entries are too large for float32, in which jax would keep them."""
    kept = np.dtype(jax.dtypes.canonicalize_dtype(dtype))
    if array.dtype == kept or not array.size:
        return None
    largest = float(abs(array).max())
    if largest <= float(jnp.finfo(kept).max):
        return None
    remedy = "scale them, or run jax with 64 bits (jax_enable_x64)"
    return f"has entries up to {largest:.3g}, too large for {kept}", remedy


def align(
    tree: PyTree, like: PyTree, name: str = "tree", like_name: str = "params", *, stacked: bool = False
) -> PyTree:
    """Put the leaves of ``tree`` into the structure of ``like``, matching them by path if the containers differ.

    Args:
      tree: leaves of the shapes of ``like``, or ``(k, *shape)`` with ``stacked``.
      like: the reference tree.
      name: the argument's name, for the error.
      like_name: the reference's name, for the error.
      stacked: whether ``tree`` has a leading axis k, the same for every leaf.

    Returns:
      A tree of the structure of ``like`` (``tree`` itself if the structures agree).

    Raises:
      ValueError: a leaf is missing, has no counterpart, or has another shape; the message names the leaf.
    """
    expected, given = paths(like), paths(tree)
    structure: Any = jax.tree.structure(like)
    if jax.tree.structure(tree) != structure:
        missing, extra = sorted(set(expected) - set(given)), sorted(set(given) - set(expected))
        hint = _structure_hint(expected, given)
        if missing or extra or len(given) != len(expected) or len(set(given)) != len(given):
            raise Misuse(
                name,
                f"has another structure than {like_name}: {name} lacks {missing} and has {extra} besides; pass a tree "
                f"with the leaves of {like_name}{hint}",
            )
        by_path = dict(zip(given, jax.tree.leaves(tree), strict=True))
        tree = jax.tree.unflatten(structure, [by_path[p] for p in expected])
    leaves = jax.tree.leaves(tree)
    lead = np.shape(leaves[0])[:1] if stacked and leaves else ()
    for path, leaf, ref in zip(expected, leaves, jax.tree.leaves(like), strict=True):
        if tuple(np.shape(leaf)) != (*lead, *np.shape(ref)) or (stacked and not lead):
            shape = f"(k, *{np.shape(ref)}), with one k for all leaves," if stacked else f"{np.shape(ref)},"
            raise MisusedLeaf(
                name,
                f"[{path!r}] has shape {np.shape(leaf)}; it must be {shape} as in {like_name}: "
                f"pass a tree whose leaves have the shapes of {like_name}{_shape_hint(leaf, ref, stacked)}",
            )
    return tree


def _shape_hint(leaf: Any, ref: Any, stacked: bool) -> str:
    if stacked and np.shape(leaf) == np.shape(ref):
        return "; a single tree becomes directions by lla.directions.given(tree)"
    return ""


def _structure_hint(expected: Sequence[Path], given: Sequence[Path]) -> str:
    """The end of the message about trees of another structure: the likely slip."""
    if any(path.startswith("params/") for path in {*expected} ^ {*given}):
        return "; did you mean variables['params']?"
    inner = {path.partition("/")[2] for path in given if path.partition("/")[0].isdigit()}
    if set(expected) & inner and inner <= set(expected):
        return "; a list of trees was given as one tree: pass them one by one, as in given(*trees)"
    if {path.partition("/")[2] for path in expected if path.partition("/")[0].isdigit()} == set(given):
        return "; a list of layers, given as a list of trees, is one tree with a name: given(step, names=['step'])"
    return ""


@jax.jit
def stack(trees: Sequence[PyTree]) -> PyTree:
    """Stack k trees of one structure along a new leading axis of every leaf."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


@jax.jit
def unstack(tree: PyTree) -> list[PyTree]:
    """Split a stacked tree into its k trees, the inverse of ``stack``."""
    num = jax.tree.leaves(tree)[0].shape[0]
    return [jax.tree.map(lambda leaf, i=i: leaf[i], tree) for i in range(num)]


def wide(dtype: Any) -> np.dtype:
    """The type in which numbers of a type are added up: float32 for floating types of less than 32 bits and integers.

    jax does not promote float8 by itself.
    """
    half = jnp.issubdtype(dtype, jnp.floating) and np.dtype(dtype).itemsize < 4
    return np.dtype(np.float32 if half else jnp.promote_types(dtype, jnp.float32))


def widen(x: Any) -> jax.Array:
    """``x`` as a jax array in float32 or wider, because a sum in half precision would be worthless."""
    return jnp.asarray(x, wide(jnp.result_type(x)))


@jax.jit
def dot(a: PyTree, b: PyTree) -> jax.Array:
    """Inner product sum_i a_i b_i over all leaves; a scalar, in float32 at least and at full matmul precision."""
    # multiply and sum, not vdot: an accelerator's matmul unit would round, and sharded leaves stay sharded
    return jnp.asarray(sum(jnp.sum(widen(x) * widen(y)) for x, y in _pairs(a, b)))


def _pairs(a: PyTree, b: PyTree) -> list[tuple[Any, Any]]:
    return list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@partial(jax.jit, static_argnames="order")
def norm(tree: PyTree, order: int = 2) -> jax.Array:
    """Norm over all leaves: sum |x| for order 1, sqrt(sum x^2) for order 2; a scalar, in float32 at least."""
    check_choice("order", order, (1, 2))
    if order == 1:
        return jnp.asarray(sum(jnp.sum(jnp.abs(widen(x))) for x in jax.tree.leaves(tree)))
    return jnp.sqrt(dot(tree, tree))


@jax.jit
def largest(tree: PyTree) -> jax.Array:
    """The largest magnitude of all entries, in the widest dtype of the leaves; NaN if there is one."""
    leaves = jax.tree.leaves(tree)
    return jnp.stack([jnp.abs(x).max(initial=0).astype(jnp.result_type(*leaves)) for x in leaves]).max()


@jax.jit
def axpy(alpha: Any, x: PyTree, y: PyTree) -> PyTree:
    """alpha x + y, leaf by leaf, in the dtype of y; ``alpha`` is a scalar."""
    return jax.tree.map(lambda a, b: (alpha * widen(a) + b).astype(jnp.result_type(b)), x, y)


@jax.jit
def orthonormalize(tree: PyTree) -> PyTree:
    """Orthonormalize k vectors in their order, by modified Gram-Schmidt done twice.

    For every j, the first j results span the same space as the first j vectors.

    Args:
      tree: k stacked vectors.

    Returns:
      A stacked tree of the same shapes. A vector in the span of its predecessors, up to rounding, becomes zero.
    """
    basis: list[PyTree] = []
    for vector in unstack(tree):
        start = norm(vector)
        for _ in range(2):  # one pass leaves an error of eps times the condition number, two suffice (Kahan)
            for q in basis:
                vector = axpy(-dot(q, vector), q, vector)
        size = norm(vector)
        keep = size > 100 * jnp.finfo(size.dtype).eps * start
        scale = jnp.where(keep, 1 / jnp.where(keep, size, 1), 0)
        basis.append(jax.tree.map(lambda x, s=scale: (widen(x) * s).astype(x.dtype), vector))
    return stack(basis)
