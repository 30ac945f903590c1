"""Recognises the likelihood whose negative logarithm a criterion is, and draws targets from it.

A criterion is known by what it does, not by its name. For targets y that are tried, its slope in the outputs f is

    categorical   g(y) = c/T (softmax(f / T) - e_y)      also for f that are log-probabilities or probabilities
    Bernoulli     g(y) = c/T (sigmoid(f / T) - y)        also for f that are probabilities, and for y in {-1, 1}
    Poisson       g(y) = c (exp(f) - y)                  also for f that are rates, and with offsets (exposures)
    Gaussian      the criterion is a sum of squares in y, whose means and variances are read from its derivatives by y

with any factor c, which is 1 for a negative log-likelihood, and less where an example's entries are averaged. Nothing
else is recognised: a Fisher matrix with targets of another likelihood would be wrong without a word.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lla_jax.core import losses
from lla_jax.core.arguments import Misuse, warn_caller
from lla_jax.core.types import Batch, Loss, PyTree
from lla_jax.curvature import criteria, samplers

RECOGNISE = "recognise"
"""The sampler of a matrix whose likelihood is yet to be recognised."""

CLOSE = 2e-3  # relative: how far slopes may be from those of a likelihood, for rounding in float32
NORMAL = 1e-2  # how far the sum of the outputs may be from 1 where they count as probabilities, in half precision too
DRAWS, FEWEST_DRAWS = 256, 64  # of targets, over which slopes are averaged
MOST_OUTPUTS = 2**18  # of the rows that are looked at, unless one row alone has more
DRAWN_OUTPUTS = 2**24  # outputs times draws, roughly
SIGMAS = 6.0  # standard errors by which the mean slope may differ from zero
REMEDY = (
    "pass sample=f(key, outputs, example) -> example with a target drawn from the model, such as "
    "functools.partial(lla.operators.categorical, temperature=...) or bernoulli, gaussian or poisson beside it; or use "
    'lla.ggn, which draws nothing, or kind="empirical"'
)


@dataclass(frozen=True)
class Target:
    """How the target in one leaf of a batch is drawn.

    Args:
      leaf: its number among the leaves of the batch.
      family: "categorical", "Bernoulli", "Poisson" or "Gaussian".
      output: the number of the leaf that it belongs to, among the floating leaves of the outputs.
      axis: the axis of this leaf along which the classes lie.
      form: what the outputs are to the classes: "scores", "log-probabilities" or "probabilities".
      temperature: what the criterion divides the scores by.
      one_hot: whether the target has an entry for each class, instead of its number.
      shift: 1 where the scores of a token belong to the label of the next one, as in language models; else 0.
      low: the smaller one of the two values of a Bernoulli target; the other one is 1.
    """

    leaf: int
    family: str
    output: int = 0
    axis: int = -1
    form: str = "scores"
    temperature: float = 1.0
    one_hot: bool = False
    shift: int = 0
    low: int = 0

    def __str__(self) -> str:
        if self.family != "categorical":
            return self.family
        warm = "" if self.temperature == 1 else f" / {self.temperature:g}"
        ahead = ", of the next token" if self.shift else ""
        return f"categorical over axis {self.axis} of {self.form}{warm}{ahead}"


@dataclass(frozen=True)
class Likelihood:
    """How all targets of a batch are drawn from the model."""

    targets: tuple[Target, ...]

    def __str__(self) -> str:
        return ", ".join(map(str, self.targets))


def draw(sampler: Any, loss: Loss, keys: Any, outputs: Any, batch: Batch) -> Batch:
    """The batch with targets drawn from the model.

    Args:
      sampler: a ``Likelihood``, or ``sample(key, outputs, example) -> example``.
      loss: the loss.
      keys: one for each example, (B,).
      outputs: of the model for the batch.
      batch: B examples.
    """
    if not isinstance(sampler, Likelihood):
        with losses.note_call(
            "sample", "sample(key, outputs, example) for one example", losses.Block(batch, None, None)
        ):
            return jax.vmap(sampler)(keys, outputs, batch)
    leaves, structure = jax.tree.flatten(batch)
    for number, target in enumerate(sampler.targets):
        own = keys if number == 0 else jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        leaves[target.leaf] = _DRAW[target.family](target, loss, own, outputs, batch)
    return jax.tree.unflatten(structure, leaves)


def _draw_classes(target: Target, loss: Loss, keys: Any, outputs: Any, batch: Batch) -> Any:
    f = criteria.split_smooth(outputs)[0][target.output]
    old = jnp.asarray(jax.tree.leaves(batch)[target.leaf])
    scores = jnp.moveaxis(f, target.axis, -1) / target.temperature
    scores = jnp.log(scores) if target.form == "probabilities" else scores
    if target.shift:
        now = old[:, 1 : 1 + scores.shape[1]]
        drawn = jax.vmap(samplers.draw_classes)(keys, scores[:, : now.shape[1]], now)
        return old.at[:, 1 : 1 + scores.shape[1]].set(drawn)
    if not target.one_hot:
        scores = scores.reshape(*old.shape, -1)
        return jax.vmap(samplers.draw_classes)(keys, scores, old)
    classes = jax.vmap(jax.random.categorical)(keys, scores)
    drawn = jnp.moveaxis(jax.nn.one_hot(classes, f.shape[target.axis], dtype=old.dtype), -1, target.axis)
    counts = jnp.any(old.reshape(f.shape) != 0, axis=target.axis, keepdims=True)  # a row of zeros is no observation
    return jnp.where(counts, drawn, 0).astype(old.dtype).reshape(old.shape)


def _draw_bernoulli(target: Target, loss: Loss, keys: Any, outputs: Any, batch: Batch) -> Any:
    old, low, high = _slopes_at_two(target, loss, outputs, batch)
    chance = jnp.where(low - high > 0, low / (low - high), 0)
    drawn = jax.vmap(lambda key, p: jax.random.bernoulli(key, p))(keys, jnp.clip(chance, 0, 1))
    keep = _is_invalid(old, target.low, 1) | (low == high)
    return jnp.where(keep, old, jnp.where(drawn, 1, target.low).astype(old.dtype))


def _draw_poisson(target: Target, loss: Loss, keys: Any, outputs: Any, batch: Batch) -> Any:
    old, zero, one = _slopes_at_two(target, loss, outputs, batch)
    keep = _is_invalid(old, 0, None) | (zero - one <= 0)
    rate = jnp.where(keep, 0, zero / jnp.where(keep, 1, zero - one))
    drawn = jax.vmap(jax.random.poisson)(keys, jnp.maximum(rate, 0))
    return jnp.where(keep, old, drawn.astype(old.dtype))


def _draw_gaussian(target: Target, loss: Loss, keys: Any, outputs: Any, batch: Batch) -> Any:
    old, slope, precision = _expand_in_target(target.leaf, loss, outputs, batch)
    counts = precision > 0  # not so for entries that are masked, of which NaN in place of a target is one case
    safe = jnp.where(counts, precision, 1)
    noise = jax.vmap(lambda key: jax.random.normal(key, old.shape[1:], old.dtype))(keys)
    return jnp.where(counts, old - slope / safe + noise / jnp.sqrt(safe), old)


_DRAW: dict[str, Callable[..., Any]] = {
    "categorical": _draw_classes,
    "Bernoulli": _draw_bernoulli,
    "Poisson": _draw_poisson,
    "Gaussian": _draw_gaussian,
}


def _put(batch: Batch, leaf: int, value: Any) -> Batch:
    leaves, structure = jax.tree.flatten(batch)
    return jax.tree.unflatten(structure, [value if i == leaf else x for i, x in enumerate(leaves)])


def _is_invalid(target: Any, low: int, high: int | None) -> Any:
    """Entries that no distribution over [low, high] can give, such as -100, -1 or NaN for what is not observed."""
    if target.dtype == bool:
        return jnp.zeros(target.shape, bool)
    return ~((target >= low) & (target <= (jnp.inf if high is None else high)))


def _slopes_at_two(target: Target, loss: Loss, outputs: Any, batch: Batch) -> tuple[Any, Any, Any]:
    """(target, slopes with each entry of it at its low value, slopes with each at 1), all of the target's shape."""
    old = jnp.asarray(jax.tree.leaves(batch)[target.leaf])
    invalid = _is_invalid(old, target.low, 1 if target.family == "Bernoulli" else None)

    def slope_at(value: int) -> Any:
        tried = _put(batch, target.leaf, jnp.where(invalid, old, jnp.asarray(value, old.dtype)))
        return criteria.slopes(loss, outputs, batch, tried)[target.output].reshape(old.shape)

    return old, slope_at(target.low), slope_at(1)


