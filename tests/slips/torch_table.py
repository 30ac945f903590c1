"""Slips with torch: modules, criteria, checkpoints, certificates, steps, optimizers and loaders of another kind."""

from __future__ import annotations

import functools
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import lla_jax as lla
from tests.slips.slip import command, table

SLIPS, slip = table()

try:
    import lla_torch
    import torch
    from torch import nn
    from torch.nn import functional as F
except ImportError:  # without torch there is nothing to try
    SLIPS = []


class Case(NamedTuple):
    """A small network with its conversion and data."""

    module: Any
    net: Any
    x: Any
    y: Any

    @property
    def params(self) -> Any:
        return self.net.variables["params"]

    @property
    def data(self) -> tuple[np.ndarray, np.ndarray]:
        return self.x.numpy(), self.y.numpy()

    @property
    def loader(self) -> Any:
        return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(self.x, self.y), 4)


@functools.cache
def case() -> Case:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        x, y = torch.randn(8, 3), torch.randint(2, (8,))
    return Case(module, lla_torch.convert(module, x[:2]), x, y)


FOLDER = tempfile.TemporaryDirectory()


@functools.cache
def folder() -> Path:
    """A folder with a checkpoint, the state of an optimizer and a text."""
    path = Path(FOLDER.name)
    torch.save(case().module.state_dict(), path / "net.pth")
    torch.save(torch.optim.Adam(case().module.parameters()).state_dict(), path / "adam.pth")
    (path / "text.pth").write_text("no checkpoint")
    return path


def hessian(criterion: Any, data: Any = None, params: Any = None, **options: Any) -> None:
    loss = case().net.loss(criterion, **options)
    lla.hessian(loss, case().params if params is None else params, case().data if data is None else data)


# --- modules


@slip("module", "Linear(...)")
def the_class_of_a_module() -> None:
    lla_torch.convert(nn.Linear, case().x)


@slip("module", "load_state_dict")
def a_state_dict_for_its_module() -> None:
    lla_torch.convert(case().module.state_dict(), case().x)


@slip("module", "net.pth", "load_checkpoint(path, convert(")
def a_file_for_a_module() -> None:
    lla_torch.convert("net.pth", case().x)


@slip("module", "first argument")
def inputs_before_the_module() -> None:
    lla_torch.convert(case().x, case().module)


@slip("module", "not its method forward")
def a_method_for_its_module() -> None:
    lla_torch.convert(case().module.forward, case().x)


@slip("module", "forward calls a function")
def a_function_for_a_module() -> None:
    lla_torch.convert(lambda x: x, case().x)


@slip("module", "nn.Sequential(*modules)")
def a_list_of_modules() -> None:
    lla_torch.convert([nn.Linear(3, 4), nn.Tanh()], case().x)


@slip("module", "converted network already")
def a_network_converted_twice() -> None:
    lla_torch.convert(case().net, case().x)


@slip("module", "that it trains")
def an_optimizer_for_its_module() -> None:
    lla_torch.convert(torch.optim.SGD(case().module.parameters(), lr=0.1), case().x)


@slip("module", "from_linen")
def a_flax_module() -> None:
    import flax.linen

    lla_torch.convert(flax.linen.Dense(2), case().x)


class Pipeline:
    def __init__(self, model: Any):
        self.model = model


@slip("module", ".model")
def a_pipeline_for_its_model() -> None:
    lla_torch.convert(Pipeline(case().module), case().x)


@slip("module", "super().__init__()")
def a_module_that_is_not_set_up() -> None:
    class Unfinished(nn.Module):
        def __init__(self) -> None: ...

    lla_torch.convert(Unfinished(), case().x)


@slip("module", "the one that was exported")
def an_exported_program() -> None:
    lla_torch.convert(torch.export.export(case().module, (case().x,)), case().x)


@slip("module", "the module that was exported")
def the_graph_of_an_exported_program() -> None:
    lla_torch.convert(torch.export.export(case().module, (case().x,)).module(), case().x)


