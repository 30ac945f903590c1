"""Certificates compare all quantities of a network; correct conversions pass, wrong ones do not."""

from __future__ import annotations

import collections
import dataclasses

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
lla_torch = pytest.importorskip("lla_torch")

from lla_torch.certification.differences import relative_difference
from lla_torch.certification.reference import CastTypes
from lla_torch.conversion import graph
from lla_torch.conversion.widths import Widths
from torch import nn

Two = collections.namedtuple("Two", "first second")


class Module(nn.Module):
    """A linear layer, and a function of it and the inputs."""

    def __init__(self, function, size=3):
        super().__init__()
        self.linear = nn.Linear(size, size)
        self.function = function

    def forward(self, *inputs, **named):
        return self.function(self.linear, *inputs, **named)


class Criterion(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.forward = function


class First(nn.Module):
    def forward(self, values):
        return values[0]


def inputs(*shape, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def certified(module, *examples, train=False, **options):
    net = lla_torch.convert(module, examples, train=train)
    return lla_torch.certify(module, net, (examples,), **options)


def rows(certificate):
    return {(r.quantity, r.dtype): r for r in certificate.rows}


@pytest.fixture(autouse=True)
def same_weights_and_float64():
    with torch.random.fork_rng(), jax.enable_x64(True):
        torch.manual_seed(0)
        yield


def test_types_that_a_module_writes_out_follow_its_weights():
    def written(linear, x):
        ramp = torch.arange(3, dtype=torch.float32) + torch.zeros(3, dtype=torch.float32)
        y = (linear(x).to(torch.float32) * ramp).float()
        angle = torch.polar(torch.ones(3), ramp / 3)
        turned = torch.view_as_real(y.type(torch.complex64) * angle).sum(-1)
        return torch.softmax(turned, -1, dtype=torch.float32)

    certificate = certified(Module(written), inputs(4, 3, dtype=torch.float32))
    assert certificate.ok, str(certificate)
    assert rows(certificate)["outputs", "float64"].tolerance == 1e-12
    assert torch.get_default_dtype() == torch.float32


def test_only_the_types_asked_for_follow():
    with CastTypes({torch.float32: torch.float64}):
        x = torch.zeros(2, dtype=torch.float32)
        kinds = [x.dtype, x.float().dtype, x.half().dtype, x.to(dtype=torch.bfloat16).dtype, x.long().dtype]
    assert kinds == [torch.float64, torch.float64, torch.float16, torch.bfloat16, torch.int64]


def test_a_wrong_second_derivative_of_torch_is_compared_in_float64_only():
    certificate = certified(nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), inputs(4, 3, dtype=torch.float32))
    assert certificate.ok, str(certificate)
    found = rows(certificate)
    assert ("Hessian product", "float32") not in found
    assert "central differences" in found["Hessian product", "float64"].note
    assert "float64 only" in found["Hessian product", "float64"].note


def test_normalized_outputs_have_a_gradient():
    module = Module(lambda linear, x: nn.functional.normalize(linear(x)))
    net = lla_torch.convert(module, inputs(4, 3, dtype=torch.float32))
    good = lla_torch.certify(module, net, inputs(4, 3, dtype=torch.float32))
    assert good.ok, str(good)
    assert max(r.tolerance for r in good.rows) <= 0.1
    wrong = dict(net.variables["params"]["linear"], bias=net.variables["params"]["linear"]["bias"] + 1e-2)
    bad = lla_torch.certify(
        module, net.replace(variables={"params": {"linear": wrong}}), inputs(4, 3, dtype=torch.float32)
    )
    assert not any(r.ok for r in bad.rows if r.dtype == "float64")


def test_what_low_precision_cannot_tell_does_not_pass_in_silence():
    module = Module(lambda linear, x: (linear(x) + 1e9) - 1e9)
    certificate = certified(module, inputs(4, 3, dtype=torch.float32))
    row = rows(certificate)["outputs", "float32"]
    assert row.tolerance == 0.1
    assert "off by" in row.note


def test_outputs_are_compared_by_their_place():
    def nested(linear, x, extra=None):
        y = linear(x)
        return {"z": y, "a": (y[:, :1] * 2, None), "pair": Two(y.sum(), y.argmax(1)), "sign": y > 0, "b": [y.exp()]}

    module = Module(nested).double()
    certificate = certified(module, inputs(4, 3), None)
    assert certificate.ok, str(certificate)
    assert {r.dtype for r in certificate.rows} == {"float64"}


def test_modules_that_return_their_loss_or_whole_numbers():
    scalar = Module(lambda linear, x: linear(x).square().mean()).double()
    certificate = certified(scalar, inputs(4, 3))
    assert certificate.ok, str(certificate)
    assert ("gradient", "float64") in rows(certificate)
    whole = certified(Module(lambda linear, x: linear(x).argmax(1)).double(), inputs(4, 3))
    assert whole.ok, str(whole)
    assert set(rows(whole)) == {("outputs", "float64"), ("outputs, as run", "float64")}


def test_a_module_without_parameters():
    certificate = certified(nn.Softmax(1), inputs(4, 3, dtype=torch.float32))
    assert certificate.ok, str(certificate)
    assert {r.dtype for r in certificate.rows} == {"float32", "float64"}
    assert {r.quantity for r in certificate.rows if "as run" not in r.quantity} == {"outputs", "loss"}


class Average(nn.Module):
    """A buffer that is written in train mode, behind dropout."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, x):
        y = nn.functional.dropout(self.linear(x), 0.5, self.training)
        if self.training:
            with torch.no_grad():
                self.mean.mul_(0.9).add_(y.mean(0), alpha=0.1)
        self.last = y
        return y - self.mean


@pytest.mark.parametrize(
    "factory",
    [
        Average,
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)),
        lambda: nn.utils.spectral_norm(nn.Linear(3, 3)),
    ],
    ids=["average", "spectral norm", "spectral norm by hooks"],
)
def test_train_mode_is_compared_as_it_is(factory):
    module = factory().double()
    state = {name: x.clone() for name, x in module.state_dict().items()}
    net = lla_torch.convert(module, inputs(4, 3), train=True)
    attributes = dict(vars(module))
    certificate = lla_torch.certify(module, net, inputs(4, 3))
    assert certificate.ok, str(certificate)
    assert "statistics" in {r.quantity for r in certificate.rows}
    assert all(torch.equal(x, state[name]) for name, x in module.state_dict().items())
    assert {name: id(x) for name, x in vars(module).items()} == {name: id(x) for name, x in attributes.items()}
    assert module.training


def test_a_lost_update_fails():
    module = Average().double()
    net = lla_torch.convert(module, inputs(4, 3), train=True)
    train = dataclasses.replace(net.function.train, updates=())
    forgetful = net.replace(function=dataclasses.replace(net.function, train=train))
    certificate = lla_torch.certify(module, forgetful, inputs(4, 3))
    assert [r.quantity for r in certificate.rows if not r.ok] == ["statistics"]


def test_dropout_is_compared_with_its_draws():
    module = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).double()
    certificate = certified(module, inputs(4, 3), train=True)
    assert certificate.ok, str(certificate)
    assert ("outputs, train mode", "float64") in rows(certificate)


def test_draws_that_depend_on_the_precision():
    module = Module(lambda linear, x: linear(x) * (torch.rand(4, 1) > 0.5) + torch.rand(4, 3))
    certificate = certified(module, inputs(4, 3, dtype=torch.float32))
    assert certificate.ok, str(certificate)
    assert max(r.tolerance for r in certificate.rows) < 1e-4
    assert not any(r.note for r in certificate.rows if "as run" not in r.quantity)


def test_checkpoints_run_again_with_the_tested_weights():
    module = Module(lambda linear, x: torch.utils.checkpoint.checkpoint(linear, x.tanh(), use_reentrant=False).sin())
    certificate = certified(module, inputs(4, 3, dtype=torch.float32))
    assert certificate.ok, str(certificate)


def test_parameters_that_the_network_lacks_are_refused():
    module = Module(lambda linear, x: linear(x)).double()
    net = lla_torch.convert(module, inputs(4, 3))
    module.register_parameter("spectrum", nn.Parameter(torch.ones(2, dtype=torch.complex64)))
    with pytest.raises(ValueError, match="convert this very module"):
        lla_torch.certify(module, net, inputs(4, 3))


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 4).bfloat16(), nn.LayerNorm(4)

    def forward(self, x):
        return self.norm(self.linear(x).float()).to(x.dtype)


def test_weights_of_several_types_are_compared_as_they_are():
    certificate = certified(Mixed(), inputs(4, 4, dtype=torch.bfloat16))
    assert certificate.ok, str(certificate)
    assert {r.dtype for r in certificate.rows} == {"bfloat16"}
    assert max(r.tolerance for r in certificate.rows) <= 0.1
    assert "bfloat16 and float32" in rows(certificate)["outputs", "bfloat16"].note


def test_half_precision_with_float32_inside():
    module = Module(lambda linear, x: torch.softmax(linear(x), -1, dtype=torch.float32).to(x.dtype)).half()
    certificate = certified(module, inputs(4, 3, dtype=torch.float16))
    assert certificate.ok, str(certificate)
    assert "float32 in places" in rows(certificate)["outputs", "float64"].note
    assert rows(certificate)["outputs", "float16"].tolerance < 0.05


def test_a_module_in_bfloat16():
    certificate = certified(nn.Sequential(nn.Linear(3, 3), nn.Tanh()).bfloat16(), inputs(4, 3, dtype=torch.bfloat16))
    assert certificate.ok, str(certificate)
    assert rows(certificate)["outputs", "float64"].tolerance == 1e-12


def test_inputs_by_name_and_labels():
    module = Module(lambda linear, x, scale=None: linear(x)).double()
    net = lla_torch.convert(module, (), example_kwargs={"x": inputs(4, 3), "scale": None})
    batch = {"x": inputs(4, 3).numpy(), "scale": None}
    options = {"criterion": nn.CrossEntropyLoss(), "inputs": lambda batch: batch[0]}
    certificate = lla_torch.certify(module, net, (batch, np.array([0, 1, 2, 1])), **options)
    assert certificate.ok, str(certificate)
    assert "4 examples" in str(certificate)


def test_autocast_is_told():
    def function(linear, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return linear(x).float().tanh()

    certificate = certified(Module(function), inputs(4, 3, dtype=torch.float32))
    assert certificate.ok, str(certificate)
    assert all("bfloat16 in places" in r.note for r in certificate.rows)


def test_a_difference_sees_places_and_whole_numbers():
    a = {"x": np.array([1.0, np.inf]), "n": np.array([1, 2])}
    assert relative_difference(a, a) == 0
    assert relative_difference({"x": a["x"] * 1.5}, {"x": a["x"]}) == 0.5
    assert relative_difference({**a, "n": np.array([1, 3])}, a) == np.inf
    assert relative_difference({"y": a["x"]}, {"x": a["x"]}) == np.inf
    assert np.isnan(relative_difference({"x": np.array([np.nan])}, {"x": np.array([np.nan])}))
    assert np.isnan(relative_difference(a, None))


def test_a_module_that_samples_is_certified_with_the_same_draws():
    class Noisy(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3, 4)

        def forward(self, x):
            mean, spread = self.linear(x).chunk(2, 1)
            return mean + torch.randn_like(mean) * spread.exp()

    module, x = Noisy(), torch.ones(5, 3)
    net = lla_torch.convert(module, x)
    assert lla_torch.certify(module, net, x).ok
    with pytest.raises(ValueError, match="key"):
        net.apply(net.variables, x.numpy())
    first, again, other = (net.apply(net.variables, x.numpy(), key=jax.random.key(i)) for i in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


# --- in the user's own mode


def hashed(linear, ids):
    return linear(nn.functional.embedding((ids * 1000003 + 12345) % 50, torch.arange(150.0).reshape(50, 3).sin()))


AS_RUN = {
    "int64": (hashed, torch.tensor([[1, 5], [31234, 2**31 - 1], [2**30, 8], [77, 78]])),
    "float64": (lambda linear, x: (linear(x).double() + 1e4).square() - 1e8, inputs(4, 3, dtype=torch.float32)),
    "rounding": (lambda linear, x: (9 * linear(x) + 12582912.0) - 12582912.0, inputs(4, 3, dtype=torch.float32)),
}


@pytest.mark.parametrize("kind", AS_RUN)
def test_64_bits_and_rounding_are_certified_in_the_users_own_mode(kind, monkeypatch):
    function, example = AS_RUN[kind]
    module = Module(function)
    with jax.enable_x64(False):
        certificate = certified(module, example)
        assert certificate.ok, str(certificate)
        assert "32-bit types" in rows(certificate)["outputs, as run", "float32"].note
        # as if the conversion had found nothing that needs 64 bits, or rounding that must be kept
        monkeypatch.setattr(graph, "find_widths", lambda nodes, *_: Widths(dict.fromkeys(nodes, (False,)), frozenset()))
        monkeypatch.setattr(graph, "find_kept", lambda *_: frozenset())
        broken = certified(module, example)
    failed = {r.quantity for r in broken.rows if not r.ok}
    assert "outputs, as run" in failed, str(broken)
    if kind != "rounding":  # which the comparison in float32 sees as well
        assert all("as run" in quantity for quantity in failed)


def test_rounding_that_is_lost_fails_although_torchs_float64_numbers_are_as_far():
    """Half of a unit is less than a tenth of the largest entry here, so that only the median tells."""
    x = 1e2 * inputs(8, 3, dtype=torch.float32)
    module = Module(lambda linear, x: (linear(x) + 12582912.0) - 12582912.0)
    net = lla_torch.convert(module, x)
    assert lla_torch.certify(module, net, x).ok
    steps = tuple(dataclasses.replace(i, kept=False) for i in net.function.eval.instructions)
    program = dataclasses.replace(net.function.eval, instructions=steps)
    broken = lla_torch.certify(module, net.replace(function=dataclasses.replace(net.function, eval=program)), x)
    row = rows(broken)["outputs, as run", "float32"]
    assert not row.ok
    assert "median" in row.note


def test_weights_of_a_lower_type_are_told():
    module = Module(lambda linear, x: linear(x))
    net = lla_torch.convert(module, inputs(4, 3, dtype=torch.float32), dtype="bfloat16")
    found = rows(lla_torch.certify(module, net, inputs(4, 3, dtype=torch.float32)))
    assert "the weights are bfloat16 here" in found["outputs, as run", "float32"].note
    assert found["outputs, as run", "float32"].ok
    assert not found["outputs", "float32"].ok


def test_examples_that_see_each_other_fail():
    centred = Module(lambda linear, x: (lambda y: y - y.mean(0))(linear(x)))
    x, labels = inputs(6, 3, dtype=torch.float32), torch.tensor([0, 1, 2, 0, 1, 2])
    for module, apart in ((Module(lambda linear, x: linear(x)), True), (centred, False)):
        net = lla_torch.convert(module, x)
        row = rows(lla_torch.certify(module, net, (x, labels), nn.CrossEntropyLoss()))["examples apart", "float32"]
        assert row.ok == apart, row.note
    assert "per_example=False" in row.note
    note = rows(lla_torch.certify(centred, net, x))["outputs, as run", "float32"].note
    assert "differ from those of its halves" in note


@pytest.mark.filterwarnings("ignore:Using a target size")  # torch's own word on it
def test_losses_that_broadcast_to_pairs_fail():
    module = nn.Linear(3, 1)
    x, targets = inputs(6, 3, dtype=torch.float32), inputs(6, dtype=torch.float32)
    net = lla_torch.convert(module, x)
    with pytest.raises(ValueError, match=r"outputs of shape \(B, 1\) and labels of shape \(B,\)"):
        lla_torch.certify(module, net, (x, targets), nn.MSELoss())
    scalar = rows(lla_torch.certify(module, net, (x, targets), Criterion(lambda o, y: ((o - y) ** 2).mean())))
    assert not scalar["examples apart", "float32"].ok
    assert "(N, 1) with (N,)" in scalar["examples apart", "float32"].note
    right = lla_torch.certify(module, net, (x, targets[:, None]), nn.MSELoss())
    assert right.ok, str(right)
    assert rows(right)["examples apart", "float32"].ok


def test_time_in_place_of_the_examples_is_seen_in_recurrent_networks():
    x = inputs(2, 2, 3, dtype=torch.float32)
    for batch_first in (False, True):
        module = nn.Sequential(nn.GRU(3, 3, batch_first=batch_first), First())
        net = lla_torch.convert(module, x)
        row = rows(lla_torch.certify(module, net, (x, x), nn.MSELoss()))["examples apart", "float32"]
        assert row.ok is batch_first
        if not batch_first:
            note = rows(lla_torch.certify(module, net, x))["outputs, as run", "float32"].note
            assert "axis 0 must be the examples" in note


@pytest.mark.parametrize(
    ("criterion", "text"),
    [
        (lambda o, y: ((o - y) ** 2).mean(), "must be a torch loss module"),
        (Criterion(lambda o, y: (o[:, 0] - y) ** 2), r"returned shape \(6,\)"),
        (Criterion(lambda o, y: {"loss": o.mean()}), "returned dict"),
        (nn.SoftMarginLoss(), "one shape for both"),
    ],
)
def test_criteria_that_give_no_scalar_are_refused(criterion, text):
    module = nn.Linear(3, 1)
    x, signs = inputs(6, 3, dtype=torch.float32), inputs(6, dtype=torch.float32).sign()
    with pytest.raises(ValueError, match=text):
        lla_torch.certify(module, lla_torch.convert(module, x), (x, signs), criterion)


def test_a_sum_that_loses_digits_is_no_mistake_of_the_conversion():
    certificate = certified(Module(lambda linear, x: (linear(x) + 1e6) - 1e6), inputs(4, 3, dtype=torch.float32))
    assert certificate.ok, str(certificate)


def test_sparse_gradients_are_compared_as_dense_ones():
    class Bag(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.embedding, self.out = kind(5, 4, sparse=True), nn.Linear(4, 2)

        def forward(self, ids):
            x = self.embedding(ids)
            return self.out(x if x.ndim == 2 else x.mean(1))

    ids, labels = torch.tensor([[1, 2], [3, 0], [1, 1]]), torch.tensor([0, 1, 1])
    for kind in (nn.Embedding, nn.EmbeddingBag):
        module = Bag(kind)
        net = lla_torch.convert(module, ids)
        certificate = lla_torch.certify(module, net, (ids, labels), nn.CrossEntropyLoss())
        assert certificate.ok
        assert {"gradient", "Hessian product"} <= {row.quantity for row in certificate.rows}


def test_another_module_is_refused():
    net = lla_torch.convert(nn.Linear(4, 2), torch.ones(3, 4))
    with pytest.raises(ValueError, match="net: it has other shapes of"):
        lla_torch.certify(nn.Linear(4, 3), net, (torch.ones(3, 4),))
    with pytest.raises(ValueError, match="batch: tensor number 0 is on the meta device"):
        lla_torch.certify(nn.Linear(4, 2), net, (torch.ones(3, 4, device="meta"),))
