"""What docs/benchmarks.md says of ``paths.py``: curves, recordings, grids and films."""

from __future__ import annotations

from harness.words import short


def paths(result: dict) -> str:
    """The section on ``paths.py``."""
    where = result["environment"]
    used = ", ".join(f"{name} {where['versions'][name]}" for name in ("jax", "torch") if name in where["versions"])
    head = (
        f"Paths; {where['cores']} cores, {where['threads']} threads on all sides, {used} ({where['date']}, "
        f"`python benchmarks/paths.py`).{load(result.get('load', {}))}"
    )
    told = [curves(result.get("curve", {})), *lines(result)]
    return "\n\n".join([head, *filter(None, told)])


def load(found: dict[str, float]) -> str:
    """That other programs ran meanwhile, where they did."""
    busy = [name for name, value in found.items() if value > 1]
    if not busy:
        return ""
    most = max(found.values())
    told = f"load up to {most:.1f} before {', '.join(busy)}"
    return f" Other programs had the machine as well ({told}): both sides are slower."


def curves(found: dict) -> str:
    """The table of Bezier curves."""
    if not found:
        return ""
    table = [
        f"Bezier curves between two networks of two convolutions on {found['examples']:,} digits, {found['steps']:,} "
        f"steps from the straight line with the same batches' size, rates and weight decay: seconds (in brackets the "
        f"first time in a process, with compiling), and losses of all examples at {found['points']} points of the "
        "curve, for each of the trainings. Of the straight line: mean and maximum.",
        "",
        "| network | program | training (s) | evaluation (s) | mean loss | largest loss | ends | test, largest |",
        "|---|---|---|---|---|---|---|---|",
    ]
    differences = []
    for name, row in found["networks"].items():
        for side, each in row["sides"].items():
            if "error" in each:
                table.append(f"| {name} | {side} | fails: {each['error']} | | | | | |")
                continue
            seconds = [f"{short(each[f'{w}_s'])} ({short(each['first_s'][w])})" for w in ("train", "evaluate")]
            losses = [" ".join(f"{x:.4f}" for x in each[w]) for w in ("mean", "max", "ends", "test_max")]
            table.append(f"| {name} | {side} | {' | '.join([*seconds, *losses])} |")
        if "line" in row:
            line = row["line"]
            table.append(
                f"| {name} | straight line | | | {line['mean']:.4f} | {line['max']:.4f} | | {line['test_max']:.4f} |"
            )
        if "largest_relative_difference" in row:
            differences.append(row["largest_relative_difference"])
    if differences:
        table += [
            "",
            f"The losses of one curve differ by at most {max(differences):.0e} relative between the programs.",
        ]
    return "\n".join(table)


def lines(result: dict) -> list[str]:
    """A line on recordings, components, grids, the plane and films each."""
    told = []
    rows = result.get("record", {})
    for side in (name for name in rows if isinstance(rows[name], list)):
        each = [
            f"{row['steps']:,} steps {short(max(row['ms_per_step_more'], 0))} ms a step more, "
            f"{max(row['growth_mib'], 0):.1f} MiB"
            for row in rows[side]
            if "ms_per_step_more" in row
        ]
        disk = [f", {short(row['disk_mib'])} MiB on disk" for row in rows[side][-1:] if "disk_mib" in row]
        told.append(f"- Every step of an MLP recorded, {side}: {'; '.join(each)}{''.join(disk)}.")
    for side, each in result.get("pca", {}).items():
        said = [
            f"{row['steps']:,} checkpoints {short(row['seconds'])} s, {row['number']:,} shares"
            + (f" within {row['error']:.0e} of scikit-learn's in float64" if "error" in row else "")
            for row in each
            if "seconds" in row
        ]
        told.append(
            f"- Principal components, {side} {'from disk' if side == 'lla_jax' else 'from memory'}: {'; '.join(said)}."
        )
    if grid := result.get("grid"):
        each = ", ".join(f"{name} {short(row['seconds'])} s" for name, row in grid["sides"].items() if "seconds" in row)
        again = grid["sides"].get("lla_jax", {}).get("again_s")
        more = "" if again is None else f", {short(again)} s once compiled"
        error = grid.get("largest_relative_difference")
        same = "" if error is None else f"; the values differ by at most {error:.0e} relative"
        told.append(f"- {grid['points']:,} losses about the end of a path: {each}{more}{same}.")
    if "seconds" in (plane := result.get("plane", {})):
        told.append(
            f"- {plane['points']:,} points about a descent of the small MLP ({plane['examples']:,} examples): "
            f"{short(plane['seconds'])} s with compiling, {plane['growth_mib']:.0f} MiB."
        )
    if film := result.get("film"):
        each = "; ".join(
            f"{name} {short(row['seconds'])} s, {row['growth_mib']:.0f} MiB" if "seconds" in row else f"{name} fails"
            for name, row in film["sides"].items()
        )
        width, height = film["size"]
        told.append(f"- A film of {film['frames']} frames at {width} x {height} over these points: {each}.")
    return ["\n".join(told)] if told else []
