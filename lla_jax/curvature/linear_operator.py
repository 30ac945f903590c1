"""The two kinds of symmetric operators: a pytree over data in memory, and one whose products the host computes."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import interrupts, memory, recipes
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse, misuse, single_key
from lla_jax.core.copies import own
from lla_jax.core.interrupts import deferred_interrupts
from lla_jax.core.signatures import explained
from lla_jax.core.types import Loss, PyTree, Recipe
from lla_jax.curvature import products
from lla_jax.curvature.algebra import Algebra
from lla_jax.curvature.products import Multiplier
from lla_jax.curvature.space import Space, lift, stack, take
from lla_jax.execution import devices, processes, sharding

Rebuild = Callable[[PyTree, Recipe], Any]
"""``rebuild(params, recipe)`` makes an operator over the same data at other parameters, without a scale. The parameters
must lie on the devices of the old ones."""


@explained
class Operator(Algebra, abc.ABC):
    """The base of ``LinearOperator`` and ``HostOperator``: a symmetric operator, or S A S with a scale S."""

    multiplier: Multiplier
    space: Space
    recipe: Recipe
    rebuild: Rebuild | None
    together: bool = False

    def __repr__(self) -> str:
        matrix = self.multiplier.matrix
        kind = self.recipe.get("kind") or (matrix.kind if matrix is not None else "given")
        plan = self.recipe.get("plan", {})
        text = f", {plan['text']}" if "text" in plan else ""
        size = "masked" if _tree.is_traced(self.scale) else f"{self.shape[0]:,} x {self.shape[0]:,}"
        return f"{type(self).__name__}({kind}, {size}{text})"

    def __call__(self, v: Any) -> Any:
        """The product A v, as ``H @ v``.

        Args:
          v: a vector: a tree like ``structure``, a flat array, or a matrix of such columns.
        """
        return self @ v

    @property
    def structure(self) -> PyTree:
        """A vector's tree of ``jax.ShapeDtypeStruct``; leaves that are not selected are None."""
        return self.space.structure

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n): n is the number of entries that are not masked. A mask can be counted outside of jit only."""
        n = self.space.dim
        return n, n

    @property
    def dtype(self) -> np.dtype:
        """The widest dtype of a vector's leaves."""
        return self.space.dtype

    @property
    def scale(self) -> PyTree:
        """The diagonal S of S A S (a mask or a preconditioner), a tree like a vector; None for A itself."""
        return self.space.scale

    @property
    def on_device(self) -> bool:
        """Whether several products run well inside one compiled program: one after another in a loop, or as a batch."""
        return self.multiplier.on_device

    @property
    def is_given(self) -> bool:
        """Whether the product is a user's, so that its symmetry is to be checked."""
        return self.multiplier.matrix is None

    @property
    def leaf_mask(self) -> tuple[bool, ...]:
        """For every leaf of the parameters, whether a vector has it."""
        matrix = self.multiplier.matrix
        return (True,) * len(self.space.shapes) if matrix is None else matrix.leaf_mask

    def random(self, key: jax.Array, distribution: str = "rademacher") -> PyTree:
        """A vector of independent entries of variance 1: signs ("rademacher") or Gaussians ("normal").

        All entries are one flat draw; for parameters that are sharded over devices, each leaf is a draw. Masked entries
        are 0. Pure.
        """
        return self.space.random(single_key(key), distribution)

    @abc.abstractmethod
    def mv(self, v: PyTree) -> PyTree:
        """The product A v: a tree like ``v``."""

    @abc.abstractmethod
    def product_and_loss(self, v: PyTree) -> tuple[PyTree, Any]:
        """(the product A v, the mean loss over all rows), of one pass over the data.

        The loss, penalty included, is None for a Fisher matrix and for a product of the user's.
        """

    def product(self, v: PyTree) -> PyTree:
        """The product A v, a tree like ``v``, computed from the host in the fastest way; ``mv`` gives the same."""
        self._give_back()
        return self.product_and_loss(v)[0]

    def products(self, stacked: PyTree) -> PyTree:
        """The products A v with several vectors, computed from the host.

        An operator that runs on the device computes all of them in one program: at once on an accelerator, one after
        another on a CPU, where the tangents of eight networks spill the caches (up to four times slower, except for the
        smallest networks). If memory runs out, it takes them in halves. Other operators compute one after another.

        Args:
          stacked: vectors, a tree whose leaves have a leading axis k.

        Returns:
          The stacked products, a tree like ``stacked``.

        Raises:
          ValueError: vectors of another structure or shape, or none at all.
        """
        stacked = self.space.check(stacked, "stacked", stacked=True)
        num = len(jax.tree.leaves(stacked)[0])
        if not num:
            raise Misuse("stacked", "has a leading axis of 0; it must hold at least one vector: pass some")
        if not self.on_device:
            each = []
            with deferred_interrupts() as check:
                for i in range(num):
                    check()
                    each.append(interrupts.wait(self.product(take(stacked, np.int32(i)))))
            return stack(self.space, each) if num > 1 else interrupts.wait(lift(self.space, each.pop()))

        self._give_back()

        def compute(lo: int, hi: int) -> PyTree:
            some = stacked if hi - lo == num else jax.tree.map(lambda x: x[lo:hi], stacked)
            return interrupts.wait(products_step(self, some))

        pieces = halve(compute, 0, num)
        return pieces[0] if len(pieces) == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *pieces)

    def _give_back(self) -> None:
        """Before a large product on a CPU: give back what the allocator keeps of the last one."""
        if devices.on_cpu(self.multiplier.mesh) and self.space.nbytes > memory.KEPT:
            memory.give_back()

    def embed(self, vectors: PyTree) -> PyTree:
        """Stacked vectors ``(k, ...)`` as stacked trees like the parameters, in their dtypes.

        Leaves that are not selected are 0. Vectors of a given operator are returned as they are.
        """
        if self.is_given:
            return vectors
        moving = iter(jax.tree.leaves(vectors))
        num = jax.tree.leaves(vectors)[0].shape[0]
        leaves, structure = jax.tree.flatten(self.centre())
        full = [
            next(moving).astype(x.dtype) if yes else sharding.zeros(num, x, self.space.shards)
            for x, yes in zip(leaves, self.leaf_mask, strict=True)
        ]
        return jax.tree.unflatten(structure, full)

    def place(self, tree: PyTree) -> PyTree:
        """Put vectors on the operator's devices: arrays on others would compile the same program twice."""
        return self.space.place(tree, self.multiplier.mesh)

    def memory(self) -> tuple[int, int]:
        """(bytes of one vector on a device, bytes free there); the least free of all processes that take part.

        CPU devices share their memory: there it is the bytes of the copies that all of them hold.
        """
        mesh = self.multiplier.mesh
        device = jax.local_devices()[0] if mesh is None else mesh.devices.flat[0]
        free, shared = devices.free_bytes(device), device.platform == "cpu" and self.space.shards is None
        copies = mesh.size if mesh is not None and shared else 1
        return copies * self.space.nbytes, processes.minimum(free) if self.together else free

    @abc.abstractmethod
    def centre(self) -> PyTree:
        """The parameters at which the curvature is taken; a given ``LinearOperator`` has none."""

    def at(self, params: PyTree) -> Any:
        """The same operator at other parameters.

            H = lla.hessian(loss, params, data);   H.at(others) v = (grad^2 L)(others) v

        The matrix, the blocks and the selection stay, and nothing is compiled anew. The data stay on the devices; if
        primal values are kept in their place, the data are brought there again and the values at ``params`` are
        computed now. Delete this operator if its own values are no longer needed.

        A mask stays too, and so does a preconditioner, which is made of moments and not of parameters; for other
        moments use ``lla.operators.preconditioned(H.at(params), moments)`` of the plain operator. Call it on the host,
        in all processes that share the operator.

        Args:
          params: a tree like the operator's parameters: the same structure, shapes and dtypes (half precision is
            widened). It is put on the devices where those are.

        Returns:
          An operator of the same kind. Its recipe names the new parameters, and is the same otherwise.

        Raises:
          ValueError: parameters of another structure, shape or dtype, or not finite, or other ones in another process;
            an operator of ``operators.given``, which has no parameters, or one that jax has transformed.
        """
        if self.rebuild is None:
            if self.is_given:
                text = f"{self!r} is a product of your own and has no parameters"
                rule = "it must be an operator of lla.hessian, lla.ggn or lla.fisher"
                raise Misuse("H", f"{text}; {rule}, or make another one with lla.operators.given")
            text = f"{self!r} came out of a transformation of jax, which keeps only what products need"
            raise Misuse("H", f"{text}; it must be an operator as lla.hessian, lla.ggn or lla.fisher gave it")
        params = self._like_centre(params)
        described = describe_params(params)  # before the cast, as a landscape there describes them
        recipe = recipes.without_probe(self.recipe) | {"params": described}
        if self.together:
            processes.agree(params=str(recipe["params"]))

        def place(new: Any, old: jax.Array) -> jax.Array:
            new = new.astype(old.dtype) if isinstance(new, jax.Array) else np.asarray(new, old.dtype)
            return jax.device_put(own(new), old.sharding)

        placed = jax.tree.map(place, params, self.centre())
        return replace(self.rebuild(placed, recipe), space=self.space)

    def _like_centre(self, params: PyTree) -> PyTree:
        """The parameters as arrays, if structure, shapes and dtypes are those of the operator's; else an error."""
        params = as_arrays(params)
        centre = self.centre()
        params = _tree.align(params, centre, "params", "the operator's parameters")
        pairs = zip(*map(jax.tree.leaves, (params, centre)), strict=True)
        for path, (new, old) in zip(_tree.paths(centre), pairs, strict=True):
            dtype = _tree.shape_dtype(new)[1]
            if _tree.wide(dtype) != old.dtype:
                text = f"has dtype {dtype}, and the operator's parameters {old.dtype}; it must have the same dtype"
                raise ValueError(f"params[{path!r}] {text}: cast it, or make another operator")
        return params


