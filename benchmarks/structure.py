"""Claim: the source reads as rooms. Counts of its structure, of any revisions side by side; the standard library only.

    python benchmarks/structure.py [REVISION ...]

Without revisions, the working tree. Counted in ``lla_jax`` and ``lla_torch``, tests and benchmarks apart.
"""

from __future__ import annotations

import ast
import io
import pathlib
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = {"lla_jax": "lla_jax", "lla_torch": "interop/lla_torch"}
MANY = 8  # parameters that a function may have before it is counted
Module = tuple[str, ...]


def sources(root: pathlib.Path) -> dict[Module, ast.Module]:
    """{("lla_jax", "core", "types"): its tree}; a package under its own name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted((root / folder).rglob("*.py")):
            inner = path.relative_to(root / folder).with_suffix("").parts
            found[(package, *inner[: -1 if inner[-1] == "__init__" else None])] = ast.parse(path.read_text())
    return found


def arrows(trees: dict[Module, ast.Module]) -> dict[Module, set[Module]]:
    """{module: modules of the two packages that it imports}, imports inside functions included."""
    found: dict[Module, set[Module]] = {name: set() for name in trees}
    for name, tree in trees.items():
        for node in ast.walk(tree):
            paths = []
            if isinstance(node, ast.Import):
                paths = [alias.name.split(".") for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                paths = [[*node.module.split("."), alias.name] for alias in node.names]
            for path in paths:
                known = [other for end in range(len(path), 0, -1) if (other := tuple(path[:end])) in trees]
                found[name] |= set(known[:1]) - {name}
    return found


def levels(edges: dict[Module, set[Module]]) -> int:
    """Modules on the longest way down the imports, a package's lazy front door left out."""
    depth: dict[Module, int] = {}

    def below(name: Module, above: tuple[Module, ...]) -> int:
        if name not in depth:
            others = [other for other in edges[name] if other not in above and len(other) > 1]
            depth[name] = 1 + max((below(other, (*above, name)) for other in others), default=0)
        return depth[name]

    return max(below(name, ()) for name in edges)


def functions(trees: dict[Module, ast.Module]) -> Iterator[tuple[Module, ast.FunctionDef]]:
    """Every function and method."""
    for name, tree in trees.items():
        yield from ((name, node) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def parameters(function: ast.FunctionDef) -> int:
    """How many it has, ``self`` left out."""
    named = [a.arg for a in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
    return len([name for name in named if name not in ("self", "cls")])


def length(function: ast.FunctionDef) -> int:
    """Lines of the body without docstring, blank lines and comments left in."""
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (body[-1].end_lineno or 0) - function.lineno + 1 if body else 1


def own(function: ast.FunctionDef) -> str:
    """Its text without docstring, and without the functions inside it, which are counted apart."""
    inner = {id(n) for f in ast.walk(function) if f is not function and isinstance(f, ast.FunctionDef) for n in f.body}
    kept = [n for n in function.body if id(n) not in inner]
    kept = [n for n in kept if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
    return "\n".join(ast.unparse(n) for n in kept if not isinstance(n, ast.FunctionDef))


RECIPE = re.compile(r"recipe|fingerprint|manifest|\bbefore\b|\bthen\b|\bthere\b")


def compares_recipes(function: ast.FunctionDef) -> bool:
    """Whether it holds entries of two recipes against each other by itself."""
    tree = ast.parse(own(function))
    for node in ast.walk(tree):
        sides = []
        if isinstance(node, ast.Compare) and isinstance(node.ops[0], ast.Eq | ast.NotEq):
            sides = [node.left, node.comparators[0]]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("isclose"):
            sides = node.args[:2]
        texts = [ast.unparse(side) for side in sides if not isinstance(side, ast.Constant)]
        if len(texts) == 2 and any(RECIPE.search(text) for text in texts):
            return True
    return False


def batches_vectors(function: ast.FunctionDef) -> bool:
    """Whether it takes an operator's product with several vectors in a loop or a batch of its own."""
    for node in ast.walk(ast.parse(own(function))):
        text = ast.unparse(node) if isinstance(node, ast.ListComp | ast.GeneratorExp | ast.For) else ""
        if re.search(r"\b(H|self\.H|operator)\.(mv|product)\(", text):
            return True
        mapped = isinstance(node, ast.Call) and re.search(r"(^|\.)(vmap|map)$", ast.unparse(node.func))
        if mapped and any(re.search(r"\b\w+\.(mv|product)$", ast.unparse(argument)) for argument in node.args):
            return True
    return False


def counts(root: pathlib.Path) -> dict[str, float]:
    """The rows of the table."""
    trees = sources(root)
    edges = arrows(trees)
    folder = {name: name[:2] if len(name) > 2 else name[:1] for name in trees}
    between = {(folder[a], folder[b]) for a, others in edges.items() for b in others if folder[a] != folder[b]}
    every = list(functions(trees))
    lengths = sorted(length(f) for _, f in every)
    outside = [f for name, f in every if name[1:] != ("core", "recipes")]
    return {
        "modules at the top level of lla_jax": sum(
            len(n) == 2 and not any(len(m) > 2 and m[:2] == n for m in trees) for n in trees if n[0] == "lla_jax"
        ),
        "modules": len(trees),
        "import levels": levels({k: v for k, v in edges.items() if k[0] == "lla_jax"}),
        "arrows between folders": len(between),
        "functions that compare recipes themselves": sum(map(compares_recipes, outside)),
        "functions that batch products with vectors themselves": sum(map(batches_vectors, outside)),
        f"functions with more than {MANY} parameters": sum(parameters(f) > MANY for _, f in every),
        "functions": len(every),
        "median length of a function, lines": statistics.median(lengths),
        "95th percentile": lengths[int(0.95 * (len(lengths) - 1))],
    }


def main() -> None:
    """Print the table."""
    columns: dict[str, dict[str, float]] = {}
    for revision in sys.argv[1:]:
        packed = subprocess.run(
            ["git", "archive", revision, *PACKAGES.values()], cwd=ROOT, check=True, capture_output=True
        )
        with tempfile.TemporaryDirectory() as folder:
            with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
                archive.extractall(folder, filter="data")
            columns[revision[:9]] = counts(pathlib.Path(folder))
    columns = columns or {"working tree": counts(ROOT)}
    print("| |" + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for row in next(iter(columns.values())):
        print(f"| {row} | " + " | ".join(f"{column[row]:g}" for column in columns.values()) + " |")


if __name__ == "__main__":
    main()
