"""Slips in the user's own functions: losses, models, criteria, penalties, metrics, weights."""

from __future__ import annotations

import random
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import lla_jax as lla
from tests.slips.slip import table
from tests.slips.small import GRID, LINE, ONE, PARAMS, X, Y, apply, by_class, check, evaluate, hessian, of, plain

SLIPS, slip = table()
RNG = np.random.default_rng()
COUNTS = [0]
KEPT: list[Any] = []


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


@slip("other operations each time it is traced", "random numbers")
def layers_left_out_by_chance() -> None:
    def drops(p, b):
        h = b[0] @ p["w"]
        for _ in range(16):
            h = jnp.tanh(h) if random.random() < 0.5 else jnp.sin(h)
        return by_class(h, b).mean()

    check(drops)


@slip("other operations each time it is traced", "slice of")
def images_cropped_by_chance() -> None:
    def crops(p, b):
        starts = [random.randrange(3) for _ in range(16)]
        return sum((b[0][:, i] * p["w"][0, 0]).mean() ** 2 for i in starts)

    hessian(crops)


@slip("other constants each time it is traced")
def noise_in_a_jitted_function() -> None:
    check(jax.jit(lambda p, b: plain(p, b) + RNG.normal()))


@slip("penalty: it has other constants each time it is traced")
def noise_in_a_penalty() -> None:
    check(of(penalty=lambda p: random.random() * jnp.sum(p["w"] ** 2)))


@slip("loss: it does not depend on params")
def a_constant_with_a_constant_penalty() -> None:
    hessian(of(lambda o, b: jnp.zeros(len(o)), penalty=lambda p: 1e-4))


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


@slip("leave the mean out, or set per_example=False")
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


@slip("is that of a criterion, not of a loss", "lla.Loss(apply, lambda outputs, batch: f(outputs, batch[1]))")
def a_criterion_as_loss() -> None:
    hessian(optax.softmax_cross_entropy_with_integer_labels)


@slip("loss: ", "must be an lla.Loss")
def a_class_as_loss() -> None:
    evaluate(lla.Loss)


@slip("its derivative failed with ValueError", "jax.lax.scan")
def a_loss_of_a_while_loop() -> None:
    def doubled(p, b):
        value = plain(p, b)
        return jax.lax.while_loop(lambda x: x < 3, lambda x: x + value, value)

    lla.directions.gradient(doubled, PARAMS, (X, Y))


@slip("its derivative failed with TypeError", "jax.custom_jvp in place of jax.custom_vjp")
def the_gauss_newton_matrix_of_a_custom_vjp() -> None:
    same = jax.custom_vjp(lambda x: x)
    same.defvjp(lambda x: (x, None), lambda kept, slope: (slope,))
    lla.ggn(of(model=lambda p, s, b, t: (same(b[0] @ p["w"]), s)), PARAMS, (X, Y), execution=ONE).mv(PARAMS)


@slip("do not support JVP", "write it without callbacks")
def the_hessian_of_a_callback() -> None:
    shape = jax.ShapeDtypeStruct((), np.float32)
    hessian(lambda p, b: plain(p, b) + jax.pure_callback(lambda w: np.float32(w.sum()), shape, p["w"]))


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
