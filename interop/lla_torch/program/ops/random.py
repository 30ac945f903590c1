"""Operators that draw random numbers; the draw is the result, in torch's order of axes and without a derivative."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lla_torch.program.operators import lowering

Draw = Callable[[Callable[[Any], Any]], jax.Array]


def _refuse_generator(generator: Any) -> None:
    if generator is not None:
        raise ValueError(
            "generator: given, but random numbers come from the key of the call; leave it out in the module"
        )


def _float(dtype: Any) -> Any:
    return jax.dtypes.canonicalize_dtype(float) if dtype is None else dtype


def _constants(*values: Any) -> tuple[Any, ...]:
    return tuple(jax.lax.stop_gradient(v) for v in values)


@lowering("aten.rand", "aten.rand.generator", random=True)
def rand(size: Sequence[int], *, draw: Draw, dtype: Any = None, generator: Any = None) -> jax.Array:
    """Uniform numbers in [0, 1), of the shape ``size``."""
    _refuse_generator(generator)
    return draw(lambda key: jax.random.uniform(key, tuple(size), _float(dtype)))


@lowering("aten.randn", "aten.randn.generator", random=True)
def randn(size: Sequence[int], *, draw: Draw, dtype: Any = None, generator: Any = None) -> jax.Array:
    """Standard normal numbers, of the shape ``size``."""
    _refuse_generator(generator)
    return draw(lambda key: jax.random.normal(key, tuple(size), _float(dtype)))


@lowering("aten.rand_like", random=True)
def rand_like(x: jax.Array, *, draw: Draw, dtype: Any = None) -> jax.Array:
    """Uniform numbers in [0, 1), of the shape of x."""
    return rand(x.shape, draw=draw, dtype=x.dtype if dtype is None else dtype)


@lowering("aten.randn_like", random=True)
def randn_like(x: jax.Array, *, draw: Draw, dtype: Any = None) -> jax.Array:
    """Standard normal numbers, of the shape of x."""
    return randn(x.shape, draw=draw, dtype=x.dtype if dtype is None else dtype)


def _integers(size: Sequence[int], low: int, high: int, draw: Draw) -> jax.Array:
    return draw(lambda key: jax.random.randint(key, tuple(size), low, high))


@lowering("aten.randint", "aten.randint.generator", random=True)
def randint(high: int, size: Sequence[int], *, draw: Draw, dtype: Any = None, generator: Any = None) -> jax.Array:
    """Uniform integers in [0, high), of the shape ``size``."""
    return randint_low(0, high, size, draw=draw, dtype=dtype, generator=generator)


@lowering("aten.randint.low", "aten.randint.low_generator", random=True)
def randint_low(
    low: int, high: int, size: Sequence[int], *, draw: Draw, dtype: Any = None, generator: Any = None
) -> jax.Array:
    """Uniform integers in [low, high), of the shape ``size``."""
    _refuse_generator(generator)
    numbers = _integers(size, low, high, draw)
    return numbers if dtype is None else numbers.astype(dtype)


@lowering("aten.randint_like", random=True)
def randint_like(x: jax.Array, high: int, *, draw: Draw, dtype: Any = None) -> jax.Array:
    """Uniform integers in [0, high), of the shape of x."""
    return randint_like_low(x, 0, high, draw=draw, dtype=dtype)


@lowering("aten.randint_like.low_dtype", random=True)
def randint_like_low(x: jax.Array, low: int, high: int, *, draw: Draw, dtype: Any = None) -> jax.Array:
    """Uniform integers in [low, high), of the shape of x."""
    return _integers(x.shape, low, high, draw).astype(x.dtype if dtype is None else dtype)


@lowering("aten.randperm", "aten.randperm.generator", random=True)
def randperm(n: int, *, draw: Draw, dtype: Any = None, generator: Any = None) -> jax.Array:
    """The numbers 0 to n - 1 in random order."""
    _refuse_generator(generator)
    numbers = draw(lambda key: jax.random.permutation(key, n))
    return numbers if dtype is None else numbers.astype(dtype)


def _normal(shape: tuple[int, ...], mean: Any, std: Any, dtype: Any, draw: Draw) -> jax.Array:
    mean, std = _constants(mean, std)
    return draw(lambda key: mean + std * jax.random.normal(key, shape, dtype))


@lowering(*(f"aten.normal.{kind}" for kind in ("Tensor_Tensor", "Tensor_float", "float_Tensor")), random=True)
def normal(mean: Any, std: Any = 1.0, *, draw: Draw, generator: Any = None) -> jax.Array:
    """Normal numbers with these means and standard deviations, which broadcast and as in torch get no gradient."""
    _refuse_generator(generator)
    shape = jnp.broadcast_shapes(jnp.shape(mean), jnp.shape(std))
    return _normal(shape, mean, std, jnp.result_type(float, mean, std), draw)


@lowering("aten.normal.float_float", random=True)
def normal_of_size(
    mean: float, std: float, size: Sequence[int], *, draw: Draw, dtype: Any = None, generator: Any = None
) -> jax.Array:
    """Normal numbers with one mean and standard deviation, of the shape ``size``."""
    _refuse_generator(generator)
    return _normal(tuple(size), mean, std, _float(dtype), draw)


@lowering("aten.normal_functional", "aten.normal.default", random=True)
def normal_like(x: jax.Array, mean: float = 0.0, std: float = 1.0, *, draw: Draw, generator: Any = None) -> jax.Array:
    """Normal numbers with one mean and standard deviation, of the shape and type of x."""
    _refuse_generator(generator)
    return _normal(x.shape, mean, std, x.dtype, draw)


@lowering("aten.log_normal", random=True)
def log_normal(x: jax.Array, mean: float = 1.0, std: float = 2.0, *, draw: Draw, generator: Any = None) -> jax.Array:
    """exp of normal numbers with one mean and standard deviation, of the shape and type of x."""
    _refuse_generator(generator)
    return draw(lambda key: jnp.exp(mean + std * jax.random.normal(key, x.shape, x.dtype)))


@lowering("aten.uniform", random=True)
def uniform(x: jax.Array, *bounds: float, draw: Draw, generator: Any = None, **named: float) -> jax.Array:
    """Uniform numbers in [from, to), of the shape and type of x; the bounds are 0 and 1 if left out."""
    _refuse_generator(generator)
    interval = {**dict(zip(("from", "to"), bounds)), **named}  # "from" cannot name a parameter in Python
    low, high = interval.get("from", 0.0), interval.get("to", 1.0)
    return draw(lambda key: jax.random.uniform(key, x.shape, x.dtype, low, high))


@lowering("aten.exponential", random=True)
def exponential(x: jax.Array, lambd: float = 1.0, *, draw: Draw, generator: Any = None) -> jax.Array:
    """Exponential numbers of the rate lambd, of the shape of x; never 0, so that they have a logarithm."""
    _refuse_generator(generator)
    least = jnp.finfo(x.dtype).tiny
    return draw(lambda key: jnp.maximum(jax.random.exponential(key, x.shape, x.dtype), least) / lambd)


@lowering("aten.bernoulli", random=True)
def bernoulli(p: jax.Array, *, draw: Draw, generator: Any = None) -> jax.Array:
    """For each entry of p: 1 with this probability, else 0."""
    _refuse_generator(generator)
    (p,) = _constants(p)
    return draw(lambda key: jax.random.bernoulli(key, p).astype(p.dtype))


@lowering("aten.bernoulli.p", "aten.bernoulli.Tensor", random=True)
def bernoulli_like(x: jax.Array, p: Any = 0.5, *, draw: Draw, generator: Any = None) -> jax.Array:
    """1 with probability p, else 0, of the shape and type of x."""
    _refuse_generator(generator)
    (p,) = _constants(p)
    return draw(lambda key: jax.random.bernoulli(key, p, x.shape).astype(x.dtype))


@lowering("aten.poisson", random=True)
def poisson(rate: jax.Array, generator: Any = None, *, draw: Draw) -> jax.Array:
    """For each entry of ``rate``: a Poisson number with this rate."""
    _refuse_generator(generator)
    (rate,) = _constants(rate)
    return draw(lambda key: jax.random.poisson(key, rate, rate.shape).astype(rate.dtype))


@lowering("aten.multinomial", random=True)
def multinomial(
    weights: jax.Array, num_samples: int, replacement: bool = False, *, draw: Draw, generator: Any = None
) -> jax.Array:
    """``num_samples`` indices for each row, with probabilities proportional to the weights along the last axis."""
    _refuse_generator(generator)
    (logs,) = _constants(jnp.log(weights))

    def sample(key: Any) -> jax.Array:
        count = num_samples if replacement else 1
        noise = jax.random.gumbel(key, (*logs.shape[:-1], count, logs.shape[-1]), logs.dtype)
        scores = logs[..., None, :] + noise
        return jnp.argmax(scores, -1) if replacement else jax.lax.top_k(scores[..., 0, :], num_samples)[1]

    return draw(sample)
