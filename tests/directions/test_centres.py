"""Axes that were made for other parameters are warned of, and nothing else is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import lla_jax as lla
from lla_jax import directions
from lla_jax.core import recipes
from lla_jax.directions import centres
from tests.helpers import FIXED, dataset, mlp_loss, params

DATA = dataset()
HERE, THERE = params(0), params(9)
LINE = lla.grid(extent=0.1, points=3, dims=1)


def adam(p):
    state = optax.adam(1e-2).init(p)
    _, state = optax.adam(1e-2).update(jax.tree.map(jnp.ones_like, p), state)
    return directions.adam_moments(state, p)[0]


def random(**options):
    return directions.random(jax.random.key(0), HERE, 1, **options)


def eigenvector(p):
    """Of an operator's recipe, without the search for it."""
    H = lla.hessian(mlp_loss(), p, DATA, execution=lla.Execution(devices=1))
    unit = jax.tree.map(lambda x: x / centres.norm_of(jax.tree.leaves(p)), p)
    pairs = lla.Eigenpairs(np.ones(1), directions.given(unit), np.zeros(1), 1, {"operator": H.recipe})
    return directions.eigenvectors(pairs, 0)


def normalized(p):
    return directions.normalize(random(), p)


MADE = {
    "normalization": normalized,
    "gradient": lambda p: directions.gradient(mlp_loss(), p, DATA),
    "Adam's moments": adam,
    "eigenvectors": eigenvector,
}


def evaluate(axes, p=HERE):
    return lla.evaluate(mlp_loss(), p, DATA, axes, LINE, execution=FIXED)


@pytest.mark.parametrize("what", MADE)
def test_axes_of_other_parameters_are_warned_of_once(what):
    axes = MADE[what](THERE)
    with pytest.warns(UserWarning, match=rf"^directions: made for other parameters than params \({what}\)") as seen:
        evaluate(axes)
    assert len(seen) == 1
    with pytest.warns(UserWarning, match=r"^directions\[1\]: made for other parameters"):
        evaluate([random(), axes])
    with pytest.warns(UserWarning, match=what):
        evaluate(directions.join(random(), axes)[1])
    evaluate(MADE[what](HERE))  # a warning would be an error
    evaluate(axes, THERE)


FREE = {
    "random": random,
    "normalized by nothing": lambda: directions.normalize(random(), THERE, by="none"),
    "of unit length": lambda: directions.normalize(random(), THERE, unit=True),
    "of the user": lambda: directions.given(THERE),
    "between": lambda: directions.between(THERE, HERE),
    "between, normalized": lambda: directions.normalize(directions.between(THERE, HERE), THERE),
    "changed since": lambda: jax.tree.map(lambda x: 2 * x, normalized(THERE)),
    "of before": lambda: lla.Directions(
        normalized(THERE).tree, {k: x for k, x in normalized(THERE).recipe.items() if k != "centres"}
    ),
    "damaged": lambda: lla.Directions(normalized(THERE).tree, normalized(THERE).recipe | {"centres": [3]}),
}


@pytest.mark.parametrize("name", FREE)
def test_axes_that_belong_to_no_parameters_may_be_used_around_any(name):
    evaluate(FREE[name]())


def test_axes_joined_with_one_of_these_parameters_are_a_comparison():
    plane = lla.grid(extent=0.1, points=3)
    pair = directions.join(MADE["gradient"](HERE), MADE["gradient"](THERE))
    for joined in (pair, directions.normalize(pair, HERE)):
        lla.evaluate(mlp_loss(), HERE, DATA, joined, plane, execution=FIXED)
    with pytest.warns(UserWarning, match="normalization, gradient|gradient, normalization"):
        lla.evaluate(mlp_loss(), HERE, DATA, directions.normalize(pair, params(5)), plane, execution=FIXED)


def test_a_sweep_takes_the_same_axes_for_all_checkpoints():
    lla.sweep(mlp_loss(), [HERE, THERE], DATA, axes=normalized(THERE), grid=LINE, execution=FIXED)


@pytest.mark.parametrize("what", MADE)
def test_the_same_parameters_in_another_form_are_the_same(what):
    half = jax.tree.map(lambda x: np.asarray(x).astype("bfloat16"), HERE)
    forms = [jax.tree.map(jnp.asarray, HERE), {k: HERE[k] for k in reversed(HERE)}, half]
    axes = MADE[what](HERE)
    for form in forms:
        fingerprint = recipes.fingerprint(form)
        centres.warn_of_others("directions", axes.recipe, form, fingerprint)


def test_centres_decide_no_values(tmp_path):
    axes = normalized(HERE)
    before = lla.Directions(axes.tree, {k: x for k, x in axes.recipe.items() if k != "centres"})
    for one, two in ((before, axes), (axes, before)):
        folder = tmp_path / str(len(one.recipe))
        begun = lla.evaluate(mlp_loss(), HERE, DATA, one, LINE, execution=FIXED, store=folder)
        again = lla.evaluate(mlp_loss(), HERE, DATA, two, LINE, execution=FIXED, store=folder)
        np.testing.assert_array_equal(begun["loss"], again["loss"])
    rebuilt = directions.rebuild(axes.recipe, HERE)
    assert rebuilt.recipe["centres"] == axes.recipe["centres"]
