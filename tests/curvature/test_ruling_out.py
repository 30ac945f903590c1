"""What a sequence rules out is not there, and what a few steps cannot show is not taken as shown."""

import numpy as np

from lla_jax.curvature import ruling_out
from tests.curvature.cases import COPIES
from tests.helpers import symmetric_matrix

N = len(COPIES)


def sequences(a, steps, num, seed=0):
    """Coefficients (alphas, betas) of Lanczos sequences, begun at random, of growing length."""
    rng = np.random.default_rng(seed)
    for _ in range(num):
        v = rng.standard_normal(len(a))
        q, alphas, betas = [v / np.linalg.norm(v)], [], []
        for _ in range(steps):
            w = a @ q[-1]
            alphas.append(w @ q[-1])
            for _ in range(2):
                w = w - np.array(q).T @ (np.array(q) @ w)
            betas.append(np.linalg.norm(w))
            q.append(w / betas[-1])
            yield np.array(alphas), np.array(betas)


def test_a_sequence_rules_out_only_what_it_would_have_seen():
    a = symmetric_matrix(COPIES, "float64")
    largest = np.linalg.eigvalsh(a).max()
    for alphas, betas in sequences(a, 20, 20):
        assert not ruling_out.rules_out(alphas, betas, 9.9, N)
        if len(alphas) == 20:
            assert ruling_out.rules_out(alphas, betas, largest + 2, N)


def test_a_value_far_from_those_found_is_not_overlooked_for_long():
    a = symmetric_matrix(np.concatenate([[3.0, -2], np.linspace(0.99, 1.01, N - 2)]), "float64")
    for alphas, betas in sequences(a, 12, 10):
        s = len(alphas)
        values = np.linalg.eigvalsh(np.diag(alphas) + np.diag(betas[:-1], 1) + np.diag(betas[:-1], -1))
        for which, ends in (("largest", values[::-1]), ("smallest", values)):
            if not ruling_out.overlooks(alphas, betas, ends[:1], which, N):
                assert abs(ends[0] - 1) > 0.5  # not one of the many
        if s == 12:
            wanted = values[np.argsort(-np.abs(values))][:2]
            assert not ruling_out.overlooks(alphas, betas, wanted, "magnitude", N)


def test_places_lie_beyond_and_between_the_values():
    between = ruling_out.places_between
    assert np.allclose(between(np.array([10.0, 6, 5.9]), "largest"), [10.5, 8])
    assert np.allclose(between(np.array([-10.0, 2]), "smallest"), [-10.5, -4])
    assert np.allclose(between(np.array([10.0, -8, 4]), "magnitude"), [10.5, 7, -8.5, -6])
    assert np.allclose(between(np.array([1.0]), "magnitude"), [1.05, -1.05])
    assert ruling_out.inverse_mass(np.array([1.0]), np.array([0.0]), 2.0) == np.inf
