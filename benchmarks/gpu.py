"""Claim: the speed of planes, products and steps of Lanczos on a GPU, and the noise of a plane at each precision.

    python benchmarks/gpu.py [--wheels FOLDER] [--minutes 8]
    python benchmarks/gpu.py --quick --platform cpu     # to see that it runs

One script for a machine that is lent for minutes: with jax for CUDA, without a network, and without most of what
lla_jax is installed with. It needs jax, numpy, scipy and chex (with absl-py, toolz and typing_extensions) and no more;
wheels of what is missing there are carried in a folder, for the Python that is there:

    pip download --no-deps --only-binary :all: --python-version 3.12 -d wheels chex absl-py toolz typing_extensions

Each figure is written to results/gpu.json as soon as it is there; ``python benchmarks/harness/table.py`` makes the
table.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import pathlib
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

from harness import measure

ROOT = pathlib.Path(__file__).parents[1]
NETWORKS = ("mlp", "lenet", "resnet", "vit", "gpt")
PRECISIONS = ("highest", "high", "default")
NEEDED = {"jax": "jax", "numpy": "numpy", "scipy": "scipy", "chex": "chex", "absl": "absl-py", "toolz": "toolz"}
POINTS, STEPS, REPEATS = 41, 20, 5
NEAR, AROUND = 0.01, 9  # extent and points of an axis of the plane whose noise is looked at


def unpack(wheels: pathlib.Path | None) -> None:
    """Make lla_jax, and the packages in a folder of wheels, importable; packages that are installed come first."""
    sys.path.insert(0, str(ROOT))
    if wheels is None:
        return
    if not wheels.is_dir():
        raise SystemExit(f"--wheels: {wheels} given, which is no folder; it must hold .whl files")
    inside = tempfile.mkdtemp(prefix="wheels-")
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as file:
            file.extractall(inside)
    sys.path.append(inside)


def check(platform: str) -> None:
    """End, and say what to do, if a package or the GPU is not there."""
    missing = [package for name, package in NEEDED.items() if importlib.util.find_spec(name) is None]
    if missing:
        raise SystemExit(
            f"not installed: {', '.join(missing)}; carry their wheels in a folder, and add --wheels FOLDER"
        )
    import jax

    try:
        found = jax.devices(platform)
    except RuntimeError as error:
        raise SystemExit(
            f"--platform {platform}: jax {jax.__version__} has no such device here ({error}); run it where a GPU and a "
            "jax for CUDA are, or see that it runs with --quick --platform cpu"
        ) from error
    print(f"{len(found)} x {found[0].device_kind}, jax {jax.__version__}", flush=True)


def parts(quick: bool) -> Iterator[tuple[str, str, Callable[[], dict[str, float]]]]:
    """(network, part, measurement), those that matter most first."""
    from cases import plain

    problem = functools.cache(lambda name: plain.problem(name, 8 if quick else None))
    for precision in PRECISIONS:
        for name in NETWORKS:
            yield name, precision, functools.partial(plane, problem, name, precision, 3 if quick else POINTS)
        if precision == "highest":
            for name in NETWORKS:
                yield name, "product", functools.partial(product, problem, name)
                yield name, "lanczos", functools.partial(steps, problem, name, 3 if quick else STEPS)


def plane(problem: Callable, name: str, precision: str, points: int) -> dict[str, float]:
    """Milliseconds a point of a square plane, everything compiled and the plan chosen."""
    import lla_jax as lla

    found, execution = problem(name), lla.Execution(precision=precision, devices=1)
    axes, grid = _axes(found.params), lla.grid(extent=0.5, points=points)
    seconds, first = measure.timed(lambda: lla.evaluate(*found, axes, grid, execution=execution))
    again = min(measure.seconds(lambda: lla.evaluate(*found, axes, grid, execution=execution)) for _ in range(2))
    return {"ms": 1e3 * again / points**2, "first_s": seconds, "plan": first.recipe["plan"]}


def product(problem: Callable, name: str) -> dict[str, float]:
    """Milliseconds of a Hessian product, with primal values kept."""
    import jax

    H = _hessian(problem(name))
    v = H.random(jax.random.key(0))
    call = lambda: jax.block_until_ready(H.product(v))  # noqa: E731
    first = measure.seconds(call)
    return {"ms": 1e3 * min(measure.seconds(call) for _ in range(REPEATS)), "first_s": first}


def steps(problem: Callable, name: str, num: int) -> dict[str, float]:
    """Milliseconds a step of Lanczos with full re-orthogonalisation."""
    import jax

    from lla_jax.curvature.lanczos import lanczos

    H = _hessian(problem(name))
    call = lambda: jax.block_until_ready(lanczos(H, jax.random.key(0), num).basis)  # noqa: E731
    first = measure.seconds(call)
    return {"ms": 1e3 * measure.seconds(call) / num, "first_s": first}


def noise(precision: str) -> float:
    """The noise of a small plane of the MLP: what a quadratic leaves of its values, relative to the loss."""
    import numpy as np
    from cases import plain

    import lla_jax as lla

    found, grid = plain.problem("mlp"), lla.grid(extent=NEAR, points=AROUND)
    how = lla.Execution(precision=precision, devices=1)
    values = lla.evaluate(*found, _axes(found.params), grid, execution=how).values["loss"]
    a, b = np.meshgrid(*(axis / NEAR for axis in grid), indexing="ij")
    terms = np.stack([np.ones_like(a), a, b, a * a, a * b, b * b], -1).reshape(-1, 6)
    left = values.ravel() - terms @ np.linalg.lstsq(terms, values.ravel())[0]
    return float(np.sqrt(np.mean(left**2)) / abs(values.mean()))


def _axes(params: Any) -> Any:
    import jax

    import lla_jax as lla

    return lla.directions.normalize(lla.directions.random(jax.random.key(1), params), params)


def _hessian(problem: Any) -> Any:
    import lla_jax as lla

    return lla.hessian(*problem, execution=lla.Execution(devices=1, linearize=True))


def attempted(call: Callable[[], Any]) -> Any:
    """What a measurement found, or {"error": ...}: the others go on."""
    try:
        return call()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def main() -> None:
    made = measure.parser(__doc__, minutes=8)
    made.add_argument("--wheels", type=pathlib.Path, help="a folder of wheels of what is not installed")
    made.add_argument("--platform", default="gpu", choices=("gpu", "cpu"), help="cpu: to see that it runs")
    options = made.parse_args()
    if options.platform == "cpu" and not options.quick:
        raise SystemExit("--platform cpu: only with --quick, since sweep.py and hessian.py measure CPUs")
    left = measure.clock(options.minutes)
    if options.platform == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
    unpack(options.wheels)
    check(options.platform)
    import jax

    path = measure.place(options, "gpu")
    result = measure.begun(__doc__, 1) | {"networks": {name: {} for name in NETWORKS}, "noise": {}}
    result["environment"]["device"] = jax.devices(options.platform)[0].device_kind
    for precision in PRECISIONS:
        result["noise"][precision] = attempted(functools.partial(noise, precision))
        print(f"  noise, {precision}: {result['noise'][precision]}", flush=True)
        measure.keep(path, result)
    for name, part, call in parts(options.quick):
        if left() < 0:
            print(f"  {name}, {part}: the time is over, skipped")
            continue
        row = result["networks"][name][part] = attempted(call)
        print(f"  {name}, {part}: {row}", flush=True)
        measure.keep(path, result)
    print(f"written: {measure.keep(path, result)}")


if __name__ == "__main__":
    main()