class NoReturn(nn.Module):
    def forward(self, x: Any) -> None:
        torch.tanh(x)


@slip("NoReturn", "returns no tensor", "None")
def a_forward_without_return() -> None:
    lla_torch.convert(NoReturn(), case().x)


@slip("no forward pass", "'0', '1'")
def a_list_of_modules_without_forward() -> None:
    lla_torch.convert(nn.ModuleList([nn.Linear(3, 4), nn.Tanh()]), case().x)


@slip("lazy", "run the module once")
def a_lazy_module() -> None:
    lla_torch.convert(nn.LazyLinear(2), case().x)


@slip("meta device", "to_empty")
def a_module_without_values() -> None:
    lla_torch.convert(nn.Linear(3, 2, device="meta"), case().x)


@slip("train", "'yes'", "True or False")
def a_word_for_a_flag() -> None:
    lla_torch.convert(case().module, case().x, train="yes")


@slip("dtype", "float33", "'float32'")
def an_unknown_type() -> None:
    lla_torch.convert(case().module, case().x, dtype="float33")


@slip("dtype", "int8", "floating type")
def a_type_of_integers() -> None:
    lla_torch.convert(case().module, case().x, dtype="int8")


# --- inputs


@slip("example_inputs", "missing")
def no_inputs() -> None:
    lla_torch.convert(case().module)


@slip("on (None,)", "give tensors")
def none_for_inputs() -> None:
    lla_torch.convert(case().module, None)


@slip("example_inputs", "next(iter(loader))")
def a_loader_for_inputs() -> None:
    lla_torch.convert(case().module, case().loader)


@slip("example_inputs", "next(iter(loader))")
def an_iterator_for_inputs() -> None:
    lla_torch.convert(case().module, iter(case().loader))


@slip("example_inputs", "dataset.tensors")
def a_data_set_for_inputs() -> None:
    lla_torch.convert(case().module, case().loader.dataset)


@slip("(8, 3) float32, (8,) int64", "inputs alone, batch[0]")
def a_batch_with_labels_for_inputs() -> None:
    lla_torch.convert(case().module, (case().x, case().y))


@slip("inputs alone, batch[0]")
def labels_as_a_further_argument() -> None:
    lla_torch.convert(case().module, case().x, case().y)


@slip("(1.0, 2.0, 3.0)", "torch.tensor(...) of a list")
def numbers_in_place_of_a_tensor() -> None:
    lla_torch.convert(case().module, [[1.0, 2.0, 3.0]])


@slip("(8, 2) float32", "mat1 and mat2")
def inputs_of_another_width() -> None:
    lla_torch.convert(case().module, case().x[:, :2])


@slip("(2, 8, 8, 3) float32", "x.permute(0, 3, 1, 2)")
def images_with_channels_last() -> None:
    lla_torch.convert(nn.Conv2d(3, 2, 3), torch.zeros(2, 8, 8, 3))


@slip("axis of examples", "x[None]")
def one_image_without_batch() -> None:
    lla_torch.convert(nn.Conv2d(1, 2, 3), torch.zeros(1, 8, 8))


@slip("float32", "x.long()")
def floats_for_an_embedding() -> None:
    lla_torch.convert(nn.Embedding(5, 3), torch.zeros(8, 4))


@slip("meta device", "torch.zeros(x.shape)")
def inputs_without_values() -> None:
    lla_torch.convert(case().module, case().x.to("meta"))


@slip("example_kwargs", "list given", "{'x': x}")
def a_list_for_names() -> None:
    lla_torch.convert(case().module, (), example_kwargs=[case().x])


@slip("missing a required argument: 'input'", "example_kwargs")
def an_unknown_name_of_an_input() -> None:
    lla_torch.convert(case().module, (), example_kwargs={"pixels": case().x})


