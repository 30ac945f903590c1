"""Slips with models and parameters."""

from __future__ import annotations

import pathlib
from typing import Any

import equinox as eqx
import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import lla_jax as lla
from tests.slips.layers import AXES, KEY, PARAMS, tree
from tests.slips.slip import table

SLIPS, slip = table()

X = np.linspace(-1, 1, 8, dtype=np.float32).reshape(4, 2)
DATA = (X, np.arange(4) % 2)


def criterion(outputs: Any, batch: Any) -> Any:
    return optax.softmax_cross_entropy_with_integer_labels(outputs, batch[1])


class Net(nn.Module):
    width: int = 3

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.Dense(2)(nn.tanh(nn.Dense(self.width)(x)))


class Noisy(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.layer, self.dropout = nnx.Linear(2, 2, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.dropout(self.layer(x))


VARIABLES = {"params": PARAMS}
LOSS = lla.from_linen(Net(), VARIABLES, criterion)


def noisy() -> Noisy:
    return Noisy(nnx.Rngs(0))


def small() -> eqx.nn.Linear:
    return eqx.nn.Linear(2, 2, key=KEY)


def gradient(params: Any, loss: Any = LOSS) -> Any:
    return lla.directions.gradient(loss, params, DATA)


# --- models


@slip("module", "PyTorch", "lla_torch.convert")
def a_torch_module_as_linen_module() -> None:
    linear = type("Linear", (), {"__module__": "torch.nn.modules.linear"})  # torch itself takes seconds to import
    lla.from_linen(linear(), VARIABLES, criterion)


@slip("module", "lla.from_nnx(model, criterion)")
def an_nnx_model_as_linen_module() -> None:
    lla.from_linen(noisy(), VARIABLES, criterion)


@slip("module", "lla.from_equinox(model, criterion)")
def an_equinox_model_as_linen_module() -> None:
    lla.from_linen(small(), VARIABLES, criterion)


@slip("module", "class Net", "Net(...)")
def a_linen_class() -> None:
    lla.from_linen(Net, VARIABLES, criterion)


@slip("module", "a linen module")
def the_apply_of_a_module() -> None:
    lla.from_linen(Net().apply, VARIABLES, criterion)


@slip("module", "from_linen(module, variables, criterion)")
def linen_arguments_swapped() -> None:
    lla.from_linen(VARIABLES, Net(), criterion)


@slip("variables", '{"params": params}')
def params_in_place_of_variables() -> None:
    lla.from_linen(Net(), PARAMS, criterion)


@slip("variables", "dict of variables again")
def variables_within_variables() -> None:
    lla.from_linen(Net(), {"params": VARIABLES}, criterion)


@slip("method", "'forward'", "Net")
def a_method_that_a_module_lacks() -> None:
    lla.from_linen(Net(), VARIABLES, criterion, method="forward")


@slip("method", "name of a method")
def a_number_as_method() -> None:
    lla.from_linen(Net(), VARIABLES, criterion, method=3)


@slip("inputs", "index or name")
def inputs_of_another_type() -> None:
    lla.from_linen(Net(), VARIABLES, criterion, inputs=X)


@slip("inputs", "lambda batch: batch[0]")
def a_function_for_inputs_that_takes_no_batch() -> None:
    gradient(PARAMS, lla.from_linen(Net(), VARIABLES, criterion, inputs=lambda: X))


@slip("inputs", "returned None", "batch[0]")
def a_function_for_inputs_that_returns_nothing() -> None:
    gradient(PARAMS, lla.from_linen(Net(), VARIABLES, criterion, inputs=lambda batch: None))


@slip("eval_kwargs", "'deterministic'", "x")
def an_argument_that_the_module_does_not_take() -> None:
    lla.from_linen(Net(), VARIABLES, criterion, eval_kwargs={"deterministic": True})


@slip("train_kwargs", "a dict")
def a_flag_in_place_of_keyword_arguments() -> None:
    lla.from_linen(Net(), VARIABLES, criterion, train_kwargs=True)


@slip("key", "jax.random.key(0)")
def a_seed_as_the_key_of_a_model() -> None:
    lla.from_linen(Net(), VARIABLES, criterion, key=0)


@slip("filter_axis", "an int, such as -1")
def a_word_as_filter_axis() -> None:
    lla.from_linen(Net(), VARIABLES, criterion, filter_axis="last")


@slip("model", "nnx model itself")
def an_nnx_state_as_model() -> None:
    lla.from_nnx(nnx.state(noisy()), criterion)


@slip("model", "class Noisy", "Noisy(...)")
def an_nnx_class() -> None:
    lla.from_nnx(Noisy, criterion)


@slip("model", "lla.from_linen")
def a_linen_module_as_nnx_model() -> None:
    lla.from_nnx(Net(), criterion)


@slip("model", "nnx model itself")
def a_split_nnx_model() -> None:
    lla.from_nnx(nnx.split(noisy()), criterion)


@slip("model", "nnx model itself")
def nnx_arguments_swapped() -> None:
    lla.from_nnx(criterion, noisy())


@slip("model", "shapes without values")
def an_nnx_model_of_shapes() -> None:
    lla.from_nnx(nnx.eval_shape(noisy), criterion)


@slip("method", "'forward'")
def a_method_that_an_nnx_model_lacks() -> None:
    lla.from_nnx(noisy(), criterion, method="forward")


@slip("model", "class Linear")
def an_equinox_class() -> None:
    lla.from_equinox(eqx.nn.Linear, criterion)


@slip("model", "filter_vmap")
def a_vmapped_equinox_model() -> None:
    lla.from_equinox(eqx.filter_vmap(small()), criterion)


@slip("model", "vmapped here")
def a_function_as_equinox_model() -> None:
    lla.from_equinox(jax.vmap(small()), criterion)


@slip("model", "eqx.partition")
def the_static_half_of_an_equinox_model() -> None:
    lla.from_equinox(eqx.partition(small(), eqx.is_array)[1], criterion)


@slip("state", "make_with_state")
def a_dict_as_equinox_state() -> None:
    lla.from_equinox(small(), criterion, state={})


@slip("model", "model, state = ...", "state=state")
def an_equinox_model_with_its_state() -> None:
    class Stateful(eqx.Module):
        index: eqx.nn.StateIndex

        def __init__(self):
            self.index = eqx.nn.StateIndex(jnp.zeros(2))

    lla.from_equinox(eqx.nn.make_with_state(Stateful)(), criterion)


class OnNumbers(eqx.Module):
    """A model that computes with something that jax cannot trace."""

    w: Any
    f: Any

    def __call__(self, x: Any) -> Any:
        return self.w @ self.f(x)


def call_equinox(f: Any) -> None:
    model = OnNumbers(jnp.ones((2, 2)), f)
    gradient(eqx.filter(model, eqx.is_inexact_array), lla.from_equinox(model, criterion))


@slip("model", "OnNumbers", "jax.numpy in place of numpy")
def an_equinox_model_in_numpy() -> None:
    call_equinox(np.tanh)


@slip("model", "float(x)", "return the array itself")
def an_equinox_model_that_takes_a_number() -> None:
    call_equinox(lambda x: x * float(x[0]))


@slip("model", "decides by the value", "jnp.where")
def an_equinox_model_that_decides() -> None:
    call_equinox(lambda x: x if x.sum() > 0 else -x)


@slip("model", "is None", "whole model")
def an_equinox_model_with_a_part_that_is_none() -> None:
    call_equinox(None)


@slip("model", "on one example", "args (float32 (2,),)")
def an_equinox_model_that_takes_batches() -> None:
    class Batched(eqx.Module):
        w: Any

        def __call__(self, x: Any) -> Any:
            return jax.vmap(lambda row: row @ self.w)(x)

    model = Batched(jnp.ones((2, 2)))
    gradient(model, lla.from_equinox(model, criterion))


@slip("loss", "problem.loss")
def a_problem_as_loss() -> None:
    gradient(PARAMS, lla.Problem(LOSS, PARAMS, DATA))


@slip("loss", "lla.from_linen(module, variables, criterion)")
def the_apply_of_a_module_as_loss() -> None:
    gradient(PARAMS, Net().apply)


@slip("variables", '"params": state.params', "state.batch_stats")
def a_train_state_as_variables() -> None:
    from flax.training.train_state import TrainState

    lla.from_linen(Net(), TrainState.create(apply_fn=Net().apply, params=PARAMS, tx=optax.sgd(0.1)), criterion)


@slip("variables", "all that module.init returned", "batch_stats")
def variables_without_running_averages() -> None:
    norm = {"scale": np.ones(2, np.float32), "bias": np.zeros(2, np.float32)}
    module = nn.BatchNorm()
    gradient(norm, lla.from_linen(module, {"params": norm}, criterion))


# --- parameters


@slip("params", "the loss comes first")
def loss_and_params_swapped() -> None:
    gradient(lambda params, batch: 0.0, PARAMS)


@slip("params", "nnx.state(model, nnx.Param)")
def an_nnx_model_as_params() -> None:
    gradient(noisy())


@slip("params", "other variables", "nnx.state(model, nnx.Param)")
def all_variables_of_an_nnx_model() -> None:
    gradient(nnx.state(noisy()))


@slip("params", "no variables of the type", "nnx.state(model, nnx.Param)")
def a_state_without_variables() -> None:
    gradient(nnx.state(noisy(), nnx.LoRAParam))


@slip("params", "'layer/kernel'", "Dense_0")
def params_of_an_nnx_model_for_a_linen_loss() -> None:
    gradient(nnx.state(noisy(), nnx.Param))


@slip("params", "lack 'layer/bias'")
def params_of_a_linen_module_for_an_nnx_loss() -> None:
    gradient(PARAMS, lla.from_nnx(noisy(), criterion))


@slip("params", "lack 'weight'")
def params_of_a_linen_module_for_an_equinox_loss() -> None:
    gradient(PARAMS, lla.from_equinox(small(), criterion))


@slip("params", "eqx.filter(model, eqx.is_inexact_array)")
def an_equinox_model_with_functions_as_params() -> None:
    gradient(eqx.nn.MLP(2, 2, 2, 1, key=KEY))


@slip("params", 'variables["params"]')
def variables_in_place_of_params() -> None:
    gradient(VARIABLES)


@slip("params", 'variables["params"]')
def variables_for_a_hessian() -> None:
    lla.hessian(LOSS, VARIABLES, DATA)


@slip("params", "'Dense_0/bias' has shape (5,)", "(3,)", "another network")
def params_of_another_width() -> None:
    gradient(tree(5))


@slip("params", "shape", "another network")
def params_of_another_nnx_network() -> None:
    other = jax.tree.map(lambda leaf: jnp.zeros([7, *leaf.shape]), nnx.state(noisy(), nnx.Param))
    gradient(other, lla.from_nnx(noisy(), criterion))


@slip("params", "'Dense_1/bias', 'Dense_1/kernel'")
def params_of_one_layer() -> None:
    gradient({"Dense_0": PARAMS["Dense_0"]})


@slip("params", "'Dense_0/bias' is None")
def params_with_a_hole() -> None:
    gradient({**PARAMS, "Dense_0": {**PARAMS["Dense_0"], "bias": None}})


@slip("params", "unflatten_dict")
def a_flat_dict_of_params() -> None:
    gradient(flax.traverse_util.flatten_dict(PARAMS, sep="/"))


@slip("params", "variables['params']")
def a_list_of_arrays_as_params() -> None:
    gradient(jax.tree.leaves(PARAMS))


@slip("params", "pass params['state']['params']")
def params_deep_in_a_checkpoint() -> None:
    gradient({"state": {"params": PARAMS}})


@slip("params", "pass params[0]")
def a_list_of_one_tree_as_params() -> None:
    gradient([PARAMS])


@slip("params", "keys of several types", "strings")
def params_with_names_and_numbers_as_keys() -> None:
    gradient({**PARAMS, 3: np.ones(2, np.float32)})


@slip("params['w']", "dtype object", "x.astype(np.float32)")
def an_array_of_objects_as_params() -> None:
    gradient({"w": np.ones(2).astype(object)})


@slip("params", "optimizer")
def an_optimizer_state_as_params() -> None:
    gradient(optax.adam(1e-3).init(PARAMS))


@slip("params", "optimizer")
def a_momentum_state_as_params() -> None:
    gradient(optax.sgd(0.1, momentum=0.9).init(PARAMS)[0])


@slip("params", "state.params")
def a_train_state_as_params() -> None:
    from flax.training.train_state import TrainState

    gradient(TrainState.create(apply_fn=Net().apply, params=PARAMS, tx=optax.sgd(0.1)))


@slip("params", "variables = module.init(key, x)")
def a_linen_module_as_params() -> None:
    gradient(Net())


@slip("params", "Loss of lla_jax")
def a_loss_as_params() -> None:
    lla.directions.random(KEY, LOSS)


@slip("params", "no array leaves")
def no_params() -> None:
    gradient(None)


@slip("params['name']", "not an array")
def a_word_among_params() -> None:
    gradient({**PARAMS, "name": "net"})


@slip("params", "load the file first")
def a_path_as_params() -> None:
    gradient(pathlib.Path("net.msgpack"))


@slip("params", "jax.eval_shape")
def shapes_as_params() -> None:
    gradient(jax.eval_shape(lambda: PARAMS))


@slip("params", "too large for float32")
def params_beyond_float32() -> None:
    gradient({"w": np.full(2, 1e300)}, lambda params, batch: params["w"].sum())


@slip("params", "outside of jax.jit")
def traced_params() -> None:
    jax.jit(lambda params: lla.directions.random(KEY, params).tree)(PARAMS)


@slip("params", "was deleted", "donated")
def deleted_params() -> None:
    array = jnp.ones(2)
    array.delete()
    gradient({"w": array}, lambda params, batch: params["w"].sum())


@slip("params", "dtype int", "real floating")
def integers_as_params() -> None:
    lla.directions.random(KEY, {"w": np.arange(3)})


@slip("params", "nnx.state(model, nnx.Param)")
def an_nnx_model_for_landscape_losses() -> None:
    lla.landscape.losses(LOSS, noisy(), AXES.tree, np.zeros((1, 2)), DATA)
