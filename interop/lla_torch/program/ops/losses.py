"""Loss functions; ``reduction`` has torch's codes 0 (none), 1 (mean), 2 (sum), and t stands for the target."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from lla_torch.program.operators import lowering
from lla_torch.program.ops.extrema import ALL, positive_part
from lla_torch.program.ops.pointwise import absolute
from lla_torch.program.ops.special import xlogy

Array = jax.Array
_MEAN, _SUM = 1, 2
_SMALLEST_VARIANCE = 9.999999960041972e-13  # torch's bound in the gradient of binary_cross_entropy: 1e-12 in float32


def _reduce(losses: Array, reduction: int) -> Array:
    if reduction == _MEAN:
        return jnp.mean(losses)
    return jnp.sum(losses) if reduction == _SUM else losses


# --- classification: classes lie along axis 1 of a batch, along axis 0 of a single example


def _class_axis(x: Array) -> int:
    return 1 if x.ndim > 1 else 0


def _along_classes(weight: Array, x: Array) -> Array:
    """Class weights, broadcasting to x."""
    return weight.reshape((-1,) + (1,) * (x.ndim - 1 - _class_axis(x)))


def _entries_at_target(x: Array, target: Array) -> Array:
    """x at the target classes; NaN for classes that do not exist (negative ones too), where torch raises."""
    axis = _class_axis(x)
    target = jnp.where(target < 0, x.shape[axis], target)
    return jnp.squeeze(jnp.take_along_axis(x, jnp.expand_dims(target, axis), axis), axis)


def _targets(x: Array, target: Array, weight: Array | None, ignore_index: int) -> tuple[Array, Array]:
    """(targets, weights): ignored targets are replaced by class 0 and have weight 0."""
    valid = target != ignore_index
    target = jnp.where(valid, target, 0)
    each = jnp.ones((), x.dtype) if weight is None else weight[target]
    return target, jnp.where(valid, each, jnp.zeros((), x.dtype))


@lowering("aten.nll_loss_forward.default", "aten.nll_loss2d_forward.default")
def nll_loss_forward(
    x: Array, target: Array, weight: Array | None, reduction: int, ignore_index: int
) -> tuple[Array, Array]:
    """(-weight[t] x[t] reduced, sum of all weight[t]) for log probabilities x; ignored targets have weight 0.

    The mean divides by the sum of the weights. This sum is given as 0 if nothing is reduced.
    """
    target, weights = _targets(x, target, weight, ignore_index)
    losses = jnp.where(weights == 0, 0, -_entries_at_target(x, target) * weights)
    if reduction == 0:
        return losses, jnp.zeros((), x.dtype)
    total = jnp.sum(weights)
    return jnp.sum(losses) / (total if reduction == _MEAN else 1), total


@lowering("aten.nll_loss.default", "aten.nll_loss2d.default", "aten.nll_loss_nd.default")
def nll_loss(
    x: Array, target: Array, weight: Array | None = None, reduction: int = _MEAN, ignore_index: int = -100
) -> Array:
    """-weight[t] x[t] for log probabilities x, reduced, see ``nll_loss_forward``."""
    return nll_loss_forward(x, target, weight, reduction, ignore_index)[0]


@lowering("aten.cross_entropy_loss.default")
def cross_entropy_loss(
    x: Array,
    target: Array,
    weight: Array | None = None,
    reduction: int = _MEAN,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
) -> Array:
    """Cross entropy of logits x, whose targets are classes, or probabilities of the classes where the shapes are equal.

    With classes the mean divides by the sum of their weights, with probabilities by the number of examples.
    """
    axis = _class_axis(x)
    classes = x.shape[axis]
    logp = jax.nn.log_softmax(x, axis=axis)
    scaled = logp if weight is None else logp * _along_classes(weight, x)
    if target.shape == x.shape:
        target = target if label_smoothing == 0 else target * (1 - label_smoothing) + label_smoothing / classes
        losses = -jnp.sum(scaled * target, axis=axis)
        if reduction == _MEAN:  # torch divides by the number of examples, whatever the weights
            return jnp.sum(losses) / losses.size
        return _reduce(losses, reduction)
    hard = nll_loss(logp, target, weight, reduction, ignore_index)
    if label_smoothing == 0:
        return hard
    _, weights = _targets(x, target, weight, ignore_index)
    smooth = jnp.where(target == ignore_index, 0, -jnp.sum(scaled, axis=axis))
    smooth = jnp.sum(smooth) / jnp.sum(weights) if reduction == _MEAN else _reduce(smooth, reduction)
    return (1 - label_smoothing) * hard + label_smoothing / classes * smooth


@lowering("aten.multi_margin_loss.default")
def multi_margin_loss(
    x: Array, target: Array, p: Any = 1, margin: Any = 1, weight: Array | None = None, reduction: int = _MEAN
) -> Array:
    """sum_i!=t weight[t] max(0, margin - x[t] + x[i])^p / classes, reduced."""
    x = jnp.atleast_1d(x)
    classes = x.shape[-1]
    excess = margin - jnp.take_along_axis(x, target[..., None], -1) + x
    counts = (excess > 0) & (jnp.arange(classes) != target[..., None])
    excess = jnp.where(counts, excess, 0)
    excess = excess if p == 1 else excess * excess
    excess = excess if weight is None else excess * weight[target][..., None]
    return _reduce((jnp.sum(excess, -1) / classes).reshape(target.shape), reduction)


@lowering("aten.multilabel_margin_loss_forward.default")
def multilabel_margin_loss_forward(x: Array, target: Array, reduction: int) -> tuple[Array, Array]:
    """(loss, 1 for classes that are targets, else 0).

    The loss is the sum over targets j and other classes i of max(0, 1 - (x[j] - x[i])) / classes, reduced. Targets are
    the classes in front of the first negative one.
    """
    shape = target.shape
    x, target = jnp.atleast_1d(x), jnp.atleast_1d(target)
    classes = x.shape[-1]
    listed = jnp.cumsum(target < 0, axis=-1) == 0
    safe = jnp.where(listed, target, 0)
    is_target = jnp.any((safe[..., None] == jnp.arange(classes)) & listed[..., None], axis=-2)
    excess = 1 - jnp.take_along_axis(x, safe, -1)[..., :, None] + x[..., None, :]
    counts = listed[..., :, None] & ~is_target[..., None, :] & (excess > 0)
    losses = jnp.sum(jnp.where(counts, excess, 0), axis=(-2, -1)) / classes
    return _reduce(losses, reduction), is_target.astype(x.dtype).reshape(shape)


@lowering("aten.multilabel_margin_loss.default")
def multilabel_margin_loss(x: Array, target: Array, reduction: int = _MEAN) -> Array:
    """The loss of ``multilabel_margin_loss_forward`` alone."""
    return multilabel_margin_loss_forward(x, target, reduction)[0]


# --- probabilities


@jax.custom_jvp
def _cross_entropy_of_probability(x: Array, t: Array) -> Array:
    yes, no = _bounded_logs(x)
    return -(t * yes + (1 - t) * no)


def _bounded_logs(x: Array) -> tuple[Array, Array]:
    """log x and log(1 - x), both at least -100."""
    return jnp.maximum(jnp.log(x), -100), jnp.maximum(jnp.log1p(-x), -100)


@_cross_entropy_of_probability.defjvp
def _cross_entropy_of_probability_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Any]:
    (x, t), (dx, dt) = primals, tangents
    slope = (x - t) / jnp.maximum(x * (1 - x), _SMALLEST_VARIANCE)
    yes, no = _bounded_logs(x)
    return _cross_entropy_of_probability(x, t), slope * dx + (no - yes) * dt


@lowering("aten.binary_cross_entropy.default")
def binary_cross_entropy(x: Array, target: Array, weight: Array | None = None, reduction: int = _MEAN) -> Array:
    """-weight (t log x + (1 - t) log(1 - x)), reduced; logarithms are at least -100, gradients bounded as in torch.

    Where x or t is no probability, which torch refuses, it is NaN with all its derivatives.
    """
    probable = (x >= 0) & (x <= 1) & (target >= 0) & (target <= 1)
    losses = _cross_entropy_of_probability(x + jnp.where(probable, 0, jnp.nan).astype(x.dtype), target)
    return _reduce(losses if weight is None else losses * weight, reduction)


@lowering("aten.binary_cross_entropy_with_logits.default")
def binary_cross_entropy_with_logits(
    x: Array, target: Array, weight: Array | None = None, pos_weight: Array | None = None, reduction: int = _MEAN
) -> Array:
    """weight ((1 - t) x - (1 + (pos_weight - 1) t) log sigmoid(x)), reduced."""
    log_sigmoid = jax.nn.log_sigmoid(x)
    if pos_weight is not None:
        log_sigmoid = (1 + (pos_weight - 1) * target) * log_sigmoid
    losses = (1 - target) * x - log_sigmoid
    return _reduce(losses if weight is None else losses * weight, reduction)


@lowering("aten.kl_div.default")
def kl_div(x: Array, target: Array, reduction: int = _MEAN, *, log_target: bool = False) -> Array:
    """t (log t - x), or with ``log_target`` exp(t) (t - x), reduced."""
    if log_target:
        return _reduce(jnp.exp(target) * (target - x), reduction)
    return _reduce(xlogy(target, target) - target * x, reduction)


@lowering("aten.poisson_nll_loss.default")
def poisson_nll_loss(x: Array, target: Array, log_input: bool, full: bool, eps: float, reduction: int) -> Array:
    """exp(x) - t x with ``log_input``, else x - t log(x + eps); with ``full`` plus Stirling's term; reduced."""
    losses = jnp.exp(x) - target * x if log_input else x - target * jnp.log(x + eps)
    if full:
        safe = jnp.where(target > 1, target, 1)
        stirling = target * jnp.log(safe) - target + 0.5 * jnp.log(2 * math.pi * safe)
        losses = losses + jnp.where(target > 1, stirling, 0)
    return _reduce(losses, reduction)