@slip("example_kwargs=...", "dict given")
def a_dict_for_inputs() -> None:
    lla_torch.convert(case().module, {"input": case().x})


# --- calls of a network


@slip("variables", "ndarray of shape (8, 3)", "net.apply(net.variables, x)")
def a_call_without_variables() -> None:
    case().net.apply(case().x.numpy())


@slip("variables", "0/kernel is missing", "{**net.variables, 'params': params}")
def params_for_variables() -> None:
    case().net.apply(case().params, case().x.numpy())


@slip("variables", "not the network itself")
def a_network_for_its_variables() -> None:
    case().net.apply(case().net, case().x.numpy())


@slip("variables", "Sequential given", "net.variables")
def a_module_for_variables() -> None:
    case().net.apply(case().module, case().x.numpy())


@slip("inputs", "0 values given; it must be 1 value")
def a_call_without_inputs() -> None:
    case().net.apply(case().net.variables)


@slip("inputs", "(3,)", "(any, 3)")
def one_example_without_its_axis() -> None:
    case().net(case().x.numpy()[0])


@slip("inputs", "(8, 2)", "(any, 3)")
def a_call_of_another_width() -> None:
    case().net(case().x.numpy()[:, :2])


@slip("inputs[0]", "one by one")
def inputs_in_a_tuple() -> None:
    case().net(case().data)


@slip("inputs[0]", "list given", "numpy.asarray")
def inputs_in_a_list() -> None:
    case().net(case().x.tolist())


@slip("inputs", "names ['rngs']", "by position")
def a_name_of_flax() -> None:
    case().net(case().x.numpy(), rngs={})


@slip("train", "convert(..., train=True)")
def train_mode_that_was_not_converted() -> None:
    case().net(case().x.numpy(), train=True)


@slip("key", "jax.random.key(0)")
def a_seed_for_a_key() -> None:
    case().net(case().x.numpy(), key=0)


@slip("draws", "lla_torch.record")
def a_number_for_draws() -> None:
    case().net(case().x.numpy(), draws=3)


@slip("net.variables['params']")
def a_network_as_the_dict_of_its_variables() -> None:
    case().net["params"]


@slip("names", "'0.weigth'", "did you mean '0.weight'")
def a_name_with_a_slip() -> None:
    case().net.names["0.weigth"]


@slip("state_dict", "lla_torch.to_state_dict(net)")
def a_method_of_torch() -> None:
    case().net.state_dict()


@slip("inputs", "by position")
def inputs_by_their_name_in_torch() -> None:
    case().net(input=case().x)


@slip("inputs", "(8,)", "(inputs, labels), in this order")
def labels_before_inputs() -> None:
    hessian(nn.CrossEntropyLoss(), data=case().data[::-1])


@slip("list of batches", "lla_torch.stream(batches)")
def a_list_of_batches() -> None:
    hessian(nn.CrossEntropyLoss(), data=[case().data, case().data])


@slip("variables", "{**net.variables, 'params': params}")
def params_in_place_of_all_variables() -> None:
    case().net.replace(variables=case().params)


@slip("changes", "'params'", "variables=")
def a_field_that_does_not_exist() -> None:
    case().net.replace(params=case().params)


# --- criteria


@slip("criterion", "missing")
def no_criterion() -> None:
    case().net.loss()


@slip("criterion", "'cross_entropy'", "nn.CrossEntropyLoss()")
def a_name_for_a_criterion() -> None:
    case().net.loss("cross_entropy")


@slip("criterion", "CrossEntropyLoss()", "class")
def the_class_of_a_criterion() -> None:
    case().net.loss(nn.CrossEntropyLoss)


@slip("criterion", "value of a loss")
def the_value_of_a_loss() -> None:
    case().net.loss(torch.tensor(0.7))


@slip("criterion", "convert_loss")
def a_function_of_torch_that_is_no_loss() -> None:
    case().net.loss(F.relu)


