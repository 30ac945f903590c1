"""Checkpoints into a converted network and back: every kind of file, and files that must not be loaded."""

import argparse
import json
import re
import zipfile
from collections import OrderedDict
from pathlib import Path

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

from lla_torch.net import convert
from lla_torch.weights.checkpoint import load_checkpoint, to_state_dict
from torch import nn

from tests.interop.weights.cases import (
    Adapted,
    Flattens,
    Holder,
    Small,
    Tied,
    at,
    lora,
    net_of,
    same,
    save,
    trained,
    write_shards,
)


@pytest.fixture
def net():
    return net_of(trained(0))


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


def write_adapter(state, folder):
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    safetensors_torch.save_file(lora(torch.arange(6.0).reshape(2, 3)), folder / "adapter_model.safetensors")
    return folder


def write_weight_norm(state, folder):
    names = {"original0": "g", "original1": "v"}
    old = {re.sub(r"parametrizations.weight.(\w+)", lambda x: "weight_" + names[x[1]], k): v for k, v in state.items()}
    assert "weight_g" in old
    return save(old, folder / "a.pth")


def normed():
    return nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))


LIGHTNING = {
    "hyper_parameters": {"lr": np.float64(0.1), "args": argparse.Namespace(path=Path("runs"))},
    "callbacks": {"ModelCheckpoint{'monitor': None}": {"best_model_score": torch.tensor(0.5)}},
    "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}],
    "epoch": 3,
}
KINDS = {  # row of the table in docs/torch.md: (what writes the file, arguments, module, what is loaded of another one)
    "`torch.save(module.state_dict(), path)`": lambda s, f: save(s, f / "a.pth"),
    "`torch.save` before torch 1.6": lambda s, f: save(s, f / "a.pth", _use_new_zipfile_serialization=False),
    ".safetensors": lambda s, f: (safetensors_torch.save_file(s, f / "a.safetensors"), f / "a.safetensors")[1],
    "training checkpoint": lambda s, f: save({"net": {"best": s}, "epoch": 3, "acc": np.float64(0.9)}, f / "a.pth"),
    "several state_dicts in a file": (
        lambda s, f: save({"model": trained(2).state_dict(), "ema": {"shadow": s}}, f / "a.pth"),
        {"key": "ema.shadow"},
    ),
    "Lightning .ckpt": lambda s, f: save(
        {"state_dict": {**at("net.", s), "criterion.weight": torch.ones(4)}, **LIGHTNING}, f / "a.ckpt"
    ),
    "names of `DataParallel`, `torch.compile`, FSDP": lambda s, f: save(at("module._orig_mod.", s), f / "a.pth"),
    "`AveragedModel`": lambda s, f: save({"n_averaged": torch.tensor(4), **at("module.", s)}, f / "a.pth"),
    "names with a prefix (`backbone.`, `model.net.`)": lambda s, f: save(
        {**at("model.net.", s), "model.head.weight": torch.ones(2, 2)}, f / "a.pth"
    ),
    "several modules that fit (`student.`, `teacher.`)": (
        lambda s, f: save({**at("student.", s), **at("teacher.", trained(2).state_dict())}, f / "a.pth"),
        {"prefix": "student."},
    ),
    "a module of the network (a BERT encoder)": (
        lambda s, f: save({k.removeprefix("bert."): v for k, v in s.items() if k.startswith("bert.")}, f / "a.pth"),
        {"prefix": "bert."},
        Holder,
        r"bert\.",
    ),
    "losses beside the weights (`criterion.weight`)": lambda s, f: save(
        {**s, "criterion.weight": torch.ones(4), "bce.pos_weight": torch.ones(4)}, f / "a.pth"
    ),
    "other modules beside the weights": (
        lambda s, f: save({**s, "projector.weight": torch.ones(4, 4)}, f / "a.pth"),
        {"prefix": ""},
    ),
    "shards of .safetensors": lambda s, f: write_shards(s, f, "model.safetensors", safetensors_torch.save_file),
    "shards of .bin": lambda s, f: write_shards(s, f, "pytorch_model.bin", torch.save),
    "folder with one checkpoint": lambda s, f: (
        save(s, f / "pytorch_model.bin"),
        safetensors_torch.save_file(s, f / "model.safetensors"),
        save({"state": {}}, f / "optimizer.pt"),
        f,
    )[-1],
    "PEFT adapter": (write_adapter, {}, Adapted, "lora_"),
    "float16, bfloat16, float64": (lambda s, f: save(trained().double().state_dict(), f / "a.pth"), {"dtype": "net"}),
    "numpy arrays by name": lambda s, f: (
        np.savez(f / "a.npz", **{k: v.numpy() for k, v in s.items()}),
        dict(np.load(f / "a.npz")),
    )[1],
    "old names of `weight_norm`": (write_weight_norm, {}, normed),
}


