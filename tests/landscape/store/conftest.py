"""Small chunks, and the landscape in memory that stores are compared with."""

from __future__ import annotations

import pytest

from lla_jax.landscape.store import writing as stored
from tests.landscape.store.cases import run


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(stored, "_chunk_points", lambda job, plan, seconds, most, shards: 12)


@pytest.fixture(scope="module")
def complete():
    return run()