def as_arrays(params: PyTree) -> PyTree:
    """The parameters, with leaves that are Python numbers as arrays.

    Raises:
      ValueError: a leaf that is not real, floating and finite.
    """
    _tree.check_real(sharding.view_on_host(params))
    return jax.tree.map(lambda x: x if hasattr(x, "dtype") else np.asarray(x, jnp.result_type(x)), params)


def describe_params(params: PyTree) -> Recipe:
    """{"fingerprint", "size"} of the parameters, the entry "params" of an operator's recipe."""
    size = sum(x.size for x in jax.tree.leaves(params))
    return {"fingerprint": recipes.fingerprint(sharding.view_on_host(params)), "size": size}


@explained
@dataclass(frozen=True, eq=False, repr=False)
class LinearOperator(Operator):
    """A symmetric operator over data in memory; a pytree, to be passed to jitted functions.

    Made by ``hessian``, ``ggn``, ``fisher`` and ``given``. ``mv`` is pure; ``product`` computes the same from the host,
    in the fastest way on this machine. Vectors are trees like the parameters (``structure``), in float32 at least.

    Args:
      multiplier: the static part.
      space: the space of its vectors, which holds S of S A S.
      common: loss, parameters, data and key, which all blocks share.
      blocks: blocks of rows, or linear maps whose primal values are kept.
      recipe: matrix, selection, data, plan; JSON-able. Lost under a transformation.
      rebuild: makes the operator at other parameters, see ``at``. Lost under a transformation.
    """

    multiplier: Multiplier
    space: Space
    common: Any
    blocks: tuple[Any, ...]
    recipe: Recipe = field(default_factory=dict)
    rebuild: Rebuild | None = None

    def mv(self, v: PyTree) -> PyTree:
        """The product A v: a tree like ``v``. Pure and jit-able."""
        v = self.space.check(v)
        return products.finish(self.multiplier, self.common, self.space, v, self._total(v))

    def _total(self, v: PyTree) -> Any:
        """The total of the sums of all blocks. Pure."""
        each = (products.sums(self.multiplier, self.common, self.space, block, v) for block in self.blocks)
        return functools.reduce(products.plus, each)

    def product_and_loss(self, v: PyTree) -> tuple[PyTree, Any]:
        """(A v, the mean loss) from the host: one compiled step, called for every block."""
        v, by = self.space.check(v), self.multiplier
        if len(self.blocks) == 1 and (by.mesh is None or by.mesh.size == 1):
            return self.space.wait_for(product_step(self, v))
        total = products.add_up(by, products.total(by, self.common, self.space, self.blocks, v))
        return self.space.wait_for(products.finish_step(self.common, self.space, v, total, by=by))

    def centre(self) -> PyTree:
        return self.common.params


