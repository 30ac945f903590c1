"""Gives jax one CPU device per core, over which the points of a landscape are split: ``use_cpu_devices``.

jax starts with one CPU device, whose cores work together on one point after another.
"""

from __future__ import annotations

import functools
import logging
import os
import re

import jax

from lla_jax.core.arguments import Misuse, check_integer, misuse
from lla_jax.core.cores import DEVICE_COUNT, count_cores
from lla_jax.core.signatures import explained

log = logging.getLogger("lla_jax")


@explained
def use_cpu_devices(num: int | None = None) -> int:
    """Give jax one CPU device per core, for landscapes on a CPU; call it before jax computes anything.

    It sets ``jax_num_cpu_devices`` in jax's configuration, for the whole process, and starts no device. Devices of
    other kinds stay the default where there are some. Where ``XLA_FLAGS`` or the configuration has a number already,
    that number stays. The command line has this layout by itself.

    Args:
      num: number of devices; by default the cores that the process may use.

    Returns:
      The number of CPU devices that jax has now, or will have.

    Raises:
      ValueError: jax has started with another number; ``num`` is not the number in ``XLA_FLAGS`` or the configuration.

    Example:
      >>> import lla_jax as lla
      >>> lla.use_cpu_devices()
      2
    """
    if num is not None:
        check_integer("num", num, remedy="such as 4; or leave it out")
    if (there := _configured()) is not None:
        source, number = there
        if num not in (None, number):
            raise misuse("num", num, f"{number}, which {source} has already; leave it out, or change that")
        return number
    wanted = num or count_cores()
    try:
        jax.config.update("jax_num_cpu_devices", wanted)
    except RuntimeError as error:  # jax has started
        number = len(jax.local_devices(backend="cpu"))
        if number == wanted:
            return number
        raise Misuse(
            "num",
            f"{wanted} CPU devices are wanted, but jax has computed something and started with {number}; call "
            "lla.use_cpu_devices() right after the imports, before any array of jax is made",
        ) from error
    return wanted


def _configured() -> tuple[str, int] | None:
    """(where it is set, number of CPU devices), if that was set before; of two the configuration holds."""
    if (number := jax.config.values["jax_num_cpu_devices"]) >= 0:
        return "jax_num_cpu_devices", number
    flag = re.findall(rf"--{DEVICE_COUNT}=(\d+)", os.environ.get("XLA_FLAGS", ""))
    return ("XLA_FLAGS", int(flag[-1])) if flag else None


@functools.cache
def mention_one_device() -> None:
    """Log, once per process, that a landscape has one CPU device for several cores."""
    if (cores := count_cores()) > 1:
        log.info(
            "one CPU device for %d cores: a landscape is SLOWER; call lla.use_cpu_devices() before jax starts, for one "
            "device per core",
            cores,
        )
