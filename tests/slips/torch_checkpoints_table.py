"""Slips with torch: checkpoints and the moments of optimizers."""

from __future__ import annotations

import lla_jax as lla
from tests.slips.torch_case import case, folder, lla_torch, nn, table, torch

SLIPS, slip = table()


# --- checkpoints


@slip("path", "second argument, load_checkpoint(path, net)")
def a_checkpoint_with_arguments_swapped() -> None:
    lla_torch.load_checkpoint(case().net, "net.pth")


@slip("net", "missing")
def a_checkpoint_alone() -> None:
    lla_torch.load_checkpoint("net.pth")


@slip("path", "no such file", "checkpoint file")
def a_checkpoint_that_is_not_there() -> None:
    lla_torch.load_checkpoint("nowhere.pth", case().net)


@slip("path", "nothing is fetched")
def a_checkpoint_in_the_net() -> None:
    lla_torch.load_checkpoint("https://example.com/net.pth", case().net)


@slip("path", "5000 characters")
def a_path_that_is_too_long() -> None:
    lla_torch.load_checkpoint("a" * 5000, case().net)


@slip("path", "''", "state_dict")
def an_empty_path() -> None:
    lla_torch.load_checkpoint("", case().net)


@slip("path", "3 given", "state_dict")
def a_number_for_a_path() -> None:
    lla_torch.load_checkpoint(3, case().net)


@slip("path", "b'net.pth'", "state_dict")
def bytes_for_a_path() -> None:
    lla_torch.load_checkpoint(b"net.pth", case().net)


@slip("path", "module.state_dict()")
def a_module_for_a_checkpoint() -> None:
    lla_torch.load_checkpoint(case().module, case().net)


@slip("path", "of an optimizer", "adam_moments")
def the_state_of_an_optimizer_for_weights() -> None:
    lla_torch.load_checkpoint(folder() / "adam.pth", case().net)


@slip("path", "not a checkpoint")
def a_text_for_a_checkpoint() -> None:
    lla_torch.load_checkpoint(folder() / "text.pth", case().net)


@slip("path", "net.replace(variables=")
def a_tree_for_a_checkpoint() -> None:
    lla_torch.load_checkpoint(case().params, case().net)


@slip("missing", "2.weight", "convert the module that was saved")
def a_checkpoint_of_another_module() -> None:
    lla_torch.load_checkpoint(nn.Linear(7, 7).state_dict(), case().net)


@slip("net", "not the dict of its weights")
def params_for_the_network_of_a_checkpoint() -> None:
    lla_torch.load_checkpoint(folder() / "net.pth", case().params)


@slip("dtype", "int8")
def a_checkpoint_as_integers() -> None:
    lla_torch.load_checkpoint(folder() / "net.pth", case().net, dtype="int8")


@slip("dtype", "module.to")
def a_type_for_a_torch_module() -> None:
    lla_torch.load_checkpoint(folder() / "net.pth", case().module, dtype="bfloat16")


@slip("strict", "True or False")
def a_word_for_strict() -> None:
    lla_torch.load_checkpoint(folder() / "net.pth", case().net, strict="no")


@slip("key", "3 given", "name of an entry")
def a_number_for_an_entry() -> None:
    lla_torch.load_checkpoint(folder() / "net.pth", case().net, key=3)


@slip("net", "lla_torch.convert")
def the_state_dict_of_a_module() -> None:
    lla_torch.to_state_dict(case().module)


@slip("params", "did you mean variables['params']?")
def the_state_dict_of_all_variables() -> None:
    lla_torch.to_state_dict(case().net, case().net.variables)


@slip("params", "x[0], directions.tree")
def the_state_dict_of_directions() -> None:
    axes = lla.directions.given([case().params])
    lla_torch.to_state_dict(case().net, axes)


@slip("state", "dict of collections")
def the_state_dict_of_a_list() -> None:
    lla_torch.to_state_dict(case().net, state=[1])


# --- optimizers


@slip("optimizer_or_state", "SGD", "Adam")
def moments_of_an_optimizer_without_them() -> None:
    lla_torch.adam_moments(torch.optim.SGD(case().module.parameters(), lr=0.1), case().net)


@slip("optimizer_or_state", "belongs to the module", "params=[...]")
def moments_of_another_module() -> None:
    lla_torch.adam_moments(torch.optim.Adam(nn.Linear(3, 4).parameters()), case().net)


@slip("no step yet", "after one")
def moments_before_a_step() -> None:
    lla_torch.adam_moments(torch.optim.Adam(case().module.parameters()), case().net)


@slip("net", "Adam given", "lla_torch.convert")
def moments_with_arguments_swapped() -> None:
    lla_torch.adam_moments(case().net, torch.optim.Adam(case().module.parameters()))


@slip("net", "lla_torch.convert")
def moments_for_a_module() -> None:
    lla_torch.adam_moments(torch.optim.Adam(case().module.parameters()), case().module)


@slip("optimizer_or_state", "'0.bias'", "checkpoint['optimizer']")
def moments_of_the_weights() -> None:
    lla_torch.optax_state(case().module.state_dict(), case().net)


@slip("optimizer_or_state", "torch.load(path, weights_only=True)")
def moments_of_a_file() -> None:
    lla_torch.optax_state("adam.pth", case().net)


@slip("optimizer_or_state", "class")
def moments_of_a_class() -> None:
    lla_torch.optax_state(torch.optim.Adam, case().net)


@slip("params", "not the tensors")
def tensors_for_their_names() -> None:
    lla_torch.optax_state(torch.optim.Adam(case().module.parameters()), case().net, list(case().module.parameters()))
