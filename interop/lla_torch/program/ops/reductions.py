"""Operators along axes: sums, extrema, variances, norms, softmax."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy import special

from lla_torch.program.operators import lowering
from lla_torch.program.ops.axes import apply_along, pick_along, reduce_axes
from lla_torch.program.ops.pointwise import absolute
from lla_torch.program.views import View, plain


def _cast(x: View, dtype: Any) -> View:
    return x if dtype is None else x.with_array(x.array.astype(dtype))


def _bool_to_int(x: jax.Array) -> jax.Array:
    return x.astype(int) if x.dtype == bool else x


@lowering("aten.sum", layout="views")
def sum_all(x: View, *, dtype: Any = None) -> Any:
    """The sum of all entries."""
    return sum_dim(x, None, dtype=dtype)


@lowering("aten.sum.dim_IntList", layout="views")
def sum_dim(x: View, dim: Any, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """Sums over the axes ``dim`` (None or (): all)."""
    return reduce_axes(
        _cast(x, dtype), dim, keepdim, lambda a, axes, keep: jnp.sum(_bool_to_int(a), axes, keepdims=keep)
    )


@lowering("aten.nansum", layout="views")
def nansum(x: View, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """Sums over the axes ``dim`` (None: all) of the entries that are not NaN."""
    return reduce_axes(
        _cast(x, dtype), dim, keepdim, lambda a, axes, keep: jnp.nansum(_bool_to_int(a), axes, keepdims=keep)
    )


@lowering("aten.mean", layout="views")
def mean_all(x: View, *, dtype: Any = None) -> Any:
    """The mean of all entries."""
    return mean_dim(x, None, dtype=dtype)


@lowering("aten.mean.dim", layout="views")
def mean_dim(x: View, dim: Any, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """Means over the axes ``dim`` (None or (): all)."""
    return reduce_axes(_cast(x, dtype), dim, keepdim, lambda a, axes, keep: jnp.mean(a, axes, keepdims=keep))


@lowering("aten.nanmean", layout="views")
def nanmean(x: View, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """Means over the axes ``dim`` (None: all) of the entries that are not NaN."""
    return reduce_axes(_cast(x, dtype), dim, keepdim, lambda a, axes, keep: jnp.nanmean(a, axes, keepdims=keep))


@lowering("aten.prod", layout="views")
def prod_all(x: View, *, dtype: Any = None) -> Any:
    """The product of all entries."""
    return prod_dim(x, None, dtype=dtype)


@lowering("aten.prod.dim_int", layout="views")
def prod_dim(x: View, dim: Any, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """Products over the axis ``dim``."""
    return reduce_axes(
        _cast(x, dtype), dim, keepdim, lambda a, axes, keep: jnp.prod(_bool_to_int(a), axes, keepdims=keep)
    )


def _extremum(function: Callable[..., jax.Array]) -> Callable[..., Any]:
    def extremum(x: View, dim: Any = (), keepdim: bool = False) -> Any:
        return reduce_axes(x, dim, keepdim, lambda a, axes, keep: function(a, axes, keepdims=keep))

    return extremum


# equal largest (smallest) entries take equal parts of the derivative, in torch and in jax
lowering("aten.amax", "aten.max", layout="views")(_extremum(jnp.max))
lowering("aten.amin", "aten.min", layout="views")(_extremum(jnp.min))
lowering(*(f"aten.any.{kind}" for kind in ("default", "dim", "dims")), layout="views")(_extremum(jnp.any))
lowering(*(f"aten.all.{kind}" for kind in ("default", "dim", "dims")), layout="views")(_extremum(jnp.all))


@lowering("aten.aminmax", layout="views")
def aminmax(x: View, *, dim: int | None = None, keepdim: bool = False) -> tuple[Any, Any]:
    """(smallest entry, largest entry) along the axis ``dim``; None: of the whole tensor."""
    return _extremum(jnp.min)(x, dim, keepdim), _extremum(jnp.max)(x, dim, keepdim)


def _keep_axis(function: Callable[..., jax.Array]) -> Callable[[jax.Array, int], jax.Array]:
    return lambda array, axis: function(array, axis, keepdims=True)


@lowering("aten.max.dim", layout="views")
def max_dim(x: View, dim: int, keepdim: bool = False) -> tuple[View, View]:
    """(largest entries along an axis, their first indices); the derivative goes to these entries alone."""
    return pick_along(x, dim, keepdim, _keep_axis(jnp.argmax))


@lowering("aten.min.dim", layout="views")
def min_dim(x: View, dim: int, keepdim: bool = False) -> tuple[View, View]:
    """(smallest entries along an axis, their first indices); the derivative goes to these entries alone."""
    return pick_along(x, dim, keepdim, _keep_axis(jnp.argmin))


def _extremum_index(x: View, dim: int | None, keepdim: bool, function: Callable[..., jax.Array]) -> View:
    if dim is not None:
        return pick_along(x, dim, keepdim, _keep_axis(function))[1]
    return plain(function(x.logical().reshape(-1)).reshape((1,) * (x.ndim * keepdim)))


@lowering("aten.argmax", layout="views")
def argmax(x: View, dim: int | None = None, keepdim: bool = False) -> View:
    """The first index of the largest entry along an axis; None: of the flattened tensor."""
    return _extremum_index(x, dim, keepdim, jnp.argmax)


@lowering("aten.argmin", layout="views")
def argmin(x: View, dim: int | None = None, keepdim: bool = False) -> View:
    """The first index of the smallest entry along an axis; None: of the flattened tensor."""
    return _extremum_index(x, dim, keepdim, jnp.argmin)


@lowering("aten.count_nonzero", "aten.count_nonzero.dim_IntList", layout="views")
def count_nonzero(x: View, dim: Any = None) -> Any:
    """The number of entries that are not 0, over the axes ``dim`` (None: all)."""
    return reduce_axes(x, dim, False, lambda a, axes, keep: jnp.sum((a != 0).astype(int), axes))


def _root(x: jax.Array) -> jax.Array:
    """The square root, with derivative 0 at 0."""
    zero = x == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, x)))


def _moments(x: View, dim: Any, correction: float | None, keepdim: bool, root: bool) -> tuple[Any, Any]:
    correction = 1 if correction is None else correction

    def moments(array: jax.Array, axes: tuple[int, ...], keep: bool) -> tuple[jax.Array, jax.Array]:
        mean = jnp.mean(array, axes, keepdims=True)
        centred = array - mean
        count = math.prod(array.shape[a] for a in axes)
        squares = jnp.sum(jnp.real(centred * jnp.conj(centred)), axes, keepdims=keep)
        var = squares / jnp.asarray(max(count - correction, 0), squares.dtype)
        return _root(var) if root else var, mean if keep else jnp.squeeze(mean, axes)

    return reduce_axes(x, dim, keepdim, moments)


def _register_moments() -> None:
    for name, root, both in (
        ("var", False, False),
        ("std", True, False),
        ("var_mean", False, True),
        ("std_mean", True, True),
    ):

        def by_correction(
            x: View,
            dim: Any = None,
            *,
            correction: float | None = None,
            keepdim: bool = False,
            root: bool = root,
            both: bool = both,
        ) -> Any:
            result = _moments(x, dim, correction, keepdim, root)
            return result if both else result[0]

        def by_flag(
            x: View, dim: Any, unbiased: bool = True, keepdim: bool = False, by_correction: Any = by_correction
        ) -> Any:
            return by_correction(x, dim, correction=int(unbiased), keepdim=keepdim)

        def of_all(x: View, unbiased: bool = True, by_correction: Any = by_correction) -> Any:
            return by_correction(x, correction=int(unbiased))

        lowering(f"aten.{name}.correction", layout="views")(by_correction)
        lowering(f"aten.{name}.dim", layout="views")(by_flag)
        lowering(f"aten.{name}.default", layout="views")(of_all)


_register_moments()


@lowering("aten.logsumexp", "aten.special_logsumexp", layout="views")
def logsumexp(x: View, dim: Any, keepdim: bool = False) -> Any:
    """log(sum exp(x)) over the axes ``dim``."""
    return reduce_axes(x, dim, keepdim, lambda a, axes, keep: special.logsumexp(a, axes, keepdims=keep))


def norm_of(array: jax.Array, order: float, axes: tuple[int, ...], keep: bool) -> jax.Array:
    """The norm (sum |x|^order)^(1 / order) of an array over axes; where it is 0, its derivative is 0.

    Order inf or -inf is the largest or smallest |x|, order 0 the number of entries that are not 0.
    """
    size = absolute(array)
    if order == math.inf:
        return jnp.max(size, axes, keepdims=keep)
    if order == -math.inf:
        return jnp.min(size, axes, keepdims=keep)
    if order == 0:
        return jnp.sum((size != 0).astype(size.dtype), axes, keepdims=keep)
    if order == 1:
        return jnp.sum(size, axes, keepdims=keep)
    if order == 2:
        return _root(jnp.sum(jnp.real(array * jnp.conj(array)), axes, keepdims=keep))
    zero = size == 0
    powers = jnp.where(zero, 0.0 if order > 0 else jnp.inf, jnp.where(zero, 1.0, size) ** order)
    total = jnp.sum(powers, axes, keepdims=keep)
    regular = (total > 0) & jnp.isfinite(total)
    return jnp.where(regular, jnp.where(regular, total, 1.0) ** (1 / order), 0.0 if order < 0 else total)


@lowering("aten.linalg_vector_norm", layout="views")
def vector_norm(x: View, ord: float = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """The norm (sum |x|^ord)^(1 / ord) over the axes ``dim`` (None: all), see ``norm_of``."""
    return reduce_axes(_cast(x, dtype), dim, keepdim, lambda a, axes, keep: norm_of(a, float(ord), axes, keep))


@lowering(
    *(f"aten.norm.{kind}" for kind in ("Scalar", "ScalarOpt_dim", "ScalarOpt_dim_dtype", "ScalarOpt_dtype")),
    layout="views",
)
def norm(x: View, p: float | None = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """The norm (sum |x|^p)^(1 / p) over the axes ``dim`` (None: all), see ``norm_of``; p=None means 2."""
    return vector_norm(x, 2 if p is None else p, dim, keepdim, dtype=dtype)


@lowering("aten.dist", layout="logical")
def dist(x: jax.Array, y: jax.Array, p: float = 2) -> jax.Array:
    """The p-norm of x - y over all entries."""
    difference = x - y
    return norm_of(difference, float(p), tuple(range(difference.ndim)), False)


def _distance(difference: jax.Array, order: float) -> jax.Array:
    """The norm along the last axis; of order inf all equal largest entries have the whole derivative, as in torch."""
    if order != math.inf:
        return norm_of(difference, order, (-1,), False)
    size = absolute(difference)
    largest = jnp.max(jax.lax.stop_gradient(size), -1, keepdims=True, initial=0)
    change = jnp.where(size == largest, size - jax.lax.stop_gradient(size), 0)  # 0, but for its derivative
    return largest[..., 0] + jnp.sum(change, -1)


@lowering("aten.cdist", "aten._cdist_forward")
def cdist(x: jax.Array, y: jax.Array, p: float = 2.0, compute_mode: int | None = None) -> jax.Array:
    """p-norms of x[..., i, :] - y[..., j, :], from differences, which is exact; ``compute_mode`` has no effect."""
    del compute_mode
    return _distance(x[..., :, None, :] - y[..., None, :, :], float(p))


@lowering("aten.pdist", "aten._pdist_forward")
def pdist(x: jax.Array, p: float = 2.0) -> jax.Array:
    """p-norms of x[i] - x[j] for all i < j, as a vector."""
    rows, columns = jnp.triu_indices(x.shape[0], 1)
    return _distance(x[rows] - x[columns], float(p))


def _softmax(x: View, dim: int, dtype: Any, function: Callable[..., jax.Array]) -> View:
    return apply_along(_cast(x, dtype), dim, lambda array, axis: function(array, axis=axis))


@lowering("aten.softmax.int", "aten.special_softmax", layout="views")
def softmax(x: View, dim: int, dtype: Any = None) -> View:
    """exp(x) / sum exp(x) along an axis."""
    return _softmax(x, dim, dtype, jax.nn.softmax)


@lowering("aten.log_softmax.int", "aten.special_log_softmax", layout="views")
def log_softmax(x: View, dim: int, dtype: Any = None) -> View:
    """The logarithm of the softmax along an axis."""
    return _softmax(x, dim, dtype, jax.nn.log_softmax)


@lowering("aten._softmax", layout="views")
def softmax_inner(x: View, dim: int, half_to_float: bool) -> View:
    """The softmax along an axis; computed in float32 if ``half_to_float``."""
    return softmax(x, dim, jnp.float32 if half_to_float else None)


@lowering("aten._log_softmax", layout="views")
def log_softmax_inner(x: View, dim: int, half_to_float: bool) -> View:
    """The logarithm of the softmax along an axis; computed in float32 if ``half_to_float``."""
    return log_softmax(x, dim, jnp.float32 if half_to_float else None)


@lowering("aten._safe_softmax", layout="views")
def safe_softmax(x: View, dim: int, dtype: Any = None) -> View:
    """The softmax along an axis, and 0 where all entries are -inf."""

    def safe(array: jax.Array, axis: int) -> jax.Array:
        empty = jnp.all(jnp.isneginf(array), axis, keepdims=True)
        return jnp.where(empty, 0.0, jax.nn.softmax(jnp.where(empty, 0.0, array), axis))

    return apply_along(_cast(x, dtype), dim, safe)
