"""Converted networks in use: planes, losses and steps are those of torch, and a second checkpoint compiles nothing."""

from __future__ import annotations

import copy
import functools

import jax
import numpy as np
import pytest

import lla_jax as lla
from tests.helpers import FIXED, compilations

torch = pytest.importorskip("torch")
lla_torch = pytest.importorskip("lla_torch")


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3)
        self.drop, self.head = torch.nn.Dropout(0.4), torch.nn.Linear(12, 4)

    def forward(self, x):
        x = torch.max_pool2d(torch.tanh(self.norm(self.conv(x))), 2)
        return self.head(self.drop(x.flatten(1)))


@pytest.fixture(scope="module")
def small():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Small().eval()
        module.norm.running_mean.normal_(0, 0.2)
        module.norm.running_var.uniform_(0.5, 1.5)
        x, y = torch.randn(11, 2, 6, 6), torch.randint(4, (11,))
    net = lla_torch.convert(module, x[:3], train=True)
    return module, net, x, y


def moved(module, net, axes, point):
    """torch's module at a point of the plane."""
    other = copy.deepcopy(module)
    with torch.no_grad():
        for k, coordinate in enumerate(point):
            direction = lla_torch.to_state_dict(net, jax.tree.map(lambda leaf, k=k: leaf[k], axes.tree))
            for name, p in other.named_parameters():
                p += coordinate * direction[name]
    return other


@pytest.mark.parametrize("policy", ["frozen", "batch", "reestimate"])
def test_a_plane_of_an_imported_network_is_that_of_torch(small, policy):
    module, net, x, y = small
    loss, params = net.loss(torch.nn.CrossEntropyLoss()), net.variables["params"]
    axes = lla.directions.normalize(lla.directions.random(jax.random.key(0), params), params, filter_axis=loss)
    grid = lla.grid(ranges=((-0.5, 0.7), (-0.2, 0.4)), points=(3, 2))
    plan = FIXED if policy == "frozen" else lla.Execution(chunk=4, loop="map", share=False, devices=1)
    plane = lla.evaluate(loss, params, (x.numpy(), y.numpy()), axes, grid, batch_stats=policy, execution=plan)
    for i, a in enumerate(plane.coords[0]):
        for j, b in enumerate(plane.coords[1]):
            other = moved(module, net, axes, (a, b))
            with torch.no_grad():
                if policy == "batch":
                    other.norm.train()
                elif policy == "reestimate":  # over the whole data set at once
                    other.norm.momentum = 1.0
                    other.norm.train()
                    other(x)
                    other.norm.eval()
                expected = torch.nn.functional.cross_entropy(other(x), y).item()
            np.testing.assert_allclose(plane.values["loss"][i, j], expected, rtol=1e-5)


def test_dropout_is_the_examples_own_with_a_key(small):
    _, _, x, y = small
    module = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(72, 6), torch.nn.Dropout(0.5), torch.nn.Linear(6, 4)
    )
    net = lla_torch.convert(module, x[:3], train=True)
    data, params = (x.numpy(), y.numpy()), net.variables["params"]
    axes, grid = lla.directions.random(jax.random.key(0), params, 1), lla.grid(points=1, dims=1)

    def value(loss, **how):
        return lla.evaluate(loss, params, data, axes, grid, **how).values["loss"].item()

    quiet = value(net.loss(torch.nn.CrossEntropyLoss()))
    noisy = net.loss(torch.nn.CrossEntropyLoss(), key=jax.random.key(1))
    assert value(noisy) == pytest.approx(value(noisy, batch_size=4), rel=1e-5)
    assert abs(value(noisy) - quiet) > 1e-3
    with pytest.raises(ValueError, match="running statistics"):
        small[1].loss(torch.nn.CrossEntropyLoss(), key=jax.random.key(1))
    with pytest.raises(ValueError, match="draws no random numbers"):
        lla_torch.convert(module, x[:3]).loss(torch.nn.CrossEntropyLoss(), key=jax.random.key(1))


def test_a_second_checkpoint_compiles_nothing(small):
    module, net, x, y = small
    data = (x.numpy(), y.numpy())

    def job(net):
        loss, params = net.loss(torch.nn.CrossEntropyLoss()), net.variables["params"]
        axes = lla.directions.random(jax.random.key(0), params, 1)
        plane = lla.evaluate(loss, params, data, axes, lla.grid(points=3, dims=1), execution=FIXED)
        return plane.values["loss"], lla.hessian(loss, params, data).product(jax.tree.map(lambda p: p * 0 + 1, params))

    first = job(net)
    other = copy.deepcopy(module)
    with torch.no_grad():
        for p in other.parameters():
            p *= 1.1
    second = lla_torch.convert(other, x[:3], train=True)
    third = lla_torch.load_checkpoint(other.state_dict(), net)
    jax.tree.map(np.testing.assert_array_equal, second.variables, third.variables)
    assert second.function == net.function
    with compilations() as seen:
        results = job(second), job(third)
    assert seen.count == 0
    jax.tree.map(np.testing.assert_array_equal, *results)
    assert not np.allclose(results[0][0], first[0])


