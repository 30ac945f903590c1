"""Image operators against torch in float64: values, gradients, second derivatives, in both layouts."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lla_torch.program import program
from lla_torch.program.operators import TABLE, full_name
from lla_torch.program.ops import (  # noqa: F401
    convolution,
    normalization,
    pooling,
    resizing,
)
from lla_torch.program.views import View, channels_last, inverse

aten = torch.ops.aten


class T:
    """A random tensor among a case's arguments; ``ties``: of few different values; ``order``: how it lies."""

    def __init__(self, *shape, ties=False, low=None, order=None, fixed=False):
        self.shape, self.ties, self.low, self.order, self.fixed = shape, ties, low, order, fixed

    def make(self, rng):
        x = rng.normal(size=self.shape)
        if self.ties:
            x = np.round(x)
        return x if self.low is None else self.low + np.abs(x)


def W(*shape):
    """A convolution's weight, which lies as (*window, in, out)."""
    return T(*shape, order=convolution.kernel_order(len(shape)))


def S(n, low=None):
    """A running statistic, which torch does not differentiate by."""
    return T(n, low=low, fixed=True)


CONVOLUTIONS = [
    (aten.conv1d.default, T(2, 3, 9), W(4, 3, 3), T(4), [2], [1], [2]),
    (aten.conv1d.default, T(3, 9), W(4, 3, 3), T(4)),
    (aten.conv1d.padding, T(2, 3, 9), W(4, 3, 4), T(4), [1], "same", [3]),
    (aten.conv2d.default, T(2, 3, 7, 6), W(4, 3, 3, 2), T(4), [2, 1], [1, 0]),
    (aten.conv2d.default, T(2, 4, 5, 6), W(8, 1, 3, 3), None, [1, 1], [1, 1], [1, 1], 4),
    (aten.conv2d.default, T(2, 4, 5, 6), W(6, 2, 3, 3), T(6), [2, 2], [2, 1], [2, 1], 2),
    (aten.conv2d.default, T(3, 5, 6), W(4, 3, 1, 1), T(4), [3, 3]),
    (aten.conv2d.padding, T(2, 3, 5, 6), W(4, 3, 4, 2), T(4), [1, 1], "same", [1, 3]),
    (aten.conv2d.padding, T(2, 3, 5, 6), W(4, 3, 4, 2), T(4), [2, 2], "valid"),
    (aten.conv3d.default, T(2, 2, 4, 5, 3), W(3, 2, 2, 3, 2), T(3), [1, 2, 1], [1, 1, 0]),
    (aten.conv3d.padding, T(2, 4, 5, 3), W(3, 2, 2, 3, 2), None, [1], "same"),
    (aten.conv_transpose1d.default, T(2, 4, 5), W(4, 3, 3), T(3), [2], [1], [1]),
    (aten.conv_transpose2d.input, T(2, 4, 3, 4), W(4, 3, 3, 2), T(3), [3, 2], [1, 0], [2, 1]),
    (aten.conv_transpose2d.input, T(2, 4, 3, 4), W(4, 3, 2, 3), T(6), [2, 2], [0, 3], [1, 0], 2, [1, 2]),
    (aten.conv_transpose2d.input, T(4, 3, 4), W(4, 1, 2, 2), None, [1, 1], [0, 0], [0, 0], 4),
    (aten.conv_transpose2d.input, T(1, 2, 4, 4), W(2, 3, 1, 1), T(3), [1, 1], [1, 1]),
    (aten.conv_transpose3d.input, T(1, 2, 2, 3, 2), W(2, 2, 2, 2, 3), T(2), [2, 1, 2], [1, 0, 1]),
    (aten.convolution.default, T(2, 3, 5, 4), W(4, 3, 2, 2), T(4), [1, 2], [1, 1], [1, 1], False, [0, 0], 1),
    (aten.convolution.default, T(2, 3, 5), W(3, 2, 2), None, [2], [0], [1], True, [1], 1),
]

