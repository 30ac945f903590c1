"""Slips with operators and numbers: other things for an operator, numbers out of range, numbers without an error."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

import lla_jax as lla
from tests.slips.slip import table

SLIPS, slip = table()

KEY = jax.random.key(0)
MATRIX = np.array([[2, 0.5, 0], [0.5, -1, 0.3], [0, 0.3, 1]], np.float32)


@functools.cache
def operator() -> Any:
    return lla.operators.given(lambda v: MATRIX @ np.asarray(v), jnp.zeros(3), traceable=False)


@functools.cache
def spectrum() -> Any:
    return lla.spectrum(operator(), KEY, steps=3, probes=1)


def loss(p: Any, data: Any) -> Any:
    return jnp.sum(p["w"] ** 2)


def hessian(params: Any) -> Any:
    return lla.hessian(loss, params, None)


# --- another thing in place of an operator


@slip("H:", "ndarray of shape (3, 3)", "lla.operators.given(lambda v, A: A @ v, jnp.zeros(3), A)")
def a_matrix_of_numpy() -> None:
    lla.eigenpairs(MATRIX, KEY)


@slip("H:", "lla.operators.given(lambda v, A: A @ v, jnp.zeros(3), A)")
def a_matrix_of_jax() -> None:
    lla.spectrum(jnp.asarray(MATRIX), KEY)


@slip("H:", "lla.operators.given", "traceable=False")
def a_sparse_matrix() -> None:
    lla.trace(scipy.sparse.csr_matrix(MATRIX), KEY)


@slip("H:", "lla.operators.given", "traceable=False")
def an_operator_of_scipy() -> None:
    lla.diagonal(scipy.sparse.linalg.aslinearoperator(MATRIX), KEY)


@slip("H:", "as numpy array", "lla.operators.given(lambda v, A: A @ v")
def a_matrix_as_a_list() -> None:
    lla.frobenius_norm(MATRIX.tolist(), KEY)


@slip("H:", "lla.operators.given(product, like)", "lla.hessian(loss, params, data)")
def a_product_in_place_of_an_operator() -> None:
    lla.eigenpairs(lambda v: MATRIX @ v, KEY)


@slip("H:", "lla.hessian(loss, params, data)")
def a_loss_in_place_of_an_operator() -> None:
    lla.trace(lla.Loss(lambda p, s, b, t: (p, s), lambda o, b: o), KEY)


@slip("H:", "lla.hessian(loss, params, data)")
def parameters_in_place_of_an_operator() -> None:
    lla.eigenpairs({"w": np.ones(2)}, KEY)


@slip("H:", "swapped")
def key_and_operator_swapped() -> None:
    lla.eigenpairs(KEY, operator())


@slip("operator:", "lla.operators.given")
def a_matrix_to_be_masked() -> None:
    lla.operators.masked(MATRIX, np.ones(3))


@slip("operator:", "lla.operators.given")
def a_matrix_to_be_preconditioned() -> None:
    lla.operators.preconditioned(MATRIX, np.ones(3))


@slip("operator:", "lla.operators.given")
def a_matrix_to_be_made_dense() -> None:
    lla.operators.dense(MATRIX)


@slip("H:", "lla.hessian")
def a_matrix_to_be_reported() -> None:
    params, axes = jnp.ones(3), lla.directions.random(KEY, jnp.ones(3), num=1)
    plane = lla.evaluate(lambda p, d: jnp.sum(p**2), params, None, axes, lla.grid(points=3, dims=1))
    lla.plane_report(plane, axes, MATRIX)


# --- products of one's own


@slip("product:", "ndarray", "lambda v, A: A @ v")
def a_matrix_as_product() -> None:
    lla.operators.given(MATRIX, jnp.zeros(3))


@slip("product:", "a function v -> A v")
def product_and_like_swapped() -> None:
    lla.operators.given(jnp.zeros(3), lambda v: v)


@slip("product:", "traceable=False")
def a_product_of_numpy() -> None:
    lla.operators.given(lambda v: MATRIX @ np.asarray(v), jnp.zeros(3))


@slip("product:", "traceable=False")
def a_product_of_scipy() -> None:
    lla.operators.given(lambda v: scipy.sparse.csr_matrix(MATRIX) @ v, jnp.zeros(3))


@slip("product:", "missing 1 required positional argument", "given(product, like, A)")
def a_product_without_its_matrix() -> None:
    lla.operators.given(lambda v, A: A @ v, jnp.zeros(3))


@slip("product:", "v float32 (3,)")
def a_product_of_another_size() -> None:
    lla.operators.given(lambda v: jnp.ones((4, 4)) @ v, jnp.zeros(3))


@slip("product:", "v float32 (3,)")
def a_product_on_the_host_of_another_size() -> None:
    lla.trace(lla.operators.given(lambda v: np.ones((4, 4)) @ np.asarray(v), jnp.zeros(3), traceable=False), KEY)


@slip("product(v)", "like")
def a_product_that_returns_nothing() -> None:
    lla.operators.given(lambda v: None, jnp.zeros(3))


@slip("product(v)", "(2,)", "(3,)")
def a_product_that_drops_entries() -> None:
    lla.operators.given(lambda v: v[:2], jnp.zeros(3))


@slip("like:", "jnp.zeros(n)")
def a_size_as_like() -> None:
    lla.operators.given(lambda v: v, 3)


@slip("like:", "jnp.zeros(n)")
def a_shape_as_like() -> None:
    lla.operators.given(lambda v: v, (3,))


@slip("like:", "no leaves")
def nothing_as_like() -> None:
    lla.operators.given(lambda v: v, None)


@slip("like:", "complex64")
def complex_vectors() -> None:
    lla.operators.given(lambda v: v, jnp.zeros(3, complex))


@slip("traceable:", "'no'", "True or False")
def a_word_as_traceable() -> None:
    lla.operators.given(lambda v: v, jnp.zeros(3), traceable="no")


@slip("H:", "not symmetric", "(A + A') / 2")
def a_matrix_that_is_not_symmetric() -> None:
    matrix = MATRIX + np.triu(np.ones((3, 3), np.float32), 1)
    lla.eigenpairs(lla.operators.given(lambda v: matrix @ np.asarray(v), jnp.zeros(3), traceable=False), KEY)


@slip("H:", "not linear")
def a_product_that_is_not_linear() -> None:
    lla.trace(lla.operators.given(lambda v: np.asarray(v) ** 3, jnp.zeros(3), traceable=False), KEY)


@slip("H:", "not finite", "the loss is finite")
def a_product_that_is_nan() -> None:
    lla.trace(lla.operators.given(lambda v: np.asarray(v) * np.nan, jnp.zeros(3), traceable=False), KEY)


@slip("H:", "not finite", "the loss is finite")
def a_loss_without_slope_here() -> None:
    lla.eigenpairs(lla.hessian(lambda p, d: jnp.sqrt(jnp.sum((p - 1) ** 2)), jnp.ones(3), None), KEY)


@slip("mask:", "lacks")
def indices_as_mask() -> None:
    lla.operators.masked(operator(), [0, 1])


@slip("mask", "(3,)")
def a_path_as_mask() -> None:
    lla.operators.masked(operator(), "**/kernel")


@slip("mask:", "0 and 1")
def weights_as_mask() -> None:
    lla.operators.masked(operator(), np.full(3, 0.5))


@slip("second_moment", "(3,)")
def a_decay_as_second_moment() -> None:
    lla.operators.preconditioned(operator(), 0.999)


@slip("second_moment:", "negative", "adam_moments")
def first_moments_as_second() -> None:
    lla.operators.preconditioned(operator(), -np.ones(3, np.float32))


@slip("decay:", "at most 1")
def the_number_of_steps_as_decay() -> None:
    lla.operators.preconditioned(operator(), np.ones(3, np.float32), decay=1000)


@slip("eps:", "1e-8")
def no_eps_beside_moments_of_zero() -> None:
    lla.operators.preconditioned(operator(), np.zeros(3, np.float32), eps=0)


# --- numbers of steps, probes, pairs, products


@slip("k:", "0 given", "at least 1")
def no_pairs() -> None:
    lla.eigenpairs(operator(), KEY, 0)


@slip("k:", "True given")
def a_flag_as_number_of_pairs() -> None:
    lla.eigenpairs(operator(), KEY, True)


@slip("k:", "10 asked for", "3 are done", warns=True)
def more_pairs_than_parameters() -> None:
    lla.eigenpairs(operator(), KEY, 10)


@slip("tol:", "above 0")
def a_tolerance_of_zero() -> None:
    lla.eigenpairs(operator(), KEY, tol=0)


@slip("tol:", "nan given")
def a_tolerance_that_is_nan() -> None:
    lla.eigenpairs(operator(), KEY, tol=float("nan"))


@slip("raise tol", "rounding", warns=True)
def a_tolerance_below_rounding() -> None:
    lla.eigenpairs(operator(), KEY, tol=1e-30)


@slip("max_products:", "at least 4")
def too_few_products_for_a_pair() -> None:
    lla.eigenpairs(operator(), KEY, max_products=1)


@slip("which:", "'LM' given", "'magnitude'")
def the_end_of_the_spectrum_in_words_of_scipy() -> None:
    lla.eigenpairs(operator(), KEY, which="LM")


@slip("steps:", "1.5 given", "integer")
def half_a_step() -> None:
    lla.spectrum(operator(), KEY, steps=1.5)


@slip("steps:", "3 are done", warns=True)
def a_billion_steps() -> None:
    lla.spectrum(operator(), KEY, steps=10**9, probes=1)


@slip("probes:", "0 given", "such as 4")
def no_probes() -> None:
    lla.spectrum(operator(), KEY, steps=3, probes=0)


@slip("probes:", "take fewer")
def a_trillion_probes() -> None:
    lla.spectrum(operator(), KEY, steps=3, probes=10**12)


@slip("points:", "such as 1000")
def a_trillion_points_of_a_density() -> None:
    lla.density(spectrum(), points=10**12)


@slip("steps:", "such as 20")
def layers_with_no_steps() -> None:
    lla.per_layer(loss, {"w": np.ones(2, np.float32)}, None, KEY, steps=0)


@slip("rtol:", "-0.1 given", "0.02")
def a_negative_tolerance() -> None:
    lla.trace(operator(), KEY, rtol=-0.1)


@slip("rtol:", "None given")
def no_tolerance() -> None:
    lla.diagonal(operator(), KEY, rtol=None)


@slip("max_products:", "at least 2")
def too_few_products_for_a_trace() -> None:
    lla.trace(operator(), KEY, max_products=1)


@slip("method:", "'hutch++'")
def a_method_spelt_another_way() -> None:
    lla.trace(operator(), KEY, method="hutchpp")


# --- keys


@slip("key:", "0 given", "jax.random.key(0)")
def a_seed_as_key() -> None:
    lla.trace(operator(), 0)


@slip("key:", "None given", "jax.random.key(0)")
def no_key() -> None:
    lla.spectrum(operator(), None)


@slip("key:", "keys[0]")
def several_keys() -> None:
    lla.eigenpairs(operator(), jax.random.split(KEY, 3))


@slip("key:", "Generator given")
def a_generator_of_numpy_as_key() -> None:
    lla.diagonal(operator(), np.random.default_rng(0))


@slip("key:", "jax.random.key(0)")
def seeds_of_another_length_as_key() -> None:
    lla.trace(operator(), np.zeros(3, np.uint32))


@slip("key:", "jax.random.key(0)")
def a_seed_for_a_random_vector() -> None:
    operator().random(0)


@slip("key:", "jax.random.key(0)")
def a_seed_for_the_extremes() -> None:
    lla.spectral.extremes(operator(), 0)


@slip("tol:", "such as 1e-3")
def a_tolerance_of_the_extremes_that_is_nan() -> None:
    lla.spectral.extremes(operator(), KEY, tol=float("nan"))


@slip("H:", "runs on the host", "call it outside of them")
def a_trace_under_jit() -> None:
    jax.jit(lambda x: x * lla.trace(operator(), KEY).mean)(1.0)


@slip("H:", "runs on the host", "in a loop over keys")
def traces_of_several_keys_at_once() -> None:
    jax.vmap(lambda key: lla.trace(operator(), key).mean)(jax.random.split(KEY, 2))


@slip("H:", "runs on the host", "H.at(params)")
def eigenpairs_of_an_operator_under_jit() -> None:
    H = lla.operators.given(lambda v: 2 * v, jnp.zeros(3))
    jax.jit(lambda H: lla.eigenpairs(H, KEY).values)(H)


# --- parameters


@slip("params['w']", "complex64")
def complex_parameters() -> None:
    hessian({"w": np.ones(2, np.complex64)})


@slip("params['w']", "int")
def integer_parameters() -> None:
    hessian({"w": np.ones(2, int)})


@slip("params['w']", "2 NaN or infinite entries of 2")
def parameters_that_are_nan() -> None:
    hessian({"w": np.full(2, np.nan, np.float32)})


@slip("select:", "matches no leaf")
def a_selection_of_nothing() -> None:
    lla.hessian(loss, {"w": np.ones(2, np.float32)}, None, select="**/bias")


@slip("groups:", "groups(path)", "a string")
def groups_that_take_nothing() -> None:
    lla.per_layer(loss, {"w": np.ones(2, np.float32)}, None, KEY, groups=lambda: "all")


@slip("rows:", "lla.per_layer")
def a_table_of_an_operator() -> None:
    lla.layers.table(operator())


# --- partial results


def partial(call: Callable[..., Any], **options: Any) -> Any:
    """What on_partial gets of a call that is interrupted after a few products, with one number of its state changed."""
    parts: list[Any] = []

    def interrupt(done: int, total: int | None) -> None:
        if done > 2:
            raise InterruptedError

    with contextlib.suppress(InterruptedError):
        call(operator(), KEY, progress=interrupt, on_partial=parts.append, **options)
    name = "T" if "T" in parts[0].state else "alphas"
    return dataclasses.replace(parts[0], state=parts[0].state | {name: parts[0].state[name] + 1})


@slip("resume:", "its arrays are not those that on_partial got", "start anew")
def partial_pairs_with_another_number() -> None:
    lla.eigenpairs(operator(), KEY, k=1, resume=partial(lla.eigenpairs, k=1))


@slip("resume:", "its arrays are not those that on_partial got", "start anew")
def a_partial_spectrum_with_another_number() -> None:
    options: dict[str, Any] = {"steps": 3, "probes": 3}
    lla.spectrum(operator(), KEY, resume=partial(lla.spectrum, **options), **options)


# --- numbers without an error, or far from the one asked for


@slip("trace:", "one draw has no error", "max_products, to 32", warns=True)
def a_trace_from_one_draw() -> None:
    lla.trace(operator(), KEY, max_products=2)


@slip("frobenius_norm:", "one draw has no error", "max_products, to 16", warns=True)
def a_norm_from_one_draw() -> None:
    lla.frobenius_norm(operator(), KEY, max_products=1)


@slip("diagonal:", "one draw has no error", warns=True)
def a_diagonal_from_one_draw() -> None:
    lla.diagonal(operator(), KEY, max_products=1)


@slip("r_e:", "no error", "probes=4", warns=True)
def a_criterion_of_lla_from_one_probe() -> None:
    lla.r_e(lla.spectrum(operator(), KEY, steps=3, probes=1, scheme="lla"), definition="lla")


@slip("diagonal:", "rtol=0.001 asks for", "products would do (max_products), or a larger rtol", warns=True)
def a_diagonal_that_will_take_too_long() -> None:
    lla.diagonal(operator(), KEY, rtol=1e-3, max_products=40)


@slip("trace:", "may be zero", warns=True)
def a_trace_that_is_zero() -> None:
    swap = np.array([[0, 1], [1, 0]], np.float32)
    H = lla.operators.given(lambda v: swap @ np.asarray(v), jnp.zeros(2), traceable=False)
    lla.trace(H, KEY, method="hutchinson", max_products=40)


@slip("r_e:", "the spectrum is zero", warns=True)
def a_criterion_of_the_zero_operator() -> None:
    zero = lla.operators.given(lambda v: 0 * np.asarray(v), jnp.zeros(3), traceable=False)
    lla.r_e(lla.spectrum(zero, KEY, steps=2, probes=1))


@slip("H:", "counts numbers below", "1e20", warns=True)
def a_matrix_at_the_least_number_of_float32() -> None:
    H = lla.operators.given(lambda v, a: a @ v, jnp.zeros(3), jnp.asarray(MATRIX * np.float32(1e-37)))
    lla.eigenpairs(H, KEY)


@slip("spec:", "lla.spectrum(H, key)")
def a_criterion_of_an_operator() -> None:
    lla.saddle_index(operator())


@slip("spec:", "lla.spectrum(H, key)")
def a_criterion_of_nodes() -> None:
    lla.k_hn(spectrum().nodes)


@slip("n:", "'lla' given")
def the_definition_as_exponent() -> None:
    lla.k_hn(spectrum(), "lla")


@slip("definition:", "'pooled', 'lla'")
def another_definition() -> None:
    lla.r_e(spectrum(), definition="LLA")


@slip("pairs:", "which='smallest'")
def directions_of_escape_from_a_minimum() -> None:
    H = lla.operators.given(lambda v: 2 * np.asarray(v), jnp.zeros(3), traceable=False)
    lla.escape_directions(lla.eigenpairs(H, KEY))


@slip("width:", "0.01")
def a_density_of_no_width() -> None:
    lla.density(spectrum(), width=0)


@slip("threshold:", 'scale="symlog"')
def a_threshold_on_a_linear_axis() -> None:
    lla.density(spectrum(), threshold=0.1)


@slip("nodes", "(probes, steps)")
def a_spectrum_of_one_probe_by_hand() -> None:
    lla.Spectrum(np.ones(3), np.ones(3), {})


@slip("on_partial", "results.append")
def a_file_for_partial_pairs() -> None:
    lla.eigenpairs(operator(), KEY, on_partial="pairs.npz")


@slip("on_partial", "results.append")
def a_function_of_nothing_for_a_partial_spectrum() -> None:
    lla.spectrum(operator(), KEY, on_partial=lambda: None)
