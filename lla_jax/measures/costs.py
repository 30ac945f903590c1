"""Says what a landscape and the curvature of a network cost on a slice of TPUs, without one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from lla_jax.core.arguments import check_choice, check_integer, misuse
from lla_jax.core.signatures import explained
from lla_jax.core.text import duration
from lla_jax.core.types import Execution, Problem
from lla_jax.curvature.compiling import compile_products, mesh_of_params
from lla_jax.execution import topologies
from lla_jax.execution.progress import AskedProgress, takes_progress
from lla_jax.execution.topologies import Part, Program
from lla_jax.landscape.compiling import compile_landscape

GIB, MIB = 2**30, 2**20


@explained
class Costs(NamedTuple):
    """The result of ``compile_for``. Printed, it is a text; ``recipe()`` gives the same numbers as plain data.

    Args:
      topology: the name of the slice.
      chips: its chips.
      hosts: its hosts, each of which runs a process.
      parts: the landscape, a Hessian product, the steps of Lanczos.
    """

    topology: str
    chips: int
    hosts: int
    parts: tuple[Part, ...]

    @property
    def fits(self) -> bool:
        """Whether all parts fit into the memory of a chip."""
        return all(part.fits for part in self.parts)

    def recipe(self) -> dict[str, Any]:
        """All numbers as plain data, for JSON; what is unknown is None."""
        return {
            "topology": self.topology,
            "chips": self.chips,
            "hosts": self.hosts,
            "fits": self.fits,
            "parts": [_plain(part) for part in self.parts],
        }

    def __repr__(self) -> str:
        hosts = f", {self.hosts} hosts" if self.hosts > 1 else ""
        head = f"{self.topology}: {self.chips} chip{'s' * (self.chips > 1)}{hosts}; by the compiler, nothing was run"
        return "\n".join([head, *map(_describe, self.parts)])


def _plain(part: Part) -> dict[str, Any]:
    programs = [
        {
            **program._asdict(),
            "collectives": {kind: x._asdict() for kind, x in program.collectives.items()},
            "doubts": list(program.doubts),
            "fits": program.fits,
            "excess": program.excess,
            "share": program.share,
            "runs": runs,
        }
        for program, runs in part.calls
    ]
    own = {"fits": part.fits, "peak": part.peak, "seconds": part.seconds, "programs": programs}
    return {name: getattr(part, name) for name in ("name", "plan", "unit", "num", "others")} | own


def _describe(part: Part) -> str:
    """A part as lines."""
    lines = [f"\n{part.name}: {part.plan}"]
    for program, runs in part.calls:
        times = "" if runs is None else f", run {'once' if runs == 1 else f'{runs:,} times'} on each host"
        lines.append(f"  {program.name}{times}")
        lines += [f"    {line}" for line in _numbers(program)]
    if not part.fits:
        worst = max((program for program, _ in part.calls), key=lambda program: program.excess)
        lines.append(f"  does not fit: a chip lacks {_size(worst.excess)}; {part.remedy}")
    whole = "unknown, see above" if part.seconds is None else _time(part.seconds)
    whole = whole if part.fits else "none, as it does not fit"
    unit = part.unit if part.num != 1 else part.unit.removesuffix("s")
    lines.append(f"  estimated time of the job, {part.num:,} {unit}: {whole}")
    for plan, seconds in part.others.items():
        lines.append(f"  instead, {plan}: {'it does not fit, or unknown' if seconds is None else _time(seconds)}")
    return "\n".join(lines)


def _numbers(program: Program) -> list[str]:
    """The numbers of a program in words."""
    parts = {"arguments": program.arguments, "results": program.outputs, "work": program.temporaries}
    known = ", ".join(f"{name} {_size(n)}" for name, n in parts.items() if n is not None)
    verdict = "fits" if program.fits else f"does not fit, {_size(program.excess)} too much"
    lines = [
        f"memory per chip: {_size(program.peak)} of {_size(program.memory)}{f' ({known})' if known else ''}: {verdict}"
    ]
    if program.operations is None or program.nbytes is None:
        return lines
    lines.append(f"one run: {program.operations:.3g} operations, {_size(program.nbytes)} to and from memory")
    if program.seconds is not None:
        share = "" if program.share is None else f", {program.share:.0%} of what operations and bytes allow"
        lines[-1] += f", {_time(program.seconds)} estimated{share}"
    for kind, (count, nbytes) in program.collectives.items():
        lines.append(f"{kind}: {count:,} calls, {_size(nbytes)}")
    lines += [f"in doubt: {doubt}" for doubt in program.doubts]
    lines.append(f"compiled in {duration(program.compile_seconds)} on {program.chips} chip{'s' * (program.chips > 1)}")
    return lines


def _size(nbytes: float) -> str:
    if nbytes >= GIB:
        return f"{nbytes / GIB:,.2f} GiB"
    return f"{nbytes / MIB:,.2f} MiB" if nbytes >= MIB else f"{nbytes / 1024:,.1f} KiB"


def _time(seconds: float) -> str:
    """A time in its unit; ``duration`` has whole seconds."""
    for unit, name in ((1e-3, "ms"), (1e-6, "us")):
        if seconds >= 1:
            break
        if seconds >= unit or name == "us":
            return f"{seconds / unit:.3g} {name}"
    return f"{seconds:.3g} s" if seconds < 60 else duration(seconds)


@takes_progress("programs")
@explained
def compile_for(
    problem: Problem,
    topology: str,
    *,
    points: int | tuple[int, ...] = (41, 41),
    products: int = 1,
    steps: int = 100,
    batch_size: int | None = None,
    batch_stats: str = "frozen",
    execution: Execution | None = None,
    progress: AskedProgress = None,
    told: Callable[[str], None] | None = None,
) -> Costs:
    """Compile a landscape step, a Hessian product and the steps of Lanczos for a slice of TPUs; no TPU is needed.

    The programs are those that ``evaluate``, ``hessian`` and ``spectrum`` would run there, for shapes alone: nothing is
    computed, and no parameters or data are copied. The plan of the landscape is the one of the least estimated time
    among those that ``evaluate`` would time. The compiler works on the CPU, up to some minutes for each program. It
    needs libtpu: ``pip install "jax[tpu]"``; set JAX_PLATFORMS=cpu, or jax looks for a TPU when it starts.

    What the numbers are worth: memory is what the program will take, without other arrays that live on the chip.
    Operations and bytes are counted in the program, loops as often as they turn. The time is the compiler's estimate of
    every instruction, or that of its bytes if it is longer, one after another; it leaves out the host, the network
    between hosts, and what the compiler's model of the chip leaves out: expect the right order of magnitude, and
    rankings of plans, not percents. It has not been compared with a chip.

    Args:
      problem: loss, parameters, data; its metrics and extra data belong to the landscape. Leaves may be
        ``jax.ShapeDtypeStruct`` instead of arrays, in float32. Of a stream the first batch is read. Parameters that
        are sharded, if only over a ``jax.sharding.AbstractMesh``, are so in products, over as many chips of a host.
      topology: the slice, such as "tpu-v5e-8": v5e, v5p or v6e, and the number of chips.
      points: points of the landscape's grid, along each axis; one number is a plane of as many along both.
      products: Hessian products of the job.
      steps: steps of Lanczos of the job.
      batch_size: as for ``evaluate`` and ``hessian``.
      batch_stats: "frozen" or "batch".
      execution: precision, and whatever else ``evaluate`` and ``hessian`` take; its ``devices`` are those of the slice.
      progress: True for a bar, or a function called as ``progress(done, total)``, in parts of the job.
      told: called with a line before each program.

    Returns:
      ``Costs``.

    Raises:
      ValueError: an unknown slice (the message lists them), a missing compiler, or arguments as for ``evaluate``.
    """
    if not isinstance(problem, Problem):
        raise misuse("problem", problem, "an lla.Problem, such as lla.Problem(loss, params, data)")
    on = topologies.slice_named(topology)
    shape = tuple(points) if isinstance(points, tuple | list) else (points, points)
    for each in shape:
        check_integer("points", each, remedy="such as 41")
    check_integer("products", products)
    check_integer("steps", steps)
    check_choice("batch_stats", batch_stats, ("frozen", "batch"), "as reestimate reads the data a second time")
    execution = execution or Execution()
    mesh_of_params(problem.params, on, execution)  # what is refused is refused before minutes of compiling
    tell = told or (lambda text: None)

    def done(count: int) -> None:
        if progress is not None:
            progress(count, 2)

    done(0)
    options: dict[str, Any] = {"batch_size": batch_size, "batch_stats": batch_stats, "told": tell}
    landscape = compile_landscape(
        problem.loss,
        problem.params,
        problem.data,
        on,
        points=shape,
        metrics=problem.metrics,
        extra_data=problem.extra_data,
        execution=_only(execution, "chunk", "microbatch", "loop", "share", "scan", "data_shards", "precision"),
        **options,
    )
    done(1)
    curvature = compile_products(
        problem.loss,
        problem.params,
        problem.data,
        on,
        num=products,
        steps=steps,
        execution=_only(execution, "linearize", "remat", "precision"),
        **options,
    )
    done(2)
    return Costs(on.name, on.chips, on.hosts, (landscape, *curvature))


def _only(execution: Execution, *names: str) -> Execution:
    """The execution with the fields that one of the two computations reads."""
    return Execution(**{name: getattr(execution, name) for name in names})
