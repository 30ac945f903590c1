"""What moments leave open: rules with the same moments, bounds of masses, and how far out an eigenvalue may lie."""

import numpy as np
import pytest

from lla_jax.curvature import moments

RNG = np.random.default_rng(0)
NODES, WEIGHTS = np.sort(RNG.uniform(-1, 2, 200)), RNG.dirichlet(np.ones(200))


def lanczos(nodes, weights, steps):
    """The Jacobi matrix of the first steps, re-orthogonalised."""
    rows, alphas, betas = [np.sqrt(weights)], [], []
    for _ in range(steps):
        new = nodes * rows[-1]
        alphas.append(new @ rows[-1])
        for _ in range(2):
            new = new - np.array(rows).T @ (np.array(rows) @ new)
        betas.append(np.linalg.norm(new))
        rows.append(new / betas[-1])
    return np.array(alphas), np.array(betas[:-1])


STEPS = 12
ALPHAS, BETAS = lanczos(NODES, WEIGHTS, STEPS)


def gauss(alphas, betas):
    nodes, vectors = np.linalg.eigh(np.diag(alphas) + np.diag(betas, 1) + np.diag(betas, -1))
    return nodes, vectors[0] ** 2


def test_the_jacobi_matrix_is_that_of_lanczos():
    nodes, weights = gauss(ALPHAS, BETAS)
    padded = np.append(nodes, nodes[-1]), np.append(weights, 0.0)  # as a spectrum repeats the last node
    alphas, betas = moments.jacobi(*padded)
    np.testing.assert_allclose(alphas, ALPHAS, rtol=0, atol=1e-12)
    np.testing.assert_allclose(betas, BETAS, rtol=0, atol=1e-12)


@pytest.mark.parametrize("x", [-0.7, 0.0, 0.123, 1.9, 2.5])
def test_a_rule_has_the_node_and_the_moments(x):
    nodes, weights = moments.rule_at(ALPHAS, BETAS, x)
    assert np.abs(nodes - x).min() < 1e-10
    for k in range(2 * STEPS - 1):
        assert weights @ nodes**k == pytest.approx(WEIGHTS @ NODES**k, rel=1e-9, abs=1e-12)
    assert weights[np.abs(nodes - x).argmin()] == pytest.approx(moments.largest_mass(ALPHAS, BETAS, x), rel=1e-8)


def test_a_node_of_the_rule_of_one_step_less():
    x = gauss(ALPHAS[:-1], BETAS[:-1])[0][4]
    nodes, weights = moments.rule_at(ALPHAS, BETAS, x)
    assert np.isfinite([*nodes, *weights]).all()
    assert np.abs(nodes - x).min() < 1e-6


def test_the_mass_below_lies_within_its_bounds():
    for x in np.linspace(-0.9, 1.9, 30):
        least, most = moments.mass_below(ALPHAS, BETAS, x)
        assert least - 1e-12 <= WEIGHTS[x > NODES].sum() <= WEIGHTS[x >= NODES].sum() <= most + 1e-12
        assert most - least < 0.35


def test_an_eigenvalue_beyond_the_nodes_lies_within_the_bound():
    """Of random start vectors: the bound holds the end of the spectrum in 97.5 % of the cases."""
    rng, held, near = np.random.default_rng(1), 0, []
    for _ in range(200):
        starts = rng.standard_normal((2, 200)) ** 2
        rules = [lanczos(NODES, v / v.sum(), STEPS) for v in starts]
        top = max(gauss(*rule)[0].max() for rule in rules)
        bound = moments.outermost(rules, top, 1, 0.0506 / 200)  # chi^2 of 2 degrees of freedom is below with 0.025
        held += bound >= NODES[-1]
        near.append(bound - NODES[-1])
        assert top <= bound
        assert sum(moments.largest_mass(*rule, bound * (1 + 1e-6)) for rule in rules) < 0.0506 / 200
    assert held >= 190
    assert np.median(near) < 0.3


def test_nothing_lies_beyond_a_whole_space():
    rule = lanczos(NODES[:12], WEIGHTS[:12] / WEIGHTS[:12].sum(), 12)
    assert moments.outermost([rule], NODES[11], 1, 1e-9) == pytest.approx(NODES[11], abs=0.5)
    assert float(moments.largest_mass(*rule, 1e100)) < 1e-300


def test_the_sampling_error_is_that_of_random_vectors():
    values = np.where(NODES < 0, 1.0, 0.0) * NODES**2
    rng = np.random.default_rng(2)
    for probes in (1, 4):
        w = rng.standard_normal((4000, probes, 200)) ** 2
        means = (w / w.sum(-1, keepdims=True)).mean(1) @ values
        away = values - values.mean()
        stated = moments.sampling_error((away**2).mean(), np.abs(away**3).mean(), 200, probes)
        assert stated == pytest.approx(means.std(), rel=0.1)
    assert moments.sampling_error(0.0, 0.0, 200, 4) == 0
