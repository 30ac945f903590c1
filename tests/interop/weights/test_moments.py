"""Adam's moments of optimizers and saved states, by identity and by name, in the layout of the weights."""

import gc

import jax
import numpy as np
import optax
import pytest

torch = pytest.importorskip("torch")

from lla_torch.net import convert
from lla_torch.weights.checkpoint import to_state_dict
from lla_torch.weights.moments import adam_moments, optax_state
from lla_torch.weights.names import map_names
from torch import nn

from tests.interop.weights.cases import Flattens, Tied, net_of


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.norm = nn.GroupNorm(1, 3)
        self.fc = nn.Linear(3, 4)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).mean((2, 3)))


def steps(module, optimizer, x=None, num=3):
    torch.manual_seed(0)
    for _ in range(num):
        inputs = torch.randn(4, 2, 5, 5) if x is None else x
        optimizer.zero_grad()
        (module(inputs) ** 2).mean().backward()
        optimizer.step()


def trained(kind=torch.optim.Adam, make=lambda m: m.parameters(), **options):
    torch.manual_seed(0)
    module = Small()
    optimizer = kind(make(module), lr=1e-2, **options)
    steps(module, optimizer)
    return module, optimizer


def check(tree, module, optimizer, part):
    """Every moment is where its weight is, as turned as that."""
    for name, p in module.named_parameters():
        moment = optimizer.state[p].get(part, torch.zeros(p.shape)) if p in optimizer.state else torch.zeros(p.shape)
        leaf = map_names(module).by_name(name)
        node = tree
        for key in leaf.path:
            node = node[key]
        want = moment.numpy().transpose({4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[p.ndim])
        assert np.array_equal(node, want), name


@pytest.mark.parametrize("kind", ["Adam", "AdamW", "NAdam", "RAdam"])
def test_live_optimizers(kind):
    module, optimizer = trained(getattr(torch.optim, kind))
    net = net_of(module)
    state = optax_state(optimizer, net)
    assert isinstance(state, optax.ScaleByAdamState)
    assert state.count == 3
    check(state.mu, module, optimizer, "exp_avg")
    check(state.nu, module, optimizer, "exp_avg_sq")
    axes = adam_moments(optimizer, net)
    assert axes.recipe["kind"] == "adam_moments"
    assert axes.recipe["names"] == ["m", "v"]
    first = jax.tree.map(lambda x: x[1], axes.tree)
    check(first, module, optimizer, "exp_avg_sq")
    assert jax.tree.structure(first) == jax.tree.structure(net.variables["params"])


def test_moments_of_a_converted_network_are_laid_as_its_weights():
    torch.manual_seed(0)
    module = Flattens(features=48)
    optimizer = torch.optim.Adam(module.parameters())
    steps(module, optimizer)
    net = convert(module, torch.zeros(2, 2, 5, 5))
    back = to_state_dict(net, optax_state(optimizer, net).mu)
    for name, parameter in module.named_parameters():
        assert torch.equal(back[name], optimizer.state[parameter]["exp_avg"]), name


def test_amsgrad_and_foreach_give_the_plain_moments():
    module, optimizer = trained(amsgrad=True, foreach=True)
    check(optax_state(optimizer, net_of(module)).nu, module, optimizer, "exp_avg_sq")


def test_groups_in_any_order():
    groups = lambda m: [{"params": m.fc.parameters(), "lr": 1e-3}, {"params": [*m.norm.parameters(), m.conv.weight]}]  # noqa: E731
    module, optimizer = trained(make=groups)
    net = net_of(module)
    check(optax_state(optimizer, net).mu, module, optimizer, "exp_avg")
    order = ["fc.weight", "fc.bias", "norm.weight", "norm.bias", "conv.weight"]
    check(optax_state(optimizer.state_dict(), net, order).mu, module, optimizer, "exp_avg")
    check(optax_state(optimizer, net, order).mu, module, optimizer, "exp_avg")


def test_saved_states(tmp_path):
    module, optimizer = trained()
    net = net_of(module)
    torch.save({"optimizer": optimizer.state_dict()}, tmp_path / "a.pth")
    saved = torch.load(tmp_path / "a.pth", weights_only=True)
    names = [name for name, _ in module.named_parameters()]
    with pytest.raises(ValueError, match=r"holds no names; pass params=\[...\]"):
        optax_state(saved["optimizer"], net)
    check(optax_state(saved["optimizer"], net, names).mu, module, optimizer, "exp_avg")
    check(optax_state(saved["optimizer"], net, ["module." + n for n in names]).mu, module, optimizer, "exp_avg")
    with pytest.raises(ValueError, match=r"dict with \['optimizer'\].*checkpoint\['optimizer'\]"):
        optax_state(saved, net, names)
    with pytest.raises(ValueError, match="optimizer_or_state: list given"):
        optax_state([], net, names)
    with pytest.raises(ValueError, match="7 names given, but the saved state has 8 parameters"):
        optax_state(saved["optimizer"], net, names[:-1])
    with pytest.raises(ValueError, match=r"\['body'\] are not parameters of the network"):
        optax_state(saved["optimizer"], net, ["body", *names[1:]])
    with pytest.raises(ValueError, match=r"\['conv.bias'\] name a parameter twice"):
        optax_state(saved["optimizer"], net, [names[1], *names[1:]])
    with pytest.raises(
        ValueError,
        match=r"exp_avg of the saved state has other shapes.*conv.weight has \(3,\) instead of \(3, 2, 3, 3\)",
    ):
        optax_state(saved["optimizer"], net, [names[1], names[0], *names[2:]])


def test_names_in_the_saved_state():
    module, optimizer = trained(make=lambda m: m.named_parameters())
    state = optimizer.state_dict()
    assert "param_names" in state["param_groups"][0]
    check(optax_state(state, net_of(module)).nu, module, optimizer, "exp_avg_sq")


def test_tied_weights():
    torch.manual_seed(0)
    module = Tied()
    optimizer = torch.optim.Adam(module.parameters())
    steps(module, optimizer, torch.tensor([[0, 1]]))
    net = net_of(module)
    moment = optimizer.state[module.embed.weight]["exp_avg"].numpy()
    for source, params in ((optimizer, None), (optimizer.state_dict(), ["head.weight"])):
        assert np.array_equal(optax_state(source, net, params).mu["embed"]["embedding"], moment)


def test_half_precision_moments_stay():
    torch.manual_seed(0)
    module = Small().bfloat16()
    optimizer = torch.optim.Adam(module.parameters())
    torch.manual_seed(0)
    (module(torch.randn(4, 2, 5, 5).bfloat16()) ** 2).mean().backward()
    optimizer.step()
    mu = optax_state(optimizer, net_of(module)).mu["fc"]["kernel"]
    assert mu.dtype == "bfloat16"
    assert np.array_equal(mu.astype(np.float32), optimizer.state[module.fc.weight]["exp_avg"].float().numpy().T)


def test_parameters_of_other_modules():
    module, optimizer = trained()
    other = Small()
    with pytest.raises(ValueError, match=r"none of the parameters of the Adam optimizer.*params=\[...\]"):
        optax_state(optimizer, net_of(other))
    lost = net_of(Small())
    gc.collect()
    with pytest.raises(ValueError, match=r"no longer exists.*params=\[...\]"):
        optax_state(optimizer, lost)
    names = [name for name, _ in module.named_parameters()]
    check(optax_state(optimizer, lost, names).mu, module, optimizer, "exp_avg")

    stranger = nn.Parameter(torch.ones(7))
    optimizer.add_param_group({"params": [stranger]})
    net = net_of(module)
    check(optax_state(optimizer, net).mu, module, optimizer, "exp_avg")  # it never moved
    stranger.grad = torch.ones(7)
    optimizer.step()
    with pytest.raises(
        ValueError, match=r"parameter 8 of .*, of shape \(7,\), has moments but is none of the network's"
    ):
        optax_state(optimizer, net)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("SGD", {}), ("SGD", {"momentum": 0.9}), ("RMSprop", {}), ("Adamax", {}), ("Adagrad", {})],
)
def test_optimizers_without_moments(kind, options):
    module, optimizer = trained(getattr(torch.optim, kind), **options)
    net = net_of(module)
    with pytest.raises(ValueError, match=rf"the {kind} optimizer keeps .*use Adam, AdamW, NAdam or RAdam"):
        adam_moments(optimizer, net)
    names = [name for name, _ in module.named_parameters()]
    with pytest.raises(ValueError, match="optimizer_or_state: the saved state keeps"):
        adam_moments(optimizer.state_dict(), net, names)


def test_moments_that_cannot_be_used():
    module = Small()
    net = net_of(module)
    with pytest.raises(ValueError, match="no step yet"):
        adam_moments(torch.optim.Adam(module.parameters()), net)
    with pytest.raises(ValueError, match="SparseAdam"):
        adam_moments(torch.optim.SparseAdam(list(module.parameters())), net)
    optimizer = torch.optim.Adam([module.fc.bias])
    for moment, said in ((torch.ones(4).to_sparse(), "sparse"), (torch.ones(4, dtype=torch.complex64), "complex")):
        optimizer.state[module.fc.bias] = {"step": torch.tensor(1.0), "exp_avg": moment, "exp_avg_sq": moment}
        with pytest.raises(ValueError, match=f"exp_avg of the Adam optimizer is .*{said}.*give|{said}.*dense"):
            adam_moments(optimizer, net)


def test_names_as_torch_gives_them():
    module, optimizer = trained()
    net, names = net_of(module), [name for name, _ in module.named_parameters()]
    expected = optax_state(optimizer.state_dict(), net, names)
    for params in (module.named_parameters(), dict(module.named_parameters()), tuple(names)):
        found = optax_state(optimizer.state_dict(), net, params)
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, found, expected)))
