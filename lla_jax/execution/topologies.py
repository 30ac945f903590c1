"""Compiles programs for slices of TPUs on a machine that has none, and says what they need and how long they take.

The compiler is the real one (libtpu, which ``pip install "jax[tpu]"`` brings); no TPU is needed, and nothing is run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from lla_jax._names import nearest
from lla_jax.core import interrupts
from lla_jax.core.arguments import Misuse
from lla_jax.core.tree import struct_of
from lla_jax.execution import devices, hlo
from lla_jax.execution.hlo import Collective

GIB = 2**30
SURE = 1.02  # a share of the roofline above it is no share: a number is wrong
_VARIABLES = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
"""Without these, libtpu asks the network for the machine that it is on, and lets one process in at a time."""


class Chip(NamedTuple):
    """One kind of TPU chip.

    ``flops`` and ``bandwidth`` are those of Google's pages on v5e, v5p and v6e; ``memory`` is what the compiler itself
    leaves to a program of the 16, 95 and 32 GB that these pages name. ``per_cycle`` follows from the matrix units that
    they count, 4 of 128 x 128 in each of v5e's 1 and v5p's 2 cores, and two operations for each entry; with ``flops``
    it gives the clock. For v6e they count 2 of 256 x 256, which would need 3.5 GHz: twice as many are taken, for a
    clock like v5p's, so that the times of v6e are the least certain.

    Args:
      memory: bytes of its main memory (HBM) that a program may use.
      flops: operations per second of products in bfloat16, at most.
      bandwidth: bytes per second of the main memory.
      links: bytes per second to other chips, one way over all links.
      per_cycle: operations per cycle of products in bfloat16, at most.
    """

    memory: int
    flops: float
    bandwidth: float
    links: float
    per_cycle: int

    @property
    def clock(self) -> float:
        """Cycles per second."""
        return self.flops / self.per_cycle


CHIPS = {
    "v5e": Chip(int(15.75 * GIB), 197e12, 819e9, 200e9, 2 * 4 * 128**2),
    "v5p": Chip(int(95.74 * GIB), 459e12, 2765e9, 600e9, 2 * 8 * 128**2),
    "v6e": Chip(int(31.25 * GIB), 918e12, 1638e9, 400e9, 2 * 4 * 256**2),
}

_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_DEEP = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8))


class Slice(NamedTuple):
    """A group of chips that is rented as one machine or several.

    Args:
      name: such as "tpu-v5e-8"; the number counts chips (in Google's names of v5p slices it counts cores, 2 a chip).
      chip: the kind of its chips.
      shape: the chips along each axis.
      host: the chips of one host, a virtual machine, along each axis.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    host: tuple[int, ...]

    @property
    def chips(self) -> int:
        """The number of chips."""
        return math.prod(self.shape)

    @property
    def hosts(self) -> int:
        """The number of hosts, each of which runs a process of its own."""
        return self.chips // math.prod(self.host)


MOST_ALONE = {"v5e": 8, "v5p": 4, "v6e": 8}  # chips of a slice of one host; larger ones have hosts of 4 chips


def _slices(chip: str, shapes: tuple[tuple[int, ...], ...], host: tuple[int, ...]) -> Iterator[Slice]:
    for shape in shapes:
        alone = math.prod(shape) <= MOST_ALONE[chip]
        here = shape if alone else host
        yield Slice(f"tpu-{chip}-{math.prod(shape)}", CHIPS[chip], shape, here)


SLICES = {
    each.name: each
    for each in (
        *_slices("v5e", _FLAT, (2, 2)),
        *_slices("v5p", _DEEP, (2, 2, 1)),
        *_slices("v6e", _FLAT, (2, 2)),
    )
}
"""The slices that can be had, by name."""


def slice_named(name: Any) -> Slice:
    """The slice with a name such as "tpu-v5e-8"; the prefix "tpu-" may be left out.

    Raises:
      ValueError: there is no such slice; or a GPU is asked for, whose compiler needs the GPU.
    """
    text = str(name).strip().lower()
    found = SLICES.get(text) or SLICES.get(f"tpu-{text}")
    if found is not None:
        return found
    if any(word in text for word in ("cuda", "gpu", "rocm", "h100", "h200", "a100", "nvidia")):
        raise Misuse(
            "topology",
            f"{name!r} given, and XLA compiles for a GPU only where one is; it must be a slice of TPUs, such as "
            "'tpu-v5e-8'. On a machine with the GPU lla-jax itself chooses the plan",
        )
    near = nearest(text, SLICES)
    rest = f"; did you mean {near!r}?" if near else ""
    sizes = "; ".join(
        f"tpu-{chip}-N with N = {', '.join(str(x.chips) for x in SLICES.values() if x.chip is CHIPS[chip])}"
        for chip in CHIPS
    )
    raise Misuse("topology", f"{name!r} given; it must be one of {sizes} (chips){rest}")


def has_compiler() -> bool:
    """Whether libtpu, the compiler for TPUs, is installed."""
    found = importlib.util.find_spec("libtpu")
    return found is not None and found.origin is not None  # a folder of that name has no origin


def devices_of(each: Slice, one_host: bool = False) -> tuple[Any, ...]:
    """The devices of a slice, for meshes that programs are compiled for; nothing can be put on them.

    Args:
      each: the slice.
      one_host: only the devices of one of its hosts, as a slice of their own.

    Raises:
      ValueError: libtpu is not installed, or refuses the slice.
    """
    if not has_compiler():
        raise Misuse(
            "topology",
            f"{each.name!r} given, and the compiler for TPUs, libtpu, is not installed; install it beside jax with: "
            'pip install "jax[tpu]" (no TPU is needed)',
        )
    from jax.experimental import topologies

    shape = each.host if one_host else each.shape
    name = f"{each.name.split('-')[1]}:{'x'.join(map(str, shape))}"
    bounds = (*each.host, 1)[:3]
    with _environment():
        try:
            found = topologies.get_topology_desc(topology_name=name, platform="tpu", chips_per_host_bounds=bounds)
        except Exception as error:  # libtpu has errors of several kinds
            if "lockfile" in str(error):
                raise Misuse(
                    "topology",
                    f"{each.name!r} given, and another process uses libtpu ({str(error)[:200]}); wait for its end, or "
                    "set ALLOW_MULTIPLE_LIBTPU_LOAD=1 in both",
                ) from error
            raise Misuse(
                "topology",
                f"{each.name!r} given, and this libtpu does not know it ({str(error)[:200]}); install the libtpu that "
                'belongs to this jax: pip install --upgrade "jax[tpu]"',
            ) from error
    return tuple(found.devices)


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """A context with the variables that libtpu reads when it is loaded, unless the user has set them."""
    missing = [name for name in _VARIABLES if name not in os.environ]
    os.environ.update({name: _VARIABLES[name] for name in missing})
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)