POOLING = [
    (aten.max_pool1d.default, T(2, 3, 9), [3], [2], [1]),
    (aten.max_pool1d.default, T(3, 9), [2], [], [0], [2]),
    (aten.max_pool2d.default, T(2, 3, 6, 4), [2, 2]),
    (aten.max_pool2d.default, T(2, 3, 6, 4, ties=True), [2, 2]),
    (aten.max_pool2d.default, T(2, 3, 7, 5, ties=True), [3, 3], [2, 2], [1, 1], [1, 1], True),
    (aten.max_pool2d.default, T(2, 3, 7, 8, ties=True), [3, 2], [2, 1], [1, 1], [2, 3], True),
    (aten.max_pool2d.default, T(2, 3, 6, 5), [1, 2], [3, 3], [0, 1], [1, 1], True),
    (aten.max_pool2d.default, T(3, 6, 5), [4], [5], [2], [1], True),
    (aten.max_pool2d_with_indices.default, T(2, 3, 7, 5, ties=True), [3, 3], [2, 2], [1, 1], [1, 1], True),
    (aten.max_pool2d_with_indices.default, T(3, 7, 6), [2, 3], [2, 2], [1, 1], [2, 1]),
    (aten.max_pool3d.default, T(1, 2, 5, 4, 4), [2, 2, 3], [2, 2, 1], [1, 0, 1], [1, 1, 1], True),
    (aten.max_pool3d_with_indices.default, T(1, 2, 5, 4, 4), [2, 2, 3], [2, 1, 1], [1, 0, 1], [1, 2, 1]),
    (aten.avg_pool1d.default, T(2, 3, 7), [3], [2], [1], True),
    (aten.avg_pool2d.default, T(2, 3, 6, 4), [2, 2]),
    (aten.avg_pool2d.default, T(2, 3, 7, 6), [3, 3], [2, 2], [1, 1], True, True),
    (aten.avg_pool2d.default, T(2, 3, 7, 6), [3, 2], [2, 3], [1, 1], True, False),
    (aten.avg_pool2d.default, T(3, 7, 6), [3, 3], [2, 2], [1, 1], False, True, 5),
    (aten.avg_pool3d.default, T(1, 2, 5, 4, 3), [2, 3, 2], [2, 2, 1], [1, 1, 0], True, False),
    (aten.adaptive_avg_pool1d.default, T(2, 3, 7), [3]),
    (aten.adaptive_avg_pool2d.default, T(2, 3, 7, 6), [1, 1]),
    (aten.adaptive_avg_pool2d.default, T(2, 3, 6, 4), [3, 2]),
    (aten.adaptive_avg_pool2d.default, T(2, 3, 6, 5), [2, 7]),
    (aten.adaptive_avg_pool2d.default, T(3, 3, 1), [5, 3]),
    (aten._adaptive_avg_pool2d.default, T(2, 3, 7, 4), [3, 8]),
    (aten.adaptive_avg_pool3d.default, T(1, 2, 5, 4, 3), [2, 2, 1]),
    (aten._adaptive_avg_pool3d.default, T(1, 2, 5, 4, 3), [3, 4, 2]),
    (aten.adaptive_max_pool1d.default, T(2, 3, 7), [3]),
    (aten.adaptive_max_pool2d.default, T(2, 3, 6, 4), [3, 2]),
    (aten.adaptive_max_pool2d.default, T(2, 3, 7, 4, ties=True), [3, 6]),
    (aten.adaptive_max_pool3d.default, T(2, 5, 4, 3), [2, 2, 2]),
]

NORMALIZATION = [
    (aten._native_batch_norm_legit_no_training.default, T(3, 4), T(4), T(4), S(4), S(4, low=0.5), 0.1, 1e-5),
    (aten._native_batch_norm_legit_no_training.default, T(2, 3, 4, 5), T(3), T(3), S(3), S(3, low=0.5), 0.1, 1e-3),
    (aten._native_batch_norm_legit_no_training.default, T(2, 3, 4), None, None, S(3), S(3, low=0.5), 0.1, 1e-3),
    (aten._native_batch_norm_legit_functional.default, T(2, 3, 4, 5), T(3), T(3), S(3), S(3, low=0.5), True, 0.1, 1e-5),
    (aten._native_batch_norm_legit_functional.default, T(4, 3), None, None, S(3), S(3, low=0.5), True, 0.3, 1e-5),
    (aten._native_batch_norm_legit.no_stats, T(2, 3, 2, 2, 2), T(3), T(3), True, 0.1, 1e-5),
    (aten.layer_norm.default, T(2, 3, 4), [4], T(4), T(4)),
    (aten.layer_norm.default, T(2, 3, 4, 5), [3, 4, 5], T(3, 4, 5), T(3, 4, 5), 1e-3),
    (aten.layer_norm.default, T(2, 3, 4, 5), [4, 5], T(4, 5), None),
    (aten.layer_norm.default, T(4), [4]),
    (aten.native_layer_norm.default, T(2, 3, 4, 5), [4, 5], T(4, 5), T(4, 5), 1e-5),
    (aten.group_norm.default, T(2, 6, 3, 4), 3, T(6), T(6)),
    (aten.group_norm.default, T(2, 6), 2),
    (aten.native_group_norm.default, T(2, 4, 5), T(4), T(4), 2, 4, 5, 2, 1e-5),
    (aten.instance_norm.default, T(2, 3, 4, 5), T(3), T(3), None, None, True, 0.1, 1e-5, False),
    (aten.instance_norm.default, T(2, 3, 4), None, None, None, None, True, 0.1, 1e-5, False),
    (aten.instance_norm.default, T(2, 3, 4), T(3), T(3), S(3), S(3, low=0.5), False, 0.1, 1e-5, False),
    (aten.rms_norm.default, T(2, 3, 4), [4], T(4)),
    (aten.rms_norm.default, T(2, 3, 4, 5), [4, 5], None, 1e-3),
    (aten._weight_norm.default, W(4, 3, 2, 2), T(4, 1, 1, 1), 0),
    (aten._weight_norm.default, T(4, 3), T(1, 3), 1),
    (aten._weight_norm_interface.default, T(4, 3, 2), T(4, 1, 1), 0),
]


