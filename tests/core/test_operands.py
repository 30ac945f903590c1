"""The format of float32 operands follows the platform, the setting and what an operation names itself."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import lla_jax as lla
from lla_jax.core import operands, precision, recipes

X = np.ones((2, 2), np.float32)
TPU, CPU = (SimpleNamespace(platform=name) for name in ("tpu", "cpu"))


def linear(params, batch):
    return ((batch @ params) ** 2).mean()


def gpu(capability):
    return SimpleNamespace(platform="gpu", compute_capability=capability)


@pytest.mark.parametrize(
    ("device", "formats"),
    [
        (CPU, ["float32", "float32", "float32"]),
        (TPU, ["float32", "bfloat16_3x", "bfloat16"]),
        (gpu("9.0"), ["float32", "tensorfloat32", "tensorfloat32"]),
        (gpu("7.5"), ["float32", "float32", "float32"]),
        (gpu("gfx90a"), ["float32", "tensorfloat32", "tensorfloat32"]),
        (SimpleNamespace(platform="new"), ["float32", "bfloat16_3x", "bfloat16"]),
    ],
)
def test_the_format_follows_the_device(device, formats):
    assert [operands.format_of(device, name) for name in operands.PRECISIONS] == formats


def format_in(f, device, *args):
    return operands.format_inside(jax.make_jaxpr(f)(*(args or (X,))).jaxpr, device)


def test_what_an_operation_names_itself_counts():
    assert format_in(lambda x: x @ x, TPU) == "bfloat16"
    assert format_in(lambda x: jnp.dot(x, x, precision="highest"), TPU) == "float32"
    assert format_in(lambda x: jnp.dot(x, x, precision=(lax.Precision.HIGHEST, lax.Precision.HIGH)), TPU) == (
        "bfloat16_3x"
    )
    assert format_in(lambda x: jax.lax.map(lambda y: y @ y, x[None])[0], TPU) == "bfloat16"
    assert format_in(lambda x: lax.conv(x[None, None], x[None, None], (1, 1), "SAME"), gpu("8.0")) == "tensorfloat32"
    with jax.default_matmul_precision("high"):
        assert format_in(lambda x: x @ x, TPU) == "bfloat16_3x"
    assert format_in(lambda x: x * x, TPU) == "float32"
    assert format_in(lambda x: x @ x, TPU, X.astype(np.int32)) == "float32"
    for preset, found in {"TF32_TF32_F32": "tensorfloat32", "BF16_BF16_F32_X3": "bfloat16_3x"}.items():
        assert format_in(lambda x, name=preset: jnp.dot(x, x, precision=name), CPU) == found
    for preset in ("F32_F32_F32", "TF32_TF32_F32_X3", "BF16_BF16_F32_X6"):
        assert format_in(lambda x, name=preset: jnp.dot(x, x, precision=name), TPU) == "float32"


@pytest.mark.parametrize("name", operands.BITS)
def test_numbers_are_rounded_to_the_bits_of_the_format(name):
    digits = operands.BITS[name]
    steps = 1 + np.arange(9, dtype=np.float64) * 2.0 ** -(digits + 1)
    expected = 1 + np.round(np.arange(9) / 4) * 2.0 ** -(digits - 1)  # half to even
    with np.errstate(all="raise"):
        found = np.asarray(operands.rounded(jnp.asarray(steps.astype(np.float32)), name), np.float64)
    np.testing.assert_array_equal(found, steps.astype(np.float32) if name == "float32" else expected)


AXES = lla.directions.given(X[0])
LINE = lla.grid(points=3, dims=1)
CALLS = {
    "landscape": lambda name: lla.evaluate(linear, X[0], X, AXES, LINE, execution=lla.Execution(precision=name)),
    "operator": lambda name: lla.hessian(linear, X[0], X, execution=lla.Execution(precision=name)),
    "losses": lambda name: lla.landscape.losses(linear, X[0], AXES, np.zeros((1, 1)), X, precision=name),
}


@pytest.mark.parametrize("call", CALLS)
def test_an_unknown_precision_lists_the_three(call):
    with pytest.raises(ValueError, match=r"precision: 'float32' given; .*'highest', 'high', 'default'"):
        CALLS[call]("float32")


def test_recipes_differ_where_devices_round_differently():
    def recipe(platform=None, **entry):
        plan = {} if platform is None else {"plan": {"platform": platform}}
        return {"precision": {"x64": False, "params": ["float32"], **entry}} | plan

    def differ(then, now):
        return recipes.differences(then, now, ["precision"])

    now = recipe(matmul="highest", bits=24)
    for before in ("default", "high", "bfloat16", "float32", "tensorfloat32"):
        assert not differ(recipe("cpu", matmul=before), now)
    assert not differ(recipe("gpu", matmul="float32"), now)
    assert not differ(recipe(), now)  # an operator of before
    on_gpu = recipe(matmul="default", operands="tensorfloat32", bits=11)
    assert differ(on_gpu, now) == {"precision": 'operands: "tensorfloat32" -> "float32"'}
    assert not differ(recipe("gpu", matmul="default"), on_gpu)
    assert differ(recipe("tpu", matmul="default"), on_gpu) == {"precision": 'operands: "bfloat16" -> "tensorfloat32"'}
    assert differ(now, on_gpu)
    assert not differ(recipe(matmul="highest", operands="float32"), now)


def test_rounding_and_words_follow_the_coarser_of_types_and_operands():
    entry = {"params": ["float32"], "lowest": "float32", "operands": "tensorfloat32", "bits": 11}
    assert precision.eps_at_work({"precision": entry}) == 2**-10
    assert precision.types_at_work({"precision": entry}) == ["float32", "tensorfloat32"]
    assert recipes.rounding({"precision": entry}) == 4 * 2**-10
    assert 'precision="highest"' in precision.find_coarse(entry).remedy
    own = entry | {"operands": "float32"}  # the network asks for it
    assert "leave precision= out" in precision.find_coarse(own).remedy
    half = entry | {"lowest": "bfloat16", "bits": 8}
    assert precision.find_coarse(half).name == "bfloat16"
    assert precision.eps_at_work({"precision": half}) == float(jnp.finfo(jnp.bfloat16).eps)
    assert precision.find_coarse({"params": ["float32"], "lowest": "float32", "bits": 24}) is None
    assert precision.eps_at_work({}) == 0


def as_on(monkeypatch, platform):
    monkeypatch.setattr(operands, "format_of", lambda device, name: operands.format_on(platform, name))
    describe, there = operands.describe, SimpleNamespace(platform=platform)
    monkeypatch.setattr(operands, "describe", lambda name, device: describe(name, there))


def test_results_state_the_bits_of_an_accelerator(monkeypatch):
    as_on(monkeypatch, "tpu")
    params, data = np.ones(3, np.float32), np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    coarse, fine = lla.Execution(precision="default"), lla.Execution()
    with pytest.warns(
        UserWarning, match=r"device multiplies matrices in bfloat16, 8 .*about 2 digits; pass execution="
    ):
        H = lla.hessian(linear, params, data, execution=coarse)
    assert H.recipe["precision"]["operands"] == "bfloat16"
    assert H.recipe["precision"]["bits"] == 8
    assert lla.hessian(linear, params, data, execution=fine).recipe["precision"]["bits"] == 24
    axes, grid = lla.directions.given(0.001 * params), lla.grid(points=5, dims=1)
    with pytest.warns(UserWarning, match=r"a matrix product rounds its weights to bfloat16.*precision=\"highest\""):
        plane = lla.evaluate(linear, params, data, axes, grid, execution=coarse)
    assert {"matmul": "default", "operands": "bfloat16", "bits": 8}.items() <= plane.recipe["precision"].items()
    assert plane.recipe["precision"]["lost"] > 0.5
    plane = lla.evaluate(linear, params, data, axes, grid, execution=fine)
    assert {"matmul": "highest", "operands": "float32", "bits": 24}.items() <= plane.recipe["precision"].items()


def test_on_a_cpu_the_setting_changes_no_bit():
    params, data = np.ones(3, np.float32) / 3, np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    axes, grid = lla.directions.given(params[::-1].copy()), lla.grid(points=5, dims=1)

    def everything(name):
        execution = lla.Execution(precision=name)
        plane = lla.evaluate(linear, params, data, axes, grid, execution=execution)
        H = lla.hessian(linear, params, data, execution=execution)
        return plane["loss"], np.asarray(H @ params), plane.recipe["precision"]["bits"]

    first, *others = map(everything, operands.PRECISIONS)
    for other in others:
        jax.tree.map(np.testing.assert_array_equal, first, other)
