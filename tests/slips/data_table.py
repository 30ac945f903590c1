"""Slips in data, criteria and the user's own functions, with all verbs that call them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import lla_jax as lla
from tests.slips.slip import table

SLIPS, slip = table()

X = np.linspace(-1, 1, 24, dtype=np.float32).reshape(8, 3)
Y = np.arange(8) % 2
PARAMS = {"w": np.array([[0.5, -0.3], [0.2, 0.4], [-0.7, 0.1]], np.float32)}
LINE = lla.directions.random(jax.random.key(0), PARAMS, num=1)
GRID = lla.grid(points=3, dims=1)
ONE = lla.Execution(devices=1)
RNG = np.random.default_rng()
COUNTS = [0]
KEPT: list[Any] = []


def apply(p, state, batch, train):
    return batch[0] @ p["w"], state


def by_class(outputs, batch):
    return optax.softmax_cross_entropy_with_integer_labels(outputs, batch[1])


def plain(p, batch):
    return by_class(batch[0] @ p["w"], batch).mean()


def of(criterion: Callable[..., Any] = by_class, model: Callable[..., Any] = apply, **options: Any) -> lla.Loss:
    return lla.Loss(model, criterion, **options)


def check(loss: Any, data: Any = (X, Y), **options: Any) -> None:
    lla.check_examples(loss, PARAMS, data, **options)


def hessian(loss: Any, data: Any = (X, Y), **options: Any) -> Any:
    return lla.hessian(loss, PARAMS, data, execution=ONE, **options)


def evaluate(loss: Any, data: Any = (X, Y), **options: Any) -> Any:
    execution = lla.Execution(chunk=4, microbatch=8, loop="map", share=False, devices=1)
    return lla.evaluate(loss, PARAMS, data, LINE, GRID, execution=execution, **options)


# --- losses that are constants


@slip("loss: it does not depend on params", "jax.numpy")
def a_loss_that_returns_a_python_number() -> None:
    hessian(lambda p, b: 1.5)


@slip("loss: it does not depend on params")
def a_loss_of_numpy_alone() -> None:
    evaluate(lambda p, b: np.float32(X.sum()))


@slip("loss: it does not depend on params")
def a_loss_that_reads_a_model_outside() -> None:
    lla.directions.gradient(lambda p, b: plain(PARAMS, b), PARAMS, (X, Y))


@slip("loss: it does not depend on params")
def a_sweep_of_a_constant() -> None:
    lla.sweep(lambda p, b: jnp.zeros(()), [PARAMS], (X, Y), grid=GRID, seeds=[0])


@slip("loss: it does not depend on params")
def losses_at_points_of_a_constant() -> None:
    lla.landscape.losses(lambda p, b: jnp.ones(()), PARAMS, LINE.tree, np.zeros((1, 1)), (X, Y))


@slip("derivatives are zero", "metrics={name: f}")
def the_hessian_of_an_accuracy() -> None:
    hessian(lambda p, b: (apply(p, None, b, False)[0].argmax(1) == b[1]).mean())


@slip("stop_gradient", "derivatives are zero")
def the_gradient_of_a_stopped_loss() -> None:
    lla.directions.gradient(lambda p, b: jax.lax.stop_gradient(plain(p, b)), PARAMS, (X, Y))


@slip("derivatives are zero")
def the_convexity_of_a_rounded_loss() -> None:
    lla.convexity(lambda p, b: jnp.round(plain(p, b)), PARAMS, (X, Y), LINE, GRID, jax.random.key(0), steps=1)


@slip("each time it is traced", "key=jax.random.key(0)")
def numpy_noise() -> None:
    hessian(lambda p, b: plain(p, b) + RNG.normal())


@slip("each time it is traced", "random numbers")
def python_noise_per_example() -> None:
    check(of(lambda o, b: by_class(o, b) * random.random()))


@slip("each time it is traced", "an array of shape")
def an_array_of_noise() -> None:
    hessian(lambda p, b: plain({"w": p["w"] * RNG.normal(size=(3, 2)).astype("f")}, b))


@slip("each time it is traced", "counter")
def a_counter() -> None:
    def counts(p, b):
        COUNTS[0] += 1
        return plain(p, b) * COUNTS[0]

    lla.directions.gradient(counts, PARAMS, (X, Y))


@slip("keeps an array of an earlier call", "return the values")
def a_list_of_losses() -> None:
    def keeps(p, b):
        KEPT.append(plain(p, b))
        return sum(KEPT)

    hessian(keeps)


# --- what jax cannot trace


@slip("loss: the function failed with ConcretizationTypeError", "float(x)", "return the array itself")
def a_loss_as_a_float() -> None:
    evaluate(lambda p, b: float(plain(p, b)))


@slip("x.item()", "return the array itself")
def a_loss_as_an_item() -> None:
    lla.all_modes(lambda p, b: plain(p, b).item(), PARAMS, (X, Y), jax.random.key(0), grid=lla.grid(points=3))


@slip("calls numpy", "jnp.mean")
def a_mean_of_numpy() -> None:
    hessian(lambda p, b: np.mean(np.asarray(by_class(b[0] @ p["w"], b))))


@slip("jnp.where(condition, a, b)")
def a_branch() -> None:
    check(lambda p, b: plain(p, b) if plain(p, b) > 0 else jnp.zeros(()))


@slip("Return the mask as weights")
def entries_by_a_mask() -> None:
    hessian(of(lambda o, b: by_class(o, b)[b[1] > 0]))


@slip("calls torch", "lla_torch.convert")
def a_method_of_torch() -> None:
    check(lambda p, b: plain(p, b).detach())


@slip("metrics: the metric 'accuracy' failed", "return the array itself")
def a_metric_as_a_float() -> None:
    evaluate(of(), metrics={"accuracy": lambda o, b: float((o.argmax(1) == b[1]).mean())})


# --- arguments of the user's functions


@slip("loss: the function failed with", "lambda params, batch: f(batch, params)")
def a_function_of_batch_and_params() -> None:
    hessian(lambda b, p: plain(p, b))


@slip("lambda params, batch: f(params, *batch)")
def a_function_of_inputs_and_labels() -> None:
    evaluate(lambda p, x, y: plain(p, (x, y)))


@slip("takes the parameters alone", "data=None")
def a_function_of_params_with_data() -> None:
    lla.directions.gradient(lambda p: plain(p, (X, Y)), PARAMS, (X, Y))


@slip("a plain function returned a tuple", "Drop auxiliary values")
def a_function_with_auxiliary_values() -> None:
    hessian(lambda p, b: (plain(p, b), {"accuracy": 1.0}))


@slip("returned shape (8,)", ".mean()")
def a_function_with_a_loss_per_example() -> None:
    check(lambda p, b: by_class(b[0] @ p["w"], b))


@slip("loss: a plain function returned a NoneType")
def a_function_without_return() -> None:
    evaluate(lambda p, b: None)


@slip("(f(params, batch[0]), state)")
def an_apply_of_params_and_inputs() -> None:
    hessian(of(model=lambda p, x: x @ p["w"]))


@slip("f(params, state, batch[0], train)")
def an_apply_of_inputs_in_place_of_the_batch() -> None:
    check(of(model=lambda p, s, x, train: (x @ p["w"], s)))


@slip("apply returned a", "(outputs, new_state)")
def an_apply_that_returns_outputs_alone() -> None:
    check(of(model=lambda p, s, b, t: b[0] @ p["w"]))


@slip("outputs are None", "(outputs, new_state), in this order")
def an_apply_that_returns_the_state_first() -> None:
    check(of(model=lambda p, s, b, t: (s, b[0] @ p["w"])))


@slip("state=...")
def an_apply_whose_state_is_missing() -> None:
    check(of(model=lambda p, s, b, t: (b[0] * s["mean"] @ p["w"], s)))


@slip("key", "leave key out")
def an_apply_without_keys() -> None:
    check(of(key=jax.random.key(0)))


@slip("key: ", "lla.Loss(..., key=jax.random.key(0))")
def an_apply_with_keys_of_a_loss_without() -> None:
    check(of(model=lambda p, s, b, t, keys: apply(p, s, b, t)))


@slip("key: 0 given", "jax.random.key(0)")
def a_seed_as_the_key_of_a_loss() -> None:
    check(of(model=lambda p, s, b, t, keys: apply(p, s, b, t), key=0))


@slip("from_linen")
def a_flax_module_as_apply() -> None:
    check(lla.Loss(nn.Dense(2), by_class))


@slip("from_linen")
def a_flax_module_as_loss() -> None:
    hessian(nn.Dense(2))


@slip('variables["params"]')
def all_variables_as_params() -> None:
    module = nn.Dense(2)
    variables = module.init(jax.random.key(0), X)
    lla.hessian(lla.from_linen(module, variables, by_class), variables, (X, Y))


@slip("apply", "swap them")
def apply_and_criterion_swapped() -> None:
    lla.Loss(by_class, apply)


@slip("criterion: 'cross_entropy' given", "lambda outputs, batch")
def the_name_of_a_criterion() -> None:
    lla.Loss(apply, "cross_entropy")


@slip("per_example: 'no' given", "True or False")
def a_flag_in_words() -> None:
    lla.Loss(apply, by_class, per_example="no")


@slip("per_example: None given")
def no_flag() -> None:
    lla.Loss(apply, by_class, per_example=None)


@slip("allow_nondeterministic: 'yes' given", "True or False")
def another_flag_in_words() -> None:
    hessian(of(), allow_nondeterministic="yes")


@slip("share: 'yes' given")
def share_in_words() -> None:
    lla.landscape.losses(of(), PARAMS, LINE.tree, np.zeros((1, 1)), (X, Y), share="yes")


@slip("loop: 'scan' given", "'map', 'vmap'")
def an_unknown_loop() -> None:
    lla.landscape.losses(of(), PARAMS, LINE.tree, np.zeros((1, 1)), (X, Y), loop="scan")


@slip("data: ", "in memory", "lla.evaluate")
def a_stream_in_a_traced_function() -> None:
    lla.landscape.losses(of(), PARAMS, LINE.tree, np.zeros((1, 1)), lla.stream([(X, Y)]))


@slip("lambda outputs, batch: f(batch, outputs)")
def a_criterion_of_batch_and_outputs() -> None:
    evaluate(of(lambda b, o: by_class(o, b)))


@slip("(softmax_cross_entropy_with_integer_labels) failed", "f(outputs, batch[1])")
def a_criterion_of_outputs_and_labels() -> None:
    hessian(of(optax.softmax_cross_entropy_with_integer_labels))


@slip("f(outputs, *batch)")
def a_criterion_of_outputs_inputs_and_labels() -> None:
    check(of(lambda o, x, y: by_class(o, (x, y))))


@slip("per_example=False")
def a_criterion_that_returns_the_mean() -> None:
    check(of(lambda o, b: by_class(o, b).mean()))


@slip("loss: returned a NoneType")
def a_criterion_that_returns_nothing() -> None:
    check(of(lambda o, b: None))


@slip("f(outputs[0], batch)")
def a_model_of_two_outputs() -> None:
    check(of(model=lambda p, s, b, t: ((b[0] @ p["w"], b[0]), s)))


@slip("f(outputs['logits'], batch)")
def a_model_of_named_outputs() -> None:
    lla.ggn(of(model=lambda p, s, b, t: ({"logits": b[0] @ p["w"]}, s)), PARAMS, (X, Y))


@slip("penalty: returned shape (3, 2)", "scalar")
def a_penalty_per_weight() -> None:
    check(of(penalty=lambda p: p["w"] ** 2))


@slip("penalty: the penalty failed with KeyError", "gets the parameters alone")
def a_penalty_of_other_parameters() -> None:
    evaluate(of(penalty=lambda p: p["kernel"].sum()))


@slip("penalty: 0.0001 given", "lambda params")
def a_number_as_penalty() -> None:
    lla.Loss(apply, by_class, penalty=1e-4)


@slip("metrics: ", "f(batch, outputs)")
def a_metric_of_batch_and_outputs() -> None:
    evaluate(of(), metrics={"accuracy": lambda b, o: o.argmax(1) == b[1]})


@slip("accuracy: returned shape ()", "one value per example")
def a_metric_that_returns_the_mean() -> None:
    check(of(), metrics={"accuracy": lambda o, b: (o.argmax(1) == b[1]).mean()})


@slip("metrics: ", "{'accuracy': accuracy}")
def a_list_of_metrics() -> None:
    check(of(), metrics=[by_class])


@slip("metrics: entry 'accuracy'", "it must be a function")
def the_name_of_a_metric() -> None:
    check(of(), metrics={"accuracy": "accuracy"})


@slip("point_metrics: the point metric 'norm' failed", "f(params, key)")
def a_point_metric_without_key() -> None:
    evaluate(of(), point_metrics={"norm": lambda p: jnp.sum(p["w"])})


@slip("point_metrics: 'norm' returned a NoneType", "scalar")
def a_point_metric_without_return() -> None:
    evaluate(of(), point_metrics={"norm": lambda p, key: None})


@slip("sample: the sampler failed", "sample(key, outputs, example)")
def a_sampler_of_two_arguments() -> None:
    lla.fisher(of(), PARAMS, (X, Y), jax.random.key(0), sample=lambda key, outputs: outputs)


# --- weights


@slip("a weight of -1", "at least 0")
def negative_weights() -> None:
    check(of(lambda o, b: (by_class(o, b), jnp.full(len(o), -1.0))))


@slip("all of its weights are 0")
def weights_that_are_all_zero() -> None:
    hessian(of(lambda o, b: (by_class(o, b), jnp.zeros(len(o)))))


@slip("a weight of nan", "finite")
def weights_that_are_nan() -> None:
    evaluate(of(lambda o, b: (by_class(o, b), jnp.full(len(o), jnp.nan))))


@slip("weights must be constants")
def weights_of_the_model() -> None:
    hessian(of(lambda o, b: (by_class(o, b), jax.nn.softmax(o)[:, 0])))


@slip("jnp.broadcast_to(weights, losses.shape)")
def one_weight_for_all() -> None:
    check(of(lambda o, b: (by_class(o, b), 1.0)))


@slip("its weight is 0")
def a_batch_of_weight_zero() -> None:
    hessian(of(lambda o, b: (by_class(o, b).mean(), 0.0), per_example=False))


# --- data


@slip("data: the model (apply) failed", "swapped", "(inputs, labels)")
def labels_first() -> None:
    evaluate(of(), (Y, X))


@slip("swapped", "(inputs, labels)")
def labels_first_to_fisher() -> None:
    lla.fisher(of(), PARAMS, (Y, X), jax.random.key(0))


@slip("swapped", "(inputs, labels)")
def labels_first_to_a_function() -> None:
    hessian(plain, (Y, X))


@slip("data: the criterion (by_class) failed", "(inputs, labels)")
def no_labels() -> None:
    check(of(), (X,))


@slip("data: ", "(inputs, labels)")
def inputs_alone() -> None:
    hessian(of(), X)


@slip("data[1].astype(np.int32)", "class numbers must be integers")
def labels_as_floats() -> None:
    hessian(of(), (X, Y.astype(np.float32)))


@slip("one-hot", "data[1].argmax(-1)")
def one_hot_labels_for_class_numbers() -> None:
    lla.ggn(of(), PARAMS, (X, np.eye(2, dtype=np.float32)[Y]))


@slip("np.eye(2, dtype=np.float32)[data[1]]")
def class_numbers_for_one_hot_labels() -> None:
    check(of(lambda o, b: optax.softmax_cross_entropy(o, b[1])))


@slip("(8, 1)", "data[1][..., 0]")
def labels_in_a_column() -> None:
    evaluate(of(), (X, Y[:, None]))


@slip("labels from 1 to 2", "2 classes, 0 to 1", "pass data[1] - 1")
def labels_from_1() -> None:
    hessian(of(), (X, Y + 1))


@slip("labels from -1 to 0", "weight 0")
def labels_from_minus_1() -> None:
    check(of(lambda o, b: -jax.nn.log_softmax(o)[jnp.arange(len(o)), b[1]]), (X, Y - 1))


@slip("labels from 1 to 2", "the loss is 0", "pass data[1] - 1")
def labels_from_1_made_one_hot() -> None:
    check(of(lambda o, b: optax.softmax_cross_entropy(o, jax.nn.one_hot(b[1], 2))), (X, Y + 1))


@slip("data['y']", "pass data['y'] - 1")
def labels_from_1_in_a_dict() -> None:
    criterion = lambda o, b: optax.softmax_cross_entropy_with_integer_labels(o, b["y"])  # noqa: E731
    check(of(criterion, lambda p, s, b, t: (b["x"] @ p["w"], s)), {"x": X, "y": Y + 1})


@slip("data: ", "(data['x'], data['y'])")
def a_dict_for_a_tuple() -> None:
    check(of(), {"x": X, "y": Y})


@slip("(8, 4)", "w': float32 (3, 2)")
def inputs_of_another_width() -> None:
    hessian(of(), (np.ones((8, 4), np.float32), Y))


@slip("np.moveaxis(data[0], 1, -1)", "as in Flax")
def images_with_channels_first() -> None:
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.Conv(2, (3, 3))(x).mean((1, 2)))

    module, images = Net(), np.ones((4, 5, 5, 1), np.float32)
    variables = jax.tree.map(
        lambda x: np.ones(x.shape, x.dtype), jax.eval_shape(module.init, jax.random.key(0), images)
    )
    loss = lla.from_linen(module, variables, by_class)
    lla.check_examples(loss, variables["params"], (np.moveaxis(images, -1, 1), Y[:4]))


@slip("lla.stream(batches)")
def a_list_of_batches_of_equal_size() -> None:
    hessian(of(), [(X[:4], Y[:4]), (X[4:], Y[4:])])


@slip("jax.tree.map(lambda *x: np.stack(x), *data)")
def a_list_of_examples() -> None:
    hessian(of(), list(zip(X, Y, strict=True)))


@slip("np.asarray(labels)")
def lists_of_numbers() -> None:
    evaluate(of(), (X.tolist(), Y.tolist()))


@slip("entry of the data is None")
def none_in_place_of_labels() -> None:
    check(of(), (X, None))


@slip("data are None", "(inputs, labels)")
def no_data_for_a_loss_that_reads_some() -> None:
    evaluate(plain, None)


@slip("leaf '' is a str", "arrays with leading axis N")
def the_name_of_a_data_set() -> None:
    hessian(of(), "mnist")


@slip("different length", "'0': 8, '1': 5")
def inputs_and_labels_of_other_lengths() -> None:
    check(of(), (X, Y[:5]))


@slip("empty", "at least one example")
def no_example() -> None:
    hessian(of(), (X[:0], Y[:0]))


@slip("holds NaN or infinity, as in its row 3", "np.nan_to_num")
def a_row_of_nan() -> None:
    hessian(of(lambda o, b: 2 * by_class(o, b)), (np.where(np.arange(8)[:, None] == 3, np.nan, X), Y))


@slip("was deleted", "donate_argnums")
def a_donated_array() -> None:
    x = jnp.asarray(X)
    x.delete()
    evaluate(of(), (x, Y))


@slip("must hold numbers of one type", "np.unique")
def labels_as_strings() -> None:
    hessian(of(), (X, np.array(["cat", "dog"])[Y]))


@slip("extra_data: ", '{"test": (inputs, labels)}')
def a_data_set_in_place_of_named_ones() -> None:
    evaluate(of(), extra_data=(X, Y))


@slip("swapped", "(inputs, labels)")
def labels_first_in_extra_data() -> None:
    evaluate(of(), extra_data={"test": (Y, X)})


@slip("batch_size: '4' given", "integer")
def a_batch_size_in_words() -> None:
    check(of(), batch_size="4")


@slip("an iterator is read once", "lla.stream(lambda: make_batches())")
def a_generator_as_data() -> None:
    check(of(), ((X, Y) for _ in range(2)))


# --- streams


def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
    yield X[:4], Y[:4]
    yield X[4:], Y[4:]


@slip("stream: the factory returned the same generator", "make a new one in each call")
def a_factory_of_one_generator() -> None:
    once = batches()
    evaluate(of(), lla.stream(lambda: once))


@slip("same list_iterator", "make a new one in each call")
def a_factory_of_one_iterator() -> None:
    once = iter([(X, Y)])
    hessian(of(), lla.stream(lambda: once)).mv(PARAMS)


@slip("one-shot iterator generator", "lla.stream(lambda: make_batches())")
def a_generator() -> None:
    lla.stream(batches())


@slip("stream: ndarray of shape (8, 3) given", "without stream")
def an_array_as_stream() -> None:
    lla.stream(X)


@slip("pass this tuple as the data")
def a_data_set_as_stream() -> None:
    lla.stream((X, Y))


@slip("without stream")
def a_dict_as_stream() -> None:
    lla.stream({"x": X, "y": Y})


@slip("stream: 'train.npz' given", "a factory")
def a_file_as_stream() -> None:
    lla.stream("train.npz")


@slip("pass this tuple as the data")
def a_factory_of_a_data_set() -> None:
    check(of(), lla.stream(lambda: (X, Y)))


@slip("stream: None given", "make_batches()")
def a_factory_without_return() -> None:
    check(of(), lla.stream(lambda: None))


@slip("stream: the factory failed with TypeError", "called without arguments")
def a_factory_with_an_argument() -> None:
    check(of(), lla.stream(lambda epoch: batches()))


@slip("batch 0 of the stream is None")
def a_stream_of_none() -> None:
    check(of(), lla.stream([None]))


@slip("yielded no batch")
def an_empty_stream() -> None:
    hessian(of(), lla.stream([]))


@slip("is a scalar", "(batch 0 of the stream)")
def a_stream_of_examples() -> None:
    check(of(), lla.stream(list(zip(X, Y, strict=True))))


@slip("batch 1 of the stream is (float32 (4, 3),)", "one structure")
def a_later_batch_without_labels() -> None:
    evaluate(of(), lla.stream([(X[:4], Y[:4]), (X[4:],)]))


@slip("batch 1 of the stream is (float32 (4, 2)", "batch 0 (float32 (4, 3)")
def a_later_batch_of_another_width() -> None:
    lla.directions.gradient(of(), PARAMS, lla.stream([(X[:4], Y[:4]), (X[4:, :2], Y[4:])]))


@slip("batch 1 of the stream", "data[1].astype(np.int32)")
def a_later_batch_of_another_type() -> None:
    evaluate(of(), lla.stream([(X[:4], Y[:4]), (X[4:], Y[4:].astype(np.float32))]))


@slip("the stream failed at its batch 1 with OSError: disk gone")
def a_stream_that_fails_in_the_middle() -> None:
    def failing():
        yield X, Y
        raise OSError("disk gone")

    evaluate(of(), lla.stream(failing))


@slip("mark its batches")
def a_whole_stream() -> None:
    lla.whole(lla.stream([(X, Y)]))


@slip("neither an array nor a number")
def a_whole_function() -> None:
    lla.whole(lambda: (X, Y))