def test_a_certificate_fails_where_the_networks_differ(small):
    module, net, x, y = small
    good = lla_torch.certify(module, net, (x, y), torch.nn.CrossEntropyLoss())
    assert good.ok
    quantities = {"outputs", "loss", "gradient", "Hessian product", "statistics", "examples apart"}
    assert {r.quantity.removesuffix(", as run") for r in good.rows} == quantities
    assert "agree to rounding" in str(good)
    other = copy.deepcopy(module)
    with torch.no_grad():
        other.conv.weight[0, 0, 0, 0] += 1e-3
    bad = lla_torch.certify(other, net, (x, y), torch.nn.CrossEntropyLoss())
    assert not bad.ok
    assert "DIFFER" in str(bad)
    assert [row.quantity for row in bad.rows] == ["weights"]
    assert "the module holds other weights than the network, in conv.weight: " in str(bad)
    other.load_state_dict(lla_torch.to_state_dict(net))
    assert lla_torch.certify(other, net, (x, y)).ok


def test_own_criteria_inputs_and_labels(small):
    module, net, x, y = small
    batch = {"image": x.numpy(), "label": y.numpy()}
    loss = net.loss(
        lambda outputs, labels: -jax.numpy.take_along_axis(jax.nn.log_softmax(outputs), labels[:, None], 1)[:, 0],
        inputs=lambda batch: batch["image"],
        labels=lambda batch: batch["label"],
    )
    found = loss.criterion(loss.apply(net.variables["params"], loss.state, batch, False)[0], batch).mean()
    expected = torch.nn.functional.cross_entropy(module(x), y).item()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="inputs=lambda"):
        net.loss(torch.nn.CrossEntropyLoss()).apply(net.variables["params"], None, batch, False)
    with pytest.raises(ValueError, match='reduction="sum"'):
        net.loss(torch.nn.CrossEntropyLoss(reduction="sum"))


@pytest.mark.parametrize("reduced", [True, False], ids=["scalar", "per example"])
def test_a_step_written_in_torch_is_a_loss(small, reduced):
    module, net, x, y = small

    def step(module, batch):
        images, labels = batch
        inner = module.conv(images)
        losses = torch.nn.functional.cross_entropy(module(images), labels, reduction="none")
        losses = losses + 0.1 * inner.flatten(1).square().mean(1)
        return losses.mean() if reduced else losses

    loss, params = lla_torch.convert_loss(step, module, (x[:3], y[:3]))
    assert loss.per_example is not reduced
    jax.tree.map(np.testing.assert_array_equal, params, net.variables["params"])
    H = lla.hessian(loss, params, (x.numpy(), y.numpy()), batch_size=None if reduced else 4)
    v = lla_torch.to_state_dict(net, H.random(jax.random.key(0)))
    product = lla_torch.to_state_dict(net, H.product(H.random(jax.random.key(0))))
    names, parameters = zip(*module.named_parameters(), strict=True)
    slope = torch.autograd.grad(step(module, (x, y)).mean(), parameters, create_graph=True)
    expected = torch.autograd.grad(slope, parameters, [v[n] for n in names])
    scale = max(float(e.abs().max()) for e in expected)
    for name, e in zip(names, expected, strict=True):
        np.testing.assert_allclose(product[name].numpy() / scale, e.numpy() / scale, atol=2e-5)
    with pytest.raises(ValueError, match="per example"):
        lla_torch.convert_loss(lambda module, batch: module(batch[0]), module, (x[:3], y[:3]))


def test_a_step_keeps_the_tree_of_the_network(small):
    module, net, x, y = small

    def penalized(module, batch):
        return torch.nn.functional.cross_entropy(module(batch[0]), batch[1]) + module.head.weight.square().sum()

    def body_only(module, batch):
        return module.conv(batch[0]).square().mean()

    for step, options in ((penalized, {}), (body_only, {"net": net})):
        loss, params = lla_torch.convert_loss(step, module, (x[:3].numpy(), y[:3].numpy()), **options)
        jax.tree.map(np.testing.assert_array_equal, params, net.variables["params"])
        found = loss.apply(params, loss.state, (x.numpy(), y.numpy()), False)[0]
        np.testing.assert_allclose(found, step(module, (x, y)).item(), rtol=1e-5)


