"""Checkpoints into a converted network and back: every kind of file, and files that must not be loaded."""

import os
import pickle
from collections import OrderedDict

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

from lla_torch.net import Net, convert
from lla_torch.weights.checkpoint import load_checkpoint, to_state_dict
from lla_torch.weights.names import as_jax, filter_axis, map_names, references, to_array
from torch import nn

from tests.interop.weights.cases import Flattens


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3)
        self.bn = nn.BatchNorm2d(3)
        self.fc = nn.Linear(3, 4)
        self.register_buffer("table", torch.tensor([1, 2, 3]))
        self.register_buffer("scratch", torch.ones(2), persistent=False)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def net_of(module):
    """A converted network without its function."""
    names, tensors = map_names(module), dict(module.named_buffers(remove_duplicate=False))
    tensors |= dict(module.named_parameters(remove_duplicate=False))
    arrays = {x.name: as_jax(names.to_jax(x, to_array(tensors[x.name])), x.name) for x in names.leaves}
    return Net(None, {"params": {}, **names.tree(arrays)}, names, filter_axis(names), references(module))


def trained(seed=1, kind=Small):
    torch.manual_seed(seed)
    module = kind()
    if kind is Small:
        module.bn.running_mean.uniform_()
        module.bn.num_batches_tracked += 7
    return module


@pytest.fixture
def net():
    return net_of(trained(0))


def same(net, state, cast=None):
    """Whether the network holds the state_dict, entry for entry, in torch's layout."""
    back = to_state_dict(net)
    assert list(back) == list(state)
    for name, tensor in state.items():
        want = tensor.to(cast) if cast and tensor.is_floating_point() else tensor
        assert back[name].dtype == want.dtype, name
        assert torch.equal(back[name], want), name


def save(content, path):
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        OrderedDict,
        lambda s: {"state_dict": s, "epoch": 3, "best": torch.tensor(0.5)},
        lambda s: {"model_state_dict": s, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}},
        lambda s: {"module." + k: v for k, v in s.items()},
        lambda s: {"model": {"module._orig_mod." + k: v for k, v in s.items()}},
        lambda s: {"state_dict": {"model." + k: v for k, v in s.items()}},
        lambda s: {"n_averaged": torch.tensor(4), **{"module." + k: v for k, v in s.items()}},
        lambda s: {k.replace("conv.", "conv._orig_mod."): v for k, v in s.items()},
        lambda s: {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in s.items()},
        lambda s: {"generator": s, "discriminator": {"w": torch.ones(2)}},
        lambda s: {k: v for k, v in s.items() if "num_batches" not in k},
    ],
)
def test_finds_the_state_dict(tmp_path, net, wrap):
    state = trained().state_dict()
    loaded = load_checkpoint(save(wrap(state), tmp_path / "a.pth"), net)
    if wrap(state).keys() != state.keys() and len(wrap(state)) == len(state) - 1:
        state["bn.num_batches_tracked"] = torch.tensor(7)  # the network's own
    same(loaded, state)
    assert not np.array_equal(loaded.variables["params"]["fc"]["kernel"], net.variables["params"]["fc"]["kernel"])
    assert loaded.variables["params"]["conv"]["kernel"].shape == (3, 3, 2, 3)
    assert isinstance(loaded.variables["params"]["conv"]["kernel"], jax.Array)


