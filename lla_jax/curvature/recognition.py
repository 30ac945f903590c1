"""Recognises the likelihood whose negative logarithm a criterion is.

A criterion is known by what it does, not by its name. For targets y that are tried, its slope in the outputs f is

    categorical   g(y) = c/T (softmax(f / T) - e_y)      also for f that are log-probabilities or probabilities
    Bernoulli     g(y) = c/T (sigmoid(f / T) - y)        also for f that are probabilities, and for y in {-1, 1}
    Poisson       g(y) = c (exp(f) - y)                  also for f that are rates, and with offsets (exposures)
    Gaussian      the criterion is a sum of squares in y, whose means and variances are read from its derivatives by y

with any factor c, which is 1 for a negative log-likelihood, and less where an example's entries are averaged. Nothing
else is recognised: a Fisher matrix with targets of another likelihood would be wrong without a word.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import losses
from lla_jax.core import tree as _tree
from lla_jax.core.arguments import Misuse
from lla_jax.core.operands import at_highest
from lla_jax.core.precision import widen
from lla_jax.core.rows import outputs_of_rows
from lla_jax.core.types import Batch, Loss, PyTree
from lla_jax.curvature import criteria, likelihoods
from lla_jax.curvature.likelihoods import Likelihood, Target

CLOSE = 2e-3  # relative: how far slopes may be from those of a likelihood, for rounding in float32
NORMAL = 1e-2  # how far the sum of the outputs may be from 1 where they count as probabilities, in half precision too
REMEDY = (
    "pass sample=f(key, outputs, example) -> example with a target drawn from the model, such as "
    "functools.partial(lla.operators.categorical, temperature=...) or bernoulli, gaussian or poisson beside it; or use "
    'lla.ggn, which draws nothing, or kind="empirical"'
)


_slopes = jax.jit(at_highest(criteria.slopes))
_expand = jax.jit(at_highest(likelihoods.expand_in_target), static_argnums=0)


def _turn_in_target(leaf: int, loss: Loss, outputs: Any, batch: Batch, at: Any, tangent: Any) -> Any:
    """The product of a tangent with the curvature of the total loss as a function of the target, at some target."""
    slope = jax.grad(lambda y: criteria.total(loss, outputs, batch, likelihoods.put(batch, leaf, y)))
    return jax.jvp(slope, (at,), (tangent,))[1]


_turn = jax.jit(at_highest(_turn_in_target), static_argnums=0)


@dataclass(frozen=True)
class _Probe:
    """The criterion at a few rows, whose outputs and targets are tried."""

    loss: Loss
    outputs: Any
    batch: Batch

    @property
    def leaves(self) -> list[np.ndarray]:
        return [np.asarray(x) for x in jax.tree.leaves(self.batch)]

    @property
    def smooth(self) -> list[np.ndarray]:
        return [np.asarray(x) for x in criteria.split_smooth(self.outputs)[0]]

    def slopes(self, output: int, f: np.ndarray, leaf: int, target: np.ndarray) -> np.ndarray:
        """The slope in one leaf of the outputs, with f in its place, and with a target in its place."""
        smooth, rebuild = criteria.split_smooth(self.outputs)
        tried = rebuild([jnp.asarray(f, x.dtype) if i == output else x for i, x in enumerate(smooth)])
        found = _slopes(self.loss, tried, self.batch, likelihoods.put(self.batch, leaf, jnp.asarray(target)))
        return np.asarray(found[output], np.float64)


def recognise(loss: Loss, params: PyTree, block: losses.Block, train: bool) -> Likelihood:
    """The likelihood whose negative logarithm the criterion of a loss is, found by trying targets at a few rows.

    Args:
      loss: the loss.
      params: the parameters of the model.
      block: the rows.
      train: whether normalization layers use the statistics of the batch.

    Raises:
      ValueError: the criterion reads no target, or none of the likelihoods that are known fits.
    """
    outputs, batch = outputs_of_rows(loss, params, block, train=train), block.batch
    read = criteria.leaves_read(loss, outputs, batch)
    if not read:
        raise Misuse(
            "loss",
            "its criterion reads nothing of the batch: the losses are its outputs already (a converted step shows no "
            'others), so no target can be drawn; use kind="empirical", or a loss with outputs and a criterion: '
            "lla.Loss(apply, criterion), lla_torch.convert(...).loss(criterion)",
        )
    wide = widen(outputs)
    probe = _Probe(loss, wide, batch)
    found = [next((t for t in _tried(probe, leaf) if t is not None), None) for leaf in read]
    targets = tuple(t for t in found if t is not None)
    if not targets:
        raise Misuse(
            "sample",
            "the criterion is the negative logarithm of none of the likelihoods that are recognised (categorical, "
            "Bernoulli, Poisson, Gaussian), as with smoothed labels, margins or weighted classes; its targets must be "
            f"drawn from the model: {REMEDY}",
        )
    return Likelihood(targets)


def _tried(probe: _Probe, leaf: int) -> Iterator[Target | None]:
    """What each family finds for one leaf of the batch, one after the other."""
    for output in range(len(probe.smooth)):
        for family in (_try_categorical, _try_bernoulli, _try_poisson):
            yield _quietly(family, probe, leaf, output)
    yield _quietly(_try_gaussian, probe, leaf)


def _quietly(family: Callable[..., Target | None], *args: Any) -> Target | None:
    """What a family finds; None where the criterion refuses the targets that are tried, as it may a float as index."""
    try:
        with np.errstate(all="ignore"):
            return family(*args)
    except (TypeError, ValueError, IndexError, AssertionError, FloatingPointError):
        return None


def _is_close(found: np.ndarray, expected: np.ndarray) -> bool:
    scale = np.abs(expected).max(initial=0)
    return bool(found.size) and bool(np.all(np.abs(found - expected) <= CLOSE * scale)) and np.isfinite(scale)


def _try_categorical(probe: _Probe, leaf: int, output: int) -> Target | None:
    y, f = probe.leaves[leaf], probe.smooth[output]
    for axis in range(1, f.ndim):
        for layout in _layouts(y, f.shape, axis):
            for form in ("scores", "log-probabilities", "probabilities"):
                if form == "scores" or _is_normal(f, axis, form):
                    target = replace(Target(leaf, "categorical", output, axis, form), **layout)
                    temperature = _temperature(probe, target)
                    if temperature is not None:
                        return replace(target, temperature=temperature)
    return None


def _layouts(y: np.ndarray, shape: tuple[int, ...], axis: int) -> Iterator[dict[str, Any]]:
    """How labels may belong to outputs of a shape with classes along an axis: fields of ``Target``."""
    classes = shape[axis]
    if classes < 2:
        return
    if _is_whole(y) and y.size * classes == np.prod(shape):
        yield {}
    if y.size == np.prod(shape):
        yield {"one_hot": True}
    if _is_whole(y) and y.ndim == 2 and len(shape) == 3 and y.shape[1] - shape[3 - axis] in (0, 1):
        yield {"shift": 1}  # the other axis is that of the tokens


def _is_whole(y: np.ndarray) -> bool:
    return y.dtype.kind in "iu" or (y.dtype.kind == "f" and bool(np.all(y == np.round(y))))


def _is_normal(f: np.ndarray, axis: int, form: str) -> bool:
    p = np.exp(f) if form == "log-probabilities" else f
    return bool(np.all(p >= 0) and np.all(np.abs(p.sum(axis) - 1) < NORMAL))


def _temperature(probe: _Probe, target: Target) -> float | None:
    """The temperature at which the criterion is a categorical likelihood; None if it is none."""
    axis, form = target.axis, target.form
    rng, y, shape = np.random.default_rng(0), probe.leaves[target.leaf], probe.smooth[target.output].shape
    classes, entries = shape[axis], tuple(n for i, n in enumerate(shape) if i != axis)
    scores = rng.standard_normal((*entries, classes))
    logp = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    f = np.moveaxis({"scores": scores, "log-probabilities": logp, "probabilities": np.exp(logp)}[form], -1, axis)

    def slope(label: np.ndarray) -> np.ndarray:
        if target.one_hot:
            hot = np.moveaxis(np.eye(classes)[label], -1, axis)
            tried = np.where(np.any(y.reshape(shape) != 0, axis, keepdims=True), hot, 0).reshape(y.shape)
        else:
            shifted = np.concatenate([y[:, :1], label], 1)[:, : y.shape[1]] if target.shift else label.reshape(y.shape)
            tried = np.where((y >= 0) & (y < classes), shifted, y)
        g = probe.slopes(target.output, f, target.leaf, tried.astype(y.dtype))
        return np.moveaxis(g, axis, -1).reshape(-1, classes)

    first = rng.integers(0, classes, entries)
    labels = [first, (first + 1 + rng.integers(0, classes - 1, entries)) % classes]
    one, two = map(slope, labels)
    counted = np.any(one, -1) | np.any(two, -1)  # the others are masked, or ignored
    one, two, scores, logp = one[counted], two[counted], *(x.reshape(-1, classes)[counted] for x in (scores, logp))
    a, b = (np.eye(classes)[label.ravel()[counted]] for label in labels)
    if form == "scores":
        height = ((two - one) * a).sum(-1, keepdims=True)  # c / T
        p = one / height + a
        if not _is_close(two / height + b, p) or not np.all(height > 0) or np.any(p < -CLOSE):
            return None
        centred = scores - (p * scores).sum(-1, keepdims=True)
        inverse = (p * centred * np.log(np.maximum(p, 1e-30))).sum() / (p * centred**2).sum()
        model = np.exp(inverse * scores - (inverse * scores).max(-1, keepdims=True))
        fits = inverse > 0 and _is_close(p, model / model.sum(-1, keepdims=True))
        return float(f"{1 / inverse:.5g}") if fits else None
    unit = -np.ones_like(logp) if form == "log-probabilities" else -np.exp(-logp)
    c = [(g * e).sum(-1, keepdims=True) / (unit * e).sum(-1, keepdims=True) for g, e in ((one, a), (two, b))]
    fits = all(_is_close(g, c[0] * unit * e) for g, e in ((one, a), (two, b)))
    return 1.0 if fits and np.all(c[0] > 0) else None


def _try_bernoulli(probe: _Probe, leaf: int, output: int) -> Target | None:
    signed = probe.leaves[leaf].dtype.kind in "if"
    for low, (form, outputs) in itertools.product((0, -1)[: 1 + signed], _BERNOULLI.items()):
        target = Target(leaf, "Bernoulli", output, low=low)
        tried = _try_two_values(probe, target, outputs)
        if tried is None:
            return None
        f, mean, height = tried
        if np.all((mean > 0) & (mean < 1)):
            logit = np.log(mean / (1 - mean))
            steps = np.diff(logit, axis=0) / np.diff(f, axis=0)
            inverse = np.broadcast_to(np.median(steps), steps.shape)
            if form == "scores" and _is_close(steps, inverse) and _is_constant(height) and np.all(height > 0):
                return target
            if form == "probabilities" and _is_close(mean, f) and _is_constant(height * f * (1 - f)):
                return target
    return None


def _try_poisson(probe: _Probe, leaf: int, output: int) -> Target | None:
    target = Target(leaf, "Poisson", output)
    if probe.leaves[leaf].dtype == bool:
        return None
    for form, outputs in (("scores", _normal), ("rates", _positive)):
        tried = _try_two_values(probe, target, outputs)
        if tried is None:
            return None
        f, mean, height = tried
        if np.all(mean > 0) and np.all(height > 0):
            if form == "scores" and _is_constant(mean * np.exp(-f)) and _is_constant(height):
                return target
            if form == "rates" and _is_close(mean, f) and _is_constant(height * f):
                return target
    return None


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape)


def _fractions(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(0.1, 0.9, shape)


def _positive(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return rng.uniform(0.5, 3.0, shape)


_BERNOULLI = {"scores": _normal, "probabilities": _fractions}


def _is_constant(x: np.ndarray) -> bool:
    """Whether an array (trials, entries) is the same in all trials."""
    return _is_close(x, np.broadcast_to(x[:1], x.shape))


def _try_two_values(probe: _Probe, target: Target, outputs: Callable[..., np.ndarray]) -> Any:
    """(outputs, means, heights), each (3, counted entries), where the slope of an entry is height (mean - y).

    None where the target has not an entry for each output, or no entry counts.
    """
    rng, y, shape = np.random.default_rng(1), probe.leaves[target.leaf], probe.smooth[target.output].shape
    if y.size != np.prod(shape):
        return None
    invalid = np.asarray(likelihoods.is_invalid(y, target.low, 1 if target.family == "Bernoulli" else None))
    tried, means, heights, counted = [], [], [], np.zeros(y.size, bool)
    for _ in range(3):
        f = outputs(rng, shape)
        low, high = (
            probe.slopes(target.output, f, target.leaf, np.where(invalid, y, value).astype(y.dtype)).ravel()
            for value in (target.low, 1)
        )
        counted |= (low != 0) | (high != 0)
        tried.append(f.ravel())
        means.append(low / (low - high))
        heights.append(low - high)
    if not counted.any():
        return None
    return tuple(np.stack(x)[:, counted] for x in (tried, means, heights))


def _try_gaussian(probe: _Probe, leaf: int) -> Target | None:
    whole, size = probe.leaves[leaf].dtype.kind in "iub", probe.leaves[leaf].size
    if whole and all(f.size != size for f in probe.smooth):  # numbers of classes, which are no quantities
        return None
    y, slope, precision = (np.asarray(x, np.float64) for x in _expand(leaf, probe.loss, probe.outputs, probe.batch))
    rng, counted = np.random.default_rng(2), np.nan_to_num(precision) != 0
    if not counted.any() or np.any(precision[counted] <= 0):
        return None
    precision = np.where(counted, precision, 0)
    signs = rng.choice([-1.0, 1.0], y.shape)
    far = np.where(counted, y + 3 * rng.standard_normal(y.shape) / np.sqrt(np.where(counted, precision, 1)), y)

    def turn(at: np.ndarray, tangent: np.ndarray) -> np.ndarray:
        dtype = _tree.wide(probe.leaves[leaf].dtype)
        args = (jnp.asarray(at, dtype), jnp.asarray(tangent, dtype))
        found = _turn(leaf, probe.loss, probe.outputs, probe.batch, *args)
        return np.where(counted, np.asarray(found, np.float64), 0)

    same = _is_close(turn(y, signs), precision * signs) and _is_close(turn(far, np.ones_like(y)), precision)
    if not same:
        return None
    safe = np.where(counted, precision, 1)
    mean, deviation = np.where(counted, y - slope / safe, y), np.where(counted, 1 / np.sqrt(safe), 0)
    fits = _mean_slope_is_zero(probe, leaf, mean, deviation)
    return Target(leaf, "Gaussian") if fits else None


def _mean_slope_is_zero(probe: _Probe, leaf: int, mean: np.ndarray, deviation: np.ndarray) -> bool:
    """Whether the slope in the outputs has mean zero over a Gaussian target, which it has for a normalized density.

    The slope is a sum of parabolas in the entries of the target, so that two points give its mean exactly.
    """
    dtype = _tree.wide(probe.leaves[leaf].dtype)
    high, low = (
        _slopes(probe.loss, probe.outputs, probe.batch, likelihoods.put(probe.batch, leaf, jnp.asarray(y, dtype)))
        for y in (mean + deviation, mean - deviation)
    )
    pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in zip(high, low, strict=True)]
    rounding = 4 * jnp.finfo(dtype).eps * np.max(np.abs(mean) / np.where(deviation > 0, deviation, np.inf), initial=0)
    close = CLOSE + float(rounding)  # of targets that are large beside their deviation, such as prices
    return close < 1 and all(bool(np.all(np.abs(a + b) <= close * np.max(np.abs([a, b])))) for a, b in pairs)
