"""The imports between the modules of a package, read from its source, and those that break the rule of its floors."""

import ast
import graphlib
import re


def modules(package):
    """{"room/module": names of all modules and objects that it imports}."""
    names = {}
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).with_suffix("").as_posix()
        names[name.removesuffix("/__init__") if "/" in name else name] = list(imports(path))
    return names


def imports(path):
    """Names of all modules and objects that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def places(package, imported):
    """{module: modules of the package that it imports}; a public name stands for the module that defines it.

    ``imported`` is what ``modules`` returns.
    """
    stub = package / "__init__.pyi"
    lines = re.findall(r"^from (\S+) import (\w+) as (\w+)$", stub.read_text() if stub.exists() else "", re.M)
    public = {f"{package.name}.{name}": f"{source}.{given}" for source, given, name in lines}
    arrows = {name: set() for name in imported}
    for name, names in imported.items():
        for other in names:
            steps = public.get(other, other).split(".")
            if steps[0] == package.name:
                tries = ("/".join(steps[1:end]) for end in range(len(steps), 1, -1))
                arrows[name].add(next((place for place in tries if place in imported), "__init__"))
    return arrows


def wrong_ways(package, floors):
    """Imports that go upward, sideways or in a circle, in words."""
    arrows = places(package, modules(package))
    room = {name: name.split("/")[0] for name in arrows}
    floor = {inner: i for i, rooms in enumerate(floors) for inner in rooms}
    for name, others in arrows.items():
        for other in others:
            if room[other] != room[name] and floor[room[other]] >= floor[room[name]]:
                yield f"{name} imports {other}"
    try:
        graphlib.TopologicalSorter({name: others - {name} for name, others in arrows.items()}).prepare()
    except graphlib.CycleError as error:
        yield " imports ".join(reversed(error.args[1]))
