"""The examples for torch users: they run, and write what they say."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")

import lla_torch

import lla_jax as lla

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> ModuleType:
    """An example as a module, by its file."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _closed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """No settings left behind, of the environment, of torch's generator or of matplotlib."""
    for name in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.setenv(name, "")  # set already: the examples leave them alone
    with torch.random.fork_rng():
        yield


def number(summary: str, name: str) -> float:
    """The first number behind a name in a summary."""
    found = re.search(rf"^{re.escape(name)} .*?(-?\d[\d.e+-]*)", summary, re.MULTILINE)
    assert found, f"{name} is not in\n{summary}"
    return float(found[1])


def written(out: Path, results: dict[str, type], pictures: set[str]) -> str:
    """The summary, after all files were found and the results loaded."""
    for name, kind in results.items():
        assert isinstance(lla.load(out / f"{name}.npz"), kind), name
    assert {path.stem for path in out.glob("*.png")} == pictures
    assert all(path.stat().st_size > 10_000 for path in out.glob("*.png"))
    return (out / "summary.txt").read_text(encoding="utf-8")


@pytest.mark.slow
def test_vae(tmp_path: Path) -> None:
    out = example("torch_vae").main(["--quick", "--out", str(tmp_path / "vae")])
    kinds = {
        "plane": lla.Landscape,
        "adam-plane": lla.Landscape,
        "eigenpairs": lla.Eigenpairs,
        "spectrum": lla.Spectrum,
    }
    summary = written(out, kinds, {"plane", "planes", "spectrum"})
    by_torch = float(re.search(r"torch, mean of 20 draws: ([\d.]+)", summary)[1])  # type: ignore[index]
    plane = lla.load(out / "plane.npz")
    error = 4 * np.sqrt(2) * plane.stderr["loss"][2, 2]  # of one draw each: the same loss, other noise
    assert abs(number(summary, "negative ELBO") - by_torch) < error
    assert number(summary, "eigenvalues") > 0
    assert number(summary, "trace") > 0
    assert lla.load(out / "adam-plane.npz").recipe["directions"]["kind"] == "adam_moments"


@pytest.mark.slow
def test_vit(tmp_path: Path) -> None:
    out = example("torch_vit").main(["--quick", "--out", str(tmp_path / "vit")])
    planes = ("plane", "head-plane", "hessian-plane")
    kinds = dict.fromkeys(planes, lla.Landscape) | {"eigenpairs": lla.Eigenpairs, "spectrum": lla.Spectrum}
    summary = written(out, kinds, {"plane", "planes", "hessian-plane", "spectrum"})
    assert "torch and JAX agree to rounding" in summary
    found = re.search(r"^loss +([\d.]+) .*torch: ([\d.]+)", summary, re.MULTILINE)
    assert found
    assert float(found[1]) == pytest.approx(float(found[2]), abs=2e-5)
    assert number(summary, "eigenvalues") > 0
    centres = [lla.load(out / f"{name}.npz").values["loss"][1, 1] for name in planes]
    assert centres == pytest.approx([centres[0]] * 3, rel=1e-5)


@pytest.mark.parametrize(("name", "shape"), [("lenet", (1, 28, 28)), ("resnet20", (3, 32, 32))])
def test_modules_of_the_checkpoints_convert(name: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    module = example("torch_checkpoints").CASES[name].module().eval()
    x = torch.randn(4, *shape)
    net = lla_torch.convert(module, x[:2])
    with torch.no_grad():
        expected = module(x).numpy()
    np.testing.assert_allclose(jax.jit(net.apply)(net.variables, x.numpy()), expected, rtol=1e-4, atol=1e-5)


def test_enlarged_digits_are_centred() -> None:
    images, labels = example("torch_checkpoints").enlarged_digits()
    assert images.shape == (1797, 1, 28, 28)
    assert labels.shape == (1797,)
    ink = images.sum((1, 2, 3))
    for axis in (2, 3):
        centre = images.sum((1, axis)) @ torch.arange(28.0) / ink
        assert (centre - 13.5).abs().max() < 0.51