def _expand_in_target(leaf: int, loss: Loss, outputs: Any, batch: Batch) -> tuple[Any, Any, Any]:
    """(the target as floating array, slope, diagonal curvature) of the total loss as a function of the target."""
    old = jnp.asarray(jax.tree.leaves(batch)[leaf])
    old = old.astype(jnp.promote_types(old.dtype, jnp.float32))
    slope = jax.grad(lambda y: criteria.total(loss, outputs, batch, _put(batch, leaf, y)))
    return old, *jax.jvp(slope, (old,), (jnp.ones_like(old),))


# --- recognising


_slopes = jax.jit(criteria.slopes)
_expand = jax.jit(_expand_in_target, static_argnums=0)


def _turn_in_target(leaf: int, loss: Loss, outputs: Any, batch: Batch, at: Any, tangent: Any) -> Any:
    """The product of a tangent with the curvature of the total loss as a function of the target, at some target."""
    slope = jax.grad(lambda y: criteria.total(loss, outputs, batch, _put(batch, leaf, y)))
    return jax.jvp(slope, (at,), (tangent,))[1]


_turn = jax.jit(_turn_in_target, static_argnums=0)


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
        found = _slopes(self.loss, tried, self.batch, _put(self.batch, leaf, jnp.asarray(target)))
        return np.asarray(found[output], np.float64)


