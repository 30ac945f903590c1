"""Write README's benchmark section from the JSON files in results/, so that no number is typed by hand.

python benchmarks/table.py
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).parent
README = ROOT.parent / "README.md"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
TARGETS = (
    ("top2", "LLA", "as shipped"), ("top2", "LLA", "tightened"), ("top10", "PyHessian", "tightened"),
    ("density", "LLA", "as shipped"),
)  # fmt: skip
SHIPPED = ("LLA", "PyHessian")  # their first setting is not meant to be this accurate
RIVALRY = ("product", "top2", "top10", "density", "trace")
NAMES = {"top2": "top 2", "top10": "top 10", "density": "density", "trace": "trace", "product": "product"}


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


def hessian(result: dict) -> str:
    """The section on ``hessian.py``."""
    where = result["environment"]
    versions = where["versions"]
    known = [name for name in ("jax", "torch", "pyhessian", "curvlinops-for-pytorch", "matfree") if name in versions]
    lines = [
        f"Curvature: seconds of whole jobs, after compiling; {where['cores']} cores, {where['threads']} threads on all "
        f"sides, {', '.join(f'{name} {versions[name]}' for name in known)} ({where['date']}, "
        "`python benchmarks/hessian.py`). In brackets the Hessian products. Top 2 and top 10: the first setting whose "
        'residuals, all computed by torch\'s double backward, are at most 1e-3 of each eigenvalue; "as shipped" has '
        "its largest residual instead. Density: 100 steps of one probe, and how often the largest eigenvalue appears.",
    ]
    for name, label in (("lenet", "LeNet"), ("resnet", "ResNet-20, eval mode")):
        if "facts" in result["networks"].get(name, {}):
            lines += ["", *network(label, result["networks"][name])]
    return "\n".join(lines)


def network(label: str, found: dict) -> list[str]:
    """One network's table, a row for each rival, and what the targets ask about."""
    facts = found["facts"]
    lines = [
        f"{label}, {facts['parameters']:,} parameters, batch {facts['examples']:,} ({facts['data']}; accuracy "
        f"{facts['accuracy']:.2f}, loss {facts['loss']:.2f}):",
        "",
        "| program | product / gradient (ms) | top 2 (s) | top 10 (s) | density (s) | trace to 2 % (s) | peak (MiB) |",
        "|---|---|---|---|---|---|---|",
    ]
    rivals = list(dict.fromkeys(rival for part in RIVALRY for rival in found.get(part, {})))
    for rival in rivals:
        rows = {part: found.get(part, {}).get(rival, []) for part in RIVALRY}
        shipped = {part: [row for row in rows[part][:1] if rival in SHIPPED] for part in ("top2", "top10")}
        peak = max((row["peak_mib"] for part in RIVALRY for row in rows[part] if "peak_mib" in row), default=None)
        cells = [one_product(rows["product"]), *(equal(rows[part]) for part in ("top2", "top10"))]
        cells += [density(rows["density"]), trace(rows["trace"]), "-" if peak is None else f"{peak:,.0f}"]
        if any(shipped.values()):
            eager = [as_shipped(shipped[part]) for part in ("top2", "top10")]
            lines.append(f"| {rival}, as shipped | {cells[0]} | {' | '.join(eager)} | {' | '.join(cells[3:])} |")
            lines.append(f"| {rival}, tightened | | {cells[1]} | {cells[2]} | | | |")
        else:
            lines.append(f"| {rival} | {' | '.join(cells)} |")
    ratios = [told for told in (ratio(found, *target) for target in TARGETS) if told]
    if ratios:
        lines += ["", f"Times lla_jax's seconds: {', '.join(ratios)}."]
    ours = {part: [row for row in found.get(part, {}).get("lla_jax", []) if "compile_s" in row] for part in RIVALRY}
    cold = {part: [row["compile_s"] for row in rows] for part, rows in ours.items()}
    if any(cold.values()):
        each = ", ".join(f"{NAMES[part]} {max(values):.0f} s" for part, values in cold.items() if values)
        lines += ["", f"Compiling, in the first call of a process and not counted above: {each}."]
    (parts,) = found.get("where", {}).get("lla_jax", [{}]) or [{}]
    if "ms" in parts:
        kept = parts["plan"]["bytes"] / 2**20
        lines += [
            "",
            "Where the time of a product goes, in ms: "
            + ", ".join(f"{name} {short(ms)}" for name, ms in parts["ms"].items())
            + f". The primal values take {kept:,.0f} MiB.",
        ]
    return lines


def seconds(row: dict) -> str:
    """Seconds with the products, what the cap says, or a dash for a failure."""
    if "over_s" in row:
        return f"> {row['over_s']:.0f}"
    if "error" in row:
        return "fails"
    about = "~ " if "extrapolated_s" in row else ""
    return f"{about}{short(row['seconds'])} [{row['products']}]"


