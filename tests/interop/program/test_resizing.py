"""Resizing, sampling and padding against torch in float64: values, gradients, second derivatives."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lla_torch.program.ops import resizing

from tests.interop.program.check_images import T, case_name, check_case, check_second_derivative

aten = torch.ops.aten


def upsample_cases():
    """Cases of all kinds of upsampling, by sizes and by scale factors."""
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


CASES = [
    *upsample_cases(),
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
TWICE = [
    next(c for c in CASES if c[0] is aten.upsample_nearest2d.vec),
    next(c for c in CASES if c[0] is aten.col2im.default),
    next(c for c in CASES if c[0] is aten.reflection_pad2d.default),
]


@pytest.mark.parametrize("case", CASES, ids=case_name)
def test_values_and_gradients_are_torchs(case):
    check_case(case, CASES)


@pytest.mark.parametrize("case", TWICE, ids=case_name)
def test_a_jvp_of_the_gradient_is_torchs_second_derivative(case):
    check_second_derivative(case)


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
