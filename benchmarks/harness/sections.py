"""What docs/benchmarks.md says of each script, from its result: a function for every script, named after it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from harness.accelerators import gpu, tpu
from harness.descents import paths
from harness.words import LABELS, short

TARGETS = (
    ("top2", "LLA", "as shipped"),
    ("top2", "LLA", "tightened"),
    ("top10", "PyHessian", "tightened"),
    ("top10", "hessian-eigenthings", "tightened"),
    ("top10", "curvlinops", "tightened"),
    ("density", "LLA", "as shipped"),
)
SHIPPED = ("LLA", "PyHessian")  # their first setting is not meant to be this accurate
RIVALRY = ("product", "top2", "top10", "density", "trace")
WORDS = {
    "none": "no compilation cache",
    "empty": "an empty one",
    "plane_ms": "plane",
    "product_ms": "Hessian product",
}
NAMES = {"top2": "top 2", "top10": "top 10", "density": "density", "trace": "trace", "product": "product"}


def made(result: dict, script: str) -> str:
    """On what, with what, and when something was measured."""
    where = result["environment"]
    versions = where["versions"]
    used = ", ".join(f"{name} {versions[name]}" for name in ("jax", "torch") if name in versions)
    return (
        f"{where['cores']} cores, {where['threads']} threads on all sides, {used} ({where['date']}, "
        f"`python benchmarks/{script}.py`)"
    )


def sweep(result: dict) -> str:
    """The section on ``sweep.py``."""
    networks = {name: found for name, found in result["networks"].items() if "rivals" in found}
    heads = {"torch, its whole batch": whole_batch, "torch, best microbatch": microbatch}
    for library in ("LLA", "loss-landscapes"):
        if any(library in found["rivals"] for found in networks.values()):
            heads[library] = lambda found, library=library: found["rivals"].get(library)
    lines = [
        f"Planes: milliseconds a point, the least of several runs taken in turns, and times lla_jax's; "
        f"{made(result, 'sweep')}.",
        "",
        f"| network | lla_jax | {' | '.join(heads)} |",
        "|---|---|" + "---|" * len(heads),
    ]
    for name, found in networks.items():
        about = f", {found['data']}" if found.get("data") else ""
        label = f"{LABELS[name]}, {found['parameters']:,} parameters, batch {found['examples']:,}{about}"
        cells = [rival(row(found)) for row in heads.values()]
        lines.append(f"| {label} | {short(found['rivals']['lla_jax']['min_ms'])} | {' | '.join(cells)} |")
    worst = max(found["largest_relative_difference_from_torch"] for found in networks.values())
    lines += ["", f"Values differ from torch's by at most {worst:.0e} relative."]
    jobs = {cache: row for cache, row in result.get("whole", {}).get("cache", {}).items() if "seconds" in row}
    if jobs:
        ours = ", ".join(f"{short(row['seconds'])} s with {WORDS[cache]}" for cache, row in jobs.items())
        theirs = ", ".join(f"{name} {short(row['seconds'])} s" for name, row in result["whole"]["rivals"].items())
        lines[-1] += (
            f" The whole job on LeNet, {result['whole']['points']:,} points in a new process, with compiling and "
            f"choosing a plan: {ours}; the others, from their time a point: {theirs}."
        )
    return "\n".join(lines)


def rival(row: dict | None) -> str:
    return "-" if row is None else f"{short(row['min_ms'])} ({row['times_lla_jax']:.2f} x)"


def whole_batch(found: dict) -> dict | None:
    return found["rivals"].get(f"torch, batch {found['examples']}")


def microbatch(found: dict) -> dict | None:
    return found["rivals"].get(f"torch, microbatch {found['best_microbatch_of_torch']}")


def bundle(result: dict) -> str:
    """The section on ``bundle.py``."""
    parts = ("plane", "eigenpairs", "density", "criteria")
    lines = [
        f"What LLA is used for, all together, on the trained LeNet, from nothing, compiling included: seconds of a "
        f"plane of {result['points']} points, top 2 eigenpairs (largest residual), density of {result['steps']} steps "
        "(how often the largest eigenvalue appears), criteria, and their sum; the trace apart, as LLA's stops with an "
        f"error under numpy 2; {made(result, 'bundle')}.",
        "",
        "| program | plane | top 2 | density | criteria | sum | trace |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in result["sides"].items():
        if "error" in found:
            lines.append(f"| {name} | fails: {found['error']} | | | | | |")
            continue
        taken = {part: short(found["seconds"][part]) for part in parts}
        taken["eigenpairs"] += f" ({max(found['residuals']):.0e})"
        taken["density"] += f" ({found['density']['copies_of_the_largest']} x)"
        total = short(found["total_s"]) + (f", {short(found['compile_s'])} compiling" if "compile_s" in found else "")
        trace, error = found["seconds"].get("trace"), found["trace"].get("sem")
        told = "fails" if trace is None else f"{short(trace)} (+- {100 * error / abs(found['trace']['mean']):.1f} %)"
        lines.append(f"| {name} | {' | '.join(taken.values())} | {total} | {told} |")
    return "\n".join(lines)


def growth(result: dict) -> str:
    """The section on ``growth.py``."""
    curves = result["curves"]
    told = []
    for name, label in (("points", "points"), ("parameters", "parameters"), ("examples", "examples")):
        rows, slopes = curves[name]["rows"], curves[name]["slopes"]
        each = ", ".join(f"{WORDS[cost]} {slope['all']:.2f}" for cost, slope in slopes.items())
        told.append(f"{label} ({rows[0]['size']:,} to {rows[-1]['size']:,}) {each}")
    line = f"- Growth of cost, as exponents (1: in proportion), MLP: {'; '.join(told)}."
    if "devices" in curves:
        rows = curves["devices"]["rows"]
        each = ", ".join(f"{row['size']}: {short(row['plane_ms'])} and {short(row['product_ms'])} ms" for row in rows)
        line += f" LeNet on CPU devices, a plane of 256 points and a Hessian product: {each}."
    return f"{line} [Figure](../benchmarks/results/growth.png)."


def memory(result: dict) -> str:
    """The section on ``memory.py``."""
    told = []
    for name, label in (("points", "points"), ("batches", "batches of a stream")):
        rows = [row for row in result.get(name, []) if "growth_mib" in row]
        if rows:
            each = ", ".join(f"{row['growth_mib']:.0f} MiB for {row[name]:,} {label}" for row in rows)
            told.append(each + (f" (result {rows[-1]['result_mib']:.0f} MiB)" if name == "points" else ""))
    for row in result.get("lanczos", []):
        if "stated_mib" in row:
            told.append(
                f"{row['what']} with a basis of {row['basis_gb']:.2f} GB {row['growth_mib']:,.0f} MiB, "
                f"{row['stated_mib']:,.0f} stated before"
            )
    return f"- Growth of memory during a call: {'; '.join(told)}."


def cold_start(result: dict) -> str:
    """The section on ``cold_start.py``."""
    runs = ", ".join(
        f"{name} {row['seconds']:.0f} s ({row['compile_s']:.1f} s of compiling, {row['from_the_cache']} of "
        f"{row['programs']} programs from the cache)"
        for name, row in result["demo"].items()
        if "seconds" in row and "compile_s" in row
    )
    return f"- Cold start: `lla-jax --help` {result['help']['median_s']:.2f} s; `lla-jax demo` {runs}."


def many_planes(result: dict) -> str:
    """The section on ``many_planes.py``."""
    told = []
    for name, found in result["networks"].items():
        if "points_per_second" in found:
            rates = ", ".join(f"{what} {short(rate)}" for what, rate in found["points_per_second"].items())
            told.append(f"{LABELS[name]}, {found['landscapes']} planes of {found['points']:,} points: {rates}")
    return f"- Many planes in one call, points per second: {'; '.join(told)}."


def kill(result: dict) -> str:
    """The section on ``kill.py``."""
    if "error" in result:
        return f"- Kills: {result['error']}."
    same = all(result.get("equal_to_the_bit", {"nothing": False}).values())
    return (
        f"- {result['kills']} kills over {result['writers']} writers of one store with {result['chunks']} chunks: "
        f"{'the same bits' if same else 'NOT the same bits'} as undisturbed; chunks lost by a kill: at most "
        f"{result['most_lost_by_a_kill']}, {sum(result['lost_by_kill'])} in all."
    )


def damage(result: dict) -> str:
    """The section on ``damage.py``."""
    return (
        f"- {result['damages']} random damages of stores and kept results: {result['recovered_at_once']} mended by the "
        f"same call, {result['recovered_after_the_remedy']} after what the error says; {len(result['wrong'])} with a "
        "wrong number, another error, or work lost that was not damaged."
    )


def interrupts(result: dict) -> str:
    """The section on ``interrupts.py``."""
    cases = [found for found in result["cases"].values() if "error" not in found]
    total = {name: sum(case[name] for case in cases) for name in ("signals", "lost", "otherwise", "tracebacks")}
    different, failed = sum(len(case["different"]) for case in cases), len(result["cases"]) - len(cases)
    more = f", {failed} more failed" if failed else ""
    return (
        f"- {total['signals']} Ctrl-C at random moments of {len(cases)} verbs{more}: "
        f"at the latest {max((case['slowest_s'] for case in cases), default=0.0):.2g} s later all was at an end; "
        f"{total['lost']} without effect, {total['otherwise']} with another exit code than 130, {total['tracebacks']} "
        f"with a traceback; {different} numbers differ from those of runs that nobody interrupted."
    )


def targets(results: dict[str, dict]) -> str:
    """What was asked for, beside what was measured, over all scripts."""
    rows = []
    for script, result in results.items():
        found = [*result.get("targets", []), *result.get("whole", {}).get("targets", [])]
        for network in result.get("networks", {}).values():
            found += network.get("targets", [])
        for row in found:
            met = "" if row["met"] else ", **missed**"
            rows.append(f"| {row['what']} | {short(row['value'])}{met} | {row['rule']} {row['target']:g} | {script} |")
    if not rows:
        return ""
    return "\n".join(["What was asked for:", "", "| what | measured | target | script |", "|---|---|---|---|", *rows])


def hessian(result: dict) -> str:
    """The section on ``hessian.py``."""
    where = result["environment"]
    versions = where["versions"]
    peers = ("jax", "torch", "pyhessian", "hessian_eigenthings", "curvlinops-for-pytorch", "matfree")
    known = [name for name in peers if name in versions]
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


def calibration(result: dict) -> str:
    """The section on ``calibration.py``."""
    rows = result["rows"]
    shares = [f"within {k} {sum(row['within'][k] for row in rows) / len(rows):.1%}" for k in ("1", "2", "3")]
    least = min(rows, key=lambda row: row["within"]["2"])
    return (
        f"- Errors of {len(rows)} stochastic numbers of matrices with known spectra, {rows[0]['keys']} keys each: the "
        f"truth lies {', '.join(shares)} stated errors; least often within 2 for {least['number']} "
        f"({least['spectrum']}), {least['within']['2']:.1%}."
    )


def calibrations(result: dict) -> str:
    """The table of docs/trust.md: for every number and spectrum, the shares of keys within 1, 2 and 3 errors."""
    spectra = list(dict.fromkeys(row["spectrum"] for row in result["rows"]))
    cells = {(row["number"], row["spectrum"]): row["within"] for row in result["rows"]}
    lines = [f"| number | {' | '.join(spectra)} |", "|---|" + "---|" * len(spectra)]
    for number in dict.fromkeys(row["number"] for row in result["rows"]):
        shares = (cells.get((number, spectrum)) for spectrum in spectra)
        shown = ["-" if each is None else " ".join(f"{100 * each[k]:.0f}" for k in ("1", "2", "3")) for each in shares]
        shown_number = number.replace("|", "\\|")  # a bar ends a cell
        lines.append(f"| {shown_number} | {' | '.join(shown)} |")
    return "\n".join(lines)


def trust(result: dict) -> str:
    """The section on ``trust.py``."""
    right, posed = result["right_of_well_posed"], sum(result["well_posed"].values())
    return (
        f"- {result['situations']:,} losses as users bring them: {result['silent_wrong']} silent wrong numbers; "
        f"{right:.1%} of the {posed:,} well-posed ones give their value without one."
    )


def precision(result: dict) -> str:
    """The section on ``precision.py``."""
    curves = result["curves"]
    near = [
        f"{setting} {noises[setting][0] / curves['rise'][0]:.0e} on a {platform.upper()}"
        for platform, noises in curves["noise"].items()
        for setting in noises
    ]
    return (
        f"- Precision, emulated: at {curves['distance'][0]} from a minimum the error of the rise of the loss is, as a "
        f"share of it, {', '.join(near)}."
    )


SECTIONS: dict[str, Callable[[dict], str]] = {
    "sweep": sweep,
    "bundle": bundle,
    "hessian": hessian,
    "tpu": tpu,
    "gpu": gpu,
    "interop": interop,
    "paths": paths,
    "growth": growth,
    "memory": memory,
    "many_planes": many_planes,
    "kill": kill,
    "damage": damage,
    "interrupts": interrupts,
    "cold_start": cold_start,
    "calibration": calibration,
    "trust": trust,
    "precision": precision,
}
SENTENCES = (
    "growth",
    "memory",
    "many_planes",
    "kill",
    "damage",
    "interrupts",
    "cold_start",
    "calibration",
    "trust",
    "precision",
)
