"""A case of an image operator compared with torch in float64: values, gradients, second derivatives."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lla_torch.program import program
from lla_torch.program.operators import TABLE, full_name
from lla_torch.program.ops.convolution import kernel_order
from lla_torch.program.views import View, channels_last, inverse

aten = torch.ops.aten


class T:
    """A random tensor among a case's arguments.

    Args:
      shape: its shape.
      ties: whether it has few different values.
      low: the lowest value, or None.
      order: the order of axes of its array.
      fixed: whether torch does not differentiate by it.
    """

    def __init__(self, *shape, ties=False, low=None, order=None, fixed=False):
        self.shape, self.ties, self.low, self.order, self.fixed = shape, ties, low, order, fixed

    def make(self, rng):
        x = rng.normal(size=self.shape)
        if self.ties:
            x = np.round(x)
        return x if self.low is None else self.low + np.abs(x)


def W(*shape):
    """A convolution's weight, whose array is (*window, in, out)."""
    return T(*shape, order=kernel_order(len(shape)))


def S(n, low=None):
    """A running statistic, which torch does not differentiate by."""
    return T(n, low=low, fixed=True)


def fast_order(spec):
    """The order of axes in a converted network: a weight's own order, images with the channels last."""
    if spec.order is not None:
        return spec.order
    ndim = len(spec.shape)
    return channels_last(ndim) if ndim >= 3 else tuple(range(ndim))


def plain_order(spec):
    """torch's own order of axes."""
    return tuple(range(len(spec.shape)))


def jax_function(op, args, order_of):
    """Our operator as a function of the case's tensors, each with the order of axes ``order_of(tensor)``."""
    specs = [a for a in args if isinstance(a, T)]

    def function(*arrays):
        left = iter(zip(specs, arrays, strict=True))

        def value(arg):
            if isinstance(arg, T):
                order = order_of(arg)
                return View(jnp.transpose(next(left)[1], inverse(order)), order)
            return tuple(arg) if isinstance(arg, list) else arg

        values = [value(a) for a in args]
        instruction = program.Instruction(TABLE[full_name(op)], (), (), 0, ())
        results = program.run_instruction(instruction, values, {}, None, np.dtype("float64"))
        results = results if isinstance(results, tuple) else (results,)
        return tuple(r.logical() for r in results)

    return function


def torch_function(op, args):
    """torch's operator as a function of the case's tensors."""

    def function(*tensors):
        left = iter(tensors)
        results = op(*(next(left) if isinstance(a, T) else a for a in args))
        return results if isinstance(results, tuple) else (results,)

    return function


def assert_close(found, expected, tolerance, what):
    """Equal within ``tolerance`` of the largest entry."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, what
    scale = max(np.abs(expected).max(initial=0), 1.0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale, err_msg=what)


def make_arrays(args, seed=0):
    """(arrays of the case's tensors, the generator)."""
    rng = np.random.default_rng(seed)
    return [a.make(rng) for a in args if isinstance(a, T)], rng


def case_name(case):
    """The id of a case."""
    return "-".join([full_name(case[0])[5:], *(str(a.shape if isinstance(a, T) else a) for a in case[1:])])


def compile_quickly(function):
    """jax.jit with a fast compilation of slow code."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function, compiler_options=options)


def make_tensors(args, arrays):
    """The arrays as torch tensors."""
    specs = [a for a in args if isinstance(a, T)]
    return [torch.tensor(a, requires_grad=not s.fixed) for s, a in zip(specs, arrays, strict=True)]


def twice_differentiable(op, args):
    """torch's function; its double backward of weight norm is wrong (differences of its gradients say so)."""
    if op in (aten._weight_norm.default, aten._weight_norm_interface.default):
        return lambda v, g: (v * (g / v.norm(2, (*range(1, v.ndim),), keepdim=True)),)
    return torch_function(op, args)


def check_case(case, cases):
    """Values and gradients of a case are torch's."""
    op, *args = case
    orders = [fast_order]
    if case is next(c for c in cases if c[0] is op):  # once per operator also in torch's order
        orders.append(plain_order)
    arrays, rng = make_arrays(args)
    tensors = make_tensors(args, arrays)
    expected = torch_function(op, args)(*tensors)
    moving = [i for i, t in enumerate(tensors) if t.requires_grad]
    floats = [i for i, e in enumerate(expected) if e.requires_grad]
    cotangents = [rng.normal(size=tuple(expected[i].shape)) for i in floats]
    gradients = torch.autograd.grad(
        [expected[i] for i in floats], [tensors[i] for i in moving], [torch.tensor(c) for c in cotangents]
    )

    def traced(arrays, cotangents):
        def split(function, *arrays):
            results = function(*arrays)
            return [results[i] for i in floats], results

        found = []
        for order_of in orders:
            _, pull, results = jax.vjp(partial(split, jax_function(op, args, order_of)), *arrays, has_aux=True)
            found.append((results, pull(cotangents)))
        return found

    with jax.enable_x64(True):
        for order_of, (results, found) in zip(orders, compile_quickly(traced)(arrays, cotangents), strict=True):
            for result, target in zip(results, expected, strict=True):
                assert_close(result, target.detach().numpy(), 1e-12, f"value, {order_of.__name__}")
            for i, target in zip(moving, gradients, strict=True):
                assert_close(found[i], target.numpy(), 1e-10, f"gradient {i}, {order_of.__name__}")


def check_second_derivative(case):
    """A Hessian-vector product of a case is torch's."""
    op, *args = case
    arrays, rng = make_arrays(args, 1)
    tensors = make_tensors(args, arrays)
    output = twice_differentiable(op, args)(*tensors)[0]
    weights = rng.normal(size=tuple(output.shape))
    moving = [i for i, t in enumerate(tensors) if t.requires_grad]
    directions = [rng.normal(size=a.shape) * (i in moving) for i, a in enumerate(arrays)]
    along = [tensors[i] for i in moving]
    gradients = torch.autograd.grad((torch.tensor(weights) * output**3).sum(), along, create_graph=True)
    products = [(g * torch.tensor(directions[i])).sum() for i, g in zip(moving, gradients, strict=True)]
    expected = torch.autograd.grad(sum(products), along)

    function = jax_function(op, args, fast_order)
    with jax.enable_x64(True):
        gradient = jax.grad(lambda arrays: (weights * function(*arrays)[0] ** 3).sum())
        found = compile_quickly(lambda a, d: jax.jvp(gradient, (a,), (d,))[1])(arrays, directions)
        for i, target in zip(moving, expected, strict=True):
            assert_close(found[i], target.numpy(), 1e-10, f"second derivative {i}")
