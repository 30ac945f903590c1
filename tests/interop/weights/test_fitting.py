"""Names of a file and a network that differ by levels: prefixes, modules that fit, adapters."""

import pytest

torch = pytest.importorskip("torch")

from lla_torch.weights.checkpoint import load_checkpoint, to_state_dict
from lla_torch.weights.fitting import match_names
from torch import nn

from tests.interop.weights.cases import Adapted, Holder, Tied, at, lora, net_of, same, trained


@pytest.fixture
def net():
    return net_of(trained(0))


@pytest.mark.parametrize("levels", ["net", "bert", "base_model.model", "_orig_mod", "module.model.net._orig_mod"])
def test_prefixes(net, levels):
    state = trained().state_dict()
    same(load_checkpoint(at(levels + ".", state), net), state)
    inner = Holder()
    inner.bert, inner.classifier = trained(), nn.Identity()
    holder = net_of(inner)
    other = trained(3).state_dict()
    for file in (other, at(levels + ".", other)):  # the network has a level that the file lacks
        same(load_checkpoint(file, holder), at("bert.", other))


def test_modules_to_name(net):
    first, second = trained(1).state_dict(), trained(2).state_dict()
    two = {**at("student.", first), **at("teacher.", second)}
    with pytest.raises(ValueError, match=r"under the prefixes \['student.', 'teacher.'\]; name .* prefix='teacher.'"):
        load_checkpoint(two, net)
    same(load_checkpoint(two, net, prefix="teacher"), second)
    averaged = {**first, **at("ema.", second)}
    with pytest.raises(ValueError, match=r"under the prefixes \['', 'ema.'\]"):
        load_checkpoint(averaged, net)
    same(load_checkpoint(averaged, net, prefix=""), first)
    same(load_checkpoint(averaged, net, prefix="ema"), second)
    with pytest.raises(ValueError, match=r"prefix: 'foo.' given; it must be a module of .*'student.conv.weight'"):
        load_checkpoint(two, net, prefix="foo")
    with pytest.raises(ValueError, match="prefix: 3 given"):
        load_checkpoint(two, net, prefix=3)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("names", [["head.fc.gamma", "head.fc.beta"], ["head.x"], ["head.fc.gamma", "fc.weight"]])
def test_a_module_of_which_the_network_has_nothing(net, names, strict):
    with pytest.raises(ValueError, match=r"only 0 of the network's 9 names are in it"):
        load_checkpoint({name: torch.ones(3) for name in names}, net, prefix="head", strict=strict)


def test_the_remedy_that_an_error_names_works(net):
    state = trained().state_dict()
    more = {**state, "projector.weight": torch.ones(2)}
    with pytest.raises(ValueError, match=r"unexpected: \['projector.weight'\].*or pass prefix=''") as error:
        load_checkpoint(more, net)
    assert "strict" not in str(error.value)
    same(load_checkpoint(more, net, prefix=""), state)
    holder = net_of(Holder())
    for file in (state, {**at("bert.", state), "cls.bias": torch.ones(2)}):
        with pytest.raises(ValueError, match=r"missing: \['classifier.weight', .*or pass prefix='bert.'") as error:
            load_checkpoint(file, holder)
        assert "strict" not in str(error.value)
        back = to_state_dict(load_checkpoint(file, holder, prefix="bert."))
        assert all(torch.equal(back["bert." + name], state[name]) for name in state)


@pytest.mark.parametrize("strict", [True, False])
def test_names_that_mostly_differ(net, strict):
    few = {"fc.weight": torch.ones(4, 3), **{f"layers.{i}.weight": torch.ones(2) for i in range(30)}}
    with pytest.raises(ValueError, match=r"only 1 of the network's 9 names .*'layers.0.weight'.* and 10 more"):
        load_checkpoint(few, net, strict=strict)
    with pytest.raises(ValueError, match=r"holds an adapter: convert the model with its adapter.*merge_and_unload"):
        load_checkpoint(lora(torch.ones(2, 3)), net, strict=strict)