@slip("criterion", "calls torch", "nn.CrossEntropyLoss()", "convert_loss")
def a_criterion_that_calls_torch() -> None:
    hessian(lambda outputs, labels: F.cross_entropy(outputs, labels))


@slip("criterion", "(8, 2) float32", "(8,) int32", "labels for batch[1]")
def a_criterion_of_outputs_and_batch() -> None:
    hessian(lambda outputs, batch: outputs[:, 0] - batch[1][:, 0])


@slip("criterion", 'reduction="sum"', 'reduction="mean"')
def a_criterion_that_sums() -> None:
    case().net.loss(nn.CrossEntropyLoss(reduction="sum"))


@slip("criterion", 'MSELoss with reduction="sum"', "depend on the size")
def a_function_that_sums() -> None:
    case().net.loss(functools.partial(F.mse_loss, reduction="sum"))


@slip("criterion", "nn.MSELoss(...)", "label_smoothing")
def an_option_of_another_loss() -> None:
    case().net.loss(functools.partial(F.mse_loss, label_smoothing=0.1))


@slip("criterion", "weights of its own")
def a_module_for_a_criterion() -> None:
    case().net.loss(case().module)


@slip("criterion", "a network, not its loss")
def a_network_for_a_criterion() -> None:
    case().net.loss(case().net)


@slip("criterion", "meta device")
def class_weights_without_values() -> None:
    case().net.loss(nn.CrossEntropyLoss(weight=torch.ones(2, device="meta")))


@slip("criterion", "CrossEntropyLoss", "astype('int32')")
def float_labels_for_classes() -> None:
    hessian(nn.CrossEntropyLoss(), (case().x.numpy(), case().y.float().numpy()))


@slip("criterion", "one-hot", "argmax(1)")
def integer_rows_for_classes() -> None:
    hessian(nn.CrossEntropyLoss(), (case().x.numpy(), np.eye(2, dtype=int)[case().y.numpy()]))


@slip("criterion", "(8, 1)", "squeeze(1)")
def labels_with_an_axis_more() -> None:
    hessian(nn.CrossEntropyLoss(), (case().x.numpy(), case().y[:, None].numpy()))


@slip("criterion", "they must be floats", "astype('float32')")
def integer_labels_for_probabilities() -> None:
    hessian(nn.BCEWithLogitsLoss(), (case().x.numpy(), np.eye(2, dtype=int)[case().y.numpy()]))


@slip("criterion", "CrossEntropyLoss", "astype('int32')")
def truth_values_for_classes() -> None:
    hessian(nn.CrossEntropyLoss(), (case().x.numpy(), case().y.numpy() > 0))


@slip("criterion", "weight tensor", "without its options", "weights")
def weights_for_more_classes() -> None:
    hessian(nn.CrossEntropyLoss(weight=torch.ones(3)))


@slip("criterion", "label_smoothing must be between", "without its options")
def smoothing_in_percent() -> None:
    hessian(nn.CrossEntropyLoss(label_smoothing=10))


@slip("criterion", "weight", "requires_grad_(False)")
def class_weights_with_a_gradient() -> None:
    case().net.loss(nn.CrossEntropyLoss(weight=torch.ones(2, requires_grad=True)))


@slip("criterion", "nn.CrossEntropyLoss(...)", "weights as tensors")
def class_weights_in_a_list() -> None:
    case().net.loss(functools.partial(F.cross_entropy, weight=[1.0, 2.0]))


@slip("criterion", "not its TorchScript")
def a_loss_in_torch_script() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has deprecated it
        case().net.loss(torch.jit.script(nn.MSELoss()))


@slip("criterion", "calls numpy", "jax.numpy")
def a_criterion_in_numpy() -> None:
    hessian(lambda outputs, labels: np.square(np.asarray(outputs)[:, 0] - labels))


@slip("labels", "(inputs, labels)")
def data_without_labels() -> None:
    hessian(nn.CrossEntropyLoss(), case().x.numpy())


