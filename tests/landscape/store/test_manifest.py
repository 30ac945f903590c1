"""A manifest that was changed or damaged is refused."""

from __future__ import annotations

import json
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lla_jax as lla
from lla_jax.landscape.store import folders
from lla_jax.landscape.store import manifest as _manifest
from tests.hostile import HOSTILE, replace_a_value
from tests.slips.slip import error_of, raised_on_purpose

PLAN = {"chunk": 2, "microbatch": 3, "loop": "map", "share": True, "scan": True, "devices": 1, "data_shards": 1}


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
def test_a_manifest_that_was_changed_is_refused(tmp_path, change, said):
    recipe = {"plan": dict(PLAN), "probe": {"loss": 1.0}, "batch_size": None}
    manifest = _manifest.make(recipe, ["batch_size"], [[0.0, 1.0]], ["loss"], 12)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(manifest))
    assert folders.read(tmp_path).manifest == manifest
    change(manifest)
    path.write_text(json.dumps(manifest))
    for call in (folders.read, lla.runs.status, lla.runs.merge):
        with pytest.raises(ValueError, match=f"store: .*{said}"):
            call(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"store: .* is not readable"):
        lla.runs.merge(tmp_path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("manifests")


@given(where=st.integers(0, 1000), value=st.sampled_from(HOSTILE), again=st.booleans(), grid=st.booleans())
@settings(deadline=None, max_examples=100, derandomize=True)
def test_any_value_of_a_manifest_may_be_replaced(folder, where, value, again, grid):
    """No value, however odd, makes an error of another kind, even if its author makes the hash fit."""
    recipe = {"plan": dict(PLAN), "probe": {"loss": 1.0}, "params": {"fingerprint": "abc"}}
    manifest = _manifest.make(recipe, ["params"], [[0.0, 1.0], [0.5]], ["loss"], 12)
    further = {"coords": [[0.0, 0.5, 1.0], [0.5]]}
    replace_a_value(further if grid else manifest, where, value)
    try:
        if again:
            manifest["hash"] = _manifest._hash(manifest)
        text = json.dumps(manifest)
    except Exception:  # such a file cannot be written
        return
    (folder / "manifest.json").write_text(text)
    (folder / "grid-001.json").write_text(json.dumps(further))
    for call in (folders.read, lla.runs.status, lambda path: lla.runs.merge(path, partial=True)):
        error = error_of(partial(call, folder))
        assert error is None or raised_on_purpose(error.__traceback__), error
        assert len(str(error)) < 4000