def mesh_over(each: Slice, axes: Mapping[str, int]) -> Mesh:
    """A mesh over all devices of a slice: {name of the axis: devices along it}, such as {"params": 8}."""
    shape = tuple(axes.values())
    return Mesh(np.array(devices_of(each)).reshape(shape), tuple(axes), axis_types=(AxisType.Auto,) * len(shape))


# --- programs


class Program(NamedTuple):
    """What the compiler says of a program, for one chip and one run; what may be wrong is None, and ``doubts`` say why.

    Args:
      name: the program, in words.
      slice: the name of the slice.
      chips: the chips that run it together.
      arguments: bytes of its arguments.
      outputs: bytes of its results, without those that take the place of arguments.
      temporaries: bytes that it works in.
      peak: bytes in all; of a program that does not fit, what the compiler says that it needs.
      memory: bytes that a chip has for it.
      operations: floating point operations, loops counted as often as they turn; None if it does not fit.
      nbytes: bytes that its instructions read from the main memory and write to it.
      collectives: {kind: calls and bytes of all results}.
      seconds: the compiler's estimate: of each instruction the cycles that it states, or the time that its bytes take
        if that is longer, one after another; with the time of collectives by the bytes over the links, which is ours.
      roofline: the least seconds that operations and bytes allow, whichever is longer. Products of float32 at
        "highest" precision are 6 products of bfloat16, at "high" 3.
      compile_seconds: the seconds that compiling took.
      doubts: the reasons why a number may be wrong.
    """

    name: str
    slice: str
    chips: int
    arguments: int | None
    outputs: int | None
    temporaries: int | None
    peak: int
    memory: int
    operations: float | None
    nbytes: float | None
    collectives: dict[str, Collective]
    seconds: float | None
    roofline: float | None
    compile_seconds: float
    doubts: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether one chip has the memory for it."""
        return self.peak <= self.memory

    @property
    def excess(self) -> int:
        """The bytes that a chip lacks; 0 if it fits."""
        return max(0, self.peak - self.memory)

    @property
    def share(self) -> float | None:
        """The share of the roofline, ``roofline / seconds``, between 0 and 1; None if the seconds are unknown."""
        return None if not self.seconds or self.roofline is None else self.roofline / self.seconds


def compile_program(
    step: Any, *args: Any, on: Slice, name: str = "", trips: Mapping[str, int] | None = None, **static: Any
) -> Program:
    """Compile a jitted function for a slice, and count what it does; an interrupt acts while the compiler works.

    Args:
      step: a jitted function.
      args: its arguments: ``jax.ShapeDtypeStruct`` whose shardings lie on devices of ``devices_of``, or small arrays
        of numpy.
      on: the slice.
      name: the program in words.
      trips: as for ``hlo.count``, for loops that turn as often as values say.
      static: static arguments.

    Raises:
      jax.errors.JaxRuntimeError: the compiler fails for another reason than a lack of memory.
    """
    lowered = step.lower(*args, **static)
    start = time.perf_counter()
    try:
        compiled = _compile(lowered)
    except jax.errors.JaxRuntimeError as error:
        needed = memory_needed(str(error))
        if needed is None:
            raise
        seconds = time.perf_counter() - start
        return Program(name, on.name, _chips(args), None, None, None, *needed, None, None, {}, None, None, seconds, ())
    return describe(compiled, on, _chips(args), name=name, trips=trips, compile_seconds=time.perf_counter() - start)


def describe(
    compiled: Any,
    on: Slice,
    chips: int = 1,
    *,
    name: str = "",
    trips: Mapping[str, int] | None = None,
    compile_seconds: float = math.nan,
) -> Program:
    """What the compiler says of a compiled program; see ``compile_program`` for the arguments."""
    stats, chip = compiled.memory_analysis(), on.chip
    counts = hlo.count(compiled.as_text(), trips)
    outputs = int(stats.output_size_in_bytes - stats.alias_size_in_bytes)
    temporaries = int(stats.temp_size_in_bytes + stats.generated_code_size_in_bytes)
    arguments = int(stats.argument_size_in_bytes)
    doubts = list(counts.doubts)
    links = sum(x.nbytes * (2 if kind == "all-reduce" else 1) for kind, x in counts.collectives.items()) / chip.links
    serial = hlo.serial_seconds(counts, chip.clock, chip.bandwidth)
    seconds: float | None = max(serial, counts.nbytes / chip.bandwidth) + links
    roofline: float | None = max(counts.passes / chip.flops, counts.nbytes / chip.bandwidth)
    if any("turns as often" in doubt for doubt in doubts):
        seconds = roofline = None
    elif roofline and seconds and roofline > SURE * seconds:
        doubts.append(f"the roofline's {roofline:.2g} s are more than the {seconds:.2g} s of the compiler's cycles")
        seconds = None
    return Program(
        name,
        on.name,
        chips,
        arguments,
        outputs,
        temporaries,
        arguments + outputs + temporaries,
        chip.memory,
        counts.operations,
        counts.nbytes,
        counts.collectives,
        seconds,
        roofline,
        compile_seconds,
        tuple(doubts),
    )


def _compile(lowered: Any) -> Any:
    """The compiled program. A thread makes it, so that Ctrl-C need not wait for the compiler, which goes on alone."""
    found: list[Any] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            found.append(lowered.compile())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, daemon=True)
    with _without_cache():
        thread.start()
        while thread.is_alive():
            thread.join(0.05)
            interrupts.check_interrupt()
    if failed:
        raise failed[0]
    return found[0]


def _chips(args: Any) -> int:
    """The number of devices on which the arguments lie."""
    shardings = [x.sharding for x in jax.tree.leaves(args) if getattr(x, "sharding", None) is not None]
    return len(set().union(*(each.device_set for each in shardings))) or 1


def memory_needed(message: str) -> tuple[int, int] | None:
    """(bytes needed, bytes that there are) of the compiler's message that memory does not suffice; None for others."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    found = re.findall(r"([\d.]+)([KMGT]?)", " ".join(re.findall(r"[\d.]+[KMGT]?(?=[)\s]|$)", message)))
    sizes = [float(number) * 2.0 ** (10 * "_KMGT".index(unit)) for number, unit in found if unit and number != "."]
    return (int(sizes[0]), int(sizes[1])) if len(sizes) >= 2 else None


