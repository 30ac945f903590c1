"""The two kinds of symmetric operators: over data in memory, a pytree; over streams or processes, run on the host."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import recipes
from lla_jax.core import tree as _tree
from lla_jax.core.types import PyTree, Recipe
from lla_jax.curvature import products
from lla_jax.curvature.products import How
from lla_jax.execution import devices, processes, sharding

Around = Callable[[PyTree, Recipe], Any]
"""``around(params, recipe)``: an operator over the same data, without its scale, around parameters that lie where the
old ones do."""


class Space(abc.ABC):
    """What both kinds of operator say of the space they act on."""

    how: How
    scale: PyTree
    recipe: Recipe
    around: Around | None
    together: bool = False

    def __repr__(self) -> str:
        matrix = self.how.matrix
        kind = self.recipe.get("kind") or (matrix.kind if matrix is not None else "given")
        plan = self.recipe.get("plan", {})
        text = f", {plan['text']}" if "text" in plan else ""
        traced = any(isinstance(s, jax.core.Tracer) for s in jax.tree_util.tree_leaves(self.scale))
        size = "masked" if traced else f"{self.shape[0]:,} x {self.shape[0]:,}"
        return f"{type(self).__name__}({kind}, {size}{text})"

    @property
    def structure(self) -> PyTree:
        """A vector's tree of ``jax.ShapeDtypeStruct``; leaves that are not selected are None."""
        return jax.tree_util.tree_unflatten(
            self.how.structure, [jax.ShapeDtypeStruct(s, d) for s, d in self.how.shapes]
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n), the number of parameters it acts on: entries that are not masked (counted outside of jit)."""
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

    def _vector(self, v: PyTree) -> PyTree:
        """``v``, checked: a tree of floating arrays of the shapes in ``structure``."""
        leaves, structure = jax.tree_util.tree_flatten(v)
        shapes = [s for s, _ in self.how.shapes]
        if structure != self.how.structure or [np.shape(x) for x in leaves] != shapes:
            v = _tree.align(v, self.structure, "v", "the operator's vectors")
        if not all(jnp.issubdtype(jnp.result_type(x), jnp.floating) for x in leaves):
            raise ValueError("v: has entries that are not floating; the rule is a tree like the operator's structure")
        return v

    def random(self, key: jax.Array, distribution: str = "rademacher") -> PyTree:
        """A vector of independent entries of variance 1: signs ("rademacher") or Gaussians ("normal").

        One flat draw; for parameters that are spread over devices, one for each leaf. Pure; zero where the operator is
        masked.
        """
        if distribution not in ("rademacher", "normal"):
            raise ValueError(f'distribution: {distribution!r} given; the rule is "rademacher" or "normal"')
        draw = jax.random.rademacher if distribution == "rademacher" else jax.random.normal
        shapes = [s for s, _ in self.how.shapes]
        if self.how.shards is not None:  # a piece of a flat draw would have to be brought to where its leaf is
            pieces = [draw(jax.random.fold_in(key, i), s, dtype=jnp.float32) for i, s in enumerate(shapes)]
        else:
            sizes = [int(np.prod(s)) for s in shapes]
            pieces = jnp.split(draw(key, (sum(sizes),), dtype=jnp.float32), np.cumsum(sizes)[:-1])
        leaves = [piece.reshape(s).astype(d) for piece, (s, d) in zip(pieces, self.how.shapes, strict=True)]
        vector = sharding.pinned(jax.tree_util.tree_unflatten(self.how.structure, leaves), self.how.shards)
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
            next(moving).astype(x.dtype) if yes else sharding.zeros(num, x, self.how.shards)
            for x, yes in zip(leaves, chosen, strict=True)
        ]
        return jax.tree_util.tree_unflatten(structure, full)

    @property
    def space(self) -> LinearOperator:
        """The vectors' space, without what acts on it: one program draws for all operators of a shape."""
        how = self.how._replace(matrix=None, product=None, mesh=None, on_device=True)
        return LinearOperator(how, None, (), self.scale)

    def placed(self, tree: PyTree) -> PyTree:
        """The tree on the operator's devices: arrays here and there would compile the same program twice."""
        if self.how.shards is not None:
            return sharding.placed(tree, self.how.shards)
        return tree if self.how.mesh is None else devices.replicate(tree, self.how.mesh)

    @property
    def vector_bytes(self) -> int:
        """Bytes of one vector; of those that are spread, the share of one device."""
        shapes = [s for s, _ in self.how.shapes]
        if self.how.shards is not None:
            shapes = sharding.shapes(shapes, self.how.shards)
        return sum(int(np.prod(s)) * np.dtype(d).itemsize for s, (_, d) in zip(shapes, self.how.shapes, strict=True))

    def memory(self) -> tuple[int, int]:
        """(bytes of one vector, bytes free on its device)."""
        device = jax.local_devices()[0] if self.how.mesh is None else self.how.mesh.devices.flat[0]
        free = devices.free_bytes(device)
        return self.vector_bytes, processes.least(free) if self.together else free

    def settled(self, tree: PyTree) -> PyTree:
        """The tree, once it is there where devices are cores that hold shards: there two programs that both talk from
        device to device may wait for each other forever."""
        return tree if self.how.shards is None else sharding.settled(tree)

    @abc.abstractmethod
    def centre(self) -> PyTree:
        """The parameters at which the curvature is taken."""

    def at(self, params: PyTree) -> Any:
        """The same operator around other parameters.

            H = lla.hessian(loss, params, data);   H.at(others) v = (grad^2 L)(others) v

        The data stay where they are on the devices, and nothing is compiled anew. What was decided for this operator
        holds for the other one too: its matrix, blocks and selection, and whether primal values are kept; if they are,
        those at ``params`` are computed now. Delete this operator, if its own are no longer needed. So does a mask, and
        a preconditioner: it is made of moments, not of parameters. For other moments take the plain operator,
        ``lla.operators.preconditioned(H.at(params), moments)``. Called on the host, by all processes that share the
        operator.

        Args:
          params: a tree like the operator's parameters: the same structure, shapes and dtypes. It is put on the devices
            where those are.

        Returns:
          An operator of the same kind. Its recipe says at which parameters it is, and is the same otherwise.

        Raises:
          ValueError: parameters of another structure, shape or dtype, or not finite, or other ones in another process;
            an operator of ``operators.given``, which has no parameters, or one that jax has transformed.
        """
        if self.around is None:
            raise ValueError(
                f"H: {self!r} is a product of your own and has no parameters; the rule is an operator of lla.hessian, "
                "lla.ggn or lla.fisher. Make another one with lla.operators.given"
                if self.is_given
                else f"H: {self!r} came out of a transformation of jax, which keeps no more than products need; the "
                "rule is an operator as lla.hessian, lla.ggn or lla.fisher gave it"
            )
        params = self._like_centre(params)
        recipe = self.recipe | {"params": describe_params(params)}
        if self.together:
            processes.agree(params=str(recipe["params"]))
        return replace(self.around(params, recipe), scale=self.scale)

    def _like_centre(self, params: PyTree) -> PyTree:
        """The parameters, checked, where those of the operator are."""
        _tree.check_real(sharding.viewed(params))
        centre = self.centre()
        params = _tree.align(params, centre, "params", "the operator's parameters")
        pairs = zip(*map(jax.tree_util.tree_leaves, (params, centre)), strict=True)
        for path, (new, old) in zip(_tree.paths(centre), pairs, strict=True):
            if (dtype := _tree.shape_dtype(new)[1]) != old.dtype:
                raise ValueError(
                    f"params[{path!r}] has dtype {dtype}, and the operator's parameters {old.dtype}; the rule is the "
                    "same dtypes. Cast it, or make another operator"
                )

        def place(new: Any, old: jax.Array) -> jax.Array:
            new = new.astype(old.dtype) if isinstance(new, jax.Array) else np.asarray(new, old.dtype)
            return jax.device_put(new, old.sharding)

        return jax.tree_util.tree_map(place, params, centre)


