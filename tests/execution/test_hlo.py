"""Operations, bytes and turns of loops, counted in the text of programs whose numbers are known."""

import jax
import jax.numpy as jnp
import pytest

from lla_jax.execution import hlo


def f32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def compiled(f, *shapes):
    return jax.jit(f).lower(*shapes).compile()


def scan(x, w):
    return jax.lax.scan(lambda c, wi: (jnp.tanh(c @ wi), None), x, w)[0]


def conv(x, w, stride=1, padding="SAME", **options):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, w, (stride, stride), padding, dimension_numbers=numbers, **options)


def backward(x, w):
    return jax.grad(lambda x, w: (conv(x, w, 2, "VALID") ** 2).sum(), (0, 1))(x, w)


PRODUCT = 2 * 32 * 64 * 64
CASES = {
    "product": (lambda x, w: x @ w, (f32(32, 64), f32(64, 64)), PRODUCT),
    "scan of 10": (scan, (f32(32, 64), f32(10, 64, 64)), 10 * PRODUCT),
    "scan in a map of 7": (
        lambda x, w: jax.lax.map(lambda y: scan(y, w), x),
        (f32(7, 32, 64), f32(10, 64, 64)),
        70 * PRODUCT,
    ),
    "fori_loop of 5": (
        lambda x, w: jax.lax.fori_loop(2, 7, lambda i, c: c @ w, x),
        (f32(32, 64), f32(64, 64)),
        5 * PRODUCT,
    ),
    "counts down": (
        lambda x, w: jax.lax.while_loop(lambda c: c[0] > 1, lambda c: (c[0] - 2, c[1] @ w), (9, x))[1],
        (f32(32, 64), f32(64, 64)),
        4 * PRODUCT,
    ),
    "batched": (lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (f32(4, 8, 8), f32(4, 8, 8)), 2 * 4 * 8**3),
    # of 3 x 3 taps on 8 x 8 pixels, 22 x 22 meet a pixel and no padding
    "convolution": (conv, (f32(4, 8, 8, 3), f32(3, 3, 3, 5)), 2 * 4 * 22 * 22 * 3 * 5),
    "grouped": (
        lambda x, w: conv(x, w, padding="VALID", feature_group_count=3),
        (f32(4, 8, 8, 3), f32(3, 3, 1, 6)),
        2 * 4 * 36 * 9 * 6,
    ),
    "forward and backward": (backward, (f32(4, 8, 8, 3), f32(3, 3, 3, 5)), 3 * 2 * 4 * 9 * 9 * 3 * 5),
}


@pytest.mark.parametrize("name", CASES)
def test_products_and_convolutions_count_as_often_as_their_loops_turn(name):
    f, shapes, operations = CASES[name]
    counts = hlo.count(compiled(f, *shapes).as_text())
    assert counts.products == operations
    assert operations <= counts.operations <= 1.05 * operations
    assert not counts.doubts


def test_without_a_loop_operations_and_bytes_are_those_of_the_compiler():
    program = compiled(lambda x, w: jnp.tanh(x @ w).sum(0), f32(32, 64), f32(64, 64))
    counts, known = hlo.count(program.as_text()), program.cost_analysis()
    assert counts.products == PRODUCT
    assert counts.nbytes == pytest.approx(known["bytes accessed"], rel=0.05)


def test_a_loop_that_ends_by_its_values_is_in_doubt_unless_the_caller_knows_its_turns():
    def f(x, w):
        return jax.lax.while_loop(lambda c: c[0].sum() < 100, lambda c: (c[0] @ w, c[1] + 1), (x, 0))

    text = compiled(f, f32(32, 64), f32(64, 64)).as_text()
    counts = hlo.count(text)
    assert counts.products == PRODUCT
    assert len(counts.doubts) == 1
    assert "turns as often as its values say" in counts.doubts[0]
    known = hlo.count(text, {"while": 6})
    assert (known.products, known.doubts) == (6 * PRODUCT, [])


