"""The description of curvature says which numbers the steps do not resolve."""

import json

import numpy as np

import lla_jax as lla
from lla_jax.output import words


def results(nodes, weights):
    about = {"n": 3000, "steps": len(nodes), "steps_done": [len(nodes)] * 2, "operator": {}, "dtype": "float64"}
    spec = lla.Spectrum(np.tile(nodes, (2, 1)), np.tile(weights, (2, 1)), about)
    pairs = lla.Eigenpairs(np.ones(1), None, np.zeros(1), 1, {"which": "largest"})
    return words.CurvatureResults(pairs, spec, lla.Estimate(1.0, 0.1, 4, {"method": "xtrace"}))


def test_what_is_not_resolved_is_said_with_the_mass_whose_sign_is_not_known():
    nodes = np.array([-1.0, -0.3, -0.01, 0.4, 2.0, 10.0])
    found = results(nodes, np.array([0.05, 0.1, 0.6, 0.1, 0.1, 0.05]))
    text = words.describe(found).splitlines()
    index = next(line for line in text if "saddle index" in line)
    assert "not resolved (the signs of " in index
    assert "take more steps" in index
    assert lla.saddle_index(found.spectrum).recipe["unresolved"] > 0.5
    plain = words.plain_data(found)
    assert plain["criteria"]["saddle index"]["resolved"] is False
    json.dumps(plain)


def test_what_is_resolved_is_not():
    nodes = np.r_[np.linspace(-2, -1, 20), np.linspace(1, 2, 20)]  # nothing near zero
    text = words.describe(results(nodes, np.full(40, 1 / 40)))
    assert "not resolved" not in next(line for line in text.splitlines() if "saddle index" in line)
