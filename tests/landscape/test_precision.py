"""Every matrix product of a user's functions has the precision that the call asks for, whatever the verb."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import lla_jax as lla

X = np.random.default_rng(0).normal(size=(10, 4, 4, 1)).astype(np.float32)
Y = np.random.default_rng(1).integers(0, 2, 10).astype(np.int32)
TURN = np.eye(2, dtype=np.float32)
PRODUCT = re.compile(r"stablehlo\.(?:dot_general|convolution).*?precision(?:_config)? = \[([^\]]*)\]")
FEW = {"chunk": 3, "microbatch": 10, "loop": "map", "devices": 1}


class Net(nn.Module):
    """A convolution, BatchNorm and a matrix product; the last one names its own precision."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(2, (3, 3))(x))
        return nn.Dense(2)(jnp.tanh(x).reshape(len(x), -1))


def cross_entropy(outputs, batch):
    return -jnp.take_along_axis(jax.nn.log_softmax(outputs @ TURN), batch[1][:, None], 1)[:, 0]


def turned(outputs, batch):
    return (outputs @ TURN)[:, 0]


def penalty(params):
    kernel = params["Dense_0"]["kernel"]
    return 1e-3 * jnp.trace(kernel.T @ kernel)


def gram(params, key):
    return jnp.trace(params["Dense_0"]["kernel"].T @ params["Dense_0"]["kernel"])


def rule(params, directions, coord):
    """As the rule "add", by a matrix product."""
    return jax.tree.map(lambda p, d: p + jnp.tensordot(coord.astype(d.dtype), d, 1), params, directions)


@pytest.fixture(scope="module")
def net():
    """(loss, parameters, axes)."""
    module = Net()
    variables = module.init(jax.random.key(0), X)
    loss = lla.from_linen(module, variables, cross_entropy, penalty=penalty)
    return loss, variables["params"], lla.directions.random(jax.random.key(1), variables["params"], 1)


@contextlib.contextmanager
def compiled(folder):
    """A list that gets the precisions of all matrix products of the programs that are compiled in this context."""
    found = []
    before = jax.config.values.get("jax_dump_ir_to", "")
    jax.config.update("jax_dump_ir_to", str(folder))
    try:
        yield found
    finally:
        jax.config.update("jax_dump_ir_to", before)
        for path in folder.glob("*.mlir"):
            found += PRODUCT.findall(re.sub("#stablehlo<precision (\\w+)>", "\\1", path.read_text()))


def evaluate(net, precision, **options):
    loss, params, axes = net
    execution = lla.Execution(precision=precision, **FEW)
    return lla.evaluate(loss, params, (X, Y), axes, lla.grid(points=3, dims=1), execution=execution, **options)


def operate(net, precision, kind, **options):
    loss, params, _ = net
    H = getattr(lla, kind)(loss, params, (X, Y), execution=lla.Execution(precision=precision, devices=1), **options)
    return jax.block_until_ready(H @ params)


def pure(net, precision, **options):
    loss, params, axes = net
    coords = np.zeros((2, 1), np.float32)
    f = jax.jit(lambda p: lla.landscape.losses(loss, p, axes, coords, (X, Y), precision=precision, **options))
    return jax.grad(lambda p: f(p).sum())(params) if not options else f(params)


METRICS = {"metrics": {"turned": turned}, "point_metrics": {"gram": gram}}


def gradient(net, precision):
    return lla.directions.gradient(*net[:2], (X, Y)).tree


def through(net, precision, call, **options):
    """A verb that passes its execution on."""
    loss, params, _ = net
    return call(loss, params, (X, Y), execution=lla.Execution(precision=precision, devices=1), **options)


def convexity(net, precision):
    grid, axes = lla.grid(points=2, dims=1), net[2]
    return through(net, precision, lla.convexity, axes=axes, grid=grid, key=jax.random.key(0), steps=2)


VERBS = {
    "landscape": lambda net, p: evaluate(net, p, **METRICS),
    "batch statistics": lambda net, p: evaluate(net, p, batch_stats="batch", rule=rule),
    "re-estimated statistics": lambda net, p: evaluate(net, p, batch_stats="reestimate"),
    "hessian": lambda net, p: operate(net, p, "hessian"),
    "ggn": lambda net, p: operate(net, p, "ggn"),
    "fisher": lambda net, p: operate(net, p, "fisher", key=jax.random.key(2)),
    "gradient": gradient,
    "convexity": convexity,
    "per layer": lambda net, p: through(net, p, lla.per_layer, key=jax.random.key(0), steps=2),
    "losses": pure,
    "losses, first layer shared": lambda net, p: pure(net, p, share=True),
}
"""Name -> a call at a precision."""


@pytest.mark.parametrize("verb", VERBS)
def test_all_products_are_at_full_precision_whatever_jax_is_set_to(verb, net, tmp_path):
    with jax.default_matmul_precision("bfloat16"), compiled(tmp_path) as found:
        VERBS[verb](net, "highest")
    assert found
    assert set(found) == {"HIGHEST, HIGHEST"}


@pytest.mark.parametrize("verb", ["landscape", "re-estimated statistics", "hessian", "losses, first layer shared"])
def test_a_lower_precision_reaches_the_products(verb, net, tmp_path):
    with compiled(tmp_path) as found:
        VERBS[verb](net, "high")
    assert "HIGH, HIGH" in found
    assert set(found) <= {"HIGH, HIGH", "HIGHEST, HIGHEST"}  # checks and vectors


def numbers(result):
    return [result["loss"]] if isinstance(result, lla.Landscape) else jax.tree.leaves(result)


@pytest.mark.parametrize("verb", ["landscape", "hessian"])
def test_on_a_cpu_no_bit_changes(verb, net):
    first, second = (numbers(VERBS[verb](net, precision)) for precision in ("highest", "high"))
    jax.tree.map(np.testing.assert_array_equal, first, second)
