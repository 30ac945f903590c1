"""Compiles the problem of the command line for a slice of TPUs: ``lla-jax compile``."""

from __future__ import annotations

import json
from pathlib import Path

from lla_jax.cli.options import CompileOptions
from lla_jax.cli.settings import points
from lla_jax.cli.terminal import bar, print_message
from lla_jax.core import files
from lla_jax.core.types import Execution, Problem
from lla_jax.execution import topologies
from lla_jax.measures.costs import Costs, compile_for


def check_topology(options: CompileOptions) -> None:
    """Refuse an unknown slice, and a missing compiler, before the problem is built."""
    topologies.devices_of(topologies.slice_named(options.for_))


def costs_of(problem: Problem, options: CompileOptions) -> Costs:
    """What the problem costs on the slice; a line is printed before each program that is compiled."""
    shards = "auto" if options.data_shards is None else options.data_shards
    with bar("compile", unit="parts") as progress:
        return compile_for(
            problem,
            options.for_,
            points=points(options),
            products=options.products,
            steps=options.steps,
            batch_size=options.batch_size,
            batch_stats=options.batch_stats,
            execution=Execution(data_shards=shards, precision=options.precision),  # type: ignore[arg-type]
            progress=progress,
            told=lambda text: print_message(f"compiling for {options.for_}: {text}"),
        )


def save(costs: Costs, path: Path) -> None:
    """Write all numbers as JSON, in one step."""
    files.write_text(path, json.dumps(costs.recipe(), indent=1, allow_nan=False) + "\n")
