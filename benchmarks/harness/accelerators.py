"""What docs/benchmarks.md says of ``tpu.py`` and ``gpu.py``."""

from __future__ import annotations

from harness.words import LABELS, short

PROGRAMS = {
    "plane": "plane",
    "product": "Hessian product",
    "lanczos": "step of Lanczos",
    "sharded": "product, parameters sharded",
}


def tpu(result: dict) -> str:
    """The section on ``tpu.py``."""
    rows = [row for row in result["rows"].values() if "chips" in row]
    versions = result["environment"]["versions"]
    lines = [
        f"TPUs: what their compiler says of {len(rows)} of {result['wanted']} programs, which were not run (jax "
        f"{versions['jax']}, {result['environment']['date']}, `python benchmarks/tpu.py`). The time is the compiler's "
        "estimate for the whole step; of a plane, microseconds a point are it over the points of all chips. The share "
        "is that of the time that operations or bytes alone would take at the chip's best. No TPU has measured this.",
        "",
        "| program | network | slice | plan | memory a chip (MiB) | operations (10^9) | bytes (MiB) | time (us) | "
        "us a point | share of the roofline | collectives |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *map(_compiled, rows)])


def _compiled(row: dict) -> str:
    """A line of the table of programs for TPUs; a number that is not known is a dash."""

    def known(value: float | None, unit: float = 1.0) -> str:
        return "-" if value is None else short(value / unit)

    plan = ""
    if row["program"] == "plane":
        how = "as a batch" if row["loop"] == "vmap" else "one by one"
        plan = f"{row['chunk']} {how}, first layer {'shared' if row['share'] else 'not shared'}, {row['precision']}"
    share = "-" if row["share_of_roofline"] is None else f"{row['share_of_roofline']:.0%}"
    collectives = ", ".join(f"{count} {kind}" for kind, (count, _) in row["collectives"].items()) or "none"
    cells = [
        PROGRAMS[row["program"]],
        LABELS[row["network"]],
        row["slice"],
        plan,
        known(row["peak"], 2**20),
        known(row["operations"], 1e9),
        known(row["nbytes"], 2**20),
        known(row["seconds"], 1e-6),
        known(row.get("us_per_point")),
        share,
        collectives,
    ]
    return f"| {' | '.join(cells)} |"


def gpu(result: dict) -> str:
    """The section on ``gpu.py``."""
    where = result["environment"]
    lines = [
        f"GPU: {where['device']}, jax {where['versions']['jax']} ({where['date']}, `python benchmarks/gpu.py`): "
        "milliseconds a point of a plane at each precision, of a Hessian product, and of a step of Lanczos. The noise "
        "is what a quadratic leaves of a small plane of the MLP, relative to the loss there.",
        "",
        "| network | highest | high | default | Hessian product | step of Lanczos |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in result["networks"].items():
        cells = [found.get(part) for part in ("highest", "high", "default", "product", "lanczos")]
        shown = ["-" if not each or "ms" not in each else short(each["ms"]) for each in cells]
        lines.append(f"| {LABELS[name]} | {' | '.join(shown)} |")
    noises = result.get("noise", {}).items()
    noise = ", ".join(f"{name} {'failed' if isinstance(value, dict) else f'{value:.1e}'}" for name, value in noises)
    return "\n".join([*lines, *(["", f"Noise: {noise}."] if noise else [])])
