"""Calls that tracing would silently lose are refused by name, and code that only looks untraceable converts."""

from __future__ import annotations

import collections
import pathlib
import threading

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
lla_torch = pytest.importorskip("lla_torch")
from torch import nn

Outputs = collections.namedtuple("Outputs", "logits inner")


class Net(nn.Module):
    """``function(net, x)`` of a linear layer and a buffer."""

    def __init__(self, function):
        super().__init__()
        self.linear, self.function = nn.Linear(4, 4), function
        self.register_buffer("kept", torch.zeros(4))

    def forward(self, x):
        return self.function(self, x)


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sign()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def straight_through(net, x):
    return Sign.apply(net.linear(x))  # SHOWN


def hooked(net, x):
    y = net.linear(x)
    y.register_hook(lambda gradient: 2 * gradient)  # SHOWN
    return y


def through_detach(net, x):
    y = net.linear(x)
    y.detach()[:, 0] = 5  # SHOWN
    return y * 1


def through_a_view(net, x):
    y = net.linear(x)
    y[:, 1].detach().zero_()  # SHOWN
    return y * 1


def buffer_through_detach(net, x):
    with torch.no_grad():
        net.kept.detach().add_(1)  # SHOWN
    return net.linear(x) + net.kept


def without_gradient(net, x):
    y = net.linear(x)
    with torch.no_grad():
        y.mul_(2)  # SHOWN
    return y + 0


def values_decide_the_shape(net, x):
    return torch.nonzero(net.linear(x))  # SHOWN


def a_mask_as_index(net, x):
    y = net.linear(x)
    return y[y > 0]  # SHOWN


def packed(net, x):
    return nn.utils.rnn.pack_padded_sequence(net.linear(x)[None], torch.tensor([2]), batch_first=True).data  # SHOWN


REFUSED = {
    straight_through: "autograd.Function",
    hooked: "hook",
    through_detach: "detached alias",
    through_a_view: "detached alias",
    buffer_through_detach: "detached alias",
    without_gradient: "under no_grad",
    values_decide_the_shape: "nonzero",
    a_mask_as_index: "torch.where",
    packed: "torch.gather",
}


@pytest.mark.parametrize("function", REFUSED, ids=lambda f: f.__name__)
def test_what_would_be_lost_is_refused_with_its_line(function):
    lines = pathlib.Path(__file__).read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"def {function.__name__}("))
    numbers = [next(i + 1 for i in range(start, len(lines)) if lines[i].endswith("# SHOWN"))]
    forward = next(i + 1 for i, line in enumerate(lines) if "return self.function" in line)
    numbers.append(forward)
    before = torch.autograd.Function.__dict__["apply"]
    with pytest.raises(lla_torch.ConversionError) as caught:
        lla_torch.convert(nn.Sequential(nn.Linear(4, 4), Net(function)), torch.ones(3, 4))
    assert REFUSED[function] in str(caught.value)
    assert "module '1' (Net)" in str(caught.value)
    assert any(f"{__file__}:{number}: " in str(caught.value) for number in numbers)
    assert torch.autograd.Function.__dict__["apply"] is before


def test_an_assigned_buffer_is_updated_and_nothing_stays_on_the_module():
    def assigns(net, x):
        net.kept, net.last = net.kept * 0.9 + x.mean(0), x
        return net.linear(x) + net.kept

    inner = Net(assigns)
    module, x = nn.Sequential(inner), torch.ones(3, 4)
    kept = inner.kept
    net = lla_torch.convert(module, x, train=True)
    assert inner.kept is kept
    assert not hasattr(inner, "last")
    _, state = net.apply(net.variables, x.numpy(), train=True)
    np.testing.assert_allclose(state["buffers"]["0"]["kept"], 1)
    assert lla_torch.certify(module, net, x).ok