jax.tree_util.register_pytree_node(
    LinearOperator,
    lambda op: ((op.space, op.common, op.blocks), op.multiplier),
    lambda multiplier, children: LinearOperator(multiplier, *children),
)


@explained
@dataclass(frozen=True, eq=False, repr=False)
class HostOperator(Operator):
    """A symmetric operator whose ``mv`` runs on the host: over a stream or several processes, or not traceable.

    Args:
      multiplier: the static part.
      space: the space of its vectors, which holds S of S A S.
      call: ``call(v) -> (A v, mean loss)`` without the scale, as for ``product_and_loss``.
      params: the parameters; for a given product, the tree ``like`` a vector.
      recipe: as for ``LinearOperator``.
      rebuild: as for ``LinearOperator``.
      together: whether all processes of the group take part in every product.
    """

    multiplier: Multiplier
    space: Space
    call: Callable[[PyTree], tuple[PyTree, Any]]
    params: PyTree
    recipe: Recipe = field(default_factory=dict)
    rebuild: Rebuild | None = None
    together: bool = False

    def mv(self, v: PyTree) -> PyTree:
        """The product A v: a tree like ``v``. It reads a stream once, and waits for the processes that take part."""
        return self.product_and_loss(v)[0]

    def product_and_loss(self, v: PyTree) -> tuple[PyTree, Any]:
        """(A v, the mean loss), of one reading."""
        v = self.space.check(v)
        if self.scale is None:
            return self.call(v)
        product, loss = self.call(products.times(self.scale, v))
        return products.times(self.scale, product), loss

    def centre(self) -> PyTree:
        return self.params