# --- differences


@lowering("aten.mse_loss.default")
def mse_loss(x: Array, target: Array, reduction: int = _MEAN) -> Array:
    """(x - t)^2, reduced."""
    return _reduce(jnp.square(x - target), reduction)


@lowering("aten.l1_loss.default")
def l1_loss(x: Array, target: Array, reduction: int = _MEAN) -> Array:
    """|x - t|, reduced."""
    return _reduce(absolute(x - target), reduction)


@lowering("aten.huber_loss.default")
def huber_loss(x: Array, target: Array, reduction: int = _MEAN, delta: float = 1.0) -> Array:
    """z^2 / 2 where |z| <= delta, delta (|z| - delta / 2) elsewhere, for z = x - t; reduced."""
    z = x - target
    return _reduce(jnp.where(jnp.abs(z) <= delta, 0.5 * z * z, delta * (jnp.abs(z) - 0.5 * delta)), reduction)


@lowering("aten.smooth_l1_loss.default")
def smooth_l1_loss(x: Array, target: Array, reduction: int = _MEAN, beta: float = 1.0) -> Array:
    """z^2 / (2 beta) where |z| < beta, |z| - beta / 2 elsewhere, for z = x - t; reduced."""
    z = x - target
    if beta == 0:  # torch's functional calls l1_loss; the operator itself has the derivative -1 at 0
        return _reduce(jnp.where(z > 0, z, -z), reduction)
    return _reduce(jnp.where(jnp.abs(z) < beta, 0.5 * z * z / beta, jnp.abs(z) - 0.5 * beta), reduction)


