"""Embeddings against torch in float64, with derivatives."""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

from tests.interop.program.check_operators import FIRST, compare, r

aten = torch.ops.aten

pytestmark = pytest.mark.usefixtures("double")


T = torch.tensor
IDS = T([1, 0, 2, 1, 1, 4])
PAIRS = T([1, 0, 1, 0])  # equally frequent: torch 2.13 on CPU takes the frequency of another row otherwise
OFFSETS = T([0, 2, 2, 3])
BAG = aten._embedding_bag.default
EMBEDDING: dict[str, Callable[[], tuple]] = {
    "embedding": lambda: (aten.embedding.default, (r(5, 3), IDS.reshape(2, 3))),
    "embedding padding": lambda: (aten.embedding.default, (r(5, 3), IDS, 1)),
    "embedding frequency": lambda: (aten.embedding.default, (r(5, 3), IDS.reshape(2, 3), 4, True)),
    "bag sum": lambda: (BAG, (r(5, 3), IDS, OFFSETS), {}, FIRST),
    "bag mean": lambda: (BAG, (r(5, 3), IDS, OFFSETS, False, 1, False, None, False, 1), {}, FIRST),
    "bag max": lambda: (BAG, (r(5, 3), IDS, OFFSETS, False, 2, False, None, False, 0), {}, FIRST),
    "bag weights": lambda: (BAG, (r(5, 3), IDS, T([0, 1, 6]), False, 0, False, r(6), True), {}, FIRST),
    "bag frequency": lambda: (aten.embedding_bag.default, (r(5, 3), PAIRS, OFFSETS, True), {}, FIRST),
    "bag padding": lambda: (
        aten.embedding_bag.padding_idx,
        (r(5, 3), IDS, OFFSETS, False, 1, False, None, False, -4),
        {},
        FIRST,
    ),
}


@pytest.mark.parametrize("name", EMBEDDING)
def test_operator(name: str):
    compare(*EMBEDDING[name]())
