"""Slips with directions: drawn, given, normalized, joined, selected and indexed."""

from __future__ import annotations

import flax.linen as nn
import jax
import numpy as np
import optax

import lla_jax as lla
from tests.slips.layers import AXES, KEY, PARAMS, tree
from tests.slips.slip import table

SLIPS, slip = table()

LOSS = lla.Loss(lambda params, state, batch, train: (batch, state), lambda outputs, batch: outputs)


@slip("axes", "variables['params']")
def variables_as_directions() -> None:
    lla.directions.normalize(lla.Directions({"params": AXES.tree}, {}), PARAMS)


@slip("trees[0]", "Directions of lla_jax")
def directions_given_as_a_tree() -> None:
    lla.directions.given(AXES)


@slip("axes", "given(*trees)")
def a_list_of_trees_within_directions() -> None:
    lla.directions.normalize(lla.Directions([AXES.tree, AXES.tree], {}), PARAMS)


@slip("names", "a list of 2")
def one_name_for_two_trees() -> None:
    lla.directions.given(PARAMS, tree(fill=0.2), names="step")


@slip("key", "jax.random.key(0)")
def key_and_params_swapped() -> None:
    lla.directions.random(PARAMS, KEY)


@slip("num", "at least 1")
def no_directions() -> None:
    lla.directions.random(KEY, PARAMS, num=0)


@slip("num", "memory")
def more_directions_than_memory() -> None:
    lla.directions.random(KEY, PARAMS, num=10**12)


@slip("select", "predicate(path, leaf) -> bool")
def a_predicate_of_one_argument() -> None:
    lla.directions.random(KEY, PARAMS, select=lambda path: True)


@slip("select", "predicate(path, leaf) -> bool", ".any()")
def a_predicate_that_compares_an_array() -> None:
    lla.directions.random(KEY, PARAMS, select=lambda path, leaf: leaf > 0)


@slip("select", "did you mean 'Dense_0/**'?")
def a_layer_as_selection() -> None:
    lla.directions.random(KEY, PARAMS, select="Dense_0")


@slip("select", "did you mean 'Dense_0/kernel'?")
def a_dotted_path() -> None:
    lla.directions.random(KEY, PARAMS, select="Dense_0.kernel")


@slip("select", "did you mean 'Dense_0/kernel'?")
def a_path_as_a_tuple_of_keys() -> None:
    lla.directions.random(KEY, PARAMS, select=("Dense_0", "kernel"))


@slip("select", "re.compile")
def a_regular_expression_as_text() -> None:
    lla.directions.random(KEY, PARAMS, select="kernel$")


@slip("select", "all frozen")
def an_empty_selection() -> None:
    lla.directions.random(KEY, PARAMS, select=())


@slip("select", "a glob")
def a_mask_as_selection() -> None:
    lla.directions.random(KEY, PARAMS, select=jax.tree.map(lambda leaf: True, PARAMS))


@slip("select", "a glob")
def a_class_as_selection() -> None:
    lla.directions.random(KEY, PARAMS, select=nn.Dense)


@slip("axes", "lla.directions.select(axes, pattern)")
def select_with_its_arguments_swapped() -> None:
    lla.directions.select("**/kernel", AXES)


@slip("pattern", "leaves are")
def a_pattern_that_matches_nothing() -> None:
    lla.directions.select(AXES, "**/scale")


@slip("axes", "normalize(axes, params)")
def normalize_with_its_arguments_swapped() -> None:
    lla.directions.normalize(PARAMS, AXES)


@slip("axes['Dense_0/bias']", "(5,)")
def normalize_for_another_network() -> None:
    lla.directions.normalize(AXES, tree(5))


@slip("by", "'filter'")
def an_unknown_normalization() -> None:
    lla.directions.normalize(AXES, PARAMS, by="filters")


@slip("order", "1, 2")
def an_unknown_order() -> None:
    lla.directions.normalize(AXES, PARAMS, order=3)


@slip("unit", "True or False")
def a_word_as_flag() -> None:
    lla.directions.normalize(AXES, PARAMS, unit="yes")


