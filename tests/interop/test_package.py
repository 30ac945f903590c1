"""lla_torch as a package: its imports, its names, its files and its docs."""

from __future__ import annotations

import importlib
import inspect
import pathlib
import re
import subprocess
import sys

import pytest

import lla_jax as lla
from tests.arrows import modules, wrong_ways

torch = pytest.importorskip("torch")
lla_torch = pytest.importorskip("lla_torch")

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "interop" / "lla_torch"
FLOORS = [
    {"program"},
    {"weights", "views"},
    {"tracing"},
    {"conversion"},
    {"losses"},
    {"net"},
    {"certification", "paths"},
    {"problems"},
    {"__init__"},
]
"""Rooms and modules of ``lla_torch`` from the ground up; those of one floor never import each other."""

IMPORTS = modules(PACKAGE)


def test_imports_go_down_the_floors_and_one_way_in_a_room():
    assert {name.split("/")[0] for name in IMPORTS} == {name for floor in FLOORS for name in floor}
    assert not list(wrong_ways(PACKAGE, FLOORS))


@pytest.mark.parametrize("module", sorted(name for name in IMPORTS if name.startswith("program")))
def test_the_converted_program_and_its_operators_import_no_torch(module):
    assert not [name for name in IMPORTS[module] if name.split(".")[0] == "torch"]


def test_the_former_path_of_views_goes_on_working_with_a_warning():
    sys.modules.pop("lla_torch.views", None)
    with pytest.warns(DeprecationWarning, match=r"lla_torch\.views is now lla_torch\.program\.views"):
        found = importlib.import_module("lla_torch.views")
    assert found.View is lla_torch.program.views.View


def test_no_module_bears_the_name_of_a_public_function():
    assert not set(lla_torch.__all__) & {path.stem for path in PACKAGE.iterdir()}


def test_only_public_names_of_lla_jax_are_used():
    for module, names in IMPORTS.items():
        for name in names:
            if name.startswith("lla_jax."):
                place, _, public = name.rpartition(".")
                assert public in importlib.import_module(place).__all__, f"{module} imports {name}"


def test_without_torch_the_rest_works_and_the_import_says_what_to_install():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import lla_jax; lla_jax.grid(points=3)\n"
        "try: import lla_torch\n"
        "except ImportError as error: assert 'pip install' in str(error), error\n"
        "else: raise AssertionError"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_changes_no_configuration_and_draws_nothing():
    code = (
        "import jax, torch; before = dict(jax.config.values); seed = torch.get_rng_state()\n"
        "import lla_torch\n"
        "assert dict(jax.config.values) == before\n"
        "assert torch.equal(seed, torch.get_rng_state()) and torch.is_grad_enabled()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", lla_torch.__all__)
def test_public_names_are_documented_and_typed(name):
    item = getattr(lla_torch, name)
    assert inspect.getdoc(item)
    if inspect.isfunction(item):
        signature = inspect.signature(item)
        assert all(p.annotation is not p.empty for p in signature.parameters.values())
        assert signature.return_annotation is not signature.empty


def test_files_stay_short_and_safe():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= 500, f"{path.name}: is it two concepts?"
        for pattern in (
            r"\bprint\(",
            r"config\.update\(\"",
            r"allow_pickle=True",
            r"\bpickle\.load",
            "weights_only=False",
        ):
            assert not re.search(pattern, text), f"{path.name}: {pattern}"


def test_the_page_of_operators_is_that_of_the_code():
    code = "from lla_torch.program.page import page; import sys; sys.stdout.write(page())"
    # in a process of its own, apart from what tests register
    made = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert (ROOT / "docs" / "operators.md").read_text() == made, "python -m lla_torch.program.page > docs/operators.md"


def test_no_operator_is_registered_twice():
    """The second function of a name would silently replace the first; only users replace functions."""
    code = (
        "import importlib, sys, types\n"
        f"package = types.ModuleType('lla_torch'); package.__path__ = [{str(PACKAGE)!r}]\n"
        "sys.modules['lla_torch'] = package\n"  # without what its __init__ imports: the table is empty yet
        "from lla_torch.program import operators\n"
        "class Once(dict):\n"
        "    def __setitem__(self, name, operator):\n"
        "        assert name not in self, (name, self[name].subject, operator.subject)\n"
        "        super().__setitem__(name, operator)\n"
        "operators.TABLE = Once()\n"
        "importlib.import_module('lla_torch.program.ops')\n"
        "print(len(operators.TABLE))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert int(done.stdout) > 500


def test_the_page_of_docs_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    space: dict = {}
    with torch.random.fork_rng():
        for block in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "torch.md").read_text(), re.S):
            exec(block, space)
        problem = space["my_problem"]()
    assert space["plane"].shape == (5, 5)
    assert space["axes"].num == 2
    assert isinstance(problem, lla.Problem)