def halve(compute: Callable[[int, int], Any], lo: int, hi: int) -> list[Any]:
    """``[compute(lo, hi)]``; if memory runs out, ``compute`` of the two halves of lo .. hi instead, and so on."""
    try:
        return [compute(lo, hi)]
    except Exception as error:
        if hi - lo == 1 or not devices.is_out_of_memory(error):
            raise
    middle = (lo + hi) // 2
    return halve(compute, lo, middle) + halve(compute, middle, hi)


@jax.jit
def products_step(H: LinearOperator, stacked: PyTree) -> PyTree:
    """The products with stacked vectors, in one program."""
    if jax.tree.leaves(stacked)[0].shape[0] == 1:  # neither a loop nor a batch, which hold copies
        return jax.tree.map(lambda x: x[None], H.mv(jax.tree.map(lambda x: x[0], stacked)))
    return jax.lax.map(H.mv, stacked) if devices.on_cpu(H.multiplier.mesh) else jax.vmap(H.mv)(stacked)


@jax.jit
def product_step(H: LinearOperator, v: PyTree) -> tuple[PyTree, Any]:
    """(A v, the mean loss) of an operator whose blocks are all in one program."""
    total, by = H._total(v), H.multiplier
    return products.finish(by, H.common, H.space, v, total), products.mean_loss(by, H.common, total)


def check_operator(H: Any, name: str = "H") -> None:
    """Refuse an ``H`` that is no operator; the message says how to make one of the value.

    Args:
      H: the value given.
      name: the argument's name.
    """
    if not isinstance(H, Operator):
        raise misuse(name, H, f"an operator: {_as_operator(H)}")
    if not H.space.size:
        raise Misuse(name, f"{H!r} acts on no parameters; it must act on some: pass params with entries")


def check_spectral(H: Any, key: Any) -> jax.Array:
    """Check the operator and the key of a function that runs on the host; returns the key."""
    check_operator(H)
    key = single_key(key)
    if _tree.is_traced((H, key, jnp.zeros(()))):  # the last one is traced under jax.jit whatever is given
        raise Misuse(
            "H",
            "this function runs on the host, which looks at numbers after each product, and is called under jax.jit, "
            "jax.vmap or jax.grad; call it outside of them, in a loop over keys or parameters (H.at(params)); the "
            "products H.mv(v) and H @ v may be traced",
        )
    return key


def _as_operator(H: Any) -> str:
    """How to make an operator of a matrix, a product or the parts of a problem."""
    made, kind = "lla.hessian(loss, params, data)", type(H).__module__.partition(".")[0]
    if isinstance(H, jax.Array) and jnp.issubdtype(H.dtype, jax.dtypes.prng_key):
        return f"{made}, and the key after it; were the two swapped?"
    if isinstance(H, Loss):
        return f"{made} of this loss"
    if kind == "torch" and hasattr(H, "detach"):
        H, kind, matrix = np.empty(tuple(H.shape)), "numpy", "A.numpy()"
    else:
        matrix = "A"
    square = len(np.shape(H)) == 2 and np.shape(H)[0] == np.shape(H)[1] if hasattr(H, "shape") else False
    if square and (hasattr(H, "matvec") or kind == "scipy"):
        n = np.shape(H)[0]
        return f"lla.operators.given(lambda v: A @ np.asarray(v), jnp.zeros({n}), traceable=False) for this matrix A"
    if square:
        return f"lla.operators.given(lambda v, A: A @ v, jnp.zeros({np.shape(H)[0]}), {matrix}) for this matrix A"
    if isinstance(H, list | tuple):
        return f"{made}; a matrix as numpy array A, in lla.operators.given(lambda v, A: A @ v, jnp.zeros(len(A)), A)"
    if callable(H):
        return (
            f"{made} for a loss; lla.operators.given(product, like) for a product v -> A v, with like=params, or "
            "jnp.zeros(n), whose structure its vectors have"
        )
    return f"{made}, or lla.operators.given(product, like) for one of your own"


def no_finite_product(trouble: object) -> Misuse:
    """The error for a computation whose very first products failed; ``trouble``: "product 1 is not finite"."""
    return Misuse("H", f"{trouble}, and there is nothing to keep; check that the loss is finite here")