def _upsampled():
    names = {1: ["linear1d"], 2: ["bilinear2d", "bicubic2d"], 3: ["trilinear3d"]}
    shapes = {1: (2, 3, 5), 2: (2, 2, 5, 4), 3: (1, 2, 3, 4, 2)}
    sizes = {1: [8], 2: [3, 9], 3: [5, 2, 2]}
    scales = {1: [1.7], 2: [2.0, 1.3], 3: [1.5, 0.7, 2.0]}
    for dims, shape in shapes.items():
        for name in names[dims]:
            op = getattr(aten, f"upsample_{name}").vec
            for align in (True, False):
                yield op, T(*shape), sizes[dims], align, None
                yield op, T(*shape), None, align, scales[dims]
        for name in ("upsample_nearest", "_upsample_nearest_exact"):
            op = getattr(aten, f"{name}{dims}d").vec
            yield op, T(*shape), sizes[dims], None
            yield op, T(*shape), None, scales[dims]
            yield op, T(*shape), None, [2.0] * dims
    yield aten.upsample_bilinear2d.vec, T(1, 2, 5, 4), None, False, [1.1, 1.2]
    yield aten.upsample_bicubic2d.vec, T(1, 2, 5, 4), None, False, [1.1, 2.0]
    yield aten.upsample_bilinear2d.vec, T(1, 2, 5, 4), [1, 1], True, None
    yield aten.upsample_bilinear2d.default, T(1, 2, 5, 4), [6, 5], False, 1.3, None
    yield aten.upsample_nearest2d.default, T(1, 2, 5, 4), [6, 5], 1.3, None
    for op in (aten._upsample_bilinear2d_aa, aten._upsample_bicubic2d_aa):  # smaller, larger; with scale factors
        yield op.vec, T(2, 1, 7, 4), [3, 6], False, None
        yield op.vec, T(1, 2, 7, 5), None, True, [0.4, 1.7]
        yield op.default, T(1, 2, 7, 5), [3, 2], False, 0.45, None
        yield op.default, T(1, 2, 5, 5), [1, 5], True, None, None
    yield aten.upsample_nearest2d.vec, T(1, 1, 5, 3), None, [2.1, 1.1]  # twice as many, and as many


RESIZING = [
    *_upsampled(),
    *(
        (aten.grid_sampler_2d.default, T(2, 2, 4, 3), T(2, 3, 4, 2), mode, padding, align)
        for mode in (0, 1, 2)
        for padding, align in ((0, True), (1, False), (2, mode == 0), (2, mode != 0))
    ),
    (aten.grid_sampler_3d.default, T(1, 2, 3, 4, 2), T(1, 2, 1, 3, 3), 0, 2, False),
    (aten.affine_grid_generator.default, T(2, 2, 3), [2, 1, 3, 4], False),
    (aten.affine_grid_generator.default, T(2, 2, 3), [2, 1, 3, 1], True),
    (aten.affine_grid_generator.default, T(1, 3, 4), [1, 1, 2, 3, 4], True),
    (aten.pixel_shuffle.default, T(2, 8, 2, 3), 2),
    (aten.pixel_shuffle.default, T(2, 1, 9, 2, 3), 3),
    (aten.pixel_unshuffle.default, T(3, 4, 6), 2),
    (aten.channel_shuffle.default, T(2, 6, 2, 3), 3),
    (aten.constant_pad_nd.default, T(2, 3, 4, 5), [1, -2, 0, 3], 1.5),
    (aten.constant_pad_nd.default, T(2, 3, 4), [1, 1, 0, 0, 0, 2]),
    (aten.reflection_pad1d.default, T(2, 3, 4), [3, 1]),
    (aten.reflection_pad2d.default, T(2, 3, 4, 5), [4, 1, 0, 3]),
    (aten.reflection_pad2d.default, T(3, 4, 5), [-1, 3, 2, -2]),
    (aten.reflection_pad3d.default, T(1, 2, 3, 2, 3), [1, 2, 0, 1, 2, 1]),
    (aten.replication_pad1d.default, T(3, 4), [3, 6]),
    (aten.replication_pad2d.default, T(2, 3, 4, 5), [2, -1, 0, 3]),
    (aten.replication_pad3d.default, T(1, 2, 3, 2, 3), [1, 2, 0, 1, 2, 1]),
    (aten._pad_circular.default, T(2, 3, 4, 5), [5, 1, 0, 3]),
    (aten._pad_circular.default, T(2, 3, 6), [-2, 3]),
    (aten.im2col.default, T(2, 3, 5, 6), [2, 3], [2, 1], [1, 0], [1, 2]),
    (aten.im2col.default, T(3, 5, 6), [2, 2], [1, 1], [0, 0], [2, 2]),
    (aten.col2im.default, T(2, 12, 4), [4, 5], [2, 2], [1, 1], [0, 0], [2, 2]),
    (aten.col2im.default, T(8, 8), [4, 3], [2, 2], [1, 1], [0, 1], [2, 1]),
]

