"""The comparison of all modes: which planes there are, with one compilation for those that share a rule."""

import dataclasses

import jax
import numpy as np
import optax
import pytest

import lla_jax as lla
from tests.helpers import FIXED, ONE, accuracy, compilations, dataset, mlp_loss, params

GRID = lla.grid(extent=0.5, points=(3, 5))


@pytest.fixture(scope="module")
def opt_state():
    tx = optax.adam(1e-2)
    state = tx.init(params())
    _, state = tx.update(jax.tree.map(lambda x: 0.1 + np.cos(x), params()), state)
    return state


def run(**options):
    return lla.all_modes(mlp_loss(), params(), dataset(), jax.random.key(0), grid=GRID, execution=FIXED, **options)


def test_random_axes_give_four_planes_of_one_draw():
    planes = run(metrics={"accuracy": accuracy})
    steps = [plane.recipe["directions"].get("normalize", [{"by": "none", "order": 0}])[0] for plane in planes.values()]
    assert [(s["by"], s["order"]) for s in steps] == [("none", 0), ("weight", 2), ("filter", 1), ("filter", 2)]
    assert len({tuple(plane.recipe["directions"]["key"]) for plane in planes.values()}) == 1
    for plane in planes.values():
        assert plane.shape == (3, 5)
        assert set(plane.values) == {"loss", "accuracy"}
        centre = next(iter(planes.values())).values["loss"][1, 2]
        assert plane.values["loss"][1, 2] == pytest.approx(centre, rel=1e-6)
    pair = lla.directions.normalize(lla.directions.random(jax.random.key(0), params()), params(), order=1)
    alone = lla.evaluate(mlp_loss(), params(), dataset(), pair, GRID, execution=FIXED)
    found = planes["random, filter-normalized (L1)"].values["loss"]
    np.testing.assert_allclose(found, alone.values["loss"], rtol=1e-6)  # compiled with a metric, and without


def test_adam_moments_make_it_ten_and_progress_covers_all(opt_state):
    seen = []
    planes = run(opt_state=opt_state, progress=lambda *at: seen.append(at))
    assert len(planes) == 10
    assert [plane.recipe["rule"] for plane in planes.values()] == ["add"] * 8 + ["adam"] * 2
    wide, narrow = list(planes.values())[8:]
    np.testing.assert_allclose(wide.coords[0], 10 * narrow.coords[0])
    assert wide.coords[1][0] == 0.1
    assert seen[-1] == (150, 150)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    with compilations() as compiled:
        lists = lla.all_modes(
            mlp_loss(),
            params(),
            dataset(),
            jax.random.key(0),
            grid=[list(axis) for axis in GRID],
            opt_state=opt_state,
            execution=FIXED,
        )
    assert compiled.count == 0
    np.testing.assert_array_equal(list(lists.values())[9].values["loss"], narrow.values["loss"])


@pytest.fixture(scope="module")
def pairs():
    """Two orthonormal vectors, said to be eigenvectors at ``params()``."""
    size = sum(np.size(leaf) for leaf in jax.tree.leaves(params()))
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(size, 3)))[0].T.astype("float32")
    leaves, structure = jax.tree.flatten(params())
    cuts = np.cumsum([np.size(leaf) for leaf in leaves])[:-1]
    columns = zip(np.split(basis, cuts, axis=1), leaves, strict=True)
    tree = structure.unflatten([column.reshape(3, *np.shape(leaf)) for column, leaf in columns])
    H = lla.hessian(mlp_loss(), params(), dataset(), execution=ONE)
    recipe = {"operator": H.recipe}
    return lla.Eigenpairs(np.array([3.0, 2.0, -1.0]), lla.Directions(tree, {}), np.zeros(3), 9, recipe)


def test_eigenvectors_make_it_eight_and_with_adam_fourteen(pairs, opt_state):
    eight = run(pairs=pairs)
    modes = ["not normalized", "weight-normalized", "filter-normalized (L1)", "filter-normalized (L2)"]
    kinds = ["random", "Hessian eigenvectors", "Adam moments"]
    assert list(eight) == [f"{kind}, {mode}" for kind in kinds[:2] for mode in modes]
    seen = []
    planes = run(pairs=pairs, opt_state=opt_state, progress=lambda *at: seen.append(at))
    rules = ["Adam moments, adam rule", "Adam moments, adam rule, a/10"]
    assert list(planes) == [f"{kind}, {mode}" for kind in kinds for mode in modes] + rules
    assert seen[-1] == (14 * 15, 14 * 15)
    axes = lla.directions.eigenvectors(pairs)
    alone = lla.evaluate(mlp_loss(), params(), dataset(), axes, GRID, execution=FIXED)
    np.testing.assert_allclose(
        planes["Hessian eigenvectors, not normalized"].values["loss"], alone.values["loss"], rtol=1e-6
    )
    recipes = [planes[f"Hessian eigenvectors, {mode}"].recipe["directions"] for mode in modes]
    assert {recipe["kind"] for recipe in recipes} == {"eigenvectors"}
    assert recipes[0]["names"] == ["eigenvector 1 (lambda = 3)", "eigenvector 2 (lambda = 2)"]
    assert [recipe["normalize"][0]["by"] for recipe in recipes[1:]] == ["weight", "filter", "filter"]
    ggn = dataclasses.replace(pairs, recipe={"operator": pairs.recipe["operator"] | {"kind": "ggn"}})
    assert list(run(pairs=ggn))[4] == "GGN eigenvectors, not normalized"


def test_pairs_of_other_parameters_or_too_few_are_refused(pairs):
    elsewhere = {"operator": pairs.recipe["operator"] | {"params": {"fingerprint": "0"}}}
    with pytest.raises(ValueError, match=r"pairs: the operator of the pairs differs in params \(fingerprint"):
        run(pairs=dataclasses.replace(pairs, recipe=elsewhere))
    one = dataclasses.replace(
        pairs, values=pairs.values[:1], vectors=pairs.vectors[0], residuals=pairs.residuals[:1], recipe={}
    )
    with pytest.raises(ValueError, match=r"which: \(0, 1\) given; it must be indices of the 1 pair"):
        run(pairs=one)


def test_it_draws_planes_only_and_needs_moments():
    with pytest.raises(ValueError, match="modes are compared on planes, so it must have two"):
        lla.all_modes(mlp_loss(), params(), dataset(), jax.random.key(0), grid=lla.grid(points=3, dims=1))
    with pytest.raises(ValueError, match="Adam"):
        run(opt_state=optax.sgd(0.1).init(params()))
