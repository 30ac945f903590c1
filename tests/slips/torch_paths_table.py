"""Slips with trainings of torch that are recorded, and checkpoints of torch that are read as a path."""

from __future__ import annotations

from typing import Any

import lla_jax as lla
from tests.slips.torch_case import lla_torch, nn, table, torch
from tests.slips.walks import rows

SLIPS, slip = table()
row = rows(slip)

MODULE = OPTIMIZER = NET = None
if torch is not None:  # else the table is empty
    MODULE = nn.Linear(3, 2)
    OPTIMIZER = torch.optim.SGD(MODULE.parameters(), 0.1)
    NET = lla_torch.convert(MODULE, torch.ones(2, 3))


def record(*arguments: Any, **options: Any) -> Any:
    return lla_torch.record_training(*arguments, **options)


def load(files: Any, net: Any = NET, **options: Any) -> Any:
    return lla_torch.load_path(files, net, **options)


def files(**states: Any) -> list[str]:
    for name, state in states.items():
        torch.save(state, f"{name}.pth")
    return [f"{name}.pth" for name in states]


def nan() -> Any:
    return {name: tensor * float("nan") for name, tensor in MODULE.state_dict().items()}


RULE = "a torch module, or the optimizer that trains it"
row("a_recording_of_none", lambda: record(None, "new"), "optimizer_or_module: None given", RULE)
row("folder_and_module_swapped", lambda: record("new", MODULE), "optimizer_or_module: 'new' given", RULE)
row("a_recording_of_parameters", lambda: record(MODULE.parameters(), "new"), "optimizer_or_module: generator", RULE)
row("a_recording_of_weights", lambda: record(MODULE.state_dict(), "new"), "optimizer_or_module: OrderedDict", RULE)
row("a_recording_of_a_converted_network", lambda: record(NET, "new"), "optimizer_or_module: Net", RULE)
row("a_recording_of_a_class", lambda: record(nn.Linear, "new"), "optimizer_or_module: ", RULE)
row("an_optimizer_without_names", lambda: record(OPTIMIZER, "new"), "whose parameters have no names", "pass the module")
row("a_module_that_is_a_number", lambda: record(OPTIMIZER, "new", module=3), "module: 3 given", "the optimizer trains")
row("a_torch_recording_into_a_file", lambda: record(MODULE, "text"), "folder: text is a file", in_folder=True)
row("a_torch_recording_of_no_step", lambda: record(MODULE, "new", 0), "every: 0 given", in_folder=True)
row("a_start_before_the_first", lambda: record(MODULE, "new", start=-1), "start: -1 given", in_folder=True)
row("a_path_into_a_module", lambda: load("x.pth", MODULE), "net: Linear", "lla_torch.convert(module")
row("net_and_files_swapped", lambda: load(NET, "x.pth"), "net: 'x.pth' given", "the path is the first argument")
row("torch_files_of_no_match", lambda: load("x*.pth"), "files: x*.pth matches no file", in_folder=True)
row("no_torch_files", lambda: load([]), "files: none given", "'ckpt/*.pth'")
row(
    "weights_in_place_of_files", lambda: load([MODULE.state_dict()]), "files: OrderedDict given", "paths of checkpoints"
)
row("a_damaged_file_of_torch", lambda: load(["net.pth"]), "'net.pth' is not a checkpoint", in_folder=True)
row(
    "torch_files_of_another_network",
    lambda: load(files(a=nn.Linear(4, 2).state_dict())),
    "'a.pth' does not fit",
    in_folder=True,
)
row(
    "torch_files_of_nan",
    lambda: lla.paths.pca(load(files(a=MODULE.state_dict(), b=nan()))),
    "(b.pth)['bias'] has 2",
    in_folder=True,
)