CASES = [*CONVOLUTIONS, *POOLING, *NORMALIZATION, *RESIZING]


def _fast_order(spec):
    """How a tensor lies in a converted network: a weight's own order, images with the channels last."""
    if spec.order is not None:
        return spec.order
    ndim = len(spec.shape)
    return channels_last(ndim) if ndim >= 3 else tuple(range(ndim))


def _plain_order(spec):
    return tuple(range(len(spec.shape)))


def _jax_function(op, args, order_of):
    """The lowering as a function of the case's tensors, each laid as ``order_of`` says."""
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


def _torch_function(op, args):
    def function(*tensors):
        left = iter(tensors)
        results = op(*(next(left) if isinstance(a, T) else a for a in args))
        return results if isinstance(results, tuple) else (results,)

    return function


def _close(found, expected, tolerance, what):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape, what
    scale = max(np.abs(expected).max(initial=0), 1.0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale, err_msg=what)


def _arrays(args, seed=0):
    rng = np.random.default_rng(seed)
    return [a.make(rng) for a in args if isinstance(a, T)], rng


def _name(case):
    return "-".join([full_name(case[0])[5:], *(str(a.shape if isinstance(a, T) else a) for a in case[1:])])


def _compiled(function):
    """Compiled quickly rather than well."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function, compiler_options=options)


def _tensors(args, arrays):
    specs = [a for a in args if isinstance(a, T)]
    return [torch.tensor(a, requires_grad=not s.fixed) for s, a in zip(specs, arrays, strict=True)]


@pytest.mark.parametrize("case", CASES, ids=_name)
def test_values_and_gradients_are_torchs(case):
    op, *args = case
    orders = [_fast_order]
    if case is next(c for c in CASES if c[0] is op):  # once per operator also as torch lays it
        orders.append(_plain_order)
    arrays, rng = _arrays(args)
    tensors = _tensors(args, arrays)
    expected = _torch_function(op, args)(*tensors)
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
            _, pull, results = jax.vjp(partial(split, _jax_function(op, args, order_of)), *arrays, has_aux=True)
            found.append((results, pull(cotangents)))
        return found

    with jax.enable_x64(True):
        for order_of, (results, found) in zip(orders, _compiled(traced)(arrays, cotangents), strict=True):
            for result, target in zip(results, expected, strict=True):
                _close(result, target.detach().numpy(), 1e-12, f"value, {order_of.__name__}")
            for i, target in zip(moving, gradients, strict=True):
                _close(found[i], target.numpy(), 1e-10, f"gradient {i}, {order_of.__name__}")


SECOND = [
    *(c for c in CONVOLUTIONS if c[0] in (aten.conv2d.default, aten.conv_transpose2d.input)),
    *(c for c in POOLING if c[0] in (aten.max_pool2d.default, aten.max_pool2d_with_indices.default)),
    *(c for c in POOLING if c[0] in (aten.avg_pool2d.default, aten.adaptive_max_pool2d.default)),
    *(c for c in NORMALIZATION if len(c[1].shape) >= 3),
    next(c for c in RESIZING if c[0] is aten.upsample_nearest2d.vec),
    next(c for c in RESIZING if c[0] is aten.col2im.default),
    next(c for c in RESIZING if c[0] is aten.reflection_pad2d.default),
]


def _twice_differentiable(op, args):
    """torch's function; its double backward of weight norm is wrong (differences of its gradients say so)."""
    if op in (aten._weight_norm.default, aten._weight_norm_interface.default):
        return lambda v, g: (v * (g / v.norm(2, (*range(1, v.ndim),), keepdim=True)),)
    return _torch_function(op, args)


