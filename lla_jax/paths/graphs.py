"""Minimum spanning trees, and the lowest ways between any two nodes of one.

The weight of a path is its largest edge, and of a spanning tree of least weight every path is the lowest that the edges
allow: to go another way between two nodes means to cross an edge at least as high.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np

Edge = tuple[int, int]

ROUNDING = 1e-5  # of the largest weight


def spanning_edges(num: int, weights: Mapping[Edge, float], lengths: Mapping[Edge, float] | None = None) -> list[Edge]:
    """Kruskal's algorithm: the edges of a spanning forest of least weight, the lowest first.

    Args:
      num: number of nodes.
      weights: of the edges (i, j), i < j; NaN counts as infinite.
      lengths: of the edges: of those whose weights differ by rounding alone, as of a curve that leads through a third
        node, the shorter come first. By default the earlier nodes do.
    """
    of_node, chosen = list(range(num)), []
    level = levels(weights)
    for i, j in sorted(weights, key=lambda edge: (level[edge], (lengths or {}).get(edge, 0.0), edge)):
        one, other = of_node[i], of_node[j]
        if one != other:
            chosen.append((i, j))
            of_node = [one if label == other else label for label in of_node]
    return sorted(chosen, key=lambda edge: (level[edge], weights[edge], edge))


def levels(weights: Mapping[Edge, float]) -> dict[Edge, int]:
    """The rank of each edge by its weight; neighbours that differ by rounding alone share one."""
    clean = {edge: math.inf if math.isnan(w) else w for edge, w in weights.items()}
    finite = [w for w in clean.values() if math.isfinite(w)]
    same = ROUNDING * max((abs(w) for w in finite), default=0.0)
    found, rank, last = {}, 0, -math.inf
    for edge in sorted(clean, key=lambda edge: (clean[edge], edge)):
        rank += clean[edge] > last + same
        found[edge], last = rank, clean[edge]
    return found


def barriers(heights: Iterable[float], edges: Mapping[Edge, float]) -> np.ndarray:
    """(n, n): the largest weight on the way between two nodes of a tree; their own heights on the diagonal.

    Two nodes without a way between them have an infinite one.

    Args:
      heights: of the n nodes.
      edges: of a forest, with their weights.
    """
    heights = np.asarray(list(heights), np.float64)
    table = np.full((len(heights), len(heights)), np.inf)
    np.fill_diagonal(table, heights)
    groups = {i: [i] for i in range(len(heights))}
    for (i, j), weight in sorted(edges.items(), key=lambda item: item[1]):
        one, other = groups[i], groups[j]
        for k in one:
            for m in other:
                table[k, m] = table[m, k] = weight
        for k in other:
            groups[k] = one
        one.extend(other)
    return table


def across(num: int, tree: Iterable[Edge], edge: Edge) -> tuple[set[int], set[int]]:
    """The two sets of nodes into which a tree falls without one of its edges."""
    left = [each for each in tree if each != edge]
    side, found = {edge[0]}, True
    while found:
        new = {node for each in left for node in each if (each[0] in side) != (each[1] in side)} - side
        side, found = side | new, bool(new)
    return side, set(range(num)) - side
