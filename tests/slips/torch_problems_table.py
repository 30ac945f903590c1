"""Slips with torch: problems, streams and steps."""

from __future__ import annotations

from typing import Any

from tests.slips.slip import command
from tests.slips.torch_case import F, case, lla_torch, nn, table, torch

SLIPS, slip = table()


# --- problems and streams


@slip("module", "problem(module, criterion, loader)")
def a_problem_with_its_criterion_first() -> None:
    lla_torch.problem(nn.CrossEntropyLoss(), case().module, (case().x, case().y))


@slip("criterion", "DataLoader given")
def a_problem_with_its_loader_second() -> None:
    lla_torch.problem(case().module, case().loader, nn.CrossEntropyLoss())


@slip("labels", "(inputs, labels)")
def a_problem_without_labels() -> None:
    lla_torch.problem(case().module, nn.CrossEntropyLoss(), case().x)


@slip("loader", "numpy.load(path)")
def a_file_for_data() -> None:
    lla_torch.problem(case().module, nn.CrossEntropyLoss(), "data.npz")


@slip("metrics", "{'accuracy':")
def metrics_without_names() -> None:
    lla_torch.problem(case().module, nn.CrossEntropyLoss(), (case().x, case().y), metrics=[len])


@slip("metrics", "dict of functions")
def a_name_for_a_metric() -> None:
    lla_torch.problem(case().module, nn.CrossEntropyLoss(), (case().x, case().y), metrics={"accuracy": "accuracy"})


@slip("extra_data", "{'test': test_loader}")
def further_data_without_a_name() -> None:
    lla_torch.problem(case().module, nn.CrossEntropyLoss(), (case().x, case().y), extra_data=case().loader)


@slip("loader", "DataLoader(dataset, batch_size=256)")
def a_stream_of_a_data_set() -> None:
    class Examples(torch.utils.data.Dataset):
        def __getitem__(self, i: int) -> Any:
            return case().x[i]

    lla_torch.stream(Examples())


@slip("loader", "dataset.tensors")
def a_stream_of_a_data_set_in_memory() -> None:
    lla_torch.stream(case().loader.dataset)


@slip("one-shot iterator")
def a_stream_of_an_iterator() -> None:
    lla_torch.stream(iter(case().loader))


@slip("loader", "[(x, y)] as one batch")
def a_stream_of_data_in_memory() -> None:
    lla_torch.stream((case().x, case().y))


@slip("loader", "need no stream")
def a_stream_of_one_tensor() -> None:
    lla_torch.stream(case().x)


@slip("loader", "DataLoader")
def a_stream_of_a_class() -> None:
    lla_torch.stream(torch.utils.data.DataLoader)


@slip("loader", "failed", "without arguments")
def a_stream_of_a_function_with_arguments() -> None:
    lla_torch.stream(lambda size: case().loader)


@slip("loader", "None given", "iterable of batches")
def a_stream_of_a_function_that_returns_nothing() -> None:
    lla_torch.stream(lambda: None)


@slip("loader", "first batch is another one")
def a_stream_of_one_generator() -> None:
    generator = iter(case().loader)
    lla_torch.stream(lambda: generator)


@slip("loader", "drop_last=True leaves out 2 of 8", warns=True)
def a_stream_that_drops_examples() -> None:
    lla_torch.stream(torch.utils.data.DataLoader(case().loader.dataset, 3, drop_last=True))


# --- steps


def step(module: Any, batch: Any) -> Any:
    return F.cross_entropy(module(batch[0]), batch[1], reduction="none")


@slip("step", "before the module")
def a_name_for_a_step() -> None:
    lla_torch.convert_loss("step", case().module, (case().x, case().y))


@slip("step", "convert_loss(step, module, batch)")
def a_module_and_its_step_swapped() -> None:
    lla_torch.convert_loss(case().module, step, (case().x, case().y))


@slip("module", "tuple given", "before inputs and batches")
def a_batch_before_the_module_of_a_step() -> None:
    lla_torch.convert_loss(step, (case().x, case().y), case().module)


@slip("step", "lambda module, batch: loss(module(batch[0]), batch[1])")
def a_criterion_for_a_step() -> None:
    lla_torch.convert_loss(nn.CrossEntropyLoss(), case().module, (case().x, case().y))


@slip("step", "two arguments, step(module, batch)")
def a_step_of_three_arguments() -> None:
    lla_torch.convert_loss(lambda module, x, y: module(x), case().module, (case().x, case().y))


@slip("step", "first argument and the batch its second")
def a_step_with_its_arguments_swapped() -> None:
    lla_torch.convert_loss(lambda batch, module: step(module, batch), case().module, (case().x, case().y))


@slip("step", "it returns None")
def a_step_that_returns_nothing() -> None:
    lla_torch.convert_loss(lambda module, batch: None, case().module, (case().x, case().y))


@slip("step", "does not depend on the parameters")
def a_step_of_the_batch_alone() -> None:
    lla_torch.convert_loss(lambda module, batch: batch[0].sum(1), case().module, (case().x, case().y))


@slip("step", "detached", warns=True)
def a_step_without_gradient() -> None:
    lla_torch.convert_loss(torch.no_grad()(step), case().module, (case().x, case().y))


@slip("example_batch", "next(iter(loader))")
def a_loader_for_a_batch() -> None:
    lla_torch.convert_loss(step, case().module, case().loader)


@slip("step", "float32 (8, 3), int64 (3,)")
def a_batch_with_fewer_labels() -> None:
    lla_torch.convert_loss(step, case().module, (case().x, case().y[:3]))


@slip("net", "Sequential given", "lla_torch.convert")
def a_module_for_the_network_of_a_step() -> None:
    lla_torch.convert_loss(step, case().module, (case().x, case().y), net=case().module)


@slip("--problem", "a converted network", "return lla_torch.problem(module, criterion, loader)")
def a_factory_that_returns_a_network() -> None:
    code = "from tests.slips.torch_case import case\nmake = lambda: case().net"
    command("landscape", "--problem", "mine:make", files={"mine.py": code})
