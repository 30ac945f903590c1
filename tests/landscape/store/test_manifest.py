"""A manifest that was changed or damaged is refused."""

from __future__ import annotations

import json

import pytest

import lla_jax as lla
from lla_jax.landscape.store import chunks as chunk_store
from lla_jax.landscape.store import manifest as _manifest


def changed(*path, to):
    """A change of an entry of the manifest."""

    def change(manifest):
        for name in path[:-1]:
            manifest = manifest[name]
        manifest[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (changed("version", to=9), "version 9"),
        (changed("version", to="1"), "version '1'"),
        (changed("format", to="a web app"), "format 'a web app'"),
        (changed("recipe", "batch_size", to=5), "its hash is that of other contents"),
        (changed("points", to=-3), "not positive integers"),
        (changed("points", to=13), "its hash is that of other contents"),
        (changed("recipe", "plan", "chunk", to=0), "not positive integers"),
        (changed("recipe", "plan", "loop", to="foo"), "its plan has an unknown loop"),
        (changed("recipe", to=[]), "TypeError"),
        (changed("recipe", "probe", to=None), "no probe"),
        (changed("hash", to=None), "its hash"),
        (changed("coords", to=[[0.0, float("nan")]]), "not lists of finite numbers"),
        (changed("coords", to=[[0.0] * 2000] * 6), "too many points"),
        (changed("names", to=[]), "names and identity"),
    ],
)
def test_a_manifest_that_was_changed_is_refused(tmp_path, monkeypatch, change, said):
    monkeypatch.setattr(_manifest, "PATIENCE_S", 0.0)
    plan = {"chunk": 2, "microbatch": 3, "loop": "map", "share": True, "scan": True, "devices": 1, "data_shards": 1}
    recipe = {"plan": plan, "probe": {"loss": 1.0}, "batch_size": None}
    manifest = _manifest.make(recipe, ["batch_size"], [[0.0, 1.0]], ["loss"], 12)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(manifest))
    assert chunk_store.read(tmp_path).manifest == manifest
    change(manifest)
    path.write_text(json.dumps(manifest))
    for call in (chunk_store.read, lla.runs.status, lla.runs.merge):
        with pytest.raises(ValueError, match=f"store: .*{said}"):
            call(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"store: .* is not readable"):
        lla.runs.merge(tmp_path)