def rows(title):
    """First cells of the table in docs/torch.md whose first line begins with ``title``."""
    text = (Path(__file__).parents[3] / "docs" / "torch.md").read_text()
    table = re.search(rf"^\| {title} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.M)[1]
    return [line.split("|")[1].strip() for line in table.splitlines()]


def test_the_documented_kinds_are_those_that_are_tested():
    assert rows("kind of file") == list(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_files(tmp_path, kind):
    case = KINDS[kind] if isinstance(KINDS[kind], tuple) else (KINDS[kind],)
    write, arguments, make, part = (*case, *(None, {}, Small, "")[len(case) :])
    state, net = trained(1, make).state_dict(), net_of(trained(0, make))
    before, path = to_state_dict(net), write(state, tmp_path)
    back = to_state_dict(load_checkpoint(path, net, **arguments))
    if kind == "PEFT adapter":
        state |= lora(torch.arange(6.0).reshape(2, 3), ".default")
    assert list(back) == list(before)
    for name in before:
        assert torch.equal(back[name], state[name] if re.search(part, name) else before[name]), name
    assert any(not torch.equal(back[name], before[name]) for name in before)


def test_tensors_that_hold_no_dense_values(net):
    state = trained().state_dict()
    with pytest.raises(ValueError, match=r"table is on the meta device .* \(the same for \['conv.weight', 'conv.bias'"):
        load_checkpoint({k: v.to("meta") for k, v in state.items()}, net)
    with pytest.raises(ValueError, match=r"fc.weight has shape \(4, 3, 1\), .* as many entries: reshape it"):
        load_checkpoint({**state, "fc.weight": state["fc.weight"][..., None]}, net)
    with pytest.raises(ValueError, match=r"fc.bias is int8, .*\(quantized weights must be saved as floats\)"):
        load_checkpoint({**state, "fc.bias": torch.ones(4, dtype=torch.int8)}, net)
    shared = torch.arange(24.0)
    views = {**state, "fc.weight": shared.reshape(6, 4).T[:, ::2], "fc.bias": shared[1:2].expand(4)}
    same(load_checkpoint(views, net), views)


def zip_with(path, name):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"")
    return path


def write_damaged(state, folder):
    path = save(state, folder / "a.pth")
    content = bytearray(path.read_bytes())
    content[content.index(state["fc.bias"].numpy().tobytes())] ^= 1
    path.write_bytes(content)
    return path


def write_bomb(state, folder):
    with zipfile.ZipFile(folder / "a.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(2**27))
    return folder / "a.pth"


def write_text(text, path):
    path.write_text(text)
    return path


REFUSED = {  # row of the table in docs/torch.md: (what writes the file, what the error says)
    "a whole module, `torch.save(module, path)`, and other classes": (
        lambda s, f: save(nn.Linear(2, 2), f / "a.pth"),
        r"Linear'\].*: torch.save\(module.state_dict\(\)",
    ),
    "TorchScript, `torch.export`": (lambda s, f: zip_with(f / "a.pt", "a/constants.pkl"), "TorchScript.*state_dict"),
    "a damaged file (its checksum is wrong)": (write_damaged, "checksum of its entry .* save or download it again"),
    "a file that unpacks to far more than the network": (write_bomb, "far more than the network has"),
    "a pointer of Git LFS, a web page, an archive": (
        lambda s, f: write_text("version https://git-lfs.github.com/spec/v1\n", f / "a.safetensors"),
        "git lfs pull",
    ),
    "one shard of several": (
        lambda s, f: write_shards(s, f, "model.bin", torch.save) / "model-00001-of-00002.bin",
        "pass their folder",
    ),
    "tensors without values (meta), sparse, quantized": (
        lambda s, f: {**s, "table": s["table"].to("meta")},
        "meta device",
    ),
    "names that mostly differ": (lambda s, f: {f"layers.{k}.w": v for k, v in s.items()}, "only 0 of the network's 9"),
    "an adapter, for a network without one": (lambda s, f: lora(torch.ones(2, 3)), "merge_and_unload"),
}


def test_the_documented_refusals_are_those_that_are_tested():
    assert rows("refused") == list(REFUSED)


@pytest.mark.parametrize("kind", REFUSED)
def test_kinds_that_are_refused(tmp_path, net, kind):
    write, said = REFUSED[kind]
    path = write(trained().state_dict(), tmp_path)
    for strict in (True, False):
        with pytest.raises(ValueError, match=said) as error:
            load_checkpoint(path, net, strict=strict)
        assert not re.search("strict=|weights_only", str(error.value))


def test_files_with_names_of_their_library(tmp_path, net):
    state = trained().state_dict()
    path = save({name.replace("fc.", "classifier."): tensor for name, tensor in state.items()}, tmp_path / "a.pth")
    with pytest.raises(
        ValueError, match=r"missing: .*load the file with the library that wrote it and pass .*state_dict"
    ):
        load_checkpoint(path, net)


def test_a_torch_module_is_loaded_as_its_network(net, tmp_path):
    module, other = trained(0), trained(1)
    before = {name: x.clone() for name, x in module.state_dict().items()}
    torch.save({"state_dict": {f"net.{name}": x for name, x in other.state_dict().items()}}, tmp_path / "net.ckpt")
    loaded = load_checkpoint(tmp_path / "net.ckpt", module)
    assert type(loaded) is type(module)
    for name, x in other.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], x)
        assert torch.equal(module.state_dict()[name], before[name])
    same(load_checkpoint(tmp_path / "net.ckpt", net), loaded.state_dict())
    with pytest.raises(ValueError, match="does not fit the network"):
        load_checkpoint(nn.Linear(2, 2).state_dict(), module)


def test_tied_and_turned_weights_of_a_torch_module_are_loaded():
    for kind in (Tied, Flattens):
        first, second = kind(), kind().half()
        loaded = load_checkpoint(second.state_dict(), first)
        for name, x in loaded.named_parameters():
            assert x.dtype == torch.float32
            assert torch.equal(x, second.get_parameter(name).float())
    assert loaded.state_dict().keys() == first.state_dict().keys()


def test_the_way_back_gives_a_module_the_weights_of_its_network(net):
    module = trained(1)
    module.load_state_dict(to_state_dict(net))
    same(net, module.state_dict())
