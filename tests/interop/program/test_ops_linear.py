"""Products, linear algebra, Fourier transforms, attention, recurrent layers, embeddings, dropout and losses against
torch in float64: values, gradients, and second derivatives of what is not a composition of simple operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lla_torch.program.operators import TABLE, full_name
from lla_torch.program.ops import (  # noqa: F401
    attention,
    dropout,
    embedding,
    linear,
    losses,
    recurrent,
)
from lla_torch.program.program import DType, Instruction, Noise, run_instruction
from lla_torch.program.views import View, merge_tail, plain
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def _double():
    with jax.enable_x64(True):
        torch.manual_seed(0)
        yield


class Recorder(TorchDispatchMode):
    """Keeps the masks that torch draws."""

    def __init__(self) -> None:
        super().__init__()
        self.draws: list[np.ndarray] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if "bernoulli" in str(func):
            self.draws.append(result.detach().numpy() != 0)
        elif func is aten.native_dropout.default and args[2] is not False:
            self.draws.append(result[1].numpy())
        return result


def to_jax(x: Any) -> Any:
    """The argument as the interpreter has it: tensors as views, lists as tuples."""
    if isinstance(x, torch.Tensor):
        return plain(jnp.asarray(x.detach().numpy()))
    return tuple(map(to_jax, x)) if isinstance(x, list | tuple) else x


def lowered(op: Any, args: Any, kwargs: Any, outputs: Any, draws: Any = None) -> tuple[Any, ...]:
    """Our result, as logical arrays; ``args`` with views."""
    name = full_name(op)
    dtypes = tuple(DType(str(o.dtype).split(".")[1]) for o in outputs)
    instruction = Instruction(TABLE[name], (), (), 0, dtypes)
    noise = Noise(None, draws)
    result = run_instruction(instruction, list(args), dict(kwargs), noise, np.dtype("float64"))
    noise.finish()
    return tuple(r.logical() for r in (result if isinstance(result, tuple) else (result,)))


def fixed(x: Any) -> Any:
    """The tensor, marked as one that torch does not differentiate by."""
    x.fixed = True
    return x


def varied(x: Any) -> bool:
    """Whether to differentiate by a tensor."""
    return x.is_floating_point() and not getattr(x, "fixed", False)


def leaves_of(args: Any) -> list[Any]:
    """The tensors to differentiate by among nested arguments."""
    if isinstance(args, torch.Tensor):
        return [args] if varied(args) else []
    return [leaf for a in args for leaf in leaves_of(a)] if isinstance(args, list | tuple) else []


def fill(args: Any, values: Any) -> Any:
    """Nested arguments with the tensors to differentiate by taken from ``values``, the others converted."""
    if isinstance(args, torch.Tensor):
        return plain(next(values)) if varied(args) else to_jax(args)
    return tuple(fill(a, values) for a in args) if isinstance(args, list | tuple) else args


def close(ours: Any, theirs: Any, tolerance: float) -> None:
    """Equal within ``tolerance`` of the largest entry."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    scale = np.abs(theirs[np.isfinite(theirs)]).max(initial=1e-30)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * max(scale, 1e-3))


def compare(op: Any, args: tuple, kwargs: dict | None = None, picks: slice = slice(None), second: bool = False) -> None:
    """Values of the results ``picks``, gradients with a random cotangent, and a Hessian-vector product."""
    kwargs = kwargs or {}
    leaves = [x.requires_grad_() for x in leaves_of(args)]
    with Recorder() as recorder, sdpa_kernel(SDPBackend.MATH):
        result = op(*args, **kwargs)
    outputs = result if isinstance(result, tuple) else (result,)
    picked = range(len(outputs))[picks]
    wanted = [i for i in picked if outputs[i].requires_grad]
    cotangents = [torch.randn_like(outputs[i]) for i in wanted]
    draws = recorder.draws or None

    def run(values: list[jax.Array]) -> tuple[Any, ...]:
        return lowered(op, fill(args, iter(values)), kwargs, outputs, draws)

    def value(values: list[jax.Array]) -> jax.Array:
        ours = run(values)
        return sum(jnp.vdot(jnp.asarray(c.numpy()), ours[i]) for i, c in zip(wanted, cotangents, strict=True))

    at = [jnp.asarray(x.detach().numpy()) for x in leaves]
    ours = jax.jit(run)(at)
    for i in picked:
        close(ours[i], outputs[i].detach(), 1e-12)
    if not wanted:
        return
    scalar = sum((c * outputs[i]).sum() for i, c in zip(wanted, cotangents, strict=True))
    grads = torch.autograd.grad(scalar, leaves, create_graph=second, allow_unused=True, materialize_grads=True)
    for ours, theirs in zip(jax.jit(jax.grad(value))(at), grads, strict=True):
        close(ours, theirs.detach(), 1e-10)
    if second:
        vectors = [torch.randn_like(x) for x in leaves]
        inner = sum((g * v).sum() for g, v in zip(grads, vectors, strict=True))
        products = torch.autograd.grad(inner, leaves, allow_unused=True, materialize_grads=True)
        tangents = [jnp.asarray(v.numpy()) for v in vectors]
        ours = jax.jit(lambda p, v: jax.jvp(jax.grad(value), (p,), (v,))[1])(at, tangents)
        for mine, theirs in zip(ours, products, strict=True):
            close(mine, theirs, 1e-10)


