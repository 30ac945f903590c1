"""Several pixels as channels of one: equal to the convolution, in derivatives too, and chosen where it pays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lla_jax.core.jaxprs import equations
from lla_jax.execution import convolutions, rewriting

NHWC = ("NHWC", "HWIO", "NHWC")


def draw(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


def conv(images, kernel, strides=(1, 1), padding="SAME", numbers=NHWC, **options):
    return jax.lax.conv_general_dilated(images, kernel, strides, padding, dimension_numbers=numbers, **options)


def the_conv(f, *args):
    return next(e for e in equations(jax.make_jaxpr(f)(*args).jaxpr) if e.primitive.name == "conv_general_dilated")


def joined(f, *args):
    """How many convolutions of ``f`` take several pixels of a row at a time."""
    convs = [e for e in equations(jax.make_jaxpr(f)(*args).jaxpr) if e.primitive.name == "conv_general_dilated"]
    return sum(e.params["window_strides"][1] > 1 for e in convs)


@pytest.fixture
def small_too(monkeypatch):
    monkeypatch.setattr(convolutions, "LEAST_OPERATIONS", 0)


@pytest.mark.parametrize(
    ("inside", "outside", "size", "options", "pixels"),
    [
        (16, 16, (3, 3), {}, 2),
        (8, 12, (5, 5), {"padding": "VALID"}, 2),  # 12 columns of the result
        (4, 8, (3, 3), {"padding": ((0, 2), (2, 0))}, 4),
        (6, 4, (1, 3), {"strides": (2, 1)}, 8),
        (1, 6, (3, 5), {}, 4),
        (16, 6, (3, 3), {"padding": ((1, 1), (4, 4))}, 2),  # 22 columns of the result, more than of the images
        (3, 16, (3, 3), {}, 4),
        (16, 16, (3, 3), {"numbers": ("NCHW", "OIHW", "NCHW")}, 2),
        (4, 10, (3, 3), {"numbers": ("CHWN", "IHWO", "NHWC")}, 2),
    ],
)
def test_joined_pixels_equal_the_convolution_and_its_derivatives(small_too, inside, outside, size, options, pixels):
    numbers = options.get("numbers", NHWC)
    images = draw(2, 16, 16, inside).transpose([("NHWC").index(x) for x in numbers[0]])
    kernel = 0.1 * draw(*size, inside, outside).transpose([("HWIO").index(x) for x in numbers[1]])
    eqn = the_conv(lambda x, w: conv(x, w, **options), images, kernel)
    assert convolutions.pixels_to_join(eqn) == pixels

    def plain(x, w):
        return conv(x, w, **options)

    def fast(x, w):
        return convolutions.channels_last(eqn, x, w, pixels)

    def derivatives(f):
        def loss(x, w):
            return jnp.sum(jnp.sin(f(x, w)))

        slope = jax.grad(loss, (0, 1))
        return jax.jit(lambda x, w: (f(x, w), jax.jvp(slope, (x, w), (x, w))))(images, kernel)

    assert joined(fast, images, kernel) == 1
    for one, two in zip(jax.tree.leaves(derivatives(plain)), jax.tree.leaves(derivatives(fast)), strict=True):
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=2e-6 * np.abs(one).max())


@pytest.mark.parametrize(
    ("shape", "kernel", "options"),
    [
        ((64, 32, 32, 16), (1, 1, 16, 16), {}),  # the work would double
        ((64, 32, 32, 16), (3, 3, 16, 16), {"strides": (1, 2)}),
        ((64, 32, 32, 17), (3, 3, 17, 16), {}),  # XLA's faster routine takes it as it is
        ((64, 32, 32, 3), (3, 3, 3, 6), {}),  # for which that routine is slow
        ((64, 33, 33, 16), (3, 3, 16, 16), {}),  # 33 pixels are no pairs
        ((64, 32, 32, 16), (3, 3, 8, 16), {"feature_group_count": 2}),
        ((64, 32, 32, 16), (3, 3, 16, 16), {"rhs_dilation": (1, 2)}),
        ((64, 32, 32, 16), (3, 3, 16, 16), {"lhs_dilation": (2, 2), "padding": ((1, 1), (1, 1))}),
        ((64, 2, 2, 16), (3, 3, 16, 16), {}),  # a kernel wider than the image
        ((1, 8, 8, 4), (3, 3, 4, 4), {}),  # too little work
    ],
)
def test_pixels_are_not_joined_where_it_does_not_pay(shape, kernel, options):
    images, kernel = jnp.zeros(shape), jnp.zeros(kernel)
    assert convolutions.pixels_to_join(the_conv(lambda x, w: conv(x, w, **options), images, kernel)) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_pixels_are_joined_in_single_precision_only(dtype):
    with jax.enable_x64(True):
        images, kernel = jnp.zeros((64, 32, 32, 16), dtype), jnp.zeros((3, 3, 16, 16), dtype)
        assert convolutions.pixels_to_join(the_conv(conv, images, kernel)) == 1


def test_convolutions_that_differentiation_made_are_joined(small_too):
    x, w, v = draw(2, 16, 16, 4), 0.2 * draw(3, 3, 4, 4), 0.2 * draw(3, 3, 4, 4)

    def loss(w):
        return jnp.mean(jnp.tanh(conv(jnp.tanh(conv(x, w)), w)) ** 2)

    def product(v):
        return jax.jvp(jax.grad(loss), (w,), (v,))[1]

    fast = rewriting.rewrite_products(product)
    assert joined(product, v) == 0
    assert joined(fast, v) > joined(rewriting.rewrite_products(loss), w) == 2
    expected = jax.jit(product)(v)
    np.testing.assert_allclose(jax.jit(fast)(v), expected, rtol=1e-5, atol=2e-6 * np.abs(expected).max())
    again = jax.jit(lambda v: jax.jvp(fast, (v,), (v,))[1])(v)
    np.testing.assert_allclose(again, expected, rtol=1e-5, atol=2e-6 * np.abs(expected).max())


def test_points_join_pixels_one_by_one_and_on_a_cpu_only(small_too):
    x, centre, axes = draw(2, 16, 16, 4), {"w": 0.2 * draw(3, 3, 4, 4)}, {"w": 0.2 * draw(1, 3, 3, 4, 4)}

    def f(params):
        return jnp.mean(conv(jax.nn.relu(conv(x, params["w"])), params["w"]) ** 2)

    def at(**options):
        return lambda c: rewriting.share_affine(f, centre, axes, **options)(c)

    coord = jnp.array([0.3])
    assert joined(at(for_cpu=True), coord) == 3  # two parts of the first layer, and the second
    assert joined(at(for_cpu=True, join=False), coord) == joined(at(for_cpu=False), coord) == 0
    assert joined(rewriting.rewrite_for_values(f), centre) == 2
    assert joined(rewriting.rewrite_for_values(f, join=False), centre) == 0
    expected = f({"w": centre["w"] + 0.3 * axes["w"][0]})
    np.testing.assert_allclose(jax.jit(at(for_cpu=True))(coord), expected, rtol=1e-6)
