"""Slices of TPUs by name, and programs compiled for them where the compiler is installed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from lla_jax.execution import devices, topologies

needs_compiler = pytest.mark.skipif(
    not topologies.has_compiler(), reason='the compiler for TPUs is not installed: pip install "jax[tpu]"'
)


@pytest.mark.parametrize(
    ("name", "chips", "hosts"),
    [("tpu-v5e-1", 1, 1), ("v5e-8", 8, 1), ("TPU-v5p-16", 16, 4), ("v5e-16", 16, 4), ("tpu-v6e-256", 256, 64)],
)
def test_a_slice_is_found_by_its_name(name, chips, hosts):
    found = topologies.slice_named(name)
    assert (found.chips, found.hosts) == (chips, hosts)
    assert found.chip.memory < found.chip.flops


@pytest.mark.parametrize("name", ["tpu-v5e-3", "v5p-1", "tpu-v4-8", "", 8, None])
def test_an_unknown_slice_is_answered_by_the_list_of_all(name):
    with pytest.raises(ValueError, match=r"topology: .*v5e-N with N = 1, 4, 8, 16.*v5p-N with N = 4, .*v6e-N"):
        topologies.slice_named(name)


@pytest.mark.parametrize("name", ["cuda", "gpu-h100-8", "nvidia-a100"])
def test_a_gpu_is_refused_with_the_reason(name):
    with pytest.raises(ValueError, match="compiles for a GPU only where one is"):
        topologies.slice_named(name)


def test_clocks_follow_from_documented_peaks():
    for chip in topologies.CHIPS.values():
        assert chip.clock == pytest.approx(1.6e9, rel=0.1)


def test_without_the_compiler_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(topologies, "has_compiler", lambda: False)
    with pytest.raises(ValueError, match=r'libtpu, is not installed.*pip install "jax\[tpu\]"'):
        topologies.devices_of(topologies.slice_named("tpu-v5e-1"))


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (19.50G) "
            "exceeds available HBM (15.75G).",
            (19.5, 15.75),
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 1.75T of 95.74G hbm. Exceeded.",
            (1792, 95.74),
        ),
    ],
)
def test_the_compiler_says_how_much_a_program_lacks(message, needed):
    found = topologies.memory_needed(message)
    assert found == tuple(int(n * 2**30) for n in needed)
    assert topologies.memory_needed("INTERNAL: 3.00G of something (4.00G)") is None


def test_shapes_stand_in_for_arrays_and_rows_are_padded_to_the_shards():
    mesh = devices.mesh_of(jax.devices()[:4], 4)
    tree = {"x": np.zeros((10, 3)), "y": np.zeros(10, np.int64), "z": jax.ShapeDtypeStruct((10, 2), jnp.float32)}
    rows = topologies.abstract_rows(tree, mesh, devices.DATA)
    assert {name: (x.shape, str(x.dtype)) for name, x in rows.items()} == {
        "x": ((12, 3), "float32"),
        "y": ((12,), "int32"),
        "z": ((12, 2), "float32"),
    }
    assert rows["x"].sharding.shard_shape((12, 3)) == (3, 3)


def scan(x, w):
    return jax.lax.scan(lambda c, wi: (c @ wi, None), x, w)[0].sum(0)


def test_a_program_is_described_with_what_it_needs(monkeypatch):
    """On a CPU, whose programs tell no cycles: the time is that of the bytes."""
    here = jax.ShapeDtypeStruct((32, 64), jnp.float32), jax.ShapeDtypeStruct((10, 64, 64), jnp.float32)
    on = topologies.slice_named("tpu-v5e-1")
    program = topologies.compile_program(jax.jit(scan), *here, on=on, name="scan")
    assert program.operations >= 10 * 2 * 32 * 64 * 64
    assert program.arguments == 4 * (32 * 64 + 10 * 64 * 64)
    assert program.peak == program.arguments + program.outputs + program.temporaries
    assert program.fits
    assert program.seconds >= program.roofline > 0
    assert 0 < program.share <= 1

    class Failing:
        def lower(self, *args):
            return self

        def compile(self):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Used 20.00G of 15.75G hbm.")

    program = topologies.compile_program(Failing(), *here, on=on)
    assert not program.fits
    assert program.excess == pytest.approx(4.25 * 2**30, abs=2)
    assert program.seconds is program.operations is program.share is None


@needs_compiler
@pytest.mark.parametrize("name", ["tpu-v5e-1", "tpu-v5e-4"])
def test_a_loop_compiles_for_a_slice_with_its_turns_counted(name):
    on = topologies.slice_named(name)
    mesh = topologies.mesh_over(on, {"x": on.chips})
    split, copy = NamedSharding(mesh, PartitionSpec("x")), NamedSharding(mesh, PartitionSpec())
    x = jax.ShapeDtypeStruct((512, 128), jnp.float32, sharding=split)
    w = jax.ShapeDtypeStruct((10, 128, 128), jnp.float32, sharding=copy)
    program = topologies.compile_program(jax.jit(scan, out_shardings=copy), x, w, on=on)
    assert program.chips == on.chips
    assert program.operations == pytest.approx(10 * 2 * 512 * 128 * 128 / on.chips, rel=0.05)
    assert program.fits
    assert 0 < program.roofline <= program.seconds < 1e-3
    assert program.doubts == ()
    assert ("all-reduce" in program.collectives) == (on.chips > 1)


@needs_compiler
def test_a_program_that_does_not_fit_says_by_how_much():
    on = topologies.slice_named("tpu-v5e-1")
    x = topologies.abstract(np.zeros(()), jax.sharding.SingleDeviceSharding(topologies.devices_of(on)[0]))
    x = jax.ShapeDtypeStruct((100_000, 100_000), x.dtype, sharding=x.sharding)
    program = topologies.compile_program(jax.jit(lambda x: jnp.sort(x, 0) + x), x, on=on)
    assert program.memory == on.chip.memory
    assert program.excess > 20 * 2**30


def test_programs_for_other_devices_leave_the_cache_on_disk_alone():
    before = jax.config.values["jax_enable_compilation_cache"]
    with topologies._without_cache():
        assert not jax.config.values["jax_enable_compilation_cache"]
    assert jax.config.values["jax_enable_compilation_cache"] == before
