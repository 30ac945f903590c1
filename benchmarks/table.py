"""Write README's benchmark section from the JSON files in results/, so that no number is typed by hand.

python benchmarks/table.py
"""

from __future__ import annotations

import json
import pathlib

ROOT = pathlib.Path(__file__).parent
README = ROOT.parent / "README.md"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"


def sweep(result: dict) -> str:
    """The section on ``sweep.py``."""
    where = result["environment"]
    versions = where["versions"]
    lines = [
        f"Milliseconds a point, the least of several runs taken in turns; {where['cores']} cores, {where['threads']} "
        f"threads on both sides, jax {versions['jax']}, torch {versions['torch']} ({where['date']}, "
        "`python benchmarks/sweep.py`).",
        "",
        "| network | program | ms a point | times lla_jax |",
        "|---|---|---|---|",
    ]
    networks = {
        "mlp": f"MLP, {result['mlp']['parameters']:,} parameters, {result['mlp']['examples']:,} digits",
        "lenet": f"LeNet, batch {result['lenet']['examples']:,}, {result['lenet']['data']}",
    }
    for key, label in networks.items():
        for rival, row in result[key]["rivals"].items():
            lines.append(f"| {label} | {rival} | {row['min_ms']:.3g} | {row['times_lla_jax']:.2f} |")
    million, small = result["planes"][-1], result["planes"][0]
    worst = max(result[key]["largest_relative_difference_from_torch"] for key in networks)
    lines += [
        "",
        f"One plane of {million['points']:,} points of the MLP took {million['seconds']:.0f} s. Memory grew by "
        f"{million['growth_mib']:.0f} MiB while it was computed ({small['growth_mib']:.0f} MiB for "
        f"{small['points']:,} points); the result itself is {million['result_mib']:.0f} MiB. Values differ from "
        f"torch's by at most {worst:.0e} relative. "
        "The speed on GPUs and TPUs has not been measured.",
    ]
    return "\n".join(lines)


def readme(text: str, results: pathlib.Path) -> str:
    """README with the section between the markers made anew."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    section = sweep(json.loads((results / "sweep.json").read_text()))
    return f"{before}{BEGIN}\n{section}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(readme(README.read_text(), ROOT / "results"))
