"""What adapters of other libraries need, as lla_torch does: errors and warnings in the words of this library."""

from lla_jax.core.arguments import Misuse, check_flag, check_integer, misuse, show_value, single_key, warn_caller
from lla_jax.core.called import ask, explain, passes, show_shapes
from lla_jax.core.foreign import library_of
from lla_jax.core.interrupts import prompt_interrupts
from lla_jax.core.patterns import expand, number_in
from lla_jax.core.signatures import explained
from lla_jax.core.static import ByValue
from lla_jax.core.text import first_line

__all__ = [
    "ByValue",
    "Misuse",
    "ask",
    "check_flag",
    "check_integer",
    "expand",
    "explain",
    "explained",
    "first_line",
    "library_of",
    "misuse",
    "number_in",
    "passes",
    "prompt_interrupts",
    "show_shapes",
    "show_value",
    "single_key",
    "warn_caller",
]