# --- jobs


class Call(NamedTuple):
    """A program and how often a job runs it; the number is None where the data have no length."""

    program: Program
    runs: int | None


class Part(NamedTuple):
    """One part of a job, such as a landscape, as it would be executed on a slice.

    Args:
      name: such as "landscape".
      plan: the plan that was compiled, in words.
      unit: what ``num`` counts, such as "points".
      num: the points, products or steps of the whole job.
      calls: the programs, on each host, with the number of runs for the whole job.
      others: plans that were compiled too, and their seconds for the whole job; None for one that does not fit or
        whose time is unknown.
      remedy: what to do if a program does not fit.
    """

    name: str
    plan: str
    unit: str
    num: int
    calls: tuple[Call, ...]
    others: dict[str, float | None]
    remedy: str

    @property
    def fits(self) -> bool:
        """Whether all its programs fit into the memory of a chip."""
        return all(call.program.fits for call in self.calls)

    @property
    def peak(self) -> int:
        """The most bytes that one of its programs takes on a chip."""
        return max(call.program.peak for call in self.calls)

    @property
    def seconds(self) -> float | None:
        """The compiler's estimate for the whole job; None where it is unknown."""
        total = 0.0
        for program, runs in self.calls:
            if program.seconds is None or runs is None:
                return None
            total += program.seconds * runs
        return total