@pytest.mark.parametrize("level", ["fourierft_spectrum", "c3a_kernel", "lora_E"])
def test_adapters_of_one_tensor(level):
    """AdaLoRA's models have ranks beside it, which its files lack."""
    layer = nn.Module()
    layer.base_layer = nn.Linear(3, 3)
    setattr(layer, level, nn.ParameterDict({"default": nn.Parameter(torch.zeros(4))}))
    layer.ranknum = nn.ParameterDict({"default": nn.Parameter(torch.tensor(2.0), requires_grad=False)})
    module = nn.ModuleDict({"base_model": nn.ModuleDict({"model": nn.ModuleDict({"fc": layer})})})
    loaded = load_checkpoint({f"base_model.model.fc.{level}": torch.arange(4.0)}, net_of(module))
    same(loaded, {**module.state_dict(), f"base_model.model.fc.{level}.default": torch.arange(4.0)})


@pytest.mark.parametrize("order", [1, -1])
def test_tied_tensors_that_differ(order):
    state = {"embed.weight": torch.zeros(5, 3), "head.weight": torch.ones(5, 3)}
    match = r"(head.weight and embed.weight|embed.weight and head.weight) are tied in the network but differ"
    with pytest.raises(ValueError, match=match) as error:
        load_checkpoint(dict(list(state.items())[::order]), net_of(trained(0, Tied)))
    assert "prefix" not in str(error.value)


def test_adapters_that_do_not_fit():
    net = net_of(Adapted())
    with pytest.raises(ValueError, match=r"lora_A.default.weight has shape \(4, 3\), but the network's has \(2, 3\)"):
        load_checkpoint(lora(torch.ones(4, 3)), net)
    module = Adapted()
    layer = module.base_model["model"]["fc"]
    layer.lora_A["other"], layer.lora_B["other"] = nn.Linear(3, 2, bias=False), nn.Linear(2, 3, bias=False)
    with pytest.raises(ValueError, match=r"may be any of \[.*lora_A.default.weight', .*lora_A.other.weight'\]"):
        load_checkpoint(lora(torch.ones(2, 3)), net_of(module))


def test_equal_names_in_other_shapes():
    state = {**at("0.", nn.Linear(3, 4).state_dict()), **at("2.", nn.Linear(4, 2).state_dict())}
    loaded = load_checkpoint(state, net_of(nn.Linear(4, 2)))  # the only layer of this shape
    assert torch.equal(to_state_dict(loaded)["weight"], state["2.weight"])
    with pytest.raises(ValueError, match=r"under the prefixes \['0.', '1.'\]"):
        load_checkpoint(
            {**at("0.", nn.Linear(2, 2).state_dict()), **at("1.", nn.Linear(2, 2).state_dict())},
            net_of(nn.Linear(2, 2)),
        )


def test_a_number_may_have_one_axis():
    module = nn.Module()
    module.scale = nn.Parameter(torch.tensor(2.0))
    loaded = load_checkpoint({"scale": torch.tensor([3.0])}, net_of(module))
    assert torch.equal(to_state_dict(loaded)["scale"], torch.tensor(3.0))


@pytest.mark.parametrize("kept", [("embed.weight", "head.weight"), ("embed.weight",), ("head.weight",)])
def test_tied_tensors_under_a_prefix(kept):
    state, net = trained(1, Tied).state_dict(), net_of(trained(0, Tied))
    file = {**at("model.", {name: state[name] for name in kept}), "head_of_another.weight": torch.ones(2)}
    same(load_checkpoint(file, net), state)


def test_names_of_an_optimizer():
    known = ["model.a.weight", "model.b.weight"]
    for given in (
        known,
        ["a.weight", "b.weight"],
        ["net.a.weight", "net.b.weight"],
        ["module.model.a.weight", "b.weight"],
    ):
        expected = known if len({name.count(".") for name in given}) == 1 else given
        assert match_names(given, known) == expected


def test_moments_beside_the_weights(net):
    state = trained().state_dict()
    moments = {name: {"exp_avg": tensor, "exp_avg_sq": tensor, "step": tensor} for name, tensor in state.items()}
    same(load_checkpoint({"model": state, "optimizer": {"state": moments}}, net), state)


def test_states_that_are_no_tensors(net):
    state = trained().state_dict()
    same(load_checkpoint({**state, "fc._extra_state": None}, net), state)
    with pytest.raises(ValueError, match=r"unexpected: \['fc._extra_state'\]"):
        load_checkpoint({**state, "fc._extra_state": {"scale": 2.0}}, net)


@pytest.mark.parametrize("path", [None, 3, nn.Linear(2, 2)])
def test_paths_that_are_none(net, path):
    with pytest.raises(ValueError, match=r"path: .* given; it must be the path of a checkpoint, or a state_dict"):
        load_checkpoint(path, net)
