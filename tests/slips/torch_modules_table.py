"""Slips with torch: modules, their inputs, and calls of converted networks."""

from __future__ import annotations

from typing import Any

from tests.slips.torch_case import case, lla_torch, nn, table, torch

SLIPS, slip = table()


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


@slip("float32 (8, 3), int64 (8,)", "inputs alone, batch[0]")
def a_batch_with_labels_for_inputs() -> None:
    lla_torch.convert(case().module, (case().x, case().y))


@slip("inputs alone, batch[0]")
def labels_as_a_further_argument() -> None:
    lla_torch.convert(case().module, case().x, case().y)


@slip("[1.0, 2.0, 3.0]", "torch.tensor(...) of a list")
def numbers_in_place_of_a_tensor() -> None:
    lla_torch.convert(case().module, [[1.0, 2.0, 3.0]])


@slip("float32 (8, 2)", "mat1 and mat2")
def inputs_of_another_width() -> None:
    lla_torch.convert(case().module, case().x[:, :2])


@slip("float32 (2, 8, 8, 3)", "x.permute(0, 3, 1, 2)")
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


@slip("variables", "{**net.variables, 'params': params}")
def params_in_place_of_all_variables() -> None:
    case().net.replace(variables=case().params)


@slip("changes", "'params'", "variables=")
def a_field_that_does_not_exist() -> None:
    case().net.replace(params=case().params)


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


@slip("float32 (8, 2)")
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


@slip("NoReturn", "returns no tensor", "None")
def a_forward_without_return() -> None:
    class NoReturn(nn.Module):
        def forward(self, x: Any) -> None:
            torch.tanh(x)

    lla_torch.convert(NoReturn(), case().x)


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