def test_running_statistics_of_a_functional_instance_norm_are_updated():
    def normed(net, x):
        y = nn.functional.instance_norm(net.linear(x)[:, None], net.mean, net.var, use_input_stats=True, momentum=0.5)
        return y[:, 0]

    module = Net(normed)
    module.register_buffer("mean", torch.zeros(1))
    module.register_buffer("var", torch.ones(1))
    x = torch.arange(12.0).reshape(3, 4)
    net = lla_torch.convert(module, x, train=True)
    found, state = net.apply(net.variables, x.numpy(), train=True)
    np.testing.assert_allclose(found, module.train()(x).detach(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(state["buffers"]["mean"], module.mean, rtol=1e-5)
    np.testing.assert_allclose(state["buffers"]["var"], module.var, rtol=1e-5)


def test_an_embedding_that_rewrites_itself_is_refused():
    with pytest.raises(lla_torch.ConversionError, match="max_norm"):
        lla_torch.convert(nn.Embedding(5, 3, max_norm=1.0), torch.arange(3))


def detached_copy(net, x):
    z = net.linear(x).detach().clone()
    z[:, 0] = 5
    return z + net.linear(x)


def made_without_gradient(net, x):
    with torch.no_grad():
        z = torch.zeros(4)
        z[0] = 1
        z.add_(2)
    return net.linear(x) * z


def three_operands(net, x):
    return torch.einsum("bi,ij,bj->bi", x, net.linear.weight, net.linear(x)) + torch.zeros(x.shape[0], 4)


def inverse(net, x):
    return x @ torch.linalg.inv(net.linear.weight + 3 * torch.eye(4))


def solved(net, x):
    return torch.linalg.solve(net.linear.weight + 3 * torch.eye(4), x.T).T


def density(net, x):
    mean, spread = net.linear(x).chunk(2, 1)
    return torch.distributions.Normal(mean, spread.exp()).log_prob(x[:, :2])


def rotated(net, x):
    turn = torch.polar(torch.ones(2), torch.arange(2.0))
    return torch.view_as_real(torch.view_as_complex(net.linear(x).reshape(-1, 2, 2)) * turn).flatten(1)


CONVERTED = [detached_copy, made_without_gradient, three_operands, inverse, solved, density, rotated]


@pytest.mark.parametrize("function", CONVERTED, ids=lambda f: f.__name__)
def test_what_only_looks_untraceable_converts(function):
    module, x = Net(function), torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    net = lla_torch.convert(module, x[:3])
    expected = module(x).detach().numpy()
    np.testing.assert_allclose(net.apply(net.variables, x.numpy()), expected, rtol=2e-4, atol=1e-5)


def test_a_transformer_with_a_mask():
    module = nn.Transformer(4, 2, 1, 1, 8, batch_first=True).eval()
    x, mask = torch.randn(2, 3, 4), torch.triu(torch.full((3, 3), float("-inf")), 1)
    net = lla_torch.convert(module, (x, x), example_kwargs={"tgt_mask": mask})
    expected = module(x, x, tgt_mask=mask).detach().numpy()
    found = net.apply(net.variables, x.numpy(), x.numpy(), tgt_mask=mask.numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_named_tuples_stay_named():
    net = lla_torch.convert(Net(lambda net, x: Outputs(net.linear(x), x)), torch.ones(3, 4))
    assert net.apply(net.variables, np.ones((2, 4), np.float32)).logits.shape == (2, 4)


def test_a_length_taken_as_a_number_fixes_the_batch():
    net = lla_torch.convert(Net(lambda net, x: net.linear(x) / len(x)), torch.ones(3, 4))
    net.apply(net.variables, np.ones((3, 4), np.float32))
    with pytest.raises(ValueError, match=r"len\(x\)"):
        net.apply(net.variables, np.ones((2, 4), np.float32))
    open_ = lla_torch.convert(Net(lambda net, x: net.linear(x) / x.shape[0]), torch.ones(3, 4))
    both = [open_.apply(open_.variables, np.ones((n, 4), np.float32))[0] * n for n in (1, 2)]
    np.testing.assert_allclose(*both, rtol=1e-6)


class Tuned(nn.Module):
    """Fine-tuning with a frozen normalization layer, as it is usually written."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.head = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))

    def train(self, mode=True):
        super().train(mode)
        self.body.eval()
        return self

    def forward(self, x):
        return self.head(self.body(x))


def test_a_train_of_the_modules_own_is_respected():
    module, x = Tuned().eval(), torch.randn(5, 4)
    net = lla_torch.convert(module, x[:3], train=True)
    assert not any(m.training for m in module.modules())
    expected, draws = lla_torch.record(module.train(), x)
    found, state = net.apply(net.variables, x.numpy(), train=True, draws=draws)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(state["batch_stats"]["body"]["1"]["mean"], 0)
    assert np.abs(state["batch_stats"]["head"]["1"]["mean"]).max() > 0


def test_weights_merged_by_eval_are_refused():
    class Merging(nn.Linear):
        def train(self, mode=True):
            with torch.no_grad():
                self.weight.add_(1 if not mode else 0)
            return super().train(mode)

    module = Merging(2, 2)
    before = module.weight.detach().clone()
    with pytest.raises(lla_torch.ConversionError, match="changes its weights"):
        lla_torch.convert(module, torch.ones(2, 2))
    assert torch.equal(module.weight, before)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Dropout1d(0.4), (6, 3, 5)),
        (nn.Dropout2d(0.4), (6, 3, 2, 2)),
        (nn.Dropout3d(0.4), (6, 3, 2, 2, 2)),
        (nn.AlphaDropout(0.4), (6, 7)),
        (nn.FeatureAlphaDropout(0.4), (6, 3, 2, 2)),
    ],
    ids=lambda x: type(x).__name__,
)
def test_every_dropout_replays_and_can_be_off(layer, shape):
    x = torch.randn(shape)
    net = lla_torch.convert(layer, x[:2], train=True)
    expected, draws = lla_torch.record(layer.train(), x)
    found, _ = net.apply(net.variables, x.numpy(), train=True, draws=draws)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(net.apply(net.variables, x.numpy(), train=True)[0], x.numpy())
    drawn, _ = net.apply(net.variables, x.numpy(), train=True, key=jax.random.key(0))
    assert np.abs(np.asarray(drawn) - x.numpy()).max() > 0.1


def test_another_path_for_another_batch_size_is_refused():
    net = lla_torch.convert(Net(lambda net, x: net.linear(x) * (100 if x.shape[0] > 3 else 1)), torch.ones(8, 4))
    net.apply(net.variables, np.ones((5, 4), np.float32))
    with pytest.raises(ValueError, match="another path"):
        net.apply(net.variables, np.ones((3, 4), np.float32))
    pair = lla_torch.convert(nn.Bilinear(4, 4, 2), (torch.ones(8, 4), torch.ones(8, 4)))
    pair.apply(pair.variables, np.ones((2, 4), np.float32), np.ones((2, 4), np.float32))


def test_threads_convert_and_train_side_by_side():
    x, errors = torch.ones(3, 4), []

    def work(function):
        try:
            for _ in range(3):
                function()
        except Exception as error:
            errors.append(error)

    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    jobs = [
        lambda: lla_torch.convert(module, x, train=True),
        lambda: lla_torch.record(module, x),
        lambda: Sign.apply(x.clone().requires_grad_()).sum().backward(),
    ]
    threads = [threading.Thread(target=work, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert all(m.training for m in module.modules())


def test_lists_of_the_module_stay_as_they_are():
    def remembers(net, x):
        net.seen.append(x)
        return net.linear(x)

    module = Net(remembers)
    module.seen = []
    lla_torch.convert(module, torch.ones(3, 4))
    assert module.seen == []


def test_inputs_of_another_kind_are_refused_or_cast():
    masked = lla_torch.convert(Net(lambda net, m: net.linear((~m).float())), torch.ones(3, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="converted for bool"):
        masked.apply(masked.variables, np.ones((3, 4), np.int32))
    scaled = lla_torch.convert(Net(lambda net, x: net.linear(x * 2 - 1)), torch.ones(3, 4))
    images = np.full((3, 4), 200, np.uint8)
    expected = scaled.apply(scaled.variables, images.astype(np.float32))
    np.testing.assert_array_equal(scaled.apply(scaled.variables, images), expected)
    with pytest.raises(ValueError, match="is missing"):
        scaled.apply({"params": {}}, images)
    turned = scaled.variables | {"params": {"linear": {"kernel": np.ones((5, 4)), "bias": np.ones(4)}}}
    with pytest.raises(ValueError, match=r"\(4, 4\)"):
        scaled.apply(turned, images)


def test_a_registered_lowering_is_used_where_torch_would_decompose():
    from lla_torch.program.operators import TABLE

    called = []

    own = TABLE["aten.logit.default"]

    @lla_torch.lowering("aten.logit.default")
    def logit(x, eps=None):
        called.append(1)
        return jax.scipy.special.logit(x)

    try:
        net = lla_torch.convert(Net(lambda net, x: torch.logit(x)), torch.full((3, 4), 0.3))
        assert called
        assert net.apply(net.variables, np.full((2, 4), 0.3, np.float32)).shape == (2, 4)
    finally:
        TABLE["aten.logit.default"] = own


def test_reserved_names_are_refused():
    with pytest.raises(ValueError, match="by position"):
        lla_torch.convert(nn.MultiheadAttention(4, 2), torch.ones(3, 1, 4), example_kwargs={"key": torch.ones(3, 1, 4)})


def test_whole_numbers_that_do_not_fit_are_kept_in_64_bits():
    net = Net(lambda net, x: net.linear(x) + net.big)
    net.register_buffer("big", torch.tensor(2**40 + 2**17))
    converted = lla_torch.convert(net, torch.ones(3, 4))
    out = jax.jit(lambda v, x: converted.apply(v, x))(converted.variables, np.ones((3, 4), np.float32))
    np.testing.assert_array_equal(out, np.full_like(out, 2**40 + 2**17))
