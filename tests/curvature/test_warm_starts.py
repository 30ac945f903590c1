"""Searches that begin with earlier vectors: fewer products, the same quality, and refusals of what does not fit."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lla_jax as lla
from lla_jax.curvature import operators
from tests.curvature.cases import COPIES, DATA, HALF, LOSS, check_pairs, counted, interrupted
from tests.helpers import ONE, params, symmetric_matrix, vector_operator

KEY, OTHER = jax.random.key(1), jax.random.key(2)
N = len(COPIES)
SEPARATED = np.concatenate([[9.0, 7, -6, 5, 4], np.linspace(-0.5, 1, N - 5)])
OLD = symmetric_matrix(SEPARATED)
CHANGE = 0.002 * np.random.default_rng(0).standard_normal((N, N))
NEW = (OLD + CHANGE + CHANGE.T).astype(np.float32)


def wanted(a, k):
    values = np.linalg.eigvalsh(a.astype(np.float64))
    return values[np.argsort(-np.abs(values))][:k]


@pytest.mark.parametrize("traceable", [True, False], ids=["device", "host"])
@pytest.mark.parametrize("k", [1, 3])
def test_earlier_pairs_save_products_and_nothing_is_worse(k, traceable):
    H = vector_operator(NEW, traceable)
    start = lla.eigenpairs(vector_operator(OLD, traceable), KEY, k)
    for copies in (True, False):
        cold, warm = (lla.eigenpairs(H, OTHER, k, copies=copies, start=s) for s in (None, start))
        assert warm.products < cold.products
        check_pairs(warm, NEW, wanted(NEW, k), 1e-3)
        assert warm.recipe["verified"] is copies
        assert warm.recipe["start"]["num"] == k
        assert cold.recipe["start"] is None
    if k == 1 and not traceable:
        assert warm.products <= 5


def test_all_copies_are_found_from_earlier_ones():
    start = lla.eigenpairs(vector_operator(symmetric_matrix(COPIES)), KEY, 5)
    a = symmetric_matrix(COPIES)
    check_pairs(
        lla.eigenpairs(vector_operator(a), OTHER, 8, tol=1e-4, start=start),
        a,
        [10] * 3 + [7.03, 7.02, 7.01, 7, -4],
        1e-4,
    )
    one = start[0]  # knows one of three copies, and nothing of the other values
    check_pairs(lla.eigenpairs(vector_operator(a), OTHER, 4, start=one), a, [10, 10, 10, 7.03], 1e-3)


def test_pairs_of_blocks_masks_and_any_directions_can_be_begun_with():
    p = params()
    whole = lla.hessian(LOSS, p, DATA, execution=ONE)
    near = jax.tree.map(lambda x: np.float32(1.001) * x, p)
    for change in (
        lambda H: H,
        lambda H: operators.masked(H, HALF),
        lambda H: lla.hessian(LOSS, H.centre(), DATA, select="**/kernel", execution=ONE),
    ):
        H = change(whole)
        exact = lla.eigenpairs(change(whole.at(near)), KEY, 2)
        for start in (lla.eigenpairs(H, KEY, 3), lla.directions.gradient(LOSS, p, DATA)):
            pairs = lla.eigenpairs(change(whole.at(near)), KEY, 2, start=start)
            assert np.allclose(pairs.values, exact.values, rtol=1e-3)
            assert pairs.recipe["converged"]


def test_a_search_that_began_with_earlier_pairs_continues_with_the_same_ones(tmp_path):
    H, start = counted(NEW)[0], lla.eigenpairs(vector_operator(OLD), KEY, 3)

    def call(start=start, **more):
        return lla.eigenpairs(H, OTHER, 4, start=start, **more)

    whole = call()
    for at in (4, 12, whole.products - 1):
        part = interrupted(call, at)
        lla.save(part, tmp_path / "part")
        again = call(resume=lla.load(tmp_path / "part.npz", like=jnp.zeros(N)))
        assert np.array_equal(again.vectors.tree, whole.vectors.tree)
        assert again.recipe == whole.recipe
    for options, name in (({"start": None}, "start"), ({"start": start[0]}, "start"), ({"copies": False}, "copies")):
        with pytest.raises(ValueError, match=rf"the partial result of eigenpairs differs in {name} \("):
            call(resume=part, **options)


def test_what_was_interrupted_before_these_options_continues():
    H = counted(OLD)[0]
    whole = lla.eigenpairs(H, KEY, 3)
    part = interrupted(lambda **more: lla.eigenpairs(H, KEY, 3, **more), 9)
    old = {name: value for name, value in part.recipe.items() if name not in ("copies", "start")}
    again = lla.eigenpairs(H, KEY, 3, resume=dataclasses.replace(part, recipe=old))
    assert np.array_equal(again.values, whole.values)
    with pytest.raises(ValueError, match="differs in copies"):
        lla.eigenpairs(H, KEY, 3, copies=False, resume=dataclasses.replace(part, recipe=old))


def test_what_cannot_be_begun_with_is_refused():
    H = vector_operator(OLD)
    pairs = lla.eigenpairs(H, KEY, 2)
    for start, match in (
        (1, "start: 1 given; it must be earlier pairs of lla.eigenpairs, or directions"),
        (dataclasses.replace(pairs, vectors=None), "start: has 2 values and no vectors"),
        (lla.directions.given(np.ones(7, np.float32)), "start"),
        (lla.directions.given({"a": np.ones(N, np.float32)}), "start: has another structure"),
        (lla.Directions(np.stack([np.ones(N), np.zeros(N)]).astype("f"), {}), "start: vector 1 has norm 0"),
        (lla.Directions(np.full((1, N), np.nan, "f"), {}), "start: vector 0 has norm nan"),
    ):
        with pytest.raises(ValueError, match=match):
            lla.eigenpairs(H, KEY, 1, start=start)
    with pytest.raises(ValueError, match="copies: 'no' given"):
        lla.eigenpairs(H, KEY, 1, copies="no")