def test_other_sources(tmp_path, net):
    state = trained().state_dict()
    same(load_checkpoint(state, net), state)
    torch.save(state, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    same(load_checkpoint(str(tmp_path / "old.bin"), net), state)
    for name in ("a.safetensors", "named_otherwise.bin"):
        safetensors_torch.save_file(state, tmp_path / name)
        same(load_checkpoint(tmp_path / name, net), state)


def test_a_module_that_loads_it_back(tmp_path):
    module, other = trained(1), trained(2)
    other.load_state_dict(to_state_dict(net_of(module)))
    assert all(torch.equal(a, b) for a, b in zip(module.state_dict().values(), other.state_dict().values()))


def test_a_converted_network(tmp_path):
    module, x = trained(1, Flattens), torch.linspace(-1, 1, 36).reshape(2, 2, 3, 3)
    net = convert(trained(0, Flattens), x)
    kernel = net.variables["params"]["fc"]["kernel"]
    assert not np.array_equal(kernel, to_state_dict(net)["fc.weight"].T)
    loaded = load_checkpoint(save(module.state_dict(), tmp_path / "a.pth"), net)
    same(loaded, module.state_dict())
    with torch.no_grad():
        np.testing.assert_allclose(loaded.apply(loaded.variables, x.numpy()), module(x), rtol=1e-5, atol=1e-6)
    assert loaded.function is net.function  # nothing compiles anew


def test_several_candidates(tmp_path, net):
    first, second = trained(1).state_dict(), trained(2).state_dict()
    path = save({"model": first, "ema": {"shadow": second}}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"\['ema.shadow', 'model'\] that fit; name the one you mean, such as key="):
        load_checkpoint(path, net)
    same(load_checkpoint(path, net, key="model"), first)
    same(load_checkpoint(path, net, key="ema"), second)
    same(load_checkpoint(path, net, key="ema.shadow"), second)
    with pytest.raises(ValueError, match=r"key: 'best' given; .* which are \['ema', 'model'\]"):
        load_checkpoint(path, net, key="best")
    with pytest.raises(ValueError, match="none of which fits"):
        load_checkpoint({"a": {"w": torch.ones(1)}, "b": {"v": torch.ones(1)}}, net)


@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_half_precision(tmp_path, net, half):
    state = {k: v.to(half) if v.is_floating_point() else v for k, v in trained().state_dict().items()}
    path = save(state, tmp_path / "a.pth")
    loaded = load_checkpoint(path, net)
    same(loaded, state)
    assert loaded.variables["params"]["fc"]["kernel"].dtype == str(half).removeprefix("torch.")
    same(load_checkpoint(path, net, dtype="net"), state, torch.float32)
    same(load_checkpoint(path, net, dtype="float32"), state, torch.float32)
    same(load_checkpoint(path, net, dtype=torch.float16), state, torch.float16)


def test_float64(tmp_path, net):
    state = trained().double().state_dict()
    path = save(state, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"jax.config.update\('jax_enable_x64', True\).*dtype='float32'"):
        load_checkpoint(path, net)
    same(load_checkpoint(path, net, dtype="float32"), state, torch.float32)
    with jax.enable_x64(True):
        same(load_checkpoint(path, net), state)
    with pytest.raises(ValueError, match="dtype: 'int32' given; it must be None, 'net'"):
        load_checkpoint(path, net, dtype="int32")
    with pytest.raises(ValueError, match="dtype: 'float33' given"):
        load_checkpoint(path, net, dtype="float33")


def test_names_that_do_not_agree(net):
    state = dict(trained().state_dict())
    del state["fc.bias"], state["bn.running_var"]
    state |= {"head.w": torch.ones(1), "conv.weight": torch.ones(3, 2, 5, 5)}
    with pytest.raises(ValueError, match="missing") as error:
        load_checkpoint(state, net)
    for part in ("['bn.running_var', 'fc.bias']", "unexpected: ['head.w']", "(3, 2, 5, 5)", "(3, 2, 3, 3)"):
        assert part in str(error.value)
    with pytest.raises(ValueError, match=r"conv.weight has shape \(3, 2, 5, 5\)") as error:
        load_checkpoint(state, net, strict=False)
    assert "missing" not in str(error.value)
    del state["conv.weight"]
    with pytest.warns(UserWarning, match=r"missing: \['conv.weight', 'bn.running_var', 'fc.bias'\].*head.w"):
        loaded = load_checkpoint(state, net, strict=False)
    assert np.array_equal(loaded.variables["params"]["fc"]["bias"], net.variables["params"]["fc"]["bias"])
    assert np.array_equal(loaded.variables["params"]["fc"]["kernel"], state["fc.weight"].T)


def test_entries_of_another_kind(net):
    state = dict(trained().state_dict())
    with pytest.raises(ValueError, match=r"fc.bias is int64, but the network's is float32"):
        load_checkpoint({**state, "fc.bias": torch.ones(4, dtype=torch.int64)}, net)
    with pytest.raises(ValueError, match="table is int64 and does not fit into the network's int32"):
        load_checkpoint({**state, "table": torch.tensor([1, 2, 2**40])}, net)
    with pytest.raises(ValueError, match=r"fc.bias is torch.sparse_coo, but must be a dense tensor"):
        load_checkpoint({**state, "fc.bias": torch.ones(4).to_sparse()}, net)
    with pytest.warns(UserWarning, match=r"not finite in \['fc.bias'\]"):
        load_checkpoint({**state, "fc.bias": torch.full((4,), torch.nan)}, net)
    with pytest.warns(UserWarning, match=r"not finite in \['fc.bias'\]"):
        load_checkpoint({**state, "fc.bias": torch.full((4,), 1e6)}, net, dtype="float16")


def test_tied_weights(tmp_path):
    module, net = trained(1, Tied), net_of(trained(0, Tied))
    state = module.state_dict()
    same(load_checkpoint(state, net), state)
    back = to_state_dict(net)
    assert back["embed.weight"] is back["head.weight"]
    for name in state:  # either name alone will do
        same(load_checkpoint({name: state[name]}, net), state)
    with pytest.raises(ValueError, match=r"head.weight and embed.weight are tied in the network but differ"):
        load_checkpoint({**state, "head.weight": state["head.weight"] + 1}, net)


def test_other_trees_as_state_dicts(net):
    params = jax.tree.map(lambda x: 2 * x, net.variables["params"])
    state = {"batch_stats": jax.tree.map(lambda x: x + 1, net.variables["batch_stats"])}
    back, own = to_state_dict(net, params, state), to_state_dict(net)
    assert torch.equal(back["conv.weight"], 2 * own["conv.weight"])
    assert torch.equal(back["bn.running_mean"], own["bn.running_mean"] + 1)
    assert torch.equal(back["table"], own["table"])
    assert "scratch" not in own
    with pytest.raises(ValueError, match=r"state: it has \['stats'\]"):
        to_state_dict(net, state={"stats": {}})
    with pytest.raises(ValueError, match="params: params/conv/kernel is missing"):
        to_state_dict(net, params={})
    with pytest.raises(ValueError, match=r"params/conv/kernel: shape \(1, 3, 3, 2, 3\)"):
        to_state_dict(net, jax.tree.map(lambda x: x[None], params))


class Config:
    def __init__(self, lr):
        self.lr = lr


class Hostile:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"echo gone > {self.target}",)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (torch.save, r"refused, .*\['posix.system'\]"),
        (lambda x, path: torch.save(x, path, _use_new_zipfile_serialization=False), r"refused, .*\['posix.system'\]"),
        (lambda x, path: path.write_bytes(pickle.dumps(x, 2)), r"refused, .*\['posix.system'\]"),
        (
            lambda x, path: path.write_bytes(pickle.dumps(x)),
            "not a checkpoint of torch.save.*nothing of it was executed",
        ),
    ],
)
def test_no_code_of_a_file_runs(tmp_path, net, write, said):
    target, path = tmp_path / "executed", tmp_path / "hostile.pth"
    write({"state_dict": {"fc.weight": Hostile(target)}}, path)
    with pytest.raises(ValueError, match=said) as error:
        load_checkpoint(path, net)
    assert isinstance(error.value.__cause__, pickle.UnpicklingError)
    assert not target.exists()


