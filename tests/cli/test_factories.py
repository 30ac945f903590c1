"""What a factory returns in place of a problem is named, with what to write."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from lla_jax.cli import factories


@pytest.mark.parametrize(("library", "module", "remedy"), factories.MODELS)
def test_models_of_each_library_are_known_without_importing_it(library, module, remedy, monkeypatch):
    for _, other, _ in factories.MODELS:
        monkeypatch.setitem(sys.modules, other, SimpleNamespace())
    net = type("Net", (), {})
    assert library not in factories.describe(net())
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(Module=net))
    said = factories.describe(net())
    assert f"Net, a module of {library}; it must return lla_jax.Problem(loss, params, data)" in said
    assert remedy in said


def test_functions_of_a_file_are_found_without_running_it(tmp_path):
    path = tmp_path / "net.py"
    path.write_text("1 / 0\ndef _own(): ...\ndef needs(a): ...\ndef make(a=1, *, b=2): ...\ndef keys(*, c): ...\n")
    assert factories.functions_in(path) == ["make"]
    path.write_text("def make(:")
    assert factories.functions_in(path) == []
