"""Values that no file of this library holds, and a way to put one in the place of any value of a JSON tree."""

from __future__ import annotations

import copy
import json
from typing import Any

DEEP = json.loads("[" * 300 + "]" * 300)
HOSTILE = [None, True, -1, 0, 7, 0.5, float("nan"), float("inf"), 10**30, 10**400, 2**63, "", "x" * 3000, "/", [], {}]
HOSTILE += [[[0]], {"a": 1}, ["w"], [None], DEEP, [0] * 3000]


def replace_a_value(tree: Any, where: int, value: Any) -> None:
    """Replace one value of nested lists and dicts, or remove it if it is there already; ``where`` chooses it."""
    places = [(node, key) for node in _nodes(tree) for key in (node if isinstance(node, dict) else range(len(node)))]
    node, key = places[where % len(places)]
    if node[key] == value:
        del node[key]
    else:
        node[key] = copy.deepcopy(value)


def _nodes(tree: Any) -> list[Any]:
    nodes = [tree] if isinstance(tree, dict | list) else []
    for inner in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        nodes += _nodes(inner)
    return nodes
