"""All kernels lower for GPUs and TPUs without a plugin, and nothing that is written for CPUs alone is in them."""

from __future__ import annotations

import collections
import functools
import re
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import lla_jax as lla
from lla_jax.core import randomness
from lla_jax.core.static import static
from lla_jax.curvature import blocks, flat_rows, lanczos, linear_operator, products, projections
from lla_jax.curvature.linear_operator import LinearOperator
from lla_jax.execution import devices
from lla_jax.execution.plans import Plan, candidates
from lla_jax.landscape import batch_stats, kernels
from lla_jax.landscape.kernels import Blocks, Formula, Points
from lla_jax.landscape.rules import add
from tests.helpers import MODELS, ONE, Model, cross_entropy

TARGETS = ("cuda", "tpu")
HERE = devices.mesh_of(jax.devices()[:1])
FORMULA = Formula(static(add), False, ())
ROWS = 6


class Elsewhere:
    """What a mesh asks of a device of another kind, of which there is none here."""

    platform, id, process_index, device_kind = "tpu", 0, 0, "elsewhere"


AWAY = devices.mesh_of([Elsewhere()])


def text(step: Any, *args: Any, targets: tuple[str, ...] = TARGETS, **static: Any) -> str:
    """The program of a jitted function as it is handed to the compilers."""
    return jax.export.export(step, platforms=targets)(*args, **static).mlir_module()


def shapes(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), tree)


def operations(program: str) -> collections.Counter[str]:
    """How often a program convolves with which axes, pools, sorts out the first largest, and multiplies matrices."""
    axes = re.findall(r"stablehlo\.convolution.*?dim_numbers = (\[.*?\]x\[.*?\]->\[.*?\])", program)
    names = re.findall(r"stablehlo\.(reduce_window|select_and_scatter|dot_general)", program)
    return collections.Counter([*axes, *names])


# -- networks ----------------------------------------------------------------------------------------------------------


def _channels_first(p, state, batch, train):
    """Convolutions with channels first, as torch's are, BatchNorm, pooling, a shortcut: a very small ResNet."""

    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME")

    x = convolve(batch[0], p["first"])
    mean, var = (x.mean((0, 2, 3)), x.var((0, 2, 3))) if train else (state["mean"], state["var"])
    axes = (slice(None), None, None)
    normed = jax.nn.relu((x - mean[axes]) * jax.lax.rsqrt(var[axes] + 1e-5))
    normed = jax.lax.reduce_window(normed, -jnp.inf, jax.lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
    outputs = (normed + convolve(normed, p["second"])).mean((2, 3))
    return outputs, {name: 0.9 * state[name] + 0.1 * new for name, new in (("mean", mean), ("var", var))}


def small_resnet() -> Model:
    rng = np.random.default_rng(0)
    params = {"first": rng.standard_normal((3, 1, 3, 3), "f4"), "second": rng.standard_normal((3, 3, 3, 3), "f4")}
    data = rng.standard_normal((ROWS, 1, 8, 8), "f4"), np.arange(ROWS) % 3
    state = {"mean": np.zeros(3, "f4"), "var": np.ones(3, "f4")}
    return Model(lla.Loss(_channels_first, cross_entropy, state=state), params, data)


def from_torch() -> Model:
    """A converted LeNet-like module with BatchNorm."""
    torch = pytest.importorskip("torch")
    import lla_torch

    torch.manual_seed(0)
    nn = torch.nn
    body = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(48, 3)
    )
    images = np.random.default_rng(0).standard_normal((ROWS, 1, 8, 8), "f4")
    net = lla_torch.convert(body.eval(), (torch.tensor(images[:2]),))
    return Model(
        net.loss(cross_entropy, labels=lambda batch: batch), net.variables["params"], (images, np.arange(ROWS) % 3)
    )


NETWORKS = {
    "mlp": lambda: MODELS["mlp"],
    "cnn": lambda: MODELS["cnn"],
    "resnet": small_resnet,
    "attention": lambda: MODELS["attention"],
    "torch": from_torch,
}
CONVOLUTIONAL = ("cnn", "resnet", "torch")


@functools.cache
def network(name: str) -> Model:
    model = NETWORKS[name]()
    return model._replace(data=jax.tree.map(lambda x: jnp.asarray(x[:ROWS]), model.data))


def plain(model: Model) -> collections.Counter[str]:
    """The operations of the network, as the user wrote it."""
    step = jax.jit(lambda p, batch: model.loss.apply(p, model.loss.state, batch, False)[0])
    return operations(text(step, model.params, model.data))


# -- landscapes --------------------------------------------------------------------------------------------------------


