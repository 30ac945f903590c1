"""The architecture: who may import whom, what importing the package costs, and documented and typed public names.

The rule: a module imports from its own room, without circles, and from rooms on lower floors; never upward, never from
another room of its floor. Imports inside functions and under ``TYPE_CHECKING`` count.
"""

import ast
import graphlib
import importlib
import inspect
import pathlib
import re
import subprocess
import sys

import pytest

import lla_jax as lla
from tests.arrows import imports, modules, places, wrong_ways

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "lla_jax"

FLOORS = [
    {"_names"},
    {"_lazy", "_former", "_version"},
    {"__init__"},
    {"core"},
    {"execution", "models", "directions"},
    {"landscape", "curvature"},
    {"measures", "paths"},
    {"training", "output"},
    {"studies"},
    {"demo"},
    {"cli"},
    {"__main__"},
]
"""The rooms of ``lla_jax``, from the ground up; rooms of one floor never import each other."""

OUTSIDE = {
    "optax": ("directions/derived", "training", "paths", "studies", "demo"),
    "flax": ("models/linen", "models/nnx", "models/calling", "demo"),
    "equinox": ("models/equinox", "directions/normalization"),
    "matplotlib": ("output/plotting",),
    "PIL": ("output/plotting/film_files",),
    "tqdm": ("execution/progress", "cli/terminal", "demo"),
    "tyro": ("cli/main", "cli/options"),
    "orbax": ("paths/files/array_files",),
    "safetensors": ("paths/files/array_files",),
    "torch": (),
    "lla_torch": (),
}
"""Where these packages may be imported: rooms, or modules of rooms."""

DOORS = ("_lazy", "core/display", "cli/problems")
"""Modules that may import by a string: lazy public names, results that show themselves by functions of higher rooms
(core/display, once it exists), and the user's factory."""


IMPORTS = modules(PACKAGE)
ARROWS = places(PACKAGE, IMPORTS)
WRONG = list(wrong_ways(PACKAGE, FLOORS))


def test_imports_go_down_the_floors_and_one_way_in_a_room():
    assert not WRONG


def test_the_inner_rooms_of_a_room_import_one_way():
    """``paths/bands`` builds on ``paths/training``, and never the other way."""
    inner = {name: name.rpartition("/")[0] for name in ARROWS if name.count("/") > 1}
    above = {room: set() for room in inner.values()}
    for name, others in ARROWS.items():
        if name in inner:
            above[inner[name]] |= {inner[other] for other in others if other in inner} - {inner[name]}
    assert above["paths/bands"] >= {"paths/training"}
    graphlib.TopologicalSorter(above).prepare()


@pytest.mark.parametrize("module", sorted(ARROWS))
def test_a_module_imports_only_from_below(module):
    assert any(module.split("/")[0] in rooms for rooms in FLOORS), f"{module} is in no room"
    assert not [wrong for wrong in WRONG if wrong.startswith(f"{module} ")]


@pytest.mark.parametrize(
    ("file", "line", "wrong"),
    [
        ("core/types.py", "from lla.output import words", "core/types imports output/words"),
        ("core/types.py", "def f():\n    import lla.output.words", "core/types imports output/words"),
        ("curvature/products.py", "from lla.landscape import grids", "curvature/products imports landscape/grids"),
        (
            "landscape/grids.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lla.curvature.products import x",
            "landscape/grids imports curvature/products",
        ),
        ("core/types.py", "from lla import shown", "core/types imports output/words"),
        ("landscape/rules.py", "from lla.landscape import grids", "landscape/grids imports landscape/rules"),
        ("landscape/grids.py", "from lla.core.types import y\nimport lla.landscape.rules", None),
    ],
)
def test_an_import_upward_sideways_or_in_a_circle_is_found(tmp_path, file, line, wrong):
    package = tmp_path / "lla"
    for name in ("core/types", "landscape/grids", "landscape/rules", "curvature/products", "output/words"):
        path = package / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("from lla.core import types\n" if name != "core/types" else "x = y = 1\n")
    (package / "landscape/grids.py").write_text("from lla.landscape.rules import add\n")
    (package / "__init__.pyi").write_text("from lla.output.words import words as shown\n")
    (package / file).write_text(line)
    found = list(wrong_ways(package, FLOORS))
    assert any(wrong in each for each in found) if wrong else not found, found


