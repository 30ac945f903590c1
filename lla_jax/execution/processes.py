"""Several processes that work on one operator: started together, what they exchange, and what happens when one is lost.

The processes are those of ``jax.distributed``, one or more per machine. Each holds its own part of the data and its own
copy of the parameters; what passes between them is one sum per product. A process whose partner is killed ends within
half a minute: at its next product with an error that names the lost one, after ``on_partial`` had its chance; or, if it
is busy with something else or process 0 was lost, by jax itself.
"""

from __future__ import annotations

import atexit
import functools
import hashlib
import os
import socket
import sys
import threading
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lla_jax.core.types import PyTree
from lla_jax.execution import devices

HEARTBEAT_S = 10  # silence after which jax counts a process as lost
PROBE_S = 2.0  # for an answer of a process that may be gone
AXIS = "hosts"


class Lost(RuntimeError):
    """A process of the group is gone, so that nothing more can be summed over it."""


def start(
    coordinator: str | None = None,
    num: int | None = None,
    process: int | None = None,
    *,
    heartbeat: int = HEARTBEAT_S,
    **options: Any,
) -> None:
    """Join this process to a group: ``jax.distributed.initialize``, such that a lost process is soon noticed.

    To be called in every process before anything else of jax. Afterwards ``lla.hessian``, ``ggn`` and ``fisher`` take
    each process's own part of the data. An uncaught exception ends the process at once, without jax's wait for the
    others, which then end too: a restart continues from what ``on_partial`` saved.

    Args:
      coordinator: "address:port" of process 0. Under SLURM, Open MPI or on a TPU pod, jax finds all three by itself.
      num: processes in the group.
      process: the number of this one, from 0.
      heartbeat: seconds of silence after which a process counts as lost. A killed one is noticed at once at the next
        product; this is for machines that vanish.
      options: further ones of ``jax.distributed.initialize``, such as ``local_device_ids``.

    Raises:
      ValueError: only some of the three are given, or a number out of its range.
    """
    given = [x is not None for x in (coordinator, num, process)]
    if any(given) and not all(given):
        raise ValueError(
            f"coordinator, num, process: {coordinator!r}, {num!r}, {process!r} given; the rule is all three, or none "
            "where SLURM, Open MPI or a TPU pod knows them"
        )
    if num is not None and process is not None and not 0 <= process < num:
        raise ValueError(f"process: {process!r} given; the rule is 0 to {num - 1}, a number of its own for each")
    if not isinstance(heartbeat, int) or isinstance(heartbeat, bool) or heartbeat < 1:
        raise ValueError(f"heartbeat: {heartbeat!r} given; the rule is a positive number of whole seconds")
    jax.distributed.initialize(coordinator, num, process, heartbeat_timeout_seconds=heartbeat, **options)
    watch()


# --- what is exchanged


@functools.cache
def _mesh() -> Mesh:
    """(processes, devices of each): one device each, or all on a TPU, where a program runs on whole slices."""
    of: dict[int, list[Any]] = {}
    for device in jax.devices():
        of.setdefault(device.process_index, []).append(device)
    each = min(map(len, of.values())) if jax.default_backend() == "tpu" else 1
    return Mesh(np.array([of[p][:each] for p in sorted(of)]), (AXIS, "local"), axis_types=(AxisType.Auto,) * 2)


@functools.partial(jax.jit, static_argnames="mesh")
def _summed(tree: PyTree, *, mesh: Mesh) -> PyTree:
    found = jax.tree.map(lambda x: x.sum(0, dtype=x.dtype), tree)
    return jax.lax.with_sharding_constraint(found, NamedSharding(mesh, PartitionSpec()))


def total(tree: PyTree) -> PyTree:
    """The sum over all processes of trees of one structure, the same bits in each, on its first device.

    Raises:
      Lost: a process did not answer.
    """
    watch()
    return _total(tree)


def _total(tree: PyTree) -> PyTree:
    mesh = _mesh()
    own = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    split = NamedSharding(mesh, PartitionSpec(AXIS))

    def part(x: Any) -> jax.Array:
        x = jnp.asarray(x)[None]
        shape = (jax.process_count(), *x.shape[1:])
        return jax.make_array_from_single_device_arrays(shape, split, [jax.device_put(x, d) for d in own])

    try:
        found = jax.block_until_ready(_summed(jax.tree.map(part, tree), mesh=mesh))
    except Exception as error:  # jax gives it one of several types
        if devices.out_of_memory(error):
            raise
        _STATE["failed"] = True
        raise Lost(_who(wait=3.0)) from error
    return jax.tree.map(lambda x: x.addressable_data(0), found)


def gathered(numbers: Any) -> np.ndarray:
    """The uint32 numbers of every process, (processes, ...)."""
    numbers = np.asarray(numbers, np.uint32)
    table = np.zeros((jax.process_count(), *numbers.shape), np.uint32)
    table[jax.process_index()] = numbers
    return np.asarray(total(table))