@slip("filter_axis", "f(path, leaf) -> axes")
def a_filter_axis_of_one_argument() -> None:
    lla.directions.normalize(AXES, PARAMS, filter_axis=lambda path: 0)


@slip("stacked", "f(path, leaf) -> axes")
def stacks_by_a_function_of_one_argument() -> None:
    lla.directions.normalize(AXES, PARAMS, stacked=lambda path: None)


@slip("exclude", "leaves are")
def an_exclusion_that_matches_nothing() -> None:
    lla.directions.normalize(AXES, PARAMS, exclude="norm/*")


@slip("checkpoints", "B equals A")
def equal_checkpoints() -> None:
    lla.directions.between(PARAMS, PARAMS)


@slip("orthogonal", "True or False")
def a_word_for_orthogonal() -> None:
    lla.directions.between(PARAMS, tree(fill=0.2), orthogonal="no")


@slip("pairs", "Eigenpairs")
def an_operator_as_eigenpairs() -> None:
    lla.directions.eigenvectors(AXES)


@slip("which", "(0, 7)", "0 to 1")
def an_eigenvector_that_does_not_exist() -> None:
    lla.directions.eigenvectors(lla.Eigenpairs(np.ones(2), AXES, np.zeros(2), 3, {}), (0, 7))


@slip("opt_state", "swapped")
def adam_moments_swapped() -> None:
    lla.directions.adam_moments(PARAMS, optax.adam(1e-3).init(PARAMS))


@slip("opt_state", "TraceState", "Adam")
def moments_of_momentum() -> None:
    lla.directions.adam_moments(optax.sgd(0.1, momentum=0.9).init(PARAMS), PARAMS)


@slip("opt_state", "the optimizer itself")
def moments_of_an_optimizer() -> None:
    lla.directions.adam_moments(optax.adam(1e-3), PARAMS)


@slip("opt_state", "lla_torch.adam_moments")
def moments_of_a_torch_state() -> None:
    lla.directions.adam_moments({"state": {}, "param_groups": []}, PARAMS)


@slip("axes[1]", "join(axes, others)")
def joining_a_tree() -> None:
    lla.directions.join(AXES, PARAMS)


@slip("given", "Loss of lla_jax")
def orthogonal_around_a_loss() -> None:
    lla.directions.orthogonal(KEY, PARAMS, LOSS)


@slip("recipe", "axes.recipe")
def rebuild_of_directions() -> None:
    lla.directions.rebuild(AXES, PARAMS)


@slip("recipe", "lacks the entries", "'key'")
def rebuild_of_half_a_recipe() -> None:
    lla.directions.rebuild({"kind": "random"}, PARAMS)


@slip("recipe", "recipe['directions']")
def rebuild_of_a_landscape() -> None:
    lla.directions.rebuild({"directions": {}}, PARAMS)


@slip("index: 5", "-2 to 1")
def a_direction_that_does_not_exist() -> None:
    AXES[5]


@slip("index: 'random 1'", "-2 to 1")
def a_direction_by_its_name() -> None:
    AXES["random 1"]


@slip("index: slice(5", "-2 to 1")
def an_empty_choice_of_directions() -> None:
    AXES[5:]


@slip("recipe", "a dict")
def directions_without_recipe() -> None:
    lla.Directions(AXES.tree, None)


@slip("tree", "axes.tree")
def directions_within_directions() -> None:
    lla.Directions(AXES, {})


@slip("directions", "lla.directions.given(*trees)")
def directions_of_a_number() -> None:
    len(lla.Directions({"w": 3.0}, {}))


@slip("recipe", "names", "2 directions")
def a_recipe_with_a_name_too_few() -> None:
    lla.Directions(AXES.tree, {"names": ["first"]})[1]


@slip("recipe", "marks", "leave them out")
def a_recipe_with_marks_by_name() -> None:
    lla.Directions(AXES.tree, {"marks": {"start": [0, 1]}})[1]


@slip("'normalize'", "lla.directions.normalize(axes, params)")
def a_method_that_normalizes() -> None:
    AXES.normalize()
