"""Says what the factory of a problem should have returned, or been, in place of what it is.

This module imports no jax: an object can only be of a library that is imported already.
"""

from __future__ import annotations

import ast
import inspect
import sys
from pathlib import Path
from typing import Any

PROBLEM = "lla_jax.Problem(loss, params, data)"
MODELS = (
    ("torch", "torch.nn", "return lla_torch.problem(module, criterion, loader)"),
    ("Flax linen", "flax.linen", "loss=lla_jax.from_linen(module, variables, criterion), params=variables['params']"),
    ("Flax nnx", "flax.nnx", "loss=lla_jax.from_nnx(model, criterion), params=nnx.state(model, nnx.Param)"),
    (
        "Equinox",
        "equinox",
        "loss=lla_jax.from_equinox(model, criterion), params=eqx.filter(model, eqx.is_inexact_array)",
    ),
)
"""(library, module that has its class ``Module``, what to write) for models that are no problem yet."""


def describe(returned: Any) -> str:
    """What a factory returned in place of a problem, and what to write in it, in words."""
    kind = type(returned).__name__
    if returned is None:
        return f"None, as a function does without a return statement; it must return {PROBLEM}"
    if inspect.iscoroutine(returned):
        returned.close()  # it would warn that nobody awaited it
        return f"a coroutine; it must be a plain function, without async, that returns {PROBLEM}"
    if inspect.isgenerator(returned):
        return f"a generator; it must return, not yield, {PROBLEM}"
    if inspect.isclass(returned) or inspect.isroutine(returned):
        what = "class" if inspect.isclass(returned) else "function"
        return f"the {what} {getattr(returned, '__name__', kind)} itself; it must call it, and return {PROBLEM}"
    if isinstance(returned, tuple | list):
        return f"a {kind} of {len(returned)} things; it must return {PROBLEM}, its entries by name or in this order"
    if isinstance(returned, dict):
        return f"a dict; it must return {PROBLEM}, such as lla_jax.Problem(**that_dict)"
    for library, module, remedy in MODELS:
        base = getattr(sys.modules.get(module), "Module", None)
        if isinstance(base, type) and isinstance(returned, base):
            return f"{kind}, a module of {library}; it must return {PROBLEM}: {remedy}"
    if type(returned).__module__ == "lla_torch.net":
        return f"{kind}, a converted network; it must return {PROBLEM}: {MODELS[0][2]}"
    return f"{kind}; it must return {PROBLEM}"


def functions_in(path: Path) -> list[str]:
    """The names of the functions in a Python file that can be called without arguments; the file is not run."""
    try:
        body = ast.parse(path.read_text(encoding="utf-8")).body
    except (OSError, SyntaxError, ValueError):
        return []
    functions = [node for node in body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    return [f.name for f in functions if len(f.args.args) == len(f.args.defaults) and None not in f.args.kw_defaults]
