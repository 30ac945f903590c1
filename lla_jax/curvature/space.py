"""The space of an operator's vectors: their structure, how they are drawn and checked, and where they lie."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse, check_choice, misuse
from lla_jax.core.randomness import DRAWS, draw_flat
from lla_jax.core.types import PyTree
from lla_jax.execution import devices, sharding


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False, repr=False)
class Space:
    """The vectors of an operator, trees like the parameters. Only ``scale`` is traced: functions jitted with a space
    serve all spaces of the same shape.

    Args:
      treedef: of a vector; leaves that are not selected are None, and no leaves.
      shapes: shape and dtype of every leaf.
      shards: the sharding of every leaf, where the parameters are sharded over devices; None where they are not.
      scale: the diagonal S of S A S (a mask or a preconditioner), a tree like a vector; None for A itself. Random
        vectors are 0 where it is 0.
    """

    treedef: Any = field(metadata={"static": True})
    shapes: tuple[tuple[tuple[int, ...], Any], ...] = field(metadata={"static": True})
    shards: sharding.Shardings | None = field(default=None, metadata={"static": True})
    scale: PyTree = None

    def __repr__(self) -> str:
        return f"Space({self.size:,} entries in {len(self.shapes)} leaves)"

    @property
    def structure(self) -> PyTree:
        """A vector's tree of ``jax.ShapeDtypeStruct``; leaves that are not selected are None."""
        return self.tree([jax.ShapeDtypeStruct(s, d) for s, d in self.shapes])

    @property
    def size(self) -> int:
        """The number of entries of a vector, masked ones included."""
        return sum(int(np.prod(s)) for s, _ in self.shapes)

    @property
    def dim(self) -> int:
        """The number of entries that are not masked (counted outside of jit)."""
        if self.scale is None:
            return self.size
        return sum(int(np.count_nonzero(np.asarray(x))) for x in jax.tree.leaves(self.scale))

    @property
    def dtype(self) -> np.dtype:
        """The widest dtype of a vector's leaves."""
        return np.dtype(jnp.result_type(*(d for _, d in self.shapes)))

    @property
    def nbytes(self) -> int:
        """Bytes of one vector; if it is sharded, on one device."""
        shapes = [s for s, _ in self.shapes]
        if self.shards is not None:
            shapes = sharding.shard_shapes(shapes, self.shards)
        return sum(int(np.prod(s)) * np.dtype(d).itemsize for s, (_, d) in zip(shapes, self.shapes, strict=True))

    def tree(self, leaves: Any) -> PyTree:
        """A vector, or stacked vectors, with these leaves."""
        return jax.tree.unflatten(self.treedef, leaves)

    def check(self, v: PyTree, name: str = "v", *, stacked: bool = False) -> PyTree:
        """Return the vector, or stacked vectors (k, ...), if it is a tree of floating arrays of the space's shapes.

        Raises:
          ValueError: it is not; the message names the leaf.
        """
        leaves, treedef = jax.tree.flatten(v)
        if jax.tree_util.treedef_is_leaf(treedef) and treedef != self.treedef and np.ndim(v):
            raise misuse(name, v, "a tree like H.structure; H @ v takes flat vectors and matrices too")
        lead = np.shape(leaves[0])[:1] if stacked and leaves else ()
        shapes = [(*lead, *s) for s, _ in self.shapes]
        if treedef != self.treedef or [np.shape(x) for x in leaves] != shapes or (stacked and not lead):
            v = _tree.align(v, self.structure, name, "the operator's vectors", stacked=stacked)
        if not all(jnp.issubdtype(jnp.result_type(x), jnp.floating) for x in leaves):
            text = "has entries that are not floating; it must be a tree like the operator's structure"
            raise Misuse(name, f"{text}: cast it to float")
        return v if all(isinstance(x, jax.Array) for x in leaves) else jax.tree.map(jnp.asarray, v)

    def random(self, key: jax.Array, distribution: str = "rademacher") -> PyTree:
        """A vector of independent entries of variance 1: signs ("rademacher") or Gaussians ("normal").

        All entries are one flat draw; for parameters that are sharded over devices, each leaf is a draw. Masked entries
        are 0. Pure.
        """
        check_choice("distribution", distribution, tuple(DRAWS))
        shapes = [s for s, _ in self.shapes]
        if self.shards is not None:  # a piece of a flat draw would have to be brought to where its leaf is
            draw = DRAWS[distribution]
            pieces = [draw(jax.random.fold_in(key, i), s, dtype=jnp.float32) for i, s in enumerate(shapes)]
        else:
            sizes = [int(np.prod(s)) for s in shapes]
            pieces = jnp.split(draw_flat(key, sum(sizes), distribution), np.cumsum(sizes)[:-1])
        leaves = [piece.reshape(s).astype(d) for piece, (s, d) in zip(pieces, self.shapes, strict=True)]
        vector = self.pin(self.tree(leaves))
        if self.scale is None:
            return vector
        return jax.tree.map(lambda x, s: jnp.where(s != 0, x, 0), vector, self.scale)

    def pin(self, tree: PyTree) -> PyTree:
        """Tell the compiler, within jit, to shard vectors (or stacked ones) like the parameters; returns them."""
        return sharding.constrain(tree, self.shards)

    def place(self, tree: PyTree, mesh: Mesh | None) -> PyTree:
        """Put vectors on devices: sharded like the parameters, else whole on every device of the mesh, if any."""
        if self.shards is not None:
            return sharding.place(tree, self.shards)
        return tree if mesh is None else devices.replicate(tree, mesh)

    def wait_for(self, tree: PyTree) -> PyTree:
        """Wait until the vectors are computed, if CPU devices hold their shards; returns the vectors.

        Two programs there that both talk from device to device may wait for each other forever.
        """
        return tree if self.shards is None else sharding.wait_on_cpu(tree)


@partial(jax.jit, static_argnames="distribution")
def draw(space: Space, key: jax.Array, numbers: Any, *, distribution: str) -> PyTree:
    """The random vectors with these numbers ``(k,)``, stacked; each is drawn from the key folded with its number."""
    return space.pin(jax.vmap(lambda number: space.random(jax.random.fold_in(key, number), distribution))(numbers))


@partial(jax.jit, static_argnames="distribution")
def draw_one(space: Space, key: jax.Array, number: Any, *, distribution: str) -> PyTree:
    """The random vector with this number, the same as in ``draw``. Pure."""
    return space.random(jax.random.fold_in(key, number), distribution)


def vector_at(stacked: PyTree, i: Any) -> PyTree:
    """Vector i of stacked vectors. Pure; ``take`` is the same, jitted."""
    return jax.tree.map(lambda q: jax.lax.dynamic_index_in_dim(q, i, 0, keepdims=False), stacked)


take = jax.jit(vector_at)


@partial(jax.jit, static_argnames="leading")
def zeros(space: Space, *, leading: tuple[int, ...] = ()) -> PyTree:
    """A vector of zeros, or with leading axes stacked vectors. Pure."""
    return space.pin(jax.tree.map(lambda x: jnp.zeros((*leading, *x.shape), x.dtype), space.structure))


@jax.jit
def stack(space: Space, vectors: list[PyTree]) -> PyTree:
    """A list of k vectors as stacked vectors (k, ...). Pure."""
    return space.pin(jax.tree.map(lambda *leaves: jnp.stack(leaves), *vectors))


@partial(jax.jit, donate_argnums=1)
def lift(space: Space, vector: PyTree) -> PyTree:
    """A vector as stacked vectors (1, ...), in its memory: do not use it any more."""
    return space.pin(jax.tree.map(lambda x: x[None], vector))