def sums(model: Model, mesh: Any, plan: Plan, points: int, states: Any = None, **about: Any) -> str:
    """The program of a step of a landscape for the devices of a mesh."""
    axes = jax.tree.map(lambda w: np.zeros((2, *np.shape(w)), "f4"), model.params)
    states = jax.tree.map(lambda x: np.zeros((points, *np.shape(x)), x.dtype), states)
    at = Points(model.params, axes, np.zeros((points, 2), "f4"), states)
    rows = Blocks(model.data, np.zeros(1, np.int32), np.int32(ROWS), np.int32(0))
    targets = ("cpu",) if devices.on_cpu(mesh) else TARGETS
    return text(kernels.block_sums, model.loss, at, rows, formula=FORMULA, plan=plan, mesh=mesh, targets=targets)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_of_a_landscape_has_the_operations_of_the_network_under_every_plan_of_an_accelerator(name):
    model = network(name)
    job = {"points": 3, "rows": ROWS, "row_bytes": 1000, "param_bytes": 1000, "uncut": False, "sharable": True}
    own = plain(model)
    for plan in candidates(lla.Execution(), **job, scannable=name not in CONVOLUTIONAL, on_cpu=False):
        found = operations(sums(model, AWAY, plan, plan.chunk))
        for operation, times in own.items():
            if plan.loop == "vmap" and operation not in ("reduce_window", "dot_general"):
                continue  # a batch of networks convolves along other axes
            if operation == "dot_general" or plan.share:  # a shared layer is computed for three parts
                assert found[operation] >= times
            else:
                assert found[operation] == times


def test_the_forms_for_a_cpu_depend_on_the_devices_of_the_program_and_not_on_those_of_this_process():
    model = network("resnet")
    for share in (False, True):
        plan = Plan(2, ROWS, "map", share)
        away, here = (operations(sums(model, mesh, plan, 2)) for mesh in (AWAY, HERE))
        assert away["reduce_window"] == plain(model)["reduce_window"] == 1
        assert here["reduce_window"] == 0  # or this test could not fail
        first = "[b, f, 0, 1]x[o, i, 0, 1]->[b, f, 0, 1]"
        assert away[first] > here[first]


def test_the_pure_losses_of_the_user_are_made_for_the_devices_that_they_are_compiled_for():
    model = network("resnet")
    axes = jax.tree.map(lambda w: np.ones((2, *w.shape), "f4"), model.params)

    @jax.jit
    def losses(coords):
        return lla.landscape.losses(model.loss, model.params, axes, coords, model.data, share=True)

    coords = np.array([[0.1, 0.2], [0.0, 0.0]], "f4")
    assert operations(text(losses, coords))["reduce_window"] == 1
    assert operations(text(losses, coords, targets=("cpu",)))["reduce_window"] == 0
    plainly = lla.landscape.losses(model.loss, model.params, axes, coords, model.data)
    np.testing.assert_allclose(losses(coords), plainly, rtol=1e-5)


def test_statistics_at_points_and_values_of_parameters_lower_too():
    model = network("resnet")
    axes = jax.tree.map(lambda w: np.zeros((2, *w.shape), "f4"), model.params)
    at = Points(model.params, axes, np.zeros((2, 2), "f4"))
    rows = Blocks(model.data, np.int32(0), None, np.int32(0))
    loss = replace(model.loss, penalty=lambda p: (p["first"] ** 2).sum())
    key, metrics = jax.random.key(0), (("norm", lambda p, key: jnp.abs(p["first"]).sum()),)
    for loop in ("map", "vmap"):
        again = {"formula": FORMULA, "size": ROWS, "loop": loop, "mesh": AWAY, "is_average": (True, True)}
        text(batch_stats.batch_statistics, model.loss, at, rows, **again)
        values = {"formula": FORMULA, "loop": loop, "mesh": AWAY, "point_metrics": metrics}
        text(kernels.point_values, loss, at, key, **values)
        found = operations(sums(model, AWAY, Plan(2, ROWS, loop, False), 2, model.loss.state))
        assert found["reduce_window"] == 1


# -- products ----------------------------------------------------------------------------------------------------------


def elsewhere(H: LinearOperator, mesh: Any = AWAY) -> LinearOperator:
    """The operator as it is made where the devices are others: with their blocks."""
    matrix = replace(H.multiplier.matrix, lowered=False)
    settings = blocks.Settings(matrix, mesh, None, False, None, False, False, H.multiplier.precision)
    by = blocks._multiplier(settings, mesh, {"conv_general_dilated"}, None)
    return LinearOperator(by, H.space, H.common, tuple(blocks._blocks(by, ROWS, 1000, None)))


MATRICES = {
    "hessian": lambda *of: lla.hessian(*of, execution=replace(ONE, linearize=False)),
    "ggn": lambda *of: lla.ggn(*of, execution=replace(ONE, linearize=False)),
    "fisher": lambda *of: lla.fisher(*of, key=jax.random.key(0), execution=replace(ONE, linearize=False)),
}
PRODUCTS = [("hessian", name) for name in NETWORKS] + [("ggn", "cnn"), ("fisher", "cnn"), ("ggn", "attention")]


