"""Runs groups of processes that work on one operator: starts them, adds up their sums, and notices a lost process.

The processes are those of ``jax.distributed``, one or more per machine. Each holds its own part of the data and its own
copy of the parameters; they exchange one sum per product. If a process is killed, the others end within half a minute:
at their next product, by an error that names the lost process, after which ``on_partial`` is called; or, if they are
busy with something else or process 0 is lost, by jax itself.
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

from lla_jax.core.arguments import Misuse, check_integer, parameters
from lla_jax.core.signatures import explained, no_such_argument
from lla_jax.core.types import PyTree
from lla_jax.execution import devices

HEARTBEAT_S = 10  # silence after which jax counts a process as lost
ANSWER_S = 2.0  # time to answer for a process that may be lost
AXIS = "hosts"
RENAMED = ("coordinator_address", "num_processes", "process_id", "heartbeat_timeout_seconds")
"""Arguments of ``jax.distributed.initialize`` that have other names in ``start``."""


class Lost(RuntimeError):
    """The error for a lost process of the group, without which sums over all processes are impossible."""


@explained
def start(
    coordinator: str | None = None,
    num: int | None = None,
    process: int | None = None,
    *,
    heartbeat: int = HEARTBEAT_S,
    **options: Any,
) -> None:
    """Join this process to a group by ``jax.distributed.initialize``, such that a lost process is noticed soon.

    Call it in every process before anything else of jax. Afterwards ``lla.hessian``, ``ggn`` and ``fisher`` take each
    process's own part of the data. An uncaught exception ends the process at once, without jax's wait for the other
    processes, and these then end too: a restart continues from the result that ``on_partial`` saved.

    Args:
      coordinator: "address:port" of process 0. Under SLURM, Open MPI or on a TPU pod, leave out ``coordinator``,
        ``num`` and ``process``: jax finds them by itself.
      num: processes in the group.
      process: the index of this process, from 0.
      heartbeat: seconds of silence after which a process counts as lost. It matters for machines that vanish: a killed
        process is noticed at the next product.
      options: further options of ``jax.distributed.initialize``, such as ``local_device_ids``.

    Raises:
      ValueError: only some of ``coordinator``, ``num`` and ``process`` are given, or a number is out of its range.
    """
    further = [name for name in parameters(jax.distributed.initialize) if name not in RENAMED]
    if unknown := [name for name in options if name not in further]:
        raise no_such_argument(unknown[0], "start", ["coordinator", "num", "process", "heartbeat", *further])
    given = [x is not None for x in (coordinator, num, process)]
    if any(given) and not all(given):
        raise ValueError(
            f"coordinator, num, process: {coordinator!r}, {num!r}, {process!r} given; pass all three, or none if "
            "SLURM, Open MPI or a TPU pod provides them"
        )
    if num is not None and process is not None:
        check_integer("num", num, remedy="the number of processes")
        check_integer("process", process, least=0, most=num - 1, remedy="another one for every process")
    check_integer("heartbeat", heartbeat, remedy="the seconds of silence, such as 10")
    jax.distributed.initialize(coordinator, num, process, heartbeat_timeout_seconds=heartbeat, **options)
    watch()


# --- sums over all processes


@functools.cache
def _mesh() -> Mesh:
    """A mesh (processes, devices per process): one device of each, or on TPUs all, as a program needs a whole slice."""
    devices_of: dict[int, list[Any]] = {}
    for device in jax.devices():
        devices_of.setdefault(device.process_index, []).append(device)
    num = min(map(len, devices_of.values())) if jax.default_backend() == "tpu" else 1
    table = np.array([devices_of[process][:num] for process in sorted(devices_of)])
    return Mesh(table, (AXIS, "local"), axis_types=(AxisType.Auto,) * 2)


@functools.partial(jax.jit, static_argnames="mesh")
def _sum_rows(tree: PyTree, *, mesh: Mesh) -> PyTree:
    sums = jax.tree.map(lambda x: x.sum(0, dtype=x.dtype), tree)
    return jax.lax.with_sharding_constraint(sums, NamedSharding(mesh, PartitionSpec()))


def total(tree: PyTree) -> PyTree:
    """Add up the trees of all processes, which have one structure; each gets the same bits, on its first device.

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
        sums = jax.block_until_ready(_sum_rows(jax.tree.map(part, tree), mesh=mesh))
    except Exception as error:  # jax raises one of several types
        if devices.is_out_of_memory(error):
            raise
        _STATE["failed"] = True
        raise Lost(_describe_loss(wait=3.0)) from error
    return jax.tree.map(lambda x: x.addressable_data(0), sums)


def gather(numbers: Any) -> np.ndarray:
    """Collect the numbers of all processes, as uint32, in an array (processes, ...) that every process gets."""
    numbers = np.asarray(numbers, np.uint32)
    table = np.zeros((jax.process_count(), *numbers.shape), np.uint32)
    table[jax.process_index()] = numbers
    return np.asarray(total(table))


