"""Who may import whom, what importing the package costs, and that its public names are documented and typed."""

import ast
import inspect
import pathlib
import re
import subprocess
import sys

import pytest

import lla_jax as lla

ROOT = pathlib.Path(__file__).parent.parent
PACKAGE = ROOT / "lla_jax"
MODULES = [*sorted(p.stem for p in PACKAGE.glob("*.py") if p.stem not in ("__init__", "_version")), "demo"]

LEVELS = [
    {"_static"},
    {"_types"},
    {"_tree", "shards"},
    {"data", "lowering", "_files"},
    {"execution", "adapters", "normalization", "checkpoints", "checks", "_manifest"},
    {"equinox_models", "batch_stats", "kernels", "curvature", "eigenvectors", "chunk_store", "hosts"},
    {"evaluation", "products"},
    {"linear_operator", "planning"},
    {"assembly", "symmetry", "sketches", "in_memory", "stored"},
    {"models", "directions", "landscape", "operators", "lanczos"},
    {"krylov", "quadrature", "stochastic"},
    {"spectral"},
    {"_convexity"},
    {"measures", "layers", "planes"},
    {"storage", "_labels", "_words"},
    {"_scales"},
    {"_pictures"},
    {"_spectral_pictures"},
    {"plotting"},
    {"modes", "runs"},
    {"_options"},
    {"_terminal"},
    {"_curvature_run", "_store_run"},
    {"demo"},
    {"cli"},
    {"__main__"},
]
"""A module imports only from levels above it (to its left in the design)."""

OUTSIDE = {
    "optax": {"directions", "demo"},
    "flax": {"models", "adapters", "demo"},
    "equinox": {"equinox_models", "normalization"},
    "matplotlib": {"plotting", "_pictures", "_spectral_pictures", "_scales"},
    "tqdm": {"_terminal", "demo"},
    "tyro": {"cli", "_options"},
    "torch": set(),
    "lla_torch": set(),
}
"""Which modules may import these packages."""


def sources(module):
    path = PACKAGE / module
    return sorted(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def imports(module):
    """Names a module imports: "lla_jax.x" for its own package's, the top level otherwise."""
    for path in sources(module):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                assert node.level == 0, f"{path}: relative import"
                if node.module == "lla_jax":
                    yield from (f"lla_jax.{alias.name}" for alias in node.names)
                else:
                    yield node.module


def level(name):
    return next(i for i, names in enumerate(LEVELS) if name in names)


def test_every_module_has_a_level():
    assert sorted(name for names in LEVELS for name in names) == sorted(MODULES)


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_from_its_left(module):
    for name in imports(module):
        if not name.startswith("lla_jax."):
            continue
        other = name.split(".")[1]
        if other in ("_version", "__version__") or other == module or module in ("cli", "demo"):
            continue
        assert level(other) < level(module), f"{module} imports {other}"


@pytest.mark.parametrize("module", MODULES)
def test_packages_are_imported_only_where_they_are_needed(module):
    for name in imports(module):
        allowed = OUTSIDE.get(name.split(".")[0])
        assert allowed is None or module in allowed, f"{module} imports {name}"


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


def test_the_stub_names_what_the_package_has():
    tree = ast.parse((PACKAGE / "__init__.pyi").read_text())
    stub = {alias.asname for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert stub == set(lla.__all__)
    assert set(dir(lla)) == set(lla.__all__)
    with pytest.raises(AttributeError, match="it has"):
        _ = lla.nonsense


def public():
    for name in lla.__all__:
        item = getattr(lla, name)
        if inspect.ismodule(item):
            for inner, value in vars(item).items():
                own = getattr(value, "__module__", None) == item.__name__
                if own and not inner.startswith("_") and callable(value):
                    yield f"{name}.{inner}", value
        elif callable(item):
            yield name, item


@pytest.mark.parametrize(("name", "item"), list(public()))
def test_public_names_are_documented_and_typed(name, item):
    assert inspect.getdoc(item), f"{name} has no docstring"
    if inspect.isfunction(item):
        signature = inspect.signature(item)
        untyped = [p.name for p in signature.parameters.values() if p.annotation is p.empty]
        assert not untyped, f"{name}: {untyped} have no type"
        assert signature.return_annotation is not signature.empty, f"{name} has no return type"


def test_files_stay_short():
    for path in PACKAGE.rglob("*.py"):
        lines = len(path.read_text().splitlines())
        assert lines <= 600, f"{path.name} has {lines} lines: is it two concepts?"


def test_the_library_neither_prints_nor_configures_nor_unpickles():
    for module in MODULES:
        if module in ("cli", "demo", "_terminal"):
            continue
        for path in sources(module):
            for pattern in (r"\bprint\(", r"config\.update", r"allow_pickle=True", r"\bpickle\."):
                assert not re.search(pattern, path.read_text()), f"{path.name}: {pattern}"
