"""Slips in how functions are called, and in what results and operators are taken for."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse

import lla_jax as lla
from tests.slips.slip import table
from tests.slips.torch_case import case, lla_torch, torch

SLIPS, slip = table()

KEY = jax.random.key(0)
PARAMS = {"w": np.ones((2, 3), np.float32), "b": np.zeros(2, np.float32)}
NUMBER = lla.Estimate(2.0, 0.1, 16, {"kind": "trace"})
DIAGONAL = lla.Estimate(PARAMS, PARAMS, 16, {"norm": 2.0, "norm_sem": 0.1})
AXES = lla.Directions(jax.tree.map(lambda x: np.stack([x, x]), PARAMS), {"kind": "given"})
PAIRS = lla.Eigenpairs(np.ones(2), AXES, np.zeros(2), 4, {"converged": True})
PLANE = lla.Landscape((np.arange(3.0),) * 2, {"loss": np.ones((3, 3))}, {}, {"kind": "landscape"})
SPECTRUM = lla.Spectrum(np.ones((1, 2)), np.full((1, 2), 0.5), {"steps": 2})
LOSS = lla.Loss(
    lambda params, state, batch, train: (batch[0] @ params["w"].T, state), lambda outputs, batch: outputs[:, 0]
)


@functools.cache
def operator() -> Any:
    return lla.operators.given(lambda v: jax.tree.map(lambda x: 2 * x, v), PARAMS)


def rows(*calls: tuple[str, Any, tuple[str, ...]]) -> None:
    """Add slips that are one expression each: (name, call, words)."""
    for name, call, words in calls:
        call.__name__ = name
        slip(*words)(call)


# --- missing arguments

rows(
    ("trace_without_a_key", lambda: lla.trace(operator()), ("key: missing", "jax.random.key(0)", "draws the vectors")),
    ("eigenpairs_without_a_key", lambda: lla.eigenpairs(operator()), ("key: missing", "jax.random.key(0)")),
    ("spectrum_without_a_key", lambda: lla.spectrum(operator(), steps=3), ("key: missing", "jax.random.key(0)")),
    ("diagonal_of_nothing", lambda: lla.diagonal(), ("H: missing", "key is missing too")),
    ("hessian_without_data", lambda: lla.hessian(LOSS, PARAMS), ("data: missing", "hessian(loss, params, data")),
    ("ggn_with_data_only", lambda: lla.ggn(data=PARAMS), ("loss: missing", "params is missing too")),
    (
        "linen_without_a_criterion",
        lambda: lla.from_linen(None, {}),
        ("criterion: missing", "criterion(outputs, batch)"),
    ),
    ("nnx_without_a_criterion", lambda: lla.from_nnx(None), ("criterion: missing", "losses (B,)")),
    ("equinox_without_a_criterion", lambda: lla.from_equinox(None), ("criterion: missing", "losses (B,)")),
    ("a_landscape_without_a_grid", lambda: lla.evaluate(LOSS, PARAMS, None, AXES), ("grid: missing", "lla.grid")),
    (
        "random_directions_without_a_key",
        lambda: lla.directions.random(PARAMS),
        ("params: missing", "random(key, params"),
    ),
    ("normalized_without_parameters", lambda: lla.directions.normalize(AXES), ("params: missing",)),
    ("save_without_a_path", lambda: lla.save(PLANE), ("path: missing", "the file")),
    ("load_of_nothing", lambda: lla.load(), ("path: missing",)),
    ("layers_without_a_key", lambda: lla.per_layer(LOSS, PARAMS, None), ("key: missing", "jax.random.key(0)")),
    ("a_report_without_axes", lambda: lla.plane_report(PLANE), ("axes: missing", "H is missing too")),
    ("a_picture_of_nothing", lambda: lla.plotting.surface(), ("missing",)),
    ("a_stream_of_nothing", lambda: lla.stream(), ("loader_or_factory: missing",)),
    ("a_loss_without_a_criterion", lambda: lla.Loss(lambda p, s, b, t: b), ("criterion: missing", "leading axis B")),
    ("a_problem_without_parameters", lambda: lla.Problem(LOSS), ("params: missing", "the trained parameters")),
    ("an_estimate_of_nothing", lambda: lla.Estimate(), ("mean: missing", "sem, num are missing too")),
    ("a_product_with_nothing", lambda: operator().mv(), ("v: missing", "mv(v)")),
    ("an_operator_at_nothing", lambda: operator().at(), ("params: missing", "at(params)")),
    ("a_given_operator_without_a_vector", lambda: lla.operators.given(lambda v: v), ("like: missing",)),
    ("lanczos_without_steps", lambda: lla.lanczos.lanczos(operator(), KEY), ("steps: missing",)),
)

# --- unknown, surplus and repeated arguments

rows(
    ("n_points", lambda: lla.grid(n_points=3), ("n_points: grid() has no such argument", "did you mean points?")),
    ("steps_of_a_grid", lambda: lla.grid(resolution=3), ("resolution: grid()", "It takes extent")),
    (
        "points_of_evaluate",
        lambda: lla.evaluate(LOSS, PARAMS, None, AXES, None, points=3),
        ("points: evaluate() has no such argument; it is one of", "grid()"),
    ),
    ("a_metric", lambda: lla.evaluate(LOSS, PARAMS, None, AXES, None, metric={}), ("did you mean metrics?",)),
    ("num_of_points", lambda: lla.grid(num=3), ("did you mean points?",)),
    ("a_seed", lambda: lla.directions.random(PARAMS, seed=3), ("did you mean key?",)),
    ("axes_of_evaluate", lambda: lla.evaluate(LOSS, PARAMS, None, axes=AXES), ("did you mean directions?",)),
    ("directions_of_a_sweep", lambda: lla.sweep(LOSS, [PARAMS], None, directions=AXES), ("did you mean axes?",)),
    (
        "an_argument_of_an_adapter_alone",
        lambda: lla.from_linen(flax.linen.Dense(2), {"params": {}}, len, methd="encode"),
        ("did you mean method?",),
    ),
    ("inputs_and_labels_apart", lambda: lla.hessian(LOSS, PARAMS, np.ones(4), np.ones(4)), ("data", "(x, y)")),
    ("n_probes", lambda: lla.spectrum(operator(), KEY, n_probes=3), ("did you mean probes?",)),
    ("num_eigenvalues", lambda: lla.eigenpairs(operator(), KEY, n=3), ("n: eigenpairs() has no such argument", "k")),
    ("a_seed", lambda: lla.trace(operator(), seed=0), ("seed: trace() has no such argument", "It takes H, key")),
    ("samples_of_a_trace", lambda: lla.trace(operator(), KEY, num_samples=9), ("has no such argument", "max_products")),
    ("batchsize", lambda: lla.hessian(LOSS, PARAMS, None, batchsize=3), ("did you mean batch_size?",)),
    ("selection", lambda: lla.ggn(LOSS, PARAMS, None, selection="**"), ("did you mean select?",)),
    (
        "an_input",
        lambda: lla.from_linen(flax.linen.Dense(2), {"params": PARAMS}, len, input=0),
        ("did you mean inputs?",),
    ),
    ("a_device_of_execution", lambda: lla.Execution(device=1), ("did you mean devices?",)),
    ("chunks_of_execution", lambda: lla.Execution(chunk_size=1), ("did you mean chunk?",)),
    ("a_count_of_directions", lambda: lla.directions.random(KEY, PARAMS, n=2), ("n: random()", "num")),
    ("a_criterion_of_normalize", lambda: lla.directions.normalize(AXES, PARAMS, mode="filter"), ("mode: normalize()",)),
    ("a_title", lambda: lla.plotting.surface(PLANE, titel="a"), ("titel: surface() has no such argument",)),
    ("a_file_of_save", lambda: lla.save(PLANE, filename="a.npz"), ("filename: save()", "It takes x, path")),
    ("a_state_of_loss", lambda: lla.Loss(len, len, states=3), ("did you mean state?",)),
    ("steps_by_position", lambda: lla.spectrum(operator(), KEY, 100), ("100 given as argument 3", "steps=...")),
    ("a_rule_by_position", lambda: lla.evaluate(LOSS, PARAMS, None, AXES, None, "add"), ("give the others by name",)),
    (
        "a_method_by_position",
        lambda: lla.trace(operator(), KEY, "xtrace"),
        ("'xtrace' given as argument 3", "method=..."),
    ),
    ("a_second_path", lambda: lla.save(PLANE, "a", "b", "c"), ("'b', 'c' given as argument 3", "leave the rest out")),
    ("key_twice", lambda: lla.trace(operator(), KEY, key=KEY), ("key:", "give it once")),
    ("three_fields_more_than_there_are", lambda: lla.Problem(*range(12)), ("given as argument 10 of Problem()",)),
)

# --- names that there are not

rows(
    ("eigenvalues_of_the_package", lambda: lla.hessian_eigenvalues, ("did you mean hessian?",)),
    ("a_class_for_a_function", lambda: lla.Hessian, ("did you mean hessian?", "eigenpairs")),
    ("a_plot", lambda: lla.plot_landscape, ("has no attribute 'plot_landscape'; did you mean",)),
    ("compute", lambda: lla.compute, ("did you mean lla.evaluate?",)),
    ("a_direction", lambda: lla.directions.gaussian, ("it has: ", "random")),
    ("a_picture", lambda: lla.plotting.contourf, ("did you mean contour?",)),
    ("merge_of_the_package", lambda: lla.merge, ("did you mean lla.runs.merge?",)),
    ("a_picture_of_the_package", lambda: lla.surface, ("did you mean lla.plotting.surface?",)),
    ("a_name_of_the_package_in_a_room", lambda: lla.landscape.load, ("did you mean lla.load?",)),
    ("a_loss_from_haiku", lambda: lla.from_haiku, ("did you mean lla.Loss(apply, criterion, state=state)?",)),
    ("a_loss_from_torch", lambda: lla.from_torch, ("did you mean lla_torch.convert(module, example_inputs)?",)),
    ("an_operator", lambda: lla.operators.mask, ("did you mean masked?",)),
    ("a_room_as_a_function", lambda: lla.plotting(PLANE), ("is a module, not a function", "surface")),
    ("a_module_as_a_function", lambda: lla.lanczos(operator(), KEY), ("is a module, not a function", "lanczos")),
    ("eigenvalues_of_pairs", lambda: PAIRS.eigenvalues, ("did you mean values?",)),
    ("eigenvectors_of_pairs", lambda: PAIRS.eigenvectors, ("did you mean vectors?",)),
    ("convergence_of_pairs", lambda: PAIRS.converged, ("did you mean recipe['converged']?",)),
    ("a_value", lambda: NUMBER.value, ("did you mean mean?",)),
    ("a_standard_deviation", lambda: NUMBER.std, ("did you mean sem?",)),
    ("a_loss_of_a_plane", lambda: PLANE.loss, ("did you mean values['loss']?",)),
    ("a_plot_of_a_plane", lambda: PLANE.plot(), ("has no attribute 'plot'", "lla.plotting")),
    ("a_grid_of_a_plane", lambda: PLANE.grid, ("did you mean coords?",)),
    ("eigenvalues_of_a_spectrum", lambda: SPECTRUM.eigenvalues, ("nodes", "Ritz values")),
    ("a_vector_of_directions", lambda: AXES.vectors, ("tree",)),
    ("a_transposed_operator", lambda: operator().T, ("did you mean H itself",)),
    ("a_dense_operator", lambda: operator().todense(), ("lla.operators.dense(H)",)),
    ("eigenpairs_of_an_operator", lambda: operator().eigenpairs(), ("lla.eigenpairs(H, key)",)),
    ("a_changed_field", lambda: setattr(lla.Execution(), "chunk", 3), ("dataclasses.replace(x, chunk=...)",)),
    ("a_changed_mean", lambda: setattr(NUMBER, "mean", 3), ("mean: Estimate objects do not change",)),
    ("a_replaced_name", lambda: dataclasses.replace(lla.Execution(), chunks=3), ("did you mean chunk?",)),
)

# --- results in place of numbers, arrays and sequences

rows(
    ("a_float_of_a_diagonal", lambda: float(DIAGONAL), ("estimate.mean", 'estimate.recipe["norm"]')),
    ("a_format_of_a_diagonal", lambda: f"{DIAGONAL:.3f}", ("estimate.mean",)),
    ("half_of_a_diagonal", lambda: DIAGONAL / 2, ("estimate.mean",)),
    ("a_text_before_an_estimate", lambda: "trace: " + NUMBER, ("numpy.add", 'f"{estimate}" for a text')),
    ("a_product_of_estimates", lambda: NUMBER @ NUMBER, ("numpy.matmul", "float(estimate)")),
    ("a_format_of_pairs", lambda: f"{PAIRS:.3f}", ("pairs.values",)),
    ("the_size_of_a_plane", lambda: abs(PLANE), ('plane.values["loss"]',)),
    ("a_square_of_pairs", lambda: PAIRS**2, ("pairs.values",)),
    ("a_replaced_value", lambda: PLANE.__setitem__("loss", 3), ('plane.values["loss"]',)),
    ("a_logarithm_of_jax_of_a_spectrum", lambda: jnp.log(SPECTRUM), ("spectrum.nodes",)),
    ("pairs_under_jit", lambda: jax.jit(lambda pairs: pairs)(PAIRS), ("pairs.values",)),
    ("a_spectrum_in_numpy", lambda: np.asarray([SPECTRUM, SPECTRUM]), ("spectrum.nodes",)),
    ("the_truth_of_an_estimate", lambda: bool(NUMBER), ("estimate > 0", "is not None")),
    ("a_format_for_integers", lambda: f"{NUMBER:d}", ("format: 'd' given", ".3f")),
    ("an_estimate_unpacked", lambda: tuple(NUMBER), ("estimate.mean and estimate.sem",)),
    ("pairs_unpacked", lambda: tuple(PAIRS), ("pairs.values, pairs.vectors", "zip(")),
    ("an_array_of_pairs", lambda: np.asarray(PAIRS), ("pairs.values",)),
    ("a_pair_that_there_is_not", lambda: PAIRS[5], ("index: 5 given", "from -2 to 1")),
    ("a_direction_by_name", lambda: AXES["w"], ("index: 'w' given", "list such as [0, 1]")),
    ("two_indices_of_directions", lambda: AXES[0, 1], ("index: (0, 1) given",)),
    ("an_array_of_directions", lambda: np.asarray(AXES), ("axes.tree",)),
    ("twice_the_directions", lambda: 2 * AXES, ("jax.tree.map(lambda x: 2 * x, axes)",)),
    ("an_array_of_a_plane", lambda: np.asarray(PLANE), ('plane.values["loss"]',)),
    ("a_difference_of_planes", lambda: PLANE - PLANE, ('plane.values["loss"]',)),
    ("a_logarithm_of_a_plane", lambda: np.log(PLANE), ('plane.values["loss"]',)),
    ("a_jax_array_of_a_plane", lambda: jnp.asarray(PLANE), ('plane.values["loss"]',)),
    ("a_length_of_a_plane", lambda: len(PLANE), ("plane.coords",)),
    ("nodes_of_a_spectrum", lambda: SPECTRUM[0], ("spectrum.nodes",)),
    ("a_problem_unpacked", lambda: tuple(lla.Problem(LOSS, PARAMS)), ("problem.loss, problem.params",)),
    ("a_loss_called", lambda: LOSS(PARAMS, (np.zeros((2, 3)),)), ("is not called", "loss.apply")),
)

# --- operators as matrices

rows(
    ("a_vector_that_is_too_short", lambda: operator() @ np.ones(5), ("v: of length 5", "(8,)", "H.structure")),
    ("a_matrix_of_rows", lambda: operator() @ np.ones((3, 8)), ("v: of length 3", "(8, k)")),
    ("a_vector_of_words", lambda: operator() @ np.array(["a"] * 8), ("v: ", "real numbers")),
    ("a_complex_vector", lambda: operator() @ (1j * np.ones(8)), ("v: ", "real numbers")),
    ("a_number_for_a_vector", lambda: operator() @ 3, ("v: 3 given", "H.structure")),
    ("none_for_a_vector", lambda: operator() @ None, ("v: None given", "H.structure")),
    ("a_cube_for_a_vector", lambda: operator() @ np.ones((8, 1, 1)), ("v: ", "(8, k)")),
    ("directions_for_a_vector", lambda: operator() @ AXES, ("v: ", "H.products(v.tree)")),
    ("another_tree", lambda: operator() @ {"w": np.ones((2, 3))}, ("v: ", "lacks ['b']")),
    ("a_sparse_matrix", lambda: operator() @ scipy.sparse.eye(8).tocsr(), ("v: ", "v.toarray()")),
    ("nothing_for_a_vector", lambda: operator()(), ("v: missing in the call Operator(v)",)),
    ("parameters_and_a_vector", lambda: operator()(PARAMS, PARAMS), ("given as argument 2 of Operator()",)),
    ("a_dot", lambda: operator().dot(np.ones(8)), ("has no attribute 'dot'", "H @ v")),
    ("eigenvalues_as_of_numpy", lambda: operator().eigh(), ("lla.eigenpairs(H, key)",)),
    ("rows_of_unequal_length", lambda: operator() @ [[1.0], [2.0, 3.0]], ("v: ", "H.structure")),
    ("a_tree_on_the_left", lambda: PARAMS @ operator(), ("v: ", "H @ v")),
    ("a_flat_vector_for_mv", lambda: operator().mv(np.ones(8)), ("v: ", "H @ v takes flat vectors")),
    ("an_array_of_an_operator", lambda: np.asarray(operator()), ("lla.operators.dense(H)",)),
    ("a_jax_array_of_an_operator", lambda: jnp.asarray(operator()), ("lla.operators.dense(H)",)),
    ("a_dot_of_jax", lambda: jnp.dot(operator(), np.ones(8)), ("H @ v",)),
    ("a_matmul_of_jax", lambda: jnp.matmul(operator(), np.ones(8)), ("H @ v",)),
    ("a_dot_of_numpy", lambda: np.dot(operator(), np.ones(8)), ("H @ v",)),
    ("eigenvalues_of_numpy", lambda: np.linalg.eigvalsh(operator()), ("lla.operators.dense(H)",)),
    ("twice_an_operator", lambda: 2 * operator(), ("2 * (H @ v)", "lla.operators.given")),
    ("a_shifted_operator", lambda: operator() + 0.1, ("lla.operators.given",)),
    ("one_over_an_operator", lambda: 1 / operator(), ("lla.operators.given",)),
    ("operators_in_order", lambda: sorted([operator(), operator()]), ("lla.operators.given",)),
    ("an_exponential", lambda: np.exp(operator()), ("lla.operators.given",)),
    ("an_entry_of_an_operator", lambda: operator()[0, 0], ("lla.operators.dense(H)[0]",)),
    ("a_length_of_an_operator", lambda: len(operator()), ("lla.operators.dense(H)",)),
    ("a_loop_over_an_operator", lambda: list(operator()), ("H @ v",)),
)

# --- saving, and progress


def saved(x: Any, path: str = "x.npz") -> Any:
    with tempfile.TemporaryDirectory() as folder:
        return lla.save(x, f"{folder}/{path}")


rows(
    ("save_of_a_dict", lambda: saved({"a": np.ones(2)}), ("x: dict given", "Landscape", "one by one", "numpy.savez")),
    ("save_of_several", lambda: saved([PLANE, PLANE]), ("x: list given", "one by one")),
    ("save_of_an_array", lambda: saved(np.ones(2)), ("x: ndarray given", "numpy.savez")),
    ("save_of_an_operator", lambda: saved(operator()), ("x: LinearOperator given", "made anew")),
    ("save_of_a_figure", lambda: saved(lla.plotting.heatmap(PLANE)), ("fig.savefig",)),
    ("save_of_none", lambda: saved(None), ("x: NoneType given", "Estimate")),
    (
        "save_with_swapped_arguments",
        lambda: lla.save("plane.npz", PLANE),
        ("swap them", "lla.save(result, 'plane.npz')"),
    ),
    ("a_number_for_progress", lambda: lla.trace(operator(), KEY, progress=1), ("progress: 1 given", "True for a bar")),
    ("a_word_for_progress", lambda: lla.eigenpairs(operator(), KEY, progress="bar"), ("progress: 'bar' given",)),
    (
        "progress_of_one_argument",
        lambda: lla.trace(operator(), KEY, progress=lambda d: None),
        ("progress(done, total)",),
    ),
    ("a_class_for_progress", lambda: lla.diagonal(operator(), KEY, progress=dict), ("progress: ", "True for a bar")),
)

# --- with torch

if torch is not None:
    rows(
        ("a_conversion_without_inputs", lambda: lla_torch.convert(torch.nn.Linear(3, 2)), ("example_inputs: missing",)),
        ("a_torch_loss_without_a_criterion", lambda: case().net.loss(), ("criterion: missing", "torch loss module")),
        ("a_network_without_variables", lambda: case().net.apply(), ("variables: missing", "net.variables")),
        ("a_certificate_without_a_batch", lambda: lla_torch.certify(case().module, case().net), ("batch: missing",)),
        ("a_torch_problem_of_a_module_alone", lambda: lla_torch.problem(torch.nn.Linear(3, 2)), ("missing",)),
        ("a_checkpoint_without_a_net", lambda: lla_torch.load_checkpoint("model.pt"), ("net: missing",)),
        ("inputs_of_convert", lambda: lla_torch.convert(None, inputs=1), ("did you mean example_inputs?",)),
        (
            "reduction_of_a_loss",
            lambda: case().net.loss(len, reduction="sum"),
            ("reduction: Net.loss() has no such argument",),
        ),
        ("strictness", lambda: lla_torch.load_checkpoint("a", case().net, stric=True), ("did you mean strict?",)),
        ("of_torch", lambda: lla_torch.from_torch, ("did you mean lla_torch.convert(",)),
        ("parameters_of_a_net", lambda: case().net.params, ("did you mean variables['params']?",)),
        ("weights_of_a_net", lambda: case().net.forward, ("has no attribute 'forward'", "apply")),
        ("a_net_unpacked", lambda: tuple(case().net), ("net.apply", "net.variables")),
    )