@slip("inputs", "lambda batch: batch[0]")
def a_number_for_inputs() -> None:
    case().net.loss(nn.CrossEntropyLoss(), inputs=0)


@slip("labels", "lambda batch: batch['labels']")
def a_name_for_labels() -> None:
    case().net.loss(nn.CrossEntropyLoss(), labels="labels")


@slip("labels", "failed", "KeyError")
def labels_that_are_not_in_the_batch() -> None:
    hessian(lambda outputs, labels: outputs[:, 0], labels=lambda batch: {}["labels"])


@slip("outputs", "jax arrays", "log_softmax")
def outputs_by_a_function_of_torch() -> None:
    hessian(nn.NLLLoss(), outputs=lambda outputs: torch.log_softmax(outputs, -1))


@slip("penalty", "0.1", "function of the parameters")
def a_number_for_a_penalty() -> None:
    case().net.loss(nn.CrossEntropyLoss(), penalty=0.1)


@slip("per_example", "'no'", "True or False")
def a_word_for_per_example() -> None:
    case().net.loss(nn.CrossEntropyLoss(), per_example="no")


@slip("key", "jax.random.key(0)")
def a_seed_for_the_key_of_a_loss() -> None:
    case().net.loss(nn.CrossEntropyLoss(), key=3)


# --- networks in place of their losses and parameters


@slip("loss", "net.loss(criterion)")
def a_network_for_its_loss() -> None:
    lla.hessian(case().net, case().params, case().data)


@slip("loss", "net.loss(criterion)")
def a_module_for_its_loss() -> None:
    lla.hessian(case().module, case().params, case().data)


@slip("loss", "loss, params = ...")
def a_loss_with_its_params() -> None:
    lla.hessian((case().net.loss(nn.CrossEntropyLoss()), case().params), case().params, case().data)


@slip("params", "net.variables['params']")
def all_variables_for_params() -> None:
    hessian(nn.CrossEntropyLoss(), params=case().net.variables)


@slip("torch's names", "net.variables['params']", "load_checkpoint")
def arrays_by_torch_names_for_params() -> None:
    named = {name: x.detach().numpy() for name, x in case().module.named_parameters()}
    hessian(nn.CrossEntropyLoss(), params=named)


@slip("params", "lla_torch.convert", "net.variables['params']")
def a_state_dict_for_params() -> None:
    hessian(nn.CrossEntropyLoss(), params=case().module.state_dict())


@slip("params", "net.variables['params']")
def named_parameters_for_params() -> None:
    hessian(nn.CrossEntropyLoss(), params=dict(case().module.named_parameters()))


@slip("params", "Net", "net.variables['params']")
def a_network_for_its_params() -> None:
    hessian(nn.CrossEntropyLoss(), params=case().net)


@slip("select", "all frozen", "unfreeze")
def the_trainable_parts_of_a_frozen_network() -> None:
    frozen = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).requires_grad_(False)
    loss = case().net.loss(nn.CrossEntropyLoss())
    lla.hessian(loss, case().params, case().data, select=lla_torch.trainable(frozen))


# --- certificates


@slip("module", "converted network already")
def a_certificate_with_arguments_swapped() -> None:
    lla_torch.certify(case().net, case().module, (case().x, case().y))


@slip("net", "lla_torch.convert(module, example_inputs)")
def a_certificate_with_the_batch_second() -> None:
    lla_torch.certify(case().module, (case().x, case().y), case().net)


@slip("net", "not the dict of its weights")
def a_certificate_of_variables() -> None:
    lla_torch.certify(case().module, case().net.variables, (case().x, case().y))


@slip("batch", "next(iter(loader))")
def a_certificate_over_a_loader() -> None:
    lla_torch.certify(case().module, case().net, case().loader)


@slip("batch", "at least one example")
def a_certificate_of_no_examples() -> None:
    lla_torch.certify(case().module, case().net, (case().x[:0], case().y[:0]))


