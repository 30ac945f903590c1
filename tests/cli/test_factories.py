"""What a factory returns in place of a problem is named, with what to write."""

from __future__ import annotations

import pytest

from lla_jax.cli import factories


@pytest.mark.parametrize(
    ("module", "remedy"),
    [
        ("torch.nn.modules", "lla_torch.problem(module, criterion, loader)"),
        ("flax.linen.module", "loss=lla_jax.from_linen(module, variables, criterion), params=variables['params']"),
        ("flax.nnx.module", "loss=lla_jax.from_nnx(model, criterion), params=nnx.state(model, nnx.Param)"),
        ("equinox._module", "loss=lla_jax.from_equinox(model, criterion), params=eqx.filter("),
    ],
)
def test_models_of_each_library_are_known_without_importing_it(module, remedy):
    said = factories.describe(type("Net", (), {"__module__": module})())
    assert "; it must return lla_jax.Problem(loss, params, data): " in said
    assert remedy in said


def test_functions_of_a_file_are_found_without_running_it(tmp_path):
    path = tmp_path / "net.py"
    path.write_text("1 / 0\ndef _own(): ...\ndef needs(a): ...\ndef make(a=1, *, b=2): ...\ndef keys(*, c): ...\n")
    assert factories.functions_in(path) == ["make"]
    path.write_text("def make(:")
    assert factories.functions_in(path) == []
