"""Says to how many bits a device rounds float32 numbers before it multiplies matrices.

A CPU multiplies float32 as it is. At jax's own default a TPU rounds both operands to bfloat16 (8 significant bits, one
pass), and a GPU since Ampere to TensorFloat-32 (11 bits); "high" takes three passes of bfloat16 on a TPU (16 bits), and
"highest" six, which are float32. Convolutions are matrix products too. An operation that names a precision of its own
(``jnp.dot(..., precision=...)``) keeps it.

Reference: ``jax.lax.Precision`` in the documentation of jax.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, ParamSpec, TypeVar

import jax
import numpy as np

from lla_jax.core.arguments import check_choice
from lla_jax.core.jaxprs import equations

P = ParamSpec("P")
R = TypeVar("R")

Precision = Literal["highest", "high", "default"]
PRECISIONS: tuple[Precision, ...] = ("highest", "high", "default")

BITS = {"float32": 24, "bfloat16_3x": 16, "tensorfloat32": 11, "bfloat16": 8}
"""Significant bits of a float32 operand, by the format to which it is rounded."""

EXACT = "float32"  # the format that rounds nothing
PRODUCTS = ("dot_general", "conv_general_dilated", "ragged_dot", "ragged_dot_general")

_ON_TPU = {"default": "bfloat16", "high": "bfloat16_3x", "highest": EXACT}
_ON_GPU = {"default": "tensorfloat32", "high": "tensorfloat32", "highest": EXACT}
_SAME = {"none": "default", "fastest": "default", "bfloat16": "default", "bfloat16_3x": "high"} | {
    "tensorfloat32": "high",
    "float32": "highest",
}
"""Other names that jax has for the three."""

TENSOR_CORES = 8.0  # compute capability of the first GPUs with TensorFloat-32


def check_precision(precision: Any) -> None:
    """Raise a ValueError that lists the three values unless it is one of them."""
    check_choice("execution.precision", precision, PRECISIONS)


def at_highest(f: Callable[P, R]) -> Callable[P, R]:
    """A decorator for functions that jax traces: every matrix product in them is at full precision."""

    @functools.wraps(f)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.default_matmul_precision("highest"):
            return f(*args, **kwargs)

    return run


def format_on(platform: str, precision: Any) -> str:
    """The format to which a platform rounds float32 operands: a key of ``BITS``, or an algorithm that jax may know.

    An unknown platform is taken for a TPU, which rounds most. ``precision`` may come from a recipe of before, which has
    whatever name ``jax_default_matmul_precision`` had.
    """
    if platform == "cpu":
        return EXACT
    name = str(precision).lower()
    name = _SAME.get(name, name)
    known = _ON_GPU if platform in ("gpu", "cuda", "rocm") else _ON_TPU
    return known.get(name) or _format_of_algorithm(name)


def format_of(device: Any, precision: Any) -> str:
    """The same for a device: GPUs before Ampere have no TensorFloat-32."""
    found = format_on(device.platform, precision)
    return EXACT if found == "tensorfloat32" and not _has_tensor_cores(device) else found


def _has_tensor_cores(device: Any) -> bool:
    try:
        return float(getattr(device, "compute_capability", "")) >= TENSOR_CORES
    except ValueError:  # not told, or of another maker
        return True


def _format_of_algorithm(name: str) -> str:
    """The format of a ``jax.lax.DotAlgorithmPreset``, by its name; the coarsest for a name that is unknown."""
    for start, rounded in (("bf16_bf16_f32", "bfloat16"), ("tf32_tf32_f32", "tensorfloat32")):
        if name.startswith(start):
            return {"": rounded, "_x3": "bfloat16_3x" if rounded == "bfloat16" else EXACT}.get(
                name.removeprefix(start), EXACT
            )
    return EXACT if name in ("f32_f32_f32", "f64_f64_f64") else "bfloat16"


def format_in(eqn: Any, device: Any) -> str | None:
    """The format to which a device rounds the operands of an equation; None unless it multiplies float32 numbers."""
    if eqn.primitive.name not in PRODUCTS:
        return None
    if not any(getattr(x.aval, "dtype", None) == np.float32 for x in eqn.invars[:2]):
        return None
    precision = eqn.params.get("precision")
    if isinstance(precision, tuple):  # one for each operand
        return coarser(*(format_of(device, each.name) for each in precision))
    if precision is None or isinstance(precision, jax.lax.Precision):
        return format_of(device, "default" if precision is None else precision.name)
    return _format_of_algorithm(getattr(precision, "name", str(precision)).lower())  # which a CPU follows too


def format_inside(jaxpr: Any, device: Any) -> str:
    """The coarsest format among all matrix products of a jaxpr, nested ones included."""
    return coarser(EXACT, *(found for eqn in equations(jaxpr) if (found := format_in(eqn, device))))


def coarser(*formats: str) -> str:
    """The format with the fewest bits."""
    return min(formats, key=lambda name: BITS.get(name, 0))


def rounded(x: Any, name: str) -> Any:
    """float32 numbers rounded to a format, to the nearest and to even."""
    return jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=BITS[name] - 1) if name != EXACT else x


def describe(precision: str, device: Any) -> dict[str, str]:
    """The entries of a recipe's "precision": the setting and, but for a CPU, the format of the operands."""
    operands = {} if device.platform == "cpu" else {"operands": format_of(device, precision)}
    return {"matmul": precision, **operands}


def of_before(recipe: Mapping[str, Any]) -> Mapping[str, Any]:
    """A recipe of a landscape with the format of the operands, which those of before left to jax and did not name."""
    entry, plan = recipe.get("precision"), recipe.get("plan")
    if not isinstance(entry, Mapping) or not isinstance(plan, Mapping) or "matmul" not in entry or "operands" in entry:
        return recipe
    return {**recipe, "precision": {**entry, "operands": format_on(str(plan.get("platform", "cpu")), entry["matmul"])}}


def eps_of(bits: int) -> float:
    """The distance of 1 from the next number of so many significant bits."""
    return 2.0 ** (1 - bits)