@pytest.mark.parametrize(("kind", "name"), PRODUCTS)
def test_products_lower_with_values_kept_and_computed_anew_and_have_the_convolutions_of_the_network(kind, name):
    model = network(name)
    H = elsewhere(MATRICES[kind](model.loss, model.params, model.data))
    by, vector = H.multiplier, H.structure
    assert not by.matrix.lowered
    assert by.on_device
    (block,) = H.blocks
    maps = jax.eval_shape(functools.partial(products.linearize, by=by, size=block.size), H.common, block.starts)
    programs = [
        text(products.sums_step, H.common, H.space, block, vector, by=by),
        text(products.linearize, H.common, block.starts, by=by, size=block.size),
        text(products.sums_step, H.common._replace(data=None), H.space, maps, vector, by=by),
    ]
    found = sum(map(operations, programs), collections.Counter())
    for operation, times in plain(model).items():
        assert found[operation] >= times


def test_a_product_for_a_cpu_has_its_own_pooling_and_one_for_an_accelerator_has_not():
    model = network("cnn")
    H = MATRICES["hessian"](model.loss, model.params, model.data)
    pooled = []
    for mesh, targets in ((AWAY, TARGETS), (HERE, ("cpu",))):
        there = elsewhere(H, mesh)
        step = text(
            products.sums_step, H.common, H.space, there.blocks[0], H.structure, by=there.multiplier, targets=targets
        )
        pooled.append(operations(step)["reduce_window"])
    assert pooled[0] > 0 == pooled[1]


def test_several_products_and_steps_of_lanczos_lower():
    model = network("cnn")
    H = elsewhere(MATRICES["hessian"](model.loss, model.params, model.data))
    basis = shapes(jax.tree.map(lambda x: np.zeros((4, *x.shape), "f4"), H.structure))
    many = jax.tree.map(lambda x: jax.ShapeDtypeStruct((3, *x.shape), x.dtype), H.structure)
    batched = operations(text(linear_operator.products_step, H, many))
    assert batched["reduce_window"] > 0
    text(linear_operator.product_step, H, H.structure)
    zero = np.float32(0)
    for window in (False, True):
        start = lanczos._Start(np.int32(0), np.int32(1), np.int32(2), zero, zero)
        text(lanczos._on_device, H, basis, start, window=window, batched=False)
        text(lanczos._window_step_from_host, basis, H.structure, np.int32(0), zero, zero)
    text(lanczos._from_host, basis, H.structure, zero, shards=None)
    text(lanczos.begin, H.structure, rows=4)


def test_products_with_sharded_parameters_lower():
    mesh = jax.make_mesh((2,), ("model",), devices=jax.devices()[:2])
    model = network("mlp")
    params = jax.tree.map(lambda w: jax.device_put(w, NamedSharding(mesh, PartitionSpec())), model.params)
    split = NamedSharding(mesh, PartitionSpec(None, "model"))
    params["Dense_0"]["kernel"] = jax.device_put(model.params["Dense_0"]["kernel"], split)
    H = lla.hessian(model.loss, params, model.data)
    vector = jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), H.structure, H.space.tree(H.space.shards)
    )
    program = text(products.sums_step, H.common, H.space, H.blocks[0], vector, by=H.multiplier)
    assert "sharding" in program
    total = jax.eval_shape(
        functools.partial(products.sums_step, by=H.multiplier), H.common, H.space, H.blocks[0], vector
    )
    text(products.finish_step, H.common, H.space, vector, total, by=H.multiplier)


# -- vectors -----------------------------------------------------------------------------------------------------------


def test_rows_and_sketches_lower():
    H = elsewhere(MATRICES["hessian"](*network("mlp")))
    rows = jax.ShapeDtypeStruct((3, flat_rows.width(H.space.size)), np.float32)
    long = jax.ShapeDtypeStruct((3, flat_rows.width(2**20)), np.float32)
    key, numbers = jax.random.key(0), np.arange(3, dtype=np.uint32)
    text(flat_rows.trees, H.space, rows)
    for distribution in ("normal", "rademacher"):
        text(flat_rows._draw_rows, H.space, key, numbers, distribution=distribution)
    for flat in (rows, long):
        text(flat_rows._noisy, flat, flat)
        text(flat_rows._gram, flat, flat)
        text(flat_rows._without, flat, flat)
        text(flat_rows._orthonormal, H.space, flat)


def test_long_vectors_are_drawn_and_added_up_at_once_where_memory_is_no_cpus():
    vector = {"w": jax.ShapeDtypeStruct((projections.LONG,), np.float32)}
    basis = {"w": jax.ShapeDtypeStruct((16, projections.LONG), np.float32)}
    add_up = jax.jit(projections.plus_rows)
    coefficients = jax.ShapeDtypeStruct((16,), np.float32)
    draw = jax.jit(functools.partial(randomness.draw_flat, size=randomness.LONG, distribution="rademacher"))
    assert "stablehlo.while" not in text(add_up, vector, coefficients, basis)
    assert "stablehlo.while" in text(add_up, vector, coefficients, basis, targets=("cpu",))
    pieces = f"tensor<{randomness.PIECE}xf32>"
    key = jax.random.key(0)
    assert pieces not in text(draw, key)
    assert pieces in text(draw, key, targets=("cpu",))