def test_other_objects_in_files(tmp_path, net):
    module = trained()
    with pytest.raises(ValueError, match=r"Linear'\].*save\(module.state_dict\(\)"):
        load_checkpoint(save(nn.Linear(2, 2), tmp_path / "module.pth"), net)
    path = save({"model": module.state_dict(), "args": Config(0.1)}, tmp_path / "args.pth")
    with pytest.raises(ValueError, match=r"\['tests.interop.weights.test_checkpoint.Config'\]") as error:
        load_checkpoint(path, net)
    assert "weights_only" not in str(error.value)
    with torch.serialization.safe_globals([Config]):  # the caller's own decision
        same(load_checkpoint(path, net), module.state_dict())
    for content, said in (([1, 2], "list"), ({"lr": 0.1}, r"\['lr'\]"), (torch.ones(2), "Tensor")):
        with pytest.raises(ValueError, match=f"holds no state_dict.*{said}"):
            load_checkpoint(save(content, tmp_path / "b.pth"), net)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::FutureWarning")
def test_torchscript(tmp_path, net):
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save(tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"TorchScript.*state_dict\(\)"):
        load_checkpoint(tmp_path / "a.pt", net)


def test_damaged_files(tmp_path, net):
    state = trained().state_dict()
    new = save(state, tmp_path / "new.pth").read_bytes()
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    old = (tmp_path / "old.pth").read_bytes()
    contents = {
        "cut": new[:-200],
        "half": new[: len(new) // 2],
        "old": old[:-9],
        "text": b"hello world",
        "0": bytes(99),
    }
    for name, content in contents.items():
        path = tmp_path / f"{name}.pth"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"path: .*{name}.pth' is not a checkpoint of torch.save"):
            load_checkpoint(path, net)
    np.savez(tmp_path / "a.npz", a=np.ones(2))
    with pytest.raises(ValueError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "a.npz", net)
    safetensors_torch.save_file(state, tmp_path / "a.safetensors")
    whole = (tmp_path / "a.safetensors").read_bytes()
    for content in (whole[:-3], b"xx", bytes(20)):
        (tmp_path / "b.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match="not a complete safetensors file"):
            load_checkpoint(tmp_path / "b.safetensors", net)
    (tmp_path / "empty.pth").touch()
    with pytest.raises(ValueError, match="empty"):
        load_checkpoint(tmp_path / "empty.pth", net)
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_checkpoint(tmp_path / "none.pth", net)
    with pytest.raises(
        ValueError, match=r"holds several checkpoints; pass the path of one of \['0.pth', 'a.safetensors'"
    ):
        load_checkpoint(tmp_path, net)
