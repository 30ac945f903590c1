"""Slips with torch: criteria, losses, parameters and certificates."""

from __future__ import annotations

import functools
import warnings

import jax
import numpy as np

import lla_jax as lla
from tests.slips.torch_case import F, case, hessian, lla_torch, nn, table, torch

SLIPS, slip = table()


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


@slip("criterion", "outputs float32 (8, 2)", "labels int32 (8,)", "labels for batch[1]")
def a_criterion_of_outputs_and_batch() -> None:
    hessian(lambda outputs, batch: outputs[:, 0] - batch[1][:, 0])


@slip("criterion", "jax.numpy in place of numpy")
def a_criterion_in_numpy() -> None:
    hessian(lambda outputs, labels: np.tanh(outputs[:, 0]))


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


@slip("batch", "int64 (8,)", "inputs come before the labels")
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


@slip("inputs", "(8,)", "(inputs, labels), in this order")
def labels_before_inputs() -> None:
    hessian(nn.CrossEntropyLoss(), data=case().data[::-1])


@slip("list of batches", "lla_torch.stream(batches)")
def a_list_of_batches() -> None:
    hessian(nn.CrossEntropyLoss(), data=[case().data, case().data])


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
