"""Lets functions accept, for one more release, old keywords that are fields of ``Execution`` now."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from lla_jax.core.arguments import Misuse
from lla_jax.core.types import Execution

P = ParamSpec("P")
R = TypeVar("R")


def accept_old(*names: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator for functions that take ``execution``: they also accept the named fields of it as keywords.

    Such a keyword gives a DeprecationWarning at the line that calls the function, and together with ``execution`` a
    ValueError.
    """

    def decorate(f: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(f)
        def call(*args: Any, **options: Any) -> R:
            old = {name: options.pop(name) for name in names if name in options}
            for name, value in old.items():
                new = f"execution=lla.Execution({name}={value!r})"
                if "execution" in options:
                    raise Misuse(name, f"{value!r} given together with execution; pass only one of them, as {new}")
                warnings.warn(f"{name}: use {new}", DeprecationWarning, stacklevel=2)
            if old:
                options["execution"] = Execution(**old)
            return f(*args, **options)

        return call

    return decorate
