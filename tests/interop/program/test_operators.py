"""The operators of the table together: layouts that they keep, and errors that they raise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lla_torch.program.operators import TABLE, full_name
from lla_torch.program.ops import attention, embedding, linear, recurrent
from lla_torch.program.program import DType, Instruction, Noise, run_instruction
from lla_torch.program.views import View, channels_last, merge_tail, plain

from tests.interop.program.calls import IMAGE, INDEX, MASK, MATRIX, ROW, X, Y
from tests.interop.program.check_calls import differentiable, leaves, run_call
from tests.interop.program.check_images import S, T, jax_function, make_arrays, plain_order

aten = torch.ops.aten


MERGED = {
    "add.Tensor": lambda x: (x, x),
    "mul.Scalar": lambda x: (x, 2.0),
    "relu": lambda x: (x,),
    "sum": lambda x: (x,),
    "sum.dim_IntList": lambda x: (x, (1,)),
    "softmax.int": lambda x: (x, 1),
    "cat": lambda x: ((x, x), 1),
    "select.int": lambda x: (x, 1, 3),
    "slice.Tensor": lambda x: (x, 1, 2, 9),
    "unsqueeze": lambda x: (x, 1),
    "view": lambda x: (x, (2, 3, 8)),
    "permute": lambda x: (x, (1, 0)),
    "zeros_like": lambda x: (x,),
}


@pytest.mark.parametrize("name", MERGED)
def test_a_flattened_image_is_taken_as_torch_has_it(name):
    with jax.enable_x64(True):
        view = merge_tail(View(jnp.asarray(IMAGE.transpose(0, 2, 3, 1)), channels_last(4)), 1)
        instruction = Instruction(TABLE[full_name(f"aten.{name}")], (), (), 0, (DType("float64"),))
        noise = Noise(None, None)
        got = run_instruction(instruction, list(MERGED[name](view)), {}, noise, np.dtype(np.float64))
        wanted = run_instruction(
            instruction, list(MERGED[name](plain(view.logical()))), {}, noise, np.dtype(np.float64)
        )
        np.testing.assert_allclose(got.logical(), wanted.logical(), rtol=1e-14)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("view", ((2, 3, 8),)),
        ("view", ((2, 1, 3, 2, 2, 2),)),
        ("sum.dim_IntList", ((2, 3), True)),
        ("select.int", (2, 0)),
        ("unsqueeze", (2,)),
        ("softmax.int", (1,)),
        ("slice.Tensor", (1, 0, 2)),
    ],
)
def test_channels_last_images_are_not_transposed(name, args):
    def function(array):
        instruction = Instruction(TABLE[full_name(f"aten.{name}")], (), (), 0, ())
        return run_instruction(instruction, [View(array, channels_last(4)), *args], {}, Noise(None, None), None).array

    jaxpr = str(jax.make_jaxpr(function)(IMAGE.transpose(0, 2, 3, 1)))
    assert "transpose" not in jaxpr
    assert "gather" not in jaxpr


@pytest.mark.parametrize(
    ("name", "args", "match"),
    [
        ("index.Tensor", (X, (MASK,)), "boolean mask"),
        ("index_put", (X, (MASK,), np.ones(int(MASK.sum()))), "boolean mask"),
        ("one_hot", (INDEX,), "num_classes"),
        ("repeat_interleave.self_Tensor", (ROW, np.array([1, 0, 2, 1])), "output_size"),
        ("as_strided", (ROW, (3,), (2,)), "beyond the tensor"),
        ("view", (X, (5, 5)), "number of entries"),
        ("softmax.int", (X, 3), "dim: 3 given"),
        ("select.int", (X, 0, 2), "index: 2 given"),
        ("scatter_reduce.two", (MATRIX, 0, INDEX, Y[0], "median"), "reduce: 'median' given"),
    ],
)
def test_what_cannot_be_says_so(name, args, match):
    with pytest.raises(ValueError, match=match):
        run_call(name, args, {}, (), [jnp.asarray(a) for a in leaves(args) if differentiable(a)], False)


@pytest.mark.parametrize(
    ("op", "args", "message"),
    [
        (
            aten.conv2d.padding,
            (T(1, 1, 4, 4), T(1, 1, 2, 2), None, [2, 2], "same"),
            "padding: 'same' given with stride",
        ),
        (aten.max_pool2d.default, (T(1, 1, 2, 2), [3, 3]), "kernel_size"),
        (aten.group_norm.default, (T(1, 3, 2), 2), "num_groups: 2 given"),
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
    arrays, _ = make_arrays(args)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(jax_function(op, args, plain_order), *arrays)


@pytest.mark.usefixtures("double")
def test_misuse_is_named():
    q = jnp.ones((1, 2, 3))
    with pytest.raises(ValueError, match="attn_mask: given together with is_causal=True"):
        attention.scaled_dot_product_attention(q, q, q, jnp.ones((2, 2), bool), 0.0, True, draw=None)
    with pytest.raises(ValueError, match="per_sample_weights"):
        embedding.embedding_bag(q[0], jnp.zeros(2, int), jnp.zeros(1, int), mode=1, per_sample_weights=q[0, :, 0])
    with pytest.raises(ValueError, match="pivot: False given"):
        linear.lu_factor_ex(jnp.eye(2), pivot=False)
    with pytest.raises(ValueError, match="params: 3 arrays given"):
        recurrent.lstm(q, (q, q), (q, q, q), True, 1, 0.0, False, False, False, draw=None)
