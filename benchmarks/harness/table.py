"""Write README's table, docs/benchmarks.md and the table of docs/trust.md from the JSON files in results/, so that no
number is typed by hand.

python benchmarks/harness/table.py
"""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Iterator

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
from harness import sections
from harness.words import LABELS, short

ROOT = pathlib.Path(__file__).parents[1]
README, PAGE, TRUST = (ROOT.parent / name for name in ("README.md", "docs/benchmarks.md", "docs/trust.md"))
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
TORCH = ("torch, batch", "torch, microbatch")  # a loop of ours in torch, at its better batch
EQUAL = 1e-3  # the largest residual of eigenpairs that count as found
WORK = {
    "product": "Hessian product (ms)",
    "top2": "2 largest eigenpairs (s)",
    "top10": "10 largest eigenpairs (s)",
    "density": "spectral density, 100 products (s)",
}
UNMEASURED = "The speed on GPUs and TPUs has not been measured"

Cells = dict[str, tuple[str, float | None]]
"""{program: (what is shown, its time as a multiple of ours, None where it is unknown)}."""


def readme(text: str, results: pathlib.Path) -> str:
    """README with the table between the markers made anew, from the results that are there."""
    found = _results(results)
    rows = [*_planes(found.get("sweep", {})), *_curvature(found.get("hessian", {})), *_job(found.get("bundle", {}))]
    return _between(text, "\n".join(_table(rows, found)) if rows else "")


def page(text: str, results: pathlib.Path) -> str:
    """docs/benchmarks.md with all that the scripts found, and what was asked for beside what was measured."""
    found = {name: result for name, result in _results(results).items() if name in sections.SECTIONS}
    found = {name: found[name] for name in sections.SECTIONS if name in found}
    said = [sections.SECTIONS[name](result) for name, result in found.items() if name not in sections.SENTENCES]
    said.append("\n".join(sections.SECTIONS[name](found[name]) for name in sections.SENTENCES if name in found))
    said.append(sections.targets(_results(results)))
    return _between(text, "\n\n".join(filter(None, said)))


def trust_page(text: str, results: pathlib.Path) -> str:
    """docs/trust.md with the table of calibrations made anew, if they were measured."""
    file = results / "calibration.json"
    return _between(text, sections.calibrations(json.loads(file.read_text())) if file.exists() else "")


def _results(folder: pathlib.Path) -> dict[str, dict]:
    """{script: its result}, in the order of the sections, those without a section last."""
    files = {file.stem: file for file in sorted(folder.glob("*.json"))}
    order = [*(name for name in sections.SECTIONS if name in files), *(x for x in files if x not in sections.SECTIONS)]
    return {name: json.loads(files[name].read_text()) for name in order}


def _between(text: str, made: str) -> str:
    before, rest = text.split(BEGIN)
    return (
        f"{before}{BEGIN}\n{made}\n{END}{rest.split(END)[1]}" if made else f"{before}{BEGIN}\n{END}{rest.split(END)[1]}"
    )


# -- README's table ----------------------------------------------------------------------------------------------------


def _table(rows: list[tuple[str, Cells]], found: dict[str, dict]) -> list[str]:
    """The lines of the table, and what it leaves out."""
    heads = ["lla_jax", *(name for name in ("torch", "LLA", "others") if any(name in cells for _, cells in rows))]
    made = next(found[name]["environment"] for name in ("sweep", "hessian", "bundle") if name in found)
    versions = ", ".join(f"{name} {made['versions'][name]}" for name in ("jax", "torch") if name in made["versions"])
    lines = [f"| | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    for work, cells in rows:
        shown = []
        for head in heads:
            text, times = cells.get(head, ("-", None))
            shown.append(text if times is None else f"{text} ({times:.1f} x)")
        lines.append(f"| {work} | {' | '.join(shown)} |")
    missing = UNMEASURED if "gpu" not in found else UNMEASURED.replace("GPUs and ", "")
    more = ", and what the compiler says of programs for TPUs" if "tpu" in found else ""
    lines += [
        "",
        f"{made['cores']} CPU cores with {made['threads']} threads on all sides, {versions} ({made['date']}); in round "
        "brackets times lla_jax's, in square ones Hessian products. torch is a lean loop at its best batch; LLA and "
        "the best of the others (loss-landscapes; PyHessian, hessian-eigenthings, curvlinops) are set so that their "
        f"eigenpairs are as exact. {missing}; [docs/benchmarks.md](docs/benchmarks.md) has all figures, the targets"
        f"{more}.",
    ]
    return lines


def _planes(result: dict) -> Iterator[tuple[str, Cells]]:
    for name, found in result.get("networks", {}).items():
        if "rivals" not in found:
            continue
        rivals = dict(found["rivals"])
        ours = rivals.pop("lla_jax")["min_ms"]
        groups = {"torch": [], "LLA": [], "others": []}  # type: dict[str, list[float]]
        for rival, row in rivals.items():
            group = "torch" if rival.startswith(TORCH) else rival if rival == "LLA" else "others"
            groups[group].append(row["min_ms"])
        cells: Cells = {"lla_jax": (short(ours), None)}
        cells |= {group: (short(min(times)), min(times) / ours) for group, times in groups.items() if times}
        yield f"{LABELS[name]}, {found['parameters']:,} parameters: a point of a plane (ms)", cells


def _curvature(result: dict) -> Iterator[tuple[str, Cells]]:
    for name, found in result.get("networks", {}).items():
        for part, work in WORK.items():
            ours = _fastest(found.get(part, {}).get("lla_jax", []))
            if ours is None:
                continue
            cells: Cells = {"lla_jax": (ours[1], None)}
            for rival, rows in found[part].items():
                group = "LLA" if rival == "LLA" else "others"
                theirs = None if rival.startswith("lla_jax") else _fastest(rows)
                if theirs is not None and theirs[0] / ours[0] < (cells.get(group, ("", None))[1] or float("inf")):
                    cells[group] = (theirs[1], theirs[0] / ours[0])
            yield f"{LABELS[name]}: {work}", cells


def _fastest(rows: list[dict]) -> tuple[float, str] | None:
    """(seconds or milliseconds, shown with the products) of the fastest row that is exact enough; None without one."""
    times = [(row["product"]["min_ms"], short(row["product"]["min_ms"])) for row in rows if "product" in row]
    for row in rows:
        if "seconds" in row and row.get("residual", 0) <= EQUAL:
            times.append((row["seconds"], f"{short(row['seconds'])} [{row['products']}]"))
    return min(times, default=None)


def _job(result: dict) -> Iterator[tuple[str, Cells]]:
    sides = {name: found["total_s"] for name, found in result.get("sides", {}).items() if "total_s" in found}
    if "lla_jax" in sides:
        cells: Cells = {"lla_jax": (short(sides["lla_jax"]), None)}
        if "LLA" in sides:
            cells["LLA"] = (short(sides["LLA"]), sides["LLA"] / sides["lla_jax"])
        yield "LeNet: plane, eigenpairs, density and criteria, from nothing (s)", cells


if __name__ == "__main__":
    for file, write in ((README, readme), (PAGE, page), (TRUST, trust_page)):
        file.write_text(write(file.read_text(), ROOT / "results"))