_SETTLED: dict[Any, Any] = {}  # the samplers of losses that were looked at
MOST_SETTLED = 128


def settle(loss: Loss, params: PyTree, block: losses.Block, sampler: Any, train: bool) -> Any:
    """The sampler of the targets, recognised where it is ``RECOGNISE``, once its mean slope is known to be zero.

    A loss is looked at once for each sampler and shape.

    Raises:
      ValueError: as ``recognise`` and ``check_mean_slope``.
    """
    shapes = jax.tree.map(lambda x: (x.shape, str(x.dtype)), (params, block))
    seen = (jax.tree.structure(loss), sampler, train, jax.tree.structure(shapes), *jax.tree.leaves(shapes))
    if seen not in _SETTLED:
        block = _shorten(loss, params, block, train)
        recognised = sampler == RECOGNISE
        found = recognise(loss, params, block, train) if recognised else sampler
        check_mean_slope(loss, params, block, found, train, recognised)
        if len(_SETTLED) >= MOST_SETTLED:
            del _SETTLED[next(iter(_SETTLED))]
        _SETTLED[seen] = found
    return _SETTLED[seen]


def _shorten(loss: Loss, params: PyTree, block: losses.Block, train: bool) -> losses.Block:
    """Fewer rows of a block where the outputs are many, such as scores of all words for each token."""
    sizes = [x.size for x in jax.tree.leaves(_outputs.eval_shape(loss, params, block, train=train))]
    rows = len(block.index)
    keep = int(np.clip(rows * MOST_OUTPUTS // max(1, sum(sizes)), 1, rows))
    return jax.tree.map(lambda x: x[:keep], block)


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
    outputs, batch = _outputs(loss, params, block, train=train), block.batch
    with losses.note_call("the criterion", "criterion(outputs, batch)", block):
        read = criteria.leaves_read(loss, outputs, batch)
    if not read:
        raise Misuse(
            "loss",
            "its criterion reads nothing of the batch: the losses are its outputs already (a converted step shows no "
            'others), so no target can be drawn; use kind="empirical", or a loss with outputs and a criterion: '
            "lla.Loss(apply, criterion), lla_torch.convert(...).loss(criterion)",
        )
    wide = jax.tree.map(_widen, outputs)
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


@functools.partial(jax.jit, static_argnames="train")
def _outputs(loss: Loss, params: PyTree, block: losses.Block, *, train: bool) -> Any:
    return losses.outputs_of(loss, params, loss.state, block, train)[0]


def _widen(x: Any) -> Any:
    low = jnp.issubdtype(x.dtype, jnp.floating) and jnp.dtype(x.dtype).itemsize < 4
    return x.astype(jnp.float32) if low else x


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
    if _is_whole(y) and y.ndim == 2 and len(shape) == 3 and axis == 2 and y.shape[1] - shape[1] in (0, 1):
        yield {"shift": 1}


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
    invalid = np.asarray(_is_invalid(y, target.low, 1 if target.family == "Bernoulli" else None))
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
    y, _, precision = (np.asarray(x, np.float64) for x in _expand(leaf, probe.loss, probe.outputs, probe.batch))
    rng, counted = np.random.default_rng(2), np.nan_to_num(precision) != 0
    if not counted.any() or np.any(precision[counted] <= 0):
        return None
    precision = np.where(counted, precision, 0)
    signs = rng.choice([-1.0, 1.0], y.shape)
    far = np.where(counted, y + 3 * rng.standard_normal(y.shape) / np.sqrt(np.where(counted, precision, 1)), y)

    def turn(at: np.ndarray, tangent: np.ndarray) -> np.ndarray:
        dtype = jnp.promote_types(probe.leaves[leaf].dtype, jnp.float32)
        args = (jnp.asarray(at, dtype), jnp.asarray(tangent, dtype))
        found = _turn(leaf, probe.loss, probe.outputs, probe.batch, *args)
        return np.where(counted, np.asarray(found, np.float64), 0)

    same = _is_close(turn(y, signs), precision * signs) and _is_close(turn(far, np.ones_like(y)), precision)
    return Target(leaf, "Gaussian") if same else None


# --- the check that holds for every Gauss-Newton matrix


def with_curved_criterion(loss: Loss, params: PyTree, block: losses.Block, train: bool) -> Loss:
    """The loss, cut into outputs and a criterion that is curved in them; without curvature its GGN would be zero.

    Where the criterion is linear and ``loss.apply`` offers another cut, ``apply.scores(criterion) -> (apply,
    criterion)`` with the same losses, this one is taken.

    Raises:
      ValueError: the criterion is linear in the outputs.

    Warns:
      UserWarning: the criterion is piecewise linear, and the matrix (but for a penalty) zero in truth.
    """
    outputs = _outputs.eval_shape(loss, params, block, train=train)
    if any(jnp.issubdtype(x.dtype, jnp.complexfloating) for x in jax.tree.leaves(outputs)):
        return loss  # refused where the product is made
    shape = criteria.shape_in_outputs(loss, outputs, block.batch)
    if shape == "curved":
        return loss
    if shape == "piecewise linear":
        warn_caller(
            "loss: the criterion is piecewise linear in the outputs, as absolute errors and margins are, so that its "
            "Gauss-Newton matrix is zero but for the penalty; use lla.hessian, or a criterion that is curved"
        )
        return loss
    offered = getattr(loss.apply, "scores", lambda criterion: None)(loss.criterion)
    if offered is not None:
        return replace(loss, apply=offered[0], criterion=offered[1])
    raise Misuse(
        "loss",
        "its criterion is linear in the outputs, so that the Gauss-Newton matrix is zero. Where the network ends in "
        "log-softmax, end it before, and use the cross-entropy of its scores as criterion; where a step computes the "
        "losses (lla_torch.convert_loss), convert the network instead: lla_torch.convert(module, inputs).loss(...) of "
        "torch.nn.CrossEntropyLoss() or the like. Or use lla.hessian",
    )


# --- the check that holds for every likelihood


def check_mean_slope(
    loss: Loss, params: PyTree, block: losses.Block, sampler: Any, train: bool, recognised: bool
) -> None:
    """Check that the mean slope over drawn targets is zero, E_y[grad_f l(f, y)] = 0, as it is for every likelihood.

    The slope is taken along a tangent of the outputs, J J' g for a mean slope g of other draws, since outputs may be
    constrained (log-probabilities). Its variance is that of the draws, or the curvature along the tangent if this is
    larger: for a likelihood both have one mean, and a target that is rare may be in no draw.

    Raises:
      ValueError: the mean is farther from zero than 6 standard errors.
    """
    outputs = _outputs(loss, params, block, train=train)
    entries = sum(x.size for x in jax.tree.leaves(outputs))
    draws = int(np.clip(DRAWN_OUTPUTS // max(1, entries), FEWEST_DRAWS, DRAWS))
    statistics = functools.partial(_slope_statistics, loss, outputs, block, sampler=sampler, draws=draws)
    zero = jax.tree.map(jnp.zeros_like, criteria.split_smooth(outputs)[0])
    slope, _ = statistics(zero, 0)
    tangent = _tangent(loss, params, block, slope, train=train)
    mean, variance, curvature = (float(x) for x in statistics(tangent, 1)[1])
    error = np.sqrt(max(variance, curvature, 0.0) / draws)
    if not np.isfinite([mean, error]).all() or abs(mean) <= SIGMAS * error:
        return
    raise Misuse(
        "sample",
        f"the mean slope of the criterion over the drawn targets is {abs(mean) / error if error else np.inf:.0f} "
        "standard errors from zero, which it must be where targets are drawn from the likelihood whose negative "
        f"logarithm the criterion is{_blame(sampler, recognised)}; {REMEDY}",
    )


def _blame(sampler: Any, recognised: bool) -> str:
    if recognised:
        return f" (recognised was: {sampler})"
    return ": draw them with the criterion's own temperature, class axis, variance or rate"


@functools.partial(jax.jit, static_argnames=("sampler", "draws"))
def _slope_statistics(
    loss: Loss, outputs: Any, block: losses.Block, tangent: list[Any], seed: Any, *, sampler: Any, draws: int
) -> tuple[list[Any], tuple[Any, Any, Any]]:
    """(mean slope, (its mean along the tangent, the variance of a draw along it, mean curvature along it))."""
    smooth, rebuild = criteria.split_smooth(outputs)
    key = jax.random.fold_in(jax.random.key(0), seed)

    def one(number: Any) -> tuple[list[Any], Any, Any]:
        keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, number), block.index)
        drawn = draw(sampler, loss, keys, outputs, block.batch)
        slope = lambda leaves: criteria.slopes(loss, rebuild(leaves), block.batch, drawn)  # noqa: E731
        g, turned = jax.jvp(slope, (smooth,), (tangent,))
        return g, _inner(g, tangent), _inner(turned, tangent)

    def add(sums: list[Any], number: Any) -> tuple[list[Any], Any]:
        g, *along = one(number)
        return jax.tree.map(lambda s, x: s + x / draws, sums, g), along

    sums, (along, turned) = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, smooth), jnp.arange(draws))
    return sums, (along.mean(), along.var(ddof=1), turned.mean())


@functools.partial(jax.jit, static_argnames="train")
def _tangent(loss: Loss, params: PyTree, block: losses.Block, slope: list[Any], *, train: bool) -> list[Any]:
    """J J' g for a slope g, with J' g of norm 1: the change of the outputs as the parameters move along -g."""

    def model(p: PyTree) -> list[Any]:
        return criteria.split_smooth(losses.outputs_of(loss, p, loss.state, block, train)[0])[0]

    pulled = jax.vjp(model, params)[1](slope)[0]
    size = jnp.sqrt(_inner(pulled, pulled))
    pulled = jax.tree.map(lambda x: x / jnp.where(size == 0, 1, size).astype(x.dtype), pulled)
    return jax.jvp(model, (params,), (pulled,))[1]


def _inner(a: Any, b: Any) -> Any:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum(jnp.vdot(x.astype(jnp.promote_types(x.dtype, jnp.float32)), y) for x, y in pairs)
