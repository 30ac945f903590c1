"""Lets operators be written as matrices, ``H @ v``, and be passed to SciPy; says what to write where they cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse, misuse, renamed, show_value
from lla_jax.core.data import as_numpy
from lla_jax.core.refusals import ARITHMETIC, AS_NUMBER, AS_SEQUENCE, ASKED, no_array, refuse
from lla_jax.core.types import Directions, PyTree
from lla_jax.curvature.space import Space

RULE = "a vector: a tree like H.structure, an array ({n},) of its raveled leaves, or a matrix ({n}, k) of such columns"
_NO_SUM = (
    "is multiplied with vectors only, by @; scale or add the products, 2 * (H @ v) + v, or make the other operator: "
    "lla.operators.given(lambda v: jax.tree.map(lambda x: 2 * x, H.mv(v)), H.structure)"
)


@no_array(
    "is known by its products and is no array; write H @ v for a product (and for jnp.dot(H, v)), or make the matrix "
    "of a small one, lla.operators.dense(H)",
    (*ASKED, *AS_NUMBER),
    "H",
)
@no_array(_NO_SUM, ARITHMETIC, "H")
@no_array(
    "has no entries to take; H @ v is a product, and lla.operators.dense(H)[0] a row of a small one", AS_SEQUENCE, "H"
)
class Algebra:
    """The products of a symmetric operator with flat vectors, matrices and trees, by ``@`` and as SciPy asks for them.

    ``scipy.sparse.linalg.aslinearoperator(H)`` and SciPy's solvers, such as ``eigsh(H)``, take an operator as it is.
    """

    _meant: ClassVar[dict[str, str]] = {
        "T": "H itself, which is symmetric",
        "todense": "lla.operators.dense(H)",
        "toarray": "lla.operators.dense(H)",
        "trace": "lla.trace(H, key)",
        "diagonal": "lla.diagonal(H, key)",
        "eigenvalues": "lla.eigenpairs(H, key).values",
        "eigenpairs": "lla.eigenpairs(H, key)",
        "spectrum": "lla.spectrum(H, key)",
        **dict.fromkeys(("matmul", "matmat", "dot", "hvp"), "H @ v"),
        **dict.fromkeys(("eigh", "eigvalsh"), "lla.eigenpairs(H, key), or numpy.linalg.eigh(lla.operators.dense(H))"),
        **dict.fromkeys(("size", "ndim"), "shape"),
        "numpy": "lla.operators.dense(H)",
    }

    if TYPE_CHECKING:  # what an operator has
        space: Space
        mv: Callable[[PyTree], PyTree]
        product: Callable[[PyTree], PyTree]
        products: Callable[[PyTree], PyTree]

    def matvec(self, v: Any) -> np.ndarray:
        """The product A v with a flat vector (n,) or (n, 1), for SciPy: a numpy array of the same shape."""
        flat = np.asarray(v)
        return np.array(self @ flat.reshape(-1)).reshape(flat.shape)  # a copy: GMRES writes into it

    rmatvec = matvec

    def __matmul__(self, v: Any) -> Any:
        """The product A v.

        Args:
          v: a tree like ``structure``, whose product is one too; a flat vector (n,), the raveled leaves of such a tree
            one after another; or a matrix (n, k) of such columns. Masked entries, which n does not count, are left out
            (or all are there). Under jit only if nothing is masked.

        Returns:
          A tree for a tree, a jax array of the same shape for an array.

        Raises:
          ValueError: another structure, shape or dtype.
        """
        if isinstance(v, Directions):
            rule = "a vector or a matrix; for the products with all directions write H.products(v.tree)"
            raise misuse("v", v, rule)
        treedef = self.space.treedef
        if jax.tree.structure(v) == treedef:
            is_leaf = jax.tree_util.treedef_is_leaf(treedef)
            if not is_leaf or np.shape(v) == self.space.shapes[0][0] != (self.space.size,):
                return self._apply(v)
        flat = self._as_flat(v)
        if flat is None:
            return self._apply(v)  # a tree, whose faults the check of vectors names
        columns, places = (flat if flat.ndim == 2 else flat[:, None]), self._places(len(flat))
        if not columns.shape[1]:
            return jnp.zeros(columns.shape, self.space.dtype)
        full = columns if places is None else jnp.zeros((self.space.size, columns.shape[1])).at[places].set(columns)
        stacked = self._stack(full)
        single = flat.ndim == 1
        out = self._apply(jax.tree.map(lambda x: x[0], stacked)) if single else self._apply(stacked, many=True)
        leaves = [x.reshape(-1) if single else x.reshape(len(x), -1).T for x in jax.tree.leaves(out)]
        result = jnp.concatenate(leaves)
        return result if places is None else result[places]

    def __rmatmul__(self, v: Any) -> Any:
        """The product v' A, which is A v of a flat vector; of a matrix (k, n) it is (A V')'."""
        flat = self._as_flat(v)
        if flat is None:
            raise misuse("v", v, "an array (n,) or (k, n) on the left of @; with a tree write H @ v")
        return (self @ flat.T).T

    def _as_flat(self, v: Any) -> Any:
        """An array (n,) or (n, k) as it is, or a list of numbers as one; None for a tree."""
        if isinstance(v, list) and all(isinstance(x, float | int | np.number | list) for x in v):
            try:
                v = np.asarray(v)
            except ValueError as error:  # rows of unequal lengths
                raise misuse("v", v, RULE.format(n="n")) from error
        if hasattr(v, "__array__") and not isinstance(v, jax.Array):
            with renamed("data", "v"):
                v = as_numpy(v)
        if hasattr(v, "toarray"):  # of scipy.sparse
            raise misuse("v", v, RULE.format(n=self.space.size) + "; of a sparse matrix pass v.toarray()")
        if isinstance(v, dict | list | tuple) or not hasattr(v, "ndim"):
            if jax.tree.leaves(v) and not jax.tree_util.all_leaves([v]):
                return None
            raise misuse("v", v, RULE.format(n="n"))
        rule = RULE.format(n=self.space.size)
        is_real = v.dtype == bool or (jnp.issubdtype(v.dtype, jnp.number) and not jnp.iscomplexobj(v))
        if v.ndim not in (1, 2) or not is_real:
            text = f"{show_value(v)} of dtype {v.dtype} given"
            raise Misuse("v", f"{text}; it must be {rule}, of real numbers")
        return v

    def _places(self, length: int) -> Any:
        """The places of the entries that are not masked, in a raveled vector; None if the length counts all entries."""
        if length == self.space.size:
            return None
        scale = jax.tree.leaves(self.space.scale)
        if not _tree.is_traced(scale):
            if scale and length == self.space.dim:
                return np.flatnonzero(np.concatenate([np.ravel(x) for x in scale]))
            n = self.space.dim
            rule = RULE.format(n=n)
            raise Misuse("v", f"of length {length:,} given, and H is {n:,} x {n:,}; it must be {rule}")
        raise Misuse("v", f"of length {length:,} given for a masked operator under jit; it must be a tree there")

    def _stack(self, columns: Any) -> PyTree:
        """The columns (n, k) as stacked vectors, trees with a leading axis k."""
        ends = np.cumsum([int(np.prod(s)) for s, _ in self.space.shapes])[:-1]
        pieces = jnp.split(jnp.asarray(columns), ends)
        leaves = [x.T.reshape(-1, *s).astype(d) for x, (s, d) in zip(pieces, self.space.shapes, strict=True)]
        return self.space.tree(leaves)

    def _apply(self, v: PyTree, many: bool = False) -> PyTree:
        """The product, or products with stacked vectors: traced where one of the arrays is, else from the host."""
        if _tree.is_traced((self, v)):
            return jax.lax.map(self.mv, v) if many else self.mv(v)
        return self.products(v) if many else self.product(v)

    def __deepcopy__(self, memo: Any) -> Any:
        return self  # it does not change, and its programs cannot be copied

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """The product for ``numpy.matmul``, and so for ``v @ H`` with a numpy array; an error for other functions."""
        if ufunc is np.matmul and method == "__call__" and not options:
            left, right = inputs
            return left @ right if isinstance(left, Algebra) else right.__rmatmul__(left)
        return refuse(_NO_SUM, name="H")(self)