@slip("batch", "at least one example")
def a_certificate_with_the_criterion_third() -> None:
    lla_torch.certify(case().module, case().net, nn.CrossEntropyLoss())


@slip("labels", "(inputs, labels)")
def a_certificate_without_labels() -> None:
    lla_torch.certify(case().module, case().net, case().x, nn.CrossEntropyLoss())


@slip("batch", "(8,) int64", "inputs come before the labels")
def a_certificate_with_labels_first() -> None:
    lla_torch.certify(case().module, case().net, (case().y, case().x), nn.CrossEntropyLoss())


@slip("criterion", "(4,)", "batch_size (8)")
def a_certificate_with_fewer_labels() -> None:
    lla_torch.certify(case().module, case().net, (case().x, case().y[:4]), nn.CrossEntropyLoss())


@slip("criterion", "CrossEntropyLoss()", "class")
def a_certificate_by_a_class() -> None:
    lla_torch.certify(case().module, case().net, (case().x, case().y), nn.CrossEntropyLoss)


@slip("criterion", "as a module")
def a_certificate_by_a_function_of_jax() -> None:
    lla_torch.certify(case().module, case().net, (case().x, case().y), lambda outputs, labels: outputs[:, 0])


@slip("criterion", "reduction='mean'")
def a_certificate_without_reduction() -> None:
    lla_torch.certify(case().module, case().net, (case().x, case().y), nn.CrossEntropyLoss(reduction="none"))


@slip("seed", "integer of at least 0")
def a_key_for_a_seed() -> None:
    lla_torch.certify(case().module, case().net, (case().x, case().y), seed=jax.random.key(0))


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


# --- problems and streams


@slip("module", "problem(module, criterion, loader)")
def a_problem_with_its_criterion_first() -> None:
    lla_torch.problem(nn.CrossEntropyLoss(), case().module, (case().x, case().y))


@slip("criterion", "DataLoader given")
def a_problem_with_its_loader_second() -> None:
    lla_torch.problem(case().module, case().loader, nn.CrossEntropyLoss())


@slip("--problem", "a converted network", "return lla_torch.problem(module, criterion, loader)")
def a_factory_that_returns_a_network() -> None:
    code = "from tests.slips.torch_table import case\nmake = lambda: case().net"
    command("landscape", "--problem", "mine:make", files={"mine.py": code})


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


@slip("step", "(8, 3) float32, (3,) int64")
def a_batch_with_fewer_labels() -> None:
    lla_torch.convert_loss(step, case().module, (case().x, case().y[:3]))


@slip("net", "Sequential given", "lla_torch.convert")
def a_module_for_the_network_of_a_step() -> None:
    lla_torch.convert_loss(step, case().module, (case().x, case().y), net=case().module)


# --- records, operators, selections


@slip("module", "first argument")
def a_record_with_inputs_first() -> None:
    lla_torch.record(case().x, case().module)


@slip("one by one")
def a_record_of_a_tuple() -> None:
    lla_torch.record(case().module, (case().x,))


@slip("missing a required argument: 'input'")
def a_record_without_inputs() -> None:
    lla_torch.record(case().module)


@slip("(8, 2) float32")
def a_record_of_another_width() -> None:
    lla_torch.record(case().module, case().x[:, :2])


@slip("op", "@lowering(op)")
def a_lowering_without_its_operator() -> None:
    lla_torch.lowering(lambda x: x)


@slip("layout", "'pointwise'")
def a_lowering_of_another_layout() -> None:
    lla_torch.lowering("mine::op", layout="nhwc")


@slip("function", "3 given")
def a_lowering_of_a_number() -> None:
    lla_torch.lowering("mine::op")(3)


@slip("module", "load_state_dict")
def the_trainable_parts_of_a_state_dict() -> None:
    lla_torch.trainable(case().module.state_dict())
