"""README and docs: links lead somewhere, names exist, and blocks pasted in order know all names that they use."""

from __future__ import annotations

import importlib
import itertools
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lla_jax as lla

ROOT = Path(__file__).parents[1]
PAGES = {path.name: path.read_text() for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}

GIVEN = {
    "README.md": {
        *("module", "variables", "x", "y", "early_params", "late_params", "first_params", "second_params"),
        *("torch_module", "example_inputs", "images", "labels"),
    },
    "cli.md": {"criterion", "accuracy", "other_params", "other_state"},
    "scaling.md": {"load_checkpoint", "load_examples", "spec_of"},
}
"""The names that a page takes as given: the user's own."""


def blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGES[name], re.S)


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    folder = ROOT if name == "README.md" else ROOT / "docs"
    text = re.sub(r"```.*?```|`[^`\n]*`", "", PAGES[name], flags=re.S)  # code has brackets of its own
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = folder / path if path else folder / name
        assert file.exists(), target
        if anchor:
            heads = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
            assert anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, target


@pytest.mark.parametrize("name", sorted(set(PAGES) - {"operators.md"}))  # its table has names of operators
def test_names_exist(name):
    """Every ``lla.a.b`` and ``lla_torch.a`` of a page is there, and so is every test."""
    for file, test in re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", PAGES[name]):
        assert f"def {test}" in (ROOT / file).read_text(), (file, test)
    found = re.findall(r"\b(lla|lla_jax|lla_torch)((?:\.[A-Za-z_]\w*)+)", PAGES[name])
    for package, dotted in sorted(set(found)):
        if package == "lla_torch":
            pytest.importorskip("torch")
        module = importlib.import_module("lla_jax" if package == "lla" else package)
        item: Any = module
        for part in dotted[1:].split("."):
            if part in ("py", "md", "json"):  # a file of this name
                break
            try:
                item = getattr(item, part)
            except AttributeError:
                item = importlib.import_module(f"{item.__name__}.{part}")


@pytest.mark.parametrize("name", [name for name in PAGES if blocks(name)])
def test_blocks_know_all_names_when_they_are_pasted_in_order(name, tmp_path):
    (tmp_path / "page.py").write_text("\n".join(blocks(name)))
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "F821", "--output-format", "concise"]
    said = subprocess.run([*command, "page.py"], cwd=tmp_path, capture_output=True, text=True)
    unknown = set(re.findall(r"Undefined name `(\w+)`", said.stdout))
    assert unknown == GIVEN.get(name, set()), said.stderr


@pytest.mark.slow
def test_the_page_of_curvature_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    for block in blocks("curvature.md"):
        exec(block, space)
    assert isinstance(space["pairs"], lla.Eigenpairs)
    assert (tmp_path / "spectrum.png").exists()


@pytest.mark.slow
def test_the_page_of_large_runs_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    for block in itertools.takewhile(lambda block: "hosts.start" not in block, blocks("scaling.md")):
        exec(block, space)
    assert space["plane"].evaluated is not None  # the last block, on fewer points
    assert len(space["table"]) == 2 * 2 * 16


@pytest.mark.slow
def test_the_page_of_paths_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    for block in blocks("paths.md"):
        exec(block, space)
    assert isinstance(space["barrier"], lla.paths.Barrier)
    assert {"trajectory.png", "descent.gif", "barrier.png", "band.png"} < {path.name for path in tmp_path.iterdir()}
