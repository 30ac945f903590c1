"""The two kinds of symmetric operators: over data in memory, a pytree; over streams, driven from the host."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax import products
from lla_jax._types import PyTree
from lla_jax.products import How


class Space:
    """What both kinds of operator say of the space they act on."""

    how: How
    scale: PyTree

    @property
    def structure(self) -> PyTree:
        """A vector's tree of ``jax.ShapeDtypeStruct``; leaves that are not selected are None."""
        return jax.tree_util.tree_unflatten(
            self.how.structure, [jax.ShapeDtypeStruct(s, d) for s, d in self.how.shapes]
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n), the number of parameters it acts on."""
        if self.scale is None:
            size = sum(int(np.prod(s)) for s, _ in self.how.shapes)
        else:
            size = sum(int(np.count_nonzero(np.asarray(x))) for x in jax.tree_util.tree_leaves(self.scale))
        return size, size

    @property
    def dtype(self) -> np.dtype:
        """The widest dtype of a vector's leaves."""
        return np.dtype(jnp.result_type(*(d for _, d in self.how.shapes)))

    @property
    def on_device(self) -> bool:
        """Whether a loop of products runs well inside one compiled program, and several vectors at once as a batch."""
        return self.how.on_device

    @property
    def is_given(self) -> bool:
        """Whether the product is a user's, so that its symmetry is to be checked."""
        return self.how.matrix is None

    def random(self, key: jax.Array, distribution: str = "rademacher") -> PyTree:
        """A vector of independent entries of variance 1: signs ("rademacher") or Gaussians ("normal"); one flat draw.

        Pure; zero where the operator is masked.
        """
        draw = {"rademacher": jax.random.rademacher, "normal": jax.random.normal}[distribution]
        sizes = [int(np.prod(s)) for s, _ in self.how.shapes]
        flat = draw(key, (sum(sizes),), dtype=jnp.float32)
        pieces = jnp.split(flat, np.cumsum(sizes)[:-1])
        leaves = [piece.reshape(s).astype(d) for piece, (s, d) in zip(pieces, self.how.shapes, strict=True)]
        vector = jax.tree_util.tree_unflatten(self.how.structure, leaves)
        if self.scale is None:
            return vector
        return jax.tree_util.tree_map(lambda x, s: jnp.where(s != 0, x, 0), vector, self.scale)

    def embed(self, vectors: PyTree) -> PyTree:
        """Stacked vectors ``(k, ...)`` as stacked parameter trees: zero in leaves that are not selected."""
        if self.how.matrix is None:
            return vectors
        moving = iter(jax.tree_util.tree_leaves(vectors))
        num = jax.tree_util.tree_leaves(vectors)[0].shape[0]
        leaves, structure = jax.tree_util.tree_flatten(self.centre())
        chosen = self.how.matrix.chosen
        full = [
            next(moving).astype(x.dtype) if yes else jnp.zeros((num, *x.shape), x.dtype)
            for x, yes in zip(leaves, chosen, strict=True)
        ]
        return jax.tree_util.tree_unflatten(structure, full)

    def centre(self) -> PyTree:
        """The parameters at which the curvature is taken."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False, repr=False)
class LinearOperator(Space):
    """A symmetric operator over data in memory; a pytree, to be passed to jitted functions.

    Made by ``hessian``, ``ggn``, ``fisher`` and ``given``. ``mv`` is pure; ``product`` is the same from the host, the
    fastest way on this machine. Vectors are trees like the parameters (``structure``), in float32 at least.

    Args:
      how: the static part.
      common: what all blocks share.
      blocks: of rows, or of linear maps whose primal values are kept.
      scale: S of S A S, a mask or a preconditioner; None for A.
      recipe: matrix, selection, data, plan; JSON-able. Lost under a transformation.
    """

    how: How
    common: Any
    blocks: tuple[Any, ...]
    scale: PyTree = None
    recipe: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        plan = self.recipe.get("plan", {})
        said = f", {plan['text']}" if "text" in plan else ""
        return f"LinearOperator({self.recipe.get('kind', 'given')}, {self.shape[0]:,} x {self.shape[0]:,}{said})"

    def mv(self, v: PyTree) -> PyTree:
        """The product A v: a tree like ``v``. Pure and jit-able."""
        total = None
        for block in self.blocks:
            total = products.add(self.how, self.common, self.scale, block, v, total)
        return products.finish(self.how, self.common, self.scale, v, total)

    def product(self, v: PyTree) -> PyTree:
        """The product A v from the host: one compiled step, called for every block."""
        total = None
        if self.how.matrix is None:
            return _product(self, v)
        for block in self.blocks:
            total = products.add_step(self.common, self.scale, block, v, total, how=self.how)
        return products.finish_step(self.common, self.scale, v, total, how=self.how)

    def centre(self) -> PyTree:
        return self.common.params


jax.tree_util.register_pytree_node(
    LinearOperator,
    lambda op: ((op.common, op.blocks, op.scale), op.how),
    lambda how, children: LinearOperator(how, *children),
)


@dataclass(frozen=True, eq=False, repr=False)
class HostOperator(Space):
    """A symmetric operator over a stream, or of a product that jax cannot trace: ``mv`` runs on the host.

    Args:
      how: the static part.
      call: ``call(v) -> A v`` without the scale.
      params: the parameters, or the like of a vector.
      scale: as for ``LinearOperator``.
      recipe: as for ``LinearOperator``.
    """

    how: How
    call: Callable[[PyTree], PyTree]
    params: PyTree
    scale: PyTree = None
    recipe: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"HostOperator({self.recipe.get('kind', 'given')}, {self.shape[0]:,} x {self.shape[0]:,})"

    def mv(self, v: PyTree) -> PyTree:
        """The product A v: a tree like ``v``. Reads the stream once."""
        if self.scale is None:
            return self.call(v)
        return products.times(self.scale, self.call(products.times(self.scale, v)))

    def product(self, v: PyTree) -> PyTree:
        """The same as ``mv``."""
        return self.mv(v)

    def centre(self) -> PyTree:
        return self.params


_product = jax.jit(lambda operator, v: operator.mv(v))