TPU = """HloModule jit_f, is_scheduled=true

%fused (p0: f32[16,100], p1: bf16[10,100,128], p2: s32[]) -> f32[16,128] {
  %p0 = f32[16,100]{1,0:T(8,128)S(1)} parameter(0)
  %p1 = bf16[10,100,128]{2,1,0:T(8,128)(2,1)} parameter(1)
  %p2 = s32[]{:T(128)S(6)} parameter(2)
  %zero = s32[]{:T(128)} constant(0)
  %cut = bf16[1,100,128]{2,1,0:T(8,128)(2,1)} dynamic-slice(%p1, %p2, %zero, %zero), dynamic_slice_sizes={1,100,128}
  %flat = bf16[100,128]{1,0:T(8,128)(2,1)} bitcast(%cut)
  ROOT %conv = f32[16,128]{1,0:T(8,128)S(1)} convolution(%p0, %flat), dim_labels=bf_io->bf, operand_precision={high,high}
}

%body (arg: (s32[], f32[16,100], bf16[10,100,128])) -> (s32[], f32[16,100], bf16[10,100,128]) {
  %one = s32[]{:T(128)} constant(1)
  %arg = (s32[]{:T(128)}, f32[16,100]{1,0:T(8,128)S(1)}, bf16[10,100,128]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %i2 = s32[]{:T(128)S(6)} copy(%i)
  %next = s32[]{:T(128)} add(%i2, %one)
  %x = f32[16,100]{1,0:T(8,128)S(1)} get-tuple-element(%arg), index=1
  %w = bf16[10,100,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%arg), index=2
  %y = f32[16,128]{1,0:T(8,128)S(1)} fusion(%x, %w, %i2), kind=kOutput, calls=%fused, backend_config={"window_config":{"estimated_cycles":"300"}}
  ROOT %out = (s32[]{:T(128)}, f32[16,100]{1,0:T(8,128)S(1)}, bf16[10,100,128]{2,1,0:T(8,128)(2,1)}) tuple(%next, %x, %w)
}

%condition (arg: (s32[], f32[16,100], bf16[10,100,128])) -> pred[] {
  %limit = s32[]{:T(128)} constant(10)
  %arg = (s32[]{:T(128)}, f32[16,100]{1,0:T(8,128)S(1)}, bf16[10,100,128]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

ENTRY %main (x: f32[16,100], w: bf16[10,100,128]) -> f32[16,100] {
  %start = s32[]{:T(128)} constant(0)
  %begin = s32[]{:T(128)} copy(%start)
  %x = f32[16,100]{1,0:T(8,128)} parameter(0)
  %w = bf16[10,100,128]{2,1,0:T(8,128)(2,1)} parameter(1)
  %near = f32[16,100]{1,0:T(8,128)S(1)} copy(%x)
  %all = (s32[]{:T(128)}, f32[16,100]{1,0:T(8,128)S(1)}, bf16[10,100,128]{2,1,0:T(8,128)(2,1)}) tuple(%begin, %near, %w)
  %loop = (s32[]{:T(128)}, f32[16,100]{1,0:T(8,128)S(1)}, bf16[10,100,128]{2,1,0:T(8,128)(2,1)}) while(%all), condition=%condition, body=%body
  %got = f32[16,100]{1,0:T(8,128)S(1)} get-tuple-element(%loop), index=1
  ROOT %sum = f32[16,100]{1,0:T(8,128)} all-reduce(%got), replica_groups={{0,1}}, to_apply=%add
}
"""  # noqa: E501


def test_the_text_of_a_tpu_program_has_turns_memories_tiles_cycles_and_collectives():
    counts = hlo.count(TPU)
    operations = 2 * 16 * 100 * 128
    assert counts.products == 10 * operations
    assert counts.passes == 30 * operations  # "high" is three products of bfloat16
    assert counts.cycles == 3000
    # each turn reads a slice, whose 100 rows take 104; x is read once, padded to 128 columns, and written once
    assert counts.nbytes == pytest.approx(10 * 104 * 128 * 2 + 2 * 16 * 128 * 4, rel=1e-3)
    assert counts.collectives == {"all-reduce": hlo.Collective(1, 16 * 128 * 4)}
    assert not counts.doubts
    seconds = hlo.serial_seconds(counts, clock=1e9, bandwidth=1e20)
    assert seconds == pytest.approx(3e-6)
    assert hlo.serial_seconds(counts, clock=1e20, bandwidth=1e9) == pytest.approx(counts.nbytes / 1e9, rel=0.01)


def test_operations_of_foreign_kernels_are_in_doubt():
    text = TPU.replace(
        "all-reduce(%got), replica_groups={{0,1}}, to_apply=%add", 'custom-call(%got), custom_call_target="mine"'
    )
    assert hlo.count(text).doubts == ["the operations of mine are not counted"]
