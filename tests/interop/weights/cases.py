"""Networks of the tests of weights, and files that could run code."""

from __future__ import annotations

import json
import os

import torch
from lla_torch.net import Net
from lla_torch.weights.checkpoint import to_state_dict
from lla_torch.weights.names import as_jax, filter_axis, map_names, references, to_array
from torch import nn


class Flattens(nn.Module):
    """The rows of its linear layer are stored in another order than torch's."""

    def __init__(self, features=12):
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 2)
        self.fc = nn.Linear(features, 4)

    def forward(self, x):
        return self.fc(self.conv(x).flatten(1))


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

    def forward(self, x):
        return self.head(self.embed(x))


class Holder(nn.Module):
    """A network with another module beside it."""

    def __init__(self):
        super().__init__()
        self.bert = Small()
        self.classifier = nn.Linear(4, 2)


def lora(weight, adapter=""):
    """Names of an adapter as PEFT has them in a model, or in a file where they are without the adapter's."""
    start = "base_model.model.fc."
    return {f"{start}lora_A{adapter}.weight": weight, f"{start}lora_B{adapter}.weight": weight.T.contiguous()}


class Adapted(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.Module()
        layer.base_layer = nn.Linear(3, 3)
        layer.lora_A = nn.ModuleDict({"default": nn.Linear(3, 2, bias=False)})
        layer.lora_B = nn.ModuleDict({"default": nn.Linear(2, 3, bias=False)})
        self.base_model = nn.ModuleDict({"model": nn.ModuleDict({"fc": layer})})


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


def same(net, state, cast=None):
    """Whether the network holds the state_dict, entry for entry, in torch's layout."""
    back = to_state_dict(net)
    assert list(back) == list(state)
    for name, tensor in state.items():
        want = tensor.to(cast) if cast and tensor.is_floating_point() else tensor
        assert back[name].dtype == want.dtype, name
        assert torch.equal(back[name], want), name


def save(content, path, **options):
    torch.save(content, path, **options)
    return path


def at(prefix, state):
    """A state_dict with a prefix before its names."""
    return {prefix + name: tensor for name, tensor in state.items()}


def write_shards(state, folder, whole, write):
    """Two shards with their index, as transformers names them; the folder."""
    stem, suffix = whole.split(".")
    table = {}
    for i, names in enumerate((list(state)[:4], list(state)[4:])):
        file = f"{stem}-{i + 1:05}-of-00002.{suffix}"
        write({name: state[name] for name in names}, folder / file)
        table |= dict.fromkeys(names, file)
    (folder / f"{whole}.index.json").write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": table}))
    return folder


class Hostile:
    """An object whose pickle writes a file when it is read."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"echo gone > {self.target}",)
