"""Minimum spanning trees, and the lowest ways."""

import itertools

import numpy as np

from lla_jax.paths import graphs

WEIGHTS = {(0, 1): 5.0, (0, 2): 2.0, (0, 3): 9.0, (1, 2): 4.0, (1, 3): 3.0, (2, 3): 8.0}


def test_the_tree_has_the_lowest_edges_that_close_no_circle():
    assert graphs.spanning_edges(4, WEIGHTS) == [(0, 2), (1, 3), (1, 2)]
    assert graphs.spanning_edges(4, WEIGHTS | {(1, 2): np.nan}) == [(0, 2), (1, 3), (0, 1)]
    assert graphs.spanning_edges(3, {(0, 1): 1.0}) == [(0, 1)]


def test_of_edges_that_differ_by_rounding_the_shorter_come_first():
    weights = {(0, 1): -40.66484, (0, 2): -40.66485, (1, 2): -72.0}
    assert graphs.spanning_edges(3, weights, {(0, 1): 1.0, (0, 2): 2.0, (1, 2): 1.0}) == [(1, 2), (0, 1)]
    weights[0, 2] = -40.67
    assert graphs.spanning_edges(3, weights, {(0, 1): 1.0, (0, 2): 2.0, (1, 2): 1.0}) == [(1, 2), (0, 2)]


def test_barriers_are_the_least_largest_edge_of_all_paths():
    rng = np.random.default_rng(0)
    weights = {edge: float(rng.random()) for edge in itertools.combinations(range(6), 2)}
    tree = graphs.spanning_edges(6, weights)
    found = graphs.barriers(-np.arange(6.0), {edge: weights[edge] for edge in tree})
    least = np.full((6, 6), np.inf)
    for (i, j), w in weights.items():
        least[i, j] = least[j, i] = w
    for k in range(6):  # Floyd and Warshall, with the largest edge in place of the sum
        least = np.minimum(least, np.maximum(least[:, k, None], least[k]))
    np.fill_diagonal(least, -np.arange(6.0))
    np.testing.assert_array_equal(found, least)


def test_nodes_without_a_way_between_them_have_an_infinite_barrier():
    assert graphs.barriers([0, 0, 0], {(0, 1): 1.0}).tolist() == [[0, 1, np.inf], [1, 0, np.inf], [np.inf, np.inf, 0]]


def test_a_tree_falls_into_two_without_an_edge():
    assert graphs.across(4, [(0, 2), (1, 3), (1, 2)], (1, 2)) == ({1, 3}, {0, 2})