def agree(**items: str) -> None:
    """Raise an error, in every process, unless each text is the same in all processes.

    Args:
      items: the texts, by the names of the arguments that they describe.

    Raises:
      ValueError: a text differs; the message names the first such argument.
    """
    if jax.process_count() == 1:
        return
    digests = [np.frombuffer(hashlib.blake2b(x.encode(), digest_size=8).digest(), np.uint32) for x in items.values()]
    table = gather(np.stack(digests))
    for i, name in enumerate(items):
        if others := np.flatnonzero((table[:, i] != table[0, i]).any(-1)).tolist():
            raise Misuse(
                name,
                f"differ between the processes: process 0 has others than {others}; they must be the same in all "
                "processes, and only the data may differ. For an operator of one process pass "
                'execution=lla.Execution(processes="own")',
            )


def combine_digests(digest: str) -> str:
    """Make one fingerprint of the fingerprints of all processes, in the order of the processes.

    That of what was given, and where it differs in any process that of what jax computes with, behind a "~".
    """
    parts = digest.split("~")
    hashes = [hashlib.blake2b(part.encode(), digest_size=8).digest() for part in (parts[0], parts[-1])]
    table = gather(np.stack([np.frombuffer(each, np.uint32) for each in hashes]))
    given, narrowed = (hashlib.blake2b(table[:, i].tobytes(), digest_size=8).hexdigest() for i in (0, 1))
    return given if given == narrowed else f"{given}~{narrowed}"


def locate_rows(rows: int) -> tuple[int, int]:
    """(index of this process's first row among those of all processes, number of rows of all processes).

    Args:
      rows: number of rows of this process.
    """
    counts = gather(rows).astype(np.int64)
    return int(counts[: jax.process_index()].sum()), int(counts.sum())


@jax.jit
def _checksum(tree: PyTree) -> jax.Array:
    bits = (jax.lax.bitcast_convert_type(x, jnp.uint32) for x in jax.tree.leaves(tree))
    return jnp.stack([x.sum(dtype=jnp.uint32) for x in bits])


def total_for(vector: PyTree, tree: PyTree) -> PyTree:
    """``total(tree)``, with a check in the same exchange that all processes have the same bits of ``vector``.

    Raises:
      ValueError: the vectors differ, because the processes made different calls.
      Lost: a process did not answer.
    """
    table = np.zeros((jax.process_count(), len(jax.tree.leaves(vector))), np.uint32)
    table[jax.process_index()] = np.asarray(_checksum(vector))
    table, sums = total((table, tree))
    others = np.flatnonzero((np.asarray(table) != np.asarray(table)[0]).any(1)).tolist()
    if others:
        raise Misuse(
            "v",
            f"process 0 multiplies another vector than {others}; make the same calls with the same arguments and keys "
            "in all processes",
        )
    return sums


def minimum(number: int) -> int:
    """The least of the numbers of bytes that the processes give, rounded down to whole MiB."""
    return int(gather(min(number >> 20, 2**32 - 1)).min()) << 20


# --- loss of a process

_STATE: dict[str, Any] = {"failed": False}


def watch() -> None:
    """Exchange addresses with the other processes, and make this one exit at once after a loss or an uncaught error.

    All processes must call it together; further calls, and calls in a single process, do nothing.
    """
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

    def note_failure(*error: Any) -> None:
        _STATE["failed"] = True
        before(*error)

    sys.excepthook = note_failure
    atexit.register(_leave)  # runs before jax's own, which waits for all processes


def _listen() -> tuple[Any, tuple[int, int] | None]:
    """A socket that answers as long as this process lives, and its (IPv4 address, port); None for both if it fails."""
    try:
        server = _coordinator()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:  # finds this host's address, and sends nothing
            route.connect(server)
            host = route.getsockname()[0]
        listener = socket.create_server((host, 0), backlog=128)
        return listener, (int.from_bytes(socket.inet_aton(host), "big"), listener.getsockname()[1])
    except (OSError, ValueError, ImportError):
        return None, None


def _coordinator() -> tuple[str, int]:
    from jax._src import distributed  # jax tells the address nowhere else, if it found it by itself

    address = getattr(distributed.global_state, "coordinator_address", None) or "127.0.0.1:1"
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _silent_processes() -> list[int]:
    """The indices of the processes that do not answer within ``ANSWER_S``."""
    missing: list[int] = []

    def ask(number: int, address: tuple[str, int]) -> None:
        try:
            socket.create_connection(address, timeout=ANSWER_S).close()
        except OSError:
            missing.append(number)

    asked = [threading.Thread(target=ask, args=peer, daemon=True) for peer in _STATE["peers"].items()]
    for thread in asked:
        thread.start()
    for thread in asked:
        thread.join(ANSWER_S + 1)
    return sorted(missing)


def _describe_loss(wait: float = 0.0) -> str:
    """The message that names the lost processes; while all processes answer, ask again for up to ``wait`` seconds."""
    end = time.monotonic() + wait
    while not (missing := _silent_processes()) and time.monotonic() < end:
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