def abstract(tree: Any, at: Any) -> Any:
    """Shapes and types in place of arrays, as a program is compiled for them: nothing is put on a device.

    Args:
      tree: a tree of arrays, of numbers or of shapes.
      at: the sharding of all leaves.
    """

    def leaf(x: Any) -> jax.ShapeDtypeStruct:
        shape = struct_of(x if hasattr(x, "dtype") else np.asarray(x))
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=at)

    return jax.tree.map(leaf, tree)


def abstract_rows(data: Any, mesh: Mesh, axis: str) -> Any:
    """The same of a data set whose rows are split over an axis of a mesh, and padded to a multiple of it."""
    shards = mesh.shape[axis]
    if shards == 1:
        return abstract(data, devices.replicated(mesh))
    at = NamedSharding(mesh, PartitionSpec(axis))

    def leaf(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((-(-x.shape[0] // shards) * shards, *x.shape[1:]), x.dtype, sharding=at)

    return jax.tree.map(leaf, abstract(data, at))


@contextlib.contextmanager
def _without_cache() -> Iterator[None]:
    """Leave the compilation cache on disk alone: it cannot read programs for devices that are not here, and warns."""
    before = jax.config.values["jax_enable_compilation_cache"]

    def use(cache: bool) -> None:
        jax.config.update("jax_enable_compilation_cache", cache)
        compilation_cache.reset_cache()  # which looks at the setting only once

    use(False)
    try:
        yield
    finally:
        use(before)