def short(number: float) -> str:
    """Three digits, and no powers of ten."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def best(rows: list[dict], good: Callable[[dict], bool], say: Callable[[dict], str]) -> str:
    """The fastest good row; without one, the last."""
    fit = [row for row in rows if "seconds" in row and good(row)]
    if fit:
        return say(min(fit, key=lambda row: row["seconds"]))
    return seconds(rows[-1]) if rows and "seconds" not in rows[-1] else "not reached" if rows else "-"


def equal(rows: list[dict]) -> str:
    return best(rows, lambda row: row["residual"] <= 1e-3, seconds)


def as_shipped(rows: list[dict]) -> str:
    return best(rows, lambda _: True, lambda row: f"{seconds(row)}, residual {row['residual']:.0e}")


def ratio(found: dict, part: str, rival: str, how: str) -> str:
    """How many times our seconds a rival took, as shipped or at the residuals asked for; empty where one is missing."""
    ours, theirs = (found.get(part, {}).get(name, []) for name in ("lla_jax", rival))
    good = [row["seconds"] for row in ours if "seconds" in row and row.get("residual", 0) <= 1e-3]
    fit = theirs[:1] if how == "as shipped" else [row for row in theirs if row.get("residual", 0) <= 1e-3]
    if not good or not fit or "error" in fit[-1]:
        return ""
    row = fit[-1]
    times = row.get("seconds", row.get("over_s")) / min(good)
    return f"{NAMES[part]} {rival} {how} {'> ' if 'over_s' in row else ''}{times:.1f}"


def density(rows: list[dict]) -> str:
    said = [seconds(row) + (f", {row['copies_of_the_largest']} x" if "seconds" in row else "") for row in rows]
    return "; ".join(said) or "-"


def trace(rows: list[dict]) -> str:
    return best(rows, lambda _: True, seconds)


def one_product(rows: list[dict]) -> str:
    fit = [row for row in rows if "product" in row]
    if not fit:
        return "-"
    row: dict[str, Any] = min(fit, key=lambda row: row["product"]["min_ms"])
    product, gradient = row["product"]["min_ms"], row["gradient"]["min_ms"]
    return f"{short(product)} / {short(gradient)} = {product / gradient:.1f}"


def interop(result: dict) -> str:
    """The section on ``interop.py``."""
    where = result["environment"]
    versions = where["versions"]
    lines = [
        "A converted torch network beside the same one written in Flax, and torch in eager mode: milliseconds over one "
        f"batch, the least of several runs taken in turns; {where['cores']} cores, {where['threads']} threads, jax "
        f"{versions['jax']}, torch {versions['torch']} ({where['date']}, `python benchmarks/interop.py`). The last two "
        "rows of a network are as lla_jax drives it, in blocks and with what points share computed once.",
        "",
        "| network | work | converted | native Flax | times native | torch |",
        "|---|---|---|---|---|---|",
    ]
    labels = {"lenet": "LeNet", "resnet": "ResNet-20"}
    for key, found in result["networks"].items():
        for work, row in found["ms"].items():
            torch = short(row["torch"]) if "torch" in row else ""
            lines.append(
                f"| {labels[key]}, batch {found['batch']:,} | {work} | {short(row['converted'])} | "
                f"{short(row['native Flax'])} | {row['times native']:.2f} | {torch} |"
            )
    conversions = ", ".join(
        f"{labels[key]} {found['conversion_s']['again']:.1f} s" for key, found in result["networks"].items()
    )
    anew = max(found["compilations_of_a_second_checkpoint"] for found in result["networks"].values())
    exact = max(
        error for found in result["networks"].values() for name, error in found["certificate"].items() if "64" in name
    )
    lines += [
        "",
        f"Converting takes {conversions} (the first in a process a second or two more); a second checkpoint of one "
        f"architecture compiles {anew} programs. In float64 outputs, loss, gradient and Hessian product differ from "
        f"torch's by at most {exact:.0e} of the largest entry.",
    ]
    return "\n".join(lines)


SECTIONS: dict[str, Callable[[dict], str]] = {"sweep": sweep, "hessian": hessian, "interop": interop}


def readme(text: str, results: pathlib.Path) -> str:
    """README with the section between the markers made anew, from the results that are there."""
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    files = {name: results / f"{name}.json" for name in SECTIONS}
    said = [SECTIONS[name](json.loads(file.read_text())) for name, file in files.items() if file.exists()]
    return before + BEGIN + "\n" + "\n\n".join(said) + "\n" + END + after


if __name__ == "__main__":
    README.write_text(readme(README.read_text(), ROOT / "results"))
