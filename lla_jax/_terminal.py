"""What a command says and where it writes: messages, progress, folders, and the environment that jax starts in.

Nothing here imports jax.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

Progress = Callable[[float, float | None], None]
_FORMAT = "{desc}: {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}{unit} [{elapsed}, {remaining} left]"


class Mistake(Exception):
    """Something the user can mend; shown as one message instead of a traceback."""


def prepare_jax(devices: int | None) -> None:
    """Sets what jax reads when it starts, leaving alone what the user has set."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lla_jax"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_force_host_platform_device_count" not in flags:
        count = f"--xla_force_host_platform_device_count={devices or _cores()}"
        os.environ["XLA_FLAGS"] = f"{flags} {count}".strip()


def _cores() -> int:
    """Cores this process may use; a container's quota counts, since affinity does not show it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, round(int(quota) / int(period))))
    return cores


def writable(folder: Path) -> Path:
    """The folder, made if needed, after a file could be written into it: found before computing, not after."""
    probe = folder / f".lla-jax-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise Mistake(f"--out {folder} is not a folder that can be written to: {error}") from error
    return folder


@contextlib.contextmanager
def bar(label: str, unit: str = "points", estimate: bool = False) -> Iterator[Progress]:
    """A progress bar as a callback ``progress(done, total)``; with ``estimate`` it announces the time of a long run."""
    from tqdm import tqdm

    # where no one watches, a line now and then is enough
    every = 0.2 if sys.stderr.isatty() else 10.0
    began: tuple[float, float] | None = None
    announced = not estimate
    with tqdm(desc=label, unit=f" {unit}", mininterval=every, bar_format=_FORMAT, dynamic_ncols=True) as shown:

        def progress(done: float, total: float | None) -> None:
            nonlocal began, announced
            shown.total = total
            shown.update(round(done) - shown.n)
            if announced or not total:
                return
            now = time.monotonic()
            if began is None:  # the first chunk also compiled, and says nothing about the others
                began = now, done
                return
            seconds, points = now - began[0], done - began[1]
            if seconds > 1 and points > 0:
                announced = True
                left = (total - done) * seconds / points
                if left > 10:
                    say(f"expected time: about {duration(left)} for the other {total - done:.0f} {unit}")

        yield progress


def duration(seconds: float) -> str:
    """A time in the unit in which it is easily read."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings as one line each, without the source line that means nothing to the user of a command."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: say(f"warning: {message}")
        yield


def where(error: BaseException) -> str:
    """An error of the user's code in a line: what, and where it was raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({frame.filename}:{frame.lineno})"


def say(text: str) -> None:
    """A message to the user on the error stream, so that the output has results only."""
    from tqdm import tqdm

    tqdm.write(f"lla-jax: {text}", sys.stderr)  # above a progress bar, if there is one