@pytest.mark.parametrize("case", SECOND, ids=_name)
def test_a_jvp_of_the_gradient_is_torchs_second_derivative(case):
    op, *args = case
    arrays, rng = _arrays(args, 1)
    tensors = _tensors(args, arrays)
    output = _twice_differentiable(op, args)(*tensors)[0]
    weights = rng.normal(size=tuple(output.shape))
    moving = [i for i, t in enumerate(tensors) if t.requires_grad]
    directions = [rng.normal(size=a.shape) * (i in moving) for i, a in enumerate(arrays)]
    along = [tensors[i] for i in moving]
    gradients = torch.autograd.grad((torch.tensor(weights) * output**3).sum(), along, create_graph=True)
    products = [(g * torch.tensor(directions[i])).sum() for i, g in zip(moving, gradients, strict=True)]
    expected = torch.autograd.grad(sum(products), along)

    function = _jax_function(op, args, _fast_order)
    with jax.enable_x64(True):
        gradient = jax.grad(lambda arrays: (weights * function(*arrays)[0] ** 3).sum())
        found = _compiled(lambda a, d: jax.jvp(gradient, (a,), (d,))[1])(arrays, directions)
        for i, target in zip(moving, expected, strict=True):
            _close(found[i], target.numpy(), 1e-10, f"second derivative {i}")


@pytest.mark.parametrize(
    ("op", "args", "message"),
    [
        pytest.param(
            aten.conv2d.padding,
            (T(1, 1, 4, 4), T(1, 1, 2, 2), None, [2, 2], "same"),
            "padding: 'same' given with stride",
            id="conv2d.padding-args0-padding='same' with stride",
        ),
        (aten.max_pool2d.default, (T(1, 1, 2, 2), [3, 3]), "kernel_size"),
        pytest.param(
            aten.group_norm.default, (T(1, 3, 2), 2), "num_groups: 2 given", id="group_norm.default-args2-num_groups=2"
        ),
        (aten.layer_norm.default, (T(1, 3, 2), [3]), "normalized_shape"),
        (aten.upsample_nearest2d.vec, (T(1, 1, 2, 2), None, None), "exactly one"),
        (
            aten._native_batch_norm_legit_functional.default,
            (T(1, 2), None, None, S(2), S(2), True, 0.1, 1e-5),
            "one value",
        ),
    ],
)
def test_misuse_is_told(op, args, message):
    arrays, _ = _arrays(args)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(_jax_function(op, args, _plain_order), *arrays)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("upsample_nearest", "float32"), ("upsample_nearest", "float64"), ("_upsample_nearest_exact", "float64")],
)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_nearest_rounds_as_torch_does(name, dims, dtype):
    op, rest = getattr(aten, f"{name}{dims}d").vec, [1] * (dims - 1)
    for n in (2, 3, 6, 14, 23):
        x = torch.arange(n, dtype=getattr(torch, dtype)).reshape(1, 1, n, *rest)
        cases = [([size, *rest], None) for size in range(1, 50)]
        cases += [(None, [scale, *map(float, rest)]) for scale in (0.7, 1.1, 1.2, 2.1, 7.7)]
        for size, scale in cases:
            expected = op(x, size, scale).flatten().tolist()
            of = (size[0], None) if scale is None else (int(n * scale[0]), scale[0])
            found = resizing._nearest_table(n, *of, "exact" in name, dims == 2, np.dtype(dtype))
            assert found.tolist() == expected, (n, of)


def test_fast_layout_moves_nothing():
    """What a ResNet is made of runs without a transpose, also where it is differentiated."""
    images, kernel = View(jnp.ones((2, 6, 6, 3)), channels_last(4)), View(jnp.ones((3, 3, 3, 4)), (3, 2, 0, 1))

    def block(x, w):
        y = convolution.conv(images.with_array(x), kernel.with_array(w), None, (1, 1), (1, 1))
        y = normalization.batch_norm_eval(y, *(View(jnp.ones(4), (0,)) for _ in range(4)), 0.1, 1e-5)[0]
        y = TABLE["aten.max_pool2d.default"].function(y, (2, 2))
        return TABLE["aten.adaptive_avg_pool2d.default"].function(y, (1, 1)).array.sum()

    assert "transpose[" not in str(jax.make_jaxpr(block)(images.array, kernel.array))