def describe_params(params: PyTree) -> Recipe:
    """Parameters as an operator's recipe holds them."""
    size = sum(x.size for x in jax.tree_util.tree_leaves(params))
    return {"fingerprint": recipes.fingerprint(sharding.viewed(params)), "size": size}


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
      around: makes the operator around other parameters, see ``at``. Lost under a transformation.
    """

    how: How
    common: Any
    blocks: tuple[Any, ...]
    scale: PyTree = None
    recipe: Recipe = field(default_factory=dict)
    around: Around | None = None

    def mv(self, v: PyTree) -> PyTree:
        """The product A v: a tree like ``v``. Pure and jit-able."""
        v = self._vector(v)
        each = (products.sums(self.how, self.common, self.scale, block, v) for block in self.blocks)
        return products.finish(self.how, self.common, self.scale, v, functools.reduce(products.plus, each))

    def product(self, v: PyTree) -> PyTree:
        """The product A v from the host: one compiled step, called for every block."""
        v = self._vector(v)
        if len(self.blocks) == 1 and (self.how.mesh is None or self.how.mesh.size == 1):
            return self.settled(_product(self, v))
        total = products.gathered(self.how, products.total(self.how, self.common, self.scale, self.blocks, v))
        return self.settled(products.finish_step(self.common, self.scale, v, total, how=self.how))

    def centre(self) -> PyTree:
        return self.common.params


jax.tree_util.register_pytree_node(
    LinearOperator,
    lambda op: ((op.common, op.blocks, op.scale), op.how),
    lambda how, children: LinearOperator(how, *children),
)


@dataclass(frozen=True, eq=False, repr=False)
class HostOperator(Space):
    """A symmetric operator over a stream or several processes, or of a product that jax cannot trace: ``mv`` runs on
    the host.

    Args:
      how: the static part.
      call: ``call(v) -> A v`` without the scale.
      params: the parameters, or the like of a vector.
      scale: as for ``LinearOperator``.
      recipe: as for ``LinearOperator``.
      around: as for ``LinearOperator``.
      together: whether all processes of the group take part in every product.
    """

    how: How
    call: Callable[[PyTree], PyTree]
    params: PyTree
    scale: PyTree = None
    recipe: Recipe = field(default_factory=dict)
    around: Around | None = None
    together: bool = False

    def mv(self, v: PyTree) -> PyTree:
        """The product A v: a tree like ``v``. Reads the stream once; of several processes, waits for all."""
        v = self._vector(v)
        if self.scale is None:
            return self.call(v)
        return products.times(self.scale, self.call(products.times(self.scale, v)))

    def product(self, v: PyTree) -> PyTree:
        """The same as ``mv``."""
        return self.mv(v)

    def centre(self) -> PyTree:
        return self.params


_product = jax.jit(lambda operator, v: operator.mv(v))

NUMBER = 2**31  # of the key that the check takes

ASYMMETRY = 1e-2  # relative; products in half precision stay below, mistakes (another batch, one-sided scales) do not


def check_symmetric(H: LinearOperator | HostOperator, key: jax.Array) -> int:
    """Check u'(A v) = v'(A u) for two random vectors, up to 1e-2 (|A u| + |A v|).

    The two sides differ by about |A - A'|_F, and either product has the norm |A|_F or so, whatever the size: a part of
    the operator that is not symmetric is found if it makes up more than a percent.

    Args:
      H: any operator; those of ``hessian``, ``ggn`` and ``fisher`` are symmetric by construction.
      key: draws the vectors.

    Returns:
      The products used: 2.

    Raises:
      ValueError: it is not symmetric; a product has another structure than its vector, or is not finite.
    """
    u, v = _pair(H.space, key)
    of_u, of_v = (_tree.align(H.product(x), H.structure, "A v", "its vector v") for x in (u, v))
    one, two, *sizes = (float(x) for x in _compared(u, v, of_u, of_v))
    for number, size in enumerate(sizes):
        if not np.isfinite(size):
            raise ValueError(f"H: product {number + 1} is not finite, of a finite vector; the rule is finite products")
    if abs(one - two) > ASYMMETRY * sum(sizes):
        raise ValueError(
            f"H: u'(A v) = {one:.6g} and v'(A u) = {two:.6g} for two random vectors, so it is not symmetric (or "
            "changes from product to product); the rule is A = A'. For a matrix pass (A + A') / 2; scale both sides as "
            "lla.operators.preconditioned does"
        )
    return 2


def check_operator(H: Any) -> None:
    """Raise a ValueError where ``H`` is no operator."""
    if not isinstance(H, Space):
        raise ValueError(
            f"H: got {type(H).__name__}; the rule is an operator: lla.hessian(loss, params, data), or "
            "lla.operators.given(product, like) for one of your own"
        )


def check_given(H: LinearOperator | HostOperator, key: jax.Array) -> int:
    """``check_symmetric`` for a user's product; the products used, 0 for all others."""
    return check_symmetric(H, jax.random.fold_in(key, NUMBER)) if H.is_given else 0


@jax.jit
def _pair(space: LinearOperator, key: jax.Array) -> list[PyTree]:
    return [space.random(jax.random.fold_in(key, number), "normal") for number in range(2)]


@jax.jit
def _compared(u: PyTree, v: PyTree, of_u: PyTree, of_v: PyTree) -> list[jax.Array]:
    return [_tree.dot(u, of_v), _tree.dot(v, of_u), _tree.norm(of_u), _tree.norm(of_v)]
