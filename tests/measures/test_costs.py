"""What a job costs on a slice of TPUs: the same programs and numbers as there, compiled for CPUs in its place."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

import lla_jax as lla
from lla_jax.execution import topologies
from lla_jax.measures import costs


def apply(params, state, batch, train):
    return jnp.tanh(batch[0] @ params["a"]) @ params["b"], state


def criterion(outputs, batch):
    return (outputs[:, 0] - batch[1]) ** 2


def make(rows=64):
    x = np.linspace(-1, 1, rows * 8).reshape(rows, 8).astype("float32")
    params = {"a": np.ones((8, 16), "float32"), "b": np.ones((16, 1), "float32")}
    return lla.Problem(lla.Loss(apply, criterion), params, (x, x.sum(1)), metrics={"error": criterion})


@pytest.fixture
def on_cpus(monkeypatch):
    """CPU devices in place of the chips."""
    monkeypatch.setattr(topologies, "devices_of", lambda on, one_host=False: tuple(jax.devices()[: on.chips]))


def part(found, name):
    return next(part for part in found.parts if part.name == name)


def test_all_parts_of_a_job_are_compiled_and_counted(on_cpus):
    lines = []
    found = lla.compile_for(make(), "tpu-v5e-1", points=5, products=3, steps=16, told=lines.append)
    landscape, product, lanczos = found.parts
    assert found.fits
    assert (landscape.num, product.num, lanczos.num) == (25, 3, 16)
    assert any(line.startswith("landscape: 5 x 5 points") for line in lines)
    # the loss and a metric of 64 examples at 25 points, the last chunk padded
    (program, runs) = landscape.calls[0]
    least = 25 * 64 * 2 * (8 * 16 + 16)
    assert least * 0.5 <= program.operations * runs  # with the first layer shared, it is computed three times, not 25
    assert product.calls[0].runs == 3
    assert [call.runs for call in lanczos.calls] == [2]  # 8 steps in one program
    assert lanczos.calls[0].program.operations >= 8 * product.calls[0].program.operations
    assert lanczos.seconds == pytest.approx(2 * lanczos.calls[0].program.seconds)
    text = repr(found)
    assert "memory per chip" in text
    assert "estimated time of the job, 25 points" in text
    assert json.loads(json.dumps(found.recipe(), allow_nan=False))["parts"][0]["programs"][0]["fits"] is True


def test_nothing_needs_values_and_several_chips_share_points_and_rows(on_cpus):
    problem = make()
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (problem.params, problem.data))
    found = lla.compile_for(lla.Problem(problem.loss, *shapes), "tpu-v5e-4", points=(9,), steps=4)
    assert part(found, "landscape").calls[0].program.chips == 4
    assert part(found, "landscape").num == 9
    assert [call.runs for call in part(found, "Hessian product").calls] == [1, 1]
    assert part(found, "Lanczos").calls[-1].runs == 4


def test_sharded_parameters_stay_so_over_the_chips_of_a_host(on_cpus):
    mesh = AbstractMesh((4,), ("model",))
    at = NamedSharding(mesh, PartitionSpec(None, "model"))
    problem = make()
    params = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in problem.params.items()}
    params["a"] = jax.ShapeDtypeStruct((8, 16), np.float32, sharding=at)
    sharded = lla.Problem(problem.loss, params, problem.data)
    found = lla.compile_for(sharded, "tpu-v5e-4", points=(3,), steps=4)
    assert "parameters sharded over 4 devices" in part(found, "Hessian product").plan
    step = part(found, "Lanczos").calls[-1].program
    assert step.chips == 4
    assert step.arguments == pytest.approx(6 * 4 * (8 * 4 + 16), abs=16)  # five vectors of the basis, and one
    with pytest.raises(ValueError, match="params: sharded over 4 devices, and a host of tpu-v5e-1 has 1"):
        lla.compile_for(sharded, "tpu-v5e-1", points=(3,))
    keep = lla.Execution(linearize=True)
    with pytest.raises(ValueError, match="linearize: True given, which is not compiled"):
        lla.compile_for(sharded, "tpu-v5e-4", points=(3,), execution=keep)


def test_the_plan_of_the_least_time_is_taken_among_those_that_fit(on_cpus, monkeypatch):
    asked = []

    def compile_program(step, *args, on, name, **static):
        asked.append(static)
        if name != "landscape step":
            return program(seconds=1.0)
        chunk, loop = static["plan"].chunk, static["plan"].loop
        return program(seconds=chunk * (1.0 if loop == "map" else 0.25), peak=2 if loop == "map" else 200)

    def program(seconds, peak=1):
        return topologies.Program("", "tpu-v5e-1", 1, 1, 1, 1, peak, 100, 1.0, 1.0, {}, seconds, 0.1, 1.0, ())

    monkeypatch.setattr(topologies, "compile_program", compile_program)
    found = part(lla.compile_for(make(), "tpu-v5e-1", points=5, steps=8), "landscape")
    assert {static["plan"].loop for static in asked if "plan" in static} == {"vmap", "map"}
    assert "one by one" in found.plan  # as the batch does not fit
    assert found.seconds == 25.0
    assert list(found.others.values()) == [None]


def test_a_model_that_does_not_fit_says_by_how_much_and_what_to_shard():
    none = topologies.Program(
        "product", "tpu-v5e-1", 1, None, None, None, 20 * 2**30, 16 * 2**30, None, None, {}, None, None, 2.0, ()
    )
    made = topologies.Part("Hessian product", "1 block", "products", 3, (topologies.Call(none, 3),), {}, "shard them")
    found = costs.Costs("tpu-v5e-1", 1, 1, (made,))
    assert not found.fits
    assert "does not fit: a chip lacks 4.00 GiB; shard them" in repr(found)
    assert found.recipe()["parts"][0]["seconds"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"topology": "tpu-v5e-5"}, "topology: 'tpu-v5e-5' given; it must be one of tpu-v5e-N"),
        ({"topology": "cuda"}, "only where one is"),
        ({"points": 0}, "points: 0 given"),
        ({"points": "41"}, "points: '41' given"),
        ({"products": 0}, "products: 0 given"),
        ({"steps": 1.5}, "steps: 1.5 given"),
        ({"batch_stats": "reestimate"}, "batch_stats: 'reestimate' given"),
        ({"problem": 3}, "problem: 3 given; it must be an lla.Problem"),
    ],
)
def test_misuse_is_explained(options, message):
    arguments = {"problem": make(), "topology": "tpu-v5e-1"} | options
    with pytest.raises(ValueError, match=message):
        lla.compile_for(arguments.pop("problem"), arguments.pop("topology"), **arguments)


@pytest.mark.skipif(
    not topologies.has_compiler(), reason='the compiler for TPUs is not installed: pip install "jax[tpu]"'
)
def test_a_job_compiles_for_a_chip():
    few = lla.Execution(chunk=5, loop="map", share=False)  # one plan, to be quick
    found = lla.compile_for(make(), "tpu-v5e-1", points=5, steps=8, execution=few)
    assert found.fits
    assert all(0 < part.seconds < 1 for part in found.parts)
    assert all(0 < program.share <= 1 for part in found.parts for program, _ in part.calls)
