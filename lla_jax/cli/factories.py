"""Says what the factory of a problem should have returned, or been, in place of what it is.

This module imports no jax until a factory has returned something.
"""

from __future__ import annotations

import ast
import inspect
from pathlib import Path
from typing import Any

PROBLEM = "lla_jax.Problem(loss, params, data)"


def describe(returned: Any) -> str:
    """What a factory returned in place of a problem, and what to write in it, in words."""
    from lla_jax.core.foreign import LIBRARIES, library_of

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
    converted = type(returned).__module__ == "lla_torch.net"
    if library := LIBRARIES.get("torch" if converted else library_of(returned)):
        remedy = f"loss={library.loss}, params={library.params}".replace("lla.", "lla_jax.")
        if library.name == "PyTorch":
            remedy = "return lla_torch.problem(module, criterion, loader)"
        what = "a converted network" if converted else f"of {library.name}"
        return f"{kind}, {what}; it must return {PROBLEM}: {remedy}"
    return f"{kind}; it must return {PROBLEM}"


def functions_in(path: Path) -> list[str]:
    """The names of the functions in a Python file that can be called without arguments; the file is not run."""
    try:
        body = ast.parse(path.read_text(encoding="utf-8")).body
    except (OSError, SyntaxError, ValueError):
        return []
    functions = [node for node in body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    return [f.name for f in functions if len(f.args.args) == len(f.args.defaults) and None not in f.args.kw_defaults]