def agree(**items: str) -> None:
    """Check that these texts are the same in all processes.

    Raises:
      ValueError: the first that is not, in every process.
    """
    if jax.process_count() == 1:
        return
    digests = [np.frombuffer(hashlib.blake2b(x.encode(), digest_size=8).digest(), np.uint32) for x in items.values()]
    table = gathered(np.stack(digests))
    for i, name in enumerate(items):
        if others := np.flatnonzero((table[:, i] != table[0, i]).any(-1)).tolist():
            raise ValueError(
                f"{name}: differ between the processes: process 0 has others than {others}; the rule is the same in "
                "all of them, and only the data are their own. For an operator of one process pass "
                'execution=lla.Execution(processes="own")'
            )


def combined(digest: str) -> str:
    """One fingerprint of what all processes have, in their order."""
    table = gathered(np.frombuffer(hashlib.blake2b(digest.encode(), digest_size=8).digest(), np.uint32))
    return hashlib.blake2b(table.tobytes(), digest_size=8).hexdigest()


def cut(rows: int) -> tuple[int, int]:
    """(number of this process's first row, rows of all processes)."""
    counts = gathered(rows).astype(np.int64)
    return int(counts[: jax.process_index()].sum()), int(counts.sum())


@jax.jit
def _checksum(tree: PyTree) -> jax.Array:
    bits = (jax.lax.bitcast_convert_type(x, jnp.uint32) for x in jax.tree.leaves(tree))
    return jnp.stack([x.sum(dtype=jnp.uint32) for x in bits])


def total_of(vector: PyTree, tree: PyTree) -> PyTree:
    """``total(tree)``, where all processes are to have the same ``vector``.

    Raises:
      ValueError: they have not: they were called with other arguments, or have come apart.
    """
    table = np.zeros((jax.process_count(), len(jax.tree.leaves(vector))), np.uint32)
    table[jax.process_index()] = np.asarray(_checksum(vector))
    table, found = total((table, tree))
    others = np.flatnonzero((np.asarray(table) != np.asarray(table)[0]).any(1)).tolist()
    if others:
        raise ValueError(
            f"v: process 0 multiplies another vector than {others}; the rule is the same calls with the same arguments "
            "and keys in all processes"
        )
    return found


def least(number: int) -> int:
    """The smallest of all processes' numbers of bytes."""
    return int(gathered(min(number >> 20, 2**32 - 1)).min()) << 20


# --- when one is lost

_STATE: dict[str, Any] = {"failed": False}


def watch() -> None:
    """Learn where the others listen, and end at once where one of them is lost. Does its work once."""
    if "peers" in _STATE or jax.process_count() == 1:
        return
    _STATE["peers"] = {}
    listener, address = _listen()
    _STATE["listener"] = listener
    table = np.zeros((jax.process_count(), 3), np.uint32)
    if address is not None:
        table[jax.process_index()] = (*address, 1)
    for number, (host, port, known) in enumerate(np.asarray(_total(table)).tolist()):
        if known and number != jax.process_index():
            _STATE["peers"][number] = (socket.inet_ntoa(int(host).to_bytes(4, "big")), port)
    before = sys.excepthook

    def failing(*about: Any) -> None:
        _STATE["failed"] = True
        before(*about)

    sys.excepthook = failing
    atexit.register(_leave)  # runs before jax's own, which waits for all processes


def _listen() -> tuple[Any, tuple[int, int] | None]:
    """A socket that answers as long as this process lives, and (IPv4 address, port) by which the others reach it."""
    try:
        server = _coordinator()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:  # which way the packets would go; sends none
            probe.connect(server)
            host = probe.getsockname()[0]
        listener = socket.create_server((host, 0), backlog=128)
        return listener, (int.from_bytes(socket.inet_aton(host), "big"), listener.getsockname()[1])
    except (OSError, ValueError, ImportError):
        return None, None


def _coordinator() -> tuple[str, int]:
    from jax._src import distributed  # jax says it nowhere else, where it found the address by itself

    address = getattr(distributed.global_state, "coordinator_address", None) or "127.0.0.1:1"
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _gone() -> list[int]:
    """The processes that do not answer."""
    missing: list[int] = []

    def ask(number: int, address: tuple[str, int]) -> None:
        try:
            socket.create_connection(address, timeout=PROBE_S).close()
        except OSError:
            missing.append(number)

    asked = [threading.Thread(target=ask, args=peer, daemon=True) for peer in _STATE["peers"].items()]
    for thread in asked:
        thread.start()
    for thread in asked:
        thread.join(PROBE_S + 1)
    return sorted(missing)


def _who(wait: float = 0.0) -> str:
    """In words, which processes are gone; looks again for ``wait`` seconds while all answer."""
    end = time.monotonic() + wait
    while not (missing := _gone()) and time.monotonic() < end:
        time.sleep(0.1)
    here = f"this is process {jax.process_index()} of {jax.process_count()}"
    if not missing:
        return f"the exchange between the processes failed, though all of them answer ({here})"
    where = ", ".join(f"process {p} of {jax.process_count()} ({_STATE['peers'][p][0]})" for p in missing)
    return f"lost {where}: ended by an error or a kill, or its machine or network failed ({here}); restart all of them"


def _leave() -> None:
    if _STATE["failed"]:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # jax would wait for the lost process until the heartbeat ends, and then abort