def r(*shape: int) -> Any:
    """Random normal numbers."""
    return torch.randn(*shape, dtype=torch.float64)


def prob(*shape: int) -> Any:
    """Probabilities that sum to 1 along the second axis."""
    return torch.softmax(r(*shape), 1)


def symmetric(n: int) -> Any:
    """A positive definite matrix."""
    a = r(2, n, n)
    return a @ a.mT + n * torch.eye(n, dtype=torch.float64)


def regular(*lead: int) -> Any:
    """A well conditioned 3 x 3 matrix."""
    return r(*lead, 3, 3) + 3 * torch.eye(3, dtype=torch.float64)


T = torch.tensor
FIRST = slice(1)
SIGNS = T([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)

PRODUCTS: dict[str, Callable[[], tuple]] = {
    "linear": lambda: (aten.linear.default, (r(2, 3, 4), r(5, 4), r(5))),
    "linear vector": lambda: (aten.linear.default, (r(4), r(5, 4))),
    "linear to numbers": lambda: (aten.linear.default, (r(3, 4), r(4))),
    "matmul": lambda: (aten.matmul.default, (r(2, 1, 3, 4), r(5, 4, 2))),
    "matmul vector": lambda: (aten.matmul.default, (r(4), r(5, 4, 2))),
    "mm": lambda: (aten.mm.default, (r(3, 4), r(4, 2))),
    "bmm": lambda: (aten.bmm.default, (r(2, 3, 4), r(2, 4, 2))),
    "mv": lambda: (aten.mv.default, (r(3, 4), r(4))),
    "dot": lambda: (aten.dot.default, (r(4), r(4))),
    "outer": lambda: (aten.outer.default, (r(4), r(3))),
    "inner": lambda: (aten.inner.default, (r(2, 4), r(3, 4))),
    "vecdot": lambda: (aten.linalg_vecdot.default, (r(2, 4), r(1, 4))),
    "addmm": lambda: (aten.addmm.default, (r(2), r(3, 4), r(4, 2)), {"beta": 0.5, "alpha": 2}),
    "addmm beta 0": lambda: (aten.addmm.default, (r(2), r(3, 4), r(4, 2)), {"beta": 0}),
    "baddbmm": lambda: (aten.baddbmm.default, (r(2, 3, 2), r(2, 3, 4), r(2, 4, 2)), {"alpha": 2}),
    "addbmm": lambda: (aten.addbmm.default, (r(3, 2), r(2, 3, 4), r(2, 4, 2)), {"beta": 2, "alpha": 3}),
    "addmv": lambda: (aten.addmv.default, (r(3), r(3, 4), r(4)), {"beta": 2}),
    "addr": lambda: (aten.addr.default, (r(3, 4), r(3), r(4)), {"alpha": 2}),
    "einsum": lambda: (aten.einsum.default, ("b i j, bjk -> kbi", [r(2, 3, 4), r(1, 4, 2)])),
    "einsum implicit": lambda: (aten.einsum.default, ("...bA,...ab", [r(2, 3, 4), r(5, 3)])),
    "einsum three": lambda: (
        aten.einsum.default,
        ("ij,jk,kl->il", [r(2, 3), r(3, 4), r(4, 2)]),
        {"path": [0, 1, 0, 1]},
    ),
    "bilinear": lambda: (aten.bilinear.default, (r(2, 3), r(2, 4), r(5, 3, 4), r(5))),
    "tensordot": lambda: (aten.tensordot.default, (r(2, 3, 4), r(4, 2, 5), [2, 0], [0, 1])),
    "kron": lambda: (aten.kron.default, (r(2, 3), r(3, 2))),
    "trace": lambda: (aten.trace.default, (r(3, 4),)),
    "cross": lambda: (aten.cross.default, (r(2, 3, 3), r(2, 3, 3))),
    "linalg_cross": lambda: (aten.linalg_cross.default, (r(2, 3), r(1, 3))),
}

LINALG: dict[str, Callable[[], tuple]] = {
    "inv_ex": lambda: (aten.linalg_inv_ex.default, (regular(2),)),
    "inv": lambda: (aten.linalg_inv.default, (regular(),)),
    "solve": lambda: (aten.linalg_solve.default, (regular(2), r(3, 2))),
    "solve vectors": lambda: (aten.linalg_solve.default, (regular(2), r(2, 3))),
    "solve right": lambda: (aten.linalg_solve.default, (regular(), r(2, 3)), {"left": False}),
    "solve_ex": lambda: (aten.linalg_solve_ex.default, (regular(), r(3, 2))),
    "_solve_ex": lambda: (aten._linalg_solve_ex.default, (regular(), r(3))),
    "det": lambda: (aten._linalg_det.default, (regular(2),), {}, FIRST),
    "slogdet": lambda: (aten._linalg_slogdet.default, (regular(2),), {}, slice(2)),
    "logdet": lambda: (aten.logdet.default, (symmetric(3),)),
    "lu_factor": lambda: (aten.linalg_lu_factor_ex.default, (regular(),)),
    "cholesky": lambda: (aten.linalg_cholesky_ex.default, (symmetric(3),)),
    "cholesky lower only": lambda: (aten.linalg_cholesky.default, (torch.tril(symmetric(3)),)),
    "cholesky upper": lambda: (aten.linalg_cholesky.default, (symmetric(3),), {"upper": True}),
    "qr": lambda: (aten.linalg_qr.default, (r(4, 3),)),
    "qr complete": lambda: (aten.linalg_qr.default, (r(3, 3), "complete")),
    "eigh values": lambda: (aten._linalg_eigh.default, (symmetric(3), "U"), {}, FIRST),
    "svd values": lambda: (aten._linalg_svd.default, (r(4, 3),), {}, slice(1, 2)),
    "svd values only": lambda: (aten._linalg_svd.default, (fixed(r(4, 3)), False, False)),
    "svdvals": lambda: (aten.linalg_svdvals.default, (r(2, 3, 4),)),
    "pinv": lambda: (aten.linalg_pinv.atol_rtol_tensor, (r(4, 3),)),
    "pinv rtol": lambda: (aten.linalg_pinv.atol_rtol_float, (r(4, 3),), {"rtol": 1e-3, "atol": 1e-4}),
    "matrix_exp": lambda: (aten.linalg_matrix_exp.default, (r(3, 3),)),
    "triangular": lambda: (aten.linalg_solve_triangular.default, (regular(2), r(3, 2)), {"upper": False}),
    "triangular right": lambda: (
        aten.linalg_solve_triangular.default,
        (regular(), r(2, 3)),
        {"upper": True, "left": False, "unitriangular": True},
    ),
    "triangular_solve": lambda: (aten.triangular_solve.default, (r(3, 2), regular(), True, True), {}, FIRST),
    "cholesky_solve": lambda: (aten.cholesky_solve.default, (r(3, 2), fixed(torch.triu(regular())), True)),
    "cholesky_inverse": lambda: (aten.cholesky_inverse.default, (fixed(torch.tril(regular())),)),
}


def qkv(heads: int = 2, served: int = 2) -> tuple:
    return r(2, heads, 3, 4), r(2, served, 5, 4), r(2, served, 5, 3)


MASK = T([[1, 0, 1, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 0]], dtype=torch.bool)
SDPA = aten.scaled_dot_product_attention.default
ATTENTION: dict[str, Callable[[], tuple]] = {
    "sdpa": lambda: (SDPA, qkv()),
    "sdpa boolean": lambda: (SDPA, (*qkv(), MASK)),
    "sdpa added": lambda: (SDPA, (*qkv(), r(2, 1, 3, 5))),
    "sdpa causal": lambda: (SDPA, (*qkv(), None, 0.0, True), {"scale": 0.3}),
    "sdpa grouped": lambda: (SDPA, qkv(4, 2), {"enable_gqa": True}),
    "sdpa dropout": lambda: (SDPA, (*qkv(), MASK, 0.4)),
    "sdpa all dropped": lambda: (SDPA, (*qkv(), None, 1.0)),
}


def layer(gates: int, **options: Any) -> tuple:
    """Arguments of a recurrent layer."""
    o = {"biases": True, "layers": 1, "dropout": 0.0, "both": False, "first": False, "proj": 0, "flat": False} | options
    inputs, hidden, steps, batch = 3, 4, 5, 2
    size = o["proj"] or hidden
    directions = 1 + o["both"]
    params = []
    for depth in range(o["layers"]):
        for _ in range(directions):
            params += [r(gates * hidden, inputs if depth == 0 else size * directions), r(gates * hidden, size)]
            params += [r(gates * hidden), r(gates * hidden)] if o["biases"] else []
            params += [r(size, hidden)] if o["proj"] else []
    k = o["layers"] * directions
    x = r(batch, steps, inputs) if o["first"] else r(steps, batch, inputs)
    h = r(k, batch, size)
    states = [h, r(k, batch, hidden)] if gates == 4 else h
    train = o["dropout"] > 0
    return x, states, params, o["biases"], o["layers"], o["dropout"], train, o["both"], o["first"]


RECURRENT: dict[str, Callable[[], tuple]] = {
    "lstm": lambda: (aten.lstm.input, layer(4)),
    "lstm deep": lambda: (aten.lstm.input, layer(4, layers=2, both=True, first=True, dropout=0.4)),
    "lstm projected": lambda: (aten.lstm.input, layer(4, proj=2, layers=2, both=True, biases=False)),
    "gru": lambda: (aten.gru.input, layer(3, both=True, first=True)),
    "gru deep": lambda: (aten.gru.input, layer(3, layers=2, biases=False, dropout=0.4)),
    "tanh": lambda: (aten.rnn_tanh.input, layer(1, layers=2)),
    "relu": lambda: (aten.rnn_relu.input, layer(1, both=True)),
    "lstm_cell": lambda: (aten.lstm_cell.default, (r(2, 3), [r(2, 4), r(2, 4)], r(16, 3), r(16, 4), r(16), r(16))),
    "gru_cell": lambda: (aten.gru_cell.default, (r(2, 3), r(2, 4), r(12, 3), r(12, 4), r(12), r(12))),
    "tanh_cell": lambda: (aten.rnn_tanh_cell.default, (r(2, 3), r(2, 4), r(4, 3), r(4, 4), r(4), r(4))),
}

IDS = T([1, 0, 2, 1, 1, 4])
PAIRS = T([1, 0, 1, 0])  # equally frequent: torch 2.13 on CPU takes the frequency of another row otherwise
OFFSETS = T([0, 2, 2, 3])
BAG = aten._embedding_bag.default
EMBEDDING: dict[str, Callable[[], tuple]] = {
    "embedding": lambda: (aten.embedding.default, (r(5, 3), IDS.reshape(2, 3))),
    "embedding padding": lambda: (aten.embedding.default, (r(5, 3), IDS, 1)),
    "embedding frequency": lambda: (aten.embedding.default, (r(5, 3), IDS.reshape(2, 3), 4, True)),
    "bag sum": lambda: (BAG, (r(5, 3), IDS, OFFSETS), {}, FIRST),
    "bag mean": lambda: (BAG, (r(5, 3), IDS, OFFSETS, False, 1, False, None, False, 1), {}, FIRST),
    "bag max": lambda: (BAG, (r(5, 3), IDS, OFFSETS, False, 2, False, None, False, 0), {}, FIRST),
    "bag weights": lambda: (BAG, (r(5, 3), IDS, T([0, 1, 6]), False, 0, False, r(6), True), {}, FIRST),
    "bag frequency": lambda: (aten.embedding_bag.default, (r(5, 3), PAIRS, OFFSETS, True), {}, FIRST),
    "bag padding": lambda: (
        aten.embedding_bag.padding_idx,
        (r(5, 3), IDS, OFFSETS, False, 1, False, None, False, -4),
        {},
        FIRST,
    ),
}

DROPOUT: dict[str, Callable[[], tuple]] = {
    "dropout": lambda: (aten.dropout.default, (r(2, 3, 4), 0.4, True)),
    "dropout off": lambda: (aten.dropout.default, (r(2, 3), 0.4, False)),
    "native": lambda: (aten.native_dropout.default, (r(2, 3), 0.4, True)),
    "native off": lambda: (aten.native_dropout.default, (r(2, 3), 0.4, False)),
}

CLASSES = T([1, 0, -100, 3])
LOSSES: dict[str, Callable[[], tuple]] = {
    "nll mean": lambda: (aten.nll_loss_forward.default, (r(4, 5), CLASSES, fixed(r(5).abs()), 1, -100)),
    "nll none": lambda: (aten.nll_loss_forward.default, (r(4, 5), CLASSES, None, 0, -100)),
    "nll single": lambda: (aten.nll_loss_forward.default, (r(5), T(2), None, 2, 1)),
    "nll2d": lambda: (
        aten.nll_loss2d_forward.default,
        (r(2, 5, 2, 2), CLASSES.reshape(1, 2, 2).repeat(2, 1, 1), None, 1, -100),
    ),
    "nll_nd": lambda: (aten.nll_loss_nd.default, (r(2, 5, 2), T([[1, 0], [2, 4]]), None, 0)),
    "cross entropy": lambda: (aten.cross_entropy_loss.default, (r(4, 5), CLASSES, fixed(r(5).abs()))),
    "cross entropy smoothed": lambda: (
        aten.cross_entropy_loss.default,
        (r(4, 5), CLASSES, fixed(r(5).abs()), 1, -100, 0.2),
    ),
    "cross entropy images": lambda: (
        aten.cross_entropy_loss.default,
        (r(2, 5, 2), T([[1, 0], [2, 4]]), fixed(r(5)), 0, 4, 0.2),
    ),
    "cross entropy soft": lambda: (
        aten.cross_entropy_loss.default,
        (r(4, 5, 2), prob(4, 5, 2), fixed(r(5)), 1, -100, 0.2),
    ),
    "multi margin": lambda: (aten.multi_margin_loss.default, (r(4, 5), T([0, 4, 1, 1]), 2, 0.7, None, 0)),
    "multi label": lambda: (
        aten.multilabel_margin_loss_forward.default,
        (r(2, 4), T([[3, 0, -1, 1], [-1, 0, 1, 2]]), 0),
    ),
    "bce": lambda: (aten.binary_cross_entropy.default, (r(4).sigmoid(), prob(2, 4)[0], fixed(r(4)), 0)),
    "bce bounds": lambda: (
        aten.binary_cross_entropy.default,
        (T([0.0, 1.0, 0.0, 1.0], dtype=torch.float64), fixed(T([0.0, 1.0, 1.0, 0.0], dtype=torch.float64))),
    ),
    "bce logits": lambda: (
        aten.binary_cross_entropy_with_logits.default,
        (50 * r(3, 4), prob(3, 4), fixed(r(4)), fixed(r(4)), 2),
    ),
    "bce logits 0": lambda: (aten.binary_cross_entropy_with_logits.default, (0 * r(3), r(3).sigmoid())),
    "kl": lambda: (aten.kl_div.default, (r(3, 4), prob(3, 4))),
    "kl log": lambda: (aten.kl_div.default, (r(3, 4), r(3, 4), 0), {"log_target": True}),
    "poisson": lambda: (aten.poisson_nll_loss.default, (r(8), 3 * r(8).abs(), True, True, 1e-8, 1)),
    "poisson rates": lambda: (aten.poisson_nll_loss.default, (r(8).abs(), r(8).abs(), False, False, 1e-8, 0)),
    "mse": lambda: (aten.mse_loss.default, (r(3, 4), r(3, 4), 2)),
    "l1": lambda: (aten.l1_loss.default, (r(3, 4), r(3, 4), 1)),
    "huber": lambda: (aten.huber_loss.default, (r(3, 4), r(3, 4), 1, 0.7)),
    "smooth": lambda: (aten.smooth_l1_loss.default, (r(3, 4), r(3, 4), 0, 0.7)),
    "smooth 0": lambda: (aten.smooth_l1_loss.default, (r(3, 4), r(3, 4), 1, 0.0)),
    "soft margin": lambda: (aten.soft_margin_loss.default, (r(4), fixed(SIGNS.clone()))),
    "ranking": lambda: (aten.margin_ranking_loss.default, (r(4), r(4), SIGNS.clone(), 0.3)),
    "hinge": lambda: (aten.hinge_embedding_loss.default, (r(4), SIGNS.to(torch.int64), 0.8, 0)),
    "cosine": lambda: (aten.cosine_embedding_loss.default, (r(4, 3), r(4, 3), SIGNS.to(torch.int64), 0.1)),
    "triplet": lambda: (aten.triplet_margin_loss.default, (r(4, 3), r(4, 3), r(4, 3)), {"swap": True}),
    "triplet p": lambda: (aten.triplet_margin_loss.default, (r(4, 3), r(4, 3), r(4, 3), 0.5, 3.0)),
}

CASES = PRODUCTS | LINALG | ATTENTION | RECURRENT | EMBEDDING | DROPOUT | LOSSES
TWICE = {"lstm", "lstm deep", "gru", "sdpa", "sdpa boolean", "bce", "huber", "cross entropy", "cholesky"}


@pytest.mark.parametrize("name", CASES)
def test_operator(name: str):
    compare(*CASES[name](), second=name in TWICE)


X = object()  # the result of the step before
Z, PAIR = aten.view_as_complex.default, aten.view_as_real.default
CHAINS: dict[str, tuple] = {
    "r2c": ((4, 5), (aten._fft_r2c.default, X, [0, 1], 1, True), (PAIR, X)),
    "r2c full": ((4, 5), (aten._fft_r2c.default, X, [1], 2, False), (PAIR, X)),
    "c2c": ((3, 4, 2), (Z, X), (aten._fft_c2c.default, X, [0, 1], 2, True), (PAIR, X)),
    "c2c back": ((3, 4, 2), (Z, X), (aten._fft_c2c.default, X, [1], 0, False), (PAIR, X)),
    "c2r": ((3, 4, 2), (Z, X), (aten._fft_c2r.default, X, [0, 1], 2, 6)),
    "c2r odd": ((3, 4, 2), (Z, X), (aten._fft_c2r.default, X, [1], 1, 7)),
    "fft": ((3, 4), (aten.fft_fft.default, X, 5, 0, "ortho"), (aten.imag.default, X)),
    "rfft": ((3, 4), (aten.fft_rfft.default, X), (aten.conj.default, X), (aten.resolve_conj.default, X), (PAIR, X)),
    "irfft": ((3, 4, 2), (Z, X), (aten.fft_irfft.default, X, None, 0)),
    "hfft": ((3, 4, 2), (Z, X), (aten.fft_hfft.default, X)),
    "fft2": ((3, 4, 2), (Z, X), (aten.fft_ifft2.default, X, [4, -1]), (PAIR, X)),
    "rfftn": ((2, 3, 4), (aten.fft_rfftn.default, X, [3, 6]), (PAIR, X)),
    "irfftn": ((3, 4, 2), (Z, X), (aten.fft_irfftn.default, X, [-1, 6])),
    "irfft2": ((3, 4, 2), (Z, X), (aten.fft_irfft2.default, X, [-1, -1])),
    "shift": ((3, 4), (aten.fft_fftshift.default, X, [1])),
    "ishift": ((3, 4), (aten.fft_ifftshift.default, X)),
    "complex": ((3, 4), (aten.complex.default, X, X), (aten.fft_ifft.default, X), (aten.real.default, X)),
    "polar": ((3, 4), (aten.polar.default, X, X), (PAIR, X)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_complex_operators_between_real_ends(name: str):
    shape, *steps = CHAINS[name]
    x = r(*shape).abs().requires_grad_()
    theirs = x
    for op, *args in steps:
        theirs = op(*(theirs if a is X else a for a in args))
    cotangent = r(*theirs.shape)

    def ours(value: jax.Array) -> jax.Array:
        for op, *args in steps:
            value = TABLE[full_name(op)].function(*(value if a is X else to_jax(a) for a in args))
        return value

    at = jnp.asarray(x.detach().numpy())
    result, pullback = jax.vjp(ours, at)
    close(result, theirs.detach(), 1e-12)
    (grad,) = torch.autograd.grad(theirs, x, cotangent)
    close(pullback(jnp.asarray(cotangent.numpy()))[0], grad, 1e-10)


def test_linear_of_a_flattened_image_moves_nothing():
    """(N, C, H, W) lying as (N, H, W, C), flattened, times a weight that lies in the same order."""
    image, weight, bias = r(2, 3, 2, 2), r(4, 12), r(4)
    expected = aten.linear.default(image.flatten(1), weight, bias)
    x = merge_tail(View(jnp.asarray(image.permute(0, 2, 3, 1).numpy()), (0, 3, 1, 2)), 1)
    lying = weight.reshape(4, 3, 2, 2).permute(2, 3, 1, 0).reshape(12, 4)
    w = View(jnp.asarray(lying.numpy()), (3, 2, 0, 1), (2, 2, 3, 4), (4, 12))
    arguments = {
        "same": (x, w),
        "other weight": (x, plain(jnp.asarray(weight.numpy()))),
        "other x": (plain(x.logical()), w),
    }
    for case in arguments.values():
        (ours,) = lowered("linear", (*case, to_jax(bias)), {}, (expected,))
        close(ours, expected, 1e-12)
    program = jax.make_jaxpr(lambda a, b: linear.linear(x.with_array(a), w.with_array(b)).array)(x.array, w.array)
    assert [e.primitive.name for e in program.eqns] == ["dot_general"]


def test_linear_keeps_the_order_of_other_axes():
    x, weight = r(5, 2, 4), r(3, 4)
    view = View(jnp.asarray(x.numpy()), (1, 0, 2))  # as after a transpose of the first two axes
    kernel = View(jnp.asarray(weight.T.contiguous().numpy()), (1, 0))
    result = linear.linear(view, kernel)
    assert result.order == view.order
    close(result.logical(), torch.nn.functional.linear(x.transpose(0, 1), weight), 1e-12)
    program = jax.make_jaxpr(lambda a: linear.linear(view.with_array(a), kernel).array)(view.array)
    assert [e.primitive.name for e in program.eqns] == ["dot_general"]
    turned = View(jnp.asarray(x.permute(2, 0, 1).contiguous().numpy()), (1, 2, 0))
    close(linear.linear(turned, kernel).logical(), torch.nn.functional.linear(x, weight), 1e-12)


def test_masks_lie_as_the_tensor_does():
    image, mask = r(2, 3, 2, 2), r(2, 3, 2, 2) > 0
    view = View(jnp.asarray(image.permute(0, 2, 3, 1).numpy()), (0, 3, 1, 2))
    kept = torch.where(mask, image / 0.6, 0)
    (ours,) = lowered("dropout", (view, 0.4, True), {}, (kept,), [mask.numpy()])
    close(ours, kept, 1e-12)
    (ours,) = lowered("dropout", (merge_tail(view, 1), 0.4, True), {}, (kept,), [mask.flatten(1).numpy()])
    close(ours, kept.flatten(1), 1e-12)


@pytest.mark.parametrize("name", [*DROPOUT, "sdpa dropout", "gru deep"])
def test_without_key_and_draws_dropout_is_off(name: str):
    op, args, *_ = CASES[name]()
    quiet = [0.0 if isinstance(a, float) and a == 0.4 else a for a in args]
    with sdpa_kernel(SDPBackend.MATH):
        expected = op(*quiet)
    expected = expected if isinstance(expected, tuple) else (expected,)
    close(lowered(op, to_jax(args), {}, expected)[0], expected[0], 1e-12)


def test_a_key_draws_masks_with_the_right_share():
    x = jnp.ones((100, 100))
    noise = Noise(jax.random.key(0), None)
    share = float(jnp.mean(dropout.dropout(x, 0.3, True, draw=noise.draw).array == 0))
    assert abs(share - 0.3) < 0.03
    np.testing.assert_array_equal(dropout.dropout(x, 1.0, True, draw=noise.draw).array, 0)


def test_dropped_rows_of_attention_have_no_gradient():
    """A query that sees nothing gives 0, and no nan reaches the rest."""
    q, k, v = (jnp.asarray(a.numpy()) for a in qkv())
    mask = jnp.zeros((3, 5), bool)
    grads = jax.grad(lambda *a: jnp.sum(attention.scaled_dot_product_attention(*a, mask, draw=None)), (0, 1, 2))(
        q, k, v
    )
    for grad in grads:
        np.testing.assert_array_equal(grad, 0)


def test_unbatched_sequences():
    x, states, params, *rest = layer(4)
    expected = aten.lstm.input(x[:, :1], [s[:, :1] for s in states], params, *rest)
    ours = lowered(aten.lstm.input, to_jax((x[:, 0], [s[:, 0] for s in states], params, *rest)), {}, expected)
    for mine, theirs in zip(ours, expected, strict=True):
        close(mine, theirs[:, 0], 1e-12)


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