@pytest.mark.parametrize("module", sorted(ARROWS))
def test_packages_are_imported_only_where_they_are_needed(module):
    for name in IMPORTS[module]:
        allowed = OUTSIDE.get(name.split(".")[0])
        assert allowed is None or module.startswith(allowed), f"{module} imports {name}"


@pytest.mark.parametrize("module", sorted(ARROWS))
def test_no_other_door_leads_upward(module):
    path = PACKAGE / f"{module}.py"
    text = (path if path.exists() else PACKAGE / module / "__init__.py").read_text()
    assert module in DOORS or not re.search(r"import_module\(|__import__\(", text), f"{module} imports by a string"


def test_no_module_bears_the_name_of_a_public_function():
    """``import lla_jax.measures.sharpness`` would put the module in the place of the function."""
    for room in rooms_with_public_names():
        package = importlib.import_module(".".join(room.relative_to(ROOT).parts))
        objects = {name for name in dir(package) if not inspect.ismodule(getattr(package, name))}
        assert not objects & {path.stem for path in room.iterdir()}, room.name


FORMER = {
    "data": "Stream",
    "hosts": "start",
    "lanczos": "lanczos_step",
    "layers": "table",
    "operators": "given",
    "planes": "PlaneReport",
    "plotting": "surface",
    "runs": "merge",
    "spectral": "Density",
    "stochastic": "trace",
    "storage": "save",
}
"""Public modules that moved when the rooms were made, and a name of each."""


@pytest.mark.parametrize(("module", "name"), FORMER.items())
def test_a_former_module_path_goes_on_working_with_a_warning(module, name):
    sys.modules.pop(f"lla_jax.{module}", None)
    with pytest.warns(
        DeprecationWarning, match=rf"lla_jax\.{module} is now lla_jax\.\w+.* write lla\.{module}"
    ) as seen:
        found = importlib.import_module(f"lla_jax.{module}")
    assert seen[0].filename == importlib.__file__  # of the import, not of the package
    assert found is getattr(lla, module) is sys.modules[f"lla_jax.{module}"]
    assert hasattr(found, name)


def test_the_other_public_modules_stand_where_they_stood_and_an_unknown_one_is_not_found():
    elsewhere = {n for n in lla.__all__ if inspect.ismodule(m := getattr(lla, n)) and m.__name__ != f"lla_jax.{n}"}
    assert elsewhere == set(FORMER)
    for name in ("nonsense", "evaluate"):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"lla_jax.{name}")