def test_a_key_that_does_nothing_is_refused(small):
    module, _, x, y = small

    def step(module, batch):
        return torch.nn.functional.cross_entropy(module(batch[0]), batch[1], reduction="none")

    key, batch = jax.random.key(0), (x[:3], y[:3])
    with pytest.raises(ValueError, match="draws no random numbers"):
        lla_torch.convert_loss(step, module, batch, key=key)
    with pytest.raises(ValueError, match="returns a scalar"):
        lla_torch.convert_loss(step, module, batch, key=key, train=True)


def test_precision_is_kept_or_cast(small):
    _, _, x, _ = small
    half = lla_torch.convert(Small().bfloat16(), x[:3].bfloat16())
    assert half.variables["params"]["head"]["kernel"].dtype == "bfloat16"
    assert half.apply(half.variables, x.numpy()).dtype == "bfloat16"
    single = lla_torch.convert(Small().double(), x[:3].double(), dtype="float32")
    assert single.apply(single.variables, x.numpy()).dtype == "float32"
    with pytest.raises(ValueError, match="jax_enable_x64"):
        lla_torch.convert(Small().double(), x[:3].double())


def test_losses_compare_by_value(small):
    net = small[1]

    def build(weight):
        module = torch.nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0, weight]))
        mine = net.loss(lambda o, l: (o - l) ** 2, inputs=lambda b: b["x"], labels=lambda b: b["y"])
        return net.loss(module), mine

    (first, mine), (second, same), (third, _) = build(4.0), build(4.0), build(5.0)
    assert first.criterion == second.criterion != third.criterion
    assert hash(first.criterion) == hash(second.criterion)
    assert (mine.apply, mine.criterion) == (same.apply, same.criterion)


def test_arguments_of_another_kind_are_refused(small):
    _, net, x, _ = small
    with pytest.raises(ValueError, match="at conversion"):
        net.apply(net.variables, x.numpy(), x.numpy())
    plain = lla_torch.convert(torch.nn.Linear(2, 2), torch.zeros(2, 2))
    with pytest.raises(ValueError, match=r"\(any, 2, 6, 6\)"):
        net.apply(net.variables, x.numpy().transpose(0, 2, 3, 1))
    with pytest.raises(ValueError, match="train=True"):
        plain.apply(plain.variables, np.zeros((2, 2)), train=True)
    with pytest.raises(ValueError, match=r"torch\.nn\.Module"):
        lla_torch.convert(lambda x: x, x)


@pytest.mark.parametrize(
    "length", [lambda rows: rows.shape[0] + 0 * rows.sum(), lambda rows: torch.tensor(float(len(rows)))]
)
def test_a_mean_where_a_step_should_give_a_sum_is_pointed_out(length):
    torch.manual_seed(0)
    module, x, labels = torch.nn.Linear(3, 4), torch.randn(8, 3), torch.arange(8) % 4
    batch = (x, labels)

    def step(reduction, module, batch):
        return torch.nn.functional.cross_entropy(module(batch[0]), batch[1], reduction=reduction), length(batch[0])

    def value(reduction):
        loss, params = lla_torch.convert_loss(functools.partial(step, reduction), module, batch)
        axis = lla.directions.random(jax.random.key(0), params, num=1)
        return lla.evaluate(loss, params, (x.numpy(), labels.numpy()), axis, [np.zeros(1)]).values["loss"][0]

    right = torch.nn.functional.cross_entropy(module(x), labels).item()
    assert value("sum") == pytest.approx(right, rel=1e-5)
    with pytest.warns(UserWarning, match=r"reduction='sum'"):
        value("mean")


def test_a_network_is_called_with_its_own_variables(small):
    module, net, x, _ = small
    np.testing.assert_array_equal(net(x.numpy()), net.apply(net.variables, x.numpy()))
    np.testing.assert_allclose(net(x.numpy()), module(x).detach(), atol=1e-5)


def test_positional_arguments_need_no_tuple():
    module = torch.nn.Bilinear(3, 2, 2)
    x, y = torch.ones(4, 3), torch.ones(4, 2)
    net = lla_torch.convert(module, x, y)
    assert net.function == lla_torch.convert(module, (x, y)).function
    np.testing.assert_allclose(net(x.numpy(), y.numpy()), module(x, y).detach(), rtol=1e-5)


def test_numbers_beyond_the_range_of_a_type_are_warned_of():
    module = torch.nn.Linear(3, 2).double()
    x = torch.ones(4, 3, dtype=torch.float64)
    net = lla_torch.convert(module, x, dtype="float32")
    with pytest.warns(UserWarning, match="inputs: tensor number 0 has entries beyond the range of float32"):
        net(x.numpy() * 1e39)
    with torch.no_grad():
        module.weight.fill_(1e39)
    with pytest.warns(UserWarning, match="weight: 6 entries are beyond the range of float32"):
        lla_torch.convert(module, x, dtype=torch.float32)
