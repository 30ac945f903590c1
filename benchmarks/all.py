"""All benchmarks, one after another, then README's table and docs/benchmarks.md from their results.

    python benchmarks/all.py --lla PATH [--pyhessian PATH] [--eigenthings PATH]
        [--connectivity PATH] [--anim PATH [--packages PATH]] [--only sweep,bundle] [--minutes 30]

Each part is a script of its own, writes every result as soon as it is there, and can be run alone; what the time does
not suffice for is named at the end. Peers that are not here are skipped with a line.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import pathlib
import signal
import subprocess
import sys

from harness import measure

HERE = pathlib.Path(__file__).parent
GRACE = 1.5  # times its minutes: a part that takes longer is ended, and keeps what it has written
# in the order of their weight: minutes after which a part begins nothing more, and its own options
PARTS: dict[str, tuple[float, list[str]]] = {
    "sweep": (10, []),
    "bundle": (5, []),
    "hessian": (
        7,
        [
            "--only",
            "lenet",
            "--parts",
            "top10",
            "--cap",
            "60",
            "--rivals",
            "lla_jax,PyHessian,hessian-eigenthings,curvlinops",
        ],
    ),
    "many_planes": (4, []),
    "memory": (4, []),
    "refine": (20, []),
    "vocabulary": (10, []),
    "kill": (5, []),
    "damage": (5, []),
    "interrupts": (10, ["--moments", "8"]),
    "cold_start": (4, []),
    "growth": (4, []),
    "convolutions": (3, []),
    "interop": (4, []),
    "paths": (8, []),
    "calibration": (15, []),
    "precision": (5, []),
    "gpu": (8, []),
    "tpu": (60, []),
}
PEERS = {
    "sweep": ("lla",),
    "bundle": ("lla",),
    "hessian": ("lla", "pyhessian", "eigenthings"),
    "paths": ("connectivity", "anim", "packages"),
}
ALONE = ("interop",)  # knows none of the common options but --data
# what a part needs that machines may lack
NEEDS = {
    "gpu": (lambda: pathlib.Path("/dev/nvidiactl").exists(), "NVIDIA GPU"),
    "tpu": (lambda: importlib.util.find_spec("libtpu") is not None, "libtpu, the compiler for TPUs,"),
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("lla", "pyhessian", "eigenthings", "connectivity", "anim"):
        parser.add_argument(f"--{name}", type=pathlib.Path, help="checkout of this peer")
    parser.add_argument("--packages", type=pathlib.Path, help="folder with what --anim needs, if it is not installed")
    parser.add_argument("--data", type=pathlib.Path, default=measure.RESULTS.parents[2] / "shared/data")
    parser.add_argument("--only", default=",".join(PARTS), help="parts, by commas")
    parser.add_argument("--minutes", type=float, default=30.0, help="for all parts together")
    parser.add_argument("--threads", type=int, default=measure.THREADS)
    parser.add_argument("--quick", action="store_true", help="to see that all of it runs; writes no result")
    options = parser.parse_args()
    options.only = options.only.split(",")
    if not set(options.only) <= set(PARTS):
        parser.error(f"--only: {options.only} given; it must be some of {','.join(PARTS)}")
    return options


def command(options: argparse.Namespace, name: str, minutes: float) -> list[str]:
    """How a part is called."""
    found = [sys.executable, str(HERE / f"{name}.py"), "--data", str(options.data)]
    if name in ALONE:
        return found
    found += ["--threads", str(options.threads), "--minutes", f"{minutes:.2f}", *PARTS[name][1]]
    for peer in PEERS.get(name, ()):
        if path := getattr(options, peer):
            found += [f"--{peer}", str(path)]
    return [*found, "--quick"] if options.quick else found


def run(call: list[str], limit: float) -> str:
    """Run a part in a group of processes of its own; says what went wrong, or nothing."""
    process = subprocess.Popen(call, start_new_session=True)
    try:
        code = process.wait(timeout=limit)
        return f"ended with status {code}" if code else ""
    except subprocess.TimeoutExpired:
        return f"ended after {limit:.0f} s"
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()


def main() -> None:
    options = arguments()
    left, skipped, failed = measure.clock(options.minutes), [], []
    for name in options.only:
        if options.quick and name in ALONE:
            continue
        there, what = NEEDS.get(name, (lambda: True, ""))
        if not there():
            print(f"== {name}: not run, since there is no {what} here")
            continue
        minutes = min(PARTS[name][0], left() / 60)
        if minutes < 0.5:
            skipped.append(name)
            continue
        print(f"== {name}, at most {minutes:.1f} minutes", flush=True)
        taken, wrong = measure.timed(lambda name=name, m=minutes: run(command(options, name, m), GRACE * 60 * m))
        print(f"== {name}: {taken:.0f} s {wrong}", flush=True)
        failed += [f"{name} {wrong}"] if wrong else []
    if not options.quick:
        subprocess.run([sys.executable, str(HERE / "harness" / "table.py")], check=True)
        print("README.md and docs/benchmarks.md are written anew")
    if skipped:
        print(f"the time did not suffice for: python benchmarks/all.py --only {','.join(skipped)}")
    if failed:
        raise SystemExit(f"not whole: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