def test_importing_the_package_imports_no_jax():
    code = "import sys, lla_jax; assert not {'jax', 'numpy', 'flax', 'torch', 'matplotlib'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_the_library_changes_no_configuration_and_loads_no_torch():
    code = (
        "import jax; before = dict(jax.config.values)\n"
        "import sys, lla_jax\n"
        "for name in lla_jax.__all__: getattr(lla_jax, name)\n"
        "assert dict(jax.config.values) == before\n"
        "assert not {'torch', 'equinox', 'optax', 'flax'} & sys.modules.keys(), sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def rooms_with_public_names():
    return sorted(path.parent for path in PACKAGE.rglob("__init__.pyi"))


@pytest.mark.parametrize("room", rooms_with_public_names(), ids=lambda room: room.name)
def test_a_stub_names_what_its_package_has(room):
    tree = ast.parse((room / "__init__.pyi").read_text())
    stub = {alias.asname for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    package = importlib.import_module(".".join(room.relative_to(ROOT).parts))
    assert stub == set(package.__all__) == set(dir(package))
    assert all(hasattr(package, name) for name in stub)
    modules = {path.stem for path in room.glob("*.py")}  # of one name Python would give the module, once it is imported
    assert not [name for name in stub & modules if not inspect.ismodule(getattr(package, name))]
    with pytest.raises(AttributeError, match="it has"):
        _ = package.nonsense


def public():
    """Names without an underscore that a module of a room defines or the package exports."""
    for name in lla.__all__:
        if not inspect.ismodule(item := getattr(lla, name)) and callable(item):
            yield name, item
    for module in sorted(ARROWS):
        if module.split("/")[0] in ("__init__", "__main__", "cli", "demo"):
            continue
        place = importlib.import_module(f"lla_jax.{module.replace('/', '.')}")
        for name, item in vars(place).items():
            own = getattr(item, "__module__", None) == place.__name__ and item.__name__ == name
            if own and not name.startswith("_") and callable(item):
                yield f"{module}.{name}", item


@pytest.mark.parametrize(("name", "item"), list(public()))
def test_public_names_are_documented_and_typed(name, item):
    assert inspect.getdoc(item), f"{name} has no docstring"
    if inspect.isfunction(item):
        signature = inspect.signature(item)
        untyped = [p.name for p in signature.parameters.values() if p.annotation is p.empty]
        assert not untyped, f"{name}: {untyped} have no type"
        assert signature.return_annotation is not signature.empty, f"{name} has no return type"


TESTS = sorted((ROOT / "tests").rglob("test_*.py"))
ROOMS_OF_TESTS = set().union(*FLOORS) | {"interop", "stale"}


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.relative_to(ROOT / "tests").with_suffix("").as_posix())
def test_tests_lie_in_rooms_and_import_no_other_test(path):
    """``tests/<room>/test_<concept>.py``; shared cases lie in modules that are not called ``test_``."""
    room = path.relative_to(ROOT / "tests").parts[0]
    assert room in ROOMS_OF_TESTS or path.parent == ROOT / "tests"
    others = [name for name in imports(path) if re.match(r"tests\.(\w+\.)*test_", name)]
    assert not others, f"{path} imports {others}: move what is shared to cases.py, conftest.py or helpers.py"


def test_files_stay_short():
    for path in PACKAGE.rglob("*.py"):
        lines = len(path.read_text().splitlines())
        assert lines <= 600, f"{path.name} has {lines} lines: is it two concepts?"


def test_the_library_neither_prints_nor_configures_nor_unpickles():
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] in ("cli", "demo"):
            continue
        for pattern in (r"\bprint\(", r"config\.update", r"allow_pickle=True", r"\bpickle\."):
            # what use_cpu_devices is asked for; the cache on disk that topologies.py turns off, and on again
            if path.name in ("cpus.py", "topologies.py") and pattern == r"config\.update":
                continue
            assert not re.search(pattern, path.read_text()), f"{path.name}: {pattern}"


@pytest.mark.parametrize("name", ["hessian", "ggn", "fisher", "from_linen", "from_nnx", "from_equinox"])
def test_shared_options_show_in_the_signature(name):
    shown = inspect.signature(getattr(lla, name)).parameters
    assert all(p.kind is not p.VAR_KEYWORD and p.annotation is not p.empty for p in shown.values())
    some = {"inputs": None, "per_example": True} if name.startswith("from_") else {"execution": lla.Execution()}
    assert {option: shown[option].default for option in some} == some


def test_the_options_of_evaluate_for_type_checkers_are_those_of_its_signature():
    from lla_jax.landscape.evaluation import Options

    options = [p.name for p in inspect.signature(lla.evaluate).parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert list(Options.__annotations__) == options


def explained_calls():
    """Every function and class that is a public name of the package, of its rooms, or of a module that is one."""
    for room in rooms_with_public_names():
        package = importlib.import_module(".".join(room.relative_to(ROOT).parts))
        for name in package.__all__:
            item = getattr(package, name)
            if callable(item) and not inspect.ismodule(item) and name not in FOR_ADAPTERS:
                yield f"{room.name}.{name}", item
    for module, names in DOCUMENTED.items():
        for name in names:
            yield f"{module}.{name}", getattr(getattr(lla, module), name)


FOR_ADAPTERS = ("Options", "UpdateRule", "static")
"""Types that are not called, and a helper for those who write adapters."""

DOCUMENTED = {
    "operators": ("given", "masked", "preconditioned", "dense", "categorical", "bernoulli", "gaussian", "poisson"),
    "lanczos": ("lanczos", "lanczos_step", "random"),
    "layers": ("table",),
    "hosts": ("start",),
}
"""Functions of public modules that are in no stub."""


@pytest.mark.parametrize(("name", "item"), list(explained_calls()))
def test_public_calls_that_do_not_fit_are_explained(name, item):
    """By the decorator ``explained``, the innermost one."""
    from lla_jax.core.signatures import CALLED, MisusedCall

    assert hasattr(item, "__explained__") or item in CALLED
    with pytest.raises(MisusedCall, match=r"^no_such_argument: \w+\(\) has no such argument"):
        item(no_such_argument=1)