# --- margins; ``share`` is the derivative of max(0, x) at 0, see ``extrema``


@lowering("aten.soft_margin_loss.default")
def soft_margin_loss(x: Array, target: Array, reduction: int = _MEAN) -> Array:
    """log(1 + exp(-t x)), reduced."""
    return _reduce(jax.nn.softplus(-target * x), reduction)


@lowering("aten.margin_ranking_loss.default")
def margin_ranking_loss(
    input1: Array, input2: Array, target: Array, margin: float = 0.0, reduction: int = _MEAN, *, share: float = ALL
) -> Array:
    """max(0, -t (input1 - input2) + margin), reduced."""
    return _reduce(positive_part(-target * (input1 - input2) + margin, share), reduction)


@lowering("aten.hinge_embedding_loss.default")
def hinge_embedding_loss(
    x: Array, target: Array, margin: float = 1.0, reduction: int = _MEAN, *, share: float = ALL
) -> Array:
    """x where t is 1, max(0, margin - x) where t is -1, reduced."""
    near = jnp.where(target != -1, x, 0)
    far = jnp.where(target != 1, positive_part(margin - x, share), 0)
    return _reduce(far + near, reduction)


@lowering("aten.cosine_embedding_loss.default")
def cosine_embedding_loss(
    input1: Array, input2: Array, target: Array, margin: float = 0.0, reduction: int = _MEAN, *, share: float = ALL
) -> Array:
    """1 - cos where t is 1, max(0, cos - margin) where t is -1, for the cosine along the last axis; reduced."""
    sizes = [jnp.sum(a * b, -1) for a, b in ((input1, input2), (input1, input1), (input2, input2))]
    cos = sizes[0] / jnp.sqrt((sizes[1] + 1e-12) * (sizes[2] + 1e-12))
    near = jnp.where(target == 1, 1 - cos, 0)
    return _reduce(near + jnp.where(target == -1, positive_part(cos - margin, share), 0), reduction)


@lowering("aten.triplet_margin_loss.default")
def triplet_margin_loss(
    anchor: Array,
    positive: Array,
    negative: Array,
    margin: float = 1.0,
    p: float = 2.0,
    eps: float = 1e-6,
    swap: bool = False,
    reduction: int = _MEAN,
    *,
    share: float = ALL,
) -> Array:
    """max(0, d(anchor, positive) - d(anchor, negative) + margin), reduced, with d(x, y) = |x - y + eps|_p.

    Norms are over the last axis. With ``swap``, d(positive, negative) replaces the second distance where it is smaller.
    """
    near, far = (jnp.linalg.norm(anchor - other + eps, p, axis=-1) for other in (positive, negative))
    if swap:
        far = jnp.minimum(far, jnp.linalg.norm(positive - negative + eps, p, axis=-1))
    return _reduce(positive_part(margin + near - far, share), reduction)
